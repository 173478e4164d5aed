//! What a hostile target can make the initiator hold in memory, and for how long it can keep it busy. One test, so that what is measured
//! belongs to the case it is measured in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::spec::discovery::{
    AddressFamilyCode, DiscoveryLogEntry, DiscoveryLogHeader, SubsystemType, TransportTypeCode,
};
use nvmf_core::spec::identify::Cns;
use nvmf_core::spec::log_page::LogPageId;
use nvmf_core::spec::{AdminOpcode, NvmOpcode, Sqe, Status};
use nvmf_core::{
    CommandError, Controller, ControllerOptions, Driver, Error, IoCommand, IoQpairOptions, TransportId,
};
use nvmf_discovery::{DiscoveryMonitor, MonitorEvent, MonitorOptions};
use nvmf_tests::tiny::{Answer, Hook, Tiny, log_length, log_offset};
use nvmf_transport_tcp::TcpTransport;
use zerocopy::IntoBytes;

const NQN: &str = "nqn.2024-01.com.example:bounds";
/// How much resident memory may grow in a case, KiB: 16,384 namespaces with 4 KiB each, or a log of 16 MiB, and what goes along.
const GROWTH: u64 = 96 << 10;
/// How long a case may take.
const LIMIT: Duration = Duration::from_secs(60);

fn options() -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.connect_timeout = Duration::from_secs(20);
    options.attach_timeout = LIMIT;
    options.keep_alive_timeout = Duration::ZERO;
    options
}

/// A value of `/proc/self/status`, KiB.
fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim_matches([':', ' ', '\t', 'k', 'B']).parse()?)
}

/// Runs a case. The most memory it had in use must not be much more than there was before.
fn bounded(what: &str, case: impl FnOnce() -> Result<()>) -> Result<()> {
    // The high water mark starts anew (proc(5), clear_refs).
    std::fs::write("/proc/self/clear_refs", "5")?;
    let (before, began) = (memory("VmRSS")?, Instant::now());
    case().with_context(|| what.to_owned())?;
    let (grown, took) = (memory("VmHWM")?.saturating_sub(before), began.elapsed());
    println!("{what}: {grown} KiB more, {took:?}");
    ensure!(grown < GROWTH, "{what}: resident memory grew by {grown} KiB");
    ensure!(took < LIMIT, "{what}: it took {took:?}");
    Ok(())
}

fn driver() -> Driver {
    Driver::builder().transport(TcpTransport::new()).build()
}

/// Answers one page of the log by a function of where it is read and how much.
fn log(page: LogPageId, mut answer: impl FnMut(u64, usize) -> Answer + Send + 'static) -> Hook {
    Box::new(move |qid, sqe| {
        let ours = qid == 0 && sqe.opcode == AdminOpcode::GET_LOG_PAGE.0 && sqe.cdw10.get() as u8 == page.0;
        ours.then(|| answer(log_offset(sqe), log_length(sqe)))
    })
}

/// Reads the discovery log of a controller that answers so.
fn discovery(answer: impl FnMut(u64, usize) -> Answer + Send + 'static) -> Result<usize, Error> {
    let target = Tiny::listen(true, log(LogPageId::DISCOVERY, answer)).expect("a listener");
    let trid = target
        .trid()
        .expect("an address")
        .with_subnqn("nqn.2014-08.org.nvmexpress.discovery".parse().expect("a name"));
    let _serving = target.serve();
    let controller = driver().connect(&trid, &options())?;
    controller.discovery_log().map(|log| log.records.len())
}

fn page(header: DiscoveryLogHeader, offset: u64, len: usize) -> Answer {
    let mut bytes = if offset == 0 { header.as_bytes().to_vec() } else { Vec::new() };
    bytes.resize(len, 0);
    Answer::Data(bytes)
}

/// It fails, and says why.
fn refused(outcome: Result<usize, Error>, words: &str) -> Result<()> {
    match outcome {
        Ok(records) => bail!("{records} records were accepted"),
        Err(error) => ensure!(error.to_string().contains(words), "no {words:?} in: {error}"),
    }
    Ok(())
}

/// An attached I/O controller that answers so.
fn attached(trid: &TransportId) -> Result<(Driver, Controller)> {
    let driver = driver();
    let controller = driver.connect(&trid.clone().with_subnqn(NQN.parse()?), &options())?;
    Ok((driver, controller))
}

#[test]
fn nothing_grows_without_bound() -> Result<()> {
    // What is allocated once belongs to no case.
    refused(discovery(|offset, len| page(DiscoveryLogHeader::new(1, u64::MAX), offset, len)), "records")?;

    for numrec in [u64::MAX, u64::MAX / 1024, 1 << 32, 16_385] {
        bounded(&format!("a discovery log of {numrec} records"), || {
            refused(
                discovery(move |offset, len| page(DiscoveryLogHeader::new(1, numrec), offset, len)),
                "records",
            )
        })?;
    }
    bounded("a discovery log of 16,384 records", || {
        let records = discovery(|offset, len| page(DiscoveryLogHeader::new(1, 16_384), offset, len))?;
        ensure!(records == 16_384, "{records}");
        Ok(())
    })?;
    bounded("a discovery log that is another one each time", || {
        let reads = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&reads);
        let outcome = discovery(move |offset, len| {
            let genctr = counter.fetch_add(1, Ordering::Relaxed);
            page(DiscoveryLogHeader::new(genctr, 40), offset, len)
        });
        refused(outcome, "chang")?;
        let reads = reads.load(Ordering::Relaxed);
        ensure!(reads < 2000, "{reads} reads");
        Ok(())
    })?;
    bounded("a discovery log that is to be read again each time", || {
        let status = Status::DISCOVERY_RESTART;
        refused(discovery(move |_, _| Answer::Status(status)), "")
    })?;
    bounded("an ANA log as long as can be said", || {
        let target = Tiny::listen(
            false,
            log(LogPageId::ANA, |_, len| {
                // As many groups as fit the largest number, of as many namespaces.
                Answer::Data(vec![0xff; len])
            }),
        )?
        .identify(|identify| {
            identify.cmic |= 1 << 3;
            identify.nanagrpid = u32::MAX.into();
            identify.anagrpmax = u32::MAX.into();
            identify.mnan = u32::MAX.into();
            identify.nn = u32::MAX.into();
        });
        let trid = target.trid()?;
        let _serving = target.serve();
        // Refused or done without: either will do.
        if let Ok((_driver, controller)) = attached(&trid) {
            ensure!(controller.ana_groups().len() < 100_000);
        }
        Ok(())
    })?;
    bounded("namespaces without end", namespaces_without_end)?;
    bounded("events without end", events_without_end)?;
    bounded("R2Ts without end", r2ts_without_end)?;
    bounded("a changed namespace list of garbage, again and again", changes_without_end)?;
    bounded(
        "a discovery log of other entries each time, for a program that does not listen",
        names_without_end,
    )
}

/// A path in a discovery log, named by a number.
fn entry(name: u64) -> DiscoveryLogEntry {
    let mut entry = DiscoveryLogEntry {
        trtype: TransportTypeCode::TCP,
        adrfam: AddressFamilyCode::IPV4,
        subtype: SubsystemType::NVM,
        ..DiscoveryLogEntry::default()
    };
    let mut set = |field: fn(&mut DiscoveryLogEntry) -> &mut [u8], text: &str| {
        field(&mut entry)[..text.len()].copy_from_slice(text.as_bytes());
    };
    // Where nobody answers (RFC 5737).
    set(|entry| &mut entry.traddr, "192.0.2.1");
    set(|entry| &mut entry.trsvcid, "4420");
    set(|entry| &mut entry.subnqn, &format!("nqn.2024-01.com.example:{name}"));
    entry
}

/// Each reading of the log finds other entries. `next` is not called while thousands come and go, and then tells the truth.
fn names_without_end() -> Result<()> {
    const ENTRIES: u64 = 512;
    let headers = Arc::new(AtomicU64::new(0));
    let (counter, calm) = (Arc::clone(&headers), Arc::new(AtomicBool::new(false)));
    let calmed = Arc::clone(&calm);
    let target = Tiny::listen(
        true,
        log(LogPageId::DISCOVERY, move |offset, len| {
            // The header is read before the entries and after them.
            if offset == 0 && !calmed.load(Ordering::Relaxed) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            let generation = counter.load(Ordering::Relaxed).div_ceil(2);
            let mut bytes = DiscoveryLogHeader::new(generation, ENTRIES).as_bytes().to_vec();
            for name in generation * ENTRIES..(generation + 1) * ENTRIES {
                bytes.extend_from_slice(entry(name).as_bytes());
            }
            let from = bytes.len().min(offset as usize);
            Answer::Data(bytes[from..bytes.len().min(from + len)].to_vec())
        }),
    )?;
    let trid = target.trid()?.with_subnqn("nqn.2014-08.org.nvmexpress.discovery".parse()?);
    let _serving = target.serve();
    let mut options = MonitorOptions::default();
    options.refresh = Some(Duration::from_millis(1));
    let monitor = DiscoveryMonitor::new(driver(), options);
    monitor.watch(&trid)?;
    let began = Instant::now();
    while headers.load(Ordering::Relaxed) < 80 && began.elapsed() < Duration::from_secs(40) {
        std::thread::sleep(Duration::from_millis(20));
    }
    calm.store(true, Ordering::Relaxed);
    let readings = headers.load(Ordering::Relaxed) / 2;
    ensure!(readings > 10, "{readings} readings in {:?}", began.elapsed());
    // What waits to be told, and what is told until nothing changes any more.
    let (mut told, mut merged, mut paths) = (0, 0, BTreeSet::new());
    while let Some(event) = monitor.next(Duration::from_secs(1)) {
        told += 1;
        match event {
            MonitorEvent::Added(path) => {
                ensure!(paths.insert(path.trid.to_string()), "added twice: {path:?}")
            }
            MonitorEvent::Removed(path) => {
                ensure!(paths.remove(&path.trid.to_string()), "never added: {path:?}")
            }
            MonitorEvent::Merged { events } => merged += events,
            MonitorEvent::Disconnected { error, .. } => bail!("{error}"),
            _ => {}
        }
    }
    println!("{readings} readings of {ENTRIES} other entries: {told} events told, {merged} merged");
    ensure!(merged > 0 && told < 4096 + 3 * ENTRIES, "{told} events told, {merged} merged");
    let there: BTreeSet<String> = monitor.paths().iter().map(|path| path.trid.to_string()).collect();
    ensure!(paths == there && paths.len() == ENTRIES as usize, "{} told, {} there", paths.len(), there.len());
    Ok(())
}

/// A list of active namespaces that goes on for ever.
fn namespaces_without_end() -> Result<()> {
    let hook = |_, sqe: &Sqe| {
        let list =
            sqe.opcode == AdminOpcode::IDENTIFY.0 && sqe.cdw10.get() as u8 == Cns::ACTIVE_NAMESPACE_LIST.0;
        let single = sqe.opcode == AdminOpcode::IDENTIFY.0 && sqe.cdw10.get() as u8 == Cns::NAMESPACE.0;
        if single {
            // None of them is worth a name.
            return Some(Answer::Status(Status::INVALID_NAMESPACE_OR_FORMAT));
        }
        list.then(|| Answer::Data((1..=1024).flat_map(|n| (sqe.nsid.get() + n).to_le_bytes()).collect()))
    };
    let target = Tiny::listen(false, Box::new(hook))?;
    let trid = target.trid()?;
    let _serving = target.serve();
    let (_driver, controller) = attached(&trid)?;
    ensure!(controller.namespaces().len() <= 16_384);
    Ok(())
}

/// Every Asynchronous Event Request is answered at once.
fn events_without_end() -> Result<()> {
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    let hook = move |_, sqe: &Sqe| {
        (sqe.opcode == AdminOpcode::ASYNC_EVENT_REQUEST.0).then(|| {
            counter.fetch_add(1, Ordering::Relaxed);
            // A vendor's own (type 7).
            Answer::Dword0(7)
        })
    };
    let target = Tiny::listen(false, Box::new(hook))?;
    let trid = target.trid()?;
    let _serving = target.serve();
    let (_driver, controller) = attached(&trid)?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        // It is given up, or it works beside the events.
        if let Err(error) = controller.identify_structure(Cns::CONTROLLER, 0) {
            ensure!(controller.is_failed(), "{error}");
            break;
        }
    }
    let (events, kept) = (count.load(Ordering::Relaxed), controller.take_events().len());
    println!("{events} events in {:?}, {kept} of them kept", began.elapsed());
    ensure!(events > 100 && kept <= 256, "{events} events, {kept} of them kept");
    Ok(())
}

/// A write is asked for the same data again and again.
fn r2ts_without_end() -> Result<()> {
    let hook =
        |qid, sqe: &Sqe| (qid != 0 && sqe.opcode == NvmOpcode::WRITE.0).then_some(Answer::Request(0, 16_384));
    let target = Tiny::listen(false, Box::new(hook))?;
    let trid = target.trid()?;
    let _serving = target.serve();
    let (_driver, controller) = attached(&trid)?;
    let ns = controller.namespace(1).context("no namespace")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    // One R2T for each of them, which is served, and nothing more: a command that never ends, but holds no more than its own data.
    for n in 0..64 {
        let buf = qpair.alloc(16_384)?;
        qpair.submit(IoCommand::write(&ns, 0, buf), n)?;
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        qpair.process_completions(0, |c| panic!("it completed: {c:?}"))?;
        qpair.wait(Duration::from_millis(10))?;
    }
    drop(qpair);

    // All of the data of a write, twice: the second is refused.
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let buf = qpair.alloc(8192)?;
    qpair.submit(IoCommand::write(&ns, 0, buf), 1)?;
    let mut ends = Vec::new();
    let began = Instant::now();
    let error = loop {
        if let Err(error) = qpair.process_completions(0, |c| ends.push(c.result)) {
            break error;
        }
        ensure!(began.elapsed() < Duration::from_secs(20), "an R2T for more than there is was accepted");
        qpair.wait(Duration::from_millis(10))?;
    };
    ensure!(ends == [Err(CommandError::Disconnected)], "{ends:?}");
    ensure!(error.to_string().contains("R2T"), "{error}");
    Ok(())
}

/// Namespaces are said to change all the time, and the list of what changed is as long as it can be.
fn changes_without_end() -> Result<()> {
    let reads = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&reads);
    let hook = move |_, sqe: &Sqe| {
        if sqe.opcode == AdminOpcode::ASYNC_EVENT_REQUEST.0 {
            // A notice (2): namespace attribute changed (0), log page 04h.
            return Some(Answer::Dword0(2 | 4 << 16));
        }
        let list = sqe.opcode == AdminOpcode::GET_LOG_PAGE.0
            && sqe.cdw10.get() as u8 == LogPageId::CHANGED_NAMESPACES.0;
        list.then(|| {
            let n = counter.fetch_add(1, Ordering::Relaxed);
            Answer::Data(match n % 3 {
                // More than 1,024 have changed; 1,024 that do not exist; garbage.
                0 => [&u32::MAX.to_le_bytes()[..], &[0; 4092]].concat(),
                1 => (1000..2024u32).flat_map(u32::to_le_bytes).collect(),
                _ => vec![0xa5; 4096],
            })
        })
    };
    let target = Tiny::listen(false, Box::new(hook))?;
    let trid = target.trid()?;
    let _serving = target.serve();
    let (_driver, controller) = attached(&trid)?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) && !controller.is_failed() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let reads = reads.load(Ordering::Relaxed);
    println!("{reads} reads of the list, failed: {}", controller.is_failed());
    ensure!(controller.is_failed() || (1..100).contains(&reads), "{reads} reads of the list");
    ensure!(controller.is_failed() || controller.namespace(1).is_some(), "the namespace is gone");
    Ok(())
}

//! Scenarios in which other initiators are tested (SPDK's test/nvmf/host, blktests' nvme group) and that no other test here has;
//! docs/testing.md says which test stands for which scenario.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::spec::Status;
use nvmf_core::spec::discovery::SubsystemType;
use nvmf_core::{CommandError, Driver, IoCommand, IoQpair, IoQpairOptions, TransportId};
use nvmf_loopback::{Fault, Loopback, Namespace, Rule, SubsystemBuilder};
use nvmf_tests::load::Load;
use nvmf_tests::rig::{self, SOON, eventually, options};
use nvmf_tests::rng::Rng;
use nvmf_tests::tiny::{BLOCK, Tiny};
use nvmf_tests::workload::Workload;
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2024-01.com.example:scenario";
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Targets in this process and over TCP, with a driver each and the subsystem's address.
fn rigs(subsystem: impl Fn() -> SubsystemBuilder) -> Result<Vec<(Loopback, Driver, TransportId)>> {
    Ok(vec![rig::in_process(subsystem(), NQN)?, rig::tcp(subsystem(), NQN)?])
}

/// Initiator and target on one thread: whatever blocks, blocks for ever.
#[test]
fn a_thread_attaches_to_itself() -> Result<()> {
    let mut target = Tiny::listen(false, Box::new(|_, _| None))?;
    let trid = target.trid()?.with_subnqn(NQN.parse()?);
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let mut options = options();
    options.background_admin = false;
    let deadline = Instant::now() + SOON;
    let turn = |target: &mut Tiny| -> Result<()> {
        target.poll()?;
        ensure!(Instant::now() < deadline, "it does not get on");
        Ok(())
    };

    let mut found = None;
    let mut attach = driver.connect_async(&trid, &options, |result| found = Some(result))?;
    while !attach.poll()? {
        turn(&mut target)?;
    }
    drop(attach);
    let controller = found.context("nothing came of it")??;
    let ns = controller.namespace(1).context("no namespace")?;

    let mut qpair = controller.alloc_io_qpair_async(&IoQpairOptions::default())?;
    while !qpair.poll_connect()? {
        turn(&mut target)?;
        controller.process_admin_completions()?;
    }
    for round in 0..20u64 {
        let mut ends = Vec::new();
        let mut buf = qpair.alloc(8 * BLOCK)?;
        buf.fill(round as u8 + 1);
        qpair.submit(IoCommand::write(&ns, round * 8, buf), 1)?;
        while ends.is_empty() {
            turn(&mut target)?;
            qpair.process_completions(0, |completion| ends.push(completion))?;
        }
        let buf = qpair.alloc(8 * BLOCK)?;
        qpair.submit(IoCommand::read(&ns, round * 8, buf), 2)?;
        while ends.len() < 2 {
            turn(&mut target)?;
            qpair.process_completions(0, |completion| ends.push(completion))?;
            controller.process_admin_completions()?;
        }
        for end in &ends {
            ensure!(end.result.is_ok(), "{end:?}");
        }
        ensure!(ends[1].buf.bufs()[0].iter().all(|&byte| byte == round as u8 + 1), "other data");
    }

    drop(qpair);
    let mut detach = controller.detach_async();
    while !detach.poll()? {
        turn(&mut target)?;
    }
    Ok(())
}

/// So many commands that are never answered, each of them aborted.
#[test]
fn aborts_at_every_queue_depth() -> Result<()> {
    for (target, driver, trid) in rigs(|| SubsystemBuilder::new(NQN).namespace(Namespace::memory(1 << 20)))? {
        let controller = driver.connect(&trid, &options())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut fired = 0;
        for depth in [1usize, 2, 7, 32, 128, 256] {
            let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
            target.faults().push(Rule::new(Fault::Drop).io().times(depth as u64));
            let mut ids = Vec::new();
            for n in 0..depth {
                let buf = qpair.alloc(512)?;
                ids.push(qpair.submit(IoCommand::read(&ns, 0, buf), n as u64)?);
            }
            // A controller can abort only what it has: all that there are slots for.
            let taken = fired + depth.min(255) as u64;
            eventually(&format!("{depth} taken on {trid}"), || {
                qpair.process_completions(0, |c| panic!("{c:?}"))?;
                Ok(target.faults().fired() == taken)
            })?;
            fired = taken;
            let mut ends = vec![None; depth];
            let mut note = |completion: nvmf_core::Completion| {
                let slot = &mut ends[completion.user_data as usize];
                assert!(slot.is_none(), "{} ended twice", completion.user_data);
                *slot = Some(completion.result);
            };
            for id in ids {
                qpair.abort(id, &mut note)?;
            }
            eventually(&format!("{depth} aborted on {trid}"), || {
                qpair.process_completions(0, &mut note)?;
                Ok(qpair.outstanding() == 0)
            })?;
            for end in ends.into_iter().flatten() {
                match end {
                    Err(CommandError::Aborted) => {}
                    Err(CommandError::Status(status)) if status.is(Status::ABORT_REQUESTED) => {}
                    other => bail!("{other:?} at depth {depth}"),
                }
            }
            target.faults().clear();
            // It works on.
            let buf = qpair.alloc(512)?;
            qpair.read_blocking(&ns, 0, buf)?;
        }
    }
    Ok(())
}

/// Connecting and leaving again and again, properly, in a hurry and in the middle; nothing stays behind at the target.
#[test]
fn a_hundred_times_connected_and_gone() -> Result<()> {
    for (target, driver, trid) in rigs(|| SubsystemBuilder::new(NQN).namespace(Namespace::memory(1 << 20)))? {
        for round in 0..100 {
            if round % 4 == 3 {
                let mut attach = driver.connect_async(&trid, &options(), |_| {})?;
                for _ in 0..round {
                    if attach.poll()? {
                        break;
                    }
                }
                continue;
            }
            let controller = driver.connect(&trid, &options())?;
            let qpair = (round % 2 == 0).then(|| controller.alloc_io_qpair(&IoQpairOptions::default()));
            if let Some(qpair) = qpair {
                let (mut qpair, ns) = (qpair?, controller.namespace(1).context("no namespace")?);
                let buf = qpair.alloc(512)?;
                qpair.read_blocking(&ns, 0, buf)?;
            }
            if round % 4 != 2 {
                controller.detach()?;
            }
        }
        ensure!(driver.pool().stats().outstanding == 0, "{:?}", driver.pool().stats());
        eventually("nobody is left", || Ok(target.controllers(NQN) == 0))?;
    }
    Ok(())
}

/// What I/O on a namespace that comes and goes may end with.
fn goes_with_its_namespace(result: Result<u64, CommandError>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(CommandError::Status(status)) if status.is(Status::INVALID_NAMESPACE_OR_FORMAT) => Ok(()),
        Err(other) => bail!("{other}"),
    }
}

/// Namespaces come and go, one under I/O, while another one is verified, others connect and the list is read.
#[test]
fn namespaces_come_and_go_under_load() -> Result<()> {
    for (target, driver, trid) in
        rigs(|| SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).block_size(512)))?
    {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let storm = scope.spawn(|| -> Result<u32> {
                let mut rounds = 0;
                while !stop.load(Ordering::Acquire) {
                    // The same identifier, another namespace each time.
                    let uuid = [(rounds % 255) as u8 + 1; 16];
                    let namespace = Namespace::memory(1 << 20).nsid(2).uuid(uuid);
                    target.add_namespace(NQN, namespace)?;
                    std::thread::sleep(Duration::from_millis(3));
                    target.remove_namespace(NQN, 2)?;
                    rounds += 1;
                }
                Ok(rounds)
            });
            let visitor = scope.spawn(|| -> Result<u32> {
                let visitors = Driver::builder().transport(target.transport()).build();
                let mut visits = 0;
                while !stop.load(Ordering::Acquire) {
                    let controller = visitors.connect(&target.trid(NQN)?, &options())?;
                    ensure!(controller.namespace(1).is_some(), "namespace 1 is missing");
                    controller.detach()?;
                    visits += 1;
                }
                Ok(visits)
            });
            let outcome = (|| -> Result<u64> {
                let controller = driver.connect(&trid, &options())?;
                let ns = controller.namespace(1).context("no namespace")?;
                let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
                let mut other = controller.alloc_io_qpair(&IoQpairOptions::default())?;
                let mut load = Load::new(11, 0, 8192, 32);
                let mut fleeting = 0;
                let began = Instant::now();
                while began.elapsed() < Duration::from_secs(3) {
                    load.submit(&mut qpair, &ns)?;
                    ensure!(!load.process(&mut qpair, &ns)?, "the queue pair is lost");
                    if let Some(ns) = controller.namespace(2) {
                        let buf = other.alloc(512)?;
                        let read = IoCommand::read(&ns, 0, buf);
                        match other.submit(read, 1) {
                            Ok(_) => fleeting += 1,
                            Err(refused) => ensure!(refused.is_queue_full(), "{refused}"),
                        }
                    }
                    let mut ends = Vec::new();
                    other.process_completions(0, |completion| ends.push(completion.result))?;
                    ends.into_iter().try_for_each(goes_with_its_namespace)?;
                }
                load.drain(&mut qpair, &ns)?;
                load.verify(&mut qpair, &ns)?;
                drain(&mut other)?;
                ensure!(load.ends.succeeded > 100 && load.ends.disconnected == 0, "{:?}", load.ends);
                Ok(fleeting)
            })();
            stop.store(true, Ordering::Release);
            let panicked = |_| anyhow::anyhow!("a thread panicked");
            let (rounds, visits) = (storm.join().map_err(panicked)??, visitor.join().map_err(panicked)??);
            let fleeting = outcome?;
            println!("{trid}: {rounds} namespaces, {visits} visits, {fleeting} I/Os on what comes and goes");
            ensure!(rounds > 10 && visits > 0, "{rounds} namespaces, {visits} visits");
            Ok(())
        })?;
    }
    Ok(())
}

fn drain(qpair: &mut IoQpair) -> Result<()> {
    eventually("everything has ended", || {
        let mut ends = Vec::new();
        qpair.process_completions(0, |completion| ends.push(completion.result))?;
        ends.into_iter().try_for_each(goes_with_its_namespace)?;
        Ok(qpair.outstanding() == 0)
    })
}

#[test]
fn a_thousand_and_twenty_four_at_a_time() -> Result<()> {
    let subsystem = || SubsystemBuilder::new(NQN).namespace(Namespace::memory(64 << 20).block_size(512));
    let target = Loopback::builder()
        .subsystem(subsystem())
        .max_queue_entries(2048)
        .listen_tcp("127.0.0.1:0")
        .build()?;
    for (driver, trid) in [
        (Driver::builder().transport(target.transport()).build(), target.trid(NQN)?),
        (
            Driver::builder().transport(TcpTransport::new()).build(),
            target.tcp_trid(NQN)?.context("no listener")?,
        ),
    ] {
        let controller = driver.connect(&trid, &options())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let io = IoQpairOptions::default().queue_size(1025).queue_requests(1024);
        let mut qpair = controller.alloc_io_qpair(&io)?;
        Workload::new(&ns, 1024, 12_000, 1024).run(&mut qpair, &ns).with_context(|| trid.to_string())?;
    }
    Ok(())
}

/// As many subsystems as a log of a megabyte names.
#[test]
fn a_thousand_subsystems_are_discovered() -> Result<()> {
    const MANY: usize = 1000;
    let target = Loopback::builder().listen_tcp("127.0.0.1:0").build()?;
    for n in 0..MANY {
        target.add_subsystem(SubsystemBuilder::new(format!("{NQN}:{n}")))?;
    }
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let trid = TransportId::tcp_socket(target.tcp_addrs()[0])?.with_subnqn(DISCOVERY.parse()?);
    let log = driver.connect(&trid, &options())?.discovery_log()?;
    let mut names: Vec<_> = log
        .records
        .iter()
        .filter(|record| record.subtype == SubsystemType::NVM)
        .map(nvmf_core::spec::discovery::DiscoveryLogEntry::subnqn)
        .collect();
    names.sort();
    names.dedup();
    ensure!(names.len() >= MANY, "{} names", names.len());
    Ok(())
}

/// The generation counter changes with every change of what a host is told, and with nothing else.
#[test]
fn the_generation_counter_follows_every_change() -> Result<()> {
    let target =
        Loopback::builder().subsystem(SubsystemBuilder::new(NQN)).listen_tcp("127.0.0.1:0").build()?;
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let trid = TransportId::tcp_socket(target.tcp_addrs()[0])?.with_subnqn(DISCOVERY.parse()?);
    let mut persistent = options();
    persistent.keep_alive_timeout = Duration::from_secs(5);
    let controller = driver.connect(&trid, &persistent)?;
    let mut before = controller.discovery_log()?.genctr;
    ensure!(controller.discovery_log()?.genctr == before, "it changed on its own");
    let mut changes = |what: &str, change: &dyn Fn() -> Result<()>| -> Result<()> {
        change()?;
        let now = controller.discovery_log()?.genctr;
        ensure!(now > before, "{what}: {before} became {now}");
        before = now;
        Ok(())
    };
    let second = format!("{NQN}:second");
    let host = "nqn.2014-08.org.nvmexpress:uuid:4f6e8d1c-52d5-4a3b-9c0e-6d1f7a2b3c4d";
    changes("a subsystem more", &|| Ok(target.add_subsystem(SubsystemBuilder::new(second.as_str()))?))?;
    changes("a host less", &|| Ok(target.deny_host(&second, host)?))?;
    changes("a host more", &|| Ok(target.allow_host(&second, host)?))?;
    changes("a referral", &|| {
        target.set_referrals(vec!["trtype:tcp adrfam:ipv4 traddr:192.0.2.7 trsvcid:8009".parse()?]);
        Ok(())
    })?;
    changes("a subsystem less", &|| Ok(target.remove_subsystem(&second)?))?;
    let nothing = controller.discovery_log()?.genctr;
    target.add_namespace(NQN, Namespace::memory(1 << 20))?;
    ensure!(controller.discovery_log()?.genctr == nothing, "a namespace is nothing of the log's");
    Ok(())
}

/// The target ends associations of hosts that are silent for the keep alive timeout; a discovery controller that is kept is not.
#[test]
fn a_discovery_controller_is_kept_alive() -> Result<()> {
    let target =
        Loopback::builder().subsystem(SubsystemBuilder::new(NQN)).listen_tcp("127.0.0.1:0").build()?;
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let trid = TransportId::tcp_socket(target.tcp_addrs()[0])?.with_subnqn(DISCOVERY.parse()?);
    let mut options = options();
    options.keep_alive_timeout = Duration::from_secs(2);
    let controller = driver.connect(&trid, &options)?;
    let timeout = controller.keep_alive_timeout();
    ensure!(!timeout.is_zero() && timeout <= Duration::from_secs(4), "{timeout:?}");
    std::thread::sleep(timeout * 3);
    ensure!(!controller.is_failed(), "{:?}", controller.failure());
    ensure!(target.controllers(DISCOVERY) == 1);
    controller.discovery_log()?;
    controller.detach()?;
    eventually("it is gone", || Ok(target.controllers(DISCOVERY) == 0))
}

/// Writes of all sizes to a namespace that stores nothing, whose data the target takes off its sockets unseen: no byte too few, none
/// too many, or the next header would not be one.
#[test]
fn data_that_nobody_stores_is_taken_off_the_socket() -> Result<()> {
    for digests in [false, true] {
        let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::null(1 << 30).block_size(512));
        let target = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build()?;
        let driver = Driver::builder().transport(TcpTransport::new()).build();
        let mut options = options();
        (options.header_digest, options.data_digest) = (digests, digests);
        let controller = driver.connect(&target.tcp_trid(NQN)?.context("no listener")?, &options)?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let mut rng = Rng::new(7);
        let (mut begun, mut ended, mut sent) = (0u64, 0u64, 0u64);
        let deadline = Instant::now() + SOON;
        while ended < 3000 {
            while begun - ended < 16 {
                let blocks = match rng.below(4) {
                    0 => 256,
                    1 => 1 + rng.below(16),
                    2 => 1 + rng.below(256),
                    _ => 1 + rng.below(4096),
                };
                let mut buf = qpair.alloc(blocks as usize * 512)?;
                // What would be taken for a header if it were found where one is due.
                buf.fill(0xff);
                if rng.below(8) == 0 {
                    qpair.read(&ns, 0, buf, 1)?;
                } else {
                    qpair.write(&ns, 0, buf, 0)?;
                    sent += blocks * 512;
                }
                begun += 1;
            }
            let mut wrong = None;
            qpair.process_completions(0, |completion| {
                ended += 1;
                let zeroes = |buf: &nvmf_core::DmaBuf| buf.iter().all(|&byte| byte == 0);
                let fine = completion.user_data == 0 || completion.buf.bufs().iter().all(zeroes);
                if completion.result.is_err() || !fine {
                    wrong = Some(completion.result);
                }
            })?;
            ensure!(wrong.is_none(), "{wrong:?}");
            ensure!(Instant::now() < deadline, "{ended} I/Os within {SOON:?}");
        }
        while qpair.outstanding() > 0 {
            qpair.process_completions(0, |_| {})?;
            ensure!(Instant::now() < deadline, "the last ones are missing");
        }
        ensure!(target.stats().bytes_written == sent, "{} of {sent} bytes", target.stats().bytes_written);
    }
    Ok(())
}

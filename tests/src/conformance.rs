//! What every transport must do, as one body of code. A transport's test calls [`suite!`](crate::suite) with a function
//! that makes a [`Fixture`]; the program `conformance` runs the same [`PARTS`] against any controller.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Deref;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::future::{AsyncQpair, block_on};
use nvmf_core::spec::command::DsmRange;
use nvmf_core::spec::features::FeatureId;
use nvmf_core::spec::identify::oncs;
use nvmf_core::spec::log_page::LogPageId;
use nvmf_core::spec::{NvmOpcode, Sqe, Status};
use nvmf_core::{
    Callbacks, CommandError, Controller, ControllerOptions, Driver, ErrorKind, IoBuf, IoCommand, IoQpair,
    IoQpairOptions, Namespace, PollGroup, TransportId, TransportType,
};

use crate::workload::{Workload, copy_in, copy_out, fill_block};

/// A target to test against, and how to reach it.
///
/// The subsystem must have namespace 1 with 512-byte blocks and namespace 2 with 4,096-byte blocks, each of at least
/// 16 MiB, and nothing in them that is still needed.
pub struct Fixture {
    /// A driver with the transport under test.
    pub driver: Driver,
    /// The subsystem.
    pub trid: TransportId,
    /// The discovery service that lists it; none on a local bus.
    pub discovery: Option<TransportId>,
    /// Options to attach with.
    pub options: ControllerOptions,
    /// What keeps the target alive.
    pub target: Box<dyn std::any::Any>,
}

impl Fixture {
    /// Attaches the subsystem.
    ///
    /// # Errors
    /// When that fails.
    pub fn attach(&self) -> Result<Controller> {
        Ok(self.driver.connect(&self.trid, &self.options)?)
    }

    fn qpair(&self) -> Result<(Controller, IoQpair)> {
        let controller = self.attach()?;
        let qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        Ok((controller, qpair))
    }
}

/// What a part of the suite is run against: a fixture, and what of it may be used.
pub struct Subject {
    fixture: Fixture,
    /// None: namespaces 1 and 2 as [`Fixture`] describes them. Otherwise whichever of these there are; none means any.
    namespaces: Option<Vec<u32>>,
    left_out: RefCell<Vec<String>>,
}

impl Subject {
    /// A fixture whose subsystem has the namespaces that [`Fixture`] asks for.
    #[must_use]
    pub fn new(fixture: Fixture) -> Self {
        Self { fixture, namespaces: None, left_out: RefCell::default() }
    }

    /// A subsystem with other namespaces, each of at least 16 MiB: those named are used, or any if none is. One with blocks
    /// of 512 bytes and one with blocks of 4,096 are used where there are; with one namespace everything is done on that.
    #[must_use]
    pub fn with_namespaces(fixture: Fixture, nsids: &[u32]) -> Self {
        Self { fixture, namespaces: Some(nsids.to_vec()), left_out: RefCell::default() }
    }

    /// What a part has left out so far, each with the reason.
    #[must_use]
    pub fn left_out(&self) -> Vec<String> {
        self.left_out.borrow().clone()
    }

    /// Notes that something is left out, which is allowed only for what the controller says it has not.
    fn leave_out(&self, what: &str, reason: &str) {
        let line = format!("{what} ({reason})");
        let mut left_out = self.left_out.borrow_mut();
        if !left_out.contains(&line) {
            left_out.push(line);
        }
    }

    /// Whether the controller has an optional I/O command; that it is left out is noted otherwise.
    fn has(&self, controller: &Controller, what: &str, bit: u16) -> bool {
        let has = controller.identify().supports_io(bit);
        if !has {
            self.leave_out(what, "the controller does not have it");
        }
        has
    }

    /// How many I/Os of a random load to do, of `ios`: a controller that exists may be slow.
    fn ios(&self, ios: u64) -> u64 {
        if self.namespaces.is_some() { ios / 2 } else { ios }
    }

    /// Checks that a command failed with this status. Of a controller that exists any status will do, and is noted: the Linux
    /// target, for one, learns of a block beyond the end from its disk.
    fn fails_with(&self, wanted: Status, result: Result<(u64, IoBuf), nvmf_core::Error>) -> Result<()> {
        let status = status_of(result)?;
        if !status.is(wanted) {
            ensure!(self.namespaces.is_some(), "{status} instead of {wanted}");
            let wanted = wanted.name().unwrap_or("the status");
            self.leave_out(
                wanted,
                &format!("the controller says {}", status.name().unwrap_or("another one")),
            );
        }
        Ok(())
    }

    /// The namespace for most of the work, with blocks of 512 bytes if there is such a one.
    fn one(&self, controller: &Controller) -> Result<Namespace> {
        self.namespace(controller, 1, 512)
    }

    /// Another namespace, with blocks of 4,096 bytes, if there is such a one.
    fn two(&self, controller: &Controller) -> Result<Namespace> {
        self.namespace(controller, 2, 4096)
    }

    fn namespace(&self, controller: &Controller, nsid: u32, block_size: u32) -> Result<Namespace> {
        let Some(allowed) = &self.namespaces else {
            let ns = controller.namespace(nsid).with_context(|| format!("namespace {nsid} is not there"))?;
            ensure!(ns.block_size() == block_size, "namespace {nsid} has blocks of {}", ns.block_size());
            return Ok(ns);
        };
        let mut usable = controller.namespaces();
        usable.retain(|ns| ns.csi() == 0 && ns.metadata_size() == 0);
        usable.retain(|ns| allowed.is_empty() || allowed.contains(&ns.nsid()));
        let fitting = usable.iter().position(|ns| ns.block_size() == block_size).unwrap_or(0);
        ensure!(!usable.is_empty(), "no namespace to use among {:?}", controller.namespaces());
        Ok(usable.swap_remove(fitting))
    }
}

impl Deref for Subject {
    type Target = Fixture;

    fn deref(&self) -> &Fixture {
        &self.fixture
    }
}

/// A part of the suite.
#[derive(Clone, Copy)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(&Subject) -> Result<()>,
}

/// All parts, in the order they are to be run.
pub const PARTS: &[Part] = crate::suite!(list);

/// The blocks of a namespace that `bytes` fill, at least one.
fn blocks_in(ns: &Namespace, bytes: u64) -> u64 {
    (bytes / u64::from(ns.block_size())).max(1)
}

fn status_of(result: Result<(u64, IoBuf), nvmf_core::Error>) -> Result<Status> {
    match result {
        Ok(_) => bail!("the command succeeded"),
        Err(error) => error.status().with_context(|| format!("no status from the controller: {error}")),
    }
}

/// Probe, identify, namespaces, names.
///
/// # Errors
/// What is not as it must be.
pub fn attach_and_identify(f: &Subject) -> Result<()> {
    let c = f.attach()?;
    ensure!(!c.is_discovery() && c.cntlid() != 0xffff);
    let (one, two) = (f.one(&c)?, f.two(&c)?);
    ensure!(one.size() >= 16 << 20 && two.size() >= 16 << 20);
    ensure!(c.namespace(3).is_none() || c.namespaces().len() > 2);
    ensure!(c.num_io_queues() >= 1 && c.max_transfer() >= 4096);
    ensure!(Some(c.subnqn().as_str()) == f.trid.subnqn().map(|n| n.as_str()) || f.trid.subnqn().is_none());
    c.rescan_namespaces()?;
    ensure!(f.one(&c)?.blocks() == one.blocks());
    c.detach()?;
    Ok(())
}

/// The probe callback sees what discovery lists, may refuse, and a second probe gives the same controller; on a local bus, which is
/// scanned for what is new, a connect does.
///
/// # Errors
/// What is not as it must be.
pub fn probe_semantics(f: &Subject) -> Result<()> {
    let base = f.discovery.clone().unwrap_or_else(|| f.trid.clone());
    let mut seen = Vec::new();
    let refuse = Callbacks::new().options(f.options.clone()).probe(|trid, _| {
        seen.push(trid.clone());
        false
    });
    f.driver.probe(Some(&base), refuse)?;
    ensure!(seen.iter().any(|t| t.subnqn() == f.trid.subnqn()), "{:?} is not among {seen:?}", f.trid);
    ensure!(f.driver.controllers().is_empty(), "a refused controller was attached");

    let probe = |attached: &mut Vec<Controller>| {
        let wanted = f.trid.subnqn().cloned();
        let mut failures = Vec::new();
        let callbacks = Callbacks::new()
            .options(f.options.clone())
            .probe(move |trid, options| {
                options.num_io_queues = 3;
                trid.subnqn() == wanted.as_ref()
            })
            .attach(|c| attached.push(c))
            .attach_fail(|trid, e| failures.push(format!("{trid}: {e}")));
        f.driver.probe(Some(&base), callbacks)?;
        ensure!(failures.is_empty(), "{failures:?}");
        anyhow::Ok(())
    };
    let mut attached = Vec::new();
    probe(&mut attached)?;
    ensure!(attached.len() == 1 && attached[0].num_io_queues() <= 3, "{attached:?}");
    probe(&mut attached)?;
    if matches!(f.trid.trtype(), TransportType::Pcie | TransportType::VfioUser) {
        // A scan offers only what is new.
        ensure!(attached.len() == 1, "an attached controller was offered again");
        attached.push(f.driver.connect(&f.trid, &f.options)?);
    }
    ensure!(attached.len() == 2 && attached[0].cntlid() == attached[1].cntlid(), "not the same controller");
    ensure!(f.driver.controllers().len() == 1);
    let first = attached.remove(0);
    attached.remove(0).detach()?;
    ensure!(!first.is_failed(), "gone while still attached once");
    first.identify_structure(nvmf_core::spec::identify::Cns::CONTROLLER, 0)?;
    first.detach()?;
    ensure!(f.driver.controllers().is_empty());
    Ok(())
}

/// Verified random I/O of many sizes and depths.
///
/// # Errors
/// What is not as it must be.
pub fn verified_io(f: &Subject) -> Result<()> {
    let (c, mut q) = f.qpair()?;
    let (one, two) = (f.one(&c)?, f.two(&c)?);
    for (seed, depth, max) in [(1, 1, 8), (2, 8, 32), (3, 32, 256), (4, 128, 64), (5, 300, 16)] {
        let largest = blocks_in(&one, max * 512);
        Workload::new(&one, seed, f.ios(400), depth).sized(1, largest).run(&mut q, &one)?;
    }
    Workload::new(&two, 6, f.ios(300), 32).sized(1, blocks_in(&two, 256 << 10)).run(&mut q, &two)?;
    Workload::new(&two, 7, 60, 8).sized(1, 8).within(0, 16).run(&mut q, &two)?;
    ensure!(q.stats().completed == q.stats().submitted && q.stats().errors == 0);
    Ok(())
}

/// I/Os larger than one command, and data in several buffers.
///
/// # Errors
/// What is not as it must be.
pub fn large_and_vectored(f: &Subject) -> Result<()> {
    let (c, mut q) = f.qpair()?;
    let ns = f.one(&c)?;
    let blocks = blocks_in(&ns, 4 << 20);
    Workload::new(&ns, 11, f.ios(24), 4).sized(blocks / 4, blocks).run(&mut q, &ns)?;
    Workload::new(&ns, 12, f.ios(200), 16).sized(1, blocks_in(&ns, 256 << 10)).vectored().run(&mut q, &ns)?;
    let s = q.stats();
    if u64::from(ns.max_transfer()) < 4 << 20 {
        ensure!(s.commands > s.completed, "nothing was cut: {s:?}");
    }
    Ok(())
}

/// The commands beside read and write.
///
/// # Errors
/// What is not as it must be.
pub fn nvm_commands(f: &Subject) -> Result<()> {
    let (c, mut q) = f.qpair()?;
    let ns = f.one(&c)?;
    let block = ns.block_size() as usize;
    let mut buf = q.alloc(16 * block)?;
    buf.chunks_mut(block).enumerate().for_each(|(i, b)| fill_block(b, 64 + i as u64, 9));
    let data = buf.to_vec();
    q.execute(IoCommand::write(&ns, 64, buf).fua())?;
    q.flush_blocking(&ns)?;
    if f.has(&c, "compare", oncs::COMPARE) {
        let same = q.controller().pool().copy_from(&data)?;
        q.execute(IoCommand::compare(&ns, 64, same))?;
        let mut other = q.controller().pool().copy_from(&data)?;
        other[4097] ^= 1;
        let status = status_of(q.execute(IoCommand::compare(&ns, 64, other)))?;
        ensure!(status.is(Status::COMPARE_FAILURE), "{status}");
    }
    if f.has(&c, "verify", oncs::VERIFY) {
        q.execute(IoCommand::verify(&ns, 64, 16))?;
    }
    if f.has(&c, "write zeroes", oncs::WRITE_ZEROES) {
        q.execute(IoCommand::write_zeroes(&ns, 66, 2))?;
        let back = q.read_blocking(&ns, 64, q.alloc(16 * block)?)?;
        let (before, after) = (2 * block, 4 * block);
        ensure!(
            back[..before] == data[..before] && back[after..] == data[after..],
            "write zeroes went too far"
        );
        ensure!(back[before..after].iter().all(|&b| b == 0), "not zeroed");
    }
    if f.has(&c, "dataset management", oncs::DATASET_MANAGEMENT) {
        let ranges = [DsmRange { cattr: 0.into(), nlb: 4.into(), slba: 64.into() }];
        let pool = q.controller().pool().clone();
        match q.execute(IoCommand::dataset_management(&ns, &ranges, true, &pool)?) {
            // The Linux target offers it for all namespaces, and refuses it for those whose disk cannot do it.
            Err(error)
                if f.namespaces.is_some() && error.status().is_some_and(|s| s.is(Status::INVALID_OPCODE)) =>
            {
                f.leave_out("dataset management", "the namespace does not have it");
            }
            result => drop(result?),
        }
        let back = q.read_blocking(&ns, 68, q.alloc(block)?)?;
        ensure!(back[..] == data[4 * block..5 * block], "deallocate went too far");
    }
    Ok(())
}

/// Mistakes the controller answers with a status, without harm to the queue pair.
///
/// # Errors
/// What is not as it must be.
pub fn error_statuses(f: &Subject) -> Result<()> {
    let (c, mut q) = f.qpair()?;
    let ns = f.one(&c)?;
    let block = ns.block_size() as usize;
    let beyond = q.execute(IoCommand::read(&ns, ns.blocks(), q.alloc(block)?));
    f.fails_with(Status::LBA_OUT_OF_RANGE, beyond).context("a read beyond the end")?;
    let across = q.execute(IoCommand::write(&ns, ns.blocks() - 1, q.alloc(2 * block)?));
    f.fails_with(Status::LBA_OUT_OF_RANGE, across).context("a write across the end")?;
    let nobody = status_of(q.execute(IoCommand::raw(Sqe::nvm(NvmOpcode::FLUSH, 0x7777), IoBuf::None)))?;
    ensure!(nobody.is(Status::INVALID_NAMESPACE_OR_FORMAT), "{nobody}");
    let opcode = status_of(q.execute(IoCommand::raw(Sqe::new(0x7c, ns.nsid()), IoBuf::None)))?;
    ensure!(opcode.is(Status::INVALID_OPCODE), "{opcode}");
    // A large I/O of which only the end is out of range: one completion, and it is the failure.
    let start = ns.blocks() - blocks_in(&ns, 2 << 20);
    let partly = q.execute(IoCommand::read(&ns, start, q.alloc(4 << 20)?));
    f.fails_with(Status::LBA_OUT_OF_RANGE, partly).context("a read across the end")?;
    for bad in [IoCommand::read(&ns, 0, q.alloc(block - 1)?), IoCommand::read(&ns, u64::MAX, q.alloc(block)?)]
    {
        let Err(refused) = q.submit(bad, 0) else { bail!("nonsense was accepted") };
        ensure!(matches!(refused.error.kind(), ErrorKind::ApiMisuse(_)) && !refused.buf.is_empty());
    }
    q.read_blocking(&ns, 0, q.alloc(block)?)?;
    Ok(())
}

/// A full queue refuses, hands the buffer back, and works on.
///
/// # Errors
/// What is not as it must be.
pub fn queue_full(f: &Subject) -> Result<()> {
    let c = f.attach()?;
    let ns = f.one(&c)?;
    let block = ns.block_size() as usize;
    let options = IoQpairOptions::default().queue_size(4).queue_requests(8);
    let mut q = c.alloc_io_qpair(&options)?;
    let mut accepted = HashSet::new();
    let refused = loop {
        let mut buf = q.alloc(block)?;
        buf[0] = accepted.len() as u8;
        match q.read(&ns, 0, buf, accepted.len() as u64) {
            Ok(_) => ensure!(accepted.insert(accepted.len() as u64) && accepted.len() < 100),
            Err(refused) => break refused,
        }
    };
    ensure!(refused.is_queue_full() && refused.buf.len() == block, "{refused:?}");
    ensure!(accepted.len() >= 8, "only {} were accepted", accepted.len());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !accepted.is_empty() {
        let n = q.process_completions(2, |done| {
            assert!(done.result.is_ok() && accepted.remove(&done.user_data), "{done:?}");
        })?;
        ensure!(n <= 2, "{n} completions although 2 were asked for");
        if n == 0 {
            q.wait(Duration::from_millis(20))?;
        }
        ensure!(Instant::now() < deadline);
    }
    q.read_blocking(&ns, 0, q.alloc(block)?)?;
    Ok(())
}

/// Several queue pairs on threads of their own, each with its own part of the namespace.
///
/// # Errors
/// What is not as it must be.
pub fn several_qpairs(f: &Subject) -> Result<()> {
    let c = f.attach()?;
    let ns = f.one(&c)?;
    let count = u64::from(c.num_io_queues().min(4));
    let share = ns.blocks() / count;
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for i in 0..count {
            let (c, ns, failures) = (&c, &ns, &failures);
            scope.spawn(move || {
                let run = || -> Result<()> {
                    let mut q = c.alloc_io_qpair(&IoQpairOptions::default())?;
                    let largest = blocks_in(ns, 32 << 10);
                    Workload::new(ns, 100 + i, 500, 16)
                        .sized(1, largest)
                        .within(i * share, share)
                        .run(&mut q, ns)
                };
                if let Err(e) = run() {
                    failures.lock().unwrap().push(format!("queue pair {i}: {e:#}"));
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    ensure!(failures.is_empty(), "{failures:?}");
    Ok(())
}

/// Queue identifiers run out with a clear error and come back when queue pairs are dropped.
///
/// # Errors
/// What is not as it must be.
pub fn qpair_limit(f: &Subject) -> Result<()> {
    let mut options = f.options.clone();
    options.num_io_queues = 2;
    let c = f.driver.connect(&f.trid, &options)?;
    ensure!(c.num_io_queues() <= 2);
    let mut held = Vec::new();
    for _ in 0..c.num_io_queues() {
        held.push(c.alloc_io_qpair(&IoQpairOptions::default())?);
    }
    let Err(error) = c.alloc_io_qpair(&IoQpairOptions::default()) else { bail!("more than were granted") };
    ensure!(matches!(error.kind(), ErrorKind::Exhausted(_)), "{error}");
    held.pop();
    // The controller may need a moment to notice that the old connection is gone.
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = c.alloc_io_qpair(&IoQpairOptions::default()) {
        ensure!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Features, log pages, raw admin commands, from several threads at once.
///
/// # Errors
/// What is not as it must be.
pub fn admin_commands(f: &Subject) -> Result<()> {
    let c = f.attach()?;
    let smart = c.log_page(LogPageId::SMART, u32::MAX, 512)?;
    ensure!(smart.len() == 512);
    let errors = c.log_page(LogPageId::ERROR_INFORMATION, u32::MAX, 64)?;
    ensure!(errors.len() == 64);
    let queues = c.get_features(FeatureId::NUMBER_OF_QUEUES, 0, 0)?;
    ensure!((queues & 0xffff) + 1 >= u32::from(c.num_io_queues()));
    let nonsense = c.admin(Sqe::new(0xff, 0)).wait();
    ensure!(nonsense.is_err_and(|e| e.status().is_some()), "a nonsense opcode did not fail with a status");
    let failures = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let page = c.identify_structure(nvmf_core::spec::identify::Cns::CONTROLLER, 0);
                    if !page.is_ok_and(|p| p.len() == 4096) {
                        *failures.lock().unwrap() += 1;
                    }
                }
            });
        }
    });
    ensure!(failures.into_inner().unwrap() == 0);
    Ok(())
}

/// Aborted or not, every operation completes exactly once.
///
/// # Errors
/// What is not as it must be.
pub fn abort(f: &Subject) -> Result<()> {
    let (c, mut q) = f.qpair()?;
    let ns = f.one(&c)?;
    let step = blocks_in(&ns, 4096);
    let mut left = HashSet::new();
    let mut ids = Vec::new();
    for i in 0..200u64 {
        ids.push(q.read(&ns, i * step, q.alloc(4096)?, i)?);
        left.insert(i);
    }
    let mut done = Vec::new();
    for id in ids.into_iter().step_by(7) {
        q.abort(id, |completion| done.push(completion))?;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for completion in done.drain(..) {
            ensure!(left.remove(&completion.user_data), "{} completed twice", completion.user_data);
            match completion.result {
                Ok(_) | Err(CommandError::Aborted) => {}
                Err(CommandError::Status(s)) if s.is(Status::ABORT_REQUESTED) => {}
                Err(other) => bail!("{other}"),
            }
            ensure!(completion.buf.len() == 4096);
        }
        if left.is_empty() {
            break;
        }
        if q.process_completions(0, |c| done.push(c))? == 0 {
            q.wait(Duration::from_millis(20))?;
        }
        ensure!(Instant::now() < deadline, "{} are missing", left.len());
    }
    q.read_blocking(&ns, 0, q.alloc(4096)?)?;
    Ok(())
}

/// The futures facade; dropped futures give their buffers back only after completion.
///
/// # Errors
/// What is not as it must be.
pub fn futures(f: &Subject) -> Result<()> {
    let (c, q) = f.qpair()?;
    let ns = f.two(&c)?;
    let q = AsyncQpair::new(q);
    block_on(&q, async {
        let mut data = IoBuf::from(q.alloc(8192)?);
        let bytes: Vec<u8> = (0..8192u32).map(|i| (i * 7) as u8).collect();
        copy_in(&mut data, &bytes);
        q.submit(IoCommand::write(&ns, 5, data)).await?;
        q.flush(&ns).await?;
        // Two at once, one of them given up halfway.
        let wanted = q.read(&ns, 5, q.alloc(8192)?);
        drop(q.submit(IoCommand::read(&ns, 0, q.alloc(4096)?)));
        let back = wanted.await?;
        ensure!(back[..] == bytes[..], "other bytes came back");
        let id = c
            .admin(Sqe::admin(nvmf_core::spec::AdminOpcode::IDENTIFY, 0).with_cdw10(1))
            .data_in(4096)
            .await?;
        ensure!(id.data.len() == 4096);
        anyhow::Ok(())
    })??;
    Ok(())
}

/// A poll group over several queue pairs that connect while polled.
///
/// # Errors
/// What is not as it must be.
pub fn poll_group(f: &Subject) -> Result<()> {
    let c = f.attach()?;
    let ns = f.one(&c)?;
    let step = blocks_in(&ns, 4096);
    let mut group = PollGroup::new();
    let mut keys = Vec::new();
    for _ in 0..c.num_io_queues().min(3) {
        keys.push(group.add(c.alloc_io_qpair_async(&IoQpairOptions::default())?));
    }
    // What is submitted before the connection stands waits for it.
    let mut open = 0;
    for (i, key) in keys.iter().enumerate() {
        for n in 0..20 {
            let q = group.qpair_mut(*key).context("a queue pair is missing")?;
            let buf = q.alloc(4096)?;
            q.read(&ns, n * step, buf, i as u64)?;
            open += 1;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while open > 0 {
        let mut lost = None;
        let n = group.process_completions(
            4,
            |key, done| {
                assert!(done.result.is_ok() && keys[done.user_data as usize] == key, "{done:?}");
            },
            |_, error| lost = Some(error),
        );
        if let Some(error) = lost {
            return Err(error.into());
        }
        open -= n;
        if n == 0 {
            group.wait(Duration::from_millis(20))?;
        }
        ensure!(Instant::now() < deadline, "{open} are missing");
    }
    ensure!(group.all_connected());
    Ok(())
}

/// Queue pairs and controllers dropped with commands in flight do no harm to others.
///
/// # Errors
/// What is not as it must be.
pub fn drop_in_flight(f: &Subject) -> Result<()> {
    let c = f.attach()?;
    let ns = f.one(&c)?;
    let step = blocks_in(&ns, 128 << 10);
    let pool = c.pool().clone();
    for round in 0..5 {
        let mut q = c.alloc_io_qpair(&IoQpairOptions::default())?;
        for i in 0..32 {
            q.read(&ns, i * step, q.alloc(128 * 1024)?, i)?;
        }
        q.process_completions(round, |_| {})?;
        drop(q);
    }
    ensure!(pool.stats().outstanding == 0, "{:?}", pool.stats());
    let mut q = c.alloc_io_qpair(&IoQpairOptions::default())?;
    Workload::new(&ns, 77, 100, 8).run(&mut q, &ns)?;
    // The last handle goes before the queue pair does.
    drop(c);
    let back = q.read_blocking(&ns, 0, q.alloc(4096)?)?;
    ensure!(back.len() == 4096);
    Ok(())
}

/// Reads what was written through another controller of the same subsystem.
///
/// # Errors
/// What is not as it must be.
pub fn two_controllers(f: &Subject) -> Result<()> {
    if f.namespaces.is_some() && !f.trid.trtype().is_fabrics() {
        // Behind another address there is another controller; which of them belong together nobody said.
        f.leave_out("a second controller", "one function is one controller");
        return Ok(());
    }
    let a = f.attach()?;
    let mut options = f.options.clone();
    options.host = Some(nvmf_core::HostIdentity::random()?);
    let b = f.driver.connect(&f.trid, &options)?;
    ensure!(a.cntlid() != b.cntlid(), "one controller for two hosts");
    let mut qa = a.alloc_io_qpair(&IoQpairOptions::default())?;
    let mut qb = b.alloc_io_qpair(&IoQpairOptions::default())?;
    let mut buf = IoBuf::from(qa.alloc(65_536)?);
    let bytes: Vec<u8> = (0..65_536u32).map(|i| (i / 251) as u8).collect();
    copy_in(&mut buf, &bytes);
    qa.execute(IoCommand::write(&f.two(&a)?, 100, buf))?;
    let (_, back) = qb.execute(IoCommand::read(&f.two(&b)?, 100, qb.alloc(65_536)?))?;
    ensure!(copy_out(&back) == bytes, "the other controller reads something else");
    Ok(())
}

/// The parts of the suite: `suite!(fixture)` defines a test for each, where `fixture` is a function that makes a [`Fixture`];
/// `suite!(list)` is a slice of them.
#[macro_export]
macro_rules! suite {
    (list) => {
        $crate::suite!(@all list)
    };
    ($fixture:path) => {
        $crate::suite! { @all tests $fixture }
    };
    (@all $what:ident $($fixture:path)?) => {
        $crate::suite! { @$what $($fixture)?:
            attach_and_identify probe_semantics verified_io large_and_vectored nvm_commands error_statuses queue_full
            several_qpairs qpair_limit admin_commands abort futures poll_group drop_in_flight two_controllers }
    };
    (@tests $fixture:path: $($name:ident)*) => {
        $(
            #[test]
            fn $name() -> anyhow::Result<()> {
                let subject = $crate::conformance::Subject::new($fixture()?);
                $crate::conformance::$name(&subject)?;
                anyhow::ensure!(subject.left_out().is_empty(), "left out: {:?}", subject.left_out());
                Ok(())
            }
        )*
    };
    (@list : $($name:ident)*) => {
        &[$($crate::conformance::Part {
            name: stringify!($name),
            run: |subject| $crate::conformance::$name(subject),
        }),*]
    };
}

//! Several processes of an instance, as drivers of one process: what a secondary sees of the controllers of its primary.

#[path = "share/memory.rs"]
mod memory;

use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::share::wire::{Hello, Reply, Request};
use nvmf_core::spec::features::FeatureId;
use nvmf_core::spec::log_page::LogPageId;
use nvmf_core::{
    Callbacks, CommandError, Controller, ControllerOptions, ControllerState, Driver, ErrorKind, Event,
    IoCommand, IoQpair, IoQpairOptions, Namespace as HostNamespace, NamespaceChange, Role, Transport,
    TransportId,
};
use nvmf_loopback::{Fault, Loopback, Namespace, Rule, SubsystemBuilder};
use nvmf_transport_rdma::RdmaTransport;
use nvmf_transport_rdma::sim::Sim;
use nvmf_transport_tcp::TcpTransport;
use socket2::{Domain, SockAddr, Socket, Type};

const NQN: &str = "nqn.2024-01.com.example:share";
/// Long enough for a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

/// A directory that goes with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nvmf-share-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("disks.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn driver(folder: &Path) -> Result<Driver> {
    driver_over(TcpTransport::new(), folder)
}

fn driver_over(transport: impl Transport + 'static, folder: &Path) -> Result<Driver> {
    Ok(Driver::builder().transport(transport).shared("disks").directory(folder).build()?)
}

fn options() -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.num_io_queues = 8;
    options.connect_timeout = Duration::from_secs(20);
    options
}

/// A target, a primary that has attached it, and a secondary.
struct Rig {
    secondary: Driver,
    attached: Controller,
    trid: TransportId,
    primary: Driver,
    target: Loopback,
    folder: Folder,
}

impl Rig {
    fn new() -> Result<Self> {
        Self::with(&options())
    }

    fn with(options: &ControllerOptions) -> Result<Self> {
        let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(8 << 20).uuid([7; 16]));
        let target = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build()?;
        let trid = target.tcp_trid(NQN)?.context("no listener")?;
        let folder = Folder::new()?;
        let primary = driver(&folder.0)?;
        ensure!(primary.role() == Role::Primary);
        let attached = primary.connect(&trid, options)?;
        let secondary = driver(&folder.0)?;
        ensure!(secondary.role() == Role::Secondary);
        Ok(Self { folder, target, primary, attached, trid, secondary })
    }
}

fn eventually(what: &str, mut f: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !f() {
        ensure!(Instant::now() < deadline, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn a_secondary_reads_what_another_wrote_over_queues_of_its_own() -> Result<()> {
    let rig = Rig::new()?;
    let mut found = Vec::new();
    rig.secondary.probe(None, Callbacks::new().options(options()).attach(|c| found.push(c)))?;
    let controller = found.pop().context("nothing was found")?;
    ensure!(found.is_empty());
    ensure!(controller.cntlid() == rig.attached.cntlid());
    ensure!(controller.host() == rig.attached.host());
    ensure!(controller.identify().serial_number() == rig.attached.identify().serial_number());
    ensure!(rig.target.controllers(NQN) == 1, "one association serves both");
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut ours = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let mut theirs = rig.attached.alloc_io_qpair(&IoQpairOptions::default())?;
    ensure!(ours.qid() != theirs.qid());
    let mut buf = ours.alloc(4096)?;
    buf.fill(0x5a);
    ours.write_blocking(&ns, 64, buf)?;
    let read = theirs.read_blocking(&ns, 64, theirs.alloc(4096)?)?;
    ensure!(read.iter().all(|&byte| byte == 0x5a));
    let processes = rig.primary.processes()?;
    ensure!(processes == rig.secondary.processes()?);
    ensure!(processes.len() == 2 && processes[0].role == Role::Primary);
    ensure!((processes[1].controllers, processes[1].queues) == (1, 1), "{processes:?}");
    // An attachment more than once, and each is given up for itself.
    let again = rig.secondary.connect(&rig.trid, &options())?;
    again.detach()?;
    ensure!(ours.read_blocking(&ns, 64, ours.alloc(512)?).is_ok());
    drop(ours);
    eventually("the lease's return", || rig.primary.processes().is_ok_and(|p| p[1].queues == 0))?;
    controller.detach()?;
    eventually("the end of the session", || rig.primary.processes().is_ok_and(|p| p.len() == 1))?;
    ensure!(rig.target.controllers(NQN) == 1, "the primary still has it");
    rig.attached.detach()?;
    drop(theirs);
    Ok(())
}

#[test]
fn rdma_is_shared_in_the_same_way() -> Result<()> {
    let sim = Sim::new();
    let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(8 << 20).uuid([7; 16]));
    let target = Loopback::builder().subsystem(subsystem).listen_rdma(&sim, "192.0.2.1:4420").build()?;
    let trid = target.rdma_trid(NQN)?.context("no listener")?;
    let folder = Folder::new()?;
    let primary = driver_over(RdmaTransport::with_provider(sim.clone()), &folder.0)?;
    let attached = primary.connect(&trid, &options())?;
    let secondary = driver_over(RdmaTransport::with_provider(sim), &folder.0)?;
    let controller = secondary.connect(&trid, &options())?;
    ensure!(target.controllers(NQN) == 1);
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut ours = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let mut theirs = attached.alloc_io_qpair(&IoQpairOptions::default())?;
    for (lba, len) in [(0, 512), (64, 65_536), (512, 1 << 20)] {
        let mut buf = theirs.alloc(len)?;
        buf.fill(len.trailing_zeros() as u8);
        theirs.write_blocking(&ns, lba, buf)?;
        let read = ours.read_blocking(&ns, lba, ours.alloc(len)?)?;
        ensure!(read.iter().all(|&byte| byte == len.trailing_zeros() as u8));
    }
    Ok(())
}

#[test]
fn the_controller_lives_until_the_last_process_lets_go() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    rig.attached.detach()?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    qpair.read_blocking(&ns, 0, qpair.alloc(4096)?)?;
    drop(qpair);
    controller.detach()?;
    eventually("the end of the association", || rig.target.controllers(NQN) == 0)
}

#[test]
fn queues_are_divided_and_come_back() -> Result<()> {
    let mut few = options();
    few.num_io_queues = 3;
    let rig = Rig::with(&few)?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let own = rig.attached.alloc_io_qpair(&IoQpairOptions::default())?;
    for _ in 0..8 {
        let a = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let b = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let mut qids = [own.qid(), a.qid(), b.qid()];
        qids.sort_unstable();
        ensure!(qids == [1, 2, 3]);
        let error = controller.alloc_io_qpair(&IoQpairOptions::default()).unwrap_err();
        ensure!(error.to_string().contains("in use"), "{error}");
    }
    Ok(())
}

#[test]
fn admin_commands_and_events_pass_but_nobody_changes_what_all_rely_on() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let health = controller.log_page(LogPageId::SMART, u32::MAX, 512)?;
    ensure!(health == rig.attached.log_page(LogPageId::SMART, u32::MAX, 512)?);
    // Accepted, and without effect.
    controller.set_features(FeatureId::ASYNC_EVENT_CONFIG, 0, 0)?;
    ensure!(rig.attached.get_features(FeatureId::ASYNC_EVENT_CONFIG, 0, 0)? != 0);
    let (send, events) = std::sync::mpsc::channel();
    controller.on_event(move |_, event| {
        let _ = send.send(*event);
    });
    let nsid = rig.target.add_namespace(NQN, Namespace::memory(1 << 20))?;
    let event = events.recv_timeout(SOON)?;
    ensure!(event == Event::Namespace { nsid, change: NamespaceChange::Added }, "{event:?}");
    ensure!(controller.namespace(nsid).is_some());
    rig.target.remove_namespace(NQN, nsid)?;
    let event = events.recv_timeout(SOON)?;
    ensure!(event == Event::Namespace { nsid, change: NamespaceChange::Removed }, "{event:?}");
    // More data than a message takes is refused before it is sent.
    let sqe = nvmf_core::spec::Sqe::admin(nvmf_core::spec::AdminOpcode::FIRMWARE_DOWNLOAD, 0);
    let error = controller.admin(sqe).data_out(vec![0; 256 << 10]).wait().unwrap_err();
    ensure!(matches!(error.kind(), ErrorKind::ApiMisuse(_)), "{error}");
    ensure!(controller.state() == ControllerState::Ready);
    Ok(())
}

fn submit_ten(qpair: &mut IoQpair, ns: &HostNamespace) -> Result<()> {
    for n in 0..10 {
        let buf = qpair.alloc(4096)?;
        qpair.submit(IoCommand::read(ns, 8 * n, buf), n).map_err(|error| error.error)?;
    }
    Ok(())
}

/// They end with an error, each once, and their buffers come back.
fn ten_end_once(qpair: &mut IoQpair) -> Result<()> {
    let mut ended = [0; 10];
    let deadline = Instant::now() + SOON;
    loop {
        let result = qpair.process_completions(0, |completion| {
            assert!(
                matches!(completion.result, Err(CommandError::Disconnected | CommandError::NotSent)),
                "{:?}",
                completion.result
            );
            assert!(!completion.buf.is_empty(), "the buffer comes back");
            ended[completion.user_data as usize] += 1;
        });
        if result.is_err() {
            break;
        }
        ensure!(Instant::now() < deadline, "it hangs: {ended:?}");
        qpair.wait(Duration::from_millis(10))?;
    }
    ensure!(ended == [1; 10], "{ended:?}");
    Ok(())
}

/// A controller that a secondary finds, and how often it was told that it is gone.
fn found(secondary: &Driver, trid: &TransportId) -> Result<(Controller, Arc<AtomicU32>)> {
    let removed = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&removed);
    let mut found = Vec::new();
    let callbacks = Callbacks::new().options(options()).attach(|c| found.push(c)).remove(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    secondary.probe(Some(trid), callbacks)?;
    Ok((found.pop().context("nothing was found")?, removed))
}

/// I/O succeeds soon after reset `round`, and what was written is there.
fn works_again(qpair: &mut IoQpair, ns: &nvmf_core::Namespace, round: u8) -> Result<()> {
    let deadline = Instant::now() + SOON;
    loop {
        let mut buf = qpair.alloc(4096)?;
        buf.fill(round);
        match qpair.execute(IoCommand::write(ns, 0, buf)) {
            Ok(_) => break,
            Err(error) => ensure!(Instant::now() < deadline, "no I/O after reset {round}: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let read = qpair.read_blocking(ns, 0, qpair.alloc(4096)?)?;
    ensure!(read.iter().all(|&byte| byte == round));
    Ok(())
}

#[test]
fn the_end_of_the_primary_ends_every_command_once() -> Result<()> {
    let rig = Rig::new()?;
    let (controller, removed) = found(&rig.secondary, &rig.trid)?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    // Commands that the target keeps.
    rig.target.faults().push(Rule::new(Fault::Drop).io().always());
    submit_ten(&mut qpair, &ns)?;
    let Rig { primary, attached, secondary, target, folder, trid } = rig;
    drop(primary);
    ten_end_once(&mut qpair)?;
    eventually("the remove callback", || removed.load(Ordering::Relaxed) == 1)?;
    ensure!(controller.is_failed());
    ensure!(controller.alloc_io_qpair(&IoQpairOptions::default()).is_err());
    ensure!(controller.log_page(LogPageId::SMART, u32::MAX, 512).is_err());
    // A new primary starts at once.
    target.faults().clear();
    let next = driver(&folder.0)?;
    ensure!(next.role() == Role::Primary);
    let again = next.connect(&trid, &options())?;
    let shared = secondary.connect(&trid, &options())?;
    ensure!(shared.cntlid() == again.cntlid());
    drop(attached);
    Ok(())
}

#[test]
fn a_reset_in_the_primary_is_seen_and_queues_come_back() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let qid = qpair.qid();
    for round in 0..5u8 {
        rig.attached.reset()?;
        works_again(&mut qpair, &ns, round)?;
        ensure!(qpair.qid() == qid);
        eventually("the secondary's own view", || controller.state() == ControllerState::Ready)?;
        ensure!(controller.cntlid() == rig.attached.cntlid());
    }
    Ok(())
}

/// A connection to the primary's socket without the library.
fn raw(folder: &Folder) -> Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&SockAddr::unix(folder.socket())?)?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// Waits until the primary closes the connection.
fn until_closed(mut socket: &Socket) -> Result<()> {
    let mut bytes = vec![0; 256 << 10];
    loop {
        match socket.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn malformed_messages_are_refused_without_harm() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let hello = Request::Hello(Hello::ours()).encode(1);
    let mut other = Hello::ours();
    other.version.set(77);
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("noise", vec![vec![0xff; 100]]),
        ("a short packet", vec![vec![1]]),
        ("no greeting", vec![Request::List.encode(1)]),
        ("another version", vec![Request::Hello(other).encode(1)]),
        ("a reply as a request", vec![hello.clone(), Reply::Pong.encode(1)]),
        ("a second greeting", vec![hello.clone(), hello.clone()]),
        (
            "an admin command for no controller",
            vec![
                hello.clone(),
                Request::Admin { sqe: Default::default(), data_in: 0, timeout_ms: 0, data: &[] }.encode(2),
            ],
        ),
        ("a lease without a controller", vec![hello.clone(), Request::Lease.encode(2)]),
        ("memory without a controller", vec![hello.clone(), Request::Map.encode(2)]),
        ("registers without a controller", vec![hello.clone(), Request::Function.encode(2)]),
        ("the end of queues without a controller", vec![hello.clone(), Request::Quit.encode(2)]),
        ("a long packet", vec![hello.clone(), vec![3; 180 << 10]]),
    ];
    for (what, packets) in cases {
        let socket = raw(&rig.folder)?;
        for packet in &packets {
            // The connection may be closed already.
            let _ = socket.send(packet);
        }
        until_closed(&socket).with_context(|| format!("after {what}"))?;
    }
    let stranger = Request::Attach(4711).encode(3);
    let socket = raw(&rig.folder)?;
    socket.send(&hello)?;
    socket.send(&stranger)?;
    drop(socket);
    // The primary and whoever behaves are none the worse.
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    qpair.read_blocking(&ns, 0, qpair.alloc(4096)?)?;
    eventually("the end of the others", || rig.primary.processes().is_ok_and(|p| p.len() == 2))
}

#[test]
fn roles_and_places_are_checked() -> Result<()> {
    let folder = Folder::new()?;
    let builder = || Driver::builder().shared("disks").directory(&folder.0);
    let error = builder().only(Role::Secondary).build().unwrap_err();
    ensure!(error.to_string().contains("there is no primary"), "{error}");
    let primary = builder().only(Role::Primary).build()?;
    ensure!(std::fs::metadata(folder.socket())?.mode() & 0o777 == 0o600);
    let error = builder().only(Role::Primary).build().unwrap_err();
    ensure!(error.to_string().contains(&format!("process {} is the primary", std::process::id())), "{error}");
    ensure!(builder().build()?.role() == Role::Secondary);
    drop(primary);
    ensure!(std::fs::read_dir(&folder.0)?.count() == 0, "files are left");
    std::fs::set_permissions(&folder.0, std::fs::Permissions::from_mode(0o777))?;
    let error = builder().build().unwrap_err();
    ensure!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}");
    Ok(())
}

#[test]
fn a_primary_that_is_not_ready_is_waited_for_and_not_for_ever() -> Result<()> {
    let folder = Folder::new()?;
    // Somebody has the lock and does not listen.
    let lock = std::fs::File::create(folder.0.join("disks.lock"))?;
    lock.lock()?;
    let patience = Duration::from_millis(300);
    let started = Instant::now();
    let builder = || Driver::builder().shared("disks").directory(&folder.0);
    let error = builder().patience(patience).build().unwrap_err();
    ensure!(started.elapsed() >= patience, "not waited for");
    ensure!(error.is_timeout() && error.to_string().contains("still initialising"), "{error}");
    let waiting = std::thread::scope(|scope| -> Result<Driver> {
        let waiting = scope.spawn(|| builder().patience(SOON).build());
        std::thread::sleep(Duration::from_millis(50));
        drop(lock);
        Ok(waiting.join().expect("no panic")?)
    })?;
    ensure!(waiting.role() == Role::Primary, "the one before is gone");
    Ok(())
}

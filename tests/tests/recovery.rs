//! What becomes of I/O when a controller is reset, lost, or comes back.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::future::{AsyncQpair, block_on};
use nvmf_core::spec::identify::Cns;
use nvmf_core::spec::log_page::AnaState;
use nvmf_core::spec::{AdminOpcode, NvmOpcode, Sqe, Status};
use nvmf_core::{
    Callbacks, CommandError, Controller, ControllerOptions, ControllerState, Driver, ErrorKind, Event,
    IoCommand, IoQpair, IoQpairOptions, NamespaceChange, TimedOut, TimeoutAction, TimeoutPolicy, TransportId,
    TransportType,
};
use nvmf_loopback::{Fault, Loopback, Namespace, PciOptions, Rule, SubsystemBuilder, VfioUserServer};
use nvmf_tests::load::Load;
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserDevice, VfioUserOptions};
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2024-01.com.example:recovery";
/// Long enough for a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

fn subsystem() -> SubsystemBuilder {
    SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).block_size(512).uuid([7; 16]))
}

/// Deadlines that a busy machine does not miss.
fn options() -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.num_io_queues = 4;
    options.connect_timeout = Duration::from_secs(20);
    options
}

/// A target and a way to it.
struct Rig {
    target: Loopback,
    driver: Driver,
    trid: TransportId,
    _server: Option<VfioUserServer>,
}

impl Rig {
    fn in_process() -> Result<Self> {
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        let driver = Driver::builder().transport(target.transport()).build();
        Ok(Self { driver, trid: target.trid(NQN)?, target, _server: None })
    }

    fn tcp() -> Result<Self> {
        let target = Loopback::builder().subsystem(subsystem()).listen_tcp("127.0.0.1:0").build()?;
        let driver = Driver::builder().transport(TcpTransport::new()).build();
        let trid = target.tcp_trid(NQN)?.context("no listener")?;
        Ok(Self { driver, trid, target, _server: None })
    }

    fn pcie() -> Result<Self> {
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        let pci = PciOptions::new().ready_delay(Duration::from_millis(5));
        let function = target.pci_function_with(NQN, &pci)?;
        let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
            Ok(Box::new(function.open()?) as Box<dyn PciDevice>)
        });
        let driver = Driver::builder().transport(transport).build();
        Ok(Self { driver, trid: "trtype:PCIe traddr:0000:01:00.0".parse()?, target, _server: None })
    }

    fn vfio_user() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = Loopback::builder().subsystem(subsystem()).build()?;
        let function = target.pci_function(NQN)?;
        let name = format!("nvmf-recovery-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let server = VfioUserServer::listen(&function, std::env::temp_dir().join(name))?;
        let path = server.path().display().to_string();
        let transport = PcieTransport::with_devices(TransportType::VfioUser, move |_| {
            Ok(Box::new(VfioUserDevice::open(&path, &VfioUserOptions::default())?) as Box<dyn PciDevice>)
        });
        let driver = Driver::builder().transport(transport).build();
        Ok(Self { driver, trid: "trtype:vfiouser traddr:/nvmf".parse()?, target, _server: Some(server) })
    }

    fn all() -> Result<Vec<Self>> {
        Ok(vec![Self::in_process()?, Self::tcp()?, Self::pcie()?, Self::vfio_user()?])
    }

    fn fabrics() -> Result<Vec<Self>> {
        Ok(vec![Self::in_process()?, Self::tcp()?])
    }

    fn attach(&self, options: &ControllerOptions) -> Result<Controller> {
        Ok(self.driver.connect(&self.trid, options)?)
    }
}

/// Runs a test on every rig, and says on which it failed.
fn each(rigs: Result<Vec<Rig>>, test: impl Fn(&Rig) -> Result<()>) -> Result<()> {
    for rig in rigs? {
        test(&rig).with_context(|| format!("on {}", rig.trid))?;
    }
    Ok(())
}

fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

// --- reset -------------------------------------------------------------------------------------------------------------------

/// Resets again and again while I/O is done by another thread.
fn reset_under_load(rig: &Rig, options: &ControllerOptions, auto: bool) -> Result<()> {
    const RESETS: u32 = 4;
    let controller = rig.attach(options)?;
    let ns = controller.namespace(1).context("no namespace")?;
    let qpair_options = IoQpairOptions::default().auto_reconnect(auto);
    let finished = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let mut lanes = Vec::new();
        for lane in 0..2 {
            let (controller, ns, finished) = (&controller, &ns, &finished);
            let mut qpair = controller.alloc_io_qpair(&qpair_options)?;
            lanes.push(scope.spawn(move || {
                let mut load = Load::new(lane, lane * 4096, 2048, 24);
                let mut since = 0;
                // Some I/O between any two resets, and after the last.
                while finished.load(Ordering::Acquire) < RESETS || load.ends.succeeded < since + 100 {
                    if finished.load(Ordering::Acquire) < RESETS {
                        since = load.ends.succeeded;
                    }
                    load.submit(&mut qpair, ns)?;
                    if load.process(&mut qpair, ns)? {
                        ensure!(!auto, "told as lost: {:?}", qpair.failure());
                        eventually("reconnected", || Ok(controller.state() == ControllerState::Ready))?;
                        // Between two looks the next reset may have begun.
                        let _ = qpair.reconnect();
                    }
                }
                load.drain(&mut qpair, ns)?;
                if qpair.failure().is_some() {
                    qpair.reconnect()?;
                }
                load.verify(&mut qpair, ns)?;
                anyhow::Ok(load.ends)
            }));
        }
        for _ in 0..RESETS {
            std::thread::sleep(Duration::from_millis(40));
            controller.reset()?;
            ensure!(controller.state() == ControllerState::Ready && controller.failure().is_none());
            finished.fetch_add(1, Ordering::AcqRel);
        }
        let mut lost = 0;
        for lane in lanes {
            let ends = lane.join().unwrap()?;
            ensure!(ends.succeeded > 100, "{ends:?}");
            ensure!(!auto || ends.refused == 0, "{ends:?}");
            lost += ends.disconnected;
        }
        // In process commands are executed as soon as they are looked at.
        ensure!(lost > 0 || rig.trid.trtype() == TransportType::Loop, "no reset met a command");
        anyhow::Ok(())
    })?;
    ensure!(controller.pool().stats().outstanding == 0, "{:?}", controller.pool().stats());
    controller.detach()?;
    Ok(())
}

#[test]
fn every_command_ends_once_when_the_controller_is_reset() -> Result<()> {
    each(Rig::all(), |rig| reset_under_load(rig, &options(), true))
}

#[test]
fn queue_pairs_are_reconnected_by_the_program_if_it_wants_to() -> Result<()> {
    each(Rig::all(), |rig| reset_under_load(rig, &options(), false))
}

#[test]
fn a_reset_in_three_steps_blocks_nobody() -> Result<()> {
    each(Rig::all(), |rig| {
        for background in [false, true] {
            let mut options = options();
            options.background_admin = background;
            let controller = rig.attach(&options)?;
            ensure!(controller.reconnect_async().is_err(), "it is connected");
            let ns = controller.namespace(1).context("no namespace")?;
            let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default().auto_reconnect(true))?;
            controller.disconnect()?;
            ensure!(controller.state() == ControllerState::Disconnected && !controller.is_failed());
            ensure!(controller.failure().is_some());
            let refused = controller.identify_structure(Cns::CONTROLLER, 0);
            ensure!(refused.is_err(), "an admin command was taken");
            // Held until the controller is back.
            ensure!(qpair.process_completions(0, |_| {})? == 0);
            qpair.flush_namespace(&ns, 7)?;
            for _ in 0..20 {
                ensure!(qpair.process_completions(0, |_| {})? == 0);
            }
            ensure!(qpair.is_reconnecting() && qpair.outstanding() == 1);
            controller.reconnect_async()?;
            let mut longest = Duration::ZERO;
            eventually("connected", || {
                let start = Instant::now();
                let ready = controller.reconnect_poll_async()?;
                longest = longest.max(start.elapsed());
                Ok(ready)
            })?;
            ensure!(longest < Duration::from_secs(2), "a step took {longest:?}");
            let mut done = Vec::new();
            eventually("completed", || {
                controller.process_admin_completions()?;
                qpair.process_completions(0, |c| done.push((c.user_data, c.result.is_ok())))?;
                Ok(!done.is_empty())
            })?;
            ensure!(done == [(7, true)], "{done:?}");
            drop(qpair);
            controller.detach()?;
        }
        Ok(())
    })
}

#[test]
fn the_subsystem_is_reset_where_the_controller_can_do_that() -> Result<()> {
    each(Rig::all(), |rig| {
        let controller = rig.attach(&options())?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default().auto_reconnect(true))?;
        let ns = controller.namespace(1).context("no namespace")?;
        if controller.cap().nssrs() {
            controller.reset_subsystem()?;
            let mut load = Load::new(9, 0, 1024, 8);
            load.submit(&mut qpair, &ns)?;
            load.drain(&mut qpair, &ns)?;
            ensure!(load.ends.succeeded > 0);
        } else {
            let error = controller.reset_subsystem().unwrap_err();
            ensure!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
            ensure!(controller.state() == ControllerState::Ready);
        }
        Ok(())
    })
}

#[test]
fn everything_may_be_dropped_in_the_middle() -> Result<()> {
    each(Rig::all(), |rig| {
        for step in 0..6 {
            let mut attached = None;
            eventually("attached", || {
                // The background thread may be the last to let go of the one before.
                attached = rig.attach(&options()).ok();
                Ok(attached.is_some())
            })?;
            let controller = attached.context("not attached")?;
            let ns = controller.namespace(1).context("no namespace")?;
            let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default().auto_reconnect(true))?;
            for n in 0..8 {
                qpair.read(&ns, n * 8, qpair.alloc(4096)?, n)?;
            }
            let pending = controller.admin(Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0)).submit()?;
            controller.disconnect()?;
            if step > 0 {
                qpair.process_completions(0, |_| {})?;
            }
            if step > 1 {
                controller.reconnect_async()?;
            }
            if step > 2 {
                let _ = controller.reconnect_poll_async();
                qpair.process_completions(0, |_| {})?;
            }
            match step % 3 {
                0 => drop((pending, qpair, controller)),
                1 => {
                    controller.clone().detach()?;
                    ensure!(controller.reset().is_err() && controller.is_failed(), "it is detached");
                    ensure!(pending.wait().is_err());
                    eventually("told", || Ok(qpair.process_completions(0, |_| {}).is_err()))?;
                }
                _ => {
                    controller.fail();
                    ensure!(controller.is_failed());
                    eventually("told", || Ok(qpair.process_completions(0, |_| {}).is_err()))?;
                    drop((qpair, pending));
                    controller.reset()?;
                    controller.detach()?;
                }
            }
            eventually("gone", || Ok(rig.driver.pool().stats().outstanding == 0))?;
        }
        Ok(())
    })
}

// --- losing the connection -----------------------------------------------------------------------------------------------------

/// Options that connect again, often.
fn persistent() -> ControllerOptions {
    let mut options = options();
    options.reconnect_delay = Some(Duration::from_millis(50));
    options.ctrl_loss_timeout = Some(Duration::from_secs(60));
    options
}

#[test]
fn io_goes_on_when_the_target_ends_every_connection() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let controller = rig.attach(&persistent())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let mut load = Load::new(3, 0, 4096, 32);
        for _ in 0..5 {
            let goal = load.ends.succeeded + 200;
            while load.ends.succeeded < goal {
                load.submit(&mut qpair, &ns)?;
                ensure!(!load.process(&mut qpair, &ns)?, "told as lost");
            }
            load.submit(&mut qpair, &ns)?;
            rig.target.disconnect_all();
        }
        load.drain(&mut qpair, &ns)?;
        load.verify(&mut qpair, &ns)?;
        ensure!(load.ends.refused == 0, "{:?}", load.ends);
        Ok(())
    })
}

#[test]
fn one_lost_connection_of_a_queue_takes_the_controller_through_recovery() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let controller = rig.attach(&persistent())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let before = controller.cntlid();
        rig.target.faults().push(Rule::new(Fault::Disconnect).io().opcode(NvmOpcode::READ.0));
        qpair.read(&ns, 0, qpair.alloc(512)?, 0)?;
        let mut ends = Vec::new();
        eventually("connected anew", || {
            qpair.process_completions(0, |c| ends.push(c.result))?;
            Ok(!ends.is_empty() && qpair.is_connected())
        })?;
        ensure!(ends == [Err(CommandError::Disconnected)], "{ends:?}");
        ensure!(controller.cntlid() != before, "the association is another one");
        qpair.read_blocking(&ns, 0, qpair.alloc(512)?)?;
        Ok(())
    })
}

#[test]
fn reads_are_sent_again_if_wished_and_writes_never() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let mut options = persistent();
        options.retry_after_reconnect = 2;
        let controller = rig.attach(&options)?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let mut buf = qpair.alloc(512)?;
        buf.fill(0x5a);
        qpair.write_blocking(&ns, 0, buf)?;
        let writes = rig.target.stats().writes;
        // Neither is answered before the connections end.
        rig.target.faults().push(Rule::new(Fault::Drop).io().opcode(NvmOpcode::READ.0));
        rig.target.faults().push(Rule::new(Fault::Drop).io().opcode(NvmOpcode::WRITE.0));
        qpair.read(&ns, 0, qpair.alloc(512)?, 1)?;
        qpair.write(&ns, 8, qpair.alloc(512)?, 2)?;
        eventually("taken", || {
            qpair.process_completions(0, |_| {})?;
            Ok(rig.target.faults().fired() == 2)
        })?;
        rig.target.disconnect_all();
        let mut ends = Vec::new();
        eventually("both ended", || {
            qpair.process_completions(0, |c| ends.push((c.user_data, c.result, c.buf)))?;
            Ok(ends.len() == 2)
        })?;
        ends.sort_by_key(|end| end.0);
        ensure!(ends[0].1.is_ok(), "{ends:?}");
        ensure!(ends[0].2.bufs()[0].iter().all(|&byte| byte == 0x5a), "other data");
        ensure!(ends[1].1 == Err(CommandError::Disconnected), "{ends:?}");
        ensure!(rig.target.stats().writes == writes, "the write was sent again");

        // A read that takes the connection with it each time is given up.
        rig.target.faults().push(Rule::new(Fault::Disconnect).io().opcode(NvmOpcode::READ.0).always());
        let fired = rig.target.faults().fired();
        qpair.read(&ns, 0, qpair.alloc(512)?, 3)?;
        let mut end = None;
        eventually("given up", || {
            qpair.process_completions(0, |c| end = Some(c.result))?;
            Ok(end.is_some())
        })?;
        ensure!(end == Some(Err(CommandError::Disconnected)));
        ensure!(rig.target.faults().fired() == fired + 3, "sent once and twice again");
        Ok(())
    })
}

/// A target with a file as its namespace, so that it can end and begin again at the same address.
fn file_target(path: &std::path::Path, address: &str, serial: &str) -> Result<Loopback> {
    let namespace = Namespace::file(path, 4 << 20).block_size(512).uuid([9; 16]);
    let subsystem = SubsystemBuilder::new(NQN).serial(serial).namespace(namespace);
    let start = Instant::now();
    loop {
        match Loopback::builder().subsystem(subsystem.clone()).listen_tcp(address).build() {
            Err(_) if start.elapsed() < SOON => std::thread::sleep(Duration::from_millis(20)),
            result => return Ok(result?),
        }
    }
}

struct TempFile(std::path::PathBuf);

impl TempFile {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("nvmf-recovery-{}-{name}", std::process::id())))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn io_is_held_while_the_target_restarts() -> Result<()> {
    let file = TempFile::new("restart");
    let target = file_target(&file.0, "127.0.0.1:0", "A")?;
    let address = target.tcp_addrs()[0].to_string();
    let trid = target.tcp_trid(NQN)?.context("no listener")?;
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let controller = driver.connect(&trid, &persistent())?;
    let ns = controller.namespace(1).context("no namespace")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let mut load = Load::new(5, 0, 2048, 32);
    while load.ends.succeeded < 200 {
        load.submit(&mut qpair, &ns)?;
        load.process(&mut qpair, &ns)?;
    }
    load.submit(&mut qpair, &ns)?;
    drop(target);
    // As much as the queue pair holds, and not a command more.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        load.submit(&mut qpair, &ns)?;
        ensure!(!load.process(&mut qpair, &ns)?, "told as lost");
    }
    ensure!(controller.state() == ControllerState::Reconnecting && !controller.is_failed());
    ensure!(load.pending() == 32 && qpair.outstanding() == 32);
    let before = load.ends;
    let _target = file_target(&file.0, &address, "A")?;
    load.drain(&mut qpair, &ns)?;
    ensure!(load.ends.succeeded == before.succeeded + 32, "what was held succeeds: {:?}", load.ends);
    ensure!(load.ends.not_sent == 0 && load.ends.refused == 0, "{:?}", load.ends);
    load.verify(&mut qpair, &ns)?;
    controller.detach()?;
    Ok(())
}

#[test]
fn another_subsystem_at_the_same_address_is_not_taken_for_the_one_before() -> Result<()> {
    let file = TempFile::new("identity");
    let target = file_target(&file.0, "127.0.0.1:0", "A")?;
    let address = target.tcp_addrs()[0].to_string();
    let trid = target.tcp_trid(NQN)?.context("no listener")?;
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let (told, removed) = mpsc::channel();
    let mut attached = None;
    let callbacks =
        Callbacks::new().options(persistent()).attach(|c| attached = Some(c)).remove(move |trid| {
            let _ = told.send(trid.clone());
        });
    driver.probe(Some(&trid), callbacks)?;
    let controller = attached.context("not attached")?;
    let ns = controller.namespace(1).context("no namespace")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    drop(target);
    let other = file_target(&file.0, &address, "B")?;
    ensure!(removed.recv_timeout(SOON)? == trid);
    ensure!(controller.is_failed());
    let error = controller.failure().context("no reason")?;
    ensure!(error.to_string().contains("serial number"), "{error}");
    eventually("told", || Ok(qpair.process_completions(0, |_| {}).is_err()))?;
    ensure!(qpair.write(&ns, 0, qpair.alloc(512)?, 0).is_err());
    ensure!(other.stats().io_commands == 0);
    Ok(())
}

#[test]
fn a_namespace_that_is_another_one_gets_nothing_that_was_held() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let controller = rig.attach(&persistent())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        rig.target.refuse_connections(true);
        rig.target.disconnect_all();
        eventually("lost", || {
            qpair.process_completions(0, |_| {})?;
            Ok(!qpair.is_connected() && controller.state() != ControllerState::Ready)
        })?;
        qpair.write(&ns, 0, qpair.alloc(4096)?, 5)?;
        rig.target.remove_namespace(NQN, 1)?;
        rig.target.add_namespace(NQN, Namespace::memory(16 << 20).block_size(4096).uuid([8; 16]).nsid(1))?;
        rig.target.refuse_connections(false);
        let mut ends = Vec::new();
        eventually("ended", || {
            qpair.process_completions(0, |c| ends.push(c.result))?;
            Ok(!ends.is_empty() && qpair.is_connected())
        })?;
        ensure!(ends == [Err(CommandError::NotSent)], "{ends:?}");
        ensure!(rig.target.stats().writes == 0);
        let ns = controller.namespace(1).context("no namespace")?;
        ensure!(ns.block_size() == 4096);
        qpair.write_blocking(&ns, 0, qpair.alloc(4096)?)?;
        Ok(())
    })
}

#[test]
fn io_fails_fast_and_works_again_when_the_target_is_back() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let mut options = persistent();
        options.fast_io_fail_timeout = Some(Duration::from_millis(300));
        let controller = rig.attach(&options)?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        rig.target.refuse_connections(true);
        rig.target.disconnect_all();
        eventually("lost", || {
            qpair.process_completions(0, |_| {})?;
            Ok(!qpair.is_connected())
        })?;
        qpair.write(&ns, 0, qpair.alloc(512)?, 5)?;
        let mut ends = Vec::new();
        eventually("failed", || {
            qpair.process_completions(0, |c| ends.push(c.result))?;
            Ok(!ends.is_empty())
        })?;
        ensure!(ends == [Err(CommandError::NotSent)], "{ends:?}");
        ensure!(qpair.write(&ns, 0, qpair.alloc(512)?, 6).is_err(), "held although it fails fast");
        ensure!(qpair.is_reconnecting() && controller.state() == ControllerState::Reconnecting);
        rig.target.refuse_connections(false);
        eventually("back", || {
            qpair.process_completions(0, |_| {})?;
            Ok(qpair.is_connected())
        })?;
        qpair.write_blocking(&ns, 0, qpair.alloc(512)?)?;
        Ok(())
    })
}

#[test]
fn a_controller_that_stays_away_is_given_up_and_may_be_reset_later() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let mut options = persistent();
        options.ctrl_loss_timeout = Some(Duration::from_millis(400));
        let controller = rig.attach(&options)?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        rig.target.refuse_connections(true);
        rig.target.disconnect_all();
        eventually("lost", || {
            qpair.process_completions(0, |_| {})?;
            Ok(!qpair.is_connected())
        })?;
        qpair.write(&ns, 0, qpair.alloc(512)?, 5)?;
        let mut ends = Vec::new();
        eventually("given up", || match qpair.process_completions(0, |c| ends.push(c.result)) {
            Ok(_) => Ok(false),
            Err(_) => Ok(true),
        })?;
        ensure!(ends == [Err(CommandError::NotSent)], "{ends:?}");
        ensure!(controller.is_failed() && controller.state() == ControllerState::Failed);
        ensure!(controller.reset().is_err(), "nobody answers");
        rig.target.refuse_connections(false);
        eventually("reset", || Ok(controller.reset().is_ok()))?;
        ensure!(!controller.is_failed());
        eventually("connected", || {
            qpair.process_completions(0, |_| {})?;
            Ok(qpair.is_connected())
        })?;
        qpair.write_blocking(&ns, 0, qpair.alloc(512)?)?;
        Ok(())
    })
}

#[test]
fn an_unanswered_keep_alive_starts_recovery() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        for background in [true, false] {
            let mut options = persistent();
            options.background_admin = background;
            options.keep_alive_timeout = Duration::from_millis(1000);
            let controller = rig.attach(&options)?;
            let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
            let ns = controller.namespace(1).context("no namespace")?;
            let before = controller.cntlid();
            rig.target.faults().push(Rule::new(Fault::Drop).admin().opcode(AdminOpcode::KEEP_ALIVE.0));
            eventually("another association", || {
                if !background {
                    controller.process_admin_completions()?;
                }
                qpair.process_completions(0, |_| {})?;
                Ok(controller.cntlid() != before && qpair.is_connected())
            })?;
            qpair.read_blocking(&ns, 0, qpair.alloc(512)?)?;
            drop(qpair);
            controller.detach()?;
        }
        Ok(())
    })
}

#[test]
fn another_address_of_the_same_subsystem_takes_over() -> Result<()> {
    let target = Loopback::builder()
        .subsystem(subsystem())
        .listen_tcp("127.0.0.1:0")
        .listen_tcp("127.0.0.1:0")
        .build()?;
    let at = |n: usize| -> Result<TransportId> {
        Ok(TransportId::tcp_socket(target.tcp_addrs()[n])?.with_subnqn(NQN.parse()?))
    };
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let controller = driver.connect(&at(0)?, &options())?;
    let ns = controller.namespace(1).context("no namespace")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default().auto_reconnect(true))?;
    let mut buf = qpair.alloc(512)?;
    buf.fill(0x77);
    qpair.write_blocking(&ns, 3, buf)?;
    ensure!(controller.set_trid(&at(1)?).is_err(), "it is connected");
    controller.disconnect()?;
    let other: TransportId = format!("{} ", at(1)?).replace("recovery", "another").trim().parse()?;
    ensure!(controller.set_trid(&other).is_err(), "another subsystem");
    ensure!(controller.set_trid(&"trtype:loop traddr:x".parse()?).is_err(), "another transport");
    controller.set_trid(&at(1)?)?;
    controller.reset()?;
    ensure!(*controller.trid() == at(1)?);
    let data = qpair.read_blocking(&ns, 3, qpair.alloc(512)?)?;
    ensure!(data.iter().all(|&byte| byte == 0x77));
    ensure!(
        driver.connect(&at(1)?, &options())?.cntlid() == controller.cntlid(),
        "known under its new address"
    );
    Ok(())
}

// --- commands that take too long ---------------------------------------------------------------------------------------------

/// A read that is never answered, under a policy; returns how it ended.
fn unanswered_read(
    rig: &Rig,
    controller: &Controller,
    qpair: &mut IoQpair,
) -> Result<Result<u64, CommandError>> {
    let ns = controller.namespace(1).context("no namespace")?;
    rig.target.faults().push(Rule::new(Fault::Drop).io().opcode(NvmOpcode::READ.0));
    qpair.read(&ns, 0, qpair.alloc(512)?, 42)?;
    let mut end = None;
    eventually("ended", || {
        // A queue pair that is given up says so after the completion.
        let result = qpair.process_completions(0, |c| end = Some(c.result));
        ensure!(end.is_some() || result.is_ok(), "{result:?}");
        Ok(end.is_some())
    })?;
    end.context("no end")
}

fn impatient(policy: TimeoutPolicy) -> ControllerOptions {
    let mut options = options();
    options.io_timeout = Some(Duration::from_millis(300));
    options.timeout_policy = policy;
    options
}

#[test]
fn a_command_that_takes_too_long_is_aborted() -> Result<()> {
    each(Rig::all(), |rig| {
        let controller = rig.attach(&impatient(TimeoutPolicy::Abort))?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let end = unanswered_read(rig, &controller, &mut qpair)?;
        ensure!(end == Err(CommandError::Status(Status::ABORT_REQUESTED)), "{end:?}");
        ensure!(qpair.is_connected() && qpair.failure().is_none(), "the queue pair goes on");
        eventually("counted", || Ok(controller.abort_stats().aborted == 1))?;
        ensure!(controller.abort_stats().sent == 1 && controller.abort_stats().failed == 0);
        Ok(())
    })
}

#[test]
fn a_command_that_cannot_be_aborted_takes_the_queue_pair_or_the_controller() -> Result<()> {
    each(Rig::all(), |rig| {
        for reset in [false, true] {
            let policy = if reset { TimeoutPolicy::AbortThenReset } else { TimeoutPolicy::Abort };
            let controller = rig.attach(&impatient(policy))?;
            let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default().auto_reconnect(true))?;
            rig.target.faults().push(
                Rule::new(Fault::CompleteWith(Status::INTERNAL_ERROR)).admin().opcode(AdminOpcode::ABORT.0),
            );
            let end = unanswered_read(rig, &controller, &mut qpair)?;
            ensure!(end == Err(CommandError::TimedOut), "{end:?}");
            eventually("connected again", || {
                qpair.process_completions(0, |_| {})?;
                Ok(qpair.is_connected())
            })?;
            ensure!(controller.abort_stats().failed == 1, "{:?}", controller.abort_stats());
            ensure!(controller.state() == ControllerState::Ready);
            let ns = controller.namespace(1).context("no namespace")?;
            qpair.read_blocking(&ns, 0, qpair.alloc(512)?)?;
            drop(qpair);
            controller.detach()?;
        }
        Ok(())
    })
}

#[test]
fn the_program_decides_about_commands_that_take_too_long() -> Result<()> {
    each(Rig::all(), |rig| {
        let (told, late) = mpsc::channel();
        let decide = move |late: &TimedOut| {
            let _ = told.send((late.user_data, late.opcode, late.times));
            match late.times {
                1 | 2 => TimeoutAction::Wait,
                3 => TimeoutAction::Abort,
                _ => TimeoutAction::Disconnect,
            }
        };
        let controller = rig.attach(&impatient(TimeoutPolicy::Callback(Arc::new(decide))))?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let end = unanswered_read(rig, &controller, &mut qpair)?;
        ensure!(end == Err(CommandError::Status(Status::ABORT_REQUESTED)), "{end:?}");
        let calls: Vec<_> = late.try_iter().collect();
        ensure!(
            calls == [(42, NvmOpcode::READ.0, 1), (42, NvmOpcode::READ.0, 2), (42, NvmOpcode::READ.0, 3)],
            "{calls:?}"
        );
        Ok(())
    })
}

#[test]
fn a_command_is_aborted_by_the_value_it_was_submitted_with() -> Result<()> {
    each(Rig::all(), |rig| {
        let controller = rig.attach(&options())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        rig.target.faults().push(Rule::new(Fault::Drop).io().opcode(NvmOpcode::READ.0).times(3));
        for n in 0..3 {
            qpair.read(&ns, n, qpair.alloc(512)?, n)?;
        }
        eventually("taken", || {
            qpair.process_completions(0, |_| {})?;
            Ok(rig.target.faults().fired() == 3)
        })?;
        ensure!(qpair.abort_by_user_data(1, |_| {})?);
        ensure!(!qpair.abort_by_user_data(9, |_| {})?);
        let mut ends = Vec::new();
        eventually("aborted", || {
            qpair.process_completions(0, |c| ends.push((c.user_data, c.result)))?;
            Ok(!ends.is_empty())
        })?;
        ensure!(ends == [(1, Err(CommandError::Status(Status::ABORT_REQUESTED)))], "{ends:?}");
        ensure!(qpair.outstanding() == 2);
        Ok(())
    })
}

// --- events ----------------------------------------------------------------------------------------------------------------------

/// Attaches and collects what happens.
fn attach_listening(rig: &Rig, options: &ControllerOptions) -> Result<(Controller, mpsc::Receiver<Event>)> {
    let controller = rig.attach(options)?;
    let (told, events) = mpsc::channel();
    controller.on_event(move |_, event| {
        let _ = told.send(*event);
    });
    Ok((controller, events))
}

/// Waits until these happened, in any order, and nothing else.
fn expect(controller: &Controller, events: &mpsc::Receiver<Event>, wanted: &[Event]) -> Result<()> {
    let mut seen = Vec::new();
    eventually(&format!("{wanted:?}"), || {
        if !controller.options().background_admin {
            controller.process_admin_completions()?;
        }
        seen.extend(events.try_iter());
        Ok(wanted.iter().all(|event| seen.contains(event)))
    })?;
    ensure!(seen.len() == wanted.len(), "{seen:?} instead of {wanted:?}");
    Ok(())
}

#[test]
fn namespaces_come_go_and_change_size() -> Result<()> {
    each(Rig::all(), |rig| {
        for background in [true, false] {
            let mut options = options();
            options.background_admin = background;
            let (controller, events) = attach_listening(rig, &options)?;
            let change = |nsid, change| Event::Namespace { nsid, change };
            rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(5))?;
            expect(&controller, &events, &[change(5, NamespaceChange::Added)])?;
            ensure!(controller.namespace(5).context("namespace 5")?.size() == 1 << 20);
            rig.target.resize_namespace(NQN, 5, 2 << 20)?;
            expect(&controller, &events, &[change(5, NamespaceChange::Resized)])?;
            ensure!(controller.namespace(5).context("namespace 5")?.size() == 2 << 20);
            rig.target.remove_namespace(NQN, 5)?;
            rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(6))?;
            let wanted = [change(5, NamespaceChange::Removed), change(6, NamespaceChange::Added)];
            // Two changes are told together or one after the other.
            expect(&controller, &events, &wanted)?;
            ensure!(controller.namespace(5).is_none() && controller.namespaces().len() == 2);
            rig.target.remove_namespace(NQN, 6)?;
            expect(&controller, &events, &[change(6, NamespaceChange::Removed)])?;
            ensure!(!controller.take_events().is_empty(), "the events as they came are kept as well");
            controller.detach()?;
        }
        Ok(())
    })
}

#[test]
fn paths_become_inaccessible_and_come_back() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let (controller, events) = attach_listening(rig, &options())?;
        let state = |controller: &Controller| controller.namespace(1).and_then(|ns| ns.ana_state());
        ensure!(state(&controller) == Some(AnaState::OPTIMIZED));
        for ana in [AnaState::INACCESSIBLE, AnaState::NON_OPTIMIZED] {
            rig.target.set_ana_state(NQN, ana)?;
            expect(&controller, &events, &[Event::Ana { nsid: 1, state: ana }])?;
            ensure!(state(&controller) == Some(ana));
        }
        Ok(())
    })
}

#[test]
fn what_changed_while_it_was_away_is_told_when_it_is_back() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let (controller, events) = attach_listening(rig, &persistent())?;
        rig.target.refuse_connections(true);
        rig.target.disconnect_all();
        expect(&controller, &events, &[Event::State(ControllerState::Reconnecting)])?;
        rig.target.resize_namespace(NQN, 1, 8 << 20)?;
        rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(2))?;
        rig.target.refuse_connections(false);
        let wanted = [
            Event::State(ControllerState::Ready),
            Event::Namespace { nsid: 1, change: NamespaceChange::Resized },
            Event::Namespace { nsid: 2, change: NamespaceChange::Added },
        ];
        expect(&controller, &events, &wanted)?;
        Ok(())
    })
}

#[test]
fn events_are_left_to_the_program_if_it_wants_to() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let mut options = options();
        options.handle_events = false;
        let (controller, events) = attach_listening(rig, &options)?;
        rig.target.add_namespace(NQN, Namespace::memory(1 << 20).nsid(5))?;
        let mut taken = Vec::new();
        eventually("an event", || {
            taken.extend(controller.take_events());
            Ok(!taken.is_empty())
        })?;
        ensure!(taken.iter().all(|event| event.is_namespace_change()));
        std::thread::sleep(Duration::from_millis(300));
        ensure!(controller.namespace(5).is_none() && events.try_recv().is_err());
        controller.rescan_namespaces()?;
        ensure!(controller.namespace(5).is_some());
        expect(&controller, &events, &[Event::Namespace { nsid: 5, change: NamespaceChange::Added }])
    })
}

#[test]
fn a_discovery_controller_tells_of_changes_and_comes_back() -> Result<()> {
    let rig = Rig::tcp()?;
    let discovery = rig.target.tcp_trid(nvmf_core::Nqn::DISCOVERY)?.context("no listener")?;
    let controller = rig.driver.connect(&discovery, &persistent())?;
    let (told, events) = mpsc::channel();
    controller.on_event(move |_, event| {
        let _ = told.send(*event);
    });
    // Let the event requests reach it.
    std::thread::sleep(Duration::from_millis(100));
    rig.target.add_subsystem(SubsystemBuilder::new("nqn.2024-01.com.example:more"))?;
    expect(&controller, &events, &[Event::DiscoveryLog])?;
    ensure!(controller.discovery_log()?.records.len() == 2);
    rig.target.disconnect_all();
    let wanted = [Event::State(ControllerState::Reconnecting), Event::State(ControllerState::Ready)];
    expect(&controller, &events, &wanted)?;
    ensure!(controller.discovery_log()?.records.len() == 2);
    Ok(())
}

// --- PCIe ------------------------------------------------------------------------------------------------------------------------

#[test]
fn a_controller_with_a_fatal_status_is_reset() -> Result<()> {
    each(Ok(vec![Rig::pcie()?, Rig::vfio_user()?]), |rig| {
        let controller = rig.attach(&persistent())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let mut load = Load::new(11, 0, 2048, 16);
        for _ in 0..3 {
            let goal = load.ends.succeeded + 50;
            while load.ends.succeeded < goal {
                load.submit(&mut qpair, &ns)?;
                ensure!(!load.process(&mut qpair, &ns)?, "told as lost");
            }
            rig.target.faults().push(Rule::new(Fault::FatalStatus).io().after(5));
        }
        load.drain(&mut qpair, &ns)?;
        load.verify(&mut qpair, &ns)?;
        ensure!(load.ends.disconnected > 0, "{:?}", load.ends);
        controller.detach()?;
        Ok(())
    })
}

#[test]
fn a_device_that_was_pulled_out_is_not_waited_for() -> Result<()> {
    each(Ok(vec![Rig::pcie()?, Rig::vfio_user()?]), |rig| {
        let controller = rig.attach(&persistent())?;
        let ns = controller.namespace(1).context("no namespace")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        rig.target.faults().push(Rule::new(Fault::Disconnect).io().opcode(NvmOpcode::READ.0));
        qpair.read(&ns, 0, qpair.alloc(512)?, 0)?;
        qpair.read(&ns, 8, qpair.alloc(512)?, 1)?;
        let mut ends = Vec::new();
        eventually("lost", || Ok(qpair.process_completions(0, |c| ends.push(c.result)).is_err()))?;
        ensure!(ends == [Err(CommandError::Disconnected); 2], "{ends:?}");
        ensure!(controller.is_failed());
        ensure!(controller.reset().is_err());
        Ok(())
    })
}

// --- futures ---------------------------------------------------------------------------------------------------------------------

#[test]
fn futures_end_once_and_may_be_dropped_while_the_connection_is_lost() -> Result<()> {
    each(Rig::fabrics(), |rig| {
        let mut options = persistent();
        options.retry_after_reconnect = 1;
        let controller = rig.attach(&options)?;
        let ns = controller.namespace(1).context("no namespace")?;
        let qpair = AsyncQpair::new(controller.alloc_io_qpair(&IoQpairOptions::default())?);
        rig.target.faults().push(Rule::new(Fault::Drop).io().times(4));
        let mut reads = Vec::new();
        for n in 0..8 {
            let buf = qpair.alloc(512)?;
            reads.push(qpair.submit(IoCommand::read(&ns, n, buf)));
        }
        eventually("taken", || {
            qpair.poll_once()?;
            Ok(rig.target.faults().fired() == 4)
        })?;
        let kept = reads.split_off(2);
        drop(reads);
        rig.target.disconnect_all();
        let ended = block_on(&qpair, async {
            let mut ended = 0;
            for read in kept {
                ended += usize::from(read.await.is_ok());
            }
            ended
        })?;
        ensure!(ended == 6, "{ended} of 6 reads");
        ensure!(controller.pool().stats().outstanding == 0, "{:?}", controller.pool().stats());
        Ok(())
    })
}

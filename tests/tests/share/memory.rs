//! Controllers whose I/O queues are in memory: an emulated function, over vfio-user.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::spec::{AdminOpcode, Sqe};
use nvmf_core::{
    CommandError, Controller, ControllerState, Driver, IoCommand, IoQpairOptions, Role, TransportId,
};
use nvmf_loopback::{
    EmulatedFunction, Fault, Loopback, Namespace, PciOptions, Rule, SubsystemBuilder, VfioUserServer,
};
use nvmf_transport_pcie::{VfioUserOptions, vfio_user};

use super::{
    Folder, NQN, SOON, driver_over, eventually, found, options, submit_ten, ten_end_once, works_again,
};

fn driver(folder: &Folder) -> Result<Driver> {
    driver_over(vfio_user::transport(VfioUserOptions::default()), &folder.0)
}

/// A function, a primary that has attached it, and a secondary.
struct Rig {
    secondary: Driver,
    attached: Controller,
    primary: Driver,
    trid: TransportId,
    _server: VfioUserServer,
    function: EmulatedFunction,
    target: Loopback,
    folder: Folder,
}

impl Rig {
    fn new() -> Result<Self> {
        Self::with(&PciOptions::new())
    }

    fn with(pci: &PciOptions) -> Result<Self> {
        let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).uuid([7; 16]));
        let target = Loopback::builder().subsystem(subsystem).build()?;
        let folder = Folder::new()?;
        let function = target.pci_function_with(NQN, pci)?;
        let server = VfioUserServer::listen(&function, folder.0.join("cntrl"))?;
        let trid: TransportId =
            format!("trtype:vfiouser traddr:{}", folder.0.join("cntrl").display()).parse()?;
        let primary = driver(&folder)?;
        let attached = primary.connect(&trid, &options())?;
        let secondary = driver(&folder)?;
        ensure!(secondary.role() == Role::Secondary);
        Ok(Self { secondary, attached, primary, trid, _server: server, function, target, folder })
    }

    /// Queues that other processes have.
    fn leased(&self) -> u32 {
        self.primary.processes().map_or(0, |processes| processes.iter().map(|process| process.queues).sum())
    }
}

/// Writes and reads back some lengths.
fn exchange(controller: &Controller, with: &Controller, first: u64) -> Result<()> {
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut ours = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let mut theirs = with.alloc_io_qpair(&IoQpairOptions::default())?;
    ensure!(ours.qid() != theirs.qid());
    for (n, len) in [512, 4096, 65_536, 1 << 20, 3 << 20].into_iter().enumerate() {
        let mut buf = ours.alloc(len)?;
        buf.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i >> 9) as u8 ^ n as u8 ^ first as u8);
        let expected = buf.to_vec();
        ours.write_blocking(&ns, first, buf)?;
        let read = theirs.read_blocking(&ns, first, theirs.alloc(len)?)?;
        ensure!(read[..] == expected[..], "{len} bytes differ");
    }
    Ok(())
}

#[test]
fn a_secondary_has_queues_in_memory_of_its_own() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    ensure!(controller.identify().serial_number() == rig.attached.identify().serial_number());
    ensure!(controller.max_transfer() == rig.attached.max_transfer());
    for round in 0..4 {
        exchange(&controller, &rig.attached, round)?;
        exchange(&rig.attached, &controller, round)?;
    }
    eventually("the return of the queues", || rig.leased() == 0)?;
    // Sleeping on interrupts works as well.
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    for n in 0..20 {
        qpair.submit(IoCommand::read(&ns, n, qpair.alloc(512)?), n).map_err(|error| error.error)?;
        let deadline = Instant::now() + SOON;
        while qpair.process_completions(0, |_| {})? == 0 {
            qpair.wait(SOON)?;
            ensure!(Instant::now() < deadline);
        }
    }
    drop(qpair);
    controller.detach()?;
    eventually("the end of the session", || rig.primary.processes().is_ok_and(|p| p.len() == 1))?;
    exchange(&rig.attached, &rig.attached, 0)
}

#[test]
fn a_reset_in_the_primary_ends_queues_and_they_come_back() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    for round in 0..5u8 {
        rig.target.faults().push(Rule::new(Fault::Drop).io());
        qpair
            .submit(IoCommand::read(&ns, 0, qpair.alloc(4096)?), round.into())
            .map_err(|error| error.error)?;
        std::thread::sleep(Duration::from_millis(20));
        if round % 2 == 0 {
            rig.attached.reset()?;
        } else {
            // Its own view of the controller: nobody else is concerned.
            controller.reset()?;
            ensure!(rig.attached.state() == ControllerState::Ready);
        }
        rig.target.faults().clear();
        let deadline = Instant::now() + SOON;
        let mut ended = 0;
        while ended == 0 {
            // An error is that of a queue pair whose controller is not up yet.
            let _ = qpair.process_completions(0, |completion| {
                assert_eq!(completion.result, Err(CommandError::Disconnected));
                assert_eq!(completion.buf.len(), 4096, "the buffer comes back");
                ended += 1;
            });
            ensure!(Instant::now() < deadline, "no end after reset {round}");
        }
        works_again(&mut qpair, &ns, round)?;
        eventually("the secondary's own view", || controller.state() == ControllerState::Ready)?;
    }
    drop(qpair);
    eventually("the return of the queue", || rig.leased() == 0)
}

#[test]
fn what_a_secondary_leaves_behind_is_cleared_away() -> Result<()> {
    let rig = Rig::new()?;
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let controller = rig.secondary.connect(&rig.trid, &options())?;
        let ns = controller.namespace(1).context("no namespace 1")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        seen.insert(qpair.qid());
        for n in 0..32 {
            qpair.submit(IoCommand::read(&ns, n, qpair.alloc(4096)?), n).map_err(|error| error.error)?;
        }
        // The controller goes before its queue pair.
        controller.fail();
        drop(controller);
        drop(qpair);
        eventually("the end of the session", || rig.primary.processes().is_ok_and(|p| p.len() == 1))?;
    }
    ensure!(seen.len() > 4, "identifiers are used in turn: {seen:?}");
    exchange(&rig.attached, &rig.attached, 0)
}

#[test]
fn the_end_of_the_primary_ends_every_command_once() -> Result<()> {
    let rig = Rig::new()?;
    let (controller, removed) = found(&rig.secondary, &rig.trid)?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    rig.target.faults().push(Rule::new(Fault::Drop).io().always());
    submit_ten(&mut qpair, &ns)?;
    let Rig { primary, attached, secondary, target, folder, trid, .. } = rig;
    drop(primary);
    // The primary has deleted the queue first.
    ten_end_once(&mut qpair)?;
    eventually("the remove callback", || removed.load(Ordering::Relaxed) == 1)?;
    ensure!(controller.is_failed());
    target.faults().clear();
    // The controller is still this process's: it is given up before another primary takes it over.
    attached.detach()?;
    let next = driver(&folder)?;
    ensure!(next.role() == Role::Primary);
    let again = next.connect(&trid, &options())?;
    let shared = secondary.connect(&trid, &options())?;
    exchange(&shared, &again, 3)
}

/// Queues are made and given up at whatever moment of a reset.
#[test]
fn queues_that_are_made_during_resets_are_not_lost() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let attached = &rig.attached;
    let done = AtomicBool::new(false);
    let made = std::thread::scope(|scope| -> Result<u32> {
        let resets = scope.spawn(|| {
            let result = (0..20).try_for_each(|n| {
                std::thread::sleep(Duration::from_millis(100 + 37 * n % 150));
                attached.reset()
            });
            done.store(true, Ordering::Release);
            result
        });
        let mut made = 0;
        while !done.load(Ordering::Acquire) {
            let options = IoQpairOptions::default().auto_reconnect(false);
            let Ok(mut qpair) = controller.alloc_io_qpair(&options) else { continue };
            let Some(ns) = controller.namespace(1) else { continue };
            made += 1;
            // It may be lost at any time, but reads nothing wrong.
            let mut buf = qpair.alloc(8192)?;
            buf.fill(made as u8);
            if qpair.write_blocking(&ns, 0, buf).is_ok()
                && let Ok(read) = qpair.read_blocking(&ns, 0, qpair.alloc(8192)?)
            {
                ensure!(read.iter().all(|&byte| byte == made as u8), "what was read is not what was written");
            }
        }
        resets.join().expect("no panic")?;
        Ok(made)
    })?;
    eventually("the controller's return", || controller.state() == ControllerState::Ready)?;
    eventually("I/O", || exchange(&controller, &rig.attached, 9).is_ok())?;
    eventually("the return of the queues", || rig.leased() == 0)?;
    ensure!(made > 20, "{made} queues were made");
    // All eight can be had at once.
    let all = (0..8).map(|_| controller.alloc_io_qpair(&IoQpairOptions::default()));
    let all = all.collect::<nvmf_core::Result<Vec<_>>>()?;
    ensure!(all.len() == 8);
    Ok(())
}

#[test]
fn shadow_doorbells_are_everybodys_in_each_life() -> Result<()> {
    let rig = Rig::with(&PciOptions::new().shadow_doorbells(true))?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    for round in 0..3 {
        // The secondary may not have heard of the reset yet.
        eventually("I/O", || exchange(&controller, &rig.attached, round).is_ok())?;
        exchange(&rig.attached, &controller, round)?;
        ensure!(rig.function.has_shadow_doorbells());
        rig.attached.reset()?;
    }
    Ok(())
}

/// Commands about queues that a secondary sends by itself.
#[test]
fn queues_are_made_only_where_a_secondary_has_memory() -> Result<()> {
    let rig = Rig::new()?;
    let controller = rig.secondary.connect(&rig.trid, &options())?;
    let qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let theirs = rig.attached.alloc_io_qpair(&IoQpairOptions::default())?;
    let (own, other) = (u32::from(qpair.qid()), u32::from(theirs.qid()));
    let attempt = |opcode, cdw10, cdw11, address| {
        let mut sqe = Sqe::admin(opcode, 0).with_cdw10(cdw10).with_cdw11(cdw11);
        sqe.dptr = nvmf_core::spec::data_ptr::DataPointer::prp(address, 0);
        controller.admin(sqe).wait().map(drop)
    };
    for (opcode, cdw10, cdw11, address) in [
        (AdminOpcode::DELETE_IO_SQ, other, 0, 0),
        (AdminOpcode::DELETE_IO_CQ, other, 0, 0),
        (AdminOpcode::DELETE_IO_SQ, 0, 0, 0),
        (AdminOpcode::CREATE_IO_CQ, other | 7 << 16, 1, 1 << 32),
        // Its own, twice; and at addresses that are not its own.
        (AdminOpcode::CREATE_IO_CQ, own | 7 << 16, 1, 1 << 32),
        (AdminOpcode::CREATE_IO_SQ, own | 7 << 16, 1 | own << 16, 0),
        (AdminOpcode::CREATE_IO_SQ, own | 7 << 16, 1 | own << 16, u64::MAX - 63),
    ] {
        let error = attempt(opcode, cdw10, cdw11, address).unwrap_err();
        ensure!(error.status().is_some(), "{opcode}: {error}");
    }
    drop(qpair);
    drop(theirs);
    ensure!(controller.state() == ControllerState::Ready);
    exchange(&controller, &rig.attached, 1)
}

#[test]
fn doorbells_that_cannot_be_mapped_are_said_to_be_so() -> Result<()> {
    let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20));
    let target = Loopback::builder().subsystem(subsystem).build()?;
    let folder = Folder::new()?;
    let _server = VfioUserServer::listen(&target.pci_function(NQN)?, folder.0.join("cntrl"))?;
    let trid: TransportId = format!("trtype:vfiouser traddr:{}", folder.0.join("cntrl").display()).parse()?;
    let by_message = VfioUserOptions { map_registers: false, ..VfioUserOptions::default() };
    let primary = driver_over(vfio_user::transport(by_message), &folder.0)?;
    let attached = primary.connect(&trid, &options())?;
    let error = driver(&folder)?.connect(&trid, &options()).unwrap_err();
    ensure!(error.to_string().contains("doorbells"), "{error}");
    ensure!(matches!(error.kind(), nvmf_core::ErrorKind::Unsupported(_)), "{error}");
    exchange(&attached, &attached, 0)
}

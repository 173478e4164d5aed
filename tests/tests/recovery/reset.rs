//! Resets: by the program, of the subsystem, because of what the controller says.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::spec::identify::Cns;
use nvmf_core::spec::{AdminOpcode, NvmOpcode, Sqe};
use nvmf_core::{CommandError, ControllerOptions, ControllerState, ErrorKind, IoQpairOptions, TransportType};
use nvmf_loopback::{Fault, Rule};
use nvmf_tests::load::Load;
use nvmf_tests::rig::eventually;

use crate::{Rig, each, options, persistent};

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

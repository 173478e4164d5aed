//! Commands that take too long.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nvmf_core::spec::{AdminOpcode, NvmOpcode, Status};
use nvmf_core::{
    CommandError, Controller, ControllerOptions, ControllerState, IoQpair, IoQpairOptions, TimedOut,
    TimeoutAction, TimeoutPolicy,
};
use nvmf_loopback::{Fault, Rule};
use nvmf_tests::rig::eventually;

use crate::{Rig, each, options};

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

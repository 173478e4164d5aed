//! A queue pair over the simulated RDMA fabric that is lost under load: every I/O completes once, and no buffer is out of hand.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::{CommandError, ControllerOptions, Driver, IoCommand, IoQpairOptions};
use nvmf_loopback::{DEFAULT_NQN, Fault, Loopback, Namespace, Rule};
use nvmf_transport_rdma::sim::{CmEvent, WorkStatus};
use nvmf_transport_rdma::sim::{Sim, SimConnection};
use nvmf_transport_rdma::{RdmaOptions, RdmaTransport};

/// I/Os outstanding at a time.
const DEPTH: u64 = 64;

struct Lab {
    sim: Sim,
    target: Loopback,
    driver: Driver,
    options: ControllerOptions,
}

impl Lab {
    fn new() -> Result<Self> {
        Self::with_io_timeout(Duration::from_secs(60))
    }

    fn with_io_timeout(timeout: Duration) -> Result<Self> {
        let sim = Sim::new();
        let target = Loopback::builder()
            .namespace(Namespace::memory(16 << 20).block_size(512))
            .listen_rdma(&sim, "192.0.2.1:4420")
            .build()?;
        let rdma = RdmaOptions::default().rnr_retry_count(1);
        let transport = RdmaTransport::with_provider(sim.clone()).with_options(rdma);
        let driver = Driver::builder().transport(transport).build();
        let mut options = ControllerOptions::default();
        options.io_timeout = Some(timeout);
        Ok(Self { sim, target, driver, options })
    }

    /// The connection of the I/O queue.
    fn io(&self) -> Result<SimConnection> {
        self.sim.connections().into_iter().find(|c| c.qid() == 1).context("no I/O queue")
    }

    /// Keeps reads and writes going, does `harm` in the middle, and sees to it that every I/O ends once. Returns what the queue
    /// pair and the lost I/Os say.
    fn lose(&self, harm: impl FnOnce(&Self) -> Result<()>) -> Result<(String, CommandError)> {
        let trid = self.target.rdma_trid(DEFAULT_NQN)?.context("no listener")?;
        let controller = self.driver.connect(&trid, &self.options)?;
        let pool = controller.pool().clone();
        let ns = controller.namespace(1).context("no namespace 1")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let mut ended = Vec::new();
        let mut lost_as = None;
        let mut harm = Some(harm);
        let until = Instant::now() + Duration::from_secs(100);
        let error = loop {
            while qpair.outstanding() < DEPTH as usize {
                let n = ended.len() as u64;
                // Small ones go with their capsules, large ones are fetched and stored by the controller.
                let len = [512, 16_384, 131_072][n as usize % 3];
                let lba = n % 64 * 256;
                let buf = qpair.alloc(len)?;
                let command = match n % 2 {
                    0 => IoCommand::read(&ns, lba, buf),
                    _ => IoCommand::write(&ns, lba, buf),
                };
                ended.push(0u32);
                if qpair.submit(command, n).is_err() {
                    ended.pop();
                    break;
                }
            }
            if ended.len() as u64 > 3 * DEPTH
                && let Some(harm) = harm.take()
            {
                harm(self)?;
            }
            let polled = qpair.process_completions(7, |done| {
                ended[done.user_data as usize] += 1;
                if let Err(error) = done.result {
                    lost_as.get_or_insert(error);
                }
            });
            match polled {
                Ok(_) => ensure!(Instant::now() < until, "the queue pair is not lost"),
                Err(error) => break error,
            }
        };
        ensure!(ended.iter().all(|&times| times == 1), "some I/O did not end exactly once");
        drop(qpair);
        let outstanding = pool.stats().outstanding;
        drop(controller);
        ensure!(outstanding <= 1, "{outstanding} buffers are not back");
        Ok((error.to_string(), lost_as.context("no I/O was lost")?))
    }

    /// After whatever happened, a new connection works.
    fn works(&self) -> Result<()> {
        let trid = self.target.rdma_trid(DEFAULT_NQN)?.context("no listener")?;
        let controller = self.driver.connect(&trid, &self.options)?;
        let ns = controller.namespace(1).context("no namespace 1")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        let buf = qpair.alloc(4096)?;
        qpair.read_blocking(&ns, 0, buf)?;
        Ok(())
    }
}

fn says((error, lost_as): (String, CommandError), words: &str) -> Result<()> {
    ensure!(error.contains(words), "no {words:?} in: {error}");
    ensure!(lost_as == CommandError::Disconnected, "{lost_as:?}");
    Ok(())
}

#[test]
fn a_failed_queue_pair() -> Result<()> {
    for (status, words) in [
        (Some(WorkStatus::RETRY_EXCEEDED), "transport retries exceeded"),
        (Some(WorkStatus::RNR_RETRY_EXCEEDED), "RNR retries exceeded"),
        (None, "flushed its work"),
    ] {
        let lab = Lab::new()?;
        says(
            lab.lose(|lab| {
                lab.io()?.fail(status);
                Ok(())
            })?,
            words,
        )?;
        lab.works()?;
    }
    Ok(())
}

#[test]
fn a_controller_that_disconnects() -> Result<()> {
    let lab = Lab::new()?;
    says(
        lab.lose(|lab| {
            lab.io()?.event(CmEvent::Disconnected);
            Ok(())
        })?,
        "the controller ended the connection",
    )?;
    let lab = Lab::new()?;
    lab.lose(|lab| {
        lab.target.disconnect_all();
        Ok(())
    })?;
    lab.works()
}

#[test]
fn a_device_that_is_removed() -> Result<()> {
    let lab = Lab::new()?;
    says(
        lab.lose(|lab| {
            lab.sim.remove_device();
            Ok(())
        })?,
        "sim0 was removed",
    )?;
    lab.works()
}

#[test]
fn work_that_is_never_flushed() -> Result<()> {
    let lab = Lab::new()?;
    let result = lab.lose(|lab| {
        let io = lab.io()?;
        io.withhold_flush();
        io.event(CmEvent::Disconnected);
        Ok(())
    })?;
    says(result, "the controller ended the connection")?;
    lab.works()
}

#[test]
fn completions_that_are_lost() -> Result<()> {
    let lab = Lab::with_io_timeout(Duration::from_secs(5))?;
    let (error, lost_as) = lab.lose(|lab| {
        lab.io()?.lose_completions(true);
        Ok(())
    })?;
    ensure!(error.contains("waiting for the completion of a command"), "{error}");
    ensure!(lost_as == CommandError::TimedOut, "{lost_as:?}");
    lab.works()
}

#[test]
fn a_controller_that_stops_taking_commands() -> Result<()> {
    let lab = Lab::with_io_timeout(Duration::from_secs(5))?;
    let (_, lost_as) = lab.lose(|lab| {
        lab.io()?.stall(true);
        Ok(())
    })?;
    ensure!(lost_as == CommandError::TimedOut, "{lost_as:?}");
    lab.works()
}

#[test]
fn a_controller_that_answers_what_it_was_not_asked() -> Result<()> {
    for fault in [Fault::WrongCid, Fault::DuplicateCompletion] {
        let lab = Lab::new()?;
        let result = lab.lose(|lab| {
            lab.target.faults().push(Rule::new(fault).io());
            Ok(())
        })?;
        says(result, "which is not outstanding")?;
        lab.works()?;
    }
    Ok(())
}

#[test]
fn a_response_that_invalidates_a_key() -> Result<()> {
    let lab = Lab::new()?;
    let (error, _) = lab.lose(|lab| {
        // The response to a command identifier nobody uses, with a key nobody offered.
        let mut response = [0u8; 16];
        response[12..14].copy_from_slice(&[0xff, 0xff]);
        lab.io()?.inject(&response, Some(0x1234)).context("no receive is posted")
    })?;
    ensure!(error.contains("broke the protocol"), "{error}");
    lab.works()
}

#[test]
fn reordered_completions_do_no_harm() -> Result<()> {
    let lab = Lab::new()?;
    let trid = lab.target.rdma_trid(DEFAULT_NQN)?.context("no listener")?;
    let controller = lab.driver.connect(&trid, &lab.options)?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let io = lab.io()?;
    for round in 0..200u64 {
        io.hold_sends(true);
        for n in 0..16u64 {
            let mut buf = qpair.alloc(512)?;
            buf.fill(round as u8);
            qpair.submit(IoCommand::write(&ns, n, buf), n)?;
        }
        let mut ended = 0;
        for _ in 0..10 {
            ended += qpair.process_completions(0, |_| {})?;
        }
        ensure!(ended == 0, "a write ended before its SEND");
        io.hold_sends(false);
        let until = Instant::now() + Duration::from_secs(30);
        while ended < 16 {
            ended += qpair.process_completions(0, |done| assert!(done.result.is_ok()))?;
            ensure!(Instant::now() < until);
        }
    }
    Ok(())
}

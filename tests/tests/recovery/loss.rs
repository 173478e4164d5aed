//! Connections that are lost, targets that go away, and come back or do not.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::future::{AsyncQpair, block_on};
use nvmf_core::spec::{AdminOpcode, NvmOpcode};
use nvmf_core::{
    Callbacks, CommandError, ControllerState, Driver, Error, ErrorKind, IoCommand, IoQpairOptions,
    TransportId,
};
use nvmf_loopback::{Fault, Loopback, Namespace, Rule, SubsystemBuilder};
use nvmf_tests::load::Load;
use nvmf_tests::rig::{SOON, eventually};
use nvmf_transport_tcp::TcpTransport;

use crate::{NQN, Rig, each, options, persistent, subsystem};

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
    listening(&SubsystemBuilder::new(NQN).serial(serial).namespace(namespace), address)
}

/// A target at an address that another one may just be giving up.
fn listening(subsystem: &SubsystemBuilder, address: &str) -> Result<Loopback> {
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
fn a_queue_pair_that_looks_when_connecting_again_was_refused_says_that_the_controller_was_lost() -> Result<()>
{
    let target = listening(&subsystem(), "127.0.0.1:0")?;
    let address = target.tcp_addrs()[0].to_string();
    let trid = target.tcp_trid(NQN)?.context("no listener")?;
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let controller = driver.connect(&trid, &persistent())?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    drop(target);
    let _other = listening(&SubsystemBuilder::new("nqn.2024-01.com.example:another"), &address)?;
    eventually("refused", || {
        Ok(matches!(controller.failure().as_ref().map(Error::kind), Some(ErrorKind::Command { .. })))
    })?;
    qpair.process_completions(0, |_| {})?;
    let failure = qpair.failure().context("no reason")?;
    ensure!(matches!(failure.kind(), ErrorKind::Disconnected(_)), "{failure}");
    ensure!(failure.to_string().contains("the controller was lost; "), "{failure}");
    ensure!(failure.to_string().contains("Fabrics Connect failed"), "{failure}");
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

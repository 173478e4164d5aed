//! Targets that refuse, stall, lie, or go away: what is attempted ends in a typed error within its deadline, buffers come
//! back, and the driver works on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::spec::{NvmOpcode, Status};
use nvmf_core::{
    Callbacks, CommandError, Controller, ControllerOptions, Driver, Error, ErrorKind, IoBuf, IoCommand,
    IoQpair, IoQpairOptions, TransportId,
};
use nvmf_loopback::{Fault, Loopback, Namespace, Rule, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2024-01.com.example:hostile";

/// Deadline of everything that is waited for; long enough for a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_millis(1500);
/// How long a failure may take in all.
const LIMIT: Duration = Duration::from_secs(6);

fn driver() -> Driver {
    Driver::builder().transport(TcpTransport::new()).build()
}

/// Short deadlines, no keep alive.
fn hasty() -> ControllerOptions {
    let mut options = ControllerOptions::default();
    options.connect_timeout = DEADLINE;
    options.admin_timeout = DEADLINE;
    options.io_timeout = Some(DEADLINE);
    options.attach_timeout = Duration::from_secs(10);
    options.keep_alive_timeout = Duration::ZERO;
    options
}

fn target() -> Result<Loopback> {
    let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).block_size(512));
    Ok(Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build()?)
}

fn trid_at(address: SocketAddr) -> Result<TransportId> {
    Ok(TransportId::tcp_socket(address)?.with_subnqn(NQN.parse()?))
}

/// The error of a connect that must fail, within `limit`, naming the address.
fn failure(
    driver: &Driver,
    trid: &TransportId,
    options: &ControllerOptions,
    limit: Duration,
) -> Result<Error> {
    let start = Instant::now();
    let Err(error) = driver.connect(trid, options) else { bail!("it connected to {trid}") };
    let took = start.elapsed();
    ensure!(took < limit, "it took {took:?}: {error}");
    let text = error.to_string();
    ensure!(!text.contains('\n'), "more than one line: {text}");
    ensure!(text.contains(trid.traddr()), "the address is missing in: {text}");
    Ok(error)
}

/// A listener that treats every connection with `serve`.
fn fake(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten().take(10_000) {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

#[test]
fn a_refused_connection_says_so() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    drop(listener);
    let error = failure(&driver(), &trid_at(address)?, &hasty(), LIMIT)?;
    ensure!(error.to_string().contains("refused"), "{error}");
    Ok(())
}

#[test]
fn a_host_that_does_not_answer_ends_at_the_deadline() -> Result<()> {
    // A listener whose backlog is full drops further connection requests, as an unroutable host does.
    let listener = socket_with_full_backlog()?;
    let error = failure(&driver(), &trid_at(listener.0)?, &hasty(), LIMIT)?;
    ensure!(error.is_timeout(), "{error}");
    Ok(())
}

/// A listening address that accepts no further connections, and what keeps it so.
fn socket_with_full_backlog() -> Result<(SocketAddr, TcpListener, Vec<TcpStream>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut held = Vec::new();
    // The standard library asks for a backlog of at most 4096.
    for _ in 0..5000 {
        match TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            Ok(stream) => held.push(stream),
            Err(_) => return Ok((address, listener, held)),
        }
    }
    bail!("the backlog did not fill up")
}

#[test]
fn a_silent_target_ends_at_the_deadline() -> Result<()> {
    let address = fake(|stream| {
        std::thread::sleep(LIMIT * 2);
        drop(stream);
    })?;
    let error = failure(&driver(), &trid_at(address)?, &hasty(), LIMIT)?;
    ensure!(error.is_timeout() && error.to_string().contains("ICResp"), "{error}");
    Ok(())
}

#[test]
fn garbage_is_refused() -> Result<()> {
    for garbage in
        [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 4096], &[0; 4096], b"SSH-2.0-OpenSSH_9.2\r\n"]
    {
        let address = fake(move |mut stream| {
            let _ = stream.write_all(garbage);
            let _ = stream.read(&mut [0; 4096]);
        })?;
        let error = failure(&driver(), &trid_at(address)?, &hasty(), LIMIT)?;
        ensure!(matches!(error.kind(), ErrorKind::Pdu { .. }), "{error:?}");
    }
    Ok(())
}

#[test]
fn an_unknown_subsystem_is_named_as_the_cause() -> Result<()> {
    let target = target()?;
    let trid = target.tcp_trid("nqn.2024-01.com.example:nobody")?.context("no listener")?;
    let error = failure(&driver(), &trid, &hasty(), LIMIT)?;
    ensure!(error.status().is_some_and(|s| s.is(Status::CONNECT_INVALID_PARAMETERS)), "{error:?}");
    ensure!(error.to_string().contains("subsystem NQN"), "{error}");
    Ok(())
}

#[test]
fn a_name_nobody_resolves_is_an_error() -> Result<()> {
    let trid: TransportId = format!("trtype:tcp traddr:nvmf.invalid trsvcid:4420 subnqn:{NQN}").parse()?;
    let mut options = hasty();
    options.connect_timeout = Duration::from_secs(5);
    failure(&driver(), &trid, &options, Duration::from_secs(8))?;
    Ok(())
}

/// Relays one direction until `limit` bytes have passed or a side closes; then closes both ways.
fn relay(mut from: TcpStream, mut to: TcpStream, mut limit: usize) {
    let mut buf = [0; 16 * 1024];
    while limit > 0 {
        let n = match from.read(&mut buf) {
            Ok(0) | Err(_) => break,
            Ok(n) => n.min(limit),
        };
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
        limit -= n;
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Reads and writes a little; what can be expected of any attached controller.
fn session(driver: &Driver, trid: &TransportId) -> Result<(), Error> {
    let controller = driver.connect(trid, &hasty())?;
    let ns = controller.namespace(1).ok_or_else(|| Error::api_misuse("no namespace 1"))?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let buf = qpair.alloc(20_480)?;
    let buf = qpair.write_blocking(&ns, 0, buf)?;
    qpair.read_blocking(&ns, 0, buf)?;
    drop(qpair);
    controller.detach()
}

#[test]
fn a_target_may_close_at_any_byte() -> Result<()> {
    let target = target()?;
    let upstream = target.tcp_addrs()[0];
    let driver = driver();
    let finished = AtomicBool::new(false);
    // Each connection is closed both ways after so many bytes from the target; the step is coprime to the sizes of PDUs.
    let mut cut = 0;
    while !finished.load(Ordering::Relaxed) {
        let address = fake(move |downstream| {
            let Ok(up) = TcpStream::connect(upstream) else { return };
            let (Ok(down2), Ok(up2)) = (downstream.try_clone(), up.try_clone()) else { return };
            let back = std::thread::spawn(move || relay(up2, down2, cut));
            relay(downstream, up, usize::MAX);
            let _ = back.join();
        })?;
        let start = Instant::now();
        match session(&driver, &trid_at(address)?) {
            Ok(()) => finished.store(true, Ordering::Relaxed),
            Err(error) => {
                ensure!(!error.to_string().contains('\n'), "{error}");
                ensure!(!matches!(error.kind(), ErrorKind::ApiMisuse(_)), "cut at {cut}: {error:?}");
            }
        }
        ensure!(start.elapsed() < LIMIT, "cut at {cut}: it took {:?}", start.elapsed());
        ensure!(driver.pool().stats().outstanding == 0, "cut at {cut}: a buffer is missing");
        // Every byte of the first exchanges, then in steps.
        cut += if cut < 200 { 1 } else { 397 };
        ensure!(cut < 400_000, "the session never finished");
    }
    ensure!(cut > 20_480, "the session finished although cut at {cut}");
    Ok(())
}

fn attached(target: &Loopback) -> Result<(Controller, IoQpair)> {
    let controller = driver().connect(&target.tcp_trid(NQN)?.context("no listener")?, &hasty())?;
    let qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    Ok((controller, qpair))
}

/// Submits `commands`, and gives each one's outcome; every buffer must come back.
fn outcomes(qpair: &mut IoQpair, commands: Vec<IoCommand>) -> Result<Vec<Result<u64, CommandError>>> {
    let count = commands.len();
    let mut results = vec![None; count];
    for (i, command) in commands.into_iter().enumerate() {
        qpair.submit(command, i as u64)?;
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut done = 0;
    while done < count {
        let polled = qpair.process_completions(0, |c| {
            let slot = &mut results[c.user_data as usize];
            assert!(slot.is_none(), "{} completed twice", c.user_data);
            assert!(!c.buf.is_empty(), "a buffer did not come back");
            *slot = Some(c.result);
            done += 1;
        })?;
        if polled == 0 {
            qpair.wait(Duration::from_millis(20))?;
        }
        ensure!(Instant::now() < deadline, "{} never completed", count - done);
    }
    Ok(results.into_iter().flatten().collect())
}

/// One lie on a read or write while others are outstanding: no lie is ever taken for success.
fn lie(
    fault: Fault,
    opcode: NvmOpcode,
    judge: impl Fn(&Result<u64, CommandError>, Option<&Error>) -> bool,
) -> Result<()> {
    let target = target()?;
    let (controller, mut qpair) = attached(&target)?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let len = if opcode == NvmOpcode::WRITE { 65_536 } else { 16_384 };
    let mut commands = Vec::new();
    for i in 0..8u64 {
        let buf = IoBuf::from(qpair.alloc(len)?);
        commands.push(match opcode {
            NvmOpcode::WRITE => IoCommand::write(&ns, i * 128, buf),
            _ => IoCommand::read(&ns, i * 128, buf),
        });
    }
    target.faults().push(Rule::new(fault.clone()).io().opcode(opcode.0).after(3));
    let results = outcomes(&mut qpair, commands)?;
    ensure!(target.faults().fired() == 1, "{fault:?} did not happen");
    let failed: Vec<_> = results.iter().filter(|r| r.is_err()).collect();
    ensure!(!failed.is_empty(), "{fault:?} was taken for success: {results:?}");
    for result in failed {
        ensure!(judge(result, qpair.failure()), "{fault:?} led to {result:?}, {:?}", qpair.failure());
    }
    drop(qpair);
    ensure!(controller.pool().stats().outstanding == 0, "a buffer is missing after {fault:?}");
    // The target and the controller are still good for another queue pair.
    let mut again = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    again.read_blocking(&ns, 0, again.alloc(512)?)?;
    Ok(())
}

fn disconnected(result: &Result<u64, CommandError>, failure: Option<&Error>) -> bool {
    *result == Err(CommandError::Disconnected)
        && failure.is_some_and(|e| matches!(e.kind(), ErrorKind::Pdu { .. } | ErrorKind::PeerMisbehaved(_)))
}

#[test]
fn short_data_with_success_is_no_success() -> Result<()> {
    lie(Fault::ShortData(4096), NvmOpcode::READ, disconnected)
}

#[test]
fn a_request_for_the_data_of_a_read_is_refused() -> Result<()> {
    lie(Fault::R2tOnRead, NvmOpcode::READ, disconnected)
}

#[test]
fn data_for_a_write_is_refused() -> Result<()> {
    lie(Fault::C2hOnWrite, NvmOpcode::WRITE, disconnected)
}

#[test]
fn a_wrong_data_offset_is_refused() -> Result<()> {
    lie(Fault::WrongDatao, NvmOpcode::READ, disconnected)?;
    lie(Fault::WrongDatao, NvmOpcode::WRITE, disconnected)
}

#[test]
fn a_completion_for_an_unknown_command_ends_the_connection() -> Result<()> {
    lie(Fault::WrongCid, NvmOpcode::WRITE, disconnected)
}

#[test]
fn raw_nonsense_in_the_middle_ends_the_connection() -> Result<()> {
    lie(Fault::Raw(vec![0x05, 0, 24, 0, 0xff, 0xff, 0xff, 0xff]), NvmOpcode::READ, disconnected)?;
    lie(Fault::Raw(vec![0xee; 100]), NvmOpcode::READ, disconnected)
}

#[test]
fn a_second_completion_ends_the_connection() -> Result<()> {
    let target = target()?;
    let (controller, mut qpair) = attached(&target)?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    target.faults().push(Rule::new(Fault::DuplicateCompletion).io().opcode(NvmOpcode::WRITE.0));
    // The first completion counts; the second shows while others are awaited, or when there is nothing to wait for.
    let buf = qpair.alloc(512)?;
    let results = outcomes(&mut qpair, vec![IoCommand::write(&ns, 0, buf)])?;
    ensure!(results == [Ok(0)], "{results:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while qpair.process_completions(0, |_| {}).is_ok() {
        ensure!(Instant::now() < deadline, "the second completion was taken in silence");
        qpair.wait(Duration::from_millis(10))?;
    }
    Ok(())
}

#[test]
fn a_terminated_connection_says_why() -> Result<()> {
    let fes = nvmf_core::spec::tcp::FatalErrorStatus::PDU_SEQUENCE_ERROR;
    lie(Fault::Terminate(fes, 7), NvmOpcode::READ, |_, failure| {
        failure.is_some_and(|e| matches!(e.kind(), ErrorKind::Terminated { fei: 7, .. }))
    })
}

#[test]
fn a_closed_connection_fails_everything_outstanding() -> Result<()> {
    lie(Fault::Disconnect, NvmOpcode::READ, |result, _| *result == Err(CommandError::Disconnected))
}

#[test]
fn an_unanswered_command_ends_at_its_deadline() -> Result<()> {
    let start = Instant::now();
    lie(Fault::Drop, NvmOpcode::READ, |result, failure| {
        *result == Err(CommandError::TimedOut) && failure.is_some_and(Error::is_timeout)
    })?;
    ensure!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    Ok(())
}

#[test]
fn an_error_status_fails_one_command_only() -> Result<()> {
    let target = target()?;
    let (controller, mut qpair) = attached(&target)?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let status = Status::UNRECOVERED_READ_ERROR;
    target.faults().push(Rule::new(Fault::CompleteWith(status)).io().opcode(NvmOpcode::READ.0).after(2));
    let mut commands = Vec::new();
    for i in 0..6 {
        commands.push(IoCommand::read(&ns, i, qpair.alloc(512)?));
    }
    let results = outcomes(&mut qpair, commands)?;
    ensure!(results.iter().filter(|r| r.is_ok()).count() == 5, "{results:?}");
    ensure!(results.iter().any(|r| matches!(r, Err(CommandError::Status(s)) if s.is(status))), "{results:?}");
    ensure!(qpair.failure().is_none());
    Ok(())
}

#[test]
fn digests_catch_damage_and_nothing_hides_it() -> Result<()> {
    for (fault, fatal) in [(Fault::BadDataDigest, false), (Fault::BadHeaderDigest, true)] {
        for c2h_success in [true, false] {
            let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(16 << 20).block_size(512));
            let tcp = nvmf_loopback::TcpOptions::new().c2h_success(c2h_success);
            let target =
                Loopback::builder().subsystem(subsystem).tcp(tcp).listen_tcp("127.0.0.1:0").build()?;
            let mut options = hasty();
            (options.header_digest, options.data_digest) = (true, true);
            let controller = driver().connect(&target.tcp_trid(NQN)?.context("no listener")?, &options)?;
            let ns = controller.namespace(1).context("no namespace 1")?;
            let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
            target.faults().push(Rule::new(fault.clone()).io().opcode(NvmOpcode::READ.0));
            let buf = qpair.alloc(65_536)?;
            let results = outcomes(&mut qpair, vec![IoCommand::read(&ns, 0, buf)])?;
            if fatal {
                ensure!(results == [Err(CommandError::Disconnected)], "{results:?}");
                let kind = qpair.failure().context("the queue pair lives")?.kind().clone();
                ensure!(matches!(kind, ErrorKind::Pdu { .. }), "{kind:?}");
            } else {
                let Err(CommandError::Status(status)) = results[0] else { bail!("{results:?}") };
                ensure!(status.is(Status::TRANSIENT_TRANSPORT_ERROR), "{status}");
                qpair.read_blocking(&ns, 0, qpair.alloc(512)?)?;
            }
        }
    }
    Ok(())
}

#[test]
fn admin_commands_that_are_not_answered_time_out() -> Result<()> {
    let target = target()?;
    let trid = target.tcp_trid(NQN)?.context("no listener")?;
    let opcode = nvmf_core::spec::AdminOpcode::IDENTIFY.0;
    target.faults().push(Rule::new(Fault::Drop).admin().opcode(opcode));
    let error = failure(&driver(), &trid, &hasty(), LIMIT)?;
    ensure!(error.is_timeout() && error.to_string().contains("dentify"), "{error}");
    // Short answers during initialisation, too.
    target.faults().push(Rule::new(Fault::ShortData(100)).admin().opcode(opcode));
    failure(&driver(), &trid, &hasty(), LIMIT)?;
    failure_free(&driver(), &trid)
}

fn failure_free(driver: &Driver, trid: &TransportId) -> Result<()> {
    Ok(session(driver, trid)?)
}

#[test]
fn a_lost_controller_is_reported_once() -> Result<()> {
    let target = target()?;
    let driver = driver();
    let lost = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counter = Arc::clone(&lost);
    let mut attached = Vec::new();
    let callbacks = Callbacks::new().options(hasty()).attach(|c| attached.push(c)).remove(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    driver.probe(Some(&target.tcp_trid(NQN)?.context("no listener")?), callbacks)?;
    ensure!(attached.len() == 1);
    drop(target);
    let deadline = Instant::now() + Duration::from_secs(5);
    while lost.load(Ordering::SeqCst) == 0 {
        ensure!(Instant::now() < deadline, "nothing was reported");
        std::thread::sleep(Duration::from_millis(10));
    }
    ensure!(attached[0].is_failed());
    let error = attached[0].identify_structure(nvmf_core::spec::identify::Cns::CONTROLLER, 0);
    ensure!(error.is_err() && lost.load(Ordering::SeqCst) == 1);
    Ok(())
}

#[test]
fn discovery_of_a_hostile_service_fails_with_a_reason() -> Result<()> {
    let address = fake(|mut stream| {
        let _ = stream.write_all(&[0x5a; 512]);
        let _ = stream.read(&mut [0; 4096]);
    })?;
    let trid = TransportId::tcp_socket(address)?;
    let start = Instant::now();
    let Err(error) = driver().probe(Some(&trid), Callbacks::new().options(hasty())) else {
        bail!("it worked")
    };
    ensure!(error.to_string().contains("127.0.0.1"), "{error}");
    ensure!(start.elapsed() < LIMIT);
    Ok(())
}

#[test]
fn a_slow_attach_keeps_the_controller_alive() -> Result<()> {
    // Every Identify takes longer than half the keep alive timeout, all of them together much longer than all of it.
    let mut subsystem = SubsystemBuilder::new(NQN);
    for _ in 0..3 {
        subsystem = subsystem.namespace(Namespace::memory(1 << 20));
    }
    let target = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build()?;
    let opcode = nvmf_core::spec::AdminOpcode::IDENTIFY.0;
    target.faults().push(Rule::new(Fault::Delay(Duration::from_millis(400))).admin().opcode(opcode).always());
    let mut options = hasty();
    options.keep_alive_timeout = Duration::from_millis(1000);
    let start = Instant::now();
    let controller = driver().connect(&target.tcp_trid(NQN)?.context("no listener")?, &options)?;
    ensure!(start.elapsed() > Duration::from_secs(2), "it took only {:?}", start.elapsed());
    ensure!(controller.namespaces().len() == 3 && !controller.is_failed());
    Ok(())
}

//! A scripted session whose connections are cut at chosen bytes, in both directions: every command ends exactly once,
//! within its deadline, and what every block holds can be explained.
//!
//! By default cuts are made at every byte of the first exchanges and then in steps. `NVMF_CUT_STEP=1` cuts at every byte there is;
//! that takes some minutes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{ControllerOptions, Driver, IoQpairOptions, TransportId};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder};
use nvmf_tests::history::History;
use nvmf_tests::proxy::{Direction, FaultProxy, Harm, Plan};
use nvmf_tests::session;
use nvmf_transport_tcp::TcpTransport;

const NQN: &str = "nqn.2024-01.com.example:cut";
/// Deadline of every wait within a session, and of the whole of it.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the target may still execute what it received.
const SETTLE: Duration = Duration::from_secs(5);

struct Bench {
    driver: Driver,
    target: Loopback,
    proxy: FaultProxy,
    options: ControllerOptions,
    history: History,
    version: u64,
}

impl Bench {
    fn new(digests: bool) -> Result<Self> {
        let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(1 << 20).block_size(512));
        let target = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build()?;
        let proxy = FaultProxy::start(target.tcp_addrs()[0])?;
        let mut options = ControllerOptions::default();
        options.connect_timeout = DEADLINE;
        options.admin_timeout = DEADLINE;
        options.io_timeout = Some(DEADLINE);
        options.attach_timeout = DEADLINE;
        options.keep_alive_timeout = Duration::ZERO;
        (options.header_digest, options.data_digest) = (digests, digests);
        let driver = Driver::builder().transport(TcpTransport::new()).build();
        Ok(Self { driver, target, proxy, options, history: History::new(512, SETTLE), version: 0 })
    }

    fn trid(address: SocketAddr) -> Result<TransportId> {
        Ok(TransportId::tcp_socket(address)?.with_subnqn(NQN.parse()?))
    }

    /// A session whose connections follow the plans.
    fn session(&mut self, plans: [Plan; 2]) -> Result<session::Ended> {
        self.version += 1;
        self.proxy.set_plans(plans);
        let trid = Self::trid(self.proxy.address())?;
        let began = Instant::now();
        let ended =
            session::run(&self.driver, &trid, &self.options, &mut self.history, self.version, DEADLINE)?;
        ensure!(began.elapsed() < DEADLINE, "it took {:?}", began.elapsed());
        if let Some(error) = &ended.error {
            ensure!(!error.to_string().contains('\n'), "more than one line: {error}");
        }
        ensure!(self.driver.pool().stats().outstanding == 0, "a buffer is missing");
        Ok(ended)
    }

    /// Bytes of a whole session: [admin, I/O][to the target, to the host].
    fn measure(&mut self) -> Result<[[u64; 2]; 2]> {
        // Faithful, but counted: an event beyond the end changes nothing.
        let trid = Self::trid(self.proxy.address())?;
        let mut passed = Vec::new();
        let controller = self.driver.connect(&trid, &self.options)?;
        let ns = controller.namespace(1).context("no namespace 1")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        session::check(&mut qpair, &ns, &mut self.history)?;
        passed.extend(self.proxy.passed());
        drop(qpair);
        controller.detach()?;
        ensure!(passed.len() == 2, "{} connections", passed.len());
        Ok([passed[0], passed[1]])
    }

    /// Reads everything back on a connection of its own and holds it against the history.
    fn check(&mut self) -> Result<()> {
        let trid = self.target.tcp_trid(NQN)?.context("no listener")?;
        let controller = self.driver.connect(&trid, &self.options)?;
        let ns = controller.namespace(1).context("no namespace 1")?;
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        session::check(&mut qpair, &ns, &mut self.history)?;
        drop(qpair);
        controller.detach()?;
        Ok(())
    }
}

fn step() -> Result<Option<u64>> {
    match std::env::var("NVMF_CUT_STEP") {
        Ok(text) => Ok(Some(text.parse::<u64>().context("NVMF_CUT_STEP is a number of bytes")?.max(1))),
        Err(_) => Ok(None),
    }
}

/// What the sessions that were cut in one stream came to.
struct Cuts {
    /// How often so many I/Os succeeded.
    outcomes: BTreeMap<usize, u64>,
    unknown_writes: u64,
    resolved_reads: u64,
}

fn cut_stream(
    harm: &Harm,
    digests: bool,
    default_step: u64,
    connection: usize,
    direction: Direction,
) -> Result<Cuts> {
    let mut bench = Bench::new(digests)?;
    let step = step()?;
    bench.measure()?;
    let mut outcomes: BTreeMap<usize, u64> = BTreeMap::new();
    let (mut at, mut whole) = (0, false);
    while !whole {
        let cut = Plan::faithful().at(direction, at, harm.clone());
        let plans = if connection == 0 { [cut, Plan::faithful()] } else { [Plan::faithful(), cut] };
        let ended = bench
            .session(plans)
            .with_context(|| format!("connection {connection}, {direction:?}, {harm:?} at byte {at}"))?;
        *outcomes.entry(ended.succeeded).or_default() += 1;
        ensure!(ended.error.is_some() || ended.succeeded == session::IOS, "at byte {at}: {ended:?}");
        // The session ended before its streams got there.
        whole = ended.error.is_none();
        at += match step {
            Some(step) => step,
            None if at < 160 => 1,
            None => default_step,
        };
        ensure!(at < 1 << 20, "the session never finished");
        if at % 64 == 0 {
            bench.check().with_context(|| format!("after byte {at}"))?;
        }
    }
    ensure!(at > 2000, "connection {connection} {direction:?} has only {at} bytes");
    bench.check()?;
    let (unknown_writes, resolved_reads) = (bench.history.unknown_writes(), bench.history.resolved_reads());
    Ok(Cuts { outcomes, unknown_writes, resolved_reads })
}

/// The streams are cut side by side, each against a target of its own.
fn cut_everywhere(harm: &Harm, digests: bool, default_step: u64) -> Result<()> {
    let (mut outcomes, mut unknown_writes, mut resolved_reads) = (BTreeMap::<usize, u64>::new(), 0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let streams = [0, 1].map(|c| [Direction::ToTarget, Direction::ToHost].map(|d| (c, d)));
        let cutters: Vec<_> = streams
            .into_iter()
            .flatten()
            .map(|(connection, direction)| {
                scope.spawn(move || cut_stream(harm, digests, default_step, connection, direction))
            })
            .collect();
        for cutter in cutters {
            let Ok(cuts) = cutter.join() else { bail!("a cutter panicked") };
            let cuts = cuts?;
            cuts.outcomes.into_iter().for_each(|(ios, count)| *outcomes.entry(ios).or_default() += count);
            unknown_writes += cuts.unknown_writes;
            resolved_reads += cuts.resolved_reads;
        }
        Ok(())
    })?;
    ensure!(outcomes.len() > 10, "the cuts fell in few places only: {outcomes:?}");
    println!(
        "{} sessions with {harm:?}; {unknown_writes} writes without an answer, {resolved_reads} reads told what became of one",
        outcomes.values().sum::<u64>(),
    );
    Ok(())
}

#[test]
fn closed() -> Result<()> {
    cut_everywhere(&Harm::Cut, false, 211)
}

#[test]
fn reset() -> Result<()> {
    cut_everywhere(&Harm::Reset, false, 523)
}

#[test]
fn closed_with_digests() -> Result<()> {
    cut_everywhere(&Harm::Cut, true, 509)
}

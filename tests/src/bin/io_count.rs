//! A fixed number of 4 KiB reads, for an instruction counter to look at. `cargo xtask bench counts` runs it under callgrind.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{
    Controller, ControllerOptions, DmaBuf, Driver, IoBuf, IoQpair, IoQpairOptions,
    Namespace as HostNamespace, Role, TransportId, TransportType,
};
use nvmf_loopback::{Loopback, Namespace, PciOptions, RdmaFrontOptions, SubsystemBuilder, VfioUserServer};
use nvmf_tests::program;
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserOptions, vfio_user};
use nvmf_transport_rdma::RdmaTransport;
use nvmf_transport_rdma::sim::Sim;
use nvmf_transport_tcp::TcpTransport;

const HELP: &str = "\
io_count batch TRANSPORT ROUNDS READS
                                   ROUNDS batches of READS reads (at most 32) over tcp, pcie, vfio-user or rdma, with a target in this
                                   process; over secondary-vfio-user or secondary-tcp in a secondary, whose primary is in this process too.
                                   Each batch is polled for when all of it has been answered, so that no poll finds nothing.
                                   What is to be counted is in the functions io_count::submit and io_count::complete.
";

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:31d5f8e2-93c3-4a2a-a9ed-2f6d0c1be5d4";
/// Bytes of a read.
const IO: usize = 4096;
/// Most reads of a batch: all their answers have to fit into a socket's receive buffer.
const MAX_BATCH: usize = 32;
/// Bytes before the data in a C2HData PDU.
const DATA_HEADER: usize = 24;
/// How long a target may take for a batch, under an instruction counter.
const DEADLINE: Duration = Duration::from_secs(30);
/// What a target needs, after it has counted a command, until the last answer is where it can be polled.
const SETTLE: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    program::by_words("io_count", HELP, |words| match words {
        ["batch", transport, rounds, reads] => {
            Some(number(rounds).and_then(|rounds| batches(transport, rounds, number(reads)?)))
        }
        _ => None,
    })
}

fn number(text: &str) -> Result<usize> {
    let number = text.parse().with_context(|| format!("{text}: not a number"))?;
    ensure!((1..=1_000_000).contains(&number), "{number}: not within 1..=1000000");
    Ok(number)
}

/// Nothing happens on its own while instructions are counted.
fn options() -> ControllerOptions {
    let mut options = program::options(false);
    options.background_admin = false;
    options.keep_alive_timeout = Duration::ZERO;
    // The answers to a whole batch wait in the socket.
    options.tcp_receive_buffer = Some(1 << 20);
    options
}

fn queue(depth: usize) -> IoQpairOptions {
    let depth = u16::try_from(depth).unwrap_or(u16::MAX);
    IoQpairOptions::default()
        .queue_size(depth.saturating_add(1))
        .queue_requests(depth.into())
        .delay_submit(true)
}

/// A controller of `target`, and what has to live as long as it.
fn attach(
    target: &std::sync::Arc<Loopback>,
    sim: &Sim,
    transport: &str,
) -> Result<(Controller, Box<dyn std::any::Any>)> {
    if let Some(transport) = transport.strip_prefix("secondary-") {
        return attach_secondary(target, transport);
    }
    let (driver, trid, rest): (Driver, TransportId, Box<dyn std::any::Any>) = match transport {
        "tcp" => {
            let (transport, trid) = over_tcp(target)?;
            (Driver::builder().transport(transport).build(), trid, Box::new(()))
        }
        "rdma" => {
            let transport = RdmaTransport::with_provider(sim.clone());
            let trid = target.rdma_trid(NQN)?.context("the target does not listen")?;
            (Driver::builder().transport(transport).build(), trid, Box::new(()))
        }
        "pcie" => {
            let device = target.pci_function_with(NQN, &PciOptions::new())?;
            let transport = PcieTransport::with_devices(TransportType::Pcie, move |_| {
                Ok(Box::new(device.open()?) as Box<dyn PciDevice>)
            });
            let trid = "trtype:PCIe traddr:0000:01:00.0".parse()?;
            (Driver::builder().transport(transport).build(), trid, Box::new(()))
        }
        "vfio-user" => {
            let (transport, trid, server) = over_vfio_user(target)?;
            (Driver::builder().transport(transport).build(), trid, Box::new(server))
        }
        other => bail!("{other}: not one of tcp, pcie, vfio-user, rdma, or secondary-…"),
    };
    let controller = driver.connect(&trid, &options())?;
    Ok((controller, Box::new((rest, driver))))
}

fn over_tcp(target: &Loopback) -> Result<(TcpTransport, TransportId)> {
    Ok((TcpTransport::new(), target.tcp_trid(NQN)?.context("the target does not listen")?))
}

fn over_vfio_user(target: &Loopback) -> Result<(PcieTransport, TransportId, VfioUserServer)> {
    let function = target.pci_function_with(NQN, &PciOptions::new())?;
    let path = std::env::temp_dir().join(format!("nvmf-io-count-{}", std::process::id()));
    let server = VfioUserServer::listen(&function, path)?;
    let trid = format!("trtype:vfiouser traddr:{}", server.path().display()).parse()?;
    Ok((vfio_user::transport(VfioUserOptions::default()), trid, server))
}

/// A controller in a secondary: admin commands go through a socket to the primary, I/O does not.
fn attach_secondary(target: &Loopback, transport: &str) -> Result<(Controller, Box<dyn std::any::Any>)> {
    let folder = std::env::temp_dir().join(format!("nvmf-io-count-{}.d", std::process::id()));
    let join = || {
        let user = vfio_user::transport(VfioUserOptions::default());
        let builder = Driver::builder().transport(TcpTransport::new()).transport(user);
        builder.shared("io-count").directory(&folder).build()
    };
    let (trid, server) = match transport {
        "tcp" => (over_tcp(target)?.1, None),
        "vfio-user" => over_vfio_user(target).map(|(_, trid, server)| (trid, Some(server)))?,
        other => bail!("{other}: a secondary is counted over tcp and vfio-user"),
    };
    let primary = join()?;
    // The primary's admin queue is processed while the secondary waits.
    let attached = primary.connect(&trid, &ControllerOptions::default())?;
    let secondary = join()?;
    ensure!(secondary.role() == Role::Secondary, "another process is the primary of {}", folder.display());
    let controller = secondary.connect(&trid, &options())?;
    Ok((controller, Box::new((secondary, attached, primary, server, Folder(folder)))))
}

/// Goes with the program.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn batches(transport: &str, rounds: usize, batch: usize) -> Result<()> {
    ensure!(batch <= MAX_BATCH, "a batch of {batch} reads is more than {MAX_BATCH}");
    let sim = Sim::new();
    let target = Loopback::builder()
        .subsystem(SubsystemBuilder::new(NQN).namespace(Namespace::memory(4 << 20).block_size(512)))
        .listen_tcp("127.0.0.1:0")
        .rdma(RdmaFrontOptions::new())
        .listen_rdma(&sim, "192.0.2.1:4420");
    let target = std::sync::Arc::new(target.build()?);
    let (controller, keep) = attach(&target, &sim, transport)?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&queue(batch))?;
    let mut bufs = buffers(&qpair, batch)?;
    let mut expected = target.stats().reads;
    let port =
        (transport == "tcp").then(|| target.tcp_addrs().first().map(|address| address.port())).flatten();
    let mut polls = 0;
    for _ in 0..rounds {
        submit(&mut qpair, &ns, &mut bufs)?;
        expected += batch as u64;
        let began = Instant::now();
        while target.stats().reads < expected {
            ensure!(began.elapsed() < DEADLINE, "the target has not executed a batch within {DEADLINE:?}");
            std::thread::sleep(SETTLE / 4);
        }
        std::thread::sleep(SETTLE);
        while let Some(port) = port
            && received(port)? < batch * (DATA_HEADER + IO)
        {
            ensure!(began.elapsed() < DEADLINE, "the target has not answered a batch within {DEADLINE:?}");
            std::thread::sleep(SETTLE / 4);
        }
        while bufs.len() < batch {
            polls += 1;
            complete(&mut qpair, &mut bufs)?;
            ensure!(began.elapsed() < DEADLINE, "a batch has not completed within {DEADLINE:?}");
        }
    }
    println!("{} reads, {polls} polls", rounds * batch);
    drop((bufs, qpair));
    controller.detach()?;
    drop(keep);
    Ok(())
}

/// Bytes that connections to a port have received and nobody has read.
fn received(port: u16) -> Result<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").context("/proc/net/tcp")?;
    let peer = format!(":{port:04X}");
    let mut bytes = 0;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // sl local_address rem_address st tx_queue:rx_queue, all hexadecimal
        if let [_, _, remote, _, queues, ..] = fields.as_slice()
            && remote.ends_with(&peer)
            && let Some((_, waiting)) = queues.split_once(':')
        {
            bytes += usize::from_str_radix(waiting, 16).context("/proc/net/tcp")?;
        }
    }
    Ok(bytes)
}

fn buffers(qpair: &IoQpair, count: usize) -> Result<Vec<IoBuf>> {
    (0..count).map(|_| Ok(qpair.alloc(IO).map(|buf: DmaBuf| IoBuf::from(buf))?)).collect()
}

/// Counted: commands are handed over, and sent.
#[inline(never)]
fn submit(qpair: &mut IoQpair, ns: &HostNamespace, bufs: &mut Vec<IoBuf>) -> Result<()> {
    for (slot, buf) in bufs.drain(..).enumerate() {
        let slba = black_box(slot as u64 * 8);
        qpair.read(ns, slba, buf, slot as u64).map_err(|refused| refused.error)?;
    }
    qpair.flush();
    Ok(())
}

/// Counted: what has completed is handed back.
#[inline(never)]
fn complete(qpair: &mut IoQpair, bufs: &mut Vec<IoBuf>) -> Result<()> {
    let mut failed = None;
    qpair.process_completions(0, |completion| {
        failed = failed.take().or(completion.result.err());
        bufs.push(completion.buf);
    })?;
    match failed {
        None => Ok(()),
        Some(error) => bail!("a read failed: {error}"),
    }
}

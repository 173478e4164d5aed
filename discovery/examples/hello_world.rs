//! Writes a greeting to a namespace and reads it back, over NVMe/TCP.
//!
//! `cargo run --example hello_world` talks to an embedded subsystem; give a transport identifier to use another target. Block 0
//! of namespace 1 is overwritten.

use anyhow::{Context, Result};
use nvmf_core::{ControllerOptions, Driver, IoQpairOptions, TransportId};
use nvmf_loopback::{DEFAULT_NQN, Loopback, Namespace};
use nvmf_transport_tcp::TcpTransport;

fn main() -> Result<()> {
    // Keeps the embedded target alive, if it is used.
    let mut target = None;
    let trid: TransportId = match std::env::args().nth(1) {
        Some(trid) => trid.parse()?,
        None => {
            let loopback = target.insert(
                Loopback::builder()
                    .namespace(Namespace::memory(16 << 20))
                    .listen_tcp("127.0.0.1:0")
                    .build()?,
            );
            loopback.tcp_trid(DEFAULT_NQN)?.context("the target does not listen")?
        }
    };

    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let controller = driver.connect(&trid, &ControllerOptions::default())?;
    println!("attached {trid}");
    for ns in controller.namespaces() {
        println!("  namespace {}: {} blocks of {} bytes", ns.nsid(), ns.blocks(), ns.block_size());
    }

    let ns = controller.namespace(1).context("no namespace 1")?;
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    let mut buf = qpair.alloc(ns.extended_block_size() as usize)?;
    buf[..14].copy_from_slice(b"Hello, world!\n");
    // The buffer moves into the queue pair and comes back when the command is done.
    let buf = qpair.write_blocking(&ns, 0, buf)?;
    drop(buf);
    let buf = qpair.alloc(ns.extended_block_size() as usize)?;
    let buf = qpair.read_blocking(&ns, 0, buf)?;
    print!("{}", String::from_utf8_lossy(&buf[..14]));

    drop(qpair);
    controller.detach()?;
    drop(target);
    Ok(())
}

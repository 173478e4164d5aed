//! Discovers and attaches every NVM subsystem of a discovery service, many at once, from one thread that never blocks.

use std::time::Duration;

use anyhow::{Context, Result};
use nvmf_core::{Callbacks, Driver, Nqn};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder};
use nvmf_transport_tcp::TcpTransport;

fn main() -> Result<()> {
    let mut builder = Loopback::builder().listen_tcp("127.0.0.1:0");
    for i in 0..8 {
        let nqn = format!("nqn.2024-01.com.example:disk{i}");
        builder = builder.subsystem(SubsystemBuilder::new(&nqn).namespace(Namespace::memory(1 << 20)));
    }
    let target = builder.build()?;

    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let mut attached = Vec::new();
    let callbacks = Callbacks::new()
        .probe(|trid, options| {
            options.num_io_queues = 4;
            println!("found    {trid}");
            true
        })
        .attach(|controller| attached.push(controller))
        .attach_fail(|trid, error| eprintln!("failed   {trid}: {error}"))
        .remove(|trid| eprintln!("lost     {trid}"));
    let discovery = target.tcp_trid(Nqn::DISCOVERY)?.context("the target does not listen")?;
    let mut probe = driver.probe_async(Some(&discovery), callbacks)?;
    while !probe.poll()? {
        // An event loop would watch `probe.event_sources()` here and do other work.
        probe.wait(Duration::from_millis(10))?;
    }
    drop(probe);
    for controller in attached {
        let names: Vec<u32> = controller.namespaces().iter().map(nvmf_core::Namespace::nsid).collect();
        println!(
            "attached {} (controller {}), namespaces {names:?}",
            controller.subnqn(),
            controller.cntlid()
        );
        controller.detach()?;
    }
    Ok(())
}

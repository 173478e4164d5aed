//! Attaches every NVM subsystem that a discovery controller names, and lets go of those it names no more, until the standard input
//! ends: `cargo run --example auto_attach nvme+tcp://192.0.2.1:8009`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nvmf_core::{Controller, ControllerOptions, Driver, TransportId};
use nvmf_discovery::{DiscoveryMonitor, MonitorEvent, MonitorOptions};

fn main() -> anyhow::Result<()> {
    let Some(trid) = std::env::args().nth(1) else { anyhow::bail!("usage: auto_attach TRID") };
    let trid: TransportId = trid.parse()?;
    let driver = Driver::builder().transport(nvmf_transport_tcp::TcpTransport::new()).build();
    let monitor = DiscoveryMonitor::new(driver.clone(), MonitorOptions::default());
    monitor.watch(&trid)?;

    let end = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&end);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.store(true, Ordering::Release);
    });

    let mut options = ControllerOptions::default();
    options.num_io_queues = 1;
    // A controller that is lost is connected again until the log says that it is gone.
    options.reconnect_delay = Some(Duration::from_secs(1));
    options.ctrl_loss_timeout = None;
    let mut attached: HashMap<TransportId, Controller> = HashMap::new();
    while !end.load(Ordering::Acquire) {
        match monitor.next(Duration::from_millis(100)) {
            Some(MonitorEvent::Added(path)) => match driver.connect(&path.trid, &options) {
                Ok(controller) => {
                    println!("attached {}", controller.subnqn());
                    attached.insert(path.trid, controller);
                }
                // Some paths lead nowhere from here.
                Err(error) => println!("not attached: {error}"),
            },
            Some(MonitorEvent::Removed(path)) => {
                if let Some(controller) = attached.remove(&path.trid) {
                    println!("detached {}", controller.subnqn());
                    let _ = controller.detach();
                }
            }
            Some(MonitorEvent::Disconnected { trid, error, .. }) => println!("{trid}: {error}"),
            _ => {}
        }
    }
    let mut names: Vec<String> = attached.values().map(Controller::subnqn).collect();
    names.sort();
    println!("at the end: {}", names.join(" "));
    for controller in attached.into_values() {
        let _ = controller.detach();
    }
    Ok(())
}

//! Attaches every NVM subsystem that a discovery controller names, and lets go of those it names no more, until the standard input
//! ends: `cargo run --example auto_attach nvme+tcp://192.0.2.1:8009`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvmf_core::{Controller, ControllerOptions, Driver, TransportId};
use nvmf_discovery::{DiscoveryMonitor, MonitorEvent, MonitorOptions};

/// The pause between two attempts to attach the same one.
const PAUSE: Duration = Duration::from_secs(1);

/// A path that there is.
enum Path {
    Attached(Controller),
    /// Not yet; the next attempt is due then.
    Due(Instant),
}

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
    options.connect_timeout = Duration::from_secs(2);
    // A controller that is lost is connected again until the log says that it is gone.
    options.reconnect_delay = Some(PAUSE);
    options.ctrl_loss_timeout = None;
    let mut paths: HashMap<TransportId, Path> = HashMap::new();
    while !end.load(Ordering::Acquire) {
        match monitor.next(Duration::from_millis(100)) {
            Some(MonitorEvent::Added(path)) => {
                paths.insert(path.trid, Path::Due(Instant::now()));
            }
            Some(MonitorEvent::Removed(path)) => {
                if let Some(Path::Attached(controller)) = paths.remove(&path.trid) {
                    println!("detached {}", controller.subnqn());
                    let _ = controller.detach();
                }
                // What else has changed comes first: it may be gone before it is attached.
                continue;
            }
            Some(MonitorEvent::Disconnected { trid, error, .. }) => println!("{trid}: {error}"),
            _ => {}
        }
        let due = paths.iter_mut().find(|(_, path)| matches!(path, Path::Due(at) if *at <= Instant::now()));
        let Some((trid, path)) = due else { continue };
        *path = match driver.connect(trid, &options) {
            Ok(controller) => {
                println!("attached {}", controller.subnqn());
                Path::Attached(controller)
            }
            // It may be on its way; some paths lead nowhere from here.
            Err(error) => {
                println!("not attached: {error}");
                Path::Due(Instant::now() + PAUSE)
            }
        };
    }
    let attached = |path| if let Path::Attached(controller) = path { Some(controller) } else { None };
    let attached: Vec<Controller> = paths.into_values().filter_map(attached).collect();
    let mut names: Vec<String> = attached.iter().map(Controller::subnqn).collect();
    names.sort();
    println!("at the end: {}", names.join(" "));
    for controller in attached {
        let _ = controller.detach();
    }
    Ok(())
}

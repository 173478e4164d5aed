//! The thread that watches one discovery controller.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvmf_core::spec::dim::DimTask;
use nvmf_core::spec::features::AsyncEventConfig;
use nvmf_core::{Controller, ControllerOptions, ControllerState, Error, Event, Result, TransportId};

use super::state::{Shared, Signal};
use crate::client::{check_support, connect, leave, read_until};
use crate::register::{is_central, register};

/// The first pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A connection that lasted so long was a good one: the pauses begin anew.
const GOOD: Duration = Duration::from_secs(5);
/// How often a log is read whose changes are not reported.
const POLL: Duration = Duration::from_secs(30);
/// How often a connection is looked at that says nothing.
const LOOK: Duration = Duration::from_millis(500);
/// How long taking this host out at the end may take.
const GOOD_BYE: Duration = Duration::from_secs(1);

pub(super) fn start(
    shared: Arc<Shared>,
    id: u64,
    trid: TransportId,
    signal: Arc<Signal>,
    options: Option<Arc<ControllerOptions>>,
) -> io::Result<JoinHandle<()>> {
    let mut controller_options = options.as_deref().unwrap_or(&shared.options.controller).clone();
    // What to do about a loss is decided here.
    let own_pause = controller_options.reconnect_delay.take().filter(|_| options.is_some());
    let max_pause = own_pause.unwrap_or(shared.options.max_backoff).max(FIRST_PAUSE);
    thread::Builder::new().name(format!("discovery-{id}")).spawn(move || {
        let mut pause = FIRST_PAUSE;
        while !signal.is_stopped() {
            let mut up = None;
            let Err(error) = session(&shared, id, &trid, &signal, &controller_options, &mut up) else {
                break;
            };
            if signal.is_stopped() {
                break;
            }
            if up.is_some_and(|since: Instant| since.elapsed() >= GOOD) {
                pause = FIRST_PAUSE;
            }
            tracing::info!(%error, %trid, ?pause, "the discovery controller cannot be watched now");
            shared.disconnected(id, &trid, error, pause);
            let until = Instant::now() + pause;
            while !signal.is_stopped() && Instant::now() < until {
                signal.wait(until.saturating_duration_since(Instant::now()));
            }
            pause = (pause * 2).min(max_pause);
        }
    })
}

/// A connection, from its beginning to its end: `Ok` when there shall be no other.
fn session(
    shared: &Arc<Shared>,
    id: u64,
    trid: &TransportId,
    signal: &Arc<Signal>,
    options: &ControllerOptions,
    up: &mut Option<Instant>,
) -> Result<()> {
    let stop = || signal.is_stopped();
    // By its own name, unless that is watched already: one connection has one watcher.
    let unique = |own: &TransportId| shared.also_known_as(id, own);
    let connected = connect(&shared.driver, trid, options, &unique, &stop)?;
    let Some(controller) = connected else { return Ok(()) };
    let result = watch(shared, id, trid, signal, &controller, up);
    // The callback keeps the signal, not the controller; both go here.
    controller.on_event(|_, _| {});
    leave(controller);
    result
}

fn watch(
    shared: &Arc<Shared>,
    id: u64,
    trid: &TransportId,
    signal: &Arc<Signal>,
    controller: &Controller,
    up: &mut Option<Instant>,
) -> Result<()> {
    let options = &shared.options;
    let wake = Arc::clone(signal);
    controller.on_event(move |_, event| {
        if matches!(event, Event::DiscoveryLog | Event::State(_)) {
            wake.notify();
        }
    });
    check_support(controller, options.log.ask)?;
    let registered = options.register && is_central(controller) && enter(shared, controller);
    let reports = controller.identify().oaes.get() & AsyncEventConfig::DISCOVERY_LOG.0 != 0;
    let refresh = options.refresh.or((!reports).then_some(POLL));
    let stop = || signal.is_stopped();
    let mut first = Some(controller.subnqn());
    loop {
        // What is reported from here on is not in the log that is read now, or is and is read once more.
        signal.clear();
        let Some(log) = read_until(controller, &options.log, &stop)? else { break };
        up.get_or_insert_with(Instant::now);
        Shared::log(shared, id, trid, &log, first.take());
        let due = refresh.map(|refresh| Instant::now() + refresh);
        loop {
            if signal.is_stopped() {
                if registered {
                    let _ = register(controller, DimTask::DEREGISTER, None, GOOD_BYE);
                }
                return Ok(());
            }
            if controller.state() != ControllerState::Ready {
                let lost = || Error::disconnected("the connection was lost").peer(trid);
                return Err(controller.failure().unwrap_or_else(lost));
            }
            let now = Instant::now();
            if due.is_some_and(|due| now >= due) {
                break;
            }
            let limit = due.map_or(LOOK, |due| due.saturating_duration_since(now).min(LOOK));
            if signal.wait(limit) && controller.state() == ControllerState::Ready && !signal.is_stopped() {
                break;
            }
        }
    }
    Ok(())
}

/// Enters this host. A discovery controller that does not take it can be watched all the same.
fn enter(shared: &Shared, controller: &Controller) -> bool {
    let name = shared.options.symbolic_name.as_deref();
    let timeout = shared.options.controller.admin_timeout;
    match register(controller, DimTask::REGISTER, name, timeout) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "this host could not be registered");
            false
        }
    }
}

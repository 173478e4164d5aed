//! `nvmf monitor`: stays connected to discovery controllers and tells what changes.

mod hook;
mod line;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvmf_core::TransportId;
use nvmf_discovery::{DiscoveryMonitor, MonitorOptions};
use signal_hook::consts::signal::{SIGINT, SIGTERM};

use self::hook::Hook;
use self::line::Line;
use super::discover::AskArgs;
use super::{Format, print};
use crate::connect::ConnectArgs;
use crate::fabrics::{ConfigArgs, FabricsArgs};
use crate::failure::Failure;
use crate::size::parse_seconds;

/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(100);
/// How long connections may take to end.
const END: Duration = Duration::from_secs(5);

/// Watch discovery controllers and print every path that comes or goes
///
/// Stays connected, with keep alive; reads the log again when the controller says that it has changed; connects again for ever, with
/// pauses that grow; follows referrals. Paths of a discovery controller that cannot be reached stay. Enters this host into central
/// discovery controllers. Ends on SIGINT and SIGTERM.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf monitor -t tcp -a 192.0.2.1                         until Ctrl-C
  nvmf monitor -t tcp -a 192.0.2.1 -o json                 a JSON object per line
  nvmf monitor --mdns                                      whoever announces itself on the link
  nvmf monitor -t tcp -a 192.0.2.1 --exec 'logger \"$NVMF_EVENT $NVMF_TRID\"'

The hook finds in its environment NVMF_EVENT (added, removed or changed), NVMF_TRID, NVMF_URI, NVMF_TRTYPE,
NVMF_TRADDR, NVMF_TRSVCID and NVMF_SUBNQN. Hooks run one after the other, in the order of the changes.")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    fabrics: FabricsArgs,

    #[command(flatten)]
    config: ConfigArgs,

    #[command(flatten)]
    ask: AskArgs,

    /// Another discovery controller to watch; may be given more than once
    #[arg(long, value_name = "TRID")]
    also: Vec<String>,

    /// Watch discovery controllers that announce themselves by multicast DNS (_nvme-disc._tcp)
    #[cfg(feature = "mdns")]
    #[arg(long)]
    mdns: bool,

    /// Listen for announcements on this interface only; may be given more than once
    #[cfg(feature = "mdns")]
    #[arg(long, value_name = "IFACE", requires = "mdns")]
    mdns_iface: Vec<String>,

    /// Do not follow referrals
    #[arg(long)]
    no_referrals: bool,

    /// Do not enter this host into central discovery controllers
    #[arg(long)]
    no_register: bool,

    /// Read the log that often even if no change is reported
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    refresh: Option<Duration>,

    /// Run this shell command for every path added, removed or changed
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,

    /// Kill a hook that runs for so long
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30", requires = "exec")]
    exec_timeout: Duration,

    /// End after so long
    #[arg(long = "for", value_name = "SECONDS", value_parser = parse_seconds)]
    duration: Option<Duration>,

    /// Output: text, or a JSON object per line
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: Format,
}

impl Args {
    fn options(&self) -> Result<MonitorOptions, Failure> {
        let mut options = MonitorOptions::default();
        let (keep_alive, defaults) = (options.controller.keep_alive_timeout, options.controller);
        options.controller = self.connect.options(1)?;
        options.controller.keep_alive_timeout = keep_alive;
        // The deadline of every step, but a discovery controller that does not answer is one to be left sooner.
        options.controller.admin_timeout = options.controller.admin_timeout.min(defaults.admin_timeout);
        options.controller.connect_timeout = options.controller.connect_timeout.min(defaults.connect_timeout);
        self.fabrics.apply(&mut options.controller)?;
        if let Some(delay) = self.fabrics.reconnect_delay {
            options.max_backoff = delay;
        }
        if self.no_referrals {
            options.max_depth = 0;
        }
        options.log.ask = self.ask.ask();
        options.register = !self.no_register;
        options.refresh = self.refresh;
        Ok(options)
    }

    #[cfg(feature = "mdns")]
    fn browses(&self) -> bool {
        self.mdns
    }

    #[cfg(not(feature = "mdns"))]
    fn browses(&self) -> bool {
        false
    }

    fn controllers(&self) -> Result<Vec<TransportId>, Failure> {
        let mut controllers = Vec::new();
        if !self.connect.is_empty() {
            controllers.push(self.connect.trid()?);
        }
        for text in &self.also {
            let trid = text.parse::<TransportId>();
            controllers.push(trid.map_err(|error| Failure::usage(format!("--also: {error}")))?);
        }
        if controllers.is_empty() && !self.browses() {
            // Those configured in /etc/nvme; without any it is said what to do.
            let seeds = self.config.seeds(&self.connect, &self.connect.options(1)?)?;
            controllers.extend(seeds.into_iter().map(|seed| seed.trid));
        }
        Ok(controllers)
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (controllers, options) = (args.controllers()?, args.options()?);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::failed(format!("setting up signals: {error}")))?;
    }
    let hook = match &args.exec {
        Some(command) => Some(Hook::start(command, args.exec_timeout)?),
        None => None,
    };
    let monitor = DiscoveryMonitor::new(args.connect.driver()?, options);
    for trid in &controllers {
        monitor.watch(trid).map_err(|error| Failure::failed(error.to_string()))?;
    }
    #[cfg(feature = "mdns")]
    let browser = match args.mdns {
        true => {
            let mut options = nvmf_discovery::MdnsOptions::default();
            options.interfaces.clone_from(&args.mdns_iface);
            Some(monitor.browse(&options).map_err(|error| Failure::failed(error.to_string()))?)
        }
        false => None,
    };
    let end = args.duration.map(|duration| Instant::now() + duration);
    let result = loop {
        if stop.load(Ordering::Acquire) || end.is_some_and(|end| Instant::now() >= end) {
            break Ok(());
        }
        let Some(event) = monitor.next(LOOK) else { continue };
        let line = Line::of(&event);
        if let Some(hook) = &hook {
            hook.tell(&event);
        }
        let text = match args.output_format {
            Format::Normal => line.text(),
            Format::Json => line.json()?,
        };
        if let Err(failure) = print(text) {
            break Err(failure);
        }
    };
    #[cfg(feature = "mdns")]
    drop(browser);
    monitor.stop(END);
    if let Some(hook) = hook {
        hook.finish();
    }
    result
}

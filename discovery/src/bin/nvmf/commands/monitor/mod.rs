//! `nvmf monitor`: stays connected to discovery controllers and tells what changes.

mod hook;
mod line;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvmf_core::{ControllerOptions, TransportId};
use nvmf_discovery::{DiscoveryMonitor, MonitorOptions, Seed};
use signal_hook::consts::signal::{SIGINT, SIGTERM};

use self::hook::Hook;
use self::line::Line;
use super::{Format, print};
use crate::fabrics::DiscoveryArgs;
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

The hook finds in its environment NVMF_EVENT (added, removed or changed), NVMF_TRID, NVMF_URI,
NVMF_TRTYPE, NVMF_TRADDR, NVMF_TRSVCID and NVMF_SUBNQN. Hooks run one after the other, in the
order of the changes. One that fails is told on standard error; at the end those left have 5 s.
Where they are slower than the changes, those that wait are merged (more than 256): the next hooks
then tell what differs in the end. So does the monitor itself, with the event merged, when nobody
reads what it prints.

-k, -c and the like are about the connections to discovery controllers, which are attempted for
ever: -c is the longest pause between two attempts (by default 10), -k 0 is the default of 30.
What is configured for a discovery controller goes before them.")]
pub(crate) struct Args {
    #[command(flatten)]
    discovery: DiscoveryArgs,

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

/// Deadlines of a command line are generous; a discovery controller that does not answer is one to be left sooner. A
/// connection that stays is kept alive, with nvme-cli's 30 s unless another time is set.
fn staying(mut options: ControllerOptions) -> ControllerOptions {
    let defaults = MonitorOptions::default().controller;
    options.admin_timeout = options.admin_timeout.min(defaults.admin_timeout);
    options.connect_timeout = options.connect_timeout.min(defaults.connect_timeout);
    if options.keep_alive_timeout.is_zero() {
        options.keep_alive_timeout = defaults.keep_alive_timeout;
    }
    options
}

impl Args {
    /// The options of every connection, as far as the command line says.
    fn base(&self) -> Result<ControllerOptions, Failure> {
        let mut base = self.discovery.controller_options()?;
        base.keep_alive_timeout = self.discovery.fabrics.keep_alive_tmo.unwrap_or_default();
        Ok(base)
    }

    fn options(&self) -> Result<MonitorOptions, Failure> {
        let mut options = MonitorOptions::default();
        options.controller = staying(self.base()?);
        if let Some(delay) = self.discovery.fabrics.reconnect_delay {
            options.max_backoff = delay;
        }
        if self.no_referrals {
            options.max_depth = 0;
        }
        options.log.ask = self.discovery.ask();
        options.register = !self.no_register;
        options.refresh = self.refresh;
        Ok(options)
    }

    /// Nothing would ever be heard on an interface that is not there.
    #[cfg(feature = "mdns")]
    fn check_interfaces(&self) -> Result<(), Failure> {
        let folder = std::path::Path::new("/sys/class/net");
        let is_there = |name: &String| !name.contains('/') && folder.join(name).exists();
        let Some(missing) = self.mdns_iface.iter().find(|name| !is_there(name)) else { return Ok(()) };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut known: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        known.sort();
        let known = known.join(", ");
        Err(Failure::usage(format!("--mdns-iface {missing}: there is no such interface; there are {known}")))
    }

    #[cfg(feature = "mdns")]
    fn browses(&self) -> bool {
        self.mdns
    }

    #[cfg(not(feature = "mdns"))]
    fn browses(&self) -> bool {
        false
    }

    /// Whom to watch from the beginning, and how to connect to them where that is configured.
    fn controllers(&self) -> Result<Vec<Seed>, Failure> {
        let mut controllers = Vec::new();
        if !self.discovery.connect.is_empty() {
            controllers.extend(self.discovery.seeds(&self.base()?)?);
        }
        for text in &self.also {
            let trid = text.parse::<TransportId>();
            controllers.push(trid.map_err(|error| Failure::usage(format!("--also: {error}")))?.into());
        }
        if controllers.is_empty() && (!self.browses() || self.discovery.names_a_file()) {
            // Those configured; without any it is said what to do.
            controllers.extend(self.discovery.seeds(&self.base()?)?);
        }
        Ok(controllers)
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let (controllers, options) = (args.controllers()?, args.options()?);
    #[cfg(feature = "mdns")]
    args.check_interfaces()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::failed(format!("setting up signals: {error}")))?;
    }
    let hook = match &args.exec {
        Some(command) => Some(Hook::start(command, args.exec_timeout)?),
        None => None,
    };
    let monitor = DiscoveryMonitor::new(args.discovery.connect.driver()?, options);
    for Seed { trid, options } in controllers {
        let watched = match options {
            Some(options) => monitor.watch_with(&trid, staying(options)),
            None => monitor.watch(&trid),
        };
        watched.map_err(|error| Failure::failed(error.to_string()))?;
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
        hook.finish(END);
    }
    result
}

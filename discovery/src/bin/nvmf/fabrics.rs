//! The rest of nvme-cli's connection options, so that its command lines work here as they are. What cannot be honoured is refused by
//! name, never ignored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nvmf_core::spec::discovery::DiscoveryLogAsk;
use nvmf_core::{ControllerOptions, Driver};
use nvmf_discovery::{DiscoverOptions, Seed, Walk, walk};

use crate::configured;
use crate::connect::ConnectArgs;
use crate::failure::Failure;
use crate::recovery::{Limit, parse_limit};
use crate::size::{parse_seconds, parse_seconds_or_none, parse_u16};

const QUEUES: &str = "Controllers";

/// Options of `nvme discover` and `nvme connect-all` that are not about addresses.
#[derive(Args, Clone, Debug)]
pub(crate) struct FabricsArgs {
    /// Keep alive timeout; 0 is off. By default off where a connection is for one reading, else 30
    #[arg(short = 'k', long, value_name = "SECONDS", value_parser = parse_seconds_or_none, help_heading = QUEUES)]
    pub(crate) keep_alive_tmo: Option<Duration>,

    /// Pause between attempts to connect again
    #[arg(short = 'c', long, value_name = "SECONDS", value_parser = parse_seconds, help_heading = QUEUES)]
    pub(crate) reconnect_delay: Option<Duration>,

    /// Give a lost controller up after so long; -1 is never
    #[arg(short = 'l', long, value_name = "SECONDS", value_parser = parse_limit, help_heading = QUEUES)]
    #[arg(allow_hyphen_values = true)]
    ctrl_loss_tmo: Option<Limit>,

    /// Fail I/O of a lost controller after so long; -1 is only when it is given up
    #[arg(short = 'F', long = "fast_io_fail_tmo", alias = "fast-io-fail-tmo", value_name = "SECONDS")]
    #[arg(value_parser = parse_limit, allow_hyphen_values = true, help_heading = QUEUES)]
    fast_io_fail_tmo: Option<Limit>,

    /// I/O queues of a controller; a discovery controller has none
    #[arg(short = 'i', long, value_name = "N", value_parser = parse_u16, help_heading = QUEUES)]
    nr_io_queues: Option<u16>,

    /// Entries of an I/O queue
    #[arg(short = 'Q', long, value_name = "ENTRIES", value_parser = parse_u16, help_heading = QUEUES)]
    queue_size: Option<u16>,

    /// A connection of one's own although there is one already: always so here
    #[arg(short = 'D', long, help_heading = QUEUES)]
    duplicate_connect: bool,

    /// Nothing about what is connected already: never said here
    #[arg(long, help_heading = QUEUES)]
    quiet: bool,

    // --- accepted, and true here anyway: there are no kernel connections to be used again, and no firmware tables are read
    #[arg(long, hide = true)]
    no_reuse: bool,
    #[arg(long, hide = true)]
    no_nbft: bool,

    // --- refused by `check`
    #[arg(short = 'S', long, hide = true)]
    dhchap_secret: Option<String>,
    #[arg(short = 'C', long, hide = true)]
    dhchap_ctrl_secret: Option<String>,
    #[arg(long, hide = true)]
    keyring: Option<String>,
    #[arg(long, alias = "tls_key", hide = true)]
    tls_key: Option<String>,
    #[arg(long, hide = true)]
    tls_key_identity: Option<String>,
    #[arg(long, hide = true)]
    tls: bool,
    #[arg(long, hide = true)]
    concat: bool,
    #[arg(short = 'W', long, hide = true)]
    nr_write_queues: Option<u16>,
    #[arg(short = 'P', long, hide = true)]
    nr_poll_queues: Option<u16>,
    #[arg(short = 'p', long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    persistent: Option<String>,
    #[arg(long, hide = true)]
    force: bool,
    #[arg(short = 'd', long, hide = true)]
    device: Option<String>,
    #[arg(short = 'O', long, hide = true)]
    dump_config: bool,
    #[arg(long, hide = true)]
    nbft: bool,
    #[arg(long, hide = true)]
    nbft_path: Option<String>,
    #[arg(long, hide = true)]
    context: Option<String>,
    #[arg(long, hide = true)]
    owner: Option<String>,
}

impl FabricsArgs {
    /// Refuses what cannot be honoured.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        const AUTHENTICATION: &str =
            "in-band authentication (DH-HMAC-CHAP) is not supported; the connection would go on without it";
        const TLS: &str = "TLS is not supported here; the connection would be in the clear";
        const KERNEL_QUEUES: &str =
            "it is about the kernel's I/O queues; a program in user space polls the queues it makes";
        const FIRMWARE: &str = "NVMe boot firmware tables (NBFT) are not read; give -t and -a";
        const LABEL: &str = "it labels connections of the kernel; those made here end with this program";
        let persistent = self.persistent.as_ref().is_some_and(|mode| mode != "no");
        let refused: [(&str, bool, &str); 16] = [
            ("--dhchap-secret", self.dhchap_secret.is_some(), AUTHENTICATION),
            ("--dhchap-ctrl-secret", self.dhchap_ctrl_secret.is_some(), AUTHENTICATION),
            ("--keyring", self.keyring.is_some(), TLS),
            ("--tls-key", self.tls_key.is_some(), TLS),
            ("--tls-key-identity", self.tls_key_identity.is_some(), TLS),
            ("--tls", self.tls, TLS),
            ("--concat", self.concat, TLS),
            ("--nr-write-queues", self.nr_write_queues.is_some_and(|n| n > 0), KERNEL_QUEUES),
            ("--nr-poll-queues", self.nr_poll_queues.is_some_and(|n| n > 0), KERNEL_QUEUES),
            (
                "--persistent",
                persistent || self.force,
                "a connection lasts as long as the program that made it; `nvmf monitor` keeps one and tells what changes",
            ),
            ("--device", self.device.is_some(), "it names a device of the kernel; give -t and -a"),
            ("--dump-config", self.dump_config, "`nvmf config show` prints what was read"),
            ("--nbft", self.nbft, FIRMWARE),
            ("--nbft-path", self.nbft_path.is_some(), FIRMWARE),
            ("--context", self.context.is_some(), LABEL),
            ("--owner", self.owner.is_some(), LABEL),
        ];
        match refused.iter().find(|(_, given, _)| *given) {
            Some((option, _, why)) => Err(Failure::usage(format!("{option}: {why}"))),
            None => Ok(()),
        }
    }

    /// Puts what can be honoured into the options.
    pub(crate) fn apply(&self, options: &mut ControllerOptions) -> Result<(), Failure> {
        self.check()?;
        if let Some(tmo) = self.keep_alive_tmo {
            options.keep_alive_timeout = tmo;
        }
        if let Some(delay) = self.reconnect_delay {
            options.reconnect_delay = Some(delay);
        }
        if let Some(limit) = self.ctrl_loss_tmo {
            options.ctrl_loss_timeout = limit.0;
        }
        if let Some(limit) = self.fast_io_fail_tmo {
            options.fast_io_fail_timeout = limit.0;
        }
        if let Some(queues) = self.nr_io_queues.filter(|queues| *queues > 0) {
            options.num_io_queues = queues;
        }
        if let Some(entries) = self.queue_size {
            if entries < 2 {
                return Err(Failure::usage("--queue-size: a queue has at least 2 entries"));
            }
            options.io_queue_size = entries;
        }
        Ok(())
    }
}

/// Which discovery controllers, how to connect to them, and what to ask of their logs.
#[derive(Args, Clone, Debug)]
pub(crate) struct DiscoveryArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,

    #[command(flatten)]
    pub(crate) fabrics: FabricsArgs,

    /// Without an address: ask the discovery controllers configured in this file instead of those in /etc/nvme; `none` reads
    /// no file
    #[arg(short = 'J', long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    ask: AskArgs,
}

/// What is asked of the log.
#[derive(clap::Args, Clone, Debug)]
struct AskArgs {
    /// Only entries of the port that is asked (PLEO)
    #[arg(long, alias = "pleo")]
    port_local: bool,

    /// Entries of all NVM subsystems, also of those that are not meant for this host (ALLSUBE)
    #[arg(long, alias = "allsube")]
    all_subsystems: bool,

    /// Extended entries (EXTDLPE); their attributes are in binary output only
    #[arg(long, alias = "extdlpe")]
    extended: bool,
}

impl AskArgs {
    fn ask(&self) -> DiscoveryLogAsk {
        let asks = [
            (self.port_local, DiscoveryLogAsk::PORT_LOCAL),
            (self.all_subsystems, DiscoveryLogAsk::ALL_SUBSYSTEMS),
            (self.extended, DiscoveryLogAsk::EXTENDED),
        ];
        let asked = asks.into_iter().filter(|(asked, _)| *asked);
        asked.fold(DiscoveryLogAsk::default(), |all, (_, ask)| all.union(ask))
    }
}

/// What is to be asked, and how.
pub(crate) struct Asking {
    pub(crate) driver: Driver,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) options: DiscoverOptions,
}

impl Asking {
    pub(crate) fn walk(&self) -> Walk {
        walk(&self.driver, &self.seeds, &self.options)
    }
}

impl DiscoveryArgs {
    pub(crate) fn ask(&self) -> DiscoveryLogAsk {
        self.ask.ask()
    }

    /// How to connect to discovery controllers, as far as the command line says.
    pub(crate) fn controller_options(&self) -> Result<ControllerOptions, Failure> {
        let mut options = self.connect.options(1)?;
        self.fabrics.apply(&mut options)?;
        Ok(options)
    }

    /// Whether a file is named that has to be read.
    pub(crate) fn names_a_file(&self) -> bool {
        self.config.as_deref().is_some_and(|path| path != Path::new("none"))
    }

    /// For asking them once.
    pub(crate) fn prepare(&self) -> Result<Asking, Failure> {
        let controller = self.controller_options()?;
        let seeds = self.seeds(&controller)?;
        let options = DiscoverOptions::new(controller).ask(self.ask());
        Ok(Asking { driver: self.connect.driver()?, seeds, options })
    }

    /// The discovery controller named, or those configured; the files go before `options`.
    pub(crate) fn seeds(&self, options: &ControllerOptions) -> Result<Vec<Seed>, Failure> {
        // As in nvme-cli.
        let file = self.config.as_deref().filter(|path| *path != Path::new("none"));
        match (self.connect.is_empty(), file) {
            (false, Some(_)) => Err(Failure::usage(
                "--config: the command line names a discovery controller already; give one of them",
            )),
            (false, None) => Ok(vec![Seed::from(self.connect.trid()?)]),
            (true, None) if self.config.is_some() => Err(configured::nobody()),
            (true, file) => {
                let configured = configured::discovery_controllers(file, options)?;
                Ok(configured
                    .into_iter()
                    .map(|(trid, options)| Seed { trid, options: Some(options) })
                    .collect())
            }
        }
    }

    /// What a walk comes to: the first failure, if there was one.
    pub(crate) fn outcome(&self, found: &Walk) -> Result<(), Failure> {
        match found.first_error() {
            None => Ok(()),
            Some(error) if self.connect.is_empty() => Err(Failure::attach(error)),
            Some(error) => Err(self.connect.discovery_failure(error)),
        }
    }
}

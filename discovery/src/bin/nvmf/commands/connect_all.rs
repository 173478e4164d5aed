//! `nvmf connect-all --dry-run`: what would be attached, and why, or why not.

use nvmf_core::spec::discovery::{DiscoveryLogEntry, TcpSecurityType, TransportTypeCode};
use nvmf_core::{Driver, TransportId};
use nvmf_discovery::{Asked, Verdict, Walk};
use serde::Serialize;

use super::{Format, print, print_json};
use crate::fabrics::DiscoveryArgs;
use crate::failure::Failure;

/// Say what connecting to everything a discovery controller names comes to
///
/// Referrals are followed, up to eight of them one after the other. For each entry of each log it is said what would be done with it, and
/// why.
///
/// Controllers attached in user space belong to the program that uses them and end with it, so that there is nothing to be
/// left connected: --dry-run has to be given. `nvmf monitor` keeps up with changes, and `nvmf list` attaches everything for a moment.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf connect-all --dry-run -t tcp -a 192.0.2.1
  nvmf connect-all --dry-run                           all that are configured in /etc/nvme
  nvmf connect-all --dry-run -t tcp -a 192.0.2.1 -o json | jq -r '.entries[] | select(.action == \"attach\").trid'")]
pub(crate) struct Args {
    #[command(flatten)]
    discovery: DiscoveryArgs,

    /// Attach nothing, only say what would be
    #[arg(long)]
    dry_run: bool,

    /// Output: text, or JSON
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: Format,
}

#[derive(Serialize)]
struct Plan {
    discovery: Vec<DiscoveryLine>,
    entries: Vec<EntryLine>,
}

#[derive(Serialize)]
struct DiscoveryLine {
    trid: String,
    subnqn: Option<String>,
    genctr: Option<u64>,
    referred_by: Option<usize>,
    error: Option<String>,
}

#[derive(Serialize)]
struct EntryLine {
    /// Index into the discovery controllers.
    discovery: usize,
    /// Index into its log.
    entry: usize,
    action: &'static str,
    reason: String,
    trid: Option<String>,
    subnqn: String,
    trtype: &'static str,
    traddr: String,
    trsvcid: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if !args.dry_run {
        return Err(Failure::usage(
            "connect-all: controllers attached in user space end with the program; --dry-run says what would be \
             attached, `nvmf monitor` keeps up with changes, and `nvme connect-all` connects the kernel",
        ));
    }
    let asking = args.discovery.prepare()?;
    let found = asking.walk();
    let plan = Plan::new(&found, &asking.driver);
    match args.output_format {
        Format::Json => print_json(&plan)?,
        Format::Normal => print(plan.text())?,
    }
    args.discovery.outcome(&found)
}

impl Plan {
    fn new(found: &Walk, driver: &Driver) -> Self {
        let mut plan = Self { discovery: Vec::new(), entries: Vec::new() };
        for (nth, asked) in found.controllers.iter().enumerate() {
            plan.discovery.push(DiscoveryLine::new(asked));
            let Ok(discovery) = &asked.result else { continue };
            for (index, (entry, verdict)) in discovery.log.records.iter().zip(&asked.entries).enumerate() {
                let (action, reason, trid) = judge(entry, verdict, driver);
                plan.entries.push(EntryLine {
                    discovery: nth,
                    entry: index,
                    action,
                    reason,
                    trid: trid.map(ToString::to_string),
                    subnqn: entry.subnqn(),
                    trtype: entry.trtype.word(),
                    traddr: entry.traddr(),
                    trsvcid: entry.trsvcid(),
                });
            }
        }
        plan
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (nth, discovery) in self.discovery.iter().enumerate() {
            let from = discovery.referred_by.map(|by| format!(", referred to by {by}")).unwrap_or_default();
            let state = match (&discovery.error, discovery.genctr) {
                (Some(error), _) => format!("failed: {error}"),
                (None, genctr) => format!("generation {}", genctr.unwrap_or_default()),
            };
            text.push_str(&format!("discovery {nth}: {}{from}: {state}\n", discovery.trid));
            for line in self.entries.iter().filter(|line| line.discovery == nth) {
                let what = line.trid.clone().unwrap_or_else(|| {
                    format!("{} {} {} {}", line.trtype, line.traddr, line.trsvcid, line.subnqn)
                });
                text.push_str(&format!("  {:6} {what}: {}\n", line.action, line.reason));
            }
        }
        let count = |action| self.entries.iter().filter(|line| line.action == action).count();
        text.push_str(&format!("{} to attach, {} left out\n", count("attach"), count("skip")));
        text
    }
}

impl DiscoveryLine {
    fn new(asked: &Asked) -> Self {
        let result = asked.result.as_ref();
        Self {
            trid: result.map_or(&asked.trid, |discovery| &discovery.trid).to_string(),
            subnqn: result.ok().map(|discovery| discovery.subnqn.clone()),
            genctr: result.ok().map(|discovery| discovery.log.genctr),
            referred_by: asked.referred_by,
            error: result.err().map(ToString::to_string),
        }
    }
}

/// What is to be done with an entry, why, and what it comes to.
fn judge<'a>(
    entry: &DiscoveryLogEntry,
    verdict: &'a Verdict,
    driver: &Driver,
) -> (&'static str, String, Option<&'a TransportId>) {
    let tls = entry.trtype == TransportTypeCode::TCP
        && (entry.treq.secure_channel_required() || entry.tcp_security() == TcpSecurityType::TLS13)
        && !matches!(entry.treq.0 & 3, 2);
    match verdict {
        Verdict::Path(trid) if !driver.has_transport(trid.trtype()) => {
            ("skip", format!("this build has no transport {}", trid.trtype()), Some(trid))
        }
        Verdict::Path(trid) if tls => ("skip", "it requires a secure channel (TLS)".to_owned(), Some(trid)),
        Verdict::Path(trid) => ("attach", "not attached yet".to_owned(), Some(trid)),
        Verdict::Duplicate(trid, (discovery, index)) => {
            ("skip", format!("the same as entry {index} of discovery {discovery}"), Some(trid))
        }
        Verdict::Itself => ("skip", "the discovery subsystem itself".to_owned(), None),
        Verdict::Followed(trid) => ("follow", "a referral".to_owned(), Some(trid)),
        Verdict::Known(trid) => ("skip", "a referral to one that is asked anyway".to_owned(), Some(trid)),
        Verdict::SameInformation => {
            ("skip", "a referral to the same information (DUPRETINFO)".to_owned(), None)
        }
        Verdict::TooFar(trid) => ("skip", "the ninth referral one after the other".to_owned(), Some(trid)),
        Verdict::Unusable(error) => ("skip", error.to_string(), None),
        _ => ("skip", "unknown".to_owned(), None),
    }
}

//! `nvmf list-subsys`: the subsystems a target offers, and the paths to each, as `nvme list-subsys` prints them.

use std::collections::BTreeMap;

use nvmf_core::{Callbacks, Controller};
use serde::Serialize;

use super::{Format, print, print_json};
use crate::connect::{ConnectArgs, detach};
use crate::fabrics::FabricsArgs;
use crate::failure::Failure;

/// List the subsystems of a target with the paths to them
///
/// Everything the discovery controller names is attached for a moment. The layout is that of `nvme list-subsys`; names of subsystems
/// and controllers count from 0 in each run, for there are no devices of the kernel.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf list-subsys -t tcp -a 192.0.2.1
  nvmf list-subsys -t tcp -a 192.0.2.1 -o json")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectArgs,

    #[command(flatten)]
    fabrics: FabricsArgs,

    /// Output: text, or JSON
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: Format,
}

#[derive(Serialize)]
struct Host {
    #[serde(rename = "HostNQN")]
    hostnqn: String,
    #[serde(rename = "HostID")]
    hostid: String,
    #[serde(rename = "Subsystems")]
    subsystems: Vec<Subsystem>,
}

#[derive(Serialize)]
struct Subsystem {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "NQN")]
    nqn: String,
    #[serde(rename = "Paths")]
    paths: Vec<Path>,
}

#[derive(Serialize)]
struct Path {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Transport")]
    transport: String,
    #[serde(rename = "Address")]
    address: String,
    #[serde(rename = "State")]
    state: &'static str,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let trid = args.connect.trid()?;
    let mut options = args.connect.options(1)?;
    args.fabrics.apply(&mut options)?;
    let (mut attached, mut failed) = (Vec::new(), Vec::new());
    let callbacks = Callbacks::new()
        .options(options)
        .attach(|controller| attached.push(controller))
        .attach_fail(|_, error| failed.push(error.clone()));
    let driver = args.connect.driver()?;
    driver.probe(Some(&trid), callbacks).map_err(|error| args.connect.discovery_failure(&error))?;
    attached.sort_by_key(|controller: &Controller| (controller.subnqn(), controller.trid().to_string()));
    let host = Host::new(&attached);
    let printed = match args.output_format {
        Format::Json => print_json(&host.iter().collect::<Vec<_>>()),
        Format::Normal => print(host.as_ref().map(Host::text).unwrap_or_default()),
    };
    attached.into_iter().for_each(detach);
    printed?;
    failed.first().map_or(Ok(()), |error| Err(Failure::attach(error)))
}

impl Host {
    /// `None` when nothing is attached.
    fn new(controllers: &[Controller]) -> Option<Self> {
        let host = controllers.first()?.host().clone();
        let mut subsystems: BTreeMap<String, Vec<Path>> = BTreeMap::new();
        for (index, controller) in controllers.iter().enumerate() {
            let trid = controller.trid();
            let mut address = format!("traddr={}", trid.traddr());
            for (name, value) in [
                ("trsvcid", Some(trid.trsvcid())),
                ("host_traddr", trid.host_traddr()),
                ("host_iface", trid.host_iface()),
            ] {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    address.push_str(&format!(",{name}={value}"));
                }
            }
            subsystems.entry(controller.subnqn()).or_default().push(Path {
                name: format!("nvmf{index}"),
                transport: trid.trtype().as_str().to_ascii_lowercase(),
                address,
                state: "live",
            });
        }
        let subsystems = subsystems.into_iter().enumerate();
        let subsystems = subsystems
            .map(|(index, (nqn, paths))| Subsystem { name: format!("nvmf-subsys{index}"), nqn, paths })
            .collect();
        Some(Self { hostnqn: host.nqn.to_string(), hostid: host.id.to_string(), subsystems })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for subsystem in &self.subsystems {
            text.push_str(&format!("{} - NQN={}\n", subsystem.name, subsystem.nqn));
            let indent = subsystem.name.len();
            text.push_str(&format!("{:indent$}   hostnqn={}\n\\\n", "", self.hostnqn));
            for path in &subsystem.paths {
                text.push_str(&format!(
                    " +- {} {} {} {}\n",
                    path.name, path.transport, path.address, path.state
                ));
            }
        }
        text
    }
}

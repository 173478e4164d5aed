//! `nvmf list`: everything a target offers, attached and identified.

use std::collections::BTreeMap;

use nvmf_core::nqn::Uuid;
use nvmf_core::{Callbacks, Controller, Error, Namespace, Role, TransportId};
use serde::Serialize;

use super::{Format, print, print_json};
#[cfg(feature = "pcie")]
use crate::connect::driver;
use crate::connect::{ConnectArgs, detach};
use crate::failure::Failure;
use crate::units::{self, Table};

/// List local controllers, or everything a target offers with its namespaces
///
/// Without a target, the controllers on the local PCI bus are listed, with who holds them; nothing is attached.
///
/// Without a subsystem NQN the discovery controller at the address is asked, and each NVM subsystem in its log is attached
/// for a moment. With one, only that subsystem is listed.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf list                                             what is on the PCI bus?
  nvmf list --watch                                     and what comes and goes from now on?
  nvmf list -t tcp -a 192.0.2.1                         discovery on port 8009
  nvmf list nvme+tcp://192.0.2.1:4420                   discovery on port 4420
  nvmf list -t tcp -a 192.0.2.1 -n nqn.2024-01.com.example:disk
  nvmf list -t tcp -a 192.0.2.1 -o json
  nvmf list --instance disks                            what does that instance share?
  nvmf list --instance disks --processes                and with whom?")]
pub(crate) struct Args {
    #[command(flatten)]
    connect: ConnectArgs,

    /// Output: a table, or JSON
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: Format,

    /// List the processes of the instance instead
    #[arg(long, requires = "instance")]
    processes: bool,

    /// Go on with a line for each local controller that comes or goes, or can be attached or no longer, until interrupted
    #[cfg(feature = "pcie")]
    #[arg(long, conflicts_with = "output_format")]
    watch: bool,
}

#[derive(Serialize)]
struct Listing {
    subsystems: Vec<Subsystem>,
    failed: Vec<Unattached>,
}

#[derive(Serialize)]
struct Subsystem {
    subnqn: String,
    model: String,
    serial: String,
    firmware: String,
    controllers: Vec<Path>,
    namespaces: Vec<NamespaceLine>,
}

#[derive(Serialize)]
struct Path {
    cntlid: u16,
    trtype: String,
    traddr: String,
    trsvcid: String,
    trid: String,
}

#[derive(Serialize)]
struct NamespaceLine {
    nsid: u32,
    size: u64,
    blocks: u64,
    block_size: u32,
    metadata_size: u16,
    uuid: Option<String>,
    nguid: Option<String>,
    eui64: Option<String>,
}

#[derive(Serialize)]
struct Unattached {
    trid: String,
    error: String,
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl NamespaceLine {
    fn new(ns: &Namespace) -> Self {
        Self {
            nsid: ns.nsid(),
            size: ns.size(),
            blocks: ns.blocks(),
            block_size: ns.block_size(),
            metadata_size: ns.metadata_size(),
            uuid: ns.uuid().map(|uuid| Uuid::from_bytes(uuid).to_string()),
            nguid: ns.nguid().map(|nguid| hex(&nguid)),
            eui64: ns.eui64().map(|eui64| hex(&eui64)),
        }
    }

    /// The block format, as nvme-cli's `nvme list` puts it.
    fn format(&self) -> String {
        units::block_format(self.block_size, self.metadata_size)
    }

    /// The best name it has.
    fn name(&self) -> String {
        let other = || self.nguid.clone().or_else(|| self.eui64.clone());
        self.uuid.clone().or_else(other).unwrap_or_else(|| "-".to_owned())
    }
}

impl Path {
    fn new(controller: &Controller) -> Self {
        let trid = controller.trid();
        Self {
            cntlid: controller.cntlid(),
            trtype: trid.trtype().as_str().to_ascii_lowercase(),
            traddr: trid.traddr().to_owned(),
            trsvcid: trid.trsvcid().to_owned(),
            trid: trid.to_string(),
        }
    }

    fn address(&self) -> String {
        let colon = self.traddr.contains(':');
        let host = if colon { format!("[{}]", self.traddr) } else { self.traddr.clone() };
        let port = if self.trsvcid.is_empty() { String::new() } else { format!(":{}", self.trsvcid) };
        format!("{} {host}{port}", self.trtype)
    }
}

impl Listing {
    fn new(controllers: &[Controller], failed: Vec<(TransportId, Error)>) -> Self {
        let mut subsystems: BTreeMap<String, Subsystem> = BTreeMap::new();
        for controller in controllers {
            let identify = controller.identify();
            let subsystem = subsystems.entry(controller.subnqn()).or_insert_with(|| Subsystem {
                subnqn: controller.subnqn(),
                model: identify.model_number(),
                serial: identify.serial_number(),
                firmware: identify.firmware_revision(),
                controllers: Vec::new(),
                namespaces: Vec::new(),
            });
            subsystem.controllers.push(Path::new(controller));
            for ns in controller.namespaces() {
                if subsystem.namespaces.iter().all(|known| known.nsid != ns.nsid()) {
                    subsystem.namespaces.push(NamespaceLine::new(&ns));
                }
            }
        }
        let failed = failed
            .into_iter()
            .map(|(trid, error)| Unattached { trid: trid.to_string(), error: error.to_string() })
            .collect();
        Self { subsystems: subsystems.into_values().collect(), failed }
    }

    fn text(&self) -> String {
        let mut controllers = Table::new(&["Subsystem", "Controller", "Address", "Model", "Serial"], &[1]);
        let mut namespaces = Table::new(&["Subsystem", "NSID", "Size", "Format", "UUID"], &[1, 2]);
        for subsystem in &self.subsystems {
            for path in &subsystem.controllers {
                let (model, serial) = (subsystem.model.clone(), subsystem.serial.clone());
                controllers.line([
                    subsystem.subnqn.clone(),
                    path.cntlid.to_string(),
                    path.address(),
                    model,
                    serial,
                ]);
            }
            for ns in &subsystem.namespaces {
                let (nsid, size) = (ns.nsid.to_string(), units::bytes(ns.size));
                namespaces.line([subsystem.subnqn.clone(), nsid, size, ns.format(), ns.name()]);
            }
        }
        if self.subsystems.is_empty() {
            return "nothing is attached\n".to_owned();
        }
        if self.subsystems.iter().all(|subsystem| subsystem.namespaces.is_empty()) {
            return format!("{}\nno namespaces\n", controllers.print());
        }
        format!("{}\n{}", controllers.print(), namespaces.print())
    }
}

#[derive(Serialize)]
struct ProcessLine {
    pid: u32,
    role: &'static str,
    controllers: u16,
    queues: u32,
}

/// The processes of an instance.
fn processes(args: &Args) -> Result<(), Failure> {
    let processes = args.connect.driver()?.processes().map_err(|error| Failure::attach(&error))?;
    let lines: Vec<ProcessLine> = processes
        .iter()
        .map(|process| ProcessLine {
            pid: process.pid,
            role: match process.role {
                Role::Primary => "primary",
                Role::Secondary => "secondary",
            },
            controllers: process.controllers,
            queues: process.queues,
        })
        .collect();
    if args.output_format == Format::Json {
        return print_json(&lines);
    }
    let mut table = Table::new(&["PID", "Role", "Controllers", "I/O queues"], &[0, 2, 3]);
    for line in lines {
        let (controllers, queues) = (line.controllers.to_string(), line.queues.to_string());
        table.line([line.pid.to_string(), line.role.to_owned(), controllers, queues]);
    }
    print(table.print())
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.processes {
        return processes(args);
    }
    let local = args.connect.is_empty() && args.connect.instance().is_none();
    #[cfg(feature = "pcie")]
    if local {
        // Listening starts first, so that nothing is missed in between.
        let hotplug = args.watch.then(|| driver().hotplug()).transpose();
        let hotplug = hotplug.map_err(|error| Failure::failed(error.to_string()))?;
        super::local::list(&nvmf_transport_pcie::PcieTransport::new(), args.output_format)?;
        return hotplug.map_or(Ok(()), super::local::watch);
    }
    #[cfg(feature = "pcie")]
    if args.watch {
        return Err(Failure::usage("--watch is for local controllers; leave the target out"));
    }
    let all = args.connect.is_empty() && !local;
    let trid = if all { None } else { Some(args.connect.trid()?) };
    let options = args.connect.options(1)?;
    let (mut attached, mut failed) = (Vec::new(), Vec::new());
    let driver = args.connect.driver()?;
    driver
        .probe(
            trid.as_ref(),
            Callbacks::new()
                .options(options)
                .attach(|controller| attached.push(controller))
                .attach_fail(|trid, error| failed.push((trid.clone(), error.clone()))),
        )
        .map_err(|error| args.connect.discovery_failure(&error))?;
    let failure = failed.first().map(|(_, error)| {
        let tried = failed.len() + attached.len();
        match tried {
            1 => Failure::attach(error),
            _ => Failure::unreachable(format!(
                "{} of {tried} controllers could not be attached: {error}",
                failed.len()
            )),
        }
    });
    attached.sort_by_key(|controller| (controller.subnqn(), controller.cntlid()));
    let listing = Listing::new(&attached, failed);
    let printed = match args.output_format {
        Format::Json => print_json(&listing),
        // A failure that is all there is to tell needs no table.
        Format::Normal if attached.is_empty() && failure.is_some() => Ok(()),
        Format::Normal => print(listing.text()),
    };
    attached.into_iter().for_each(detach);
    printed?;
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(cntlid: u16, traddr: &str) -> Path {
        Path {
            cntlid,
            trtype: "tcp".into(),
            traddr: traddr.into(),
            trsvcid: "4420".into(),
            trid: format!("trtype:TCP traddr:{traddr} trsvcid:4420"),
        }
    }

    #[test]
    fn table_of_two_subsystems() {
        let ns = |nsid, size, uuid: Option<&str>| NamespaceLine {
            nsid,
            size,
            blocks: size / 512,
            block_size: 512,
            metadata_size: 0,
            uuid: uuid.map(str::to_owned),
            nguid: None,
            eui64: Some("0011223344556677".into()),
        };
        let subsystem = |subnqn: &str, controllers, namespaces| Subsystem {
            subnqn: subnqn.into(),
            model: "nvmf loopback".into(),
            serial: "S1".into(),
            firmware: "0.1".into(),
            controllers,
            namespaces,
        };
        let listing = Listing {
            subsystems: vec![
                subsystem(
                    "nqn.2024-01.com.example:a",
                    vec![path(1, "192.0.2.1"), path(2, "fe80::1%eth0")],
                    vec![
                        ns(1, 64 << 20, Some("00112233-4455-6677-8899-aabbccddeeff")),
                        ns(12, 3 << 40, None),
                    ],
                ),
                subsystem("nqn.2024-01.com.example:long-name", vec![path(1, "192.0.2.1")], vec![]),
            ],
            failed: vec![],
        };
        let expected = "\
Subsystem                          Controller  Address                  Model          Serial
nqn.2024-01.com.example:a                   1  tcp 192.0.2.1:4420       nvmf loopback  S1
nqn.2024-01.com.example:a                   2  tcp [fe80::1%eth0]:4420  nvmf loopback  S1
nqn.2024-01.com.example:long-name           1  tcp 192.0.2.1:4420       nvmf loopback  S1

Subsystem                  NSID    Size  Format          UUID
nqn.2024-01.com.example:a     1  64 MiB  512   B +  0 B  00112233-4455-6677-8899-aabbccddeeff
nqn.2024-01.com.example:a    12   3 TiB  512   B +  0 B  0011223344556677
";
        assert_eq!(listing.text(), expected);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        assert_eq!(Listing { subsystems: vec![], failed: vec![] }.text(), "nothing is attached\n");
    }
}

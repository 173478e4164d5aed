//! `nvmf identify`: a controller and its namespaces in words.

use std::fmt::Write;

use nvmf_core::nqn::Uuid;
use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::{Controller, Namespace};
use serde_json::{Value, json};

use super::list::hex;
use super::{Format, print, print_json};
use crate::connect::{ConnectArgs, detach, namespace};
use crate::failure::Failure;
use crate::units;

/// Describe a controller and its namespaces
///
/// JSON has the keys of `nvme id-ctrl` and `nvme id-ns` where there are such.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  nvmf identify nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf identify -t tcp -a 192.0.2.1 -n nqn.2024-01.com.example:disk --nsid 1
  nvmf identify -t tcp -a 192.0.2.1 -n nqn.2024-01.com.example:disk -o json")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,

    /// Describe this namespace only; by default all active ones
    #[arg(long, value_name = "NSID")]
    nsid: Option<u32>,

    /// Output: text, or JSON
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "normal")]
    output_format: Format,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let controller = args.connect.attach(1)?;
    let namespaces = match args.nsid {
        Some(nsid) => vec![namespace(&controller, nsid)?],
        None => controller.namespaces(),
    };
    let printed = match args.output_format {
        Format::Normal => print(text(&controller, &namespaces)),
        Format::Json => print_json(&in_json(&controller, &namespaces)),
    };
    detach(controller);
    printed
}

/// Lines of a label and a value, under headings.
struct Sheet(String);

impl Sheet {
    fn heading(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn line(&mut self, label: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "  {label:<22} {value}");
    }
}

fn text(controller: &Controller, namespaces: &[Namespace]) -> String {
    let mut sheet = Sheet(String::new());
    describe_controller(&mut sheet, controller);
    for ns in namespaces {
        describe_namespace(&mut sheet, ns);
    }
    sheet.0
}

fn describe_controller(sheet: &mut Sheet, controller: &Controller) {
    let id = controller.identify();
    let cap = controller.cap();
    sheet.heading(&format!("Controller {} of {}", controller.cntlid(), controller.subnqn()));
    sheet.line("Address", controller.trid());
    sheet.line("Model", id.model_number());
    sheet.line("Serial number", id.serial_number());
    sheet.line("Firmware", id.firmware_revision());
    sheet.line("Vendor", format_args!("{:#06x} (subsystem {:#06x})", id.vid, id.ssvid));
    sheet.line("NVMe version", controller.version());
    sheet.line("Type", id.cntrltype);
    let mdts = match id.max_transfer_size(cap.min_page_size()) {
        Some(bytes) => units::bytes(bytes),
        None => "no limit".to_owned(),
    };
    sheet.line("Max. data transfer", mdts);
    sheet.line("Queue entries", format_args!("at most {}", cap.max_queue_entries()));
    sheet.line("Ready timeout", units::time(cap.ready_timeout()));
    let keep_alive = match (controller.keep_alive_timeout(), id.keep_alive_granularity()) {
        (now, _) if !now.is_zero() => format!("{} in force", units::time(now)),
        (_, Some(granularity)) => format!("off (supported, granularity {})", units::time(granularity)),
        _ => "not supported".to_owned(),
    };
    sheet.line("Keep alive", keep_alive);
    if controller.trid().trtype().is_fabrics() {
        sheet.line("In-capsule data", in_capsule(&id));
    }
    if controller.is_discovery() {
        sheet.line("Discovery type", id.dctype);
        return;
    }
    sheet.line("Namespaces", format_args!("{} active, at most {}", controller.namespaces().len(), id.nn));
    if id.total_capacity() > 0 {
        let free = u64::try_from(id.unallocated_capacity()).unwrap_or(u64::MAX);
        let total = u64::try_from(id.total_capacity()).unwrap_or(u64::MAX);
        sheet.line("Capacity", format_args!("{}, {} unallocated", units::bytes(total), units::bytes(free)));
    }
    sheet.line("Volatile write cache", if id.has_volatile_write_cache() { "present" } else { "none" });
    sheet.line("Optional commands", optional_commands(&id));
    sheet.line("ANA reporting", if id.reports_ana() { "yes" } else { "no" });
}

fn in_capsule(id: &IdentifyController) -> String {
    match id.in_capsule_data_size() {
        0 => "none".to_owned(),
        bytes => format!("up to {}", units::bytes(bytes)),
    }
}

/// ONCS in words (NVMe Base 2.1, Figure 313).
const OPTIONAL_COMMANDS: [(u16, &str); 9] = [
    (0, "Compare"),
    (1, "Write Uncorrectable"),
    (2, "Dataset Management"),
    (3, "Write Zeroes"),
    (4, "Save/Select features"),
    (5, "reservations"),
    (6, "timestamp"),
    (7, "Verify"),
    (8, "Copy"),
];

fn optional_commands(id: &IdentifyController) -> String {
    let words: Vec<&str> =
        OPTIONAL_COMMANDS.iter().filter(|(bit, _)| id.supports_io(1 << bit)).map(|(_, word)| *word).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn describe_namespace(sheet: &mut Sheet, ns: &Namespace) {
    let id = ns.identify();
    sheet.heading(&format!("Namespace {}", ns.nsid()));
    let blocks = units::plural(ns.blocks(), "block");
    sheet.line(
        "Size",
        format_args!("{} ({} bytes, {blocks})", units::bytes(ns.size()), units::count(ns.size())),
    );
    let used = id.nuse.get().saturating_mul(u64::from(ns.block_size()));
    sheet.line("Allocated", units::bytes(used));
    sheet.line("Block size", format_args!("{} B", ns.block_size()));
    sheet.line("Format", units::block_format(ns.block_size(), ns.metadata_size()).trim_start());
    let metadata = match (ns.metadata_size(), id.is_extended_lba()) {
        (0, _) => "none".to_owned(),
        (bytes, true) => format!("{bytes} B per block, at the end of its data"),
        (bytes, false) => format!("{bytes} B per block, in a buffer of its own"),
    };
    sheet.line("Metadata", metadata);
    let protection = match (id.protection_type(), ns.protection()) {
        (0, _) => "none".to_owned(),
        (kind, None) => format!("type {kind}, in a format that is not known"),
        (kind, Some(format)) => {
            let place = if format.is_first() { "first" } else { "last" };
            let storage = match format.storage_tag_bits() {
                0 => String::new(),
                bits => format!(", {bits}-bit storage tag"),
            };
            let (bits, size) = (format.guard().bits(), format.size());
            format!("type {kind}, {bits}-bit guard{storage}, in the {place} {size} B of the metadata")
        }
    };
    sheet.line("Protection", protection);
    if let Some(uuid) = ns.uuid() {
        sheet.line("UUID", Uuid::from_bytes(uuid));
    }
    if let Some(nguid) = ns.nguid() {
        sheet.line("NGUID", hex(&nguid));
    }
    if let Some(eui64) = ns.eui64() {
        sheet.line("EUI-64", hex(&eui64));
    }
    if ns.noiob() > 0 {
        sheet.line("Optimal I/O boundary", units::plural(ns.noiob().into(), "block"));
    }
    if let Some(state) = ns.ana_state() {
        sheet.line("ANA", format_args!("group {}, {state}", ns.ana_group_id()));
    }
    sheet.line("Shared", if id.is_shared() { "may be attached to several controllers" } else { "no" });
    if id.is_write_protected() {
        sheet.line("Write protected", "yes");
    }
}

fn in_json(controller: &Controller, namespaces: &[Namespace]) -> Value {
    object([
        ("trid", controller.trid().to_string().into()),
        ("controller", controller_json(controller)),
        ("namespaces", namespaces.iter().map(namespace_json).collect()),
    ])
}

/// An object with its keys in this order.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

fn controller_json(controller: &Controller) -> Value {
    let id = controller.identify();
    object([
        ("vid", json!(id.vid.get())),
        ("ssvid", json!(id.ssvid.get())),
        ("sn", json!(id.serial_number())),
        ("mn", json!(id.model_number())),
        ("fr", json!(id.firmware_revision())),
        ("rab", json!(id.rab)),
        ("cmic", json!(id.cmic)),
        ("mdts", json!(id.mdts)),
        ("cntlid", json!(controller.cntlid())),
        ("ver", json!(controller.version().0)),
        ("oaes", json!(id.oaes.get())),
        ("ctratt", json!(id.ctratt.get())),
        ("cntrltype", json!(id.cntrltype.0)),
        ("oacs", json!(id.oacs.get())),
        ("acl", json!(id.acl_z)),
        ("aerl", json!(id.aerl_z)),
        ("lpa", json!(id.lpa)),
        ("kas", json!(id.kas.get())),
        ("anatt", json!(id.anatt)),
        ("anacap", json!(id.anacap)),
        ("anagrpmax", json!(id.anagrpmax.get())),
        ("nanagrpid", json!(id.nanagrpid.get())),
        ("sqes", json!(id.sqes)),
        ("cqes", json!(id.cqes)),
        ("maxcmd", json!(id.maxcmd.get())),
        ("nn", json!(id.nn.get())),
        ("oncs", json!(id.oncs.get())),
        ("fuses", json!(id.fuses.get())),
        ("vwc", json!(id.vwc)),
        ("awun", json!(id.awun_z.get())),
        ("awupf", json!(id.awupf_z.get())),
        ("acwu", json!(id.acwu_z.get())),
        ("sgls", json!(id.sgls.get())),
        ("mnan", json!(id.mnan.get())),
        ("subnqn", json!(controller.subnqn())),
        ("ioccsz", json!(id.ioccsz.get())),
        ("iorcsz", json!(id.iorcsz.get())),
        ("icdoff", json!(id.icdoff.get())),
        ("fcatt", json!(id.fcatt)),
        ("msdbd", json!(id.msdbd)),
        ("ofcs", json!(id.ofcs.get())),
        ("dctype", json!(id.dctype.0)),
        ("version", json!(controller.version().to_string())),
        ("max_transfer_bytes", json!(controller.max_transfer())),
        ("max_queue_entries", json!(controller.cap().max_queue_entries())),
    ])
}

fn namespace_json(ns: &Namespace) -> Value {
    let id = ns.identify();
    let lbafs: Vec<Value> = id
        .lba_formats()
        .iter()
        .map(|format| json!({ "ms": format.ms.get(), "ds": format.lbads, "rp": format.rp & 3 }))
        .collect();
    object([
        ("nsid", json!(ns.nsid())),
        ("nsze", json!(id.nsze.get())),
        ("ncap", json!(id.ncap.get())),
        ("nuse", json!(id.nuse.get())),
        ("nsfeat", json!(id.nsfeat)),
        ("nlbaf", json!(id.nlbaf_z)),
        ("flbas", json!(id.flbas)),
        ("mc", json!(id.mc)),
        ("dpc", json!(id.dpc)),
        ("dps", json!(id.dps)),
        ("nmic", json!(id.nmic)),
        ("noiob", json!(id.noiob.get())),
        ("anagrpid", json!(id.anagrpid.get())),
        ("nsattr", json!(id.nsattr)),
        ("nguid", json!(ns.nguid().map(|nguid| hex(&nguid)))),
        ("eui64", json!(ns.eui64().map(|eui64| hex(&eui64)))),
        ("uuid", json!(ns.uuid().map(|uuid| Uuid::from_bytes(uuid).to_string()))),
        ("lbafs", json!(lbafs)),
        ("size_bytes", json!(ns.size())),
        ("block_size", json!(ns.block_size())),
        ("metadata_size", json!(ns.metadata_size())),
        ("metadata_extended", json!(ns.is_extended())),
        ("protection_type", json!(id.protection_type())),
        ("guard_bits", json!(ns.protection().map(|format| format.guard().bits()))),
    ])
}

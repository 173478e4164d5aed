//! Entering this host into a discovery service (Discovery Information Management, NVMe Base 2.1 §5.3.4), so that a central
//! discovery controller knows of it without anybody typing.

use std::time::Duration;

use nvmf_core::spec::dim::{DimEntityType, DimEntryFormat, DimTask, dim_data};
use nvmf_core::spec::discovery::extended::{ExtendedAttribute, ExtendedAttributeType, extended_entry};
use nvmf_core::spec::discovery::{AddressFamilyCode, DiscoveryLogEntry, TransportTypeCode};
use nvmf_core::spec::identify::DiscoveryControllerType;
use nvmf_core::transport_id::AddressFamily;
use nvmf_core::{Controller, Error, Result};

/// How long an entity name (ENAME) may be, bytes.
const ENAME: usize = 256;

/// Enters this host into the discovery service of `controller`, takes it out, or enters it anew; `symbolic_name`, if there is one,
/// goes with it. The address is left to the service, which sees where the host connects from. Waits, `timeout` at most.
///
/// # Errors
/// When the controller is no discovery controller, or fails the command, as those do that are no central discovery controllers
/// ([`is_central`]).
pub fn register(
    controller: &Controller,
    task: DimTask,
    symbolic_name: Option<&str>,
    timeout: Duration,
) -> Result<()> {
    let doing = format!("{} of this host", task.name().unwrap_or("registration"));
    if !controller.is_discovery() {
        return Err(Error::unsupported("only discovery controllers take registrations")
            .doing(doing)
            .peer(controller.trid()));
    }
    let result = controller.discovery_information(task, registration(controller, symbolic_name), timeout);
    result.map_err(|error| {
        let error = error.doing(doing).peer(controller.trid());
        match is_central(controller) {
            true => error,
            false => {
                error.hint("it does not call itself a central discovery controller; most others take none")
            }
        }
    })
}

/// Whether it says that it is a central discovery controller (DCTYPE).
#[must_use]
pub fn is_central(controller: &Controller) -> bool {
    controller.is_discovery() && controller.identify().dctype == DiscoveryControllerType::CENTRAL
}

fn registration(controller: &Controller, symbolic_name: Option<&str>) -> Vec<u8> {
    let (trid, host) = (controller.trid(), controller.host());
    let mut entry = DiscoveryLogEntry {
        trtype: TransportTypeCode(trid.trtype().to_wire().unwrap_or_default()),
        adrfam: AddressFamilyCode(trid.adrfam().map_or(0, AddressFamily::to_wire)),
        ..DiscoveryLogEntry::default()
    };
    entry.subnqn = host.nqn.to_wire();
    let id = host.id.to_bytes();
    let mut attributes = vec![ExtendedAttribute { kind: ExtendedAttributeType::HOST_ID, value: &id }];
    if let Some(name) = symbolic_name.filter(|name| !name.is_empty()) {
        let kind = ExtendedAttributeType::SYMBOLIC_NAME;
        attributes.push(ExtendedAttribute { kind, value: name.as_bytes() });
    }
    let (name, version) = (kernel("hostname"), format!("Linux {}", kernel("osrelease")));
    let texts = [host.nqn.as_str(), &name, &version];
    let entries = [extended_entry(&entry, &attributes)];
    dim_data(DimEntityType::HOST, texts, DimEntryFormat::EXTENDED, &entries)
}

/// What the kernel calls itself or its host; empty if it does not say.
fn kernel(what: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{what}")).unwrap_or_default();
    text.trim().chars().filter(char::is_ascii_graphic).take(ENAME).collect()
}

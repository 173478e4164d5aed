//! The discovery log page: which subsystems a host can reach, and by which way.

use std::net::{IpAddr, SocketAddr};

use nvmf_core::Nqn;
use nvmf_core::spec::discovery::extended::{ExtendedAttribute, ExtendedAttributeType, extended_entry};
use nvmf_core::spec::discovery::{
    AddressFamilyCode, CNTLID_DYNAMIC, DiscoveryLogAsk, DiscoveryLogEntry, DiscoveryLogHeader, EntryFlags,
    RdmaCms, RdmaProviderType, RdmaQpType, SubsystemType, TransportTypeCode, Treq,
};
use nvmf_core::transport_id::AddressFamily;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use crate::config::{MAX_ADMIN_ENTRIES, Referral};
use crate::controller::Controller;
use crate::target::{Front, Target};

/// What may be asked of the log.
pub(crate) const SUPPORTED: DiscoveryLogAsk =
    DiscoveryLogAsk::EXTENDED.union(DiscoveryLogAsk::PORT_LOCAL).union(DiscoveryLogAsk::ALL_SUBSYSTEMS);

/// The log as the host of this discovery controller sees it: an entry for each subsystem that it may connect to and each way
/// that leads there from where it is.
pub(crate) fn log_page(target: &Target, controller: &Controller, ask: DiscoveryLogAsk) -> Vec<u8> {
    // The counter first: if the log changes meanwhile, the host sees another counter when it looks again.
    let genctr = target.genctr();
    let mut ways = ways(target, controller.front);
    if ask.contains(DiscoveryLogAsk::PORT_LOCAL)
        && let Front::Tcp(local) | Front::Rdma(local) = controller.front
    {
        let port = local.port().to_string();
        ways.retain(|way| way.trsvcid == port && way.traddr == local.ip().to_canonical().to_string());
    }
    let mut entries = Vec::new();
    if target.config.report_discovery_subsystem {
        for way in &ways {
            let mut entry = way.entry(SubsystemType::CURRENT_DISCOVERY, target.discovery.nqn());
            entry.eflags = U16::new(EntryFlags::EXPLICIT_PERSISTENT.0);
            entries.push((entry, None));
        }
    }
    for subsystem in target.subsystems() {
        if subsystem.allows(&controller.hostnqn) || ask.contains(DiscoveryLogAsk::ALL_SUBSYSTEMS) {
            let name = Some(subsystem.model.clone());
            let of_subsystem = ways.iter().map(|way| way.entry(SubsystemType::NVM, subsystem.nqn()));
            entries.extend(of_subsystem.map(|entry| (entry, name.clone())));
        }
    }
    entries.extend(target.referrals().iter().filter_map(referral).map(|entry| (entry, None)));
    let header = DiscoveryLogHeader::new(genctr, entries.len() as u64);
    let mut page = header.as_bytes().to_vec();
    for (entry, name) in &entries {
        match ask.contains(DiscoveryLogAsk::EXTENDED) {
            false => page.extend(entry.as_bytes()),
            true => {
                let kind = ExtendedAttributeType::SYMBOLIC_NAME;
                let name = name.as_ref().map(|name| ExtendedAttribute { kind, value: name.as_bytes() });
                page.extend(extended_entry(entry, name.as_slice()));
            }
        }
    }
    page
}

/// One way to the subsystems.
struct Way {
    trtype: TransportTypeCode,
    adrfam: AddressFamilyCode,
    traddr: String,
    trsvcid: String,
    portid: u16,
}

/// Hosts in this process reach everything in process, others over the transport they came by.
fn ways(target: &Target, front: Front) -> Vec<Way> {
    match front {
        // A local bus has no discovery service: its controllers are found by scanning.
        Front::Pci => Vec::new(),
        Front::Loop => vec![Way {
            trtype: TransportTypeCode::LOOP,
            adrfam: AddressFamilyCode::LOOP,
            traddr: target.name.clone(),
            trsvcid: String::new(),
            portid: 0,
        }],
        Front::Tcp(local) => {
            let listeners = target.listeners();
            (1u16..).zip(listeners).map(|(portid, address)| tcp_way(address, local, portid)).collect()
        }
        Front::Rdma(local) => {
            let listeners = target.rdma_listeners();
            let way = |(portid, address)| Way {
                trtype: TransportTypeCode::RDMA,
                ..tcp_way(address, local, portid)
            };
            (1u16..).zip(listeners).map(way).collect()
        }
    }
}

/// A listener on any address is reached under the address the host has found us at.
fn tcp_way(listener: SocketAddr, local: SocketAddr, portid: u16) -> Way {
    let ip = if listener.ip().is_unspecified() { local.ip().to_canonical() } else { listener.ip() };
    Way {
        trtype: TransportTypeCode::TCP,
        adrfam: match ip {
            IpAddr::V4(_) => AddressFamilyCode::IPV4,
            IpAddr::V6(_) => AddressFamilyCode::IPV6,
        },
        traddr: ip.to_string(),
        trsvcid: listener.port().to_string(),
        portid,
    }
}

impl Way {
    fn entry(&self, subtype: SubsystemType, subnqn: &Nqn) -> DiscoveryLogEntry {
        let mut tsas = DiscoveryLogEntry::default().tsas;
        if self.trtype == TransportTypeCode::RDMA {
            tsas[..3].copy_from_slice(&[
                RdmaQpType::CONNECTED.0,
                RdmaProviderType::NOT_SPECIFIED.0,
                RdmaCms::RDMA_CM.0,
            ]);
        }
        DiscoveryLogEntry {
            tsas,
            trtype: self.trtype,
            adrfam: self.adrfam,
            subtype,
            treq: Treq::NOT_SPECIFIED_NO_FLOW_CONTROL,
            portid: U16::new(self.portid),
            cntlid: U16::new(CNTLID_DYNAMIC),
            asqsz: U16::new(MAX_ADMIN_ENTRIES as u16),
            trsvcid: field(&self.trsvcid),
            subnqn: subnqn.to_wire(),
            traddr: field(&self.traddr),
            ..DiscoveryLogEntry::default()
        }
    }
}

/// A referral; `None` for transports the log has no number for.
fn referral((trid, flags): &Referral) -> Option<DiscoveryLogEntry> {
    let way = Way {
        trtype: TransportTypeCode(trid.trtype().to_wire()?),
        adrfam: AddressFamilyCode(trid.adrfam().map_or(0, AddressFamily::to_wire)),
        traddr: trid.traddr().to_owned(),
        trsvcid: trid.trsvcid().to_owned(),
        portid: 0,
    };
    let mut entry = way.entry(SubsystemType::REFERRAL, trid.subnqn().unwrap_or(&Nqn::discovery()));
    entry.eflags = U16::new(flags.0);
    Some(entry)
}

/// ASCII padded with spaces, as the specification has these two fields.
fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    field
}

//! Discovery controllers that announce themselves: DNS-SD over multicast DNS, service `_nvme-disc._tcp` (NVMe TP 8009).
//!
//! The announcement names a host, a port and, in its TXT record, the protocol (`p=tcp`, `p=roce` or `p=iwarp`) and the NQN of
//! the discovery subsystem (`nqn=`), which may be left out. Whoever is on the link can announce anything: it is a name to be asked,
//! nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mdns_sd::{IfKind, Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent};
use nvmf_core::{Error, Nqn, Result, TransportId};

use crate::monitor::{DiscoveryMonitor, Holder, Reach, Shared};

/// What is browsed for.
pub const SERVICE: &str = "_nvme-disc._tcp.local.";

/// The most announcements that are followed at a time.
const MAX_SERVICES: usize = 1024;
/// The most addresses of one announcement.
const MAX_ADDRESSES: usize = 16;

/// Where to listen.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MdnsOptions {
    /// Only on these interfaces; on all if there are none.
    pub interfaces: Vec<String>,
    /// Without IPv4, or without IPv6.
    pub no_ipv4: bool,
    /// Without IPv6.
    pub no_ipv6: bool,
}

/// Listens for announcements until it is dropped.
pub struct MdnsBrowser {
    daemon: ServiceDaemon,
    thread: Option<JoinHandle<()>>,
}

impl DiscoveryMonitor {
    /// Watches discovery controllers that announce themselves, for as long as they do and the browser is kept.
    ///
    /// # Errors
    /// When there is no socket or no thread for it.
    pub fn browse(&self, options: &MdnsOptions) -> Result<MdnsBrowser> {
        let failed = |error: mdns_sd::Error| {
            let error = std::io::Error::other(error.to_string());
            Error::from(error).doing("listening for multicast DNS")
        };
        let daemon = ServiceDaemon::new().map_err(failed)?;
        let begin = || {
            if !options.interfaces.is_empty() {
                daemon.disable_interface(IfKind::All)?;
                for interface in &options.interfaces {
                    daemon.enable_interface(interface.as_str())?;
                }
            }
            if options.no_ipv4 {
                daemon.disable_interface(IfKind::IPv4)?;
            }
            if options.no_ipv6 {
                daemon.disable_interface(IfKind::IPv6)?;
            }
            daemon.browse(SERVICE)
        };
        let announcements = begin().map_err(failed)?;
        let shared = std::sync::Arc::clone(self.shared());
        let options = options.clone();
        let thread = thread::Builder::new()
            .name("mdns".to_owned())
            .spawn(move || follow(&shared, &announcements, &options))
            .map_err(|error| Error::from(error).doing("listening for multicast DNS"))?;
        Ok(MdnsBrowser { daemon, thread: Some(thread) })
    }
}

impl fmt::Debug for MdnsBrowser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MdnsBrowser").finish_non_exhaustive()
    }
}

impl Drop for MdnsBrowser {
    fn drop(&mut self) {
        // The daemon's thread ends, its receivers are closed, and with them the thread that reads them.
        if let Ok(done) = self.daemon.shutdown() {
            let _ = done.recv_timeout(Duration::from_secs(2));
        }
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

/// Follows announcements and goodbyes until the browser ends.
fn follow(shared: &std::sync::Arc<Shared>, announcements: &Receiver<ServiceEvent>, options: &MdnsOptions) {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let release = |name: &str, text: &str| {
        if let Ok(trid) = text.parse() {
            Shared::release(shared, &trid, &Holder::Announced(name.to_owned()));
        }
    };
    while let Ok(event) = announcements.recv() {
        match event {
            ServiceEvent::ServiceResolved(service) => {
                let name = service.fullname.clone();
                if known.len() >= MAX_SERVICES && !known.contains_key(&name) {
                    tracing::warn!(name, "too many discovery controllers announce themselves");
                    continue;
                }
                let found = identifiers(&service, options);
                let now: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
                let before = known.insert(name.clone(), now.clone()).unwrap_or_default();
                for trid in found.iter().filter(|trid| !before.contains(&trid.to_string())) {
                    if let Err(error) =
                        Shared::hold(shared, trid, Holder::Announced(name.clone()), &Reach::named(None))
                    {
                        tracing::warn!(%error, name, "an announced discovery controller is not watched");
                    }
                }
                before.difference(&now).for_each(|gone| release(&name, gone));
            }
            ServiceEvent::ServiceRemoved(_, name) => {
                for gone in known.remove(&name).unwrap_or_default() {
                    release(&name, &gone);
                }
            }
            _ => {}
        }
    }
}

/// The discovery controllers an announcement stands for: one for each of its addresses.
fn identifiers(service: &ResolvedService, options: &MdnsOptions) -> Vec<TransportId> {
    let property = |key| service.txt_properties.get_property_val_str(key);
    let protocol = property("p").unwrap_or("tcp").to_ascii_lowercase();
    let nqn = property("nqn").map(Nqn::new).transpose();
    let nqn = match nqn {
        Ok(nqn) => nqn.unwrap_or_else(Nqn::discovery),
        Err(error) => {
            tracing::info!(%error, name = service.fullname, "an announcement names no valid NQN");
            return Vec::new();
        }
    };
    let mut addresses: Vec<String> = service
        .addresses
        .iter()
        .filter(|address| match address.to_ip_addr() {
            IpAddr::V4(_) => !options.no_ipv4,
            IpAddr::V6(_) => !options.no_ipv6,
        })
        .filter_map(address)
        .collect();
    addresses.sort();
    addresses.truncate(MAX_ADDRESSES);
    let identifier = |address: &String| {
        let trid = match protocol.as_str() {
            "tcp" => TransportId::tcp(address, service.port),
            "roce" | "iwarp" | "rdma" => TransportId::rdma(address, service.port),
            _ => return None,
        };
        trid.inspect_err(|error| tracing::info!(%error, address, "an announced address")).ok()
    };
    addresses.iter().filter_map(identifier).map(|trid| trid.with_subnqn(nqn.clone())).collect()
}

/// The address as it can be connected to: link-local ones need their interface.
fn address(address: &ScopedIp) -> Option<String> {
    match address {
        ScopedIp::V4(v4) => Some(v4.addr().to_string()),
        ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
            let interface = &v6.scope_id().name;
            (!interface.is_empty()).then(|| format!("{}%{interface}", v6.addr()))
        }
        ScopedIp::V6(v6) => Some(v6.addr().to_string()),
        _ => None,
    }
}

//! The handle of a running loopback, and its builder.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nvmf_core::spec::dim::DimData;
use nvmf_core::spec::discovery::EntryFlags;
use nvmf_core::spec::log_page::AnaState;
use nvmf_core::spec::registers::Version;
use nvmf_core::{Nqn, TransportId};
use nvmf_transport_rdma::sim::Sim;

use crate::config::{Config, RdmaFrontOptions, TcpOptions};
use crate::error::LoopbackError;
use crate::fault::Faults;
use crate::namespace::Namespace;
use crate::pci::{EmulatedFunction, PciOptions};
use crate::rdma;
use crate::registry;
use crate::subsystem::SubsystemBuilder;
use crate::target::Target;
use crate::tcp::{self, Server};
use crate::transport::LoopbackTransport;

/// The subsystem [`Builder::namespace`] adds to.
pub const DEFAULT_NQN: &str = "nqn.2024-01.io.nvmf:loopback";

/// Makes a [`Loopback`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Builder {
    name: Option<String>,
    subsystems: Vec<SubsystemBuilder>,
    default_subsystem: Option<SubsystemBuilder>,
    listen: Vec<String>,
    listen_rdma: Vec<(Sim, String)>,
    config: Config,
}

impl Builder {
    /// The name it is reached under in process (TRADDR); `loopback`, or `loopback-1` and so on, unless given.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds a subsystem.
    pub fn subsystem(mut self, subsystem: SubsystemBuilder) -> Self {
        self.subsystems.push(subsystem);
        self
    }

    /// Adds a namespace to the subsystem [`DEFAULT_NQN`], which there is then.
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        let subsystem = self.default_subsystem.take().unwrap_or_else(|| SubsystemBuilder::new(DEFAULT_NQN));
        self.default_subsystem = Some(subsystem.namespace(namespace));
        self
    }

    /// Listens for NVMe/TCP connections: an address and port such as `127.0.0.1:0`, where port 0 is any that is free.
    pub fn listen_tcp(mut self, address: impl Into<String>) -> Self {
        self.listen.push(address.into());
        self
    }

    /// Listens for NVMe/RDMA connections on a simulated fabric: an address and port such as `192.0.2.1:0`, where port 0 is any
    /// that is free. Only hosts in this process, on the same fabric, can reach it.
    pub fn listen_rdma(mut self, fabric: &Sim, address: impl Into<String>) -> Self {
        self.listen_rdma.push((fabric.clone(), address.into()));
        self
    }

    /// How NVMe/RDMA is spoken.
    pub fn rdma(mut self, options: RdmaFrontOptions) -> Self {
        self.config.rdma = options;
        self
    }

    /// How NVMe/TCP is spoken.
    pub fn tcp(mut self, options: TcpOptions) -> Self {
        self.config.tcp = options;
        self
    }

    /// The version controllers claim (VS). 2.1.
    pub fn version(mut self, version: Version) -> Self {
        self.config.version = version;
        self
    }

    /// Largest I/O queue, entries (MQES + 1), 2..=65536. 1024.
    pub fn max_queue_entries(mut self, entries: u32) -> Self {
        self.config.max_queue_entries = entries;
        self
    }

    /// Most I/O queues of a controller, 1..=65535. 64.
    pub fn max_io_queues(mut self, queues: u16) -> Self {
        self.config.max_io_queues = queues;
        self
    }

    /// Most controllers of a subsystem. 1024.
    pub fn max_controllers(mut self, controllers: usize) -> Self {
        self.config.max_controllers = controllers;
        self
    }

    /// MDTS: log2 of the longest transfer in pages of 4 KiB, 0..=16; 0 is no limit. 8, which is 1 MiB.
    pub fn mdts(mut self, mdts: u8) -> Self {
        self.config.mdts = mdts;
        self
    }

    /// KAS: granularity of the keep alive timer, units of 100 ms. 1.
    pub fn keep_alive_granularity(mut self, units: u16) -> Self {
        self.config.kas = units;
        self
    }

    /// Room for data in the capsules of I/O commands, bytes; a multiple of 16, at most 64 KiB. 8 KiB.
    pub fn in_capsule_data(mut self, bytes: u32) -> Self {
        self.config.in_capsule = bytes;
        self
    }

    /// Whether the discovery log has entries for the discovery subsystem itself. Off.
    pub fn report_discovery_subsystem(mut self, on: bool) -> Self {
        self.config.report_discovery_subsystem = on;
        self
    }

    /// Adds a referral to another discovery subsystem to the discovery log.
    pub fn referral(self, trid: TransportId) -> Self {
        self.referral_with(trid, EntryFlags::default())
    }

    /// Adds a referral with these flags.
    pub fn referral_with(mut self, trid: TransportId, flags: EntryFlags) -> Self {
        self.config.referrals.push((trid, flags));
        self
    }

    /// Gives the discovery subsystem an NQN of its own, which it reports and can be reached under, besides the well-known one.
    pub fn discovery_nqn(mut self, nqn: Nqn) -> Self {
        self.config.discovery_nqn = nqn;
        self
    }

    /// Makes the discovery controllers central ones (CDC), in which hosts can be entered. Off.
    pub fn central_discovery(mut self, on: bool) -> Self {
        self.config.central_discovery = on;
        self
    }

    /// Opens the namespaces and the listeners and starts serving.
    ///
    /// # Errors
    /// [`LoopbackError`]: a limit out of range, a name that is taken or malformed, a namespace or a listener that cannot
    /// be opened, no thread.
    pub fn build(self) -> Result<Loopback, LoopbackError> {
        self.config.check()?;
        let name = self.name.unwrap_or_else(registry::free_name);
        let trid = TransportId::loopback(&name)
            .map_err(|source| LoopbackError::Name { name: name.clone(), source })?;
        let target = Arc::new(Target::new(name, self.config));
        for subsystem in self.default_subsystem.into_iter().chain(self.subsystems) {
            target.add_subsystem(subsystem)?;
        }
        let listeners = tcp::listen(&self.listen)?;
        let tcp_addrs = tcp::addresses(&listeners)?;
        target.set_listeners(tcp_addrs.clone());
        let rdma_listeners = rdma::listen(&self.listen_rdma)?;
        let rdma_addrs = rdma_listeners.addresses();
        target.set_rdma_listeners(rdma_addrs.clone());
        registry::add(&target)?;
        // From here on dropping the handle cleans up.
        let mut loopback = Loopback { target, server: None, rdma_server: None, tcp_addrs, rdma_addrs, trid };
        if !listeners.is_empty() {
            let server =
                Server::start(Arc::clone(&loopback.target), listeners).map_err(LoopbackError::Start)?;
            loopback.server = Some(server);
        }
        if !rdma_listeners.is_empty() {
            let server = rdma::Server::start(Arc::clone(&loopback.target), rdma_listeners);
            loopback.rdma_server = Some(server.map_err(LoopbackError::Start)?);
        }
        Ok(loopback)
    }
}

/// A running NVM subsystem; or several, and a discovery subsystem that names them. Dropping it ends every connection and
/// every thread.
#[derive(Debug)]
pub struct Loopback {
    target: Arc<Target>,
    server: Option<Server>,
    rdma_server: Option<rdma::Server>,
    tcp_addrs: Vec<SocketAddr>,
    rdma_addrs: Vec<SocketAddr>,
    trid: TransportId,
}

impl Loopback {
    /// A builder with nothing in it.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The name it is reached under in process.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.target.name
    }

    /// The transport that reaches it in process, to be registered with a driver.
    #[must_use]
    pub fn transport(&self) -> LoopbackTransport {
        LoopbackTransport::new()
    }

    /// Where it listens for NVMe/TCP connections, in the order of the builder's calls.
    #[must_use]
    pub fn tcp_addrs(&self) -> &[SocketAddr] {
        &self.tcp_addrs
    }

    /// Where it listens for NVMe/RDMA connections, in the order of the builder's calls.
    #[must_use]
    pub fn rdma_addrs(&self) -> &[SocketAddr] {
        &self.rdma_addrs
    }

    /// How to reach a subsystem, or with [`Nqn::DISCOVERY`] the discovery subsystem, over the first RDMA listener; `None`
    /// without a listener.
    ///
    /// # Errors
    /// [`LoopbackError::Nqn`] when the name is none.
    pub fn rdma_trid(&self, subnqn: &str) -> Result<Option<TransportId>, LoopbackError> {
        let nqn = Self::nqn(subnqn)?;
        let Some(address) = self.rdma_addrs.first() else { return Ok(None) };
        let trid = TransportId::rdma(&address.ip().to_string(), address.port());
        let trid = trid.map_err(|source| LoopbackError::Name { name: address.to_string(), source })?;
        Ok(Some(trid.with_subnqn(nqn)))
    }

    fn nqn(subnqn: &str) -> Result<Nqn, LoopbackError> {
        Nqn::new(subnqn).map_err(|source| LoopbackError::Nqn { name: subnqn.to_owned(), source })
    }

    /// How to reach a subsystem in process.
    ///
    /// # Errors
    /// [`LoopbackError::Nqn`] when the name is none. Whether there is such a subsystem is not asked.
    pub fn trid(&self, subnqn: &str) -> Result<TransportId, LoopbackError> {
        Ok(self.trid.clone().with_subnqn(Self::nqn(subnqn)?))
    }

    /// How to reach the discovery subsystem in process.
    #[must_use]
    pub fn discovery_trid(&self) -> TransportId {
        self.trid.clone().with_subnqn(Nqn::discovery())
    }

    /// How to reach a subsystem, or with [`Nqn::DISCOVERY`] the discovery subsystem, over the first TCP listener; `None` without
    /// a listener. A listener on any address is reached over the loopback interface.
    ///
    /// # Errors
    /// [`LoopbackError::Nqn`] when the name is none.
    pub fn tcp_trid(&self, subnqn: &str) -> Result<Option<TransportId>, LoopbackError> {
        let nqn = Self::nqn(subnqn)?;
        let Some(mut address) = self.tcp_addrs.first().copied() else { return Ok(None) };
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let trid = TransportId::tcp_socket(address);
        let trid = trid.map_err(|source| LoopbackError::Name { name: address.to_string(), source })?;
        Ok(Some(trid.with_subnqn(nqn)))
    }

    /// The scripted faults; rules can be pushed at any time.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.target.faults
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> LoopbackStats {
        let c = &self.target.counters;
        let [connections, admin_commands, log_page_reads, io_commands, reads, writes] =
            [&c.connections, &c.admin_commands, &c.log_page_reads, &c.io_commands, &c.reads, &c.writes]
                .map(|counter| counter.load(Ordering::Relaxed));
        let [bytes_read, bytes_written, failed_commands, terminated_connections] =
            [&c.bytes_read, &c.bytes_written, &c.failed_commands, &c.terminated_connections]
                .map(|counter| counter.load(Ordering::Relaxed));
        LoopbackStats {
            connections,
            admin_commands,
            log_page_reads,
            io_commands,
            reads,
            writes,
            bytes_read,
            bytes_written,
            failed_commands,
            terminated_connections,
        }
    }

    /// Makes an emulated PCI function: a controller of this subsystem behind registers and rings, for a host in this process.
    /// Each call makes another one.
    ///
    /// # Errors
    /// [`LoopbackError`]: no such subsystem, as many controllers as there may be, no thread.
    pub fn pci_function(&self, subnqn: &str) -> Result<EmulatedFunction, LoopbackError> {
        self.pci_function_with(subnqn, &PciOptions::default())
    }

    /// Makes an emulated PCI function that behaves so.
    ///
    /// # Errors
    /// As [`Loopback::pci_function`]; also an option out of its range.
    pub fn pci_function_with(
        &self,
        subnqn: &str,
        options: &PciOptions,
    ) -> Result<EmulatedFunction, LoopbackError> {
        EmulatedFunction::start(&self.target, subnqn, options)
    }

    // --- changes while it runs ---------------------------------------------------------------------------------

    /// Adds a subsystem. Discovery controllers are told.
    ///
    /// # Errors
    /// [`LoopbackError`]: the name is taken or malformed, a namespace cannot be opened.
    pub fn add_subsystem(&self, subsystem: SubsystemBuilder) -> Result<(), LoopbackError> {
        self.target.add_subsystem(subsystem)
    }

    /// Removes a subsystem and ends its controllers. Discovery controllers are told.
    ///
    /// # Errors
    /// [`LoopbackError::NoSuchSubsystem`].
    pub fn remove_subsystem(&self, subnqn: &str) -> Result<(), LoopbackError> {
        self.target.remove_subsystem(subnqn)
    }

    /// Adds a namespace to a subsystem, whose hosts are told, and returns its identifier.
    ///
    /// # Errors
    /// [`LoopbackError`]: no such subsystem, the identifier is taken, the namespace cannot be opened.
    pub fn add_namespace(&self, subnqn: &str, namespace: Namespace) -> Result<u32, LoopbackError> {
        self.target.add_namespace(subnqn, namespace)
    }

    /// Removes a namespace. Hosts are told.
    ///
    /// # Errors
    /// [`LoopbackError`]: no such subsystem or namespace.
    pub fn remove_namespace(&self, subnqn: &str, nsid: u32) -> Result<(), LoopbackError> {
        self.target.subsystem(subnqn)?.remove_namespace(nsid)
    }

    /// Makes a namespace `len` bytes long. What is cut off is lost. Hosts are told.
    ///
    /// # Errors
    /// [`LoopbackError`]: no such subsystem or namespace, no whole block left, the file cannot be resized.
    pub fn resize_namespace(&self, subnqn: &str, nsid: u32, len: u64) -> Result<(), LoopbackError> {
        self.target.subsystem(subnqn)?.resize_namespace(nsid, len)
    }

    /// Changes the asymmetric namespace access state of all namespaces of a subsystem. Hosts are told; in states that
    /// are not usable, I/O commands fail with a path related status.
    ///
    /// # Errors
    /// [`LoopbackError::NoSuchSubsystem`].
    pub fn set_ana_state(&self, subnqn: &str, state: AnaState) -> Result<(), LoopbackError> {
        self.target.subsystem(subnqn)?.set_ana_state(state);
        Ok(())
    }

    /// Puts a host on the list of a subsystem. Discovery controllers are told.
    ///
    /// # Errors
    /// [`LoopbackError::NoSuchSubsystem`].
    pub fn allow_host(&self, subnqn: &str, hostnqn: &str) -> Result<(), LoopbackError> {
        self.target.subsystem(subnqn)?.allow_host(hostnqn);
        self.target.discovery_changed();
        Ok(())
    }

    /// Takes a host off the list of a subsystem, from then on open to hosts on the list only, and ends its controllers.
    /// Discovery controllers are told.
    ///
    /// # Errors
    /// [`LoopbackError::NoSuchSubsystem`].
    pub fn deny_host(&self, subnqn: &str, hostnqn: &str) -> Result<(), LoopbackError> {
        self.target.subsystem(subnqn)?.deny_host(hostnqn);
        self.target.discovery_changed();
        Ok(())
    }

    /// Replaces the referrals of the discovery log. Discovery controllers are told.
    pub fn set_referrals(&self, referrals: Vec<TransportId>) {
        let flags = EntryFlags::default();
        self.target.set_referrals(referrals.into_iter().map(|trid| (trid, flags)).collect());
    }

    /// Who is entered in the discovery service (Discovery Information Management), by NQN.
    #[must_use]
    pub fn registrations(&self) -> Vec<DimData> {
        self.target.registrations()
    }

    /// GENCTR of the discovery log as it is now.
    #[must_use]
    pub fn discovery_generation(&self) -> u64 {
        self.target.genctr()
    }

    /// Ends every controller and its connections, as if the target had been restarted. Hosts may connect again.
    pub fn disconnect_all(&self) {
        self.target.disconnect_all();
    }

    /// While `refuse`, new connections are closed at once; those there are go on.
    pub fn refuse_connections(&self, refuse: bool) {
        self.target.set_refusing(refuse);
    }

    /// Number of controllers hosts have on a subsystem, or with [`Nqn::DISCOVERY`] on the discovery subsystem.
    #[must_use]
    pub fn controllers(&self, subnqn: &str) -> usize {
        let subsystem = Nqn::new(subnqn).ok().and_then(|nqn| self.target.find(&nqn));
        subsystem.map_or(0, |subsystem| subsystem.controllers().len())
    }

    /// Keep alive timeouts of the controllers hosts have on a subsystem, as for [`Loopback::controllers`]; zero is off.
    #[must_use]
    pub fn keep_alive_timeouts(&self, subnqn: &str) -> Vec<Duration> {
        let subsystem = Nqn::new(subnqn).ok().and_then(|nqn| self.target.find(&nqn));
        let controllers = subsystem.map(|subsystem| subsystem.controllers()).unwrap_or_default();
        controllers.iter().map(|controller| controller.keep_alive_timeout()).collect()
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        registry::remove(&self.target);
        self.target.stop();
        // Joins the threads, which end now.
        self.server = None;
        self.rdma_server = None;
    }
}

/// Counters of a loopback since it was built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct LoopbackStats {
    /// Connections accepted, in process ones included.
    pub connections: u64,
    /// Admin commands executed, Connect of any queue included.
    pub admin_commands: u64,
    /// Get Log Page commands that succeeded.
    pub log_page_reads: u64,
    /// I/O commands executed.
    pub io_commands: u64,
    /// Read commands that succeeded.
    pub reads: u64,
    /// Write commands that succeeded.
    pub writes: u64,
    /// Bytes returned by Read commands.
    pub bytes_read: u64,
    /// Bytes taken by Write commands.
    pub bytes_written: u64,
    /// Commands that failed.
    pub failed_commands: u64,
    /// NVMe/TCP connections terminated because the host broke the protocol.
    pub terminated_connections: u64,
}

#[cfg(test)]
mod tests;

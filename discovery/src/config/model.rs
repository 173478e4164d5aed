//! The configuration itself: hosts, the subsystems and discovery controllers they connect to, and with which options.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nvmf_core::nqn::HostId;
use nvmf_core::transport_id::TransportIdError;
use nvmf_core::{ControllerOptions, Error, HostIdentity, Nqn, Result, TransportId, TransportType};

use super::key::{Key, Persistent, Secret, Value};

/// Where in a file a value stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Scope {
    /// At the controller itself.
    Controller,
    /// At its subsystem or discovery controller section.
    Endpoint,
    /// At the host.
    Host,
    /// `[Discovery Controller Defaults]`.
    DiscoveryDefaults,
    /// `[I/O Controller Defaults]`.
    IoDefaults,
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
    /// What the value was set for.
    pub scope: Scope,
}

impl fmt::Display for Origin {
    /// `file:line`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A value and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

/// Options of a connection, each with its origin.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options(BTreeMap<Key, Setting<Value>>);

impl Options {
    pub(super) fn set(&mut self, key: Key, value: Value, origin: Origin) {
        self.0.insert(key, Setting { value, origin });
    }

    /// These, where `over` does not say otherwise.
    pub(super) fn overlaid(&self, over: &Self) -> Self {
        let mut all = self.clone();
        all.0.extend(over.0.iter().map(|(key, setting)| (*key, setting.clone())));
        all
    }

    /// Every option that is set, in the order of [`Key`].
    pub fn iter(&self) -> impl Iterator<Item = (Key, &Setting<Value>)> {
        self.0.iter().map(|(key, setting)| (*key, setting))
    }

    /// The value of an option; `None` if it is not set, or set to the default.
    #[must_use]
    pub fn value(&self, key: Key) -> Option<&Value> {
        self.0.get(&key).map(|setting| &setting.value).filter(|value| **value != Value::Default)
    }

    /// The value of a numeric option.
    #[must_use]
    pub fn int(&self, key: Key) -> Option<i64> {
        match self.value(key) {
            Some(Value::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// The value of a switch.
    #[must_use]
    pub fn bool(&self, key: Key) -> Option<bool> {
        match self.value(key) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// A secret.
    #[must_use]
    pub fn secret(&self, key: Key) -> Option<&Secret> {
        match self.value(key) {
            Some(Value::Secret(secret)) => Some(secret),
            _ => None,
        }
    }

    /// When the connection to a discovery controller is kept.
    #[must_use]
    pub fn persistent(&self) -> Option<Persistent> {
        match self.value(Key::Persistent) {
            Some(Value::Persistent(persistent)) => Some(*persistent),
            _ => None,
        }
    }

    /// Puts these options into those of a controller. Write and poll queues and duplicate connections are matters of the
    /// Linux kernel's initiator and change nothing.
    ///
    /// # Errors
    /// When they ask for TLS, secure concatenation or authentication, which this initiator does not have: connecting in the
    /// clear is not what was asked for.
    pub fn apply(&self, options: &mut ControllerOptions) -> Result<()> {
        for key in [Key::Tls, Key::Concat] {
            if self.bool(key) == Some(true) {
                return Err(self.refusal(key, "TLS"));
            }
        }
        for key in [Key::DhchapSecret, Key::DhchapCtrlSecret] {
            if self.secret(key).is_some() {
                return Err(self.refusal(key, "DH-HMAC-CHAP"));
            }
        }
        let number =
            |key| self.int(key).and_then(|value| u16::try_from(value).ok()).filter(|value| *value != 0);
        let seconds = |key| self.int(key).map(|value| u64::try_from(value).ok().map(Duration::from_secs));
        if let Some(queues) = number(Key::NrIoQueues) {
            options.num_io_queues = queues;
        }
        if let Some(entries) = number(Key::QueueSize) {
            options.io_queue_size = entries;
        }
        if let Some(time) = seconds(Key::KeepAliveTmo) {
            options.keep_alive_timeout = time.unwrap_or_default();
        }
        if let Some(time) = seconds(Key::ReconnectDelay) {
            options.reconnect_delay = time.filter(|time| !time.is_zero());
        }
        // Negative is without end.
        if let Some(time) = seconds(Key::CtrlLossTmo) {
            options.ctrl_loss_timeout = time;
        }
        if let Some(time) = seconds(Key::FastIoFailTmo) {
            options.fast_io_fail_timeout = time;
        }
        if let Some(tos) = self.int(Key::Tos).and_then(|value| u8::try_from(value).ok()) {
            options.transport_tos = tos;
        }
        let switch = |key, to: &mut bool| *to = self.bool(key).unwrap_or(*to);
        switch(Key::DisableSqflow, &mut options.disable_sq_flow_control);
        switch(Key::HdrDigest, &mut options.header_digest);
        switch(Key::DataDigest, &mut options.data_digest);
        Ok(())
    }

    fn refusal(&self, key: Key, what: &str) -> Error {
        let at = self.0.get(&key).map(|setting| setting.origin.to_string()).unwrap_or_default();
        Error::unsupported(format!("{at} asks for {what} ({key})"))
            .doing("taking over the configured options")
            .hint("take the option out to connect without it")
    }
}

/// Where a controller is, as configured: names are not resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// `tcp`, `rdma`, `fc`, `loop` or `pcie`.
    pub transport: Setting<String>,
    /// Transport address.
    pub traddr: Setting<String>,
    /// Transport service identifier.
    pub trsvcid: Option<Setting<String>>,
    /// Local address to connect from.
    pub host_traddr: Option<Setting<String>>,
    /// Local interface to connect through.
    pub host_iface: Option<Setting<String>>,
}

/// The transports nvme-cli knows.
pub(super) const TRANSPORTS: [&str; 5] = ["tcp", "rdma", "fc", "loop", "pcie"];

impl Address {
    /// The parts that are set, with nvme-cli's names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Setting<String>)> {
        [
            ("transport", Some(&self.transport)),
            ("traddr", Some(&self.traddr)),
            ("trsvcid", self.trsvcid.as_ref()),
        ]
        .into_iter()
        .chain([("host-traddr", self.host_traddr.as_ref()), ("host-iface", self.host_iface.as_ref())])
        .filter_map(|(name, setting)| Some((name, setting?)))
    }

    /// What is wrong with it, and at which part.
    pub(super) fn check(&self) -> std::result::Result<(), (&Origin, String)> {
        let trtype = match self.transport.value.as_str() {
            "tcp" => TransportType::Tcp,
            "rdma" => TransportType::Rdma,
            // The kernel's own; there is nothing this crate knows about them.
            _ => return Ok(()),
        };
        let mut trid = TransportId::new(trtype, None, &self.traddr.value)
            .map_err(|error| (&self.traddr.origin, error.to_string()))?;
        type Put = fn(TransportId, &str) -> std::result::Result<TransportId, TransportIdError>;
        for (setting, put) in [
            (&self.trsvcid, TransportId::with_trsvcid as Put),
            (&self.host_traddr, TransportId::with_host_traddr as Put),
            (&self.host_iface, TransportId::with_host_iface as Put),
        ] {
            if let Some(setting) = setting {
                trid = put(trid, &setting.value).map_err(|error| (&setting.origin, error.to_string()))?;
            }
        }
        Ok(())
    }
}

/// One controller, or path, of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Controller {
    /// Where it is.
    pub address: Address,
    /// With which options it is connected to: everything that applies, by precedence.
    pub options: Options,
    /// Where it is configured.
    pub origin: Origin,
}

/// A subsystem or a discovery controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Whether it is a discovery controller, or a subsystem with I/O controllers.
    pub discovery: bool,
    /// Its NQN; a discovery controller without one has the well-known discovery NQN.
    pub nqn: Option<Setting<Nqn>>,
    /// The program that manages it (config.json).
    pub application: Option<Setting<String>>,
    /// Its controllers, or the paths to them.
    pub paths: Vec<Controller>,
}

/// A host: who connects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Host {
    /// Its NQN; without one it is that of the machine.
    pub nqn: Option<Setting<Nqn>>,
    /// Its identifier; without one it is the UUID in the NQN, else that of the machine.
    pub id: Option<Setting<HostId>>,
    /// Its symbolic name.
    pub symname: Option<Setting<String>>,
    /// What it connects to.
    pub endpoints: Vec<Endpoint>,
    /// Options of discovery controllers that referrals lead to.
    pub discovery_defaults: Options,
    /// Options of I/O controllers that discovery finds.
    pub io_defaults: Options,
}

impl Host {
    /// Who it is, `machine` being asked for what is not configured.
    ///
    /// # Errors
    /// Those of `machine`.
    pub fn identity<E>(
        &self,
        machine: impl FnOnce() -> std::result::Result<HostIdentity, E>,
    ) -> std::result::Result<HostIdentity, E> {
        let (nqn, id) = (self.nqn.as_ref().map(|s| s.value.clone()), self.id.as_ref().map(|s| s.value));
        HostIdentity::complete(nqn, id, machine)
    }
}

/// A configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// The files it was read from.
    pub files: Vec<Arc<Path>>,
    /// The hosts, in the order of the files.
    pub hosts: Vec<Host>,
}

/// A configured controller in its context.
#[derive(Clone, Copy, Debug)]
pub struct Configured<'a> {
    /// Who connects.
    pub host: &'a Host,
    /// What to.
    pub endpoint: &'a Endpoint,
    /// By which path.
    pub path: &'a Controller,
}

impl Config {
    /// Every controller configured, in the order of the files.
    pub fn controllers(&self) -> impl Iterator<Item = Configured<'_>> {
        self.hosts.iter().flat_map(|host| {
            host.endpoints.iter().flat_map(move |endpoint| {
                endpoint.paths.iter().map(move |path| Configured { host, endpoint, path })
            })
        })
    }

    /// The discovery controllers among them, which `nvmf discover` asks when no address is given.
    pub fn discovery_controllers(&self) -> impl Iterator<Item = Configured<'_>> {
        self.controllers().filter(|c| c.endpoint.discovery)
    }

    /// The I/O controllers among them.
    pub fn io_controllers(&self) -> impl Iterator<Item = Configured<'_>> {
        self.controllers().filter(|c| !c.endpoint.discovery)
    }

    /// Whether nothing is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.controllers().next().is_none()
    }
}

impl Configured<'_> {
    /// Its transport identifier, with the host NQN if one is configured. Without a service identifier the port is 8009 for
    /// discovery over TCP, else 4420.
    ///
    /// # Errors
    /// When this initiator has no such transport (`fc`, `loop`).
    pub fn trid(&self) -> Result<TransportId> {
        let address = &self.path.address;
        let wrong = |error: TransportIdError| {
            Error::from(error).doing("using the address configured").peer(&self.path.origin)
        };
        let trtype = match address.transport.value.as_str() {
            "tcp" => TransportType::Tcp,
            "rdma" => TransportType::Rdma,
            "pcie" => TransportType::Pcie,
            other => {
                return Err(Error::unsupported(format!(
                    "transport {other} is one of the kernel's initiator"
                ))
                .doing("using the address configured")
                .peer(&self.path.origin));
            }
        };
        let mut trid = TransportId::new(trtype, None, &address.traddr.value).map_err(wrong)?;
        trid = match &address.trsvcid {
            Some(service) => trid.with_trsvcid(&service.value).map_err(wrong)?,
            None if self.endpoint.discovery && trtype == TransportType::Tcp => {
                trid.with_trsvcid("8009").map_err(wrong)?
            }
            None => trid,
        };
        if let Some(local) = &address.host_traddr {
            trid = trid.with_host_traddr(&local.value).map_err(wrong)?;
        }
        if let Some(interface) = &address.host_iface {
            trid = trid.with_host_iface(&interface.value).map_err(wrong)?;
        }
        if let Some(nqn) = &self.host.nqn {
            trid = trid.with_hostnqn(nqn.value.clone());
        }
        Ok(match &self.endpoint.nqn {
            Some(nqn) => trid.with_subnqn(nqn.value.clone()),
            None => trid.with_subnqn(Nqn::discovery()),
        })
    }

    /// `base` with the host and the options configured.
    ///
    /// # Errors
    /// Those of [`Options::apply`], and of finding the machine's identity if it is needed.
    pub fn controller_options(&self, base: &ControllerOptions) -> Result<ControllerOptions> {
        let mut options = base.clone();
        let machine = || match &base.host {
            Some(host) => Ok(host.clone()),
            None => HostIdentity::load().map_err(|error| Error::api_misuse(error.to_string())),
        };
        options.host = Some(self.host.identity(machine)?);
        self.path.options.apply(&mut options)?;
        Ok(options)
    }
}

//! From the command line to an attached controller.

use std::io::ErrorKind::ConnectionRefused;
use std::time::Duration;

use clap::Args;
use nvmf_core::nqn::Uuid;
use nvmf_core::{
    Controller, ControllerOptions, Driver, DriverBuilder, Error, ErrorKind, HostIdentity, Namespace, Nqn,
    Role, TransportId, TransportType,
};

use crate::failure::{Failure, and};
use crate::recovery::RecoveryArgs;
use crate::size::{parse_length32, parse_seconds};
use crate::units;

/// Where the controller is and how to talk to it: a TRID, or nvme-cli's options.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConnectArgs {
    /// Transport identifier, either form: 'trtype:tcp traddr:192.0.2.1 trsvcid:4420 subnqn:nqn…' or
    /// nvme+tcp://192.0.2.1:4420/nqn…
    #[arg(value_name = "TRID", conflicts_with_all = ["transport", "traddr", "trsvcid"], num_args = 1..)]
    trid: Vec<String>,

    /// Transport type: tcp, rdma, pcie or vfiouser
    #[arg(short = 't', long, value_name = "TYPE", requires = "traddr", help_heading = ADDRESS)]
    transport: Option<String>,

    /// Transport address: IPv4, IPv6 (with %scope if link-local) or host name
    #[arg(short = 'a', long, value_name = "ADDR", requires = "transport", help_heading = ADDRESS)]
    traddr: Option<String>,

    /// Transport service identifier: the port. 4420 by default, 8009 for discovery over tcp
    #[arg(short = 's', long, value_name = "PORT", requires = "transport", help_heading = ADDRESS)]
    trsvcid: Option<String>,

    /// Subsystem NQN
    #[arg(short = 'n', long, value_name = "NQN", help_heading = ADDRESS)]
    nqn: Option<String>,

    /// Local address to connect from
    #[arg(short = 'w', long, value_name = "ADDR", help_heading = ADDRESS)]
    host_traddr: Option<String>,

    /// Local network interface to connect through, e.g. eth0
    #[arg(short = 'f', long, value_name = "IFACE", help_heading = ADDRESS)]
    host_iface: Option<String>,

    /// Host NQN. By default that of /etc/nvme/hostnqn, else made from the machine's UUID
    #[arg(short = 'q', long, value_name = "NQN", help_heading = CONNECTION)]
    hostnqn: Option<String>,

    /// Host identifier, a UUID. By default the UUID in the host NQN, else /etc/nvme/hostid
    #[arg(short = 'I', long, value_name = "UUID", help_heading = CONNECTION)]
    hostid: Option<String>,

    /// Ask for digests over PDU headers
    #[arg(short = 'g', long, help_heading = CONNECTION)]
    hdr_digest: bool,

    /// Ask for digests over PDU data
    #[arg(short = 'G', long, help_heading = CONNECTION)]
    data_digest: bool,

    /// Type of service of the packets (IP_TOS, IPV6_TCLASS)
    #[arg(short = 'T', long, visible_alias = "transport-tos", value_name = "TOS", help_heading = CONNECTION)]
    tos: Option<u8>,

    /// Acknowledge received TCP data at once (TCP_QUICKACK)
    #[arg(long, help_heading = CONNECTION)]
    quickack: bool,

    /// Bytes of the TCP send buffer (SO_SNDBUF); by default the kernel's choice, within this machine 512 KiB
    #[arg(long, value_name = "SIZE", value_parser = parse_length32, help_heading = CONNECTION)]
    send_buf_size: Option<u32>,

    /// Bytes of the TCP receive buffer (SO_RCVBUF); by default the kernel's choice
    #[arg(long, value_name = "SIZE", value_parser = parse_length32, help_heading = CONNECTION)]
    recv_buf_size: Option<u32>,

    /// Go without SQ flow control where the controller agrees: asked for always, unless it is `=no`
    #[arg(long, value_name = "no", num_args = 0..=1, require_equals = true, default_missing_value = "yes")]
    #[arg(value_parser = clap::builder::BoolishValueParser::new(), hide_possible_values = true, help_heading = CONNECTION)]
    disable_sqflow: Option<bool>,

    /// Deadline for connecting, and for each command
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "30", help_heading = CONNECTION)]
    timeout: Duration,

    /// Use the controller through the instance of this name that another process shares (`nvmf share`)
    #[arg(long, value_name = "NAME", help_heading = CONNECTION)]
    instance: Option<String>,

    /// RDMA: give the controller access to just the data of each command, and take it away at its end (memory windows, type 2B), instead
    /// of access to all memory for data
    #[cfg(feature = "rdma")]
    #[arg(long, help_heading = CONNECTION)]
    memory_windows: bool,

    /// Map the doorbells of a vfio-user server that could cut their file short, SPDK's being one: fast, but a server that does
    /// ends this process
    #[cfg(feature = "pcie")]
    #[arg(long, help_heading = CONNECTION)]
    map_unsealed: bool,
}

const ADDRESS: &str = "Controller (instead of TRID)";
const CONNECTION: &str = "Connection";

impl ConnectArgs {
    /// The controller named, discovery or not.
    pub(crate) fn trid(&self) -> Result<TransportId, Failure> {
        let mut trid = self.address()?;
        let wrong =
            |option: &str, error: &dyn std::fmt::Display| Failure::usage(format!("{option}: {error}"));
        if let Some(nqn) = &self.nqn {
            let nqn = Nqn::new(nqn).map_err(|error| wrong("--nqn", &error))?;
            match trid.subnqn() {
                Some(other) if *other != nqn => {
                    return Err(Failure::usage(format!(
                        "--nqn {nqn} contradicts the TRID, which names {other}; give one of them"
                    )));
                }
                _ => trid = trid.with_subnqn(nqn),
            }
        }
        if let Some(address) = &self.host_traddr {
            trid = trid.with_host_traddr(address).map_err(|error| wrong("--host-traddr", &error))?;
        }
        if let Some(iface) = &self.host_iface {
            trid = trid.with_host_iface(iface).map_err(|error| wrong("--host-iface", &error))?;
        }
        if let Some(nqn) = &self.hostnqn {
            trid = trid.with_hostnqn(Nqn::new(nqn).map_err(|error| wrong("--hostnqn", &error))?);
        }
        Ok(trid)
    }

    /// The instance that is asked, if any.
    pub(crate) fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    /// Whether no controller is named.
    pub(crate) fn is_empty(&self) -> bool {
        self.trid.is_empty() && self.transport.is_none()
    }

    /// The same options for another controller.
    pub(crate) fn with_trid(&self, trid: &str) -> Self {
        let (transport, traddr, trsvcid) = (None, None, None);
        Self { trid: vec![trid.to_owned()], transport, traddr, trsvcid, ..self.clone() }
    }

    fn address(&self) -> Result<TransportId, Failure> {
        if let (Some(transport), Some(traddr)) = (&self.transport, &self.traddr) {
            let trtype = transport_type(transport)?;
            let trid = TransportId::new(trtype, None, traddr)
                .map_err(|error| Failure::usage(format!("--traddr: {error}")))?;
            return match &self.trsvcid {
                Some(service) => {
                    trid.with_trsvcid(service).map_err(|error| Failure::usage(format!("--trsvcid: {error}")))
                }
                None => Ok(trid),
            };
        }
        if self.trid.is_empty() {
            return Err(Failure::usage(
                "no controller is named; give a TRID such as nvme+tcp://192.0.2.1:4420/nqn… or -t tcp -a 192.0.2.1",
            ));
        }
        // Without quotes the shell has split it.
        self.trid.join(" ").parse().map_err(|error| Failure::usage(format!("TRID: {error}")))
    }

    /// The controller named, which must be in a named subsystem.
    fn subsystem_trid(&self) -> Result<TransportId, Failure> {
        let trid = self.trid()?;
        if trid.trtype().is_fabrics() && trid.subnqn().is_none() {
            // With the default ports there is nothing to add: discovery has its own.
            let port = match trid.trsvcid() {
                "8009" | "" => String::new(),
                port => format!(" -s {port}"),
            };
            let asked = match trid.trtype() {
                TransportType::Tcp => format!(" -t tcp -a {}{port}", trid.traddr()),
                _ => String::new(),
            };
            return Err(Failure::usage(format!(
                "no subsystem is named; add -n NQN (or subnqn:NQN to the TRID); `nvmf discover{asked}` lists what is there"
            )));
        }
        Ok(trid)
    }

    /// The options for attaching, with this many I/O queues.
    pub(crate) fn options(&self, io_queues: u16) -> Result<ControllerOptions, Failure> {
        let mut options = ControllerOptions::default();
        options.host = self.host()?;
        options.num_io_queues = io_queues;
        options.header_digest = self.hdr_digest;
        options.data_digest = self.data_digest;
        options.transport_tos = self.tos.unwrap_or(0);
        options.tcp_quickack = self.quickack;
        options.tcp_send_buffer = self.send_buf_size;
        options.tcp_receive_buffer = self.recv_buf_size;
        if let Some(disable) = self.disable_sqflow {
            options.disable_sq_flow_control = disable;
        }
        options.connect_timeout = self.timeout;
        options.admin_timeout = self.timeout;
        options.io_timeout = Some(self.timeout);
        Ok(options)
    }

    /// Who we are, as far as the options say.
    fn host(&self) -> Result<Option<HostIdentity>, Failure> {
        let nqn = match &self.hostnqn {
            Some(nqn) => Some(Nqn::new(nqn).map_err(|error| Failure::usage(format!("--hostnqn: {error}")))?),
            None => None,
        };
        let id = match &self.hostid {
            Some(id) => {
                let uuid: Uuid = id.parse().map_err(|error| Failure::usage(format!("--hostid: {error}")))?;
                if uuid.is_zero() {
                    return Err(Failure::usage("--hostid: all zeroes mean none; controllers refuse it"));
                }
                Some(uuid)
            }
            None => None,
        };
        let machine =
            || HostIdentity::load().map_err(|error| Failure::usage(format!("host identity: {error}")));
        HostIdentity::complete(nqn, id.map(Into::into), machine).map(Some)
    }

    /// An error of discovery. Many targets answer it on the port of their subsystems only.
    pub(crate) fn discovery_failure(&self, error: &Error) -> Failure {
        let refused = matches!(error.kind(), ErrorKind::Transport(io) if io.kind() == ConnectionRefused);
        let default_port = self.trid().is_ok_and(|trid| trid.is_discovery() && trid.port() == Some(8009));
        match refused && default_port {
            true => Failure::unreachable(and(error, "many targets answer discovery on port 4420: -s 4420")),
            false => Failure::attach(error),
        }
    }

    /// Attaches the controller.
    pub(crate) fn attach(&self, io_queues: u16) -> Result<Controller, Failure> {
        self.attach_with(&self.options(io_queues)?)
    }

    /// Attaches a controller that is connected again when it is lost, if the options say so.
    pub(crate) fn attach_for_good(
        &self,
        io_queues: u16,
        recovery: &RecoveryArgs,
    ) -> Result<Controller, Failure> {
        let mut options = self.options(io_queues)?;
        recovery.apply(&mut options);
        self.attach_with(&options)
    }

    /// Attaches the controller with options made from [`ConnectArgs::options`].
    pub(crate) fn attach_with(&self, options: &ControllerOptions) -> Result<Controller, Failure> {
        let trid = self.subsystem_trid()?;
        self.driver()?.connect(&trid, options).map_err(|error| Failure::attach(&error))
    }

    fn transports(&self) -> Transports {
        Transports {
            #[cfg(feature = "rdma")]
            rdma: nvmf_transport_rdma::RdmaOptions::default().memory_windows(self.memory_windows),
            #[cfg(feature = "pcie")]
            vfio_user: nvmf_transport_pcie::VfioUserOptions {
                map_unsealed: self.map_unsealed,
                ..Default::default()
            },
        }
    }

    /// A driver with the transports of this build, as the options want them.
    pub(crate) fn driver(&self) -> Result<Driver, Failure> {
        let builder = builder(&self.transports());
        match &self.instance {
            None => Ok(builder.build()),
            Some(instance) => builder
                .shared(instance)
                .only(Role::Secondary)
                .build()
                .map_err(|error| Failure::attach(&error)),
        }
    }
}

/// A driver with the transports of this build.
pub(crate) fn driver() -> Driver {
    builder(&Transports::default()).build()
}

/// A driver that shares what it attaches.
pub(crate) fn primary(instance: &str, transports: &Transports) -> Result<Driver, Failure> {
    let shared = builder(transports).shared(instance).only(Role::Primary);
    shared.build().map_err(|error| Failure::attach(&error))
}

/// Options of transports that are not those of a controller.
#[derive(Default)]
pub(crate) struct Transports {
    #[cfg(feature = "rdma")]
    pub(crate) rdma: nvmf_transport_rdma::RdmaOptions,
    #[cfg(feature = "pcie")]
    pub(crate) vfio_user: nvmf_transport_pcie::VfioUserOptions,
}

#[cfg_attr(
    not(any(feature = "rdma", feature = "pcie")),
    expect(unused_variables, reason = "no transport has options")
)]
fn builder(options: &Transports) -> DriverBuilder {
    let builder = Driver::builder();
    #[cfg(feature = "tcp")]
    let builder = builder.transport(nvmf_transport_tcp::TcpTransport::new());
    // It says what this machine lacks when it is used.
    #[cfg(feature = "rdma")]
    let builder = builder.transport(nvmf_transport_rdma::RdmaTransport::new().with_options(options.rdma));
    #[cfg(feature = "pcie")]
    let builder = builder.transport(nvmf_transport_pcie::PcieTransport::new());
    #[cfg(feature = "pcie")]
    let builder = builder.transport(nvmf_transport_pcie::vfio_user::transport(options.vfio_user.clone()));
    builder
}

/// Transports of this build, as -t names them.
const TRANSPORTS: &[&str] = &[
    #[cfg(feature = "tcp")]
    "tcp",
    #[cfg(feature = "rdma")]
    "rdma",
    #[cfg(feature = "pcie")]
    "pcie",
    #[cfg(feature = "pcie")]
    "vfiouser",
];

/// A transport of this build, as -t names it.
pub(crate) fn transport_type(name: &str) -> Result<TransportType, Failure> {
    let lower = name.to_ascii_lowercase();
    match lower.parse() {
        Ok(trtype) if TRANSPORTS.contains(&lower.as_str()) => Ok(trtype),
        Ok(TransportType::Custom(_)) | Err(_) => {
            let distance = |known: &&&str| strsim::osa_distance(&lower, known);
            let nearest = TRANSPORTS.iter().min_by_key(distance).filter(|known| distance(known) <= 2);
            let hint = match nearest {
                Some(nearest) => format!("did you mean {nearest}?"),
                None => format!("there are {}", TRANSPORTS.join(", ")),
            };
            Err(Failure::usage(format!("--transport {name}: no such transport; {hint}")))
        }
        Ok(_) => {
            let known = TRANSPORTS.join(", ");
            Err(Failure::usage(format!("--transport {name}: not in this program, which has {known}")))
        }
    }
}

/// Shuts the controller down. What was to be done is done: a failing good-bye is only logged.
pub(crate) fn detach(controller: Controller) {
    if let Err(error) = controller.detach() {
        tracing::warn!(%error, "the controller did not confirm its shutdown");
    }
}

/// The namespace, or an error that lists those there are.
pub(crate) fn namespace(controller: &Controller, nsid: u32) -> Result<Namespace, Failure> {
    controller.namespace(nsid).ok_or_else(|| {
        let known: Vec<String> =
            controller.namespaces().iter().take(16).map(|ns| ns.nsid().to_string()).collect();
        let known = match known.len() {
            0 => "it has none".to_owned(),
            _ => format!("it has {}", known.join(", ")),
        };
        Failure::usage(format!("--nsid {nsid}: {} has no such namespace; {known}", controller.subnqn()))
    })
}

/// A namespace of the NVM command set, or an error that says why not.
pub(crate) fn nvm_namespace(controller: &Controller, nsid: u32) -> Result<Namespace, Failure> {
    let ns = namespace(controller, nsid)?;
    if ns.csi() != 0 {
        return Err(Failure::usage(format!(
            "--nsid {nsid}: its I/O command set is number {}, this command knows only NVM (0)",
            ns.csi()
        )));
    }
    Ok(ns)
}

/// A namespace whose blocks are nothing but data, or an error that says why not.
pub(crate) fn plain_namespace(controller: &Controller, nsid: u32) -> Result<Namespace, Failure> {
    let ns = nvm_namespace(controller, nsid)?;
    if ns.metadata_size() != 0 {
        return Err(Failure::usage(format!(
            "--nsid {nsid}: its blocks carry {} of metadata, which this command does not handle; `nvmf read` and \
             `nvmf write` do",
            units::bytes(ns.metadata_size().into())
        )));
    }
    Ok(ns)
}

/// Checks that a range of bytes is made of whole blocks and lies within the namespace.
pub(crate) fn check_range(ns: &Namespace, offset: u64, length: u64) -> Result<(), Failure> {
    check_multiple(ns, "--offset", offset)?;
    check_multiple(ns, "--length", length)?;
    match offset.checked_add(length) {
        Some(end) if end <= ns.size() => Ok(()),
        _ => Err(Failure::usage(format!(
            "{length} bytes from offset {offset} reach beyond the end of namespace {}, which has {} bytes ({})",
            ns.nsid(),
            ns.size(),
            units::bytes(ns.size())
        ))),
    }
}

/// Checks that a number of bytes is made of whole blocks.
pub(crate) fn check_multiple(ns: &Namespace, option: &str, value: u64) -> Result<(), Failure> {
    let block = u64::from(ns.block_size());
    if value.is_multiple_of(block) {
        return Ok(());
    }
    let below = value - value % block;
    let above = below.checked_add(block).map(|above| format!(" or {above}")).unwrap_or_default();
    Err(Failure::usage(format!(
        "{option} {value} is not a multiple of the block size of namespace {}, {block} bytes; try {below}{above}",
        ns.nsid()
    )))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        connect: ConnectArgs,
    }

    #[test]
    fn sq_flow_control_is_gone_without_unless_it_is_asked_for() {
        for (argument, disable) in [
            (None, true),
            (Some("--disable-sqflow"), true),
            (Some("--disable-sqflow=yes"), true),
            (Some("--disable-sqflow=no"), false),
        ] {
            let line = Line::parse_from(["nvmf"].into_iter().chain(argument));
            let options = line.connect.options(1).unwrap();
            assert_eq!(options.disable_sq_flow_control, disable, "{argument:?}");
        }
        assert!(Line::try_parse_from(["nvmf", "--disable-sqflow=perhaps"]).is_err());
    }
}

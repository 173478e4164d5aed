//! The states of the initialisation, and their names in messages.

/// States, in order. SPDK's `WAIT_FOR_*` states are one flag here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    ConnectAdminQueue,
    ReadVs,
    ReadCap,
    ReadCrto,
    CheckEn,
    DisableWaitReady1,
    SetEn0,
    DisableWaitReady0,
    SetAdminQueue,
    Enable,
    EnableWaitReady1,
    Identify,
    SetUpTransport,
    ConfigureAer,
    KeepAliveTimeout,
    IdentifyControllerNvm,
    SetNumQueues,
    ActiveNamespaces,
    IdentifyNamespace,
    NamespaceDescriptors,
    NamespaceNvm,
    AnaLog,
    HostBehavior,
    HostId,
    Ready,
}

impl State {
    /// What is going on, in words.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::ConnectAdminQueue => "connecting the admin queue",
            Self::ReadVs => "reading the version (VS)",
            Self::ReadCap => "reading the capabilities (CAP)",
            Self::ReadCrto => "reading the ready timeouts (CRTO)",
            Self::CheckEn => "reading the configuration (CC)",
            Self::DisableWaitReady1 => "waiting for CSTS.RDY=1 before disabling the controller",
            Self::SetEn0 => "disabling the controller (CC.EN=0)",
            Self::DisableWaitReady0 => "waiting for CSTS.RDY=0",
            Self::SetAdminQueue => "setting up the admin queue registers",
            Self::Enable => "enabling the controller (CC.EN=1)",
            Self::EnableWaitReady1 => "waiting for CSTS.RDY=1",
            Self::Identify => "identifying the controller",
            Self::SetUpTransport => "preparing the transport",
            Self::ConfigureAer => "configuring asynchronous events",
            Self::KeepAliveTimeout => "reading the keep alive timeout",
            Self::IdentifyControllerNvm => "reading the NVM command set's controller data",
            Self::SetNumQueues => "setting the number of queues",
            Self::ActiveNamespaces => "listing the active namespaces",
            Self::IdentifyNamespace => "identifying a namespace",
            Self::NamespaceDescriptors => "reading a namespace's identification descriptors",
            Self::NamespaceNvm => "reading a namespace's NVM command set data",
            Self::AnaLog => "reading the ANA log page",
            Self::HostBehavior => "setting host behavior support",
            Self::HostId => "setting the host identifier",
            Self::Ready => "ready",
        }
    }
}

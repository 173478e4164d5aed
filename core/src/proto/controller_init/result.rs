//! What initialisation finds out.

use std::time::Duration;

use zerocopy::FromZeros;

use crate::spec::identify::{
    IdentifyController, IdentifyControllerNvm, IdentifyNamespace, IdentifyNamespaceNvm,
};
use crate::spec::log_page::{AnaLog, AnaState};
use crate::spec::registers::{Cap, Version};

/// A namespace as initialisation found it.
#[derive(Clone, Debug)]
pub struct NamespaceInfo {
    /// Namespace identifier.
    pub nsid: u32,
    /// Identify Namespace (CNS 00h).
    pub identify: Box<IdentifyNamespace>,
    /// UUID from the descriptors.
    pub uuid: Option<[u8; 16]>,
    /// NGUID, from the descriptors or Identify Namespace; none when zero.
    pub nguid: Option<[u8; 16]>,
    /// EUI-64, from the descriptors or Identify Namespace; none when zero.
    pub eui64: Option<[u8; 8]>,
    /// Command set identifier; 0 is NVM.
    pub csi: u8,
    /// NVM command set specific data (CNS 05h), where the controller has it.
    pub nvm: Option<Box<IdentifyNamespaceNvm>>,
}

impl NamespaceInfo {
    pub(super) fn empty(nsid: u32) -> Self {
        Self { nsid, identify: zeroed_box(), uuid: None, nguid: None, eui64: None, csi: 0, nvm: None }
    }
}

/// ANA state of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnaGroup {
    /// Group identifier.
    pub id: u32,
    /// State of this controller's path to the group's namespaces.
    pub state: AnaState,
}

/// What initialisation found out.
#[derive(Clone, Debug)]
pub struct InitResult {
    /// Controller identifier.
    pub cntlid: u16,
    /// Version.
    pub version: Version,
    /// Capabilities.
    pub cap: Cap,
    /// Identify Controller (CNS 01h).
    pub identify: Box<IdentifyController>,
    /// NVM command set limits (CNS 06h), where the controller has them.
    pub identify_nvm: Option<IdentifyControllerNvm>,
    /// Whether it is a discovery controller.
    pub discovery: bool,
    /// Asynchronous events enabled, as in feature 0Bh.
    pub async_events: u32,
    /// Keep alive timeout in force; zero is off.
    pub keep_alive_timeout: Duration,
    /// I/O queues granted.
    pub num_io_queues: u16,
    /// Active namespaces, by identifier.
    pub namespaces: Vec<NamespaceInfo>,
    /// ANA groups, where the controller reports them.
    pub ana_groups: Vec<AnaGroup>,
}

impl InitResult {
    /// Nothing known yet.
    #[must_use]
    pub fn blank(discovery: bool) -> Self {
        Self {
            cntlid: 0,
            version: Version(0),
            cap: Cap(0),
            identify: zeroed_box(),
            identify_nvm: None,
            discovery,
            async_events: 0,
            keep_alive_timeout: Duration::ZERO,
            num_io_queues: 0,
            namespaces: Vec::new(),
            ana_groups: Vec::new(),
        }
    }
}

fn zeroed_box<T: FromZeros>() -> Box<T> {
    Box::new(T::new_zeroed())
}

/// Reads the groups of an ANA log page; a descriptor that makes no sense ends the list.
#[must_use]
pub fn parse_ana(log: &[u8]) -> Vec<AnaGroup> {
    let mut groups = Vec::new();
    match AnaLog::new(log) {
        Ok(log) => {
            for group in log.groups() {
                match group {
                    Ok(group) => groups.push(AnaGroup { id: group.id(), state: group.state() }),
                    Err(error) => {
                        tracing::warn!(%error, "the ANA log page is cut short");
                        break;
                    }
                }
            }
        }
        Err(error) => tracing::warn!(%error, "the ANA log page makes no sense"),
    }
    groups
}

/// Whether every group that the header of an ANA log page announces is there.
pub(super) fn is_whole_ana_log(log: &[u8]) -> bool {
    AnaLog::new(log).is_ok_and(|log| log.groups().all(|group| group.is_ok()))
}

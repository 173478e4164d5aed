//! Identify data structures. NVMe Base 2.1 §5.1.13; NVM Command Set 1.1 §4.1.5.
//!
//! Everything here arrives from a controller and is hostile until checked: texts are cleaned before they can
//! reach a terminal, indices and lengths are checked before use.

mod bits;
mod controller;
mod controller_nvm;
mod list;
mod namespace;
pub mod text;

pub use bits::{anacap, cmic, ctratt, lpa, oacs, oncs};
pub use controller::{IDENTIFY_SIZE, IdentifyController, PowerStateDescriptor};
pub use controller_nvm::IdentifyControllerNvm;
pub use list::{
    NamespaceDescriptor, NamespaceDescriptorError, NamespaceDescriptors, NamespaceList, NamespaceListError,
};
pub use namespace::{ExtendedLbaFormat, IdentifyNamespace, IdentifyNamespaceNvm, LbaFormat};

/// The namespace identifier that means all namespaces.
pub const NSID_BROADCAST: u32 = 0xffff_ffff;

/// The largest valid namespace identifier (Base 2.1 §3.2.1).
pub const NSID_MAX: u32 = 0xffff_fffd;

open_enum! {
    /// CNS: what Identify returns (Base 2.1 §5.1.13.1).
    pub struct Cns(u8) {
        /// Namespace data structure of the NVM command set for an active NSID.
        NAMESPACE = 0x00 => "namespace",
        /// Controller data structure.
        CONTROLLER = 0x01 => "controller",
        /// Active namespace list: up to 1024 NSIDs greater than the one given.
        ACTIVE_NAMESPACE_LIST = 0x02 => "active namespace list",
        /// Namespace identification descriptor list.
        NAMESPACE_DESCRIPTORS = 0x03 => "namespace identification descriptor list",
        /// NVM set list.
        NVM_SET_LIST = 0x04 => "NVM set list",
        /// I/O command set specific namespace data structure.
        CSI_NAMESPACE = 0x05 => "I/O command set specific namespace",
        /// I/O command set specific controller data structure.
        CSI_CONTROLLER = 0x06 => "I/O command set specific controller",
        /// Active namespace list of one I/O command set.
        CSI_ACTIVE_NAMESPACE_LIST = 0x07 => "I/O command set specific active namespace list",
        /// Namespace data structure independent of the I/O command set.
        INDEPENDENT_NAMESPACE = 0x08 => "I/O command set independent namespace",
        /// Namespace data structure for a user data format.
        NAMESPACE_USER_DATA_FORMAT = 0x09 => "namespace for a user data format",
        /// I/O command set specific namespace data structure for a user data format.
        CSI_NAMESPACE_USER_DATA_FORMAT = 0x0a => "I/O command set specific namespace for a user data format",
        /// Allocated namespace list.
        ALLOCATED_NAMESPACE_LIST = 0x10 => "allocated namespace list",
        /// Namespace data structure for an allocated NSID.
        ALLOCATED_NAMESPACE = 0x11 => "allocated namespace",
        /// Controllers attached to a namespace.
        NAMESPACE_CONTROLLER_LIST = 0x12 => "controllers attached to a namespace",
        /// Controllers in the NVM subsystem.
        CONTROLLER_LIST = 0x13 => "controllers in the NVM subsystem",
        /// Primary controller capabilities.
        PRIMARY_CONTROLLER_CAPABILITIES = 0x14 => "primary controller capabilities",
        /// Secondary controller list.
        SECONDARY_CONTROLLER_LIST = 0x15 => "secondary controller list",
        /// Namespace granularity list.
        NAMESPACE_GRANULARITY_LIST = 0x16 => "namespace granularity list",
        /// UUID list.
        UUID_LIST = 0x17 => "UUID list",
        /// Domain list.
        DOMAIN_LIST = 0x18 => "domain list",
        /// Endurance group list.
        ENDURANCE_GROUP_LIST = 0x19 => "endurance group list",
        /// Allocated namespace list of one I/O command set.
        CSI_ALLOCATED_NAMESPACE_LIST = 0x1a => "I/O command set specific allocated namespace list",
        /// I/O command set specific namespace data structure for an allocated NSID.
        CSI_ALLOCATED_NAMESPACE = 0x1b => "I/O command set specific allocated namespace",
        /// Combinations of I/O command sets.
        IO_COMMAND_SETS = 0x1c => "I/O command set combinations",
        /// Underlying namespace list.
        UNDERLYING_NAMESPACE_LIST = 0x1d => "underlying namespace list",
        /// Ports list.
        PORTS_LIST = 0x1e => "ports list",
        /// I/O command set independent namespace data structure for an allocated NSID.
        INDEPENDENT_ALLOCATED_NAMESPACE = 0x1f => "I/O command set independent allocated namespace",
        /// Supported controller state formats.
        CONTROLLER_STATE_FORMATS = 0x20 => "supported controller state formats",
    }
}

open_enum! {
    /// CSI: I/O command set identifier (Base 2.1 §3.1.3.7).
    pub struct Csi(u8) {
        /// NVM command set.
        NVM = 0x00 => "NVM",
        /// Key Value command set.
        KEY_VALUE = 0x01 => "Key Value",
        /// Zoned Namespace command set.
        ZONED = 0x02 => "Zoned Namespace",
        /// Subsystem Local Memory command set.
        SUBSYSTEM_LOCAL_MEMORY = 0x03 => "Subsystem Local Memory",
        /// Computational Programs command set.
        COMPUTATIONAL_PROGRAMS = 0x04 => "Computational Programs",
    }
}

open_enum! {
    /// CNTRLTYPE: controller type.
    pub struct ControllerType(u8) {
        /// Not reported: a controller of NVMe 1.3 or older.
        NOT_REPORTED = 0 => "not reported",
        /// I/O controller.
        IO = 1 => "I/O controller",
        /// Discovery controller.
        DISCOVERY = 2 => "discovery controller",
        /// Administrative controller.
        ADMINISTRATIVE = 3 => "administrative controller",
    }
}

open_enum! {
    /// DCTYPE: discovery controller type.
    pub struct DiscoveryControllerType(u8) {
        /// Not reported.
        NOT_REPORTED = 0 => "not reported",
        /// Direct discovery controller.
        DIRECT = 1 => "direct discovery controller",
        /// Central discovery controller.
        CENTRAL = 2 => "central discovery controller",
    }
}

#[cfg(test)]
mod tests;

//! The bits of Identify Controller's fields.

/// Bits of CMIC, controller multi-path and sharing.
pub mod cmic {
    /// The subsystem may have more than one port.
    pub const MULTIPLE_PORTS: u8 = 1 << 0;
    /// The subsystem may have more than one controller.
    pub const MULTIPLE_CONTROLLERS: u8 = 1 << 1;
    /// The controller is an SR-IOV virtual function.
    pub const VIRTUAL_FUNCTION: u8 = 1 << 2;
    /// The subsystem reports asymmetric namespace access.
    pub const ANA_REPORTING: u8 = 1 << 3;
}

/// Bits of CTRATT, controller attributes.
pub mod ctratt {
    /// 128-bit host identifiers.
    pub const HOST_IDENTIFIER_128: u32 = 1 << 0;
    /// Non-operational power state permissive mode.
    pub const NON_OPERATIONAL_PERMISSIVE: u32 = 1 << 1;
    /// NVM sets.
    pub const NVM_SETS: u32 = 1 << 2;
    /// Read recovery levels.
    pub const READ_RECOVERY_LEVELS: u32 = 1 << 3;
    /// Endurance groups.
    pub const ENDURANCE_GROUPS: u32 = 1 << 4;
    /// Predictable latency mode.
    pub const PREDICTABLE_LATENCY: u32 = 1 << 5;
    /// Traffic based keep alive: any command restarts the keep alive timer.
    pub const TRAFFIC_BASED_KEEP_ALIVE: u32 = 1 << 6;
    /// Namespace granularity.
    pub const NAMESPACE_GRANULARITY: u32 = 1 << 7;
    /// SQ associations.
    pub const SQ_ASSOCIATIONS: u32 = 1 << 8;
    /// UUID list.
    pub const UUID_LIST: u32 = 1 << 9;
    /// Multi-domain subsystem.
    pub const MULTI_DOMAIN: u32 = 1 << 10;
    /// Fixed capacity management.
    pub const FIXED_CAPACITY_MANAGEMENT: u32 = 1 << 11;
    /// Variable capacity management.
    pub const VARIABLE_CAPACITY_MANAGEMENT: u32 = 1 << 12;
    /// Delete endurance group.
    pub const DELETE_ENDURANCE_GROUP: u32 = 1 << 13;
    /// Delete NVM set.
    pub const DELETE_NVM_SET: u32 = 1 << 14;
    /// Extended LBA formats.
    pub const EXTENDED_LBA_FORMATS: u32 = 1 << 15;
    /// MDTS and the other size limits do not count interleaved metadata.
    pub const LIMITS_EXCLUDE_METADATA: u32 = 1 << 16;
    /// Host memory buffer may be restricted to non-operational states.
    pub const HOST_MEMORY_BUFFER_RESTRICTION: u32 = 1 << 17;
    /// Reservations are tied to the host identifier.
    pub const RESERVATIONS_BY_HOST_IDENTIFIER: u32 = 1 << 18;
    /// Flexible data placement.
    pub const FLEXIBLE_DATA_PLACEMENT: u32 = 1 << 19;
}

/// Bits of OACS, optional admin commands.
pub mod oacs {
    /// Security Send and Receive.
    pub const SECURITY: u16 = 1 << 0;
    /// Format NVM.
    pub const FORMAT: u16 = 1 << 1;
    /// Firmware Commit and Firmware Image Download.
    pub const FIRMWARE: u16 = 1 << 2;
    /// Namespace Management and Attachment.
    pub const NAMESPACE_MANAGEMENT: u16 = 1 << 3;
    /// Device Self-test.
    pub const SELF_TEST: u16 = 1 << 4;
    /// Directives.
    pub const DIRECTIVES: u16 = 1 << 5;
    /// NVMe-MI Send and Receive.
    pub const NVME_MI: u16 = 1 << 6;
    /// Virtualization Management.
    pub const VIRTUALIZATION: u16 = 1 << 7;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u16 = 1 << 8;
    /// Get LBA Status.
    pub const GET_LBA_STATUS: u16 = 1 << 9;
    /// Command and Feature Lockdown.
    pub const LOCKDOWN: u16 = 1 << 10;
    /// Host managed live migration.
    pub const LIVE_MIGRATION: u16 = 1 << 11;
}

/// Bits of ONCS, optional I/O commands.
pub mod oncs {
    /// Compare.
    pub const COMPARE: u16 = 1 << 0;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u16 = 1 << 1;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u16 = 1 << 2;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u16 = 1 << 3;
    /// The Save and Select fields of Set and Get Features.
    pub const SAVE_AND_SELECT: u16 = 1 << 4;
    /// Reservations.
    pub const RESERVATIONS: u16 = 1 << 5;
    /// Timestamp feature.
    pub const TIMESTAMP: u16 = 1 << 6;
    /// Verify.
    pub const VERIFY: u16 = 1 << 7;
    /// Copy.
    pub const COPY: u16 = 1 << 8;
    /// Copy is atomic as one write.
    pub const COPY_SINGLE_ATOMICITY: u16 = 1 << 9;
    /// All copies are fast copies.
    pub const ALL_FAST_COPY: u16 = 1 << 10;
    /// Write Zeroes with Deallocate has its own size limit.
    pub const WRITE_ZEROES_DEALLOCATE: u16 = 1 << 11;
    /// Write Zeroes may clear a whole namespace.
    pub const NAMESPACE_ZEROES: u16 = 1 << 12;
}

/// Bits of LPA, log page attributes.
pub mod lpa {
    /// The SMART log exists per namespace.
    pub const SMART_PER_NAMESPACE: u8 = 1 << 0;
    /// Commands Supported and Effects log page.
    pub const COMMAND_EFFECTS: u8 = 1 << 1;
    /// 32-bit NUMD and log page offsets.
    pub const EXTENDED_DATA: u8 = 1 << 2;
    /// Telemetry log pages.
    pub const TELEMETRY: u8 = 1 << 3;
    /// Persistent event log.
    pub const PERSISTENT_EVENT: u8 = 1 << 4;
    /// Supported Log Pages, Feature Identifiers Effects and related pages.
    pub const SUPPORTED_PAGES: u8 = 1 << 5;
    /// Telemetry data area 4.
    pub const TELEMETRY_AREA_4: u8 = 1 << 6;
}

/// Bits of ANACAP, asymmetric namespace access capabilities.
pub mod anacap {
    /// Reports the optimized state.
    pub const OPTIMIZED: u8 = 1 << 0;
    /// Reports the non-optimized state.
    pub const NON_OPTIMIZED: u8 = 1 << 1;
    /// Reports the inaccessible state.
    pub const INACCESSIBLE: u8 = 1 << 2;
    /// Reports the persistent loss state.
    pub const PERSISTENT_LOSS: u8 = 1 << 3;
    /// Reports the change state.
    pub const CHANGE: u8 = 1 << 4;
    /// A namespace's ANAGRPID does not change while it is attached.
    pub const GROUP_ID_STATIC: u8 = 1 << 6;
    /// Namespace Management takes a non-zero ANAGRPID.
    pub const GROUP_ID_IN_MANAGEMENT: u8 = 1 << 7;
}

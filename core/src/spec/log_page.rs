//! Log pages, and the asynchronous events that say which of them to read. NVMe Base 2.1 §5.1.12 and §5.1.2.
//!
//! The discovery log page is in [`super::discovery`].

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::command::{AdminOpcode, Sqe};
use super::identify::text::lossy_text;
use super::identify::{Csi, NamespaceList};
use super::status::Status;

mod ana;
mod event;

pub use ana::{AnaGroup, AnaGroupDescriptor, AnaGroups, AnaLog, AnaLogError, AnaLogHeader, AnaState};
pub use event::{AsyncEvent, AsyncEventType, ErrorEvent, HealthEvent, IoCommandSetEvent, NoticeEvent};

open_enum! {
    /// Log page identifiers.
    pub struct LogPageId(u8) {
        /// Supported Log Pages.
        SUPPORTED_LOG_PAGES = 0x00 => "Supported Log Pages",
        /// Error Information.
        ERROR_INFORMATION = 0x01 => "Error Information",
        /// SMART / Health Information.
        SMART = 0x02 => "SMART / Health Information",
        /// Firmware Slot Information.
        FIRMWARE_SLOT = 0x03 => "Firmware Slot Information",
        /// Changed Attached Namespace List.
        CHANGED_NAMESPACES = 0x04 => "Changed Attached Namespace List",
        /// Commands Supported and Effects.
        COMMAND_EFFECTS = 0x05 => "Commands Supported and Effects",
        /// Device Self-test.
        DEVICE_SELF_TEST = 0x06 => "Device Self-test",
        /// Telemetry Host-Initiated.
        TELEMETRY_HOST = 0x07 => "Telemetry Host-Initiated",
        /// Telemetry Controller-Initiated.
        TELEMETRY_CONTROLLER = 0x08 => "Telemetry Controller-Initiated",
        /// Endurance Group Information.
        ENDURANCE_GROUP = 0x09 => "Endurance Group Information",
        /// Predictable Latency Per NVM Set.
        PREDICTABLE_LATENCY = 0x0a => "Predictable Latency Per NVM Set",
        /// Predictable Latency Event Aggregate.
        PREDICTABLE_LATENCY_EVENTS = 0x0b => "Predictable Latency Event Aggregate",
        /// Asymmetric Namespace Access.
        ANA = 0x0c => "Asymmetric Namespace Access",
        /// Persistent Event Log.
        PERSISTENT_EVENT = 0x0d => "Persistent Event Log",
        /// LBA Status Information.
        LBA_STATUS = 0x0e => "LBA Status Information",
        /// Endurance Group Event Aggregate.
        ENDURANCE_GROUP_EVENTS = 0x0f => "Endurance Group Event Aggregate",
        /// Media Unit Status.
        MEDIA_UNIT_STATUS = 0x10 => "Media Unit Status",
        /// Supported Capacity Configuration List.
        CAPACITY_CONFIGURATIONS = 0x11 => "Supported Capacity Configuration List",
        /// Feature Identifiers Supported and Effects.
        FEATURE_EFFECTS = 0x12 => "Feature Identifiers Supported and Effects",
        /// NVMe-MI Commands Supported and Effects.
        NVME_MI_EFFECTS = 0x13 => "NVMe-MI Commands Supported and Effects",
        /// Command and Feature Lockdown.
        LOCKDOWN = 0x14 => "Command and Feature Lockdown",
        /// Boot Partition.
        BOOT_PARTITION = 0x15 => "Boot Partition",
        /// Rotational Media Information.
        ROTATIONAL_MEDIA = 0x16 => "Rotational Media Information",
        /// Dispersed Namespace Participating NVM Subsystems.
        DISPERSED_NAMESPACE = 0x17 => "Dispersed Namespace Participating NVM Subsystems",
        /// Management Address List.
        MANAGEMENT_ADDRESSES = 0x18 => "Management Address List",
        /// Physical Interface Receiver Eye Opening Measurement.
        EYE_OPENING = 0x19 => "Physical Interface Receiver Eye Opening Measurement",
        /// Reachability Groups.
        REACHABILITY_GROUPS = 0x1a => "Reachability Groups",
        /// Reachability Associations.
        REACHABILITY_ASSOCIATIONS = 0x1b => "Reachability Associations",
        /// Changed Allocated Namespace List.
        CHANGED_ALLOCATED_NAMESPACES = 0x1c => "Changed Allocated Namespace List",
        /// FDP Configurations.
        FDP_CONFIGURATIONS = 0x20 => "FDP Configurations",
        /// Reclaim Unit Handle Usage.
        RECLAIM_UNIT_HANDLE_USAGE = 0x21 => "Reclaim Unit Handle Usage",
        /// FDP Statistics.
        FDP_STATISTICS = 0x22 => "FDP Statistics",
        /// FDP Events.
        FDP_EVENTS = 0x23 => "FDP Events",
        /// Discovery.
        DISCOVERY = 0x70 => "Discovery",
        /// Host Discovery.
        HOST_DISCOVERY = 0x71 => "Host Discovery",
        /// AVE Discovery.
        AVE_DISCOVERY = 0x72 => "AVE Discovery",
        /// Pull Model DDC Request.
        PULL_MODEL_DDC_REQUEST = 0x73 => "Pull Model DDC Request",
        /// Reservation Notification.
        RESERVATION_NOTIFICATION = 0x80 => "Reservation Notification",
        /// Sanitize Status.
        SANITIZE_STATUS = 0x81 => "Sanitize Status",
        /// Changed Zone List.
        CHANGED_ZONES = 0xbf => "Changed Zone List",
    }
}

/// The fields of a Get Log Page command (Base 2.1 §5.1.12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetLogPage {
    /// Log page.
    pub lid: LogPageId,
    /// LSP: log specific, 7 bits.
    pub lsp: u8,
    /// RAE: reading does not clear the asynchronous event that announced the page.
    pub retain_event: bool,
    /// LSI: log specific identifier.
    pub lsi: u16,
    /// NUMD: dwords to return, 0's based.
    pub numd_z: u32,
    /// LPO: byte offset into the page, a multiple of 4.
    pub offset: u64,
}

impl GetLogPage {
    /// Reads `length` bytes of a page at `offset`. `None` unless `length` is a multiple of 4, 4 bytes to 16 GiB,
    /// and `offset` is a multiple of 4.
    #[must_use]
    pub const fn new(lid: LogPageId, offset: u64, length: u64) -> Option<Self> {
        if length == 0 || !length.is_multiple_of(4) || length / 4 > 1 << 32 || !offset.is_multiple_of(4) {
            return None;
        }
        Some(Self { lid, lsp: 0, retain_event: false, lsi: 0, numd_z: (length / 4 - 1) as u32, offset })
    }

    /// The same, with this log specific parameter (7 bits).
    #[must_use]
    pub const fn with_lsp(mut self, lsp: u8) -> Self {
        self.lsp = lsp & 0x7f;
        self
    }

    /// The same, without clearing the event.
    #[must_use]
    pub const fn retaining_event(mut self) -> Self {
        self.retain_event = true;
        self
    }

    /// Bytes to return, 4 to 16 GiB.
    #[must_use]
    pub const fn length(&self) -> u64 {
        (self.numd_z as u64 + 1) * 4
    }

    /// CDW10 to CDW13.
    #[must_use]
    pub const fn to_cdw10_13(&self) -> [u32; 4] {
        [
            self.lid.0 as u32
                | (self.lsp as u32 & 0x7f) << 8
                | (self.retain_event as u32) << 15
                | (self.numd_z & 0xffff) << 16,
            self.numd_z >> 16 | (self.lsi as u32) << 16,
            self.offset as u32,
            (self.offset >> 32) as u32,
        ]
    }

    /// The command, for log pages of `nsid`; 0 or FFFFFFFFh for those of the controller.
    #[must_use]
    pub fn to_sqe(&self, nsid: u32) -> Sqe {
        let [cdw10, cdw11, cdw12, cdw13] = self.to_cdw10_13();
        Sqe::admin(AdminOpcode::GET_LOG_PAGE, nsid)
            .with_cdw10(cdw10)
            .with_cdw11(cdw11)
            .with_cdw12(cdw12)
            .with_cdw13(cdw13)
    }

    /// The fields as the controller role reads them from CDW10 to CDW13. The offset is whatever the host sent.
    #[must_use]
    pub const fn from_cdw10_13([cdw10, cdw11, cdw12, cdw13]: [u32; 4]) -> Self {
        Self {
            lid: LogPageId(cdw10 as u8),
            lsp: (cdw10 >> 8) as u8 & 0x7f,
            retain_event: cdw10 & 1 << 15 != 0,
            lsi: (cdw11 >> 16) as u16,
            numd_z: cdw10 >> 16 | cdw11 << 16,
            offset: cdw12 as u64 | (cdw13 as u64) << 32,
        }
    }
}

/// An entry of the Error Information log page (Base 2.1 §5.1.12.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Unique identifier of the error; 0 marks an invalid entry.
    pub error_count: U64,
    /// Submission queue of the command; FFFFh if none.
    pub sqid: U16,
    /// Command identifier; FFFFh if none.
    pub cid: U16,
    /// Status in bits 15:1, phase tag in bit 0.
    pub status_phase: U16,
    /// Byte (7:0) and bit (10:8) of the command at fault; FFFFh if none.
    pub parameter_error_location: U16,
    /// First LBA at fault.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Log page that has vendor specific details; 0 if none.
    pub vendor_log_page: u8,
    /// Transport type, as in the discovery log; 0 not reported.
    pub trtype: u8,
    /// I/O command set, valid if `log_page_version` is 1 or more.
    pub csi: Csi,
    /// Opcode, valid if `log_page_version` is 1 or more.
    pub opcode: u8,
    /// Command specific information.
    pub command_specific: U64,
    /// Transport specific information.
    pub transport_specific: U16,
    /// Reserved.
    pub reserved_42: [u8; 21],
    /// Version of this entry.
    pub log_page_version: u8,
}

const _: () = assert!(size_of::<ErrorLogEntry>() == 64);
const _: () = assert!(offset_of!(ErrorLogEntry, status_phase) == 12);
const _: () = assert!(offset_of!(ErrorLogEntry, lba) == 16);
const _: () = assert!(offset_of!(ErrorLogEntry, nsid) == 24);
const _: () = assert!(offset_of!(ErrorLogEntry, command_specific) == 32);
const _: () = assert!(offset_of!(ErrorLogEntry, log_page_version) == 63);

impl ErrorLogEntry {
    /// Whether the entry holds an error.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.error_count.get() != 0
    }

    /// Status of the command.
    #[must_use]
    pub const fn status(&self) -> Status {
        Status(self.status_phase.get() >> 1)
    }

    /// Byte and bit of the submission queue entry at fault.
    #[must_use]
    pub const fn parameter_error(&self) -> Option<(u8, u8)> {
        match self.parameter_error_location.get() {
            0xffff => None,
            location => Some((location as u8, (location >> 8) as u8 & 7)),
        }
    }
}

/// Critical warning bits of the SMART log, byte 0.
pub mod critical_warning {
    /// Available spare is below its threshold.
    pub const SPARE_LOW: u8 = 1 << 0;
    /// A temperature is beyond a threshold.
    pub const TEMPERATURE: u8 = 1 << 1;
    /// Reliability is degraded by media or internal errors.
    pub const RELIABILITY_DEGRADED: u8 = 1 << 2;
    /// The media is read only.
    pub const READ_ONLY: u8 = 1 << 3;
    /// The volatile memory backup failed.
    pub const BACKUP_FAILED: u8 = 1 << 4;
    /// The persistent memory region is read only or unreliable.
    pub const PMR_UNRELIABLE: u8 = 1 << 5;
}

/// SMART / Health Information log page (Base 2.1 §5.1.12.1.3). The 16-byte counters are little endian; read
/// them with [`counter`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// See [`critical_warning`].
    pub critical_warning: u8,
    /// Composite temperature, kelvin.
    pub composite_temperature: U16,
    /// Available spare, percent.
    pub available_spare: u8,
    /// Available spare threshold, percent.
    pub available_spare_threshold: u8,
    /// Life used, percent; may exceed 100, 255 is 255 or more.
    pub percentage_used: u8,
    /// Endurance group critical warning summary.
    pub endurance_group_warning: u8,
    /// Reserved.
    pub reserved_7: [u8; 25],
    /// Data read by hosts, units of 1000 × 512 bytes.
    pub data_units_read: [u8; 16],
    /// Data written by hosts, units of 1000 × 512 bytes.
    pub data_units_written: [u8; 16],
    /// Read commands completed.
    pub host_read_commands: [u8; 16],
    /// Write commands completed.
    pub host_write_commands: [u8; 16],
    /// Time busy with I/O, minutes.
    pub controller_busy_time: [u8; 16],
    /// Power cycles.
    pub power_cycles: [u8; 16],
    /// Power-on hours.
    pub power_on_hours: [u8; 16],
    /// Unsafe shutdowns.
    pub unsafe_shutdowns: [u8; 16],
    /// Media and data integrity errors.
    pub media_errors: [u8; 16],
    /// Error Information log entries over the controller's life.
    pub error_log_entries: [u8; 16],
    /// Time above the warning temperature, minutes.
    pub warning_temperature_time: U32,
    /// Time above the critical temperature, minutes.
    pub critical_temperature_time: U32,
    /// Temperature sensors 1 to 8, kelvin; 0 not implemented.
    pub temperature_sensors: [U16; 8],
    /// Transitions to thermal management temperature 1.
    pub thermal_1_transitions: U32,
    /// Transitions to thermal management temperature 2.
    pub thermal_2_transitions: U32,
    /// Time in thermal management temperature 1, seconds.
    pub thermal_1_time: U32,
    /// Time in thermal management temperature 2, seconds.
    pub thermal_2_time: U32,
    /// Reserved.
    pub reserved_232: [u8; 280],
}

const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = assert!(offset_of!(SmartLog, composite_temperature) == 1);
const _: () = assert!(offset_of!(SmartLog, percentage_used) == 5);
const _: () = assert!(offset_of!(SmartLog, data_units_read) == 32);
const _: () = assert!(offset_of!(SmartLog, power_on_hours) == 128);
const _: () = assert!(offset_of!(SmartLog, error_log_entries) == 176);
const _: () = assert!(offset_of!(SmartLog, warning_temperature_time) == 192);
const _: () = assert!(offset_of!(SmartLog, temperature_sensors) == 200);
const _: () = assert!(offset_of!(SmartLog, thermal_2_time) == 228);

/// A 16-byte little-endian counter as a number.
#[must_use]
pub const fn counter(bytes: [u8; 16]) -> u128 {
    u128::from_le_bytes(bytes)
}

/// Kelvin to degrees Celsius, as NVMe tools round it (273); `None` for 0, which means not reported.
#[must_use]
pub const fn celsius(kelvin: u16) -> Option<i32> {
    match kelvin {
        0 => None,
        kelvin => Some(kelvin as i32 - 273),
    }
}

impl SmartLog {
    /// Composite temperature in degrees Celsius.
    #[must_use]
    pub const fn composite_celsius(&self) -> Option<i32> {
        celsius(self.composite_temperature.get())
    }

    /// Bytes read by hosts; saturates.
    #[must_use]
    pub const fn bytes_read(&self) -> u128 {
        counter(self.data_units_read).saturating_mul(512_000)
    }

    /// Bytes written by hosts; saturates.
    #[must_use]
    pub const fn bytes_written(&self) -> u128 {
        counter(self.data_units_written).saturating_mul(512_000)
    }
}

/// Firmware Slot Information log page (Base 2.1 §5.1.12.1.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// AFI: active slot in bits 2:0, slot active after the next reset in bits 6:4 (0 not stated).
    pub afi: u8,
    /// Reserved.
    pub reserved_1: [u8; 7],
    /// Firmware revisions of slots 1 to 7; all zero if empty.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved_64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);
const _: () = assert!(offset_of!(FirmwareSlotLog, frs) == 8);

impl FirmwareSlotLog {
    /// The slot the running firmware came from, 1..=7 in a valid log.
    #[must_use]
    pub const fn active_slot(&self) -> u8 {
        self.afi & 7
    }

    /// The slot to be activated at the next controller level reset.
    #[must_use]
    pub const fn next_slot(&self) -> Option<u8> {
        match self.afi >> 4 & 7 {
            0 => None,
            slot => Some(slot),
        }
    }

    /// Firmware revision in a slot, 1..=7, safe to print; `None` if there is no such slot or it is empty.
    #[must_use]
    pub fn revision(&self, slot: u8) -> Option<String> {
        let revision = self.frs.get(usize::from(slot).checked_sub(1)?)?;
        (*revision != [0; 8]).then(|| lossy_text(revision))
    }
}

/// What the Changed Attached Namespace List log page says (Base 2.1 §5.1.12.1.5).
#[derive(Clone, Debug)]
pub enum ChangedNamespaces<'a> {
    /// More than 1024 namespaces changed: look at all of them.
    TooMany,
    /// These changed.
    List(NamespaceList<'a>),
}

impl<'a> ChangedNamespaces<'a> {
    /// Reads the log page.
    #[must_use]
    pub fn new(page: &'a [u8]) -> Self {
        // FFFFFFFFh in the first entry, zero in the others.
        if page.starts_with(&[0xff; 4]) { Self::TooMany } else { Self::List(NamespaceList::new(page, 0)) }
    }
}

/// An entry of the Commands Supported and Effects log page (Base 2.1 §5.1.12.1.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CommandEffects(pub u32);

impl CommandEffects {
    /// CSUPP: the command is supported; all else is valid only then.
    #[must_use]
    pub const fn is_supported(self) -> bool {
        self.0 & 1 << 0 != 0
    }

    /// LBCC: may change the content of logical blocks.
    #[must_use]
    pub const fn changes_content(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// NCC: may change a namespace's capability.
    #[must_use]
    pub const fn changes_namespace_capability(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// NIC: may change the number of namespaces or their attachment.
    #[must_use]
    pub const fn changes_namespace_inventory(self) -> bool {
        self.0 & 1 << 3 != 0
    }

    /// CCC: may change the controller's capability.
    #[must_use]
    pub const fn changes_controller_capability(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// CSE: 0 no restriction, 1 not along with another command on the namespace, 2 not along with any other.
    #[must_use]
    pub const fn submission_restriction(self) -> u8 {
        (self.0 >> 16) as u8 & 7
    }

    /// USS: the command takes a UUID index.
    #[must_use]
    pub const fn takes_uuid_index(self) -> bool {
        self.0 & 1 << 19 != 0
    }

    /// CSP: scope, bits 31:20; 0 is not reported.
    #[must_use]
    pub const fn scope(self) -> u16 {
        (self.0 >> 20) as u16
    }
}

/// Commands Supported and Effects log page (Base 2.1 §5.1.12.1.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandEffectsLog {
    /// Admin commands, by opcode.
    pub acs: [U32; 256],
    /// I/O commands, by opcode.
    pub iocs: [U32; 256],
    /// Reserved.
    pub reserved_2048: [u8; 2048],
}

const _: () = assert!(size_of::<CommandEffectsLog>() == 4096);
const _: () = assert!(offset_of!(CommandEffectsLog, iocs) == 1024);

impl CommandEffectsLog {
    /// Effects of an admin command.
    #[must_use]
    pub const fn admin(&self, opcode: u8) -> CommandEffects {
        CommandEffects(self.acs[opcode as usize].get())
    }

    /// Effects of an I/O command.
    #[must_use]
    pub const fn io(&self, opcode: u8) -> CommandEffects {
        CommandEffects(self.iocs[opcode as usize].get())
    }
}

#[cfg(test)]
mod tests;

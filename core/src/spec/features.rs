//! Features: what Set Features and Get Features exchange. NVMe Base 2.1 §5.1.11 and
//! §5.1.25.

use core::fmt;
use core::mem::{offset_of, size_of};
use core::time::Duration;

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

open_enum! {
    /// Feature identifiers.
    pub struct FeatureId(u8) {
        /// Arbitration.
        ARBITRATION = 0x01 => "Arbitration",
        /// Power Management.
        POWER_MANAGEMENT = 0x02 => "Power Management",
        /// LBA Range Type.
        LBA_RANGE_TYPE = 0x03 => "LBA Range Type",
        /// Temperature Threshold.
        TEMPERATURE_THRESHOLD = 0x04 => "Temperature Threshold",
        /// Error Recovery.
        ERROR_RECOVERY = 0x05 => "Error Recovery",
        /// Volatile Write Cache.
        VOLATILE_WRITE_CACHE = 0x06 => "Volatile Write Cache",
        /// Number of Queues.
        NUMBER_OF_QUEUES = 0x07 => "Number of Queues",
        /// Interrupt Coalescing.
        INTERRUPT_COALESCING = 0x08 => "Interrupt Coalescing",
        /// Interrupt Vector Configuration.
        INTERRUPT_VECTOR_CONFIG = 0x09 => "Interrupt Vector Configuration",
        /// Write Atomicity Normal.
        WRITE_ATOMICITY_NORMAL = 0x0a => "Write Atomicity Normal",
        /// Asynchronous Event Configuration.
        ASYNC_EVENT_CONFIG = 0x0b => "Asynchronous Event Configuration",
        /// Autonomous Power State Transition.
        AUTONOMOUS_POWER_STATE_TRANSITION = 0x0c => "Autonomous Power State Transition",
        /// Host Memory Buffer.
        HOST_MEMORY_BUFFER = 0x0d => "Host Memory Buffer",
        /// Timestamp.
        TIMESTAMP = 0x0e => "Timestamp",
        /// Keep Alive Timer.
        KEEP_ALIVE_TIMER = 0x0f => "Keep Alive Timer",
        /// Host Controlled Thermal Management.
        HOST_CONTROLLED_THERMAL_MANAGEMENT = 0x10 => "Host Controlled Thermal Management",
        /// Non-Operational Power State Config.
        NON_OPERATIONAL_POWER_STATE_CONFIG = 0x11 => "Non-Operational Power State Config",
        /// Read Recovery Level Config.
        READ_RECOVERY_LEVEL_CONFIG = 0x12 => "Read Recovery Level Config",
        /// Predictable Latency Mode Config.
        PREDICTABLE_LATENCY_MODE_CONFIG = 0x13 => "Predictable Latency Mode Config",
        /// Predictable Latency Mode Window.
        PREDICTABLE_LATENCY_MODE_WINDOW = 0x14 => "Predictable Latency Mode Window",
        /// LBA Status Information Report Interval.
        LBA_STATUS_INFORMATION_INTERVAL = 0x15 => "LBA Status Information Report Interval",
        /// Host Behavior Support.
        HOST_BEHAVIOR_SUPPORT = 0x16 => "Host Behavior Support",
        /// Sanitize Config.
        SANITIZE_CONFIG = 0x17 => "Sanitize Config",
        /// Endurance Group Event Configuration.
        ENDURANCE_GROUP_EVENT_CONFIG = 0x18 => "Endurance Group Event Configuration",
        /// I/O Command Set Profile.
        IO_COMMAND_SET_PROFILE = 0x19 => "I/O Command Set Profile",
        /// Spinup Control.
        SPINUP_CONTROL = 0x1a => "Spinup Control",
        /// Power Loss Signaling Config.
        POWER_LOSS_SIGNALING_CONFIG = 0x1b => "Power Loss Signaling Config",
        /// Performance Characteristics.
        PERFORMANCE_CHARACTERISTICS = 0x1c => "Performance Characteristics",
        /// Flexible Data Placement.
        FLEXIBLE_DATA_PLACEMENT = 0x1d => "Flexible Data Placement",
        /// Flexible Data Placement Events.
        FLEXIBLE_DATA_PLACEMENT_EVENTS = 0x1e => "Flexible Data Placement Events",
        /// Namespace Admin Label.
        NAMESPACE_ADMIN_LABEL = 0x1f => "Namespace Admin Label",
        /// Key Value Configuration.
        KEY_VALUE_CONFIG = 0x20 => "Key Value Configuration",
        /// Controller Data Queue.
        CONTROLLER_DATA_QUEUE = 0x21 => "Controller Data Queue",
        /// Embedded Management Controller Address.
        EMBEDDED_MANAGEMENT_CONTROLLER_ADDRESS = 0x78 => "Embedded Management Controller Address",
        /// Host Management Agent Address.
        HOST_MANAGEMENT_AGENT_ADDRESS = 0x79 => "Host Management Agent Address",
        /// Enhanced Controller Metadata.
        ENHANCED_CONTROLLER_METADATA = 0x7d => "Enhanced Controller Metadata",
        /// Controller Metadata.
        CONTROLLER_METADATA = 0x7e => "Controller Metadata",
        /// Namespace Metadata.
        NAMESPACE_METADATA = 0x7f => "Namespace Metadata",
        /// Software Progress Marker.
        SOFTWARE_PROGRESS_MARKER = 0x80 => "Software Progress Marker",
        /// Host Identifier.
        HOST_IDENTIFIER = 0x81 => "Host Identifier",
        /// Reservation Notification Mask.
        RESERVATION_NOTIFICATION_MASK = 0x82 => "Reservation Notification Mask",
        /// Reservation Persistence.
        RESERVATION_PERSISTENCE = 0x83 => "Reservation Persistence",
        /// Namespace Write Protection Config.
        NAMESPACE_WRITE_PROTECTION_CONFIG = 0x84 => "Namespace Write Protection Config",
        /// Boot Partition Write Protection Config.
        BOOT_PARTITION_WRITE_PROTECTION_CONFIG = 0x85 => "Boot Partition Write Protection Config",
    }
}

open_enum! {
    /// SEL: which value Get Features returns (§5.1.11).
    pub struct FeatureSelect(u8) {
        /// Current value.
        CURRENT = 0 => "current",
        /// Default value.
        DEFAULT = 1 => "default",
        /// Saved value.
        SAVED = 2 => "saved",
        /// Supported capabilities of the feature.
        SUPPORTED_CAPABILITIES = 3 => "supported capabilities",
    }
}

/// CDW10 of Get Features.
#[must_use]
pub const fn get_features_cdw10(fid: FeatureId, select: FeatureSelect) -> u32 {
    fid.0 as u32 | (select.0 as u32 & 7) << 8
}

/// CDW10 of Set Features; `save` asks that the value survive a reset.
#[must_use]
pub const fn set_features_cdw10(fid: FeatureId, save: bool) -> u32 {
    fid.0 as u32 | (save as u32) << 31
}

/// Number of Queues (07h): CDW11 of the request and DW0 of the answer have the same layout.
///
/// Both counts are 0's based on the wire; this type holds real counts, 1..=65535. The answer may grant fewer
/// *or more* than was asked, and the host must not use more than the answer says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NumberOfQueues {
    /// I/O submission queues, 1 or more.
    pub submission: u32,
    /// I/O completion queues, 1 or more.
    pub completion: u32,
}

impl NumberOfQueues {
    /// The same number of submission and completion queues.
    #[must_use]
    pub const fn pairs(count: u32) -> Self {
        Self { submission: count, completion: count }
    }

    /// CDW11, or DW0 of the answer. Counts outside 1..=65535 are brought into it: FFFFh is not allowed.
    #[must_use]
    pub const fn encode(self) -> u32 {
        const fn zeros_based(count: u32) -> u32 {
            match count {
                0 => 0,
                1..=0xffff => count - 1,
                _ => 0xfffe,
            }
        }
        zeros_based(self.submission) | zeros_based(self.completion) << 16
    }

    /// Reads DW0 of the answer (or CDW11, in the controller role).
    #[must_use]
    pub const fn decode(dword: u32) -> Self {
        Self { submission: (dword & 0xffff) + 1, completion: (dword >> 16) + 1 }
    }

    /// Queue pairs the counts suffice for.
    #[must_use]
    pub const fn usable_pairs(self) -> u32 {
        if self.submission < self.completion { self.submission } else { self.completion }
    }
}

/// Asynchronous Event Configuration (0Bh), CDW11 (§5.1.25.1). Identify Controller OAES has the same bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AsyncEventConfig(pub u32);

impl AsyncEventConfig {
    /// SMART / health critical warnings, one bit for each of SMART log byte 0.
    pub const SMART_CRITICAL_WARNINGS: Self = Self(0xff);
    /// A namespace was attached, detached, created, deleted or changed.
    pub const NAMESPACE_ATTRIBUTE: Self = Self(1 << 8);
    /// Firmware activation starts.
    pub const FIRMWARE_ACTIVATION: Self = Self(1 << 9);
    /// The controller-initiated telemetry log has new data.
    pub const TELEMETRY: Self = Self(1 << 10);
    /// An ANA group changed its state.
    pub const ANA_CHANGE: Self = Self(1 << 11);
    /// Predictable latency event aggregate log changed.
    pub const PREDICTABLE_LATENCY: Self = Self(1 << 12);
    /// LBA status information alert.
    pub const LBA_STATUS: Self = Self(1 << 13);
    /// Endurance group event aggregate log changed.
    pub const ENDURANCE_GROUP: Self = Self(1 << 14);
    /// Normal NVM subsystem shutdown.
    pub const SUBSYSTEM_SHUTDOWN: Self = Self(1 << 15);
    /// Temperature threshold hysteresis recovery.
    pub const TEMPERATURE_HYSTERESIS: Self = Self(1 << 16);
    /// Reachability association changed.
    pub const REACHABILITY_ASSOCIATION: Self = Self(1 << 17);
    /// Reachability group changed.
    pub const REACHABILITY_GROUP: Self = Self(1 << 18);
    /// Allocated namespace attribute changed.
    pub const ALLOCATED_NAMESPACE_ATTRIBUTE: Self = Self(1 << 19);
    /// Zone descriptor changed.
    pub const ZONE_DESCRIPTOR: Self = Self(1 << 27);
    /// Pull model DDC request log page changed.
    pub const PULL_MODEL_DDC_REQUEST: Self = Self(1 << 28);
    /// AVE discovery log page changed.
    pub const AVE_DISCOVERY_LOG: Self = Self(1 << 29);
    /// Host discovery log page changed.
    pub const HOST_DISCOVERY_LOG: Self = Self(1 << 30);
    /// Discovery log page changed; the one event a discovery controller is asked for.
    pub const DISCOVERY_LOG: Self = Self(1 << 31);

    /// Whether every event of `other` is on.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The events of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The events on in both: what is wanted and (with OAES) supported.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for AsyncEventConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsyncEventConfig({:#010x})", self.0)
    }
}

/// Keep Alive Timer (0Fh): CDW11 in milliseconds for a timeout; 0 turns the timer off.
///
/// A timeout longer than the field can state (49 days) becomes the longest possible; parts of a millisecond
/// count as one, so that a short timeout never becomes "off".
#[must_use]
pub const fn keep_alive_cdw11(timeout: Duration) -> u32 {
    let ms = timeout.as_nanos().div_ceil(1_000_000);
    if ms > u32::MAX as u128 { u32::MAX } else { ms as u32 }
}

/// Arbitration (01h), CDW11 (§5.1.25.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Arbitration(pub u32);

impl Arbitration {
    /// AB: log2 of the commands a queue may issue in a round; 7 is no limit.
    #[must_use]
    pub const fn burst(self) -> u8 {
        self.0 as u8 & 7
    }

    /// LPW, MPW, HPW: commands of low, medium and high priority queues per round, 0's based.
    #[must_use]
    pub const fn weights_z(self) -> [u8; 3] {
        [(self.0 >> 8) as u8, (self.0 >> 16) as u8, (self.0 >> 24) as u8]
    }
}

/// Volatile Write Cache (06h), DW0 or CDW11: whether the cache is enabled (WCE).
#[must_use]
pub const fn write_cache_enabled(dword: u32) -> bool {
    dword & 1 != 0
}

/// Temperature Threshold (04h), CDW11 (§5.1.25.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TemperatureThreshold(pub u32);

impl TemperatureThreshold {
    /// A threshold in kelvin for a sensor: 0 is the composite temperature, 1..=8 a sensor; `under` for the
    /// lower threshold.
    #[must_use]
    pub const fn new(kelvin: u16, sensor: u8, under: bool) -> Self {
        Self(kelvin as u32 | (sensor as u32 & 0xf) << 16 | (under as u32) << 20)
    }

    /// TMPTH: threshold in kelvin.
    #[must_use]
    pub const fn kelvin(self) -> u16 {
        self.0 as u16
    }

    /// TMPSEL: 0 composite temperature, 1..=8 a sensor, 15 all sensors (Set Features only).
    #[must_use]
    pub const fn sensor(self) -> u8 {
        (self.0 >> 16) as u8 & 0xf
    }

    /// THSEL: whether this is the lower threshold.
    #[must_use]
    pub const fn is_under(self) -> bool {
        self.0 >> 20 & 3 == 1
    }
}

/// Power Management (02h), DW0 or CDW11.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PowerManagement(pub u32);

impl PowerManagement {
    /// PS: power state, 0..=31.
    #[must_use]
    pub const fn power_state(self) -> u8 {
        self.0 as u8 & 0x1f
    }

    /// WH: workload hint.
    #[must_use]
    pub const fn workload_hint(self) -> u8 {
        (self.0 >> 5) as u8 & 7
    }
}

/// Error Recovery (05h), DW0 or CDW11.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ErrorRecovery(pub u32);

impl ErrorRecovery {
    /// TLER: how long the controller may retry before it gives a command up; zero is no limit.
    #[must_use]
    pub const fn time_limit(self) -> Duration {
        Duration::from_millis((self.0 as u16 as u64) * 100)
    }

    /// DULBE: reading deallocated or unwritten blocks is an error.
    #[must_use]
    pub const fn deallocated_block_error(self) -> bool {
        self.0 >> 16 & 1 != 0
    }
}

/// Host Behavior Support (16h) data (§5.1.25.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HostBehaviorSupport {
    /// ACRE: 1 makes the command retry delay (CRD) of a status valid.
    pub acre: u8,
    /// ETDAS: 1 enables the extended telemetry data area 4.
    pub etdas: u8,
    /// LBAFEE: 1 enables the extended LBA formats.
    pub lbafee: u8,
    /// HDISNS: 1 says the host supports dispersed namespaces.
    pub hdisns: u8,
    /// CDFE: copy descriptor formats enabled, bits 4:2.
    pub cdfe: U16,
    /// Reserved.
    pub reserved: [u8; 506],
}

const _: () = assert!(size_of::<HostBehaviorSupport>() == 512);
const _: () = assert!(offset_of!(HostBehaviorSupport, lbafee) == 2);
const _: () = assert!(offset_of!(HostBehaviorSupport, cdfe) == 4);
const _: () = assert!(offset_of!(HostBehaviorSupport, reserved) == 6);

impl Default for HostBehaviorSupport {
    fn default() -> Self {
        Self { acre: 0, etdas: 0, lbafee: 0, hdisns: 0, cdfe: U16::ZERO, reserved: [0; 506] }
    }
}

/// Host Identifier (81h), CDW11: EXHID, the data is a 128-bit identifier. Fabrics allow nothing else, and set
/// it by Connect, not by Set Features.
pub const HOST_IDENTIFIER_EXTENDED: u32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn number_of_queues_is_zeros_based_on_the_wire() {
        assert_eq!(NumberOfQueues::pairs(4).encode(), 0x0003_0003);
        assert_eq!(NumberOfQueues::decode(0x0007_0003), NumberOfQueues { submission: 4, completion: 8 });
        assert_eq!(NumberOfQueues::decode(0x0007_0003).usable_pairs(), 4);
        assert_eq!(NumberOfQueues::decode(0xffff_ffff).usable_pairs(), 0x1_0000);
        // Zero queues cannot be asked for, and FFFFh is forbidden.
        assert_eq!(NumberOfQueues::pairs(0).encode(), 0);
        assert_eq!(NumberOfQueues::pairs(0x1_0000).encode(), 0xfffe_fffe);
    }

    #[test]
    fn keep_alive_rounds_up_and_saturates() {
        assert_eq!(keep_alive_cdw11(Duration::ZERO), 0);
        assert_eq!(keep_alive_cdw11(Duration::from_micros(1)), 1);
        assert_eq!(keep_alive_cdw11(Duration::from_secs(120)), 120_000);
        assert_eq!(keep_alive_cdw11(Duration::MAX), u32::MAX);
    }

    #[test]
    fn async_event_config_bits() {
        let wanted = AsyncEventConfig::NAMESPACE_ATTRIBUTE.union(AsyncEventConfig::ANA_CHANGE);
        assert_eq!(wanted.0, 0x900);
        assert!(wanted.contains(AsyncEventConfig::ANA_CHANGE));
        assert!(!wanted.contains(AsyncEventConfig::DISCOVERY_LOG));
        let supported = AsyncEventConfig(0x8000_0100);
        assert_eq!(wanted.intersection(supported), AsyncEventConfig::NAMESPACE_ATTRIBUTE);
    }

    #[test]
    fn command_dwords() {
        assert_eq!(get_features_cdw10(FeatureId::NUMBER_OF_QUEUES, FeatureSelect::SAVED), 0x207);
        assert_eq!(set_features_cdw10(FeatureId::HOST_IDENTIFIER, false), 0x81);
        assert_eq!(set_features_cdw10(FeatureId::TIMESTAMP, true), 0x8000_000e);
        let threshold = TemperatureThreshold::new(350, 2, true);
        assert_eq!(threshold.0, 0x0012_015e);
        assert_eq!((threshold.kelvin(), threshold.sensor(), threshold.is_under()), (350, 2, true));
        assert_eq!(ErrorRecovery(0x0001_0064).time_limit(), Duration::from_secs(10));
        assert!(ErrorRecovery(0x0001_0064).deallocated_block_error());
        assert_eq!(Arbitration(0x0302_0107).weights_z(), [1, 2, 3]);
        assert_eq!(Arbitration(0x0302_0107).burst(), 7);
        assert_eq!(PowerManagement(0x43).power_state(), 3);
        assert_eq!(PowerManagement(0x43).workload_hint(), 2);
        assert!(write_cache_enabled(1) && !write_cache_enabled(2));
    }

    #[test]
    fn host_behavior_layout() {
        let data = HostBehaviorSupport { acre: 1, lbafee: 1, cdfe: U16::new(0x1c), ..Default::default() };
        assert_eq!(data.as_bytes()[..8], [1, 0, 1, 0, 0x1c, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn granted_queues_survive_a_round_trip(dword: u32) {
            let granted = NumberOfQueues::decode(dword);
            prop_assert!(granted.usable_pairs() >= 1);
            if dword & 0xffff != 0xffff && dword >> 16 != 0xffff {
                prop_assert_eq!(granted.encode(), dword);
            }
        }
    }
}

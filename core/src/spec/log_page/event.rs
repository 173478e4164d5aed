//! Asynchronous events: dword 0 of a completed Asynchronous Event Request. NVMe Base 2.1 §5.1.2.

use core::fmt;

use super::LogPageId;

open_enum! {
    /// AET: what kind of event.
    pub struct AsyncEventType(u8) {
        /// Error; AEI is an [`ErrorEvent`].
        ERROR = 0 => "error",
        /// SMART / health status; AEI is a [`HealthEvent`].
        HEALTH = 1 => "SMART / health status",
        /// Notice; AEI is a [`NoticeEvent`].
        NOTICE = 2 => "notice",
        /// Immediate: normal NVM subsystem shutdown.
        IMMEDIATE = 3 => "immediate",
        /// One-shot: controller data queue tail pointer.
        ONE_SHOT = 4 => "one-shot",
        /// I/O command specific status; AEI is an [`IoCommandSetEvent`].
        IO_COMMAND_SET = 6 => "I/O command specific status",
        /// Vendor specific.
        VENDOR = 7 => "vendor specific",
    }
}

open_enum! {
    /// AEI of error events.
    pub struct ErrorEvent(u8) {
        /// Write to an invalid doorbell register.
        INVALID_DOORBELL_REGISTER = 0 => "write to an invalid doorbell register",
        /// Invalid doorbell write value.
        INVALID_DOORBELL_VALUE = 1 => "invalid doorbell write value",
        /// Diagnostic failure.
        DIAGNOSTIC_FAILURE = 2 => "diagnostic failure",
        /// Persistent internal error.
        PERSISTENT_INTERNAL_ERROR = 3 => "persistent internal error",
        /// Transient internal error.
        TRANSIENT_INTERNAL_ERROR = 4 => "transient internal error",
        /// Firmware image load error.
        FIRMWARE_IMAGE_LOAD_ERROR = 5 => "firmware image load error",
    }
}

open_enum! {
    /// AEI of SMART / health events.
    pub struct HealthEvent(u8) {
        /// NVM subsystem reliability.
        RELIABILITY = 0 => "NVM subsystem reliability degraded",
        /// Temperature threshold.
        TEMPERATURE_THRESHOLD = 1 => "temperature threshold crossed",
        /// Spare below threshold.
        SPARE_BELOW_THRESHOLD = 2 => "spare below threshold",
    }
}

open_enum! {
    /// AEI of notices.
    pub struct NoticeEvent(u8) {
        /// Attached namespace attribute changed.
        NAMESPACE_ATTRIBUTE_CHANGED = 0x00 => "namespace attribute changed",
        /// Firmware activation starting.
        FIRMWARE_ACTIVATION_STARTING = 0x01 => "firmware activation starting",
        /// Telemetry log changed.
        TELEMETRY_LOG_CHANGED = 0x02 => "telemetry log changed",
        /// Asymmetric namespace access change.
        ANA_CHANGE = 0x03 => "asymmetric namespace access change",
        /// Predictable latency event aggregate log change.
        PREDICTABLE_LATENCY_CHANGE = 0x04 => "predictable latency event aggregate log change",
        /// LBA status information alert.
        LBA_STATUS_ALERT = 0x05 => "LBA status information alert",
        /// Endurance group event aggregate log page change.
        ENDURANCE_GROUP_CHANGE = 0x06 => "endurance group event aggregate log page change",
        /// Zone descriptor changed.
        ZONE_DESCRIPTOR_CHANGED = 0xef => "zone descriptor changed",
        /// Discovery log page change.
        DISCOVERY_LOG_CHANGE = 0xf0 => "discovery log page change",
        /// Host discovery log page change.
        HOST_DISCOVERY_LOG_CHANGE = 0xf1 => "host discovery log page change",
        /// AVE discovery log page change.
        AVE_DISCOVERY_LOG_CHANGE = 0xf2 => "AVE discovery log page change",
        /// Pull model DDC request log page change.
        PULL_MODEL_DDC_REQUEST_CHANGE = 0xf3 => "pull model DDC request log page change",
    }
}

open_enum! {
    /// AEI of I/O command specific events, NVM command set.
    pub struct IoCommandSetEvent(u8) {
        /// Reservation log page available.
        RESERVATION_LOG = 0 => "reservation log page available",
        /// Sanitize operation completed.
        SANITIZE_COMPLETED = 1 => "sanitize operation completed",
        /// Sanitize operation completed with unexpected deallocation.
        SANITIZE_UNEXPECTED_DEALLOCATION = 2 => "sanitize operation completed with unexpected deallocation",
    }
}

/// Dword 0 of a completed Asynchronous Event Request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AsyncEvent {
    /// AET: type.
    pub event_type: AsyncEventType,
    /// AEI: information; its meaning depends on the type.
    pub info: u8,
    /// LID: the log page to read, which also re-arms the event.
    pub log_page: LogPageId,
}

impl AsyncEvent {
    /// Reads dword 0.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        Self {
            event_type: AsyncEventType(dw0 as u8 & 7),
            info: (dw0 >> 8) as u8,
            log_page: LogPageId((dw0 >> 16) as u8),
        }
    }

    /// A notice, as the controller role sends it.
    #[must_use]
    pub const fn notice(notice: NoticeEvent, log_page: LogPageId) -> Self {
        Self { event_type: AsyncEventType::NOTICE, info: notice.0, log_page }
    }

    /// Dword 0 of the completion.
    #[must_use]
    pub const fn to_dw0(self) -> u32 {
        (self.event_type.0 & 7) as u32 | (self.info as u32) << 8 | (self.log_page.0 as u32) << 16
    }

    /// The notice, if the event is one.
    #[must_use]
    pub const fn as_notice(self) -> Option<NoticeEvent> {
        match self.event_type {
            AsyncEventType::NOTICE => Some(NoticeEvent(self.info)),
            _ => None,
        }
    }

    /// Whether namespaces were added, removed or changed.
    #[must_use]
    pub fn is_namespace_change(self) -> bool {
        self.as_notice() == Some(NoticeEvent::NAMESPACE_ATTRIBUTE_CHANGED)
    }

    /// Whether ANA states changed.
    #[must_use]
    pub fn is_ana_change(self) -> bool {
        self.as_notice() == Some(NoticeEvent::ANA_CHANGE)
    }

    /// Whether the discovery log changed.
    #[must_use]
    pub fn is_discovery_log_change(self) -> bool {
        self.as_notice() == Some(NoticeEvent::DISCOVERY_LOG_CHANGE)
    }
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.event_type)?;
        match self.event_type {
            AsyncEventType::ERROR => write!(f, "{}", ErrorEvent(self.info))?,
            AsyncEventType::HEALTH => write!(f, "{}", HealthEvent(self.info))?,
            AsyncEventType::NOTICE => write!(f, "{}", NoticeEvent(self.info))?,
            AsyncEventType::IO_COMMAND_SET => write!(f, "{}", IoCommandSetEvent(self.info))?,
            _ => write!(f, "{:#04x}", self.info)?,
        }
        write!(f, " (log page {:#04x})", self.log_page.0)
    }
}

//! Asynchronous events. NVMe Base 2.1 §5.1.2, Figures 150–157.

use crate::spec::log_page::LogPageId;

/// An asynchronous event the controller reported. It repeats only after the log page was read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AsyncEvent {
    /// Event type, bits 2:0 of DW0: 0 error, 1 SMART / health, 2 notice, 6 I/O command set, 7 vendor.
    pub event_type: u8,
    /// Event information, by type.
    pub info: u8,
    /// Log page to read for details; reading it allows the next event of the kind.
    pub log_page: LogPageId,
}

impl AsyncEvent {
    /// Reads DW0 of a completed Asynchronous Event Request.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        Self { event_type: dw0 as u8 & 7, info: (dw0 >> 8) as u8, log_page: LogPageId((dw0 >> 16) as u8) }
    }

    /// Notice: namespaces were added, removed or changed.
    #[must_use]
    pub const fn is_namespace_change(self) -> bool {
        self.event_type == 2 && self.info == 0x00
    }

    /// Notice: ANA states changed.
    #[must_use]
    pub const fn is_ana_change(self) -> bool {
        self.event_type == 2 && self.info == 0x03
    }

    /// Notice: the discovery log changed.
    #[must_use]
    pub const fn is_discovery_log_change(self) -> bool {
        self.event_type == 2 && self.info == 0xf0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_a_discovery_log_change() {
        let event = AsyncEvent::from_dw0(0x0070_f002);
        assert!(event.is_discovery_log_change());
        assert_eq!(event.log_page, LogPageId::DISCOVERY);
        assert!(!event.is_namespace_change());
    }
}

//! Controllers that need to be treated in their own way, by vendor and device.
//!
//! Only what this driver does differently is listed. What every controller gets is not: registers are accessed by 32 bits, a
//! controller that was shut down is disabled without waiting for it to be ready, and one that does not know the list of active
//! namespaces is asked for each.

use std::time::Duration;

use nvmf_core::transport::InitDelays;

/// What is special about a controller. By default nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Quirks {
    /// Pauses while it is initialised, and after CC.EN was cleared at any time.
    pub(crate) delays: InitDelays,
    /// Between the creation of an I/O queue and the first command on it.
    pub(crate) after_queue: Duration,
    /// Entries its admin queue has at least.
    pub(crate) min_admin_entries: u16,
    /// Entries its I/O queues have at least, for speed.
    pub(crate) min_io_entries: u16,
    /// It says that it takes SGLs and is better off without.
    pub(crate) no_sgl: bool,
    /// The same for Dataset Management alone.
    pub(crate) no_sgl_for_dsm: bool,
}

const NONE: Quirks = Quirks {
    delays: InitDelays { before_init: Duration::ZERO, after_disable: Duration::ZERO },
    after_queue: Duration::ZERO,
    min_admin_entries: 0,
    min_io_entries: 0,
    no_sgl: false,
    no_sgl_for_dsm: false,
};

/// It loses its way when CSTS is read too early after CC.EN was cleared.
const SLOW_DISABLE: Quirks = Quirks {
    delays: InitDelays { before_init: Duration::ZERO, after_disable: Duration::from_millis(2500) },
    ..NONE
};

/// It is fast only with long queues.
const LONG_QUEUES: Quirks = Quirks { min_io_entries: 1024, ..NONE };

/// It also needs time after the reset that comes with opening it.
const SLOW_START: Quirks = Quirks {
    delays: InitDelays { before_init: Duration::from_secs(2), after_disable: Duration::ZERO },
    ..LONG_QUEUES
};

const INTEL: u16 = 0x8086;
const SAMSUNG: u16 = 0x144d;

/// Vendor, device (any where there is none), what is special.
const TABLE: [(u16, Option<u16>, Quirks); 12] = [
    // P3600 and P3700, P3520, P4500 and P4600, and their successors.
    (INTEL, Some(0x0953), SLOW_START),
    (INTEL, Some(0x0a53), SLOW_START),
    (INTEL, Some(0x0a54), SLOW_START),
    (INTEL, Some(0x0a55), LONG_QUEUES),
    (INTEL, Some(0x0b60), Quirks { no_sgl_for_dsm: true, ..LONG_QUEUES }),
    // Memblaze PBlaze4; Samsung PM1725 and its successors.
    (0x1c5f, Some(0x0540), SLOW_DISABLE),
    (SAMSUNG, Some(0xa821), SLOW_DISABLE),
    (SAMSUNG, Some(0xa822), SLOW_DISABLE),
    (SAMSUNG, Some(0xa826), SLOW_DISABLE),
    // VirtualBox: a doorbell that comes too early is lost.
    (0x80ee, Some(0x4e56), Quirks { after_queue: Duration::from_millis(100), ..NONE }),
    // Huawei.
    (0x19e5, None, Quirks { no_sgl: true, ..NONE }),
    // Microsoft Azure.
    (0x1414, Some(0xb111), Quirks { min_admin_entries: 256, ..NONE }),
];

impl Quirks {
    /// Those of a vendor's device.
    pub(crate) fn of(vendor: u16, device: u16) -> Self {
        let found = TABLE.iter().find(|(v, d, _)| *v == vendor && d.is_none_or(|d| d == device));
        found.map_or(NONE, |(.., quirks)| *quirks)
    }
}

#[cfg(test)]
mod tests;

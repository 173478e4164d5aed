//! How an emulated function behaves.

use std::time::Duration;

use super::super::config_space::{DEVICE, VENDOR};

/// How an emulated function behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciOptions {
    pub(super) inline: bool,
    pub(super) dstrd: u8,
    pub(super) vectors: Option<u16>,
    pub(super) ready_delay: Duration,
    pub(super) shutdown_delay: Duration,
    pub(super) busy: Duration,
    pub(super) ids: (u16, u16),
    pub(super) pages: (u8, u8),
    pub(super) shadow_doorbells: bool,
    pub(super) cmb: u64,
    pub(super) legacy_cmb: bool,
}

impl Default for PciOptions {
    fn default() -> Self {
        Self {
            inline: false,
            dstrd: 0,
            vectors: None,
            ready_delay: Duration::ZERO,
            shutdown_delay: Duration::ZERO,
            busy: Duration::from_micros(50),
            ids: (VENDOR, DEVICE),
            pages: (0, 0),
            shadow_doorbells: false,
            cmb: 0,
            legacy_cmb: false,
        }
    }
}

impl PciOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Commands are executed by whoever writes the doorbell, before the write returns, instead of by a thread. What is due
    /// at another time happens with the next write or [`EmulatedFunction::poll`](super::EmulatedFunction::poll). Off.
    #[must_use]
    pub fn inline(mut self, on: bool) -> Self {
        self.inline = on;
        self
    }

    /// CAP.DSTRD: doorbells are `4 << dstrd` bytes apart, 0..=15. 0.
    #[must_use]
    pub fn doorbell_stride(mut self, dstrd: u8) -> Self {
        self.dstrd = dstrd;
        self
    }

    /// MSI-X vectors, 1..=2048. One for each I/O queue there may be, and one for the admin queue.
    #[must_use]
    pub fn vectors(mut self, vectors: u16) -> Self {
        self.vectors = Some(vectors);
        self
    }

    /// How long CSTS.RDY takes to follow CC.EN. No time.
    #[must_use]
    pub fn ready_delay(mut self, delay: Duration) -> Self {
        self.ready_delay = delay;
        self
    }

    /// How long CSTS.SHST takes to follow CC.SHN; also what RTD3E says. No time.
    #[must_use]
    pub fn shutdown_delay(mut self, delay: Duration) -> Self {
        self.shutdown_delay = delay;
        self
    }

    /// PCI vendor and device identifiers. 1234h and 4E56h.
    #[must_use]
    pub fn identifiers(mut self, vendor: u16, device: u16) -> Self {
        self.ids = (vendor, device);
        self
    }

    /// CAP.MPSMIN and CAP.MPSMAX, 0..=15: memory pages are 4 KiB shifted by this. 0 and 0.
    #[must_use]
    pub fn memory_pages(mut self, mpsmin: u8, mpsmax: u8) -> Self {
        self.pages = (mpsmin, mpsmax);
        self
    }

    /// Shadow doorbells are offered (Doorbell Buffer Config). Off.
    #[must_use]
    pub fn shadow_doorbells(mut self, on: bool) -> Self {
        self.shadow_doorbells = on;
        self
    }

    /// There is a controller memory buffer for submission queues behind BAR 2, of as many bytes: a power of two, 4 KiB to 1 GiB. None.
    #[must_use]
    pub fn controller_memory(mut self, bytes: u64) -> Self {
        self.cmb = bytes;
        self
    }

    /// The controller memory buffer is as before version 1.4 of the specification: always enabled, at the address of the BAR. Off.
    #[must_use]
    pub fn legacy_controller_memory(mut self, on: bool) -> Self {
        self.legacy_cmb = on;
        self
    }

    /// How long the thread looks for doorbells, once it has nothing to do, before it sleeps. 50 µs.
    #[must_use]
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy = time;
        self
    }
}

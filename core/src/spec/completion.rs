//! The 16-byte completion queue entry. NVMe Base 2.1 §4.2, Figures 96–98.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::status::Status;

/// Completion queue entry, also the response capsule of NVMe over Fabrics.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// DW0: command specific.
    pub dw0: U32,
    /// DW1: command specific.
    pub dw1: U32,
    /// SQ head pointer: how far the controller has consumed the submission queue. FFFFh in a fabrics
    /// Connect response means that SQ flow control is disabled.
    pub sqhd: U16,
    /// SQ identifier; reserved for fabrics.
    pub sqid: U16,
    /// Command identifier of the command that completed.
    pub cid: U16,
    /// Bit 0: phase tag (memory-based transports); bits 15:1: status.
    pub status_phase: U16,
}

const _: () = assert!(size_of::<Cqe>() == 16);
const _: () = assert!(offset_of!(Cqe, sqhd) == 8);
const _: () = assert!(offset_of!(Cqe, cid) == 12);
const _: () = assert!(offset_of!(Cqe, status_phase) == 14);

impl Cqe {
    /// A completion of `cid` with `status`; the controller role uses it to answer.
    #[must_use]
    pub fn new(cid: u16, sqhd: u16, status: Status) -> Self {
        Self {
            cid: U16::new(cid),
            sqhd: U16::new(sqhd),
            status_phase: U16::new(status.0 << 1),
            ..Self::default()
        }
    }

    /// The entry as its two 64-bit words, DW1:DW0 and DW3:DW2, read from a ring.
    #[inline]
    #[must_use]
    pub fn from_words(words: [u64; 2]) -> Self {
        zerocopy::transmute!(words.map(U64::new))
    }

    /// The same completion with command-specific DW0.
    #[must_use]
    pub fn with_dw0(mut self, dw0: u32) -> Self {
        self.dw0 = U32::new(dw0);
        self
    }

    /// The same completion with command-specific DW0 and DW1 taken from a 64-bit result.
    #[must_use]
    pub fn with_result64(mut self, value: u64) -> Self {
        self.dw0 = U32::new(value as u32);
        self.dw1 = U32::new((value >> 32) as u32);
        self
    }

    /// The 15-bit status field, phase tag removed.
    #[must_use]
    pub const fn status(&self) -> Status {
        Status(self.status_phase.get() >> 1)
    }

    /// The phase tag.
    #[must_use]
    pub const fn phase(&self) -> bool {
        self.status_phase.get() & 1 != 0
    }

    /// DW1:DW0 as one 64-bit value, the result of a Property Get (Base 2.1 §6.4).
    #[must_use]
    pub const fn result64(&self) -> u64 {
        self.dw0.get() as u64 | (self.dw1.get() as u64) << 32
    }
}

impl core::fmt::Debug for Cqe {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cqe")
            .field("cid", &self.cid.get())
            .field("sqid", &self.sqid.get())
            .field("sqhd", &self.sqhd.get())
            .field("status", &self.status())
            .field("dw0", &format_args!("{:#x}", self.dw0.get()))
            .field("dw1", &format_args!("{:#x}", self.dw1.get()))
            .finish()
    }
}

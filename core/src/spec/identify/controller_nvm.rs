//! Identify Controller for the NVM command set (CNS 06h).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::controller::offsets;

/// Identify Controller data specific to the NVM command set (CNS 06h, CSI 00h; NVM Command Set 1.1 §4.1.5.4).
///
/// The sizes are log2 in units of CAP.MPSMIN pages; 0 is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// VSL: Verify size limit.
    pub vsl: u8,
    /// WZSL: Write Zeroes size limit.
    pub wzsl: u8,
    /// WUSL: Write Uncorrectable size limit.
    pub wusl: u8,
    /// DMRL: Dataset Management ranges limit; 0 is no limit.
    pub dmrl: u8,
    /// DMRSL: Dataset Management limit of one range, logical blocks; 0 is no limit.
    pub dmrsl: U32,
    /// DMSL: Dataset Management limit of all ranges together, logical blocks; 0 is no limit.
    pub dmsl: U64,
    /// KPIOCAP: key per I/O capabilities.
    pub kpiocap: u8,
    /// WZDSL: Write Zeroes with Deallocate size limit.
    pub wzdsl: u8,
    /// AOCS: admin optional command support.
    pub aocs: U16,
    /// VER: version of the NVM command set specification.
    pub ver: U32,
    /// LBAMQF: LBA migration queue format.
    pub lbamqf: u8,
    /// Reserved.
    pub reserved_25: [u8; 4071],
}

offsets!(IdentifyControllerNvm: 4096 {
    vsl @ 0, wzsl @ 1, wusl @ 2, dmrl @ 3, dmrsl @ 4, dmsl @ 8, kpiocap @ 16, wzdsl @ 17, aocs @ 18, ver @ 20,
    lbamqf @ 24,
});

impl IdentifyControllerNvm {
    /// The largest Write Zeroes in bytes, given the size of CAP.MPSMIN pages; `None` is no limit.
    #[must_use]
    pub const fn write_zeroes_limit(&self, min_page_size: u64) -> Option<u64> {
        if self.wzsl == 0 || self.wzsl as u32 > min_page_size.leading_zeros() {
            return None;
        }
        Some(min_page_size << self.wzsl)
    }

    /// The largest Verify in bytes, given the size of CAP.MPSMIN pages; `None` is no limit.
    #[must_use]
    pub const fn verify_limit(&self, min_page_size: u64) -> Option<u64> {
        if self.vsl == 0 || self.vsl as u32 > min_page_size.leading_zeros() {
            return None;
        }
        Some(min_page_size << self.vsl)
    }
}

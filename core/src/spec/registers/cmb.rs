//! The controller memory buffer's registers, §3.1.4.11 to §3.1.4.15 and §8.2.1.

use core::fmt;

use super::field;

/// Controller Memory Buffer Location (CMBLOC), §3.1.4.11. Where CAP.CMBS is set it is valid only while CMBMSC.CRE is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CmbLocation(pub u32);

impl CmbLocation {
    /// BIR: the base address register that has the buffer; 0, 2, 3, 4 or 5 in a valid one.
    #[must_use]
    pub const fn bir(self) -> u8 {
        field(self.0 as u64, 0, 3) as u8
    }

    /// OFST: where in the BAR it starts, in units of CMBSZ.SZU; bytes. `None` beyond 64 bits.
    #[must_use]
    pub const fn offset(self, size: CmbSize) -> Option<u64> {
        let Some(unit) = size.unit() else { return None };
        field(self.0 as u64, 12, 20).checked_mul(unit)
    }
}

impl fmt::Debug for CmbLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CmbLocation(bir {}, raw {:#010x})", self.bir(), self.0)
    }
}

/// Controller Memory Buffer Size (CMBSZ), §3.1.4.12. Zero when there is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CmbSize(pub u32);

impl CmbSize {
    /// SQS: submission queues may be in it.
    pub const SQS: u32 = 1 << 0;
    /// CQS: completion queues may be in it.
    pub const CQS: u32 = 1 << 1;
    /// LISTS: PRP lists and SGL segments may be in it.
    pub const LISTS: u32 = 1 << 2;
    /// RDS: data the controller returns may be in it.
    pub const RDS: u32 = 1 << 3;
    /// WDS: data the controller is sent may be in it.
    pub const WDS: u32 = 1 << 4;

    /// A size of `units` units of 4 KiB (20 bits) with these capability bits; for the controller role.
    #[must_use]
    pub const fn new(units: u32, capabilities: u32) -> Self {
        Self(units << 12 | capabilities & 0x1f)
    }

    /// Whether submission queues may be in it.
    #[must_use]
    pub const fn sqs(self) -> bool {
        self.0 & Self::SQS != 0
    }

    /// SZU: the unit of size and offset, bytes: 4 KiB times 16 to the power of 0 to 6. `None` for reserved values.
    #[must_use]
    pub const fn unit(self) -> Option<u64> {
        match field(self.0 as u64, 8, 4) {
            szu @ 0..=6 => Some(4096 << (4 * szu)),
            _ => None,
        }
    }

    /// SZ: bytes. `None` when the unit is reserved.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        match self.unit() {
            Some(unit) => field(self.0 as u64, 12, 20).checked_mul(unit),
            None => None,
        }
    }
}

impl fmt::Debug for CmbSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CmbSize({:?} bytes, raw {:#010x})", self.bytes(), self.0)
    }
}

/// Controller Memory Buffer Memory Space Control (CMBMSC), §3.1.4.14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CmbControl(pub u64);

impl CmbControl {
    /// CRE alone: CMBLOC and CMBSZ become valid.
    pub const REGISTERS: Self = Self(1);

    /// CRE and CMSE: the controller takes its addresses from `base` on, a multiple of 4 KiB, for the buffer.
    #[must_use]
    pub const fn enabled(base: u64) -> Self {
        Self(base & !0xfff | 0b11)
    }

    /// CRE: CMBLOC and CMBSZ are valid.
    #[must_use]
    pub const fn cre(self) -> bool {
        self.0 & 1 != 0
    }

    /// CMSE: the controller's addresses from [`CmbControl::base`] on mean the buffer.
    #[must_use]
    pub const fn cmse(self) -> bool {
        self.0 & 2 != 0
    }

    /// CBA: the controller's address of the first byte of the buffer.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0 & !0xfff
    }
}

impl fmt::Debug for CmbControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CmbControl(base {:#x}, cre {}, cmse {})", self.base(), self.cre(), self.cmse())
    }
}

/// Controller Memory Buffer Status (CMBSTS), §3.1.4.15.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct CmbStatus(pub u32);

impl CmbStatus {
    /// CBAI: the base address in CMBMSC cannot be used.
    #[must_use]
    pub const fn cbai(self) -> bool {
        self.0 & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_offsets_in_their_unit() {
        // 1 MiB units (SZU 2), 64 of them, submission queues; BAR 2 at 3 units.
        let size = CmbSize(64 << 12 | 2 << 8 | 1);
        assert_eq!((size.unit(), size.bytes(), size.sqs()), (Some(1 << 20), Some(64 << 20), true));
        let location = CmbLocation(3 << 12 | 2);
        assert_eq!((location.bir(), location.offset(size)), (2, Some(3 << 20)));
        // The largest unit, 64 GiB, and the largest number of them.
        let largest = CmbSize(!0xfff | 6 << 8);
        assert_eq!(largest.bytes(), Some(0xf_ffff << 36));
        let reserved = CmbSize(1 << 12 | 7 << 8);
        assert_eq!((reserved.bytes(), location.offset(reserved)), (None, None));
        assert_eq!(CmbSize::new(16, CmbSize::SQS | CmbSize::WDS).bytes(), Some(65536));
        assert!(!CmbSize::new(16, CmbSize::CQS).sqs());
    }

    #[test]
    fn control_and_status() {
        assert_eq!(CmbControl::enabled(0x12_3456_7000).0, 0x12_3456_7003);
        let control = CmbControl(0x12_3456_7003);
        assert_eq!((control.base(), control.cre(), control.cmse()), (0x12_3456_7000, true, true));
        assert!(CmbControl::REGISTERS.cre() && !CmbControl::REGISTERS.cmse());
        assert!(CmbStatus(1).cbai() && !CmbStatus(2).cbai());
    }
}

//! The controller memory buffer (Base 2.1 §8.2.1): memory of the function behind BAR 2, for submission queues.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvmf_core::spec::registers::{CmbControl, CmbLocation, CmbSize, CmbStatus, PropertyOffset};

/// The BAR it is behind.
pub(super) const BAR: u8 = 2;
/// The unit of its length, bytes.
pub(super) const UNIT: u64 = 4096;

/// The memory. The host writes it while the controller reads it.
#[derive(Clone, Debug)]
pub(super) struct CmbMemory(Arc<Mutex<Vec<u8>>>);

impl CmbMemory {
    pub(super) fn new(len: u64) -> Self {
        Self(Arc::new(Mutex::new(vec![0; len as usize])))
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies out; the range lies inside.
    pub(super) fn read(&self, offset: u64, to: &mut [u8]) {
        to.copy_from_slice(&self.bytes()[offset as usize..][..to.len()]);
    }

    /// Copies in; the range lies inside.
    pub(super) fn write(&self, offset: u64, from: &[u8]) {
        self.bytes()[offset as usize..][..from.len()].copy_from_slice(from);
    }
}

/// What is in a range of the controller's addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// The host's memory.
    Host,
    /// The buffer, from this byte on.
    Buffer(u64),
    /// Partly the one, partly the other.
    Across,
}

/// The registers.
#[derive(Clone, Debug)]
pub(super) struct Cmb {
    pub(super) memory: CmbMemory,
    len: u64,
    /// As before version 1.4: always enabled, at the address of the BAR.
    legacy: bool,
    /// Address of the BAR.
    bar: u64,
    control: CmbControl,
    status: CmbStatus,
}

impl Cmb {
    pub(super) fn new(len: u64, legacy: bool, bar: u64) -> Self {
        let memory = CmbMemory::new(len);
        Self { memory, len, legacy, bar, control: CmbControl(0), status: CmbStatus(0) }
    }

    /// CAP.CMBS.
    pub(super) fn announced(&self) -> bool {
        !self.legacy
    }

    /// The host has moved the BAR.
    pub(super) fn moved(&mut self, bar: u64) {
        self.bar = bar;
    }

    /// Any reset but that by CC.EN (§3.7.2).
    pub(super) fn reset(&mut self) {
        (self.control, self.status) = (CmbControl(0), CmbStatus(0));
    }

    /// The dword at `offset`; `None` when it is none of these registers.
    pub(super) fn read32(&self, offset: u32) -> Option<u32> {
        let valid = self.legacy || self.control.cre();
        Some(match PropertyOffset(offset) {
            PropertyOffset::CMBLOC if valid => CmbLocation(u32::from(BAR)).0,
            PropertyOffset::CMBSZ if valid => CmbSize::new((self.len / UNIT) as u32, CmbSize::SQS).0,
            PropertyOffset::CMBMSC if !self.legacy => self.control.0 as u32,
            PropertyOffset(0x54) if !self.legacy => (self.control.0 >> 32) as u32,
            PropertyOffset::CMBSTS if !self.legacy => self.status.0,
            _ => return None,
        })
    }

    /// Writes the dword at `offset`. As in other implementations, the upper half takes effect with the lower one.
    pub(super) fn write32(&mut self, offset: u32, value: u32) {
        match PropertyOffset(offset) {
            _ if self.legacy => {}
            PropertyOffset(0x54) => {
                self.control.0 = self.control.0 & 0xffff_ffff | u64::from(value) << 32;
            }
            PropertyOffset::CMBMSC => {
                self.control.0 = self.control.0 & !0xffff_ffff | u64::from(value & 0xffff_f003);
                let fits = self.control.base().checked_add(self.len).is_some();
                self.status = CmbStatus(u32::from(self.control.cmse() && !fits));
            }
            _ => {}
        }
    }

    /// The controller's address of the first byte.
    fn base(&self) -> Option<u64> {
        if self.legacy {
            return (self.bar != 0).then_some(self.bar);
        }
        (self.control.cre() && self.control.cmse() && !self.status.cbai()).then(|| self.control.base())
    }

    /// What `len` bytes at one of the controller's addresses are.
    pub(super) fn place(&self, address: u64, len: u64) -> Place {
        let Some(base) = self.base() else { return Place::Host };
        let (end, last) = (base.saturating_add(self.len), address.saturating_add(len));
        if last <= base || address >= end {
            Place::Host
        } else if address >= base && last <= end {
            Place::Buffer(address - base)
        } else {
            Place::Across
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_registers_are_there_once_asked_for_and_its_addresses_once_given() {
        let mut cmb = Cmb::new(0x1_0000, false, 0xc000_0000);
        assert_eq!((cmb.read32(0x38), cmb.read32(0x3c)), (None, None));
        cmb.write32(0x50, 1);
        assert_eq!((cmb.read32(0x38), cmb.read32(0x3c)), (Some(2), Some(16 << 12 | 1)));
        assert_eq!(cmb.place(0xc000_0000, 64), Place::Host);
        cmb.write32(0x54, 0x7);
        cmb.write32(0x50, 0x1000_0003);
        assert_eq!(
            (cmb.read32(0x50), cmb.read32(0x54), cmb.read32(0x58)),
            (Some(0x1000_0003), Some(7), Some(0))
        );
        let base = 0x7_1000_0000;
        assert_eq!(cmb.place(base + 0x40, 64), Place::Buffer(0x40));
        assert_eq!(cmb.place(base + 0xffc0, 64), Place::Buffer(0xffc0));
        assert_eq!((cmb.place(base - 64, 64), cmb.place(base + 0x1_0000, 64)), (Place::Host, Place::Host));
        assert_eq!((cmb.place(base - 1, 64), cmb.place(base + 0xffc1, 64)), (Place::Across, Place::Across));
        cmb.reset();
        assert_eq!((cmb.read32(0x3c), cmb.place(base, 64)), (None, Place::Host));
    }

    #[test]
    fn an_address_at_the_end_of_all_is_refused() {
        let mut cmb = Cmb::new(0x1_0000, false, 0);
        cmb.write32(0x54, u32::MAX);
        cmb.write32(0x50, 0xffff_f003);
        assert_eq!(cmb.read32(0x58), Some(1));
        assert_eq!(cmb.place(!0xfff, 64), Place::Host);
    }

    #[test]
    fn an_old_one_is_where_its_bar_is() {
        let mut cmb = Cmb::new(0x1_0000, true, 0xc000_0000);
        assert_eq!(
            (cmb.read32(0x38), cmb.read32(0x3c), cmb.read32(0x50)),
            (Some(2), Some(16 << 12 | 1), None)
        );
        assert_eq!(cmb.place(0xc000_1000, 64), Place::Buffer(0x1000));
        cmb.moved(0xd000_0000);
        assert_eq!((cmb.place(0xc000_1000, 64), cmb.place(0xd000_0000, 1)), (Place::Host, Place::Buffer(0)));
    }
}

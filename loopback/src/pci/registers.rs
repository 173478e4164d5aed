//! BAR 0: the controller's registers (Base 2.1 §3.1.4) and where its doorbells are (NVMe over PCIe 1.1 §3.1.2).
//!
//! This is what the host reads and writes; what it means is [`super::engine`]'s business.

use nvmf_core::spec::registers::{
    AdminQueueAttributes, Cap, ControllerConfig, ControllerStatus, DOORBELL_BASE, NSSR_RESET, PropertyOffset,
    Version,
};

use super::cmb::{Cmb, Place};

/// CAP.CMBS.
const CAP_CMBS: u64 = 1 << 57;
/// CAP.NSSRS, and where CAP.DSTRD starts.
const CAP_NSSRS: u64 = 1 << 36;
const CAP_DSTRD_SHIFT: u32 = 32;
/// CSTS.NSSRO: an NVM subsystem reset happened; writing it clears it.
const CSTS_NSSRO: u32 = 1 << 4;
/// ASQ and ACQ are page aligned: bits 11:00 are reserved and read as zero.
const QUEUE_BASE_MASK: u64 = !0xfff;
/// AQA: two sizes of 12 bits.
const AQA_MASK: u32 = 0x0fff_0fff;
/// CC without reserved bits: EN, CSS, MPS, AMS, SHN, IOSQES, IOCQES.
const CC_MASK: u32 = 0x00ff_fff1;

/// What a write asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    /// Nothing more than has been done.
    Stored,
    /// CC was this before.
    Config(ControllerConfig),
    /// An NVM subsystem reset.
    SubsystemReset,
}

#[derive(Debug)]
pub(super) struct Registers {
    cap: Cap,
    version: Version,
    interrupt_mask: u32,
    cc: ControllerConfig,
    aqa: AdminQueueAttributes,
    asq: u64,
    acq: u64,
    /// CSTS.NSSRO.
    subsystem_was_reset: bool,
    cmb: Option<Cmb>,
}

impl Registers {
    /// `cap` is what the controller says of itself; doorbells are `4 << dstrd` bytes apart.
    pub(super) fn new(cap: Cap, version: Version, dstrd: u8, cmb: Option<Cmb>) -> Self {
        let cmbs = if cmb.as_ref().is_some_and(Cmb::announced) { CAP_CMBS } else { 0 };
        Self {
            cap: Cap(cap.0 | CAP_NSSRS | cmbs | u64::from(dstrd & 0xf) << CAP_DSTRD_SHIFT),
            cmb,
            version,
            interrupt_mask: 0,
            cc: ControllerConfig(0),
            aqa: AdminQueueAttributes(0),
            asq: 0,
            acq: 0,
            subsystem_was_reset: false,
        }
    }

    pub(super) fn cmb(&self) -> Option<&Cmb> {
        self.cmb.as_ref()
    }

    /// The host has moved BAR 2.
    pub(super) fn move_cmb(&mut self, bar: u64) {
        if let Some(cmb) = &mut self.cmb {
            cmb.moved(bar);
        }
    }

    /// What `len` bytes at one of the controller's addresses are.
    pub(super) fn place(&self, address: u64, len: u64) -> Place {
        self.cmb.as_ref().map_or(Place::Host, |cmb| cmb.place(address, len))
    }

    pub(super) fn cc(&self) -> ControllerConfig {
        self.cc
    }

    pub(super) fn aqa(&self) -> AdminQueueAttributes {
        self.aqa
    }

    /// ASQ and ACQ.
    pub(super) fn admin_bases(&self) -> [u64; 2] {
        [self.asq, self.acq]
    }

    /// A controller level reset: all but AQA, ASQ, ACQ and CMBMSC go back to what they were (Base 2.1 §3.7.2).
    pub(super) fn reset(&mut self) {
        (self.interrupt_mask, self.cc) = (0, ControllerConfig(0));
    }

    /// An NVM subsystem reset, or a reset of the function: everything goes back.
    pub(super) fn reset_all(&mut self, by_subsystem_reset: bool) {
        self.reset();
        self.cmb.iter_mut().for_each(Cmb::reset);
        (self.aqa, self.asq, self.acq) = (AdminQueueAttributes(0), 0, 0);
        self.subsystem_was_reset = by_subsystem_reset;
    }

    /// The dword at `offset`, below the doorbells. What is not there reads as zero.
    pub(super) fn read32(&self, offset: u64, csts: ControllerStatus) -> u32 {
        let Ok(offset) = u32::try_from(offset) else { return 0 };
        let half = |value: u64| (if offset & 4 == 0 { value } else { value >> 32 }) as u32;
        match PropertyOffset(offset & !3) {
            PropertyOffset::CAP | PropertyOffset(0x04) => half(self.cap.0),
            PropertyOffset::VS => self.version.0,
            // What is read from both is the mask.
            PropertyOffset::INTMS | PropertyOffset::INTMC => self.interrupt_mask,
            PropertyOffset::CC => self.cc.0,
            PropertyOffset::CSTS => csts.0 | if self.subsystem_was_reset { CSTS_NSSRO } else { 0 },
            PropertyOffset::AQA => self.aqa.0,
            PropertyOffset::ASQ | PropertyOffset(0x2c) => half(self.asq),
            PropertyOffset::ACQ | PropertyOffset(0x34) => half(self.acq),
            PropertyOffset(other) => self.cmb.as_ref().and_then(|cmb| cmb.read32(other)).unwrap_or(0),
        }
    }

    /// Writes the dword at `offset`, below the doorbells. What is read only, or not there, takes no notice.
    pub(super) fn write32(&mut self, offset: u64, value: u32) -> Written {
        let Ok(offset) = u32::try_from(offset) else { return Written::Stored };
        let put = |register: &mut u64| {
            let shift = if offset & 4 == 0 { 0 } else { 32 };
            *register = *register & !(0xffff_ffff << shift) | u64::from(value) << shift;
            *register &= QUEUE_BASE_MASK;
        };
        match PropertyOffset(offset & !3) {
            PropertyOffset::INTMS => self.interrupt_mask |= value,
            PropertyOffset::INTMC => self.interrupt_mask &= !value,
            PropertyOffset::CC => {
                let before = std::mem::replace(&mut self.cc, ControllerConfig(value & CC_MASK));
                return Written::Config(before);
            }
            PropertyOffset::CSTS if value & CSTS_NSSRO != 0 => self.subsystem_was_reset = false,
            PropertyOffset::NSSR if value == NSSR_RESET => return Written::SubsystemReset,
            // The admin queue cannot be moved while it is in use (Base 2.1 §3.1.4.8).
            PropertyOffset::AQA if !self.cc.en() => self.aqa = AdminQueueAttributes(value & AQA_MASK),
            PropertyOffset::ASQ | PropertyOffset(0x2c) if !self.cc.en() => put(&mut self.asq),
            PropertyOffset::ACQ | PropertyOffset(0x34) if !self.cc.en() => put(&mut self.acq),
            PropertyOffset(other) => self.cmb.iter_mut().for_each(|cmb| cmb.write32(other, value)),
        }
        Written::Stored
    }

    /// Bytes of BAR 0 that hold the doorbells of `queues` queue pairs: a power of two.
    pub(super) fn size(queues: u32, dstrd: u8) -> u64 {
        (DOORBELL_BASE + ((2 * u64::from(queues)) << (2 + (dstrd & 0xf)))).next_power_of_two().max(0x4000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        Registers::new(Cap(0x0000_0020_0001_03ff), Version::V1_4, 2, None)
    }

    const READY: ControllerStatus = ControllerStatus(1);

    #[test]
    fn both_halves_of_wide_registers() {
        let mut r = registers();
        assert_eq!(r.read32(0, READY), 0x0001_03ff);
        assert_eq!(r.read32(4, READY), 0x0000_0020 | 2 | 1 << 4);
        assert_eq!(r.read32(8, READY), 0x0001_0400);
        r.write32(0x28, 0x1234_5fff);
        r.write32(0x2c, 0x89);
        assert_eq!(r.admin_bases(), [0x89_1234_5000, 0], "the bits below a page are reserved");
        assert_eq!((r.read32(0x28, READY), r.read32(0x2c, READY)), (0x1234_5000, 0x89));
    }

    #[test]
    fn the_admin_queue_stays_while_the_controller_is_enabled() {
        let mut r = registers();
        r.write32(0x24, 0x001f_001f);
        assert_eq!(r.write32(0x14, 0xff46_0001), Written::Config(ControllerConfig(0)));
        assert_eq!(r.cc(), ControllerConfig(0x0046_0001), "bits 31:24 are reserved here");
        r.write32(0x24, 0);
        r.write32(0x30, 0x7000);
        assert_eq!((r.aqa().asqs_z(), r.admin_bases()[1]), (31, 0));
        r.reset();
        assert_eq!((r.aqa().acqs_z(), r.cc().en()), (31, false));
        r.reset_all(true);
        assert_eq!(r.aqa().acqs_z(), 0);
        assert_eq!(r.read32(0x1c, READY), 0x11);
        r.write32(0x1c, 0x10);
        assert_eq!(r.read32(0x1c, READY), 1, "NSSRO is cleared by writing it");
    }

    #[test]
    fn masks_resets_and_what_is_not_there() {
        let mut r = registers();
        r.write32(0x0c, 0b1010);
        r.write32(0x10, 0b0010);
        assert_eq!((r.read32(0x0c, READY), r.read32(0x10, READY)), (0b1000, 0b1000));
        assert_eq!(r.write32(0x20, 1), Written::Stored);
        assert_eq!(r.write32(0x20, NSSR_RESET), Written::SubsystemReset);
        for offset in [0x0, 0x4, 0x8, 0x1c, 0x38, 0xffc, 1 << 40] {
            assert_eq!(r.write32(offset, !CSTS_NSSRO), Written::Stored, "{offset:#x}");
        }
        assert_eq!((r.read32(0x38, READY), r.read32(0xe00, READY)), (0, 0), "no CMB, no PMR");
    }

    #[test]
    fn the_bar_has_room_for_every_doorbell() {
        assert_eq!(Registers::size(65, 0), 0x4000);
        assert_eq!(Registers::size(1025, 0), 0x4000);
        assert_eq!(Registers::size(65, 15), 32 << 20);
    }
}

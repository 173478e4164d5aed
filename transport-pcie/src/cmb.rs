//! The controller memory buffer: memory of the controller behind one of its BARs, for submission queues. NVMe Base 2.1 §8.2.1.
//!
//! Everything the registers say is checked: where the buffer is and how long comes from the controller.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvmf_core::dma::DMA_PAGE;
use nvmf_core::spec::registers::{
    Cap, CmbControl, CmbLocation, CmbSize, CmbStatus, DOORBELL_BASE, PropertyOffset,
};
use nvmf_core::{Error, Result};

use crate::device::{Bar0, PciDevice};

/// Base address registers in configuration space.
const BARS: u32 = 0x10;
/// More than this is not used, bytes: room for a thousand queues of a thousand entries.
const MAX_USED: u64 = 64 << 20;

/// The buffer of one controller, and which parts of it are in use.
pub(crate) struct Cmb {
    bar: Bar0,
    /// Where in the BAR its first usable byte is, a multiple of four.
    offset: u64,
    /// The controller's address of that byte, a multiple of `page`.
    address: u64,
    /// CMBMSC, where the controller has it.
    control: Option<CmbControl>,
    page: u64,
    /// By page.
    used: Mutex<Vec<bool>>,
}

impl Cmb {
    /// Finds and enables the buffer for submission queues; `None` when the controller has none that takes them. `page` is CC.MPS.
    ///
    /// # Errors
    /// When what the registers say makes no sense, or the BAR or addresses for it are not to be had.
    pub(crate) fn open(
        device: &mut dyn PciDevice,
        registers: &Bar0,
        cap: Cap,
        page: u64,
    ) -> Result<Option<Self>> {
        // Since version 1.4 the other registers are valid only after this; before, CAP.CMBS was reserved and they always were.
        if cap.cmbs() {
            write_control(registers, CmbControl::REGISTERS)?;
        }
        let opened = Self::found(device, registers, cap, page);
        if cap.cmbs() && !matches!(opened, Ok(Some(_))) {
            write_control(registers, CmbControl(0))?;
        }
        opened
    }

    fn found(device: &mut dyn PciDevice, registers: &Bar0, cap: Cap, page: u64) -> Result<Option<Self>> {
        let size = CmbSize(registers.read32(u64::from(PropertyOffset::CMBSZ.0))?);
        let location = CmbLocation(registers.read32(u64::from(PropertyOffset::CMBLOC.0))?);
        if size.0 == 0 || size.0 == u32::MAX || !size.sqs() {
            return Ok(None);
        }
        let nonsense =
            |why: String| Error::peer_misbehaved(format!("its memory buffer ({size:?}, {location:?}) {why}"));
        let (Some(offset), Some(len)) = (location.offset(size), size.bytes()) else {
            return Err(nonsense("has an unknown unit".into()));
        };
        if !matches!(location.bir(), 0 | 2..=5) {
            return Err(nonsense("is behind a BAR there is not".into()));
        }
        let bar = if location.bir() == 0 { registers.clone() } else { device.bar(location.bir())? };
        if location.bir() == 0 && offset <= DOORBELL_BASE {
            return Err(nonsense("is where its registers are".into()));
        }
        let room = bar.len().checked_sub(offset).filter(|&room| room > 0);
        let room =
            room.ok_or_else(|| nonsense(format!("lies outside of the BAR's {:#x} bytes", bar.len())))?;
        let len = len.min(room);
        // Its addresses must mean nothing else: they are taken from those of host memory. Those of the BAR are what old
        // controllers know, and what some go by that could be told others.
        let at_bar = bar_address(device, location.bir())
            .and_then(|bar| {
                bar.checked_add(offset).ok_or_else(|| nonsense("has addresses beyond 64 bits".into()))
            })
            .and_then(|base| device.reserve_addresses(Some(base), len));
        let (base, control) = match at_bar {
            Ok(base) if cap.cmbs() => (base, Some(CmbControl::enabled(base))),
            Ok(base) => (base, None),
            Err(error) if !cap.cmbs() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the controller memory buffer gets other addresses than its BAR's");
                let reserved = len.checked_add(page).ok_or_else(|| nonsense("is too long".into()))?;
                let base = device.reserve_addresses(None, reserved)?.next_multiple_of(page);
                (base, Some(CmbControl::enabled(base)))
            }
        };
        let skip = base.next_multiple_of(page) - base;
        let pages = (len.saturating_sub(skip).min(MAX_USED) / page) as usize;
        let cmb = Self {
            bar,
            offset: offset + skip,
            address: base + skip,
            control,
            page,
            used: Mutex::new(vec![false; pages]),
        };
        cmb.enable(registers)?;
        tracing::debug!(address = cmb.address, pages, ?location, ?size, "controller memory buffer");
        Ok(Some(cmb))
    }

    /// Lets the controller take addresses for the buffer, also again after a reset that ended it.
    pub(crate) fn enable(&self, registers: &Bar0) -> Result<()> {
        let Some(control) = self.control else { return Ok(()) };
        write_control(registers, control)?;
        let status = CmbStatus(registers.read32(u64::from(PropertyOffset::CMBSTS.0))?);
        if status.cbai() {
            return Err(Error::peer_misbehaved(format!(
                "it does not take {:#x} as the address of its memory buffer (CMBSTS.CBAI)",
                control.base()
            )));
        }
        Ok(())
    }

    fn used(&self) -> MutexGuard<'_, Vec<bool>> {
        // A poisoned state is still whole: every change is an assignment.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `len` bytes, whole pages; `None` when there is no room.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Option<CmbPart> {
        let pages = (len as u64).div_ceil(self.page) as usize;
        let mut used = self.used();
        let first = used.windows(pages.max(1)).position(|window| !window.contains(&true))?;
        used[first..first + pages].fill(true);
        Some(CmbPart { cmb: Arc::clone(self), first, pages })
    }

    /// Pages in use.
    #[cfg(test)]
    pub(crate) fn pages_used(&self) -> usize {
        self.used().iter().filter(|&&used| used).count()
    }
}

/// CMBMSC is written upper half first: the enabling bits are in the lower one.
fn write_control(registers: &Bar0, control: CmbControl) -> Result<()> {
    let at = u64::from(PropertyOffset::CMBMSC.0);
    registers.write32(at + 4, (control.0 >> 32) as u32)?;
    registers.write32(at, control.0 as u32)
}

/// The bus address of a memory BAR.
fn bar_address(device: &mut dyn PciDevice, index: u8) -> Result<u64> {
    let mut low = [0; 4];
    let at = BARS + 4 * u32::from(index);
    device.read_config(at, &mut low)?;
    let low = u32::from_le_bytes(low);
    let mut high = [0; 4];
    // Bits 2:1 are 10b where the next register has the upper half.
    if low & 0b110 == 0b100 && index < 5 {
        device.read_config(at + 4, &mut high)?;
    }
    let address = u64::from(low & !0xf) | u64::from(u32::from_le_bytes(high)) << 32;
    if low & 1 != 0 || address == 0 || !address.is_multiple_of(DMA_PAGE as u64) {
        return Err(Error::unsupported(format!("BAR {index} has no memory address")));
    }
    Ok(address)
}

/// A part of the buffer. Its space is free again when it is dropped.
pub(crate) struct CmbPart {
    cmb: Arc<Cmb>,
    first: usize,
    pages: usize,
}

impl CmbPart {
    /// The controller's address of it.
    pub(crate) fn address(&self) -> u64 {
        self.cmb.address + self.first as u64 * self.cmb.page
    }

    /// Copies whole dwords in; what is written before a doorbell is there when the doorbell is.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        let at = self.cmb.offset + self.first as u64 * self.cmb.page + offset as u64;
        self.cmb.bar.write_bytes(at, from)
    }

    /// Keeps the space from ever being used again: the controller may still have a queue there.
    pub(crate) fn give_up(mut self) {
        self.pages = 0;
    }
}

impl Drop for CmbPart {
    fn drop(&mut self) {
        self.cmb.used()[self.first..self.first + self.pages].fill(false);
    }
}

#[cfg(test)]
mod tests;

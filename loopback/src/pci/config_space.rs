//! Configuration space: identity, BARs, and the capabilities a driver looks for (PCI Local Bus 3.0 §6.1, NVMe over PCIe 1.1 §2).

/// Bytes, with the extended part, which holds nothing.
pub(super) const CONFIG_SIZE: usize = 4096;
/// Unassigned to any vendor.
pub(super) const VENDOR: u16 = 0x1234;
pub(super) const DEVICE: u16 = 0x4e56;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const BAR2: usize = 0x18;
const BAR4: usize = 0x20;
const INTERRUPT_LINE: usize = 0x3c;
const POWER: usize = 0x40;
const MSIX: usize = 0x50;
const EXPRESS: usize = 0x60;
const DEVICE_CONTROL: usize = EXPRESS + 8;

/// Command register bit 1, Memory Space Enable, and bit 2, Bus Master Enable.
const MEMORY_SPACE: u8 = 1 << 1;
const BUS_MASTER: u8 = 1 << 2;
/// Device Control bit 15, in its upper byte: Initiate Function Level Reset.
const INITIATE_FLR: u8 = 1 << 7;

/// Where BAR 2 is unless the host moves it: as a firmware would have put it.
const BAR2_ADDRESS: u64 = 0xc000_0000;

/// Lengths of the BARs; powers of two.
pub(super) const BAR4_LEN: u64 = 64 * 1024;
/// Where the pending bit array is in BAR 4; the MSI-X table is at its start: 16 bytes for each of 2,048 vectors at most.
const PBA_OFFSET: u32 = 32 * 1024;

#[derive(Debug)]
pub(super) struct ConfigSpace {
    bytes: Vec<u8>,
    /// Bits the host may change.
    writable: Vec<u8>,
}

/// What the function is, and how long its BARs are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) vectors: u16,
    pub(super) bar0_len: u64,
    /// Zero when there is none.
    pub(super) bar2_len: u64,
}

/// What a write asks for besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct ConfigWritten {
    pub(super) reset: bool,
}

impl ConfigSpace {
    pub(super) fn new(layout: &Layout) -> Self {
        let Layout { vendor, device, vectors, bar0_len, bar2_len } = *layout;
        let mut space = Self { bytes: vec![0; CONFIG_SIZE], writable: vec![0; CONFIG_SIZE] };
        space.put(0x00, &vendor.to_le_bytes());
        space.put(0x02, &device.to_le_bytes());
        // Status: capability list. Class 01:08:02, NVM Express I/O controller.
        space.put(STATUS, &[0x10]);
        space.put(0x09, &[0x02, 0x08, 0x01]);
        space.put(0x2c, &vendor.to_le_bytes());
        space.put(0x2e, &device.to_le_bytes());
        space.put(0x34, &[POWER as u8]);
        // No pin interrupt.
        space.put(INTERRUPT_LINE, &[0xff, 0]);
        // Power management, version 3, D0.
        space.put(POWER, &[0x01, MSIX as u8, 0x03, 0x00, 0x08, 0x00]);
        // MSI-X: table size 0's based, table and pending bits in BAR 4.
        space.put(MSIX, &[0x11, EXPRESS as u8]);
        space.put(MSIX + 2, &vectors.saturating_sub(1).to_le_bytes());
        space.put(MSIX + 4, &4u32.to_le_bytes());
        space.put(MSIX + 8, &(PBA_OFFSET | 4).to_le_bytes());
        // PCI Express endpoint, version 2; Device Capabilities: role-based errors (15), function level reset (28).
        space.put(EXPRESS, &[0x10, 0x00, 0x02, 0x00]);
        space.put(EXPRESS + 4, &(1u32 << 15 | 1 << 28).to_le_bytes());
        // A x1 link of 2.5 GT/s.
        space.put(EXPRESS + 0x0c, &0x11u32.to_le_bytes());
        space.put(EXPRESS + 0x12, &0x11u16.to_le_bytes());
        for (at, len) in [(BAR0, bar0_len), (BAR2, bar2_len), (BAR4, BAR4_LEN)] {
            if len == 0 {
                continue;
            }
            // 64-bit memory, not prefetchable. The bits of the length cannot be set: so it is found out.
            space.put(at, &[0x04]);
            let mask = !(len - 1);
            space.writable[at..at + 8].copy_from_slice(&mask.to_le_bytes());
        }
        if bar2_len > 0 {
            space.put(BAR2, &(BAR2_ADDRESS | 0x04).to_le_bytes());
        }
        // Memory space and bus master, interrupt disable; interrupt line; power state; MSI-X enable and function mask; Device
        // Control.
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&[MEMORY_SPACE | BUS_MASTER, 0x04]);
        space.writable[INTERRUPT_LINE] = 0xff;
        space.writable[POWER + 4] = 0x03;
        space.writable[MSIX + 3] = 0xc0;
        space.writable[DEVICE_CONTROL..DEVICE_CONTROL + 2].copy_from_slice(&[0xff, 0x7f]);
        // Whoever opens a function finds its memory space enabled, as with VFIO.
        space.bytes[COMMAND] = MEMORY_SPACE;
        space
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Where the host, or the firmware, put BAR 2.
    pub(super) fn bar2_address(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[BAR2..BAR2 + 8]);
        u64::from_le_bytes(bytes) & !0xf
    }

    /// Whether the function may access memory.
    pub(super) fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & BUS_MASTER != 0
    }

    /// Copies out; `None` when the range lies outside.
    pub(super) fn read(&self, offset: u32, to: &mut [u8]) -> Option<()> {
        let start = offset as usize;
        to.copy_from_slice(self.bytes.get(start..start.checked_add(to.len())?)?);
        Some(())
    }

    /// Copies in as far as bits can be changed; `None` when the range lies outside.
    pub(super) fn write(&mut self, offset: u32, from: &[u8]) -> Option<ConfigWritten> {
        let start = offset as usize;
        let end = start.checked_add(from.len())?;
        let (bytes, writable) = (self.bytes.get_mut(start..end)?, self.writable.get(start..end)?);
        for ((byte, mask), new) in bytes.iter_mut().zip(writable).zip(from) {
            *byte = *byte & !mask | new & mask;
        }
        let flr = (start..end).zip(from).any(|(at, new)| at == DEVICE_CONTROL + 1 && new & INITIATE_FLR != 0);
        Some(ConfigWritten { reset: flr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { vendor: VENDOR, device: DEVICE, vectors: 65, bar0_len: 0x4000, bar2_len: 0 };

    fn read<const N: usize>(space: &ConfigSpace, offset: u32) -> [u8; N] {
        let mut bytes = [0; N];
        space.read(offset, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_driver_finds_class_capabilities_and_bar_sizes() {
        let mut space = ConfigSpace::new(&LAYOUT);
        assert_eq!(read(&space, 0x09), [0x02, 0x08, 0x01]);
        let (mut at, mut ids) = (read::<1>(&space, 0x34)[0], Vec::new());
        while at != 0 {
            let [id, next] = read(&space, at.into());
            ids.push(id);
            at = next;
        }
        assert_eq!(ids, [0x01, 0x11, 0x10]);
        assert_eq!(u16::from_le_bytes(read(&space, 0x52)), 64);
        space.write(0x10, &[0xff; 8]).unwrap();
        assert_eq!(u64::from_le_bytes(read(&space, 0x10)), !0x3fff | 4);
        space.write(0x00, &[0xff; 4]).unwrap();
        assert_eq!(u16::from_le_bytes(read(&space, 0x00)), VENDOR, "read only");
    }

    #[test]
    fn identifiers_and_a_bar_for_memory() {
        let layout = Layout { vendor: 0x144d, device: 0xa821, bar2_len: 0x10_0000, ..LAYOUT };
        let mut space = ConfigSpace::new(&layout);
        assert_eq!(read(&space, 0), [0x4d, 0x14, 0x21, 0xa8]);
        assert_eq!(space.bar2_address(), BAR2_ADDRESS);
        space.write(0x18, &[0xff; 8]).unwrap();
        assert_eq!(u64::from_le_bytes(read(&space, 0x18)), !0xf_ffff | 4);
        assert_eq!(ConfigSpace::new(&LAYOUT).bar2_address(), 0);
    }

    #[test]
    fn bus_mastering_and_function_level_reset() {
        let mut space = ConfigSpace::new(&Layout { vectors: 1, ..LAYOUT });
        assert!(!space.bus_master());
        assert_eq!(space.write(0x04, &[0x06, 0x04]), Some(ConfigWritten { reset: false }));
        assert!(space.bus_master());
        assert_eq!(space.write(0x68, &[0x00, 0x80]), Some(ConfigWritten { reset: true }));
        assert_eq!(read(&space, 0x69), [0u8], "the bit reads as zero");
        assert_eq!(space.write(0xffe, &[0; 4]), None);
        assert_eq!(space.read(u32::MAX, &mut [0; 4]), None);
    }
}

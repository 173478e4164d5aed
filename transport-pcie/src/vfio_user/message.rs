//! What goes over the socket: a header of 16 bytes, then a structure that depends on the command.
//!
//! The structures are those of `<linux/vfio.h>` where VFIO has one. Numbers are little-endian on every machine this builds
//! for that has a vfio-user server (the protocol says "host order"; both sides are on one host).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Major version of the protocol spoken here.
pub const MAJOR: u16 = 0;
/// Minor version of the protocol spoken here.
pub const MINOR: u16 = 1;

/// BAR 0 among the regions of a PCI device (`VFIO_PCI_BAR0_REGION_INDEX`).
pub const REGION_BAR0: u32 = 0;
/// Configuration space among the regions of a PCI device (`VFIO_PCI_CONFIG_REGION_INDEX`).
pub const REGION_CONFIG: u32 = 7;
/// Regions of a PCI device (`VFIO_PCI_NUM_REGIONS`).
pub const REGIONS: u32 = 9;
/// MSI-X among the interrupts of a PCI device (`VFIO_PCI_MSIX_IRQ_INDEX`).
pub const IRQ_MSIX: u32 = 2;
/// Kinds of interrupts of a PCI device (`VFIO_PCI_NUM_IRQS`).
pub const IRQS: u32 = 5;

/// What a message is about. Unknown values survive.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct Command(pub U16);

impl Command {
    /// Version and capabilities; the first message.
    pub const VERSION: Self = Self(U16::new(1));
    /// Makes memory of the client reachable.
    pub const DMA_MAP: Self = Self(U16::new(2));
    /// Takes it back.
    pub const DMA_UNMAP: Self = Self(U16::new(3));
    /// What the device has.
    pub const DEVICE_GET_INFO: Self = Self(U16::new(4));
    /// Size and abilities of a region.
    pub const DEVICE_GET_REGION_INFO: Self = Self(U16::new(5));
    /// Descriptors that stand for parts of a region.
    pub const DEVICE_GET_REGION_IO_FDS: Self = Self(U16::new(6));
    /// Vectors of a kind of interrupt.
    pub const DEVICE_GET_IRQ_INFO: Self = Self(U16::new(7));
    /// Wires interrupts to eventfds.
    pub const DEVICE_SET_IRQS: Self = Self(U16::new(8));
    /// Reads a region.
    pub const REGION_READ: Self = Self(U16::new(9));
    /// Writes a region.
    pub const REGION_WRITE: Self = Self(U16::new(10));
    /// The server reads memory of the client.
    pub const DMA_READ: Self = Self(U16::new(11));
    /// The server writes memory of the client.
    pub const DMA_WRITE: Self = Self(U16::new(12));
    /// Resets the device.
    pub const DEVICE_RESET: Self = Self(U16::new(13));

    /// Its name in the protocol's words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VERSION => "VERSION",
            Self::DMA_MAP => "DMA_MAP",
            Self::DMA_UNMAP => "DMA_UNMAP",
            Self::DEVICE_GET_INFO => "DEVICE_GET_INFO",
            Self::DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            Self::DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            Self::DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            Self::DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
            Self::REGION_READ => "REGION_READ",
            Self::REGION_WRITE => "REGION_WRITE",
            Self::DMA_READ => "DMA_READ",
            Self::DMA_WRITE => "DMA_WRITE",
            Self::DEVICE_RESET => "DEVICE_RESET",
            _ => "an unknown command",
        }
    }
}

/// Starts every message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Chosen by who sends a command, repeated in the reply.
    pub msg_id: U16,
    /// What it is about.
    pub command: Command,
    /// Bytes of the whole message, the header included.
    pub msg_size: U32,
    /// Bits 3:0 command or reply, and the two flags below.
    pub flags: U32,
    /// In a reply with [`Header::ERROR`]: the `errno`.
    pub error: U32,
}

impl Header {
    /// Bytes of it.
    pub const SIZE: usize = 16;
    /// Bits of the type, in the flags.
    pub const TYPE_MASK: u32 = 0xf;
    /// The type of a command.
    pub const COMMAND: u32 = 0;
    /// The type of a reply.
    pub const REPLY: u32 = 1;
    /// Of a command: nobody waits for a reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// Of a reply: the command failed.
    pub const ERROR: u32 = 1 << 5;

    /// The header of a command with `body` bytes behind it.
    #[must_use]
    pub fn command(msg_id: u16, command: Command, body: usize, flags: u32) -> Self {
        let msg_size = U32::new((Self::SIZE + body) as u32);
        Self { msg_id: msg_id.into(), command, msg_size, flags: flags.into(), error: 0.into() }
    }

    /// The header of a good reply with `body` bytes behind it.
    #[must_use]
    pub fn reply(&self, body: usize) -> Self {
        Self::command(self.msg_id.get(), self.command, body, Self::REPLY)
    }

    /// A reply that refuses the command; it has no body.
    #[must_use]
    pub fn refusal(&self, errno: i32) -> Self {
        Self {
            error: U32::new(errno.unsigned_abs()),
            ..Self::command(self.msg_id.get(), self.command, 0, Self::REPLY | Self::ERROR)
        }
    }

    /// Whether it is a reply; what is neither is `None`.
    #[must_use]
    pub fn is_reply(&self) -> Option<bool> {
        match self.flags.get() & Self::TYPE_MASK {
            Self::COMMAND => Some(false),
            Self::REPLY => Some(true),
            _ => None,
        }
    }

    /// Whether one of these flags is there.
    #[must_use]
    pub fn has(&self, flag: u32) -> bool {
        self.flags.get() & flag != 0
    }
}

const _: () = assert!(size_of::<Header>() == Header::SIZE);
const _: () = assert!(offset_of!(Header, command) == 2 && offset_of!(Header, msg_size) == 4);
const _: () = assert!(offset_of!(Header, flags) == 8 && offset_of!(Header, error) == 12);

/// Before the capabilities in [`Command::VERSION`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Version {
    /// Versions with different major numbers do not understand each other.
    pub major: U16,
    /// The lower of both sides' is spoken.
    pub minor: U16,
}

const _: () = assert!(size_of::<Version>() == 4 && offset_of!(Version, minor) == 2);

/// [`Command::DMA_MAP`]. The memory's file may come with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this structure.
    pub argsz: U32,
    /// What the device may do, and how.
    pub flags: U32,
    /// Where the memory starts in the file.
    pub offset: U64,
    /// Bus address of the first byte.
    pub addr: U64,
    /// Bytes.
    pub size: U64,
}

impl DmaMap {
    /// The device may read.
    pub const READ: u32 = 1 << 0;
    /// The device may write.
    pub const WRITE: u32 = 1 << 1;
    /// The file is to be mapped. Younger than the others; without it a file is mapped as well.
    pub const MMAP: u32 = 1 << 2;
}

const _: () = assert!(size_of::<DmaMap>() == 32 && offset_of!(DmaMap, flags) == 4);
const _: () = assert!(offset_of!(DmaMap, offset) == 8 && offset_of!(DmaMap, addr) == 16);
const _: () = assert!(offset_of!(DmaMap, size) == 24);

/// [`Command::DMA_UNMAP`], and its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes of this structure and what the reply may have behind it.
    pub argsz: U32,
    /// How.
    pub flags: U32,
    /// Bus address it was mapped at.
    pub addr: U64,
    /// Bytes that were mapped there.
    pub size: U64,
}

impl DmaUnmap {
    /// Everything; address and size are zero.
    pub const ALL: u32 = 1 << 1;
}

const _: () = assert!(size_of::<DmaUnmap>() == 24 && offset_of!(DmaUnmap, flags) == 4);
const _: () = assert!(offset_of!(DmaUnmap, addr) == 8 && offset_of!(DmaUnmap, size) == 16);

/// [`Command::DEVICE_GET_INFO`], and its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes of this structure.
    pub argsz: U32,
    /// What it is.
    pub flags: U32,
    /// Regions.
    pub num_regions: U32,
    /// Kinds of interrupts.
    pub num_irqs: U32,
}

impl DeviceInfo {
    /// It can be reset.
    pub const RESET: u32 = 1 << 0;
    /// It is a PCI device.
    pub const PCI: u32 = 1 << 1;
}

const _: () = assert!(size_of::<DeviceInfo>() == 16 && offset_of!(DeviceInfo, flags) == 4);
const _: () = assert!(offset_of!(DeviceInfo, num_regions) == 8 && offset_of!(DeviceInfo, num_irqs) == 12);

/// [`Command::DEVICE_GET_REGION_INFO`], and its reply, which may have capabilities and descriptors behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionInfo {
    /// Of the command: bytes the reply may have. Of the reply: bytes it needs with all capabilities.
    pub argsz: U32,
    /// What can be done with it.
    pub flags: U32,
    /// Which region.
    pub index: U32,
    /// Where the first capability is, from the start of this structure.
    pub cap_offset: U32,
    /// Bytes of the region.
    pub size: U64,
    /// Where the region starts in the descriptor that comes with the reply.
    pub offset: U64,
}

impl RegionInfo {
    /// It can be read.
    pub const READ: u32 = 1 << 0;
    /// It can be written.
    pub const WRITE: u32 = 1 << 1;
    /// It, or parts of it, can be mapped.
    pub const MMAP: u32 = 1 << 2;
    /// Capabilities follow.
    pub const CAPS: u32 = 1 << 3;
}

const _: () = assert!(size_of::<RegionInfo>() == 32 && offset_of!(RegionInfo, flags) == 4);
const _: () = assert!(offset_of!(RegionInfo, index) == 8 && offset_of!(RegionInfo, cap_offset) == 12);
const _: () = assert!(offset_of!(RegionInfo, size) == 16 && offset_of!(RegionInfo, offset) == 24);

/// Starts a capability of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapabilityHeader {
    /// Which.
    pub id: U16,
    /// Its version.
    pub version: U16,
    /// Where the next one is, from the start of [`RegionInfo`]; 0 after the last.
    pub next: U32,
}

const _: () = assert!(size_of::<CapabilityHeader>() == 8);
const _: () = assert!(offset_of!(CapabilityHeader, version) == 2 && offset_of!(CapabilityHeader, next) == 4);

/// The capability that says which parts of a region can be mapped; [`Area`]s follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SparseMmap {
    /// Its header, with [`SparseMmap::ID`].
    pub header: CapabilityHeader,
    /// How many areas.
    pub areas: U32,
    /// Zero.
    pub reserved: U32,
}

impl SparseMmap {
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`
    pub const ID: u16 = 1;
}

const _: () = assert!(size_of::<SparseMmap>() == 16 && offset_of!(SparseMmap, areas) == 8);

/// A part of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Area {
    /// Where it starts in the region.
    pub offset: U64,
    /// Bytes.
    pub size: U64,
}

const _: () = assert!(size_of::<Area>() == 16 && offset_of!(Area, size) == 8);

/// [`Command::DEVICE_GET_REGION_IO_FDS`], and its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionIoFds {
    /// Of the command: bytes the reply may have. Of the reply: bytes it needs.
    pub argsz: U32,
    /// Zero.
    pub flags: U32,
    /// Which region.
    pub index: U32,
    /// Of the reply: how many parts of the region have descriptors.
    pub count: U32,
}

const _: () = assert!(size_of::<RegionIoFds>() == 16 && offset_of!(RegionIoFds, index) == 8);
const _: () = assert!(offset_of!(RegionIoFds, flags) == 4 && offset_of!(RegionIoFds, count) == 12);

/// [`Command::DEVICE_GET_IRQ_INFO`], and its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes of this structure.
    pub argsz: U32,
    /// What can be done with them.
    pub flags: U32,
    /// Which kind.
    pub index: U32,
    /// Vectors of this kind.
    pub count: U32,
}

impl IrqInfo {
    /// They can be wired to eventfds.
    pub const EVENTFD: u32 = 1 << 0;
}

const _: () = assert!(size_of::<IrqInfo>() == 16 && offset_of!(IrqInfo, index) == 8);
const _: () = assert!(offset_of!(IrqInfo, flags) == 4 && offset_of!(IrqInfo, count) == 12);

/// [`Command::DEVICE_SET_IRQS`]. Eventfds come with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of this structure and what follows.
    pub argsz: U32,
    /// One kind of data and one action.
    pub flags: U32,
    /// Which kind of interrupts.
    pub index: U32,
    /// First vector.
    pub start: U32,
    /// Vectors. 0 with [`IrqSet::NONE`] and [`IrqSet::TRIGGER`] turns all off.
    pub count: U32,
}

impl IrqSet {
    /// No data.
    pub const NONE: u32 = 1 << 0;
    /// Data are eventfds.
    pub const EVENTFD: u32 = 1 << 2;
    /// Bits of the data.
    pub const DATA_MASK: u32 = 0x7;
    /// The action is about what happens when a vector fires.
    pub const TRIGGER: u32 = 1 << 5;
    /// Bits of the action.
    pub const ACTION_MASK: u32 = 0x38;
}

const _: () = assert!(size_of::<IrqSet>() == 20 && offset_of!(IrqSet, index) == 8);
const _: () = assert!(offset_of!(IrqSet, flags) == 4 && offset_of!(IrqSet, start) == 12);
const _: () = assert!(offset_of!(IrqSet, count) == 16);

/// [`Command::REGION_READ`] and [`Command::REGION_WRITE`], and their replies; data follow what carries them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: U64,
    /// Which region.
    pub region: U32,
    /// Bytes.
    pub count: U32,
}

const _: () = assert!(size_of::<RegionAccess>() == 16 && offset_of!(RegionAccess, region) == 8);
const _: () = assert!(offset_of!(RegionAccess, count) == 12);

/// The parts of BAR 0 that can be mapped, as the body of a reply to [`Command::DEVICE_GET_REGION_INFO`] says.
/// What makes no sense is left out: a part not mapped is a part reached by message.
#[must_use]
pub fn mappable_areas(body: &[u8]) -> Vec<Area> {
    let Ok((info, _)) = RegionInfo::read_from_prefix(body) else { return Vec::new() };
    if info.flags.get() & RegionInfo::MMAP == 0 {
        return Vec::new();
    }
    if info.flags.get() & RegionInfo::CAPS == 0 {
        return vec![Area { offset: 0.into(), size: info.size }];
    }
    let mut areas = Vec::new();
    let mut at = info.cap_offset.get() as usize;
    // A chain of capabilities that leads back would have no end, and one into what was read already would name the same areas again
    // and again; each lies behind all of the one before.
    let mut least = size_of::<RegionInfo>();
    while at >= least {
        let Some(rest) = body.get(at..) else { break };
        let Ok((header, mut behind)) = CapabilityHeader::read_from_prefix(rest) else { break };
        if header.id.get() == SparseMmap::ID
            && let Ok((sparse, mut rest)) = SparseMmap::read_from_prefix(rest)
        {
            for _ in 0..sparse.areas.get() {
                let Ok((area, more)) = Area::read_from_prefix(rest) else { break };
                let end = area.offset.get().checked_add(area.size.get());
                if area.size.get() > 0 && end.is_some_and(|end| end <= info.size.get()) {
                    areas.push(area);
                }
                rest = more;
            }
            behind = rest;
        }
        least = body.len() - behind.len();
        at = header.next.get() as usize;
    }
    areas
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_its_reply_and_its_refusal() {
        let command = Header::command(0x1234, Command::REGION_READ, 16, Header::NO_REPLY);
        assert_eq!(command.as_bytes(), [0x34, 0x12, 9, 0, 32, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(command.is_reply(), Some(false));
        let reply = command.reply(4);
        assert_eq!(reply.as_bytes(), [0x34, 0x12, 9, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let refusal = command.refusal(22);
        assert_eq!(refusal.as_bytes(), [0x34, 0x12, 9, 0, 16, 0, 0, 0, 0x21, 0, 0, 0, 22, 0, 0, 0]);
        assert_eq!((refusal.is_reply(), refusal.has(Header::ERROR)), (Some(true), true));
        assert_eq!(Header { flags: 7.into(), ..command }.is_reply(), None);
    }

    fn region(flags: u32, cap_offset: u32, caps: &[&[u8]]) -> Vec<u8> {
        let info = RegionInfo {
            argsz: 0.into(),
            flags: flags.into(),
            index: 0.into(),
            cap_offset: cap_offset.into(),
            size: 0x4000.into(),
            offset: 0.into(),
        };
        [info.as_bytes(), &caps.concat()].concat()
    }

    #[test]
    fn areas_of_a_region() {
        let area = |offset: u64, size: u64| Area { offset: offset.into(), size: size.into() };
        let both = RegionInfo::MMAP | RegionInfo::CAPS;
        assert_eq!(mappable_areas(&region(0, 0, &[])), []);
        assert_eq!(mappable_areas(&region(RegionInfo::MMAP, 0, &[])), [area(0, 0x4000)]);
        let other = CapabilityHeader { id: 9.into(), version: 1.into(), next: 40.into() };
        let sparse = |areas: u32, next: u32| SparseMmap {
            header: CapabilityHeader { id: SparseMmap::ID.into(), version: 1.into(), next: next.into() },
            areas: areas.into(),
            reserved: 0.into(),
        };
        let (good, outside) = (area(0x1000, 0x1000), area(0x3000, 0x1001));
        let wraps = area(u64::MAX, 2);
        let body = region(
            both,
            32,
            &[
                other.as_bytes(),
                sparse(3, 0).as_bytes(),
                good.as_bytes(),
                outside.as_bytes(),
                wraps.as_bytes(),
            ],
        );
        assert_eq!(mappable_areas(&body), [good]);
        // More areas than there are bytes, and a chain that leads back.
        let body = region(both, 32, &[sparse(u32::MAX, 32).as_bytes(), good.as_bytes()]);
        assert_eq!(mappable_areas(&body), [good]);
        assert_eq!(mappable_areas(&region(both, 4, &[sparse(1, 0).as_bytes(), good.as_bytes()])), []);
    }

    proptest! {
        #[test]
        fn any_region_info_is_taken_without_panic(body in prop::collection::vec(any::<u8>(), 0..200), flags in 0u8..16, cap in 0u8..80) {
            let mut body = body;
            if body.len() > 13 {
                (body[4], body[12], body[13]) = (flags, cap, 0);
            }
            for area in mappable_areas(&body) {
                prop_assert!(area.offset.get().checked_add(area.size.get()).is_some());
            }
        }
    }
}

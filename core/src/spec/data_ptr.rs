//! The data pointer of a submission queue entry: PRP entries or an SGL descriptor.
//!
//! NVMe Base 2.1 §4.3 (PRP and SGL), Figure 92 (command format, PSDT and DPTR).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The 16-byte data pointer (DPTR) as it stands in a command: two PRP entries or one SGL descriptor,
/// as the command's PSDT field says.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DataPointer {
    /// First eight bytes: PRP entry 1, or the SGL descriptor's address.
    pub lo: U64,
    /// Last eight bytes: PRP entry 2, or the SGL descriptor's length, type and subtype.
    pub hi: U64,
}

const _: () = assert!(size_of::<DataPointer>() == 16);

impl DataPointer {
    /// Two PRP entries: bus addresses of the first page and of the second page or PRP list.
    #[must_use]
    pub const fn prp(prp1: u64, prp2: u64) -> Self {
        Self { lo: U64::new(prp1), hi: U64::new(prp2) }
    }

    /// One SGL descriptor.
    #[must_use]
    pub fn sgl(descriptor: SglDescriptor) -> Self {
        zerocopy::transmute!(descriptor)
    }

    /// The same bytes read as an SGL descriptor.
    #[must_use]
    pub fn as_sgl(self) -> SglDescriptor {
        zerocopy::transmute!(self)
    }
}

open_enum! {
    /// SGL descriptor type, bits 7:4 of the descriptor's last byte (Figure 116).
    pub struct SglType(u8) {
        /// A block of data at an address.
        DATA_BLOCK = 0x0 => "data block",
        /// Bytes to be discarded on a read.
        BIT_BUCKET = 0x1 => "bit bucket",
        /// A segment holding further descriptors.
        SEGMENT = 0x2 => "segment",
        /// The last segment of descriptors.
        LAST_SEGMENT = 0x3 => "last segment",
        /// A block of remote memory named by an RDMA key.
        KEYED_DATA_BLOCK = 0x4 => "keyed data block",
        /// Data carried by the transport's own messages (NVMe/TCP R2T, H2CData, C2HData).
        TRANSPORT_DATA_BLOCK = 0x5 => "transport data block",
    }
}

open_enum! {
    /// SGL descriptor subtype, bits 3:0 of the descriptor's last byte (Figure 117).
    pub struct SglSubtype(u8) {
        /// The address is a memory address.
        ADDRESS = 0x0 => "address",
        /// The address is an offset into the capsule (in-capsule data).
        OFFSET = 0x1 => "offset",
        /// Transport specific; for NVMe/TCP, data moved by data transfer PDUs.
        TRANSPORT = 0xa => "transport specific",
        /// Keyed SGL: invalidate the key once the command is done (NVMe/RDMA).
        INVALIDATE_KEY = 0xf => "invalidate key",
    }
}

/// A 16-byte SGL descriptor (Figure 115). Bytes 8..15 depend on the type; the keyed form packs a 24-bit
/// length and a 32-bit key.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address or in-capsule offset, bytes.
    pub address: U64,
    /// Length in bytes (unkeyed forms); low 24 bits length and low byte of the key (keyed form).
    pub length: U32,
    /// Reserved (unkeyed forms) or the upper 24 bits of the key (keyed form).
    pub reserved: [u8; 3],
    /// Type (bits 7:4) and subtype (bits 3:0).
    pub kind: u8,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);
const _: () = assert!(offset_of!(SglDescriptor, length) == 8);
const _: () = assert!(offset_of!(SglDescriptor, kind) == 15);

impl SglDescriptor {
    const fn new(address: u64, length: u32, kind: SglType, subtype: SglSubtype) -> Self {
        Self {
            address: U64::new(address),
            length: U32::new(length),
            reserved: [0; 3],
            kind: kind.0 << 4 | subtype.0,
        }
    }

    /// A data block in memory at `address`, `length` bytes.
    #[must_use]
    pub const fn data_block(address: u64, length: u32) -> Self {
        Self::new(address, length, SglType::DATA_BLOCK, SglSubtype::ADDRESS)
    }

    /// Data inside the command capsule, `offset` bytes after the in-capsule data area's start (ICDOFF).
    #[must_use]
    pub const fn in_capsule(offset: u64, length: u32) -> Self {
        Self::new(offset, length, SglType::DATA_BLOCK, SglSubtype::OFFSET)
    }

    /// Data moved by the transport's own data PDUs (NVMe/TCP §3.2.2, type 5h subtype Ah).
    #[must_use]
    pub const fn transport(length: u32) -> Self {
        Self::new(0, length, SglType::TRANSPORT_DATA_BLOCK, SglSubtype::TRANSPORT)
    }

    /// Remote memory `length` bytes (below 2^24) at `address` under `key` (NVMe/RDMA).
    #[must_use]
    pub const fn keyed(address: u64, length: u32, key: u32, subtype: SglSubtype) -> Self {
        let key = key.to_le_bytes();
        Self {
            address: U64::new(address),
            length: U32::new(length & 0x00ff_ffff | (key[0] as u32) << 24),
            reserved: [key[1], key[2], key[3]],
            kind: SglType::KEYED_DATA_BLOCK.0 << 4 | subtype.0,
        }
    }

    /// A segment of `length` bytes of further descriptors at `address`; `last` when no other follows.
    #[must_use]
    pub const fn segment(address: u64, length: u32, last: bool, subtype: SglSubtype) -> Self {
        let kind = if last { SglType::LAST_SEGMENT } else { SglType::SEGMENT };
        Self::new(address, length, kind, subtype)
    }

    /// The descriptor's type.
    #[must_use]
    pub const fn sgl_type(&self) -> SglType {
        SglType(self.kind >> 4)
    }

    /// The descriptor's subtype.
    #[must_use]
    pub const fn subtype(&self) -> SglSubtype {
        SglSubtype(self.kind & 0xf)
    }

    /// Length in bytes of a keyed descriptor (24 bits).
    #[must_use]
    pub const fn keyed_length(&self) -> u32 {
        self.length.get() & 0x00ff_ffff
    }

    /// Key of a keyed descriptor.
    #[must_use]
    pub const fn key(&self) -> u32 {
        u32::from_le_bytes([
            (self.length.get() >> 24) as u8,
            self.reserved[0],
            self.reserved[1],
            self.reserved[2],
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_descriptor_packs_length_and_key() {
        let d = SglDescriptor::keyed(0x1122, 0x0012_3456, 0xdead_beef, SglSubtype::INVALIDATE_KEY);
        assert_eq!(d.keyed_length(), 0x0012_3456);
        assert_eq!(d.key(), 0xdead_beef);
        assert_eq!(d.as_bytes()[8..], [0x56, 0x34, 0x12, 0xef, 0xbe, 0xad, 0xde, 0x4f]);
    }

    #[test]
    fn transport_descriptor_is_type_5a() {
        let d = SglDescriptor::transport(4096);
        assert_eq!(d.kind, 0x5a);
        assert_eq!(DataPointer::sgl(d).as_sgl(), d);
    }
}

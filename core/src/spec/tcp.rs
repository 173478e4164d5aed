//! NVMe/TCP PDU headers. NVMe/TCP Transport Specification 1.1 §3.6.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::command::Sqe;
use super::completion::Cqe;

open_enum! {
    /// PDU type, byte 0 of the common header (Figure 12).
    pub struct PduType(u8) {
        /// Initialize Connection Request.
        IC_REQ = 0x00 => "ICReq",
        /// Initialize Connection Response.
        IC_RESP = 0x01 => "ICResp",
        /// Host to Controller Terminate Connection Request.
        H2C_TERM_REQ = 0x02 => "H2CTermReq",
        /// Controller to Host Terminate Connection Request.
        C2H_TERM_REQ = 0x03 => "C2HTermReq",
        /// Command Capsule.
        CAPSULE_CMD = 0x04 => "CapsuleCmd",
        /// Response Capsule.
        CAPSULE_RESP = 0x05 => "CapsuleResp",
        /// Host to Controller Data.
        H2C_DATA = 0x06 => "H2CData",
        /// Controller to Host Data.
        C2H_DATA = 0x07 => "C2HData",
        /// Ready to Transfer.
        R2T = 0x09 => "R2T",
    }
}

/// FLAGS bit 0: a header digest follows the header.
pub const FLAG_HDGST: u8 = 1 << 0;
/// FLAGS bit 1: a data digest follows the data.
pub const FLAG_DDGST: u8 = 1 << 1;
/// FLAGS bit 2 of H2CData and C2HData: last PDU of the transfer.
pub const FLAG_LAST: u8 = 1 << 2;
/// FLAGS bit 3 of C2HData: the command succeeded, no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Size of a CRC32C digest, bytes.
pub const DIGEST_LEN: usize = 4;
/// Largest PDU data offset, bytes: PDO is one byte.
pub const MAX_PDO: usize = 255;
/// In-capsule data a controller accepts for fabrics and admin commands, bytes (§3.3.2: 8,192).
pub const ADMIN_IN_CAPSULE_DATA: u32 = 8192;
/// Smallest MAXH2CDATA a controller may state, bytes (§3.6.2.3).
pub const MIN_MAXH2CDATA: u32 = 4096;
/// Largest HPDA/CPDA: PDU data alignment of 128 bytes, 0's based dwords.
pub const MAX_PDA: u8 = 31;

/// Common header of every PDU (Figure 12).
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU type.
    pub pdu_type: u8,
    /// Flags, by type.
    pub flags: u8,
    /// Header length, bytes, without the header digest.
    pub hlen: u8,
    /// PDU data offset from the PDU's start, bytes; 0 when there is no data.
    pub pdo: u8,
    /// Length of the whole PDU, bytes, digests and padding included.
    pub plen: U32,
}

/// Initialize Connection Request (Figure 14), 128 bytes, never digested.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcReq {
    /// Common header, HLEN = PLEN = 128.
    pub ch: CommonHeader,
    /// PDU format version, 0.
    pub pfv: U16,
    /// Host PDU data alignment, 0's based dwords, 0..=31: alignment of C2HData payload.
    pub hpda: u8,
    /// Bit 0 header digest, bit 1 data digest requested.
    pub digest: u8,
    /// R2Ts the host takes per command, 0's based.
    pub maxr2t_z: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}

/// Initialize Connection Response (Figure 15), 128 bytes, never digested.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcResp {
    /// Common header, HLEN = PLEN = 128.
    pub ch: CommonHeader,
    /// PDU format version, 0.
    pub pfv: U16,
    /// Controller PDU data alignment, 0's based dwords, 0..=31: alignment of in-capsule and H2CData payload.
    pub cpda: u8,
    /// Bit 0 header digest, bit 1 data digest enabled.
    pub digest: u8,
    /// Largest H2CData payload, bytes, at least 4,096 and a multiple of four.
    pub maxh2cdata: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}

/// Digest bit of ICReq and ICResp: header digest.
pub const DIGEST_HEADER: u8 = 1 << 0;
/// Digest bit of ICReq and ICResp: data digest.
pub const DIGEST_DATA: u8 = 1 << 1;

open_enum! {
    /// Fatal error status (FES) of a Terminate Connection Request (Figures 17, 19).
    pub struct FatalErrorStatus(u16) {
        /// Invalid PDU header field; FEI is its byte offset.
        INVALID_HEADER_FIELD = 0x01 => "invalid PDU header field",
        /// PDU sequence error.
        PDU_SEQUENCE_ERROR = 0x02 => "PDU sequence error",
        /// Header digest error; FEI is the digest received.
        HEADER_DIGEST_ERROR = 0x03 => "header digest error",
        /// Data transfer out of range.
        DATA_OUT_OF_RANGE = 0x04 => "data transfer out of range",
        /// R2T limit exceeded (controller to host requests read it as data transfer limit exceeded).
        R2T_LIMIT_EXCEEDED = 0x05 => "R2T or data transfer limit exceeded",
        /// Unsupported parameter; FEI is its byte offset.
        UNSUPPORTED_PARAMETER = 0x06 => "unsupported parameter",
    }
}

/// Terminate Connection Request, either way (Figures 16, 18): header, then up to 128 bytes of the PDU at fault.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TermReq {
    /// Common header, HLEN = 24.
    pub ch: CommonHeader,
    /// Fatal error status.
    pub fes: U16,
    /// Fatal error information.
    pub fei: U32,
    /// Reserved.
    pub reserved: [u8; 10],
}

/// Largest PLEN of a Terminate Connection Request: 24 bytes of header and 128 of data.
pub const TERM_REQ_MAX_PLEN: u32 = 152;

/// Command Capsule (Figure 20): the SQE, then optional in-capsule data.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header, HLEN = 72.
    pub ch: CommonHeader,
    /// The command.
    pub sqe: Sqe,
}

/// Response Capsule (Figure 21).
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header, HLEN = 24.
    pub ch: CommonHeader,
    /// The completion.
    pub cqe: Cqe,
}

/// Host to Controller Data and Controller to Host Data (Figures 22, 23): same layout; `ttag` is reserved in C2HData.
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DataPdu {
    /// Common header, HLEN = 24.
    pub ch: CommonHeader,
    /// CCCID: command identifier of the command the data belongs to.
    pub cccid: U16,
    /// TTAG: the R2T's transfer tag (H2CData).
    pub ttag: U16,
    /// DATAO: offset of this data in the command's data, bytes.
    pub datao: U32,
    /// DATAL: length of the data in this PDU, bytes.
    pub datal: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}

/// Ready to Transfer (Figure 24).
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct R2t {
    /// Common header, HLEN = PLEN without digest = 24.
    pub ch: CommonHeader,
    /// CCCID: command identifier.
    pub cccid: U16,
    /// TTAG: transfer tag to be repeated in H2CData.
    pub ttag: U16,
    /// R2TO: offset requested, bytes.
    pub r2to: U32,
    /// R2TL: length requested, bytes.
    pub r2tl: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}

const _: () = assert!(size_of::<CommonHeader>() == 8);
const _: () = assert!(size_of::<IcReq>() == 128);
const _: () = assert!(offset_of!(IcReq, maxr2t_z) == 12);
const _: () = assert!(size_of::<IcResp>() == 128);
const _: () = assert!(offset_of!(IcResp, maxh2cdata) == 12);
const _: () = assert!(size_of::<TermReq>() == 24);
const _: () = assert!(offset_of!(TermReq, fei) == 10);
const _: () = assert!(size_of::<CapsuleCmd>() == 72);
const _: () = assert!(size_of::<CapsuleResp>() == 24);
const _: () = assert!(size_of::<DataPdu>() == 24);
const _: () = assert!(offset_of!(DataPdu, cccid) == 8);
const _: () = assert!(offset_of!(DataPdu, datao) == 12);
const _: () = assert!(offset_of!(DataPdu, datal) == 16);
const _: () = assert!(size_of::<R2t>() == 24);
const _: () = assert!(offset_of!(R2t, r2tl) == 16);

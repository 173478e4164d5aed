//! NVMe over Fabrics: Connect, Property Get/Set, Disconnect and the authentication commands.
//!
//! NVMe Base 2.1 §6 (Fabrics command set), Figures 545–560.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::command::{AdminOpcode, Sqe};

open_enum! {
    /// Fabrics command type (FCTYPE), byte 4 of a command with opcode 7Fh.
    pub struct FabricsType(u8) {
        /// Property Set.
        PROPERTY_SET = 0x00 => "Property Set",
        /// Connect.
        CONNECT = 0x01 => "Connect",
        /// Property Get.
        PROPERTY_GET = 0x04 => "Property Get",
        /// Authentication Send.
        AUTHENTICATION_SEND = 0x05 => "Authentication Send",
        /// Authentication Receive.
        AUTHENTICATION_RECEIVE = 0x06 => "Authentication Receive",
        /// Disconnect.
        DISCONNECT = 0x08 => "Disconnect",
    }
}

/// Connect attribute (CATTR) bit 2: the host asks to disable SQ flow control.
pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
/// CNTLID FFFFh in Connect: dynamic controller model, the subsystem picks a controller.
pub const CNTLID_DYNAMIC: u16 = 0xffff;
/// CNTLID FFFEh in Connect: static controller model, any available controller.
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// The 1,024 bytes of data of a Connect command (Figure 550).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier, 128 bits.
    pub hostid: [u8; 16],
    /// Controller the host wants, FFFFh for dynamic.
    pub cntlid: U16,
    /// Reserved.
    pub reserved18: [u8; 238],
    /// Subsystem NQN, NUL-terminated.
    pub subnqn: [u8; 256],
    /// Host NQN, NUL-terminated.
    pub hostnqn: [u8; 256],
    /// Reserved.
    pub reserved768: [u8; 256],
}

const _: () = assert!(size_of::<ConnectData>() == 1024);
const _: () = assert!(offset_of!(ConnectData, cntlid) == 16);
const _: () = assert!(offset_of!(ConnectData, subnqn) == 256);
const _: () = assert!(offset_of!(ConnectData, hostnqn) == 512);

/// A Connect command for queue `qid`: `sqsize_z` is 0's based, `kato_ms` counts on the admin queue only.
#[must_use]
pub fn connect(qid: u16, sqsize_z: u16, cattr: u8, kato_ms: u32) -> Sqe {
    // Figure 549: CDW10 RECFMT 15:0, QID 31:16; CDW11 SQSIZE 15:0, CATTR 23:16; CDW12 KATO.
    fabrics(FabricsType::CONNECT)
        .with_cdw10(u32::from(qid) << 16)
        .with_cdw11(u32::from(sqsize_z) | u32::from(cattr) << 16)
        .with_cdw12(kato_ms)
}

/// The fields of a Connect command as the controller role reads them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectFields {
    /// Record format; 0 is the only one defined.
    pub recfmt: u16,
    /// Queue identifier: 0 for the admin queue.
    pub qid: u16,
    /// Submission queue size, 0's based.
    pub sqsize_z: u16,
    /// Connect attributes.
    pub cattr: u8,
    /// Keep alive timeout, ms; 0 is none.
    pub kato_ms: u32,
}

impl ConnectFields {
    /// Reads the fields out of a Connect command.
    #[must_use]
    pub const fn of(sqe: &Sqe) -> Self {
        Self {
            recfmt: sqe.cdw10.get() as u16,
            qid: (sqe.cdw10.get() >> 16) as u16,
            sqsize_z: sqe.cdw11.get() as u16,
            cattr: (sqe.cdw11.get() >> 16) as u8,
            kato_ms: sqe.cdw12.get(),
        }
    }
}

/// Connect response, success: CNTLID in DW0 15:0, authentication requirements in 31:16 (Figure 551).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectResponse {
    /// Controller identifier allocated.
    pub cntlid: u16,
    /// AUTHREQ: authentication and security requirements, as sent.
    pub authreq: u16,
}

impl ConnectResponse {
    /// Reads a successful response's DW0.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        Self { cntlid: dw0 as u16, authreq: (dw0 >> 16) as u16 }
    }

    /// AUTHREQ.ATR: in-band authentication is required before any other command.
    #[must_use]
    pub const fn authentication_required(self) -> bool {
        self.authreq & 0x2 != 0
    }

    /// AUTHREQ.ASCR: authentication and establishing a secure channel is required.
    #[must_use]
    pub const fn secure_channel_required(self) -> bool {
        self.authreq & 0x4 != 0
    }
}

/// Connect response, status Connect Invalid Parameters: which parameter (Figure 552).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidParameter {
    /// IPO: byte offset of the field at fault.
    pub offset: u16,
    /// IATTR bit 0: the offset counts in the Connect data, else in the command.
    pub in_data: bool,
}

impl InvalidParameter {
    /// The controller identifier (CNTLID) in the Connect data.
    pub const CNTLID: Self = Self { offset: 16, in_data: true };

    /// Reads DW0 of a Connect Invalid Parameters response.
    #[must_use]
    pub const fn from_dw0(dw0: u32) -> Self {
        Self { offset: dw0 as u16, in_data: dw0 >> 16 & 1 != 0 }
    }

    /// DW0 of a Connect Invalid Parameters response.
    #[must_use]
    pub const fn to_dw0(self) -> u32 {
        self.offset as u32 | (self.in_data as u32) << 16
    }

    /// The field's name, when the offset is the start of one.
    #[must_use]
    pub const fn field(self) -> Option<&'static str> {
        match (self.in_data, self.offset) {
            (true, 0) => Some("host identifier"),
            (true, 16) => Some("controller identifier"),
            (true, 256) => Some("subsystem NQN"),
            (true, 512) => Some("host NQN"),
            (false, 40) => Some("record format"),
            (false, 42) => Some("queue identifier"),
            (false, 44) => Some("submission queue size"),
            (false, 46) => Some("connect attributes"),
            (false, 48) => Some("keep alive timeout"),
            _ => None,
        }
    }
}

/// Size of a property: 4 or 8 bytes (ATTRIB bits 2:0).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PropertySize {
    /// 32-bit property.
    Dword,
    /// 64-bit property.
    Qword,
}

impl PropertySize {
    /// The ATTRIB encoding.
    #[must_use]
    pub const fn attrib(self) -> u32 {
        match self {
            Self::Dword => 0,
            Self::Qword => 1,
        }
    }
}

/// Property Get of the property at `offset` (Figure 557).
#[must_use]
pub fn property_get(offset: u32, size: PropertySize) -> Sqe {
    fabrics(FabricsType::PROPERTY_GET).with_cdw10(size.attrib()).with_cdw11(offset)
}

/// Property Set of the property at `offset` (Figure 559): CDW12–13 carry the value.
#[must_use]
pub fn property_set(offset: u32, size: PropertySize, value: u64) -> Sqe {
    fabrics(FabricsType::PROPERTY_SET)
        .with_cdw10(size.attrib())
        .with_cdw11(offset)
        .with_cdw12(value as u32)
        .with_cdw13((value >> 32) as u32)
}

/// Disconnect of the I/O queue the command is sent on (Figure 555).
#[must_use]
pub fn disconnect() -> Sqe {
    fabrics(FabricsType::DISCONNECT)
}

fn fabrics(fctype: FabricsType) -> Sqe {
    Sqe::admin(AdminOpcode::FABRICS, u32::from(fctype.0))
}

/// Reads the value a Property Set carries, as the controller role does.
#[must_use]
pub const fn property_set_value(sqe: &Sqe) -> u64 {
    sqe.cdw12.get() as u64 | (sqe.cdw13.get() as u64) << 32
}

/// The security protocol fields of Authentication Send/Receive (Figures 546, 548): SPSP0/1, SECP, length.
#[must_use]
pub fn authentication(fctype: FabricsType, length: u32) -> Sqe {
    // SECP E9h is assigned to NVMe; SPSP0 = SPSP1 = 01h is DH-HMAC-CHAP (Base 2.1 §8.3.5.2).
    fabrics(fctype).with_cdw10(0xe9 << 24 | 0x01 << 16 | 0x01 << 8).with_cdw11(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_fields_round_trip() {
        let sqe = connect(3, 127, CATTR_DISABLE_SQ_FLOW_CONTROL, 15_000);
        let bytes = sqe.as_bytes();
        assert_eq!(bytes[0], 0x7f);
        assert_eq!(bytes[4], 0x01);
        assert_eq!(&bytes[42..44], &[3, 0]);
        assert_eq!(&bytes[44..46], &[127, 0]);
        assert_eq!(bytes[46], 4);
        let fields = ConnectFields::of(&sqe);
        assert_eq!(fields, ConnectFields { recfmt: 0, qid: 3, sqsize_z: 127, cattr: 4, kato_ms: 15_000 });
    }

    #[test]
    fn property_set_puts_value_in_dwords_12_and_13() {
        let sqe = property_set(0x14, PropertySize::Qword, 0x1122_3344_5566_7788);
        assert_eq!(sqe.cdw10.get(), 1);
        assert_eq!(sqe.cdw11.get(), 0x14);
        assert_eq!(property_set_value(&sqe), 0x1122_3344_5566_7788);
    }

    #[test]
    fn invalid_parameter_names_the_field() {
        let p = InvalidParameter { offset: 256, in_data: true };
        assert_eq!(InvalidParameter::from_dw0(p.to_dw0()), p);
        assert_eq!(p.field(), Some("subsystem NQN"));
    }
}

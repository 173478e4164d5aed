//! The 64-byte submission queue entry and the opcodes of the admin and NVM command sets.
//!
//! NVMe Base 2.1 §4.1 Figure 92 (format), Figure 138 (admin opcodes); NVM Command Set 1.1 Figure 17.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::data_ptr::{DataPointer, SglDescriptor};

open_enum! {
    /// Admin command opcodes.
    pub struct AdminOpcode(u8) {
        /// Delete I/O Submission Queue.
        DELETE_IO_SQ = 0x00 => "Delete I/O Submission Queue",
        /// Create I/O Submission Queue.
        CREATE_IO_SQ = 0x01 => "Create I/O Submission Queue",
        /// Get Log Page.
        GET_LOG_PAGE = 0x02 => "Get Log Page",
        /// Delete I/O Completion Queue.
        DELETE_IO_CQ = 0x04 => "Delete I/O Completion Queue",
        /// Create I/O Completion Queue.
        CREATE_IO_CQ = 0x05 => "Create I/O Completion Queue",
        /// Identify.
        IDENTIFY = 0x06 => "Identify",
        /// Abort.
        ABORT = 0x08 => "Abort",
        /// Set Features.
        SET_FEATURES = 0x09 => "Set Features",
        /// Get Features.
        GET_FEATURES = 0x0a => "Get Features",
        /// Asynchronous Event Request.
        ASYNC_EVENT_REQUEST = 0x0c => "Asynchronous Event Request",
        /// Namespace Management.
        NAMESPACE_MANAGEMENT = 0x0d => "Namespace Management",
        /// Firmware Commit.
        FIRMWARE_COMMIT = 0x10 => "Firmware Commit",
        /// Firmware Image Download.
        FIRMWARE_DOWNLOAD = 0x11 => "Firmware Image Download",
        /// Device Self-test.
        DEVICE_SELF_TEST = 0x14 => "Device Self-test",
        /// Namespace Attachment.
        NAMESPACE_ATTACHMENT = 0x15 => "Namespace Attachment",
        /// Keep Alive.
        KEEP_ALIVE = 0x18 => "Keep Alive",
        /// Directive Send.
        DIRECTIVE_SEND = 0x19 => "Directive Send",
        /// Directive Receive.
        DIRECTIVE_RECEIVE = 0x1a => "Directive Receive",
        /// Virtualization Management.
        VIRTUALIZATION_MANAGEMENT = 0x1c => "Virtualization Management",
        /// NVMe-MI Send.
        NVME_MI_SEND = 0x1d => "NVMe-MI Send",
        /// NVMe-MI Receive.
        NVME_MI_RECEIVE = 0x1e => "NVMe-MI Receive",
        /// Capacity Management.
        CAPACITY_MANAGEMENT = 0x20 => "Capacity Management",
        /// Discovery Information Management.
        DISCOVERY_INFORMATION_MANAGEMENT = 0x21 => "Discovery Information Management",
        /// Lockdown.
        LOCKDOWN = 0x24 => "Lockdown",
        /// Doorbell Buffer Config.
        DOORBELL_BUFFER_CONFIG = 0x7c => "Doorbell Buffer Config",
        /// Fabrics command; FCTYPE in byte 4 says which.
        FABRICS = 0x7f => "Fabrics",
        /// Format NVM.
        FORMAT_NVM = 0x80 => "Format NVM",
        /// Security Send.
        SECURITY_SEND = 0x81 => "Security Send",
        /// Security Receive.
        SECURITY_RECEIVE = 0x82 => "Security Receive",
        /// Sanitize.
        SANITIZE = 0x84 => "Sanitize",
        /// Get LBA Status.
        GET_LBA_STATUS = 0x86 => "Get LBA Status",
    }
}

open_enum! {
    /// I/O command opcodes of the NVM command set.
    pub struct NvmOpcode(u8) {
        /// Flush.
        FLUSH = 0x00 => "Flush",
        /// Write.
        WRITE = 0x01 => "Write",
        /// Read.
        READ = 0x02 => "Read",
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 0x04 => "Write Uncorrectable",
        /// Compare.
        COMPARE = 0x05 => "Compare",
        /// Write Zeroes.
        WRITE_ZEROES = 0x08 => "Write Zeroes",
        /// Dataset Management.
        DATASET_MANAGEMENT = 0x09 => "Dataset Management",
        /// Verify.
        VERIFY = 0x0c => "Verify",
        /// Reservation Register.
        RESERVATION_REGISTER = 0x0d => "Reservation Register",
        /// Reservation Report.
        RESERVATION_REPORT = 0x0e => "Reservation Report",
        /// Reservation Acquire.
        RESERVATION_ACQUIRE = 0x11 => "Reservation Acquire",
        /// I/O Management Receive.
        IO_MANAGEMENT_RECEIVE = 0x12 => "I/O Management Receive",
        /// Reservation Release.
        RESERVATION_RELEASE = 0x15 => "Reservation Release",
        /// Cancel.
        CANCEL = 0x18 => "Cancel",
        /// Copy.
        COPY = 0x19 => "Copy",
        /// I/O Management Send.
        IO_MANAGEMENT_SEND = 0x1d => "I/O Management Send",
    }
}

/// Which way the data of a command moves. Bits 1:0 of every standard opcode (Base 2.1 Figure 92).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DataDirection {
    /// No data.
    None,
    /// Host to controller (a write).
    HostToController,
    /// Controller to host (a read).
    ControllerToHost,
    /// Both ways.
    Bidirectional,
}

impl DataDirection {
    /// The direction an opcode's two low bits state.
    #[must_use]
    pub const fn of_opcode(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }
}

/// Submission queue entry, also the command part of a fabrics command capsule.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// Opcode.
    pub opcode: u8,
    /// Bits 1:0 fused operation, bits 7:6 PSDT (00b PRP; 01b SGL, metadata contiguous; 10b SGL, metadata SGL).
    pub flags: u8,
    /// Command identifier, unique among the commands outstanding on the queue. FFFFh is never used.
    pub cid: U16,
    /// Namespace identifier; byte 4 is FCTYPE in fabrics commands.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// Data pointer.
    pub dptr: DataPointer,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Sqe>() == 64);
const _: () = assert!(offset_of!(Sqe, cid) == 2);
const _: () = assert!(offset_of!(Sqe, nsid) == 4);
const _: () = assert!(offset_of!(Sqe, mptr) == 16);
const _: () = assert!(offset_of!(Sqe, dptr) == 24);
const _: () = assert!(offset_of!(Sqe, cdw10) == 40);
const _: () = assert!(offset_of!(Sqe, cdw15) == 60);

/// PSDT 01b: DPTR is an SGL, metadata (if any) is one contiguous buffer. Required by fabrics.
pub const FLAGS_PSDT_SGL: u8 = 0x40;
/// PSDT 10b: DPTR is an SGL, and MPTR the address of an SGL segment of exactly one descriptor.
pub const FLAGS_PSDT_SGL_METADATA_SGL: u8 = 0x80;
/// PSDT itself, bits 7:6.
pub const FLAGS_PSDT_MASK: u8 = 0xc0;

impl Sqe {
    /// A command with this opcode and namespace identifier, all else zero.
    #[must_use]
    #[inline]
    pub fn new(opcode: u8, nsid: u32) -> Self {
        // Of whole words, as it is read again at once: a processor has to wait for bytes it wrote in smaller pieces.
        Self::from_words([u64::from(opcode) | u64::from(nsid) << 32, 0, 0, 0, 0, 0, 0, 0])
    }

    #[inline]
    fn from_words(words: [u64; 8]) -> Self {
        zerocopy::transmute!(words.map(U64::new))
    }

    /// The entry as eight 64-bit words.
    #[inline]
    #[must_use]
    pub fn words(&self) -> [U64; 8] {
        zerocopy::transmute!(*self)
    }

    /// The entry as eight 64-bit words, with `descriptor` as its data pointer and PSDT accordingly; as [`Sqe::set_sgl`], for a
    /// command that is written somewhere at once.
    #[inline]
    #[must_use]
    pub fn words_with_sgl(&self, descriptor: SglDescriptor) -> [U64; 8] {
        self.words_with(FLAGS_PSDT_SGL, zerocopy::transmute!(descriptor))
    }

    /// As [`Sqe::words_with_sgl`], with PRP entries.
    #[inline]
    #[must_use]
    pub fn words_with_prps(&self, first: u64, second: u64) -> [U64; 8] {
        self.words_with(0, [U64::new(first), U64::new(second)])
    }

    #[inline]
    fn words_with(&self, psdt: u8, data_pointer: [U64; 2]) -> [U64; 8] {
        let mut words = self.words();
        words[0] = U64::new(words[0].get() & !(u64::from(FLAGS_PSDT_MASK) << 8) | u64::from(psdt) << 8);
        [words[3], words[4]] = data_pointer;
        words
    }

    /// The same command under an identifier, and for `blocks_z` + 1 blocks from `slba` on if that is given (CDW10 to CDW12).
    #[inline]
    #[must_use]
    pub(crate) fn issued(&self, cid: u16, range: Option<(u64, u16)>) -> Self {
        let mut words = self.words().map(U64::get);
        words[0] = words[0] & !(0xffff << 16) | u64::from(cid) << 16;
        if let Some((slba, blocks_z)) = range {
            words[5] = slba;
            words[6] = words[6] & !0xffff | u64::from(blocks_z);
        }
        Self::from_words(words)
    }

    /// An admin command.
    #[must_use]
    pub fn admin(opcode: AdminOpcode, nsid: u32) -> Self {
        Self::new(opcode.0, nsid)
    }

    /// A command of the NVM command set.
    #[must_use]
    pub fn nvm(opcode: NvmOpcode, nsid: u32) -> Self {
        Self::new(opcode.0, nsid)
    }

    /// Sets command dword 10.
    #[must_use]
    pub fn with_cdw10(mut self, value: u32) -> Self {
        self.cdw10 = U32::new(value);
        self
    }

    /// Sets command dword 11.
    #[must_use]
    pub fn with_cdw11(mut self, value: u32) -> Self {
        self.cdw11 = U32::new(value);
        self
    }

    /// Sets command dword 12.
    #[must_use]
    pub fn with_cdw12(mut self, value: u32) -> Self {
        self.cdw12 = U32::new(value);
        self
    }

    /// Sets command dword 13.
    #[must_use]
    pub fn with_cdw13(mut self, value: u32) -> Self {
        self.cdw13 = U32::new(value);
        self
    }

    /// Sets command dword 14.
    #[must_use]
    pub fn with_cdw14(mut self, value: u32) -> Self {
        self.cdw14 = U32::new(value);
        self
    }

    /// Sets command dword 15.
    #[must_use]
    pub fn with_cdw15(mut self, value: u32) -> Self {
        self.cdw15 = U32::new(value);
        self
    }

    /// Sets the starting LBA (dwords 10 and 11) of an NVM command.
    #[must_use]
    pub fn with_slba(mut self, slba: u64) -> Self {
        self.cdw10 = U32::new(slba as u32);
        self.cdw11 = U32::new((slba >> 32) as u32);
        self
    }

    /// The starting LBA of an NVM command.
    #[must_use]
    pub const fn slba(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }

    /// Puts an SGL descriptor into the data pointer and sets PSDT accordingly.
    #[inline]
    pub fn set_sgl(&mut self, descriptor: SglDescriptor) {
        self.flags = self.flags & 0x3f | FLAGS_PSDT_SGL;
        self.dptr = DataPointer::sgl(descriptor);
    }

    /// FCTYPE of a fabrics command (byte 4).
    #[must_use]
    pub const fn fctype(&self) -> u8 {
        self.nsid.get() as u8
    }

    /// The direction of the command's data. Fabrics commands (opcode 7Fh) state it in FCTYPE.
    #[must_use]
    pub const fn direction(&self) -> DataDirection {
        if self.opcode == AdminOpcode::FABRICS.0 {
            DataDirection::of_opcode(self.fctype())
        } else {
            DataDirection::of_opcode(self.opcode)
        }
    }
}

impl core::fmt::Debug for Sqe {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sqe")
            .field("opcode", &format_args!("{:#04x}", self.opcode))
            .field("cid", &self.cid.get())
            .field("nsid", &format_args!("{:#x}", self.nsid.get()))
            .field("dptr", &self.dptr.as_sgl())
            .field(
                "cdw10_15",
                &format_args!(
                    "{:x} {:x} {:x} {:x} {:x} {:x}",
                    self.cdw10, self.cdw11, self.cdw12, self.cdw13, self.cdw14, self.cdw15
                ),
            )
            .finish()
    }
}

/// One range of a Dataset Management command (NVM Command Set 1.1 Figure 42).
#[derive(
    Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes.
    pub cattr: U32,
    /// Length in logical blocks; not 0's based.
    pub nlb: U32,
    /// Starting LBA.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

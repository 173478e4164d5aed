//! Identify Namespace of the NVM command set (CNS 00h and 05h). NVM Command Set 1.1 §4.1.5.

use core::fmt;
use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::controller::offsets;

/// LBA format (NVM Command Set 1.1 §4.1.5.1).
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct LbaFormat {
    /// MS: metadata bytes per logical block.
    pub ms: U16,
    /// LBADS: log2 of the logical block's data size; 0 marks a format that is not available.
    pub lbads: u8,
    /// RP in bits 1:0: relative performance, 0 best.
    pub rp: u8,
}

const _: () = assert!(size_of::<LbaFormat>() == 4);

impl LbaFormat {
    /// Data bytes per logical block, 512 to 2 GiB; `None` for a format that is not available or nonsense.
    #[must_use]
    pub const fn block_size(self) -> Option<u32> {
        // The specification knows nothing below 2^9; 2^31 is the most that 32 bits hold.
        match self.lbads {
            lbads @ 9..=31 => Some(1 << lbads),
            _ => None,
        }
    }
}

/// Identify Namespace data of the NVM command set (NVM Command Set 1.1 §4.1.5.1).
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// NSZE: size in logical blocks; 0 for an inactive namespace.
    pub nsze: U64,
    /// NCAP: blocks that may be allocated at once.
    pub ncap: U64,
    /// NUSE: blocks allocated.
    pub nuse: U64,
    /// NSFEAT: features.
    pub nsfeat: u8,
    /// NLBAF: LBA formats, 0's based.
    pub nlbaf_z: u8,
    /// FLBAS: the LBA format in use; see [`Self::lba_format`].
    pub flbas: u8,
    /// MC: metadata capabilities; bit 0 extended blocks, bit 1 separate buffer.
    pub mc: u8,
    /// DPC: end-to-end protection capabilities.
    pub dpc: u8,
    /// DPS: end-to-end protection in use.
    pub dps: u8,
    /// NMIC: multi-path and sharing; bit 0 shared.
    pub nmic: u8,
    /// RESCAP: reservation capabilities.
    pub rescap: u8,
    /// FPI: format progress indicator.
    pub fpi: u8,
    /// DLFEAT: deallocate features.
    pub dlfeat: u8,
    /// NAWUN: atomic write unit normal, 0's based logical blocks.
    pub nawun_z: U16,
    /// NAWUPF: atomic write unit power fail, 0's based logical blocks.
    pub nawupf_z: U16,
    /// NACWU: atomic compare and write unit, 0's based logical blocks.
    pub nacwu_z: U16,
    /// NABSN: atomic boundary size normal, 0's based logical blocks.
    pub nabsn_z: U16,
    /// NABO: atomic boundary offset, logical blocks.
    pub nabo: U16,
    /// NABSPF: atomic boundary size power fail, 0's based logical blocks.
    pub nabspf_z: U16,
    /// NOIOB: optimal I/O boundary, logical blocks; 0 is not reported.
    pub noiob: U16,
    /// NVMCAP: NVM capacity, bytes, little endian.
    pub nvmcap: [u8; 16],
    /// NPWG: preferred write granularity, 0's based logical blocks.
    pub npwg_z: U16,
    /// NPWA: preferred write alignment, 0's based logical blocks.
    pub npwa_z: U16,
    /// NPDG: preferred deallocate granularity, 0's based logical blocks.
    pub npdg_z: U16,
    /// NPDA: preferred deallocate alignment, 0's based logical blocks.
    pub npda_z: U16,
    /// NOWS: optimal write size, 0's based logical blocks.
    pub nows_z: U16,
    /// MSSRL: maximum length of one Copy source range, logical blocks.
    pub mssrl: U16,
    /// MCL: maximum Copy length, logical blocks.
    pub mcl: U32,
    /// MSRC: maximum Copy source ranges, 0's based.
    pub msrc_z: u8,
    /// KPIOS: key per I/O status.
    pub kpios: u8,
    /// NULBAF: LBA formats with unique capabilities, following those NLBAF counts.
    pub nulbaf: u8,
    /// Reserved.
    pub reserved_83: u8,
    /// KPIODAAG: key per I/O data access alignment and granularity.
    pub kpiodaag: U32,
    /// Reserved.
    pub reserved_88: [u8; 4],
    /// ANAGRPID: ANA group; 0 is none.
    pub anagrpid: U32,
    /// Reserved.
    pub reserved_96: [u8; 3],
    /// NSATTR: bit 0 write protected.
    pub nsattr: u8,
    /// NVMSETID: NVM set.
    pub nvmsetid: U16,
    /// ENDGID: endurance group.
    pub endgid: U16,
    /// NGUID, big endian; all zero is none.
    pub nguid: [u8; 16],
    /// EUI64, big endian; all zero is none.
    pub eui64: [u8; 8],
    /// LBAF: LBA formats; see [`Self::lba_formats`] for the valid ones.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vs: [u8; 3712],
}

offsets!(IdentifyNamespace: 4096 {
    nsze @ 0, ncap @ 8, nuse @ 16, nsfeat @ 24, nlbaf_z @ 25, flbas @ 26, mc @ 27, dpc @ 28, dps @ 29, nmic @ 30,
    rescap @ 31, fpi @ 32, dlfeat @ 33, nawun_z @ 34, nawupf_z @ 36, nacwu_z @ 38, nabsn_z @ 40, nabo @ 42,
    nabspf_z @ 44, noiob @ 46, nvmcap @ 48, npwg_z @ 64, npwa_z @ 66, npdg_z @ 68, npda_z @ 70, nows_z @ 72,
    mssrl @ 74, mcl @ 76, msrc_z @ 80, kpios @ 81, nulbaf @ 82, kpiodaag @ 84, anagrpid @ 92, nsattr @ 99,
    nvmsetid @ 100, endgid @ 102, nguid @ 104, eui64 @ 120, lbaf @ 128, vs @ 384,
});

impl Default for IdentifyNamespace {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl IdentifyNamespace {
    /// Number of valid LBA formats, 1..=64.
    #[must_use]
    pub fn lba_format_count(&self) -> usize {
        (usize::from(self.nlbaf_z) + 1 + usize::from(self.nulbaf)).min(self.lbaf.len())
    }

    /// The LBA formats the namespace may be formatted with.
    #[must_use]
    pub fn lba_formats(&self) -> &[LbaFormat] {
        &self.lbaf[..self.lba_format_count()]
    }

    /// Index of the LBA format in use, as FLBAS states it; may be out of range.
    #[must_use]
    pub fn lba_format_index(&self) -> usize {
        let low = self.flbas & 0xf;
        // With 16 formats or fewer the upper bits are to be ignored.
        let high = if self.lba_format_count() > 16 { self.flbas >> 5 & 3 } else { 0 };
        usize::from(high << 4 | low)
    }

    /// The LBA format in use. `None` if FLBAS points outside the list or at a format without a valid block size.
    #[must_use]
    pub fn lba_format(&self) -> Option<LbaFormat> {
        let format = *self.lba_formats().get(self.lba_format_index())?;
        format.block_size().map(|_| format)
    }

    /// Data bytes per logical block.
    #[must_use]
    pub fn block_size(&self) -> Option<u32> {
        self.lba_format()?.block_size()
    }

    /// Metadata bytes per logical block.
    #[must_use]
    pub fn metadata_size(&self) -> Option<u16> {
        Some(self.lba_format()?.ms.get())
    }

    /// FLBAS bit 4: metadata travels at the end of each logical block, in the data buffer.
    #[must_use]
    pub fn is_extended_lba(&self) -> bool {
        self.flbas & 1 << 4 != 0 && self.metadata_size().is_some_and(|ms| ms != 0)
    }

    /// Bytes of the data buffer per logical block: data, and metadata with extended LBAs.
    #[must_use]
    pub fn transfer_block_size(&self) -> Option<u32> {
        let format = self.lba_format()?;
        let metadata = if self.is_extended_lba() { format.ms.get() } else { 0 };
        format.block_size()?.checked_add(u32::from(metadata))
    }

    /// Whether the namespace is active: an inactive one is all zero.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        self.nsze.get() != 0
    }

    /// Size in bytes of data; `None` if the format is not valid or the product overflows.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        self.nsze.get().checked_mul(u64::from(self.block_size()?))
    }

    /// NVM capacity, bytes; 0 is not reported.
    #[must_use]
    pub const fn nvm_capacity(&self) -> u128 {
        u128::from_le_bytes(self.nvmcap)
    }

    /// NSFEAT bit 0: thin provisioning, so that NCAP may be less than NSZE.
    #[must_use]
    pub const fn is_thin_provisioned(&self) -> bool {
        self.nsfeat & 1 << 0 != 0
    }

    /// NSFEAT bit 1: NAWUN, NAWUPF and NACWU count for this namespace, instead of the controller's.
    #[must_use]
    pub const fn has_own_atomicity(&self) -> bool {
        self.nsfeat & 1 << 1 != 0
    }

    /// NSFEAT bit 4: NPWG, NPWA, NPDG, NPDA and NOWS are valid.
    #[must_use]
    pub const fn has_optimal_sizes(&self) -> bool {
        self.nsfeat & 1 << 4 != 0
    }

    /// DPS bits 2:0: protection information type in use, 1..=3; 0 is none.
    #[must_use]
    pub const fn protection_type(&self) -> u8 {
        self.dps & 7
    }

    /// DPS bit 3: protection information is in the first bytes of the metadata, else in the last.
    #[must_use]
    pub const fn protection_is_first(&self) -> bool {
        self.dps & 1 << 3 != 0
    }

    /// NMIC bit 0: more than one controller may attach the namespace.
    #[must_use]
    pub const fn is_shared(&self) -> bool {
        self.nmic & 1 != 0
    }

    /// NSATTR bit 0: the namespace is write protected now.
    #[must_use]
    pub const fn is_write_protected(&self) -> bool {
        self.nsattr & 1 != 0
    }

    /// DLFEAT bits 2:0 are 001b: deallocated blocks read as zeroes.
    #[must_use]
    pub const fn deallocated_reads_zeroes(&self) -> bool {
        self.dlfeat & 7 == 1
    }

    /// DLFEAT bit 3: Write Zeroes takes the Deallocate bit.
    #[must_use]
    pub const fn write_zeroes_deallocates(&self) -> bool {
        self.dlfeat & 1 << 3 != 0
    }

    /// NGUID, unless it is all zero.
    #[must_use]
    pub fn nguid(&self) -> Option<[u8; 16]> {
        (self.nguid != [0; 16]).then_some(self.nguid)
    }

    /// EUI64, unless it is all zero.
    #[must_use]
    pub fn eui64(&self) -> Option<[u8; 8]> {
        (self.eui64 != [0; 8]).then_some(self.eui64)
    }
}

impl fmt::Debug for IdentifyNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentifyNamespace")
            .field("nsze", &self.nsze.get())
            .field("ncap", &self.ncap.get())
            .field("nuse", &self.nuse.get())
            .field("flbas", &format_args!("{:#04x}", self.flbas))
            .field("lba_format", &self.lba_format())
            .field("dps", &format_args!("{:#04x}", self.dps))
            .field("nmic", &format_args!("{:#04x}", self.nmic))
            .field("anagrpid", &self.anagrpid.get())
            .field("nguid", &format_args!("{:032x}", u128::from_be_bytes(self.nguid)))
            .field("eui64", &format_args!("{:016x}", u64::from_be_bytes(self.eui64)))
            .finish_non_exhaustive()
    }
}

/// Extended LBA format (NVM Command Set 1.1 §4.1.5.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ExtendedLbaFormat(pub u32);

impl ExtendedLbaFormat {
    /// STS: storage tag size, bits, 0..=64 in a valid format.
    #[must_use]
    pub const fn storage_tag_bits(self) -> u8 {
        self.0 as u8 & 0x7f
    }

    /// PIF: protection information format; 0 16-bit guard, 1 32-bit guard, 2 64-bit guard, 3 see
    /// [`Self::qualified_protection_format`].
    #[must_use]
    pub const fn protection_format(self) -> u8 {
        (self.0 >> 7) as u8 & 3
    }

    /// The format that counts: PIF, or QPIF where PIF says so (11b).
    #[must_use]
    pub const fn guard_format(self) -> u8 {
        match self.protection_format() {
            3 => self.qualified_protection_format(),
            pif => pif,
        }
    }

    /// QPIF: qualified protection information format.
    #[must_use]
    pub const fn qualified_protection_format(self) -> u8 {
        (self.0 >> 9) as u8 & 0xf
    }
}

/// Identify Namespace data specific to the NVM command set (CNS 05h, CSI 00h; NVM Command Set 1.1 §4.1.5.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceNvm {
    /// LBSTM: logical block storage tag mask.
    pub lbstm: U64,
    /// PIC: protection information capabilities.
    pub pic: u8,
    /// PIFA: protection information format attributes.
    pub pifa: u8,
    /// Reserved.
    pub reserved_10: [u8; 2],
    /// ELBAF: extended LBA formats, one for each LBA format.
    pub elbaf: [U32; 64],
    /// NPDGL: preferred deallocate granularity, large, logical blocks.
    pub npdgl: U32,
    /// NPRG: preferred read granularity, logical blocks.
    pub nprg: U32,
    /// NPRA: preferred read alignment, logical blocks.
    pub npra: U32,
    /// NORS: optimal read size, logical blocks.
    pub nors: U32,
    /// NPDAL: preferred deallocate alignment, large, logical blocks.
    pub npdal: U32,
    /// LBAPSS: LBA placement shard size.
    pub lbapss: U32,
    /// TLBAAG: tracked LBA allocation granularity.
    pub tlbaag: U32,
    /// Reserved.
    pub reserved_296: [u8; 3800],
}

offsets!(IdentifyNamespaceNvm: 4096 {
    lbstm @ 0, pic @ 8, pifa @ 9, elbaf @ 12, npdgl @ 268, nprg @ 272, npra @ 276, nors @ 280, npdal @ 284,
    lbapss @ 288, tlbaag @ 292,
});

impl IdentifyNamespaceNvm {
    /// The extended format that belongs to an LBA format index; `None` if there is no such index.
    #[must_use]
    pub fn extended_format(&self, index: usize) -> Option<ExtendedLbaFormat> {
        self.elbaf.get(index).map(|raw| ExtendedLbaFormat(raw.get()))
    }
}

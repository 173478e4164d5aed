//! Identify Controller (CNS 01h).

use core::fmt;
use core::mem::{offset_of, size_of};
use core::time::Duration;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::features::AsyncEventConfig;
use super::super::registers::Version;
use super::bits::cmic;
use super::text::{lossy_text, trimmed};
use super::{ControllerType, DiscoveryControllerType};

/// Size of every Identify data structure.
pub const IDENTIFY_SIZE: usize = 4096;

/// Power state descriptor (Base 2.1 §5.1.13.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PowerStateDescriptor {
    /// MP: maximum power in 0.01 W, or 0.0001 W if MXPS is set.
    pub mp: U16,
    /// Reserved.
    pub reserved_2: u8,
    /// Bit 0 MXPS, bit 1 NOPS.
    pub flags: u8,
    /// ENLAT: entry latency, µs.
    pub enlat: U32,
    /// EXLAT: exit latency, µs.
    pub exlat: U32,
    /// RRT: relative read throughput; smaller is better.
    pub rrt: u8,
    /// RRL: relative read latency.
    pub rrl: u8,
    /// RWT: relative write throughput.
    pub rwt: u8,
    /// RWL: relative write latency.
    pub rwl: u8,
    /// IDLP: idle power, scale in IPS.
    pub idlp: U16,
    /// IPS: idle power scale in bits 7:6.
    pub ips: u8,
    /// Reserved.
    pub reserved_19: u8,
    /// ACTP: active power, scale in APWS bits 7:6.
    pub actp: U16,
    /// APW in bits 2:0: active power workload; APS in bits 7:6.
    pub apws: u8,
    /// EPFRT: emergency power fail recovery time.
    pub epfrt: u8,
    /// FQVT: forced quiescence vault time.
    pub fqvt: u8,
    /// EPFVT: emergency power fail vault time.
    pub epfvt: u8,
    /// Scales of EPFRT and FQVT.
    pub epfr_fqv_scale: u8,
    /// Scale of EPFVT.
    pub epfv_scale: u8,
    /// Reserved.
    pub reserved_28: [u8; 4],
}

const _: () = assert!(size_of::<PowerStateDescriptor>() == 32);
const _: () = assert!(offset_of!(PowerStateDescriptor, exlat) == 8);
const _: () = assert!(offset_of!(PowerStateDescriptor, actp) == 20);

impl PowerStateDescriptor {
    /// Maximum power, in units of 0.1 mW; 0 is not reported.
    #[must_use]
    pub const fn max_power_tenth_mw(&self) -> u32 {
        let scale = if self.flags & 1 != 0 { 1 } else { 100 };
        self.mp.get() as u32 * scale
    }

    /// NOPS: the controller does no I/O in this state.
    #[must_use]
    pub const fn is_non_operational(&self) -> bool {
        self.flags & 2 != 0
    }
}

/// Identify Controller data (Base 2.1 §5.1.13.2.1, Figure 312).
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// VID: PCI vendor identifier.
    pub vid: U16,
    /// SSVID: PCI subsystem vendor identifier.
    pub ssvid: U16,
    /// SN: serial number, ASCII, space padded.
    pub sn: [u8; 20],
    /// MN: model number, ASCII, space padded.
    pub mn: [u8; 40],
    /// FR: firmware revision, ASCII, space padded.
    pub fr: [u8; 8],
    /// RAB: recommended arbitration burst, log2.
    pub rab: u8,
    /// IEEE: OUI of the vendor, little endian.
    pub ieee: [u8; 3],
    /// CMIC: see [`cmic`](super::cmic).
    pub cmic: u8,
    /// MDTS: maximum data transfer size, log2 in units of CAP.MPSMIN pages; 0 is no limit.
    pub mdts: u8,
    /// CNTLID: controller identifier.
    pub cntlid: U16,
    /// VER: version; 0 before NVMe 1.2.
    pub ver: U32,
    /// RTD3R: RTD3 resume latency, µs.
    pub rtd3r: U32,
    /// RTD3E: RTD3 entry latency, µs: how long a normal shutdown may take; 0 is not reported.
    pub rtd3e: U32,
    /// OAES: optional asynchronous events supported.
    pub oaes: U32,
    /// CTRATT: see [`ctratt`](super::ctratt).
    pub ctratt: U32,
    /// RRLS: read recovery levels supported.
    pub rrls: U16,
    /// BPCAP: boot partition capabilities.
    pub bpcap: u8,
    /// Reserved.
    pub reserved_103: u8,
    /// NSSL: NVM subsystem shutdown latency, µs.
    pub nssl: U32,
    /// Reserved.
    pub reserved_108: [u8; 2],
    /// PLSI: power loss signaling information.
    pub plsi: u8,
    /// CNTRLTYPE.
    pub cntrltype: ControllerType,
    /// FGUID: FRU globally unique identifier.
    pub fguid: [u8; 16],
    /// CRDT1..3: command retry delay times, 100 ms.
    pub crdt: [U16; 3],
    /// CRCAP: controller reachability capabilities.
    pub crcap: u8,
    /// Reserved.
    pub reserved_135: [u8; 118],
    /// NVMSR: NVM subsystem report.
    pub nvmsr: u8,
    /// VWCI: VPD write cycle information.
    pub vwci: u8,
    /// MEC: management endpoint capabilities.
    pub mec: u8,
    /// OACS: see [`oacs`](super::oacs).
    pub oacs: U16,
    /// ACL: Abort commands that may be outstanding, 0's based.
    pub acl_z: u8,
    /// AERL: Asynchronous Event Requests that may be outstanding, 0's based.
    pub aerl_z: u8,
    /// FRMW: firmware updates.
    pub frmw: u8,
    /// LPA: see [`lpa`](super::lpa).
    pub lpa: u8,
    /// ELPE: entries of the Error Information log, 0's based.
    pub elpe_z: u8,
    /// NPSS: power states, 0's based.
    pub npss_z: u8,
    /// AVSCC: admin vendor specific command configuration.
    pub avscc: u8,
    /// APSTA: autonomous power state transition attributes.
    pub apsta: u8,
    /// WCTEMP: warning composite temperature, kelvin.
    pub wctemp: U16,
    /// CCTEMP: critical composite temperature, kelvin.
    pub cctemp: U16,
    /// MTFA: maximum time for firmware activation, 100 ms.
    pub mtfa: U16,
    /// HMPRE: host memory buffer preferred size, 4 KiB.
    pub hmpre: U32,
    /// HMMIN: host memory buffer minimum size, 4 KiB.
    pub hmmin: U32,
    /// TNVMCAP: total NVM capacity, bytes, little endian.
    pub tnvmcap: [u8; 16],
    /// UNVMCAP: unallocated NVM capacity, bytes, little endian.
    pub unvmcap: [u8; 16],
    /// RPMBS: replay protected memory block support.
    pub rpmbs: U32,
    /// EDSTT: extended device self-test time, minutes.
    pub edstt: U16,
    /// DSTO: device self-test options.
    pub dsto: u8,
    /// FWUG: firmware update granularity, 4 KiB; FFh is no restriction.
    pub fwug: u8,
    /// KAS: keep alive granularity, 100 ms; 0 is keep alive not supported.
    pub kas: U16,
    /// HCTMA: host controlled thermal management attributes.
    pub hctma: U16,
    /// MNTMT: minimum thermal management temperature, kelvin.
    pub mntmt: U16,
    /// MXTMT: maximum thermal management temperature, kelvin.
    pub mxtmt: U16,
    /// SANICAP: sanitize capabilities.
    pub sanicap: U32,
    /// HMMINDS: host memory buffer minimum descriptor entry size, 4 KiB.
    pub hmminds: U32,
    /// HMMAXD: host memory maximum descriptor entries.
    pub hmmaxd: U16,
    /// NSETIDMAX: largest NVM set identifier.
    pub nsetidmax: U16,
    /// ENDGIDMAX: largest endurance group identifier.
    pub endgidmax: U16,
    /// ANATT: ANA transition time, seconds.
    pub anatt: u8,
    /// ANACAP: see [`anacap`](super::anacap).
    pub anacap: u8,
    /// ANAGRPMAX: largest ANA group identifier.
    pub anagrpmax: U32,
    /// NANAGRPID: number of ANA group identifiers.
    pub nanagrpid: U32,
    /// PELS: persistent event log size, 64 KiB.
    pub pels: U32,
    /// Domain identifier.
    pub domainid: U16,
    /// KPIOC: key per I/O capabilities.
    pub kpioc: u8,
    /// Reserved.
    pub reserved_359: u8,
    /// MPTFAWR: maximum processing time for firmware activation without reset, 100 ms.
    pub mptfawr: U16,
    /// Reserved.
    pub reserved_362: [u8; 6],
    /// MEGCAP: largest endurance group capacity, bytes, little endian.
    pub megcap: [u8; 16],
    /// TMPTHHA: temperature threshold hysteresis attributes.
    pub tmpthha: u8,
    /// Reserved.
    pub reserved_385: u8,
    /// CQT: command quiesce time, ms: how long after a lost connection the controller may still work on
    /// commands of it.
    pub cqt: U16,
    /// Reserved.
    pub reserved_388: [u8; 124],
    /// SQES: submission queue entry size, log2: required in bits 3:0, maximum in bits 7:4.
    pub sqes: u8,
    /// CQES: completion queue entry size, log2: required in bits 3:0, maximum in bits 7:4.
    pub cqes: u8,
    /// MAXCMD: commands a queue may have outstanding; 0 is not reported (memory-based controllers only).
    pub maxcmd: U16,
    /// NN: largest valid NSID.
    pub nn: U32,
    /// ONCS: see [`oncs`](super::oncs).
    pub oncs: U16,
    /// FUSES: fused operations.
    pub fuses: U16,
    /// FNA: format NVM attributes.
    pub fna: u8,
    /// VWC: volatile write cache.
    pub vwc: u8,
    /// AWUN: atomic write unit normal, 0's based logical blocks.
    pub awun_z: U16,
    /// AWUPF: atomic write unit power fail, 0's based logical blocks.
    pub awupf_z: U16,
    /// ICSVSCC: I/O command set vendor specific command configuration.
    pub icsvscc: u8,
    /// NWPC: namespace write protection capabilities.
    pub nwpc: u8,
    /// ACWU: atomic compare and write unit, 0's based logical blocks.
    pub acwu_z: U16,
    /// CDFS: copy descriptor formats supported.
    pub cdfs: U16,
    /// SGLS: SGL support.
    pub sgls: U32,
    /// MNAN: maximum number of allowed namespaces; 0 is NN.
    pub mnan: U32,
    /// MAXDNA: maximum domain namespace attachments, little endian.
    pub maxdna: [u8; 16],
    /// MAXCNA: maximum I/O controller namespace attachments; 0 is no limit.
    pub maxcna: U32,
    /// OAQD: optimal aggregated queue depth.
    pub oaqd: U32,
    /// RHIRI: recommended host-initiated refresh interval, days.
    pub rhiri: u8,
    /// HIRT: host-initiated refresh time, minutes.
    pub hirt: u8,
    /// CMMRTD: controller maximum memory range tracking descriptors.
    pub cmmrtd: U16,
    /// NMMRTD: NVM subsystem maximum memory range tracking descriptors.
    pub nmmrtd: U16,
    /// MINMRTG: minimum memory range tracking granularity.
    pub minmrtg: u8,
    /// MAXMRTG: maximum memory range tracking granularity.
    pub maxmrtg: u8,
    /// TRATTR: tracking attributes.
    pub trattr: u8,
    /// Reserved.
    pub reserved_577: u8,
    /// MCUDMQ: maximum controller user data migration queues.
    pub mcudmq: U16,
    /// MNSUDMQ: maximum NVM subsystem user data migration queues.
    pub mnsudmq: U16,
    /// MCMR: maximum CDQ memory ranges.
    pub mcmr: U16,
    /// NMCMR: NVM subsystem maximum CDQ memory ranges.
    pub nmcmr: U16,
    /// MCDQPC: maximum controller data queue PRP count.
    pub mcdqpc: U16,
    /// Reserved.
    pub reserved_588: [u8; 180],
    /// SUBNQN: NVM subsystem NQN, UTF-8, NUL padded.
    pub subnqn: [u8; 256],
    /// Reserved.
    pub reserved_1024: [u8; 768],
    /// IOCCSZ: I/O queue command capsule size, 16 bytes; at least 4. Fabrics only.
    pub ioccsz: U32,
    /// IORCSZ: I/O queue response capsule size, 16 bytes; at least 1. Fabrics only.
    pub iorcsz: U32,
    /// ICDOFF: in-capsule data offset from the end of the SQE, 16 bytes. Fabrics only.
    pub icdoff: U16,
    /// FCATT: fabrics controller attributes; bit 0 static controller model.
    pub fcatt: u8,
    /// MSDBD: maximum SGL data block descriptors in a capsule; 0 is no limit. Fabrics only.
    pub msdbd: u8,
    /// OFCS: optional fabrics commands; bit 0 Disconnect.
    pub ofcs: U16,
    /// DCTYPE: discovery controller type.
    pub dctype: DiscoveryControllerType,
    /// Reserved.
    pub reserved_1807: [u8; 241],
    /// PSD: power state descriptors, NPSS + 1 of them valid.
    pub psd: [PowerStateDescriptor; 32],
    /// Vendor specific.
    pub vs: [u8; 1024],
}

macro_rules! offsets {
    ($type:ty: $size:literal { $($field:ident @ $offset:literal),* $(,)? }) => {
        const _: () = assert!(size_of::<$type>() == $size);
        $(const _: () = assert!(offset_of!($type, $field) == $offset, stringify!($field));)*
    };
}
pub(super) use offsets;

offsets!(IdentifyController: 4096 {
    vid @ 0, sn @ 4, mn @ 24, fr @ 64, rab @ 72, ieee @ 73, cmic @ 76, mdts @ 77, cntlid @ 78, ver @ 80, rtd3r @ 84,
    rtd3e @ 88, oaes @ 92, ctratt @ 96, rrls @ 100, bpcap @ 102, nssl @ 104, plsi @ 110, cntrltype @ 111, fguid @ 112,
    crdt @ 128, crcap @ 134, nvmsr @ 253, mec @ 255, oacs @ 256, acl_z @ 258, aerl_z @ 259, frmw @ 260, lpa @ 261,
    elpe_z @ 262, npss_z @ 263, apsta @ 265, wctemp @ 266, mtfa @ 270, hmpre @ 272, tnvmcap @ 280, unvmcap @ 296,
    rpmbs @ 312, fwug @ 319, kas @ 320, hctma @ 322, sanicap @ 328, hmminds @ 332, nsetidmax @ 338, endgidmax @ 340,
    anatt @ 342, anacap @ 343, anagrpmax @ 344, nanagrpid @ 348, pels @ 352, domainid @ 356, kpioc @ 358,
    mptfawr @ 360, megcap @ 368, tmpthha @ 384, cqt @ 386, sqes @ 512, cqes @ 513, maxcmd @ 514, nn @ 516, oncs @ 520,
    fuses @ 522, fna @ 524, vwc @ 525, awun_z @ 526, awupf_z @ 528, icsvscc @ 530, nwpc @ 531, acwu_z @ 532, cdfs @ 534,
    sgls @ 536, mnan @ 540, maxdna @ 544, maxcna @ 560, oaqd @ 564, rhiri @ 568, cmmrtd @ 570, trattr @ 576,
    mcudmq @ 578, mcdqpc @ 586, subnqn @ 768, ioccsz @ 1792, iorcsz @ 1796, icdoff @ 1800, fcatt @ 1802, msdbd @ 1803,
    ofcs @ 1804, dctype @ 1806, psd @ 2048, vs @ 3072,
});

impl Default for IdentifyController {
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl IdentifyController {
    /// Serial number, safe to print.
    #[must_use]
    pub fn serial_number(&self) -> String {
        lossy_text(&self.sn)
    }

    /// Model number, safe to print.
    #[must_use]
    pub fn model_number(&self) -> String {
        lossy_text(&self.mn)
    }

    /// Firmware revision, safe to print.
    #[must_use]
    pub fn firmware_revision(&self) -> String {
        lossy_text(&self.fr)
    }

    /// Subsystem NQN, safe to print. To compare or connect use [`Self::subsystem_nqn_bytes`].
    #[must_use]
    pub fn subsystem_nqn(&self) -> String {
        lossy_text(&self.subnqn)
    }

    /// Subsystem NQN, the bytes up to the first NUL.
    #[must_use]
    pub fn subsystem_nqn_bytes(&self) -> &[u8] {
        trimmed(&self.subnqn)
    }

    /// The version the controller implements.
    #[must_use]
    pub const fn version(&self) -> Version {
        Version(self.ver.get())
    }

    /// The largest data transfer in bytes, given the size of CAP.MPSMIN pages; `None` is no limit.
    #[must_use]
    pub const fn max_transfer_size(&self, min_page_size: u64) -> Option<u64> {
        // A limit that does not fit 64 bits is none.
        if self.mdts == 0 || self.mdts as u32 > min_page_size.leading_zeros() {
            return None;
        }
        Some(min_page_size << self.mdts)
    }

    /// The longest time a normal shutdown may take; `None` if not reported.
    #[must_use]
    pub const fn shutdown_timeout(&self) -> Option<Duration> {
        match self.rtd3e.get() {
            0 => None,
            us => Some(Duration::from_micros(us as u64)),
        }
    }

    /// Asynchronous events the controller can report.
    #[must_use]
    pub const fn async_events(&self) -> AsyncEventConfig {
        AsyncEventConfig(self.oaes.get())
    }

    /// Command retry delay for a status whose CRD is `crd`: zero for 0.
    #[must_use]
    pub fn retry_delay(&self, crd: u8) -> Duration {
        let delay = crd.checked_sub(1).and_then(|index| self.crdt.get(usize::from(index)));
        delay.map_or(Duration::ZERO, |delay| Duration::from_millis(u64::from(delay.get()) * 100))
    }

    /// Granularity of the keep alive timer; `None` if keep alive is not supported.
    #[must_use]
    pub const fn keep_alive_granularity(&self) -> Option<Duration> {
        match self.kas.get() {
            0 => None,
            units => Some(Duration::from_millis(units as u64 * 100)),
        }
    }

    /// Asynchronous Event Requests that may be outstanding, 1..=256.
    #[must_use]
    pub const fn async_event_limit(&self) -> u16 {
        self.aerl_z as u16 + 1
    }

    /// Abort commands that may be outstanding, 1..=256.
    #[must_use]
    pub const fn abort_limit(&self) -> u16 {
        self.acl_z as u16 + 1
    }

    /// Whether the optional admin command of this bit of [`oacs`](super::oacs) is supported.
    #[must_use]
    pub const fn supports_admin(&self, bit: u16) -> bool {
        self.oacs.get() & bit != 0
    }

    /// Whether the optional I/O command of this bit of [`oncs`](super::oncs) is supported.
    #[must_use]
    pub const fn supports_io(&self, bit: u16) -> bool {
        self.oncs.get() & bit != 0
    }

    /// Whether the controller has the attribute of this bit of [`ctratt`](super::ctratt).
    #[must_use]
    pub const fn has_attribute(&self, bit: u32) -> bool {
        self.ctratt.get() & bit != 0
    }

    /// Whether the subsystem reports asymmetric namespace access.
    #[must_use]
    pub const fn reports_ana(&self) -> bool {
        self.cmic & cmic::ANA_REPORTING != 0
    }

    /// ANATT: how long a group may stay in the change state.
    #[must_use]
    pub const fn ana_transition_time(&self) -> Duration {
        Duration::from_secs(self.anatt as u64)
    }

    /// CQT: how long after a lost connection a command of it may still change data.
    #[must_use]
    pub const fn command_quiesce_time(&self) -> Duration {
        Duration::from_millis(self.cqt.get() as u64)
    }

    /// Compare and Write as a fused operation.
    #[must_use]
    pub const fn supports_fused_compare_write(&self) -> bool {
        self.fuses.get() & 1 != 0
    }

    /// VWC bit 0: there is a volatile write cache, so Flush matters.
    #[must_use]
    pub const fn has_volatile_write_cache(&self) -> bool {
        self.vwc & 1 != 0
    }

    /// VWC bits 2:1: Flush takes NSID FFFFFFFFh for all namespaces.
    #[must_use]
    pub const fn supports_flush_all(&self) -> bool {
        self.vwc >> 1 & 3 == 3
    }

    /// SGLS bits 1:0: SGLs may be used for I/O commands.
    #[must_use]
    pub const fn supports_sgl(&self) -> bool {
        matches!(self.sgls.get() & 3, 1 | 2)
    }

    /// SGLS bits 1:0 are 10b: data blocks must be dword aligned and a multiple of dwords.
    #[must_use]
    pub const fn sgl_needs_dword_alignment(&self) -> bool {
        self.sgls.get() & 3 == 2
    }

    /// SGLS bit 2: keyed SGL data block descriptors (RDMA).
    #[must_use]
    pub const fn supports_keyed_sgl(&self) -> bool {
        self.sgls.get() & 1 << 2 != 0
    }

    /// SGLS bit 16: bit bucket descriptors.
    #[must_use]
    pub const fn supports_bit_bucket(&self) -> bool {
        self.sgls.get() & 1 << 16 != 0
    }

    /// SGLS bit 17: a contiguous metadata buffer may start at any byte when the data is described by an SGL.
    #[must_use]
    pub const fn takes_metadata_at_any_byte(&self) -> bool {
        self.sgls.get() & 1 << 17 != 0
    }

    /// SGLS bit 19: the metadata pointer may be the address of an SGL segment of one descriptor (PSDT 10b).
    #[must_use]
    pub const fn supports_metadata_sgl(&self) -> bool {
        self.sgls.get() & 1 << 19 != 0
    }

    /// SGLS bit 20: an SGL address may be an offset, as in-capsule data needs.
    #[must_use]
    pub const fn supports_sgl_offset(&self) -> bool {
        self.sgls.get() & 1 << 20 != 0
    }

    /// SGLS bit 21: transport SGL data block descriptors (TCP).
    #[must_use]
    pub const fn supports_transport_sgl(&self) -> bool {
        self.sgls.get() & 1 << 21 != 0
    }

    /// Command capsule size on I/O queues, bytes.
    #[must_use]
    pub const fn command_capsule_size(&self) -> u64 {
        self.ioccsz.get() as u64 * 16
    }

    /// Room for in-capsule data in an I/O command capsule, bytes: capsule less SQE less ICDOFF. Zero if the
    /// numbers do not add up.
    #[must_use]
    pub const fn in_capsule_data_size(&self) -> u64 {
        self.command_capsule_size().saturating_sub(64).saturating_sub(self.in_capsule_data_offset())
    }

    /// Where in-capsule data starts, bytes after the SQE.
    #[must_use]
    pub const fn in_capsule_data_offset(&self) -> u64 {
        self.icdoff.get() as u64 * 16
    }

    /// OFCS bit 0: Disconnect is supported.
    #[must_use]
    pub const fn supports_disconnect(&self) -> bool {
        self.ofcs.get() & 1 != 0
    }

    /// Total NVM capacity, bytes; 0 is not reported.
    #[must_use]
    pub const fn total_capacity(&self) -> u128 {
        u128::from_le_bytes(self.tnvmcap)
    }

    /// Unallocated NVM capacity, bytes.
    #[must_use]
    pub const fn unallocated_capacity(&self) -> u128 {
        u128::from_le_bytes(self.unvmcap)
    }

    /// The power state descriptors that are valid: NPSS + 1, at most 32.
    #[must_use]
    pub fn power_states(&self) -> &[PowerStateDescriptor] {
        &self.psd[..self.psd.len().min(usize::from(self.npss_z) + 1)]
    }
}

impl fmt::Debug for IdentifyController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentifyController")
            .field("sn", &self.serial_number())
            .field("mn", &self.model_number())
            .field("fr", &self.firmware_revision())
            .field("subnqn", &self.subsystem_nqn())
            .field("cntlid", &self.cntlid.get())
            .field("ver", &self.version())
            .field("cntrltype", &self.cntrltype)
            .field("mdts", &self.mdts)
            .field("nn", &self.nn.get())
            .field("oacs", &format_args!("{:#06x}", self.oacs.get()))
            .field("oncs", &format_args!("{:#06x}", self.oncs.get()))
            .field("sgls", &format_args!("{:#010x}", self.sgls.get()))
            .field("ioccsz", &self.ioccsz.get())
            .finish_non_exhaustive()
    }
}

//! Controller properties, which memory-based transports map as registers. NVMe Base 2.1 §3.1.4.
//!
//! Fabrics controllers expose the same properties through Property Get and Property Set, at the same offsets.

use core::fmt;
use core::time::Duration;

mod cmb;
pub use cmb::{CmbControl, CmbLocation, CmbSize, CmbStatus};

open_enum! {
    /// Offset of a property from the start of the register map (§3.1.4).
    pub struct PropertyOffset(u32) {
        /// Controller Capabilities, 8 bytes.
        CAP = 0x00 => "Controller Capabilities (CAP)",
        /// Version, 4 bytes.
        VS = 0x08 => "Version (VS)",
        /// Interrupt Mask Set, 4 bytes. Not for fabrics.
        INTMS = 0x0c => "Interrupt Mask Set (INTMS)",
        /// Interrupt Mask Clear, 4 bytes. Not for fabrics.
        INTMC = 0x10 => "Interrupt Mask Clear (INTMC)",
        /// Controller Configuration, 4 bytes.
        CC = 0x14 => "Controller Configuration (CC)",
        /// Controller Status, 4 bytes.
        CSTS = 0x1c => "Controller Status (CSTS)",
        /// NVM Subsystem Reset, 4 bytes: write [`NSSR_RESET`].
        NSSR = 0x20 => "NVM Subsystem Reset (NSSR)",
        /// Admin Queue Attributes, 4 bytes. Not for fabrics.
        AQA = 0x24 => "Admin Queue Attributes (AQA)",
        /// Admin Submission Queue Base Address, 8 bytes. Not for fabrics.
        ASQ = 0x28 => "Admin Submission Queue Base Address (ASQ)",
        /// Admin Completion Queue Base Address, 8 bytes. Not for fabrics.
        ACQ = 0x30 => "Admin Completion Queue Base Address (ACQ)",
        /// Controller Memory Buffer Location, 4 bytes.
        CMBLOC = 0x38 => "Controller Memory Buffer Location (CMBLOC)",
        /// Controller Memory Buffer Size, 4 bytes.
        CMBSZ = 0x3c => "Controller Memory Buffer Size (CMBSZ)",
        /// Boot Partition Information, 4 bytes.
        BPINFO = 0x40 => "Boot Partition Information (BPINFO)",
        /// Boot Partition Read Select, 4 bytes.
        BPRSEL = 0x44 => "Boot Partition Read Select (BPRSEL)",
        /// Boot Partition Memory Buffer Location, 8 bytes.
        BPMBL = 0x48 => "Boot Partition Memory Buffer Location (BPMBL)",
        /// Controller Memory Buffer Memory Space Control, 8 bytes.
        CMBMSC = 0x50 => "Controller Memory Buffer Memory Space Control (CMBMSC)",
        /// Controller Memory Buffer Status, 4 bytes.
        CMBSTS = 0x58 => "Controller Memory Buffer Status (CMBSTS)",
        /// Controller Memory Buffer Elasticity Buffer Size, 4 bytes.
        CMBEBS = 0x5c => "Controller Memory Buffer Elasticity Buffer Size (CMBEBS)",
        /// Controller Memory Buffer Sustained Write Throughput, 4 bytes.
        CMBSWTP = 0x60 => "Controller Memory Buffer Sustained Write Throughput (CMBSWTP)",
        /// NVM Subsystem Shutdown, 4 bytes.
        NSSD = 0x64 => "NVM Subsystem Shutdown (NSSD)",
        /// Controller Ready Timeouts, 4 bytes.
        CRTO = 0x68 => "Controller Ready Timeouts (CRTO)",
        /// Persistent Memory Region Capabilities, 4 bytes.
        PMRCAP = 0xe00 => "Persistent Memory Region Capabilities (PMRCAP)",
        /// Persistent Memory Region Control, 4 bytes.
        PMRCTL = 0xe04 => "Persistent Memory Region Control (PMRCTL)",
        /// Persistent Memory Region Status, 4 bytes.
        PMRSTS = 0xe08 => "Persistent Memory Region Status (PMRSTS)",
        /// Persistent Memory Region Elasticity Buffer Size, 4 bytes.
        PMREBS = 0xe0c => "Persistent Memory Region Elasticity Buffer Size (PMREBS)",
        /// Persistent Memory Region Sustained Write Throughput, 4 bytes.
        PMRSWTP = 0xe10 => "Persistent Memory Region Sustained Write Throughput (PMRSWTP)",
        /// Persistent Memory Region Memory Space Control, lower half, 4 bytes.
        PMRMSCL = 0xe14 => "Persistent Memory Region Memory Space Control Lower (PMRMSCL)",
        /// Persistent Memory Region Memory Space Control, upper half, 4 bytes.
        PMRMSCU = 0xe18 => "Persistent Memory Region Memory Space Control Upper (PMRMSCU)",
    }
}

impl PropertyOffset {
    /// Whether the property is 8 bytes wide; all others are 4.
    #[must_use]
    pub const fn is_64_bit(self) -> bool {
        matches!(self, Self::CAP | Self::ASQ | Self::ACQ | Self::BPMBL | Self::CMBMSC)
    }
}

/// The value that, written to NSSR, starts an NVM subsystem reset: ASCII "NVMe" (§3.1.4.7).
pub const NSSR_RESET: u32 = 0x4e56_4d65;

/// The first doorbell, SQ 0 tail, on memory-based transports (NVMe over PCIe Transport 1.1 §3.1.2).
pub const DOORBELL_BASE: u64 = 0x1000;

/// Unit of CAP.TO, CRTO.CRWMT and CRTO.CRIMT.
const TIMEOUT_UNIT_MS: u64 = 500;

/// The `width`-bit field of `value` that starts at bit `low`.
const fn field(value: u64, low: u32, width: u32) -> u64 {
    value >> low & ((1 << width) - 1)
}

/// `value` with its `width`-bit field at bit `low` set to `new`, of which excess bits are dropped.
const fn with_field(value: u32, low: u32, width: u32, new: u32) -> u32 {
    let mask = ((1 << width) - 1) << low;
    value & !mask | new << low & mask
}

/// Controller Capabilities (CAP), Figure 36 (§3.1.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Cap(pub u64);

impl Cap {
    /// MQES: entries of the largest I/O queue, 0's based; at least 1 in a valid controller.
    #[must_use]
    pub const fn mqes_z(self) -> u16 {
        self.0 as u16
    }

    /// The same, not 0's based: 1..=65536.
    #[must_use]
    pub const fn max_queue_entries(self) -> u32 {
        self.mqes_z() as u32 + 1
    }

    /// CQR: I/O queues must be physically contiguous. Always 1 for fabrics.
    #[must_use]
    pub const fn cqr(self) -> bool {
        field(self.0, 16, 1) != 0
    }

    /// AMS: bit 0 weighted round robin with urgent, bit 1 vendor specific.
    #[must_use]
    pub const fn ams(self) -> u8 {
        field(self.0, 17, 2) as u8
    }

    /// TO: how long CSTS.RDY may take to follow CC.EN, in units of 500 ms.
    #[must_use]
    pub const fn to(self) -> u8 {
        field(self.0, 24, 8) as u8
    }

    /// TO as a duration. Controllers that set a bit of CRMS state the precise time in [`Crto`]. Zero is
    /// possible, callers should apply a floor.
    #[must_use]
    pub const fn ready_timeout(self) -> Duration {
        Duration::from_millis(self.to() as u64 * TIMEOUT_UNIT_MS)
    }

    /// DSTRD: doorbells are `4 << dstrd` bytes apart. 0 for fabrics.
    #[must_use]
    pub const fn dstrd(self) -> u8 {
        field(self.0, 32, 4) as u8
    }

    /// Offset of the submission queue tail doorbell of queue `qid`.
    #[must_use]
    pub const fn sq_tail_doorbell(self, qid: u16) -> u64 {
        DOORBELL_BASE + ((2 * qid as u64) << (2 + self.dstrd()))
    }

    /// Offset of the completion queue head doorbell of queue `qid`.
    #[must_use]
    pub const fn cq_head_doorbell(self, qid: u16) -> u64 {
        DOORBELL_BASE + ((2 * qid as u64 + 1) << (2 + self.dstrd()))
    }

    /// NSSRS: NVM subsystem reset is supported.
    #[must_use]
    pub const fn nssrs(self) -> bool {
        field(self.0, 36, 1) != 0
    }

    /// CSS: command sets supported, see [`CapCss`].
    #[must_use]
    pub const fn css(self) -> CapCss {
        CapCss(field(self.0, 37, 8) as u8)
    }

    /// BPS: boot partitions are supported.
    #[must_use]
    pub const fn bps(self) -> bool {
        field(self.0, 45, 1) != 0
    }

    /// CPS: controller power scope; 0 not reported, 1 controller, 2 domain, 3 NVM subsystem.
    #[must_use]
    pub const fn cps(self) -> u8 {
        field(self.0, 46, 2) as u8
    }

    /// MPSMIN: the smallest memory page is `2 ^ (12 + mpsmin)` bytes.
    #[must_use]
    pub const fn mpsmin(self) -> u8 {
        field(self.0, 48, 4) as u8
    }

    /// The smallest memory page in bytes, 4 KiB to 128 MiB; also the unit of MDTS.
    #[must_use]
    pub const fn min_page_size(self) -> u64 {
        1 << (12 + self.mpsmin())
    }

    /// MPSMAX: the largest memory page is `2 ^ (12 + mpsmax)` bytes.
    #[must_use]
    pub const fn mpsmax(self) -> u8 {
        field(self.0, 52, 4) as u8
    }

    /// The value for CC.MPS on a host whose memory comes in pieces of `host` bytes: the smallest page the controller allows that is
    /// not smaller, else its largest. `None` when MPSMIN is above MPSMAX, which no controller may say.
    #[must_use]
    pub const fn select_mps(self, host: u64) -> Option<u8> {
        if self.mpsmin() > self.mpsmax() {
            return None;
        }
        let mut mps = self.mpsmin();
        while mps < self.mpsmax() && 1u64 << (12 + mps) < host {
            mps += 1;
        }
        Some(mps)
    }

    /// PMRS: a persistent memory region is supported.
    #[must_use]
    pub const fn pmrs(self) -> bool {
        field(self.0, 56, 1) != 0
    }

    /// CMBS: a controller memory buffer is supported.
    #[must_use]
    pub const fn cmbs(self) -> bool {
        field(self.0, 57, 1) != 0
    }

    /// NSSS: NVM subsystem shutdown is supported.
    #[must_use]
    pub const fn nsss(self) -> bool {
        field(self.0, 58, 1) != 0
    }

    /// CRMS: controller ready modes; bit 0 ready with media, bit 1 ready independent of media. If either is
    /// set, [`Crto`] is valid.
    #[must_use]
    pub const fn crms(self) -> u8 {
        field(self.0, 59, 2) as u8
    }

    /// NSSES: NVM subsystem shutdown enhancements are supported.
    #[must_use]
    pub const fn nsses(self) -> bool {
        field(self.0, 61, 1) != 0
    }
}

impl fmt::Debug for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cap")
            .field("mqes_z", &self.mqes_z())
            .field("cqr", &self.cqr())
            .field("to", &self.ready_timeout())
            .field("dstrd", &self.dstrd())
            .field("css", &self.css())
            .field("mpsmin", &self.mpsmin())
            .field("mpsmax", &self.mpsmax())
            .field("crms", &self.crms())
            .field("raw", &format_args!("{:#018x}", self.0))
            .finish()
    }
}

/// CAP.CSS, a bit mask (§3.1.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CapCss(pub u8);

impl CapCss {
    /// NCSS: the NVM command set.
    #[must_use]
    pub const fn nvm(self) -> bool {
        self.0 & 1 << 0 != 0
    }

    /// IOCSS: one or more I/O command sets, told by Identify CNS 1Ch.
    #[must_use]
    pub const fn io_command_sets(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// NOIOCSS: no I/O command set, only admin.
    #[must_use]
    pub const fn admin_only(self) -> bool {
        self.0 & 1 << 7 != 0
    }

    /// The value for CC.CSS that §3.5.1 asks for: the most this controller can do.
    #[must_use]
    pub const fn to_select(self) -> Css {
        if self.io_command_sets() {
            Css::ALL_SUPPORTED
        } else if self.admin_only() && !self.nvm() {
            Css::ADMIN_ONLY
        } else {
            Css::NVM
        }
    }
}

/// Version (VS), §3.1.4.2: also in Identify Controller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u32);

impl Version {
    /// 1.0, the first.
    pub const V1_0: Self = Self::new(1, 0, 0);
    /// 1.1.
    pub const V1_1: Self = Self::new(1, 1, 0);
    /// 1.2.
    pub const V1_2: Self = Self::new(1, 2, 0);
    /// 1.2.1, the first with fabrics.
    pub const V1_2_1: Self = Self::new(1, 2, 1);
    /// 1.3.
    pub const V1_3: Self = Self::new(1, 3, 0);
    /// 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);
    /// 2.1.
    pub const V2_1: Self = Self::new(2, 1, 0);

    /// A version from its parts.
    #[must_use]
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32)
    }

    /// MJR.
    #[must_use]
    pub const fn major(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// MNR.
    #[must_use]
    pub const fn minor(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// TER.
    #[must_use]
    pub const fn tertiary(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())?;
        match self.tertiary() {
            0 => Ok(()),
            tertiary => write!(f, ".{tertiary}"),
        }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

open_enum! {
    /// CC.CSS: the I/O command set selected (§3.1.4.5).
    pub struct Css(u8) {
        /// NVM command set.
        NVM = 0b000 => "NVM command set",
        /// All supported I/O command sets.
        ALL_SUPPORTED = 0b110 => "all supported I/O command sets",
        /// Admin command set only.
        ADMIN_ONLY = 0b111 => "admin command set only",
    }
}

open_enum! {
    /// CC.SHN: shutdown notification (§3.1.4.5).
    pub struct Shn(u8) {
        /// No notification.
        NONE = 0b00 => "none",
        /// Normal shutdown.
        NORMAL = 0b01 => "normal shutdown",
        /// Abrupt shutdown.
        ABRUPT = 0b10 => "abrupt shutdown",
    }
}

open_enum! {
    /// CSTS.SHST: shutdown status (§3.1.4.6).
    pub struct Shst(u8) {
        /// Normal operation, no shutdown requested.
        NORMAL = 0b00 => "normal operation",
        /// Shutdown processing.
        OCCURRING = 0b01 => "shutdown processing",
        /// Shutdown processing complete.
        COMPLETE = 0b10 => "shutdown complete",
    }
}

/// Controller Configuration (CC), §3.1.4.5.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ControllerConfig(pub u32);

impl ControllerConfig {
    /// EN: enable.
    #[must_use]
    pub const fn en(self) -> bool {
        self.0 & 1 != 0
    }

    /// CSS: I/O command set selected.
    #[must_use]
    pub const fn css(self) -> Css {
        Css(field(self.0 as u64, 4, 3) as u8)
    }

    /// MPS: the memory page is `2 ^ (12 + mps)` bytes.
    #[must_use]
    pub const fn mps(self) -> u8 {
        field(self.0 as u64, 7, 4) as u8
    }

    /// AMS: arbitration mechanism; 0 round robin, 1 weighted round robin with urgent, 7 vendor specific.
    #[must_use]
    pub const fn ams(self) -> u8 {
        field(self.0 as u64, 11, 3) as u8
    }

    /// SHN: shutdown notification.
    #[must_use]
    pub const fn shn(self) -> Shn {
        Shn(field(self.0 as u64, 14, 2) as u8)
    }

    /// IOSQES: log2 of the I/O submission queue entry size; 6 for the NVM command set.
    #[must_use]
    pub const fn iosqes(self) -> u8 {
        field(self.0 as u64, 16, 4) as u8
    }

    /// IOCQES: log2 of the I/O completion queue entry size; 4 for the NVM command set.
    #[must_use]
    pub const fn iocqes(self) -> u8 {
        field(self.0 as u64, 20, 4) as u8
    }

    /// CRIME: controller ready independent of media enable.
    #[must_use]
    pub const fn crime(self) -> bool {
        field(self.0 as u64, 24, 1) != 0
    }

    /// With EN set so.
    #[must_use]
    pub const fn with_en(self, on: bool) -> Self {
        Self(with_field(self.0, 0, 1, on as u32))
    }

    /// The memory page that MPS says, bytes.
    #[must_use]
    pub const fn page_size(self) -> u64 {
        1 << (12 + self.mps())
    }

    /// With CSS set so.
    #[must_use]
    pub const fn with_css(self, css: Css) -> Self {
        Self(with_field(self.0, 4, 3, css.0 as u32))
    }

    /// With MPS set so, 0..=15.
    #[must_use]
    pub const fn with_mps(self, mps: u8) -> Self {
        Self(with_field(self.0, 7, 4, mps as u32))
    }

    /// With AMS set so, 0..=7.
    #[must_use]
    pub const fn with_ams(self, ams: u8) -> Self {
        Self(with_field(self.0, 11, 3, ams as u32))
    }

    /// With SHN set so.
    #[must_use]
    pub const fn with_shn(self, shn: Shn) -> Self {
        Self(with_field(self.0, 14, 2, shn.0 as u32))
    }

    /// With IOSQES set so, 0..=15.
    #[must_use]
    pub const fn with_iosqes(self, iosqes: u8) -> Self {
        Self(with_field(self.0, 16, 4, iosqes as u32))
    }

    /// With IOCQES set so, 0..=15.
    #[must_use]
    pub const fn with_iocqes(self, iocqes: u8) -> Self {
        Self(with_field(self.0, 20, 4, iocqes as u32))
    }

    /// With CRIME set so. May change only while EN is 0.
    #[must_use]
    pub const fn with_crime(self, on: bool) -> Self {
        Self(with_field(self.0, 24, 1, on as u32))
    }
}

impl fmt::Debug for ControllerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerConfig")
            .field("en", &self.en())
            .field("css", &self.css())
            .field("mps", &self.mps())
            .field("ams", &self.ams())
            .field("shn", &self.shn())
            .field("iosqes", &self.iosqes())
            .field("iocqes", &self.iocqes())
            .field("crime", &self.crime())
            .finish()
    }
}

/// Controller Status (CSTS), §3.1.4.6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// What a read of CSTS returns from a PCI function that is gone.
    pub const ALL_ONES: Self = Self(u32::MAX);

    /// RDY: the controller accepts commands.
    #[must_use]
    pub const fn rdy(self) -> bool {
        self.0 & 1 != 0
    }

    /// CFS: a fatal error that only a reset can clear.
    #[must_use]
    pub const fn cfs(self) -> bool {
        field(self.0 as u64, 1, 1) != 0
    }

    /// SHST: shutdown status.
    #[must_use]
    pub const fn shst(self) -> Shst {
        Shst(field(self.0 as u64, 2, 2) as u8)
    }

    /// NSSRO: an NVM subsystem reset occurred; write 1 to clear.
    #[must_use]
    pub const fn nssro(self) -> bool {
        field(self.0 as u64, 4, 1) != 0
    }

    /// PP: processing is paused.
    #[must_use]
    pub const fn pp(self) -> bool {
        field(self.0 as u64, 5, 1) != 0
    }

    /// ST: the shutdown SHST reports is of the NVM subsystem (1) or of the controller (0).
    #[must_use]
    pub const fn st(self) -> bool {
        field(self.0 as u64, 6, 1) != 0
    }

    /// With RDY set so; for the controller role.
    #[must_use]
    pub const fn with_rdy(self, on: bool) -> Self {
        Self(with_field(self.0, 0, 1, on as u32))
    }

    /// With CFS set so; for the controller role.
    #[must_use]
    pub const fn with_cfs(self, on: bool) -> Self {
        Self(with_field(self.0, 1, 1, on as u32))
    }

    /// With SHST set so; for the controller role.
    #[must_use]
    pub const fn with_shst(self, shst: Shst) -> Self {
        Self(with_field(self.0, 2, 2, shst.0 as u32))
    }
}

impl fmt::Debug for ControllerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControllerStatus")
            .field("rdy", &self.rdy())
            .field("cfs", &self.cfs())
            .field("shst", &self.shst())
            .field("nssro", &self.nssro())
            .field("pp", &self.pp())
            .field("st", &self.st())
            .finish()
    }
}

/// Admin Queue Attributes (AQA), §3.1.4.8.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AdminQueueAttributes(pub u32);

impl AdminQueueAttributes {
    /// Queue sizes in entries, 0's based, 1..=4095; excess bits are dropped.
    #[must_use]
    pub const fn new(asqs_z: u16, acqs_z: u16) -> Self {
        Self(with_field(with_field(0, 0, 12, asqs_z as u32), 16, 12, acqs_z as u32))
    }

    /// ASQS: admin submission queue size in entries, 0's based.
    #[must_use]
    pub const fn asqs_z(self) -> u16 {
        field(self.0 as u64, 0, 12) as u16
    }

    /// ACQS: admin completion queue size in entries, 0's based.
    #[must_use]
    pub const fn acqs_z(self) -> u16 {
        field(self.0 as u64, 16, 12) as u16
    }
}

/// Controller Ready Timeouts (CRTO), §3.1.4.21; valid if CAP.CRMS is not 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Crto(pub u32);

impl Crto {
    /// CRWMT: how long until ready with media.
    #[must_use]
    pub const fn ready_with_media(self) -> Duration {
        Duration::from_millis(field(self.0 as u64, 0, 16) * TIMEOUT_UNIT_MS)
    }

    /// CRIMT: how long until ready independent of media.
    #[must_use]
    pub const fn ready_independent_of_media(self) -> Duration {
        Duration::from_millis(field(self.0 as u64, 16, 16) * TIMEOUT_UNIT_MS)
    }
}

#[cfg(test)]
mod tests;

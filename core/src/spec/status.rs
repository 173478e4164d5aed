//! Status of a completed command: codes, names and words. NVMe Base 2.1 §4.2.3; NVM Command Set 1.1
//! §3.1.1; Zoned Namespace Command Set 1.2 §3.1.1.
//!
//! One table drives the constants, their names and their texts. The texts are written for whoever reads a
//! log in the middle of the night: what happened, and where it helps, what to look at.

use core::fmt;

mod codes;

/// Which command set a command belongs to. Command-specific codes 80h and up mean different things in
/// different sets: 01h/80h is Conflicting Attributes for a Write and Incompatible Format for a Connect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CommandKind {
    /// Admin command set.
    Admin,
    /// NVM command set.
    Nvm,
    /// Fabrics command set: Connect, Property Get and Set, Disconnect, authentication.
    Fabrics,
    /// Zoned Namespace command set, which includes the NVM command set.
    Zoned,
}

/// Status code types (SCT), §4.2.3.
pub mod sct {
    /// Generic command status.
    pub const GENERIC: u8 = 0;
    /// Command specific status.
    pub const COMMAND_SPECIFIC: u8 = 1;
    /// Media and data integrity errors.
    pub const MEDIA: u8 = 2;
    /// Path related status.
    pub const PATH: u8 = 3;
    /// Vendor specific.
    pub const VENDOR: u8 = 7;
}

const CRD_SHIFT: u16 = 11;
const CODE_MASK: u16 = 0x7ff;
const MORE: u16 = 1 << 13;
const DNR: u16 = 1 << 14;

/// The 15-bit status field of a completion, phase tag removed: bits 31:17 of completion dword 3.
///
/// Bits 7:0 SC, 10:8 SCT, 12:11 CRD, 13 M (more), 14 DNR (do not retry). Bit 15 is unused and ignored.
/// Equality compares every bit; to ask "is it this error?" whatever the peer says about retrying, use
/// [`Status::is`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

/// One row of the table.
struct Entry {
    status: Status,
    /// The only command set in which the code has this meaning; `None` when it is the same for all.
    kind: Option<CommandKind>,
    name: &'static str,
    text: &'static str,
}

impl Status {
    /// A status with this status code type (0..=7, excess bits dropped) and status code.
    #[must_use]
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self((sct as u16 & 7) << 8 | sc as u16)
    }

    /// The same status with Do Not Retry set.
    #[must_use]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// The same status with More set: details are in the Error Information log page.
    #[must_use]
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// The same status with this command retry delay index, 0..=3.
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self(self.0 & !(3 << CRD_SHIFT) | (crd as u16 & 3) << CRD_SHIFT)
    }

    /// SC: status code.
    #[must_use]
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// SCT: status code type, see [`sct`].
    #[must_use]
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// CRD: 0 retry at once, 1..=3 retry after the time Identify Controller CRDT1..CRDT3 states. Valid if the
    /// host enabled ACRE in the Host Behavior Support feature.
    #[must_use]
    pub const fn crd(self) -> u8 {
        (self.0 >> CRD_SHIFT) as u8 & 3
    }

    /// M: more about this error is in the Error Information log page.
    #[must_use]
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// DNR: the same command is expected to fail again.
    #[must_use]
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & CODE_MASK == 0
    }

    /// Whether the command failed but the controller allows it to be tried again.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        !self.is_success() && !self.dnr()
    }

    /// Whether the status says that the path, not the command, is at fault, so that another path may work.
    #[must_use]
    pub const fn is_path_related(self) -> bool {
        self.sct() == sct::PATH
    }

    /// SCT and SC only: CRD, M and DNR cleared.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & CODE_MASK)
    }

    /// Whether type and code are those of `other`, whatever CRD, M and DNR say.
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.code().0 == other.code().0
    }

    /// The name of the code, e.g. `INVALID_FIELD`. Where it depends on the command set: the NVM meaning; see
    /// [`Status::name_for`].
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.name_for(CommandKind::Nvm)
    }

    /// The name of the code as the status of a command of this set.
    #[must_use]
    pub fn name_for(self, kind: CommandKind) -> Option<&'static str> {
        self.entry(kind).map(|entry| entry.name)
    }

    /// What the code means, in words. Where that depends on the command set: the NVM meaning; see
    /// [`Status::text_for`].
    #[must_use]
    pub fn text(self) -> &'static str {
        self.text_for(CommandKind::Nvm)
    }

    /// What the code means as the status of a command of this set, in words.
    #[must_use]
    pub fn text_for(self, kind: CommandKind) -> &'static str {
        self.entry(kind).map_or_else(|| self.unknown_text(), |entry| entry.text)
    }

    /// For printing the status of a command of a known set; without it `Display` states every meaning.
    #[must_use]
    pub const fn describe(self, kind: CommandKind) -> Described {
        Described { status: self, kind }
    }

    fn entries(self) -> impl Iterator<Item = &'static Entry> {
        codes::TABLE.iter().filter(move |entry| entry.status.is(self))
    }

    fn entry(self, kind: CommandKind) -> Option<&'static Entry> {
        // The set's own meaning, then the common one, then whatever there is: a peer may misuse a code, and a
        // name from the wrong command set still tells more than a number.
        self.entries().min_by_key(|entry| match entry.kind {
            Some(of) if of == kind => 0,
            None => 1,
            // Zoned namespaces take the commands of the NVM set.
            Some(CommandKind::Nvm) if kind == CommandKind::Zoned => 2,
            Some(_) => 3,
        })
    }

    const fn unknown_text(self) -> &'static str {
        match (self.sct(), self.sc()) {
            (sct::VENDOR, _) => "vendor-specific status; the vendor's documentation explains it",
            (_, 0xc0..) => "vendor-specific status code; the vendor's documentation explains it",
            (sct::GENERIC, _) => "a generic error this version of the software has no name for",
            (sct::COMMAND_SPECIFIC, 0x70..=0x7f) => "an error specific to the directive of the command",
            (sct::COMMAND_SPECIFIC, _) => {
                "a command-specific error this version of the software has no name for"
            }
            (sct::MEDIA, _) => "a media or data integrity error this version of the software has no name for",
            (sct::PATH, _) => "a path-related error this version of the software has no name for",
            _ => "a status code type that no specification defines",
        }
    }

    fn fmt_code(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " ({:02X}h/{:02X}h): ", self.sct(), self.sc())
    }

    fn fmt_flags(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dnr() {
            f.write_str("; do not retry")?;
        }
        if !self.dnr() && self.crd() != 0 {
            write!(f, "; retry after CRDT{}", self.crd())?;
        }
        if self.more() {
            f.write_str("; the Error Information log page has more")?;
        }
        Ok(())
    }
}

/// E.g. `INVALID_FIELD (00h/02h): a reserved or unsupported value in a defined field; do not retry`. A code with
/// several meanings prints them all, joined by "or".
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = 0;
        for entry in self.entries() {
            f.write_str(if names == 0 { "" } else { " or " })?;
            f.write_str(entry.name)?;
            names += 1;
        }
        if names == 0 {
            f.write_str("UNKNOWN_STATUS")?;
        }
        self.fmt_code(f)?;
        for (index, entry) in self.entries().enumerate() {
            f.write_str(if index == 0 { "" } else { "; or " })?;
            f.write_str(entry.text)?;
        }
        if names == 0 {
            f.write_str(self.unknown_text())?;
        }
        self.fmt_flags(f)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#06x}", self.0)?;
        for entry in self.entries() {
            write!(f, " {}", entry.name)?;
        }
        f.write_str(")")
    }
}

/// A status with the command set it belongs to, for printing. Made by [`Status::describe`].
#[derive(Clone, Copy, Debug)]
pub struct Described {
    status: Status,
    kind: CommandKind,
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.status.name_for(self.kind).unwrap_or("UNKNOWN_STATUS"))?;
        self.status.fmt_code(f)?;
        f.write_str(self.status.text_for(self.kind))?;
        self.status.fmt_flags(f)
    }
}

#[cfg(test)]
mod tests;

//! Names: NVMe Qualified Names ([`Nqn`]), host identifiers ([`HostId`]) and the UUIDs both are made of.
//!
//! An [`Nqn`] is valid by construction: 1 to 223 bytes of printable UTF-8 (NVMe Base 2.1 §4.7). The two shapes
//! the specification prescribes are *not* enforced, because targets in the field do not follow them: Linux nvmet
//! takes any directory name as a subsystem NQN. [`Nqn::is_well_formed`] says whether a name obeys the letter.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

#[cfg(test)]
mod tests;

/// Size of every NQN field on the wire, in bytes, NUL padding included (e.g. SUBNQN and HOSTNQN of the Connect
/// data, NVMe Base 2.1 §6.3).
pub const NQN_FIELD_SIZE: usize = 256;

/// The longest NQN, in bytes, the terminating NUL not counted (NVMe Base 2.1 §4.7).
pub const NQN_MAX_LENGTH: usize = 223;

/// Prefix of the UUID form of an NQN (NVMe Base 2.1 §4.7).
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// An NVMe Qualified Name: 1 to 223 bytes of UTF-8 without white space or control characters.
///
/// Names are compared byte by byte, as NVMe Base 2.1 §4.7 asks for; case matters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nqn(Box<str>);

/// Why a text or a wire field is not an NQN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NqnError {
    /// The name has no characters.
    #[error("an NQN must not be empty")]
    Empty,
    /// The name is longer than [`NQN_MAX_LENGTH`].
    #[error("an NQN has at most {NQN_MAX_LENGTH} bytes, this one has {length}")]
    TooLong {
        /// Length of the rejected name in bytes.
        length: usize,
    },
    /// The name holds white space or a control character.
    #[error("an NQN must not contain {character:?} (byte {position}): no white space, no control characters")]
    ForbiddenCharacter {
        /// The offending character.
        character: char,
        /// Its position in bytes from the start of the name.
        position: usize,
    },
    /// The name on the wire is not UTF-8.
    #[error("an NQN must be UTF-8, byte {position} is not")]
    NotUtf8 {
        /// Position of the first byte that is not UTF-8.
        position: usize,
    },
    /// A wire field with no NUL in its 256 bytes.
    #[error("the {NQN_FIELD_SIZE}-byte NQN field is not NUL-terminated")]
    NotTerminated,
}

impl Nqn {
    /// The well-known name of every discovery subsystem (NVMe Base 2.1 §4.7).
    pub const DISCOVERY: &'static str = "nqn.2014-08.org.nvmexpress.discovery";

    /// Checks `name` and keeps it.
    ///
    /// # Errors
    ///
    /// See [`NqnError`]: empty, over 223 bytes, white space or control characters.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        if name.is_empty() {
            return Err(NqnError::Empty);
        }
        if name.len() > NQN_MAX_LENGTH {
            return Err(NqnError::TooLong { length: name.len() });
        }
        match name.char_indices().find(|(_, c)| c.is_control() || c.is_whitespace()) {
            Some((position, character)) => Err(NqnError::ForbiddenCharacter { character, position }),
            None => Ok(Self(name.into())),
        }
    }

    /// The well-known discovery NQN, [`Self::DISCOVERY`].
    #[must_use]
    pub fn discovery() -> Self {
        Self(Self::DISCOVERY.into())
    }

    /// The UUID form, `nqn.2014-08.org.nvmexpress:uuid:<uuid>`.
    #[must_use]
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(format!("{UUID_PREFIX}{uuid}").into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known discovery NQN. A discovery subsystem may also have a unique NQN of its own,
    /// which only its Identify data gives away.
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        &*self.0 == Self::DISCOVERY
    }

    /// The UUID of a name in UUID form, `None` for every other name.
    #[must_use]
    pub fn uuid(&self) -> Option<Uuid> {
        self.0.strip_prefix(UUID_PREFIX)?.parse().ok()
    }

    /// Whether the name has one of the forms of NVMe Base 2.1 §4.7: `nqn.yyyy-mm.reverse.domain:string`,
    /// `nqn.2014-08.org.nvmexpress:uuid:<uuid>`, or the well-known discovery NQN.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        if self.is_discovery() {
            return true;
        }
        if self.0.starts_with(UUID_PREFIX) {
            return self.uuid().is_some();
        }
        let Some((authority, suffix)) = self.0.split_once(':') else { return false };
        let Some(rest) = authority.strip_prefix("nqn.") else { return false };
        let Some((date, domain)) = rest.split_once('.') else { return false };
        !suffix.is_empty() && is_year_month(date) && domain.split('.').all(is_domain_label)
    }

    /// The 256-byte wire form, NUL padded.
    #[must_use]
    pub fn to_wire(&self) -> [u8; NQN_FIELD_SIZE] {
        let mut field = [0; NQN_FIELD_SIZE];
        // The constructor bounds the length, so the zip never cuts a name short.
        for (to, from) in field.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        field
    }

    /// Reads a 256-byte wire field: the bytes before the first NUL. What follows the NUL is not looked at.
    /// Trailing spaces are dropped, since some targets pad with them.
    ///
    /// # Errors
    ///
    /// [`NqnError::NotTerminated`], [`NqnError::NotUtf8`], or what [`Self::new`] rejects.
    pub fn from_wire(field: &[u8; NQN_FIELD_SIZE]) -> Result<Self, NqnError> {
        let Some(end) = field.iter().position(|&byte| byte == 0) else { return Err(NqnError::NotTerminated) };
        match std::str::from_utf8(&field[..end]) {
            Ok(name) => Self::new(name.trim_end_matches(' ')),
            Err(error) => Err(NqnError::NotUtf8 { position: error.valid_up_to() }),
        }
    }
}

/// `yyyy-mm` with a month from 01 to 12.
fn is_year_month(date: &str) -> bool {
    let Some((year, month)) = date.split_once('-') else { return false };
    let digits = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
    digits(year, 4) && digits(month, 2) && month.parse().is_ok_and(|month: u8| (1..=12).contains(&month))
}

/// One label of a domain name (RFC 1034 §3.5, digits first allowed by RFC 1123 §2.1).
fn is_domain_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(text: &str) -> Result<Self, NqnError> {
        Self::new(text)
    }
}

impl TryFrom<&str> for Nqn {
    type Error = NqnError;

    fn try_from(text: &str) -> Result<Self, NqnError> {
        Self::new(text)
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nqn({:?})", &self.0)
    }
}

/// A UUID: 16 bytes in the order of the text (RFC 9562 §4, big endian), which is also the order NVMe puts them on
/// the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid([u8; 16]);

/// A text that is not a UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a UUID has the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx (hexadecimal digits)")]
pub struct UuidError;

impl Uuid {
    /// A UUID from its 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Whether all bits are 0 (the Nil UUID).
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == [0; 16]
    }

    /// A random UUID (version 4) out of `/dev/urandom`.
    ///
    /// # Errors
    ///
    /// What opening or reading `/dev/urandom` answers: there is no weaker source to fall back to, as two hosts
    /// with one identifier share their reservations.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).map_err(|e| {
            io::Error::new(e.kind(), format!("reading 16 random bytes from /dev/urandom: {e}"))
        })?;
        // RFC 9562 §5.4: version 4 in the high half of octet 6, variant 10b in the top of octet 8.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }
}

impl FromStr for Uuid {
    type Err = UuidError;

    /// Parses the hyphenated form, in either case.
    fn from_str(text: &str) -> Result<Self, UuidError> {
        if text.len() != 36 {
            return Err(UuidError);
        }
        let mut digits = 0;
        let mut bytes = [0u8; 16];
        for (position, character) in text.chars().enumerate() {
            if matches!(position, 8 | 13 | 18 | 23) {
                if character != '-' {
                    return Err(UuidError);
                }
                continue;
            }
            let value = character.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(UuidError)?;
            // 36 characters less 4 hyphens: at most 32 digits. A text with multi-byte characters fails above.
            let byte = bytes.get_mut(digits / 2).ok_or(UuidError)?;
            *byte = *byte << 4 | value;
            digits += 1;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uuid({self})")
    }
}

/// The 128-bit host identifier of the Connect data (HOSTID, NVMe Base 2.1 §6.3) and of the Host Identifier feature,
/// written as a UUID. All zeroes means "none": fabrics controllers refuse it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId([u8; 16]);

impl HostId {
    /// An identifier from its 16 wire bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 wire bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// The 16 wire bytes, borrowed.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether all bits are 0, i.e. there is no identifier.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }

    /// A random identifier.
    ///
    /// # Errors
    ///
    /// Those of [`Uuid::random`].
    pub fn random() -> io::Result<Self> {
        Uuid::random().map(Self::from)
    }
}

impl From<Uuid> for HostId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid.0)
    }
}

impl From<HostId> for Uuid {
    fn from(id: HostId) -> Self {
        Self(id.0)
    }
}

impl FromStr for HostId {
    type Err = UuidError;

    fn from_str(text: &str) -> Result<Self, UuidError> {
        text.parse().map(|uuid: Uuid| Self(uuid.0))
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid(self.0).fmt(f)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

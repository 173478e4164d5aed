//! The text in which people hand secrets around: `NVMeTLSkey-1:01:<base64>:` for TLS (NVMe/TCP 1.1 §3.6.1.5, PSK interchange
//! format) and `DHHC-1:00:<base64>:` for in-band authentication (Base 2.1 §8.3.5.5.7, DH-HMAC-CHAP secret representation).

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding as _};
use crc_fast::CrcAlgorithm;
use zeroize::Zeroizing;

/// The longest secret, bytes.
const MAX_SECRET: usize = 64;
/// A CRC-32 follows the secret, least significant byte first.
const CRC: usize = 4;

/// What a secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// A pre-shared key of TLS: `NVMeTLSkey-1`.
    TlsPsk,
    /// A secret of DH-HMAC-CHAP: `DHHC-1`.
    Dhchap,
}

impl KeyKind {
    /// What such a key string begins with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::TlsPsk => "NVMeTLSkey-1",
            Self::Dhchap => "DHHC-1",
        }
    }
}

/// The hash that transforms a secret before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyHash {
    /// It is used as it is.
    None,
    /// SHA-256; the secret has 32 bytes.
    Sha256,
    /// SHA-384; 48 bytes.
    Sha384,
    /// SHA-512; 64 bytes. Not for TLS.
    Sha512,
}

impl KeyHash {
    const fn of(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::None,
            1 => Self::Sha256,
            2 => Self::Sha384,
            3 => Self::Sha512,
            _ => return None,
        })
    }

    /// The numbers of bytes a secret of this kind may have.
    const fn lengths(self, kind: KeyKind) -> &'static [usize] {
        match (self, kind) {
            (Self::None, KeyKind::TlsPsk) => &[32, 48],
            (Self::None, KeyKind::Dhchap) => &[32, 48, 64],
            (Self::Sha256, _) => &[32],
            (Self::Sha384, _) => &[48],
            (Self::Sha512, KeyKind::Dhchap) => &[64],
            (Self::Sha512, KeyKind::TlsPsk) => &[],
        }
    }
}

/// What is wrong with a key string. The string itself is not repeated: it may be nearly right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyStringError {
    /// It begins with something else.
    #[error("a key string begins with `NVMeTLSkey-1:` (TLS) or `DHHC-1:` (DH-HMAC-CHAP)")]
    Prefix,
    /// It has not the parts it should have.
    #[error("a key string is `{}:<hash>:<base64>:`, with a colon at its end", .0.prefix())]
    Shape(KeyKind),
    /// The second part is no hash, or not one for this kind.
    #[error("the hash of a {} key is two digits, 00 to {}", .0.prefix(), if *.0 == KeyKind::TlsPsk { "02" } else { "03" })]
    Hash(KeyKind),
    /// The third part is not base64.
    #[error("the secret is not base64 (RFC 4648, with padding)")]
    Encoding,
    /// A secret has another length.
    #[error("the secret has {found} bytes instead of {}", .expected.iter().map(usize::to_string).collect::<Vec<_>>().join(" or "))]
    Length {
        /// What it has, without the CRC.
        found: usize,
        /// What it may have.
        expected: &'static [usize],
    },
    /// The CRC-32 at the end does not match: a character was lost or changed on the way.
    #[error("the CRC of the secret does not match: it was copied incompletely or changed")]
    Crc,
}

/// A secret, with what its text says of it. It is wiped from memory when dropped and shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyString {
    kind: KeyKind,
    hash: KeyHash,
    secret: Zeroizing<Vec<u8>>,
}

impl KeyString {
    /// A key string for a secret that was found or made otherwise.
    ///
    /// # Errors
    /// When the secret has not the length that its kind and hash ask for, or the hash is not one of its kind.
    pub fn new(kind: KeyKind, hash: KeyHash, secret: Vec<u8>) -> Result<Self, KeyStringError> {
        let secret = Zeroizing::new(secret);
        let expected = hash.lengths(kind);
        if expected.is_empty() {
            return Err(KeyStringError::Hash(kind));
        }
        if !expected.contains(&secret.len()) {
            return Err(KeyStringError::Length { found: secret.len(), expected });
        }
        Ok(Self { kind, hash, secret })
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The hash that transforms it before it is used.
    #[must_use]
    pub fn hash(&self) -> KeyHash {
        self.hash
    }

    /// The secret itself: 32, 48 or 64 bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.secret
    }

    /// The text for it, as it is written into files.
    #[must_use]
    pub fn expose_text(&self) -> Zeroizing<String> {
        // Nothing here grows, which would leave a copy behind.
        let mut bytes = Zeroizing::new([0; MAX_SECRET + CRC]);
        let len = self.secret.len() + CRC;
        bytes[..self.secret.len()].copy_from_slice(&self.secret);
        bytes[self.secret.len()..len].copy_from_slice(&crc(&self.secret));
        let base64 = Zeroizing::new(Base64::encode_string(&bytes[..len]));
        let head = format!("{}:{:02}:", self.kind.prefix(), self.hash as u8);
        let mut text = Zeroizing::new(String::with_capacity(head.len() + base64.len() + 1));
        text.push_str(&head);
        text.push_str(&base64);
        text.push(':');
        text
    }
}

fn crc(secret: &[u8]) -> [u8; CRC] {
    (crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, secret) as u32).to_le_bytes()
}

impl FromStr for KeyString {
    type Err = KeyStringError;

    fn from_str(text: &str) -> Result<Self, KeyStringError> {
        let (kind, rest) = [KeyKind::TlsPsk, KeyKind::Dhchap]
            .into_iter()
            .find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?.strip_prefix(':')?)))
            .ok_or(KeyStringError::Prefix)?;
        let (hash, rest) = rest.split_once(':').ok_or(KeyStringError::Shape(kind))?;
        let base64 = rest.strip_suffix(':').ok_or(KeyStringError::Shape(kind))?;
        if base64.contains(':') {
            return Err(KeyStringError::Shape(kind));
        }
        let hash = match *hash.as_bytes() {
            [b'0', digit @ b'0'..=b'9'] => KeyHash::of(digit - b'0'),
            _ => None,
        }
        .filter(|hash| !hash.lengths(kind).is_empty())
        .ok_or(KeyStringError::Hash(kind))?;

        let expected = hash.lengths(kind);
        if base64.len() / 4 * 3 > MAX_SECRET + CRC + 3 {
            return Err(KeyStringError::Length {
                found: (base64.len() / 4 * 3).saturating_sub(CRC),
                expected,
            });
        }
        let mut buffer = Zeroizing::new([0; MAX_SECRET + CRC + 3]);
        let bytes = Base64::decode(base64, &mut *buffer).map_err(|_| KeyStringError::Encoding)?;
        let Some((secret, found)) = bytes.split_last_chunk::<CRC>() else {
            return Err(KeyStringError::Length { found: 0, expected });
        };
        if !expected.contains(&secret.len()) {
            return Err(KeyStringError::Length { found: secret.len(), expected });
        }
        if *found != crc(secret) {
            return Err(KeyStringError::Crc);
        }
        Self::new(kind, hash, secret.to_vec())
    }
}

impl fmt::Debug for KeyString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyString")
            .field("kind", &self.kind)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As printed by nvme-cli 2.3 (`gen-dhchap-key`, `gen-tls-key`).
    #[test]
    fn keys_made_by_nvme_cli_are_read() {
        for (text, kind, hash, length) in [
            (
                "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
                KeyKind::Dhchap,
                KeyHash::None,
                32,
            ),
            (
                "DHHC-1:01:An6E8dKe3KMpI/ava1ObG/iLwRge/IHs3Cv+tXL3kxUMgDMS:",
                KeyKind::Dhchap,
                KeyHash::Sha256,
                32,
            ),
            (
                "DHHC-1:03:JqiXEAlnBVEzAp6pfcFlLDIUgB0kiUlbojjsuIHA/7hJvUy2ltLgrJIbzF3Jk6xdnqhgV4p3QIpsWxOYUo0goE3sLtA=:",
                KeyKind::Dhchap,
                KeyHash::Sha512,
                64,
            ),
            (
                "NVMeTLSkey-1:02:cYBTy0Cvkzi1eMUp1BlwC6maCDWlKf0xBR7OSfQBjAiyNYCEsL8mh+rV6IEqD2SQnOhWYw==:",
                KeyKind::TlsPsk,
                KeyHash::Sha384,
                48,
            ),
        ] {
            let key: KeyString = text.parse().unwrap();
            assert_eq!((key.kind(), key.hash(), key.expose().len()), (kind, hash, length));
            assert_eq!(*key.expose_text(), text);
        }
    }

    #[test]
    fn mistakes_are_told_apart_and_not_repeated() {
        let key = KeyString::new(KeyKind::Dhchap, KeyHash::Sha256, vec![7; 32]).unwrap();
        let good = key.expose_text();
        let error = |text: &str| {
            let error = text.parse::<KeyString>().unwrap_err();
            assert!(!error.to_string().contains("BwcHBw"), "{error}");
            error
        };
        assert_eq!(error(""), KeyStringError::Prefix);
        assert_eq!(error("DHHC-2:00:AAAA:"), KeyStringError::Prefix);
        assert_eq!(error(&good[..good.len() - 1]), KeyStringError::Shape(KeyKind::Dhchap));
        assert_eq!(error(&format!("{}:", &*good)), KeyStringError::Shape(KeyKind::Dhchap));
        assert_eq!(error(&good.replace(":01:", ":04:")), KeyStringError::Hash(KeyKind::Dhchap));
        assert_eq!(error(&good.replace(":01:", ":1:")), KeyStringError::Hash(KeyKind::Dhchap));
        assert_eq!(error("NVMeTLSkey-1:03:AAAA:"), KeyStringError::Hash(KeyKind::TlsPsk));
        assert_eq!(
            error(&good.replace(":01:", ":02:")),
            KeyStringError::Length { found: 32, expected: &[48] }
        );
        assert_eq!(error(&good.replace("BwcH", "BwcG")), KeyStringError::Crc);
        assert_eq!(error(&good.replace("BwcH", "Bwc*")), KeyStringError::Encoding);
        let padded = KeyString::new(KeyKind::Dhchap, KeyHash::Sha384, vec![7; 48]).unwrap().expose_text();
        assert_eq!(error(&padded.replace('=', "")), KeyStringError::Encoding);
        assert_eq!(error("DHHC-1:00::"), KeyStringError::Length { found: 0, expected: &[32, 48, 64] });
        let endless = format!("DHHC-1:00:{}:", "A".repeat(1 << 20));
        assert!(matches!(error(&endless), KeyStringError::Length { found: 786_428, .. }));
        assert_eq!(format!("{key:?}"), "KeyString { kind: Dhchap, hash: Sha256, .. }");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(kind in 0..2usize, code in 0..4u8, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let kind = [KeyKind::TlsPsk, KeyKind::Dhchap][kind];
            let hash = KeyHash::of(code).unwrap();
            let fits = hash.lengths(kind).contains(&bytes.len());
            match KeyString::new(kind, hash, bytes) {
                Ok(key) => {
                    let read: KeyString = key.expose_text().parse().unwrap();
                    prop_assert_eq!(read, key);
                }
                Err(_) => prop_assert!(!fits),
            }
        }

        #[test]
        fn one_changed_character_is_found(at in 10..58usize, to in "[A-Za-z0-9+/]") {
            let key = KeyString::new(KeyKind::Dhchap, KeyHash::Sha256, (0..32).collect()).unwrap();
            let mut text = key.expose_text().to_string();
            text.replace_range(at..=at, &to);
            prop_assert!(text == *key.expose_text() || text.parse::<KeyString>().is_err());
        }
    }
}

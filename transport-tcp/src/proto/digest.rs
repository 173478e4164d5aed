//! Header and data digests: CRC32C (NVMe/TCP 1.1 §3.3.1.1), sent as a little-endian dword.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC32C of bytes that come in pieces.
#[derive(Debug)]
pub struct Crc32c(Digest);

impl Crc32c {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Starts again.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// Adds `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

/// The digest of a payload that mostly comes in one piece: then no state is set up for more.
#[derive(Debug, Default)]
pub(crate) struct PayloadDigest {
    /// Of the first piece.
    first: Option<u32>,
    /// Of all pieces, once there are several.
    many: Option<Crc32c>,
    several: bool,
}

impl PayloadDigest {
    /// A payload begins.
    pub(crate) fn reset(&mut self) {
        (self.first, self.several) = (None, false);
    }

    /// Adds a piece, `last` if no other follows.
    pub(crate) fn update(&mut self, bytes: &[u8], last: bool) {
        if last && !self.several {
            self.first = Some(crc32c(bytes));
            return;
        }
        let many = self.many.get_or_insert_with(Crc32c::new);
        if !std::mem::replace(&mut self.several, true) {
            many.reset();
        }
        many.update(bytes);
    }

    /// The digest of the payload.
    pub(crate) fn value(&self) -> u32 {
        match (&self.many, self.several) {
            (Some(many), true) => many.value(),
            _ => self.first.unwrap_or_else(|| crc32c(&[])),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bit by bit, from the definition: polynomial 1EDC6F41h reflected, ones in, ones out.
    fn reference(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8)
                .fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
        })
    }

    #[test]
    fn check_value_of_the_catalogue() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(reference(b"123456789"), 0xe306_9283);
        // RFC 7143 appendix A.4: 32 bytes of zeroes.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference_in_any_split(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut crc = Crc32c::new();
            crc.update(b"something else");
            crc.reset();
            for pair in cuts.windows(2) {
                crc.update(&bytes[pair[0]..pair[1]]);
            }
            prop_assert_eq!(crc.value(), reference(&bytes));
            let mut payload = PayloadDigest::default();
            for round in 0..2 {
                payload.reset();
                let last = cuts.len() - 2;
                for (index, pair) in cuts.windows(2).enumerate() {
                    payload.update(&bytes[pair[0]..pair[1]], index == last);
                }
                prop_assert_eq!(payload.value(), reference(&bytes), "round {}", round);
            }
            payload.reset();
            payload.update(&bytes, true);
            prop_assert_eq!(payload.value(), reference(&bytes));
            prop_assert_eq!(crc32c(&bytes), reference(&bytes));
        }
    }
}

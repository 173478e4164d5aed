//! Data that know where they belong, so that a difference tells what went wrong.
//!
//! Each block of the pattern starts with its own byte offset and the seed; the rest is a pseudorandom stream started
//! from both. A block found in the wrong place is recognized as such, one left from an earlier run differs by its seed.

use std::fmt;

/// One step of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A pattern for every offset of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    pub(crate) seed: u64,
    /// Length of a block in bytes, a multiple of 8.
    pub(crate) block: usize,
}

impl Pattern {
    /// The 8-byte words of the block at byte `offset`.
    fn words(self, offset: u64) -> impl Iterator<Item = [u8; 8]> {
        let mut state = self.seed ^ offset.wrapping_mul(0xd6e8_feb8_6659_fd93);
        [offset, self.seed]
            .into_iter()
            .chain(std::iter::repeat_with(move || splitmix(&mut state)))
            .map(u64::to_le_bytes)
    }

    /// Fills `data`, which belongs at byte `offset` and is a whole number of blocks.
    pub(crate) fn fill(self, offset: u64, data: &mut [u8]) {
        for (block, at) in data.chunks_exact_mut(self.block).zip((offset..).step_by(self.block)) {
            for (to, word) in block.chunks_exact_mut(8).zip(self.words(at)) {
                to.copy_from_slice(&word);
            }
        }
    }

    /// Compares `data`, which were found at byte `offset`, and describes the first difference.
    pub(crate) fn check(self, offset: u64, data: &[u8]) -> Result<(), Mismatch> {
        for (block, at) in data.chunks_exact(self.block).zip((offset..).step_by(self.block)) {
            for (index, (got, expected)) in block.chunks_exact(8).zip(self.words(at)).enumerate() {
                if *got != expected {
                    return Err(self.describe(block, at, index * 8, got, expected));
                }
            }
        }
        Ok(())
    }

    fn describe(self, block: &[u8], at: u64, word: usize, got: &[u8], expected: [u8; 8]) -> Mismatch {
        let byte = got.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(0);
        let mut found = [0; 8];
        found.copy_from_slice(got);
        let header =
            |at: usize| block.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let looks = match (header(0), header(8)) {
            _ if block.iter().all(|&b| b == 0) => Looks::Zeroes,
            (Some(other), Some(seed)) if seed == self.seed && other != at => Looks::Of { offset: other },
            (Some(here), Some(seed)) if here == at && seed != self.seed => Looks::Older { seed },
            _ => Looks::Damaged,
        };
        Mismatch {
            offset: at + (word + byte) as u64,
            block: at,
            word: word as u64 + at,
            expected,
            got: found,
            looks,
        }
    }
}

/// The first difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mismatch {
    /// Byte offset of the first byte that differs.
    pub(crate) offset: u64,
    /// Byte offset of the pattern block it is in.
    pub(crate) block: u64,
    /// Byte offset of `expected` and `got`.
    word: u64,
    expected: [u8; 8],
    got: [u8; 8],
    looks: Looks,
}

/// What the block that differs looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Looks {
    /// Nothing but zeroes.
    Zeroes,
    /// Written for another place.
    Of { offset: u64 },
    /// Written for this place in a run with another seed.
    Older { seed: u64 },
    /// None of these.
    Damaged,
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "first difference at byte offset {}: expected {} but got {} (8 bytes from offset {}); ",
            self.offset,
            Hex(&self.expected),
            Hex(&self.got),
            self.word
        )?;
        match self.looks {
            Looks::Zeroes => write!(f, "the whole block at {} is zeroes: it was never written", self.block),
            Looks::Of { offset } => {
                write!(f, "the block at {} holds the data written to offset {offset}", self.block)
            }
            Looks::Older { seed } => {
                write!(f, "the block at {} holds older data, written with seed {seed}", self.block)
            }
            Looks::Damaged => write!(f, "the block at {} is damaged", self.block),
        }
    }
}

/// Every number of `0..len` once, in an order that jumps about, in no memory: a Feistel network over the next even power
/// of two, skipping what is out of range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shuffle {
    len: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Shuffle {
    pub(crate) fn new(len: u64, seed: u64) -> Self {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        let mut state = seed;
        Self { len, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| splitmix(&mut state)) }
    }

    fn permute(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            let mut state = right ^ key;
            (left, right) = (right, left ^ (splitmix(&mut state) & mask));
        }
        left << self.half_bits | right
    }

    /// The number at `index` (below `len`).
    pub(crate) fn at(&self, index: u64) -> u64 {
        let mut value = self.permute(index);
        // The domain is at most four times the range and the map is a bijection: this comes back into range.
        while value >= self.len {
            value = self.permute(value);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern { seed: 7, block: 512 };

    fn filled(offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        PATTERN.fill(offset, &mut data);
        data
    }

    #[test]
    fn what_was_filled_matches() {
        let data = filled(4096, 2048);
        PATTERN.check(4096, &data).unwrap();
        // A piece of it matches at its own place.
        PATTERN.check(4608, &data[512..1024]).unwrap();
        assert_eq!(data[..8], 4096u64.to_le_bytes());
        assert_eq!(data[512..520], 4608u64.to_le_bytes());
        assert_ne!(data[16..512], data[528..1024]);
    }

    #[test]
    fn every_single_bit_is_seen() {
        let data = filled(0, 512);
        for bit in 0..512 * 8 {
            let mut damaged = data.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mismatch = PATTERN.check(0, &damaged).unwrap_err();
            assert_eq!(mismatch.offset, bit as u64 / 8);
        }
    }

    #[test]
    fn differences_are_explained() {
        let mut damaged = filled(1024, 1024);
        damaged[1000] ^= 0xff;
        let text = PATTERN.check(1024, &damaged).unwrap_err().to_string();
        assert!(text.starts_with("first difference at byte offset 2024: expected "), "{text}");
        assert!(text.ends_with("(8 bytes from offset 2024); the block at 1536 is damaged"), "{text}");

        let text = PATTERN.check(1024, &filled(8192, 512)).unwrap_err().to_string();
        assert!(text.ends_with("the block at 1024 holds the data written to offset 8192"), "{text}");

        let text = PATTERN.check(1024, &[0; 512]).unwrap_err().to_string();
        assert!(
            text.contains("expected 0004000000000000 but got 0000000000000000 (8 bytes from offset 1024)"),
            "{text}"
        );
        assert!(text.ends_with("the whole block at 1024 is zeroes: it was never written"), "{text}");

        let mut older = vec![0; 512];
        Pattern { seed: 6, block: 512 }.fill(1024, &mut older);
        let text = PATTERN.check(1024, &older).unwrap_err().to_string();
        assert!(text.ends_with("holds older data, written with seed 6"), "{text}");
    }

    #[test]
    fn shuffle_visits_everything_once() {
        for len in [1, 2, 3, 4, 5, 17, 100, 1000, 4096] {
            let shuffle = Shuffle::new(len, 3);
            let mut seen: Vec<u64> = (0..len).map(|index| shuffle.at(index)).collect();
            if len >= 100 {
                assert!(
                    seen.windows(2).filter(|pair| pair[1] == pair[0] + 1).count() < 10,
                    "{len}: {seen:?}"
                );
            }
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..len), "{len}");
        }
    }

    #[test]
    fn shuffle_of_a_huge_range_stays_inside() {
        let shuffle = Shuffle::new(u64::MAX, 1);
        assert!((0..100).map(|index| shuffle.at(index)).all(|value| value < u64::MAX));
    }
}

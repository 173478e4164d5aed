//! What parsers of a peer's bytes and of files must withstand: one function for each, fed with any bytes. `cargo xtask fuzz` drives them with
//! libFuzzer, `cargo test` with the corpus and with seeded noise.
//!
//! A harness panics when something is wrong: a panic of the code under test, or a broken promise of its interface.

mod config;
mod init;
mod log;
mod pcie;
mod rdma;
mod share;
mod tcp;
mod text;

use nvmf_core::DmaPool;

use crate::rng::Rng;

/// A harness: its name, which is that of its corpus folder, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("tcp_stream", tcp::stream),
    ("tcp_session", tcp::session),
    ("rdma_responses", rdma::responses),
    ("cqe", pcie::completions),
    ("vfio_user", pcie::messages),
    ("identify", log::identify),
    ("log_pages", log::pages),
    ("discovery_log", log::discovery),
    ("registration", log::registration),
    ("init", init::machine),
    ("transport_id", text::transport_id),
    ("names", text::names),
    ("keys", text::keys),
    ("config", config::files),
    ("share_messages", share::messages),
];

/// Memory that is mapped once, not for each input.
fn pool() -> DmaPool {
    thread_local! { static POOL: DmaPool = DmaPool::new(); }
    POOL.with(DmaPool::clone)
}

/// Decisions drawn from the input; zeroes when it is used up.
#[derive(Clone, Debug)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// Draws from `input`.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// Eight bytes, little endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number below `bound`, at most 65,536.
    pub fn below(&mut self, bound: usize) -> usize {
        (usize::from(self.byte()) | usize::from(self.byte()) << 8) % bound.max(1)
    }

    /// Up to `most` bytes.
    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Exactly `len` bytes, zeroes behind what is left.
    pub fn fill(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = self.take(len).to_vec();
        bytes.resize(len, 0);
        bytes
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Noise that resembles `seeds`: one of them, or nothing, with bytes changed, repeated, cut out and put in.
#[must_use]
pub fn mutate(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng, len: usize| if len == 0 { 0 } else { (rng.next_u64() % len as u64) as usize };
    let mut bytes = match seeds.len() {
        0 => Vec::new(),
        n => seeds[pick(rng, n)].clone(),
    };
    for _ in 0..1 + rng.below(8) {
        let at = pick(rng, bytes.len());
        match rng.below(6) {
            0 | 1 if !bytes.is_empty() => {
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, rng.next_u64() as u8][pick(rng, 6)]
            }
            2 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
            3 => bytes.truncate(at),
            4 => {
                let run = 1 + pick(rng, 64);
                bytes.splice(at..at, (0..run).map(|_| rng.next_u64() as u8));
            }
            _ => {
                let end = at + pick(rng, (bytes.len() - at).min(64) + 1);
                let copy = bytes[at..end].to_vec();
                bytes.extend(copy);
            }
        }
        bytes.truncate(1 << 16);
    }
    bytes
}

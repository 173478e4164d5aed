//! Limits and options of a loopback.

use std::time::Duration;

use nvmf_core::spec::discovery::EntryFlags;
use nvmf_core::spec::registers::Version;
use nvmf_core::spec::tcp::{MAX_PDA, MIN_MAXH2CDATA};
use nvmf_core::{Nqn, TransportId};

use crate::error::LoopbackError;

/// Largest namespace identifier (NN).
pub(crate) const MAX_NSID: u32 = 1024;
/// Entries of an admin queue at most; ASQS has 12 bits.
pub(crate) const MAX_ADMIN_ENTRIES: u32 = 4096;
/// Asynchronous Event Requests outstanding at most (AERL + 1).
pub(crate) const MAX_AERS: usize = 4;
/// Abort commands outstanding at most (ACL + 1). They are executed at once, so the limit is never met.
pub(crate) const MAX_ABORTS: u8 = 4;
/// Entries of the Error Information log (ELPE + 1).
pub(crate) const ERROR_LOG_ENTRIES: usize = 64;
/// The unit of MDTS: CAP.MPSMIN is 0.
pub(crate) const PAGE: u64 = 4096;
/// Longest transfer when MDTS states no limit: 65,536 blocks of 4,096 bytes.
const UNLIMITED_TRANSFER: u64 = 256 << 20;
/// Room for in-capsule data at most; a capsule has to fit into a connection's receive buffer.
const MAX_IN_CAPSULE: u32 = 64 * 1024;

/// A referral to another discovery subsystem, with the flags of its entry.
pub(crate) type Referral = (TransportId, EntryFlags);

/// What a [`crate::Builder`] collects.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) version: Version,
    pub(crate) max_queue_entries: u32,
    pub(crate) max_io_queues: u16,
    pub(crate) max_controllers: usize,
    pub(crate) mdts: u8,
    pub(crate) kas: u16,
    pub(crate) in_capsule: u32,
    pub(crate) report_discovery_subsystem: bool,
    pub(crate) discovery_nqn: Nqn,
    pub(crate) central_discovery: bool,
    pub(crate) referrals: Vec<Referral>,
    pub(crate) tcp: TcpOptions,
    pub(crate) rdma: RdmaFrontOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: Version::V2_1,
            max_queue_entries: 1024,
            max_io_queues: 64,
            max_controllers: 1024,
            mdts: 8,
            kas: 1,
            in_capsule: 8192,
            report_discovery_subsystem: false,
            discovery_nqn: Nqn::discovery(),
            central_discovery: false,
            referrals: Vec::new(),
            tcp: TcpOptions::default(),
            rdma: RdmaFrontOptions::default(),
        }
    }
}

impl Config {
    /// MDTS in bytes.
    pub(crate) fn max_transfer(&self) -> u64 {
        match self.mdts {
            0 => UNLIMITED_TRANSFER,
            mdts => PAGE << mdts,
        }
    }

    pub(crate) fn check(&self) -> Result<(), LoopbackError> {
        let check = |ok: bool, what, value: u64, range| {
            if ok { Ok(()) } else { Err(LoopbackError::OutOfRange { what, value, range }) }
        };
        let entries = self.max_queue_entries;
        check((2..=65_536).contains(&entries), "number of queue entries", entries.into(), "2..=65536")?;
        check(self.max_io_queues > 0, "number of I/O queues", 0, "1..=65535")?;
        check(self.max_controllers > 0, "number of controllers", 0, "at least 1")?;
        check(self.mdts <= 16, "MDTS", self.mdts.into(), "0 (no limit) or 1..=16")?;
        check(self.kas > 0, "keep alive granularity", 0, "1..=65535 units of 100 ms")?;
        check(
            self.in_capsule <= MAX_IN_CAPSULE && self.in_capsule.is_multiple_of(16),
            "in-capsule data size",
            self.in_capsule.into(),
            "a multiple of 16 in 0..=65536",
        )?;
        let rdma = &self.rdma;
        check(rdma.max_receives >= 8, "receives of an RDMA queue", rdma.max_receives.into(), "at least 8")?;
        check(rdma.descriptors > 0, "MSDBD", 0, "1..=255")?;
        let tcp = &self.tcp;
        check(
            tcp.max_h2c_data >= MIN_MAXH2CDATA && tcp.max_h2c_data.is_multiple_of(4),
            "MAXH2CDATA",
            tcp.max_h2c_data.into(),
            "a multiple of 4, at least 4096",
        )?;
        check(tcp.cpda <= MAX_PDA, "CPDA", tcp.cpda.into(), "0..=31")?;
        check(
            tcp.max_r2t_length >= 512 && tcp.max_r2t_length.is_multiple_of(4),
            "largest R2T",
            tcp.max_r2t_length.into(),
            "a multiple of 4, at least 512",
        )?;
        check(
            tcp.max_c2h_data >= 512 && tcp.max_c2h_data.is_multiple_of(4),
            "largest C2HData payload",
            tcp.max_c2h_data.into(),
            "a multiple of 4, at least 512",
        )
    }
}

/// How the NVMe/TCP front behaves where the specification leaves it a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    pub(crate) max_h2c_data: u32,
    pub(crate) cpda: u8,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) c2h_success: bool,
    pub(crate) max_r2t_length: u32,
    pub(crate) max_c2h_data: u32,
    pub(crate) max_connections: usize,
    pub(crate) threads: usize,
    pub(crate) busy_poll: Duration,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            max_h2c_data: 128 * 1024,
            cpda: 0,
            header_digest: true,
            data_digest: true,
            c2h_success: true,
            max_r2t_length: !3,
            max_c2h_data: !3,
            max_connections: 4096,
            threads: 0,
            busy_poll: Duration::ZERO,
        }
    }
}

impl TcpOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// MAXH2CDATA: largest payload of an H2CData PDU, bytes; a multiple of four, at least 4,096. 128 KiB.
    #[must_use]
    pub fn max_h2c_data(mut self, bytes: u32) -> Self {
        self.max_h2c_data = bytes;
        self
    }

    /// CPDA: alignment of the payload the host sends, 0's based dwords, 0..=31. 0.
    #[must_use]
    pub fn cpda(mut self, dwords_z: u8) -> Self {
        self.cpda = dwords_z;
        self
    }

    /// Whether a host may have header digests, and data digests. Both.
    #[must_use]
    pub fn digests(mut self, header: bool, data: bool) -> Self {
        (self.header_digest, self.data_digest) = (header, data);
        self
    }

    /// Whether the last C2HData of a successful read says so and no response capsule follows, for hosts that go without SQ flow control. On.
    #[must_use]
    pub fn c2h_success(mut self, on: bool) -> Self {
        self.c2h_success = on;
        self
    }

    /// Most data one R2T asks for, bytes; a multiple of four, at least 512. All that is missing.
    #[must_use]
    pub fn max_r2t_length(mut self, bytes: u32) -> Self {
        self.max_r2t_length = bytes;
        self
    }

    /// Largest payload of a C2HData PDU, bytes; a multiple of four, at least 512. No limit.
    #[must_use]
    pub fn max_c2h_data(mut self, bytes: u32) -> Self {
        self.max_c2h_data = bytes;
        self
    }

    /// Connections served at a time. 4096.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Threads that serve connections, each many of them; 0 is one for every CPU this process may use. 0.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// How long a thread goes on looking for more after the last traffic, instead of sleeping until something comes. Each takes a
    /// whole CPU for that time, and answers some 10 to 50 µs earlier. Zero: it sleeps at once.
    #[must_use]
    pub fn busy_poll(mut self, time: Duration) -> Self {
        self.busy_poll = time;
        self
    }
}

/// How the NVMe/RDMA front behaves where the specification leaves it a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaFrontOptions {
    pub(crate) max_receives: u16,
    pub(crate) descriptors: u8,
    pub(crate) max_connections: usize,
}

impl Default for RdmaFrontOptions {
    fn default() -> Self {
        Self { max_receives: u16::MAX, descriptors: 16, max_connections: 1024 }
    }
}

impl RdmaFrontOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// CRQSIZE: most commands a queue takes at once, at least 8. As many as the queue has entries.
    #[must_use]
    pub fn max_receives(mut self, receives: u16) -> Self {
        self.max_receives = receives;
        self
    }

    /// MSDBD: most pieces of memory the data of one command may be made of, 1..=255. 16.
    #[must_use]
    pub fn descriptors(mut self, descriptors: u8) -> Self {
        self.descriptors = descriptors;
        self
    }

    /// Connections served at a time, each by a thread. 1024.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }
}

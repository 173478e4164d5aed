//! What the engine knows of an operation.
//!
//! A queue pair at depth has many of them, and each I/O goes through one when it is submitted and when it completes. What a plain
//! read or write needs is in two cache lines.

use std::mem::offset_of;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::proto::split::Span;
use crate::qpair::CommandError;
use crate::spec::Sqe;
use crate::spec::command::NvmOpcode;

/// One operation of the caller.
#[repr(C, align(64))]
pub(super) struct Op {
    pub(super) generation: u32,
    /// Commands in flight.
    pub(super) in_flight: u32,
    pub(super) user_data: u64,
    /// Blocks (or the one command) already issued.
    pub(super) issued: u64,
    /// Result so far: the first failure by offset, else the last completion's.
    pub(super) result: Result<u64, CommandError>,
    pub(super) failed_at: usize,
    pub(super) timeout: Timeout,
    /// How often its deadline passed.
    pub(super) late: u32,
    /// How often it was sent again after a lost connection.
    pub(super) retries: u8,
    pub(super) active: bool,
    /// Nothing more will be issued: everything is, or a piece failed.
    pub(super) all_issued: bool,
    /// When a deadline scan first saw it.
    pub(super) seen: Option<Instant>,
    /// Its beginning is all of it for a plain read or write.
    pub(super) command: Kept,
}

const _: () = assert!(size_of::<Op>() == 3 * 64);
// A plain read or write, and the tag before it, end with the second cache line.
const _: () = assert!(offset_of!(Op, command) + align_of::<Kept>() + size_of::<Plain>() <= 2 * 64);

impl Op {
    pub(super) fn new() -> Self {
        Self {
            generation: 0,
            in_flight: 0,
            user_data: 0,
            issued: 0,
            result: Ok(0),
            failed_at: 0,
            timeout: Timeout::default(),
            late: 0,
            retries: 0,
            active: false,
            all_issued: true,
            seen: None,
            command: Kept::Given(Given { sqe: Sqe::default(), span: None }),
        }
    }
}

/// How long an operation may take, if there is a limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Timeout(Option<NonZeroU64>);

impl Timeout {
    pub(super) fn get(self) -> Option<Duration> {
        self.0.map(|nanos| Duration::from_nanos(nanos.get()))
    }
}

impl From<Option<Duration>> for Timeout {
    /// Of more than five hundred years as of five hundred, and of none at all as of a nanosecond.
    fn from(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| {
            let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            NonZeroU64::new(nanos).unwrap_or(NonZeroU64::MIN)
        }))
    }
}

/// What an operation consists of.
pub(super) trait Command: Copy {
    /// The command, but for what [`Sqe::issued`] fills in.
    fn sqe(self) -> Sqe;
    /// The blocks it covers; `None` for a command sent as it is.
    fn span(self) -> Option<Span>;
    fn kept(self) -> Kept;
}

/// A read or a write as most are.
///
/// The parts of it stay in registers until they are where they belong. A struct that is made in pieces and copied as a whole is
/// read before the processor has written it, which waits for all that was written before: for another command, say, into memory
/// that is on another core.
#[derive(Clone, Copy)]
pub(crate) struct Plain {
    opcode: NvmOpcode,
    nsid: u32,
    slba: u64,
    blocks: u64,
    block_bytes: u32,
    max_blocks: u32,
    boundary: u32,
}

impl Plain {
    /// Of a span without metadata and tags.
    #[inline(always)]
    pub(crate) fn new(opcode: NvmOpcode, nsid: u32, span: Span) -> Self {
        let Span { slba, blocks, block_bytes, max_blocks, boundary, .. } = span;
        Self { opcode, nsid, slba, blocks, block_bytes, max_blocks, boundary }
    }
}

impl Command for Plain {
    #[inline(always)]
    fn sqe(self) -> Sqe {
        Sqe::nvm(self.opcode, self.nsid)
    }

    #[inline(always)]
    fn span(self) -> Option<Span> {
        let Self { slba, blocks, block_bytes, max_blocks, boundary, .. } = self;
        Some(Span { slba, blocks, block_bytes, max_blocks, boundary, metadata_bytes: 0, ref_tag_bits: 0 })
    }

    #[inline(always)]
    fn kept(self) -> Kept {
        Kept::Plain(self)
    }
}

/// Any other.
#[derive(Clone, Copy)]
pub(super) struct Given {
    pub(super) sqe: Sqe,
    pub(super) span: Option<Span>,
}

impl Command for Given {
    #[inline(always)]
    fn sqe(self) -> Sqe {
        self.sqe
    }

    #[inline(always)]
    fn span(self) -> Option<Span> {
        self.span
    }

    #[inline(always)]
    fn kept(self) -> Kept {
        Kept::Given(self)
    }
}

/// Either.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) enum Kept {
    Plain(Plain),
    Given(Given),
}

impl Kept {
    pub(super) fn sqe(&self) -> Sqe {
        match self {
            Self::Plain(plain) => plain.sqe(),
            Self::Given(given) => given.sqe,
        }
    }

    #[inline]
    pub(super) fn span(&self) -> Option<Span> {
        match self {
            Self::Plain(plain) => plain.span(),
            Self::Given(given) => given.span,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let kept = |timeout: Option<Duration>| Timeout::from(timeout).get();
        assert_eq!(kept(None), None);
        assert_eq!(kept(Some(Duration::from_millis(1500))), Some(Duration::from_millis(1500)));
        assert_eq!(kept(Some(Duration::ZERO)), Some(Duration::from_nanos(1)), "a limit all the same");
        assert_eq!(kept(Some(Duration::MAX)), Some(Duration::from_nanos(u64::MAX)));
        assert_eq!(Timeout::default().get(), None);
    }

    #[test]
    fn what_is_kept_is_what_was_given() {
        let span = Span {
            slba: 0x1_0000_0001,
            blocks: 9,
            block_bytes: 512,
            max_blocks: 256,
            boundary: 64,
            metadata_bytes: 0,
            ref_tag_bits: 0,
        };
        let plain = Plain::new(NvmOpcode::WRITE, 7, span);
        assert_eq!(plain.kept().sqe(), Sqe::nvm(NvmOpcode::WRITE, 7));
        assert_eq!(plain.kept().span(), Some(span));
        let sqe = Sqe::nvm(NvmOpcode::READ, 3).with_cdw10(5);
        for span in [None, Some(Span { metadata_bytes: 8, ref_tag_bits: 32, ..span })] {
            let given = Given { sqe, span };
            assert_eq!((given.kept().sqe(), given.kept().span()), (sqe, span));
        }
    }
}

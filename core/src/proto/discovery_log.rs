//! Reading the discovery log page (LID 70h) so that what comes out is one state of the log, not a mixture of two.
//!
//! The log is longer than one Get Log Page command may be, and may change between two commands. The generation
//! counter (GENCTR) in its header tells: the reader takes the header, then the entries, then the header again, and
//! if the counter has moved starts over with the new header (NVMe Base 2.1, Discovery Log Page).
//!
//! [`DiscoveryLogReader`] does no I/O. It names the next read, and is given what the controller answered:
//!
//! ```text
//! while let Step::Read { offset, len } = reader.next() {
//!     match get_log_page(offset, len) {
//!         Ok(data) => reader.complete(&data)?,
//!         Err(status) => reader.failed(status)?,
//!     }
//! }
//! let log = reader.finish()?;
//! ```
//!
//! Every header and every length comes from a peer: memory grows only with data that has arrived, and the number of
//! records, of restarts, and thereby of commands is bounded.

use std::fmt;

use zerocopy::{FromBytes, IntoBytes};

use crate::spec::Status;
use crate::spec::discovery::extended::{EXTENDED_HEAD, ExtendedAttributes, entry_length};
use crate::spec::discovery::{DiscoveryLogEntry, DiscoveryLogHeader};
use crate::spec::status::CommandKind;

#[cfg(test)]
mod tests;

/// Size of the header and of an entry, in bytes.
const RECORD: usize = 1024;
/// Log page offsets and lengths count dwords (NUMD is a number of dwords, LPO must be a multiple of 4).
const DWORD: u32 = 4;
/// The shortest read. Counters read one by one might be those of two generations.
const SHORTEST: u32 = 64;

const _: () = assert!(size_of::<DiscoveryLogEntry>() == RECORD);

/// Bounds on what the reader asks for and accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscoveryLogLimits {
    /// The longest read in bytes, as MDTS and the transport allow. Rounded down to whole records, or if less than
    /// one record, to whole dwords; values under 64 count as 64, so that the header's counters come in one read.
    pub max_transfer: u32,
    /// How often the reader may start over because the log has changed.
    pub max_retries: u32,
    /// The most records a log may claim to have.
    pub max_records: u64,
}

impl DiscoveryLogLimits {
    /// [`Self::max_retries`] unless set: as often as nvme-cli.
    pub const DEFAULT_MAX_RETRIES: u32 = 10;
    /// [`Self::max_records`] unless set: 16 MiB of log.
    pub const DEFAULT_MAX_RECORDS: u64 = 16384;

    /// The default bounds with this longest read, in bytes.
    #[must_use]
    pub const fn new(max_transfer: u32) -> Self {
        Self { max_transfer, max_retries: Self::DEFAULT_MAX_RETRIES, max_records: Self::DEFAULT_MAX_RECORDS }
    }

    /// The longest read that is used, in bytes.
    const fn chunk(&self) -> u32 {
        let granularity = if self.max_transfer >= RECORD as u32 { RECORD as u32 } else { DWORD };
        let rounded = self.max_transfer - self.max_transfer % granularity;
        if rounded < SHORTEST { SHORTEST } else { rounded }
    }
}

impl Default for DiscoveryLogLimits {
    /// Reads of 4 KiB, which every controller allows.
    fn default() -> Self {
        Self::new(4096)
    }
}

/// What the reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Get Log Page 70h from `offset` (LPO), `len` bytes; both multiples of 4, `len` not 0.
    Read {
        /// Offset into the log page, in bytes.
        offset: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Nothing more: the log is complete, or reading has failed. [`DiscoveryLogReader::finish`] tells which.
    Done,
}

/// The part of the log being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The header, before the entries.
    Header,
    /// The entries.
    Entries,
    /// The header once more, after the entries.
    HeaderAgain,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "the header",
            Self::Entries => "the entries",
            Self::HeaderAgain => "the header again, to see whether the log has changed,",
        })
    }
}

/// Why the discovery log could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryLogError {
    /// The log kept changing.
    #[error("the discovery log changed while it was read, after {retries} retries too: try again later")]
    GenerationChanged {
        /// How often reading was started over.
        retries: u32,
    },
    /// The number of records changed but the generation counter did not.
    #[error(
        "the discovery controller changed the number of records from {before} to {after} without changing the \
         generation counter ({genctr})"
    )]
    RecordCountChanged {
        /// The generation counter of both headers.
        genctr: u64,
        /// The number of records of the first header.
        before: u64,
        /// The number of records of the second header.
        after: u64,
    },
    /// The log claims more records than allowed.
    #[error("the discovery controller claims {numrec} records, at most {max} are accepted")]
    TooManyRecords {
        /// The number claimed.
        numrec: u64,
        /// [`DiscoveryLogLimits::max_records`].
        max: u64,
    },
    /// The log is longer than allowed, though it has no more records than allowed.
    #[error("the entries of the discovery log are longer than {max} bytes, more is not accepted")]
    TooLong {
        /// The most bytes of entries.
        max: u64,
    },
    /// An extended entry states an impossible length.
    #[error(
        "entry {index} of the discovery log claims to be {length} bytes long; an extended entry has at least \
         {EXTENDED_HEAD} and a multiple of 4"
    )]
    EntryLength {
        /// Which entry, from 0.
        index: usize,
        /// Total Entry Length (TEL).
        length: u32,
    },
    /// The records have a format this reader does not know; 0 is the only one defined.
    #[error("the discovery log has record format {recfmt}, only format 0 is known")]
    UnknownFormat {
        /// Record Format (RECFMT) of the header.
        recfmt: u16,
    },
    /// A read has returned more or less data than it asked for.
    #[error("reading {part} of the discovery log returned {actual} bytes, {expected} were asked for")]
    WrongLength {
        /// What was being read.
        part: Part,
        /// How many bytes were asked for.
        expected: u32,
        /// How many came.
        actual: usize,
    },
    /// Get Log Page failed.
    #[error("reading {part} of the discovery log at offset {offset} failed: {}", status.describe(CommandKind::Admin))]
    Command {
        /// What was being read.
        part: Part,
        /// Offset of the read into the log, in bytes.
        offset: u64,
        /// What the controller answered.
        status: Status,
    },
    /// The reader was given an answer when it had asked for nothing, or was finished early.
    #[error("the discovery log reader was {0}")]
    Misuse(&'static str),
}

/// A consistent copy of the discovery log.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiscoveryLog {
    /// The generation counter, which the controller increases with every change of the log.
    pub genctr: u64,
    /// The entries, in the order of the log.
    pub records: Vec<DiscoveryLogEntry>,
    /// How often reading was started over because the log had changed.
    pub retries: u32,
    header: Box<[u8; RECORD]>,
    /// What follows the first 1024 bytes of each entry, if the entries are extended ones.
    tails: Option<Vec<Box<[u8]>>>,
}

impl DiscoveryLog {
    /// Whether the entries are extended ones.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.tails.is_some()
    }

    /// The extended attributes of an entry; none if the entries are not extended ones.
    #[must_use]
    pub fn attributes(&self, index: usize) -> ExtendedAttributes<'_> {
        let tail = self.tails.as_ref().and_then(|tails| tails.get(index));
        ExtendedAttributes::new(tail.map_or(&[], |tail| tail))
    }

    /// The header as it was on the wire, reserved bytes included.
    #[must_use]
    pub fn header(&self) -> &[u8; RECORD] {
        &self.header
    }

    /// The whole log page as it was on the wire: 1024 bytes of header, 1024 per record; more for extended ones.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        match &self.tails {
            None => bytes.extend_from_slice(self.records.as_bytes()),
            Some(tails) => {
                for (record, tail) in self.records.iter().zip(tails) {
                    bytes.extend_from_slice(record.as_bytes());
                    bytes.extend_from_slice(tail);
                }
            }
        }
        bytes
    }
}

/// The fields of a header that was accepted.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    genctr: u64,
    numrec: u64,
}

#[derive(Debug)]
enum State {
    /// Reading `Part::Header`.
    Header,
    /// Reading the entries that this header announces.
    Entries(Accepted),
    /// Reading the header again.
    HeaderAgain(Accepted),
    Done(Accepted),
    Failed,
}

/// Reads the discovery log in as many commands as it takes; see the [module documentation](self).
#[derive(Debug)]
pub struct DiscoveryLogReader {
    limits: DiscoveryLogLimits,
    state: State,
    retries: u32,
    /// The header that is valid or being read.
    header: Box<[u8; RECORD]>,
    /// How much of the header has arrived, in bytes.
    header_filled: usize,
    records: Vec<DiscoveryLogEntry>,
    /// The beginning of an entry that comes in several reads; less than one entry long.
    partial: Vec<u8>,
    /// For extended entries: what follows their first 1024 bytes.
    tails: Option<Vec<Box<[u8]>>>,
    /// Bytes of the extended entries that are complete.
    entries_len: u64,
    /// What is wrong with an entry, unless it is that the log has changed: the header will tell.
    doubt: Option<DiscoveryLogError>,
}

impl DiscoveryLogReader {
    /// A reader at the start of the log.
    #[must_use]
    pub fn new(limits: DiscoveryLogLimits) -> Self {
        Self {
            limits,
            state: State::Header,
            retries: 0,
            header: Box::new([0; RECORD]),
            header_filled: 0,
            records: Vec::new(),
            partial: Vec::new(),
            tails: None,
            entries_len: 0,
            doubt: None,
        }
    }

    /// A reader of extended entries (EXTDLPE), which every command has to ask for. It reads no further than the entries are
    /// known to reach: each is as long as it says.
    #[must_use]
    pub fn extended(limits: DiscoveryLogLimits) -> Self {
        Self { tails: Some(Vec::new()), ..Self::new(limits) }
    }

    /// What to do next. Asking twice without an answer in between gives the same read.
    pub fn next(&self) -> Step {
        match self.pending() {
            Some((_, offset, len)) => Step::Read { offset, len },
            None => Step::Done,
        }
    }

    /// The read that is due: part, offset and length in bytes.
    fn pending(&self) -> Option<(Part, u64, u32)> {
        let (part, offset, end) = match self.state {
            State::Header => (Part::Header, self.header_filled as u64, RECORD as u64),
            State::HeaderAgain(_) => (Part::HeaderAgain, self.header_filled as u64, RECORD as u64),
            State::Entries(Accepted { numrec, .. }) if self.tails.is_some() => {
                let offset = RECORD as u64 + self.entries_len + self.partial.len() as u64;
                // `advance` has seen to it that a length that has arrived is a possible one.
                let current = entry_length(&self.partial).map_or(EXTENDED_HEAD as u64, u64::from);
                let behind = (numrec - self.records.len() as u64).saturating_sub(1) * EXTENDED_HEAD as u64;
                (Part::Entries, offset, offset + current - self.partial.len() as u64 + behind)
            }
            State::Entries(Accepted { numrec, .. }) => {
                let read = (self.records.len() * RECORD + self.partial.len()) as u64;
                // `numrec` has been checked by `accept`: the end of the log fits into 64 bits.
                (Part::Entries, RECORD as u64 + read, RECORD as u64 * (1 + numrec))
            }
            State::Done(_) | State::Failed => return None,
        };
        let chunk = self.limits.chunk();
        let len = u32::try_from(end - offset).map_or(chunk, |left| left.min(chunk));
        Some((part, offset, len))
    }

    /// Takes the data of the read that [`Self::next`] has named.
    ///
    /// # Errors
    ///
    /// Any [`DiscoveryLogError`] but [`DiscoveryLogError::Command`]. After an error the reader is of no further use.
    pub fn complete(&mut self, data: &[u8]) -> Result<(), DiscoveryLogError> {
        let result = self.advance(data);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    fn advance(&mut self, data: &[u8]) -> Result<(), DiscoveryLogError> {
        let Some((part, _, expected)) = self.pending() else {
            return Err(DiscoveryLogError::Misuse("given data it had not asked for"));
        };
        if data.len() != expected as usize {
            return Err(DiscoveryLogError::WrongLength { part, expected, actual: data.len() });
        }
        match self.state {
            State::Header | State::HeaderAgain(_) => self.header_data(data),
            State::Entries(accepted) => {
                match self.tails.is_some() {
                    true => self.doubt = self.extended_data(data).err(),
                    false => self.entry_data(data),
                }
                if self.doubt.is_some() || self.records.len() as u64 == accepted.numrec {
                    self.state = State::HeaderAgain(accepted);
                    self.header_filled = 0;
                }
                Ok(())
            }
            State::Done(_) | State::Failed => Ok(()),
        }
    }

    fn header_data(&mut self, data: &[u8]) -> Result<(), DiscoveryLogError> {
        for (to, from) in self.header.iter_mut().skip(self.header_filled).zip(data) {
            *to = *from;
        }
        self.header_filled += data.len();
        if self.header_filled < RECORD {
            return Ok(());
        }
        let new = self.accept()?;
        match self.state {
            State::HeaderAgain(old) if old.genctr == new.genctr => {
                if let Some(error) = self.doubt.take() {
                    return Err(error);
                }
                if old.numrec != new.numrec {
                    let (before, after) = (old.numrec, new.numrec);
                    return Err(DiscoveryLogError::RecordCountChanged { genctr: new.genctr, before, after });
                }
                self.state = State::Done(new);
                return Ok(());
            }
            // The log has changed. This header is the first read of the next try.
            State::HeaderAgain(_) => self.count_retry()?,
            _ => {}
        }
        self.forget_entries();
        // With no entries there is nothing that could be a mixture.
        self.state = if new.numrec == 0 { State::Done(new) } else { State::Entries(new) };
        Ok(())
    }

    /// Judges the header that has arrived.
    fn accept(&self) -> Result<Accepted, DiscoveryLogError> {
        let Ok((header, _)) = DiscoveryLogHeader::read_from_prefix(&self.header[..]) else {
            return Err(DiscoveryLogError::Misuse("given a header that is too short"));
        };
        let recfmt = header.recfmt.get();
        if recfmt != 0 {
            return Err(DiscoveryLogError::UnknownFormat { recfmt });
        }
        let (genctr, numrec) = (header.genctr.get(), header.numrec.get());
        // Offsets into the log must fit into 64 bits whatever the limit says.
        let max = self.limits.max_records.min(u64::MAX / (4 * RECORD as u64) - 1);
        if numrec > max {
            return Err(DiscoveryLogError::TooManyRecords { numrec, max });
        }
        Ok(Accepted { genctr, numrec })
    }

    fn entry_data(&mut self, mut data: &[u8]) {
        if !self.partial.is_empty() {
            let missing = (RECORD - self.partial.len()).min(data.len());
            let (head, tail) = data.split_at(missing);
            self.partial.extend_from_slice(head);
            data = tail;
            if let Ok(entry) = DiscoveryLogEntry::read_from_bytes(&self.partial) {
                self.records.push(entry);
                self.partial.clear();
            }
        }
        while let Ok((entry, rest)) = DiscoveryLogEntry::read_from_prefix(data) {
            self.records.push(entry);
            data = rest;
        }
        self.partial.extend_from_slice(data);
    }

    fn extended_data(&mut self, data: &[u8]) -> Result<(), DiscoveryLogError> {
        self.partial.extend_from_slice(data);
        let mut rest = self.partial.as_slice();
        while let Some(length) = entry_length(rest) {
            let index = self.records.len();
            if (length as usize) < EXTENDED_HEAD || !length.is_multiple_of(4) {
                return Err(DiscoveryLogError::EntryLength { index, length });
            }
            // As much again for attributes as for the entries themselves is plenty.
            let max = self.limits.max_records.saturating_mul(2 * RECORD as u64);
            if self.entries_len + u64::from(length) > max {
                return Err(DiscoveryLogError::TooLong { max });
            }
            let Some((entry, behind)) = rest.split_at_checked(length as usize) else { break };
            let Ok((record, tail)) = DiscoveryLogEntry::read_from_prefix(entry) else { break };
            self.records.push(record);
            if let Some(tails) = &mut self.tails {
                tails.push(tail.into());
            }
            self.entries_len += u64::from(length);
            rest = behind;
        }
        let left = rest.len();
        self.partial.drain(..self.partial.len() - left);
        Ok(())
    }

    /// Takes the failure of the read that [`Self::next`] has named. Discover Restart (command specific 90h, NVMe Base
    /// 2.1 §4.2.3.2: the log has changed since its first part was read) starts over; all else is an error.
    ///
    /// # Errors
    ///
    /// [`DiscoveryLogError::Command`], or [`DiscoveryLogError::GenerationChanged`] after too many restarts.
    pub fn failed(&mut self, status: Status) -> Result<(), DiscoveryLogError> {
        if status.is(Status::DISCOVERY_RESTART) {
            return self.restart_required();
        }
        let Some((part, offset, _)) = self.pending() else {
            return Err(DiscoveryLogError::Misuse("told of a failure of a read it had not asked for"));
        };
        self.state = State::Failed;
        Err(DiscoveryLogError::Command { part, offset, status })
    }

    /// Starts over from the header, which counts as a retry: the controller has said that the log has changed.
    ///
    /// # Errors
    ///
    /// [`DiscoveryLogError::GenerationChanged`] after too many restarts, [`DiscoveryLogError::Misuse`] if there is
    /// no read to be answered.
    pub fn restart_required(&mut self) -> Result<(), DiscoveryLogError> {
        if self.pending().is_none() {
            return Err(DiscoveryLogError::Misuse("told to restart when it was not reading"));
        }
        if let Err(error) = self.count_retry() {
            self.state = State::Failed;
            return Err(error);
        }
        self.forget_entries();
        self.header_filled = 0;
        self.state = State::Header;
        Ok(())
    }

    fn forget_entries(&mut self) {
        self.doubt = None;
        self.records.clear();
        self.partial.clear();
        self.entries_len = 0;
        if let Some(tails) = &mut self.tails {
            tails.clear();
        }
    }

    fn count_retry(&mut self) -> Result<(), DiscoveryLogError> {
        if self.retries >= self.limits.max_retries {
            return Err(DiscoveryLogError::GenerationChanged { retries: self.retries });
        }
        self.retries += 1;
        Ok(())
    }

    /// The log, once [`Self::next`] says [`Step::Done`].
    ///
    /// # Errors
    ///
    /// [`DiscoveryLogError::Misuse`] if the log is not complete, or reading has failed before.
    pub fn finish(self) -> Result<DiscoveryLog, DiscoveryLogError> {
        let State::Done(Accepted { genctr, .. }) = self.state else {
            return Err(DiscoveryLogError::Misuse("finished before the log was complete"));
        };
        Ok(DiscoveryLog {
            genctr,
            records: self.records,
            retries: self.retries,
            header: self.header,
            tails: self.tails,
        })
    }
}

//! `nvmf read` and `nvmf write`: a range of a namespace to and from a file or pipe.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use nvmf_core::{IoQpairOptions, Namespace, Protection};

use super::metadata::{MetadataArgs, Sink, Source};
use crate::connect::{ConnectArgs, check_multiple, check_range, detach, nvm_namespace};
use crate::failure::Failure;
use crate::pipeline::{self, Direction, Io, Job, Plan};
use crate::size::{parse_length, parse_size};
use crate::{progress, units};

/// Read a range of a namespace to standard output or a file
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  TRID=nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf read $TRID --length 4KiB | hexdump -C
  nvmf read $TRID --offset 1GiB --length 64MiB --output part.img
  nvmf read $TRID --nsid 2 --output disk.img                      the whole namespace
  nvmf read $TRID --length 1MiB --output d --metadata m --prinfo 7    with its protection checked

Sizes take the suffixes K M G T or KiB MiB GiB TiB, all powers of 1024.")]
pub(crate) struct ReadArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,

    #[command(flatten)]
    range: RangeArgs,

    /// Bytes to read, a multiple of the block size. By default all from the offset to the end of the namespace
    #[arg(long, value_name = "SIZE", value_parser = parse_length)]
    length: Option<u64>,

    /// File to write to; by default standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    metadata: MetadataArgs,
}

/// Write a file or standard input to a range of a namespace
///
/// OVERWRITES the namespace from the offset on. Data are flushed to stable storage at the end.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  TRID=nvme+tcp://192.0.2.1:4420/nqn.2024-01.com.example:disk
  nvmf write $TRID --input disk.img
  zcat disk.img.gz | nvmf write $TRID --offset 1GiB
  echo hello | nvmf write $TRID --pad-zeroes
  nvmf write $TRID --input disk.img --prinfo 8          the controller protects the blocks

Sizes take the suffixes K M G T or KiB MiB GiB TiB, all powers of 1024.")]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,

    #[command(flatten)]
    range: RangeArgs,

    /// File to read from; by default standard input
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// If the input ends within a block, fill the rest of the block with zeroes
    #[arg(long)]
    pad_zeroes: bool,

    #[command(flatten)]
    metadata: MetadataArgs,
}

/// What `read` and `write` share.
#[derive(clap::Args, Debug)]
struct RangeArgs {
    /// Namespace
    #[arg(long, value_name = "NSID", default_value_t = 1)]
    nsid: u32,

    /// Byte offset to start at, a multiple of the block size
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    offset: u64,

    /// I/Os outstanding at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), default_value_t = 16)]
    #[arg(display_order = 100)]
    queue_depth: u16,

    /// No progress bar and no summary; there are none anyway unless stderr is a terminal
    #[arg(long, display_order = 101)]
    quiet: bool,
}

impl RangeArgs {
    fn plan(&self, ns: &Namespace, direction: Direction, protection: Option<Protection>) -> Plan {
        Plan {
            direction,
            io_size: pipeline::bulk_io_size(ns),
            depth: self.queue_depth.into(),
            in_order: true,
            poll: false,
            metadata: protection.map(|protection| (protection, self.offset)),
        }
    }
}

/// A name for messages.
fn name(path: Option<&Path>, standard: &str) -> String {
    path.map_or_else(|| standard.to_owned(), |path| path.display().to_string())
}

fn summary(bar: &ProgressBar, verb: &str, bytes: u64, time: Duration) {
    if !bar.is_hidden() {
        bar.finish_and_clear();
        eprintln!("{verb} {} in {}, {}", units::bytes(bytes), units::time(time), units::rate(bytes, time));
    }
}

pub(crate) fn read(args: &ReadArgs) -> Result<(), Failure> {
    let controller = args.connect.attach(1)?;
    let ns = nvm_namespace(&controller, args.range.nsid)?;
    let protection = args.metadata.check(&ns)?;
    let offset = args.range.offset;
    let length = match args.length {
        Some(length) => length,
        None => ns.size().saturating_sub(offset),
    };
    check_range(&ns, offset, length)?;
    if length == 0 {
        return Err(Failure::usage(format!(
            "--offset {offset} is the end of namespace {}: nothing to read",
            ns.nsid()
        )));
    }
    let to: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(File::create(path).map_err(|error| Failure::file("creating", path, &error))?),
        None => Box::new(io::stdout().lock()),
    };
    let metadata = args.metadata.sink(&ns, length)?;
    let bar = progress::bar("reading", Some(length), args.range.quiet);
    let path = args.output.as_deref();
    let mut job = ReadJob { to, path, metadata, offset, end: offset + length, bar: &bar };
    let started = Instant::now();
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    pipeline::run(&mut qpair, &ns, args.range.plan(&ns, Direction::Read, protection), &mut job)?;
    job.to.flush().map_err(|error| job.failure(&error))?;
    job.metadata.take().map_or(Ok(()), Sink::finish)?;
    summary(&bar, "read", length, started.elapsed());
    drop(qpair);
    detach(controller);
    Ok(())
}

struct ReadJob<'a> {
    to: Box<dyn Write>,
    path: Option<&'a Path>,
    metadata: Option<Sink<'a>>,
    offset: u64,
    end: u64,
    bar: &'a ProgressBar,
}

impl ReadJob<'_> {
    fn failure(&self, error: &io::Error) -> Failure {
        match self.path {
            Some(path) => Failure::file("writing", path, error),
            None => Failure::stdout(error),
        }
    }
}

impl Job for ReadJob<'_> {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Io>, Failure> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(None);
        }
        let io = Io { offset: self.offset, len: left.min(buf.len()) };
        self.offset += io.len as u64;
        Ok(Some(io))
    }

    fn done(&mut self, io: Io, data: &[u8]) -> Result<(), Failure> {
        self.bar.inc(io.len as u64);
        self.to.write_all(data).map_err(|error| self.failure(&error))
    }

    fn done_metadata(&mut self, _: Io, metadata: &[u8]) -> Result<(), Failure> {
        self.metadata.as_mut().map_or(Ok(()), |to| to.put(metadata))
    }
}

pub(crate) fn write(args: &WriteArgs) -> Result<(), Failure> {
    // What can be told without the controller is told first.
    let (from, known): (Box<dyn Read>, Option<u64>) = match &args.input {
        Some(path) => {
            let file = File::open(path).map_err(|error| Failure::file("opening", path, &error))?;
            let metadata = file.metadata().map_err(|error| Failure::file("opening", path, &error))?;
            if metadata.is_dir() {
                return Err(Failure::usage(format!("--input {} is a directory", path.display())));
            }
            let length = metadata.is_file().then_some(metadata.len());
            (Box::new(file), length)
        }
        None => (Box::new(io::stdin().lock()), None),
    };
    let controller = args.connect.attach(1)?;
    let ns = nvm_namespace(&controller, args.range.nsid)?;
    let protection = args.metadata.check(&ns)?;
    let offset = args.range.offset;
    check_multiple(&ns, "--offset", offset)?;
    let bar = progress::bar("writing", known, args.range.quiet);
    let mut job = WriteJob {
        from,
        path: args.input.as_deref(),
        ns: &ns,
        start: offset,
        offset,
        pad: args.pad_zeroes,
        metadata: None,
        at_end: false,
        failure: None,
        bar: &bar,
    };
    if let Some(length) = known {
        job.check_end(length, true, false)?;
    }
    let whole = known.map(|length| length.next_multiple_of(ns.block_size().into()));
    job.metadata = args.metadata.source(&ns, whole)?;
    let started = Instant::now();
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    pipeline::run(&mut qpair, &ns, args.range.plan(&ns, Direction::Write, protection), &mut job)?;
    let written = job.offset - offset;
    if written > 0 {
        qpair.flush_blocking(&ns)?;
    }
    if let Some(failure) = job.failure {
        return Err(failure);
    }
    if written == 0 {
        return Err(Failure::failed(format!(
            "{} is empty: nothing was written",
            name(job.path, "standard input")
        )));
    }
    job.metadata.map_or(Ok(()), Source::finish)?;
    summary(&bar, "wrote", written, started.elapsed());
    drop(qpair);
    detach(controller);
    Ok(())
}

struct WriteJob<'a> {
    from: Box<dyn Read>,
    path: Option<&'a Path>,
    ns: &'a Namespace,
    start: u64,
    offset: u64,
    pad: bool,
    metadata: Option<Source<'a>>,
    at_end: bool,
    /// Why writing ended early.
    failure: Option<Failure>,
    bar: &'a ProgressBar,
}

impl WriteJob<'_> {
    /// Checks that `length` bytes of input fit. Only at the end it matters whether they are whole blocks.
    fn check_end(&self, length: u64, at_end: bool, begun: bool) -> Result<(), Failure> {
        let input = name(self.path, "standard input");
        let block = u64::from(self.ns.block_size());
        let space = self.ns.size().saturating_sub(self.start);
        let whole = length.min(space) / block;
        let done = match begun {
            true if whole > 0 => "the whole blocks before were written",
            _ => "nothing was written",
        };
        if length > space {
            let size = if begun { format!("more than {space} bytes") } else { format!("{length} bytes") };
            return Err(Failure::usage(format!(
                "{input} has {size}, but namespace {} only has {space} from offset {} to its end; {done}",
                self.ns.nsid(),
                self.start
            )));
        }
        if at_end && !length.is_multiple_of(block) && !self.pad {
            return Err(Failure::usage(format!(
                "{input} has {length} bytes, {} of {block} bytes and {} bytes more; {done}; \
                 --pad-zeroes fills up the last block",
                units::plural(whole, "whole block"),
                length % block
            )));
        }
        Ok(())
    }
}

impl Job for WriteJob<'_> {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Io>, Failure> {
        let mut filled = 0;
        while !self.at_end && filled < buf.len() {
            match self.from.read(&mut buf[filled..]) {
                Ok(0) => self.at_end = true,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(match self.path {
                        Some(path) => Failure::file("reading", path, &error),
                        None => Failure::failed(format!("reading standard input: {error}")),
                    });
                }
            }
        }
        let room = usize::try_from(self.ns.size() - self.offset).unwrap_or(usize::MAX);
        let so_far = self.offset - self.start + filled as u64;
        if let Err(failure) = self.check_end(so_far, filled > room || self.at_end, true) {
            // The whole blocks before the end are written all the same; then the failure is told.
            filled = filled.min(room);
            filled -= filled % self.ns.block_size() as usize;
            self.at_end = true;
            self.failure = Some(failure);
        }
        if filled == 0 {
            return Ok(None);
        }
        let whole = filled.next_multiple_of(self.ns.block_size() as usize);
        buf[filled..whole].fill(0);
        let io = Io { offset: self.offset, len: whole };
        self.offset += whole as u64;
        Ok(Some(io))
    }

    fn done(&mut self, io: Io, _: &[u8]) -> Result<(), Failure> {
        self.bar.inc(io.len as u64);
        Ok(())
    }

    fn next_metadata(&mut self, _: Io, metadata: &mut [u8]) -> Result<(), Failure> {
        self.metadata.as_mut().map_or(Ok(()), |from| from.take(metadata))
    }
}

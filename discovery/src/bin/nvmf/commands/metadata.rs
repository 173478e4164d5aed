//! What `read` and `write` do with metadata and its protection information.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use nvmf_core::{Namespace, Protection};

use crate::failure::Failure;
use crate::size::{parse_length, parse_u4, parse_u16, parse_u64};
use crate::units;

/// The options, with nvme-cli's names.
#[derive(clap::Args, Debug)]
pub(crate) struct MetadataArgs {
    /// File for the metadata of the blocks, apart from their data, whatever the namespace's format
    #[arg(long, value_name = "FILE", help_heading = HEADING)]
    metadata: Option<PathBuf>,

    /// Bytes of metadata there must be, to be sure
    #[arg(long, value_name = "SIZE", value_parser = parse_length, requires = "metadata", help_heading = HEADING)]
    metadata_size: Option<u64>,

    /// Protection information: 8 the controller inserts and strips it (PRACT); 4 checks the guard, 2 the application tag, 1 the
    /// reference tag. Add them up
    #[arg(long, value_name = "BITS", value_parser = parse_u4, help_heading = HEADING)]
    prinfo: Option<u8>,

    /// Reference tag of the first block; by default its number, or 0 for type 3
    #[arg(long, value_name = "TAG", value_parser = parse_u64, help_heading = HEADING)]
    ref_tag: Option<u64>,

    /// Application tag to insert, or to check for
    #[arg(long, value_name = "TAG", value_parser = parse_u16, help_heading = HEADING)]
    app_tag: Option<u16>,

    /// Bits of the application tag to check; by default all
    #[arg(long, value_name = "MASK", value_parser = parse_u16, requires = "app_tag", help_heading = HEADING)]
    app_tag_mask: Option<u16>,
}

const HEADING: &str = "Metadata and protection information";

impl MetadataArgs {
    fn protection(&self) -> Protection {
        let (tag, mask) = match self.app_tag {
            Some(tag) => (tag, self.app_tag_mask.unwrap_or(u16::MAX)),
            None => (0, 0),
        };
        let protection = Protection::NONE.prinfo(self.prinfo.unwrap_or(0)).app_tag(tag, mask);
        self.ref_tag.map_or(protection, |tag| protection.ref_tag(tag))
    }

    /// What the I/Os of a namespace say about protection, or `None` for one without metadata; an error when the options do not
    /// fit it.
    pub(crate) fn check(&self, ns: &Namespace) -> Result<Option<Protection>, Failure> {
        let nsid = ns.nsid();
        let wrong =
            |option: &str, why: &str| Err(Failure::usage(format!("{option}: namespace {nsid} {why}")));
        if ns.protection().is_none() {
            let given = [
                ("--prinfo", self.prinfo.is_some()),
                ("--ref-tag", self.ref_tag.is_some()),
                ("--app-tag", self.app_tag.is_some()),
            ];
            if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
                return wrong(option, "is not formatted with protection information");
            }
        }
        if ns.metadata_size() == 0 {
            return if self.metadata.is_some() { wrong("--metadata", "has no metadata") } else { Ok(None) };
        }
        let protection = self.protection();
        if self.metadata.is_some() && per_block(ns, &protection) == 0 {
            return wrong(
                "--metadata",
                "has nothing but protection information, which --prinfo 8 and more does not transfer",
            );
        }
        Ok(Some(protection))
    }

    fn check_size(&self, wanted: u64) -> Result<(), Failure> {
        match self.metadata_size {
            Some(size) if size != wanted => {
                Err(Failure::usage(format!("--metadata-size {size}: there are {wanted} bytes of metadata")))
            }
            _ => Ok(()),
        }
    }

    /// Where the metadata of `length` bytes of data goes to.
    pub(crate) fn sink(&self, ns: &Namespace, length: u64) -> Result<Option<Sink<'_>>, Failure> {
        let Some(path) = self.metadata.as_deref() else { return Ok(None) };
        self.check_size(length / u64::from(ns.block_size()) * u64::from(ns.metadata_size()))?;
        let file = File::create(path).map_err(|error| Failure::file("creating", path, &error))?;
        Ok(Some(Sink { path, file: BufWriter::new(file) }))
    }

    /// Where metadata to be written comes from. `length` is the length of the data, whole blocks, where it is known.
    pub(crate) fn source(&self, ns: &Namespace, length: Option<u64>) -> Result<Option<Source<'_>>, Failure> {
        let per_block = per_block(ns, &self.protection());
        let Some(path) = self.metadata.as_deref() else {
            if per_block == 0 {
                return Ok(None);
            }
            let size = units::bytes(ns.metadata_size().into());
            let all = ns.protection().is_some_and(|format| format.is_all_metadata());
            let or = if all { ", or have the controller make it with --prinfo 8" } else { "" };
            return Err(Failure::usage(format!(
                "the blocks of namespace {} carry {size} of metadata each: give it with --metadata FILE{or}",
                ns.nsid()
            )));
        };
        let file = File::open(path).map_err(|error| Failure::file("opening", path, &error))?;
        let found = file.metadata().map_err(|error| Failure::file("opening", path, &error))?;
        let found = found.is_file().then_some(found.len());
        let wanted = length.map(|length| length / u64::from(ns.block_size()) * per_block);
        if let Some(wanted) = wanted {
            self.check_size(wanted)?;
        }
        match (wanted, found) {
            (Some(wanted), Some(found)) if wanted != found => Err(Failure::usage(format!(
                "--metadata {}: it has {found} bytes, the blocks to be written take {wanted}; nothing was written",
                path.display()
            ))),
            _ => Ok(Some(Source { path, file: BufReader::new(file) })),
        }
    }
}

fn per_block(ns: &Namespace, protection: &Protection) -> u64 {
    ns.data_len(1, protection) - u64::from(ns.block_size()) + ns.metadata_len(1, protection)
}

/// A file that metadata is written to.
pub(crate) struct Sink<'a> {
    path: &'a Path,
    file: BufWriter<File>,
}

impl Sink<'_> {
    pub(crate) fn put(&mut self, metadata: &[u8]) -> Result<(), Failure> {
        self.file.write_all(metadata).map_err(|error| Failure::file("writing", self.path, &error))
    }

    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        self.file.flush().map_err(|error| Failure::file("writing", self.path, &error))
    }
}

/// A file that metadata is read from.
pub(crate) struct Source<'a> {
    path: &'a Path,
    file: BufReader<File>,
}

impl Source<'_> {
    pub(crate) fn take(&mut self, metadata: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact(metadata).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::failed(format!(
                "--metadata {}: it ends before the data does; the blocks before were written",
                self.path.display()
            )),
            _ => Failure::file("reading", self.path, &error),
        })
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        match self.file.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Failure::failed(format!(
                "--metadata {}: it has more than the blocks that were written",
                self.path.display()
            ))),
            Err(error) => Err(Failure::file("reading", self.path, &error)),
        }
    }
}

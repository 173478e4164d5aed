//! Which files there are, and reading them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::diagnostic::Report;

/// The largest file that is read: a configuration of ten thousand controllers fits.
pub const MAX_FILE_SIZE: usize = 1 << 20;
/// The most drop-in files that are read.
pub const MAX_DROP_INS: usize = 1024;

const FABRICS: &str = "etc/nvme/nvme-fabrics.conf";
const JSON: &str = "etc/nvme/config.json";
const DISCOVERY: &str = "etc/nvme/discovery.conf";

/// The formats of nvme-cli's configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// `nvme-fabrics.conf` of nvme-cli 3.0: INI.
    Fabrics,
    /// `config.json` of nvme-cli 2: hosts, subsystems, ports.
    Json,
    /// `discovery.conf` up to nvme-cli 2: one line of options for each discovery controller.
    Discovery,
}

impl Format {
    /// The format of a file, by its name and content.
    #[must_use]
    pub fn guess(path: &Path, text: &str) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let bracket = text.trim_start().strip_prefix('[').map(str::trim_start);
        if name.ends_with(".json") || bracket.is_some_and(|rest| rest.starts_with(['{', ']'])) {
            Self::Json
        } else if name == "discovery.conf" || first.is_some_and(|line| line.starts_with('-')) {
            Self::Discovery
        } else {
            Self::Fabrics
        }
    }
}

/// A file's text.
#[derive(Clone, Debug)]
pub struct Source {
    /// What diagnostics call it.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Whether it is a drop-in of the `nvme-fabrics.conf` before it.
    pub drop_in: bool,
    /// Its content.
    pub text: String,
}

/// What was read, and what could not be.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) sources: Vec<Source>,
    pub(super) reports: Vec<Report>,
}

impl Sources {
    /// The files of the system whose file system is at `root`. `config.json` and `discovery.conf` are left out where
    /// `nvme config convert` has taken them over into `nvme-fabrics.conf`, which a `.converted` link tells.
    pub(super) fn system(root: &Path) -> Self {
        let mut sources = Self::default();
        sources.fabrics(&root.join(FABRICS), false);
        for (path, format) in [(JSON, Format::Json), (DISCOVERY, Format::Discovery)] {
            if !root.join(format!("{path}.converted")).exists() {
                sources.add(&root.join(path), Some(format), false, false);
            }
        }
        sources
    }

    /// One file, and its drop-ins if it is an `nvme-fabrics.conf`.
    pub(super) fn file(path: &Path) -> Self {
        let mut sources = Self::default();
        sources.add(path, None, false, true);
        if sources.sources.iter().all(|source| source.format == Format::Fabrics) {
            sources.drop_ins(path);
        }
        sources
    }

    fn fabrics(&mut self, path: &Path, required: bool) {
        self.add(path, Some(Format::Fabrics), false, required);
        self.drop_ins(path);
    }

    fn drop_ins(&mut self, path: &Path) {
        let mut dir = path.as_os_str().to_owned();
        dir.push(".d");
        let dir = PathBuf::from(dir);
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.failed(&dir, &format!("reading the directory: {error}")),
        };
        let mut paths: Vec<PathBuf> = entries
            .take(16 * MAX_DROP_INS)
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .collect();
        if paths.len() > MAX_DROP_INS {
            return self.failed(&dir, &format!("more than {MAX_DROP_INS} files"));
        }
        paths.sort();
        paths.iter().for_each(|path| self.add(path, Some(Format::Fabrics), true, true));
    }

    fn add(&mut self, path: &Path, format: Option<Format>, drop_in: bool, required: bool) {
        match read(path) {
            Ok(text) => {
                let format = format.unwrap_or_else(|| Format::guess(path, &text));
                self.sources.push(Source { path: path.to_owned(), format, drop_in, text });
            }
            Err(Unread::Missing) if !required => {}
            Err(Unread::Missing) => self.failed(path, "there is no such file"),
            Err(Unread::Wrong(what)) => self.failed(path, &what),
        }
    }

    fn failed(&mut self, path: &Path, what: &str) {
        let mut report = Report::new(path);
        report.error(0, what);
        self.reports.push(report);
    }
}

enum Unread {
    Missing,
    Wrong(String),
}

fn read(path: &Path) -> Result<String, Unread> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Unread::Missing,
        _ => Unread::Wrong(format!("reading: {error}")),
    };
    // Opening a FIFO would wait for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(Unread::Wrong("no regular file".to_owned()));
    }
    let mut content = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(MAX_FILE_SIZE as u64 + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() > MAX_FILE_SIZE {
        return Err(Unread::Wrong(format!("more than {MAX_FILE_SIZE} bytes")));
    }
    String::from_utf8(content)
        .map_err(|error| Unread::Wrong(format!("byte {} is not UTF-8", error.utf8_error().valid_up_to())))
}

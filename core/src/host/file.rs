//! Small files of one line.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::HostIdentityError;

/// Identity files hold one short line; anything above this many bytes is some other file.
pub const MAX_FILE_SIZE: usize = 4096;

/// The first line of a small file, trimmed; `None` if the file does not exist.
pub(super) fn read_line(path: &Path) -> Result<Option<String>, HostIdentityError> {
    let wrong = |what| HostIdentityError::NotOneLine { path: path.to_owned(), what };
    let failed = |source| HostIdentityError::Read { path: path.to_owned(), source };
    match fs::metadata(path) {
        // Opening a FIFO would wait for a writer.
        Ok(metadata) if !metadata.is_file() => return Err(wrong("no text (not a regular file)")),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    let mut content = Vec::new();
    let limit = MAX_FILE_SIZE as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut content)).map_err(failed)?;
    if content.len() > MAX_FILE_SIZE {
        return Err(wrong("too much text"));
    }
    let Ok(text) = std::str::from_utf8(&content) else { return Err(wrong("bytes that are not UTF-8")) };
    match text.lines().next().map(str::trim) {
        Some(line) if !line.is_empty() => Ok(Some(line.to_owned())),
        _ => Err(wrong("an empty first line")),
    }
}

/// The beginning of a regular file, at most [`MAX_FILE_SIZE`] bytes.
pub(super) fn read_start(path: &Path) -> Option<Vec<u8>> {
    // Opening a FIFO would wait for a writer.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut content = Vec::new();
    File::open(path).ok()?.take(MAX_FILE_SIZE as u64).read_to_end(&mut content).ok()?;
    Some(content)
}

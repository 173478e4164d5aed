//! The archive format of an initramfs: "newc" cpio (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//! Archives may be concatenated, and later members overwrite earlier ones: that is how a small overlay goes on top of a cached base.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const SYMLINK: u32 = 0o120_777;
const REGULAR: u32 = 0o100_000;

/// An archive in the making. Paths are relative to the guest's root, without a leading slash; parents are made as needed.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, path: &str) {
        if path.is_empty() || !self.directories.insert(path.to_owned()) {
            return;
        }
        self.parents(path);
        self.member(path, DIRECTORY, &[]);
    }

    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.parents(path);
        self.member(path, REGULAR | permissions, content);
    }

    /// A copy of the host's `source`, following links.
    pub(super) fn copy(&mut self, source: &Path, path: &str, permissions: u32) -> Result<()> {
        let content = std::fs::read(source).with_context(|| format!("read {}", source.display()))?;
        self.file(path, permissions, &content);
        Ok(())
    }

    pub(super) fn symlink(&mut self, path: &str, to: &str) {
        self.parents(path);
        self.member(path, SYMLINK, to.as_bytes());
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.member("TRAILER!!!", 0, &[]);
        // Whatever is appended starts on a four-byte boundary; the kernel skips the zeros.
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn member(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields =
            [self.inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once_and_members_are_aligned() {
        let mut archive = Archive::default();
        archive.file("a/b/one", 0o644, b"12345");
        archive.file("a/b/two", 0o755, b"");
        archive.symlink("a/link", "b/one");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);

        let mut names = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + index * 8..at + 14 + index * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6), field(11));
            let name = String::from_utf8(bytes[at + 110..at + 109 + name_size].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                break;
            }
            names.push((name, field(1), bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
        let order: Vec<&str> = names.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(order, ["a", "a/b", "a/b/one", "a/b/two", "a/link"]);
        assert_eq!(names[2].1, 0o100_644);
        assert_eq!(names[2].2, b"12345");
        assert_eq!(names[4].1, 0o120_777);
        assert_eq!(names[4].2, b"b/one");
    }
}

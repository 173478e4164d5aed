//! Disks of a guest that are files of the host, so that what a script wrote through a controller can be looked up behind the
//! controller's back: a script declares what a place must hold in the end (`disk_holds` of `lib.sh`), and after QEMU's end the
//! file is compared.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// `disk: NAME SIZE` of `suite.conf`: an empty raw image, `%run%/NAME` in the QEMU arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
}

impl Disk {
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let [name, size] = words else { bail!("a disk is `NAME SIZE`, not `{}`", words.join(" ")) };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        // A file of this name stands beside the serial lines.
        let taken = ["initrd", "console", "out", "qemu"].contains(&name.as_str());
        ensure!(!name.is_empty() && name.chars().all(plain) && !taken, "`{name}` is no name for a disk");
        let (number, shift) = match size.as_bytes().last() {
            Some(b'K') => (&size[..size.len() - 1], 10),
            Some(b'M') => (&size[..size.len() - 1], 20),
            Some(b'G') => (&size[..size.len() - 1], 30),
            _ => (size.as_str(), 0),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        let size = bytes.filter(|&bytes| bytes > 0).with_context(|| format!("`{size}` is no size"))?;
        Ok(Self { name: name.clone(), size })
    }

    /// Makes the image, all zeroes and sparse.
    pub(super) fn create(&self, dir: &Path) -> Result<()> {
        let path = dir.join(&self.name);
        let file = File::create(&path).and_then(|file| file.set_len(self.size));
        file.with_context(|| format!("make the disk {}", path.display()))
    }
}

/// What a script says a disk holds when the guest has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    disk: String,
    /// Bytes.
    offset: u64,
    length: u64,
    /// Lower case hexadecimal.
    sha256: String,
}

impl Claim {
    /// `NAME OFFSET LENGTH SHA256`. A claim over nothing is refused: it would always be true.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [disk, offset, length, sha256] = words[..] else {
            bail!("a claim is `NAME OFFSET LENGTH SHA256`, not `{text}`");
        };
        let number = |word: &str| word.parse::<u64>().with_context(|| format!("`{word}` in `{text}`"));
        let (offset, length) = (number(offset)?, number(length)?);
        ensure!(length > 0 && offset.checked_add(length).is_some(), "`{text}` names no place");
        let hexadecimal = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        ensure!(sha256.len() == 64 && sha256.chars().all(hexadecimal), "`{sha256}` is no SHA-256");
        Ok(Self { disk: disk.to_owned(), offset, length, sha256: sha256.to_owned() })
    }

    /// Compares the image in `dir` with the claim.
    pub(super) fn check(&self, dir: &Path, disks: &[Disk]) -> Result<()> {
        let Some(disk) = disks.iter().find(|disk| disk.name == self.disk) else {
            bail!("the suite has no disk `{}`", self.disk);
        };
        let (offset, length) = (self.offset, self.length);
        let place = format!("disk {} bytes {offset} to {}", self.disk, offset + length);
        ensure!(offset + length <= disk.size, "{place}: it ends at {}", disk.size);
        let found = sha256(&dir.join(&self.disk), offset, length).with_context(|| place.clone())?;
        ensure!(
            found == self.sha256,
            "{place}: the host finds other data there (SHA-256 {found}) than the guest wrote ({})",
            self.sha256
        );
        Ok(())
    }
}

/// SHA-256 of a part of a file, by the `sha256sum` of coreutils.
fn sha256(path: &PathBuf, offset: u64, length: u64) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.seek(SeekFrom::Start(offset))?;
    let mut data = Vec::new();
    file.take(length).read_to_end(&mut data)?;
    ensure!(data.len() as u64 == length, "the file has only {} of {length} bytes", data.len());
    let mut command = shell::command::<&str>("sha256sum", []);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start sha256sum")?;
    // It says nothing before it has read everything, so the two pipes cannot block each other.
    child.stdin.take().context("no pipe to sha256sum")?.write_all(&data)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "sha256sum failed ({})", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn disks_have_a_name_and_a_size() {
        assert_eq!(Disk::parse(&words("h0 16M")).unwrap(), Disk { name: "h0".into(), size: 16 << 20 });
        assert_eq!(Disk::parse(&words("a 512")).unwrap().size, 512);
        for wrong in ["h0", "h0 0", "h0 M", "h0 1T", "h0 99999999999G", "../h0 1M", "out 1M", "a 1 2"] {
            assert!(Disk::parse(&words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn claims_are_complete() {
        // Of "abc", as published with the algorithm (FIPS 180-4).
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Claim::parse(&format!("h0 512 3 {sha}")).unwrap().offset, 512);
        for wrong in [
            "h0 512 3",
            "h0 512 3 abc",
            &format!("h0 512 0 {sha}"),
            &format!("h0 -1 3 {sha}"),
            &format!("h0 {} 3 {sha}", u64::MAX),
            &format!("h0 512 3 {}", sha.to_uppercase()),
            &format!("h0 512 3 {sha} more"),
        ] {
            assert!(Claim::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_check_tells_true_from_false() {
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let dir = std::env::temp_dir().join(format!("nvmf-xtask-disk-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let disks = [Disk { name: "h0".into(), size: 4096 }];
        disks[0].create(&dir).unwrap();
        let check = |text: String| Claim::parse(&text).unwrap().check(&dir, &disks);
        let before = check(format!("h0 1000 3 {sha}")).unwrap_err().to_string();
        assert!(before.contains("bytes 1000 to 1003") && before.contains("other data"), "{before}");

        let mut file = File::options().write(true).open(dir.join("h0")).unwrap();
        file.seek(SeekFrom::Start(1000)).unwrap();
        file.write_all(b"abc").unwrap();
        check(format!("h0 1000 3 {sha}")).unwrap();
        for wrong in [
            // Another place, another length, another disk, beyond the end.
            format!("h0 999 3 {sha}"),
            format!("h0 1000 4 {sha}"),
            format!("h1 1000 3 {sha}"),
            format!("h0 4094 3 {sha}"),
        ] {
            assert!(check(wrong.clone()).is_err(), "{wrong}");
        }
        // One bit is enough.
        file.seek(SeekFrom::Start(1001)).unwrap();
        file.write_all(b"c").unwrap();
        assert!(check(format!("h0 1000 3 {sha}")).is_err());
        // A file that was cut short.
        file.set_len(1002).unwrap();
        assert!(check(format!("h0 1000 3 {sha}")).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! The guest's kernel: unpacked from a Debian package into the cache, or the one in `/boot`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{apt, shell};

/// The series the suites are written for: nvmet there has authentication, TLS and pass-through.
const SERIES: &str = "6.12";

#[derive(Debug)]
pub(super) struct Kernel {
    /// As in `uname -r`.
    pub(super) version: String,
    /// The folder that holds `boot/` and `lib/modules/`.
    pub(super) root: PathBuf,
}

impl Kernel {
    pub(super) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.version))
    }

    /// Finds or downloads the kernel called `wanted` (none: the newest of [`SERIES`]).
    pub(super) fn locate(wanted: Option<&str>, cache: &Path, stamp: &Path) -> Result<Self> {
        let kernels = cache.join("kernels");
        std::fs::create_dir_all(&kernels).with_context(|| format!("create {}", kernels.display()))?;
        if let Some(version) = wanted {
            let candidates = [kernels.join(version), PathBuf::from("/")];
            for root in candidates {
                let kernel = Self { version: version.to_owned(), root };
                if kernel.image().is_file() && kernel.modules().join("modules.dep").is_file() {
                    return Ok(kernel);
                }
            }
            return Self::download(version, &kernels, stamp);
        }
        if let Some(kernel) = Self::newest_cached(&kernels) {
            return Ok(kernel);
        }
        require_apt()?;
        apt::update(stamp)?;
        Self::download(&newest_offered()?, &kernels, stamp)
    }

    pub(super) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.version)
    }

    fn newest_cached(kernels: &Path) -> Option<Self> {
        let entries = std::fs::read_dir(kernels).ok()?;
        let all = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let kernel = Self { version: entry.file_name().into_string().ok()?, root: entry.path() };
            kernel.image().is_file().then_some(kernel)
        });
        let prefix = format!("{SERIES}.");
        all.max_by_key(|kernel| (kernel.version.starts_with(&prefix), numbers(&kernel.version)))
    }

    fn download(version: &str, kernels: &Path, stamp: &Path) -> Result<Self> {
        require_apt()?;
        apt::update(stamp)?;
        let package = format!("linux-image-{version}");
        println!("downloading {package} for the guest (unpacked under {}, not installed)", kernels.display());
        let work = kernels.join(format!(".incoming-{}", std::process::id()));
        std::fs::create_dir_all(&work)?;
        let unpacked = unpack(&package, version, &work);
        let result = unpacked.and_then(|dir| {
            let root = kernels.join(version);
            // Complete or absent: nobody finds half a kernel after an interrupted run.
            std::fs::rename(&dir, &root).with_context(|| format!("move the kernel to {}", root.display()))?;
            Ok(Self { version: version.to_owned(), root })
        });
        std::fs::remove_dir_all(&work)?;
        result.with_context(|| {
            format!(
                "fetch {package}; `apt-get update` as root may be due, or choose a kernel from /boot with -k"
            )
        })
    }
}

fn unpack(package: &str, version: &str, work: &Path) -> Result<PathBuf> {
    // As root, apt would hand the download to a user who may not write here.
    shell::output(
        shell::command("apt-get", ["-o", "APT::Sandbox::User=root", "download", package]).current_dir(work),
    )?;
    let deb = std::fs::read_dir(work)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let dir = work.join("kernel");
    shell::output(shell::command("dpkg-deb", ["-x"]).arg(&deb).arg(&dir))?;
    shell::output(shell::command("depmod", ["-b"]).arg(&dir).arg(version))?;
    Ok(dir)
}

fn require_apt() -> Result<()> {
    if shell::find_program("apt-get").is_none() || shell::find_program("dpkg-deb").is_none() {
        bail!(
            "the guest needs a Debian kernel package, and this machine has no apt-get and dpkg-deb; \
             name a kernel of /boot with `cargo xtask vm -k VERSION`"
        );
    }
    Ok(())
}

/// The newest image of [`SERIES`] that apt offers, else what `linux-image-amd64` stands for.
fn newest_offered() -> Result<String> {
    let pattern = format!(r"^linux-image-{}\.[0-9]+.*-amd64$", SERIES.replace('.', r"\."));
    let found = shell::output_text(&mut shell::command("apt-cache", ["search", "--names-only", &pattern]))?;
    let special = ["-cloud-", "-rt-", "-unsigned", "-dbg"];
    let versions = found
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.strip_prefix("linux-image-"))
        .filter(|version| !special.iter().any(|part| version.contains(part)));
    if let Some(newest) = versions.max_by_key(|version| numbers(version)) {
        return Ok(newest.to_owned());
    }
    let depends = shell::output_text(&mut shell::command("apt-cache", ["depends", "linux-image-amd64"]))
        .context("apt offers no linux-image package; the guest's kernel comes from Debian")?;
    let image = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    image.map(str::to_owned).context("linux-image-amd64 names no kernel")
}

/// The numbers in a version, for comparing.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("6.12.117+deb12-amd64") > numbers("6.12.99+deb12-amd64"));
        assert!(numbers("6.12.9+deb12-amd64") > numbers("6.1.0-56-amd64"));
    }
}

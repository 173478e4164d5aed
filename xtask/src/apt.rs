//! Programs and files a step needs, installed where the machine allows it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

use crate::shell;

/// A program, or a file by its path (`*` stands for any part of a name), and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tool<'a> {
    pub(crate) program: &'a str,
    pub(crate) package: &'a str,
}

impl<'a> Tool<'a> {
    pub(crate) const fn new(program: &'a str, package: &'a str) -> Self {
        Self { program, package }
    }
}

/// Package lists older than this are fetched again before something is installed.
const LISTS_STALE: Duration = Duration::from_secs(12 * 3600);

/// Makes sure every tool is there: installs the missing ones when running as root on a machine with apt, otherwise says what to do.
pub(crate) fn ensure(tools: &[Tool<'_>], stamp: &Path, purpose: &str) -> Result<()> {
    let missing: Vec<Tool<'_>> =
        tools.iter().copied().filter(|tool| shell::find_program(tool.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    let programs = missing.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ");
    let packages_text = packages.join(" ");
    if shell::find_program("apt-get").is_none() {
        bail!(
            "{purpose} needs {programs}. Install them with this system's package manager \
             (Debian's packages are called: {packages_text})"
        );
    }
    if !shell::is_root() {
        bail!("{purpose} needs {programs}. As root: apt-get install {packages_text}");
    }
    println!("installing {packages_text} (for {purpose})");
    update(stamp)?;
    let args = ["install", "-y", "-qq", "--no-install-recommends"].iter().chain(&packages);
    shell::output(
        shell::command("apt-get", args).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8"),
    )?;
    let still: Vec<&str> = missing
        .iter()
        .filter(|tool| shell::find_program(tool.program).is_none())
        .map(|tool| tool.program)
        .collect();
    if !still.is_empty() {
        bail!("after installing {packages_text} this is still missing: {}", still.join(", "));
    }
    Ok(())
}

/// `apt-get update`, at most once per [`LISTS_STALE`]; does nothing for ordinary users, who may still have lists.
pub(crate) fn update(stamp: &Path) -> Result<()> {
    let fresh = stamp
        .metadata()
        .and_then(|data| data.modified())
        .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < LISTS_STALE));
    if fresh || !shell::is_root() {
        return Ok(());
    }
    shell::output(&mut shell::command("apt-get", ["update", "-qq"]))?;
    if let Some(dir) = stamp.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(stamp, "")?;
    Ok(())
}

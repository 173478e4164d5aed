//! `cargo xtask deny`: licences, banned crates and sources, by cargo-deny and `deny.toml`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell;

/// `deny.toml` is written for this release.
const VERSION: &str = "0.20.2";

pub(crate) fn main() -> Result<()> {
    let program = program()?;
    // `cargo metadata` must see the manifest of the workspace; advisories need a database from the network and are left out.
    let mut check = shell::cargo(["deny", "--all-features", "check", "--hide-inclusion-graph"])?;
    check.args(["licenses", "bans", "sources"]);
    if let Some(dir) = program.parent() {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(dir.to_path_buf()).chain(std::env::split_paths(&path));
        check.env("PATH", std::env::join_paths(paths)?);
    }
    shell::run(&mut check)
}

/// cargo-deny from the machine, from an earlier run, or built now into the target directory.
fn program() -> Result<PathBuf> {
    let tools = shell::target_dir()?.join("tools");
    let own = tools.join("bin/cargo-deny");
    if own.is_file() {
        return Ok(own);
    }
    if let Some(installed) = shell::find_program("cargo-deny") {
        return Ok(installed);
    }
    println!("cargo-deny is not installed: building {VERSION} unoptimised into {} (once)", tools.display());
    let mut install = shell::cargo(["install", "--locked", "--quiet", "--root"])?;
    install.arg(&tools).arg(format!("cargo-deny@{VERSION}"));
    // It runs for a second; what costs is building it. Unoptimised it takes a fraction of the time.
    install
        .env("CARGO_TARGET_DIR", tools.join("build"))
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "64")
        .env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
    shell::run(&mut install).context("install cargo-deny")?;
    // The intermediate files are ten times the program and of no further use.
    std::fs::remove_dir_all(tools.join("build")).context("remove cargo-deny's build files")?;
    Ok(own)
}

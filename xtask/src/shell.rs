//! Running other programs, and where things are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The repository's root. `cargo run` names the package's folder at run time; the compiled-in path serves a binary started by hand.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target directory: the one this binary was built into (`<target>/<profile>/xtask`), whichever way it was chosen.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("find the running xtask binary")?;
    let dir = exe.ancestors().nth(2).context("xtask does not stand in a cargo target directory")?;
    Ok(dir.to_path_buf())
}

/// A program by name: on `PATH`, or in the system folders an ordinary user's `PATH` often lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).is_file().then(|| name.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// `program` with `args`; found as [`find_program`] does.
pub(crate) fn command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(find_program(program).unwrap_or_else(|| program.into()));
    command.args(args);
    command
}

/// `cargo` in the repository's root, sharing this run's target directory.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root()).env("CARGO_TARGET_DIR", target_dir()?);
    // Set by the `cargo run` that started xtask, and not meant for the builds it starts.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    Ok(command)
}

/// Runs to the end with inherited output; a non-zero exit is an error that names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("start {}", describe(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", describe(command));
    }
    Ok(())
}

/// Runs to the end and returns standard output; on failure the error carries the last lines of standard error.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("start {}", describe(command)))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("`{}` failed ({}): {}", describe(command), output.status, tail(&text, 5).trim());
    }
    Ok(output.stdout)
}

/// [`output`] as text.
pub(crate) fn output_text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// True for root: who may install packages.
pub(crate) fn is_root() -> bool {
    output_text(&mut command("id", ["-u"])).is_ok_and(|id| id.trim() == "0")
}

fn describe(command: &Command) -> String {
    let program =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let text = format!("{program} {}", args.join(" "));
    // QEMU's and apt's lines are long; the beginning tells.
    text.chars().take(200).collect()
}

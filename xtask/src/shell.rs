//! Running other programs, and where things are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

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

/// A program by name: on `PATH`, or in the system folders an ordinary user's `PATH` often lacks. A name with a slash is the path of
/// a file, and may have wildcards ([`matching_file`]).
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return matching_file(name);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The file with this path, in which a `*` stands for any part of one name; the first in alphabetical order if there are several.
fn matching_file(pattern: &str) -> Option<PathBuf> {
    let Some(star) = pattern.find('*') else {
        return Path::new(pattern).is_file().then(|| pattern.into());
    };
    let name_start = pattern[..star].rfind('/').map_or(0, |slash| slash + 1);
    let name_end = pattern[star..].find('/').map_or(pattern.len(), |slash| star + slash);
    let (before, after) = pattern[name_start..name_end].split_once('*')?;
    let mut names: Vec<String> = std::fs::read_dir(&pattern[..name_start])
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        })
        .collect();
    names.sort();
    names
        .iter()
        .find_map(|name| matching_file(&format!("{}{name}{}", &pattern[..name_start], &pattern[name_end..])))
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
    if status.success() { Ok(()) } else { failed(command, status) }
}

/// The error that a program's end without success is.
pub(crate) fn failed(command: &Command, status: ExitStatus) -> Result<()> {
    bail!("`{}` failed ({status})", describe(command))
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

pub(crate) fn describe(command: &Command) -> String {
    let program =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let text = format!("{program} {}", args.join(" "));
    // QEMU's and apt's lines are long; the beginning tells.
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_by_pattern() {
        let dir = std::env::temp_dir().join(format!("nvmf-xtask-glob-{}", std::process::id()));
        for file in ["a/x1.so", "b/x2.so", "b/x1.so", "b/y.so.1"] {
            let path = dir.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = |pattern: &str| {
            let path = find_program(&format!("{}/{pattern}", dir.display()))?;
            Some(path.strip_prefix(&dir).unwrap().to_string_lossy().into_owned())
        };
        assert_eq!(found("b/x2.so").as_deref(), Some("b/x2.so"));
        assert_eq!(found("*/x2.so").as_deref(), Some("b/x2.so"));
        assert_eq!(found("b/x*.so").as_deref(), Some("b/x1.so"));
        assert_eq!(found("*/y*").as_deref(), Some("b/y.so.1"));
        assert_eq!(found("*/z*"), None);
        assert_eq!(found("a"), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! The guest's file system: an initramfs made of a base that is cached per suite and kernel (busybox, kernel modules, programs
//! with their libraries) and an overlay made for each boot (the program under test and the scripts).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::suite::{SETUP, Suite, Test};
use crate::shell;

/// Counts up when this file puts something else into the base.
const LAYOUT: u32 = 2;

/// The suite's base archive, from the cache when nothing it is made of has changed.
pub(super) fn base(suite: &Suite, kernel: &Kernel, cache: &Path) -> Result<PathBuf> {
    let programs: Vec<(&str, PathBuf)> = ["busybox", "dash"]
        .into_iter()
        .chain(suite.conf.programs.iter().map(|(program, _)| program.as_str()))
        .map(|name| Ok((name, shell::find_program(name).with_context(|| format!("no program `{name}`"))?)))
        .collect::<Result<_>>()?;
    let mut recipe =
        format!("layout {LAYOUT}\nkernel {}\nmodules {:?}\n", kernel.version, suite.conf.modules);
    let find =
        |name: &str| shell::find_program(name).with_context(|| format!("no file `{name}` on this machine"));
    let files: Vec<(&str, PathBuf)> = suite
        .conf
        .files
        .iter()
        .map(|(pattern, _)| Ok((pattern.as_str(), find(pattern)?)))
        .collect::<Result<_>>()?;
    for (name, path) in programs.iter().chain(&files) {
        let data = path.metadata()?;
        writeln!(recipe, "{name} {} {} {:?}", path.display(), data.len(), data.modified()?)?;
    }
    let file = cache.join(format!("base-{}-{}.cpio", suite.name, kernel.version));
    let recipe_file = file.with_extension("cpio.recipe");
    if file.is_file() && std::fs::read_to_string(&recipe_file).is_ok_and(|known| known == recipe) {
        return Ok(file);
    }

    let mut archive = Archive::default();
    skeleton(&mut archive);
    let mut libraries = BTreeSet::new();
    for (name, path) in &programs {
        program(&mut archive, name, path, &mut libraries)?;
    }
    for (_, path) in &files {
        host_file(&mut archive, path, &mut libraries)?;
    }
    busybox_applets(&mut archive, &programs)?;
    // busybox's own shell would run its applets before looking at PATH.
    archive.symlink("usr/bin/sh", "dash");
    // pthread_exit and pthread_cancel load it at run time, so ldd does not tell.
    for library in ["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib64/libgcc_s.so.1"].map(Path::new) {
        if library.is_file() && libraries.insert(library.to_path_buf()) {
            archive.copy(library, &guest_path(library), 0o644)?;
        }
    }
    let stage = cache.join(format!("stage-{}-{}", suite.name, std::process::id()));
    let modules = kernel_modules(&mut archive, suite, kernel, &stage);
    if stage.exists() {
        std::fs::remove_dir_all(&stage)?;
    }
    modules.context("collect the guest's kernel modules")?;

    // The recipe goes last: an interrupted run leaves no base that looks finished. Renamed into place, so that another run
    // that is booting from the old one keeps it whole.
    let incoming = cache.join(format!("incoming-{}-{}.cpio", suite.name, std::process::id()));
    std::fs::write(&incoming, archive.finish()).with_context(|| format!("write {}", incoming.display()))?;
    std::fs::rename(&incoming, &file).with_context(|| format!("write {}", file.display()))?;
    std::fs::write(&recipe_file, recipe)?;
    Ok(file)
}

/// What changes from run to run, as a file next to the base: init, helpers, the suite's scripts, the plan and the programs under
/// test, by name.
pub(super) fn overlay(
    suite: &Suite,
    tests: &[Test],
    built: &[(String, PathBuf)],
    guest: &Path,
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.copy(&guest.join("init"), "init", 0o755)?;
    archive.copy(&guest.join("lib.sh"), "lib.sh", 0o644)?;
    for entry in std::fs::read_dir(&suite.dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.copy(&path, &format!("suite/{name}"), 0o644)?;
    }
    let mut plan = String::new();
    for test in std::iter::once(&suite.setup).chain(tests) {
        writeln!(plan, "{} {}", test.name, test.deadline.as_secs())?;
    }
    debug_assert!(plan.starts_with(SETUP));
    archive.file("plan", 0o644, plan.as_bytes());
    let mut libraries = BTreeSet::new();
    for (name, path) in built {
        program(&mut archive, name, path, &mut libraries)?;
    }
    Ok(archive.finish())
}

fn skeleton(archive: &mut Archive) {
    for directory in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "proc",
        "sys",
        "dev",
        "tmp",
        "run",
        "etc",
        "root",
        "mnt",
    ] {
        archive.directory(directory);
    }
    for merged in ["bin", "sbin", "lib", "lib64"] {
        archive.symlink(merged, &format!("usr/{merged}"));
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n");
    archive.file("etc/nsswitch.conf", 0o644, b"passwd: files\nhosts: files\nservices: files\n");
}

/// A program in `/usr/bin`, with the libraries it needs.
fn program(archive: &mut Archive, name: &str, path: &Path, have: &mut BTreeSet<PathBuf>) -> Result<()> {
    archive.copy(path, &format!("usr/bin/{name}"), 0o755)?;
    needed_libraries(archive, path, have)
}

/// A file at the path the host has it, with the libraries it needs if it is one itself.
fn host_file(archive: &mut Archive, path: &Path, have: &mut BTreeSet<PathBuf>) -> Result<()> {
    let library = path.to_string_lossy().contains(".so");
    let (to, permissions) = if library { (guest_path(path), 0o755) } else { (plain_path(path), 0o644) };
    if have.insert(path.to_path_buf()) {
        archive.copy(path, &to, permissions)?;
    }
    if library { needed_libraries(archive, path, have) } else { Ok(()) }
}

/// Every shared library ldd names, at the paths the host has them (with `/lib` being `/usr/lib`).
fn needed_libraries(archive: &mut Archive, path: &Path, have: &mut BTreeSet<PathBuf>) -> Result<()> {
    // ldd fails on static programs, which need nothing.
    let Ok(listing) = shell::output_text(shell::command("ldd", [path]).env("LC_ALL", "C")) else {
        return Ok(());
    };
    if let Some(missing) = listing.lines().find(|line| line.contains("not found")) {
        bail!("{} misses a library: {}", path.display(), missing.trim());
    }
    for word in listing.split_whitespace().filter(|word| word.starts_with('/')) {
        let library = PathBuf::from(word.trim_end_matches(':'));
        if have.insert(library.clone()) {
            archive.copy(&library, &guest_path(&library), 0o755)?;
        }
    }
    Ok(())
}

fn guest_path(library: &Path) -> String {
    let path = plain_path(library);
    if path.starts_with("usr/") { path } else { format!("usr/{path}") }
}

/// The path as the archive has it.
fn plain_path(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

/// busybox, the first of `programs`, under the names of all its applets that are not one of the `programs` themselves.
fn busybox_applets(archive: &mut Archive, programs: &[(&str, PathBuf)]) -> Result<()> {
    let (_, busybox) = programs.first().context("no busybox")?;
    let listing = shell::output_text(&mut shell::command(&busybox.to_string_lossy(), ["--list"]))?;
    let own = |applet: &str| {
        matches!(applet, "sh" | "ash") || programs.iter().any(|(program, _)| *program == applet)
    };
    for applet in listing.lines().filter(|applet| !own(applet)) {
        archive.symlink(&format!("usr/bin/{applet}"), "busybox");
    }
    // /proc/sys/kernel/modprobe names this path: the kernel itself asks for modules.
    archive.symlink("usr/sbin/modprobe", "../bin/busybox");
    Ok(())
}

/// The suite's modules with their dependencies, uncompressed, and an index made for just them.
fn kernel_modules(archive: &mut Archive, suite: &Suite, kernel: &Kernel, stage: &Path) -> Result<()> {
    let mut files = BTreeSet::new();
    for name in &suite.conf.modules {
        let (name, optional) = name.strip_prefix('?').map_or((name.as_str(), false), |name| (name, true));
        let mut query = shell::command("modprobe", ["--show-depends", "-S", &kernel.version, "-d"]);
        match shell::output_text(query.arg(&kernel.root).arg(name)) {
            Ok(text) => {
                let lines = text.lines().filter_map(|line| line.strip_prefix("insmod "));
                files.extend(lines.filter_map(|line| line.split_whitespace().next()).map(PathBuf::from));
            }
            Err(_) if optional => {}
            Err(error) => return Err(error),
        }
    }
    let relative_root = format!("lib/modules/{}", kernel.version);
    let modules = kernel.modules().canonicalize()?;
    for file in &files {
        let relative = file.canonicalize()?;
        let relative = relative.strip_prefix(&modules).context("a module outside the kernel's folder")?;
        let mut relative = relative.to_string_lossy().into_owned();
        let content = if let Some(plain) = relative.strip_suffix(".xz") {
            relative = plain.to_owned();
            shell::output(shell::command("xz", ["-dc"]).arg(file))?
        } else {
            std::fs::read(file)?
        };
        stage_file(archive, stage, &format!("{relative_root}/{relative}"), &content)?;
    }
    for index in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        let file = kernel.modules().join(index);
        if file.is_file() {
            stage_file(archive, stage, &format!("{relative_root}/{index}"), &std::fs::read(file)?)?;
        }
    }
    shell::output(shell::command("depmod", ["-b"]).arg(stage).arg(&kernel.version))?;
    for index in ["modules.dep", "modules.alias", "modules.softdep", "modules.symbols"] {
        archive.copy(
            &stage.join(&relative_root).join(index),
            &format!("usr/{relative_root}/{index}"),
            0o644,
        )?;
    }
    Ok(())
}

/// A file for depmod to read and for the archive.
fn stage_file(archive: &mut Archive, stage: &Path, path: &str, content: &[u8]) -> Result<()> {
    let staged = stage.join(path);
    if let Some(parent) = staged.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&staged, content).with_context(|| format!("write {}", staged.display()))?;
    archive.file(&format!("usr/{path}"), 0o644, content);
    Ok(())
}

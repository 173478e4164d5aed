//! `cargo xtask dist`: what a release consists of, in the target directory: the program, its man pages, its completions.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::shell;

/// The file each shell looks for.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "nvmf"), ("zsh", "_nvmf"), ("fish", "nvmf.fish")];

pub(crate) fn main() -> Result<()> {
    shell::run(&mut shell::cargo([
        "build",
        "--release",
        "--quiet",
        "--package",
        "nvmf-discovery",
        "--bin",
        "nvmf",
    ])?)?;
    let dist = shell::target_dir()?.join("dist");
    // Pages of commands that are no more would stay.
    if dist.exists() {
        std::fs::remove_dir_all(&dist).with_context(|| dist.display().to_string())?;
    }
    let program = shell::target_dir()?.join("release/nvmf");
    write(&dist, &program)?;
    println!("{}", dist.display());
    Ok(())
}

fn write(dist: &Path, program: &Path) -> Result<()> {
    let name = program.to_string_lossy();
    let completions = dist.join("completions");
    std::fs::create_dir_all(&completions).with_context(|| completions.display().to_string())?;
    for (shell, file) in COMPLETIONS {
        let text = shell::output(&mut shell::command(&name, ["completions", shell]))?;
        ensure!(!text.is_empty(), "no completions for {shell}");
        std::fs::write(completions.join(file), text).with_context(|| file.to_owned())?;
    }
    let man = dist.join("man/man1");
    let mut command = shell::command(&name, ["man"]);
    shell::run(command.arg(&man))?;
    let copy = dist.join("nvmf");
    std::fs::copy(program, &copy).with_context(|| copy.display().to_string())?;
    Ok(())
}

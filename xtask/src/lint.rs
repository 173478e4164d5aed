//! `cargo xtask lint`: house rules that neither rustc nor clippy know.

mod rules;
mod source;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;
use rules::Finding;

pub(crate) fn main() -> Result<()> {
    let root = shell::root();
    let mut files = Vec::new();
    collect(&root, &root, &mut files)?;
    files.sort();
    let mut findings: Vec<Finding> = Vec::new();
    for file in &files {
        let bytes = std::fs::read(root.join(file)).with_context(|| format!("read {}", file.display()))?;
        // Binary fixtures (captured frames, corpora) have no lines to judge.
        let Ok(text) = String::from_utf8(bytes) else { continue };
        findings.extend(rules::check(file, &text, &|target| root.join(target).exists()));
    }
    for Finding { file, line, what } in &findings {
        println!("{}:{line}: {what}", file.display());
    }
    if !findings.is_empty() {
        bail!("{} finding(s) in {} files", findings.len(), files.len());
    }
    println!("{} files, nothing to report", files.len());
    Ok(())
}

/// Files under `dir`, relative to `root`: everything but build output and hidden folders other than the project's own.
fn collect(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
        if hidden || name == "target" || name == "Cargo.lock" {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if entry.file_type()?.is_file() {
            files.push(path.strip_prefix(root)?.to_path_buf());
        }
    }
    Ok(())
}

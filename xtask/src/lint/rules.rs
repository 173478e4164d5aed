//! The rules themselves, one file at a time.

use std::path::{Path, PathBuf};

use super::source::{code_only, has_word};

/// Modules that may hold `unsafe`. Everything else forbids it; `docs/safety.md` states what each of these relies on.
const UNSAFE_MODULES: [&str; 18] = [
    "core/src/dma/region.rs",
    "core/src/dma/access.rs",
    "core/src/dma/device_buf.rs",
    "transport-pcie/src/grant.rs",
    "transport-pcie/src/mmio.rs",
    "transport-pcie/src/vfio/syscall.rs",
    "loopback/src/pci/grant.rs",
    "transport-rdma/src/sim/grant.rs",
    "loopback/src/rdma/grant.rs",
    "transport-rdma/src/sim/listen.rs",
    "tests/src/fuzz/rdma/listen.rs",
    "tests/src/dma_buf.rs",
    "transport-rdma/src/sys.rs",
    "transport-rdma/src/verbs/completion.rs",
    "transport-rdma/src/verbs/domain.rs",
    "transport-rdma/src/verbs/endpoint.rs",
    "transport-rdma/tests/sim/bench.rs",
    "tests/tests/allocations.rs",
];

/// What such a file begins with: why it needs unsafe code and on which rules its soundness rests.
const UNSAFE_PREAMBLE: &str = "// UNSAFETY:";

/// A file longer than this wants to be two.
const MAX_LINES: usize = 1000;

/// Code that says it is not finished, or a test that says it does not run.
const UNFINISHED: [&str; 5] = ["todo!(", "unimplemented!(", "dbg!(", "#[ignore", "#[allow("];

/// Words that promise later work or name somebody's machine; put together here so that this file passes its own rule.
const FORBIDDEN_WORDS: [&str; 8] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("T", "BD"),
    concat!("W", "IP"),
    concat!("coming", " soon"),
    concat!("lorem", " ipsum"),
    concat!("/wo", "rk/"),
];

/// One thing to mend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) what: String,
}

/// Everything wrong with one file; `exists` answers whether a path relative to the root is there (for links in documents).
pub(super) fn check(file: &Path, text: &str, exists: &dyn Fn(&Path) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report =
        |line: usize, what: String| findings.push(Finding { file: file.to_path_buf(), line, what });
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();

    for (line, text) in numbered(text) {
        for word in FORBIDDEN_WORDS {
            let found = if word.starts_with('/') { text.contains(word) } else { has_word(text, word) };
            if found {
                report(line, format!("says `{word}`"));
            }
        }
    }
    match extension {
        "rs" => rust(file, text, &mut report),
        "md" => links(file, text, exists, &mut report),
        "toml" if file.ends_with("Cargo.toml") => manifest(text, &mut report),
        _ => {}
    }
    findings
}

fn rust(file: &Path, text: &str, report: &mut dyn FnMut(usize, String)) {
    let lines = text.lines().count();
    if lines > MAX_LINES {
        report(lines, format!("{lines} lines: more than {MAX_LINES}, split it"));
    }
    let code = code_only(text);
    let mut first_unsafe = None;
    for (line, code) in numbered(&code) {
        for pattern in UNFINISHED {
            if code.contains(pattern) {
                report(line, format!("`{pattern}` is not for committed code"));
            }
        }
        if first_unsafe.is_none() && has_word(code, "unsafe") {
            first_unsafe = Some(line);
        }
    }
    let Some(line) = first_unsafe else { return };
    if !UNSAFE_MODULES.iter().any(|module| file == Path::new(module)) {
        report(
            line,
            format!("unsafe code outside the modules that may have it ({})", UNSAFE_MODULES.join(", ")),
        );
    }
    if !text.starts_with(UNSAFE_PREAMBLE) {
        report(1, format!("a file with unsafe code begins with `{UNSAFE_PREAMBLE}` and says why"));
    }
}

/// Every package takes the workspace's lints, the root manifest declares them; a package that is a workspace of its own has nobody to
/// take them from.
fn manifest(text: &str, report: &mut dyn FnMut(usize, String)) {
    let package = text.lines().any(|line| line.trim() == "[package]");
    let inherits = text.lines().skip_while(|line| line.trim() != "[lints]").nth(1).map(str::trim)
        == Some("workspace = true");
    let alone = text.lines().any(|line| line.trim() == "[workspace]");
    if package && !inherits && !alone {
        report(1, "does not inherit the workspace's lints (`[lints]` with `workspace = true`)".into());
    }
}

/// Relative links in documents lead somewhere.
fn links(file: &Path, text: &str, exists: &dyn Fn(&Path) -> bool, report: &mut dyn FnMut(usize, String)) {
    let mut fenced = false;
    for (line, text) in numbered(text) {
        fenced ^= text.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let target = link.0.split('#').next().unwrap_or_default().trim();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let path = normalise(&file.parent().unwrap_or(Path::new("")).join(target));
            if !exists(&path) {
                report(line, format!("links to `{target}`, which is not there"));
            }
        }
    }
}

/// `a/../b` is `b`.
fn normalise(path: &Path) -> PathBuf {
    use std::path::Component;
    path.components().fold(PathBuf::new(), |mut out, part| {
        match part {
            Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
        out
    })
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, text: &str) -> Vec<(usize, String)> {
        let exists = |path: &Path| path == Path::new("docs/there.md");
        check(Path::new(file), text, &exists)
            .into_iter()
            .map(|finding| (finding.line, finding.what))
            .collect()
    }

    #[test]
    fn unsafe_only_where_it_may_be_and_with_its_reasons() {
        let code = "//! Docs.\nfn f() { unsafe { g() } }\n";
        let elsewhere = found("core/src/qpair.rs", code);
        assert_eq!(elsewhere.len(), 2);
        assert!(elsewhere[0].1.contains("outside the modules"));
        assert_eq!(found("core/src/dma/region.rs", code).len(), 1);
        assert_eq!(found("core/src/dma/region.rs", &format!("// UNSAFETY: because.\n{code}")), []);
        assert_eq!(
            found("core/src/lib.rs", "#![forbid(unsafe_code)]\n// unsafe\nconst S: &str = \"unsafe\";\n"),
            []
        );
    }

    #[test]
    fn unfinished_code_is_found_in_code_only() {
        assert_eq!(found("a.rs", "fn f() {\n    todo!()\n}\n").len(), 1);
        assert_eq!(found("a.rs", "// never todo!()\nconst S: &str = \"todo!()\";\n"), []);
        assert_eq!(found("a.rs", "#[test]\n#[ignore]\nfn f() {}\n")[0].0, 2);
    }

    #[test]
    fn long_files_are_found() {
        assert_eq!(found("a.rs", &"\n".repeat(1000)), []);
        assert_eq!(found("a.rs", &"\n".repeat(1001)).len(), 1);
    }

    #[test]
    fn promises_are_found_everywhere() {
        assert_eq!(found("docs/a.md", concat!("fine\nTO", "DO later\n")).len(), 1);
        assert_eq!(found("docs/a.md", "mktemp XXXXXX, todos\n"), []);
    }

    #[test]
    fn links_lead_somewhere() {
        assert_eq!(
            found("docs/a.md", "[x](there.md) [y](../docs/there.md#part) [z](https://e.org) [h](#h)\n"),
            []
        );
        assert_eq!(found("docs/a.md", "[x](gone.md)\n").len(), 1);
    }

    #[test]
    fn packages_inherit_the_lints() {
        assert_eq!(found("a/Cargo.toml", "[package]\nname = \"a\"\n").len(), 1);
        assert_eq!(found("a/Cargo.toml", "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"), []);
        assert_eq!(found("Cargo.toml", "[workspace]\n"), []);
    }
}

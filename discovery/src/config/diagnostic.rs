//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// It is passed over, as nvme-cli passes over it; perhaps it was meant differently.
    Warning,
    /// The configuration is not to be used.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1; 0 is the file as a whole.
    pub line: usize,
    /// What is wrong. It quotes no secrets.
    pub what: String,
}

impl fmt::Display for Diagnostic {
    /// `file:line: what`, warnings marked as such.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line != 0 {
            write!(f, ":{}", self.line)?;
        }
        match self.severity {
            Severity::Warning => write!(f, ": warning: {}", self.what),
            Severity::Error => write!(f, ": {}", self.what),
        }
    }
}

/// A configuration that is not to be used: at least one error, and everything else that was noticed.
#[derive(Clone, Debug, thiserror::Error)]
pub struct ConfigError {
    diagnostics: Vec<Diagnostic>,
}

impl ConfigError {
    pub(super) fn new(diagnostics: Vec<Diagnostic>) -> Self {
        Self { diagnostics }
    }

    /// Everything that was noticed, in the order of the files.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

impl fmt::Display for ConfigError {
    /// The first error, and how many more there are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        if let Some(first) = errors.next() {
            write!(f, "{first}")?;
        }
        match errors.count() {
            0 => Ok(()),
            more => write!(f, " (and {more} more; `nvmf config validate` lists them)"),
        }
    }
}

/// Diagnostics of one file that is being read.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) file: Arc<Path>,
    pub(super) found: Vec<Diagnostic>,
}

/// More of them from one file say nothing new, and would cost memory.
const MAX_DIAGNOSTICS: usize = 1000;

impl Report {
    pub(super) fn new(file: impl Into<PathBuf>) -> Self {
        let file: PathBuf = file.into();
        Self { file: file.into(), found: Vec::new() }
    }

    pub(super) fn error(&mut self, line: usize, what: impl Into<String>) {
        self.add(Severity::Error, line, what.into());
    }

    pub(super) fn warning(&mut self, line: usize, what: impl Into<String>) {
        self.add(Severity::Warning, line, what.into());
    }

    fn add(&mut self, severity: Severity, line: usize, what: String) {
        let what = match self.found.len() {
            ..MAX_DIAGNOSTICS => what,
            MAX_DIAGNOSTICS => "and so on".to_owned(),
            // An error must not be lost behind warnings.
            _ if severity == Severity::Error && self.found.iter().all(|d| d.severity < severity) => what,
            _ => return,
        };
        self.found.push(Diagnostic { severity, file: Arc::clone(&self.file), line, what });
    }
}

/// Whether there is a key in a word, or what looks like one.
pub(super) fn has_key(word: &str) -> bool {
    word.contains("DHHC-") || word.contains("NVMeTLSkey")
}

/// What is said of a key that stands where something else belongs, which would be displayed.
pub(super) const MISPLACED_KEY: &str = "a key does not belong here";

/// A word of the file in a message: short, on one line, and never a secret.
pub(super) fn quoted(word: &str) -> String {
    const LONGEST: usize = 64;
    if has_key(word) {
        return "<secret>".to_owned();
    }
    match word.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &word[..end]),
        None => format!("{word:?}"),
    }
}

/// The nearest of `known`, as "did you mean".
pub(super) fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    // As clap does it.
    const SIMILAR: f64 = 0.7;
    let word: String = word.chars().take(128).collect::<String>().to_ascii_lowercase().replace('_', "-");
    let nearest = known
        .into_iter()
        .map(|name| {
            let plain = name.to_ascii_lowercase().replace('_', "-");
            (strsim::osa_distance(&word, &plain), strsim::jaro_winkler(&word, &plain), name)
        })
        // Jaro and Winkler do not take two letters of a short word that changed places for a likeness.
        .filter(|(distance, similarity, _)| *similarity > SIMILAR || word.len() > 2 && *distance == 1)
        .min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    match nearest {
        Some((.., name)) => format!("; did you mean {name:?}?"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_quoted() {
        assert_eq!(quoted("DHHC-1:00:abc:"), "<secret>");
        assert_eq!(quoted("key=NVMeTLSkey-1:01:abc:"), "<secret>");
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert!(quoted(&"é".repeat(200)).chars().count() < 70);
    }

    #[test]
    fn nearest_names() {
        assert_eq!(suggestion("tradr", ["transport", "traddr"]), "; did you mean \"traddr\"?");
        assert_eq!(suggestion("keep_alive_tm", ["keep-alive-tmo"]), "; did you mean \"keep-alive-tmo\"?");
        assert_eq!(suggestion("zzz", ["traddr"]), "");
    }

    #[test]
    fn errors_are_not_lost_behind_warnings() {
        let mut report = Report::new("f");
        (0..5000).for_each(|line| report.warning(line, "w"));
        report.error(9, "e");
        assert!(report.found.len() < 1100);
        assert_eq!(report.found.last().map(ToString::to_string).as_deref(), Some("f:9: e"));
    }
}

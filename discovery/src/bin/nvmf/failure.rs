//! How the program fails: one line, and an exit code.

use std::fmt::Display;
use std::io::{self, Write};

use nvmf_core::{Error, ErrorKind};

/// The exit code for data that do not match, failed I/O, and local files.
const FAILED: u8 = 1;
/// The exit code for a command line that makes no sense.
const USAGE: u8 = 2;
/// The exit code for a target that cannot be reached or attached, or was lost.
const UNREACHABLE: u8 = 3;

/// Why the program ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// `None` ends without a word.
    line: Option<String>,
}

impl Failure {
    fn new(code: u8, line: impl Display) -> Self {
        Self { code, line: Some(one_line(&line.to_string())) }
    }

    /// The command line is wrong.
    pub(crate) fn usage(line: impl Display) -> Self {
        Self::new(USAGE, line)
    }

    /// Data do not match, an I/O failed, or a local file could not be used.
    pub(crate) fn failed(line: impl Display) -> Self {
        Self::new(FAILED, line)
    }

    /// The target cannot be reached or attached.
    pub(crate) fn unreachable(line: impl Display) -> Self {
        Self::new(UNREACHABLE, line)
    }

    /// A local file could not be used.
    pub(crate) fn file(doing: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::failed(format!("{doing} {}: {error}", path.display()))
    }

    /// Nothing more to say, and nothing wrong: help was printed.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, line: None }
    }

    /// Standard output could not be written. A reader that has seen enough and closed the pipe is no failure.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(0),
            _ => Self::failed(format!("writing standard output: {error}")),
        }
    }

    /// An error of discovery or attaching.
    pub(crate) fn attach(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ApiMisuse(_) | ErrorKind::Address(_) => Self::new(USAGE, error),
            _ => Self::new(UNREACHABLE, error),
        }
    }

    /// What to print after `nvmf: `.
    pub(crate) fn line(&self) -> Option<&str> {
        self.line.as_deref()
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }
}

/// An error of an attached controller or its queue pairs.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::ApiMisuse(_) | ErrorKind::Address(_) => USAGE,
            ErrorKind::TimedOut { .. }
            | ErrorKind::Disconnected(_)
            | ErrorKind::Transport(_)
            | ErrorKind::Terminated { .. }
            | ErrorKind::PeerMisbehaved(_)
            | ErrorKind::Pdu { .. }
            | ErrorKind::ControllerFatal => UNREACHABLE,
            _ => FAILED,
        };
        Self::new(code, error)
    }
}

/// Says something on standard error that is no reason to end.
pub(crate) fn complain(line: impl Display) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "nvmf: {}", one_line(&line.to_string()));
}

/// A message and what comes after it, punctuated.
pub(crate) fn and(message: impl Display, more: impl Display) -> String {
    let message = message.to_string();
    let separator = if message.ends_with('?') { "" } else { ";" };
    format!("{message}{separator} {more}")
}

/// Messages may quote what a peer or a user said; whatever it is, it stays on one line and does not drive the terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }));
    }
    line
}

#[cfg(test)]
mod tests {
    use nvmf_core::spec::status::CommandKind;

    use super::*;

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(Failure::failed("a\n  b\r\n\tc\u{1b}[2J").line(), Some("a b c\u{fffd}[2J"));
    }

    #[test]
    fn hints_follow_questions_and_statements() {
        assert_eq!(and("refused; is it there?", "try -s 4420"), "refused; is it there? try -s 4420");
        assert_eq!(and("refused", "try -s 4420"), "refused; try -s 4420");
    }

    #[test]
    fn codes_follow_the_fault() {
        assert_eq!(Failure::usage("x").code(), 2);
        assert_eq!(Failure::from(Error::disconnected("end of stream")).code(), 3);
        assert_eq!(Failure::from(Error::api_misuse("odd length")).code(), 2);
        let status = nvmf_core::spec::Status::new(2, 0x81);
        assert_eq!(Failure::from(Error::command(CommandKind::Nvm, "Read", status)).code(), 1);
        assert_eq!(
            Failure::attach(&Error::command(CommandKind::Fabrics, "Fabrics Connect", status)).code(),
            3
        );
    }

    #[test]
    fn closed_pipe_is_quiet() {
        let failure = Failure::stdout(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.code(), failure.line()), (0, None));
    }
}

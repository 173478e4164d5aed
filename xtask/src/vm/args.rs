//! The command line of `cargo xtask vm`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

pub(super) const HELP: &str = "\
cargo xtask vm [OPTIONS] [SUITE[::TEXT]...]

Runs the suites under tests/vm/suites in a QEMU guest; when none is named all of them, except those that
only measure (rdma-perf). `tcp::io` runs the tests of suite tcp whose name contains `io` (the suite's set-up always runs).

  --list            name the tests and stop
  -k, --kernel VER  guest kernel: a version unpacked before, in /boot, or to be downloaded (default: Debian's newest 6.12)
  --dev             test the dev build of nvmf instead of the release build (NVMF_BIN=FILE: test that program)
  -j, --lanes N     so many guests at a time, each with a suite (default: 2; with --icount 1)
  --keep-log FILE   write the guest's whole output and kernel log to FILE
  --icount          the guest's time counts instructions, 500 million per second, on all its processors in turn: slow, but
                    measurements do not depend on what else this machine does
  -v, --verbose     show the output of passing tests too
";

/// A suite, or the tests of it whose name contains a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) suite: String,
    pub(super) text: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Args {
    /// Empty: everything.
    pub(super) selection: Vec<Selector>,
    pub(super) list: bool,
    pub(super) kernel: Option<String>,
    pub(super) dev: bool,
    pub(super) keep_log: Option<PathBuf>,
    pub(super) verbose: bool,
    pub(super) icount: bool,
    /// Guests at a time, if it is said.
    pub(super) lanes: Option<usize>,
}

impl Args {
    /// `None` when help was asked for.
    pub(super) fn parse(args: &[String]) -> Result<Option<Self>> {
        let mut parsed = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("`{arg}` needs a value"));
            match arg.as_str() {
                "-h" | "--help" => return Ok(None),
                "--list" => parsed.list = true,
                "--dev" => parsed.dev = true,
                "--icount" => parsed.icount = true,
                "-v" | "--verbose" => parsed.verbose = true,
                "-j" | "--lanes" => {
                    let lanes = value()?;
                    let number = lanes.parse().ok().filter(|&number| number > 0);
                    parsed.lanes = Some(number.with_context(|| format!("`{lanes}` is no number of guests"))?);
                }
                "-k" | "--kernel" => parsed.kernel = Some(value()?.clone()),
                "--keep-log" => parsed.keep_log = Some(value()?.into()),
                option if option.starts_with('-') => bail!("unknown option `{option}`\n\n{HELP}"),
                suite => {
                    let (suite, text) = match suite.split_once("::") {
                        Some((suite, text)) => (suite, Some(text.to_owned())),
                        None => (suite, None),
                    };
                    parsed.selection.push(Selector { suite: suite.to_owned(), text });
                }
            }
        }
        // What counts instructions is to be repeatable in every way.
        parsed.lanes = parsed.lanes.or(parsed.icount.then_some(1));
        Ok(Some(parsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Option<Args>> {
        Args::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn suites_and_options() {
        let args = parse(&["tcp::io", "-k", "6.1.0-1-amd64", "rdma", "--keep-log", "log"]).unwrap().unwrap();
        assert_eq!(args.selection[0], Selector { suite: "tcp".into(), text: Some("io".into()) });
        assert_eq!(args.selection[1], Selector { suite: "rdma".into(), text: None });
        assert_eq!(args.kernel.as_deref(), Some("6.1.0-1-amd64"));
        assert_eq!(args.keep_log, Some("log".into()));
        assert!(!args.list && !args.dev && !args.verbose && args.lanes.is_none());
        assert_eq!(parse(&["-j", "3"]).unwrap().unwrap().lanes, Some(3));
        assert_eq!(parse(&["--icount"]).unwrap().unwrap().lanes, Some(1));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(parse(&["--kernel"]).unwrap_err().to_string().contains("--kernel"));
        assert!(parse(&["--bogus"]).unwrap_err().to_string().contains("--bogus"));
        assert!(parse(&["--lanes", "0"]).unwrap_err().to_string().contains('0'));
        assert_eq!(parse(&["--help"]).unwrap(), None);
    }
}

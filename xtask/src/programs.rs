//! Programs of this workspace that steps run. However many there are, one cargo invocation builds them (and one the examples).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell;

/// A build that takes longer is told of.
const WORTH_TELLING: Duration = Duration::from_secs(5);

/// `nvmf`, and what else is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Programs {
    /// The dev build instead of the release build.
    pub(crate) dev: bool,
    /// Of the package `nvmf-tests`.
    tests: BTreeSet<String>,
    /// Of the package `nvmf-discovery`; always the dev build.
    examples: BTreeSet<String>,
}

impl Programs {
    /// `nvmf` alone.
    pub(crate) fn release() -> Self {
        Self::default()
    }

    pub(crate) fn tests<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.tests.extend(names.into_iter().map(Into::into));
        self
    }

    pub(crate) fn examples<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.examples.extend(names.into_iter().map(Into::into));
        self
    }

    pub(crate) fn has_others(&self) -> bool {
        !self.tests.is_empty() || !self.examples.is_empty()
    }

    /// The arguments of cargo for all but the examples. Always both packages, so that one build does not undo another's choice of
    /// features.
    fn arguments(&self) -> Vec<&str> {
        let mut args = vec!["build", "--quiet", "-p", "nvmf-discovery", "-p", "nvmf-tests", "--bin", "nvmf"];
        args.extend(self.tests.iter().flat_map(|name| ["--bin", name]));
        if !self.dev {
            args.push("--release");
        }
        args
    }

    /// The arguments of cargo for the examples: as `cargo test --workspace` builds them, so that it need not be done twice.
    fn example_arguments(&self) -> Vec<&str> {
        let mut args = vec!["build", "--quiet", "--workspace"];
        args.extend(self.examples.iter().flat_map(|name| ["--example", name]));
        args
    }

    pub(crate) fn build(&self) -> Result<()> {
        let began = Instant::now();
        let names = || {
            let all =
                std::iter::once("nvmf").chain(self.tests.iter().chain(&self.examples).map(String::as_str));
            all.collect::<Vec<_>>().join(", ")
        };
        let run = |args| shell::run(&mut shell::cargo(args)?).with_context(|| format!("build {}", names()));
        run(self.arguments())?;
        if !self.examples.is_empty() {
            run(self.example_arguments())?;
        }
        if began.elapsed() > WORTH_TELLING {
            println!("built {} in {:.0} s", names(), began.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Where one of them is.
    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        let example = self.examples.contains(name);
        let mut path = shell::target_dir()?.join(if self.dev || example { "debug" } else { "release" });
        if example {
            path.push("examples");
        }
        path.push(name);
        if !path.is_file() {
            bail!("the build left no program at {}", path.display());
        }
        Ok(path)
    }

    /// All but `nvmf`, by name.
    pub(crate) fn others(&self) -> Result<Vec<(String, PathBuf)>> {
        let names = self.tests.iter().chain(&self.examples);
        names.map(|name| Ok((name.clone(), self.path(name)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_invocation_for_all() {
        let programs = Programs::release().tests(["b", "a", "b"]).examples(["c"]);
        let expected = "build --quiet -p nvmf-discovery -p nvmf-tests --bin nvmf --bin a --bin b --release";
        assert_eq!(programs.arguments().join(" "), expected);
        assert_eq!(programs.example_arguments().join(" "), "build --quiet --workspace --example c");
        assert!(!Programs { dev: true, ..programs }.arguments().contains(&"--release"));
    }
}

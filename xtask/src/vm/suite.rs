//! Suites: a folder under `tests/vm/suites` with a `suite.conf`, a `setup.sh` that runs first, an optional `after-each.sh`, and
//! one script per test. A script's first comment says what it shows; `# deadline: SECONDS` changes how long it may take.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::args::Selector;
use super::disk::Disk;
use crate::apt::Tool;

/// Emulation is ten times slower than the real thing, and the machine may be busy with builds.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// The script every boot begins with; reported like a test.
pub(super) const SETUP: &str = "setup";

/// Runs after each test, whatever became of it.
pub(super) const AFTER_EACH: &str = "after-each";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) deadline: Duration,
}

#[derive(Debug)]
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) conf: Conf,
    pub(super) setup: Test,
    pub(super) tests: Vec<Test>,
}

/// `suite.conf`: what the suite's guest has. `key: words`, keys may repeat, `#` comments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Conf {
    /// Kernel modules to have in the guest (with what they depend on); `?name` may be missing from a kernel.
    pub(super) modules: Vec<String>,
    /// Host programs to have in the guest with their libraries, and the package of each: `nvme=nvme-cli`.
    pub(super) programs: Vec<(String, String)>,
    /// Host files to have in the guest at the same path, and the package of each; `*` stands for any part of a name. A shared
    /// library brings the libraries it needs: this is for what programs load by name at run time.
    pub(super) files: Vec<(String, String)>,
    /// `by-name: yes` leaves the suite out of a run of everything.
    pub(super) by_name: bool,
    /// Memory, as QEMU takes it.
    pub(super) memory: Option<String>,
    /// More QEMU arguments (devices, another machine type); `%run%` in them is a directory of this run's own.
    pub(super) qemu: Vec<String>,
    /// More of the kernel's command line.
    pub(super) append: Vec<String>,
    /// Disks whose content the host checks in the end.
    pub(super) disks: Vec<Disk>,
    /// Programs of the `nvmf-tests` package to have in the guest.
    pub(super) tests: Vec<String>,
    /// Examples of the `nvmf-discovery` package to have in the guest.
    pub(super) examples: Vec<String>,
}

impl Conf {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut conf = Self::default();
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
            if line.is_empty() {
                continue;
            }
            let (key, words) =
                line.split_once(':').with_context(|| format!("`{line}` is not `key: words`"))?;
            let mut words = words.split_whitespace().map(str::to_owned);
            match key.trim() {
                "modules" => conf.modules.extend(words),
                "programs" => conf.programs.extend(words.map(|word| with_package(&word))),
                "files" => conf.files.extend(words.map(|word| with_package(&word))),
                "by-name" => conf.by_name = words.next().as_deref() == Some("yes"),
                "memory" => conf.memory = words.next(),
                "qemu" => conf.qemu.extend(words),
                "append" => conf.append.extend(words),
                "disk" => conf.disks.push(Disk::parse(&words.collect::<Vec<_>>())?),
                "tests" => conf.tests.extend(words),
                "examples" => conf.examples.extend(words),
                other => bail!(
                    "unknown key `{other}` (known: modules, programs, files, by-name, memory, qemu, append, disk, tests, examples)"
                ),
            }
        }
        Ok(conf)
    }

    /// The programs and files as tools the host must have.
    pub(super) fn tools(&self) -> impl Iterator<Item = Tool<'_>> {
        self.programs.iter().chain(&self.files).map(|(program, package)| Tool::new(program, package))
    }
}

/// `program=package`; a program alone is its own package.
fn with_package(word: &str) -> (String, String) {
    let (program, package) = word.split_once('=').unwrap_or((word, word));
    (program.to_owned(), package.to_owned())
}

impl Suite {
    fn load(dir: PathBuf) -> Result<Self> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let conf_file = dir.join("suite.conf");
        let conf =
            std::fs::read_to_string(&conf_file).with_context(|| format!("read {}", conf_file.display()))?;
        let conf = Conf::parse(&conf).with_context(|| format!("in {}", conf_file.display()))?;
        let mut scripts = Vec::new();
        for entry in std::fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "sh") {
                let text =
                    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                scripts.push(test(&stem, &text).with_context(|| format!("in {}", path.display()))?);
            }
        }
        scripts.sort_by(|a, b| a.name.cmp(&b.name));
        let setup = scripts.iter().position(|test| test.name == SETUP);
        let setup = scripts.remove(setup.with_context(|| format!("suite {name} has no {SETUP}.sh"))?);
        scripts.retain(|test| test.name != AFTER_EACH);
        Ok(Self { name, dir, conf, setup, tests: scripts })
    }

    /// How long it may take, all in all: where that is more it does take longer.
    pub(super) fn weight(&self) -> Duration {
        self.tests.iter().map(|test| test.deadline).sum()
    }
}

fn test(name: &str, text: &str) -> Result<Test> {
    let mut comments = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    let about = comments.clone().find(|line| !line.starts_with('!')).unwrap_or_default();
    let deadline = match comments.find_map(|line| line.strip_prefix("deadline:")) {
        Some(seconds) => Duration::from_secs(seconds.trim().parse().context("`# deadline:` takes seconds")?),
        None => DEFAULT_DEADLINE,
    };
    Ok(Test { name: name.to_owned(), about: about.to_owned(), deadline })
}

/// The suites under `dir` that `selection` asks for, each with the tests it asks for; naming nothing there is an error. An empty
/// selection asks for every suite, but for those that run by name only unless `by_name_too`.
pub(super) fn select(dir: &Path, selection: &[Selector], by_name_too: bool) -> Result<Vec<Suite>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut dirs: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("suite.conf").is_file())
        .collect();
    dirs.sort();
    let all = dirs.into_iter().map(Suite::load).collect::<Result<Vec<Suite>>>()?;
    let known = all.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>().join(", ");
    for Selector { suite, text } in selection {
        let Some(found) = all.iter().find(|candidate| candidate.name == *suite) else {
            bail!("no suite `{suite}` (there are: {known})");
        };
        if let Some(text) = text
            && !found.tests.iter().any(|test| test.name.contains(text.as_str()))
        {
            bail!("no test of suite `{suite}` has `{text}` in its name; see --list");
        }
    }
    if selection.is_empty() {
        return Ok(all.into_iter().filter(|suite| by_name_too || !suite.conf.by_name).collect());
    }
    Ok(all.into_iter().filter_map(|suite| narrow(suite, selection)).collect())
}

fn narrow(mut suite: Suite, selection: &[Selector]) -> Option<Suite> {
    let mine: Vec<&Selector> = selection.iter().filter(|selector| selector.suite == suite.name).collect();
    suite.tests.retain(|test| {
        mine.iter()
            .any(|selector| selector.text.as_ref().is_none_or(|text| test.name.contains(text.as_str())))
    });
    (!suite.tests.is_empty()).then_some(suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conf_keys_collect_and_unknown_ones_are_refused() {
        let conf =
            Conf::parse("# c\nmodules: a ?b # more\nmodules: c\nprograms: nvme=nvme-cli ip\nmemory: 2G\n")
                .unwrap();
        assert_eq!(conf.modules, ["a", "?b", "c"]);
        assert!(conf.files.is_empty() && !conf.by_name);
        assert_eq!(conf.programs, [("nvme".into(), "nvme-cli".into()), ("ip".into(), "ip".into())]);
        assert_eq!(conf.memory.as_deref(), Some("2G"));
        let conf = Conf::parse("files: /usr/lib/*/libx.so.1=libx1\nby-name: yes\n").unwrap();
        assert_eq!(conf.files, [("/usr/lib/*/libx.so.1".into(), "libx1".into())]);
        assert!(conf.by_name);
        assert_eq!(conf.tools().next(), Some(Tool::new("/usr/lib/*/libx.so.1", "libx1")));
        assert!(Conf::parse("module: a").unwrap_err().to_string().contains("module"));
        assert!(Conf::parse("modules a").is_err());
        let conf = Conf::parse("disk: h0 16M\ndisk: h1 1G\ntests: conformance\n").unwrap();
        assert_eq!(conf.disks.iter().map(|disk| disk.size).collect::<Vec<_>>(), [16 << 20, 1 << 30]);
        assert_eq!(conf.tests, ["conformance"]);
        assert!(Conf::parse("disk: h0\n").is_err());
    }

    #[test]
    fn scripts_describe_themselves() {
        let found = test("io", "#!/bin/sh\n# Data survives.\n# deadline: 240\n. /lib.sh\n").unwrap();
        assert_eq!((found.about.as_str(), found.deadline.as_secs()), ("Data survives.", 240));
        assert_eq!(test("io", "echo\n").unwrap().deadline, DEFAULT_DEADLINE);
        assert!(test("io", "# deadline: soon\n").is_err());
    }
}

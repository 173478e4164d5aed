//! One boot of a guest: QEMU with its two serial lines going to files (kernel log, test output), watched until the plan is through,
//! a deadline passes or the guest is gone.

use std::fmt;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::disk::Claim;
use super::kernel::Kernel;
use super::protocol::{self, Line};
use super::suite::{Suite, Test};
use crate::shell;

/// From QEMU's start to the first script.
const BOOT_DEADLINE: Duration = Duration::from_secs(240);

/// From QEMU's start to the kernel's first line, which takes some seconds. It happens, rarely, that none ever comes.
const FIRST_LINE: Duration = Duration::from_secs(90);

/// init itself ends a script that passes its deadline, and `after-each.sh` has its own 90 s; when not even that is heard this much
/// later, the guest is stuck.
const GRACE: Duration = Duration::from_secs(120);

/// From the end of the plan to QEMU's end.
const POWER_OFF: Duration = Duration::from_secs(60);

/// The kernel's command line. Notices are shown, of which its version is the first. A panic reboots at once, and `-no-reboot` makes
/// that QEMU's end. The kernel does not check that the timer interrupts in time: on a busy host it may not, and with interrupt
/// remapping that would be a panic.
const COMMAND_LINE: &str = "console=ttyS0,115200 loglevel=6 panic=-1 oops=panic random.trust_cpu=on mitigations=off nokaslr \
     no_timer_check tsc=nowatchdog nowatchdog audit=0 net.ifnames=0";

/// Processors that run at the same time, by the host's clock.
const CLOCKED: [&str; 2] = ["-accel", "tcg,thread=multi,tb-size=512"];

/// Processors that take turns; an instruction takes 2 ns of the guest's time, and time without any is skipped.
const COUNTING: [&str; 4] = ["-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=1,sleep=off"];

/// Stands for this run's own directory in the QEMU arguments of a suite: for sockets, say.
const RUN_DIR: &str = "%run%";

/// What became of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed(i32),
    Deadline(Duration),
    /// The guest ended or fell silent meanwhile.
    GuestLost(String),
    /// The host does not find on a disk what the script said it holds.
    OnDisk(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("ok"),
            Self::Failed(code) => write!(f, "FAILED (exit status {code})"),
            Self::Deadline(limit) => write!(f, "FAILED (killed after {} s)", limit.as_secs()),
            Self::GuestLost(how) => write!(f, "FAILED (guest lost: {how})"),
            Self::OnDisk(what) => write!(f, "FAILED ({what})"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Report {
    /// `suite::test`.
    pub(super) name: String,
    pub(super) verdict: Verdict,
    output: String,
    kernel_log: String,
}

impl Report {
    fn is_of(&self, suite: &Suite, test: &Test) -> bool {
        self.name == format!("{}::{}", suite.name, test.name)
    }

    /// The end of what it printed and of what the kernel said meanwhile.
    pub(super) fn evidence(&self) -> String {
        let mut text = shell::tail(&self.output, 50);
        if !self.kernel_log.trim().is_empty() {
            text.push_str("\n-- kernel log\n");
            // A panic's first lines, which say why, stand above its registers and call trace.
            let lines = if matches!(self.verdict, Verdict::GuestLost(_)) { 80 } else { 25 };
            text.push_str(&shell::tail(&self.kernel_log, lines));
        }
        text
    }
}

/// What one boot brought.
#[derive(Debug, Default)]
pub(super) struct Boot {
    pub(super) reports: Vec<Report>,
    /// How many of the planned tests (the set-up not counted) have a report now.
    pub(super) finished: usize,
    pub(super) setup_failed: bool,
    /// The guest was lost by no doing of its programs: QEMU died of a signal, never came so far as to start the first of them, or
    /// executed what was no longer there ([`is_stale_code`]).
    pub(super) qemu_failed: bool,
}

impl Boot {
    /// Takes the last report back, as if its test had not been run.
    pub(super) fn take_last_report(&mut self, suite: &Suite) -> Option<Report> {
        let report = self.reports.pop()?;
        if report.is_of(suite, &suite.setup) {
            self.setup_failed = false;
        } else {
            self.finished -= 1;
        }
        Some(report)
    }

    fn add(&mut self, report: Report, suite: &Suite) {
        if report.is_of(suite, &suite.setup) {
            self.setup_failed = report.verdict != Verdict::Passed;
        } else {
            self.finished += 1;
        }
        self.reports.push(report);
    }
}

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub(super) struct Guest {
    qemu: Child,
    /// Holds the initramfs and the serial lines; removed at the end.
    dir: PathBuf,
    started: Instant,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Nothing to do about failures: it has ended already, or the folder is left for the next `cargo clean`.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Guest {
    pub(super) fn start(
        suite: &Suite,
        kernel: &Kernel,
        base: &Path,
        overlay: &[u8],
        cache: &Path,
        icount: bool,
    ) -> Result<Self> {
        let dir = cache.join(format!("run-{}-{}", suite.name, std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let initrd = dir.join("initrd");
        std::fs::copy(base, &initrd).with_context(|| format!("copy {}", base.display()))?;
        File::options().append(true).open(&initrd)?.write_all(overlay)?;
        for serial in ["console", "out"] {
            File::create(dir.join(serial))?;
        }
        for disk in &suite.conf.disks {
            disk.create(&dir)?;
        }
        let mut qemu = qemu_command();
        // Scripts can tell.
        let counting = if icount { " vm.icount" } else { "" };
        qemu.args(["-display", "none", "-no-reboot", "-nodefaults", "-smp", "2"])
            .args(["-cpu", "max,la57=off"])
            .args(if icount { &COUNTING[..] } else { &CLOCKED[..] })
            .args(["-m", suite.conf.memory.as_deref().unwrap_or("1G")])
            .arg("-kernel")
            .arg(kernel.image())
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", &format!("{COMMAND_LINE} {}{counting}", suite.conf.append.join(" "))]);
        for serial in ["console", "out"] {
            let path = dir.join(serial);
            qemu.args(["-chardev", &format!("file,id={serial},path={}", path.display())])
                .args(["-serial", &format!("chardev:{serial}")]);
        }
        qemu.args(suite.conf.qemu.iter().map(|word| word.replace(RUN_DIR, &dir.to_string_lossy())));
        let errors = File::create(dir.join("qemu"))?;
        qemu.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
        let qemu = qemu.spawn().context("start qemu-system-x86_64")?;
        Ok(Self { qemu, dir, started: Instant::now() })
    }

    /// Watches the guest work through the suite's set-up and `tests`, printing each result as it comes.
    pub(super) fn run(
        mut self,
        suite: &Suite,
        tests: &[Test],
        verbose: bool,
        keep_log: Option<&Path>,
    ) -> Result<Boot> {
        let mut serial = Follow::open(&self.dir.join("out"))?;
        let mut watch = Watch::new(suite, tests, verbose);
        let lost = loop {
            let exit = self.qemu.try_wait().context("wait for QEMU")?;
            for line in serial.lines(exit.is_some())? {
                watch.line(&line);
            }
            if watch.done {
                break None;
            }
            if let Some(status) = exit {
                let complaint = complaint(&self.read("console")).map(str::to_owned);
                watch.boot.qemu_failed =
                    status.signal().is_some() || complaint.as_deref().is_some_and(is_stale_code);
                break Some(self.how_qemu_ended(status, complaint.as_deref()));
            }
            if Instant::now() > watch.deadline {
                // Nothing of ours has run in a guest that has not said a word.
                watch.boot.qemu_failed = self.read("out").is_empty();
                break Some("no sign of life".to_owned());
            }
            if self.started.elapsed() > FIRST_LINE && self.is_silent() {
                watch.boot.qemu_failed = true;
                break Some(format!(
                    "not a word from its kernel in {} s, in which QEMU had {} of a processor",
                    FIRST_LINE.as_secs(),
                    self.processor_time()
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let console = self.read("console");
        if let Some(path) = keep_log {
            let log =
                format!("---- {} output\n{}\n---- kernel log\n{console}\n", suite.name, self.read("out"));
            let file = File::options().create(true).append(true).open(path);
            file.and_then(|mut file| file.write_all(log.as_bytes()))
                .with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(how) = lost {
            watch.lost(how, console);
        }
        if !suite.conf.disks.is_empty() {
            // QEMU has to be gone before its disks are looked at.
            self.end()?;
        }
        watch.check_disks(&self.dir);
        Ok(watch.boot)
    }

    /// Waits for QEMU's end, which the guest has asked for, and enforces it in the end.
    fn end(&mut self) -> Result<()> {
        let deadline = Instant::now() + POWER_OFF;
        while self.qemu.try_wait().context("wait for QEMU")?.is_none() {
            if Instant::now() > deadline {
                self.qemu.kill().context("end QEMU")?;
                self.qemu.wait().context("wait for QEMU")?;
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn how_qemu_ended(&self, status: ExitStatus, complaint: Option<&str>) -> String {
        let said = self.read("qemu");
        match said.trim() {
            "" if status.success() => match complaint {
                Some(complaint) => format!("its kernel panicked: {complaint}"),
                None => "it shut down".to_owned(),
            },
            "" => format!("QEMU ended with {status}"),
            said => format!("QEMU ended with {status}: {}", shell::tail(said, 3)),
        }
    }

    /// Neither the kernel nor anything else has written to the serial lines.
    fn is_silent(&self) -> bool {
        ["console", "out"]
            .iter()
            .all(|serial| std::fs::metadata(self.dir.join(serial)).is_ok_and(|serial| serial.len() == 0))
    }

    /// What QEMU's threads have computed so far: whether it span or stood still.
    fn processor_time(&self) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.qemu.id())).unwrap_or_default();
        // utime and stime, the 12th and 13th field behind the name in brackets (proc_pid_stat(5)), in ticks of 10 ms.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks = fields.skip(11).take(2).map_while(|ticks| ticks.parse::<u64>().ok()).sum::<u64>();
        format!("{} s", ticks / 100)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read(self.dir.join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

/// What a kernel that panicked said first of it, without the time in front.
fn complaint(console: &str) -> Option<&str> {
    let panic = console.lines().position(|line| line.contains("Kernel panic"))?;
    let says = |line: &&str| {
        ["Oops: ", "BUG: ", "kernel BUG at ", "Kernel panic"].iter().any(|what| line.contains(what))
    };
    let line = console.lines().take(panic + 1).find(says)?;
    let time = line.split_once("] ").filter(|(time, _)| time.starts_with('['));
    Some(time.map_or(line, |(_, rest)| rest).trim())
}

/// A kernel changes its own code behind breakpoints (int3) that it takes away before it forgets about them, so no processor meets one
/// that the kernel does not know, and no program can bring that about. Under older QEMUs, as Debian 12's 7.2, one may: a processor
/// translates bytes while another changes them, and keeps what it translated (mended by deba78709a, "accel/tcg: Always lock pages
/// before translation", of July 2023).
fn is_stale_code(complaint: &str) -> bool {
    complaint.contains("Oops: int3")
}

/// QEMU, tied to this process where util-linux can do that: when xtask is killed, no guest is left behind.
fn qemu_command() -> std::process::Command {
    let qemu = "qemu-system-x86_64";
    if shell::find_program("setpriv").is_none() {
        return shell::command::<&str>(qemu, []);
    }
    let mut command = shell::command("setpriv", ["--pdeathsig", "KILL", "--"]);
    command.arg(shell::find_program(qemu).unwrap_or_else(|| qemu.into()));
    command
}

/// The state of a boot as read from its output.
struct Watch<'a> {
    suite: &'a Suite,
    tests: &'a [Test],
    verbose: bool,
    boot: Boot,
    /// The script now running.
    current: Option<&'a Test>,
    output: String,
    kernel_log: String,
    in_kernel_log: bool,
    /// What scripts said a disk holds in the end, with the script's name.
    claims: Vec<(String, String)>,
    deadline: Instant,
    done: bool,
}

impl<'a> Watch<'a> {
    fn new(suite: &'a Suite, tests: &'a [Test], verbose: bool) -> Self {
        Self {
            suite,
            tests,
            verbose,
            boot: Boot::default(),
            current: None,
            output: String::new(),
            kernel_log: String::new(),
            in_kernel_log: false,
            claims: Vec::new(),
            deadline: Instant::now() + BOOT_DEADLINE,
            done: false,
        }
    }

    fn line(&mut self, line: &str) {
        match protocol::parse(line) {
            Line::Begin(name) => {
                self.current =
                    std::iter::once(&self.suite.setup).chain(self.tests).find(|test| test.name == name);
                self.deadline = Instant::now() + self.current.map_or(GRACE, |test| test.deadline + GRACE);
                self.output.clear();
                self.kernel_log.clear();
                self.in_kernel_log = false;
            }
            Line::Kernel => self.in_kernel_log = true,
            Line::End { name, code, seconds } => {
                let Some(test) = self.current.filter(|test| test.name == name) else { return };
                let verdict = match code {
                    0 => Verdict::Passed,
                    // What init says for a script it had to kill.
                    124 => Verdict::Deadline(test.deadline),
                    code => Verdict::Failed(code),
                };
                self.report(verdict, seconds);
                self.deadline = Instant::now() + GRACE;
            }
            Line::Disk(claim) => {
                let Some(test) = self.current else { return };
                self.claims.push((format!("{}::{}", self.suite.name, test.name), claim.to_owned()));
            }
            Line::Done => self.done = true,
            Line::Text(text) => {
                let into = if self.in_kernel_log { &mut self.kernel_log } else { &mut self.output };
                into.push_str(text);
                into.push('\n');
            }
        }
    }

    /// The guest is gone: the running script (or the next, if it went between two) has to answer for it.
    fn lost(&mut self, how: String, console: String) {
        let next = if self.boot.reports.is_empty() {
            Some(&self.suite.setup)
        } else {
            self.tests.get(self.boot.finished)
        };
        self.current = self.current.or(next);
        self.kernel_log = console;
        if self.current.is_some() {
            self.report(Verdict::GuestLost(how), 0.0);
        }
    }

    /// Compares the disks with what scripts said they hold; a script that was wrong has failed.
    fn check_disks(&mut self, dir: &Path) {
        let disks = &self.suite.conf.disks;
        let mut right = 0;
        for (name, claim) in std::mem::take(&mut self.claims) {
            let Err(error) = Claim::parse(&claim).and_then(|claim| claim.check(dir, disks)) else {
                right += 1;
                continue;
            };
            let Some(report) = self.boot.reports.iter_mut().find(|report| report.name == name) else {
                continue;
            };
            if report.verdict == Verdict::Passed {
                report.verdict = Verdict::OnDisk(format!("{error:#}"));
                println!("  {name:<24} {}", report.verdict);
                self.boot.setup_failed |= name.ends_with(&format!("::{}", self.suite.setup.name));
            }
        }
        if right > 0 {
            let suite = &self.suite.name;
            println!(
                "  {suite}, on its disks, seen from the host: {right} places hold what was written there"
            );
        }
    }

    fn report(&mut self, verdict: Verdict, seconds: f64) {
        let Some(test) = self.current.take() else { return };
        let name = format!("{}::{}", self.suite.name, test.name);
        // At once: other suites tell of theirs at the same time.
        let mut told = format!("  {name:<24} {verdict}, {seconds:.1} s");
        for line in self.output.lines() {
            // Measurements and counts a passing test wants seen.
            if self.verbose || (verdict == Verdict::Passed && line.starts_with("note: ")) {
                told.push_str("\n      ");
                told.push_str(line.strip_prefix("note: ").unwrap_or(line));
            }
        }
        println!("{told}");
        let (output, kernel_log) = (std::mem::take(&mut self.output), std::mem::take(&mut self.kernel_log));
        self.boot.add(Report { name, verdict, output, kernel_log }, self.suite);
    }
}

/// Reads a growing file line by line.
struct Follow {
    file: File,
    partial: Vec<u8>,
}

impl Follow {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { file, partial: Vec::new() })
    }

    /// The lines completed since the last call; with `last`, what stands behind the final line break too.
    fn lines(&mut self, last: bool) -> Result<Vec<String>> {
        self.file.read_to_end(&mut self.partial).context("read the guest's output")?;
        let whole = if last {
            self.partial.len()
        } else {
            self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
        };
        let rest = self.partial.split_off(whole);
        let text = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial = rest;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::suite::Conf;
    use super::*;

    fn suite(dir: &Path, tests: &[&str]) -> Suite {
        let test = |name: &&str| Test {
            name: (*name).to_owned(),
            about: String::new(),
            deadline: Duration::from_secs(1),
        };
        Suite {
            name: "s".to_owned(),
            dir: dir.to_owned(),
            conf: Conf::parse("disk: d 4K").unwrap(),
            setup: test(&"setup"),
            tests: tests.iter().map(test).collect(),
        }
    }

    #[test]
    fn a_report_taken_back_leaves_its_test_to_be_run() {
        let suite = suite(Path::new("/"), &["one", "two"]);
        let mut watch = Watch::new(&suite, &suite.tests, false);
        watch.line("@@vm begin setup");
        watch.line("@@vm end setup 0 0.10");
        watch.line("@@vm begin one");
        watch.lost("QEMU crashed".to_owned(), String::new());
        let mut boot = watch.boot;
        assert_eq!((boot.finished, boot.setup_failed), (1, false));
        assert_eq!(boot.take_last_report(&suite).unwrap().name, "s::one");
        assert_eq!((boot.finished, boot.reports.len()), (0, 1));

        let mut watch = Watch::new(&suite, &suite.tests, false);
        watch.lost("QEMU crashed".to_owned(), String::new());
        assert!(watch.boot.setup_failed);
        assert_eq!(watch.boot.take_last_report(&suite).unwrap().name, "s::setup");
        assert!(!watch.boot.setup_failed && watch.boot.finished == 0);
    }

    #[test]
    fn a_breakpoint_that_the_kernel_does_not_know_is_the_emulators_doing() {
        let console = "[    1.000000] Linux version 6.12\r\n[   43.339001] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\r\n\
                       [   43.342111] Kernel panic - not syncing: Fatal exception in interrupt\r\n";
        let first = complaint(console).unwrap();
        assert_eq!(first, "Oops: int3: 0000 [#1] PREEMPT SMP NOPTI");
        assert!(is_stale_code(first));
        let own = "[    9.1] BUG: kernel NULL pointer dereference, address: 0000000000000008\n[    9.2] Oops: Oops: 0000 [#1] SMP\n\
                   [    9.3] Kernel panic - not syncing: Fatal exception\n";
        let first = complaint(own).unwrap();
        assert_eq!(first, "BUG: kernel NULL pointer dereference, address: 0000000000000008");
        assert!(!is_stale_code(first));
        // It went on from that, and shut down.
        assert_eq!(
            complaint(
                "[    9.1] BUG: sleeping function called from invalid context\n[    9.9] reboot: Power down\n"
            ),
            None
        );
    }

    #[test]
    fn a_wrong_claim_about_a_disk_fails_the_script_that_made_it() {
        let dir = std::env::temp_dir().join(format!("nvmf-xtask-guest-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let suite = suite(&dir, &["right", "wrong", "garbled"]);
        suite.conf.disks[0].create(&dir).unwrap();
        // Of 512 zeroes.
        let zeroes = "076a27c79e5ace2a3d47f9dd2e83e4ff6ea8872b3c2218f66c92b89b55f36560";
        let mut watch = Watch::new(&suite, &suite.tests, false);
        let mut script = |name: &str, lines: &[String]| {
            watch.line(&format!("@@vm begin {name}"));
            lines.iter().for_each(|line| watch.line(line));
            watch.line(&format!("@@vm end {name} 0 0.10"));
        };
        script("setup", &[]);
        script("right", &[format!("@@vm disk d 512 512 {zeroes}")]);
        let other = zeroes.replace('0', "1");
        script("wrong", &[format!("@@vm disk d 0 512 {zeroes}"), format!("@@vm disk d 512 512 {other}")]);
        script("garbled", &["@@vm disk d 512".to_owned()]);
        assert!(watch.boot.reports.iter().all(|report| report.verdict == Verdict::Passed));
        watch.check_disks(&dir);
        let failed: Vec<&str> = watch
            .boot
            .reports
            .iter()
            .filter(|report| matches!(report.verdict, Verdict::OnDisk(_)))
            .map(|report| report.name.as_str())
            .collect();
        assert_eq!(failed, ["s::wrong", "s::garbled"]);
        assert!(!watch.boot.setup_failed);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

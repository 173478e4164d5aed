//! Programs that are measured: pinned to a core, and ended whatever happens.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::shell;

/// How long a program may take to say that it is ready.
const READY: Duration = Duration::from_secs(60);
/// How long a program may take to end when asked to.
const END: Duration = Duration::from_secs(5);
/// Output that is kept of a program.
const MAX_OUTPUT: u64 = 16 << 20;

/// `program` on one core. It is killed when this process ends in any way (by setpriv's parent death signal; util-linux).
pub(super) fn pinned<S: AsRef<OsStr>>(
    cpu: usize,
    program: &Path,
    args: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = shell::command("setpriv", ["--pdeathsig", "KILL", "taskset", "-c", &cpu.to_string()]);
    command.arg(program).args(args).stdin(Stdio::null());
    command
}

/// A program that runs until it is dropped.
pub(super) struct Running {
    child: Child,
    name: String,
    stopped: bool,
}

impl Running {
    pub(super) fn start(command: &mut Command, name: &str) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { child, name: name.to_owned(), stopped: false })
    }

    /// Starts a program that prints a line with `marker` when it is ready, and returns what follows that in the line.
    pub(super) fn start_and_hear(command: &mut Command, name: &str, marker: &str) -> Result<(Self, String)> {
        let mut running = Self::start(command.stdout(Stdio::piped()), name)?;
        let stdout = running.child.stdout.take().context("no standard output")?;
        let (sender, receiver) = mpsc::channel();
        let marker_text = marker.to_owned();
        std::thread::spawn(move || listen(stdout, &marker_text, &sender));
        match receiver.recv_timeout(READY) {
            Ok(rest) => Ok((running, rest)),
            Err(_) => bail!("{name} did not say `{marker}` within {} s", READY.as_secs()),
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status})", self.name),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process")?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Takes the processor from it, or gives it back: targets poll, and two of them cannot share a core.
    pub(super) fn pause(&mut self, pause: bool) -> Result<()> {
        if pause != self.stopped {
            self.signal(if pause { Signal::STOP } else { Signal::CONT })?;
            self.stopped = pause;
        }
        Ok(())
    }
}

/// Hands the rest of the line with the marker over, and goes on reading so that the program never blocks.
fn listen(stdout: ChildStdout, marker: &str, sender: &mpsc::Sender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        if let Some((_, rest)) = line.split_once(marker) {
            // Nobody listens to a second one.
            let _ = sender.send(rest.trim().to_owned());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            // It has ended and been waited for: its identifier may be somebody else's by now.
            return;
        }
        // A stopped process gets the signal when it goes on. Files it made are its own to remove, so it is asked first.
        let asked = self.signal(Signal::TERM).and_then(|()| self.pause(false));
        let began = Instant::now();
        while asked.is_ok() && began.elapsed() < END {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                _ => return,
            }
        }
        // It is our child and was not waited for, so this is still its identifier.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that runs to its end, and whose output is kept.
pub(super) struct Captured {
    running: Running,
    out: JoinHandle<String>,
    err: JoinHandle<String>,
}

impl Captured {
    pub(super) fn start(command: &mut Command, name: &str) -> Result<Self> {
        let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()), name)?;
        let stdout = running.child.stdout.take().context("no standard output")?;
        let stderr = running.child.stderr.take().context("no standard error")?;
        let read = |stream: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // What cannot be read is missed by whoever looks for it.
                let _ = stream.take(MAX_OUTPUT).read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let (out, err) = (read(Box::new(stdout)), read(Box::new(stderr)));
        Ok(Self { running, out, err })
    }

    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.running.child.try_wait()?.is_some())
    }

    /// [`Running::pause`]; one that has ended cannot be paused.
    pub(super) fn pause(&mut self, pause: bool) -> Result<()> {
        if self.has_ended()? { Ok(()) } else { self.running.pause(pause) }
    }

    /// What it printed on standard output. It has to end within `limit`.
    pub(super) fn finish(mut self, limit: Duration) -> Result<String> {
        let began = Instant::now();
        let status = loop {
            let name = &self.running.name;
            match self.running.child.try_wait()? {
                Some(status) => break status,
                None if began.elapsed() > limit => bail!("{name} did not end within {} s", limit.as_secs()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let (out, err) = (self.out.join().unwrap_or_default(), self.err.join().unwrap_or_default());
        ensure!(
            status.success(),
            "{} failed ({status}): {}",
            self.running.name,
            shell::tail(&format!("{out}\n{err}"), 6).trim()
        );
        Ok(out)
    }
}

/// Runs a program to its end and returns what it printed on standard output.
pub(super) fn capture(command: &mut Command, name: &str, limit: Duration) -> Result<String> {
    Captured::start(command, name)?.finish(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        shell::command("sh", ["-c", script])
    }

    #[test]
    fn children_end() {
        let (running, rest) = Running::start_and_hear(&mut sh("echo ready at 5; sleep 60"), "it", "ready at")
            .unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(rest, "5");
        let began = Instant::now();
        drop(running);
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_a_program_prints() {
        let limit = Duration::from_secs(60);
        assert_eq!(capture(&mut sh("echo a; echo b >&2"), "it", limit).unwrap(), "a\n");
        let error = capture(&mut sh("echo why >&2; exit 3"), "it", limit).unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
        let error = capture(&mut sh("sleep 60"), "it", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("did not end"), "{error}");
    }
}

//! Running a command for every change, one after the other.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvmf_discovery::{EventQueue, MonitorEvent, Path};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::failure::{Failure, complain};

/// So many changes wait for their hooks before they are merged.
const MAX_WAITING: usize = 256;
/// How often it is looked whether there is something to do; a change is there at once.
const LOOK: Duration = Duration::from_secs(1);

/// A thread that runs hooks.
pub(super) struct Hook {
    changes: Arc<EventQueue>,
    thread: JoinHandle<()>,
    /// When the last hook has to be done.
    end: Arc<OnceLock<Instant>>,
}

impl Hook {
    pub(super) fn start(command: &str, timeout: Duration) -> Result<Self, Failure> {
        let changes = Arc::new(EventQueue::new(MAX_WAITING));
        let end = Arc::new(OnceLock::new());
        let runner = Runner { command: command.to_owned(), timeout, end: Arc::clone(&end) };
        let received = Arc::clone(&changes);
        let thread = thread::Builder::new()
            .name("hook".to_owned())
            .spawn(move || runner.run_all(&received))
            .map_err(|error| Failure::failed(format!("starting a thread for hooks: {error}")))?;
        Ok(Self { changes, thread, end })
    }

    pub(super) fn tell(&self, event: &MonitorEvent) {
        if change(event).is_some() {
            self.changes.push(event.clone());
        }
    }

    /// Runs what is left as long as there is time, and ends.
    pub(super) fn finish(self, limit: Duration) {
        let _ = self.end.set(Instant::now() + limit);
        self.changes.close();
        let _ = self.thread.join();
    }
}

/// What hooks are run for, and what they are told.
fn change(event: &MonitorEvent) -> Option<(&'static str, &Path)> {
    match event {
        MonitorEvent::Added(path) => Some(("added", path)),
        MonitorEvent::Removed(path) => Some(("removed", path)),
        MonitorEvent::Changed(path) => Some(("changed", path)),
        _ => None,
    }
}

struct Runner {
    command: String,
    timeout: Duration,
    end: Arc<OnceLock<Instant>>,
}

impl Runner {
    fn run_all(&self, changes: &EventQueue) {
        let mut left = 0;
        while !changes.is_over() {
            let Some(event) = changes.next(LOOK) else { continue };
            if let MonitorEvent::Merged { events } = event {
                complain(format!(
                    "hooks take longer than the changes: {events} changes were merged, the next hooks tell of the difference"
                ));
            }
            let Some((event, path)) = change(&event) else { continue };
            if self.is_over() {
                left += 1;
                continue;
            }
            if let Err(what) = self.run(event, path) {
                complain(format!("hook for {event} {}: {what}", path.trid.to_uri()));
            }
        }
        if left > 0 {
            complain(format!("the monitor ended with {left} changes the hook was not run for"));
        }
    }

    fn is_over(&self) -> bool {
        self.end.get().is_some_and(|end| Instant::now() >= *end)
    }

    fn run(&self, event: &str, path: &Path) -> Result<(), String> {
        let trid = &path.trid;
        // What peers say goes into the environment, never into the command.
        let child = Command::new("/bin/sh")
            .args(["-c", &self.command])
            .env("NVMF_EVENT", event)
            .env("NVMF_TRID", trid.to_string())
            .env("NVMF_URI", trid.to_uri())
            .env("NVMF_TRTYPE", trid.trtype().as_str().to_ascii_lowercase())
            .env("NVMF_TRADDR", trid.traddr())
            .env("NVMF_TRSVCID", trid.trsvcid())
            .env("NVMF_SUBNQN", path.entry.subnqn())
            .stdin(Stdio::null())
            // Standard output is for events.
            .stdout(std::io::stderr())
            // What is ended is the command with all it has started; Ctrl-C is for the monitor.
            .process_group(0)
            .spawn();
        self.wait(child.map_err(|error| format!("it could not be started: {error}"))?)
    }

    fn wait(&self, mut child: Child) -> Result<(), String> {
        let end = Instant::now() + self.timeout;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(status.to_string()),
                Ok(None) if Instant::now() < end && !self.is_over() => {
                    thread::sleep(Duration::from_millis(5))
                }
                Ok(None) => {
                    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                    let _ = child.wait();
                    return Err(match self.is_over() {
                        true => "killed, because the monitor ends".to_owned(),
                        false => {
                            format!("killed, because it took more than {} s", self.timeout.as_secs_f64())
                        }
                    });
                }
                Err(error) => return Err(format!("waiting for it: {error}")),
            }
        }
    }
}

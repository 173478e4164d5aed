//! Running a command for every change, one after the other.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvmf_discovery::{MonitorEvent, Path};

use crate::failure::Failure;

/// A thread that runs hooks.
pub(super) struct Hook {
    changes: Sender<(&'static str, Path)>,
    thread: JoinHandle<()>,
}

impl Hook {
    pub(super) fn start(command: &str, timeout: Duration) -> Result<Self, Failure> {
        let (changes, received) = channel();
        let command = command.to_owned();
        let thread = thread::Builder::new()
            .name("hook".to_owned())
            .spawn(move || run_all(&command, timeout, &received))
            .map_err(|error| Failure::failed(format!("starting a thread for hooks: {error}")))?;
        Ok(Self { changes, thread })
    }

    pub(super) fn tell(&self, event: &MonitorEvent) {
        let change = match event {
            MonitorEvent::Added(path) => ("added", path),
            MonitorEvent::Removed(path) => ("removed", path),
            MonitorEvent::Changed(path) => ("changed", path),
            _ => return,
        };
        // The thread ends only when this end is dropped.
        let _ = self.changes.send((change.0, change.1.clone()));
    }

    /// Runs what is left, and ends.
    pub(super) fn finish(self) {
        drop(self.changes);
        let _ = self.thread.join();
    }
}

fn run_all(command: &str, timeout: Duration, changes: &Receiver<(&'static str, Path)>) {
    for (event, path) in changes {
        let trid = &path.trid;
        // What peers say goes into the environment, never into the command.
        let child = Command::new("/bin/sh")
            .args(["-c", command])
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
            .spawn();
        match child {
            Ok(child) => wait(child, timeout),
            Err(error) => tracing::error!(%error, "the hook could not be started"),
        }
    }
}

fn wait(mut child: Child, timeout: Duration) {
    let end = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return tracing::warn!(%status, "the hook failed"),
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                tracing::warn!(?timeout, "the hook is killed: it took too long");
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            Err(error) => return tracing::warn!(%error, "waiting for the hook"),
        }
    }
}

//! Work done side by side, and programs whose output stays in one piece meanwhile.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::shell;

/// Does `work` with each of `items`, with so many of them at a time and the first ones first. What comes of it is in their order.
pub(crate) fn each<T: Send, R: Send>(
    lanes: usize,
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let queue: Mutex<VecDeque<(usize, T)>> = Mutex::new(items.into_iter().enumerate().collect());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let lane = || -> Result<Vec<(usize, R)>> {
        let mut done = Vec::new();
        while let Some((index, item)) = next() {
            done.push((index, work(item)?));
        }
        Ok(done)
    };
    let lanes: Vec<Result<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..lanes.max(1)).map(|_| scope.spawn(lane)).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
    });
    let mut done = Vec::new();
    for lane in lanes {
        done.extend(lane?);
    }
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// How often it is looked whether a program has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What a program printed, on both streams in the order in which it did.
pub(crate) struct Captured {
    pub(crate) text: String,
    pub(crate) took: Duration,
    pub(crate) outcome: Result<()>,
}

/// Runs a program to its end, or kills it when that takes longer than `limit`.
pub(crate) fn capture(command: &mut Command, log: &Path, limit: Duration) -> Result<Captured> {
    let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {}", shell::describe(command)))?;
    let outcome = loop {
        match child.try_wait()? {
            Some(status) if status.success() => break Ok(()),
            Some(status) => break shell::failed(command, status),
            None if began.elapsed() > limit => {
                child.kill()?;
                child.wait()?;
                break Err(anyhow!("killed after {} s", limit.as_secs_f64()));
            }
            None => std::thread::sleep(LOOK),
        }
    };
    let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    Ok(Captured { text, took: began.elapsed(), outcome })
}

/// Where outputs are kept until the next run.
pub(crate) fn log_dir() -> Result<PathBuf> {
    let dir = shell::target_dir()?.join("xtask-logs");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let doubled = each(3, 0..100, |number: u64| {
            std::thread::sleep(Duration::from_micros(number % 7 * 100));
            Ok(number * 2)
        });
        assert_eq!(doubled.unwrap(), (0..100).map(|number| number * 2).collect::<Vec<_>>());
        assert_eq!(each(0, ["a"], |text| Ok(text.len())).unwrap(), [1]);
        assert!(each(2, 0..10, |number| if number == 5 { bail!("no") } else { Ok(()) }).is_err());
    }

    #[test]
    fn both_streams_are_captured_and_there_is_a_limit() {
        let log = std::env::temp_dir().join(format!("nvmf-xtask-lanes-{}", std::process::id()));
        let sh = |script: &str| shell::command("sh", ["-c", script]);
        let limit = Duration::from_secs(60);
        let ran = capture(&mut sh("echo a; echo b >&2; echo c"), &log, limit).unwrap();
        assert_eq!((ran.text.as_str(), ran.outcome.is_ok()), ("a\nb\nc\n", true));
        let ran = capture(&mut sh("echo a; exit 3"), &log, limit).unwrap();
        assert!(ran.text == "a\n" && ran.outcome.unwrap_err().to_string().contains('3'));
        let ran = capture(&mut sh("exec sleep 60"), &log, Duration::from_millis(50)).unwrap();
        assert!(ran.outcome.unwrap_err().to_string().contains("killed") && ran.took < limit);
        std::fs::remove_file(&log).unwrap();
    }
}

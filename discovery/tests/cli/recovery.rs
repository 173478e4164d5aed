//! Resets, and targets that go away and come back.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvmf_core::spec::command::NvmOpcode;
use nvmf_loopback::{Fault, Rule};

use crate::support::{NQN, nvmf, target};

#[test]
fn a_controller_is_reset_as_often_as_asked() {
    let target = target();
    let text = nvmf(&[&"reset", &target.trid, &"--count", &3]).text();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().all(|line| line.starts_with(&format!("reset  {NQN}, controller "))), "{text}");
    assert!(text.contains(", 2 namespaces, "), "{text}");
    assert_eq!(target.loopback.stats().connections, 4);
}

#[test]
fn a_subsystem_is_reset_only_where_that_exists_and_is_meant() {
    let target = target();
    let line = nvmf(&[&"subsystem-reset", &target.trid]).failed(2);
    assert!(line.contains("add --yes"), "{line}");
    let line = nvmf(&[&"subsystem-reset", &target.trid, &"--yes"]).failed(3);
    assert!(line.contains("CAP.NSSRS"), "{line}");
}

#[test]
fn verify_comes_through_lost_connections() {
    let target = target();
    // Every hundredth I/O or so takes its connection along.
    for n in [100, 300, 900] {
        target.loopback.faults().push(Rule::new(Fault::Disconnect).io().opcode(NvmOpcode::WRITE.0).after(n));
        target.loopback.faults().push(Rule::new(Fault::Disconnect).io().opcode(NvmOpcode::READ.0).after(n));
    }
    let line: &[&dyn std::fmt::Display] = &[
        &"verify",
        &target.trid,
        &"--length",
        &"8MiB",
        &"--yes",
        &"--reconnect-delay",
        &"0.1",
        &"--ctrl-loss-tmo",
        &30,
    ];
    let text = nvmf(line).text();
    assert!(text.contains("every byte matches"), "{text}");
    assert_eq!(target.loopback.faults().fired(), 6);
    let without = nvmf(&line[..5]);
    assert_eq!(without.code, Some(0), "{without:?}");
}

#[test]
fn verify_comes_through_resets() {
    let target = target();
    let line: &[&dyn std::fmt::Display] = &[
        &"verify",
        &target.trid,
        &"--length",
        &"8MiB",
        &"--block-size",
        &512,
        &"--yes",
        &"--reset-every",
        &"0.05",
    ];
    let text = nvmf(line).text();
    assert!(text.contains("every byte matches"), "{text}");
    let resets: u32 = text.rsplit_once("resets    ").unwrap().1.trim().parse().unwrap();
    assert!(resets > 0 && target.loopback.stats().connections >= 2 + u64::from(resets), "{text}");
}

#[test]
fn perf_counts_what_was_lost_and_goes_on() {
    let target = target();
    let stop = AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(300));
                // Attaching is not what is tested.
                if target.loopback.stats().reads > 0 {
                    target.loopback.disconnect_all();
                }
            }
        });
        let line: &[&dyn std::fmt::Display] =
            &[&"perf", &target.trid, &"-t", &2, &"-q", &16, &"--reconnect-delay", &"0.05"];
        let run = nvmf(line);
        stop.store(true, Ordering::Release);
        run
    });
    let line = run.failed(1);
    assert!(line.contains("I/Os failed; the first: "), "{line}");
    assert!(line.contains("whether the command was executed is not known"), "{line}");
}

#[test]
fn a_target_that_stays_away_is_given_up() {
    let target = target();
    target.loopback.faults().push(Rule::new(Fault::Disconnect).io().opcode(NvmOpcode::READ.0).after(50));
    let refuse = std::thread::scope(|scope| {
        scope.spawn(|| {
            while target.loopback.faults().pending() {
                std::thread::sleep(Duration::from_millis(1));
            }
            target.loopback.refuse_connections(true);
            target.loopback.disconnect_all();
        });
        let line: &[&dyn std::fmt::Display] =
            &[&"perf", &target.trid, &"-t", &30, &"--reconnect-delay", &"0.1", &"--ctrl-loss-tmo", &1];
        nvmf(line)
    });
    assert!(refuse.took < Duration::from_secs(20), "{refuse:?}");
    refuse.failed(3);
}

/// A target that is a process of its own; killed, the hard way, when dropped.
struct Process(Child);

impl Process {
    /// Serves `file` at `address`, which may still be taken for a moment. Returns where it listens.
    fn start(address: &str, file: &std::path::Path) -> (Self, String) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let child = Command::new(env!("CARGO_BIN_EXE_nvmf"))
                .args(["target", "--listen", address, "--nqn", NQN, "--namespace"])
                .arg(format!("{}:8MiB", file.display()))
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut process = Self(child);
            let mut line = String::new();
            BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if let Some(address) = line.strip_prefix("listening on ") {
                return (process, address.trim().to_owned());
            }
            assert!(Instant::now() < until, "the target does not start at {address}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL: no connection is closed by anybody but the kernel.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_target_that_is_killed_and_started_again_is_found_with_all_data() {
    let file = std::env::temp_dir().join(format!("nvmf-cli-killed-{}", std::process::id()));
    let (target, address) = Process::start("127.0.0.1:0", &file);
    let trid = format!("nvme+tcp://{address}/{NQN}");
    let ended = AtomicBool::new(false);
    let (run, kills) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let (mut target, mut kills) = (target, 0);
            while !ended.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(200));
                drop(target);
                std::thread::sleep(Duration::from_millis(100));
                target = Process::start(&address, &file).0;
                kills += 1;
            }
            (target, kills)
        });
        let line: &[&dyn std::fmt::Display] = &[
            &"verify",
            &trid,
            &"--length",
            &"8MiB",
            &"--block-size",
            &512,
            &"--queue-depth",
            &4,
            &"--yes",
            &"--reconnect-delay",
            &"0.05",
            &"--ctrl-loss-tmo",
            &60,
            &"--timeout",
            &"20",
        ];
        // Attaching is not tried again, and not what is tested.
        let mut run = nvmf(line);
        for _ in 0..20 {
            if run.code != Some(3) {
                break;
            }
            run = nvmf(line);
        }
        ended.store(true, Ordering::Release);
        let (target, kills) = killer.join().unwrap();
        drop(target);
        (run, kills)
    });
    let _ = std::fs::remove_file(&file);
    let text = run.text();
    assert!(text.contains("every byte matches"), "{text}");
    assert!(kills > 0);
}

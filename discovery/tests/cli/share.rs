//! Instances: `nvmf share`, and processes that use what it shares.

use std::fmt::Display;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nvmf_loopback::{Loopback, VfioUserServer};

use crate::support::{NQN, noise, target};

/// Nothing here takes that long.
const HANG: Duration = Duration::from_secs(60);
/// How often something is killed; `NVMF_SHARE_KILLS` asks for more.
const KILLS: u32 = 6;

/// A runtime directory, and who is there.
struct Instance {
    directory: PathBuf,
}

impl Instance {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nvmf-cli-share-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
        Self { directory }
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.directory.join("nvmf")).map_or(0, Iterator::count)
    }

    fn command(&self, arguments: &[&dyn Display]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvmf"));
        command.args(arguments.iter().map(ToString::to_string));
        command.env_remove("RUST_LOG").env("XDG_RUNTIME_DIR", &self.directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, arguments: &[&dyn Display]) -> Process {
        Process(Some(self.command(arguments).spawn().unwrap()))
    }

    /// Shares the controller, and returns when that is so.
    fn share(&self, trid: &str) -> Process {
        self.share_queues(trid, 16)
    }

    /// The same with so many queues.
    fn share_queues(&self, trid: &str, queues: u32) -> Process {
        let mut process = self.start(&[&"share", &"--instance", &"disks", &"--queues", &queues, &trid]);
        let stdout = process.0.as_mut().unwrap().stdout.take().unwrap();
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        if !line.starts_with("sharing ") {
            panic!("{line:?}: {}", process.end().stderr);
        }
        process
    }

    /// A vfio-user server in front of the target, and its TRID.
    fn vfio_user(&self, target: &Loopback) -> (VfioUserServer, String) {
        let socket = self.directory.join("cntrl");
        let server = VfioUserServer::listen(&target.pci_function(NQN).unwrap(), &socket).unwrap();
        (server, format!("trtype:vfiouser traddr:{}", socket.display()))
    }

    fn run(&self, arguments: &[&dyn Display]) -> Ended {
        self.start(arguments).end()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A process that does not outlive its test.
struct Process(Option<Child>);

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    #[track_caller]
    fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "stdout: {}", self.stdout);
        self.stdout
    }

    #[track_caller]
    fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout: {} stderr: {}", self.stdout, self.stderr);
        self.stderr
    }
}

impl Process {
    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn kill(&mut self) {
        self.0.as_mut().unwrap().kill().unwrap();
        self.0.as_mut().unwrap().wait().unwrap();
    }

    /// Waits for its end; one that hangs is killed and fails the test.
    fn end(mut self) -> Ended {
        let started = Instant::now();
        let child = self.0.as_mut().unwrap();
        while child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < HANG, "process {} hangs", child.id());
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn terminate(self) -> Ended {
        let killed = Command::new("kill").arg(self.pid().to_string()).status().unwrap();
        assert!(killed.success());
        self.end()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Writes and reads back a part of the namespace that is this process's own.
fn verify(instance: &Instance, trid: &str, part: u64, length: &str) -> Process {
    let offset = part << 20;
    instance.start(&[
        &"verify",
        &trid,
        &"--instance",
        &"disks",
        &"--offset",
        &offset,
        &"--length",
        &length,
        &"--seed",
        &part,
        &"--yes",
        &"--quiet",
    ])
}

fn eventually(what: &str, mut f: impl FnMut() -> bool) {
    let started = Instant::now();
    while !f() {
        assert!(started.elapsed() < HANG, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn processes(instance: &Instance) -> serde_json::Value {
    let json = instance.run(&[&"list", &"--instance", &"disks", &"--processes", &"-o", &"json"]).ok();
    serde_json::from_str(&json).unwrap()
}

#[test]
fn four_processes_and_the_primary_at_once() {
    let (target, instance) = (target(), Instance::new());
    at_once(&instance, &target.trid);
    eventually("the end of the association", || target.loopback.controllers(NQN) == 0);
}

#[test]
fn four_processes_and_the_primary_at_once_with_queues_in_memory() {
    let (target, instance) = (target(), Instance::new());
    let (_server, trid) = instance.vfio_user(&target.loopback);
    at_once(&instance, &trid);
}

fn at_once(instance: &Instance, trid: &str) {
    let primary = instance.share(trid);
    let verifiers: Vec<Process> = (0..4).map(|part| verify(instance, trid, part, "1MiB")).collect();
    for verifier in verifiers {
        assert!(verifier.end().ok().contains("every byte matches"));
    }
    eventually("the end of the sessions", || processes(instance).as_array().unwrap().len() == 1);
    let text = instance.run(&[&"list", &"--instance", &"disks"]).ok();
    assert!(text.contains(NQN), "{text}");
    let text = instance.run(&[&"identify", &trid, &"--instance", &"disks"]).ok();
    assert!(text.contains("CLI0001"), "{text}");
    primary.terminate().ok();
    assert_eq!(instance.files(), 0, "files are left");
}

#[test]
fn data_passes_between_processes() {
    let (target, instance) = (target(), Instance::new());
    let _primary = instance.share(&target.trid);
    let (input, output) = (instance.directory.join("in"), instance.directory.join("out"));
    let data = noise(300 << 10, 3);
    std::fs::write(&input, &data).unwrap();
    let (input, output) = (input.display(), output.display());
    instance.run(&[&"write", &target.trid, &"--instance", &"disks", &"--input", &input]).ok();
    instance
        .run(&[
            &"read",
            &target.trid,
            &"--instance",
            &"disks",
            &"--length",
            &data.len(),
            &"--output",
            &output,
        ])
        .ok();
    assert!(std::fs::read(output.to_string()).unwrap() == data);
}

#[test]
fn without_a_primary_there_is_an_error_that_helps() {
    let (target, instance) = (target(), Instance::new());
    let line = instance.run(&[&"identify", &target.trid, &"--instance", &"disks"]).failed(3);
    assert!(line.contains("there is no primary") && line.contains("nvmf share"), "{line}");
    // One that was killed is not waited for.
    let mut killed = instance.share(&target.trid);
    killed.kill();
    let line = instance.run(&[&"identify", &target.trid, &"--instance", &"disks"]).failed(3);
    assert!(line.contains(&format!("process {}, is gone", killed.pid())), "{line}");
    let _primary = instance.share(&target.trid);
    let line = instance.run(&[&"share", &"--instance", &"disks", &target.trid]).failed(2);
    assert!(line.contains("is the primary already"), "{line}");
    let other = target.trid.replace(NQN, "nqn.2024-01.com.example:other");
    let line = instance.run(&[&"identify", &other, &"--instance", &"disks"]).failed(3);
    assert!(line.contains("shares no controller"), "{line}");
}

fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

/// Mappings of memory for controllers.
fn mappings(process: &Process) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid())).unwrap();
    maps.lines().filter(|line| line.contains("memfd:nvmf-dma")).count()
}

/// Kills the primary or a secondary at random times while all do verified I/O.
fn killing(instance: &Instance, trid: &str) {
    let kills = std::env::var("NVMF_SHARE_KILLS").ok().map_or(KILLS, |text| text.parse().unwrap());
    // One for each secondary: an identifier that is lost is missed in the next round.
    let mut primary = instance.share_queues(trid, 4);
    let mut seed = 12_345_u32;
    let mut random = |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    let mut before = None;
    let mut told = [0; 4];
    for round in 0..kills {
        let mut verifiers: Vec<Process> = (0..4).map(|part| verify(instance, trid, part, "1MiB")).collect();
        std::thread::sleep(Duration::from_millis(random(120).into()));
        let victim = random(5) as usize;
        match verifiers.get_mut(victim) {
            Some(verifier) => verifier.kill(),
            None => primary.kill(),
        }
        for (part, verifier) in verifiers.into_iter().enumerate() {
            let ended = verifier.end();
            if part == victim {
                continue;
            }
            // Others are not concerned by the end of a secondary; that of the primary they are told.
            let good = if victim == 4 { [Some(0), Some(1), Some(3)] } else { [Some(0); 3] };
            assert!(
                good.contains(&ended.code),
                "round {round}, {victim} killed: {:?}: {}",
                ended.code,
                ended.stderr
            );
            told[ended.code.map_or(3, |code| code as usize).min(3)] += 1;
            assert!(ended.code != Some(1) || !ended.stderr.contains("does not match"), "{}", ended.stderr);
        }
        if victim == 4 {
            primary = instance.share_queues(trid, 4);
        }
        eventually("the end of the sessions", || {
            let processes = processes(instance);
            processes.as_array().unwrap().len() == 1
        });
        let held = [descriptors(&primary), mappings(&primary)];
        let before = *before.get_or_insert(held);
        eventually("the primary's descriptors and mappings", || {
            descriptors(&primary) <= before[0] && mappings(&primary) <= before[1]
        });
    }
    assert!(verify(instance, trid, 0, "4MiB").end().ok().contains("every byte matches"));
    primary.terminate().ok();
    assert_eq!(instance.files(), 0, "files are left");
    println!("{kills} killed; others ended well {}, with an error {}", told[0], told[1] + told[3]);
}

#[test]
fn whoever_is_killed_the_others_go_on_or_end() {
    let (target, instance) = (target(), Instance::new());
    killing(&instance, &target.trid);
}

#[test]
fn whoever_is_killed_with_queues_in_memory_the_others_go_on_or_end() {
    let (target, instance) = (target(), Instance::new());
    let (_server, trid) = instance.vfio_user(&target.loopback);
    killing(&instance, &trid);
}

/// I/O of a secondary goes on while the primary does nothing at all.
#[test]
fn a_primary_that_is_stopped_is_on_nobodys_data_path() {
    const STOPPED: Duration = Duration::from_secs(2);
    let (target, instance) = (target(), Instance::new());
    let (_server, memory) = instance.vfio_user(&target.loopback);
    for trid in [&target.trid, &memory] {
        let primary = instance.share(trid);
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &primary.pid().to_string()]).status().unwrap();
            assert!(sent.success());
        };
        let perf = instance.start(&[
            &"perf",
            trid,
            &"--instance",
            &"disks",
            &"-q",
            &4,
            &"-o",
            &4096,
            &"-w",
            &"randread",
            &"-t",
            &4,
            &"--json",
        ]);
        eventually("the queue", || {
            let processes = processes(&instance);
            processes.as_array().unwrap().iter().any(|process| process["queues"] == 1)
        });
        // Its buffers are known to the controller by now.
        std::thread::sleep(Duration::from_millis(300));
        signal("-STOP");
        std::thread::sleep(STOPPED);
        signal("-CONT");
        let report: serde_json::Value = serde_json::from_str(&perf.end().ok()).unwrap();
        let longest = report["latency_us"]["max"].as_f64().unwrap();
        assert!(longest > 0.0 && longest < STOPPED.as_micros() as f64 * 0.75, "{longest} µs over {trid}");
        primary.terminate().ok();
    }
}

/// Another user is refused, whatever the files' modes say. Needs root, to become another user.
#[test]
fn another_user_is_refused() {
    if std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) != 0) {
        return;
    }
    let (target, instance) = (target(), Instance::new());
    let _primary = instance.share(&target.trid);
    let program = program_for_all(&instance);
    let run = |uid: u32| {
        let mut command = Command::new(&program);
        command.args(["identify", &target.trid, "--instance", "disks"]);
        command.env("XDG_RUNTIME_DIR", &instance.directory).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).uid(uid).gid(uid);
        Process(Some(command.spawn().unwrap())).end()
    };
    open_up(&instance.directory, 0o755);
    // The files alone keep it out.
    let line = run(65_534).failed(3);
    assert!(line.contains("denied") || line.contains("no primary"), "{line}");
    open_up(&instance.directory.join("nvmf"), 0o755);
    open_up(&instance.directory.join("nvmf/disks.sock"), 0o666);
    open_up(&instance.directory.join("nvmf/disks.lock"), 0o644);
    // And so does the primary, which goes on.
    let line = run(65_534).failed(3);
    assert!(line.contains("belongs to user 65534") || line.contains("runs as user 0"), "{line}");
    instance.run(&[&"identify", &target.trid, &"--instance", &"disks"]).ok();
}

fn open_up(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The program where any user can run it.
fn program_for_all(instance: &Instance) -> PathBuf {
    let path = instance.directory.join("program");
    std::fs::copy(env!("CARGO_BIN_EXE_nvmf"), &path).unwrap();
    open_up(&path, 0o755);
    path
}

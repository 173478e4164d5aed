//! Running the program, and a target for it.

use std::fmt::Display;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder};

pub(crate) const NQN: &str = "nqn.2024-01.com.example:cli";
/// Size of namespace 1, bytes; blocks of 512.
pub(crate) const SIZE: usize = 8 << 20;
/// Nothing here takes that long.
const HANG: Duration = Duration::from_secs(60);

/// A target with a namespace of 8 MiB in blocks of 512 bytes and one of 1 MiB in blocks of 4 KiB.
pub(crate) struct Target {
    pub(crate) loopback: Loopback,
    pub(crate) address: String,
    pub(crate) port: String,
    /// TRID of the subsystem.
    pub(crate) trid: String,
    /// TRID of the discovery subsystem.
    pub(crate) discovery: String,
}

pub(crate) fn target() -> Target {
    let subsystem = SubsystemBuilder::new(NQN)
        .serial("CLI0001")
        .model("test target")
        .namespace(Namespace::memory(SIZE as u64).uuid([0x11; 16]))
        .namespace(Namespace::memory(1 << 20).block_size(4096).uuid([0x22; 16]));
    let loopback = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build().unwrap();
    let address = loopback.tcp_addrs()[0];
    Target {
        port: address.port().to_string(),
        trid: format!("nvme+tcp://{address}/{NQN}"),
        discovery: format!("nvme+tcp://{address}"),
        address: address.to_string(),
        loopback,
    }
}

/// What a run of the program came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Run {
    /// Standard output of a run that went well and said nothing on stderr.
    #[track_caller]
    pub(crate) fn ok(self) -> Vec<u8> {
        assert_eq!(
            (self.code, self.stderr.as_str()),
            (Some(0), ""),
            "stdout: {}",
            String::from_utf8_lossy(&self.stdout)
        );
        self.stdout
    }

    #[track_caller]
    pub(crate) fn text(self) -> String {
        String::from_utf8(self.ok()).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_slice(&self.ok()).unwrap()
    }

    /// The one line on stderr of a run that failed with this code.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        let line = self.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{self:?}"));
        assert!(!line.contains('\n'), "more than one line: {line}");
        assert!(line.starts_with("nvmf: "), "{line}");
        assert!(!line.contains("panicked"), "{line}");
        line.to_owned()
    }
}

/// Runs the program.
pub(crate) fn nvmf(arguments: &[&dyn Display]) -> Run {
    nvmf_with(arguments, b"")
}

/// Runs the program with this on standard input. Kills it if it hangs, and fails.
pub(crate) fn nvmf_with(arguments: &[&dyn Display], input: &[u8]) -> Run {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_nvmf"))
        .args(arguments.iter().map(ToString::to_string))
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    thread::scope(|scope| {
        // The program need not read all of it.
        scope.spawn(move || drop(stdin.write_all(input)));
        let stdout = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let stderr = scope.spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text)
        });
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            if started.elapsed() > HANG {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let took = started.elapsed();
        let stdout = stdout.join().unwrap().unwrap();
        let stderr = stderr.join().unwrap().unwrap();
        assert!(took < HANG, "it hung; stderr: {stderr}");
        Run { code, stdout, stderr, took }
    })
}

/// Bytes that look random but are always the same.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

//! An SPDK build as a peer: its target, and its initiator. Nothing of SPDK is part of this project.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cell::{Cell, INITIATORS, Side, Transport};
use super::child::{Running, pinned};
use super::nvmf::Timing;
use crate::shell;

/// How long the target may take to start.
const START: Duration = Duration::from_secs(60);
/// How long one of its RPCs may take.
const CALL: Duration = Duration::from_secs(20);
/// Memory of the target and of an initiator, MiB.
const TARGET_MEMORY: u32 = 1536;
const INITIATOR_MEMORY: u32 = 512;
/// Hugepages of 2 MiB that are to be there when all have theirs.
const SPARE: u32 = 64;
/// SPDK refuses an empty one in places.
const HOSTNQN: &str = "nqn.2014-08.org.nvmexpress:uuid:5d1c2a44-6d5f-4b55-9b2a-0e0f8a7f1c11";

/// Hugepages for them, taken from the system and given back, and where to get them.
pub(super) struct Hugepages {
    before: u32,
    mounted: Option<PathBuf>,
}

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl Hugepages {
    /// Enough for the target and so many initiators at once.
    pub(super) fn reserve(scratch: &Path, initiators: usize) -> Result<Self> {
        let wanted = (TARGET_MEMORY + INITIATOR_MEMORY * initiators as u32) / 2 + SPARE;
        let count = || -> Result<u32> { Ok(std::fs::read_to_string(NR_HUGEPAGES)?.trim().parse()?) };
        let mut pages = Self { before: count()?, mounted: None };
        if pages.before < wanted {
            // Memory in pieces is put together first.
            let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
            let set = std::fs::write(NR_HUGEPAGES, wanted.to_string());
            ensure!(
                set.is_ok() && count()? >= wanted,
                "SPDK needs {wanted} hugepages of 2 MiB, there are {}; as root: sysctl vm.nr_hugepages={wanted}",
                count()?
            );
        }
        if !std::fs::read_to_string("/proc/mounts")?.contains(" hugetlbfs ") {
            let dir = scratch.join("hugepages");
            std::fs::create_dir_all(&dir)?;
            shell::run(shell::command("mount", ["-t", "hugetlbfs", "none"]).arg(&dir))?;
            pages.mounted = Some(dir);
        }
        Ok(pages)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        if let Some(dir) = &self.mounted
            && let Err(error) = shell::run(shell::command("umount", [dir]).arg("--lazy"))
        {
            eprintln!("{error:#}");
        }
        if let Err(error) = std::fs::write(NR_HUGEPAGES, self.before.to_string()) {
            eprintln!("setting {NR_HUGEPAGES} back to {}: {error}", self.before);
        }
    }
}

/// Where its programs are.
pub(super) struct Build {
    dir: PathBuf,
}

impl Build {
    pub(super) fn at(dir: &str) -> Result<Self> {
        Self::with(dir, &["nvmf_tgt", "spdk_nvme_perf"])
    }

    /// A build of which the initiator is all that is needed.
    pub(super) fn at_initiator(dir: &str) -> Result<Self> {
        Self::with(dir, &["spdk_nvme_perf"])
    }

    fn with(dir: &str, programs: &[&str]) -> Result<Self> {
        let build = Self { dir: dir.into() };
        for name in programs {
            ensure!(
                build.program(name).is_file(),
                "there is no {}; build SPDK",
                build.program(name).display()
            );
        }
        Ok(build)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join("build/bin").join(name)
    }

    /// What `git describe` or the file VERSION says.
    pub(super) fn version(&self) -> String {
        let file = std::fs::read_to_string(self.dir.join("VERSION")).unwrap_or_default();
        let commit = shell::output_text(
            shell::command("git", ["rev-parse", "--short", "HEAD"]).current_dir(&self.dir),
        );
        format!("SPDK {} ({})", file.trim(), commit.unwrap_or_default().trim())
    }

    /// Its initiator on a cell.
    pub(super) fn perf(&self, trid: &str, cell: &Cell, timing: Timing) -> Command {
        // Without a subsystem's name it takes a vfio-user controller for a discovery controller, without namespaces.
        let subnqn = if trid.contains("subnqn:") { "" } else { " subnqn:nqn.2016-06.io.spdk:any" };
        let trid = format!("{trid}{subnqn} ns:1 hostnqn:{HOSTNQN}");
        let mut command = pinned(timing.cpu, &self.program("spdk_nvme_perf"), ["-r", &trid]);
        command.args(["-q", &cell.depth.to_string(), "-o", &cell.io_size.to_string(), "-w", cell.workload]);
        command.args(["-t", &timing.seconds.to_string(), "-a", &timing.warm_up.to_string()]);
        command.args(["-c", &format!("{:#x}", 1 << timing.cpu), "-s", &INITIATOR_MEMORY.to_string(), "-g"]);
        if cell.digests {
            command.args(["-H", "-I"]);
        }
        command
    }

    /// Adds its initiator to a command line, for a number of 4 KiB reads instead of a time.
    pub(super) fn counted(&self, command: &mut Command, trid: &str, depth: usize, reads: usize) {
        let trid = format!("{trid} ns:1 hostnqn:{HOSTNQN}");
        command.arg(self.program("spdk_nvme_perf")).args(["-r", &trid, "-o", "4096", "-w", "randread"]);
        command.args(["-q", &depth.to_string(), "-d", &reads.to_string(), "-t", "150"]);
        command.args(["-c", "0x2", "--no-huge", "-s", &INITIATOR_MEMORY.to_string()]);
    }
}

/// I/Os per second, from the line of its report that adds up.
pub(super) fn iops(report: &str) -> Result<f64> {
    let line = report.lines().rev().find(|line| line.trim_start().starts_with("Total"));
    let line =
        line.with_context(|| format!("spdk_nvme_perf reports no total: {}", shell::tail(report, 4)))?;
    let (_, numbers) = line.split_once(':').context("a total without figures")?;
    let iops = numbers.split_whitespace().next().and_then(|word| word.parse().ok());
    iops.with_context(|| format!("a total without figures: {line}"))
}

/// `nvmf_tgt` with a null and a malloc bdev, over TCP and vfio-user.
pub(super) struct Target {
    pub(super) process: Running,
    port: u16,
    scratch: PathBuf,
}

impl Target {
    pub(super) fn start(build: &Build, cpu: usize, scratch: &Path) -> Result<Self> {
        let socket = scratch.join("spdk.sock");
        let mut command = pinned(cpu, &build.program("nvmf_tgt"), ["-m", &format!("{:#x}", 1 << cpu)]);
        command.args(["-s", &TARGET_MEMORY.to_string(), "-r"]).arg(&socket);
        // Says little that helps, and much; what fails is in the answers to RPCs.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Running::start(&mut command, "nvmf_tgt")?;
        let began = Instant::now();
        let mut rpc = loop {
            process.check().context("does it lack hugepages or root?")?;
            match UnixStream::connect(&socket) {
                Ok(stream) => break Rpc { stream, id: 0 },
                Err(error) if began.elapsed() > START => {
                    return Err(error).context("nvmf_tgt does not answer RPCs");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let port = free_port()?;
        let target = Self { process, port, scratch: scratch.into() };
        target.set_up(&mut rpc)?;
        Ok(target)
    }

    fn set_up(&self, rpc: &mut Rpc) -> Result<()> {
        for trtype in ["TCP", "VFIOUSER"] {
            rpc.call("nvmf_create_transport", &json!({ "trtype": trtype }))?;
        }
        rpc.call("bdev_null_create", &json!({ "name": "Null0", "num_blocks": 2 << 20, "block_size": 512 }))?;
        let malloc = json!({ "name": "Malloc0", "num_blocks": 1 << 20, "block_size": 512 });
        rpc.call("bdev_malloc_create", &malloc)?;
        for (side, bdev) in [(Side::SpdkNull, "Null0"), (Side::SpdkMalloc, "Malloc0")] {
            let nqn = nqn(side);
            let subsystem = json!({ "nqn": nqn, "allow_any_host": true, "serial_number": bdev });
            rpc.call("nvmf_create_subsystem", &subsystem)?;
            let namespace = json!({ "nqn": nqn, "namespace": { "bdev_name": bdev } });
            rpc.call("nvmf_subsystem_add_ns", &namespace)?;
            let port = self.port.to_string();
            let mut addresses =
                vec![json!({ "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port })];
            for endpoint in 0..INITIATORS {
                let dir = self.vfio_user_dir(side, endpoint);
                std::fs::create_dir_all(&dir)?;
                addresses.push(json!({ "trtype": "VFIOUSER", "traddr": dir, "trsvcid": "0" }));
            }
            for address in addresses {
                let listener = json!({ "nqn": nqn, "listen_address": address });
                rpc.call("nvmf_subsystem_add_listener", &listener)?;
            }
        }
        Ok(())
    }

    fn vfio_user_dir(&self, side: Side, endpoint: usize) -> PathBuf {
        self.scratch.join(format!("{}-{endpoint}", side.name()))
    }

    /// Where it is for the initiator that has this endpoint.
    pub(super) fn trid(&self, transport: Transport, side: Side, endpoint: usize) -> String {
        match transport {
            Transport::Tcp => {
                let (port, nqn) = (self.port, nqn(side));
                format!("trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{port} subnqn:{nqn}")
            }
            Transport::VfioUser => {
                format!("trtype:VFIOUSER traddr:{}", self.vfio_user_dir(side, endpoint).display())
            }
        }
    }
}

fn nqn(side: Side) -> String {
    format!("nqn.2016-06.io.spdk:{}", side.name())
}

/// A port that nobody listens on at the moment.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// JSON-RPC 2.0 on its unix socket.
struct Rpc {
    stream: UnixStream,
    id: u64,
}

impl Rpc {
    fn call(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.exchange(method, params).with_context(|| format!("RPC {method}"))
    }

    fn exchange(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.id += 1;
        self.stream.set_read_timeout(Some(CALL))?;
        let request = json!({ "jsonrpc": "2.0", "id": self.id, "method": method, "params": params });
        self.stream.write_all(request.to_string().as_bytes())?;
        let mut answer = Vec::new();
        // An answer is one JSON value, and ends with it.
        while !serde_json::from_slice::<Value>(&answer).is_ok_and(|value| value.is_object()) {
            let mut part = [0; 4096];
            let length = self.stream.read(&mut part)?;
            ensure!(length > 0 && answer.len() < 1 << 20, "no whole answer");
            answer.extend_from_slice(&part[..length]);
        }
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(answer["error"].is_null(), "{}", answer["error"]);
        Ok(answer["result"].clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals() {
        let report = "\
            TCP  (addr:127.0.0.1 subnqn:a) NSID 1 from core  1:  81400.12     317.97      12.27       9.10     210.33\n\
            ========================================================\n\
            Total                                           :  81400.12     317.97      12.27       9.10     210.33\n";
        assert_eq!(iops(report).unwrap(), 81400.12);
        for bad in ["", "Total : \n", "Total : none\n"] {
            assert!(iops(bad).is_err(), "{bad}");
        }
    }
}

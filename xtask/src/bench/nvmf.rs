//! The project's own programs as they are measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cell::{Cell, INITIATORS, Transport};
use super::child::{Running, pinned};
use crate::programs::Programs;

/// Release builds of everything that is run.
pub(super) struct Built {
    pub(super) nvmf: PathBuf,
    pub(super) limit: PathBuf,
}

impl Built {
    pub(super) fn now() -> Result<Self> {
        let programs = Programs::release().tests(["wire_limit"]);
        programs.build()?;
        Ok(Self { nvmf: programs.path("nvmf")?, limit: programs.path("wire_limit")? })
    }
}

/// `nvmf target` with a null namespace.
pub(super) struct Target {
    pub(super) process: Running,
    /// Where it is, as transport identifiers: over vfio-user one for each initiator.
    trids: Vec<String>,
}

pub(super) const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:c9b1f0de-90f4-4a4e-8a3b-6f1a2ce5b0aa";

impl Target {
    pub(super) fn start(nvmf: &Path, transport: Transport, cpu: usize, scratch: &Path) -> Result<Self> {
        let common = ["target", "--namespace", "null:1GiB", "--nqn", NQN];
        match transport {
            Transport::Tcp => {
                let mut command = pinned(cpu, nvmf, common);
                command.args(["--listen", "127.0.0.1:0"]);
                let (process, address) =
                    Running::start_and_hear(&mut command, "nvmf target", "listening on ")?;
                let (address, port) = address.rsplit_once(':').context("no port")?;
                let trid = format!("trtype:TCP adrfam:IPv4 traddr:{address} trsvcid:{port} subnqn:{NQN}");
                Ok(Self { process, trids: vec![trid] })
            }
            Transport::VfioUser => {
                let mut command = pinned(cpu, nvmf, common);
                command.arg("--map-unsealed");
                let mut trids = Vec::new();
                for endpoint in 0..INITIATORS {
                    // SPDK wants a directory with a socket `cntrl`.
                    let dir = scratch.join(format!("nvmf-{endpoint}"));
                    std::fs::create_dir_all(&dir)?;
                    command.arg("--vfio-user").arg(&dir);
                    trids.push(format!("trtype:VFIOUSER traddr:{}", dir.display()));
                }
                // It says so of the first when it has them all.
                let (process, _) = Running::start_and_hear(&mut command, "nvmf target", "cntrl")?;
                Ok(Self { process, trids })
            }
        }
    }

    /// Where it is for the initiator that has this endpoint.
    pub(super) fn trid(&self, endpoint: usize) -> &str {
        &self.trids[endpoint % self.trids.len()]
    }
}

/// How long an initiator runs, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// Seconds that are measured.
    pub(super) seconds: u64,
    /// Seconds before that.
    pub(super) warm_up: u64,
    pub(super) cpu: usize,
}

/// `nvmf perf` on a cell.
pub(super) fn perf(nvmf: &Path, trid: &str, cell: &Cell, timing: Timing) -> Command {
    let mut command = pinned(timing.cpu, nvmf, ["perf", trid, "--json", "--yes"]);
    command.args(["--warmup", &timing.warm_up.to_string(), "-t", &timing.seconds.to_string()]);
    command.args(["-q", &cell.depth.to_string(), "-o", &cell.io_size.to_string(), "-w", cell.workload]);
    if cell.transport == Transport::VfioUser {
        command.arg("--map-unsealed");
    }
    if cell.digests {
        command.args(["--hdr-digest", "--data-digest"]);
    }
    command
}

/// The bare exchange's answering end.
pub(super) struct LimitServer {
    pub(super) process: Running,
    address: String,
    sizes: [String; 2],
}

impl LimitServer {
    pub(super) fn start(program: &Path, cell: &Cell, cpu: usize) -> Result<Self> {
        let (request, reply) = cell.exchange().context("this cell has no bare exchange")?;
        let sizes = [request.to_string(), reply.to_string()];
        let mut serve = pinned(cpu, program, ["serve"]);
        let (process, address) =
            Running::start_and_hear(serve.args(&sizes), "wire_limit serve", "listening on ")?;
        Ok(Self { process, address, sizes })
    }

    /// The other end.
    pub(super) fn drive(&self, program: &Path, cell: &Cell, timing: Timing) -> Command {
        let mut drive = pinned(timing.cpu, program, ["drive", &self.address]);
        drive.args(&self.sizes).args([cell.depth.to_string(), timing.seconds.to_string()]);
        drive
    }
}

/// I/Os per second, from what `nvmf perf --json` and `wire_limit drive` print.
pub(super) fn iops(json: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(json).context("a report that is no JSON")?;
    let errors = report["errors"].as_u64().unwrap_or(0);
    anyhow::ensure!(errors == 0, "{errors} I/Os failed");
    report["iops"].as_f64().context("a report without iops")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        assert_eq!(iops(r#"{"iops": 2000.5, "errors": 0}"#).unwrap(), 2000.5);
        assert_eq!(iops(r#"{"iops": 7}"#).unwrap(), 7.0);
        for bad in ["", "{}", r#"{"iops": 1, "errors": 2}"#] {
            assert!(iops(bad).is_err(), "{bad}");
        }
    }
}

//! The project's own programs as they are measured.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::cell::{Cell, Transport};
use super::child::{Running, capture, pinned};
use crate::programs::Programs;

/// What came of one run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Figures {
    pub(super) iops: f64,
    /// Mean latency, µs.
    pub(super) mean: f64,
    /// Median latency, µs, where it is known.
    pub(super) p50: Option<f64>,
}

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
    /// Where it is, as a transport identifier.
    pub(super) trid: String,
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
                Ok(Self { process, trid })
            }
            Transport::VfioUser => {
                // SPDK wants a directory with a socket of this name.
                let dir = scratch.join("nvmf-vfio-user");
                std::fs::create_dir_all(&dir)?;
                let mut command = pinned(cpu, nvmf, common);
                command.arg("--map-unsealed").arg("--vfio-user").arg(&dir);
                let (process, _) = Running::start_and_hear(&mut command, "nvmf target", "cntrl")?;
                Ok(Self { process, trid: format!("trtype:VFIOUSER traddr:{}", dir.display()) })
            }
        }
    }
}

/// How long a run takes, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) seconds: f64,
    pub(super) cpu: usize,
}

impl Timing {
    pub(super) fn limit(self) -> Duration {
        Duration::from_secs_f64(self.seconds + 45.0)
    }
}

/// One run of `nvmf perf`.
pub(super) fn perf(nvmf: &Path, trid: &str, cell: &Cell, timing: Timing) -> Result<Figures> {
    let mut command = pinned(timing.cpu, nvmf, ["perf", trid, "--json", "--yes", "--warmup", "0.5"]);
    command.args(["-q", &cell.depth.to_string(), "-o", &cell.io_size.to_string(), "-w", cell.workload]);
    command.args(["-t", &timing.seconds.to_string()]);
    if cell.transport == Transport::VfioUser {
        command.arg("--map-unsealed");
    }
    if cell.digests {
        command.args(["--hdr-digest", "--data-digest"]);
    }
    figures(&capture(&mut command, "nvmf perf", timing.limit())?)
}

/// One run of the bare exchange.
pub(super) fn limit(program: &Path, cell: &Cell, timing: Timing, server_cpu: usize) -> Result<Figures> {
    let (request, reply) = cell.exchange().context("this cell has no bare exchange")?;
    let sizes = [request.to_string(), reply.to_string()];
    let mut serve = pinned(server_cpu, program, ["serve"]);
    let (_server, address) =
        Running::start_and_hear(serve.args(&sizes), "wire_limit serve", "listening on ")?;
    let mut drive = pinned(timing.cpu, program, ["drive", &address]);
    drive.args(&sizes).args([cell.depth.to_string(), timing.seconds.to_string()]);
    figures(&capture(&mut drive, "wire_limit drive", timing.limit())?)
}

/// What `nvmf perf --json` and `wire_limit drive` print.
fn figures(json: &str) -> Result<Figures> {
    let report: Value = serde_json::from_str(json).context("a report that is no JSON")?;
    let number = |value: &Value| value.as_f64();
    let latency = &report["latency_us"];
    let errors = report["errors"].as_u64().unwrap_or(0);
    anyhow::ensure!(errors == 0, "{errors} I/Os failed");
    Ok(Figures {
        iops: number(&report["iops"]).context("a report without iops")?,
        mean: number(&latency["mean"]).context("a report without latency_us.mean")?,
        p50: number(&latency["p50"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let good = r#"{"iops": 2000, "latency_us": {"mean": 7.5, "p50": 7.25}, "errors": 0}"#;
        assert_eq!(figures(good).unwrap(), Figures { iops: 2000.0, mean: 7.5, p50: Some(7.25) });
        for bad in ["", "{}", r#"{"iops": 1}"#, r#"{"iops": 1, "latency_us": {"mean": 1}, "errors": 2}"#] {
            assert!(figures(bad).is_err(), "{bad}");
        }
    }
}

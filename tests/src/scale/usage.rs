//! What this process uses, as the kernel says.

use std::time::Duration;

use anyhow::{Context, Result};

/// Memory of this process that is in RAM, bytes.
///
/// # Errors
/// When `/proc` does not say.
pub fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
    Ok(kib << 10)
}

/// Processor time of all threads that this process has at the moment.
///
/// # Errors
/// When `/proc` does not say.
pub fn cpu_time() -> Result<Duration> {
    let mut nanoseconds = 0u64;
    for thread in std::fs::read_dir("/proc/self/task").context("/proc/self/task")? {
        // One that has ended since has none.
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let field = text.split_whitespace().next().context("an empty schedstat")?;
        nanoseconds += field.parse::<u64>().context("schedstat")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_grows() {
        let before = cpu_time().unwrap();
        let memory = vec![1u8; 32 << 20];
        let mut sum = 0u64;
        // At least once: other threads of this process work, too.
        loop {
            sum += memory.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            if cpu_time().unwrap() >= before + Duration::from_millis(20) {
                break;
            }
        }
        assert!(sum >= 32 << 20);
        assert!(resident().unwrap() > 32 << 20);
    }
}

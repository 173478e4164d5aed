//! A few seconds of random I/O under random harm. `cargo xtask soak` does it for as long as asked.

use std::time::Duration;

use anyhow::{Result, ensure};
use nvmf_tests::soak::Soak;

#[test]
fn everything_is_explained() -> Result<()> {
    let soak =
        Soak { time: Duration::from_secs(6), seed: 20_260_101, workers: 2, pace: Duration::from_millis(300) };
    let report = soak.run()?;
    // Those under a recovery policy connect again where others attach anew.
    ensure!(
        report.harm > 10 && report.attached + report.reconnected > 5,
        "hardly any harm was done: {report:?}"
    );
    ensure!(report.persistent > 0 && report.reconnected > 0, "no connection came back: {report:?}");
    ensure!(report.succeeded > 1000 && report.lost > 10, "{report:?}");
    Ok(())
}

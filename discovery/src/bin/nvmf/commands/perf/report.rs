//! What was measured, in words and in JSON.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use nvmf_core::{Controller, Namespace};
use serde::Serialize;

use super::Settings;
use crate::units;

/// Longest latency told apart from longer ones, nanoseconds.
const MAX_LATENCY: u64 = 100_000_000_000;

/// An empty histogram of nanoseconds, three significant digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY, 3)
        .expect("the constants are within what the constructor takes")
}

/// What was measured.
pub(crate) struct Report {
    settings: Settings,
    /// I/Os that succeeded within the measured time.
    pub(crate) ios: u64,
    /// I/Os that failed, ever.
    pub(crate) errors: u64,
    /// The first of these.
    pub(crate) first_error: Option<String>,
    /// The measured time.
    pub(super) seconds: f64,
    /// Nanoseconds per I/O.
    pub(super) latency: Histogram<u64>,
}

/// Microseconds.
#[derive(Serialize)]
struct LatencyJson {
    mean: f64,
    min: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[derive(Serialize)]
pub(super) struct ReportJson {
    iops: f64,
    mib_per_s: f64,
    latency_us: LatencyJson,
    ios: u64,
    errors: u64,
    seconds: f64,
    workload: &'static str,
    read_percent: u8,
    io_size: u32,
    queue_depth: u16,
    qpairs: u16,
    threads: u16,
    interrupt: bool,
    warmup_seconds: f64,
    offset: u64,
    length: u64,
    seed: u64,
    nsid: u32,
    trid: String,
}

impl Report {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, ios: 0, errors: 0, first_error: None, seconds: 0.0, latency: histogram() }
    }

    /// Adds what another thread measured in the same time.
    pub(super) fn add(&mut self, other: Self) {
        self.ios += other.ios;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.seconds = self.seconds.max(other.seconds);
        // Both have the same bounds.
        let _ = self.latency.add(other.latency);
    }

    pub(crate) fn iops(&self) -> f64 {
        if self.seconds > 0.0 { self.ios as f64 / self.seconds } else { 0.0 }
    }

    /// Bytes per second, as text.
    pub(crate) fn rate(&self) -> String {
        units::rate(self.ios * u64::from(self.settings.io_size), Duration::from_secs_f64(self.seconds))
    }

    fn mib_per_s(&self) -> f64 {
        self.iops() * f64::from(self.settings.io_size) / f64::from(1 << 20)
    }

    pub(crate) fn mean(&self) -> Duration {
        Duration::from_nanos(self.latency.mean() as u64)
    }

    pub(crate) fn quantile(&self, quantile: f64) -> Duration {
        // The upper end of a bucket may lie above the largest value in it.
        Duration::from_nanos(self.latency.value_at_quantile(quantile).min(self.latency.max()))
    }

    pub(super) fn to_json(&self, controller: &Controller, ns: &Namespace) -> ReportJson {
        self.json_of(ns.nsid(), controller.trid().to_string())
    }

    fn json_of(&self, nsid: u32, trid: String) -> ReportJson {
        // Three digits after the point; more would be noise.
        let round = |value: f64| (value * 1e3).round() / 1e3;
        let us = |time: Duration| round(time.as_nanos() as f64 / 1e3);
        let settings = &self.settings;
        ReportJson {
            iops: round(self.iops()),
            mib_per_s: round(self.mib_per_s()),
            latency_us: LatencyJson {
                mean: us(self.mean()),
                min: us(self.quantile(0.0)),
                p50: us(self.quantile(0.5)),
                p90: us(self.quantile(0.9)),
                p99: us(self.quantile(0.99)),
                p999: us(self.quantile(0.999)),
                max: us(self.quantile(1.0)),
            },
            ios: self.ios,
            errors: self.errors,
            seconds: round(self.seconds),
            workload: settings.workload.as_str(),
            read_percent: settings.reads,
            io_size: settings.io_size,
            queue_depth: settings.queue_depth,
            qpairs: settings.qpairs,
            threads: settings.threads,
            interrupt: settings.interrupt,
            warmup_seconds: round(settings.warmup.as_secs_f64()),
            offset: settings.offset,
            length: settings.length,
            seed: settings.seed,
            nsid,
            trid,
        }
    }

    pub(super) fn text(&self, controller: &Controller, ns: &Namespace) -> String {
        self.text_of(&format!("namespace {} of {}", ns.nsid(), controller.subnqn()))
    }

    fn text_of(&self, what: &str) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text, what);
        text
    }

    fn write_text(&self, out: &mut String, what: &str) -> std::fmt::Result {
        let settings = &self.settings;
        writeln!(out, "{settings}")?;
        writeln!(
            out,
            "{what}, {} from offset {}, {:.1} s",
            units::bytes(settings.length),
            settings.offset,
            self.seconds
        )?;
        writeln!(out)?;
        writeln!(out, "  IOPS        {}", units::count(self.iops().round() as u64))?;
        writeln!(out, "  throughput  {}", self.rate())?;
        if self.errors > 0 {
            writeln!(out, "  errors      {}", units::count(self.errors))?;
        }
        if self.ios == 0 {
            return writeln!(out, "  latency     no I/O completed");
        }
        writeln!(out, "  latency     mean  {:>8}", units::time(self.mean()))?;
        for (name, quantile) in
            [("min", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)]
        {
            writeln!(out, "              {name:5} {:>8}", units::time(self.quantile(quantile)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Workload;
    use super::*;

    fn report() -> Report {
        let settings = Settings {
            workload: Workload::Randread,
            reads: 100,
            io_size: 4096,
            queue_depth: 32,
            qpairs: 1,
            threads: 1,
            warmup: Duration::ZERO,
            time: Duration::from_secs(2),
            offset: 0,
            length: 64 << 20,
            interrupt: false,
            seed: 1,
        };
        let mut report = Report::new(settings);
        report.ios = 1000;
        report.seconds = 2.0;
        // 1 µs to 1000 µs, once each.
        (1..=1000).for_each(|us| report.latency.saturating_record(us * 1000));
        report
    }

    #[test]
    fn text() {
        let expected = "\
randread, 4 KiB, queue depth 32
namespace 1 of nqn.a, 64 MiB from offset 0, 2.0 s

  IOPS        500
  throughput  2.0 MiB/s
  latency     mean    501 µs
              min    1.00 µs
              p50     500 µs
              p90     900 µs
              p99     990 µs
              p99.9   999 µs
              max    1.00 ms
";
        assert_eq!(report().text_of("namespace 1 of nqn.a"), expected);
    }

    #[test]
    fn json() {
        let json = serde_json::to_value(report().json_of(1, "trtype:TCP".into())).unwrap();
        assert_eq!(json["iops"], 500.0);
        assert_eq!(json["mib_per_s"], 1.953);
        let near = |key: &str, us: f64| {
            let value = json["latency_us"][key].as_f64().unwrap();
            assert!((value - us).abs() <= us / 1000.0, "{key}: {value}");
        };
        [("mean", 500.5), ("min", 1.0), ("p50", 500.0), ("p99", 990.0), ("p999", 999.0), ("max", 1000.0)]
            .into_iter()
            .for_each(|(key, us)| near(key, us));
    }

    #[test]
    fn nothing_measured_is_no_division_by_zero() {
        let mut report = Report::new(report().settings);
        report.errors = 3;
        let text = report.text_of("x");
        assert!(
            text.contains(
                "IOPS        0\n  throughput  0.0 MiB/s\n  errors      3\n  latency     no I/O completed\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn threads_add_up() {
        let mut total = report();
        total.add(report());
        assert_eq!((total.ios, total.seconds, total.latency.len()), (2000, 2.0, 2000));
    }
}

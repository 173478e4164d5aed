//! What was measured, in words and in JSON.

use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use nvmf_core::{Controller, QpairStats};
use serde::Serialize;

use super::{Range, Settings};
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
    /// I/Os of each controller's range.
    pub(super) per_range: Vec<u64>,
    /// Counters of every queue pair.
    pub(super) stats: Vec<QpairStats>,
}

/// What `-L` tells in addition.
const PERCENTILES: [f64; 17] = [
    1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999, 99.9995,
    99.9999,
];

/// Latencies up to `us` microseconds, from those of the bucket before.
#[derive(Serialize)]
struct BucketJson {
    us: f64,
    ios: u64,
}

#[derive(Serialize)]
struct PercentileJson {
    percent: f64,
    us: f64,
}

/// One of several controllers.
#[derive(Serialize)]
struct ControllerJson {
    trid: String,
    nsid: u32,
    ios: u64,
    iops: f64,
}

/// What the queue pairs and their transport counted, from the first I/O to the last, all together.
#[derive(Serialize, Default)]
struct StatsJson {
    polls: u64,
    idle_polls: u64,
    commands: u64,
    sends: u64,
    receives: u64,
    empty_receives: u64,
    bytes_sent: u64,
    bytes_received: u64,
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
    /// Only if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controllers: Vec<ControllerJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percentiles_us: Vec<PercentileJson>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    histogram: Vec<BucketJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport_stats: Option<StatsJson>,
}

impl Report {
    pub(super) fn new(settings: Settings, ranges: usize) -> Self {
        Self {
            settings,
            ios: 0,
            errors: 0,
            first_error: None,
            seconds: 0.0,
            latency: histogram(),
            per_range: vec![0; ranges],
            stats: Vec::new(),
        }
    }

    /// Adds what another thread measured in the same time.
    pub(super) fn add(&mut self, other: Self) {
        self.ios += other.ios;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.seconds = self.seconds.max(other.seconds);
        // Both have the same bounds.
        let _ = self.latency.add(other.latency);
        self.per_range.iter_mut().zip(other.per_range).for_each(|(sum, ios)| *sum += ios);
        self.stats.extend(other.stats);
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

    pub(super) fn to_json(&self, controllers: &[Controller], ranges: &[Range]) -> ReportJson {
        let (trids, nsids): (Vec<String>, Vec<u32>) = controllers
            .iter()
            .zip(ranges)
            .map(|(controller, range)| (controller.trid().to_string(), range.ns.nsid()))
            .unzip();
        let first = ranges.first().map_or(0, |range| range.places * u64::from(self.settings.io_size));
        self.json_of(&nsids, &trids, first)
    }

    fn json_of(&self, nsids: &[u32], trids: &[String], length: u64) -> ReportJson {
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
            length,
            seed: settings.seed,
            nsid: nsids.first().copied().unwrap_or(0),
            trid: trids.first().cloned().unwrap_or_default(),
            controllers: self
                .several(nsids, trids)
                .map(|(nsid, trid, ios)| {
                    let iops = if self.seconds > 0.0 { round(ios as f64 / self.seconds) } else { 0.0 };
                    ControllerJson { trid: trid.clone(), nsid, ios, iops }
                })
                .collect(),
            cpus: settings.cpus.clone(),
            percentiles_us: match settings.detail {
                0 => Vec::new(),
                _ => PERCENTILES
                    .iter()
                    .map(|&percent| PercentileJson { percent, us: us(self.quantile(percent / 100.0)) })
                    .collect(),
            },
            histogram: self.buckets().map(|(to, ios)| BucketJson { us: us(to), ios }).collect(),
            transport_stats: settings.transport_stats.then(|| self.stats()),
        }
    }

    /// The controllers, if there is more than one.
    fn several<'a>(
        &'a self,
        nsids: &'a [u32],
        trids: &'a [String],
    ) -> impl Iterator<Item = (u32, &'a String, u64)> {
        let several = self.per_range.len() > 1;
        let all = nsids.iter().zip(trids).zip(&self.per_range).map(|((&nsid, trid), &ios)| (nsid, trid, ios));
        all.filter(move |_| several)
    }

    /// The histogram in steps of an eighth, if it is wanted: latencies up to this, and how many.
    fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let wanted = self.settings.detail > 1;
        let steps = self.latency.iter_log(128, 1.125);
        let counted = steps.filter(move |step| wanted && step.count_since_last_iteration() > 0);
        counted
            .map(|step| (Duration::from_nanos(step.value_iterated_to()), step.count_since_last_iteration()))
    }

    fn stats(&self) -> StatsJson {
        let mut sum = StatsJson::default();
        for stats in &self.stats {
            sum.polls += stats.polls;
            sum.idle_polls += stats.idle_polls;
            sum.commands += stats.commands;
            sum.sends += stats.transport.sends;
            sum.receives += stats.transport.receives;
            sum.empty_receives += stats.transport.empty_receives;
            sum.bytes_sent += stats.transport.bytes_sent;
            sum.bytes_received += stats.transport.bytes_received;
        }
        sum
    }

    pub(super) fn text(&self, controllers: &[Controller], ranges: &[Range]) -> String {
        let mut text = String::new();
        let names: Vec<String> = controllers
            .iter()
            .zip(ranges)
            .map(|(controller, range)| format!("namespace {} of {}", range.ns.nsid(), controller.subnqn()))
            .collect();
        let length = ranges.first().map_or(0, |range| range.places * u64::from(self.settings.io_size));
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text, &names, length);
        text
    }

    fn write_text(&self, out: &mut String, names: &[String], length: u64) -> std::fmt::Result {
        let settings = &self.settings;
        writeln!(out, "{settings}")?;
        let what = match names {
            [one] => format!("{one}, {}", units::bytes(length)),
            many => format!("{} namespaces", many.len()),
        };
        writeln!(out, "{what} from offset {}, {:.1} s", settings.offset, self.seconds)?;
        writeln!(out)?;
        if names.len() > 1 && self.seconds > 0.0 {
            for (name, &ios) in names.iter().zip(&self.per_range) {
                writeln!(out, "  {name}: {} IOPS", units::count((ios as f64 / self.seconds).round() as u64))?;
            }
            writeln!(out)?;
        }
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
        if settings.detail > 0 {
            writeln!(out, "\n  percentiles")?;
            for percent in PERCENTILES {
                writeln!(out, "  {percent:>9.4} %  {:>8}", units::time(self.quantile(percent / 100.0)))?;
            }
        }
        if settings.detail > 1 {
            writeln!(out, "\n  histogram: up to, I/Os, of all so far")?;
            let mut so_far = 0;
            for (to, ios) in self.buckets() {
                so_far += ios;
                let share = so_far as f64 * 100.0 / self.ios as f64;
                writeln!(out, "  {:>8}  {:>14}  {share:>8.4} %", units::time(to), units::count(ios))?;
            }
        }
        if settings.transport_stats {
            let stats = self.stats();
            writeln!(out, "\n  commands    {}", units::count(stats.commands))?;
            writeln!(
                out,
                "  polls       {}, {} of them idle",
                units::count(stats.polls),
                units::count(stats.idle_polls)
            )?;
            writeln!(out, "  sends       {}, {}", units::count(stats.sends), units::bytes(stats.bytes_sent))?;
            writeln!(
                out,
                "  receives    {}, {}, and {} empty",
                units::count(stats.receives),
                units::bytes(stats.bytes_received),
                units::count(stats.empty_receives)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let settings = Settings { time: Duration::from_secs(2), ..Settings::default() };
        let mut report = Report::new(settings, 1);
        report.ios = 1000;
        report.per_range = vec![1000];
        report.seconds = 2.0;
        // 1 µs to 1000 µs, once each.
        (1..=1000).for_each(|us| report.latency.saturating_record(us * 1000));
        report
    }

    fn text_of(report: &Report, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut text = String::new();
        report.write_text(&mut text, &names, 64 << 20).unwrap();
        text
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
        assert_eq!(text_of(&report(), &["namespace 1 of nqn.a"]), expected);
    }

    #[test]
    fn json() {
        let json = serde_json::to_value(report().json_of(&[1], &["trtype:TCP".into()], 64 << 20)).unwrap();
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
        let mut report = Report::new(report().settings, 1);
        report.errors = 3;
        let text = text_of(&report, &["x"]);
        assert!(
            text.contains(
                "IOPS        0\n  throughput  0.0 MiB/s\n  errors      3\n  latency     no I/O completed\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn details_are_told_if_wanted() {
        let mut report = report();
        report.settings.detail = 2;
        report.settings.transport_stats = true;
        let mut other = self::report();
        let mut stats = QpairStats::default();
        (stats.polls, stats.transport.sends, stats.transport.bytes_sent) = (10, 3, 1 << 20);
        other.stats = vec![stats, stats];
        report.add(other);
        let text = text_of(&report, &["a"]);
        assert!(text.contains("\n    99.0000 %    990 µs\n"), "{text}");
        assert!(text.contains("  100.0000 %\n\n  commands"), "{text}");
        assert!(text.contains("polls       20, 0 of them idle\n  sends       6, 2 MiB\n"), "{text}");
        let json = serde_json::to_value(report.json_of(&[1], &["x".into()], 0)).unwrap();
        let ios: u64 =
            json["histogram"].as_array().unwrap().iter().map(|step| step["ios"].as_u64().unwrap()).sum();
        assert_eq!((ios, &json["transport_stats"]["sends"]), (2000, &6.into()));
        assert_eq!(json["percentiles_us"].as_array().unwrap().len(), PERCENTILES.len());
        let plain = serde_json::to_value(self::report().json_of(&[1], &["x".into()], 0)).unwrap();
        for key in ["histogram", "percentiles_us", "transport_stats", "controllers", "cpus"] {
            assert!(plain.get(key).is_none(), "{key}");
        }
    }

    #[test]
    fn controllers_are_told_apart() {
        let mut report = report();
        report.per_range = vec![600, 400];
        let text = text_of(&report, &["namespace 1 of nqn.a", "namespace 2 of nqn.b"]);
        assert!(text.contains("2 namespaces from offset 0"), "{text}");
        assert!(
            text.contains("  namespace 1 of nqn.a: 300 IOPS\n  namespace 2 of nqn.b: 200 IOPS\n"),
            "{text}"
        );
        let json = serde_json::to_value(report.json_of(&[1, 2], &["a".into(), "b".into()], 0)).unwrap();
        assert_eq!(
            (&json["controllers"][1]["trid"], &json["controllers"][1]["iops"]),
            (&"b".into(), &200.0.into())
        );
    }

    #[test]
    fn threads_add_up() {
        let mut total = report();
        total.add(report());
        assert_eq!((total.ios, total.seconds, total.latency.len()), (2000, 2.0, 2000));
    }
}

//! What was measured: kept as JSON, shown as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::cell::{Cell, Initiator, Pair, Side};

/// I/Os per second in each round of one cell.
pub(super) type Runs = BTreeMap<Pair, Vec<f64>>;

/// The middle one; the mean of the middle two.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Results of several invocations: a file that each adds its cells to.
pub(super) struct Results {
    root: Map<String, Value>,
}

impl Results {
    /// Those in a file, if there is one.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let root = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { root })
    }

    pub(super) fn save(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let text = serde_json::to_string_pretty(&self.root)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }

    pub(super) fn note(&mut self, name: &str, value: Value) {
        self.root.insert(name.to_owned(), value);
    }

    /// Puts what was measured of a cell in. What was measured of other pairs before stays.
    pub(super) fn put(&mut self, cell: &Cell, runs: &Runs, seconds: u64) {
        let name = cell.to_string();
        let before = self.root.get("cells").and_then(|cells| cells.get(&name)?["pairs"].as_object());
        let mut pairs: Map<String, Value> = before.cloned().unwrap_or_default();
        for (pair, runs) in runs {
            let iops = median(runs.clone());
            // So many are outstanding all the time (Little's law).
            let mean = iops.map(|iops| round(cell.depth as f64 * 1e6 / iops));
            let runs: Vec<f64> = runs.iter().copied().map(round).collect();
            let figures = json!({ "iops": iops.map(round), "mean_us": mean, "runs": { "iops": runs } });
            pairs.insert(pair.to_string(), figures);
        }
        let cells = self.root.entry("cells").or_insert_with(|| json!({}));
        cells[name] = json!({ "seconds": seconds, "pairs": pairs });
    }

    fn figure(&self, cell: &str, pair: Pair, what: &str) -> Option<f64> {
        self.root.get("cells")?.get(cell)?["pairs"][pair.to_string()][what].as_f64()
    }

    /// How many times the I/Os per second of `other` a pair has: the median over the rounds, in each of which they took turns.
    fn ratio(&self, cell: &str, pair: Pair, other: Pair) -> Option<f64> {
        let runs = |pair: Pair| -> Option<Vec<f64>> {
            let runs = &self.root.get("cells")?.get(cell)?["pairs"][pair.to_string()]["runs"]["iops"];
            runs.as_array()?.iter().map(Value::as_f64).collect()
        };
        median(runs(pair)?.iter().zip(runs(other)?).map(|(ours, theirs)| ours / theirs).collect())
    }

    /// The table, as Markdown: medians, and what the initiators are to each other and to the limit.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        for name in ["machine", "peer"] {
            if let Some(value) = self.root.get(name).and_then(Value::as_str) {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{name}: {value}");
            }
        }
        for side in Side::ALL {
            let nvmf = Pair { initiator: Initiator::Nvmf, side };
            let spdk = Pair { initiator: Initiator::Spdk, side };
            let rows = self.rows(nvmf, spdk);
            if !rows.is_empty() {
                let title = match side {
                    Side::Null => "target: nvmf target, null namespace",
                    Side::SpdkNull => "target: SPDK, null bdev",
                    Side::SpdkMalloc => "target: SPDK, malloc bdev",
                };
                let _ = write!(
                    text,
                    "\n{title}\n\n| cell | nvmf IOPS | µs | SPDK IOPS | µs | nvmf / SPDK | bare exchange IOPS | µs | nvmf / bare |\n\
                     |---|---|---|---|---|---|---|---|---|\n{rows}"
                );
            }
            let rows = self.rows_of_builds(nvmf, Pair { initiator: Initiator::Other, side });
            if !rows.is_empty() {
                let _ = write!(
                    text,
                    "\ntwo builds, target: {}\n\n| cell | nvmf IOPS | other build's IOPS | nvmf / other |\n|---|---|---|---|\n{rows}",
                    side.name()
                );
            }
        }
        text
    }

    fn rows_of_builds(&self, nvmf: Pair, other: Pair) -> String {
        let mut rows = String::new();
        let cells = self.root.get("cells").and_then(Value::as_object);
        for cell in cells.into_iter().flat_map(Map::keys) {
            let figure = |pair| self.figure(cell, pair, "iops").map(grouped);
            let (Some(ours), Some(theirs)) = (figure(nvmf), figure(other)) else { continue };
            let Some(ratio) = self.ratio(cell, nvmf, other) else { continue };
            let _ = writeln!(rows, "| {cell} | {ours} | {theirs} | {ratio:.2} |");
        }
        rows
    }

    fn rows(&self, nvmf: Pair, spdk: Pair) -> String {
        let limit = Pair { initiator: Initiator::Limit, side: Side::Null };
        let mut rows = String::new();
        let cells = self.root.get("cells").and_then(Value::as_object);
        for cell in cells.into_iter().flat_map(Map::keys) {
            let figure = |pair, what| self.figure(cell, pair, what);
            let Some(ours) = figure(nvmf, "iops") else { continue };
            let ratio =
                |other| self.ratio(cell, nvmf, other).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let count = |value: Option<f64>| value.map_or_else(String::new, grouped);
            let us = |value: Option<f64>| value.map_or_else(String::new, |us| format!("{us:.2}"));
            let (theirs, bare) = (figure(spdk, "iops"), figure(limit, "iops"));
            let _ = writeln!(
                rows,
                "| {cell} | {} | {} | {} | {} | {} | {} | {} | {} |",
                grouped(ours),
                us(figure(nvmf, "mean_us")),
                count(theirs),
                us(figure(spdk, "mean_us")),
                ratio(spdk),
                count(bare),
                us(figure(limit, "mean_us")),
                ratio(limit),
            );
        }
        rows
    }
}

/// `1,234,567`
pub(super) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(grouped(1_234_567.4), "1,234,567");
        assert_eq!(grouped(12.0), "12");
        assert_eq!(grouped(123_456.0), "123,456");
    }

    #[test]
    fn cells_are_added_to_a_file() {
        let path = std::env::temp_dir().join(format!("nvmf-bench-{}.json", std::process::id()));
        let (first, second) = (Cell::all()[0], Cell::all()[1]);
        assert_eq!((first.depth, second.depth), (1, 32));
        let runs = |iops: [f64; 3], initiator| (Pair { initiator, side: Side::Null }, iops.to_vec());
        let mut results = Results::load(&path).unwrap();
        let both = [runs([300.0, 330.0, 200.0], Initiator::Nvmf), runs([100.0; 3], Initiator::Spdk)];
        results.put(&first, &both.into_iter().collect(), 1);
        results.save(&path).unwrap();
        let mut results = Results::load(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        results.put(&second, &[runs([1234.0; 3], Initiator::Nvmf)].into_iter().collect(), 1);
        let table = results.table();
        assert!(
            table.contains(&format!("| {first} | 300 | 3333.33 | 100 | 10000.00 | 3.00 |  |  |  |")),
            "{table}"
        );
        assert!(table.contains(&format!("| {second} | 1,234 | 25931.93 |  |")), "{table}");
        assert!(!table.contains("SPDK, null bdev"), "{table}");
        // Another pair of a cell leaves the others alone.
        results.put(&second, &[runs([617.0; 3], Initiator::Spdk)].into_iter().collect(), 1);
        let row = format!("| {second} | 1,234 | 25931.93 | 617 | 51863.86 | 2.00 |");
        assert!(results.table().contains(&row), "{}", results.table());
        assert!(!results.table().contains("two builds"), "{}", results.table());
        results.put(&second, &[runs([1000.0; 3], Initiator::Other)].into_iter().collect(), 1);
        let row = format!("| {second} | 1,234 | 1,000 | 1.23 |");
        assert!(results.table().contains(&row), "{}", results.table());
    }
}

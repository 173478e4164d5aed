//! Numbers for people, and tables.

use std::fmt::Write;
use std::time::Duration;

/// The format of blocks, as `nvme list` puts it: `512   B +  8 B`.
pub(crate) fn block_format(block: u32, metadata: u16) -> String {
    let (number, unit) = match block {
        0..1024 => (block, ""),
        1024..0x10_0000 => (block >> 10, "Ki"),
        0x10_0000..0x4000_0000 => (block >> 20, "Mi"),
        _ => (block >> 30, "Gi"),
    };
    format!("{number:>3} {unit:>2}B + {metadata:>2} B")
}

/// A number of bytes: exact in the largest binary unit that divides it to fewer than five digits, else with two digits
/// after the point.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if count >> shift > 0 {
            let (whole, rest) = (count >> shift, count & ((1 << shift) - 1));
            return match rest {
                0 => format!("{whole} {unit}"),
                _ => format!("{:.2} {unit}", count as f64 / (1u64 << shift) as f64),
            };
        }
    }
    format!("{count} B")
}

/// Bytes per time.
pub(crate) fn rate(count: u64, time: Duration) -> String {
    let mib = mib_per_s(count, time);
    if mib >= 1024.0 { format!("{:.2} GiB/s", mib / 1024.0) } else { format!("{mib:.1} MiB/s") }
}

/// MiB per second.
pub(crate) fn mib_per_s(count: u64, time: Duration) -> f64 {
    count as f64 / (1 << 20) as f64 / time.as_secs_f64().max(1e-9)
}

/// A time, with three significant digits.
pub(crate) fn time(time: Duration) -> String {
    let ns = time.as_nanos() as f64;
    let (value, unit) = match ns {
        _ if ns < 1e3 => return format!("{ns} ns"),
        _ if ns < 999.5e3 => (ns / 1e3, "µs"),
        _ if ns < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}

/// A count with the thousands set apart.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `one thing`, `2 things`.
pub(crate) fn plural(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ if thing.ends_with('y') => format!("{} {}ies", count(number), &thing[..thing.len() - 1]),
        _ => format!("{} {thing}s", count(number)),
    }
}

/// Lines of cells, padded to columns two spaces apart; the first line is the heading.
pub(crate) struct Table {
    lines: Vec<Vec<String>>,
    /// Columns whose cells stand on the right.
    right: Vec<usize>,
}

impl Table {
    pub(crate) fn new(heading: &[&str], right: &[usize]) -> Self {
        Self { lines: vec![heading.iter().map(|&cell| cell.to_owned()).collect()], right: right.to_vec() }
    }

    pub(crate) fn line(&mut self, cells: impl IntoIterator<Item = String>) {
        self.lines.push(cells.into_iter().collect());
    }

    /// The whole table, each line ended, none with spaces at its end.
    pub(crate) fn print(&self) -> String {
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.lines
                    .iter()
                    .filter_map(|line| line.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for line in &self.lines {
            let mut printed = String::new();
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                // Writing to a String cannot fail.
                let _ = if self.right.contains(&column) {
                    write!(printed, "{cell:>width$}  ")
                } else {
                    write!(printed, "{cell:<width$}  ")
                };
            }
            text.push_str(printed.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_formats_are_those_of_nvme_list() {
        assert_eq!(block_format(512, 0), "512   B +  0 B");
        assert_eq!(block_format(512, 8), "512   B +  8 B");
        assert_eq!(block_format(4096, 64), "  4 KiB + 64 B");
    }

    #[test]
    fn bytes_are_exact_or_rounded() {
        let cases = [
            (0, "0 B"),
            (512, "512 B"),
            (4096, "4 KiB"),
            (4608, "4.50 KiB"),
            (64 << 20, "64 MiB"),
            ((64 << 20) + 1, "64.00 MiB"),
            (3 << 40, "3 TiB"),
            (u64::MAX, "16384.00 PiB"),
        ];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn times_have_three_digits() {
        let cases = [
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (9_996, "10.0 µs"),
            (12_345, "12.3 µs"),
            (999_400, "999 µs"),
            (999_600, "1.00 ms"),
            (123_456_789, "123 ms"),
            (1_500_000_000, "1.50 s"),
            (5_001_000_000, "5.00 s"),
        ];
        for (ns, expected) in cases {
            assert_eq!(time(Duration::from_nanos(ns)), expected, "{ns}");
        }
    }

    #[test]
    fn counts_and_rates() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "record"), "1 record");
        assert_eq!(plural(0, "entry"), "0 entries");
        assert_eq!(rate(64 << 20, Duration::from_millis(500)), "128.0 MiB/s");
        assert_eq!(rate(20 << 30, Duration::from_secs(1)), "20.00 GiB/s");
    }

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&["Name", "Size", "Note"], &[1]);
        table.line(["a".into(), "64 MiB".into(), String::new()]);
        table.line(["bcdef".into(), "1 GiB".into(), "x".into()]);
        assert_eq!(table.print(), "Name     Size  Note\na      64 MiB\nbcdef   1 GiB  x\n");
    }
}

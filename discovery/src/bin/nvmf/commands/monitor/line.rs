//! A change as a line of text or JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use nvmf_core::TransportId;
use nvmf_discovery::{MonitorEvent, Path};
use serde::Serialize;

use crate::failure::{Failure, and};

#[derive(Serialize, Default, Debug)]
pub(super) struct Line {
    event: &'static str,
    /// Milliseconds since 1970.
    time_ms: u64,
    trid: String,
    uri: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnqn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    genctr: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<u64>,
    /// Events that are not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<u64>,
}

impl Line {
    pub(super) fn of(event: &MonitorEvent) -> Self {
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let line = |event, trid: &TransportId| Self {
            event,
            time_ms,
            trid: trid.to_string(),
            uri: trid.to_uri(),
            ..Self::default()
        };
        let path = |event, path: &Path| Self { subnqn: Some(path.entry.subnqn()), ..line(event, &path.trid) };
        match event {
            MonitorEvent::Watching(trid) => line("watching", trid),
            MonitorEvent::Forgotten(trid) => line("forgotten", trid),
            MonitorEvent::Connected { trid, subnqn, genctr } => {
                Self { subnqn: Some(subnqn.clone()), genctr: Some(*genctr), ..line("connected", trid) }
            }
            MonitorEvent::Disconnected { trid, error, retry_in } => Self {
                error: Some(error.to_string()),
                retry_in_ms: Some(retry_in.as_millis() as u64),
                ..line("disconnected", trid)
            },
            MonitorEvent::Added(added) => path("added", added),
            MonitorEvent::Removed(removed) => path("removed", removed),
            MonitorEvent::Changed(changed) => path("changed", changed),
            MonitorEvent::Unusable { trid, error } => {
                Self { error: Some(error.to_string()), ..line("unusable", trid) }
            }
            MonitorEvent::Merged { events } => {
                Self { event: "merged", time_ms, events: Some(*events), ..Self::default() }
            }
            // An event of a later version of the library.
            _ => Self { event: "other", time_ms, ..Self::default() },
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{} {:12} {}", utc(self.time_ms), self.event, self.uri);
        if let Some(genctr) = self.genctr {
            text.push_str(&format!(" ({}, generation {genctr})", self.subnqn.as_deref().unwrap_or_default()));
        }
        if let Some(error) = &self.error {
            let error: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            text.push_str(&format!(": {error}"));
        }
        if let Some(ms) = self.retry_in_ms {
            text = and(text, format_args!("again in {:.1} s", ms as f64 / 1000.0));
        }
        if let Some(events) = self.events {
            text.push_str(&format!(
                "{events} events that were not fetched in time; the next tell of the difference"
            ));
        }
        text.push('\n');
        text
    }

    pub(super) fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string(self);
        text.map(|text| text + "\n").map_err(|error| Failure::failed(format!("writing JSON: {error}")))
    }
}

/// Milliseconds since 1970 as date and time of day, UTC.
fn utc(ms: u64) -> String {
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years have 146,097 days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let length = |year| if leap(year) { 366 } else { 365 };
    while days >= length(year) {
        days -= length(year);
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days_of_month in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < days_of_month {
            break;
        }
        days -= days_of_month;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_868_799_000, "2000-02-29T23:59:59.000Z"),
            (1_709_210_096_789, "2024-02-29T12:34:56.789Z"),
            (1_798_761_599_000, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (u64::MAX, "584556019-04-03T14:25:51.615Z"),
        ] {
            assert_eq!(utc(ms), expected);
        }
    }

    #[test]
    fn a_loss_is_one_line() {
        let line = Line {
            event: "disconnected",
            uri: "nvme+tcp://192.0.2.1:8009".to_owned(),
            error: Some("refused\n\u{1b}[2J; is it there?".to_owned()),
            retry_in_ms: Some(1600),
            ..Line::default()
        };
        assert_eq!(
            line.text(),
            "1970-01-01T00:00:00.000Z disconnected nvme+tcp://192.0.2.1:8009: refused  [2J; is it there? again in 1.6 s\n"
        );
    }
}

//! A change as a line of text or JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use nvmf_core::TransportId;
use nvmf_discovery::{MonitorEvent, Path};
use serde::Serialize;

use crate::failure::Failure;

#[derive(Serialize, Debug)]
pub(super) struct Line {
    event: &'static str,
    /// Milliseconds since 1970.
    time_ms: u64,
    trid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uri: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnqn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    genctr: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_in_ms: Option<u64>,
}

impl Line {
    pub(super) fn of(event: &MonitorEvent) -> Self {
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let line = |event, trid: &TransportId| Self {
            event,
            time_ms,
            trid: trid.to_string(),
            uri: None,
            subnqn: None,
            genctr: None,
            error: None,
            retry_in_ms: None,
        };
        let path = |event, path: &Path| Self {
            uri: Some(path.trid.to_uri()),
            subnqn: Some(path.entry.subnqn()),
            ..line(event, &path.trid)
        };
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
            // An event of a later version of the library.
            _ => Self {
                event: "other",
                time_ms,
                trid: String::new(),
                uri: None,
                subnqn: None,
                genctr: None,
                error: None,
                retry_in_ms: None,
            },
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("{:12} {}", self.event, self.uri.as_ref().unwrap_or(&self.trid));
        if let Some(genctr) = self.genctr {
            text.push_str(&format!(" ({}, generation {genctr})", self.subnqn.as_deref().unwrap_or_default()));
        }
        if let Some(error) = &self.error {
            let error: String = error.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            text.push_str(&format!(": {error}"));
        }
        if let Some(ms) = self.retry_in_ms {
            text.push_str(&format!("; again in {:.1} s", ms as f64 / 1000.0));
        }
        text.push('\n');
        text
    }

    pub(super) fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string(self);
        text.map(|text| text + "\n").map_err(|error| Failure::failed(format!("writing JSON: {error}")))
    }
}

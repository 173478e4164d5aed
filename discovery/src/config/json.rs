//! `config.json`: an array of hosts, each with subsystems, each with ports.
//!
//! Values are read from their raw text one level at a time, which keeps where in the file each of them stands.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use nvmf_core::Nqn;

use super::build::{ADDRESS_KEYS, Parts};
use super::diagnostic::{Report, quoted, suggestion};
use super::key::{Info, KEYS, Key, Kind, Persistent, Value};
use super::model::{Endpoint, Host, Options, Scope};

const HOST_KEYS: [&str; 6] =
    ["hostnqn", "hostid", "dhchap_key", "hostsymname", "persistent_discovery_ctrl", "subsystems"];
const SUBSYSTEM_KEYS: [&str; 3] = ["nqn", "application", "ports"];

pub(super) fn read(text: &str, report: &mut Report) -> Vec<Host> {
    let root: &RawValue = match serde_json::from_str(text) {
        Ok(root) => root,
        Err(error) => {
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            report.error(error.line(), format!("{what} (column {})", error.column()));
            return Vec::new();
        }
    };
    let mut reader = Reader { base: text.as_ptr() as usize, lines: line_starts(text), report };
    let hosts = reader.array("the file", root);
    hosts.into_iter().filter_map(|host| reader.host(host)).collect()
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0)
        .chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1))
        .collect()
}

/// The members of an object in their order, repeated names and all.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

struct Reader<'r> {
    /// Where the text begins in memory: raw values are parts of it.
    base: usize,
    lines: Vec<usize>,
    report: &'r mut Report,
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

impl Reader<'_> {
    fn line(&self, value: &RawValue) -> usize {
        let offset = (value.get().as_ptr() as usize).saturating_sub(self.base);
        self.lines.partition_point(|start| *start <= offset)
    }

    fn array<'a>(&mut self, name: &str, value: &'a RawValue) -> Vec<&'a RawValue> {
        if is_null(value) {
            return Vec::new();
        }
        serde_json::from_str(value.get()).unwrap_or_else(|_| {
            self.report.error(self.line(value), format!("{name}: an array is expected"));
            Vec::new()
        })
    }

    /// The members of an object; a name that comes twice counts once and is an error.
    fn object<'a>(&mut self, name: &str, value: &'a RawValue) -> Option<Vec<(String, &'a RawValue)>> {
        let Ok(Members(members)) = serde_json::from_str(value.get()) else {
            self.report.error(self.line(value), format!("{name}: an object is expected"));
            return None;
        };
        let mut seen = std::collections::HashSet::new();
        let mut unique = Vec::with_capacity(members.len());
        for (key, value) in members {
            if !seen.insert(key.clone()) {
                self.report.error(self.line(value), format!("{} is there twice", quoted(&key)));
            } else if !is_null(value) {
                unique.push((key, value));
            }
        }
        Some(unique)
    }

    /// A string, or a number where a string is meant, as json-c takes it.
    fn string(&mut self, name: &str, value: &RawValue) -> Option<String> {
        if let Ok(text) = serde_json::from_str(value.get()) {
            return Some(text);
        }
        if let Ok(number) = serde_json::from_str::<i64>(value.get()) {
            return Some(number.to_string());
        }
        self.report.error(self.line(value), format!("{name}: a string is expected"));
        None
    }

    fn bool(&mut self, name: &str, value: &RawValue) -> Option<bool> {
        match value.get() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => {
                self.report.error(self.line(value), format!("{name}: true or false is expected"));
                None
            }
        }
    }

    fn unknown<'a>(&mut self, key: &str, value: &RawValue, known: impl IntoIterator<Item = &'a str>) {
        let nearest = suggestion(key, known);
        self.report.warning(self.line(value), format!("unknown key {} is passed over{nearest}", quoted(key)));
    }

    fn option(&mut self, options: &mut Options, info: &Info, value: &RawValue, scope: Scope) {
        let line = self.line(value);
        let parsed = match info.kind {
            Kind::Int(_) => {
                match (serde_json::from_str::<i64>(value.get()), serde_json::from_str::<String>(value.get()))
                {
                    (Ok(number), _) => info.int(number),
                    (_, Ok(text)) => info.parse(&text),
                    _ => Err("an integer is expected".to_owned()),
                }
            }
            Kind::Bool => match self.bool(info.json, value) {
                Some(value) => Ok(Value::Bool(value)),
                None => return,
            },
            // Of nvme-cli 2, which keeps the connection without asking whether the controller likes it.
            Kind::Persistent => match self.bool(info.json, value) {
                Some(true) => Ok(Value::Persistent(Persistent::Force)),
                Some(false) => Ok(Value::Persistent(Persistent::No)),
                None => return,
            },
            Kind::Text | Kind::Secret(_) => match self.string(info.json, value) {
                Some(text) => info.parse(&text),
                None => return,
            },
        };
        self.report.option(options, info, info.json, parsed, (line, scope));
    }

    fn host(&mut self, value: &RawValue) -> Option<Host> {
        let members = self.object("a host", value)?;
        let mut host = Host::default();
        let mut subsystems = Vec::new();
        let mut defaults = Options::default();
        for (key, value) in members {
            let line = self.line(value);
            match key.as_str() {
                "hostnqn" => {
                    let text = self.string(&key, value)?;
                    host.nqn = self.report.nqn(&key, &text, line, Scope::Host);
                }
                "hostid" => {
                    let text = self.string(&key, value)?;
                    host.id = self.report.host_id(&key, &text, line, Scope::Host);
                }
                "hostsymname" => {
                    let text = self.string(&key, value)?;
                    host.symname = self.report.text(&key, &text, line, Scope::Host);
                }
                "dhchap_key" => self.option(&mut defaults, Key::DhchapSecret.info(), value, Scope::Host),
                "persistent_discovery_ctrl" => {
                    if let Some(keep) = self.bool(&key, value) {
                        let keep = if keep { Persistent::Force } else { Persistent::No };
                        let origin = self.report.origin(line, Scope::Host);
                        host.discovery_defaults.set(Key::Persistent, Value::Persistent(keep), origin);
                    }
                }
                "subsystems" => subsystems = self.array(&key, value),
                _ => self.unknown(&key, value, HOST_KEYS),
            }
        }
        if host.nqn.is_none() {
            // nvme-cli passes over such hosts without a word.
            self.report.error(self.line(value), "a host needs a hostnqn");
        }
        host.discovery_defaults = host.discovery_defaults.overlaid(&defaults);
        host.io_defaults = defaults;
        for subsystem in subsystems {
            let endpoints = self.subsystem(&host, subsystem).unwrap_or_default();
            host.endpoints.extend(endpoints);
        }
        Some(host)
    }

    fn subsystem(&mut self, host: &Host, value: &RawValue) -> Option<Vec<Endpoint>> {
        let members = self.object("a subsystem", value)?;
        let (mut nqn, mut application, mut ports) = (None, None, Vec::new());
        let mut named = false;
        for (key, value) in members {
            let line = self.line(value);
            match key.as_str() {
                "nqn" => {
                    named = true;
                    let text = self.string(&key, value)?;
                    nqn = self.report.nqn(&key, &text, line, Scope::Endpoint);
                }
                "application" => {
                    let text = self.string(&key, value)?;
                    application = self.report.text(&key, &text, line, Scope::Endpoint);
                }
                "ports" => ports = self.array(&key, value),
                _ => self.unknown(&key, value, SUBSYSTEM_KEYS),
            }
        }
        if !named {
            self.report.error(self.line(value), "a subsystem needs an nqn");
        }
        let well_known = nqn.as_ref().is_some_and(|nqn| nqn.value.as_str() == Nqn::DISCOVERY);
        // A port says by itself whether it is one of a discovery controller.
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for port in ports {
            let Some((discovery, controller)) = self.port(host, port, well_known) else { continue };
            match endpoints.iter_mut().find(|endpoint| endpoint.discovery == discovery) {
                Some(endpoint) => endpoint.paths.push(controller),
                None => endpoints.push(Endpoint {
                    discovery,
                    nqn: nqn.clone(),
                    application: application.clone(),
                    paths: vec![controller],
                }),
            }
        }
        Some(endpoints)
    }

    fn port(&mut self, host: &Host, value: &RawValue, well_known: bool) -> Option<(bool, super::Controller)> {
        let members = self.object("a port", value)?;
        let (mut parts, mut options, mut discovery) = (Parts::default(), Options::default(), well_known);
        let errors = self.report.found.len();
        for (key, value) in members {
            let line = self.line(value);
            if key == "discovery" {
                discovery |= self.bool(&key, value).unwrap_or_default();
            } else if let Some(slot) = parts.slot(&key).filter(|_| !key.contains('-')) {
                if let Some(text) = self.string(&key, value) {
                    *slot = self.report.text(&key, &text, line, Scope::Controller);
                }
            } else if let Some(info) = KEYS.iter().find(|info| info.json == key) {
                self.option(&mut options, info, value, Scope::Controller);
            } else {
                let known = KEYS.iter().map(|info| info.json).chain(ADDRESS_KEYS).chain(["discovery"]);
                self.unknown(&key, value, known);
            }
        }
        if self.report.found[errors..].iter().any(|d| d.severity == super::Severity::Error) {
            return None;
        }
        let defaults = if discovery { &host.discovery_defaults } else { &host.io_defaults };
        let origin = self.report.origin(self.line(value), Scope::Controller);
        let controller = parts.finish(defaults.overlaid(&options), origin, self.report)?;
        Some((discovery, controller))
    }
}

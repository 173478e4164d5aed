//! A configuration as text and as JSON: every value with its origin, secrets veiled.

use std::fmt::{Display, Write};

use nvmf_core::HostIdentity;
use nvmf_core::host::HostSource;
use serde_json::{Map, Value as Json, json};

use super::{Config, Controller, Endpoint, Host, Origin, Scope};

/// Who the machine is, for hosts that do not say.
pub type Machine<'a> = Option<&'a (HostIdentity, HostSource)>;

impl Scope {
    fn describe(self) -> &'static str {
        match self {
            Self::Controller | Self::Endpoint => "",
            Self::Host => " (host)",
            Self::DiscoveryDefaults => " (discovery controller defaults)",
            Self::IoDefaults => " (I/O controller defaults)",
        }
    }
}

fn said(origin: &Origin) -> String {
    format!("{origin}{}", origin.scope.describe())
}

/// The name, the value, and where it comes from, of who connects.
fn identity(host: &Host, machine: Machine<'_>) -> Vec<(&'static str, String, String)> {
    let mut rows = Vec::new();
    match (&host.nqn, machine) {
        (Some(nqn), _) => rows.push(("hostnqn", nqn.value.to_string(), said(&nqn.origin))),
        (None, Some((machine, source))) => {
            rows.push(("hostnqn", machine.nqn.to_string(), source.to_string()))
        }
        (None, None) => {}
    }
    let from_name = host.nqn.as_ref().and_then(|nqn| Some((nqn.value.uuid()?, &nqn.origin)));
    match (&host.id, from_name, machine) {
        (Some(id), ..) => rows.push(("hostid", id.value.to_string(), said(&id.origin))),
        (None, Some((uuid, origin)), _) => rows.push(("hostid", uuid.to_string(), said(origin))),
        (None, None, Some((machine, source))) => {
            rows.push(("hostid", machine.id.to_string(), source.to_string()))
        }
        (None, None, None) => {}
    }
    if let Some(name) = &host.symname {
        rows.push(("hostsymname", name.value.clone(), said(&name.origin)));
    }
    rows
}

fn rows(controller: &Controller) -> impl Iterator<Item = (&'static str, String, String)> {
    let address = controller.address.iter().map(|(name, s)| (name, s.value.clone(), said(&s.origin)));
    address
        .chain(controller.options.iter().map(|(key, s)| (key.name(), s.value.to_string(), said(&s.origin))))
}

fn nqn(endpoint: &Endpoint) -> (String, Option<String>) {
    match &endpoint.nqn {
        Some(nqn) => (nqn.value.to_string(), Some(said(&nqn.origin))),
        None => (nvmf_core::Nqn::DISCOVERY.to_owned(), None),
    }
}

/// Text for people. Values are aligned, and so are origins.
#[must_use]
pub fn text(config: &Config, machine: Machine<'_>) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, name: &str, value: &dyn Display, origin: &str| {
        let name_width = 20usize.saturating_sub(indent);
        let row = format!("{:indent$}{name:<name_width$} {value:<40} {origin}", "");
        // A String takes everything.
        let _ = writeln!(text, "{}", row.trim_end());
    };
    for host in &config.hosts {
        line(0, "host", &"", "");
        for (name, value, origin) in identity(host, machine) {
            line(2, name, &value, &origin);
        }
        for endpoint in &host.endpoints {
            let kind = if endpoint.discovery { "discovery controller" } else { "subsystem" };
            line(2, kind, &"", "");
            let (nqn, origin) = nqn(endpoint);
            line(4, "nqn", &nqn, origin.as_deref().unwrap_or("default"));
            if let Some(application) = &endpoint.application {
                line(4, "application", &application.value, &said(&application.origin));
            }
            for controller in &endpoint.paths {
                line(4, "controller", &"", "");
                for (name, value, origin) in rows(controller) {
                    line(6, name, &value, &origin);
                }
            }
        }
    }
    text
}

fn pair(value: impl Into<Json>, origin: impl Into<Json>) -> Json {
    json!({ "value": value.into(), "origin": origin.into() })
}

/// JSON for programs: `files` and `hosts`; each setting is an object of `value` and `origin`.
#[must_use]
pub fn json(config: &Config, machine: Machine<'_>) -> Json {
    let settings = |rows: &mut dyn Iterator<Item = (&'static str, String, String)>| {
        rows.map(|(name, value, origin)| (name.to_owned(), pair(value, origin)))
            .collect::<Map<String, Json>>()
    };
    let endpoint = |endpoint: &Endpoint| {
        let mut object = Map::new();
        let (nqn, origin) = nqn(endpoint);
        object.insert("nqn".into(), pair(nqn, origin.unwrap_or_else(|| "default".to_owned())));
        if let Some(application) = &endpoint.application {
            object.insert("application".into(), pair(application.value.clone(), said(&application.origin)));
        }
        let controllers = endpoint.paths.iter().map(|path| Json::Object(settings(&mut rows(path)))).collect();
        object.insert("controllers".into(), Json::Array(controllers));
        Json::Object(object)
    };
    let host = |host: &Host| {
        let mut object = settings(&mut identity(host, machine).into_iter());
        for (name, discovery) in [("discovery_controllers", true), ("subsystems", false)] {
            let endpoints =
                host.endpoints.iter().filter(|e| e.discovery == discovery).map(&endpoint).collect();
            object.insert(name.into(), Json::Array(endpoints));
        }
        Json::Object(object)
    };
    let files: Vec<String> = config.files.iter().map(|file| file.display().to_string()).collect();
    json!({ "files": files, "hosts": config.hosts.iter().map(host).collect::<Vec<_>>() })
}

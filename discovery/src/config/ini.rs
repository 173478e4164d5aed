//! `nvme-fabrics.conf` and its drop-ins: INI with sections for hosts, discovery controllers and subsystems.
//!
//! The lines are read here and not by a crate: none tells where in the file a value stands, keeps repeated sections and
//! keys apart, and has nvme-cli's rules (comments on lines of their own, no quoting, no continuation).

use nvmf_core::Nqn;

use super::build::{ADDRESS_KEYS, Parts};
use super::diagnostic::{Report, quoted, suggestion};
use super::key::{Class, Info, KEYS, Value};
use super::model::{Controller, Endpoint, Host, Options, Origin, Scope, Setting};

const SECTIONS: [&str; 5] =
    ["Discovery Controller Defaults", "I/O Controller Defaults", "Host", "Discovery Controller", "Subsystem"];
const IDENTITY_KEYS: [&str; 3] = ["hostnqn", "hostid", "hostsymname"];

/// One file before precedence is settled.
#[derive(Debug, Default)]
pub(super) struct File {
    discovery_defaults: Option<Options>,
    io_defaults: Option<Options>,
    /// The line of `[Host]`.
    host_line: Option<usize>,
    host: Host,
    host_options: Options,
    endpoints: Vec<Section>,
}

#[derive(Debug)]
struct Section {
    line: usize,
    discovery: bool,
    nqn: Option<Setting<Nqn>>,
    /// An NQN was given, if only a wrong one.
    named: bool,
    options: Options,
    paths: Vec<Controller>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Nowhere,
    /// A section of a name that is not known.
    Ignored,
    DiscoveryDefaults,
    IoDefaults,
    Host,
    Endpoint,
}

pub(super) fn read(text: &str, report: &mut Report) -> File {
    let mut file = File::default();
    let mut at = At::Nowhere;
    for (index, line) in text.lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            at = match rest.split_once(']') {
                Some((name, "")) if !name.trim().is_empty() => file.section(name.trim(), number, report),
                _ => {
                    report.error(number, "a section is written [Name], with nothing behind it");
                    At::Ignored
                }
            };
            continue;
        }
        // The line is not quoted: it may hold a secret.
        match line.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                file.line(at, (key.trim(), value.trim()), number, report);
            }
            _ => report.error(number, "this is none of `key = value`, `[Section]` and `# comment`"),
        }
    }
    for section in file.endpoints.iter().filter(|section| !section.discovery && !section.named) {
        report.error(section.line, "[Subsystem] needs an nqn");
    }
    for section in file.endpoints.iter().filter(|section| section.paths.is_empty()) {
        report.warning(section.line, "the section has no controller that could be connected to");
    }
    file
}

impl File {
    fn section(&mut self, name: &str, line: usize, report: &mut Report) -> At {
        match name {
            "Discovery Controller Defaults" | "I/O Controller Defaults" => {
                let (defaults, at) = match name.starts_with('D') {
                    true => (&mut self.discovery_defaults, At::DiscoveryDefaults),
                    false => (&mut self.io_defaults, At::IoDefaults),
                };
                if defaults.is_some() {
                    report.warning(line, format!("a second [{name}] is passed over"));
                    return At::Ignored;
                }
                *defaults = Some(Options::default());
                at
            }
            "Host" => {
                if let Some(first) = self.host_line {
                    let what = format!(
                        "a second [Host]; the first is in line {first}, others go into files of their own"
                    );
                    report.error(line, what);
                    return At::Ignored;
                }
                self.host_line = Some(line);
                At::Host
            }
            "Discovery Controller" | "Subsystem" => {
                let discovery = name.starts_with('D');
                let (nqn, options, paths) = (None, Options::default(), Vec::new());
                self.endpoints.push(Section { line, discovery, nqn, named: false, options, paths });
                At::Endpoint
            }
            _ => {
                let nearest = suggestion(name, SECTIONS);
                report.warning(line, format!("unknown section {} is passed over{nearest}", quoted(name)));
                At::Ignored
            }
        }
    }

    fn line(&mut self, at: At, (key, value): (&str, &str), line: usize, report: &mut Report) {
        match at {
            At::Ignored => return,
            At::Nowhere => return report.error(line, format!("{} stands before any section", quoted(key))),
            At::DiscoveryDefaults | At::IoDefaults | At::Host | At::Endpoint => {}
        }
        let endpoint = if at == At::Endpoint { self.endpoints.last_mut() } else { None };
        match (key, endpoint) {
            ("nqn", Some(endpoint)) => {
                endpoint.named = true;
                endpoint.nqn = report.nqn(key, value, line, Scope::Endpoint);
                return;
            }
            ("controller", Some(endpoint)) => {
                let controller = controller(value, endpoint.discovery, line, report);
                endpoint.paths.extend(controller);
                return;
            }
            ("nqn" | "controller", None) => return misplaced(key, line, report),
            _ if IDENTITY_KEYS.contains(&key) => {
                if at != At::Host {
                    return misplaced(key, line, report);
                }
                return self.identity(key, value, line, report);
            }
            _ => {}
        }
        let Some(info) = KEYS.iter().find(|info| info.ini() == key) else {
            let known = KEYS.iter().map(Info::ini).chain(IDENTITY_KEYS).chain(["nqn", "controller"]);
            let nearest = suggestion(key, known);
            return report.warning(line, format!("unknown key {} is passed over{nearest}", quoted(key)));
        };
        let discovery_only = info.class == Class::Discovery;
        let (options, scope) = match at {
            At::DiscoveryDefaults => (&mut self.discovery_defaults, Scope::DiscoveryDefaults),
            At::IoDefaults if discovery_only => return misplaced(key, line, report),
            At::IoDefaults => (&mut self.io_defaults, Scope::IoDefaults),
            At::Host if discovery_only => return misplaced(key, line, report),
            At::Host => return set(&mut self.host_options, info, value, (line, Scope::Host), report),
            At::Endpoint | At::Nowhere | At::Ignored => {
                let Some(endpoint) = self.endpoints.last_mut() else { return };
                if discovery_only && !endpoint.discovery {
                    return misplaced(key, line, report);
                }
                return set(&mut endpoint.options, info, value, (line, Scope::Endpoint), report);
            }
        };
        set(options.get_or_insert_default(), info, value, (line, scope), report);
    }

    fn identity(&mut self, key: &str, value: &str, line: usize, report: &mut Report) {
        // An empty value means the machine's.
        let given = !value.is_empty();
        let host = &mut self.host;
        match key {
            "hostnqn" => host.nqn = given.then(|| report.nqn(key, value, line, Scope::Host)).flatten(),
            "hostid" => host.id = given.then(|| report.host_id(key, value, line, Scope::Host)).flatten(),
            _ => host.symname = given.then(|| report.text(key, value, line, Scope::Host)).flatten(),
        }
    }

    /// The host of this file with everything that applies to each controller. `top` is the main file, if this is a drop-in.
    pub(super) fn resolve(self, top: Option<&Self>) -> Host {
        let empty = Options::default();
        let base = |of: fn(&Self) -> &Option<Options>| {
            let outer = top.and_then(|top| of(top).as_ref()).unwrap_or(&empty);
            let own = of(&self).as_ref().unwrap_or(&empty);
            outer.overlaid(own).overlaid(&self.host_options)
        };
        let (discovery_defaults, io_defaults) = (base(|f| &f.discovery_defaults), base(|f| &f.io_defaults));
        let endpoints = self.endpoints.into_iter().map(|section| {
            let defaults = if section.discovery { &discovery_defaults } else { &io_defaults };
            let outer = defaults.overlaid(&section.options);
            let resolved = |path: Controller| Controller { options: outer.overlaid(&path.options), ..path };
            let paths = section.paths.into_iter().map(resolved).collect();
            Endpoint { discovery: section.discovery, nqn: section.nqn, application: None, paths }
        });
        let endpoints = endpoints.collect();
        Host { endpoints, discovery_defaults, io_defaults, ..self.host }
    }

    /// What `[Host]` says of who it is.
    pub(super) fn identity_of(&self) -> &Host {
        &self.host
    }

    /// Where `[Host]` stands.
    pub(super) fn host_origin(&self, report: &Report) -> Option<Origin> {
        self.host_line.map(|line| report.origin(line, Scope::Host))
    }
}

fn misplaced(key: &str, line: usize, report: &mut Report) {
    report.error(line, format!("{key} does not belong into this section"));
}

fn set(options: &mut Options, info: &Info, value: &str, at: (usize, Scope), report: &mut Report) {
    let parsed = if value.is_empty() { Ok(Value::Default) } else { info.parse(value) };
    report.option(options, info, info.ini(), parsed, at);
}

/// `transport=tcp;traddr=…;key=value…`
fn controller(text: &str, discovery: bool, line: usize, report: &mut Report) -> Option<Controller> {
    let before = report.found.len();
    let (mut parts, mut options) = (Parts::default(), Options::default());
    for token in text.split(';').map(str::trim).filter(|token| !token.is_empty()) {
        let Some((key, value)) = token.split_once('=').map(|(key, value)| (key.trim(), value.trim())) else {
            report.error(line, format!("{} is not key=value", quoted(token)));
            continue;
        };
        if let Some(slot) = parts.slot(key).filter(|_| !key.contains('_')) {
            if slot.is_some() {
                report.error(line, format!("{key} is there twice"));
            }
            *slot = report.text(key, value, line, Scope::Controller);
            continue;
        }
        match KEYS.iter().find(|info| info.ini() == key) {
            Some(info) if info.class == Class::Security => {
                report.error(line, format!("{key} belongs to the host and subsystem: set it in the section"));
            }
            Some(info) if info.class == Class::Discovery && !discovery => {
                report.error(line, format!("{key} is for discovery controllers"));
            }
            Some(info) => set(&mut options, info, value, (line, Scope::Controller), report),
            None => {
                let nearest = suggestion(key, KEYS.iter().map(Info::ini).chain(ADDRESS_KEYS));
                report.error(line, format!("unknown key {} in a controller line{nearest}", quoted(key)));
            }
        }
    }
    if report.found[before..].iter().any(|d| d.severity == super::Severity::Error) {
        return None;
    }
    parts.finish(options, report.origin(line, Scope::Controller), report)
}

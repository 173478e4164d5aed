//! What the readers of all three formats have in common: values are checked and put where they belong.

use std::sync::Arc;

use nvmf_core::Nqn;
use nvmf_core::nqn::HostId;

use super::diagnostic::{MISPLACED_KEY, Report, has_key, quoted, suggestion};
use super::key::{Info, Value};
use super::model::{Address, Controller, Options, Origin, Scope, Setting, TRANSPORTS};

/// The parts of an address as they are found.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) transport: Option<Setting<String>>,
    pub(super) traddr: Option<Setting<String>>,
    pub(super) trsvcid: Option<Setting<String>>,
    pub(super) host_traddr: Option<Setting<String>>,
    pub(super) host_iface: Option<Setting<String>>,
}

/// Names of the parts, as nvme-cli's long options.
pub(super) const ADDRESS_KEYS: [&str; 5] = ["transport", "traddr", "trsvcid", "host-traddr", "host-iface"];

impl Parts {
    /// The part with this name (hyphens or underscores).
    pub(super) fn slot(&mut self, name: &str) -> Option<&mut Option<Setting<String>>> {
        Some(match name {
            "transport" => &mut self.transport,
            "traddr" => &mut self.traddr,
            "trsvcid" => &mut self.trsvcid,
            "host-traddr" | "host_traddr" => &mut self.host_traddr,
            "host-iface" | "host_iface" => &mut self.host_iface,
            _ => return None,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.transport.is_none() && self.traddr.is_none()
    }

    /// The controller they make, if they do.
    pub(super) fn finish(self, options: Options, origin: Origin, report: &mut Report) -> Option<Controller> {
        let (Some(transport), Some(traddr)) = (self.transport, self.traddr) else {
            report.error(origin.line, "a controller needs transport and traddr");
            return None;
        };
        if !TRANSPORTS.contains(&transport.value.as_str()) {
            let suggestion = suggestion(&transport.value, TRANSPORTS);
            let what = format!("transport {} is none of {}", quoted(&transport.value), TRANSPORTS.join(", "));
            report.error(transport.origin.line, what + &suggestion);
            return None;
        }
        let Self { trsvcid, host_traddr, host_iface, .. } = self;
        let address = Address { transport, traddr, trsvcid, host_traddr, host_iface };
        if let Err((origin, what)) = address.check() {
            report.error(origin.line, what);
            return None;
        }
        Some(Controller { address, options, origin })
    }
}

impl Report {
    pub(super) fn origin(&self, line: usize, scope: Scope) -> Origin {
        Origin { file: Arc::clone(&self.file), line, scope }
    }

    pub(super) fn setting<T>(&self, value: T, line: usize, scope: Scope) -> Setting<T> {
        Setting { value, origin: self.origin(line, scope) }
    }

    /// Sets an option, or says what is wrong with its value. `name` is what the file calls it.
    pub(super) fn option(
        &mut self,
        options: &mut Options,
        info: &Info,
        name: &str,
        value: Result<Value, String>,
        (line, scope): (usize, Scope),
    ) {
        match value {
            Ok(value) => options.set(info.key, value, self.origin(line, scope)),
            Err(what) => self.error(line, format!("{name}: {what}")),
        }
    }

    pub(super) fn nqn(&mut self, name: &str, text: &str, line: usize, scope: Scope) -> Option<Setting<Nqn>> {
        match Nqn::new(text) {
            Ok(_) if has_key(text) => {
                self.error(line, format!("{name}: {MISPLACED_KEY}"));
                None
            }
            Ok(nqn) => {
                if !nqn.is_well_formed() {
                    let form = "nqn.yyyy-mm.reverse.domain:name";
                    self.warning(line, format!("{name}: {} has not the form {form}", quoted(text)));
                }
                Some(self.setting(nqn, line, scope))
            }
            Err(error) => {
                self.error(line, format!("{name}: {error}"));
                None
            }
        }
    }

    pub(super) fn host_id(
        &mut self,
        name: &str,
        text: &str,
        line: usize,
        scope: Scope,
    ) -> Option<Setting<HostId>> {
        match text.parse::<HostId>() {
            Ok(id) if !id.is_zero() => Some(self.setting(id, line, scope)),
            Ok(_) => {
                self.error(line, format!("{name}: all zeroes, which controllers refuse"));
                None
            }
            Err(error) => {
                self.error(line, format!("{name}: {error}, not {}", quoted(text)));
                None
            }
        }
    }

    pub(super) fn text(
        &mut self,
        name: &str,
        text: &str,
        line: usize,
        scope: Scope,
    ) -> Option<Setting<String>> {
        if text.is_empty() || text.chars().any(char::is_control) {
            self.error(line, format!("{name}: {} is no value for it", quoted(text)));
            return None;
        }
        if has_key(text) {
            self.error(line, format!("{name}: {MISPLACED_KEY}"));
            return None;
        }
        Some(self.setting(text.to_owned(), line, scope))
    }
}

//! The configuration files of nvme-cli, read into one model.
//!
//! Three formats tell which controllers a host connects to: `nvme-fabrics.conf` with its drop-ins (nvme-cli 3.0),
//! `config.json` (nvme-cli 2), and `discovery.conf` (both). [`Config::load`] reads all that are there in `/etc/nvme`.
//! Each value keeps where it comes from, each error says in which line of which file it is, and secrets are never
//! displayed.
//!
//! An option of a connection is looked for, in this order: at the controller, at its section, at the host, in the
//! defaults for its kind of controller (those of a drop-in before those of the main file). Otherwise it is what
//! [`ControllerOptions::default`](nvmf_core::ControllerOptions) has.
//!
//! ```
//! use std::path::Path;
//! use nvmf_discovery::config::{Config, Format, Key};
//!
//! let text = "[Discovery Controller]\ncontroller = transport=tcp;traddr=192.0.2.10;keep-alive-tmo=30\n";
//! let config = Config::parse(Path::new("nvme-fabrics.conf"), Format::Fabrics, text)?;
//! let controller = config.discovery_controllers().next().expect("one is configured");
//! assert_eq!(controller.trid().expect("an address").to_uri(), "nvme+tcp://192.0.2.10:8009/nqn.2014-08.org.nvmexpress.discovery");
//! assert_eq!(controller.path.options.int(Key::KeepAliveTmo), Some(30));
//! # Ok::<(), nvmf_discovery::config::ConfigError>(())
//! ```

mod argv;
mod build;
mod diagnostic;
mod ini;
mod json;
mod key;
mod model;
pub mod show;
mod source;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;

use diagnostic::Report;

pub use diagnostic::{ConfigError, Diagnostic, Severity};
pub use key::{Key, Persistent, Secret, Value};
pub use model::{Address, Config, Configured, Controller, Endpoint, Host, Options, Origin, Scope, Setting};
pub use source::{Format, MAX_DROP_INS, MAX_FILE_SIZE, Source};

/// A configuration, and everything that was noticed when it was read.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// What could be read.
    pub config: Config,
    /// What is wrong, in the order of the files.
    pub diagnostics: Vec<Diagnostic>,
}

impl Checked {
    /// The configuration, if there is no error in it. Warnings are logged.
    ///
    /// # Errors
    /// [`ConfigError`] with everything that was noticed.
    pub fn into_result(self) -> Result<Config, ConfigError> {
        if self.diagnostics.iter().any(|d| d.severity == Severity::Error) {
            return Err(ConfigError::new(self.diagnostics));
        }
        self.diagnostics.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(self.config)
    }
}

impl Config {
    /// The configuration of this machine: `/etc/nvme/nvme-fabrics.conf` and `nvme-fabrics.conf.d/*.conf`, then
    /// `config.json`, then `discovery.conf`. Files that are not there are no error.
    ///
    /// # Errors
    /// [`ConfigError`] if one of the files is wrong: where and how.
    pub fn load() -> Result<Self, ConfigError> {
        Self::check_system(Path::new("/")).into_result()
    }

    /// As [`Config::load`], with `root` in place of `/`, and keeping what can be read beside errors.
    #[must_use]
    pub fn check_system(root: &Path) -> Checked {
        check(source::Sources::system(root))
    }

    /// The configuration in one file, of whichever format; of `nvme-fabrics.conf`, its drop-ins too.
    #[must_use]
    pub fn check_file(path: &Path) -> Checked {
        check(source::Sources::file(path))
    }

    /// The configuration in a text, which diagnostics call `name`.
    ///
    /// # Errors
    /// [`ConfigError`] if it is wrong: where and how.
    pub fn parse(name: &Path, format: Format, text: &str) -> Result<Self, ConfigError> {
        let (path, text) = (name.to_owned(), text.to_owned());
        Self::check_sources(vec![Source { path, format, drop_in: false, text }]).into_result()
    }

    /// The configuration in several texts, in this order.
    #[must_use]
    pub fn check_sources(sources: Vec<Source>) -> Checked {
        check(source::Sources { sources, reports: Vec::new() })
    }
}

fn check(read: source::Sources) -> Checked {
    let mut reports = read.reports;
    let mut config = Config::default();
    let mut files: Vec<(ini::File, usize)> = Vec::new();
    for source in read.sources {
        let mut report = Report::new(source.path);
        config.files.push(report.file.clone());
        match source.format {
            Format::Fabrics => {
                if !source.drop_in {
                    resolve(&mut config, &mut files, &mut reports);
                } else if files.is_empty() {
                    // Drop-ins without a main file: one that says nothing.
                    files.push((ini::File::default(), reports.len()));
                    reports.push(Report::new(report.file.to_path_buf()));
                }
                files.push((ini::read(&source.text, &mut report), reports.len()));
            }
            Format::Json => {
                resolve(&mut config, &mut files, &mut reports);
                config.hosts.extend(json::read(&source.text, &mut report));
            }
            Format::Discovery => {
                resolve(&mut config, &mut files, &mut reports);
                config.hosts.extend(argv::read(&source.text, &mut report));
            }
        }
        reports.push(report);
    }
    resolve(&mut config, &mut files, &mut reports);
    let twice = remove_repeated(&mut config);
    let mut diagnostics: Vec<Diagnostic> = reports.into_iter().flat_map(|report| report.found).collect();
    diagnostics.extend(twice);
    Checked { config, diagnostics }
}

/// Settles precedence between a main file and its drop-ins. With each file comes the index of its report.
fn resolve(config: &mut Config, files: &mut Vec<(ini::File, usize)>, reports: &mut [Report]) {
    for (index, (file, report)) in files.iter().enumerate() {
        let Some(origin) = file.host_origin(&reports[*report]) else { continue };
        let host = file.identity_of();
        let mut wrong = Vec::new();
        if index > 0 && host.nqn.is_none() {
            wrong.push((origin.line, "[Host] of a drop-in needs a hostnqn".to_owned()));
        }
        // One host, one file.
        for (other, _) in &files[..index] {
            let other = other.identity_of();
            if let (Some(own), Some(theirs)) = (&host.nqn, &other.nqn) {
                if own.value == theirs.value {
                    wrong.push((
                        own.origin.line,
                        format!("hostnqn {} is that of {} already", own.value, theirs.origin),
                    ));
                } else if let (Some(id), Some(their_id)) = (&host.id, &other.id)
                    && id.value == their_id.value
                {
                    let what =
                        format!("hostid {} is that of {}: two names for one host", id.value, their_id.origin);
                    wrong.push((id.origin.line, what));
                }
            }
        }
        let report = &mut reports[*report];
        wrong.into_iter().for_each(|(line, what)| report.error(line, what));
    }
    let mut files = std::mem::take(files).into_iter();
    let Some((top, _)) = files.next() else { return };
    let drop_ins: Vec<Host> = files.map(|(file, _)| file.resolve(Some(&top))).collect();
    config.hosts.push(top.resolve(None));
    config.hosts.extend(drop_ins);
    config.hosts.retain(|host| host.nqn.is_some() || host.id.is_some() || !host.endpoints.is_empty());
}

/// The same controller for the same host is connected to once: the first stays.
fn remove_repeated(config: &mut Config) -> Vec<Diagnostic> {
    let mut seen: HashMap<Vec<String>, Origin> = HashMap::new();
    let mut found = Vec::new();
    for host in &mut config.hosts {
        let who = host.nqn.as_ref().map(|nqn| nqn.value.to_string()).unwrap_or_default();
        for endpoint in &mut host.endpoints {
            let nqn = endpoint.nqn.as_ref().map(|nqn| nqn.value.to_string()).unwrap_or_default();
            endpoint.paths.retain(|path| {
                let address = path.address.iter().map(|(name, setting)| format!("{name}={}", setting.value));
                let key = [who.clone(), nqn.clone()].into_iter().chain(address).collect();
                let first = seen.entry(key).or_insert_with(|| path.origin.clone());
                if *first == path.origin {
                    return true;
                }
                found.push(Diagnostic {
                    severity: Severity::Warning,
                    file: path.origin.file.clone(),
                    line: path.origin.line,
                    what: format!("the controller is configured in {first} already"),
                });
                false
            });
        }
    }
    found
}

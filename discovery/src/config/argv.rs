//! `discovery.conf`: each line is the options of one `nvme discover`.
//!
//! As in nvme-cli there is no quoting: a quotation mark would be part of the value, and is therefore an error here.

use super::build::{ADDRESS_KEYS, Parts};
use super::diagnostic::{Report, quoted, suggestion};
use super::key::{Info, KEYS, Kind, Persistent, Value, parse_bool};
use super::model::{Endpoint, Host, Options, Scope};

/// Options of `nvme discover` that say how it shows its results, or what it does with existing connections, and
/// whether they take a value.
const IGNORED: [(&str, Option<char>, bool); 6] = [
    ("output-format", Some('o'), true),
    ("raw", Some('r'), true),
    ("quiet", None, false),
    ("verbose", Some('v'), false),
    ("force", None, false),
    ("no-reuse", None, false),
];

const NAMES: [(&str, char); 8] = [
    ("transport", 't'),
    ("nqn", 'n'),
    ("traddr", 'a'),
    ("trsvcid", 's'),
    ("host-traddr", 'w'),
    ("host-iface", 'f'),
    ("hostnqn", 'q'),
    ("hostid", 'I'),
];

/// What an option is.
#[derive(Clone, Copy)]
enum Known {
    Name(&'static str),
    Key(&'static Info),
    Ignored { value: bool },
}

pub(super) fn read(text: &str, report: &mut Report) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some((host, endpoint)) = read_line(line, index + 1, report) {
            let same = |other: &&mut Host| {
                other.nqn.as_ref().map(|s| &s.value) == host.nqn.as_ref().map(|s| &s.value)
                    && other.id.as_ref().map(|s| s.value) == host.id.as_ref().map(|s| s.value)
            };
            match hosts.iter_mut().rev().take(16).find(same) {
                Some(known) => known.endpoints.push(endpoint),
                None => hosts.push(Host { endpoints: vec![endpoint], ..host }),
            }
        }
    }
    hosts
}

fn read_line(line: &str, number: usize, report: &mut Report) -> Option<(Host, Endpoint)> {
    let before = report.found.len();
    let mut words = line.split_ascii_whitespace().take_while(|word| !word.starts_with('#')).peekable();
    words.peek()?;
    let (mut parts, mut options, mut host) = (Parts::default(), Options::default(), Host::default());
    let mut nqn = None;
    while let Some(word) = words.next() {
        for (name, known, attached) in options_of(word, number, report) {
            let mut value = attached.map(str::to_owned);
            let (takes, optional) = match known {
                Known::Name(_) => (true, false),
                Known::Key(info) => (info.kind != Kind::Bool, info.kind == Kind::Persistent),
                Known::Ignored { value } => (value, false),
            };
            if takes && value.is_none() {
                value = words
                    .next_if(|next| !optional && (!next.starts_with('-') || is_number(next)))
                    .map(str::to_owned);
                if value.is_none() && !optional {
                    report.error(number, format!("{name} wants a value"));
                    continue;
                }
            }
            if let Some(text) = value.as_deref().filter(|text| text.contains(['"', '\''])) {
                report.error(
                    number,
                    format!("{name}: quotation marks would be part of the value {}", quoted(text)),
                );
                continue;
            }
            let at = (number, Scope::Controller);
            match known {
                Known::Ignored { .. } => report.warning(number, format!("{name} has no effect here")),
                Known::Key(info) => {
                    let value = match value.as_deref() {
                        None if info.kind == Kind::Bool => Ok(Value::Bool(true)),
                        None => Ok(Value::Persistent(Persistent::Auto)),
                        Some(text) if info.kind == Kind::Bool => parse_bool(text).map(Value::Bool),
                        Some(text) => info.parse(text),
                    };
                    report.option(&mut options, info, &name, value, at);
                }
                Known::Name(long) => {
                    let text = value.unwrap_or_default();
                    match long {
                        "nqn" => nqn = report.nqn(&name, &text, number, Scope::Controller),
                        "hostnqn" => host.nqn = report.nqn(&name, &text, number, Scope::Host),
                        "hostid" => host.id = report.host_id(&name, &text, number, Scope::Host),
                        _ => {
                            let setting = report.text(&name, &text, number, Scope::Controller);
                            if let Some(slot) = parts.slot(long) {
                                *slot = setting;
                            }
                        }
                    }
                }
            }
        }
    }
    // What is missing may be what was wrong.
    if report.found[before..].iter().any(|d| d.severity == super::Severity::Error) {
        return None;
    }
    if parts.is_empty() {
        report.warning(number, "the line names no controller (--transport, --traddr)");
        return None;
    }
    let controller = parts.finish(options, report.origin(number, Scope::Controller), report)?;
    Some((host, Endpoint { discovery: true, nqn, application: None, paths: vec![controller] }))
}

/// Values such as -1, which are no options.
fn is_number(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// The options in a word: one long one, or several short ones. With each, its name and the value attached to it.
fn options_of<'a>(word: &'a str, line: usize, report: &mut Report) -> Vec<(String, Known, Option<&'a str>)> {
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        return match find_long(name) {
            Some(known) => vec![(format!("--{name}"), known, value)],
            None => {
                let all = KEYS.iter().map(|info| info.long).chain(NAMES.iter().map(|(long, _)| *long));
                let nearest = suggestion(name, all.chain(ADDRESS_KEYS));
                report.error(line, format!("unknown option {}{nearest}", quoted(&format!("--{name}"))));
                Vec::new()
            }
        };
    }
    let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
        report.error(line, format!("{} is no option, and belongs to none", quoted(word)));
        return Vec::new();
    };
    let mut found = Vec::new();
    for (at, letter) in letters.char_indices() {
        let name = format!("-{letter}");
        let Some(known) = find_short(letter) else {
            report.error(line, format!("unknown option {name:?}"));
            break;
        };
        let rest = &letters[at + letter.len_utf8()..];
        let takes = match known {
            Known::Name(_) => true,
            Known::Key(info) => info.kind != Kind::Bool,
            Known::Ignored { value } => value,
        };
        if takes {
            let rest = rest.strip_prefix('=').unwrap_or(rest);
            found.push((name, known, Some(rest).filter(|rest| !rest.is_empty())));
            break;
        }
        found.push((name, known, None));
    }
    found
}

fn find_long(name: &str) -> Option<Known> {
    if let Some((long, _)) = NAMES.iter().find(|(long, _)| *long == name) {
        return Some(Known::Name(long));
    }
    if let Some((.., value)) = IGNORED.iter().find(|(long, ..)| *long == name) {
        return Some(Known::Ignored { value: *value });
    }
    KEYS.iter().find(|info| info.long == name || info.aliases.contains(&name)).map(Known::Key)
}

fn find_short(letter: char) -> Option<Known> {
    if let Some((long, _)) = NAMES.iter().find(|(_, short)| *short == letter) {
        return Some(Known::Name(long));
    }
    if let Some((.., value)) = IGNORED.iter().find(|(_, short, _)| *short == Some(letter)) {
        return Some(Known::Ignored { value: *value });
    }
    KEYS.iter().find(|info| info.short == Some(letter)).map(Known::Key)
}

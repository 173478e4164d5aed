//! The options of a connection: what each is called in the three formats, and which values it takes.

use std::fmt;

use nvmf_core::{KeyKind, KeyString, KeyStringError};

use super::diagnostic::{MISPLACED_KEY, has_key, quoted};

/// An option of a connection. Displayed as nvme-cli's long option.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Key {
    /// Number of I/O queues.
    NrIoQueues,
    /// Additional queues for writes (of the Linux kernel's block layer).
    NrWriteQueues,
    /// Additional queues that are polled (of the Linux kernel's block layer).
    NrPollQueues,
    /// Entries of an I/O queue.
    QueueSize,
    /// Keep alive timeout in seconds; 0 is off.
    KeepAliveTmo,
    /// Seconds between attempts to connect again.
    ReconnectDelay,
    /// Seconds until a lost controller is given up; -1 is never.
    CtrlLossTmo,
    /// Seconds until I/O of a lost controller fails; -1 is not before it is given up.
    FastIoFailTmo,
    /// IP type of service; -1 leaves it alone.
    Tos,
    /// Allow a second connection from one host to one port.
    DuplicateConnect,
    /// Go without SQ flow control.
    DisableSqflow,
    /// Digests over PDU headers.
    HdrDigest,
    /// Digests over PDU data.
    DataDigest,
    /// Keep the connection to a discovery controller.
    Persistent,
    /// TLS.
    Tls,
    /// Secure channel concatenation.
    Concat,
    /// The TLS pre-shared key.
    TlsKey,
    /// The identity of the TLS pre-shared key.
    TlsKeyIdentity,
    /// The keyring to look the key up in.
    Keyring,
    /// The host's DH-HMAC-CHAP secret.
    DhchapSecret,
    /// The controller's DH-HMAC-CHAP secret.
    DhchapCtrlSecret,
}

/// Where an option may stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// Anywhere.
    Tunable,
    /// Anywhere, for discovery controllers only.
    Discovery,
    /// For a host or a subsystem, not for one path.
    Security,
}

/// Which values it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Integers in one of these ranges.
    Int(&'static [(i64, i64)]),
    Bool,
    Text,
    /// A key string of this kind.
    Secret(KeyKind),
    /// `no`, `auto` or `force`.
    Persistent,
}

pub(super) struct Info {
    pub(super) key: Key,
    /// nvme-cli's long option, and the key of nvme-fabrics.conf.
    pub(super) long: &'static str,
    /// Other long options for the same.
    pub(super) aliases: &'static [&'static str],
    pub(super) short: Option<char>,
    /// The key of config.json.
    pub(super) json: &'static str,
    /// The key of nvme-fabrics.conf where it is not the long option.
    ini: Option<&'static str>,
    pub(super) kind: Kind,
    pub(super) class: Class,
}

impl Info {
    pub(super) fn ini(&self) -> &'static str {
        self.ini.unwrap_or(self.long)
    }
}

const fn tunable(key: Key, long: &'static str, short: Option<char>, json: &'static str, kind: Kind) -> Info {
    Info { key, long, aliases: &[], short, json, ini: None, kind, class: Class::Tunable }
}

const fn security(key: Key, long: &'static str, short: Option<char>, json: &'static str, kind: Kind) -> Info {
    Info { key, long, aliases: &[], short, json, ini: None, kind, class: Class::Security }
}

/// Zero is the default of whoever connects.
const COUNT: Kind = Kind::Int(&[(0, 65_535)]);
const SECONDS: Kind = Kind::Int(&[(0, i32::MAX as i64)]);
const SECONDS_OR_NEVER: Kind = Kind::Int(&[(-1, i32::MAX as i64)]);

pub(super) static KEYS: [Info; 21] = [
    tunable(Key::NrIoQueues, "nr-io-queues", Some('i'), "nr_io_queues", COUNT),
    tunable(Key::NrWriteQueues, "nr-write-queues", Some('W'), "nr_write_queues", COUNT),
    tunable(Key::NrPollQueues, "nr-poll-queues", Some('P'), "nr_poll_queues", COUNT),
    // The range is the kernel's.
    tunable(Key::QueueSize, "queue-size", Some('Q'), "queue_size", Kind::Int(&[(0, 0), (16, 1024)])),
    tunable(Key::KeepAliveTmo, "keep-alive-tmo", Some('k'), "keep_alive_tmo", SECONDS),
    tunable(Key::ReconnectDelay, "reconnect-delay", Some('c'), "reconnect_delay", SECONDS),
    tunable(Key::CtrlLossTmo, "ctrl-loss-tmo", Some('l'), "ctrl_loss_tmo", SECONDS_OR_NEVER),
    Info {
        aliases: &["fast_io_fail_tmo"],
        ..tunable(Key::FastIoFailTmo, "fast-io-fail-tmo", Some('F'), "fast_io_fail_tmo", SECONDS_OR_NEVER)
    },
    tunable(Key::Tos, "tos", Some('T'), "tos", Kind::Int(&[(-1, 255)])),
    tunable(Key::DuplicateConnect, "duplicate-connect", Some('D'), "duplicate_connect", Kind::Bool),
    tunable(Key::DisableSqflow, "disable-sqflow", None, "disable_sqflow", Kind::Bool),
    tunable(Key::HdrDigest, "hdr-digest", Some('g'), "hdr_digest", Kind::Bool),
    tunable(Key::DataDigest, "data-digest", Some('G'), "data_digest", Kind::Bool),
    Info {
        class: Class::Discovery,
        ..tunable(Key::Persistent, "persistent", Some('p'), "persistent", Kind::Persistent)
    },
    security(Key::Tls, "tls", None, "tls", Kind::Bool),
    security(Key::Concat, "concat", None, "concat", Kind::Bool),
    Info {
        aliases: &["tls_key"],
        ..security(Key::TlsKey, "tls-key", None, "tls_key", Kind::Secret(KeyKind::TlsPsk))
    },
    security(Key::TlsKeyIdentity, "tls-key-identity", None, "tls_key_identity", Kind::Text),
    security(Key::Keyring, "keyring", None, "keyring", Kind::Text),
    Info {
        aliases: &["kxchap-secret"],
        ini: Some("kxchap-secret"),
        ..security(Key::DhchapSecret, "dhchap-secret", Some('S'), "dhchap_key", Kind::Secret(KeyKind::Dhchap))
    },
    Info {
        aliases: &["kxchap-ctrl-secret"],
        ini: Some("kxchap-ctrl-secret"),
        ..security(
            Key::DhchapCtrlSecret,
            "dhchap-ctrl-secret",
            Some('C'),
            "dhchap_ctrl_key",
            Kind::Secret(KeyKind::Dhchap),
        )
    },
];

impl Key {
    pub(super) fn info(self) -> &'static Info {
        // Every key is in the table: the test of this module counts them.
        KEYS.iter().find(|info| info.key == self).unwrap_or(&KEYS[0])
    }

    /// nvme-cli's long option for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.info().long
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A secret: a key, or the name of one. It is not displayed, not even for debugging.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// When a connection to a discovery controller is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Persistent {
    /// Never.
    No,
    /// If the controller says that it supports it (EPCSD).
    Auto,
    /// Always.
    Force,
}

/// The value of an option.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Value {
    /// What whoever connects takes if nothing is said (`key =` in nvme-fabrics.conf).
    Default,
    /// A number.
    Int(i64),
    /// A switch.
    Bool(bool),
    /// A text.
    Text(String),
    /// A secret.
    Secret(Secret),
    /// When a connection is kept.
    Persistent(Persistent),
}

impl fmt::Display for Value {
    /// As in nvme-fabrics.conf, secrets veiled.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.pad("default"),
            Self::Int(value) => fmt::Display::fmt(value, f),
            Self::Bool(value) => f.pad(if *value { "yes" } else { "no" }),
            Self::Text(value) => f.pad(value),
            Self::Secret(_) => f.pad("<secret>"),
            Self::Persistent(Persistent::No) => f.pad("no"),
            Self::Persistent(Persistent::Auto) => f.pad("auto"),
            Self::Persistent(Persistent::Force) => f.pad("force"),
        }
    }
}

impl Info {
    /// The value a text means, or what is wrong with it (without the name of the option).
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        match self.kind {
            Kind::Int(_) => self.int(parse_int(text)?),
            Kind::Bool => parse_bool(text).map(Value::Bool),
            Kind::Text if text.chars().any(char::is_control) => Err("control characters".to_owned()),
            Kind::Text if has_key(text) => Err(MISPLACED_KEY.to_owned()),
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Secret(kind) => self.secret(kind, text),
            Kind::Persistent => match text.to_ascii_lowercase().as_str() {
                "no" => Ok(Value::Persistent(Persistent::No)),
                "auto" => Ok(Value::Persistent(Persistent::Auto)),
                "force" => Ok(Value::Persistent(Persistent::Force)),
                _ => Err(format!("{} is none of no, auto, force", quoted(text))),
            },
        }
    }

    /// A key string, or the serial number of a TLS key in the kernel's keyring.
    fn secret(&self, kind: KeyKind, text: &str) -> Result<Value, String> {
        if !(kind == KeyKind::TlsPsk && parse_int(text).is_ok_and(|serial| u32::try_from(serial).is_ok())) {
            let key: KeyString = text.parse().map_err(|error: KeyStringError| error.to_string())?;
            if key.kind() != kind {
                return Err(format!("a key string of {} is none of {}", key.kind().prefix(), kind.prefix()));
            }
        }
        Ok(Value::Secret(Secret(text.to_owned())))
    }

    /// A number as value of this option.
    pub(super) fn int(&self, value: i64) -> Result<Value, String> {
        let Kind::Int(ranges) = self.kind else { return Err(format!("{value} is a number")) };
        if ranges.iter().any(|&(low, high)| (low..=high).contains(&value)) {
            return Ok(Value::Int(value));
        }
        let ranges: Vec<String> = ranges
            .iter()
            .map(|(low, high)| if low == high { low.to_string() } else { format!("{low} to {high}") })
            .collect();
        Err(format!("{value} is out of range, {}", ranges.join(" or ")))
    }
}

/// Decimal or hexadecimal. strtol(3), which nvme-cli uses, takes a leading zero for octal: that is asked about.
fn parse_int(text: &str) -> Result<i64, String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = hex.map_or((digits, 10), |digits| (digits, 16));
    if radix == 10 && digits.len() > 1 && digits.starts_with('0') {
        return Err(format!(
            "{}: a number with leading zeros is octal to nvme-cli; leave them out",
            quoted(text)
        ));
    }
    let digits_only = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    let value = i64::from_str_radix(digits, radix).ok().filter(|_| digits_only);
    value.map(|value| sign * value).ok_or_else(|| match text.contains('#') {
        true => format!("{} is no number; a comment needs a line of its own", quoted(text)),
        false => format!("{} is no number", quoted(text)),
    })
}

/// The words of nvme-cli 3.0.
pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Ok(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Ok(false),
        _ => Err(format!("{} is neither yes nor no", quoted(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_the_table_once() {
        let mut keys: Vec<Key> = KEYS.iter().map(|info| info.key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), KEYS.len());
        assert!(KEYS.iter().all(|info| std::ptr::eq(info.key.info(), info)));
        assert_eq!(keys.last(), Some(&Key::DhchapCtrlSecret), "the last of the enumeration");
        let mut shorts: Vec<char> = KEYS.iter().filter_map(|info| info.short).collect();
        shorts.sort_unstable();
        shorts.dedup();
        assert_eq!(shorts.len(), 15, "short options are unique");
    }

    #[test]
    fn numbers() {
        let info = Key::QueueSize.info();
        assert_eq!(info.parse("128"), Ok(Value::Int(128)));
        assert_eq!(info.parse("0x80"), Ok(Value::Int(128)));
        assert_eq!(Key::CtrlLossTmo.info().parse("-1"), Ok(Value::Int(-1)));
        for (text, expected) in [
            ("8", "8 is out of range, 0 or 16 to 1024"),
            ("0128", "\"0128\": a number with leading zeros is octal"),
            ("", "\"\" is no number"),
            ("--1", "is no number"),
            ("0x", "is no number"),
            ("99999999999999999999", "is no number"),
            ("30  # keep", "a comment needs a line of its own"),
        ] {
            let error = info.parse(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn secrets_stay_secret() {
        let text = "NVMeTLSkey-1:01:b3VyIGtleSwgd2hpY2ggaXMgbm90IGZvciBvdGhlcnMYAgfX:";
        let value = Key::TlsKey.info().parse(text).expect("a secret");
        assert_eq!(format!("{value} {value:?}"), "<secret> Secret(<secret>)");
        let Value::Secret(secret) = value else { panic!("{value}") };
        assert_eq!(secret.expose(), text);
    }
}

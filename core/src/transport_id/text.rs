//! The two texts of a transport identifier: `key:value` words, and the URI.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;

use super::address::Address;
use super::error::{Place, TransportIdError, excerpt};
use super::kind::TransportType;
use super::{TRADDR_MAX, TransportId};
use crate::nqn::{NQN_MAX_LENGTH, Nqn};

/// The longest text that is looked at, in bytes: all values at their longest, percent-encoded, would fit.
const INPUT_MAX: usize = 4096;

const _: () = assert!(INPUT_MAX > 3 * (2 * TRADDR_MAX + 2 * NQN_MAX_LENGTH) + 512);

/// The keys, in the order their values are applied (an address is judged by transport and family) and printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Trtype,
    Adrfam,
    Traddr,
    Trsvcid,
    Subnqn,
    Priority,
    Hostaddr,
    Hostsvcid,
    Hostiface,
    Hostnqn,
    Ns,
}

const KEYS: [(Key, &str); 11] = [
    (Key::Trtype, "trtype"),
    (Key::Adrfam, "adrfam"),
    (Key::Traddr, "traddr"),
    (Key::Trsvcid, "trsvcid"),
    (Key::Subnqn, "subnqn"),
    (Key::Priority, "priority"),
    (Key::Hostaddr, "hostaddr"),
    (Key::Hostsvcid, "hostsvcid"),
    (Key::Hostiface, "hostiface"),
    (Key::Hostnqn, "hostnqn"),
    (Key::Ns, "ns"),
];

/// Names the same things have elsewhere, for "did you mean".
const ALIASES: [(&str, &str); 12] = [
    ("transport", "trtype"),
    ("address", "traddr"),
    ("addr", "traddr"),
    ("port", "trsvcid"),
    ("nqn", "subnqn"),
    ("subsysnqn", "subnqn"),
    ("host-traddr", "hostaddr"),
    ("host-trsvcid", "hostsvcid"),
    ("host-iface", "hostiface"),
    ("host-nqn", "hostnqn"),
    ("nsid", "ns"),
    ("namespace", "ns"),
];

/// A value and where the key and the value start.
struct Value<'a> {
    text: Cow<'a, str>,
    key_at: usize,
    value_at: usize,
}

/// The values found in a text, not yet judged.
struct Values<'a> {
    input: &'a str,
    slots: [Option<Value<'a>>; KEYS.len()],
}

impl<'a> Values<'a> {
    fn new(input: &'a str) -> Self {
        Self { input, slots: [const { None }; KEYS.len()] }
    }

    fn place(&self, position: usize) -> Place {
        Place::at(position, self.input)
    }

    fn insert(&mut self, key: Key, value: Value<'a>) -> Result<(), TransportIdError> {
        let place = self.place(value.key_at);
        let (slot, (_, name)) = (&mut self.slots[key as usize], KEYS[key as usize]);
        match slot {
            Some(first) => Err(TransportIdError::Duplicate { key: name, place, first: first.key_at }),
            None => {
                *slot = Some(value);
                Ok(())
            }
        }
    }

    /// Enters the value of the key that is called `key`.
    fn insert_named(&mut self, key: &str, value: Value<'a>) -> Result<(), TransportIdError> {
        match KEYS.iter().find(|(_, name)| name.eq_ignore_ascii_case(key)) {
            Some(&(key, _)) => self.insert(key, value),
            None => Err(TransportIdError::UnknownKey {
                key: excerpt(key),
                place: self.place(value.key_at),
                suggestion: suggestion(key),
            }),
        }
    }

    /// Judges the values.
    fn build(&self) -> Result<TransportId, TransportIdError> {
        let Some(trtype) = &self.slots[Key::Trtype as usize] else {
            let reason =
                "start with trtype:TCP, trtype:RDMA, trtype:PCIe, … or use nvme+tcp://address:port/subnqn";
            return Err(TransportIdError::Missing { key: "trtype", reason, place: self.place(0) });
        };
        let kind: TransportType =
            trtype.text.parse().map_err(|e: TransportIdError| self.locate(e, trtype))?;
        let mut id = TransportId::blank(kind);
        for (&(key, name), value) in KEYS.iter().zip(&self.slots) {
            let Some(value) = value else { continue };
            id.apply(key, name, &value.text).map_err(|e| self.locate(e, value))?;
        }
        id.check_traddr_given().map_err(|e| e.located(self.place(0)))?;
        Ok(id)
    }

    fn locate(&self, error: TransportIdError, value: &Value<'_>) -> TransportIdError {
        error.located(self.place(value.value_at))
    }
}

impl TransportId {
    fn apply(&mut self, key: Key, name: &'static str, value: &str) -> Result<(), TransportIdError> {
        let nqn = |text: &str| {
            let failed = |source| TransportIdError::Nqn { key: name, place: Place::default(), source };
            Nqn::new(text).map_err(failed)
        };
        match key {
            // Applied first, by the caller.
            Key::Trtype => {}
            Key::Adrfam => self.set_adrfam(value.parse()?)?,
            Key::Traddr => self.set_traddr(value)?,
            Key::Trsvcid => self.set_trsvcid(value)?,
            Key::Subnqn => self.subnqn = Some(nqn(value)?),
            Key::Priority => self.set_priority(value)?,
            Key::Hostaddr => self.set_host_traddr(value)?,
            Key::Hostsvcid => self.set_host_trsvcid(value)?,
            Key::Hostiface => self.set_host_iface(value)?,
            Key::Hostnqn => self.hostnqn = Some(nqn(value)?),
            Key::Ns => self.set_nsid(value)?,
        }
        Ok(())
    }

    /// The value of a key as text, `None` if there is nothing to print.
    fn value(&self, key: Key) -> Option<Cow<'_, str>> {
        let text = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned().into());
        match key {
            Key::Trtype => Some(self.trtype.as_str().into()),
            Key::Adrfam => self.adrfam().map(|family| family.as_str().into()),
            Key::Traddr => text(self.traddr()),
            Key::Trsvcid => text(self.trsvcid()),
            Key::Subnqn => self.subnqn().map(|nqn| nqn.as_str().into()),
            Key::Priority => self.priority.map(|priority| priority.to_string().into()),
            Key::Hostaddr => self.host_traddr().map(Cow::from),
            Key::Hostsvcid => self.host_trsvcid().map(Cow::from),
            Key::Hostiface => self.host_iface().map(Cow::from),
            Key::Hostnqn => self.hostnqn().map(|nqn| nqn.as_str().into()),
            Key::Ns => self.nsid.map(|nsid| nsid.to_string().into()),
        }
    }

    /// The URI form: `nvme+tcp://192.168.1.20:4420/nqn…`, with what has no place of its own as a query,
    /// `?hostaddr=…&ns=1`. It reads back as an equal identifier.
    #[must_use]
    pub fn to_uri(&self) -> String {
        let mut uri = format!("nvme+{}://", self.trtype.as_str().to_ascii_lowercase());
        let mut in_query =
            vec![Key::Priority, Key::Hostaddr, Key::Hostsvcid, Key::Hostiface, Key::Hostnqn, Key::Ns];
        let bare = Address::read(self.trtype, None, &self.traddr).unwrap_or(Address::Absent);
        if self.adrfam.is_some_and(|family| bare.family() != Some(family)) {
            in_query.insert(0, Key::Adrfam);
        }
        let mut nqn_in_path = true;
        match self.trtype {
            TransportType::Tcp | TransportType::Rdma => {
                if matches!(bare, Address::Ip(IpAddr::V6(_), _)) {
                    // RFC 6874 §2: the % before a scope is written %25.
                    let _ = write!(uri, "[{}]", self.traddr.replace('%', "%25"));
                } else {
                    percent_encode(&mut uri, &self.traddr, "");
                }
                if self.service_is_port() {
                    let _ = write!(uri, ":{}", self.trsvcid());
                } else {
                    in_query.insert(0, Key::Trsvcid);
                }
            }
            TransportType::VfioUser => {
                nqn_in_path = false;
                in_query.insert(0, Key::Subnqn);
                in_query.insert(0, Key::Trsvcid);
                if self.traddr.starts_with('/') {
                    percent_encode(&mut uri, &self.traddr, ":/");
                } else {
                    in_query.insert(0, Key::Traddr);
                }
            }
            TransportType::Fc | TransportType::Loop | TransportType::Pcie | TransportType::Custom(_) => {
                percent_encode(&mut uri, &self.traddr, ":");
                in_query.insert(0, Key::Trsvcid);
            }
        }
        if let (true, Some(subnqn)) = (nqn_in_path, self.subnqn()) {
            uri.push('/');
            percent_encode(&mut uri, subnqn.as_str(), ":");
        }
        let mut separator = '?';
        for (&(key, name), value) in KEYS.iter().zip(KEYS.iter().map(|&(key, _)| self.value(key))) {
            if let (true, Some(value)) = (in_query.contains(&key), value) {
                let _ = write!(uri, "{separator}{name}=");
                percent_encode(&mut uri, &value, ":/");
                separator = '&';
            }
        }
        uri
    }
}

impl fmt::Display for TransportId {
    /// The canonical text, `trtype:TCP adrfam:IPv4 traddr:… trsvcid:… subnqn:…`, defaults written out. It reads
    /// back as an equal identifier.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (key, name) in KEYS {
            if let Some(value) = self.value(key) {
                write!(f, "{separator}{name}:{value}")?;
                separator = " ";
            }
        }
        Ok(())
    }
}

impl FromStr for TransportId {
    type Err = TransportIdError;

    /// Reads either form.
    ///
    /// *Words*: `key:value` or `key=value`, separated by white space; the first `:` or `=` splits, so values may
    /// contain both. Keys, in any case: `trtype` (required), `adrfam`, `traddr`, `trsvcid`, `subnqn`, `priority`,
    /// `hostaddr`, `hostsvcid`, `hostiface`, `hostnqn`, `ns`; each at most once.
    ///
    /// *URI*: `nvme+tcp://host:port/subnqn`, `nvme+rdma://host:port/subnqn`, `nvme+pcie://0000:04:00.0`,
    /// `nvme+loop://name/subnqn`, `nvme+vfiouser:///directory`, and the same for other transports. IPv6 addresses
    /// stand in brackets, with a scope as `[fe80::1%25eth0]` or `[fe80::1%eth0]`. Port and subsystem may be left
    /// out. The remaining keys may follow as a query, `?hostaddr=192.168.1.1&ns=1`. Reserved characters
    /// are percent-encoded.
    ///
    /// # Errors
    ///
    /// [`TransportIdError`], which names the key and the byte position.
    fn from_str(text: &str) -> Result<Self, TransportIdError> {
        if text.len() > INPUT_MAX {
            let key = "the transport identifier";
            let place = Place::default();
            return Err(TransportIdError::TooLong { key, length: text.len(), max: INPUT_MAX, place });
        }
        let start = text.len() - text.trim_start().len();
        if has_scheme(text.trim_start()) { from_uri(text, start) } else { from_words(text) }
    }
}

/// Whether a text starts as our URIs do: `nvme…://`.
fn has_scheme(text: &str) -> bool {
    let Some((scheme, _)) = text.split_once("://") else { return false };
    let prefix = scheme.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case("nvme"));
    prefix && !scheme.contains(|c: char| c.is_whitespace() || c == ':' || c == '=')
}

fn from_words(text: &str) -> Result<TransportId, TransportIdError> {
    let mut values = Values::new(text);
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return values.build();
        }
        let word = &rest[..rest.find(char::is_whitespace).unwrap_or(rest.len())];
        let key_at = text.len() - rest.len();
        let Some(split) = word.find([':', '=']) else {
            return Err(TransportIdError::NotAPair { word: excerpt(word), place: values.place(key_at) });
        };
        // Both separators are one byte.
        let value = Value { text: word[split + 1..].into(), key_at, value_at: key_at + split + 1 };
        values.insert_named(&word[..split], value)?;
        rest = &rest[word.len()..];
    }
}

/// A piece of the input and where it starts.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Piece<'a> {
    /// Cuts at the first `separator`: before it, and if it is there, after it.
    fn cut(self, separator: &str) -> (Self, Option<Self>) {
        match self.text.split_once(separator) {
            Some((before, after)) => {
                let after_at = self.at + before.len() + separator.len();
                (Self { text: before, at: self.at }, Some(Self { text: after, at: after_at }))
            }
            None => (self, None),
        }
    }

    fn value(self, input: &str) -> Result<Value<'a>, TransportIdError> {
        let text = percent_decode(self, input)?;
        Ok(Value { text, key_at: self.at, value_at: self.at })
    }
}

fn from_uri(input: &str, start: usize) -> Result<TransportId, TransportIdError> {
    let mut values = Values::new(input);
    let wrong = |at, reason| Err(TransportIdError::Uri { place: Place::at(at, input), reason });
    let whole = Piece { text: input[start..].trim_end(), at: start };
    if let Some(offset) = whole.text.find('#') {
        return wrong(start + offset, "there are no fragments; write # as %23");
    }
    let (scheme, rest) = whole.cut("://");
    let (_, Some(kind)) = scheme.cut("+") else {
        return wrong(
            start,
            "the scheme names the transport: nvme+tcp://, nvme+rdma://, nvme+pcie://, nvme+loop://",
        );
    };
    let Some(rest) = rest else { return wrong(start, "the scheme ends with ://") };
    if scheme.text.len() - kind.text.len() != "nvme+".len() {
        return wrong(start, "the scheme is nvme+ and the transport");
    }
    let trtype = Value { text: kind.text.into(), key_at: kind.at, value_at: kind.at };
    let parsed: TransportType =
        kind.text.parse().map_err(|e: TransportIdError| e.located(Place::at(kind.at, input)))?;
    values.insert(Key::Trtype, trtype)?;

    let (rest, query) = rest.cut("?");
    if parsed == TransportType::VfioUser {
        if !rest.text.is_empty() {
            if !rest.text.starts_with('/') {
                return wrong(rest.at, "three slashes before the directory: nvme+vfiouser:///var/run/target");
            }
            values.insert(Key::Traddr, rest.value(input)?)?;
        }
    } else {
        let (authority, path) = rest.cut("/");
        let (address, port) =
            if parsed.uses_ip() { host_and_port(authority, input)? } else { (authority, None) };
        if !address.text.is_empty() {
            values.insert(Key::Traddr, address_value(address, input)?)?;
        }
        if let Some(port) = port {
            values.insert(Key::Trsvcid, port.value(input)?)?;
        }
        if let Some(subnqn) = path.filter(|path| !path.text.is_empty()) {
            values.insert(Key::Subnqn, subnqn.value(input)?)?;
        }
    }
    let mut query = query.filter(|query| !query.text.is_empty());
    while let Some(current) = query {
        let (pair, next) = current.cut("&");
        let (key, Some(value)) = pair.cut("=") else {
            return wrong(pair.at, "a query is key=value&key=value…");
        };
        let decoded = Value { key_at: key.at, ..value.value(input)? };
        values.insert_named(key.text, decoded)?;
        query = next;
    }
    values.build()
}

/// Splits `host:port`, `[ipv6]:port`, `host` and `[ipv6]`.
fn host_and_port<'a>(
    authority: Piece<'a>,
    input: &str,
) -> Result<(Piece<'a>, Option<Piece<'a>>), TransportIdError> {
    let wrong = |at, reason| Err(TransportIdError::Uri { place: Place::at(at, input), reason });
    if authority.text.starts_with('[') {
        let (_, Some(after)) = authority.cut("]") else {
            return wrong(authority.at, "the bracket before the IPv6 address is not closed");
        };
        let host = Piece { text: &authority.text[..after.at - authority.at], at: authority.at };
        return match after.cut(":") {
            (Piece { text: "", .. }, port) => Ok((host, port)),
            _ => {
                wrong(after.at, "after the bracket comes a colon and the port, or a slash and the subsystem")
            }
        };
    }
    match authority.cut(":") {
        (_, Some(after)) if after.text.contains(':') => {
            wrong(authority.at, "an IPv6 address stands in brackets, [fe80::1%25eth0]:4420")
        }
        split => Ok(split),
    }
}

/// The address of an authority, brackets and encoding removed.
fn address_value<'a>(address: Piece<'a>, input: &str) -> Result<Value<'a>, TransportIdError> {
    let Some(inside) = address.text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else {
        return address.value(input);
    };
    // RFC 6874 writes the % before a scope as %25; people write %.
    let text = match inside.split_once('%') {
        Some((ip, scope)) => match scope.strip_prefix("25") {
            Some(encoded) if !encoded.is_empty() => Cow::from(format!("{ip}%{encoded}")),
            _ => Cow::from(inside),
        },
        None => Cow::from(inside),
    };
    Ok(Value { text, key_at: address.at, value_at: address.at })
}

fn percent_encode(out: &mut String, text: &str, also_plain: &str) {
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || "-._~".contains(character) || also_plain.contains(character) {
            out.push(character);
            continue;
        }
        let mut utf8 = [0; 4];
        for byte in character.encode_utf8(&mut utf8).bytes() {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

fn percent_decode<'a>(piece: Piece<'a>, input: &str) -> Result<Cow<'a, str>, TransportIdError> {
    if !piece.text.contains('%') {
        return Ok(piece.text.into());
    }
    let wrong = |at, reason| TransportIdError::Uri { place: Place::at(at, input), reason };
    let mut decoded = Vec::with_capacity(piece.text.len());
    let mut bytes = piece.text.bytes().enumerate();
    let digit = |byte: Option<(usize, u8)>| byte.and_then(|(_, byte)| char::from(byte).to_digit(16));
    while let Some((offset, byte)) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let value = digit(bytes.next()).zip(digit(bytes.next())).map(|(high, low)| high << 4 | low);
        let Some(value) = value.and_then(|value| u8::try_from(value).ok()) else {
            return Err(wrong(piece.at + offset, "after % come two hexadecimal digits"));
        };
        decoded.push(value);
    }
    match String::from_utf8(decoded) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(wrong(piece.at, "the percent-encoded text is not UTF-8")),
    }
}

/// The key that was probably meant.
fn suggestion(key: &str) -> Option<&'static str> {
    // Comparing costs the product of the lengths; no key is as long as this.
    if key.len() > 24 {
        return None;
    }
    let key = key.to_ascii_lowercase().replace('_', "-");
    if let Some(&(_, meant)) = ALIASES.iter().find(|(alias, _)| *alias == key) {
        return Some(meant);
    }
    let names = KEYS.iter().map(|&(_, name)| (distance(&key, name), name));
    names.min().filter(|&(distance, name)| distance <= (name.len() / 3).max(1)).map(|(_, name)| name)
}

/// How many characters must be inserted, removed or replaced to turn `a` into `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.bytes()) {
            let replaced = diagonal + usize::from(from != to);
            diagonal = *cell;
            left = replaced.min(left + 1).min(*cell + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

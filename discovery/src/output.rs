//! The discovery log as text, JSON and bytes, exactly as `nvme discover` of nvme-cli 2.x and 3.0 prints it: scripts
//! match on this.
//!
//! What other programs depend on, though one would not write it so today: the text starts with an empty line; the RDMA
//! lines do not align; a partition key of 0 prints as `0000`; the address family is left empty in text, but not in
//! JSON, if there is no address. Values without a name print as `unrecognized`.
//!
//! One thing differs on purpose: characters from the peer that would drive the terminal print as U+FFFD.

use std::fmt::Write;
use std::io;

use nvmf_core::proto::discovery_log::DiscoveryLog;
use nvmf_core::spec::discovery::{AddressFamilyCode, DiscoveryLogEntry, TransportTypeCode};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

#[cfg(test)]
mod tests;

/// The form of `nvme discover -o normal`, starting with an empty line.
#[must_use]
pub fn text(log: &DiscoveryLog) -> String {
    text_of(log.genctr, &log.records)
}

/// The form of `nvme discover -o json`, ending with a newline.
#[must_use]
pub fn json(log: &DiscoveryLog) -> String {
    json_of(log.genctr, &log.records)
}

/// The form of `nvme discover -o binary` and `--raw`: the log page, 1024 bytes of header and 1024 for each record.
#[must_use]
pub fn binary(log: &DiscoveryLog) -> Vec<u8> {
    log.to_bytes()
}

/// Any value as JSON in the layout of [`json`]: two spaces of indentation, none after the colon.
///
/// # Errors
///
/// When the value cannot be JSON, such as a map whose keys are no strings.
pub fn json_layout(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, JsonC(PrettyFormatter::new())))?;
    bytes.push(b'\n');
    // JSON is UTF-8; the alternative is never taken.
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

fn text_of(genctr: u64, records: &[DiscoveryLogEntry]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(&mut text, genctr, records);
    text
}

fn write_text(out: &mut String, genctr: u64, records: &[DiscoveryLogEntry]) -> std::fmt::Result {
    writeln!(out, "\nDiscovery Log Number of Records {}, Generation counter {genctr}", records.len())?;
    for (index, entry) in records.iter().enumerate() {
        let traddr = entry.traddr();
        writeln!(out, "=====Discovery Log Entry {index}======")?;
        writeln!(out, "trtype:  {}", entry.trtype.word())?;
        writeln!(out, "adrfam:  {}", if traddr.is_empty() { "" } else { adrfam(entry) })?;
        writeln!(out, "subtype: {}", entry.subtype.word())?;
        writeln!(out, "treq:    {}", entry.treq.word())?;
        writeln!(out, "portid:  {}", entry.portid)?;
        writeln!(out, "trsvcid: {}", entry.trsvcid())?;
        writeln!(out, "subnqn:  {}", entry.subnqn())?;
        writeln!(out, "traddr:  {traddr}")?;
        writeln!(out, "eflags:  {}", entry.flags())?;
        match entry.trtype {
            TransportTypeCode::RDMA => {
                let rdma = entry.rdma_tsas();
                writeln!(out, "rdma_prtype: {}", rdma.prtype.word())?;
                writeln!(out, "rdma_qptype: {}", rdma.qptype.word())?;
                writeln!(out, "rdma_cms:    {}", rdma.cms.word())?;
                // C's "%#04x": four places, but no prefix for zero.
                match rdma.pkey {
                    0 => writeln!(out, "rdma_pkey: 0000")?,
                    pkey => writeln!(out, "rdma_pkey: {pkey:#04x}")?,
                }
            }
            TransportTypeCode::TCP => writeln!(out, "sectype: {}", entry.tcp_security().word())?,
            _ => {}
        }
    }
    Ok(())
}

/// nvme-cli has no word for the intra-host family (254).
fn adrfam(entry: &DiscoveryLogEntry) -> &'static str {
    match entry.adrfam {
        AddressFamilyCode::LOOP => "unrecognized",
        adrfam => adrfam.word(),
    }
}

/// The keys in nvme-cli's order.
#[derive(Serialize)]
struct JsonLog {
    genctr: u64,
    records: Vec<JsonRecord>,
}

#[derive(Serialize)]
struct JsonRecord {
    trtype: &'static str,
    adrfam: &'static str,
    subtype: &'static str,
    treq: &'static str,
    portid: u16,
    trsvcid: String,
    subnqn: String,
    traddr: String,
    eflags: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdma_prtype: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdma_qptype: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdma_cms: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rdma_pkey: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sectype: Option<&'static str>,
}

impl JsonRecord {
    fn new(entry: &DiscoveryLogEntry) -> Self {
        let rdma = (entry.trtype == TransportTypeCode::RDMA).then(|| entry.rdma_tsas());
        let is_tcp = entry.trtype == TransportTypeCode::TCP;
        Self {
            trtype: entry.trtype.word(),
            adrfam: adrfam(entry),
            subtype: entry.subtype.word(),
            treq: entry.treq.word(),
            portid: entry.portid.get(),
            trsvcid: entry.trsvcid(),
            subnqn: entry.subnqn(),
            traddr: entry.traddr(),
            eflags: entry.flags().to_string(),
            rdma_prtype: rdma.map(|rdma| rdma.prtype.word()),
            rdma_qptype: rdma.map(|rdma| rdma.qptype.word()),
            rdma_cms: rdma.map(|rdma| rdma.cms.word()),
            rdma_pkey: rdma.map(|rdma| rdma.pkey),
            sectype: is_tcp.then(|| entry.tcp_security().word()),
        }
    }
}

fn json_of(genctr: u64, records: &[DiscoveryLogEntry]) -> String {
    let log = JsonLog { genctr, records: records.iter().map(JsonRecord::new).collect() };
    // Strings and numbers under string keys: there is nothing that could fail.
    json_layout(&log).unwrap_or_default()
}

/// The layout of json-c's pretty printer, which nvme-cli uses: serde's, less the space after the colon.
struct JsonC(PrettyFormatter<'static>);

impl Formatter for JsonC {
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b":")
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}

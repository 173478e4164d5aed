use nvmf_core::spec::discovery::{AddressFamilyCode, SubsystemType, Treq};

use super::*;

/// An entry as a target puts it on the wire; the tests change single fields.
fn entry(trtype: u8, adrfam: u8, traddr: &str, trsvcid: &str, subnqn: &str) -> DiscoveryLogEntry {
    let mut entry = DiscoveryLogEntry {
        trtype: TransportTypeCode(trtype),
        adrfam: AddressFamilyCode(adrfam),
        subtype: SubsystemType::NVM,
        portid: 1.into(),
        cntlid: 0xffff.into(),
        asqsz: 32.into(),
        ..Default::default()
    };
    // Addresses are padded with spaces on the wire, names with NULs.
    entry.traddr.fill(b' ');
    entry.trsvcid.fill(b' ');
    entry.traddr[..traddr.len()].copy_from_slice(traddr.as_bytes());
    entry.trsvcid[..trsvcid.len()].copy_from_slice(trsvcid.as_bytes());
    entry.subnqn[..subnqn.len()].copy_from_slice(subnqn.as_bytes());
    entry
}

fn tcp() -> DiscoveryLogEntry {
    let mut tcp = entry(3, 1, "10.0.0.2", "4420", "nqn.2016-06.io.spdk:cnode1");
    tcp.treq = Treq(4);
    tcp
}

#[test]
fn text_of_no_records() {
    assert_eq!(text_of(7, &[]), "\nDiscovery Log Number of Records 0, Generation counter 7\n");
}

#[test]
fn text_of_tcp() {
    let expected = "
Discovery Log Number of Records 1, Generation counter 5
=====Discovery Log Entry 0======
trtype:  tcp
adrfam:  ipv4
subtype: nvme subsystem
treq:    not specified, sq flow control disable supported
portid:  1
trsvcid: 4420
subnqn:  nqn.2016-06.io.spdk:cnode1
traddr:  10.0.0.2
eflags:  none
sectype: none
";
    assert_eq!(text_of(5, &[tcp()]), expected);
}

#[test]
fn text_of_discovery_entries_with_flags_and_ipv6() {
    let nqn = "nqn.2014-08.org.nvmexpress.discovery";
    let mut referral = entry(3, 2, "fe80::1%eth0", "8009", nqn);
    referral.subtype = SubsystemType::REFERRAL;
    referral.treq = Treq(1);
    referral.portid = 0xffff.into();
    referral.eflags = 0b111.into();
    referral.tsas[0] = 2;
    let mut current = entry(3, 2, "2001:db8::7", "8009", nqn);
    current.subtype = SubsystemType::CURRENT_DISCOVERY;
    current.treq = Treq(2);
    current.portid = 0.into();
    current.eflags = 0b011.into();
    current.tsas[0] = 1;
    let expected = "
Discovery Log Number of Records 2, Generation counter 18446744073709551615
=====Discovery Log Entry 0======
trtype:  tcp
adrfam:  ipv6
subtype: discovery subsystem referral
treq:    required
portid:  65535
trsvcid: 8009
subnqn:  nqn.2014-08.org.nvmexpress.discovery
traddr:  fe80::1%eth0
eflags:  explicit discovery connections, duplicate discovery information, no cdc connectivity
sectype: tls13
=====Discovery Log Entry 1======
trtype:  tcp
adrfam:  ipv6
subtype: current discovery subsystem
treq:    not required
portid:  0
trsvcid: 8009
subnqn:  nqn.2014-08.org.nvmexpress.discovery
traddr:  2001:db8::7
eflags:  explicit discovery connections, duplicate discovery information
sectype: tls
";
    assert_eq!(text_of(u64::MAX, &[referral, current]), expected);
}

fn rdma(pkey: u16) -> DiscoveryLogEntry {
    let mut rdma = entry(1, 1, "192.168.100.8", "4420", "nqn.2024-01.com.example:r1");
    rdma.tsas[0] = 1;
    rdma.tsas[1] = 4;
    rdma.tsas[2] = 1;
    rdma.tsas[8..10].copy_from_slice(&pkey.to_le_bytes());
    rdma
}

#[test]
fn text_of_rdma() {
    let expected = "
Discovery Log Number of Records 1, Generation counter 2
=====Discovery Log Entry 0======
trtype:  rdma
adrfam:  ipv4
subtype: nvme subsystem
treq:    not specified
portid:  1
trsvcid: 4420
subnqn:  nqn.2024-01.com.example:r1
traddr:  192.168.100.8
eflags:  none
rdma_prtype: roce-v2
rdma_qptype: connected
rdma_cms:    rdma-cm
rdma_pkey: 0000
";
    assert_eq!(text_of(2, &[rdma(0)]), expected);
    for (pkey, printed) in [(1, "0x01"), (0x1f, "0x1f"), (0xffff, "0xffff")] {
        let text = text_of(2, &[rdma(pkey)]);
        assert!(text.ends_with(&format!("rdma_pkey: {printed}\n")), "{text}");
    }
}

#[test]
fn values_without_a_name_are_unrecognized() {
    let mut hole = entry(0, 9, "x", "y", "z");
    hole.subtype = SubsystemType(0);
    hole.treq = Treq(3);
    hole.eflags = 0xfff8.into();
    let expected = "
Discovery Log Number of Records 1, Generation counter 0
=====Discovery Log Entry 0======
trtype:  unrecognized
adrfam:  unrecognized
subtype: unrecognized
treq:    unrecognized
portid:  1
trsvcid: y
subnqn:  z
traddr:  x
eflags:  none
";
    assert_eq!(text_of(0, &[hole]), expected);
    let mut rdma = rdma(0);
    rdma.tsas.fill(0);
    assert!(text_of(0, &[rdma]).contains(
        "rdma_prtype: unrecognized\nrdma_qptype: unrecognized\nrdma_cms:    unrecognized\nrdma_pkey: 0000\n"
    ));
    let mut sectype = tcp();
    sectype.tsas[0] = 3;
    assert!(text_of(0, &[sectype]).ends_with("sectype: unrecognized\n"));
}

#[test]
fn address_family_is_left_out_of_text_without_an_address() {
    let looped = entry(254, 254, "", "", "nqn.2024-01.com.example:l");
    let text = text_of(1, &[looped]);
    assert!(text.contains("trtype:  loop\nadrfam:  \nsubtype: nvme subsystem\n"), "{text}");
    assert!(
        text.contains("trsvcid: \nsubnqn:  nqn.2024-01.com.example:l\ntraddr:  \neflags:  none\n"),
        "{text}"
    );
    let json = json_of(1, &[looped]);
    assert!(json.contains("\"adrfam\":\"unrecognized\""), "{json}");
    let pci = entry(3, 0, "", "", "n");
    assert!(text_of(1, &[pci]).contains("adrfam:  \n"));
    assert!(json_of(1, &[pci]).contains("\"adrfam\":\"pci\""));
}

#[test]
fn peer_cannot_drive_the_terminal() {
    let hostile = entry(3, 1, "\x1b[2J10.0.0.1", "44\n20", "nqn\r.\u{7}");
    let text = text_of(1, &[hostile]);
    assert!(
        text.contains("trsvcid: 44\u{fffd}20\nsubnqn:  nqn\u{fffd}.\u{fffd}\ntraddr:  \u{fffd}[2J10.0.0.1\n"),
        "{text}"
    );
}

#[test]
fn json_of_no_records() {
    assert_eq!(json_of(7, &[]), "{\n  \"genctr\":7,\n  \"records\":[]\n}\n");
}

#[test]
fn json_of_tcp_and_rdma() {
    let expected = r#"{
  "genctr":5,
  "records":[
    {
      "trtype":"tcp",
      "adrfam":"ipv4",
      "subtype":"nvme subsystem",
      "treq":"not specified, sq flow control disable supported",
      "portid":1,
      "trsvcid":"4420",
      "subnqn":"nqn.2016-06.io.spdk:cnode1",
      "traddr":"10.0.0.2",
      "eflags":"none",
      "sectype":"none"
    },
    {
      "trtype":"rdma",
      "adrfam":"ipv4",
      "subtype":"nvme subsystem",
      "treq":"not specified",
      "portid":1,
      "trsvcid":"4420",
      "subnqn":"nqn.2024-01.com.example:r1",
      "traddr":"192.168.100.8",
      "eflags":"none",
      "rdma_prtype":"roce-v2",
      "rdma_qptype":"connected",
      "rdma_cms":"rdma-cm",
      "rdma_pkey":65535
    }
  ]
}
"#;
    let json = json_of(5, &[tcp(), rdma(0xffff)]);
    assert_eq!(json, expected);
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed["records"][1]["rdma_pkey"], 65535);
}

#[test]
fn json_escapes_what_a_name_may_hold() {
    let quoted = entry(3, 1, "10.0.0.2", "4420", "nqn.x:\"quoted\\slash/\"");
    assert!(json_of(1, &[quoted]).contains(r#""subnqn":"nqn.x:\"quoted\\slash/\"","#));
}

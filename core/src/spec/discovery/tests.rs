use proptest::prelude::*;

use super::*;
use crate::spec::identify::text::fill;

fn entry() -> DiscoveryLogEntry {
    let mut entry = DiscoveryLogEntry {
        trtype: TransportTypeCode::TCP,
        adrfam: AddressFamilyCode::IPV4,
        subtype: SubsystemType::NVM,
        treq: Treq(4),
        portid: U16::new(1),
        cntlid: U16::new(CNTLID_DYNAMIC),
        asqsz: U16::new(32),
        ..Default::default()
    };
    fill(&mut entry.trsvcid, "4420", b' ');
    fill(&mut entry.traddr, "10.0.0.2", b' ');
    fill(&mut entry.subnqn, "nqn.2016-06.io.spdk:cnode1", 0);
    entry
}

#[test]
fn entry_layout() {
    let entry = entry();
    let bytes = entry.as_bytes();
    assert_eq!(bytes[..12], [3, 1, 2, 4, 1, 0, 0xff, 0xff, 32, 0, 0, 0]);
    assert_eq!(&bytes[32..38], b"4420  ");
    assert_eq!(&bytes[256..260], b"nqn.");
    assert_eq!(&bytes[512..520], b"10.0.0.2");
    assert_eq!(DiscoveryLogEntry::read_from_bytes(bytes).unwrap(), entry);
}

#[test]
fn texts_are_trimmed_whether_terminated_or_not() {
    let mut entry = entry();
    assert_eq!((entry.trsvcid().as_str(), entry.traddr().as_str()), ("4420", "10.0.0.2"));
    assert_eq!(entry.subnqn(), "nqn.2016-06.io.spdk:cnode1");
    assert_eq!(entry.subnqn_bytes(), b"nqn.2016-06.io.spdk:cnode1");
    entry.trsvcid = [b'4'; 32];
    assert_eq!(entry.trsvcid(), "4".repeat(32));
    fill(&mut entry.traddr, "fe80::1\0garbage", b'x');
    assert_eq!(entry.traddr(), "fe80::1");
    fill(&mut entry.traddr, "\x1b[2J\x07", 0);
    assert_eq!(entry.traddr(), "\u{fffd}[2J\u{fffd}");
    assert!(!format!("{entry:?}").contains('\x1b'));
}

#[test]
fn words_are_those_scripts_expect() {
    assert_eq!(entry().treq.word(), "not specified, sq flow control disable supported");
    assert_eq!(Treq(7).word(), "unrecognized");
    assert!(Treq(5).secure_channel_required() && Treq(5).can_disable_sq_flow_control());
    assert!(!Treq(2).secure_channel_required() && !Treq(2).can_disable_sq_flow_control());
    assert_eq!(TransportTypeCode(0).word(), "unrecognized");
    assert_eq!(TransportTypeCode::LOOP.word(), "loop");
    assert_eq!(AddressFamilyCode(0).word(), "pci");
    assert_eq!(AddressFamilyCode::FIBRE_CHANNEL.word(), "fibre-channel");
    assert_eq!(AddressFamilyCode::LOOP.word(), "unrecognized");
    assert_eq!(SubsystemType(1).word(), "discovery subsystem referral");
    assert_eq!(SubsystemType(3).word(), "current discovery subsystem");
    assert_eq!(SubsystemType(0).word(), "unrecognized");
    assert_eq!(TcpSecurityType(2).word(), "tls13");
    assert_eq!(RdmaProviderType(4).word(), "roce-v2");
    assert_eq!(RdmaQpType(1).word(), "connected");
    assert_eq!(RdmaCms(1).word(), "rdma-cm");
}

#[test]
fn flags_in_words() {
    assert_eq!(EntryFlags(0).to_string(), "none");
    assert_eq!(EntryFlags(1).to_string(), "duplicate discovery information");
    assert_eq!(EntryFlags(3).to_string(), "explicit discovery connections, duplicate discovery information");
    assert_eq!(EntryFlags(6).to_string(), "explicit discovery connections, no cdc connectivity");
    assert_eq!(EntryFlags(0xfff8).to_string(), "none");
    let entry = DiscoveryLogEntry { eflags: U16::new(2), ..entry() };
    assert!(entry.flags().contains(EntryFlags::EXPLICIT_PERSISTENT));
    assert!(!entry.flags().contains(EntryFlags::DUPLICATE_INFORMATION));
}

#[test]
fn transport_specific_address_subtypes() {
    let mut entry = entry();
    assert_eq!(entry.tcp_security(), TcpSecurityType::NONE);
    entry.tsas[..10].copy_from_slice(&[1, 4, 1, 0, 0, 0, 0, 0, 0x34, 0x12]);
    assert_eq!(entry.tcp_security(), TcpSecurityType::TLS);
    assert_eq!(
        entry.rdma_tsas(),
        RdmaTsas {
            qptype: RdmaQpType::CONNECTED,
            prtype: RdmaProviderType::ROCE_V2,
            cms: RdmaCms::RDMA_CM,
            pkey: 0x1234
        }
    );
}

#[test]
fn header_layout_and_size() {
    let header = DiscoveryLogHeader::new(0x0102, 3);
    assert_eq!(header.as_bytes()[..18], [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(header.page_size(), Some(4096));
    assert_eq!(DiscoveryLogHeader::new(1, u64::MAX).page_size(), None);
    assert_eq!(DiscoveryLogHeader::new(1, 1 << 54).page_size(), None);
}

#[test]
fn entries_of_a_partial_read() {
    let mut bytes = Vec::new();
    bytes.extend(entry().as_bytes());
    bytes.extend(entry().as_bytes());
    bytes.extend([1; 1023]);
    assert_eq!(DiscoveryLogEntry::slice_from(&bytes), [entry(), entry()]);
    assert_eq!(DiscoveryLogEntry::slice_from(&bytes[..1023]), []);
    assert_eq!(DiscoveryLogEntry::slice_from(&[]), []);
}

proptest! {
    #[test]
    fn any_entry_survives_and_prints(bytes in proptest::collection::vec(any::<u8>(), 0..2100)) {
        let entries = DiscoveryLogEntry::slice_from(&bytes);
        prop_assert_eq!(entries.len(), bytes.len() / RECORD_SIZE);
        prop_assert_eq!(entries.as_bytes(), &bytes[..entries.len() * RECORD_SIZE]);
        for entry in entries {
            let text = format!("{} {} {} {}", entry.traddr(), entry.trsvcid(), entry.subnqn(), entry.flags());
            prop_assert!(!text.chars().any(char::is_control));
            let debug = format!("{entry:?} {:?}", entry.rdma_tsas());
            prop_assert!(!debug.contains('\x1b'));
        }
    }
}

use core::time::Duration;

use proptest::prelude::*;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::text::{fill, lossy_text, trimmed};
use super::*;

fn namespace(formats: &[(u8, u16)], flbas: u8) -> IdentifyNamespace {
    let mut id = IdentifyNamespace { nsze: U64::new(1000), flbas, ..Default::default() };
    id.nlbaf_z = (formats.len() - 1) as u8;
    for (slot, &(lbads, ms)) in id.lbaf.iter_mut().zip(formats) {
        *slot = LbaFormat { ms: U16::new(ms), lbads, rp: 0 };
    }
    id
}

#[test]
fn texts_are_trimmed() {
    let mut id = IdentifyController::default();
    fill(&mut id.sn, "  S1234", b' ');
    fill(&mut id.mn, "A model number that is much longer than its forty bytes", b' ');
    fill(&mut id.subnqn, "nqn.2016-06.io.spdk:cnode1", 0);
    assert_eq!(id.serial_number(), "S1234");
    assert_eq!(id.model_number(), "A model number that is much longer than");
    assert_eq!(id.firmware_revision(), "");
    assert_eq!(id.subsystem_nqn(), "nqn.2016-06.io.spdk:cnode1");
    assert_eq!(id.subsystem_nqn_bytes(), b"nqn.2016-06.io.spdk:cnode1");
    // A field that is full has no terminator.
    id.sn = *b"12345678901234567890";
    assert_eq!(id.serial_number(), "12345678901234567890");
}

#[test]
fn nothing_harmful_reaches_a_terminal() {
    assert_eq!(lossy_text(b"\x1b[2Jclear\r\n"), "\u{fffd}[2Jclear");
    assert_eq!(lossy_text(b"a\x1b]0;title\x07b"), "a\u{fffd}]0;title\u{fffd}b");
    assert_eq!(lossy_text("right\u{202e}left".as_bytes()), "right\u{fffd}left");
    assert_eq!(lossy_text("c1\u{9b}31m".as_bytes()), "c1\u{fffd}31m");
    assert_eq!(lossy_text(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    assert_eq!(lossy_text("grüße".as_bytes()), "grüße");
    assert_eq!(trimmed(b"abc  \0def"), b"abc");
    assert_eq!(lossy_text(b""), "");
}

#[test]
fn fill_cuts_between_characters() {
    let mut field = [0xaa; 4];
    fill(&mut field, "abcü", b' ');
    assert_eq!(&field, b"abc ");
    fill(&mut field, "", 0);
    assert_eq!(field, [0; 4]);
}

#[test]
fn max_transfer_size_has_no_overflow() {
    let mut id = IdentifyController::default();
    assert_eq!(id.max_transfer_size(4096), None);
    id.mdts = 5;
    assert_eq!(id.max_transfer_size(4096), Some(128 * 1024));
    id.mdts = 51;
    assert_eq!(id.max_transfer_size(4096), Some(1 << 63));
    for mdts in 52..=255 {
        id.mdts = mdts;
        assert_eq!(id.max_transfer_size(4096), None);
    }
    let mut nvm: IdentifyControllerNvm = zerocopy::FromZeros::new_zeroed();
    assert_eq!(nvm.write_zeroes_limit(4096), None);
    nvm.wzsl = 8;
    assert_eq!(nvm.write_zeroes_limit(4096), Some(1 << 20));
    nvm.wzsl = 255;
    assert_eq!(nvm.write_zeroes_limit(4096), None);
}

#[test]
fn capsules_that_do_not_add_up_have_no_room() {
    let mut id = IdentifyController { ioccsz: U32::new(4), ..Default::default() };
    assert_eq!(id.in_capsule_data_size(), 0);
    id.ioccsz = U32::new(260);
    assert_eq!(id.in_capsule_data_size(), 4096);
    id.icdoff = U16::new(1);
    assert_eq!((id.in_capsule_data_offset(), id.in_capsule_data_size()), (16, 4080));
    id.ioccsz = U32::new(0);
    assert_eq!(id.in_capsule_data_size(), 0);
    id.ioccsz = U32::MAX_VALUE;
    assert_eq!(id.command_capsule_size(), u64::from(u32::MAX) * 16);
}

#[test]
fn controller_bits_and_units() {
    let mut id = IdentifyController {
        cmic: 0b1010,
        kas: U16::new(100),
        cqt: U16::new(1500),
        oacs: U16::new(0x108),
        oncs: U16::new(0x00c),
        vwc: 0b111,
        sgls: U32::new(1 << 21 | 1 << 20 | 1 << 2 | 1),
        ctratt: U32::new(1 << 6),
        ofcs: U16::new(1),
        anatt: 10,
        crdt: [U16::new(1), U16::new(2), U16::new(300)],
        cntrltype: ControllerType::DISCOVERY,
        oaes: U32::new(1 << 31),
        ..Default::default()
    };
    assert!(id.reports_ana());
    assert_eq!(id.keep_alive_granularity(), Some(Duration::from_secs(10)));
    assert_eq!(id.command_quiesce_time(), Duration::from_millis(1500));
    assert_eq!(id.ana_transition_time(), Duration::from_secs(10));
    assert!(id.supports_admin(oacs::NAMESPACE_MANAGEMENT) && id.supports_admin(oacs::DOORBELL_BUFFER));
    assert!(!id.supports_admin(oacs::FORMAT));
    assert!(id.supports_io(oncs::DATASET_MANAGEMENT) && id.supports_io(oncs::WRITE_ZEROES));
    assert!(id.has_attribute(ctratt::TRAFFIC_BASED_KEEP_ALIVE));
    assert!(id.has_volatile_write_cache() && id.supports_flush_all());
    assert!(id.supports_sgl() && !id.sgl_needs_dword_alignment() && id.supports_keyed_sgl());
    assert!(id.supports_transport_sgl() && id.supports_sgl_offset() && !id.supports_bit_bucket());
    assert!(id.supports_disconnect());
    assert_eq!(id.retry_delay(0), Duration::ZERO);
    assert_eq!(id.retry_delay(3), Duration::from_secs(30));
    assert_eq!(id.retry_delay(200), Duration::ZERO);
    assert_eq!(id.cntrltype.to_string(), "discovery controller");
    assert!(id.async_events().contains(super::super::features::AsyncEventConfig::DISCOVERY_LOG));
    assert_eq!((id.async_event_limit(), id.abort_limit()), (1, 1));
    id.npss_z = 255;
    assert_eq!(id.power_states().len(), 32);
    id.kas = U16::ZERO;
    assert_eq!(id.keep_alive_granularity(), None);
    assert_eq!(id.shutdown_timeout(), None);
    id.rtd3e = U32::new(2_000_000);
    assert_eq!(id.shutdown_timeout(), Some(Duration::from_secs(2)));
}

#[test]
fn lba_format_in_use() {
    let id = namespace(&[(9, 0), (12, 8)], 0x11);
    assert_eq!(id.block_size(), Some(4096));
    assert_eq!(id.metadata_size(), Some(8));
    assert!(id.is_extended_lba());
    assert_eq!(id.transfer_block_size(), Some(4104));
    assert_eq!(id.size_bytes(), Some(4_096_000));
    // Without metadata the extended bit means nothing.
    assert!(!namespace(&[(9, 0)], 0x10).is_extended_lba());
    assert_eq!(namespace(&[(12, 8)], 0).transfer_block_size(), Some(4096));
}

#[test]
fn hostile_lba_formats_are_none() {
    // An index beyond the list, though the array has something there.
    let mut id = namespace(&[(9, 0)], 1);
    id.lbaf[1] = LbaFormat { ms: U16::ZERO, lbads: 12, rp: 0 };
    assert_eq!(id.lba_format(), None);
    assert_eq!(id.size_bytes(), None);
    for lbads in (0..9).chain(32..=255) {
        assert_eq!(namespace(&[(lbads, 0)], 0).block_size(), None, "{lbads}");
    }
    assert_eq!(namespace(&[(31, 0)], 0).block_size(), Some(1 << 31));
    let mut id = namespace(&[(31, 0)], 0);
    id.nsze = U64::MAX_VALUE;
    assert_eq!(id.size_bytes(), None);
    id.nlbaf_z = 255;
    id.nulbaf = 255;
    assert_eq!(id.lba_format_count(), 64);
}

#[test]
fn upper_format_index_counts_only_with_many_formats() {
    let mut id = namespace(&[(9, 0); 16], 0x20);
    assert_eq!(id.lba_format_index(), 0);
    id.nulbaf = 4;
    assert_eq!(id.lba_format_index(), 16);
    assert_eq!(id.lba_format(), None, "format 16 was never filled in");
    id.lbaf[16].lbads = 12;
    assert_eq!(id.block_size(), Some(4096));
}

#[test]
fn identifiers_of_zero_are_none() {
    let mut id = IdentifyNamespace::default();
    assert_eq!((id.nguid(), id.eui64(), id.is_active()), (None, None, false));
    id.eui64[7] = 1;
    assert_eq!(id.eui64(), Some([0, 0, 0, 0, 0, 0, 0, 1]));
}

#[test]
fn extended_formats() {
    let mut id: IdentifyNamespaceNvm = zerocopy::FromZeros::new_zeroed();
    id.elbaf[63] = U32::new(0b0010 << 9 | 0b11 << 7 | 64);
    let format = id.extended_format(63).unwrap();
    assert_eq!(format.storage_tag_bits(), 64);
    assert_eq!(format.protection_format(), 3);
    assert_eq!(format.qualified_protection_format(), 2);
    assert_eq!(id.extended_format(64), None);
}

fn list(nsids: &[u32]) -> Vec<u8> {
    nsids.iter().flat_map(|nsid| nsid.to_le_bytes()).collect()
}

#[test]
fn namespace_list_ends_at_zero_or_the_end() {
    let nsids = |data: &[u8], after| NamespaceList::new(data, after).collect::<Result<Vec<_>, _>>();
    assert_eq!(nsids(&list(&[1, 2, 9, 0, 10]), 0), Ok(vec![1, 2, 9]));
    assert_eq!(nsids(&list(&[1, NSID_MAX]), 0), Ok(vec![1, NSID_MAX]));
    assert_eq!(nsids(&list(&[]), 0), Ok(vec![]));
    assert_eq!(nsids(&[1, 0, 0, 0, 2, 0], 0), Ok(vec![1]));
    let full: Vec<_> = (1..=1024).collect();
    assert_eq!(nsids(&list(&full), 0), Ok(full));
}

#[test]
fn hostile_namespace_lists() {
    let first_error = |data: &[u32], after| NamespaceList::new(&list(data), after).find_map(Result::err);
    assert_eq!(first_error(&[1, 1], 0), Some(NamespaceListError::NotIncreasing { previous: 1, found: 1 }));
    assert_eq!(first_error(&[5, 3], 0), Some(NamespaceListError::NotIncreasing { previous: 5, found: 3 }));
    // A controller that ignores where to start from would make the host read for ever.
    assert_eq!(
        first_error(&[1, 2], 1024),
        Some(NamespaceListError::NotIncreasing { previous: 1024, found: 1 })
    );
    assert_eq!(
        first_error(&[1, NSID_BROADCAST], 0),
        Some(NamespaceListError::Reserved { found: NSID_BROADCAST })
    );
    let data = list(&[2, 1, 3]);
    let mut iterator = NamespaceList::new(&data, 0);
    assert_eq!(iterator.by_ref().count(), 2);
    assert_eq!(iterator.next(), None);
}

#[test]
fn namespace_descriptors_of_every_type() {
    let mut data = vec![3, 16, 0, 0];
    data.extend([0x5a; 16]);
    data.extend([1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    data.extend([4, 1, 0, 0, 2]);
    data.extend([9, 2, 0, 0, 0xaa, 0xbb]);
    data.extend([2, 16, 0, 0]);
    data.extend([7; 16]);
    data.resize(IDENTIFY_SIZE, 0);
    let found: Result<Vec<_>, _> = NamespaceDescriptors::new(&data).collect();
    assert_eq!(
        found.unwrap(),
        [
            NamespaceDescriptor::Uuid([0x5a; 16]),
            NamespaceDescriptor::Eui64([1, 2, 3, 4, 5, 6, 7, 8]),
            NamespaceDescriptor::CommandSet(Csi::ZONED),
            NamespaceDescriptor::Unknown { nidt: 9, nid: &[0xaa, 0xbb] },
            NamespaceDescriptor::Nguid([7; 16]),
        ]
    );
}

#[test]
fn hostile_namespace_descriptors() {
    let all = |data: &[u8]| NamespaceDescriptors::new(data).map(|d| d.err()).collect::<Vec<_>>();
    assert_eq!(
        all(&[3, 16, 0, 0, 1, 2]),
        [Some(NamespaceDescriptorError::Truncated { offset: 0, length: 16, left: 2 })]
    );
    assert_eq!(
        all(&[1, 1, 0, 0, 7, 4, 1, 0, 0, 0]),
        [Some(NamespaceDescriptorError::WrongLength { offset: 0, nidt: 1, length: 1 }), None]
    );
    assert_eq!(
        all(&[4, 1, 0, 0, 0, 2, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 8]),
        [None, Some(NamespaceDescriptorError::WrongLength { offset: 5, nidt: 2, length: 8 })]
    );
    assert_eq!(all(&[]), []);
    assert_eq!(all(&[3, 0, 0, 0, 1, 8, 0, 0]), []);
}

proptest! {
    #[test]
    fn any_list_is_walked_within_bounds(data in proptest::collection::vec(any::<u8>(), 0..600), after: u32) {
        let nsids: Vec<_> = NamespaceList::new(&data, after).filter_map(Result::ok).collect();
        prop_assert!(nsids.len() <= data.len() / 4);
        prop_assert!(nsids.is_sorted() && nsids.iter().all(|&nsid| nsid > after && nsid <= NSID_MAX));
        prop_assert!(NamespaceDescriptors::new(&data).count() <= data.len() / 5 + 1);
    }

    #[test]
    fn any_text_is_printable(data in proptest::collection::vec(any::<u8>(), 0..64)) {
        let text = lossy_text(&data);
        prop_assert!(!text.chars().any(char::is_control));
        prop_assert_eq!(text.trim_matches(' '), &text[..]);
    }

    #[test]
    fn any_identify_data_is_usable(
        data in proptest::collection::vec(any::<u8>(), IDENTIFY_SIZE),
        page_shift in 12u32..28,
    ) {
        let id = IdentifyController::read_from_bytes(&data).unwrap();
        prop_assert_eq!(id.as_bytes(), &data[..]);
        let _ = format!("{id:?} {:?} {}", id.max_transfer_size(1 << page_shift), id.in_capsule_data_size());
        let id = IdentifyNamespace::read_from_bytes(&data).unwrap();
        let _ = format!("{id:?} {:?} {:?}", id.transfer_block_size(), id.size_bytes());
        prop_assert_eq!(id.block_size().is_some(), id.lba_format().is_some());
    }
}

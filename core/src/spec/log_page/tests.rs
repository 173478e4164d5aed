use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;

fn ana_page(ngrps: u16, groups: &[(u32, u8, u32, &[u32])]) -> Vec<u8> {
    let mut page =
        AnaLogHeader { chgcnt: U64::new(7), ngrps: U16::new(ngrps), reserved_10: [0; 6] }.as_bytes().to_vec();
    for &(anagrpid, state, nnsids, nsids) in groups {
        let descriptor = AnaGroupDescriptor {
            anagrpid: U32::new(anagrpid),
            nnsids: U32::new(nnsids),
            chgcnt: U64::new(3),
            state,
            reserved_17: [0; 15],
        };
        page.extend(descriptor.as_bytes());
        page.extend(nsids.iter().flat_map(|nsid| nsid.to_le_bytes()));
    }
    page
}

type Group = (u32, AnaState, Vec<u32>);

fn ana_groups(page: &[u8]) -> Result<Vec<Group>, AnaLogError> {
    AnaLog::new(page)?
        .groups()
        .map(|group| group.map(|group| (group.id(), group.state(), group.nsids().collect())))
        .collect()
}

#[test]
fn ana_groups_are_read() {
    let mut page = ana_page(2, &[(1, 0x1, 2, &[1, 4]), (9, 0xf3, 0, &[])]);
    page.extend([0xee; 40]); // beyond what the header counts
    let log = AnaLog::new(&page).unwrap();
    assert_eq!((log.change_count(), log.group_count()), (7, 2));
    assert_eq!(
        ana_groups(&page).unwrap(),
        [(1, AnaState::OPTIMIZED, vec![1, 4]), (9, AnaState::INACCESSIBLE, vec![])]
    );
    assert_eq!(log.groups().next().unwrap().unwrap().change_count(), 3);
    assert_eq!(ana_groups(&ana_page(0, &[])), Ok(vec![]));
}

#[test]
fn hostile_ana_pages_are_typed_errors() {
    assert_eq!(AnaLog::new(&[0; 15]).unwrap_err(), AnaLogError::NoHeader { length: 15 });
    assert_eq!(
        ana_groups(&ana_page(2, &[(1, 1, 0, &[])])),
        Err(AnaLogError::Truncated { index: 1, ngrps: 2, needed: 32, left: 0 })
    );
    assert_eq!(
        ana_groups(&ana_page(1, &[(1, 1, u32::MAX, &[1])])),
        Err(AnaLogError::Truncated { index: 0, ngrps: 1, needed: 32 + 4 * u64::from(u32::MAX), left: 36 })
    );
    assert_eq!(ana_groups(&ana_page(1, &[(0, 1, 0, &[])])), Err(AnaLogError::ZeroGroup { index: 0 }));
    let page = ana_page(u16::MAX, &[(1, 1, 0, &[])]);
    assert_eq!(AnaLog::new(&page).unwrap().groups().count(), 2, "one group, one error, then the end");
}

#[test]
fn ana_states() {
    assert!(AnaState::OPTIMIZED.is_usable() && AnaState::NON_OPTIMIZED.is_usable());
    assert!(!AnaState::INACCESSIBLE.is_usable() && !AnaState::CHANGE.is_usable() && !AnaState(9).is_usable());
    assert_eq!(AnaState(9).to_string(), "unknown (0x9)");
}

#[test]
fn async_events() {
    // What a discovery controller sends; known from udev rules as AEN 0x70f002.
    let event = AsyncEvent::from_dw0(0x0070_f002);
    assert_eq!(event.as_notice(), Some(NoticeEvent::DISCOVERY_LOG_CHANGE));
    assert!(event.is_discovery_log_change() && !event.is_namespace_change() && !event.is_ana_change());
    assert!(AsyncEvent::from_dw0(0x0004_0002).is_namespace_change());
    assert!(AsyncEvent::from_dw0(0x000c_0302).is_ana_change());
    // The same information in another type of event is something else.
    assert!(!AsyncEvent::from_dw0(0x0070_f001).is_discovery_log_change());
    assert_eq!(event.log_page, LogPageId::DISCOVERY);
    assert_eq!(event.to_string(), "notice: discovery log page change (log page 0x70)");
    assert_eq!(event.to_dw0(), 0x0070_f002);
    assert_eq!(AsyncEvent::notice(NoticeEvent::ANA_CHANGE, LogPageId::ANA).to_dw0(), 0x000c_0302);
    assert_eq!(AsyncEvent::from_dw0(0x0002_0101).to_string(), {
        "SMART / health status: temperature threshold crossed (log page 0x02)"
    });
    assert_eq!(AsyncEvent::from_dw0(0x00c0_ff05).to_string(), "unknown (0x5): 0xff (log page 0xc0)");
    assert_eq!(AsyncEvent::from_dw0(0x0001_0300).as_notice(), None);
}

#[test]
fn get_log_page_dwords() {
    let command = GetLogPage::new(LogPageId::DISCOVERY, 1024, 4096).unwrap();
    assert_eq!(command.to_cdw10_13(), [0x03ff_0070, 0, 1024, 0]);
    let big = GetLogPage::new(LogPageId::TELEMETRY_HOST, 1 << 40, 1 << 30).unwrap().retaining_event();
    assert_eq!(big.to_cdw10_13(), [0xffff_8007, 0x0fff, 0, 0x100]);
    assert_eq!(big.length(), 1 << 30);
    assert!(GetLogPage::new(LogPageId::SMART, 0, 1 << 34).is_some());
    for (offset, length) in [(0, 0), (0, 3), (0, 6), (2, 4), (0, (1 << 34) + 4)] {
        assert_eq!(GetLogPage::new(LogPageId::SMART, offset, length), None, "{offset} {length}");
    }
}

#[test]
fn smart_log_numbers() {
    let mut smart = SmartLog::new_zeroed();
    assert_eq!(smart.composite_celsius(), None);
    smart.composite_temperature = U16::new(310);
    smart.data_units_read = 1000_u128.to_le_bytes();
    smart.data_units_written = [0xff; 16];
    smart.power_on_hours = (1_u128 << 100).to_le_bytes();
    assert_eq!(smart.composite_celsius(), Some(37));
    assert_eq!(celsius(u16::MAX), Some(65262));
    assert_eq!(smart.bytes_read(), 512_000_000);
    assert_eq!(smart.bytes_written(), u128::MAX);
    assert_eq!(counter(smart.power_on_hours), 1 << 100);
    assert_eq!(smart.as_bytes()[1..3], [0x36, 0x01]);
}

#[test]
fn error_entries() {
    let mut entry = ErrorLogEntry::new_zeroed();
    assert!(!entry.is_valid());
    entry.error_count = U64::new(1);
    entry.status_phase = U16::new(Status::INVALID_FIELD.with_dnr().0 << 1 | 1);
    entry.parameter_error_location = U16::new(0x0328);
    assert!(entry.is_valid());
    assert_eq!(entry.status(), Status::INVALID_FIELD.with_dnr());
    assert_eq!(entry.parameter_error(), Some((0x28, 3)));
    entry.parameter_error_location = U16::new(0xffff);
    assert_eq!(entry.parameter_error(), None);
}

#[test]
fn firmware_slots() {
    let mut log = FirmwareSlotLog::new_zeroed();
    log.afi = 0x21;
    log.frs[0] = *b"1.0     ";
    log.frs[6] = *b"\x1b[31mX\0\0";
    assert_eq!((log.active_slot(), log.next_slot()), (1, Some(2)));
    assert_eq!(log.revision(1).as_deref(), Some("1.0"));
    assert_eq!(log.revision(7).as_deref(), Some("\u{fffd}[31mX"));
    assert_eq!((log.revision(0), log.revision(2), log.revision(8)), (None, None, None));
}

#[test]
fn changed_namespaces() {
    assert!(matches!(
        ChangedNamespaces::new(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        ChangedNamespaces::TooMany
    ));
    let ChangedNamespaces::List(list) = ChangedNamespaces::new(&[2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]) else {
        panic!("a list was expected");
    };
    assert_eq!(list.collect::<Result<Vec<_>, _>>(), Ok(vec![2, 5]));
}

#[test]
fn command_effects() {
    let mut log = CommandEffectsLog::new_zeroed();
    log.acs[0x80] = U32::new(0x0032_0007);
    log.iocs[255] = U32::new(1);
    let effects = log.admin(0x80);
    assert!(effects.is_supported() && effects.changes_content() && effects.changes_namespace_capability());
    assert!(!effects.changes_namespace_inventory() && !effects.changes_controller_capability());
    assert_eq!((effects.submission_restriction(), effects.scope()), (2, 3));
    assert!(!effects.takes_uuid_index());
    assert!(log.io(255).is_supported() && !log.io(0).is_supported());
    assert_eq!(log.as_bytes()[0x80 * 4..][..4], [7, 0, 0x32, 0]);
}

proptest! {
    #[test]
    fn any_ana_page_ends_within_its_bounds(page in proptest::collection::vec(any::<u8>(), 0..2048)) {
        if let Ok(log) = AnaLog::new(&page) {
            let mut nsids = 0;
            let groups = log.groups().inspect(|g| nsids += g.as_ref().map_or(0, |g| g.nsids().len())).count();
            prop_assert!(groups <= page.len() / 32 + 1);
            prop_assert!(nsids <= page.len() / 4);
        }
    }

    #[test]
    fn plausible_ana_pages_round_trip(
        groups in proptest::collection::vec((1u32.., 0u8..16, proptest::collection::vec(any::<u32>(), 0..9)), 0..9),
        cut in 1usize..64,
    ) {
        let parts: Vec<_> = groups.iter().map(|(id, s, nsids)| (*id, *s, nsids.len() as u32, &nsids[..])).collect();
        let page = ana_page(parts.len() as u16, &parts);
        let expected: Vec<Group> = groups.iter().map(|(id, s, n)| (*id, AnaState(*s), n.clone())).collect();
        prop_assert_eq!(ana_groups(&page).unwrap(), expected);
        prop_assert!(ana_groups(&page[..page.len().saturating_sub(cut)]).is_err());
    }

    #[test]
    fn get_log_page_round_trips(cdw: [u32; 4]) {
        let command = GetLogPage::from_cdw10_13(cdw);
        prop_assert_eq!(command.to_cdw10_13(), cdw);
        prop_assert!(command.length() >= 4);
    }

    #[test]
    fn any_event_prints(dw0: u32) {
        let event = AsyncEvent::from_dw0(dw0);
        prop_assert!(event.to_string().contains("log page"));
        prop_assert_eq!(event.to_dw0(), dw0 & 0x00ff_ff07);
    }
}

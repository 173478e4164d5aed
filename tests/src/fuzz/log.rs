//! Identify data and log pages.

use nvmf_core::proto::controller_init::parse_ana;
use nvmf_core::proto::discovery_log::{DiscoveryLogLimits, DiscoveryLogReader, Step};
use nvmf_core::spec::Status;
use nvmf_core::spec::dim::DimData;
use nvmf_core::spec::discovery::{DiscoveryLogEntry, DiscoveryLogHeader, RECORD_SIZE};
use nvmf_core::spec::identify::{
    IDENTIFY_SIZE, IdentifyController, IdentifyNamespace, IdentifyNamespaceNvm, NamespaceDescriptors,
    NamespaceList,
};
use nvmf_core::spec::log_page::{AnaLog, AsyncEvent};
use zerocopy::{FromBytes, IntoBytes};

use super::Bytes;

/// Identify structures: every accessor, on any bytes.
pub(super) fn identify(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let choice = bytes.byte();
    let after = bytes.byte();
    let data = bytes.fill(IDENTIFY_SIZE);
    match choice % 4 {
        0 => {
            let id = IdentifyController::read_from_bytes(&data).expect("4096 bytes");
            let texts = [id.serial_number(), id.model_number(), id.firmware_revision(), id.subsystem_nqn()];
            assert!(texts.iter().all(|text| !text.contains('\0') && text.len() <= 3 * 256), "{texts:?}");
            for page in [4096, 65_536, 1 << 27] {
                assert!(id.max_transfer_size(page).is_none_or(|size| size >= page), "MDTS counts pages");
            }
            let _ = (
                id.retry_delay(after),
                id.shutdown_timeout(),
                id.keep_alive_granularity(),
                id.async_events(),
            );
            let _ = (id.in_capsule_data_size(), id.in_capsule_data_offset(), id.command_capsule_size());
            let _ = (id.ana_transition_time(), id.command_quiesce_time(), id.total_capacity());
            for state in id.power_states() {
                let _ = (state.max_power_tenth_mw(), state.is_non_operational());
            }
            assert_eq!(id.as_bytes(), data, "unknown values survive");
        }
        1 => {
            let id = IdentifyNamespace::read_from_bytes(&data).expect("4096 bytes");
            let count = id.lba_format_count();
            assert!(count <= 64 && id.lba_formats().len() <= 64, "formats");
            if let Some(size) = id.block_size() {
                assert!(size.is_power_of_two() && size >= 512, "a block of {size} bytes");
            }
            let _ = (id.metadata_size(), id.is_extended_lba(), id.lba_format_index());
            let nvm = IdentifyNamespaceNvm::read_from_bytes(&data).expect("4096 bytes");
            assert_eq!(nvm.as_bytes(), data);
        }
        2 => {
            let mut last = u32::from(after);
            for nsid in NamespaceList::new(&data, last).map_while(Result::ok) {
                assert!(nsid > last, "identifiers ascend");
                last = nsid;
            }
        }
        _ => {
            let count = NamespaceDescriptors::new(&data).take_while(Result::is_ok).count();
            assert!(count <= IDENTIFY_SIZE / 4, "descriptors out of nothing");
        }
    }
}

/// Log pages and events.
pub(super) fn pages(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let event = bytes.u64() as u32;
    assert_eq!(AsyncEvent::from_dw0(event).to_dw0() & !event, 0, "bits out of nothing");
    let page = bytes.rest();
    if let Ok(log) = AnaLog::new(page) {
        let mut nsids = 0;
        for group in log.groups().map_while(Result::ok) {
            nsids += group.nsids().len();
        }
        assert!(nsids * 4 <= page.len(), "namespaces out of nothing");
    }
    let groups = parse_ana(page);
    assert!(groups.len() * 32 <= page.len(), "groups out of nothing");
}

/// The discovery log from a service that answers each read with what it likes.
pub(super) fn discovery(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let mut limits = DiscoveryLogLimits::new(bytes.u64() as u32);
    limits.max_records = 64;
    limits.max_retries = 3;
    let mut reader = match bytes.byte() & 1 {
        0 => DiscoveryLogReader::new(limits),
        _ => DiscoveryLogReader::extended(limits),
    };
    let mut served = 0usize;
    let mut header = DiscoveryLogHeader::new(bytes.byte().into(), u64::from(bytes.byte() % 6));
    for read in 0.. {
        assert!(read < 200_000, "it reads for ever");
        let Step::Read { offset, len } = reader.next() else { break };
        assert!(len > 0 && offset.is_multiple_of(4) && len.is_multiple_of(4), "a read of {len} at {offset}");
        let choice = bytes.byte();
        if choice == 1 {
            if reader.failed(Status::INVALID_FIELD).is_err() {
                return;
            }
            continue;
        }
        if choice == 2 {
            header.genctr = bytes.u64().into();
            header.numrec = u64::from(bytes.byte()).into();
        }
        let mut data = match choice {
            3 => bytes.take(len as usize).to_vec(),
            4 => bytes.fill(len as usize),
            _ => vec![0; len as usize],
        };
        if choice != 3 && offset < RECORD_SIZE as u64 {
            let at = offset as usize;
            let n = data.len().min(header.as_bytes().len().saturating_sub(at));
            data[..n].copy_from_slice(&header.as_bytes()[at..at + n]);
        }
        served += data.len();
        if reader.complete(&data).is_err() {
            return;
        }
    }
    let Ok(log) = reader.finish() else { return };
    let whole = log.to_bytes();
    assert!(whole.len() <= served + RECORD_SIZE, "a log out of nothing");
    for index in 0..log.records.len() {
        for attribute in log.attributes(index) {
            let _ = (attribute.host_id(), attribute.symbolic_name());
            assert!(attribute.value.len() <= served, "an attribute out of nothing");
        }
    }
    for entry in DiscoveryLogEntry::slice_from(&whole[RECORD_SIZE.min(whole.len())..]) {
        let texts = [entry.traddr(), entry.trsvcid(), entry.subnqn()];
        assert!(texts.iter().all(|text| !text.contains('\0')), "{texts:?}");
        let _ = (entry.tcp_security(), entry.rdma_tsas(), entry.flags());
    }
}

/// A registration with a discovery service.
pub(super) fn registration(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let fix = bytes.byte();
    let mut data = bytes.rest().to_vec();
    if fix & 1 != 0 && data.len() >= RECORD_SIZE {
        // What nearly every input gets wrong.
        let tdl = data.len() as u32;
        data[..4].copy_from_slice(&tdl.to_le_bytes());
        data[22..24].copy_from_slice(&nvmf_core::spec::dim::ENTRY_KEY_TYPE.to_le_bytes());
    }
    let Ok(dim) = DimData::parse(&data) else { return };
    assert!(dim.entries.len() <= data.len() / RECORD_SIZE, "entries out of nothing");
    for (index, (entry, tail)) in dim.entries.iter().enumerate() {
        assert!(tail.len() < data.len(), "a tail out of nothing");
        let _ = (entry.traddr(), entry.subnqn());
        assert!(dim.attributes(index).count() <= data.len() / 4, "attributes out of nothing");
    }
    assert!(!dim.eid.contains('\0') && !dim.ename.contains('\0') && !dim.ever.contains('\0'));
}

//! Get Log Page (Base 2.1 §5.1.12).

use std::sync::atomic::Ordering;

use nvmf_core::spec::discovery::DiscoveryLogAsk;
use nvmf_core::spec::log_page::{
    AnaGroupDescriptor, AnaLogHeader, CommandEffectsLog, ErrorLogEntry, FirmwareSlotLog, GetLogPage,
    LogPageId, SmartLog,
};
use nvmf_core::spec::{AdminOpcode, NvmOpcode, Sqe, Status};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::{Controller, INVALID_FIELD};
use crate::config::ERROR_LOG_ENTRIES;
use crate::data::Data;
use crate::discovery;
use crate::target::{Front, count};

const IO_PAGES: [LogPageId; 7] = [
    LogPageId::SUPPORTED_LOG_PAGES,
    LogPageId::ERROR_INFORMATION,
    LogPageId::SMART,
    LogPageId::FIRMWARE_SLOT,
    LogPageId::CHANGED_NAMESPACES,
    LogPageId::COMMAND_EFFECTS,
    LogPageId::ANA,
];
const DISCOVERY_PAGES: [LogPageId; 2] = [LogPageId::SUPPORTED_LOG_PAGES, LogPageId::DISCOVERY];
/// Get Log Page CDW14 bit 23: the offset is an index.
const OFFSET_IS_INDEX: u32 = 1 << 23;

impl Controller {
    pub(super) fn get_log_page(&self, sqe: &Sqe, data: Data<'_>) -> Result<(), Status> {
        let dwords = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13].map(U32::get);
        let fields = GetLogPage::from_cdw10_13(dwords);
        if fields.length() > self.target.config.max_transfer() {
            return Err(INVALID_FIELD);
        }
        let to = data.room(fields.length() as usize)?;
        if !fields.offset.is_multiple_of(4) || sqe.cdw14.get() & OFFSET_IS_INDEX != 0 {
            return Err(INVALID_FIELD);
        }
        let page = self.log_page(&fields, sqe.nsid.get())?;
        // Beyond the end of the page there is nothing to start from; what a read reaches past it is zero.
        let page =
            usize::try_from(fields.offset).ok().and_then(|offset| page.get(offset..)).ok_or(INVALID_FIELD)?;
        let n = page.len().min(to.len());
        to[..n].copy_from_slice(&page[..n]);
        to[n..].fill(0);
        count(&self.target.counters.log_page_reads, 1);
        if !fields.retain_event {
            self.log_page_read(fields.lid);
        }
        Ok(())
    }

    fn log_page(&self, fields: &GetLogPage, nsid: u32) -> Result<Vec<u8>, Status> {
        let pages: &[LogPageId] = if self.subsystem.is_discovery() { &DISCOVERY_PAGES } else { &IO_PAGES };
        if !pages.contains(&fields.lid) {
            return Err(Status::INVALID_LOG_PAGE.with_dnr());
        }
        Ok(match fields.lid {
            LogPageId::SUPPORTED_LOG_PAGES => supported(pages),
            LogPageId::DISCOVERY => discovery::log_page(&self.target, self, DiscoveryLogAsk(fields.lsp)),
            LogPageId::ERROR_INFORMATION => {
                let mut entries: Vec<ErrorLogEntry> = self.lock().error_log.iter().copied().collect();
                entries.resize_with(ERROR_LOG_ENTRIES, ErrorLogEntry::new_zeroed);
                entries.as_bytes().to_vec()
            }
            LogPageId::SMART => {
                if !matches!(nsid, 0 | u32::MAX) && self.subsystem.namespace(nsid).is_none() {
                    return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
                }
                self.smart().as_bytes().to_vec()
            }
            LogPageId::FIRMWARE_SLOT => {
                let mut log = FirmwareSlotLog::new_zeroed();
                log.afi = 1;
                log.frs[0] = [b' '; 8];
                for (to, from) in log.frs[0].iter_mut().zip(self.subsystem.firmware.bytes()) {
                    *to = from;
                }
                log.as_bytes().to_vec()
            }
            LogPageId::CHANGED_NAMESPACES => {
                let mut page: Vec<u8> =
                    self.lock().changed_namespaces.iter().flat_map(|nsid| nsid.to_le_bytes()).collect();
                page.resize(4096, 0);
                page
            }
            LogPageId::COMMAND_EFFECTS => effects(self.front),
            _ => self.ana(fields.lsp & 1 != 0),
        })
    }

    fn smart(&self) -> SmartLog {
        let counters = &self.target.counters;
        // Thousands of 512-byte units, rounded up (Base 2.1 §5.1.12.1.3).
        let units = |bytes: u64| u128::from(bytes.div_ceil(512_000)).to_le_bytes();
        let number = |n: u64| u128::from(n).to_le_bytes();
        let mut log = SmartLog::new_zeroed();
        log.composite_temperature = U16::new(313);
        log.available_spare = 100;
        log.available_spare_threshold = 10;
        log.data_units_read = units(counters.bytes_read.load(Ordering::Relaxed));
        log.data_units_written = units(counters.bytes_written.load(Ordering::Relaxed));
        log.host_read_commands = number(counters.reads.load(Ordering::Relaxed));
        log.host_write_commands = number(counters.writes.load(Ordering::Relaxed));
        log.power_cycles = number(1);
        log.power_on_hours = number(self.target.started.elapsed().as_secs() / 3600);
        log.error_log_entries = number(self.lock().error_count);
        log
    }

    /// The Asymmetric Namespace Access page: one group that holds every namespace.
    fn ana(&self, groups_only: bool) -> Vec<u8> {
        let subsystem = &self.subsystem;
        let nsids: Vec<u32> = match groups_only {
            true => Vec::new(),
            false => subsystem.namespaces().iter().map(|ns| ns.nsid).collect(),
        };
        let changes = U64::new(subsystem.ana_changes());
        let mut header = AnaLogHeader::new_zeroed();
        header.chgcnt = changes;
        header.ngrps = U16::new(1);
        let mut group = AnaGroupDescriptor::new_zeroed();
        group.anagrpid = U32::new(1);
        group.nnsids = U32::new(nsids.len() as u32);
        group.chgcnt = changes;
        group.state = subsystem.ana_state().0;
        let mut page = [header.as_bytes(), group.as_bytes()].concat();
        page.extend(nsids.iter().flat_map(|nsid| nsid.to_le_bytes()));
        // Hosts ask for as much as NN namespaces would take.
        page.resize(page.len().max(48 + 4 * crate::config::MAX_NSID as usize), 0);
        page
    }
}

/// Supported Log Pages (§5.1.12.1.1): a dword per page, bit 0 LSUPP.
fn supported(pages: &[LogPageId]) -> Vec<u8> {
    let mut page = vec![0; 1024];
    for lid in pages {
        page[usize::from(lid.0) * 4] = 1;
        if *lid == LogPageId::DISCOVERY {
            // LIDSP: what may be asked of it.
            page[usize::from(lid.0) * 4 + 2] = discovery::SUPPORTED.0;
        }
    }
    page
}

/// Commands Supported and Effects. Bit 0 CSUPP, bit 1 LBCC: changes the content of logical blocks.
fn effects(front: Front) -> Vec<u8> {
    const ADMIN: [AdminOpcode; 7] = [
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::IDENTIFY,
        AdminOpcode::ABORT,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNC_EVENT_REQUEST,
        AdminOpcode::KEEP_ALIVE,
    ];
    /// Fabrics have Connect and Disconnect instead.
    const QUEUES: [AdminOpcode; 4] = [
        AdminOpcode::CREATE_IO_CQ,
        AdminOpcode::CREATE_IO_SQ,
        AdminOpcode::DELETE_IO_CQ,
        AdminOpcode::DELETE_IO_SQ,
    ];
    const READING: [NvmOpcode; 4] =
        [NvmOpcode::FLUSH, NvmOpcode::READ, NvmOpcode::COMPARE, NvmOpcode::VERIFY];
    const WRITING: [NvmOpcode; 4] = [
        NvmOpcode::WRITE,
        NvmOpcode::WRITE_UNCORRECTABLE,
        NvmOpcode::WRITE_ZEROES,
        NvmOpcode::DATASET_MANAGEMENT,
    ];
    let mut log = CommandEffectsLog::new_zeroed();
    let queues: &[AdminOpcode] = if front == Front::Pci { &QUEUES } else { &[] };
    for opcode in ADMIN.iter().chain(queues) {
        log.acs[usize::from(opcode.0)] = U32::new(0b01);
    }
    for opcode in READING {
        log.iocs[usize::from(opcode.0)] = U32::new(0b01);
    }
    for opcode in WRITING {
        log.iocs[usize::from(opcode.0)] = U32::new(0b11);
    }
    log.as_bytes().to_vec()
}

//! Identify (Base 2.1 §5.1.13).

use nvmf_core::spec::features::AsyncEventConfig;
use nvmf_core::spec::identify::{
    Cns, ControllerType, Csi, DiscoveryControllerType, IDENTIFY_SIZE, IdentifyController,
    IdentifyControllerNvm, NSID_MAX, cmic, ctratt, lpa, oacs, oncs,
};
use nvmf_core::spec::registers::Version;
use nvmf_core::spec::{Sqe, Status};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::{Controller, INVALID_FIELD};
use crate::config::{ERROR_LOG_ENTRIES, MAX_ABORTS, MAX_AERS, MAX_NSID};
use crate::data::Data;
use crate::target::Front;

const INVALID_NAMESPACE: Status = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
/// The ANA states that are reported: all of them.
const ANACAP_ALL_STATES: u8 = 0b1_1111;
/// IEEE OUI: a locally administered one, little endian.
const OUI: [u8; 3] = [0x00, 0x00, 0x02];

impl Controller {
    pub(super) fn identify(&self, sqe: &Sqe, data: Data<'_>) -> Result<(), Status> {
        let data = data.room(IDENTIFY_SIZE)?;
        let page = self.identify_page(sqe)?;
        let n = page.len().min(IDENTIFY_SIZE);
        data[..n].copy_from_slice(&page[..n]);
        data[n..].fill(0);
        Ok(())
    }

    /// What Identify returns; the rest of the 4 KiB is zero.
    fn identify_page(&self, sqe: &Sqe) -> Result<Vec<u8>, Status> {
        let cns = Cns(sqe.cdw10.get() as u8);
        let cntid = (sqe.cdw10.get() >> 16) as u16;
        let csi = Csi((sqe.cdw11.get() >> 24) as u8);
        let nsid = sqe.nsid.get();
        if cns == Cns::CONTROLLER {
            return Ok(self.identify_controller().as_bytes().to_vec());
        }
        if self.subsystem.is_discovery() {
            return Err(INVALID_FIELD);
        }
        let command_set_specific =
            matches!(cns, Cns::CSI_NAMESPACE | Cns::CSI_CONTROLLER | Cns::CSI_ACTIVE_NAMESPACE_LIST);
        if command_set_specific && csi != Csi::NVM {
            return Err(INVALID_FIELD);
        }
        match cns {
            Cns::NAMESPACE => self.of_namespace(nsid, |ns| {
                ns.identify(self.target.config.max_transfer(), self.front).as_bytes().to_vec()
            }),
            Cns::CSI_NAMESPACE => self.of_namespace(nsid, |ns| ns.identify_nvm().as_bytes().to_vec()),
            // Base 2.1 Figure 319: NMIC at byte 1, ANAGRPID at 8, NSTAT.NRDY at 14.
            Cns::INDEPENDENT_NAMESPACE => self.of_namespace(nsid, |_| {
                let mut page = vec![0; 16];
                (page[1], page[8], page[14]) = (1, 1, 1);
                page
            }),
            Cns::ACTIVE_NAMESPACE_LIST | Cns::CSI_ACTIVE_NAMESPACE_LIST => {
                if nsid > NSID_MAX {
                    return Err(INVALID_NAMESPACE);
                }
                let namespaces = self.subsystem.namespaces();
                let after = namespaces.iter().map(|ns| ns.nsid).filter(|&id| id > nsid);
                Ok(after.take(IDENTIFY_SIZE / 4).flat_map(u32::to_le_bytes).collect())
            }
            Cns::NAMESPACE_DESCRIPTORS => self.namespace_descriptors(nsid),
            Cns::CSI_CONTROLLER => {
                let mut page = IdentifyControllerNvm::new_zeroed();
                // Version of the NVM Command Set Specification: 1.1.
                page.ver = U32::new(Version::new(1, 1, 0).0);
                Ok(page.as_bytes().to_vec())
            }
            Cns::NAMESPACE_CONTROLLER_LIST => {
                self.subsystem.namespace(nsid).ok_or(INVALID_NAMESPACE)?;
                Ok(self.controller_list(cntid))
            }
            Cns::CONTROLLER_LIST => Ok(self.controller_list(cntid)),
            // One combination: the NVM command set alone.
            Cns::IO_COMMAND_SETS => Ok(1u64.to_le_bytes().to_vec()),
            _ => Err(INVALID_FIELD),
        }
    }

    /// A structure of an active namespace. An identifier that is valid but inactive gets zeroes.
    fn of_namespace(
        &self,
        nsid: u32,
        page: impl FnOnce(&crate::namespace::ActiveNamespace) -> Vec<u8>,
    ) -> Result<Vec<u8>, Status> {
        match self.subsystem.namespace(nsid) {
            Some(ns) => Ok(page(&ns)),
            None if (1..=MAX_NSID).contains(&nsid) => Ok(Vec::new()),
            None => Err(INVALID_NAMESPACE),
        }
    }

    fn namespace_descriptors(&self, nsid: u32) -> Result<Vec<u8>, Status> {
        let ns = self.subsystem.namespace(nsid).ok_or(INVALID_NAMESPACE)?;
        let mut page = Vec::new();
        let mut put = |nidt: u8, nid: &[u8]| {
            page.extend([nidt, nid.len() as u8, 0, 0]);
            page.extend(nid);
        };
        if ns.eui64 != [0; 8] {
            put(1, &ns.eui64);
        }
        if ns.nguid != [0; 16] {
            put(2, &ns.nguid);
        }
        put(3, &ns.uuid);
        put(4, &[Csi::NVM.0]);
        Ok(page)
    }

    /// Number of identifiers, then those from `from` on, 16 bits each.
    fn controller_list(&self, from: u16) -> Vec<u8> {
        let mut ids: Vec<u16> =
            self.subsystem.controllers().iter().map(|c| c.cntlid).filter(|&id| id >= from).collect();
        ids.truncate(IDENTIFY_SIZE / 2 - 1);
        let count = ids.len() as u16;
        std::iter::once(count).chain(ids).flat_map(u16::to_le_bytes).collect()
    }

    fn identify_controller(&self) -> IdentifyController {
        let config = &self.target.config;
        let subsystem = &self.subsystem;
        let mut data = IdentifyController {
            sn: padded(&subsystem.serial),
            mn: padded(&subsystem.model),
            fr: padded(&subsystem.firmware),
            rab: 6,
            ieee: OUI,
            mdts: config.mdts,
            cntlid: U16::new(self.cntlid),
            ver: U32::new(config.version.0),
            ctratt: U32::new(ctratt::HOST_IDENTIFIER_128),
            aerl_z: MAX_AERS as u8 - 1,
            elpe_z: ERROR_LOG_ENTRIES as u8 - 1,
            kas: U16::new(config.kas),
            sqes: 0x66,
            cqes: 0x44,
            maxcmd: U16::new(config.max_queue_entries.min(65_535) as u16),
            // SGLs for I/O (1:0 = 01b), offsets as addresses (20), transport SGL data blocks (21).
            sgls: U32::new(1 | 1 << 20 | 1 << 21),
            subnqn: subsystem.nqn().to_wire(),
            ioccsz: U32::new(4 + config.in_capsule / 16),
            iorcsz: U32::new(1),
            // One data block in a command: the SGL in the SQE.
            msdbd: 1,
            ofcs: U16::new(1),
            ..IdentifyController::default()
        };
        if let Front::Rdma(_) = self.front {
            // Keyed SGL data blocks (2) and offsets as addresses (20); lists of descriptors in the capsule.
            data.sgls = U32::new(1 | 1 << 2 | 1 << 20);
            data.msdbd = config.rdma.descriptors;
        }
        if self.front == Front::Pci {
            // The fields of fabrics are reserved elsewhere (Base 2.1 Figure 312), and SGLs may be whatever memory can hold:
            // without alignment (1:0 = 01b), bit buckets (16), metadata at any byte (17) or by an SGL of its own (19).
            (data.vid, data.ssvid) = (U16::new(self.local.vendor), U16::new(self.local.vendor));
            // MDTS is in units of the smallest memory page.
            data.mdts = data.mdts.saturating_sub(self.local.pages.0);
            data.rtd3e = U32::new(self.local.shutdown_us);
            if self.local.shadow_doorbells {
                data.oacs = U16::new(oacs::DOORBELL_BUFFER);
            }
            data.sgls = U32::new(1 | 1 << 16 | 1 << 17 | 1 << 19);
            (data.ioccsz, data.iorcsz) = (U32::ZERO, U32::ZERO);
            (data.msdbd, data.ofcs, data.maxcmd) = (0, U16::ZERO, U16::ZERO);
        }
        if subsystem.is_discovery() {
            data.cntrltype = ControllerType::DISCOVERY;
            data.dctype = match config.central_discovery {
                true => DiscoveryControllerType::CENTRAL,
                false => DiscoveryControllerType::DIRECT,
            };
            data.oaes = U32::new(AsyncEventConfig::DISCOVERY_LOG.0);
            data.lpa = lpa::EXTENDED_DATA | lpa::SUPPORTED_PAGES;
            return data;
        }
        if subsystem.namespaces().iter().any(|ns| ns.has_extended_format()) {
            data.ctratt = U32::new(data.ctratt.get() | ctratt::EXTENDED_LBA_FORMATS);
        }
        data.cntrltype = ControllerType::IO;
        data.cmic = cmic::MULTIPLE_PORTS | cmic::MULTIPLE_CONTROLLERS | cmic::ANA_REPORTING;
        data.oaes = U32::new(Self::OPTIONAL_EVENTS.0);
        data.acl_z = MAX_ABORTS - 1;
        // One slot, read only; activation needs no reset, for there is none.
        data.frmw = 0b11;
        data.lpa =
            lpa::SMART_PER_NAMESPACE | lpa::COMMAND_EFFECTS | lpa::EXTENDED_DATA | lpa::SUPPORTED_PAGES;
        data.wctemp = U16::new(343);
        data.cctemp = U16::new(353);
        let capacity: u128 = subsystem.namespaces().iter().map(|ns| u128::from(ns.size())).sum();
        data.tnvmcap = capacity.to_le_bytes();
        data.nn = U32::new(MAX_NSID);
        data.mnan = U32::new(MAX_NSID);
        data.oncs = U16::new(
            oncs::COMPARE
                | oncs::WRITE_UNCORRECTABLE
                | oncs::DATASET_MANAGEMENT
                | oncs::WRITE_ZEROES
                | oncs::SAVE_AND_SELECT
                | oncs::VERIFY,
        );
        // A volatile write cache (bit 0); Flush takes NSID FFFFFFFFh (bits 2:1 = 11b).
        data.vwc = 0b111;
        data.anatt = 10;
        data.anacap = ANACAP_ALL_STATES;
        data.anagrpmax = U32::new(1);
        data.nanagrpid = U32::new(1);
        data.psd[0].mp = U16::new(500);
        data
    }
}

/// ASCII, cut or padded with spaces; what is not printable ASCII becomes a question mark.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (to, c) in field.iter_mut().zip(text.chars()) {
        *to = if c.is_ascii_graphic() || c == ' ' { c as u8 } else { b'?' };
    }
    field
}

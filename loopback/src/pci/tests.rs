//! The function driven by hand, as a driver would: registers, rings, doorbells.

use std::io::Read;
use std::time::{Duration, Instant};

use nvmf_core::dma::SharedMemory;
use nvmf_core::spec::command::DsmRange;
use nvmf_core::spec::data_ptr::{DataPointer, SglDescriptor, SglSubtype};
use nvmf_core::spec::features::{
    FeatureId, FeatureSelect, NumberOfQueues, get_features_cdw10, set_features_cdw10,
};
use nvmf_core::spec::identify::{Cns, ControllerType, IdentifyController};
use nvmf_core::spec::log_page::{AsyncEvent, CommandEffectsLog, ErrorEvent, GetLogPage, LogPageId};
use nvmf_core::spec::registers::{
    AdminQueueAttributes, Cap, ControllerConfig, ControllerStatus, NSSR_RESET, Shn, Shst,
};
use nvmf_core::spec::{AdminOpcode, Cqe, NvmOpcode, Sqe, Status};
use nvmf_transport_pcie::{Bar0, PciDevice};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::grant::to_function;
use super::{EmulatedDevice, EmulatedFunction, PciOptions};
use crate::{Fault, Loopback, MetadataPlace, Namespace, Rule, SubsystemBuilder};

mod commands;
mod hostile;
mod life;
mod offers;
mod queues;

const NQN: &str = "nqn.2024-01.org.example:pci";
const PAGE: usize = 4096;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
/// Enabled, with the entry sizes of the NVM command set.
const ENABLE: u32 = 0x0046_0001;
/// Entries of the admin queues.
const ADMIN: u32 = 8;

/// A ring pair as the host keeps it.
struct Ring {
    qid: u16,
    sq: SharedMemory,
    cq: SharedMemory,
    sq_base: u64,
    cq_base: u64,
    entries: u32,
    tail: u32,
    head: u32,
    phase: bool,
}

/// Memory of the test that the device reaches.
struct Buffer {
    memory: SharedMemory,
    base: u64,
}

impl Buffer {
    fn put<T: IntoBytes + zerocopy::Immutable + ?Sized>(&self, offset: usize, value: &T) {
        self.memory.write_bytes(offset, value.as_bytes());
    }

    fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_bytes(offset, &mut bytes);
        bytes
    }
}

/// A host that executes one command at a time.
struct Host {
    device: EmulatedDevice,
    bar: Bar0,
    cap: Cap,
    admin: Ring,
    cid: u16,
    function: EmulatedFunction,
    loopback: Loopback,
}

fn loopback() -> Loopback {
    let subsystem = SubsystemBuilder::new(NQN)
        .namespace(Namespace::memory(8 << 20).block_size(512))
        .namespace(Namespace::memory(8 << 20).block_size(4096));
    Loopback::builder().subsystem(subsystem).max_io_queues(4).max_queue_entries(64).build().unwrap()
}

impl Host {
    fn inline() -> Self {
        Self::with(loopback(), &PciOptions::new().inline(true))
    }

    /// A host that has taken the function and not touched its registers.
    fn with(loopback: Loopback, options: &PciOptions) -> Self {
        let function = loopback.pci_function_with(NQN, options).unwrap();
        let mut device = function.open().unwrap();
        device.write_config(4, &[0x06, 0x04]).unwrap();
        let bar = device.bar0().unwrap();
        let cap = Cap(bar.read64(0).unwrap());
        let admin = Ring::new(&mut device, 0, ADMIN);
        Self { device, bar, cap, admin, cid: 0, function, loopback }
    }

    fn csts(&self) -> ControllerStatus {
        ControllerStatus(self.bar.read32(CSTS).unwrap())
    }

    fn write_admin_registers(&self) {
        let size_z = (self.admin.entries - 1) as u16;
        self.bar.write32(0x24, AdminQueueAttributes::new(size_z, size_z).0).unwrap();
        self.bar.write64(0x28, self.admin.sq_base).unwrap();
        self.bar.write64(0x30, self.admin.cq_base).unwrap();
    }

    fn enable(&mut self) {
        self.admin = Ring::new(&mut self.device, 0, ADMIN);
        self.write_admin_registers();
        self.bar.write32(CC, ENABLE).unwrap();
        assert_eq!(self.csts(), ControllerStatus(1));
    }

    fn enabled() -> Self {
        let mut host = Self::inline();
        host.enable();
        host
    }

    fn buffer(&mut self, pages: usize) -> Buffer {
        let memory = SharedMemory::allocate(pages * PAGE).unwrap();
        let base = self.device.dma_map(&to_function(memory.extent().region())).unwrap();
        Buffer { memory, base }
    }

    fn submit(&mut self, sqe: Sqe) -> u16 {
        self.cid += 1;
        self.admin.submit(&self.bar, self.cap, sqe, self.cid);
        self.cid
    }

    fn admin(&mut self, sqe: Sqe) -> Cqe {
        let cid = self.submit(sqe);
        let cqe = self.admin.next(&self.bar, self.cap).expect("a completion");
        assert_eq!(cqe.cid, cid);
        cqe
    }

    fn status(&mut self, sqe: Sqe) -> Status {
        self.admin(sqe).status()
    }

    fn create_cq(&self, ring: &Ring, vector: Option<u16>) -> Sqe {
        let mut sqe = Sqe::admin(AdminOpcode::CREATE_IO_CQ, 0)
            .with_cdw10(u32::from(ring.qid) | (ring.entries - 1) << 16)
            .with_cdw11(1 | vector.map_or(0, |v| u32::from(v) << 16 | 2));
        sqe.dptr = DataPointer::prp(ring.cq_base, 0);
        sqe
    }

    fn create_sq(&self, ring: &Ring) -> Sqe {
        let mut sqe = Sqe::admin(AdminOpcode::CREATE_IO_SQ, 0)
            .with_cdw10(u32::from(ring.qid) | (ring.entries - 1) << 16)
            .with_cdw11(1 | u32::from(ring.qid) << 16);
        sqe.dptr = DataPointer::prp(ring.sq_base, 0);
        sqe
    }

    fn io_queue(&mut self, qid: u16, entries: u32) -> Ring {
        let ring = Ring::new(&mut self.device, qid, entries);
        let (cq, sq) = (self.create_cq(&ring, None), self.create_sq(&ring));
        assert_eq!(self.status(cq), Status::SUCCESS);
        assert_eq!(self.status(sq), Status::SUCCESS);
        ring
    }

    /// Executes a command on an I/O queue.
    fn io(&mut self, ring: &mut Ring, sqe: Sqe) -> Status {
        self.cid += 1;
        ring.submit(&self.bar, self.cap, sqe, self.cid);
        let cqe = ring.next(&self.bar, self.cap).expect("a completion");
        assert_eq!((cqe.cid.get(), cqe.sqid.get()), (self.cid, ring.qid));
        assert_eq!(u32::from(cqe.sqhd.get()), ring.tail);
        cqe.status()
    }
}

impl Ring {
    fn new(device: &mut EmulatedDevice, qid: u16, entries: u32) -> Self {
        let sq = SharedMemory::allocate(entries as usize * 64).unwrap();
        let cq = SharedMemory::allocate(entries as usize * 16).unwrap();
        let sq_base = device.dma_map(&to_function(sq.extent().region())).unwrap();
        let cq_base = device.dma_map(&to_function(cq.extent().region())).unwrap();
        Self { qid, sq, cq, sq_base, cq_base, entries, tail: 0, head: 0, phase: true }
    }

    /// Writes a command and leaves the doorbell alone.
    fn put(&mut self, mut sqe: Sqe, cid: u16) {
        sqe.cid = cid.into();
        self.sq.write_bytes(self.tail as usize * 64, sqe.as_bytes());
        self.tail = (self.tail + 1) % self.entries;
    }

    fn submit(&mut self, bar: &Bar0, cap: Cap, sqe: Sqe, cid: u16) {
        self.put(sqe, cid);
        bar.doorbell(cap.sq_tail_doorbell(self.qid), self.tail).unwrap();
    }

    /// The next completion, if it is there, without telling the device.
    fn peek(&mut self) -> Option<Cqe> {
        let at = self.head as usize * 16;
        if (self.cq.load_acquire_u32(at + 12) >> 16) & 1 != u32::from(self.phase) {
            return None;
        }
        let mut cqe = Cqe::new_zeroed();
        self.cq.read_bytes(at, cqe.as_mut_bytes());
        self.head += 1;
        if self.head == self.entries {
            (self.head, self.phase) = (0, !self.phase);
        }
        Some(cqe)
    }

    fn next(&mut self, bar: &Bar0, cap: Cap) -> Option<Cqe> {
        let cqe = self.peek()?;
        bar.doorbell(cap.cq_head_doorbell(self.qid), self.head).unwrap();
        Some(cqe)
    }

    /// Waits for a completion of a function with a thread.
    fn wait(&mut self, bar: &Bar0, cap: Cap) -> Cqe {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(cqe) = self.next(bar, cap) {
                return cqe;
            }
            assert!(Instant::now() < deadline, "no completion");
            std::thread::yield_now();
        }
    }
}

fn rw(opcode: NvmOpcode, nsid: u32, slba: u64, blocks: u32, dptr: DataPointer) -> Sqe {
    let mut sqe = Sqe::nvm(opcode, nsid).with_slba(slba).with_cdw12(blocks - 1);
    sqe.dptr = dptr;
    sqe
}

fn identify(cns: Cns, buffer: &Buffer) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::IDENTIFY, 0).with_cdw10(cns.0.into());
    sqe.dptr = DataPointer::prp(buffer.base, 0);
    sqe
}

fn log_page(lid: LogPageId, len: u64) -> Sqe {
    GetLogPage::new(lid, 0, len).unwrap().to_sqe(0)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8 ^ (i as u8).wrapping_mul(31) ^ seed).collect()
}

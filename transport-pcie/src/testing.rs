//! A device that does what the test says.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nvmf_core::dma::{DeviceMemory, DmaGrant, RegionId};
use nvmf_core::spec::command::AdminOpcode;
use nvmf_core::spec::{Cqe, Sqe, Status};
use nvmf_core::transport::QpairSetup;
use nvmf_core::{ControllerOptions, Result};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use crate::controller::PcieController;
use crate::device::{Bar0, BarAccess, PciDevice, PciIdentity};
use crate::grant::device_memory;

const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
pub(crate) const BAR_BYTES: u64 = 0x2000;

/// CAP: 64 entries, TO 500 ms, NVM command set, no stride.
pub(crate) const CAP: u64 = 63 | 1 << 24 | 1 << 37;

pub(crate) struct State {
    pub(crate) memory: DeviceMemory,
    regions: HashMap<RegionId, (u64, usize)>,
    next_iova: u64,
    pub(crate) registers: HashMap<u64, u32>,
    /// Doorbells rung: offset and value.
    pub(crate) rung: Vec<(u64, u32)>,
    /// Registers read as all ones.
    pub(crate) vanished: bool,
    /// CSTS.RDY stays as it is whatever is written to CC.
    pub(crate) stubborn: bool,
    /// What [`PciDevice::isolate`] answers.
    pub(crate) isolates: bool,
    pub(crate) isolated: usize,
    pub(crate) refuse_mapping: bool,
    /// Vendor and device.
    pub(crate) ids: (u16, u16),
    /// Memory behind BAR 2; there is no such BAR when it is empty.
    pub(crate) bar2: Vec<u8>,
    /// What the BAR 2 registers in configuration space say.
    pub(crate) bar2_address: u64,
    /// Bus addresses set aside, first and length.
    pub(crate) reserved: Vec<(u64, u64)>,
    ringers: Vec<UnixStream>,
    listeners: Vec<UnixStream>,
    pub(crate) dropped: bool,
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<State>>);

impl Fake {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            memory: device_memory(),
            regions: HashMap::new(),
            next_iova: 0x1_0000_0000,
            registers: HashMap::from([(0, CAP as u32), (4, (CAP >> 32) as u32), (8, 0x0002_0100)]),
            rung: Vec::new(),
            vanished: false,
            stubborn: false,
            isolates: true,
            isolated: 0,
            refuse_mapping: false,
            ids: (0x1234, 0x5678),
            bar2: Vec::new(),
            bar2_address: 0,
            reserved: Vec::new(),
            ringers: Vec::new(),
            listeners: Vec::new(),
            dropped: false,
        })))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A controller on this device, with its admin queue registered and enabled.
    pub(crate) fn controller(&self) -> PcieController {
        self.controller_with(&ControllerOptions::default())
    }

    /// The controller, or why there is none; registers are as they are.
    pub(crate) fn construct(&self, options: &ControllerOptions) -> Result<PcieController> {
        PcieController::new(Box::new(Device(self.clone())), options)
    }

    pub(crate) fn controller_with(&self, options: &ControllerOptions) -> PcieController {
        let controller = self.construct(options).unwrap();
        self.state().registers.insert(CC, 1);
        self.state().registers.insert(CSTS, 1);
        controller
    }

    /// Writes completion `index` of the ring at `cq`, with `phase`.
    pub(crate) fn post(&self, cq: u64, index: u64, qid: u16, cid: u16, status: Status, phase: bool) {
        let mut cqe = Cqe::new(cid, 0, status);
        cqe.sqid = U16::new(qid);
        cqe.status_phase = U16::new(cqe.status_phase.get() | u16::from(phase));
        self.post_raw(cq, index, &cqe);
    }

    pub(crate) fn post_raw(&self, cq: u64, index: u64, cqe: &Cqe) {
        let state = self.state();
        let bytes = cqe.as_bytes();
        state.memory.write(cq + 16 * index, &bytes[..12]).unwrap();
        let last = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        state.memory.store_release_u32(cq + 16 * index + 12, last).unwrap();
    }

    /// Command `index` of the ring at `sq`.
    pub(crate) fn command(&self, sq: u64, index: u64) -> Sqe {
        let mut bytes = [0; 64];
        self.state().memory.read(sq + 64 * index, &mut bytes).unwrap();
        Sqe::read_from_bytes(&bytes).unwrap()
    }

    pub(crate) fn fire(&self, vector: usize) {
        (&self.state().ringers[vector]).write_all(&[1]).unwrap();
    }

    /// Whether a vector's descriptor is readable.
    pub(crate) fn signalled(&self, vector: usize) -> bool {
        let state = self.state();
        let mut byte = [0];
        let readable = (&state.listeners[vector]).read(&mut byte).is_ok();
        if readable {
            (&state.ringers[vector]).write_all(&byte).unwrap();
        }
        readable
    }
}

pub(crate) fn setup(qid: u16, entries: u16) -> QpairSetup {
    let deadline = Instant::now() + Duration::from_secs(5);
    QpairSetup { qid, entries, slots: entries - 1, deadline, priority: 2 }
}

pub(crate) fn opcode(sqe: &Sqe) -> AdminOpcode {
    AdminOpcode(sqe.opcode)
}

struct Device(Fake);

impl Drop for Device {
    fn drop(&mut self) {
        self.0.state().dropped = true;
    }
}

impl PciDevice for Device {
    fn identity(&self) -> PciIdentity {
        let (vendor, device) = self.0.state().ids;
        PciIdentity { vendor, device, name: "fake".into() }
    }

    fn bar0(&mut self) -> Result<Bar0> {
        Ok(Bar0::new(Arc::new(self.0.clone())))
    }

    fn bar(&mut self, index: u8) -> Result<Bar0> {
        if index != 2 || self.0.state().bar2.is_empty() {
            return Err(nvmf_core::Error::unsupported("no such BAR"));
        }
        Ok(Bar0::new(Arc::new(Memory(self.0.clone()))))
    }

    fn reserve_addresses(&mut self, at: Option<u64>, len: u64) -> Result<u64> {
        let mut state = self.0.state();
        let first = at.unwrap_or(state.next_iova);
        if at.is_none() {
            state.next_iova += len;
        }
        state.reserved.push((first, len));
        Ok(first)
    }

    fn dma_map(&mut self, grant: &DmaGrant) -> Result<u64> {
        let region = grant.region();
        let mut state = self.0.state();
        if state.refuse_mapping {
            return Err(nvmf_core::Error::exhausted("no addresses are left"));
        }
        let iova = state.next_iova;
        state.next_iova += region.len() as u64 + 0x10_0000;
        state.memory.map_region(iova, grant).unwrap();
        assert!(state.regions.insert(region.id(), (iova, region.len())).is_none(), "mapped twice");
        Ok(iova)
    }

    fn dma_unmap(&mut self, region: RegionId) -> Result<()> {
        let mut state = self.0.state();
        let (iova, _) = state.regions.remove(&region).expect("mapped");
        assert!(state.memory.unmap(iova));
        Ok(())
    }

    fn max_vectors(&self) -> u16 {
        3
    }

    fn enable_interrupts(&mut self, vectors: u16) -> Result<Vec<OwnedFd>> {
        (0..vectors)
            .map(|_| {
                let (ringer, listener) = UnixStream::pair()?;
                listener.set_nonblocking(true)?;
                let mut state = self.0.state();
                state.listeners.push(listener.try_clone()?);
                state.ringers.push(ringer);
                Ok(listener.into())
            })
            .collect()
    }

    fn reset(&mut self) -> Result<()> {
        Ok(())
    }

    fn read_config(&mut self, offset: u32, to: &mut [u8]) -> Result<()> {
        to.fill(0);
        if let Some(half) = offset.checked_sub(0x18).filter(|&half| half == 0 || half == 4) {
            // 64-bit memory.
            let bar = (self.0.state().bar2_address | 4).to_le_bytes();
            to.copy_from_slice(&bar[half as usize..][..to.len()]);
        }
        Ok(())
    }

    fn write_config(&mut self, offset: u32, from: &[u8]) -> Result<()> {
        assert_eq!((offset, from), (4, [6, 4].as_slice()), "bus mastering, memory space, no INTx");
        Ok(())
    }

    fn isolate(&mut self) -> bool {
        let mut state = self.0.state();
        state.isolated += 1;
        if state.isolates {
            state.memory.clear();
            state.regions.clear();
        }
        state.isolates
    }
}

impl BarAccess for Fake {
    fn len(&self) -> u64 {
        BAR_BYTES
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        let state = self.state();
        if state.vanished { Ok(u32::MAX) } else { Ok(state.registers.get(&offset).copied().unwrap_or(0)) }
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        let mut state = self.state();
        if offset >= 0x1000 {
            state.rung.push((offset, value));
            return Ok(());
        }
        state.registers.insert(offset, value);
        if offset == CC && !state.stubborn {
            state.registers.insert(CSTS, value & 1);
        }
        Ok(())
    }
}

struct Memory(Fake);

impl BarAccess for Memory {
    fn len(&self) -> u64 {
        self.0.state().bar2.len() as u64
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        let state = self.0.state();
        let at = offset as usize;
        Ok(u32::from_le_bytes([state.bar2[at], state.bar2[at + 1], state.bar2[at + 2], state.bar2[at + 3]]))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.0.state().bar2[offset as usize..][..4].copy_from_slice(&value.to_le_bytes());
        Ok(())
    }
}

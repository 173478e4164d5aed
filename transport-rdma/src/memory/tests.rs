use nvmf_core::ErrorKind;
use nvmf_core::dma::{DeviceBuf, DmaPool};

use super::*;
use crate::provider::{DeviceLimits, Endpoint, Provider};
use crate::sim::{Sim, SimDomain, SimFault};

const MIB: usize = 1 << 20;

fn memory(longest: usize) -> (Sim, Memory<SimDomain>) {
    let sim = Sim::with_limits(DeviceLimits {
        max_registration: longest as u64,
        max_work_requests: 64,
        max_elements: 4,
        max_completions: 128,
        max_reads: 1,
        max_shared_receives: 16_384,
        windows: true,
    });
    let domain = sim.endpoint().unwrap().domain().unwrap();
    let memory = Memory::new(domain, Access::Remote).unwrap();
    (sim, memory)
}

#[test]
fn a_region_is_registered_once_and_until_nobody_uses_it() {
    let (sim, memory) = memory(64 * MIB);
    let first = DmaRegion::allocate(1).unwrap();
    let second = DmaRegion::allocate(1).unwrap();
    for _ in 0..3 {
        assert!(matches!(memory.keys(first.region(), 0, 4096), Ok(Found::Whole(_))));
    }
    memory.keys(second.region(), 0, 1).unwrap();
    assert_eq!((memory.registered(), sim.stats().registrations), (2, 2));
    drop(first);
    drop(second);
    let third = DmaRegion::allocate(1).unwrap();
    memory.keys(third.region(), 0, 1).unwrap();
    assert_eq!((memory.registered(), memory.domain().registrations()), (1, 1));
}

#[test]
fn a_wide_region_is_registered_in_windows_that_hold_any_transfer() {
    let (sim, memory) = memory(16 * MIB + 123);
    let wide = DmaRegion::allocate(40 * MIB).unwrap();
    let region = wide.region();
    let domain = Arc::clone(memory.domain());
    let most = MAX_TRANSFER as usize;
    for offset in (0..=32 * MIB).step_by(MIB / 2).chain([8 * MIB - 1, 8 * MIB + 1, 16 * MIB - 4096]) {
        let len = most.min(40 * MIB - offset);
        let Found::Part(keys) = memory.keys(region, offset, len).unwrap() else { panic!("one window") };
        // The device agrees.
        let mut end = [0; 2];
        domain.remote_read(0, (region.address() + offset) as u64, keys.remote, &mut end).unwrap();
        domain.remote_read(0, (region.address() + offset + len - 2) as u64, keys.remote, &mut end).unwrap();
    }
    assert_eq!(sim.stats().registrations, 4);
    assert!(memory.keys(region, 0, 20 * MIB).is_err(), "more than a transfer");
    assert!(memory.keys(region, 40 * MIB - 1, 2).is_err(), "past the end");
}

#[test]
fn a_device_that_registers_too_little_is_refused() {
    let sim = Sim::with_limits(DeviceLimits {
        max_registration: 1 << 20,
        max_work_requests: 64,
        max_elements: 4,
        max_completions: 128,
        max_reads: 1,
        max_shared_receives: 16_384,
        windows: true,
    });
    let domain = sim.endpoint().unwrap().domain().unwrap();
    let error = Memory::new(domain, Access::Remote).err().unwrap().to_string();
    assert!(error.contains("sim0 registers at most 1048576 bytes"), "{error}");
}

#[test]
fn why_memory_cannot_be_registered_is_said() {
    let (sim, memory) = memory(64 * MIB);
    sim.script(SimFault::Register(libc::ENOMEM));
    let buf = DmaPool::new().alloc(4096).unwrap();
    let region = buf.extent().unwrap().region().clone();
    let error = memory.keys(&region, 0, 4096).err().unwrap().to_string();
    assert!(error.contains("registering 2048 KiB of memory with the RDMA device sim0"), "{error}");
    assert!(memory.keys(&region, 0, 4096).is_ok(), "the next attempt is a new one");
}

#[test]
fn a_dma_buf_is_registered_as_one_and_once() {
    let (sim, memory) = memory(64 * MIB);
    let (buf, file) = DeviceBuf::simulated(MIB).unwrap();
    for _ in 0..3 {
        let Found::Whole(keys) = memory.keys(buf.region(), 4096, 4096).unwrap() else { panic!("in parts") };
        let mut word = [0; 4];
        std::os::unix::fs::FileExt::write_all_at(&file, b"here", 4096).unwrap();
        let address = (buf.region().address() + 4096) as u64;
        memory.domain().remote_read(0, address, keys.remote, &mut word).unwrap();
        assert_eq!(&word, b"here");
    }
    assert_eq!((sim.stats().registrations, sim.stats().dma_bufs), (1, 1));
    drop(buf);
    let ordinary = DmaRegion::allocate(1).unwrap();
    memory.keys(ordinary.region(), 0, 1).unwrap();
    assert_eq!((memory.registered(), memory.domain().registrations()), (1, 1), "it is given back");
    assert_eq!((sim.stats().registrations, sim.stats().dma_bufs), (2, 1));
}

#[test]
fn why_a_dma_buf_cannot_be_registered_is_said() {
    let (sim, memory) = memory(64 * MIB);
    let (buf, _) = DeviceBuf::simulated(MIB).unwrap();
    for (errno, expected) in [
        (libc::EOPNOTSUPP, "its driver takes no dma-bufs"),
        (libc::EPROTONOSUPPORT, "soft-RoCE does not"),
        (libc::EFAULT, "the same IOMMU domain"),
    ] {
        sim.script(SimFault::Register(errno));
        let error = memory.keys(buf.region(), 0, 4096).err().unwrap();
        let text = error.to_string();
        let tried = "registering 1024 KiB of a dma-buf with the RDMA device sim0 (ibv_reg_dmabuf_mr)";
        assert!(text.contains(tried) && text.contains(expected), "{text}");
        assert_eq!(matches!(error.kind(), ErrorKind::Unsupported(_)), errno != libc::EFAULT, "{text}");
    }
    assert!(memory.keys(buf.region(), 0, 4096).is_ok(), "the next attempt is a new one");
}

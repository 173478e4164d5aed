//! What a function offers beyond the necessary: shadow doorbells, controller memory, other page sizes, identifiers.

use super::*;

impl Host {
    fn offering(options: PciOptions) -> Self {
        let mut host = Self::with(loopback(), &options.inline(true));
        host.enable();
        host
    }
}

fn doorbell_buffers(doorbells: u64, events: u64) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::DOORBELL_BUFFER_CONFIG, 0);
    sqe.dptr = DataPointer::prp(doorbells, events);
    sqe
}

#[test]
fn doorbells_are_taken_from_memory() {
    let mut host = Host::offering(PciOptions::new().shadow_doorbells(true));
    let page = host.buffer(1);
    assert_eq!(host.status(identify(Cns::CONTROLLER, &page)), Status::SUCCESS);
    let data = IdentifyController::read_from_bytes(&page.bytes(0, PAGE)).unwrap();
    assert_eq!(data.oacs.get(), 1 << 8);
    let buffers = host.buffer(2);
    let (doorbells, events) = (buffers.base, buffers.base + PAGE as u64);
    for (a, b, status) in [
        (doorbells + 4, events, Status::INVALID_PRP_OFFSET),
        (doorbells, events + 64, Status::INVALID_PRP_OFFSET),
        (doorbells, 0, Status::INVALID_FIELD),
        (doorbells, doorbells, Status::INVALID_FIELD),
        (!0xfff, events, Status::INVALID_FIELD),
    ] {
        assert_eq!(host.status(doorbell_buffers(a, b)), status.with_dnr(), "{a:#x} {b:#x}");
    }
    assert_eq!(host.status(doorbell_buffers(doorbells, events)), Status::SUCCESS);
    let mut ring = host.io_queue(1, 4);
    let flush = Sqe::nvm(NvmOpcode::FLUSH, 1);
    let (tail_at, head_at) = (8, 12);
    let event = |at: usize| u32::from_le_bytes(buffers.bytes(PAGE + at, 4).try_into().unwrap());

    // A command that only memory tells of; the next ring is waited for behind it.
    ring.put(flush, 1);
    buffers.put(tail_at, &1u32);
    assert!(ring.peek().is_none());
    host.function.poll();
    assert_eq!((ring.peek().unwrap().cid.get(), event(tail_at)), (1, 1));
    assert_eq!(event(head_at), 0, "there is room for completions");

    // A register wakes it up, and what is in memory counts.
    ring.put(flush, 2);
    ring.put(flush, 3);
    buffers.put(tail_at, &3u32);
    host.bar.doorbell(host.cap.sq_tail_doorbell(1), 2).unwrap();
    assert_eq!([ring.peek(), ring.peek()].map(|cqe| cqe.unwrap().cid.get()), [2, 3]);
    assert_eq!(event(tail_at), 3);

    // The completion queue is full: it wants to know of room.
    ring.put(flush, 4);
    buffers.put(tail_at, &0u32);
    host.function.poll();
    assert!(ring.peek().is_none());
    buffers.put(head_at, &2u32);
    host.function.poll();
    assert_eq!((ring.peek().unwrap().cid.get(), event(tail_at)), (4, 0));

    // Nonsense is reported, and nothing else happens.
    host.submit(Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0));
    buffers.put(tail_at, &4u32);
    host.function.poll();
    let cqe = host.admin.next(&host.bar, host.cap).unwrap();
    assert_eq!(AsyncEvent::from_dw0(cqe.dw0.get()).info, ErrorEvent::INVALID_DOORBELL_VALUE.0);
    assert!(host.csts().rdy());

    // They are forgotten with a reset.
    host.bar.write32(CC, 0).unwrap();
    host.enable();
    let mut ring = host.io_queue(1, 4);
    assert_eq!(host.io(&mut ring, flush), Status::SUCCESS);
}

#[test]
fn doorbells_out_of_reach_are_fatal() {
    let mut host = Host::offering(PciOptions::new().shadow_doorbells(true));
    assert_eq!(host.status(doorbell_buffers(0x1000, 0x2000)), Status::SUCCESS);
    let ring = Ring::new(&mut host.device, 1, 4);
    let (cq, sq) = (host.create_cq(&ring, None), host.create_sq(&ring));
    host.submit(cq);
    host.submit(sq);
    assert!(host.csts().cfs());
}

#[test]
fn nobody_is_offered_what_there_is_not() {
    let mut host = Host::enabled();
    assert_eq!(host.status(doorbell_buffers(0x1000, 0x2000)), Status::INVALID_OPCODE.with_dnr());
    assert_eq!(host.function.bar_len(2), 0);
    assert!(host.device.bar(2).is_err());
}

#[test]
fn submission_queues_in_its_own_memory() {
    for legacy in [false, true] {
        let options = PciOptions::new().controller_memory(16 << 10).legacy_controller_memory(legacy);
        let mut host = Host::offering(options);
        assert_eq!(host.cap.cmbs(), !legacy);
        let base = if legacy {
            let mut low = [0; 4];
            host.device.read_config(0x18, &mut low).unwrap();
            u64::from(u32::from_le_bytes(low) & !0xf)
        } else {
            assert_eq!(host.bar.read32(0x3c).unwrap(), 0, "not before it is asked for");
            let base = host.device.reserve_addresses(None, 16 << 10).unwrap();
            host.bar.write32(0x54, (base >> 32) as u32).unwrap();
            host.bar.write32(0x50, base as u32 | 3).unwrap();
            base
        };
        assert_eq!((host.bar.read32(0x38).unwrap(), host.bar.read32(0x3c).unwrap()), (2, 4 << 12 | 1));
        let memory = host.device.bar(2).unwrap();
        assert_eq!(memory.len(), 16 << 10);
        let ring = Ring::new(&mut host.device, 1, 64);
        let (cq, sq) = (host.create_cq(&ring, None), host.create_sq(&ring));
        let at = |sqe: Sqe, at| Sqe { dptr: DataPointer::prp(at, 0), ..sqe };
        assert_eq!(host.status(at(cq, base)), Status::INVALID_FIELD.with_dnr(), "no completion queues");
        assert_eq!(host.status(cq), Status::SUCCESS);
        // 64 entries of 64 bytes are a page; the ring may not stick out.
        let sq = sq.with_cdw10(1 | 63 << 16);
        assert_eq!(host.status(at(sq, base + 0x3000)), Status::SUCCESS);
        let mut flush = Sqe::nvm(NvmOpcode::FLUSH, 1);
        flush.cid = 77.into();
        memory.write_bytes(0x3000, flush.as_bytes()).unwrap();
        host.bar.doorbell(host.cap.sq_tail_doorbell(1), 1).unwrap();
        let mut ring = ring;
        let cqe = ring.next(&host.bar, host.cap).unwrap();
        assert_eq!((cqe.cid.get(), cqe.status()), (77, Status::SUCCESS));
        assert_eq!(host.function.queues_in_controller_memory(), 1);
        // The same bytes the other way; and not beyond the end.
        let mut back = [0; 64];
        host.function.bar_read(2, 0x3000, &mut back).unwrap();
        assert_eq!(back, flush.as_bytes());
        assert!(memory.write_bytes(0x3fc4, &[0; 64]).is_err());
        assert!(host.function.bar_write(2, 0x3fc1, &[0; 64]).is_err());
        let sq = sq.with_cdw10(2 | 63 << 16);
        assert_eq!(host.status(at(sq, base + 0x4000 - 0x40)), Status::INVALID_PRP_OFFSET.with_dnr());
    }
}

/// A ring pair at multiples of 2 MiB.
fn aligned_ring(host: &mut Host, qid: u16, entries: u32) -> Ring {
    let mut ring = Ring::new(&mut host.device, qid, entries);
    let mut again = |memory: &mut SharedMemory| {
        *memory = SharedMemory::allocate(memory.len()).unwrap();
        host.device.reserve_addresses(None, 1).unwrap();
        host.device.dma_map(&to_function(memory.extent().region())).unwrap()
    };
    ring.sq_base = again(&mut ring.sq);
    ring.cq_base = again(&mut ring.cq);
    ring
}

#[test]
fn memory_pages_of_other_sizes() {
    let mut host = Host::with(loopback(), &PciOptions::new().inline(true).memory_pages(1, 2));
    host.admin = aligned_ring(&mut host, 0, ADMIN);
    assert_eq!((host.cap.mpsmin(), host.cap.mpsmax()), (1, 2));
    let enabled = |host: &mut Host, asq: u64, mps: u8| {
        host.write_admin_registers();
        host.bar.write64(0x28, asq).unwrap();
        host.bar.write32(CC, ControllerConfig(ENABLE).with_mps(mps).0).unwrap();
        let csts = host.csts();
        host.bar.write32(CC, 0).unwrap();
        csts
    };
    let base = host.admin.sq_base;
    assert!(enabled(&mut host, base, 0).cfs(), "below MPSMIN");
    assert!(enabled(&mut host, base, 3).cfs(), "above MPSMAX");
    assert!(enabled(&mut host, base + 0x1000, 1).cfs(), "the ring does not start at a page");
    let ready = ControllerStatus(1);
    assert_eq!((enabled(&mut host, base, 1), enabled(&mut host, base, 2)), (ready, ready));
    // 8 KiB pages: PRP entries count in them, and so does MDTS.
    host.admin = aligned_ring(&mut host, 0, ADMIN);
    host.write_admin_registers();
    host.bar.write32(CC, ControllerConfig(ENABLE).with_mps(1).0).unwrap();
    host.device.reserve_addresses(None, 1).unwrap();
    let data = host.buffer(8);
    assert_eq!(host.status(identify(Cns::CONTROLLER, &data)), Status::SUCCESS);
    let identified = IdentifyController::read_from_bytes(&data.bytes(0, PAGE)).unwrap();
    assert_eq!(
        identified.max_transfer_size(host.cap.min_page_size()),
        Some(1 << 20),
        "1 MiB, in pages of 8 KiB"
    );
    let mut ring = aligned_ring(&mut host, 1, 4);
    let (cq, sq) = (host.create_cq(&ring, None), host.create_sq(&ring));
    assert_eq!((host.status(cq), host.status(sq)), (Status::SUCCESS, Status::SUCCESS));
    let bytes = pattern(16 << 10, 3);
    data.put(0x1000, &bytes[..]);
    // 16 KiB from the middle of the first page on: one page and two halves.
    let list = host.buffer(1);
    list.put(0, &[data.base + 0x2000, data.base + 0x4000].map(u64::to_le_bytes));
    let write = rw(NvmOpcode::WRITE, 1, 0, 32, DataPointer::prp(data.base + 0x1000, list.base));
    assert_eq!(host.io(&mut ring, write), Status::SUCCESS);
    let read = rw(NvmOpcode::READ, 1, 0, 32, DataPointer::prp(data.base, data.base + 0x2000));
    assert_eq!(host.io(&mut ring, read), Status::SUCCESS);
    assert_eq!(data.bytes(0, 16 << 10), bytes);
    let odd = rw(NvmOpcode::READ, 1, 0, 32, DataPointer::prp(data.base, data.base + 0x1000));
    assert_eq!(host.io(&mut ring, odd), Status::INVALID_PRP_OFFSET.with_dnr());
}

#[test]
fn shutdown_takes_its_time_or_for_ever() {
    let delay = Duration::from_millis(30);
    let mut host = Host::offering(PciOptions::new().shutdown_delay(delay));
    let buffer = host.buffer(1);
    assert_eq!(host.status(identify(Cns::CONTROLLER, &buffer)), Status::SUCCESS);
    let data = IdentifyController::read_from_bytes(&buffer.bytes(0, PAGE)).unwrap();
    assert_eq!(data.rtd3e.get(), 30_000);
    let start = Instant::now();
    host.bar.write32(CC, ControllerConfig(ENABLE).with_shn(Shn::NORMAL).0).unwrap();
    while host.csts().shst() == Shst::OCCURRING {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(host.csts().shst(), Shst::COMPLETE);
    assert!(start.elapsed() >= delay);
    host.function.never_shut_down(true);
    assert_eq!(host.csts().shst(), Shst::OCCURRING);
}

#[test]
fn options_out_of_range() {
    let loopback = loopback();
    for options in [
        PciOptions::new().memory_pages(2, 1),
        PciOptions::new().memory_pages(0, 16),
        PciOptions::new().memory_pages(8, 8),
        PciOptions::new().controller_memory(2048),
        PciOptions::new().controller_memory(3 << 20),
        PciOptions::new().controller_memory(2 << 30),
    ] {
        let error = loopback.pci_function_with(NQN, &options).unwrap_err();
        assert!(matches!(error, crate::LoopbackError::OutOfRange { .. }), "{options:?}: {error}");
    }
}

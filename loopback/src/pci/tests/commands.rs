//! Commands and their data.

use super::*;

#[test]
fn data_by_prp_and_by_sgl_is_the_same() {
    let mut host = Host::enabled();
    let mut ring = host.io_queue(1, 16);
    let from = host.buffer(8);
    let to = host.buffer(8);
    let data = pattern(8 * PAGE, 1);
    from.put(0, &data[..]);
    let page = |b: &Buffer, n: usize| b.base + (n * PAGE) as u64;
    // One entry, with an offset; two entries; a list, backwards, that starts inside the first page's page.
    let one = rw(NvmOpcode::WRITE, 1, 0, 2, DataPointer::prp(page(&from, 0) + 512, 0));
    assert_eq!(host.io(&mut ring, one), Status::SUCCESS);
    let two = rw(NvmOpcode::WRITE, 1, 2, 9, DataPointer::prp(page(&from, 0) + 1536, page(&from, 1)));
    assert_eq!(host.io(&mut ring, two), Status::SUCCESS);
    let read = rw(NvmOpcode::READ, 1, 0, 11, DataPointer::prp(page(&to, 0), page(&to, 1)));
    assert_eq!(host.io(&mut ring, read), Status::SUCCESS);
    assert_eq!(to.bytes(0, 11 * 512), data[512..512 + 11 * 512]);

    let list = host.buffer(1);
    list.put(8, &[page(&from, 2).to_le_bytes(), page(&from, 4).to_le_bytes()]);
    let three = rw(NvmOpcode::WRITE, 2, 7, 3, DataPointer::prp(page(&from, 6), list.base + 8));
    assert_eq!(host.io(&mut ring, three), Status::SUCCESS);
    let expected = [6, 2, 4].map(|n| &data[n * PAGE..(n + 1) * PAGE]).concat();
    // Read back through two segments with odd pieces and a hole.
    let block = SglDescriptor::data_block;
    let bucket = SglDescriptor { length: 100.into(), kind: 0x10, ..block(0, 0) };
    let segments = host.buffer(1);
    segments.put(
        0,
        &[
            block(page(&to, 0) + 1, 4999),
            SglDescriptor::segment(segments.base + 256, 32, true, SglSubtype::ADDRESS),
        ],
    );
    segments.put(256, &[bucket, block(page(&to, 3), 3 * PAGE as u32 - 5099)]);
    let mut read = rw(NvmOpcode::READ, 2, 7, 3, DataPointer::default());
    read.set_sgl(SglDescriptor::segment(segments.base, 32, false, SglSubtype::ADDRESS));
    assert_eq!(host.io(&mut ring, read), Status::SUCCESS);
    assert_eq!(to.bytes(1, 4999), expected[..4999]);
    assert_eq!(to.bytes(3 * PAGE, 3 * PAGE - 5099), expected[5099..]);
    // Compare takes data as a write does.
    let mut compare = rw(NvmOpcode::COMPARE, 2, 7, 1, DataPointer::default());
    compare.set_sgl(block(page(&from, 6), PAGE as u32));
    assert_eq!(host.io(&mut ring, compare), Status::SUCCESS);
    compare.set_sgl(block(page(&from, 5), PAGE as u32));
    assert_eq!(host.io(&mut ring, compare), Status::COMPARE_FAILURE);
}

#[test]
fn long_transfers_use_chained_lists() {
    let mut host = Host::enabled();
    let mut ring = host.io_queue(1, 4);
    // 1 MiB is 256 pages; a list that begins 100 entries before the end of its page goes on in the next.
    let (from, to, lists) = (host.buffer(256), host.buffer(256), host.buffer(2));
    let data = pattern(256 * PAGE, 9);
    from.put(0, &data[..]);
    let list = |buffer: &Buffer| {
        let mut entries = (1..256u64).map(|n| buffer.base + n * PAGE as u64);
        let start = PAGE - 800;
        for at in 0..99 {
            lists.put(start + 8 * at, &entries.next().unwrap().to_le_bytes());
        }
        lists.put(PAGE - 8, &(lists.base + PAGE as u64).to_le_bytes());
        for (at, entry) in entries.enumerate() {
            lists.put(PAGE + 8 * at, &entry.to_le_bytes());
        }
        DataPointer::prp(buffer.base, lists.base + start as u64)
    };
    let write = rw(NvmOpcode::WRITE, 2, 0, 256, list(&from));
    assert_eq!(host.io(&mut ring, write), Status::SUCCESS);
    let read = rw(NvmOpcode::READ, 2, 0, 256, list(&to));
    assert_eq!(host.io(&mut ring, read), Status::SUCCESS);
    assert!(to.bytes(0, 256 * PAGE) == data);
    let more = rw(NvmOpcode::READ, 2, 0, 257, DataPointer::default());
    assert_eq!(host.io(&mut ring, more), Status::INVALID_FIELD.with_dnr(), "beyond MDTS");
}

#[test]
fn pointers_that_lead_nowhere() {
    let mut host = Host::enabled();
    let mut ring = host.io_queue(1, 16);
    let buffer = host.buffer(1);
    let read = |prp1, prp2, blocks| rw(NvmOpcode::READ, 2, 0, blocks, DataPointer::prp(prp1, prp2));
    let cases = [
        (read(buffer.base + 2, 0, 1), Status::INVALID_PRP_OFFSET),
        (read(buffer.base, buffer.base + 8, 2), Status::INVALID_PRP_OFFSET),
        (read(buffer.base, buffer.base + 4, 3), Status::INVALID_PRP_OFFSET),
        (read(0, 0, 1), Status::DATA_TRANSFER_ERROR),
        (read(u64::MAX - 3, 0, 1), Status::DATA_TRANSFER_ERROR),
        (read(buffer.base, buffer.base + PAGE as u64, 2), Status::DATA_TRANSFER_ERROR),
        (read(buffer.base, 0x7000, 3), Status::DATA_TRANSFER_ERROR),
        (Sqe { flags: 0x80, ..read(buffer.base, 0, 1) }, Status::INVALID_DATA_SGL_LENGTH),
        (Sqe { flags: 0xc0, ..read(buffer.base, 0, 1) }, Status::INVALID_FIELD),
    ];
    for (sqe, status) in cases {
        assert_eq!(host.io(&mut ring, sqe), status.with_dnr(), "{sqe:?}");
    }
    let mut sgl = read(0, 0, 1);
    sgl.set_sgl(SglDescriptor::data_block(buffer.base, 512));
    assert_eq!(host.io(&mut ring, sgl), Status::INVALID_DATA_SGL_LENGTH.with_dnr());
    sgl.set_sgl(SglDescriptor::transport(PAGE as u32));
    assert_eq!(host.io(&mut ring, sgl), Status::INVALID_SGL_DESCRIPTOR_TYPE.with_dnr());
    let write = Sqe { opcode: NvmOpcode::WRITE.0, ..read(0x1000, 0, 1) };
    assert_eq!(host.io(&mut ring, write), Status::DATA_TRANSFER_ERROR.with_dnr());
    // A region taken back is out of reach at once.
    assert_eq!(host.io(&mut ring, read(buffer.base, 0, 1)), Status::SUCCESS);
    host.device.dma_unmap(buffer.memory.extent().region().id()).unwrap();
    assert_eq!(host.io(&mut ring, read(buffer.base, 0, 1)), Status::DATA_TRANSFER_ERROR.with_dnr());
    assert!(host.csts().rdy(), "none of it is fatal");
}

#[test]
fn metadata_pointers_in_every_form() {
    let namespace = Namespace::memory(8 << 20).block_size(4096).metadata(8, MetadataPlace::Separate);
    let subsystem = SubsystemBuilder::new(NQN).namespace(namespace);
    let loopback = Loopback::builder().subsystem(subsystem).max_io_queues(4).build().unwrap();
    let mut host = Host::with(loopback, &PciOptions::new().inline(true));
    host.enable();
    let mut ring = host.io_queue(1, 16);
    let (data, metadata) = (host.buffer(2), host.buffer(1));
    data.put(0, &[7u8; 2 * PAGE]);
    metadata.put(0, &[1u8; 16]);
    let command = |opcode, flags, mptr: u64| {
        let mut sqe = rw(opcode, 1, 3, 2, DataPointer::prp(data.base, data.base + PAGE as u64));
        if flags != 0 {
            sqe.set_sgl(SglDescriptor::data_block(data.base, 2 * PAGE as u32));
        }
        (sqe.flags, sqe.mptr) = (flags, mptr.into());
        sqe
    };
    assert_eq!(host.io(&mut ring, command(NvmOpcode::WRITE, 0, metadata.base)), Status::SUCCESS);
    // A descriptor in the same page; one that is too short; one that leads to others.
    metadata.put(64, &SglDescriptor::data_block(metadata.base + 1001, 16));
    metadata.put(80, &SglDescriptor::data_block(metadata.base + 1001, 8));
    metadata.put(96, &SglDescriptor::segment(metadata.base + 112, 32, true, SglSubtype::ADDRESS));
    metadata.put(112, &SglDescriptor::data_block(metadata.base + 1200, 9));
    metadata.put(128, &SglDescriptor::data_block(metadata.base + 1300, 7));
    let reads = [
        (0, 256, 256, Status::SUCCESS),
        (0x40, 301, 301, Status::SUCCESS),
        (0x80, 64, 1001, Status::SUCCESS),
        (0x80, 96, 1200, Status::SUCCESS),
        (0, 258, 0, Status::INVALID_FIELD.with_dnr()),
        (0x80, 68, 0, Status::INVALID_SGL_SEGMENT_DESCRIPTOR.with_dnr()),
        (0x80, 80, 0, Status::INVALID_METADATA_SGL_LENGTH.with_dnr()),
        (0, 1 << 30, 0, Status::DATA_TRANSFER_ERROR.with_dnr()),
    ];
    for (flags, at, found, status) in reads {
        let read = command(NvmOpcode::READ, flags, metadata.base + at);
        assert_eq!(host.io(&mut ring, read), status, "{flags:#x} {at}");
        if status.is_success() {
            let len = if found == 1200 { 9 } else { 16 };
            assert_eq!(metadata.bytes(found, len), vec![1; len], "{flags:#x} {at}");
        }
    }
    assert_eq!(metadata.bytes(1300, 8), [1, 1, 1, 1, 1, 1, 1, 0]);
    assert!(host.csts().rdy(), "none of it is fatal");
}

#[test]
fn commands_that_are_not_for_pci() {
    let mut host = Host::enabled();
    let mut ring = host.io_queue(1, 16);
    let get = nvmf_core::spec::fabrics::property_get(0x14, nvmf_core::spec::fabrics::PropertySize::Dword);
    let get = Sqe { flags: 0, ..get };
    assert_eq!(host.status(get), Status::INVALID_OPCODE.with_dnr());
    let fabrics = Sqe { nsid: 1.into(), ..get };
    assert_eq!(host.io(&mut ring, fabrics), Status::INVALID_OPCODE.with_dnr());
    assert_eq!(host.io(&mut ring, Sqe::new(0x93, 1)), Status::INVALID_OPCODE.with_dnr());
    assert_eq!(
        host.io(&mut ring, rw(NvmOpcode::READ, 9, 0, 1, DataPointer::default())),
        Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()
    );
    assert_eq!(host.status(Sqe::admin(AdminOpcode(0x55), 0)), Status::INVALID_OPCODE.with_dnr());
}

#[test]
fn admin_commands_with_data() {
    let mut host = Host::enabled();
    let buffer = host.buffer(2);
    let with = |sqe: Sqe| Sqe { dptr: DataPointer::prp(buffer.base, buffer.base + PAGE as u64), ..sqe };
    // The host identifier is given by Set Features, once.
    let set = Sqe::admin(AdminOpcode::SET_FEATURES, 0)
        .with_cdw10(set_features_cdw10(FeatureId::HOST_IDENTIFIER, false))
        .with_cdw11(1);
    let get = Sqe::admin(AdminOpcode::GET_FEATURES, 0)
        .with_cdw10(get_features_cdw10(FeatureId::HOST_IDENTIFIER, FeatureSelect::CURRENT))
        .with_cdw11(1);
    buffer.put(0, &[7u8; 16]);
    assert_eq!(host.status(with(set)), Status::SUCCESS);
    assert_eq!(host.status(with(set)), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
    buffer.put(0, &[0u8; 16]);
    assert_eq!(host.status(with(get)), Status::SUCCESS);
    assert_eq!(buffer.bytes(0, 16), [7; 16]);
    assert_eq!(host.status(with(get.with_cdw11(0))), Status::SUCCESS, "64 bits of it");
    // Interrupts have features here.
    let vector = |op, cdw11| {
        let cdw10 = FeatureId::INTERRUPT_VECTOR_CONFIG.0.into();
        Sqe::admin(op, 0).with_cdw10(cdw10).with_cdw11(cdw11)
    };
    assert_eq!(host.status(vector(AdminOpcode::SET_FEATURES, 3 | 1 << 16)), Status::SUCCESS);
    assert_eq!(host.admin(vector(AdminOpcode::GET_FEATURES, 3)).dw0, 3 | 1 << 16);
    assert_eq!(host.admin(vector(AdminOpcode::GET_FEATURES, 2)).dw0, 2);
    let effects = with(log_page(LogPageId::COMMAND_EFFECTS, PAGE as u64));
    assert_eq!(host.status(effects), Status::SUCCESS);
    let log = CommandEffectsLog::read_from_bytes(&buffer.bytes(0, PAGE)).unwrap();
    assert_eq!(log.acs[usize::from(AdminOpcode::CREATE_IO_SQ.0)].get() & 1, 1);
    let long = log_page(LogPageId::ERROR_INFORMATION, u64::from(u32::MAX) & !3);
    assert_eq!(host.status(with(long)), Status::INVALID_FIELD.with_dnr());
    // Ranges take as much data as there are ranges.
    let mut ring = host.io_queue(1, 8);
    buffer.put(0, &[DsmRange { nlb: 8.into(), slba: 0.into(), cattr: 0.into() }]);
    let dsm = Sqe::nvm(NvmOpcode::DATASET_MANAGEMENT, 1).with_cdw11(4);
    assert_eq!(host.io(&mut ring, with(dsm)), Status::SUCCESS);
}

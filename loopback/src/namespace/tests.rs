use zerocopy::IntoBytes;

use super::*;

const MAX: u64 = 1 << 20;

fn namespace() -> ActiveNamespace {
    Namespace::memory(1 << 20).block_size(512).open(1).unwrap()
}

fn command(opcode: NvmOpcode, slba: u64, blocks: u32) -> Sqe {
    Sqe::nvm(opcode, 1).with_slba(slba).with_cdw12(blocks - 1)
}

fn read(ns: &ActiveNamespace, slba: u64, blocks: u32) -> Result<Vec<u8>, Status> {
    let mut data = vec![0xee; blocks as usize * 512];
    ns.execute(&command(NvmOpcode::READ, slba, blocks), Data::In(&mut data), MAX, Front::Pci)?;
    Ok(data)
}

fn write(ns: &ActiveNamespace, slba: u64, data: &[u8]) -> Result<(), Status> {
    ns.execute(&command(NvmOpcode::WRITE, slba, data.len() as u32 / 512), Data::Out(data), MAX, Front::Pci)
}

#[test]
fn what_is_written_is_read_compared_and_zeroed() {
    let ns = namespace();
    let data: Vec<u8> = (0..1024u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
    write(&ns, 2046, &data).unwrap();
    assert_eq!(read(&ns, 2046, 2).unwrap(), data);
    ns.execute(&command(NvmOpcode::COMPARE, 2046, 2), Data::Out(&data), MAX, Front::Pci).unwrap();
    let mut other = data.clone();
    other[1023] ^= 1;
    let compared = ns.execute(&command(NvmOpcode::COMPARE, 2046, 2), Data::Out(&other), MAX, Front::Pci);
    assert!(compared.unwrap_err().is(Status::COMPARE_FAILURE));
    ns.execute(&command(NvmOpcode::WRITE_ZEROES, 2047, 1), Data::None, MAX, Front::Pci).unwrap();
    let found = read(&ns, 2046, 2).unwrap();
    assert_eq!(found[..512], data[..512]);
    assert_eq!(found[512..], [0; 512]);
}

#[test]
fn ranges_end_at_the_last_block() {
    let ns = namespace();
    assert!(read(&ns, 2047, 1).is_ok());
    for (slba, blocks) in [(2047, 2), (2048, 1), (u64::MAX, 1), (u64::MAX, 65_536)] {
        let mut data = vec![0; blocks as usize * 512];
        let result =
            ns.execute(&command(NvmOpcode::READ, slba, blocks), Data::In(&mut data), u64::MAX, Front::Pci);
        assert!(result.unwrap_err().is(Status::LBA_OUT_OF_RANGE), "{slba}+{blocks}");
    }
    for opcode in [NvmOpcode::WRITE_ZEROES, NvmOpcode::VERIFY, NvmOpcode::WRITE_UNCORRECTABLE] {
        let result = ns.execute(&command(opcode, 2048, 1), Data::None, MAX, Front::Pci);
        assert!(result.unwrap_err().is(Status::LBA_OUT_OF_RANGE), "{opcode}");
    }
}

#[test]
fn lengths_are_checked() {
    let ns = namespace();
    let mut data = vec![0; 4096];
    let too_long = ns.execute(&command(NvmOpcode::READ, 0, 8), Data::In(&mut data), 2048, Front::Pci);
    assert!(too_long.unwrap_err().is(Status::INVALID_FIELD), "beyond MDTS");
    let wrong = ns.execute(&command(NvmOpcode::READ, 0, 7), Data::In(&mut data), MAX, Front::Pci);
    assert!(wrong.unwrap_err().is(Status::INVALID_DATA_SGL_LENGTH));
    let none = ns.execute(&command(NvmOpcode::WRITE, 0, 1), Data::None, MAX, Front::Pci);
    assert!(none.unwrap_err().is(Status::INVALID_DATA_SGL_LENGTH));
    let superfluous = ns.execute(&command(NvmOpcode::FLUSH, 0, 1), Data::Out(&data), MAX, Front::Pci);
    assert!(superfluous.unwrap_err().is(Status::INVALID_DATA_SGL_LENGTH));
}

#[test]
fn deallocation_zeroes_all_ranges_or_none() {
    let ns = namespace();
    write(&ns, 0, &[7; 4096]).unwrap();
    let range = |slba, nlb| DsmRange { cattr: U32::ZERO, nlb: U32::new(nlb), slba: U64::new(slba) };
    let sqe = Sqe::nvm(NvmOpcode::DATASET_MANAGEMENT, 1).with_cdw10(1).with_cdw11(DSM_DEALLOCATE);
    let outside = [range(0, 1), range(2000, 100)];
    let result = ns.execute(&sqe, Data::Out(outside.as_bytes()), MAX, Front::Pci);
    assert!(result.unwrap_err().is(Status::LBA_OUT_OF_RANGE));
    assert_eq!(read(&ns, 0, 8).unwrap(), [7; 4096]);
    // Linux sends a page of ranges whatever their number.
    let mut page = [range(1, 1), range(3, 2)].as_bytes().to_vec();
    page.resize(4096, 0xff);
    ns.execute(&sqe, Data::Out(&page), MAX, Front::Pci).unwrap();
    let found = read(&ns, 0, 8).unwrap();
    let zeroed: Vec<usize> = (0..8).filter(|i| found[i * 512] == 0).collect();
    assert_eq!(zeroed, [1, 3, 4]);
    let short = ns.execute(&sqe, Data::Out(&page[..31]), MAX, Front::Pci);
    assert!(short.unwrap_err().is(Status::INVALID_DATA_SGL_LENGTH));
}

#[test]
fn uncorrectable_blocks_fail_until_written() {
    let ns = namespace();
    ns.execute(&command(NvmOpcode::WRITE_UNCORRECTABLE, 4, 3), Data::None, MAX, Front::Pci).unwrap();
    assert!(read(&ns, 0, 8).unwrap_err().is(Status::UNRECOVERED_READ_ERROR));
    assert!(read(&ns, 0, 4).is_ok());
    let verify = ns.execute(&command(NvmOpcode::VERIFY, 6, 1), Data::None, MAX, Front::Pci);
    assert!(verify.unwrap_err().is(Status::UNRECOVERED_READ_ERROR));
    write(&ns, 5, &[1; 512]).unwrap();
    assert!(read(&ns, 5, 1).is_ok());
    assert!(read(&ns, 4, 1).is_err() && read(&ns, 6, 1).is_err());
    write(&ns, 4, &[1; 2048]).unwrap();
    assert!(read(&ns, 0, 8).is_ok());
}

#[test]
fn a_read_only_namespace_changes_nothing() {
    let ns = Namespace::memory(1 << 20).read_only().open(1).unwrap();
    assert!(write(&ns, 0, &[1; 512]).unwrap_err().is(Status::NAMESPACE_WRITE_PROTECTED));
    assert_eq!(read(&ns, 0, 1).unwrap(), [0; 512]);
    assert!(ns.identify(MAX, Front::Pci).is_write_protected());
}

#[test]
fn unknown_and_fused_commands_are_refused() {
    let ns = namespace();
    let unknown = ns.execute(&Sqe::new(0x70, 1), Data::None, MAX, Front::Pci);
    assert!(unknown.unwrap_err().is(Status::INVALID_OPCODE));
    let mut fused = command(NvmOpcode::READ, 0, 1);
    fused.flags |= 1;
    let mut data = [0; 512];
    assert!(ns.execute(&fused, Data::In(&mut data), MAX, Front::Pci).unwrap_err().is(Status::INVALID_FIELD));
}

#[test]
fn sizes_are_whole_blocks() {
    assert!(matches!(Namespace::memory(511).open(1), Err(LoopbackError::TooSmall { .. })));
    for size in [0, 256, 513, 131_072] {
        assert!(matches!(
            Namespace::memory(1 << 20).block_size(size).open(1),
            Err(LoopbackError::BlockSize(_))
        ));
    }
    let ns = Namespace::memory(10_000).block_size(4096).open(1).unwrap();
    assert_eq!((ns.blocks(), ns.size()), (2, 8192));
    assert_eq!(ns.identify(MAX, Front::Pci).block_size(), Some(4096));
    ns.resize(16_384).unwrap();
    assert_eq!(ns.identify(MAX, Front::Pci).nsze.get(), 4);
}

#[test]
fn a_file_keeps_its_uuid_and_nothing_else_does() {
    let path = std::env::temp_dir().join(format!("nvmf-uuid-{}", std::process::id()));
    let open = |path: &Path| Namespace::file(path, 1 << 20).open(1).unwrap().uuid;
    let first = open(&path);
    // By another name of the same file, too.
    let detour = std::env::temp_dir().join(".").join(path.file_name().unwrap());
    assert_eq!([open(&path), open(&detour)], [first; 2]);
    let other = path.with_extension("other");
    assert_ne!(open(&other), first);
    assert_eq!((first[6] >> 4, first[8] >> 6), (8, 2));
    assert_eq!(Namespace::file(&path, 0).uuid([7; 16]).open(1).unwrap().uuid, [7; 16]);
    assert_ne!(namespace().uuid, namespace().uuid);
    for path in [path, other] {
        std::fs::remove_file(path).unwrap();
    }
}

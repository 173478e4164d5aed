use std::net::SocketAddr;

use nvmf_core::spec::command::DsmRange;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::*;
use crate::namespace::Namespace;

const MAX: u64 = 1 << 20;
const CHECK: Protection = Protection::NONE.check_guard().check_ref_tag().check_app_tag(7, 0xffff);
const PCI: Front = Front::Pci;

fn tcp() -> Front {
    Front::Tcp(SocketAddr::from(([127, 0, 0, 1], 4420)))
}

fn namespace(size: u16, kind: Option<ProtectionType>, place: MetadataPlace) -> ActiveNamespace {
    let namespace = Namespace::memory(1 << 20).block_size(512).metadata(size, place);
    let namespace = kind.into_iter().fold(namespace, Namespace::protection);
    namespace.open(1).unwrap()
}

fn command(ns: &ActiveNamespace, opcode: NvmOpcode, slba: u64, blocks: u32, p: &Protection) -> Sqe {
    let sqe = Sqe::nvm(opcode, 1).with_slba(slba).with_cdw12(blocks - 1);
    match ns.metadata.and_then(|metadata| metadata.protection) {
        Some(format) => format.apply(sqe, slba, p),
        None => sqe,
    }
}

fn read(
    ns: &ActiveNamespace,
    slba: u64,
    blocks: u32,
    p: &Protection,
    front: Front,
) -> Result<Vec<u8>, Status> {
    let sqe = command(ns, NvmOpcode::READ, slba, blocks, p);
    let (data, metadata) = ns.lengths(&sqe, front);
    let mut bytes = vec![0xee; (data + metadata) as usize];
    ns.execute(&sqe, Data::In(&mut bytes), MAX, front)?;
    Ok(bytes)
}

fn send(
    ns: &ActiveNamespace,
    opcode: NvmOpcode,
    slba: u64,
    blocks: u32,
    p: &Protection,
    bytes: &[u8],
) -> Result<(), Status> {
    let data = if bytes.is_empty() { Data::None } else { Data::Out(bytes) };
    ns.execute(&command(ns, opcode, slba, blocks, p), data, MAX, PCI)
}

fn format(ns: &ActiveNamespace) -> ProtectionFormat {
    ns.metadata.unwrap().protection.unwrap()
}

#[test]
fn every_host_sees_the_same_blocks_in_its_layout() {
    let ns = namespace(8, None, MetadataPlace::Separate);
    // Two blocks of data and then their metadata.
    let bytes = [vec![1; 512], vec![2; 512], vec![3; 8], vec![4; 8]].concat();
    send(&ns, NvmOpcode::WRITE, 10, 2, &Protection::NONE, &bytes).unwrap();
    assert_eq!(read(&ns, 10, 2, &Protection::NONE, PCI).unwrap(), bytes);
    let extended = [vec![1; 512], vec![3; 8], vec![2; 512], vec![4; 8]].concat();
    assert_eq!(read(&ns, 10, 2, &Protection::NONE, tcp()).unwrap(), extended);
    let (pci, fabrics) = (ns.identify(MAX, PCI), ns.identify(MAX, tcp()));
    assert_eq!((pci.is_extended_lba(), fabrics.is_extended_lba()), (false, true));
    assert_eq!((pci.metadata_size(), pci.mc, fabrics.mc), (Some(8), 2, 1));
    assert_eq!(pci.nsze.get(), 2048, "the size is that of the data");
    let ns = namespace(8, None, MetadataPlace::Extended);
    assert!(ns.identify(MAX, PCI).is_extended_lba());
    // The compare looks at metadata that is no protection information.
    send(&ns, NvmOpcode::WRITE, 10, 2, &Protection::NONE, &extended).unwrap();
    send(&ns, NvmOpcode::COMPARE, 10, 2, &Protection::NONE, &extended).unwrap();
    let mut other = extended;
    other[519] ^= 1;
    let compared = send(&ns, NvmOpcode::COMPARE, 10, 2, &Protection::NONE, &other);
    assert!(compared.unwrap_err().is(Status::COMPARE_FAILURE));
    let short = send(&ns, NvmOpcode::WRITE, 10, 2, &Protection::NONE, &other[..1024]);
    assert!(short.unwrap_err().is(Status::INVALID_DATA_SGL_LENGTH));
}

#[test]
fn checks_find_what_is_wrong_with_writes_and_reads() {
    for (kind, place) in [
        (ProtectionType::Type1, MetadataPlace::Extended),
        (ProtectionType::Type2, MetadataPlace::Extended),
        (ProtectionType::Type3, MetadataPlace::Extended),
    ] {
        let ns = namespace(16, Some(kind), place);
        let check = if kind == ProtectionType::Type3 { CHECK.prinfo(0b0110) } else { CHECK };
        let mut good = vec![5; 3 * 528];
        format(&ns).generate_extended(20, &mut good, &check).unwrap();
        send(&ns, NvmOpcode::WRITE, 20, 3, &check, &good).unwrap();
        assert_eq!(read(&ns, 20, 3, &check, PCI).unwrap(), good);
        send(&ns, NvmOpcode::VERIFY, 20, 3, &check, &[]).unwrap();
        // Byte of the second block, and what it makes wrong.
        let wrongs = [
            (100, Status::GUARD_CHECK_ERROR),
            (515, Status::GUARD_CHECK_ERROR),
            (512 + 8, Status::GUARD_CHECK_ERROR),
            (512 + 11, Status::APPLICATION_TAG_CHECK_ERROR),
            (512 + 15, Status::REFERENCE_TAG_CHECK_ERROR),
        ];
        for (at, status) in wrongs {
            let expected = (kind != ProtectionType::Type3 || !status.is(Status::REFERENCE_TAG_CHECK_ERROR))
                .then_some(status);
            let is = |result: Result<(), Status>| match (result, expected) {
                (Ok(()), None) => {}
                (Err(found), Some(status)) => assert!(found.is(status), "{kind:?} {at}: {found}"),
                other => panic!("{kind:?} {at}: {other:?}"),
            };
            let mut wrong = good.clone();
            wrong[528 + at] ^= 1;
            is(send(&ns, NvmOpcode::WRITE, 20, 3, &check, &wrong));
            // Unchecked it is stored; then reading, comparing and verifying find it.
            send(&ns, NvmOpcode::WRITE, 20, 3, &Protection::NONE, &wrong).unwrap();
            is(read(&ns, 20, 3, &check, PCI).map(drop));
            is(send(&ns, NvmOpcode::VERIFY, 20, 3, &check, &[]));
            is(send(&ns, NvmOpcode::COMPARE, 20, 3, &check, &wrong));
            assert_eq!(read(&ns, 20, 3, &Protection::NONE, PCI).unwrap(), wrong);
        }
    }
}

#[test]
fn pract_inserts_and_strips() {
    for (place, first) in [(MetadataPlace::Extended, false), (MetadataPlace::Separate, true)] {
        let ns = Namespace::memory(1 << 20).metadata(8, place).protection(ProtectionType::Type1);
        let ns = if first { ns.protection_first() } else { ns }.open(1).unwrap();
        let pract = CHECK.pract();
        // All of the metadata is protection information: none of it is transferred.
        send(&ns, NvmOpcode::WRITE, 40, 2, &pract, &[6; 1024]).unwrap();
        assert_eq!(read(&ns, 40, 2, &pract, PCI).unwrap(), [6; 1024]);
        let stored = read(&ns, 40, 2, &CHECK, tcp()).unwrap();
        format(&ns).verify_extended(40, &stored, &CHECK).unwrap();
        send(&ns, NvmOpcode::COMPARE, 40, 2, &pract, &[6; 1024]).unwrap();
        assert!(send(&ns, NvmOpcode::COMPARE, 40, 2, &pract, &[7; 1024]).is_err());
        // The reference tag of type 1 is the LBA, and Verify has no action.
        for result in [
            send(&ns, NvmOpcode::WRITE, 40, 2, &pract.ref_tag(41), &[6; 1024]),
            send(&ns, NvmOpcode::VERIFY, 40, 2, &pract, &[]),
        ] {
            assert!(result.unwrap_err().is(Status::INVALID_PROTECTION_INFORMATION));
        }
    }
    // There is other metadata: all of it is transferred, protection information is replaced, and not stripped.
    let ns = namespace(16, Some(ProtectionType::Type2), MetadataPlace::Extended);
    let pract = CHECK.pract().ref_tag(1000);
    let sent = [vec![1; 512], vec![2; 16], vec![3; 512], vec![4; 16]].concat();
    send(&ns, NvmOpcode::WRITE, 0, 2, &pract, &sent).unwrap();
    let found = read(&ns, 0, 2, &pract, PCI).unwrap();
    format(&ns).verify_extended(0, &found, &pract).unwrap();
    assert_eq!((&found[..520], &found[528..528 + 520]), (&sent[..520], &sent[528..528 + 520]));
    assert_eq!(found[520 + 4..528], 1000u32.to_be_bytes());
}

#[test]
fn blocks_that_were_never_written_or_are_deallocated_are_not_checked() {
    let ns = namespace(8, Some(ProtectionType::Type1), MetadataPlace::Extended);
    let fresh = [vec![0; 512], vec![0xff; 8]].concat();
    assert_eq!(read(&ns, 3, 1, &CHECK, PCI).unwrap(), fresh);
    send(&ns, NvmOpcode::WRITE, 3, 1, &CHECK.pract(), &[1; 512]).unwrap();
    let ranges = [DsmRange { cattr: U32::ZERO, nlb: U32::new(1), slba: U64::new(3) }];
    let deallocate = Sqe::nvm(NvmOpcode::DATASET_MANAGEMENT, 1).with_cdw11(1 << 2);
    ns.execute(&deallocate, Data::Out(ranges.as_bytes()), MAX, PCI).unwrap();
    assert_eq!(read(&ns, 3, 1, &CHECK, PCI).unwrap(), fresh);
}

#[test]
fn zeroes_are_written_with_or_without_protection() {
    let ns = namespace(8, Some(ProtectionType::Type1), MetadataPlace::Extended);
    let pract = Protection::NONE.pract().app_tag(7, 0);
    // More than is done at a time.
    send(&ns, NvmOpcode::WRITE_ZEROES, 5, 700, &pract, &[]).unwrap();
    send(&ns, NvmOpcode::VERIFY, 5, 700, &CHECK, &[]).unwrap();
    format(&ns).verify_extended(5, &read(&ns, 5, 700, &CHECK, PCI).unwrap(), &CHECK).unwrap();
    send(&ns, NvmOpcode::WRITE_ZEROES, 600, 1, &Protection::NONE, &[]).unwrap();
    assert_eq!(read(&ns, 600, 1, &Protection::NONE, PCI).unwrap(), [0; 520]);
    let verify = send(&ns, NvmOpcode::VERIFY, 5, 700, &CHECK, &[]);
    assert!(verify.unwrap_err().is(Status::APPLICATION_TAG_CHECK_ERROR));
}

#[test]
fn long_guards_and_odd_sizes_work_alike() {
    for (guard, size) in [(Guard::Crc32c, 16), (Guard::Crc64, 24)] {
        let ns = Namespace::memory(1 << 20).block_size(4096).metadata(size, MetadataPlace::Extended);
        let ns = ns.protection(ProtectionType::Type1).guard(guard).open(1).unwrap();
        let stride = 4096 + usize::from(size);
        let mut good = vec![9; 2 * stride];
        format(&ns).generate_extended(30, &mut good, &CHECK).unwrap();
        send(&ns, NvmOpcode::WRITE, 30, 2, &CHECK, &good).unwrap();
        good[0] ^= 1;
        assert!(send(&ns, NvmOpcode::WRITE, 30, 2, &CHECK, &good).unwrap_err().is(Status::GUARD_CHECK_ERROR));
        assert_eq!(ns.identify_nvm().extended_format(0).unwrap().guard_format(), guard.format());
        assert!(ns.has_extended_format());
    }
}

#[test]
fn files_keep_metadata_and_sizes_are_those_of_data() {
    let path = std::env::temp_dir().join(format!("nvmf-loopback-metadata-{}", std::process::id()));
    let file = |len| {
        Namespace::file(&path, len).metadata(8, MetadataPlace::Extended).protection(ProtectionType::Type1)
    };
    let ns = file(1 << 20).open(1).unwrap();
    assert_eq!((ns.blocks(), ns.size()), (2048, 1 << 20));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 2048 * 520);
    send(&ns, NvmOpcode::WRITE, 2047, 1, &CHECK.pract(), &[1; 512]).unwrap();
    drop(ns);
    let ns = file(0).open(1).unwrap();
    assert_eq!(ns.blocks(), 2048);
    assert_eq!(read(&ns, 2047, 1, &CHECK.pract(), PCI).unwrap(), [1; 512]);
    ns.resize(1 << 19).unwrap();
    assert_eq!((ns.blocks(), std::fs::metadata(&path).unwrap().len()), (1024, 1024 * 520));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_is_not_possible_is_told() {
    let why = |namespace: Namespace| match namespace.open(1) {
        Err(error @ LoopbackError::Metadata(_)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let memory = || Namespace::memory(1 << 20);
    let extended = MetadataPlace::Extended;
    assert!(why(memory().protection(ProtectionType::Type1)).contains("needs metadata"));
    assert!(why(memory().metadata(4, extended).protection(ProtectionType::Type1)).contains("takes 8 bytes"));
    let long = memory().metadata(8, extended).protection(ProtectionType::Type1).guard(Guard::Crc64);
    assert!(why(long).contains("takes 16 bytes"));
    assert!(why(memory().block_size(65_536).metadata(8, extended)).contains("65536"));
    assert!(why(Namespace::null(1 << 20).metadata(8, extended)).contains("keeps nothing"));
}

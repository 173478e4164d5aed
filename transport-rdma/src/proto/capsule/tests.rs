use nvmf_core::spec::NvmOpcode;
use nvmf_core::spec::data_ptr::SglType;
use zerocopy::FromBytes;

use super::*;

const LIMITS: Limits = Limits { in_capsule: 4096, offset: 0, inline_data: true, descriptors: 4, elements: 3 };

fn piece(n: u32, length: u32) -> Piece {
    Piece { address: u64::from(n) << 20, length, local_key: n * 2, remote_key: n * 2 + 1, invalidate: false }
}

fn run(direction: DataDirection, pieces: &[Piece], limits: &Limits) -> (Sqe, Capsule, Vec<u8>) {
    let mut sqe = Sqe::nvm(NvmOpcode::WRITE, 1);
    let mut memory = vec![0; limits.capsule_bytes()];
    let capsule = describe(&mut sqe, direction, pieces, limits, |offset, bytes| {
        memory[offset..offset + bytes.len()].copy_from_slice(bytes);
    });
    (sqe, capsule, memory)
}

use DataDirection::{ControllerToHost, HostToController};

#[test]
fn a_command_without_data_has_an_empty_keyed_descriptor() {
    let (sqe, capsule, _) = run(DataDirection::None, &[], &LIMITS);
    assert_eq!(capsule, Capsule { length: 64, gathers: false });
    let sgl = sqe.dptr.as_sgl();
    assert_eq!((sgl.sgl_type(), sgl.keyed_length(), sgl.key()), (SglType::KEYED_DATA_BLOCK, 0, 0));
    assert_eq!(sqe.flags >> 6, 1, "PSDT: SGL");
}

#[test]
fn small_writes_go_with_the_capsule() {
    let pieces = [piece(1, 4000), piece(2, 96)];
    let (sqe, capsule, _) = run(HostToController, &pieces, &LIMITS);
    assert_eq!(capsule, Capsule { length: 64, gathers: true });
    let sgl = sqe.dptr.as_sgl();
    assert_eq!((sgl.sgl_type(), sgl.subtype()), (SglType::DATA_BLOCK, SglSubtype::OFFSET));
    assert_eq!((sgl.address.get(), sgl.length.get()), (0, 4096));
    let elements: Vec<_> = elements(&pieces).collect();
    assert_eq!(elements[1], Element { address: 2 << 20, length: 96, key: 4 });

    let shifted = Limits { offset: 32, ..LIMITS };
    let (_, capsule, _) = run(HostToController, &pieces, &shifted);
    assert_eq!(capsule, Capsule { length: 96, gathers: true }, "data starts at ICDOFF");
}

#[test]
fn what_does_not_fit_into_the_capsule_is_named_by_key() {
    for (direction, length, limits) in [
        (HostToController, 4097, LIMITS),
        (ControllerToHost, 512, LIMITS),
        (HostToController, 512, Limits { inline_data: false, ..LIMITS }),
        (HostToController, 512, Limits { in_capsule: 0, ..LIMITS }),
        (HostToController, 512, Limits { elements: 1, ..LIMITS }),
    ] {
        let (sqe, capsule, _) = run(direction, &[piece(5, length)], &limits);
        assert_eq!(capsule, Capsule { length: 64, gathers: false }, "{direction:?} {length} {limits:?}");
        let sgl = sqe.dptr.as_sgl();
        assert_eq!((sgl.sgl_type(), sgl.subtype()), (SglType::KEYED_DATA_BLOCK, SglSubtype::ADDRESS));
        assert_eq!((sgl.address.get(), sgl.keyed_length(), sgl.key()), (5 << 20, length, 11));
    }
}

#[test]
fn several_pieces_make_a_list_in_the_capsule() {
    let pieces = [piece(1, 8192), piece(2, 4096), piece(3, MAX_KEYED)];
    let limits = Limits { offset: 16, ..LIMITS };
    let (sqe, capsule, memory) = run(ControllerToHost, &pieces, &limits);
    assert_eq!(capsule, Capsule { length: 64 + 16 + 48, gathers: false });
    let sgl = sqe.dptr.as_sgl();
    assert_eq!((sgl.sgl_type(), sgl.subtype()), (SglType::LAST_SEGMENT, SglSubtype::OFFSET));
    assert_eq!((sgl.address.get(), sgl.length.get()), (0, 48));
    let list: Vec<_> =
        memory[80..128].chunks(16).map(|bytes| SglDescriptor::read_from_bytes(bytes).unwrap()).collect();
    let found: Vec<_> = list.iter().map(|d| (d.address.get(), d.keyed_length(), d.key())).collect();
    assert_eq!(found, [(1 << 20, 8192, 3), (2 << 20, 4096, 5), (3 << 20, MAX_KEYED, 7)]);
}

#[test]
fn more_than_the_controller_takes_does_not_fit() {
    let five: Vec<_> = (1..6).map(|n| piece(n, 4096)).collect();
    assert!(fits(ControllerToHost, &five[..4], &LIMITS));
    assert!(!fits(ControllerToHost, &five, &LIMITS), "MSDBD");
    assert!(
        !fits(ControllerToHost, &five[..2], &Limits { in_capsule: 16, ..LIMITS }),
        "no room for the list"
    );
    let small = [piece(1, 8), piece(2, 8)];
    let one = Limits { descriptors: 1, ..LIMITS };
    assert!(!fits(ControllerToHost, &small, &one));
    assert!(fits(HostToController, &small, &one), "it goes with the capsule");
    assert!(!fits(HostToController, &small, &Limits { elements: 2, ..one }));
}

#[test]
fn neighbours_under_the_same_keys_are_one_piece() {
    let first = piece(1, 4096);
    let next = Piece { address: first.address + 4096, ..first };
    assert!(first.continues_with(&next));
    assert!(!next.continues_with(&first));
    assert!(!first.continues_with(&Piece { remote_key: 9, ..next }));
}

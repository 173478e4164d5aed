use proptest::prelude::*;

use super::*;
use crate::spec::NvmOpcode;

fn format(kind: ProtectionType, guard: Guard) -> ProtectionFormat {
    ProtectionFormat::new(kind, guard, 512, 24).unwrap()
}

const ALL: Protection = Protection::NONE.check_guard().check_ref_tag().check_app_tag(0x1234, 0xffff);

#[test]
fn guards_are_the_published_ones() {
    // The check values of the CRC catalogue for "123456789".
    for (guard, expected) in
        [(Guard::Crc16, 0xd0db), (Guard::Crc32c, 0xe306_9283), (Guard::Crc64, 0xae8b_1486_0a79_9888)]
    {
        let format = ProtectionFormat::new(ProtectionType::Type1, guard, 9, 16).unwrap();
        assert_eq!(format.compute_guard(b"123456789", &[]), expected, "{guard:?}");
        assert_eq!(format.compute_guard(b"12345", b"6789"), expected, "{guard:?}");
    }
}

#[test]
fn layouts_are_those_of_the_specification() {
    let tags = Protection::NONE.app_tag(0x1234, 0).ref_tag(0x0102_0304_0506_0708).storage_tag(0xabcd);
    let generated = |format: ProtectionFormat| {
        let mut metadata = [0xee; 24];
        format.generate(7, &[0; 512], &mut metadata, &tags).unwrap();
        metadata
    };
    // CRC-16 of zeroes is zero.
    let t16 = ProtectionFormat::new(ProtectionType::Type1, Guard::Crc16, 512, 24).unwrap().at_start();
    assert_eq!(generated(t16)[..9], [0, 0, 0x12, 0x34, 5, 6, 7, 8, 0xee]);
    let tagged = generated(t16.with_storage_tag_bits(16).unwrap());
    assert_eq!(tagged[2..9], [0x12, 0x34, 0xab, 0xcd, 7, 8, 0xee]);
    let t32 = ProtectionFormat::new(ProtectionType::Type1, Guard::Crc32c, 512, 24).unwrap().at_start();
    assert_eq!(generated(t32)[4..17], [0x12, 0x34, 0xab, 0xcd, 1, 2, 3, 4, 5, 6, 7, 8, 0xee]);
    let t64 = ProtectionFormat::new(ProtectionType::Type1, Guard::Crc64, 512, 24).unwrap();
    assert_eq!(generated(t64)[16..], [0x12, 0x34, 3, 4, 5, 6, 7, 8]);
    assert_eq!(generated(t64)[..8], [0xee; 8]);
    assert_eq!((t16.position(), t64.position()), (0..8, 8..24));
}

#[test]
fn metadata_before_the_guard_is_covered_and_after_it_is_not() {
    let data = [3; 512];
    for first in [false, true] {
        let format = format(ProtectionType::Type1, Guard::Crc16);
        let format = if first { format.at_start() } else { format };
        let mut metadata = [9; 24];
        format.generate(0, &data, &mut metadata, &ALL).unwrap();
        let other = if first { 8 } else { 0 };
        metadata[other] ^= 1;
        assert_eq!(format.verify(0, &data, &metadata, &ALL).is_ok(), first);
    }
}

#[test]
fn a_mismatch_names_block_field_and_values() {
    let format = format(ProtectionType::Type1, Guard::Crc16);
    let mut blocks = vec![5; 3 * 536];
    format.generate_extended(100, &mut blocks, &ALL).unwrap();
    assert_eq!(format.verify_extended(100, &blocks, &ALL), Ok(()));
    let mismatch = |blocks: &[u8], protection: Protection| {
        let error = format.verify_extended(100, blocks, &protection).unwrap_err();
        let ProtectionError::Mismatch { lba, field, expected, actual } = error else { panic!("{error}") };
        (lba, field, expected, actual)
    };
    // The reference tag of the last block.
    let mut wrong = blocks.clone();
    wrong[3 * 536 - 1] = 9;
    assert_eq!(mismatch(&wrong, ALL), (102, ProtectionField::RefTag, 102, 9));
    let text = format.verify_extended(100, &wrong, &ALL).unwrap_err().to_string();
    assert_eq!(text, "block 102 has the reference tag 0x9, expected 0x66");
    let mut wrong = blocks.clone();
    wrong[536 + 512 + 18] ^= 0x80;
    assert_eq!(mismatch(&wrong, ALL), (101, ProtectionField::AppTag, 0x1234, 0x9234));
    assert_eq!(format.verify_extended(100, &wrong, &ALL.check_app_tag(0x1234, 0x7fff)), Ok(()));
    let mut wrong = blocks.clone();
    wrong[0] ^= 1;
    assert_eq!(mismatch(&wrong, ALL).1, ProtectionField::Guard);
    assert_eq!(format.verify_extended(100, &wrong, &ALL.prinfo(0b0011)), Ok(()), "not asked for");
    // Blocks that moved.
    assert!(format.verify_extended(101, &blocks, &ALL).is_err());
}

#[test]
fn application_tag_ffff_escapes_checks() {
    let tags = Protection::NONE.app_tag(u16::MAX, 0).ref_tag(1);
    for (kind, escapes) in
        [(ProtectionType::Type1, true), (ProtectionType::Type2, true), (ProtectionType::Type3, false)]
    {
        let format = format(kind, Guard::Crc16);
        let mut metadata = [0; 24];
        format.generate(0, &[0; 512], &mut metadata, &tags).unwrap();
        assert_eq!(format.verify(0, &[1; 512], &metadata, &ALL).is_ok(), escapes, "{kind:?}");
        metadata[20..].fill(0xff);
        assert!(format.verify(0, &[1; 512], &metadata, &ALL).is_ok(), "{kind:?}");
    }
}

#[test]
fn type_3_does_not_look_at_the_reference_tag() {
    let format = format(ProtectionType::Type3, Guard::Crc64);
    let mut metadata = [0; 48];
    format.generate(5, &[1; 1024], &mut metadata, &ALL.ref_tag(77)).unwrap();
    assert_eq!((metadata[23], metadata[47]), (77, 77), "it does not count");
    assert_eq!(format.verify(9, &[1; 1024], &metadata, &ALL.ref_tag(78)), Ok(()));
}

#[test]
fn lengths_must_agree() {
    let format = format(ProtectionType::Type1, Guard::Crc16);
    for (data, metadata) in [(512, 48), (1024, 24), (511, 24), (512, 23)] {
        let result = format.verify(0, &vec![0; data], &vec![0; metadata], &ALL);
        assert!(matches!(result, Err(ProtectionError::Length { .. })), "{data} {metadata}");
    }
    assert!(matches!(format.verify_extended(0, &[0; 512], &ALL), Err(ProtectionError::Length { .. })));
    assert!(ProtectionFormat::new(ProtectionType::Type1, Guard::Crc64, 512, 15).is_none());
    assert!(format.with_storage_tag_bits(33).is_none());
}

#[test]
fn commands_carry_it_where_the_specification_says() {
    let slba = 0x1_0000_0010;
    let protection = Protection::NONE.pract().check_ref_tag().check_app_tag(0xbeef, 0x0fff);
    let sqe = Sqe::nvm(NvmOpcode::WRITE, 1).with_cdw12(1 << 30 | 7);
    let of = |format: ProtectionFormat, p: Protection| format.apply(sqe, slba, &p);
    let t16 = of(format(ProtectionType::Type1, Guard::Crc16), protection);
    assert_eq!(t16.cdw12.get(), 1 << 30 | 0b1011 << 26 | 7);
    assert_eq!((t16.cdw15.get(), t16.cdw14.get()), (0x0fff_beef, 0x10));
    assert_eq!((t16.cdw3.get(), t16.cdw2.get()), (0, 0));
    let t64 = of(format(ProtectionType::Type2, Guard::Crc64), protection);
    assert_eq!((t64.cdw14.get(), t64.cdw3.get(), t64.cdw2.get()), (0x10, 1, 0));
    let t32 = of(format(ProtectionType::Type1, Guard::Crc32c), protection.check_storage_tag(0x1_abcd));
    assert_eq!((t32.cdw14.get(), t32.cdw3.get(), t32.cdw2.get()), (0x10, 1, 0xabcd));
    assert_eq!(t32.cdw12.get() >> 24 & 1, 1);
    assert_eq!(of(format(ProtectionType::Type3, Guard::Crc16), protection).cdw14.get(), 0);
}

proptest! {
    #[test]
    fn what_is_generated_verifies_and_what_is_changed_does_not(
        kind in 1u8..=3, pif in 0u8..=2, first: bool, extra in 0u16..9, sts in 0u8..=64, slba: u64, seed: u8,
        ref_tag: Option<u64>, storage: u64, app in 0u16..0xffff, flip in 0usize..1024,
    ) {
        let guard = Guard::of_format(pif).unwrap();
        let size = guard.size() as u16 + extra;
        let format = ProtectionFormat::new(ProtectionType::new(kind).unwrap(), guard, 512, size).unwrap();
        let format = if first { format.at_start() } else { format };
        let format = format.with_storage_tag_bits(sts).unwrap_or(format);
        let mut p = Protection::NONE.check_guard().check_ref_tag().check_app_tag(app, 0xffff).check_storage_tag(storage);
        p.ref_tag = ref_tag;
        let mut data: Vec<u8> = (0..1024u32).map(|i| (i as u8).wrapping_mul(seed)).collect();
        let mut metadata = vec![seed; 2 * usize::from(size)];
        format.generate(slba, &data, &mut metadata, &p).unwrap();
        prop_assert_eq!(format.verify(slba, &data, &metadata, &p), Ok(()));
        // A controller is told the same tags.
        let told = Protection::of_command(&format.apply(Sqe::default(), slba, &p), &format);
        prop_assert_eq!(format.verify(slba, &data, &metadata, &told), Ok(()));
        data[flip] ^= 1;
        let error = format.verify(slba, &data, &metadata, &p).unwrap_err();
        let ProtectionError::Mismatch { lba, field, .. } = error else { panic!("{}", error) };
        prop_assert_eq!((lba, field), (slba.wrapping_add(flip as u64 / 512), ProtectionField::Guard));
    }
}

use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32, U64};

use super::*;
use crate::spec::identify::LbaFormat;

const LIMITS: Limits = Limits { max_transfer: 64 << 10, write_zeroes: None, verify: None };

/// A namespace of 4 KiB blocks with `ms` bytes of metadata, extended or not, DPS, and an extended LBA format.
fn namespace(ms: u16, extended: bool, dps: u8, elbaf: Option<u32>) -> Namespace {
    let mut identify = IdentifyNamespace { nsze: U64::new(1 << 20), dps, ..Default::default() };
    identify.lbaf[0] = LbaFormat { ms: U16::new(ms), lbads: 12, rp: 0 };
    identify.flbas = u8::from(extended) << 4;
    let nvm = elbaf.map(|raw| {
        let mut nvm = IdentifyNamespaceNvm::new_zeroed();
        nvm.elbaf[0] = U32::new(raw);
        Box::new(nvm)
    });
    let info = NamespaceInfo {
        nsid: 1,
        identify: Box::new(identify),
        uuid: None,
        nguid: None,
        eui64: None,
        csi: 0,
        nvm,
    };
    Namespace::new(info, &LIMITS, None).unwrap()
}

const PLAIN: Protection = Protection::NONE;

#[test]
fn protection_is_what_the_format_says() {
    let first = namespace(16, false, 0b1001, None);
    let format = first.protection().unwrap();
    assert_eq!(
        (format.kind(), format.guard(), format.position()),
        (ProtectionType::Type1, Guard::Crc16, 0..8)
    );
    let last = namespace(24, true, 0b0010, Some(2 << 7 | 16));
    let format = last.protection().unwrap();
    assert_eq!(
        (format.kind(), format.guard(), format.position()),
        (ProtectionType::Type2, Guard::Crc64, 8..24)
    );
    assert_eq!((format.storage_tag_bits(), format.ref_tag_bits()), (16, 32));
    // Qualified: PIF says to look at QPIF.
    let qualified = namespace(16, true, 3, Some(1 << 9 | 3 << 7 | 16));
    assert_eq!(qualified.protection().unwrap().guard(), Guard::Crc32c);
    // None, or none that makes sense.
    for (ms, dps, elbaf) in
        [(8, 0, None), (4, 1, None), (8, 1, Some(1 << 7 | 16)), (8, 4, None), (64, 1, Some(9 << 9 | 3 << 7))]
    {
        assert_eq!(namespace(ms, true, dps, elbaf).protection(), None, "{ms} {dps} {elbaf:?}");
    }
}

#[test]
fn lengths_with_and_without_pract() {
    let pract = PLAIN.pract();
    let lengths = |ms, extended, dps, p: &Protection| {
        let ns = namespace(ms, extended, dps, None);
        (ns.data_len(4, p), ns.metadata_len(4, p))
    };
    // Metadata that is nothing but protection information is not transferred with PRACT; any other is.
    assert_eq!(lengths(8, true, 1, &PLAIN), (4 * 4104, 0));
    assert_eq!(lengths(8, true, 1, &pract), (4 * 4096, 0));
    assert_eq!(lengths(8, false, 1, &PLAIN), (4 * 4096, 32));
    assert_eq!(lengths(8, false, 1, &pract), (4 * 4096, 0));
    assert_eq!(lengths(16, true, 1, &pract), (4 * 4112, 0));
    assert_eq!(lengths(16, false, 1, &pract), (4 * 4096, 64));
    assert_eq!(lengths(0, false, 0, &PLAIN), (4 * 4096, 0));
}

#[test]
fn spans_cut_data_and_metadata() {
    let separate = namespace(8, false, 1, None);
    let span = separate.md_span(5, 3 * 4096, 24, &PLAIN).unwrap();
    assert_eq!((span.blocks, span.block_bytes, span.metadata_bytes, span.ref_tag_bits), (3, 4096, 8, 32));
    assert_eq!(span.max_blocks, 16);
    let span = separate.md_span(5, 3 * 4096, 0, &PLAIN.pract()).unwrap();
    assert_eq!((span.blocks, span.metadata_bytes), (3, 0));
    let extended = namespace(8, true, 3, None);
    let span = extended.md_span(5, 3 * 4104, 0, &PLAIN).unwrap();
    assert_eq!((span.blocks, span.block_bytes, span.metadata_bytes, span.ref_tag_bits), (3, 4104, 0, 0));
    assert_eq!(span.max_blocks, 15);
    assert_eq!(extended.md_span(5, 3 * 4096, 0, &PLAIN.pract()).unwrap().blocks, 3);
    assert_eq!(extended.data_span(5, 3 * 4104).unwrap().blocks, 3);
}

#[test]
fn what_does_not_fit_the_format_is_refused_with_the_reason() {
    let refused =
        |ns: &Namespace, len, metadata, p: Protection| ns.md_span(0, len, metadata, &p).unwrap_err();
    let (separate, extended, none) =
        (namespace(8, false, 1, None), namespace(8, true, 3, None), namespace(0, false, 0, None));
    assert!(separate.data_span(0, 4096).unwrap_err().contains("use read_with_md"));
    assert!(refused(&separate, 8192, 8, PLAIN).ends_with("which take 16: it has 8 bytes per block"));
    assert!(refused(&separate, 8192, 0, PLAIN).contains("0 bytes of metadata for 2 blocks of namespace 1"));
    assert!(
        refused(&separate, 4096, 8, PLAIN.pract()).contains("with PRACT its metadata is not transferred")
    );
    assert!(refused(&separate, 4104, 8, PLAIN).contains("not a whole number of 4096-byte"));
    assert!(refused(&extended, 4104, 8, PLAIN).contains("part of each block"));
    assert!(refused(&extended, 4096, 0, PLAIN).contains("not a whole number of 4104-byte"));
    assert!(refused(&none, 4096, 8, PLAIN).contains("it has no metadata"));
    assert!(
        refused(&none, 4096, 0, PLAIN.check_guard()).contains("not formatted with protection information")
    );
    assert!(refused(&extended, 4104, 0, PLAIN.check_ref_tag()).contains("type 3"));
    let verify = |p| separate.protected_block_span(0, 8, true, &p);
    assert!(verify(PLAIN.pract()).unwrap_err().contains("Verify"));
    assert_eq!(verify(PLAIN.check_guard()).unwrap().ref_tag_bits, 32);
}

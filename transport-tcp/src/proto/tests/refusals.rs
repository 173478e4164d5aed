//! Everything a controller may not send.

use nvmf_core::spec::tcp::{FLAG_LAST, FLAG_SUCCESS};

use super::*;

use FatalErrorStatus as Fes;

/// Changes a good ICResp, and expects this.
fn ic_resp_refused(change: impl FnOnce(&mut IcResp), fes: Fes, fei: u32) {
    let terms = Terms::default();
    let mut rig = Rig::new(terms, terms.params());
    let mut resp = terms.ic_resp();
    change(&mut resp);
    let error = rig.connect(resp.as_bytes()).unwrap_err();
    assert_eq!(pdu_error(&error), (fes, fei), "{error}");
    let (sent_fes, sent_fei, data) = rig.terminated();
    assert_eq!((sent_fes, sent_fei), (fes, fei));
    assert_eq!(data, resp.as_bytes()[..data.len()]);
    assert!(rig.connection.process_connect().is_err(), "failed once is failed for good");
    assert!(rig.connection.failure().is_some());
}

#[test]
fn ic_resp_out_of_range() {
    ic_resp_refused(|r| r.pfv = U16::new(1), Fes::UNSUPPORTED_PARAMETER, 8);
    ic_resp_refused(|r| r.cpda = 32, Fes::INVALID_HEADER_FIELD, 10);
    ic_resp_refused(|r| r.digest = 1, Fes::INVALID_HEADER_FIELD, 11);
    ic_resp_refused(|r| r.digest = 2, Fes::INVALID_HEADER_FIELD, 11);
    ic_resp_refused(|r| r.digest = 0x80, Fes::INVALID_HEADER_FIELD, 11);
    ic_resp_refused(|r| r.maxh2cdata = U32::new(4095), Fes::INVALID_HEADER_FIELD, 12);
    ic_resp_refused(|r| r.maxh2cdata = U32::new(0), Fes::INVALID_HEADER_FIELD, 12);
    ic_resp_refused(|r| r.maxh2cdata = U32::new(4098), Fes::INVALID_HEADER_FIELD, 12);
    ic_resp_refused(|r| r.ch.flags = 1, Fes::INVALID_HEADER_FIELD, 1);
    ic_resp_refused(|r| r.ch.hlen = 24, Fes::INVALID_HEADER_FIELD, 2);
    ic_resp_refused(|r| r.ch.plen = U32::new(127), Fes::INVALID_HEADER_FIELD, 4);
    ic_resp_refused(|r| r.ch.plen = U32::new(u32::MAX), Fes::INVALID_HEADER_FIELD, 4);
    ic_resp_refused(|r| r.ch.pdu_type = 0, Fes::INVALID_HEADER_FIELD, 0);
    ic_resp_refused(|r| r.ch.pdu_type = 0x42, Fes::INVALID_HEADER_FIELD, 0);
    ic_resp_refused(|r| r.ch.pdu_type = 5, Fes::PDU_SEQUENCE_ERROR, 0);
}

#[test]
fn digests_asked_for_and_not_granted_are_an_error_that_says_so() {
    let terms = Terms::digests();
    for (granted, missing) in [(0, "header and data digests"), (1, "data digests"), (2, "header digests")] {
        let mut rig = Rig::new(terms, terms.params());
        let error = rig.connect(IcResp { digest: granted, ..terms.ic_resp() }.as_bytes()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
        assert!(error.to_string().contains(missing), "{error}");
    }
}

#[test]
fn ic_resp_out_of_turn() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    let error = rig.feed(terms.ic_resp().as_bytes()).unwrap_err();
    assert_eq!(pdu_error(&error).0, Fes::PDU_SEQUENCE_ERROR);

    let mut early = Connection::new(terms.params());
    early.connect_target()[..128].copy_from_slice(terms.ic_resp().as_bytes());
    early.connect_received(128);
    assert_eq!(pdu_error(&early.process_connect().unwrap_err()).0, Fes::PDU_SEQUENCE_ERROR);
}

#[test]
fn nothing_can_be_submitted_before_the_ic_resp() {
    let terms = Terms::default();
    let mut rig = Rig::new(terms, terms.params());
    let (slot, _) = rig.tracker.begin(0, 0, 0, DataDirection::None).unwrap();
    assert!(rig.connection.submit(slot, &Sqe::default(), &rig.tracker).is_err());
}

/// With a read of 4096 bytes (operation 0), a write of 64 KiB (1), a write whose data went along (2) and a flush (3)
/// outstanding, what `bytes` makes is refused with this status. Without and with digests.
fn refused(bytes: impl Fn(Terms, [u16; 4]) -> Vec<u8>, fes: Fes, fei: Option<u32>) {
    for terms in [Terms::default(), Terms::digests()] {
        let mut rig = Rig::running(terms);
        let cids = [
            rig.read(0, 4096),
            rig.write(1, 65_536),
            rig.write(2, 4096),
            rig.submit(3, NvmOpcode::FLUSH, 0, 1),
        ];
        rig.transmit();
        let bytes = bytes(terms, cids);
        let error = rig.feed(&bytes).unwrap_err();
        let (got_fes, got_fei) = pdu_error(&error);
        assert_eq!(got_fes, fes, "{error}");
        if let Some(fei) = fei {
            assert_eq!(got_fei, fei, "{error}");
        }
        let (sent_fes, sent_fei, data) = rig.terminated();
        assert_eq!((sent_fes, sent_fei), (got_fes, got_fei));
        assert!((8..=128).contains(&data.len()) && bytes.windows(data.len()).any(|window| window == data));
        assert!(
            rig.feed(&terms.response(cids[0], Status::SUCCESS)).is_err(),
            "failed once is failed for good"
        );
        assert_eq!(rig.tracker.completed(), 0);
    }
}

/// The same for errors that are no PDU errors.
fn misbehaved(bytes: impl Fn(Terms, [u16; 4]) -> Vec<u8>, what: &str) {
    for terms in [Terms::default(), Terms::digests()] {
        let mut rig = Rig::running(terms);
        let cids = [
            rig.read(0, 4096),
            rig.write(1, 65_536),
            rig.write(2, 4096),
            rig.submit(3, NvmOpcode::FLUSH, 0, 1),
        ];
        rig.transmit();
        let error = rig.feed(&bytes(terms, cids)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(rig.terminated().0, Fes::PDU_SEQUENCE_ERROR);
    }
}

/// A PDU with one byte of its header changed, and its header digest made right again.
fn with_byte(terms: Terms, mut pdu: Vec<u8>, at: usize, change: impl Fn(u8) -> u8) -> Vec<u8> {
    pdu[at] = change(pdu[at]);
    if terms.header_digest {
        let digest = crc32c(&pdu[..24]);
        pdu[24..28].copy_from_slice(&digest.to_le_bytes());
    }
    pdu
}

const OK: Status = Status::SUCCESS;

#[test]
fn types_a_controller_never_sends() {
    for pdu_type in [0, 2, 4, 6, 8, 10, 0xff] {
        refused(
            move |terms, [read, ..]| with_byte(terms, terms.response(read, OK), 0, |_| pdu_type),
            Fes::INVALID_HEADER_FIELD,
            Some(0),
        );
    }
}

#[test]
fn wrong_flags() {
    // A response has no LAST, no SUCCESS, no data digest; C2HData no reserved flags; digests are as negotiated.
    for flag in [2, 4, 8, 0x80] {
        refused(
            move |terms, [read, ..]| with_byte(terms, terms.response(read, OK), 1, |flags| flags | flag),
            Fes::INVALID_HEADER_FIELD,
            Some(1),
        );
    }
    for flip in [1, 2, 0x10, 0x80] {
        refused(
            move |terms, [read, ..]| {
                with_byte(terms, terms.c2h(read, 0, &[0; 64], 0), 1, |flags| flags ^ flip)
            },
            Fes::INVALID_HEADER_FIELD,
            Some(1),
        );
    }
    refused(
        |terms, [read, ..]| terms.c2h(read, 0, &[0; 4096], FLAG_SUCCESS),
        Fes::INVALID_HEADER_FIELD,
        Some(1),
    );
}

#[test]
fn wrong_lengths() {
    for hlen in [0, 8, 23, 25, 72, 128, 255] {
        refused(
            move |terms, [read, ..]| with_byte(terms, terms.response(read, OK), 2, |_| hlen),
            Fes::INVALID_HEADER_FIELD,
            Some(2),
        );
    }
    for (at, value) in [(4, 0), (4, 23), (4, 25), (4, 32), (5, 1), (7, 0xff)] {
        refused(
            move |terms, [read, ..]| with_byte(terms, terms.response(read, OK), at, |_| value),
            Fes::INVALID_HEADER_FIELD,
            Some(4),
        );
        refused(
            move |terms, [_, write, ..]| with_byte(terms, terms.r2t(write, 0, 0, 64), at, |_| value),
            Fes::INVALID_HEADER_FIELD,
            Some(4),
        );
    }
    // PLEN of C2HData one more and one less than DATAL says, and far too large.
    for (at, delta) in [(4, 1), (4, 0xff), (7, 0xff), (5, 0xff)] {
        refused(
            move |terms, [read, ..]| {
                with_byte(terms, terms.c2h(read, 0, &[0; 600], 0), at, |byte| byte.wrapping_add(delta))
            },
            Fes::INVALID_HEADER_FIELD,
            Some(4),
        );
    }
    // Data that starts inside the header, that is not aligned.
    for pdo in [0, 8, 20, 23, 29, 30, 31] {
        refused(
            move |terms, [read, ..]| with_byte(terms, terms.c2h(read, 0, &[0; 64], 0), 3, |_| pdo),
            Fes::INVALID_HEADER_FIELD,
            Some(3),
        );
    }
    // A termination may be short, but not shorter than its header, nor longer than 152 bytes.
    for plen in [0, 23, 153, 255] {
        refused(
            move |_, _| [&[3, 0, 24, 0, plen, 0, 0, 0][..], &[0; 200]].concat(),
            Fes::INVALID_HEADER_FIELD,
            Some(4),
        );
    }
}

#[test]
fn data_not_aligned_as_asked() {
    let terms = Terms { hpda: 3, ..Terms::default() };
    let mut rig = Rig::running(terms);
    let cid = rig.read(0, 64);
    let pdu = Terms::default().c2h(cid, 0, &[0; 64], FLAG_LAST);
    assert_eq!(pdu_error(&rig.feed(&pdu).unwrap_err()), (Fes::INVALID_HEADER_FIELD, 3));
}

#[test]
fn header_digests_that_do_not_match_are_fatal() {
    let terms = Terms { header_digest: true, ..Terms::default() };
    // Every byte behind the fields that are checked before the digest can be found.
    for at in 8..28 {
        let mut rig = Rig::running(terms);
        let (read, write) = (rig.read(0, 4096), rig.write(1, 65_536));
        for mut pdu in [terms.response(read, OK), terms.c2h(read, 0, &[0; 64], 0), terms.r2t(write, 0, 0, 64)]
        {
            let mut rig = Rig::running(terms);
            rig.read(0, 4096);
            rig.write(1, 65_536);
            pdu[at] ^= 0x40;
            let error = rig.feed(&pdu).unwrap_err();
            let received = u32::from_le_bytes(pdu[24..28].try_into().unwrap());
            assert_eq!(pdu_error(&error), (Fes::HEADER_DIGEST_ERROR, received));
            assert_eq!(rig.terminated(), (Fes::HEADER_DIGEST_ERROR, received, pdu[..24].to_vec()));
        }
    }
}

#[test]
fn commands_that_are_not_outstanding() {
    misbehaved(|terms, _| terms.response(0x7abc, OK), "0x7abc, which is not outstanding");
    misbehaved(|terms, _| terms.response(0xffff, OK), "not outstanding");
    misbehaved(
        |terms, [.., flush]| [terms.response(flush, OK), terms.response(flush, OK)].concat(),
        "not outstanding",
    );
    refused(|terms, _| terms.c2h(0x7abc, 0, &[0; 64], 0), Fes::INVALID_HEADER_FIELD, Some(8));
    refused(|terms, _| terms.r2t(0x7abc, 0, 0, 64), Fes::INVALID_HEADER_FIELD, Some(8));
}

#[test]
fn a_command_that_has_not_left_can_not_complete() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    let cid = rig.submit(0, NvmOpcode::FLUSH, 0, 1);
    rig.transmit_some(71);
    assert!(matches!(rig.feed(&terms.response(cid, OK)).unwrap_err().kind(), ErrorKind::PeerMisbehaved(_)));
}

#[test]
fn data_for_the_wrong_command() {
    refused(|terms, [_, write, ..]| terms.c2h(write, 0, &[0; 64], 0), Fes::INVALID_HEADER_FIELD, Some(8));
    refused(|terms, [.., flush]| terms.c2h(flush, 0, &[0; 64], 0), Fes::INVALID_HEADER_FIELD, Some(8));
    refused(|terms, [read, ..]| terms.r2t(read, 0, 0, 64), Fes::INVALID_HEADER_FIELD, Some(8));
    refused(|terms, [.., flush]| terms.r2t(flush, 0, 0, 64), Fes::INVALID_HEADER_FIELD, Some(8));
    refused(|terms, [_, _, in_capsule, _]| terms.r2t(in_capsule, 0, 0, 64), Fes::PDU_SEQUENCE_ERROR, None);
}

#[test]
fn data_out_of_range() {
    refused(|terms, [read, ..]| terms.c2h(read, 4, &[0; 64], 0), Fes::DATA_OUT_OF_RANGE, None);
    refused(|terms, [read, ..]| terms.c2h(read, u32::MAX, &[0; 64], 0), Fes::DATA_OUT_OF_RANGE, None);
    refused(|terms, [read, ..]| terms.c2h(read, 0, &[0; 4097], FLAG_LAST), Fes::DATA_OUT_OF_RANGE, None);
    let twice =
        |terms: Terms, read| [terms.c2h(read, 0, &[0; 64], 0), terms.c2h(read, 0, &[0; 64], 0)].concat();
    refused(move |terms, [read, ..]| twice(terms, read), Fes::DATA_OUT_OF_RANGE, None);
    let beyond =
        |terms: Terms, read| [terms.c2h(read, 0, &[0; 4096], 0), terms.c2h(read, 4096, &[0; 4], 0)].concat();
    refused(move |terms, [read, ..]| beyond(terms, read), Fes::DATA_OUT_OF_RANGE, None);
    // DATAL so large that the sum of lengths wraps.
    refused(
        |terms, [read, ..]| {
            let pdu = terms.c2h(read, 0, &[0; 64], 0);
            (16..20).fold(pdu, |pdu, at| with_byte(terms, pdu, at, |_| 0xff))
        },
        Fes::DATA_OUT_OF_RANGE,
        None,
    );
    // DATAL zero, in a PDU whose PLEN claims data.
    refused(
        |terms, [read, ..]| with_byte(terms, terms.c2h(read, 0, &[0; 64], 0), 16, |_| 0),
        Fes::INVALID_HEADER_FIELD,
        Some(16),
    );
}

#[test]
fn short_reads_are_never_a_success() {
    misbehaved(|terms, [read, ..]| terms.response(read, OK), "only 0 of 4096 bytes");
    misbehaved(
        |terms, [read, ..]| [terms.c2h(read, 0, &[0; 4092], FLAG_LAST), terms.response(read, OK)].concat(),
        "only 4092 of 4096 bytes",
    );
    refused(
        |terms, [read, ..]| terms.c2h(read, 0, &[0; 4092], FLAG_LAST | FLAG_SUCCESS),
        Fes::PDU_SEQUENCE_ERROR,
        None,
    );
    refused(
        |terms, [read, ..]| {
            [terms.c2h(read, 0, &[0; 64], FLAG_LAST), terms.c2h(read, 64, &[0; 64], 0)].concat()
        },
        Fes::PDU_SEQUENCE_ERROR,
        None,
    );
}

#[test]
fn r2t_out_of_range() {
    refused(|terms, [_, write, ..]| terms.r2t(write, 0, 0, 0), Fes::INVALID_HEADER_FIELD, Some(16));
    refused(|terms, [_, write, ..]| terms.r2t(write, 0, 4, 64), Fes::DATA_OUT_OF_RANGE, None);
    refused(|terms, [_, write, ..]| terms.r2t(write, 0, u32::MAX, 2), Fes::DATA_OUT_OF_RANGE, None);
    refused(|terms, [_, write, ..]| terms.r2t(write, 0, 0, 65_537), Fes::DATA_OUT_OF_RANGE, None);
    refused(|terms, [_, write, ..]| terms.r2t(write, 0, 0, u32::MAX), Fes::DATA_OUT_OF_RANGE, None);
}

#[test]
fn r2t_sum_that_wraps_is_out_of_range() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    let cid = rig.write(0, 65_536);
    rig.feed(&terms.r2t(cid, 1, 0, 4096)).unwrap();
    rig.transmit();
    let error = rig.feed(&terms.r2t(cid, 2, 4096, u32::MAX - 4095)).unwrap_err();
    assert_eq!(pdu_error(&error).0, Fes::DATA_OUT_OF_RANGE);
}

#[test]
fn more_r2ts_than_allowed() {
    for maxr2t_z in [0, 2] {
        let terms = Terms { maxr2t_z, ..Terms::default() };
        let mut rig = Rig::running(terms);
        let cid = rig.write(0, 65_536);
        for n in 0..=maxr2t_z {
            rig.feed(&terms.r2t(cid, 1, n * 64, 64)).unwrap();
        }
        let error = rig.feed(&terms.r2t(cid, 2, (maxr2t_z + 1) * 64, 64)).unwrap_err();
        assert_eq!(pdu_error(&error).0, Fes::R2T_LIMIT_EXCEEDED);
    }
}

#[test]
fn writes_succeed_only_with_all_their_data() {
    misbehaved(|terms, [_, write, ..]| terms.response(write, OK), "before all of its 65536 bytes");
    misbehaved(
        // The whole is asked for, but nothing of it can have been received.
        |terms, [_, write, ..]| [terms.r2t(write, 0, 0, 65_536), terms.response(write, OK)].concat(),
        "before all of its 65536 bytes",
    );
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    let cid = rig.write(0, 65_536);
    rig.feed(&terms.r2t(cid, 0, 0, 32_768)).unwrap();
    rig.transmit();
    assert!(matches!(rig.feed(&terms.response(cid, OK)).unwrap_err().kind(), ErrorKind::PeerMisbehaved(_)));
}

#[test]
fn a_write_whose_capsule_is_half_out_can_not_have_succeeded() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    let cid = rig.submit(0, NvmOpcode::WRITE, 4096, usize::MAX);
    rig.transmit_some(2000);
    let error = rig.feed(&terms.response(cid, OK)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
}

#[test]
fn termination_by_the_controller() {
    for terms in [Terms::default(), Terms::digests()] {
        let mut rig = Rig::running(terms);
        rig.read(0, 4096);
        // Never digested; 24 bytes of header and what it is about.
        let mut term = vec![3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 8, 0, 0, 0];
        term.resize(152, 0);
        let error = rig.feed(&term).unwrap_err();
        let ErrorKind::Terminated { fes, fei } = *error.kind() else { panic!("{error}") };
        assert_eq!((fes, fei), (Fes::INVALID_HEADER_FIELD, 8));
        assert!(!rig.connection.wants_transmit());
    }
}

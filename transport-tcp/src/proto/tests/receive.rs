//! Data and completions arriving.

use nvmf_core::spec::tcp::{FLAG_LAST, FLAG_SUCCESS};

use super::*;

#[test]
fn a_read_arrives_in_several_pdus_and_a_response() {
    for terms in [Terms::default(), Terms::digests(), Terms { hpda: 31, ..Terms::digests() }] {
        let mut rig = Rig::running(terms);
        let cid = rig.read(3, 4096);
        let data = patterned(0, 4096);
        rig.feed(&terms.c2h(cid, 0, &data[..1000], 0)).unwrap();
        rig.feed(&terms.c2h(cid, 1000, &data[1000..], FLAG_LAST)).unwrap();
        assert_eq!(rig.tracker.completed(), 0);
        rig.feed(&terms.response(cid, Status::SUCCESS)).unwrap();
        assert_eq!(rig.completions(), [(3, Status::SUCCESS, data)]);
    }
}

#[test]
fn the_success_flag_completes_without_a_response() {
    let terms = Terms::digests();
    let mut rig = Rig::running(terms);
    let (a, b) = (rig.read(0, 512), rig.read(1, 512));
    let mut bytes = terms.c2h(b, 0, &[2; 512], FLAG_LAST | FLAG_SUCCESS);
    bytes.extend(terms.c2h(a, 0, &[1; 512], FLAG_LAST | FLAG_SUCCESS));
    rig.feed(&bytes).unwrap();
    assert_eq!(rig.completions(), [(1, Status::SUCCESS, vec![2; 512]), (0, Status::SUCCESS, vec![1; 512])]);
}

#[test]
fn an_error_may_come_with_any_amount_of_data() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    for (op, sent) in [(0, 0), (1, 100), (2, 512)] {
        let cid = rig.read(op, 512);
        if sent > 0 {
            rig.feed(&terms.c2h(cid, 0, &patterned(0, sent), FLAG_LAST)).unwrap();
        }
        rig.feed(&terms.response(cid, Status::LBA_OUT_OF_RANGE.with_dnr())).unwrap();
        assert_eq!(rig.completions()[0].1, Status::LBA_OUT_OF_RANGE.with_dnr());
    }
}

#[test]
fn a_damaged_payload_fails_the_command_whatever_the_response_says() {
    let terms = Terms::digests();
    for flags in [FLAG_LAST, FLAG_LAST | FLAG_SUCCESS] {
        let mut rig = Rig::running(terms);
        let cid = rig.read(0, 1024);
        let mut first = terms.c2h(cid, 0, &[1; 512], 0);
        first[100] ^= 0x10;
        rig.feed(&first).unwrap();
        rig.feed(&terms.c2h(cid, 512, &[1; 512], flags)).unwrap();
        if flags & FLAG_SUCCESS == 0 {
            rig.feed(&terms.response(cid, Status::SUCCESS)).unwrap();
        }
        assert_eq!(rig.completions()[0].1, Status::TRANSIENT_TRANSPORT_ERROR);
        // The connection lives on, and so does the slot.
        let cid = rig.read(0, 512);
        rig.feed(&terms.c2h(cid, 0, &[1; 512], FLAG_LAST | FLAG_SUCCESS)).unwrap();
        assert_eq!(rig.completions()[0].1, Status::SUCCESS);
    }
}

#[test]
fn large_payload_lands_in_the_buffer_without_a_copy() {
    for terms in [Terms::default(), Terms::digests()] {
        let mut rig = Rig::running(terms);
        let data = patterned(0, 300_000);
        for (op, piece) in [(0, usize::MAX), (1, 100_000), (2, 4096)] {
            rig.direct = 0;
            let cid = rig.submit(op, NvmOpcode::READ, data.len(), piece);
            rig.transmit();
            let pdu = terms.c2h(cid, 0, &data, FLAG_LAST | FLAG_SUCCESS);
            rig.feed_in(&pdu[..20_000], 20_000).unwrap();
            rig.feed(&pdu[20_000..]).unwrap();
            // All but the first piece, and none when buffers are small.
            let expected = if piece == 4096 { 0..1 } else { 250_000..290_000 };
            assert!(expected.contains(&rig.direct), "{} bytes were received directly", rig.direct);
            assert!(rig.completions() == [(op, Status::SUCCESS, data.clone())]);
        }
    }
}

#[test]
fn damage_in_a_payload_received_directly_is_seen() {
    let terms = Terms::digests();
    let mut rig = Rig::running(terms);
    let cid = rig.read(0, 200_000);
    let mut pdu = terms.c2h(cid, 0, &patterned(0, 200_000), FLAG_LAST | FLAG_SUCCESS);
    pdu[150_000] ^= 1;
    rig.feed_in(&pdu, 50_000).unwrap();
    assert!(rig.direct > 0);
    assert_eq!(rig.completions()[0].1, Status::TRANSIENT_TRANSPORT_ERROR);
}

#[test]
fn a_payload_received_directly_as_a_whole_is_whole() {
    let terms = Terms::digests();
    let mut rig = Rig::running(terms);
    for (op, damage) in [false, true].into_iter().enumerate() {
        for len in [16 * 1024, 100_000] {
            let direct = rig.direct;
            let cid = rig.read(op as u32, len);
            let mut pdu = terms.c2h(cid, 0, &patterned(0, len), FLAG_LAST | FLAG_SUCCESS);
            pdu[5000] ^= u8::from(damage);
            // What is received ends where header and payload do.
            let (header, rest) = pdu.split_at(28);
            for part in [header, &rest[..len], &rest[len..]] {
                rig.feed_in(part, part.len()).unwrap();
            }
            assert_eq!(rig.direct - direct, len);
            let status = if damage { Status::TRANSIENT_TRANSPORT_ERROR } else { Status::SUCCESS };
            assert_eq!(rig.completions()[0].1, status, "{len} bytes");
        }
    }
}

#[test]
fn parsing_stops_at_the_budget_and_goes_on() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    let bytes: Vec<u8> = (0..5)
        .flat_map(|op| {
            let cid = rig.submit(op, NvmOpcode::FLUSH, 0, 1);
            rig.transmit();
            terms.response(cid, Status::SUCCESS)
        })
        .collect();
    let target = rig.connection.recv_target(&mut rig.tracker);
    target.staging[..bytes.len()].copy_from_slice(&bytes);
    rig.connection.received(bytes.len(), &rig.tracker);
    rig.connection.process(&mut rig.tracker, 2).unwrap();
    assert_eq!(rig.completions().len(), 2);
    assert!(rig.connection.is_paused());
    rig.connection.process(&mut rig.tracker, usize::MAX).unwrap();
    assert_eq!(rig.completions().len(), 3);
    assert!(!rig.connection.is_paused());
}

#[test]
fn what_follows_the_ic_resp_at_once_is_not_forgotten() {
    let terms = Terms::default();
    let mut rig = Rig::new(terms, terms.params());
    let term = terms.pdu(PduType::C2H_TERM_REQ, 0, &[6, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None);
    assert!(rig.connect(&[terms.ic_resp().as_bytes(), &term].concat()).unwrap());
    assert!(rig.connection.is_paused(), "nothing will make the socket readable again");
    let error = rig.connection.process(&mut rig.tracker, 1).unwrap_err();
    let expected = (FatalErrorStatus::UNSUPPORTED_PARAMETER, 3);
    assert!(
        matches!(error.kind(), ErrorKind::Terminated { fes, fei } if (*fes, *fei) == expected),
        "{error}"
    );
    assert!(!rig.connection.wants_transmit(), "a termination is not answered by one");
}

#[test]
fn the_situation_is_told_for_the_message() {
    let terms = Terms::default();
    let mut rig = Rig::new(terms, terms.params());
    assert_eq!(rig.connection.situation(), "before it answered the ICReq");
    rig.connect(terms.ic_resp().as_bytes()).unwrap();
    assert_eq!(rig.connection.situation(), "between two PDUs");
    let cid = rig.read(0, 512);
    let pdu = terms.c2h(cid, 0, &[0; 512], FLAG_LAST);
    rig.feed(&pdu[..10]).unwrap();
    assert_eq!(rig.connection.situation(), "in the middle of a PDU header");
    rig.feed(&pdu[10..40]).unwrap();
    assert_eq!(rig.connection.situation(), "in the middle of a C2HData PDU");
}

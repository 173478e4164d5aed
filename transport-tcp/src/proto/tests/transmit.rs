//! Commands and data leaving.

use nvmf_core::spec::data_ptr::SglDescriptor;
use nvmf_core::spec::tcp::{FLAG_LAST, IcReq};
use nvmf_core::spec::{AdminOpcode, fabrics};

use super::*;

#[test]
fn the_ic_req_says_what_is_asked_for() {
    let params =
        ConnectionParams { header_digest: true, hpda: 7, maxr2t_z: 3, ..ConnectionParams::new(0, 4) };
    let connection = Connection::new(params);
    let request = IcReq::read_from_bytes(connection.transmit_staged()).unwrap();
    assert_eq!(request.ch.as_bytes(), [0, 0, 128, 0, 128, 0, 0, 0]);
    assert_eq!((request.pfv.get(), request.hpda, request.digest, request.maxr2t_z.get()), (0, 7, 1, 3));
    assert_eq!(request.reserved, [0; 112]);
}

#[test]
fn commands_carry_their_data_or_say_how_much_it_is() {
    for terms in [
        Terms::default(),
        Terms::digests(),
        Terms { cpda: 31, ..Terms::digests() },
        Terms { cpda: 3, ..Terms::default() },
    ] {
        let mut rig = Rig::running(terms);
        rig.submit(0, NvmOpcode::FLUSH, 0, 1);
        rig.submit(1, NvmOpcode::READ, 100_000, 5000);
        rig.submit(2, NvmOpcode::WRITE, 4096, 1000);
        rig.submit(3, NvmOpcode::WRITE, 4097, usize::MAX);
        let sent = rig.transmit();
        let descriptors: Vec<_> = sent.iter().map(|pdu| pdu.command().dptr.as_sgl()).collect();
        assert_eq!(
            descriptors,
            [
                SglDescriptor::transport(0),
                SglDescriptor::transport(100_000),
                SglDescriptor::in_capsule(0, 4096),
                SglDescriptor::transport(4097)
            ]
        );
        assert!(sent.iter().all(|pdu| pdu.command().flags == 0x40 && pdu.pdu_type == PduType::CAPSULE_CMD));
        assert_eq!(sent[2].data, patterned(0, 4096));
        assert!([0, 1, 3].iter().all(|&index| sent[index].pdo == 0 && sent[index].data.is_empty()));
    }
}

#[test]
fn admin_and_fabrics_commands_have_8192_bytes_in_capsule() {
    let terms = Terms::default();
    let admin = ConnectionParams { in_capsule_io: 0, ..ConnectionParams::new(0, 8) };
    let io = ConnectionParams { in_capsule_io: 0, ..ConnectionParams::new(1, 8) };
    let set_features = Sqe::admin(AdminOpcode::SET_FEATURES, 0);
    let connect = fabrics::connect(1, 31, 0, 0);
    let write = Sqe::nvm(NvmOpcode::WRITE, 1);
    for (params, sqe, len, in_capsule) in [
        (&admin, set_features, 8192, true),
        (&admin, set_features, 8193, false),
        (&io, connect, 1024, true),
        (&io, write, 512, false),
    ] {
        let mut rig = Rig::new(terms, params.clone());
        rig.connect(terms.ic_resp().as_bytes()).unwrap();
        rig.tracker.put_buf(0, rig.pool.alloc(len).unwrap().into());
        let (slot, _) = rig.tracker.begin(0, 0, len as u32, DataDirection::HostToController).unwrap();
        rig.connection.submit(slot, &sqe, &rig.tracker).unwrap();
        assert_eq!(rig.transmit()[0].data.len(), if in_capsule { len } else { 0 });
    }
}

#[test]
fn large_data_in_a_capsule_is_not_copied() {
    let terms = Terms { cpda: 31, ..Terms::digests() };
    let mut rig = Rig::new(terms, ConnectionParams { in_capsule_io: 65_536, ..terms.params() });
    rig.connect(terms.ic_resp().as_bytes()).unwrap();
    let cid = rig.submit(0, NvmOpcode::WRITE, 50_000, 9000);
    let slot = rig.tracker.lookup(cid).unwrap();
    let own = rig.tracker.chunk(slot, 0).as_ptr();
    let mut slices = [IoSlice::new(&[]); 16];
    let count = rig.connection.transmit_slices(&rig.tracker, usize::MAX, &mut slices);
    assert_eq!(count, 8, "header, six buffers, digest");
    assert_eq!(slices[1].as_ptr(), own);
    let whole: Vec<usize> = slices[..count].iter().map(|slice| slice.len()).collect();
    for most in [1, whole[0], whole[0] + 1, whole[0] + 9000, whole[0] + 9001] {
        let count = rig.connection.transmit_slices(&rig.tracker, most, &mut slices);
        assert_eq!(slices[..count].iter().map(|slice| slice.len()).sum::<usize>(), most);
    }
    assert_eq!(rig.transmit()[0].data, patterned(0, 50_000));
}

#[test]
fn r2ts_are_answered_in_chunks_of_maxh2cdata() {
    for (terms, piece) in [
        (Terms::default(), usize::MAX),
        (Terms::digests(), 5000),
        (Terms { cpda: 31, maxr2t_z: 1, ..Terms::digests() }, 10_000),
        (Terms { cpda: 1, ..Terms::default() }, 64),
    ] {
        let mut rig = Rig::running(terms);
        let len = 100_000;
        let cid = rig.submit(5, NvmOpcode::WRITE, len, piece);
        rig.transmit();
        let mut covered = 0;
        for (ttag, wanted) in [(0x1111, 40_000), (0x2222, 1), (0x3333, 59_999)] {
            rig.feed(&terms.r2t(cid, ttag, covered, wanted)).unwrap();
            let sent = rig.transmit();
            assert_eq!(sent.len(), wanted.div_ceil(MAXH2CDATA) as usize);
            let end = covered + wanted;
            for pdu in &sent {
                let header = pdu.data_pdu();
                assert_eq!(pdu.pdu_type, PduType::H2C_DATA);
                assert_eq!((header.cccid.get(), header.ttag.get()), (cid, ttag));
                assert_eq!((header.datao.get(), header.datal.get() as usize), (covered, pdu.data.len()));
                assert!(pdu.data.len() <= MAXH2CDATA as usize);
                assert_eq!(pdu.data, patterned(covered as usize, pdu.data.len()));
                covered += header.datal.get();
                assert_eq!(pdu.flags & FLAG_LAST != 0, covered == end, "LAST ends the R2T");
            }
            assert_eq!(covered, end);
        }
        rig.feed(&terms.response(cid, Status::SUCCESS)).unwrap();
        assert_eq!(rig.completions()[0].1, Status::SUCCESS);
    }
}

#[test]
fn what_is_queued_for_r2ts_stays_bounded() {
    let terms = Terms::default();
    // Small PDUs are copied into one slice, large ones make two each.
    for (maxh2cdata, most_slices, enough) in [(4096, 1, SEND_MAX), (16_384, 70, 512 << 10)] {
        let mut rig = Rig::new(terms, terms.params());
        rig.connect(IcResp { maxh2cdata: U32::new(maxh2cdata), ..terms.ic_resp() }.as_bytes()).unwrap();
        let len = 4 << 20;
        let cids: Vec<u16> = (0..4).map(|op| rig.write(op, len)).collect();
        for &cid in &cids {
            rig.feed(&terms.r2t(cid, 0, 0, len as u32)).unwrap();
        }
        rig.connection.fill(&rig.tracker).unwrap();
        let mut slices = vec![IoSlice::new(&[]); 10_000];
        let count = rig.connection.transmit_slices(&rig.tracker, usize::MAX, &mut slices);
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        // What a send takes is queued, and one PDU and the commands beyond it.
        let enough = enough..enough + 32_768;
        assert!(count <= most_slices && enough.contains(&bytes), "{count} slices, {bytes} bytes are queued");
        let total: usize = rig.transmit().iter().map(|pdu| pdu.data.len()).sum();
        assert_eq!(total, 4 * len);
        for cid in cids {
            rig.feed(&terms.response(cid, Status::SUCCESS)).unwrap();
        }
        assert_eq!(rig.completions().len(), 4);
    }
}

#[test]
fn an_early_failure_waits_for_bytes_that_are_on_their_way() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    let cid = rig.write(0, 65_536);
    rig.feed(&terms.r2t(cid, 0, 0, 65_536)).unwrap();
    // The first PDU is half out when the controller gives up.
    rig.connection.fill(&rig.tracker).unwrap();
    let mut stream = rig.transmit_some(10_000);
    rig.feed(&terms.response(cid, Status::NAMESPACE_NOT_READY)).unwrap();
    assert_eq!(rig.tracker.completed(), 0, "its buffer is still being read");
    let error = rig.feed(&terms.response(cid, Status::NAMESPACE_NOT_READY)).unwrap_err();
    assert!(error.to_string().contains("not outstanding"), "it is completed all the same: {error}");

    let mut rig = Rig::running(terms);
    let cid = rig.write(0, 4 << 20);
    rig.feed(&terms.r2t(cid, 0, 0, 4 << 20)).unwrap();
    rig.connection.fill(&rig.tracker).unwrap();
    stream.clear();
    stream.extend(rig.transmit_some(10_000));
    rig.feed(&terms.response(cid, Status::NAMESPACE_NOT_READY)).unwrap();
    // Other commands go on, and framing is kept.
    let next = rig.submit(1, NvmOpcode::FLUSH, 0, 1);
    stream.extend(rig.transmit_some(usize::MAX));
    rig.connection.release_held(&mut rig.tracker);
    assert_eq!(rig.completions()[0].1, Status::NAMESPACE_NOT_READY);
    let sent = dissect(terms, &stream);
    assert_eq!(sent.last().unwrap().command().cid.get(), next);
    let data: usize = sent.iter().map(|pdu| pdu.data.len()).sum();
    assert!(data < 2 << 20, "{data} bytes were sent although nobody wants them");
    rig.feed(&terms.response(next, Status::SUCCESS)).unwrap();
}

#[test]
fn several_r2ts_of_several_commands_are_served() {
    let terms = Terms { maxr2t_z: 1, ..Terms::default() };
    let mut rig = Rig::running(terms);
    let (a, b) = (rig.write(0, 50_000), rig.write(1, 50_000));
    for (cid, ttag, offset) in [(a, 1, 0), (b, 2, 0), (a, 3, 25_000), (b, 4, 25_000)] {
        rig.feed(&terms.r2t(cid, ttag, offset, 25_000)).unwrap();
    }
    let sent = rig.transmit();
    for cid in [a, b] {
        let data: Vec<u8> = sent
            .iter()
            .filter(|pdu| pdu.data_pdu().cccid.get() == cid)
            .flat_map(|pdu| pdu.data.clone())
            .collect();
        assert!(data == patterned(0, 50_000));
        rig.feed(&terms.response(cid, Status::SUCCESS)).unwrap();
    }
    assert_eq!(rig.completions().len(), 2);
}

#[test]
fn a_short_buffer_is_an_error_not_a_hang() {
    let terms = Terms::default();
    let mut rig = Rig::running(terms);
    rig.tracker.put_buf(0, rig.pool.alloc(100).unwrap().into());
    let (slot, _) = rig.tracker.begin(0, 0, 512, DataDirection::HostToController).unwrap();
    let error = rig.connection.submit(slot, &Sqe::nvm(NvmOpcode::WRITE, 1), &rig.tracker).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ApiMisuse(_)));
}

/// A connection on which writes of [`PIECE`] bytes take their data along.
fn rig_for_pieces() -> Rig {
    let terms = Terms::default();
    let mut rig = Rig::new(terms, ConnectionParams { in_capsule_io: PIECE as u32, ..terms.params() });
    assert!(rig.connect(terms.ic_resp().as_bytes()).unwrap());
    rig
}

const PIECE: usize = 16 << 10;

/// Submits these writes. Returns after which of them something is due, and their command identifiers.
fn submit_pieces<const N: usize>(rig: &mut Rig, ops: [u32; N]) -> ([bool; N], Vec<u16>) {
    let mut cids = Vec::new();
    let due = ops.map(|op| {
        cids.push(rig.submit(op, NvmOpcode::WRITE, PIECE, usize::MAX));
        rig.connection.take_due()
    });
    (due, cids)
}

fn answer(rig: &mut Rig, cids: &[u16]) {
    for &cid in cids {
        rig.feed(&Terms::default().response(cid, Status::SUCCESS)).unwrap();
    }
    assert_eq!(rig.completions().len(), cids.len());
}

#[test]
fn much_data_is_due_before_the_batch_is_complete_if_the_controller_has_nothing_to_do() {
    let mut rig = rig_for_pieces();
    let (due, mut cids) = submit_pieces(&mut rig, [0, 1, 2, 3, 4, 5]);
    assert_eq!(due, [false, false, true, false, false, false], "once of a batch");
    rig.transmit();
    let (due, more) = submit_pieces(&mut rig, [6, 7]);
    assert_eq!(due, [false; 2], "it is busy with six");
    cids.extend(more);
    rig.transmit();
    answer(&mut rig, &cids);
    let (due, _) = submit_pieces(&mut rig, [0, 1, 2]);
    assert_eq!(due, [false, false, true]);
}

#[test]
fn much_data_is_due_in_parts_while_the_host_waits_for_the_controller() {
    let mut rig = rig_for_pieces();
    let (_, cids) = submit_pieces(&mut rig, [0]);
    rig.transmit();
    rig.connection.received_nothing();
    let (due, more) = submit_pieces(&mut rig, [1, 2, 3, 4, 5, 6]);
    assert_eq!(
        due,
        [false, false, true, false, false, true],
        "of each part once, also when it could not leave"
    );
    rig.transmit();
    // Answers that are there whenever it looks: it is the host that is behind.
    answer(&mut rig, &cids);
    for &cid in &more[..3] {
        answer(&mut rig, &[cid]);
    }
    let (due, _) = submit_pieces(&mut rig, [0, 1, 2, 3]);
    assert_eq!(due, [false; 4]);
}

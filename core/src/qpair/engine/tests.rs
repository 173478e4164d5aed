//! The engine against a transport that does what the test says.

mod fake;
mod interleavings;
mod renewal;

use std::collections::HashMap;

use fake::*;

use super::*;
use crate::ErrorKind;
use crate::dma::{DmaBuf, DmaPool};
use crate::spec::Status;
use crate::spec::command::NvmOpcode;
use crate::spec::fabrics;

// --- connecting ----------------------------------------------------------------------------------------------------------

#[test]
fn nothing_is_issued_before_the_connection_is_there() {
    let mut bench = Bench::fabrics(4, 8);
    assert!(matches!(bench.connect(), Ok(Connecting::Pending)));
    bench.read(0, 1, 8, 1);
    bench.read(8, 1, 8, 2);
    assert!(bench.poll().is_empty());
    bench.fake.wire().connect = ConnectProgress::Established;
    assert!(matches!(bench.connect(), Ok(Connecting::Pending)));
    {
        let wire = bench.fake.wire();
        assert_eq!((wire.taken.len(), wire.unflushed), (1, 0), "Connect and nothing else");
        assert_eq!((wire.taken[0].opcode, wire.taken[0].fctype()), (0x7f, 1));
    }
    bench.read(16, 1, 8, 3);
    bench.answer(0, Status::SUCCESS);
    let Ok(Connecting::Ready(Some(cqe))) = bench.connect() else { panic!("connected") };
    assert_eq!(cqe.result64(), 0x0123_4567_89ab_cdef);
    assert_eq!(bench.pieces(), [(0, 1), (8, 1), (16, 1)], "in the order of submission");
    assert_eq!(bench.fake.wire().unflushed, 0);
    bench.answer_all();
    assert_eq!(user_data(&bench.poll()), [1, 2, 3]);
    assert!(matches!(bench.connect(), Ok(Connecting::Ready(Some(_)))), "asking again is harmless");
    assert_eq!(bench.pool.stats().outstanding, 0, "the data of Connect as well");
}

#[test]
fn a_full_queue_does_not_keep_it_from_connecting() {
    let mut bench = Bench::fabrics(1, 4);
    let mut accepted = 0;
    while bench.engine.submit(bench.request(NvmOpcode::READ, accepted, 1, 8, accepted)).is_ok() {
        accepted += 1;
    }
    assert_eq!((accepted, bench.engine.outstanding()), (4, 4));
    bench.fake.wire().connect = ConnectProgress::Established;
    assert!(matches!(bench.connect(), Ok(Connecting::Pending)));
    bench.answer_all();
    assert!(matches!(bench.connect(), Ok(Connecting::Ready(Some(_)))));
    for expected in 0..4 {
        bench.answer_all();
        assert_eq!(user_data(&bench.poll()), [expected]);
    }
    assert_eq!(bench.engine.stats().completed, 4);
    assert_eq!(bench.engine.stats().submitted, 4);
    // Connecting took none of the room the caller has.
    for accepted in 0..4 {
        bench.read(accepted, 1, 8, accepted);
    }
    assert!(bench.engine.submit(bench.request(NvmOpcode::READ, 0, 1, 8, 0)).is_err());
}

#[test]
fn a_refused_fabrics_connect_is_reported_and_issues_nothing() {
    let mut bench = Bench::fabrics(4, 4);
    bench.read(0, 1, 8, 7);
    bench.fake.wire().connect = ConnectProgress::Established;
    bench.connect().unwrap();
    bench.answer(0, Status::CONNECT_INVALID_HOST);
    let Ok(Connecting::Ready(Some(cqe))) = bench.connect() else { panic!("the completion is given out") };
    assert_eq!(cqe.status(), Status::CONNECT_INVALID_HOST);
    assert_eq!(bench.held(), 0);
    // What the owner does with it: give up.
    bench.engine.fail(broken(), CommandError::Disconnected, clock());
    let (done, _) = bench.drain();
    assert_eq!(user_data(&done), [7]);
    assert_eq!(done[0].result, Err(CommandError::NotSent));
}

#[test]
fn connecting_that_takes_too_long_fails_and_completes_what_waited() {
    for fabrics_connect in [false, true] {
        let mut bench = Bench::fabrics(4, 4);
        bench.read(0, 1, 8, 0);
        if fabrics_connect {
            bench.fake.wire().connect = ConnectProgress::Established;
        }
        assert!(matches!(bench.connect(), Ok(Connecting::Pending)));
        advance(Duration::from_millis(4999));
        assert!(matches!(bench.connect(), Ok(Connecting::Pending)));
        advance(Duration::from_millis(1));
        let error = bench.connect().unwrap_err();
        let what =
            if fabrics_connect { "the response to Fabrics Connect" } else { "the transport connection" };
        assert_eq!(error.to_string(), format!("no answer within 5s while waiting for {what}"));
        assert_eq!(bench.fake.wire().disconnects, 1);
        let (done, told) = bench.drain();
        assert_eq!(done.len(), 1, "Connect itself is no operation of the caller's");
        assert_eq!(told.to_string(), error.to_string());
        drop(done);
        assert_eq!(bench.pool.stats().outstanding, 0);
    }
}

#[test]
fn a_connection_that_fails_is_not_tried_again() {
    let mut bench = Bench::connecting(4, 4, None);
    bench.fake.wire().fail_poll = true;
    assert_eq!(bench.connect().unwrap_err().to_string(), broken().to_string());
    bench.fake.wire().fail_poll = false;
    bench.fake.wire().connect = ConnectProgress::Established;
    assert!(bench.connect().is_err());
    assert!(bench.engine.submit(bench.request(NvmOpcode::READ, 0, 1, 8, 0)).is_err());
}

#[test]
fn a_command_for_the_admin_queue_is_handed_out() {
    let mut bench = Bench::connecting(4, 4, None);
    bench.fake.wire().connect = ConnectProgress::Admin(Sqe::new(5, 0));
    assert!(matches!(bench.connect(), Ok(Connecting::Admin(sqe)) if sqe.opcode == 5));
    bench.engine.admin_completed(&Cqe::default(), clock()).unwrap();
    bench.fake.wire().connect = ConnectProgress::Established;
    assert!(matches!(bench.connect(), Ok(Connecting::Ready(None))));
}

// --- submitting and completing ---------------------------------------------------------------------------------------------

#[test]
fn a_completion_carries_result_and_buffer_of_its_own_operation() {
    let mut bench = Bench::new(4, 4);
    let requests: Vec<Request> =
        (0..4).map(|n| bench.request(NvmOpcode::READ, n * 10, 2, 8, 100 + n)).collect();
    let mut expected = HashMap::new();
    for request in requests {
        let (user_data, address) = (request.user_data, request.buf.bufs()[0].as_ptr().addr());
        let id = bench.submit(request);
        expected.insert(id, (user_data, address));
    }
    for index in [2, 0, 1, 0] {
        bench.answer(index, Status::SUCCESS);
        let done = bench.poll();
        let [done] = &done[..] else { panic!("one completion at a time") };
        let (user_data, address) = expected.remove(&done.id).expect("completes once");
        assert_eq!((done.user_data, done.result), (user_data, Ok(0x0123_4567_89ab_cdef)));
        let data = &done.buf.bufs()[0];
        assert_eq!(data.as_ptr().addr(), address);
        let slba = (user_data - 100) * 10;
        assert!(
            data[..512].iter().all(|&b| b == slba as u8) && data[512..].iter().all(|&b| b == slba as u8 + 1)
        );
    }
    assert!(expected.is_empty());
}

#[test]
fn a_full_queue_returns_the_buffer() {
    let mut bench = Bench::new(2, 3);
    for n in 0..3 {
        bench.read(n, 1, 8, n);
    }
    let request = bench.request(NvmOpcode::READ, 9, 1, 8, 9);
    let address = request.buf.bufs()[0].as_ptr().addr();
    let (error, buf) = bench.engine.submit(request).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Exhausted(_)));
    assert_eq!(one(buf).as_ptr().addr(), address);
    bench.answer(0, Status::SUCCESS);
    assert_eq!(bench.poll().len(), 1);
    bench.read(9, 1, 8, 9);
}

#[test]
fn commands_that_make_no_sense_return_the_buffer() {
    let mut bench = Bench::new(2, 3);
    let buf = bench.pool.alloc(8).unwrap().into();
    let request = Request { sqe: Sqe::new(3, 1), span: None, buf, user_data: 0, timeout: Timeout::default() };
    let (error, buf) = bench.engine.submit(request).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)));
    assert_eq!(buf.len(), 8);
    assert_eq!(bench.engine.outstanding(), 0);
}

#[test]
fn what_waits_for_a_slot_is_issued_in_order() {
    let mut bench = Bench::new(2, 8);
    for n in 0..6 {
        bench.read(n, 1, 8, n);
    }
    assert_eq!(bench.pieces(), [(0, 1), (1, 1)]);
    bench.answer(1, Status::SUCCESS);
    assert_eq!(user_data(&bench.poll()), [1]);
    assert_eq!(bench.pieces(), [(0, 1), (2, 1)]);
    // A slot is free, but there are older ones.
    bench.answer_all();
    bench.read(6, 1, 8, 6);
    assert_eq!(bench.held(), 2);
    bench.poll();
    assert_eq!(bench.pieces(), [(3, 1), (4, 1)]);
    bench.answer_all();
    bench.poll();
    assert_eq!(bench.pieces(), [(5, 1), (6, 1)]);
    assert_eq!(bench.engine.stats().queued, 5);
}

#[test]
fn a_large_operation_is_overtaken_by_none_and_starves_none() {
    let mut bench = Bench::new(2, 8);
    bench.read(0, 64, 8, 0);
    bench.read(1000, 1, 8, 1);
    let mut order = Vec::new();
    let mut done = Vec::new();
    while bench.held() > 0 {
        order.extend(bench.pieces());
        bench.answer(0, Status::SUCCESS);
        done.extend(bench.poll());
        // A stream of others does not get in front.
        if bench.engine.outstanding() < 8 && order.len() < 20 {
            bench.read(2000, 1, 8, 2);
        }
    }
    order.dedup();
    let first = |slba| order.iter().position(|&(s, _)| s == slba).unwrap();
    assert!(first(1000) < first(2000));
    assert!(order.contains(&(56, 8)));
    assert_eq!(done.iter().filter(|d| d.user_data == 0).count(), 1);
    assert_eq!(done.iter().filter(|d| d.user_data == 1).count(), 1);
}

#[test]
fn a_cut_operation_completes_once_with_all_of_its_data() {
    let mut bench = Bench::new(3, 2);
    let mut request = bench.request(NvmOpcode::READ, 5, 40, 8, 1);
    request.span = request.span.map(|span| Span { boundary: 16, ..span });
    bench.submit(request);
    assert_eq!(bench.pieces(), [(5, 8), (13, 3), (16, 8)], "limit, boundary, limit");
    let mut done = Vec::new();
    for _ in 0..20 {
        // Last one first.
        if bench.held() > 0 {
            bench.answer(bench.held() - 1, Status::SUCCESS);
        }
        done.extend(bench.poll());
    }
    let [done]: [Done; 1] = done.try_into().expect("one completion");
    let data = one(done.buf);
    for (n, block) in data.chunks(512).enumerate() {
        assert!(block.iter().all(|&b| b == n as u8 + 5), "block {n}");
    }
    let stats = bench.engine.stats();
    assert_eq!((stats.submitted, stats.commands, stats.completed), (1, 6, 1));
    assert_eq!(stats.bytes, 40 * 512);
}

#[test]
fn vectored_data_is_cut_across_its_buffers() {
    let mut bench = Bench::new(4, 2);
    let bufs = vec![bench.pool.alloc(700).unwrap(), bench.pool.alloc(4096 - 700).unwrap()];
    let mut request = bench.request(NvmOpcode::READ, 0, 8, 3, 1);
    request.buf = bufs.into();
    bench.submit(request);
    bench.answer_all();
    let done = bench.poll().remove(0);
    let data: Vec<u8> = done.buf.bufs().iter().flat_map(|buf| buf.to_vec()).collect();
    let expected: Vec<u8> = (0..8u8).flat_map(|n| [n; 512]).collect();
    assert_eq!(data, expected);
}

#[test]
fn data_in_more_buffers_than_a_command_may_have_is_cut_at_their_bounds() {
    let mut bench = Bench::new(8, 4);
    bench.engine.set_max_segments(2);
    let bufs = |bench: &Bench, lens: &[usize]| -> IoBuf {
        lens.iter().map(|&len| bench.pool.alloc(len).unwrap()).collect::<Vec<_>>().into()
    };
    let mut request = bench.request(NvmOpcode::READ, 0, 8, 8, 1);
    // 8 blocks in buffers of 1, 1, half, half and 5 blocks.
    request.buf = bufs(&bench, &[512, 512, 256, 256, 2560]);
    bench.submit(request);
    assert_eq!(bench.pieces(), [(0, 2), (2, 1), (3, 5)]);
    bench.answer_all();
    let done = bench.poll().remove(0);
    let data: Vec<u8> = done.buf.bufs().iter().flat_map(|buf| buf.to_vec()).collect();
    assert_eq!(data, (0..8u8).flat_map(|n| [n; 512]).collect::<Vec<u8>>());
    // A block in three pieces cannot be transferred.
    let mut request = bench.request(NvmOpcode::READ, 0, 1, 8, 2);
    request.buf = bufs(&bench, &[100, 100, 312]);
    let (error, buf) = bench.engine.submit(request).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    assert_eq!(buf.len(), 512);
}

#[test]
fn the_first_error_by_offset_wins_and_ends_issuing() {
    let mut bench = Bench::new(3, 2);
    bench.read(0, 80, 8, 1);
    assert_eq!(bench.pieces(), [(0, 8), (8, 8), (16, 8)]);
    bench.answer(2, Status::UNRECOVERED_READ_ERROR);
    assert!(bench.poll().is_empty(), "two commands may still write the buffer");
    assert_eq!(bench.held(), 2, "nothing more is issued");
    bench.answer(1, Status::INTERNAL_ERROR);
    assert!(bench.poll().is_empty());
    bench.answer(0, Status::SUCCESS);
    let done = bench.poll().remove(0);
    assert_eq!(done.result, Err(CommandError::Status(Status::INTERNAL_ERROR)));
    assert_eq!(one(done.buf).len(), 80 * 512);
    assert_eq!(bench.fake.wire().taken.len(), 3);
    assert_eq!(bench.engine.stats().errors, 1);
    // The room is free again.
    bench.read(0, 1, 8, 1);
    assert_eq!(bench.held(), 1);
}

#[test]
fn the_reference_tag_follows_the_pieces() {
    let mut bench = Bench::new(4, 2);
    let mut request = bench.request(NvmOpcode::WRITE, 100, 24, 8, 0);
    request.span = request.span.map(|span| Span { ref_tag_bits: 32, ..span });
    request.sqe = request.sqe.with_cdw12(1 << 26 | 1 << 30).with_cdw14(u32::MAX - 10);
    bench.submit(request);
    let wire = bench.fake.wire();
    let tags: Vec<u32> = wire.held.iter().map(|(_, sqe)| sqe.cdw14.get()).collect();
    assert_eq!(tags, [u32::MAX - 10, u32::MAX - 2, 5]);
    assert!(wire.held.iter().all(|(_, sqe)| sqe.cdw12.get() >> 16 == (1 << 26 | 1 << 30) >> 16));
    assert!(wire.held.iter().all(|(_, sqe)| sqe.cdw3.get() == 0), "no carry beyond the tag");
}

#[test]
fn metadata_is_cut_with_its_data_and_comes_back() {
    let mut bench = Bench::new(4, 2);
    bench.engine.set_separate_metadata(true);
    let mut request = bench.request(NvmOpcode::WRITE, 100, 24, 8, 0);
    request.span = request.span.map(|span| Span { metadata_bytes: 16, ..span });
    let metadata = bench.pool.alloc(24 * 16).unwrap();
    request.buf = IoBuf::with_metadata(request.buf, metadata);
    bench.submit(request);
    let slots: Vec<u16> = bench.fake.wire().held.iter().map(|&(slot, _)| slot).collect();
    let tracker = &bench.engine.tracker;
    let start = tracker.metadata_segment(slots[0]).unwrap().offset;
    let pieces: Vec<_> = slots
        .iter()
        .map(|&slot| tracker.metadata_segment(slot).map(|s| (s.offset - start, s.len)).unwrap())
        .collect();
    assert_eq!(pieces, [(0, 128), (128, 128), (256, 128)]);
    bench.answer_all();
    let done = bench.poll().pop().unwrap();
    let (data, metadata) = done.buf.into_parts();
    assert_eq!((data.len(), metadata.unwrap().len()), (24 * 512, 24 * 16));
    drop(data);
    // A raw command takes all of it.
    let raw = |bench: &Bench| {
        let request = bench.request(NvmOpcode::WRITE, 100, 1, 8, 0);
        let metadata = bench.pool.alloc(16).unwrap();
        Request { span: None, buf: IoBuf::with_metadata(request.buf, metadata), ..request }
    };
    let request = raw(&bench);
    bench.submit(request);
    let slot = bench.fake.wire().held[0].0;
    assert_eq!(bench.engine.tracker.metadata_len(slot), 16);
    // While it is in flight nothing of it is free, and given up it is given up as a whole.
    assert_eq!(bench.pool.stats().outstanding, 2);
    bench.fake.wire().quiesce = Quiesce::Unconfirmed;
    bench.engine.shut_down();
    let (done, _) = bench.drain();
    assert!(matches!(done[0].buf, IoBuf::None), "it leaks");
    assert_eq!(bench.pool.stats().outstanding, 0);
}

#[test]
fn memory_of_a_dma_buf_is_refused_by_a_transport_that_copies_and_handed_back() {
    let mut bench = Bench::new(4, 2);
    let request = |bench: &Bench, max_blocks| {
        let (buf, _) = crate::dma::DeviceBuf::simulated(4096).unwrap();
        Request { buf: buf.into(), ..bench.request(NvmOpcode::WRITE, 0, 8, max_blocks, 0) }
    };
    let one = request(&bench, 8);
    let (error, buf) = bench.engine.submit(one).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("begin_cpu_access"), "{error}");
    assert_eq!(buf.into_device().unwrap().len(), 4096);
    // One whose device moves the data is given it, cut as any other.
    bench.fake.wire().takes_device_memory = true;
    let one = request(&bench, 3);
    bench.submit(one);
    let slots: Vec<u16> = bench.fake.wire().held.iter().map(|&(slot, _)| slot).collect();
    let tracker = &bench.engine.tracker;
    let pieces: Vec<_> =
        slots.iter().map(|&slot| tracker.segment(slot, 0).map(|s| (s.offset, s.len)).unwrap()).collect();
    assert_eq!(pieces, [(0, 1536), (1536, 1536), (3072, 1024)]);
    assert!(slots.iter().all(|&slot| tracker.chunk(slot, 0).is_empty()), "out of the processor's reach");
    bench.answer_all();
    assert_eq!(bench.poll().pop().unwrap().buf.into_device().unwrap().len(), 4096);
}

#[test]
fn metadata_that_has_no_place_is_refused_and_handed_back() {
    let mut bench = Bench::new(4, 2);
    let with_metadata = |bench: &Bench, per_block, len| {
        let request = bench.request(NvmOpcode::WRITE, 0, 2, 8, 0);
        let span = request.span.map(|span| Span { metadata_bytes: per_block, ..span });
        let metadata = bench.pool.alloc(len).unwrap();
        Request { span, buf: IoBuf::with_metadata(request.buf, metadata), ..request }
    };
    let request = with_metadata(&bench, 8, 16);
    let (error, buf) = bench.engine.submit(request).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    assert!(
        error.to_string().contains("NVMe over Fabrics carries metadata at the end of each logical block"),
        "{error}"
    );
    assert_eq!((buf.len(), buf.metadata().unwrap().len()), (1024, 16));
    bench.engine.set_separate_metadata(true);
    for (per_block, len) in [(8, 15), (8, 24), (0, 16)] {
        let request = with_metadata(&bench, per_block, len);
        let (error, buf) = bench.engine.submit(request).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ApiMisuse(_)), "{error}");
        assert_eq!((buf.len(), buf.metadata().unwrap().len()), (1024, len));
    }
    assert_eq!(bench.held(), 0);
}

#[test]
fn delayed_submission_is_sent_when_flushed_or_polled() {
    let mut bench = Bench::new(4, 4);
    bench.read(0, 1, 8, 0);
    assert_eq!(bench.fake.wire().unflushed, 0);
    bench.engine.set_delay_submit(true);
    bench.read(1, 1, 8, 1);
    assert_eq!(bench.fake.wire().unflushed, 1);
    bench.engine.flush();
    assert_eq!(bench.fake.wire().unflushed, 0);
    bench.read(2, 1, 8, 2);
    bench.poll();
    assert_eq!(bench.fake.wire().unflushed, 0);
}

#[test]
fn what_waited_leaves_with_what_is_submitted_next() {
    let mut bench = Bench::new(2, 4);
    bench.engine.set_delay_submit(true);
    for n in 0..3 {
        bench.read(n, 1, 8, n);
    }
    bench.engine.flush();
    assert_eq!((bench.held(), bench.fake.wire().unflushed), (2, 0));
    bench.answer(0, Status::SUCCESS);
    assert_eq!(bench.poll().len(), 1);
    assert_eq!((bench.held(), bench.fake.wire().unflushed), (2, 1), "issued, and not sent yet");
    assert!(bench.engine.has_local_work(), "who sleeps now would wait for what was not sent");
    assert!(bench.poll().is_empty());
    assert_eq!(bench.fake.wire().unflushed, 0, "the next poll sends it");
    assert!(!bench.engine.has_local_work());
    // Where nothing was handed out nothing more is to be expected: a large operation's next piece.
    let mut bench = Bench::new(1, 4);
    bench.engine.set_delay_submit(true);
    bench.read(0, 16, 8, 0);
    bench.engine.flush();
    bench.answer(0, Status::SUCCESS);
    assert!(bench.poll().is_empty());
    assert_eq!((bench.held(), bench.fake.wire().unflushed), (1, 0));
}

#[test]
fn no_more_completions_than_asked_for() {
    let mut bench = Bench::new(8, 8);
    for n in 0..8 {
        bench.read(n, 1, 8, n);
    }
    bench.answer_all();
    let mut done = Vec::new();
    for expected in [3, 3, 2, 0] {
        assert_eq!(bench.engine.process(3, &mut |d| done.push(d)).unwrap(), expected);
    }
    assert_eq!(user_data(&done), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn stale_and_repeated_completions_touch_nothing() {
    let mut bench = Bench::new(2, 4);
    bench.read(0, 1, 8, 1);
    let old = bench.fake.wire().held[0].1.cid.get();
    bench.answer(0, Status::SUCCESS);
    bench.answer(0, Status::SUCCESS);
    assert_eq!(bench.poll().len(), 1);
    bench.read(50, 1, 8, 2);
    for cid in [old, 0xffff, 0x7fff] {
        bench.fake.wire().completions.push_back(Cqe::new(cid, 0, Status::SUCCESS));
    }
    assert!(bench.poll().is_empty());
    assert_eq!(bench.fake.wire().strays, 4);
    bench.answer(0, Status::SUCCESS);
    let done = bench.poll().remove(0);
    assert_eq!((done.user_data, one(done.buf)[0]), (2, 50));
}

// --- cancelling ------------------------------------------------------------------------------------------------------------

#[test]
fn an_operation_that_waits_can_be_cancelled() {
    let mut bench = Bench::new(1, 4);
    let first = bench.read(0, 1, 8, 1);
    let second = bench.read(1, 1, 8, 2);
    let third = bench.read(2, 1, 8, 3);
    assert!(!bench.engine.cancel(first, |_| panic!("the controller has it")));
    let mut done = Vec::new();
    assert!(bench.engine.cancel(second, |d| done.push(d)));
    assert_eq!((done[0].user_data, done[0].result), (2, Err(CommandError::Aborted)));
    assert_eq!(one(done.remove(0).buf).len(), 512);
    assert!(!bench.engine.cancel(second, |_| panic!("once")));
    // Its place is used again while its number is still in the queue of those waiting.
    let fourth = bench.read(3, 1, 8, 4);
    assert_ne!(second, fourth);
    let mut order = Vec::new();
    while bench.held() > 0 {
        bench.answer_all();
        order.extend(bench.poll().iter().map(|d| d.id));
    }
    assert_eq!(order, [first, third, fourth]);
}

#[test]
fn aborting_names_the_commands_in_flight_and_issues_no_more() {
    let mut bench = Bench::new(2, 4);
    let id = bench.read(0, 64, 8, 1);
    let cids: Vec<u16> = bench.fake.wire().held.iter().map(|(_, sqe)| sqe.cid.get()).collect();
    assert_eq!(bench.engine.abort_targets(id), cids);
    bench.answer_all();
    let done = bench.poll();
    assert_eq!(done[0].result, Err(CommandError::Aborted), "the rest was never read");
    assert_eq!(bench.held(), 0);
    assert!(bench.engine.abort_targets(id).is_empty());
}

#[test]
fn an_aborted_operation_that_was_issued_whole_completes_as_the_controller_says() {
    for status in [Status::SUCCESS, Status::ABORT_REQUESTED] {
        let mut bench = Bench::new(2, 4);
        let id = bench.read(0, 8, 8, 1);
        assert_eq!(bench.engine.abort_targets(id).len(), 1);
        bench.answer(0, status);
        let done = bench.poll().remove(0);
        assert_eq!(done.result.is_ok(), status.is_success());
    }
}

// --- deadlines ---------------------------------------------------------------------------------------------------------------

#[test]
fn a_command_without_completion_gives_the_queue_pair_up() {
    let mut bench = Bench::new(2, 8);
    let timeout = Duration::from_secs(1);
    for n in 0..4 {
        let timeout = (n == 1).then_some(timeout);
        let request = Request { timeout: timeout.into(), ..bench.request(NvmOpcode::READ, n, 1, 8, n) };
        bench.submit(request);
    }
    let start = clock();
    while bench.engine.failure().is_none() {
        let between_looks = Duration::from_millis(1) * IDLE_POLLS_PER_CLOCK;
        assert!(
            clock() - start <= timeout + 2 * (DEADLINE_SCAN + between_looks),
            "the deadline is long past"
        );
        advance(Duration::from_millis(1));
        let mut done = 0;
        bench.engine.process(0, &mut |_| done += 1).unwrap();
        if bench.engine.failure().is_none() {
            assert_eq!(done, 0);
        } else {
            assert_eq!(done, 4, "all operations of the queue pair");
        }
    }
    assert!(clock() - start >= timeout);
    let (done, error) = bench.drain();
    assert!(done.is_empty());
    assert!(matches!(error.kind(), ErrorKind::TimedOut { after, .. } if *after == timeout));
    assert!(error.to_string().contains("opcode 0x02, nsid 0x1"), "{error}");
}

#[test]
fn operations_of_a_timed_out_queue_pair_say_so() {
    let mut bench = Bench::new(2, 8);
    for n in 0..3 {
        let request =
            Request { timeout: Some(DEADLINE_SCAN).into(), ..bench.request(NvmOpcode::READ, n, 1, 8, n) };
        bench.submit(request);
    }
    let mut done = Vec::new();
    while done.is_empty() {
        advance(DEADLINE_SCAN);
        bench.engine.process(0, &mut |d| done.push(d)).unwrap();
    }
    assert_eq!(user_data(&done), [0, 1, 2]);
    assert!(done.iter().all(|d| d.buf.len() == 512));
    let (timed_out, not_sent) = (Err(CommandError::TimedOut), Err(CommandError::NotSent));
    assert_eq!(done.iter().map(|d| d.result).collect::<Vec<_>>(), [timed_out, timed_out, not_sent]);
}

#[test]
fn deadlines_are_looked_at_under_load_too() {
    let mut bench = Bench::new(4, 8);
    let stuck = Request { timeout: Some(DEADLINE_SCAN).into(), ..bench.request(NvmOpcode::READ, 0, 1, 8, 0) };
    bench.submit(stuck);
    let mut polls = 0;
    while bench.engine.failure().is_none() {
        polls += 1;
        assert!(polls < 20 * POLLS_PER_CLOCK, "a stuck command is never noticed");
        advance(Duration::from_millis(1));
        bench.read(7, 1, 8, 1);
        bench.answer(bench.held() - 1, Status::SUCCESS);
        bench.engine.process(0, &mut |_| {}).unwrap();
    }
}

#[test]
fn an_operation_that_makes_progress_is_not_late() {
    // Six pieces one after the other, each within its time, all together far beyond it; another operation waits meanwhile.
    let mut bench = Bench::new(1, 2);
    let timeout = Some(Duration::from_secs(1));
    bench.submit(Request { timeout: timeout.into(), ..bench.request(NvmOpcode::READ, 0, 48, 8, 1) });
    bench.submit(Request { timeout: timeout.into(), ..bench.request(NvmOpcode::READ, 0, 1, 8, 2) });
    let mut done = Vec::new();
    for _ in 0..7 {
        for _ in 0..4 {
            advance(Duration::from_millis(200));
            // The clock is looked at once.
            (0..IDLE_POLLS_PER_CLOCK).for_each(|_| done.extend(bench.poll()));
        }
        bench.answer(0, Status::SUCCESS);
    }
    done.extend(bench.poll());
    assert_eq!(user_data(&done), [1, 2]);
    assert!(done.iter().all(|d| d.result.is_ok()), "{done:?}");
}

#[test]
fn a_piece_that_fails_is_progress_too() {
    // Two pieces at once; the one fails shortly before the deadline of both, the other is answered within its time from then on.
    let mut bench = Bench::new(2, 2);
    let timeout = Some(Duration::from_secs(1));
    bench.submit(Request { timeout: timeout.into(), ..bench.request(NvmOpcode::READ, 0, 16, 8, 1) });
    assert_eq!(bench.held(), 2);
    for answered in [Status::LBA_OUT_OF_RANGE, Status::SUCCESS] {
        for _ in 0..4 {
            advance(Duration::from_millis(200));
            // The clock is looked at once.
            for _ in 0..IDLE_POLLS_PER_CLOCK {
                assert!(bench.poll().is_empty());
            }
            assert!(bench.engine.failure().is_none(), "not late");
        }
        bench.answer(0, answered);
    }
    let done = bench.poll();
    assert_eq!(user_data(&done), [1]);
    assert_eq!(done[0].result, Err(CommandError::Status(Status::LBA_OUT_OF_RANGE)));
}

#[test]
fn without_a_timeout_nothing_is_ever_late() {
    let mut bench = Bench::new(2, 8);
    bench.read(0, 1, 8, 0);
    for _ in 0..10 {
        advance(Duration::from_secs(86_400));
        assert!(bench.poll().is_empty());
    }
}

// --- giving up ---------------------------------------------------------------------------------------------------------------

#[test]
fn completions_come_before_the_error() {
    let mut bench = Bench::new(2, 8);
    for n in 0..4 {
        bench.read(n, 1, 8, n);
    }
    bench.answer(1, Status::SUCCESS);
    bench.fake.wire().fail_poll = true;
    let done = bench.poll();
    assert_eq!((user_data(&done), done[0].result.is_ok()), (vec![1], true), "it had arrived");
    assert_eq!(bench.fake.wire().disconnects, 1);
    let (done, error) = bench.drain();
    assert_eq!(user_data(&done), [0, 2, 3]);
    assert!(done.iter().all(|d| d.buf.len() == 512));
    let (lost, not_sent) = (Err(CommandError::Disconnected), Err(CommandError::NotSent));
    assert_eq!(done.iter().map(|d| d.result).collect::<Vec<_>>(), [lost, not_sent, not_sent]);
    assert_eq!(error.to_string(), broken().to_string());
    assert_eq!(bench.drain().1.to_string(), broken().to_string(), "the reason stays");
    let (_, buf) = bench.engine.submit(bench.request(NvmOpcode::READ, 0, 1, 8, 0)).unwrap_err();
    assert_eq!(buf.len(), 512);
}

#[test]
fn a_failure_while_submitting_shows_at_the_next_poll() {
    for flush in [false, true] {
        let mut bench = Bench::new(2, 8);
        bench.read(0, 1, 8, 1);
        {
            let mut wire = bench.fake.wire();
            (wire.fail_submit, wire.fail_flush) = (!flush, flush);
        }
        bench.read(1, 1, 8, 2);
        let (done, _) = bench.drain();
        assert_eq!(user_data(&done), [1, 2], "accepted ones complete");
    }
}

#[test]
fn the_number_of_completions_is_bounded_after_a_failure_too() {
    let mut bench = Bench::new(4, 8);
    for n in 0..8 {
        bench.read(n, 1, 8, n);
    }
    bench.engine.fail(broken(), CommandError::Disconnected, clock());
    for expected in [3, 3, 2] {
        assert_eq!(bench.engine.process(3, &mut |_| {}).unwrap(), expected);
    }
    assert!(bench.engine.process(3, &mut |_| {}).is_err());
}

#[test]
fn buffers_are_held_back_until_the_transport_is_quiesced() {
    let mut bench = Bench::new(2, 8);
    for n in 0..4 {
        bench.read(n, 1, 8, n);
    }
    bench.fake.wire().quiesce = Quiesce::Pending;
    bench.engine.fail(broken(), CommandError::Disconnected, clock());
    for _ in 0..5 {
        assert!(bench.poll().is_empty());
        assert!(bench.engine.has_local_work());
    }
    assert_eq!(bench.pool.stats().outstanding, 4);
    bench.fake.wire().quiesce = Quiesce::Done;
    let (done, _) = bench.drain();
    assert_eq!(user_data(&done), [0, 1, 2, 3]);
    assert!(done.iter().all(|d| d.buf.len() == 512));
    assert!(!bench.engine.has_local_work());
}

/// Whether the pool hands any of these addresses out again.
fn handed_out_again(pool: &DmaPool, addresses: &[usize]) -> bool {
    // More than a region's worth of the smallest class.
    let bufs: Vec<DmaBuf> = (0..1200).map(|_| pool.alloc(512).unwrap()).collect();
    bufs.iter().any(|buf| addresses.contains(&buf.as_ptr().addr()))
}

#[test]
fn memory_of_a_queue_that_cannot_be_quiesced_is_never_used_again() {
    let mut bench = Bench::new(2, 8);
    let mut in_flight = Vec::new();
    for n in 0..4 {
        let request = bench.request(NvmOpcode::READ, n, 1, 8, n);
        if n < 2 {
            in_flight.push(request.buf.bufs()[0].as_ptr().addr());
        }
        bench.submit(request);
    }
    bench.fake.wire().quiesce = Quiesce::Unconfirmed;
    bench.engine.fail(broken(), CommandError::Disconnected, clock());
    let (done, _) = bench.drain();
    assert_eq!(user_data(&done), [0, 1, 2, 3]);
    assert!(
        matches!((&done[0].buf, &done[1].buf), (IoBuf::None, IoBuf::None)),
        "the peer may still write there"
    );
    assert_eq!((done[2].buf.len(), done[3].buf.len()), (512, 512), "these it was never told of");
    drop(done);
    let pool = bench.pool.clone();
    drop(bench);
    assert!(!handed_out_again(&pool, &in_flight));
}

#[test]
fn a_transport_that_is_pending_for_ever_is_not_waited_for() {
    let mut bench = Bench::new(2, 8);
    bench.read(0, 1, 8, 0);
    bench.fake.wire().quiesce = Quiesce::Pending;
    bench.engine.fail(broken(), CommandError::Disconnected, clock());
    advance(QUIESCE - Duration::from_millis(1));
    assert!(bench.poll().is_empty());
    advance(Duration::from_millis(1));
    let (done, _) = bench.drain();
    assert!(matches!(done[0].buf, IoBuf::None));
}

#[test]
fn dropping_it_returns_buffers_after_the_transport_is_quiesced() {
    let mut bench = Bench::new(2, 8);
    for n in 0..3 {
        bench.read(n, 1, 8, n);
    }
    let Bench { engine, fake, pool } = bench;
    assert_eq!(pool.stats().outstanding, 3);
    drop(engine);
    let wire = fake.wire();
    assert!(wire.disconnects >= 1);
    assert_eq!(wire.out_at_disconnect, 3, "a buffer was free before the queue was quiesced");
    assert_eq!(pool.stats().outstanding, 0);
}

#[test]
fn dropping_it_waits_for_a_transport_that_needs_a_moment() {
    let mut bench = Bench::new(2, 8);
    bench.read(0, 1, 8, 0);
    let Bench { engine, fake, pool } = bench;
    fake.wire().quiesce = Quiesce::Pending;
    let other = fake.clone();
    let helper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let mut wire = other.wire();
        assert_eq!(wire.pool.stats().outstanding, 1);
        wire.quiesce = Quiesce::Done;
    });
    drop(engine);
    helper.join().unwrap();
    assert!(fake.wire().disconnects > 2);
    assert_eq!(pool.stats().outstanding, 0);
}

#[test]
fn dropping_it_leaks_what_cannot_be_quiesced() {
    let mut bench = Bench::new(2, 8);
    let request = bench.request(NvmOpcode::READ, 0, 1, 8, 0);
    let address = request.buf.bufs()[0].as_ptr().addr();
    bench.submit(request);
    bench.fake.wire().quiesce = Quiesce::Unconfirmed;
    let pool = bench.pool.clone();
    drop(bench);
    assert!(!handed_out_again(&pool, &[address]));
}

#[test]
fn an_idle_queue_pair_is_disconnected_when_dropped() {
    let bench = Bench::new(2, 8);
    let fake = bench.fake.clone();
    drop(bench);
    assert_eq!(fake.wire().disconnects, 1);
}

#[test]
fn a_queue_that_needs_admin_commands_to_be_quiesced_is_assisted_until_it_is() {
    for lost in [false, true] {
        let mut bench = Bench::new(2, 4);
        bench.read(0, 1, 8, 0);
        bench.fake.wire().quiesce = Quiesce::Pending;
        bench.fake.wire().quiesce_commands = 2;
        assert!(bench.engine.quiesce_command().is_none(), "not while it works");
        let mut asked = Vec::new();
        let quiesced = bench.engine.shut_down_with(|engine| {
            let sqe = engine.quiesce_command().expect("a command");
            assert_eq!(engine.quiesce_command(), Some(sqe), "until its end is told");
            asked.push(sqe.cdw10.get());
            let end = (!lost || asked.len() == 1).then(Cqe::default);
            engine.quiesce_completed(end.as_ref());
        });
        assert_eq!(asked, [2, 1]);
        assert_eq!(quiesced, !lost);
        let (done, _) = bench.drain();
        assert_eq!(matches!(done[0].buf, IoBuf::None), lost, "leaked only when it may still be written");
    }
}

#[test]
fn a_command_sent_as_it_is_cannot_be_larger_than_the_transport_takes() {
    let mut bench = Bench::new(2, 4);
    bench.engine.set_max_transfer(1024);
    let mut request = bench.request(NvmOpcode::READ, 0, 3, 8, 0);
    request.span = None;
    let (error, buf) = bench.engine.submit(request).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ApiMisuse(_)), "{error}");
    assert_eq!(buf.len(), 3 * BLOCK as usize);
    let mut request = bench.request(NvmOpcode::READ, 0, 2, 8, 0);
    request.span = None;
    assert!(bench.engine.submit(request).is_ok());
}

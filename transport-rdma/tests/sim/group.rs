//! Queue pairs of one poll group: one completion queue, one receive queue, and none of them gets what is another's.

use std::time::Instant;

use crate::bench::{Bench, Target};
use nvmf_core::ErrorKind;
use nvmf_core::spec::{Cqe, Status};
use nvmf_core::transport::{ConnectProgress, GroupShares, Quiesce, TransportQpair};
use nvmf_transport_rdma::sim::{CmEvent, DeviceLimits, Sim, WorkStatus};
use zerocopy::IntoBytes;

/// A target, a group, and so many of its queue pairs.
fn group(entries: u16, members: u16) -> (Target, GroupShares, Vec<Bench>) {
    let mut target = Target::new(Sim::new());
    let shares = GroupShares::new();
    let benches = (1..=members).map(|qid| target.connect_in(&shares, qid, entries)).collect();
    (target, shares, benches)
}

/// Sends a read and has it answered; its command identifier.
fn answered(bench: &mut Bench, byte: u8) -> u16 {
    let cid = bench.read(512).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    bench.serve(&command, byte);
    cid
}

/// It still works, in a round of its group.
fn works(bench: &mut Bench, shares: &GroupShares) {
    let cid = answered(bench, 0x42);
    shares.poll();
    assert_eq!(bench.drain(), [(cid, vec![0x42; 512])]);
}

#[test]
fn members_share_the_queues_and_keep_their_commands() {
    let (target, shares, mut members) = group(8, 3);
    assert_eq!(target.sim.stats().shared, 1);
    let posted = members[0].connection.receives();
    assert!(posted > 1000 && members.iter().all(|member| member.connection.receives() == posted));
    for round in 0..50u8 {
        let mut expected = Vec::new();
        // The last is answered first.
        for (index, member) in members.iter_mut().enumerate().rev() {
            let fills = [round, round ^ 0x80, round.wrapping_mul(3) ^ index as u8];
            expected.push(fills.map(|byte| (answered(member, byte), vec![byte; 512])));
        }
        expected.reverse();
        shares.poll();
        // Whatever was taken for all of them, the receives are there again.
        assert_eq!(members[1].connection.receives(), posted);
        for (member, expected) in members.iter_mut().zip(expected) {
            assert_eq!(member.drain(), expected);
        }
    }
    for mut member in members {
        assert_eq!(member.quiesce(), Quiesce::Done);
    }
}

#[test]
fn one_that_is_polled_alone_looks_for_itself_and_keeps_what_is_the_others() {
    let (_target, shares, mut members) = group(8, 2);
    for byte in 0..20 {
        let second = answered(&mut members[1], byte);
        let first = answered(&mut members[0], !byte);
        // Nobody polls the group.
        assert_eq!(members[0].drain(), [(first, vec![!byte; 512])]);
        assert_eq!(members[1].drain(), [(second, vec![byte; 512])]);
    }
    // In a round, and once more in the same round.
    shares.poll();
    assert!(members[0].drain().is_empty());
    let cid = answered(&mut members[0], 7);
    assert_eq!(members[0].drain(), [(cid, vec![7; 512])]);
}

#[test]
fn a_budget_leaves_the_rest_in_the_inbox() {
    let (_target, shares, mut members) = group(8, 2);
    let cids: Vec<u16> = (0..5).map(|byte| answered(&mut members[0], byte)).collect();
    shares.poll();
    let mut seen = Vec::new();
    while seen.len() < cids.len() {
        let member = &mut members[0];
        member.qpair.poll(&mut member.tracker, 2).unwrap();
        let done = member.completed();
        assert!((1..=2).contains(&done.len()));
        seen.extend(done.into_iter().map(|(cid, _)| cid));
        if seen.len() < cids.len() {
            assert!(member.qpair.has_local_work());
        }
    }
    assert_eq!(seen, cids);
}

#[test]
fn all_members_are_woken_by_one_notification() {
    let (target, shares, mut members) = group(8, 2);
    shares.poll();
    members.iter_mut().for_each(|member| assert!(member.drain().is_empty()));
    // Who asks first arms the queue for all.
    assert!(members[0].qpair.has_local_work());
    assert!(!members[0].qpair.has_local_work() && !members[1].qpair.has_local_work());
    assert_eq!(target.sim.stats().armed, 1);
    assert!(members.iter().all(|member| !member.is_readable()));
    let cid = answered(&mut members[1], 3);
    assert!(members.iter().all(Bench::is_readable));
    shares.poll();
    assert!(members[0].drain().is_empty());
    assert_eq!(members[1].drain(), [(cid, vec![3; 512])]);
    assert!(members.iter().all(|member| !member.is_readable()));
    assert!(members[0].qpair.has_local_work());
    assert_eq!(target.sim.stats().armed, 2);
}

#[test]
fn a_sleeper_learns_that_its_connection_ended() {
    let (_target, shares, mut members) = group(8, 2);
    shares.poll();
    members.iter_mut().for_each(|member| assert!(member.drain().is_empty()));
    assert!(members[0].qpair.has_local_work());
    members[1].connection.event(CmEvent::Disconnected);
    assert!(members[1].is_readable());
    // The first poll after that finds it.
    shares.poll();
    assert!(members[0].drain().is_empty());
    let error = members[1].poll().unwrap_err().to_string();
    assert!(error.contains("the controller ended the connection"), "{error}");
    works(&mut members[0], &shares);
}

#[test]
fn a_message_under_the_number_of_no_queue_pair_harms_nobody() {
    let (_target, shares, mut members) = group(8, 2);
    let posted = members[0].connection.receives();
    members[1].connection.misname(0xdead);
    answered(&mut members[1], 1);
    shares.poll();
    assert!(members[0].drain().is_empty() && members[1].drain().is_empty());
    assert_eq!(members[0].connection.receives(), posted);
    works(&mut members[0], &shares);
}

#[test]
fn a_message_under_the_number_of_another_is_a_response_to_nothing_there() {
    let (_target, shares, mut members) = group(8, 3);
    let number = members[0].connection.number();
    members[1].connection.misname(number);
    answered(&mut members[1], 1);
    shares.poll();
    let error = members[0].poll().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
    assert!(error.to_string().contains("which is not outstanding"), "{error}");
    works(&mut members[2], &shares);
    assert_eq!(members[0].quiesce(), Quiesce::Done);
}

#[test]
fn a_sends_completion_under_a_wrong_number_fails_whose_request_it_is() {
    for wrong in [None, Some(0)] {
        let (_target, shares, mut members) = group(8, 3);
        let number = wrong.map_or(0xdead, |index: usize| members[index].connection.number());
        members[1].connection.misname(number);
        // Data goes with the capsule: the device reads memory, and its completion is asked for.
        members[1].write(&[5; 512]).unwrap();
        members[1].flush().unwrap();
        members[1].take().unwrap();
        shares.poll();
        let error = members[1].poll().unwrap_err().to_string();
        assert!(error.contains("a completion of a request that was not posted"), "{error}");
        assert_eq!(members[1].quiesce(), Quiesce::Done);
        for index in [0, 2] {
            works(&mut members[index], &shares);
        }
    }
}

#[test]
fn who_floods_the_receive_queue_is_given_up_and_the_others_go_on() {
    let (_target, shares, mut members) = group(8, 2);
    let posted = members[0].connection.receives();
    let cqe = Cqe::new(0x77, 0, Status::SUCCESS);
    for _ in 0..10 {
        for _ in 0..posted {
            if members[0].connection.inject(cqe.as_bytes(), None).is_err() {
                break;
            }
        }
        shares.poll();
    }
    assert_eq!(members[1].connection.receives(), posted);
    let error = members[0].poll().unwrap_err().to_string();
    assert!(error.contains("more messages than receives"), "{error}");
    works(&mut members[1], &shares);
    assert_eq!(members[0].quiesce(), Quiesce::Done);
}

#[test]
fn a_response_to_an_unknown_command_fails_the_queue_pair_it_came_on() {
    let (_target, shares, mut members) = group(8, 2);
    members[1].connection.inject(Cqe::new(0x1234, 0, Status::SUCCESS).as_bytes(), None).unwrap();
    shares.poll();
    assert!(members[0].drain().is_empty());
    let error = members[1].poll().unwrap_err();
    assert!(error.to_string().contains("0x1234, which is not outstanding"), "{error}");
    works(&mut members[0], &shares);
}

#[test]
fn a_member_that_fails_is_flushed_and_its_place_is_another_s() {
    // Two of these fill a set.
    let (mut target, shares, mut members) = group(500, 2);
    assert_eq!(target.sim.stats().shared, 1);
    for round in 0..5 {
        let cid = members[1].write(&[9; 512]).unwrap();
        members[1].flush().unwrap();
        members[1].connection.fail(Some(WorkStatus::RETRY_EXCEEDED));
        shares.poll();
        let error = members[1].poll().unwrap_err().to_string();
        assert!(error.contains("transport retries exceeded"), "round {round}, {cid:#x}: {error}");
        assert_eq!(members[1].quiesce(), Quiesce::Done);
        drop(members.pop());
        works(&mut members[0], &shares);
        members.push(target.connect_in(&shares, 2, 500));
        works(&mut members[1], &shares);
    }
    assert_eq!(target.sim.stats().shared, 1);
    // One more does not fit.
    members.push(target.connect_in(&shares, 3, 500));
    assert_eq!(target.sim.stats().shared, 2);
    members.iter_mut().for_each(|member| works(member, &shares));
}

#[test]
fn a_member_that_cannot_be_destroyed_leaves_the_others_alone() {
    let (_target, shares, mut members) = group(8, 2);
    members[1].connection.refuse_destroy();
    assert_eq!(members[1].quiesce(), Quiesce::Unconfirmed);
    works(&mut members[0], &shares);
}

#[test]
fn without_shared_receive_queues_each_has_its_own() {
    let limits = DeviceLimits {
        max_registration: 1 << 40,
        max_work_requests: 1024,
        max_elements: 4,
        max_completions: 4096,
        max_reads: 1,
        max_shared_receives: 0,
        windows: true,
    };
    let mut target = Target::new(Sim::with_limits(limits));
    let shares = GroupShares::new();
    let mut members: Vec<_> = (1..=2).map(|qid| target.connect_in(&shares, qid, 8)).collect();
    assert_eq!(target.sim.stats().shared, 0);
    members.iter_mut().for_each(|member| works(member, &shares));
}

#[test]
fn the_admin_queue_and_connected_ones_keep_their_queues() {
    let mut target = Target::new(Sim::new());
    let shares = GroupShares::new();
    let mut admin = target.connect_in(&shares, 0, 32);
    let mut late = target.connect(1, 8);
    late.qpair.join_group(&shares);
    assert_eq!(late.qpair.poll_connect(Instant::now()).unwrap(), ConnectProgress::Established);
    assert_eq!(target.sim.stats().shared, 0);
    works(&mut admin, &shares);
    works(&mut late, &shares);
}

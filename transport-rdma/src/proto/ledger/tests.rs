use nvmf_core::spec::Status;
use proptest::prelude::*;

use super::*;

fn cqe(slot: u16, sqhd: u16) -> Cqe {
    Cqe::new(slot, sqhd, Status::SUCCESS)
}

/// What waits for a request.
#[derive(Clone, Copy)]
enum Wait {
    Nobody,
    Capsule(u16),
    Key(u16),
}

fn ledger(slots: u16) -> Ledger {
    let mut ledger = Ledger::new(slots, slots + 1, 64);
    ledger.receives_posted(u32::from(slots) + 1);
    ledger
}

#[test]
fn a_command_whose_capsule_is_held_is_over_after_both_completions_in_either_order() {
    let mut l = ledger(4);
    assert!(l.submit(0));
    assert_eq!(l.post(0, true, false), Signal::Command);
    assert_eq!(l.sent(Some(0)), Ok(None));
    l.received().unwrap();
    assert_eq!(l.answered(0, cqe(0, 0), false), Ok(Answered::Over(cqe(0, 0))));
    assert!(!l.is_busy(0));

    assert!(l.submit(1));
    l.post(1, true, false);
    l.received().unwrap();
    assert_eq!(l.answered(1, cqe(1, 0), false), Ok(Answered::Wait), "the device may still read the capsule");
    assert!(l.is_busy(1));
    assert_eq!(l.in_flight(), 0, "the controller's receive is free again");
    assert_eq!(l.sent(Some(1)), Ok(Some(cqe(1, 0))));
    assert!(!l.is_busy(1));
}

#[test]
fn a_copied_capsule_needs_only_its_response_and_is_signalled_now_and_then() {
    let mut l = Ledger::new(8, 9, 16);
    l.receives_posted(9);
    let mut signals = Vec::new();
    for _ in 0..4 {
        assert!(l.submit(3));
        signals.push(l.post(3, false, false));
        l.received().unwrap();
        l.receives_posted(1);
        assert_eq!(l.answered(3, cqe(3, 0), false), Ok(Answered::Over(cqe(3, 0))));
    }
    assert_eq!(signals, [Signal::None, Signal::None, Signal::None, Signal::Account]);
    assert_eq!(l.sent(None), Ok(None));
    assert_eq!(l.sent(None), Err(Violation::NotPosted));
}

#[test]
fn the_controllers_receives_limit_what_is_sent() {
    let mut l = ledger(8);
    l.set_window(2);
    assert!(l.submit(0));
    l.post(0, false, false);
    assert!(l.submit(1));
    l.post(1, false, false);
    assert!(!l.submit(2));
    assert!(!l.submit(3));
    assert_eq!(l.release(), None);
    l.answered(1, cqe(1, 0), false).unwrap();
    assert_eq!(l.release(), Some(2), "oldest first");
    l.post(2, false, false);
    assert_eq!(l.release(), None);
    assert!(!l.submit(4), "nobody overtakes those that wait");
}

#[test]
fn a_full_send_queue_holds_commands_back_until_a_completion_accounts_for_requests() {
    let mut l = Ledger::new(8, 9, 4);
    l.receives_posted(100);
    for slot in 0..4 {
        assert!(l.submit(slot));
        assert_eq!(l.post(slot, false, false), Signal::Account, "one in max(1, 4 / 4)");
        l.answered(slot, cqe(slot, 0), false).unwrap();
    }
    assert!(!l.submit(4));
    assert_eq!(l.release(), None);
    l.sent(None).unwrap();
    assert_eq!(l.release(), Some(4));
}

#[test]
fn without_a_receive_for_its_response_no_command_is_sent() {
    let mut l = Ledger::new(4, 5, 64);
    assert!(!l.submit(0));
    l.receives_posted(1);
    assert_eq!(l.release(), Some(0));
    l.post(0, false, false);
    assert!(!l.submit(1));
    l.received().unwrap();
    assert_eq!(l.received(), Err(Violation::NoReceive));
}

#[test]
fn sqhd_limits_what_is_sent_until_the_controller_has_answered_everything() {
    let mut l = ledger(3);
    assert!(l.submit(0));
    l.post(0, false, false);
    l.answered(0, cqe(0, 1), false).unwrap();
    l.connected(1);
    for slot in 0..3 {
        assert!(l.submit(slot));
        l.post(slot, false, false);
    }
    // Two are answered, but the controller says that it fetched one.
    l.answered(0, cqe(0, 2), false).unwrap();
    l.answered(1, cqe(1, 2), false).unwrap();
    assert!(l.submit(0));
    l.post(0, false, false);
    assert!(!l.submit(1), "the submission queue is full as far as the controller told");
    l.answered(2, cqe(2, 2), false).unwrap();
    assert_eq!(l.release(), None);
    l.answered(0, cqe(0, 2), false).unwrap();
    assert_eq!(l.release(), Some(1), "everything is answered, so everything was fetched");
}

#[test]
fn an_older_head_says_nothing_new() {
    let mut l = Ledger::new(4, 8, 64);
    l.receives_posted(8);
    l.connected(0);
    for slot in 0..4 {
        assert!(l.submit(slot));
        l.post(slot, false, false);
    }
    l.answered(2, cqe(2, 3), false).unwrap();
    l.answered(1, cqe(1, 2), false).unwrap();
    assert_eq!(l.flow, Some(Flow { head: 3, tail: 4 }));
    l.answered(0, cqe(0, 7), false).unwrap();
    assert_eq!(l.flow, Some(Flow { head: 3, tail: 4 }), "past the tail");
}

#[test]
fn without_flow_control_sqhd_means_nothing() {
    let mut l = ledger(3);
    l.connected(NO_FLOW_CONTROL);
    for round in 0..10u16 {
        for slot in 0..3 {
            assert!(l.submit(slot));
            l.post(slot, false, false);
            l.answered(slot, cqe(slot, round * 7 % 4), false).unwrap();
        }
    }
    let mut l = ledger(3);
    l.connected(77);
    assert!(l.submit(0), "an SQHD that is no entry of the queue is not worked with");
}

#[test]
fn what_was_not_sent_cannot_be_answered() {
    let mut l = ledger(2);
    assert_eq!(l.answered(0, cqe(0, 0), false), Err(Violation::NotOutstanding));
    assert_eq!(l.answered(9, cqe(0, 0), false), Err(Violation::NotOutstanding));
    l.set_window(1);
    assert!(l.submit(0));
    l.post(0, true, false);
    assert!(!l.submit(1));
    assert_eq!(l.answered(1, cqe(1, 0), false), Err(Violation::NotOutstanding), "it waits");
    l.answered(0, cqe(0, 0), false).unwrap();
    assert_eq!(l.answered(0, cqe(0, 0), false), Err(Violation::NotOutstanding), "answered before");
    l.sent(Some(0)).unwrap();
    assert_eq!(l.sent(Some(0)), Err(Violation::NotPosted));
}

proptest! {
    /// A controller and a device that do anything they may, in any order: nothing is overrun, everything completes once.
    #[test]
    fn nothing_is_overrun_and_everything_completes_once(
        slots in 1u16..12,
        window in 1u32..16,
        sends in 1u32..20,
        flow in any::<bool>(),
        keys in any::<bool>(),
        steps in proptest::collection::vec(any::<(u8, u8)>(), 1..400),
    ) {
        let entries = slots + 1;
        let mut l = Ledger::new(slots, entries, sends);
        let mut room = sends;
        if keys {
            l.with_keys();
            room = sends.max(2) + u32::from(slots);
        }
        l.set_window(window);
        l.receives_posted(u32::from(entries));
        l.connected(if flow { 0 } else { NO_FLOW_CONTROL });
        let mut free: Vec<u16> = (0..slots).collect();
        // Posted requests: what waits for it, if anything, and whether there is a completion.
        let mut queue: VecDeque<(Wait, bool)> = VecDeque::new();
        let mut at_controller: Vec<u16> = Vec::new();
        let (mut answered, mut submitted, mut completed) = (0u32, 0u32, 0u32);
        let post = |l: &mut Ledger, slot: u16, held: bool, queue: &mut VecDeque<_>, at: &mut Vec<u16>| {
            let keyed = keys && !slot.is_multiple_of(3);
            let signal = l.post(slot, held, keyed);
            if keyed {
                queue.push_back((Wait::Nobody, false));
            }
            let wait = if signal == Signal::Command { Wait::Capsule(slot) } else { Wait::Nobody };
            queue.push_back((wait, signal != Signal::None));
            at.push(slot);
            assert!(queue.len() <= room as usize, "the send queue is overrun");
            assert!(at.len() as u32 <= window, "the controller's receives are overrun");
            assert!(l.in_flight() <= l.receives(), "no receive for a response");
        };
        let idle = (0..600).map(|n| (n as u8, 0u8));
        for (index, (what, pick)) in steps.iter().copied().chain(idle).enumerate() {
            let draining = index >= steps.len();
            match what % 3 {
                0 if !draining => if let Some(slot) = free.pop() {
                    submitted += 1;
                    if l.submit(slot) {
                        post(&mut l, slot, pick % 2 == 0, &mut queue, &mut at_controller);
                    }
                },
                1 => if !at_controller.is_empty() {
                    let slot = at_controller.swap_remove(usize::from(pick) % at_controller.len());
                    answered += 1;
                    l.received().unwrap();
                    let sqhd = (answered % u32::from(entries)) as u16;
                    let ended = l.is_keyed(slot) && pick >= 128;
                    let keyed = l.is_keyed(slot) && !ended;
                    let answer = l.answered(slot, cqe(slot, sqhd), ended).unwrap();
                    l.receives_posted(1);
                    match answer {
                        Answered::Over(_) => {
                            prop_assert!(!keyed, "over while the controller has a key");
                            completed += 1;
                            free.push(slot);
                        }
                        Answered::Wait => prop_assert!(!keyed),
                        Answered::EndKey => {
                            prop_assert!(keyed);
                            l.post_end_of_key();
                            queue.push_back((Wait::Key(slot), true));
                            prop_assert!(queue.len() <= room as usize, "the send queue is overrun");
                        }
                    }
                },
                _ => {
                    // The next completion stands for every request before it.
                    while let Some((wait, signalled)) = queue.pop_front() {
                        if !signalled {
                            continue;
                        }
                        let over = match wait {
                            Wait::Nobody => l.sent(None),
                            Wait::Capsule(slot) => l.sent(Some(slot)),
                            Wait::Key(slot) => l.key_ended(slot),
                        };
                        if over.unwrap().is_some() {
                            completed += 1;
                            free.extend(match wait {
                                Wait::Nobody => None,
                                Wait::Capsule(slot) | Wait::Key(slot) => Some(slot),
                            });
                        }
                        break;
                    }
                }
            }
            while let Some(slot) = l.release() {
                post(&mut l, slot, pick % 3 == 0, &mut queue, &mut at_controller);
            }
        }
        prop_assert_eq!(completed, submitted);
        prop_assert_eq!(l.waiting(), 0);
        prop_assert_eq!(l.in_flight(), 0);
    }
}

use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::spec::{AdminOpcode, Cqe, Status};
use nvmf_core::transport::{Quiesce, TransportController, TransportQpair};
use nvmf_core::{ControllerOptions, ErrorKind};

use super::*;
use crate::PcieController;
use crate::qpair::tests::Bench;
use crate::testing::{CAP, Fake, setup};

const CMBS: u32 = 1 << (57 - 32);
const LEN: u64 = 32 << 10;
const BAR: u64 = 0x9_0000_0000;

/// A function with a buffer behind BAR 2, `offset` units of 4 KiB in; CMBLOC and CMBSZ as told.
fn fake(legacy: bool, cmbloc: u32, cmbsz: u32) -> Fake {
    let fake = Fake::new();
    {
        let mut state = fake.state();
        state.bar2 = vec![0; LEN as usize];
        state.bar2_address = BAR;
        let high = (CAP >> 32) as u32 | if legacy { 0 } else { CMBS };
        state.registers.extend([(4, high), (0x38, cmbloc), (0x3c, cmbsz)]);
    }
    fake
}

fn controller(fake: &Fake) -> PcieController {
    let mut options = ControllerOptions::default();
    options.use_cmb_sqs = true;
    let mut controller = fake.controller_with(&options);
    assert_eq!(controller.set_up(&IdentifyController::default()).unwrap(), None);
    controller
}

/// Why the buffer is not used; `None` when there is none to use.
fn refused(fake: &Fake) -> Option<Error> {
    let controller = fake.controller();
    let error = controller.shared().enable_cmb().err();
    assert!(controller.shared().take_cmb(64).is_none());
    assert_eq!(fake.state().registers.get(&0x50).copied().unwrap_or(0), 0, "left disabled");
    error
}

#[test]
fn commands_are_written_to_the_controllers_memory_and_its_room_comes_back() {
    for (legacy, at_bar) in [(false, false), (false, true), (true, true)] {
        let fake = fake(legacy, 2 | 1 << 12, 7 << 12 | 1);
        if !at_bar {
            fake.state().bar2_address = 0;
        }
        let mut controller = controller(&fake);
        // 64 entries are a page; six more leave no room for a seventh and an eighth.
        let mut others: Vec<_> = (2..8).map(|qid| controller.pcie_qpair(&setup(qid, 64)).unwrap()).collect();
        let mut bench = Bench::on(fake.clone(), controller, 64);
        let (sq, cq) = bench.qpair.ring_addresses();
        let (first, reserved) = fake.state().reserved[0];
        if at_bar {
            assert_eq!((first, reserved), (BAR + 0x1000, 7 << 12));
        }
        assert!(reserved >= 7 << 12);
        if !legacy {
            let state = fake.state();
            let control = u64::from(state.registers[&0x50]) | u64::from(state.registers[&0x54]) << 32;
            assert_eq!(control, first | 3);
        }
        assert_eq!(sq, first + 6 * 4096);
        assert!(cq > first + reserved || cq < first, "in host memory");
        bench.create();
        let cid = bench.flush_command(0);
        bench.qpair.flush(&bench.tracker).unwrap();
        {
            let state = fake.state();
            let written = &state.bar2[7 << 12..];
            assert_eq!(u16::from_le_bytes([written[2], written[3]]), cid, "at its place behind the offset");
        }
        let shared = Arc::clone(bench.controller.shared());
        assert_eq!(shared.cmb_pages_used(), Some(7));
        // There is no room for one more, which is in host memory then.
        let more = bench.controller.pcie_qpair(&setup(9, 64)).unwrap();
        let at = more.ring_addresses().0;
        assert!(!(first..first + reserved).contains(&at));
        drop(more);
        // A queue that is deleted gives its room back, one that cannot be does not.
        others.clear();
        assert_eq!(shared.cmb_pages_used(), Some(1));
        for opcode in [AdminOpcode::DELETE_IO_SQ, AdminOpcode::DELETE_IO_CQ] {
            assert_eq!(bench.delete_command(), opcode);
            bench.qpair.quiesce_completed(Some(&Cqe::default()));
        }
        assert_eq!(bench.qpair.disconnect(std::time::Instant::now()), Quiesce::Done);
        drop(bench);
        assert_eq!(shared.cmb_pages_used(), Some(0));
    }
}

#[test]
fn room_of_a_queue_that_cannot_be_deleted_is_not_used_again() {
    let fake = fake(false, 2, 8 << 12 | 1);
    let mut bench = Bench::on(fake.clone(), controller(&fake), 64);
    bench.create();
    assert_eq!(bench.delete_command(), AdminOpcode::DELETE_IO_SQ);
    bench.qpair.quiesce_completed(Some(&Cqe::new(0, 0, Status::INTERNAL_ERROR)));
    let shared = Arc::clone(bench.controller.shared());
    drop(bench);
    assert_eq!(shared.cmb_pages_used(), Some(1));
}

#[test]
fn it_is_not_used_unless_asked_for() {
    let fake = fake(false, 2, 8 << 12 | 1);
    let mut controller = fake.controller();
    controller.set_up(&IdentifyController::default()).unwrap();
    assert_eq!(controller.shared().cmb_pages_used(), None);
    assert!(fake.state().reserved.is_empty());
}

#[test]
fn what_makes_no_sense_is_an_error_and_what_is_not_for_queues_is_left_alone() {
    assert!(refused(&fake(false, 2, 0)).is_none());
    assert!(refused(&fake(false, 2, u32::MAX)).is_none());
    assert!(refused(&fake(true, 2, 8 << 12 | 0x1e)).is_none(), "everything but submission queues");
    let nonsense = [
        ("a unit that is reserved", 2, 8 << 12 | 7 << 8 | 1),
        ("BAR 1 is the upper half of BAR 0", 1, 8 << 12 | 1),
        ("no BAR 7", 7, 8 << 12 | 1),
        ("among the registers", 0, 1 << 12 | 1),
        ("at the end of the BAR", 2 | 8 << 12, 8 << 12 | 1),
        ("far beyond it", 2 | 0xf_ffff << 12, 0xf_ffff << 12 | 6 << 8 | 1),
    ];
    for (what, cmbloc, cmbsz) in nonsense {
        let error = refused(&fake(false, cmbloc, cmbsz)).expect(what);
        assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{what}: {error}");
    }
    let error = refused(&fake(false, 3, 8 << 12 | 1)).unwrap();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "a BAR there is not: {error}");
    // A legacy one without an address.
    let homeless = fake(true, 2, 8 << 12 | 1);
    homeless.state().bar2_address = 0;
    let error = refused(&homeless).unwrap();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    // One that does not take the address it is given.
    let fussy = fake(false, 2, 8 << 12 | 1);
    fussy.state().registers.insert(0x58, 1);
    let error = refused(&fussy).unwrap();
    assert!(error.to_string().contains("CMBSTS.CBAI"), "{error}");
}

#[test]
fn a_buffer_that_says_more_than_there_is_is_cut_to_the_bar() {
    let fake = fake(false, 2, 0xf_ffff << 12 | 4 << 8 | 1);
    let controller = controller(&fake);
    let shared = controller.shared();
    let parts: Vec<_> = std::iter::from_fn(|| shared.take_cmb(1)).collect();
    assert_eq!(parts.len() as u64, LEN / 4096);
    let last = parts.last().unwrap();
    last.write(4032, &[7; 64]).unwrap();
    assert!(last.write(4096, &[7; 64]).is_err(), "behind its end");
    assert_eq!(fake.state().bar2[LEN as usize - 64..], [7; 64]);
    assert!(shared.take_cmb(1).is_none());
    drop(parts);
    assert!(shared.take_cmb(LEN as usize + 1).is_none());
    assert!(shared.take_cmb(LEN as usize).is_some());
}

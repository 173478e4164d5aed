use nvmf_core::ControllerOptions;
use nvmf_core::spec::Status;
use nvmf_core::spec::identify::{IdentifyController, oacs};
use nvmf_core::transport::{TransportController, TransportQpair};
use zerocopy::little_endian::U16;

use super::*;
use crate::PcieController;
use crate::qpair::tests::Bench;
use crate::testing::{CAP, Fake, setup};

#[test]
fn the_register_is_written_when_the_value_passes_what_is_waited_for() {
    // The controller has seen up to 5 and waits for more.
    assert!(must_ring(5, 5, 6) && must_ring(5, 5, 9) && must_ring(7, 5, 9));
    // It has not come to what was told before, or waits for more than there is.
    assert!(!must_ring(4, 5, 6) && !must_ring(9, 5, 9) && !must_ring(0, 5, 9));
    // Around the end of a ring of eight.
    assert!(must_ring(7, 7, 0) && must_ring(7, 6, 1) && !must_ring(5, 7, 0) && must_ring(0, 7, 1));
    // Around the end of the numbers.
    assert!(must_ring(u16::MAX, u16::MAX, 0) && !must_ring(u16::MAX - 1, u16::MAX, 0));
    assert!(!must_ring(0, 3, 3), "nothing new");
}

fn offering() -> IdentifyController {
    IdentifyController { oacs: U16::new(oacs::DOORBELL_BUFFER), ..IdentifyController::default() }
}

/// A controller that has taken shadow doorbells, and the bus addresses of both buffers.
fn controller(fake: &Fake) -> (PcieController, u64, u64) {
    let mut controller = fake.controller();
    let command = controller.set_up(&offering()).unwrap().expect("Doorbell Buffer Config");
    assert_eq!(command.opcode, AdminOpcode::DOORBELL_BUFFER_CONFIG.0);
    controller.set_up_completed(Status::SUCCESS);
    (controller, command.dptr.lo.get(), command.dptr.hi.get())
}

fn word(fake: &Fake, at: u64) -> u32 {
    fake.state().memory.load_acquire_u32(at).unwrap()
}

fn put(fake: &Fake, at: u64, value: u32) {
    fake.state().memory.store_release_u32(at, value).unwrap();
}

/// Where the doorbells of queue 1 are in both buffers.
const SQ1: u64 = 8;
const CQ1: u64 = 12;

#[test]
fn doorbells_go_to_memory_and_to_the_register_only_when_waited_for() {
    let fake = Fake::new();
    let (controller, doorbells, events) = controller(&fake);
    assert_eq!((doorbells % 4096, events % 4096), (0, 0));
    let mut bench = Bench::on(fake.clone(), controller, 8);
    bench.create();
    let rung = || std::mem::take(&mut fake.state().rung);
    let cq = bench.qpair.ring_addresses().1;
    // As new: the controller waits for whatever comes first.
    let cid = bench.flush_command(0);
    bench.qpair.flush(&bench.tracker).unwrap();
    assert_eq!((word(&fake, doorbells + SQ1), rung()), (1, vec![(0x1008, 1)]));
    fake.post(cq, 0, 1, cid, Status::SUCCESS, true);
    assert_eq!(bench.poll().len(), 1);
    assert!(bench.poll().is_empty(), "what was taken is acknowledged with the next commands or poll");
    assert_eq!((word(&fake, doorbells + CQ1), rung()), (1, vec![(0x100c, 1)]));
    // The controller is busy and has not moved its marks: memory is enough.
    let cids = [1, 2, 3].map(|op| bench.flush_command(op));
    bench.qpair.flush(&bench.tracker).unwrap();
    assert_eq!((word(&fake, doorbells + SQ1), rung()), (4, vec![]));
    for (index, cid) in (1..).zip(cids) {
        fake.post(cq, index, 1, cid, Status::SUCCESS, true);
    }
    assert_eq!(bench.poll().len(), 3);
    assert!(bench.poll().is_empty(), "what was taken is acknowledged with the next commands or poll");
    assert_eq!((word(&fake, doorbells + CQ1), rung()), (4, vec![]));
    assert_eq!(bench.qpair.stats().sends, 1);
    // It has come to the end of what there is and goes to sleep; it has no need of the completion queue.
    put(&fake, events + SQ1, 4);
    let cid = bench.flush_command(4);
    bench.qpair.flush(&bench.tracker).unwrap();
    assert_eq!(rung(), [(0x1008, 5)]);
    fake.post(cq, 4, 1, cid, Status::SUCCESS, true);
    assert_eq!((bench.poll().len(), rung()), (1, vec![]));
}

#[test]
fn a_queue_that_is_made_again_starts_with_its_doorbells_as_new() {
    let fake = Fake::new();
    let (mut controller, doorbells, events) = controller(&fake);
    for at in [SQ1, CQ1] {
        put(&fake, doorbells + at, 5);
        put(&fake, events + at, 7);
    }
    put(&fake, doorbells + 16, 9);
    let mut qpair = controller.pcie_qpair(&setup(1, 8)).unwrap();
    assert!(matches!(
        qpair.poll_connect(std::time::Instant::now()),
        Ok(nvmf_core::transport::ConnectProgress::Admin(_))
    ));
    for at in [SQ1, CQ1] {
        assert_eq!((word(&fake, doorbells + at), word(&fake, events + at)), (0, 0));
    }
    assert_eq!(word(&fake, doorbells + 16), 9, "that of queue 2");
    qpair.quiesce_completed(None);
}

#[test]
fn registers_are_used_where_memory_is_not_offered_wanted_or_taken() {
    let used = |identify: &IdentifyController, wanted: bool, status: Status| {
        let fake = Fake::new();
        let mut options = ControllerOptions::default();
        options.shadow_doorbells = wanted;
        let mut controller = fake.controller_with(&options);
        let asked = controller.set_up(identify).unwrap().is_some();
        controller.set_up_completed(status);
        let mut bench = Bench::on(fake.clone(), controller, 8);
        bench.create();
        for op in 0..2 {
            bench.flush_command(op);
            bench.qpair.flush(&bench.tracker).unwrap();
        }
        let rung = fake.state().rung.len();
        assert!(rung == 2 || asked && status.is_success());
        (asked, rung)
    };
    assert_eq!(used(&offering(), true, Status::SUCCESS), (true, 1));
    assert_eq!(used(&offering(), true, Status::INVALID_OPCODE), (true, 2));
    assert_eq!(used(&offering(), false, Status::SUCCESS), (false, 2));
    assert_eq!(used(&IdentifyController::default(), true, Status::SUCCESS), (false, 2));
}

#[test]
fn doorbells_behind_the_page_are_written_to_both() {
    let fake = Fake::new();
    // CAP.DSTRD 8: doorbells are 1 KiB apart, and only two queue pairs are in the page.
    fake.state().registers.insert(4, (CAP >> 32) as u32 | 8);
    let (controller, doorbells, _) = controller(&fake);
    let shadow = controller.shared().shadow().unwrap();
    let queue = shadow.queue(1).unwrap();
    assert!(queue.tail(0, 1) && !queue.tail(1, 2));
    let behind = shadow.queue(2).unwrap();
    assert!(behind.tail(0, 1) && behind.tail(1, 2) && behind.head(2, 3));
    assert_eq!(word(&fake, doorbells + 4096), 2);
    // And where there is no room for them in memory, to the register alone.
    assert!(shadow.queue(1000).is_none());
}

#[test]
fn a_controller_that_is_disabled_has_forgotten_them() {
    let fake = Fake::new();
    let (mut controller, ..) = controller(&fake);
    controller.registers().unwrap().write32(0x14, 0).unwrap();
    assert!(controller.shared().shadow().is_none());
}

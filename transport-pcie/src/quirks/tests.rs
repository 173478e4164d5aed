use nvmf_core::dma::IoBuf;
use nvmf_core::spec::NvmOpcode;
use nvmf_core::spec::identify::IdentifyController;
use nvmf_core::transport::{TransportController, TransportQpair};
use nvmf_core::{DmaBuf, DmaPool};
use zerocopy::little_endian::U32;

use super::*;
use crate::qpair::tests::Bench;
use crate::testing::{CAP, Fake, setup};

#[test]
fn devices_are_found_by_both_identifiers_and_vendors_by_one() {
    assert_eq!(Quirks::of(0x8086, 0x0a54).min_io_entries, 1024);
    assert!(Quirks::of(0x8086, 0x0b60).no_sgl_for_dsm && !Quirks::of(0x8086, 0x0b60).no_sgl);
    assert!(Quirks::of(0x19e5, 1).no_sgl && Quirks::of(0x19e5, 0xffff).no_sgl);
    for nothing in [(0x8086, 0x0001), (0x1c5f, 0xa821), (0x1234, 0x4e56), (0xffff, 0xffff)] {
        assert_eq!(Quirks::of(nothing.0, nothing.1), Quirks::default());
    }
}

#[test]
fn no_line_hides_another() {
    for (index, (vendor, device, _)) in TABLE.iter().enumerate() {
        let before = &TABLE[..index];
        assert!(!before.iter().any(|(v, d, _)| v == vendor && (d.is_none() || d == device)), "{index}");
    }
}

fn fake(vendor: u16, device: u16) -> Fake {
    let fake = Fake::new();
    fake.state().ids = (vendor, device);
    fake
}

/// Entries of the rings that are made when 32 are asked for, of the admin queue and an I/O queue.
fn rings(fake: &Fake) -> (u16, u16) {
    let mut controller = fake.controller();
    let admin = controller.pcie_qpair(&setup(0, 32)).unwrap().entries();
    let aqa = controller.admin_queue().unwrap().aqa;
    assert_eq!(aqa, u32::from(admin - 1) * 0x1_0001);
    (admin, controller.pcie_qpair(&setup(1, 32)).unwrap().entries())
}

#[test]
fn rings_are_as_long_as_the_controller_needs_them_and_not_longer_than_it_takes() {
    assert_eq!(rings(&fake(0x1234, 1)), (32, 32));
    assert_eq!(rings(&fake(0x1414, 0xb111)), (256, 32));
    assert_eq!(rings(&fake(0x8086, 0x0a55)), (32, 64), "MQES is 64");
    let long = fake(0x8086, 0x0a55);
    long.state().registers.insert(0, CAP as u32 | 0xffff);
    assert_eq!(rings(&long), (32, 1024));
}

/// How the data of a command is described, PSDT: pieces that PRPs cannot describe, of a controller that says it takes SGLs.
fn psdt(fake: &Fake, opcode: NvmOpcode) -> u8 {
    let mut controller = fake.controller();
    controller
        .identified(&IdentifyController { sgls: U32::new(1), ..IdentifyController::default() })
        .unwrap();
    let mut bench = Bench::on(fake.clone(), controller, 8);
    bench.create();
    let pool = DmaPool::new();
    let pieces: Vec<DmaBuf> = (0..3).map(|_| pool.alloc(512).unwrap()).collect();
    bench.submit(0, opcode, IoBuf::Many(pieces));
    bench.qpair.flush(&bench.tracker).unwrap();
    fake.command(bench.qpair.ring_addresses().0, 0).flags >> 6
}

#[test]
fn sgls_are_not_used_where_they_are_better_left_alone() {
    let (write, dsm) = (NvmOpcode::WRITE, NvmOpcode::DATASET_MANAGEMENT);
    let good = fake(0x1234, 1);
    assert_eq!((psdt(&good, write), psdt(&fake(0x1234, 1), dsm)), (1, 1));
    assert_eq!((psdt(&fake(0x19e5, 7), write), psdt(&fake(0x19e5, 7), dsm)), (0, 0));
    assert_eq!((psdt(&fake(0x8086, 0x0b60), write), psdt(&fake(0x8086, 0x0b60), dsm)), (1, 0));
}

#[test]
fn pauses_are_told_to_the_core() {
    let delays = |vendor, device| fake(vendor, device).controller().capabilities().delays;
    assert_eq!(delays(0x1234, 1), InitDelays::default());
    assert_eq!(delays(0x1c5f, 0x0540).after_disable, Duration::from_millis(2500));
    assert_eq!(delays(0x8086, 0x0953).before_init, Duration::from_secs(2));
}

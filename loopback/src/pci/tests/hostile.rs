//! A host that writes whatever it likes.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write32(u64, u32),
    Doorbell(u16, bool, u32),
    Admin([u8; 64]),
    /// Opcode, flags, data pointer within the memory that is mapped, CDW10 to CDW12.
    Plausible(bool, u8, u8, [u16; 2], [u32; 3]),
    Enable,
}

fn step() -> impl Strategy<Value = Step> {
    let dwords = prop_oneof![Just(0), 0u32..64, any::<u32>()];
    prop_oneof![
        ((0u64..0x40).prop_map(|n| n * 4), any::<u32>()).prop_map(|(at, value)| Step::Write32(at, value)),
        (0u16..6, any::<bool>(), prop_oneof![0u32..20, any::<u32>()])
            .prop_map(|(qid, cq, value)| Step::Doorbell(qid, cq, value)),
        any::<[[u8; 32]; 2]>().prop_map(|halves| {
            let mut sqe = [0; 64];
            sqe[..32].copy_from_slice(&halves[0]);
            sqe[32..].copy_from_slice(&halves[1]);
            Step::Admin(sqe)
        }),
        (
            any::<bool>(),
            0u8..16,
            prop_oneof![Just(0u8), Just(0x40)],
            any::<[u16; 2]>(),
            [dwords.clone(), dwords.clone(), dwords]
        )
            .prop_map(|(io, op, flags, pointer, dwords)| Step::Plausible(io, op, flags, pointer, dwords)),
        Just(Step::Enable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_a_host_writes_does_harm(steps in proptest::collection::vec(step(), 1..80), fill in any::<[u8; 32]>()) {
        let mut host = Host::enabled();
        let mut ring = host.io_queue(1, 16);
        let memory = host.buffer(16);
        memory.put(0, &fill.repeat(16 * PAGE / 32)[..]);
        for step in steps {
            match step {
                Step::Write32(at, value) => host.bar.write32(at, value).unwrap(),
                Step::Doorbell(qid, cq, value) => {
                    host.bar.doorbell(0x1000 + 8 * u64::from(qid) + if cq { 4 } else { 0 }, value).unwrap();
                }
                Step::Admin(bytes) => {
                    host.submit(Sqe::read_from_bytes(&bytes).unwrap());
                }
                Step::Plausible(io, opcode, flags, pointer, [cdw10, cdw11, cdw12]) => {
                    let [prp1, prp2] = pointer.map(|p| memory.base + u64::from(p));
                    let sqe = Sqe { flags, dptr: DataPointer::prp(prp1, prp2), ..Sqe::new(opcode, 1) };
                    let sqe = sqe.with_cdw10(cdw10).with_cdw11(cdw11).with_cdw12(cdw12);
                    match io {
                        true => ring.submit(&host.bar, host.cap, sqe, 1),
                        false => { host.submit(sqe); }
                    }
                }
                Step::Enable => {
                    host.bar.write32(CC, 0).unwrap();
                    host.write_admin_registers();
                    host.bar.write32(CC, ENABLE).unwrap();
                    (host.admin.tail, host.admin.head, host.admin.phase) = (0, 0, true);
                }
            }
            prop_assert!(host.csts() != ControllerStatus::ALL_ONES);
        }
        // Whatever it was, a reset ends it.
        host.bar.write32(CC, 0).unwrap();
        host.bar.write32(CSTS, 1 << 4).unwrap();
        host.enable();
        let buffer = host.buffer(1);
        prop_assert_eq!(host.status(identify(Cns::CONTROLLER, &buffer)), Status::SUCCESS);
    }
}

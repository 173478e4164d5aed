//! Commands whose data the controller has a key of its own for, by a memory window.

use nvmf_core::spec::data_ptr::{SglSubtype, SglType};
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::transport::Quiesce;
use nvmf_core::{ControllerOptions, ErrorKind};
use nvmf_transport_rdma::RdmaOptions;
use nvmf_transport_rdma::sim::{DeviceLimits, Sim};
use zerocopy::IntoBytes;

use crate::bench::{Bench, Command, IDENTITY, Target};

fn target(sim: &Sim) -> Target {
    let rdma = RdmaOptions::default().memory_windows(true);
    Target::with(sim.clone(), rdma, &ControllerOptions::default(), IDENTITY)
}

fn bench() -> (Sim, Bench) {
    let sim = Sim::new();
    let bench = target(&sim).connect(1, 8);
    (sim, bench)
}

/// Answers, and with that ends a key.
fn end_key(bench: &mut Bench, command: &Command, key: u32) {
    let cqe = Cqe::new(command.cid(), 0, Status::SUCCESS);
    bench.peer.send(cqe.as_bytes(), Some(key)).unwrap();
}

#[test]
fn the_key_is_for_the_commands_bytes_and_ends_with_the_response() {
    let (sim, mut bench) = bench();
    let mut keys = Vec::new();
    for round in 0..600u32 {
        let cid = bench.read(4096).unwrap();
        bench.flush().unwrap();
        let command = bench.take().unwrap();
        let sgl = command.sgl();
        assert_eq!((sgl.sgl_type(), sgl.subtype()), (SglType::KEYED_DATA_BLOCK, SglSubtype::INVALIDATE_KEY));
        assert_ne!(keys.last(), Some(&sgl.key()));
        keys.push(sgl.key());
        bench.peer.write(sgl.address.get(), sgl.key(), &[round as u8; 4096]).unwrap();
        end_key(&mut bench, &command, sgl.key());
        assert_eq!(bench.drain(), [(cid, vec![round as u8; 4096])]);
    }
    let stats = sim.stats();
    assert_eq!((stats.binds, stats.remote_invalidations, stats.invalidations), (600, 600, 0));
    assert_eq!(bench.quiesce(), Quiesce::Done);
}

#[test]
fn a_key_that_the_controller_leaves_is_ended_before_the_command_is_over() {
    let (sim, mut bench) = bench();
    let cid = bench.read(4096).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    bench.connection.hold_sends(true);
    bench.serve(&command, 9);
    assert!(bench.drain().is_empty(), "the device has not said that the key is ended");
    bench.connection.hold_sends(false);
    assert_eq!(bench.drain(), [(cid, vec![9; 4096])]);
    let stats = sim.stats();
    assert_eq!((stats.binds, stats.remote_invalidations, stats.invalidations), (1, 0, 1));
    // The slot, and its window, are used again.
    for round in 0..20 {
        bench.read(4096).unwrap();
        bench.flush().unwrap();
        let command = bench.take().unwrap();
        bench.serve(&command, round);
        // The key is ended in one round, and known to be in the next.
        assert!(bench.drain().is_empty());
        assert_eq!(bench.drain().len(), 1);
    }
}

/// What a controller tries that has no business there.
fn refused(attempt: impl FnOnce(&mut Bench, &Command)) {
    let (_sim, mut bench) = bench();
    bench.read(4096).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    attempt(&mut bench, &command);
    assert!(!bench.peer.is_connected(), "the device did not refuse it");
    assert_eq!(bench.quiesce(), Quiesce::Done);
}

#[test]
fn what_is_beyond_the_command_is_refused() {
    refused(|bench, command| {
        let sgl = command.sgl();
        bench.peer.write(sgl.address.get(), sgl.key(), &[0; 4097]).unwrap_err();
    });
    refused(|bench, command| {
        let sgl = command.sgl();
        bench.peer.write(sgl.address.get() - 1, sgl.key(), &[0; 2]).unwrap_err();
    });
    refused(|bench, command| {
        let sgl = command.sgl();
        bench.peer.read(sgl.address.get(), sgl.key(), &mut [0; 16]).unwrap_err();
    });
    for key in 0..64 {
        refused(|bench, command| {
            bench.peer.write(command.sgl().address.get(), key, &[0; 16]).unwrap_err();
        });
    }
}

#[test]
fn memory_is_out_of_reach_once_the_command_is_over() {
    for by_controller in [true, false] {
        refused(|bench, command| {
            let sgl = command.sgl();
            if by_controller {
                end_key(bench, command, sgl.key());
            } else {
                bench.answer(command.cid());
                bench.poll().unwrap();
            }
            assert_eq!(bench.drain().len(), 1);
            bench.peer.write(sgl.address.get(), sgl.key(), &[1; 4096]).unwrap_err();
        });
    }
}

#[test]
fn data_to_be_written_can_only_be_read_and_small_data_needs_no_key() {
    let (sim, mut bench) = bench();
    bench.write(&[3; 512]).unwrap();
    bench.write(&[4; 8192]).unwrap();
    bench.flush().unwrap();
    let small = bench.take().unwrap();
    assert_eq!(small.sgl().sgl_type(), SglType::DATA_BLOCK);
    bench.answer(small.cid());
    let large = bench.take().unwrap();
    let sgl = large.sgl();
    let mut found = [0; 8192];
    bench.peer.read(sgl.address.get(), sgl.key(), &mut found).unwrap();
    assert_eq!(found, [4; 8192]);
    bench.answer(large.cid());
    bench.poll().unwrap();
    assert_eq!(bench.drain().len(), 2);
    assert_eq!(sim.stats().binds, 1);
    bench.write(&[4; 8192]).unwrap();
    bench.flush().unwrap();
    let again = bench.take().unwrap();
    bench.peer.write(again.sgl().address.get(), again.sgl().key(), &[0; 16]).unwrap_err();
}

#[test]
fn buffers_in_several_pieces_are_one_for_the_controller() {
    let (_sim, mut bench) = bench();
    let buf = [8192, 4096].map(|len| bench.pool.alloc(len).unwrap()).into_iter().collect::<Vec<_>>();
    let cid = bench.submit(Sqe::nvm(NvmOpcode::READ, 1), buf).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    assert_eq!((command.sgl().sgl_type(), command.sgl().keyed_length()), (SglType::KEYED_DATA_BLOCK, 12_288));
    bench.serve(&command, 0x3c);
    bench.poll().unwrap();
    assert_eq!(bench.drain(), [(cid, vec![0x3c; 12_288])]);
}

#[test]
fn ending_the_key_of_another_command_is_misbehaviour() {
    let (_sim, mut bench) = bench();
    bench.read(4096).unwrap();
    bench.read(4096).unwrap();
    bench.flush().unwrap();
    let (first, second) = (bench.take().unwrap(), bench.take().unwrap());
    end_key(&mut bench, &first, second.sgl().key());
    let error = bench.failure();
    assert!(matches!(error.kind(), ErrorKind::PeerMisbehaved(_)), "{error}");
    assert!(error.to_string().contains("invalidated key"), "{error}");
    assert_eq!(bench.quiesce(), Quiesce::Done);
}

#[test]
fn full_queues_and_keys_left_behind_do_not_overrun_the_send_queue() {
    let (_sim, mut bench) = bench();
    for round in 0..50u8 {
        for _ in 0..7 {
            bench.read(512).unwrap();
        }
        bench.flush().unwrap();
        let mut done = 0;
        while done < 7 {
            while let Some(command) = bench.take() {
                bench.serve(&command, round);
            }
            bench.poll().unwrap();
            done += bench.completed().len();
        }
    }
}

#[test]
fn a_device_without_windows_says_so() {
    let sim = Sim::with_limits(DeviceLimits {
        max_registration: 1 << 40,
        max_work_requests: 1024,
        max_elements: 16,
        max_completions: 4096,
        max_reads: 16,
        max_shared_receives: 0,
        windows: false,
    });
    let mut target = target(&sim);
    let mut qpair = target.qpair(1, 8);
    let error = nvmf_core::transport::TransportQpair::poll_connect(&mut qpair, std::time::Instant::now());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("the RDMA device sim0 has no memory windows"), "{error}");
}

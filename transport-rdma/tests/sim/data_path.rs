//! Commands, data and completions of a queue pair over the simulated fabric.

use std::os::unix::fs::FileExt;

use crate::bench::{Bench, IDENTITY, Identity, Target};
use nvmf_core::dma::DeviceBuf;
use nvmf_core::spec::data_ptr::{SglDescriptor, SglSubtype, SglType};
use nvmf_core::spec::fabrics::CATTR_DISABLE_SQ_FLOW_CONTROL;
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::transport::{Quiesce, TransportQpair};
use nvmf_core::{ControllerOptions, DmaRegion, ErrorKind};
use nvmf_transport_rdma::RdmaOptions;
use nvmf_transport_rdma::sim::DeviceLimits;
use nvmf_transport_rdma::sim::{Sim, SimFault};
use proptest::prelude::*;
use zerocopy::FromBytes;

#[test]
fn a_read_is_written_into_the_buffer_by_the_controller() {
    let mut bench = Target::new(Sim::new()).connect(1, 8);
    let cid = bench.read(8192).unwrap();
    assert!(bench.take().is_none(), "nothing is sent before the flush");
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    assert_eq!((command.cid(), command.capsule.len()), (cid, 64));
    let sgl = command.sgl();
    assert_eq!((sgl.sgl_type(), sgl.subtype()), (SglType::KEYED_DATA_BLOCK, SglSubtype::ADDRESS));
    assert!(bench.drain().is_empty());
    bench.serve(&command, 0x5a);
    assert_eq!(bench.drain(), [(cid, vec![0x5a; 8192])]);
    assert_eq!(bench.quiesce(), Quiesce::Done);
}

#[test]
fn a_small_write_goes_with_the_capsule_and_a_large_one_is_fetched() {
    let mut bench = Target::new(Sim::new()).connect(1, 8);
    let small: Vec<u8> = (0..4096).map(|n| n as u8).collect();
    bench.write(&small).unwrap();
    bench.write(&[7; 4608]).unwrap();
    bench.flush().unwrap();
    let first = bench.take().unwrap();
    assert_eq!(first.sgl(), SglDescriptor::in_capsule(0, 4096));
    assert_eq!(first.capsule[64..], small);
    let second = bench.take().unwrap();
    assert_eq!(second.capsule.len(), 64);
    bench.serve(&second, 7);
    bench.answer(first.cid());
    assert_eq!(bench.drain().len(), 2);
}

#[test]
fn in_capsule_data_starts_where_the_controller_wants_it() {
    let identity = Identity { icdoff: 3, ..IDENTITY };
    let mut target =
        Target::with(Sim::new(), RdmaOptions::default(), &ControllerOptions::default(), identity);
    let mut bench = target.connect(1, 4);
    bench.write(&[9; 512]).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    assert_eq!(command.capsule.len(), 64 + 48 + 512);
    assert_eq!(command.capsule[112..], [9; 512]);
}

#[test]
fn the_admin_queue_puts_no_data_into_capsules() {
    let mut bench = Target::new(Sim::new()).connect(0, 32);
    bench.connect_command(0, 32, 0);
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    assert_eq!(command.capsule.len(), 64);
    assert_eq!(command.sgl().sgl_type(), SglType::KEYED_DATA_BLOCK);
    assert_eq!(command.sgl().keyed_length(), 1024);
}

#[test]
fn buffers_of_several_regions_are_a_list_in_the_capsule() {
    let mut target = Target::new(Sim::new());
    let mut bench = target.connect(1, 4);
    let buf = [8192, 4096, 12_288].map(|len| bench.pool.alloc(len).unwrap()).into_iter().collect::<Vec<_>>();
    let cid = bench.submit(Sqe::nvm(NvmOpcode::READ, 1), buf).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    assert_eq!((command.sgl().sgl_type(), command.sgl().length.get()), (SglType::LAST_SEGMENT, 48));
    for (index, bytes) in command.capsule[64..].chunks(16).enumerate() {
        let descriptor = SglDescriptor::read_from_bytes(bytes).unwrap();
        let data = vec![index as u8 + 1; descriptor.keyed_length() as usize];
        bench.peer.write(descriptor.address.get(), descriptor.key(), &data).unwrap();
    }
    bench.answer(cid);
    let expected = [vec![1; 8192], vec![2; 4096], vec![3; 12_288]].concat();
    assert_eq!(bench.drain(), [(cid, expected)]);
}

#[test]
fn data_in_more_pieces_than_the_controller_takes_is_copied() {
    let identity = Identity { msdbd: 1, ..IDENTITY };
    let mut target =
        Target::with(Sim::new(), RdmaOptions::default(), &ControllerOptions::default(), identity);
    let mut bench = target.connect(1, 8);
    let lengths = [8192, 300, 724, 8192];
    let buffers = |bench: &Bench| lengths.map(|len| bench.pool.alloc(len).unwrap()).into_iter().collect();
    let bufs: Vec<_> = buffers(&bench);
    let read = bench.submit(Sqe::nvm(NvmOpcode::READ, 1), bufs).unwrap();
    let mut bufs: Vec<_> = buffers(&bench);
    bufs.iter_mut().for_each(|buf| buf.fill(0x21));
    let write = bench.submit(Sqe::nvm(NvmOpcode::WRITE, 1), bufs).unwrap();
    bench.flush().unwrap();
    for (cid, byte) in [(read, 0x33), (write, 0x21)] {
        let command = bench.take().unwrap();
        assert_eq!((command.cid(), command.sgl().keyed_length()), (cid, 17_408));
        bench.serve(&command, byte);
    }
    assert_eq!(bench.drain(), [(read, vec![0x33; 17_408]), (write, vec![0x21; 17_408])]);
}

#[test]
fn memory_of_the_callers_own_is_used_as_it_is() {
    let mut bench = Target::new(Sim::new()).connect(1, 4);
    // What a caller registers is a region like any other to the transport.
    let extent = DmaRegion::allocate(1 << 22).unwrap();
    let address = extent.region().address();
    let buf = bench.pool.adopt(extent);
    bench.submit(Sqe::nvm(NvmOpcode::READ, 1), buf).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    assert_eq!(command.sgl().address.get(), address as u64);
    bench.serve(&command, 1);
    assert_eq!(bench.drain().len(), 1);
}

#[test]
fn memory_of_a_dma_buf_is_named_by_its_own_key_and_never_touched() {
    for windows in [false, true] {
        let sim = Sim::new();
        let rdma = RdmaOptions::default().memory_windows(windows);
        let mut bench =
            Target::with(sim.clone(), rdma, &ControllerOptions::default(), IDENTITY).connect(1, 8);
        let before = sim.stats();
        let (buf, file) = DeviceBuf::simulated(64 << 10).unwrap();
        let region = buf.region().clone();
        bench.qpair.take_device_memory(&region).unwrap();
        let (read, small) = buf.split_at(32 << 10).unwrap();
        let (mut small, write) = small.split_at(4096).unwrap();
        small.set_len(512);
        file.write_all_at(&[0x77; 32 << 10], 32 << 10).unwrap();
        bench.submit(Sqe::nvm(NvmOpcode::READ, 1), read).unwrap();
        bench.submit(Sqe::nvm(NvmOpcode::WRITE, 1), small).unwrap();
        bench.submit(Sqe::nvm(NvmOpcode::WRITE, 1), write).unwrap();
        bench.flush().unwrap();
        let command = bench.take().unwrap();
        assert_eq!(command.sgl().address.get(), region.address() as u64);
        bench.serve(&command, 0x21);
        // The device gathers what goes along with the capsule.
        let command = bench.take().unwrap();
        assert_eq!(command.capsule[64..], [0x77; 512]);
        bench.serve(&command, 0x77);
        let command = bench.take().unwrap();
        assert_eq!(command.sgl().address.get(), region.address() as u64 + (36 << 10));
        bench.serve(&command, 0x77);
        let mut done = 0;
        while done < 3 {
            done += bench.drain().len();
        }
        let mut found = vec![0; 32 << 10];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found.iter().all(|&byte| byte == 0x21));
        let after = sim.stats();
        assert_eq!((after.registrations - before.registrations, after.dma_bufs), (1, 1));
        assert!(!region.in_use());
        assert_eq!(bench.quiesce(), Quiesce::Done);
    }
}

#[test]
fn a_dma_buf_that_the_device_refuses_costs_no_connection() {
    let sim = Sim::new();
    let mut bench = Target::new(sim.clone()).connect(1, 8);
    let (buf, _) = DeviceBuf::simulated(8192).unwrap();
    sim.script(SimFault::Register(libc::EOPNOTSUPP));
    let error = bench.qpair.take_device_memory(buf.region()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    assert!(error.to_string().contains("I/O queue 1") && error.to_string().contains("sim0"), "{error}");
    let cid = bench.read(4096).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    bench.serve(&command, 3);
    assert_eq!(bench.drain(), [(cid, vec![3; 4096])]);
}

#[test]
fn a_batch_rings_one_doorbell_and_reads_have_no_completion_of_their_own() {
    let sim = Sim::new();
    let mut bench = Target::new(sim.clone()).connect(1, 65);
    for _ in 0..16 {
        bench.read(4096).unwrap();
    }
    bench.flush().unwrap();
    let stats = sim.stats();
    assert_eq!((stats.doorbells, stats.sends, stats.unsignalled), (1, 16, 16));
    while let Some(command) = bench.take() {
        bench.serve(&command, 2);
    }
    assert_eq!(bench.drain().len(), 16);
    assert_eq!(bench.qpair.stats().sends, 1);
}

#[test]
fn a_write_waits_for_its_send_as_well_whichever_comes_first() {
    let mut bench = Target::new(Sim::new()).connect(1, 8);
    bench.connection.hold_sends(true);
    let cids: Vec<_> = (0..4).map(|n| bench.write(&[n; 512]).unwrap()).collect();
    bench.flush().unwrap();
    while let Some(command) = bench.take() {
        bench.answer(command.cid());
    }
    assert!(bench.drain().is_empty(), "the device may still read the buffers");
    bench.connection.hold_sends(false);
    let mut done: Vec<_> = bench.drain().into_iter().map(|(cid, _)| cid).collect();
    done.sort_unstable();
    let mut expected = cids;
    expected.sort_unstable();
    assert_eq!(done, expected);
}

#[test]
fn a_controller_that_takes_fewer_commands_than_asked_for_gets_no_more() {
    let sim = Sim::new();
    let mut target = Target::new(sim.clone());
    target.crqsize = 3;
    let mut bench = target.connect(1, 16);
    for _ in 0..15 {
        bench.read(512).unwrap();
    }
    bench.flush().unwrap();
    let mut completed = 0;
    let mut rounds = 0;
    while completed < 15 {
        let commands: Vec<_> = std::iter::from_fn(|| bench.take()).collect();
        assert!((1..=3).contains(&commands.len()), "{} commands at once", commands.len());
        for command in &commands {
            bench.serve(command, 3);
        }
        completed += bench.drain().len();
        rounds += 1;
    }
    assert_eq!((completed, rounds), (15, 5));
    assert_eq!(sim.stats().not_ready, 0);
}

#[test]
fn a_device_with_short_queues_serves_a_long_queue_pair() {
    let sim = Sim::with_limits(DeviceLimits {
        max_registration: 1 << 30,
        max_work_requests: 5,
        max_elements: 1,
        max_completions: 64,
        max_reads: 1,
        max_shared_receives: 16_384,
        windows: true,
    });
    let mut bench = Target::new(sim.clone()).connect(1, 32);
    for n in 0..31 {
        if n % 2 == 0 { bench.write(&[8; 512]) } else { bench.read(512) }.unwrap();
    }
    bench.flush().unwrap();
    let mut completed = 0;
    while completed < 31 {
        let commands: Vec<_> = std::iter::from_fn(|| bench.take()).collect();
        assert!((1..=4).contains(&commands.len()));
        // With one element per request, data does not go with the capsule.
        commands.iter().for_each(|command| bench.serve(command, 8));
        completed += bench.drain().len();
    }
    assert_eq!(sim.stats().not_ready, 0);
}

#[test]
fn flow_control_follows_connect() {
    for disabled in [false, true] {
        let sim = Sim::new();
        let mut bench = Target::new(sim.clone()).connect(1, 4);
        let cattr = if disabled { CATTR_DISABLE_SQ_FLOW_CONTROL } else { 0 };
        let cid = bench.connect_command(1, 4, cattr);
        bench.flush().unwrap();
        bench.take().unwrap();
        bench.answer_with(Cqe::new(cid, if disabled { u16::MAX } else { 1 }, Status::SUCCESS));
        assert_eq!(bench.drain().len(), 1);
        for _ in 0..3 {
            bench.read(512).unwrap();
        }
        bench.flush().unwrap();
        let first = bench.take().unwrap();
        // The controller says that it fetched none of the three.
        bench.answer_with(Cqe::new(first.cid(), 1, Status::SUCCESS));
        bench.drain();
        bench.read(512).unwrap();
        bench.flush().unwrap();
        let waiting = std::iter::from_fn(|| bench.take()).count();
        assert_eq!(waiting, if disabled { 3 } else { 2 }, "flow control disabled: {disabled}");
    }
}

#[test]
fn a_budget_is_kept_and_what_is_left_is_told() {
    let mut bench = Target::new(Sim::new()).connect(1, 65);
    for _ in 0..40 {
        bench.read(512).unwrap();
    }
    bench.flush().unwrap();
    while let Some(command) = bench.take() {
        bench.answer(command.cid());
    }
    let mut counts = Vec::new();
    while counts.iter().sum::<usize>() < 40 {
        bench.qpair.poll(&mut bench.tracker, 7).unwrap();
        let more = bench.qpair.has_local_work();
        counts.push(bench.completed().len());
        assert!(more || counts.iter().sum::<usize>() == 40);
    }
    assert!(counts.iter().all(|&count| count <= 7), "{counts:?}");
}

#[test]
fn who_sleeps_is_woken_and_who_polls_raises_no_interrupt() {
    let sim = Sim::new();
    let mut bench = Target::new(sim.clone()).connect(1, 8);
    for _ in 0..100 {
        bench.read(512).unwrap();
        bench.flush().unwrap();
        let command = bench.take().unwrap();
        bench.serve(&command, 1);
        assert_eq!(bench.drain().len(), 1);
    }
    assert_eq!(sim.stats().armed, 0);
    assert!(!bench.is_readable());

    bench.read(512).unwrap();
    bench.flush().unwrap();
    let command = bench.take().unwrap();
    assert!(bench.drain().is_empty());
    assert!(bench.qpair.has_local_work(), "armed just now: one more look");
    assert!(bench.drain().is_empty());
    assert!(!bench.qpair.has_local_work(), "now it may sleep");
    assert!(!bench.is_readable());
    bench.serve(&command, 1);
    assert!(bench.is_readable());
    assert_eq!(bench.drain().len(), 1);
    assert!(!bench.is_readable());
    assert_eq!(sim.stats().armed, 1);
    // An event of the connection manager wakes as well.
    bench.connection.event(nvmf_transport_rdma::sim::CmEvent::Disconnected);
    assert!(bench.is_readable());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever order commands are taken, answered and completed in: every one completes once, with its data.
    #[test]
    fn every_command_completes_once_with_its_data(
        entries in 2u16..20,
        crqsize in 1u16..24,
        steps in proptest::collection::vec(any::<(u8, u8)>(), 1..300),
    ) {
        let sim = Sim::new();
        let mut target = Target::new(sim.clone());
        target.crqsize = crqsize;
        let mut bench = target.connect(1, entries);
        let mut at_controller = Vec::new();
        let (mut submitted, mut completed) = (Vec::new(), Vec::new());
        for (what, pick) in steps {
            match what % 6 {
                0 if bench.tracker.free_slots() > 0 => {
                    submitted.push(match pick % 3 {
                        0 => bench.read(8192).unwrap(),
                        1 => bench.write(&[0xab; 512]).unwrap(),
                        _ => bench.write(&[0xab; 16_384]).unwrap(),
                    });
                }
                1 => bench.flush().unwrap(),
                2 => at_controller.extend(bench.take()),
                3 if !at_controller.is_empty() => {
                    let command = at_controller.swap_remove(usize::from(pick) % at_controller.len());
                    bench.serve(&command, 0xab);
                }
                4 => bench.connection.hold_sends(pick % 2 == 0),
                _ => {
                    bench.qpair.poll(&mut bench.tracker, usize::from(pick % 8) + 1).unwrap();
                    completed.extend(bench.completed());
                }
            }
            prop_assert!(at_controller.len() <= usize::from(crqsize));
        }
        bench.connection.hold_sends(false);
        for _ in 0..200 {
            bench.flush().unwrap();
            while let Some(command) = bench.take() {
                at_controller.push(command);
            }
            for command in at_controller.drain(..) {
                bench.serve(&command, 0xab);
            }
            completed.extend(bench.drain());
        }
        prop_assert!(completed.iter().all(|(_, data)| data.iter().all(|&byte| byte == 0xab)));
        let mut cids: Vec<_> = completed.into_iter().map(|(cid, _)| cid).collect();
        cids.sort_unstable();
        submitted.sort_unstable();
        prop_assert_eq!(cids, submitted);
        prop_assert_eq!(sim.stats().not_ready, 0);
        prop_assert_eq!(bench.quiesce(), Quiesce::Done);
    }
}

#[test]
fn queues_of_one_controller_share_registrations() {
    let sim = Sim::new();
    let mut target = Target::new(sim.clone());
    let mut first = target.connect(1, 4);
    let mut second = target.connect(2, 4);
    let before = sim.stats().registrations;
    let buf = first.pool.alloc(4096).unwrap();
    first.submit(Sqe::nvm(NvmOpcode::READ, 1), buf).unwrap();
    second.pool = first.pool.clone();
    second.read(4096).unwrap();
    assert_eq!(sim.stats().registrations, before + 1);
}

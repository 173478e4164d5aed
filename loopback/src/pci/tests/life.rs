//! Enabling, resetting, removing; registers and configuration space.

use super::*;

#[test]
fn enable_identify_shutdown_disable() {
    let mut host = Host::inline();
    assert_eq!((host.cap.max_queue_entries(), host.cap.mpsmin(), host.cap.mpsmax()), (64, 0, 0));
    assert!(host.cap.cqr() && host.cap.nssrs() && !host.cap.cmbs());
    assert_eq!(host.csts(), ControllerStatus(0));
    host.enable();
    let buffer = host.buffer(1);
    assert_eq!(host.status(identify(Cns::CONTROLLER, &buffer)), Status::SUCCESS);
    let data = IdentifyController::read_from_bytes(&buffer.bytes(0, PAGE)).unwrap();
    assert_eq!((data.cntrltype, data.sqes, data.cqes), (ControllerType::IO, 0x66, 0x44));
    assert_eq!((data.ioccsz.get(), data.iorcsz.get(), data.maxcmd.get(), data.ofcs.get()), (0, 0, 0, 0));
    assert_eq!(data.sgls.get(), 1 | 1 << 16 | 1 << 17 | 1 << 19);
    let mut id = [0; 2];
    host.device.read_config(0, &mut id).unwrap();
    assert_eq!(data.vid.get(), u16::from_le_bytes(id));
    host.bar.write32(CC, ControllerConfig(ENABLE).with_shn(Shn::NORMAL).0).unwrap();
    assert_eq!(host.csts().shst(), Shst::COMPLETE);
    host.bar.write32(CC, 0).unwrap();
    assert_eq!(host.csts(), ControllerStatus(0));
    host.enable();
    assert_eq!(host.status(identify(Cns::CONTROLLER, &buffer)), Status::SUCCESS);
}

#[test]
fn what_cannot_be_enabled_is_fatal_until_the_reset() {
    let mut host = Host::inline();
    let try_with = |aqa: u32, cc: u32| {
        host.write_admin_registers();
        host.bar.write32(0x24, aqa).unwrap();
        host.bar.write32(CC, cc).unwrap();
        let csts = host.csts();
        host.bar.write32(CC, 0).unwrap();
        assert_eq!(host.csts(), ControllerStatus(0), "a reset clears it");
        csts
    };
    let good = AdminQueueAttributes::new(7, 7).0;
    assert!(try_with(good, ENABLE).rdy());
    assert!(try_with(good, 1).rdy(), "entry sizes may come later");
    assert!(try_with(AdminQueueAttributes::new(0, 7).0, ENABLE).cfs());
    assert!(try_with(AdminQueueAttributes::new(7, 0).0, ENABLE).cfs());
    assert!(try_with(good, ENABLE | 1 << 7).cfs(), "MPS beyond MPSMAX");
    assert!(try_with(good, ENABLE | 1 << 11).cfs(), "AMS");
    assert!(try_with(good, ENABLE | 1 << 20).cfs(), "entry size");
    host.enable();
}

#[test]
fn rings_out_of_reach_are_fatal() {
    let mut host = Host::inline();
    host.write_admin_registers();
    host.bar.write64(0x28, 0x1000).unwrap();
    host.bar.write32(CC, ENABLE).unwrap();
    assert!(host.csts().rdy());
    host.submit(Sqe::admin(AdminOpcode::KEEP_ALIVE, 0));
    assert!(host.csts().cfs());
    host.bar.write32(CC, 0).unwrap();
    host.enable();
    // Without bus mastering nothing is in reach.
    host.device.write_config(4, &[0x02, 0x04]).unwrap();
    host.submit(Sqe::admin(AdminOpcode::KEEP_ALIVE, 0));
    assert!(host.csts().cfs());
}

#[test]
fn reset_drops_queues_and_what_was_outstanding() {
    let mut host = Host::enabled();
    host.io_queue(1, 16);
    host.submit(Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0));
    host.bar.write32(CC, 0).unwrap();
    assert!(host.admin.peek().is_none(), "no completion of what a reset ended");
    host.enable();
    assert!(host.admin.peek().is_none());
    host.io_queue(1, 16);
    // A reset of the function takes the registers along, and bus mastering.
    host.device.reset().unwrap();
    assert_eq!((host.csts().0, host.bar.read32(0x24).unwrap()), (0, 0));
    let mut command = [0; 2];
    host.device.read_config(4, &mut command).unwrap();
    assert_eq!(command[0] & 4, 0);
    host.device.write_config(4, &[0x06, 0x04]).unwrap();
    host.enable();
    let ring = host.io_queue(1, 16);
    // So does one of the NVM subsystem, and it says so.
    host.bar.write32(0x20, NSSR_RESET).unwrap();
    assert_eq!(host.csts(), ControllerStatus(1 << 4));
    host.bar.write32(CSTS, 1 << 4).unwrap();
    host.enable();
    let sqe = host.create_sq(&ring);
    assert_eq!(host.status(sqe), Status::INVALID_COMPLETION_QUEUE.with_dnr());
}

#[test]
fn a_subsystem_reset_ends_other_controllers() {
    let mut host = Host::enabled();
    let options = PciOptions::new().inline(true);
    let other = host.loopback.pci_function_with(NQN, &options).unwrap();
    let mut other = other.open().unwrap();
    let bar = other.bar0().unwrap();
    host.bar.write32(0x20, NSSR_RESET).unwrap();
    assert!(ControllerStatus(bar.read32(CSTS).unwrap()).cfs());
    host.bar.write32(CSTS, 1 << 4).unwrap();
    host.enable();
}

#[test]
fn ready_comes_late_or_never() {
    let delay = Duration::from_millis(30);
    let host = Host::with(loopback(), &PciOptions::new().inline(true).ready_delay(delay));
    host.write_admin_registers();
    let start = Instant::now();
    host.bar.write32(CC, ENABLE).unwrap();
    while !host.csts().rdy() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(start.elapsed() >= delay);
    host.bar.write32(CC, 0).unwrap();
    host.function.never_ready(true);
    host.bar.write32(CC, ENABLE).unwrap();
    std::thread::sleep(delay);
    assert_eq!((host.csts().0, host.bar.read32(CC).unwrap()), (0, ENABLE));
}

#[test]
fn a_function_that_is_gone_reads_as_all_ones() {
    let mut host = Host::enabled();
    let buffer = host.buffer(1);
    host.function.remove();
    assert_eq!(host.csts(), ControllerStatus::ALL_ONES);
    assert_eq!(host.bar.read64(0).unwrap(), u64::MAX);
    host.submit(identify(Cns::CONTROLLER, &buffer));
    assert!(host.admin.peek().is_none());
    assert!(host.device.is_removed() && host.device.read_config(0, &mut [0; 4]).is_err());
    assert!(host.device.removal_fd().is_some() && host.device.isolate());
    assert!(host.function.open().is_err());
    assert_eq!(host.loopback.controllers(NQN), 0);
}

#[test]
fn the_end_of_the_subsystem_is_the_end_of_the_function() {
    let host = Host::enabled();
    host.loopback.disconnect_all();
    assert!(host.csts().cfs(), "the controller ended");
    host.bar.write32(CC, 0).unwrap();
    host.write_admin_registers();
    host.bar.write32(CC, ENABLE).unwrap();
    assert!(host.csts().rdy());
    host.loopback.remove_subsystem(NQN).unwrap();
    host.function.poll();
    assert_eq!(host.csts(), ControllerStatus::ALL_ONES);
}

#[test]
fn one_host_at_a_time() {
    let host = Host::enabled();
    assert!(host.function.open().unwrap_err().to_string().contains("in use"));
    let bar = host.bar.clone();
    assert_eq!(bar.read32(CSTS).unwrap(), 1);
    drop(host);
    assert_eq!(bar.read32(CSTS).unwrap(), u32::MAX, "registers outlive the function, and say so");
}

#[test]
fn a_device_given_up_is_reset_for_the_next_host() {
    let Host { device, function, bar, loopback: _loopback, .. } = Host::enabled();
    assert_eq!(bar.read32(CSTS).unwrap(), 1);
    drop(device);
    assert_eq!(bar.read32(CSTS).unwrap(), 0);
    function.open().unwrap();
    assert_eq!(function.bar_len(0), bar.len());
}

#[test]
fn bars_by_bytes() {
    let host = Host::enabled();
    let mut bytes = [0; 8];
    host.function.bar_read(0, 0, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), host.cap.0);
    host.function.bar_write(4, 100, &[1, 2, 3]).unwrap();
    let mut back = [0; 3];
    host.function.bar_read(4, 100, &mut back).unwrap();
    assert_eq!(back, [1, 2, 3]);
    host.function.bar_write(0, CC, &0u32.to_le_bytes()).unwrap();
    assert_eq!(host.csts(), ControllerStatus(0));
    for (bar, offset, len) in [(0, 2, 4), (0, 0, 3), (0, u64::MAX, 4), (4, 65536, 1), (1, 0, 1)] {
        assert!(host.function.bar_read(bar, offset, &mut vec![0; len]).is_err(), "{bar} {offset} {len}");
    }
}

#[test]
fn a_thread_serves_and_interrupts() {
    let mut host = Host::with(loopback(), &PciOptions::new().doorbell_stride(3).vectors(2));
    assert_eq!(host.cap.dstrd(), 3);
    host.enable();
    assert!(host.device.enable_interrupts(3).is_err());
    let mut vectors = host.device.enable_interrupts(2).unwrap();
    let mut io = std::fs::File::from(vectors.pop().unwrap());
    let buffer = host.buffer(1);
    let mut ring = Ring::new(&mut host.device, 1, 8);
    for sqe in [host.create_cq(&ring, Some(1)), host.create_sq(&ring)] {
        host.submit(sqe);
        assert_eq!(host.admin.wait(&host.bar, host.cap).status(), Status::SUCCESS);
    }
    for round in 0..50 {
        let sqe = rw(NvmOpcode::READ, 1, 0, 1, DataPointer::prp(buffer.base, 0));
        ring.submit(&host.bar, host.cap, sqe, round);
        assert_eq!(ring.wait(&host.bar, host.cap).cid, round);
        let deadline = Instant::now() + Duration::from_secs(10);
        while io.read(&mut [0; 8]).is_err() {
            assert!(Instant::now() < deadline, "no interrupt");
        }
        if round % 10 == 0 {
            // Long enough for the thread to fall asleep.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let mut held = host.loopback.faults().clone();
    held.push(Rule::new(Fault::Delay(Duration::from_millis(20))).io());
    ring.submit(&host.bar, host.cap, Sqe::nvm(NvmOpcode::FLUSH, 1), 77);
    assert_eq!(ring.wait(&host.bar, host.cap).cid, 77, "the thread wakes up by itself");
    held = host.function.faults().clone();
    held.push(Fault::Disconnect);
    ring.submit(&host.bar, host.cap, Sqe::nvm(NvmOpcode::FLUSH, 1), 78);
    let deadline = Instant::now() + Duration::from_secs(10);
    while host.csts() != ControllerStatus::ALL_ONES {
        assert!(Instant::now() < deadline, "the function stayed");
    }
}

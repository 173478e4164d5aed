// UNSAFETY: an allocator that counts is an `unsafe impl GlobalAlloc`. It hands every call on to the system's allocator as it came.
#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

//! Once warm, no I/O allocates memory, over any transport. Only what the thread does that owns the queue pair counts; where the
//! controller role runs in that thread too, it has to do without as well.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::{
    Completion, ControllerOptions, Driver, IoBuf, IoQpairOptions, PollGroup, TransportId, TransportType,
};
use nvmf_loopback::{Loopback, Namespace, SubsystemBuilder, VfioUserServer};
use nvmf_transport_pcie::{PciDevice, PcieTransport, VfioUserDevice, VfioUserOptions};
use nvmf_transport_rdma::sim::Sim;
use nvmf_transport_rdma::{RdmaOptions, RdmaTransport};
use nvmf_transport_tcp::TcpTransport;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending may have no counter any more.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: System keeps the contract of GlobalAlloc, and every call reaches it with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:7a1e0c5e-7e57-4c0f-9a55-0123456789ac";
const DEPTH: usize = 32;
/// I/Os until everything that grows with use has its size.
const WARM: u64 = 2000;
const MEASURED: u64 = 4000;
const DEADLINE: Duration = Duration::from_secs(60);

fn target() -> nvmf_loopback::Builder {
    let namespace = Namespace::memory(16 << 20).block_size(512);
    Loopback::builder().subsystem(SubsystemBuilder::new(NQN).namespace(namespace))
}

/// Reads and writes of several sizes at changing depths; what one phase allocated.
fn allocated(driver: &Driver, trid: &TransportId, options: &ControllerOptions, group: bool) -> Result<u64> {
    // Without interrupts there is nothing to sleep for.
    let sleeps = options.enable_interrupts;
    // Now and then an idle poll asks by message whether a vfio-user function is still there. That belongs to no I/O.
    let asks = trid.trtype() == TransportType::VfioUser;
    let controller = driver.connect(trid, options)?;
    let ns = controller.namespace(1).context("no namespace")?;
    let options = IoQpairOptions::default()
        .queue_size(DEPTH as u16 + 1)
        .queue_requests(DEPTH as u32)
        .delay_submit(true);
    let qpair = controller.alloc_io_qpair(&options)?;
    // Read in 4 KiB (staged) and 128 KiB (received in place), written in the capsule and after an R2T.
    let sizes = [4096, 16 * 1024, 131_072, 512];
    let mut idle: Vec<(u64, IoBuf)> = Vec::with_capacity(DEPTH);
    for slot in 0..DEPTH {
        idle.push((slot as u64, qpair.alloc(sizes[slot % sizes.len()])?.into()));
    }
    let mut qpairs = PollGroup::new();
    let (mut alone, mut key) = (None, None);
    match group {
        true => key = Some(qpairs.add(qpair)),
        false => alone = Some(qpair),
    }
    let deadline = Instant::now() + DEADLINE;
    let (mut done, mut begun, mut failed, mut before, mut excused) = (0, 0u64, None, 0, 0);
    while done < WARM + MEASURED {
        // Depths from 1 to all, so that batches are of every size.
        let depth = 1 + (begun / 7) as usize % DEPTH;
        let qpair = match (&mut alone, key) {
            (Some(qpair), _) => qpair,
            (None, Some(key)) => qpairs.qpair_mut(key).context("the queue pair is gone")?,
            (None, None) => unreachable!("there is one of both"),
        };
        while DEPTH - idle.len() < depth
            && let Some((slot, buf)) = idle.pop()
        {
            let len = buf.len() as u64;
            let slba = begun * 131 % (((16 << 20) - len) / 512);
            begun += 1;
            match slot % 8 < 4 {
                true => qpair.read(&ns, slba, buf, slot)?,
                false => qpair.write(&ns, slba, buf, slot)?,
            };
        }
        qpair.flush();
        let (at, open) = (ALLOCATIONS.get(), done);
        let mut take = |completion: Completion| {
            done += 1;
            if done == WARM {
                before = ALLOCATIONS.get();
            }
            failed = failed.or(completion.result.err());
            idle.push((completion.user_data, completion.buf));
        };
        match &mut alone {
            Some(qpair) => {
                let n = qpair.process_completions(0, take)?;
                if n == 0 && done % 3 == 0 && sleeps {
                    // Those who sleep do without as well.
                    qpair.wait(Duration::from_millis(1))?;
                }
            }
            None => {
                let mut lost = None;
                qpairs.process_completions(
                    0,
                    |_, completion| take(completion),
                    |_, error| lost = Some(error),
                );
                if let Some(error) = lost {
                    return Err(error.into());
                }
            }
        }
        if asks && done == open && done >= WARM {
            excused += ALLOCATIONS.get() - at;
        }
        ensure!(Instant::now() < deadline, "{done} I/Os in {DEADLINE:?}");
    }
    let after = ALLOCATIONS.get();
    ensure!(failed.is_none(), "an I/O failed: {failed:?}");
    Ok(after - before - excused)
}

#[track_caller]
fn check(driver: &Driver, trid: &TransportId, options: &ControllerOptions) {
    for group in [false, true] {
        let n = allocated(driver, trid, options, group).unwrap();
        assert_eq!(n, 0, "allocations by {MEASURED} I/Os (in a poll group: {group})");
    }
}

#[test]
fn the_counter_counts() {
    let before = ALLOCATIONS.get();
    let text = std::hint::black_box(String::from("x"));
    let mut bytes = std::hint::black_box(vec![0u8; 100]);
    bytes.reserve(1000);
    drop((text, bytes));
    assert_eq!(ALLOCATIONS.get() - before, 3);
}

#[test]
fn in_process() {
    let target = target().build().unwrap();
    let driver = Driver::builder().transport(target.transport()).build();
    check(&driver, &target.trid(NQN).unwrap(), &ControllerOptions::default());
}

#[test]
fn tcp() {
    let target = target().listen_tcp("127.0.0.1:0").build().unwrap();
    let driver = Driver::builder().transport(TcpTransport::new()).build();
    let trid = target.tcp_trid(NQN).unwrap().unwrap();
    check(&driver, &trid, &ControllerOptions::default());
    let mut digests = ControllerOptions::default();
    (digests.header_digest, digests.data_digest) = (true, true);
    check(&driver, &trid, &digests);
}

#[test]
fn pcie_emulated() {
    let target = Arc::new(target().build().unwrap());
    let transport = PcieTransport::with_devices(TransportType::Pcie, move |trid| {
        let function = target.pci_function(NQN);
        let function =
            function.map_err(|error| nvmf_core::Error::disconnected(error.to_string()).peer(trid))?;
        Ok(Box::new(function.open()?) as Box<dyn PciDevice>)
    });
    let driver = Driver::builder().transport(transport).build();
    check(&driver, &"trtype:PCIe traddr:0000:01:00.0".parse().unwrap(), &ControllerOptions::default());
}

#[test]
fn vfio_user() {
    let target = target().build().unwrap();
    let function = target.pci_function(NQN).unwrap();
    let path = std::env::temp_dir().join(format!("nvmf-allocations-{}", std::process::id()));
    let server = VfioUserServer::listen(&function, path).unwrap();
    let path = server.path().display().to_string();
    let transport = PcieTransport::with_devices(TransportType::VfioUser, move |_| {
        Ok(Box::new(VfioUserDevice::open(&path, &VfioUserOptions::default())?) as Box<dyn PciDevice>)
    });
    let driver = Driver::builder().transport(transport).build();
    let mut options = ControllerOptions::default();
    (options.enable_interrupts, options.background_admin) = (false, false);
    check(&driver, &"trtype:vfiouser traddr:/nvmf".parse().unwrap(), &options);
}

#[test]
fn rdma_simulated() {
    let sim = Sim::new();
    let target = target().listen_rdma(&sim, "192.0.2.1:4420").build().unwrap();
    let transport = RdmaTransport::with_provider(sim).with_options(RdmaOptions::default().rnr_retry_count(0));
    let driver = Driver::builder().transport(transport).build();
    check(&driver, &target.rdma_trid(NQN).unwrap().unwrap(), &ControllerOptions::default());
}

//! The function as a whole: what a host opens, what a test holds, and the thread in between.

use std::fmt;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvmf_core::dma::DeviceMemory;
use nvmf_core::spec::registers::DOORBELL_BASE;
use nvmf_core::{Error, HostId, Result};
use nvmf_transport_pcie::{BarAccess, PciIdentity};

use super::cmb::{self, Cmb, CmbMemory};
use super::config_space::{BAR4_LEN, ConfigSpace, Layout};
use super::doorbells::MappedDoorbells;
use super::engine::{ALL_ONES, Engine, Pass, Timing};
use super::grant::device_memory;
use super::interrupt::Interrupts;
use super::registers::Registers;
use super::signal::Signal;
use crate::controller::{Association, Controller, Local, Notify};
use crate::error::LoopbackError;
use crate::fault::Faults;
use crate::target::{Front, Target};

mod device;
mod options;

pub use device::EmulatedDevice;
pub use options::PciOptions;

/// How long the thread sleeps first when doorbells are mapped and none is written; each time twice as long, up to
/// [`LONGEST_NAP`].
const NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// How often the thread looks at mapped doorbells before it lets others have the processor.
const LOOKS_PER_YIELD: u32 = 64;

/// What came of looking around once.
struct Look {
    pass: Pass,
    /// When that was.
    now: Instant,
    /// When to look again, if there is nothing to do and nothing happens.
    deadline: Option<Instant>,
    /// Doorbells may be written that nobody is told of.
    mapped: bool,
}

struct Shared {
    identity: PciIdentity,
    target: Arc<Target>,
    controller: Arc<Controller>,
    options: PciOptions,
    layout: Layout,
    cmb: Option<CmbMemory>,
    /// CAP.DSTRD as a distance, bytes.
    stride: u64,
    signal: Arc<Signal>,
    /// Locked before `memory`.
    engine: Mutex<Engine>,
    memory: RwLock<DeviceMemory>,
    config: Mutex<ConfigSpace>,
    bar4: Mutex<Vec<u8>>,
    interrupts: Mutex<Interrupts>,
    /// PCI command register, Bus Master Enable.
    bus_master: AtomicBool,
    removed: AtomicBool,
    /// Doorbell registers written.
    rung: AtomicU64,
    /// The first end becomes readable for the holder of the second when the function is gone.
    removal: (UnixStream, UnixStream),
    open: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics while holding a lock; should it, the state is as whole as before.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn memory(&self) -> RwLockReadGuard<'_, DeviceMemory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory_mut(&self) -> RwLockWriteGuard<'_, DeviceMemory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    fn remove(&self) {
        if self.removed.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::info!(function = %self.identity, "the function is gone");
        self.quiesce();
        self.controller.subsystem.remove_controller(self.controller.cntlid);
        let _ = (&self.removal.0).write(&[1]);
        self.signal.wake();
    }

    /// Whether the subsystem this is a controller of is gone.
    fn is_orphan(&self) -> bool {
        let found = self.target.find(self.controller.subsystem.nqn());
        self.target.is_stopped()
            || !found.is_some_and(|subsystem| Arc::ptr_eq(&subsystem, &self.controller.subsystem))
    }

    /// Queues and mappings go: no memory is accessed after this.
    fn quiesce(&self) {
        self.bus_master.store(false, Ordering::Release);
        let mut engine = lock(&self.engine);
        engine.reset(false);
        // Whoever has them mapped writes to nobody from now on.
        engine.mapped = None;
        drop(engine);
        self.signal.clear();
        lock(&self.interrupts).clear();
        self.memory_mut().clear();
    }

    /// A reset of the function: all but its mappings is as after power on.
    fn reset(&self) {
        let mut engine = lock(&self.engine);
        engine.reset(false);
        self.signal.clear();
        let config = ConfigSpace::new(&self.layout);
        engine.move_cmb(config.bar2_address());
        *lock(&self.config) = config;
        self.bus_master.store(false, Ordering::Release);
        drop(engine);
        lock(&self.interrupts).clear();
    }

    /// Looks around once.
    fn work(&self, fired: &mut Vec<u16>) -> Look {
        let now = Instant::now();
        if self.is_removed() {
            return Look { pass: Pass::Removed, now, deadline: None, mapped: false };
        }
        let (pass, deadline, mapped) = {
            let mut engine = lock(&self.engine);
            self.signal.take(|index, value| engine.doorbell(index, value, now));
            let mapped = engine.is_mapped();
            if mapped {
                engine.look(now);
            }
            let pass = if self.bus_master.load(Ordering::Acquire) {
                engine.pass(&self.memory(), now)
            } else {
                // Without bus mastering there is no memory to be reached.
                engine.pass(&device_memory(), now)
            };
            engine.take_fired(fired);
            let deadline = if pass == Pass::Idle { engine.deadline(now) } else { None };
            (pass, deadline, mapped)
        };
        if !fired.is_empty() {
            let interrupts = lock(&self.interrupts);
            for vector in fired.drain(..) {
                interrupts.ring(vector);
            }
        }
        if pass == Pass::Removed || (self.controller.is_dead(now) && self.is_orphan()) {
            self.remove();
            return Look { pass: Pass::Removed, now, deadline: None, mapped: false };
        }
        Look { pass, now, deadline, mapped }
    }

    /// Looks around until there is nothing to do.
    fn run(&self) {
        let mut fired = Vec::new();
        while self.work(&mut fired).pass == Pass::Busy {}
    }

    /// The thread.
    fn serve(&self) {
        self.signal.attend();
        let mut fired = Vec::new();
        // Since when there is nothing to do, how often that was seen, and how long the next sleep is.
        let (mut idle_since, mut looks, mut nap) = (None, 0u32, NAP);
        loop {
            self.signal.take_news();
            let look = self.work(&mut fired);
            match look.pass {
                Pass::Busy => (idle_since, nap) = (None, NAP),
                Pass::Idle if look.mapped => {
                    // Nobody is told when a mapped doorbell is written.
                    let since = *idle_since.get_or_insert(look.now);
                    looks = looks.wrapping_add(1);
                    if look.now.duration_since(since) >= self.options.busy {
                        let until = look.now + nap;
                        let until = look.deadline.map_or(until, |deadline| deadline.min(until));
                        self.signal.wait(Duration::ZERO, Some(until));
                        nap = (nap * 2).min(LONGEST_NAP);
                    } else if looks.is_multiple_of(LOOKS_PER_YIELD) {
                        std::thread::yield_now();
                    } else {
                        std::hint::spin_loop();
                    }
                }
                Pass::Idle => self.signal.wait(self.options.busy, look.deadline),
                Pass::Removed => return,
            }
        }
    }

    // --- configuration space -----------------------------------------------------------------------------------

    fn config_read(&self, offset: u32, to: &mut [u8]) -> Result<()> {
        if self.is_removed() {
            return Err(gone(&self.identity).doing("reading configuration space"));
        }
        lock(&self.config).read(offset, to).ok_or_else(|| self.outside_config(offset, to.len()))
    }

    fn config_write(&self, offset: u32, from: &[u8]) -> Result<()> {
        if self.is_removed() {
            return Err(gone(&self.identity).doing("writing configuration space"));
        }
        let mut config = lock(&self.config);
        let written = config.write(offset, from).ok_or_else(|| self.outside_config(offset, from.len()))?;
        self.bus_master.store(config.bus_master(), Ordering::Release);
        let bar2 = config.bar2_address();
        drop(config);
        if self.cmb.is_some() {
            lock(&self.engine).move_cmb(bar2);
        }
        if written.reset {
            self.reset();
        }
        Ok(())
    }

    fn outside_config(&self, offset: u32, len: usize) -> Error {
        Error::api_misuse(format!("configuration space has no {len} bytes at {offset:#x}"))
            .peer(&self.identity)
    }

    // --- BAR 0 -------------------------------------------------------------------------------------------------

    fn bar_read32(&self, offset: u64) -> u32 {
        if self.is_removed() {
            return ALL_ONES;
        }
        // Doorbells are write only; what is read from them is anything.
        if offset >= DOORBELL_BASE { 0 } else { lock(&self.engine).read32(offset, Instant::now()) }
    }

    fn bar_write32(&self, offset: u64, value: u32) {
        if self.is_removed() {
            return;
        }
        if let Some(from_first) = offset.checked_sub(DOORBELL_BASE) {
            let index = from_first.is_multiple_of(self.stride).then_some(from_first / self.stride);
            self.rung.fetch_add(1, Ordering::Relaxed);
            self.signal.ring(index, value);
        } else {
            let mut engine = lock(&self.engine);
            // Doorbells that were rung before the register was written come before it.
            let now = Instant::now();
            self.signal.take(|index, value| engine.doorbell(index, value, now));
            engine.write32(offset, value, now);
            drop(engine);
            self.signal.wake();
        }
        if self.options.inline {
            self.run();
        }
    }
}

/// BAR 0 for a host in this process.
struct Registers0(Arc<Shared>);

impl BarAccess for Registers0 {
    fn len(&self) -> u64 {
        self.0.layout.bar0_len
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        Ok(self.0.bar_read32(offset))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.0.bar_write32(offset, value);
        Ok(())
    }
}

/// BAR 2, the controller memory buffer, for a host in this process.
struct Memory2(Arc<Shared>, CmbMemory);

impl BarAccess for Memory2 {
    fn len(&self) -> u64 {
        self.0.layout.bar2_len
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        let mut dword = [0xff; 4];
        if !self.0.is_removed() {
            self.1.read(offset, &mut dword);
        }
        Ok(u32::from_le_bytes(dword))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        self.write_bytes(offset, &value.to_le_bytes())
    }

    fn write_bytes(&self, offset: u64, from: &[u8]) -> Result<()> {
        if !self.0.is_removed() {
            self.1.write(offset, from);
        }
        Ok(())
    }
}

/// Ends the function with the last handle.
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.remove();
        if let Some(thread) = lock(&self.thread).take() {
            // A thread that panicked has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// An NVMe controller of a loopback's subsystem as a PCI function: registers, rings in memory, doorbells, MSI-X.
///
/// Made by [`crate::Loopback::pci_function`]. This is the handle that stays with whoever made it, cheap to clone; a host takes
/// the function with [`EmulatedFunction::open`], one at a time. The function ends with its last handle and its last host, or
/// with the loopback, and is then gone for its host as if it had been pulled out.
///
/// The loopback's faults ([`EmulatedFunction::faults`]) happen to commands; what else a function can do wrong is in the methods
/// here.
#[derive(Clone)]
pub struct EmulatedFunction(Arc<Owner>);

impl fmt::Debug for EmulatedFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmulatedFunction({})", self.shared().identity)
    }
}

impl EmulatedFunction {
    pub(crate) fn start(
        target: &Arc<Target>,
        subnqn: &str,
        options: &PciOptions,
    ) -> std::result::Result<Self, LoopbackError> {
        let range = |ok: bool, what, value: u64, range| {
            if ok { Ok(()) } else { Err(LoopbackError::OutOfRange { what, value, range }) }
        };
        range(options.dstrd <= 15, "doorbell stride", options.dstrd.into(), "0..=15")?;
        let queues = u32::from(target.config.max_io_queues) + 1;
        let vectors = options.vectors.unwrap_or(queues.min(2048) as u16);
        range((1..=2048).contains(&vectors), "number of MSI-X vectors", vectors.into(), "1..=2048")?;
        let (mpsmin, mpsmax) = options.pages;
        range(mpsmin <= mpsmax, "smallest memory page", mpsmin.into(), "0 to the largest")?;
        range(mpsmax <= 15, "largest memory page", mpsmax.into(), "0..=15")?;
        // A smaller MDTS cannot be said in units of this page.
        let mdts = target.config.mdts;
        range(mdts == 0 || mdts > mpsmin, "smallest memory page", mpsmin.into(), "less than MDTS")?;
        let cmb_fits = options.cmb.is_power_of_two() && (cmb::UNIT..=1 << 30).contains(&options.cmb);
        range(options.cmb == 0 || cmb_fits, "controller memory buffer", options.cmb, "4 KiB to 1 GiB")?;
        let subsystem = target.subsystem(subnqn)?;
        let signal = Arc::new(Signal::new(2 * queues as usize));
        let ringer = Arc::clone(&signal);
        let notify: Notify = Arc::new(move || ringer.wake());
        let association = Association {
            // Whoever sits on a local bus needs no name.
            hostnqn: subsystem.nqn().clone(),
            hostid: HostId::from_bytes([0; 16]),
            front: Front::Pci,
            kato_ms: 0,
            local: Local {
                pages: options.pages,
                shadow_doorbells: options.shadow_doorbells,
                vendor: options.ids.0,
                shutdown_us: u32::try_from(options.shutdown_delay.as_micros()).unwrap_or(u32::MAX),
            },
        };
        let made = subsystem.add_controller(target.config.max_controllers, |cntlid| {
            let (target, subsystem) = (Arc::clone(target), Arc::clone(&subsystem));
            Controller::new(cntlid, target, subsystem, association, Arc::clone(&notify))
        });
        let controller = made.ok_or_else(|| LoopbackError::TooManyControllers(subnqn.to_owned()))?;
        let layout = Layout {
            vendor: options.ids.0,
            device: options.ids.1,
            vectors,
            bar0_len: Registers::size(queues, options.dstrd),
            bar2_len: options.cmb,
        };
        let config = ConfigSpace::new(&layout);
        let cmb = (options.cmb > 0).then(|| Cmb::new(options.cmb, options.legacy_cmb, config.bar2_address()));
        let memory = cmb.as_ref().map(|cmb| cmb.memory.clone());
        let engine = Engine::new(
            Arc::clone(target),
            Arc::clone(&controller),
            notify,
            options.dstrd,
            vectors,
            Timing { ready: options.ready_delay, shutdown: options.shutdown_delay },
            cmb,
        );
        let removal = UnixStream::pair().map_err(LoopbackError::Start)?;
        let name = format!("{}:{}", target.name, controller.cntlid);
        let shared = Arc::new(Shared {
            identity: PciIdentity { vendor: options.ids.0, device: options.ids.1, name },
            target: Arc::clone(target),
            controller,
            options: options.clone(),
            layout,
            cmb: memory,
            stride: 4 << options.dstrd,
            signal,
            engine: Mutex::new(engine),
            memory: RwLock::new(device_memory()),
            config: Mutex::new(config),
            bar4: Mutex::new(vec![0; BAR4_LEN as usize]),
            interrupts: Mutex::new(Interrupts::new(vectors)),
            bus_master: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            rung: AtomicU64::new(0),
            removal,
            open: AtomicBool::new(false),
        });
        let owner = Arc::new(Owner { shared: Arc::clone(&shared), thread: Mutex::default() });
        if !options.inline {
            let thread = std::thread::Builder::new().name(format!("nvmf-pci-{}", shared.identity.name));
            let thread = thread.spawn(move || shared.serve()).map_err(LoopbackError::Start)?;
            *lock(&owner.thread) = Some(thread);
        }
        Ok(Self(owner))
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &PciIdentity {
        &self.shared().identity
    }

    /// Takes the function for a host, as opening it through VFIO would. Dropping the device resets the function and lets
    /// another host take it.
    ///
    /// # Errors
    /// When a host has it, or it is gone.
    pub fn open(&self) -> Result<EmulatedDevice> {
        let shared = self.shared();
        if shared.is_removed() {
            return Err(gone(&shared.identity).doing("opening an emulated PCI function"));
        }
        if shared.open.swap(true, Ordering::AcqRel) {
            return Err(Error::api_misuse("the emulated PCI function is in use")
                .peer(&shared.identity)
                .hint("drop the device that was opened before"));
        }
        Ok(EmulatedDevice::new(Arc::clone(&self.0)))
    }

    /// The scripted faults, those of the whole loopback. [`crate::Fault::Disconnect`] removes the function.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared().target.faults
    }

    /// While `on`, CSTS.RDY does not follow when CC.EN is set.
    pub fn never_ready(&self, on: bool) {
        lock(&self.shared().engine).never_ready = on;
    }

    /// While `on`, CSTS.CFS comes up when CC.EN is set, instead of CSTS.RDY.
    pub fn fatal_when_enabled(&self, on: bool) {
        lock(&self.shared().engine).fatal_when_enabled = on;
    }

    /// While `on`, the controller goes on as if CC.EN had not been cleared.
    pub fn never_disabled(&self, on: bool) {
        lock(&self.shared().engine).never_disabled = on;
    }

    /// While `on`, CSTS.SHST does not follow when CC.SHN is set.
    pub fn never_shut_down(&self, on: bool) {
        lock(&self.shared().engine).never_shut_down = on;
    }

    /// Sets CSTS.CFS and stops executing commands, until the controller is reset.
    pub fn fail(&self) {
        lock(&self.shared().engine).fail("the program asked for it");
    }

    /// Takes the function away: registers read as all ones, writes go nowhere, memory is accessed no more. For good.
    pub fn remove(&self) {
        self.shared().remove();
    }

    /// Whether it was taken away.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.shared().is_removed()
    }

    /// How often a doorbell register was written so far.
    #[must_use]
    pub fn doorbell_writes(&self) -> u64 {
        self.shared().rung.load(Ordering::Relaxed)
    }

    /// Whether its host has given it shadow doorbells.
    #[must_use]
    pub fn has_shadow_doorbells(&self) -> bool {
        lock(&self.shared().engine).has_shadow()
    }

    /// I/O submission queues that its host has put into the controller memory buffer.
    #[must_use]
    pub fn queues_in_controller_memory(&self) -> usize {
        lock(&self.shared().engine).queues_in_buffer()
    }

    /// Executes what there is, in the calling thread.
    pub fn poll(&self) {
        self.shared().run();
    }

    // --- for those who serve the function to another process -----------------------------------------------------

    /// Bytes of a BAR: 0 for those there are not. BAR 0 has the registers, BAR 2 the controller memory buffer, BAR 4 the MSI-X table.
    #[must_use]
    pub fn bar_len(&self, bar: u32) -> u64 {
        match bar {
            0 => self.shared().layout.bar0_len,
            2 => self.shared().layout.bar2_len,
            4 => BAR4_LEN,
            _ => 0,
        }
    }

    /// Reads from a BAR. BAR 0 is read by aligned dwords.
    ///
    /// # Errors
    /// When the range lies outside, or is not aligned.
    pub fn bar_read(&self, bar: u32, offset: u64, to: &mut [u8]) -> Result<()> {
        self.check_bar(bar, offset, to.len())?;
        if bar == 0 {
            for (at, dword) in (offset..).step_by(4).zip(to.chunks_exact_mut(4)) {
                dword.copy_from_slice(&self.shared().bar_read32(at).to_le_bytes());
            }
        } else if let (2, Some(memory)) = (bar, &self.shared().cmb) {
            memory.read(offset, to);
        } else {
            to.copy_from_slice(&lock(&self.shared().bar4)[offset as usize..][..to.len()]);
        }
        Ok(())
    }

    /// Writes to a BAR, doorbells included. BAR 0 is written by aligned dwords, in order.
    ///
    /// # Errors
    /// As [`EmulatedFunction::bar_read`].
    pub fn bar_write(&self, bar: u32, offset: u64, from: &[u8]) -> Result<()> {
        self.check_bar(bar, offset, from.len())?;
        if bar == 0 {
            for (at, dword) in (offset..).step_by(4).zip(from.as_chunks::<4>().0) {
                self.shared().bar_write32(at, u32::from_le_bytes(*dword));
            }
        } else if let (2, Some(memory)) = (bar, &self.shared().cmb) {
            memory.write(offset, from);
        } else {
            lock(&self.shared().bar4)[offset as usize..][..from.len()].copy_from_slice(from);
        }
        Ok(())
    }

    fn check_bar(&self, bar: u32, offset: u64, len: usize) -> Result<()> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.bar_len(bar));
        let aligned = bar != 0 || (offset.is_multiple_of(4) && len.is_multiple_of(4));
        if inside && aligned {
            return Ok(());
        }
        Err(Error::api_misuse(format!("BAR {bar} cannot be accessed at {offset:#x}, {len} bytes"))
            .peer(self.identity()))
    }

    /// Reads configuration space.
    ///
    /// # Errors
    /// When the function is gone or the range lies outside.
    pub fn config_read(&self, offset: u32, to: &mut [u8]) -> Result<()> {
        self.shared().config_read(offset, to)
    }

    /// Writes configuration space, as far as it can be written. May reset the function.
    ///
    /// # Errors
    /// As [`EmulatedFunction::config_read`].
    pub fn config_write(&self, offset: u32, from: &[u8]) -> Result<()> {
        self.shared().config_write(offset, from)
    }

    /// Resets the function. What memory it reaches stays.
    pub fn reset(&self) {
        self.shared().reset();
    }

    /// Lets a client map the doorbells: the file they are in, laid out as BAR 0 is, and from its second page on. From now on, until
    /// the device is dropped, they are looked at instead of waited for: in a busy loop for as long as
    /// [`PciOptions::busy_poll`] says, then after sleeps of up to 1 ms. `None` where whoever writes a doorbell
    /// executes what it is about ([`PciOptions::inline`]).
    ///
    /// # Errors
    /// When there is no memory or no descriptor.
    pub fn share_doorbells(&self) -> Result<Option<OwnedFd>> {
        let shared = self.shared();
        if shared.options.inline {
            return Ok(None);
        }
        let mut engine = lock(&shared.engine);
        let mapped = match &engine.mapped {
            Some(mapped) => mapped,
            None => {
                let count = 2 * (usize::from(shared.target.config.max_io_queues) + 1);
                let made = MappedDoorbells::new(shared.layout.bar0_len, shared.stride, count)
                    .map_err(|error| Error::from(error).doing("making doorbells that can be mapped"))?;
                engine.mapped.insert(made)
            }
        };
        let file = mapped.file().map_err(Error::from)?;
        drop(engine);
        shared.signal.wake();
        Ok(Some(file))
    }

    /// MSI-X vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.shared().layout.vectors
    }

    /// Changes what memory the function reaches. Returns when no access by an earlier mapping goes on. Nothing is accessed.
    pub(super) fn with_memory<R>(&self, change: impl FnOnce(&mut DeviceMemory) -> R) -> R {
        change(&mut self.shared().memory_mut())
    }

    /// Signals a vector through this eventfd, or no longer. Whoever else has the eventfd can keep it from being signalled, and hold
    /// up nobody by that. Vectors beyond those there are take no notice.
    pub fn set_interrupt(&self, vector: u16, eventfd: Option<OwnedFd>) {
        lock(&self.shared().interrupts).set(vector, eventfd);
    }
}

fn gone(identity: &PciIdentity) -> Error {
    Error::disconnected("the function is gone").peer(identity)
}

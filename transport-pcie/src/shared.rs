//! What a controller and its queue pairs share: registers, mappings, and how the controller is stopped.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nvmf_core::dma::{DMA_PAGE, RegionId, SharedMemory};
use nvmf_core::proto::controller_init::MAX_PAGE;
use nvmf_core::spec::registers::{Cap, ControllerConfig, ControllerStatus, PropertyOffset, Shn, Shst};
use nvmf_core::transport::{Primary, PrimaryWatcher, Quiesce, Standing};
use nvmf_core::{DmaPool, DmaRegion, Error, ErrorKind, Result};

use crate::cmb::{Cmb, CmbPart};
use crate::device::{Bar0, BarFile, PciDevice, PciIdentity};
use crate::grant;
use crate::lent;
use crate::quirks::Quirks;
use crate::shadow::ShadowDoorbells;
use crate::wake::{self, Bell};

/// Shortest time a controller is given to become disabled, whatever CAP.TO says: some report zero.
const MIN_DISABLE: Duration = Duration::from_millis(500);
/// Longest; a caller that drops a queue pair waits for it.
const MAX_DISABLE: Duration = Duration::from_secs(20);
/// How long a controller may take to delete its I/O queues before it is disabled all the same.
const MAX_DELETE: Duration = Duration::from_secs(1);
/// How long a primary whose connection is closed may take to end.
const MAX_ENDING: Duration = Duration::from_secs(1);
/// What a read returns that nobody answers.
const NOBODY_32: u32 = u32::MAX;

/// The removal notice among what the admin queue's descriptor stands for.
const REMOVAL: Token = Token(0);
const OTHERS: Token = Token(1);

/// How SGLs may be used for I/O commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum SglSupport {
    No = 0,
    Yes = 1,
    /// Addresses and lengths in whole dwords only.
    Dwords = 2,
}

/// How metadata apart from the data may be described when the data is described by an SGL.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct MetadataSupport {
    /// A contiguous buffer that starts at any byte, not just any dword.
    pub(crate) any_byte: bool,
    /// An SGL segment of one descriptor.
    pub(crate) sgl: bool,
}

/// Behind an `Arc`, in the controller and in every queue pair; the function is given up with the last of them.
pub(crate) struct Shared {
    pub(crate) bar: Bar0,
    pub(crate) cap: Cap,
    /// The memory page, CC.MPS, bytes.
    pub(crate) page: u64,
    pub(crate) quirks: Quirks,
    /// Memory for data that neither PRPs nor SGLs can describe.
    pub(crate) bounce: DmaPool,
    name: String,
    /// By vector, which is that of the queue of the same identifier. A secondary gets them one by one.
    vectors: Vec<OnceLock<File>>,
    /// The primary, in a secondary: it alone starts and stops the controller.
    primary: Option<Arc<Primary>>,
    /// When the primary was lost, in a secondary.
    orphaned: OnceLock<Instant>,
    /// Sleeps on vector 0 and the removal notice together; only with a vector 0. With memory for what a look at it finds.
    admin_wait: Option<Mutex<(Poll, Events)>>,
    /// Wakes that sleeper when an I/O queue pair finds out that the function is lost.
    admin_waker: Option<Waker>,
    /// Wakes every I/O queue pair when the function is lost or stopped.
    bell: Option<Bell>,
    sgl: AtomicU8,
    /// [`MetadataSupport`]: bit 0 any byte, bit 1 SGL.
    metadata: AtomicU8,
    /// Reads return all ones, or the function says that it is gone.
    lost: AtomicBool,
    /// The controller is being stopped, or was.
    dead: AtomicBool,
    /// Counts the controller's lives: it begins another one when it is used again after it was stopped.
    life: AtomicU32,
    /// Shadow doorbells, once the controller has taken them.
    shadow: Mutex<Option<Arc<ShadowDoorbells>>>,
    /// In a secondary: the life for which they are known, or known not to be.
    shadow_life: Mutex<Option<u32>>,
    cmb: Mutex<Option<Arc<Cmb>>>,
    /// CSTS is not looked at before, for controllers that do not bear it after they were disabled.
    left_alone: Mutex<Option<Instant>>,
    inner: Mutex<Inner>,
}

struct Inner {
    device: Box<dyn PciDevice>,
    /// What the function may reach. The clone keeps a region until the function has forgotten it.
    maps: HashMap<RegionId, (DmaRegion, u64)>,
    stop: Stop,
    /// I/O queues, by identifier, of which the controller may know the completion queue, or both.
    queues: BTreeSet<u16>,
}

/// How far the controller is stopped as a whole.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Running,
    /// In a secondary: the primary ends its queues, or stops the controller, and will say so.
    Elsewhere,
    /// The admin queue deletes the I/O queues first, if it is done with that in time.
    Deleting {
        until: Instant,
    },
    /// CC.EN was cleared; CSTS.RDY has to follow.
    Disabling {
        /// CSTS is not looked at before.
        not_before: Instant,
        deadline: Instant,
    },
    /// It is disabled and accesses no memory any more.
    Quiet,
    /// It can access no memory any more, whatever it does.
    CutOff,
    /// It may access memory, and nothing can be done about it.
    Unconfirmed,
}

impl Shared {
    /// # Errors
    /// When the controller's memory pages cannot be worked with.
    pub(crate) fn new(
        device: Box<dyn PciDevice>,
        bar: Bar0,
        cap: Cap,
        quirks: Quirks,
        vectors: Vec<OwnedFd>,
    ) -> Result<Self> {
        let vectors = vectors.into_iter().map(|fd| OnceLock::from(File::from(fd))).collect();
        Self::with(device, bar, cap, quirks, vectors, None)
    }

    /// The same in a secondary.
    pub(crate) fn lent(
        device: Box<dyn PciDevice>,
        bar: Bar0,
        quirks: Quirks,
        vectors: u16,
        primary: &Arc<Primary>,
    ) -> Result<Self> {
        let vectors = (0..vectors).map(|_| OnceLock::new()).collect();
        Self::with(device, bar, primary.cap(), quirks, vectors, Some(Arc::clone(primary)))
    }

    fn with(
        device: Box<dyn PciDevice>,
        bar: Bar0,
        cap: Cap,
        quirks: Quirks,
        vectors: Vec<OnceLock<File>>,
        primary: Option<Arc<Primary>>,
    ) -> Result<Self> {
        let mps = cap.select_mps(DMA_PAGE as u64).filter(|_| cap.min_page_size() <= MAX_PAGE);
        let page = mps.map(|mps| 1u64 << (12 + mps)).ok_or_else(|| {
            Error::unsupported(format!(
                "the controller's memory pages are of 2^{} to 2^{} bytes (CAP.MPSMIN, CAP.MPSMAX); up to {MAX_PAGE} bytes are supported",
                12 + cap.mpsmin(),
                12 + cap.mpsmax()
            ))
        })?;
        let bell = Bell::new()
            .inspect_err(|error| tracing::warn!(%error, "queue pairs will not be woken by a removal"))
            .ok();
        let admin_wait = vectors.first().and_then(OnceLock::get).and_then(|vector| {
            let poll = Poll::new().ok()?;
            let removal = device.removal_fd().map(|fd| (REMOVAL, fd));
            for (token, fd) in removal.into_iter().chain([(OTHERS, vector.as_fd())]) {
                poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE).ok()?;
            }
            let waker = Waker::new(poll.registry(), OTHERS).ok()?;
            Some(((poll, Events::with_capacity(3)), waker))
        });
        let (admin_wait, admin_waker) = admin_wait.unzip();
        Ok(Self {
            bar,
            cap,
            page,
            quirks,
            bounce: DmaPool::new(),
            name: device.identity().to_string(),
            vectors,
            primary,
            orphaned: OnceLock::new(),
            admin_wait: admin_wait.map(Mutex::new),
            admin_waker,
            bell,
            sgl: AtomicU8::new(SglSupport::No as u8),
            metadata: AtomicU8::new(0),
            lost: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            life: AtomicU32::new(0),
            shadow: Mutex::default(),
            shadow_life: Mutex::default(),
            cmb: Mutex::default(),
            left_alone: Mutex::default(),
            inner: Mutex::new(Inner {
                device,
                maps: HashMap::new(),
                stop: Stop::Running,
                queues: BTreeSet::new(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A poisoned state is still whole: every change is one assignment or one map operation.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_sgl(&self, support: SglSupport) {
        self.sgl.store(support as u8, Ordering::Relaxed);
    }

    pub(crate) fn sgl(&self) -> SglSupport {
        match self.sgl.load(Ordering::Relaxed) {
            1 => SglSupport::Yes,
            2 => SglSupport::Dwords,
            _ => SglSupport::No,
        }
    }

    pub(crate) fn set_metadata_support(&self, support: MetadataSupport) {
        let bits = u8::from(support.any_byte) | u8::from(support.sgl) << 1;
        self.metadata.store(bits, Ordering::Relaxed);
    }

    pub(crate) fn metadata_support(&self) -> MetadataSupport {
        let bits = self.metadata.load(Ordering::Relaxed);
        MetadataSupport { any_byte: bits & 1 != 0, sgl: bits & 2 != 0 }
    }

    // --- interrupts --------------------------------------------------------------------------------------------------

    fn vector(&self, vector: u16) -> Option<&File> {
        self.vectors.get(usize::from(vector))?.get()
    }

    /// Whether there is such a vector.
    pub(crate) fn has_vector(&self, vector: u16) -> bool {
        let Some(place) = self.vectors.get(usize::from(vector)) else { return false };
        if place.get().is_none()
            && let Some(primary) = &self.primary
        {
            // The same queue identifier always has the same one.
            match primary.vector(vector) {
                Ok(fd) => drop(fd.map(|fd| place.set(File::from(fd)))),
                Err(error) => tracing::debug!(%error, vector, "a queue without an interrupt"),
            }
        }
        place.get().is_some()
    }

    /// A copy of a vector's descriptor for another process.
    pub(crate) fn vector_for_another(&self, vector: u16) -> Result<Option<OwnedFd>> {
        Ok(self.vector(vector).map(File::try_clone).transpose()?.map(OwnedFd::from))
    }

    /// What to sleep on for the admin queue: its vector, and the removal notice where there is one.
    pub(crate) fn admin_fd(&self) -> Option<RawFd> {
        match &self.admin_wait {
            Some(wait) => Some(wait.lock().unwrap_or_else(PoisonError::into_inner).0.as_raw_fd()),
            None => self.vector_fd(0),
        }
    }

    /// Silences [`Shared::admin_fd`] and looks whether the function was removed. Whoever does that has to look at the queue
    /// afterwards.
    pub(crate) fn silence_admin(&self) -> Result<()> {
        if let Some(wait) = &self.admin_wait {
            let mut wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
            let (poll, events) = &mut *wait;
            // Fails only when interrupted: then it is silenced the next time.
            let _ = poll.poll(events, Some(Duration::ZERO));
            if events.iter().any(|event| event.token() == REMOVAL) && self.lock().device.is_removed() {
                return Err(self.mark_lost());
            }
        }
        self.silence(0);
        Ok(())
    }

    /// What to sleep on for an I/O queue: readable when its vector fires, and as long as the function is lost, stopped, or
    /// about to be taken away. Where there cannot be one, the vector's own descriptor has to do.
    pub(crate) fn sleep_on(&self, vector: u16) -> Option<OwnedFd> {
        let vector = self.vector(vector)?.as_fd();
        let inner = self.lock();
        let ends = [self.bell.as_ref().map(Bell::as_fd), inner.device.removal_fd()];
        wake::any_of([vector].into_iter().chain(ends.into_iter().flatten()))
            .inspect_err(|error| tracing::warn!(%error, "a queue pair will not be woken by a removal"))
            .ok()
    }

    pub(crate) fn vector_fd(&self, vector: u16) -> Option<RawFd> {
        self.vector(vector).map(AsRawFd::as_raw_fd)
    }

    /// Silences a vector's descriptor. Whoever does that has to look at the queue afterwards.
    pub(crate) fn silence(&self, vector: u16) {
        let Some(mut file) = self.vector(vector) else { return };
        let mut bytes = [0; 512];
        // An eventfd gives eight bytes; a pipe may hold more than one buffer full.
        for _ in 0..128 {
            match file.read(&mut bytes) {
                Ok(n) if n == bytes.len() => {}
                Ok(_) | Err(_) => break,
            }
        }
    }

    // --- is it there -------------------------------------------------------------------------------------------------

    pub(crate) fn gone(&self) -> Error {
        Error::disconnected(format!("the PCI function {} is gone: its registers do not answer", self.name))
    }

    fn ring(&self) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    /// Remembers that the function is gone.
    pub(crate) fn mark_lost(&self) -> Error {
        self.lost.store(true, Ordering::Release);
        self.ring();
        if let Some(waker) = &self.admin_waker {
            // Fails only when it was woken very often already.
            let _ = waker.wake();
        }
        self.gone()
    }

    /// Whether the controller cannot be used any more by queues of this life, and why.
    pub(crate) fn failure(&self, life: u32) -> Option<Error> {
        if self.lost.load(Ordering::Acquire) {
            return Some(self.gone());
        }
        if !self.dead.load(Ordering::Acquire) && self.life() == life {
            return None;
        }
        let lost = self.primary.as_ref().and_then(|primary| primary.failure());
        Some(
            lost.unwrap_or_else(|| {
                Error::disconnected(format!("the controller of {} was disabled", self.name))
            }),
        )
    }

    /// The controller's current life. Queues of an earlier one do not exist any more.
    pub(crate) fn life(&self) -> u32 {
        self.life.load(Ordering::Acquire)
    }

    /// CC.EN is cleared now.
    pub(crate) fn leave_alone(&self, now: Instant) {
        let pause = self.quirks.delays.after_disable;
        let until = (!pause.is_zero()).then(|| now + pause);
        *self.left_alone.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Looks whether the function still answers and its controller works.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let left_alone = *self.left_alone.lock().unwrap_or_else(PoisonError::into_inner);
        if left_alone.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        if self.primary.is_some() && !self.bar.is_readable() {
            // Only the primary can look, and does.
            return Ok(());
        }
        let csts =
            self.bar.read32(u64::from(PropertyOffset::CSTS.0)).inspect_err(|_| drop(self.mark_lost()))?;
        if csts == NOBODY_32 || self.lock().device.is_removed() {
            return Err(self.mark_lost());
        }
        if ControllerStatus(csts).cfs() {
            return Err(Error::new(ErrorKind::ControllerFatal));
        }
        Ok(())
    }

    // --- memory ------------------------------------------------------------------------------------------------------

    /// The bus address of a region, which is mapped if it is not yet.
    pub(crate) fn map(&self, region: &DmaRegion) -> Result<u64> {
        let mut inner = self.lock();
        if let Some(&(_, iova)) = inner.maps.get(&region.id()) {
            return Ok(iova);
        }
        if !matches!(inner.stop, Stop::Running) {
            return Err(Error::disconnected(
                "the controller is being stopped; nothing more is mapped for it",
            ));
        }
        inner.sweep();
        let iova = inner.device.dma_map(&grant::to_function(region)).map_err(|error| {
            error.doing(format!("mapping {} KiB of I/O memory for {}", region.len() >> 10, self.name))
        })?;
        inner.maps.insert(region.id(), (region.clone(), iova));
        Ok(iova)
    }

    /// Takes a region's mapping back. The function does not access it any more when this returns well.
    pub(crate) fn unmap(&self, region: &DmaRegion) -> Result<()> {
        let mut inner = self.lock();
        if inner.maps.contains_key(&region.id()) {
            // It stays among them if that fails. A function that was cut off has nothing mapped any more.
            if !matches!(inner.stop, Stop::CutOff) {
                inner.device.dma_unmap(region.id())?;
            }
            inner.maps.remove(&region.id());
        }
        Ok(())
    }

    /// What another process needs to ring doorbells.
    pub(crate) fn lend(&self) -> Result<(PciIdentity, BarFile)> {
        let inner = self.lock();
        Ok((inner.device.identity(), inner.device.lend_registers()?))
    }

    /// Zeroed memory of at least `len` bytes that starts at a memory page (CC.MPS): where, by bus address and in the memory.
    pub(crate) fn aligned(&self, len: usize) -> Result<(SharedMemory, u64, usize)> {
        // Regions start at multiples of DMA_PAGE.
        let len = len + self.page as usize - DMA_PAGE;
        let memory = SharedMemory::allocate(len)
            .map_err(|error| Error::from(error).doing(format!("allocating {} KiB for queues", len >> 10)))?;
        let iova = self.map(memory.extent().region())? + memory.extent().offset() as u64;
        let start = iova.next_multiple_of(self.page);
        Ok((memory, start, (start - iova) as usize))
    }

    // --- what the controller offers ------------------------------------------------------------------------------------

    /// The shadow doorbells in use.
    pub(crate) fn shadow(&self) -> Option<Arc<ShadowDoorbells>> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In a secondary: finds out whether the controller uses shadow doorbells in this life, once.
    pub(crate) fn learn_shadow(&self) -> Result<()> {
        let Some(primary) = &self.primary else { return Ok(()) };
        let life = self.life();
        let mut known = self.shadow_life.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != Some(life) {
            let shadow = lent::shadow(primary, self.page)?;
            // Of a life that is over nothing is made any more.
            self.set_shadow(shadow.map(Arc::new));
            *known = Some(life);
        }
        Ok(())
    }

    /// Queue pairs made from now on use these shadow doorbells, or none.
    pub(crate) fn set_shadow(&self, shadow: Option<Arc<ShadowDoorbells>>) {
        *self.shadow.lock().unwrap_or_else(PoisonError::into_inner) = shadow;
    }

    /// Enables the controller memory buffer, if it has one for submission queues.
    pub(crate) fn enable_cmb(&self) -> Result<()> {
        let mut cmb = self.cmb.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cmb {
            Some(known) => known.enable(&self.bar),
            None => {
                let device = &mut *self.lock().device;
                *cmb = Cmb::open(device, &self.bar, self.cap, self.page)?.map(Arc::new);
                Ok(())
            }
        }
    }

    /// Room for a submission queue of `len` bytes in the controller memory buffer.
    pub(crate) fn take_cmb(&self, len: usize) -> Option<CmbPart> {
        self.cmb.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.take(len)
    }

    /// Pages of the controller memory buffer in use; `None` without one.
    #[cfg(test)]
    pub(crate) fn cmb_pages_used(&self) -> Option<usize> {
        self.cmb.lock().unwrap().as_ref().map(|cmb| cmb.pages_used())
    }

    /// Regions mapped.
    #[cfg(test)]
    pub(crate) fn mapped(&self) -> usize {
        self.lock().maps.len()
    }

    // --- stopping ------------------------------------------------------------------------------------------------------

    /// Whether the controller is stopped or being stopped.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Notes that the controller may know an I/O queue of this life, or knows neither half of it any more.
    pub(crate) fn note_queue(&self, life: u32, qid: u16, exists: bool) {
        let queues = &mut self.lock().queues;
        if exists && self.life() == life {
            queues.insert(qid);
        } else if self.life() == life {
            queues.remove(&qid);
        }
    }

    /// Begins to stop a controller that works: no queue rings its doorbell from now on, and the admin queue, which asks, is to delete
    /// the I/O queues that are returned and then to say so with [`Shared::queues_deleted`]. None are when the controller
    /// does not work, is being stopped already or shut down, or has none.
    pub(crate) fn begin_deleting(&self, life: u32, now: Instant) -> Vec<u16> {
        let mut inner = self.lock();
        let works = || {
            let register = |offset: PropertyOffset| self.bar.read32(u64::from(offset.0)).ok();
            let (cc, csts) = (register(PropertyOffset::CC)?, register(PropertyOffset::CSTS)?);
            let (cc, csts) = (ControllerConfig(cc), ControllerStatus(csts));
            // All ones, from a function that is gone, are no such status.
            let up = csts.rdy() && !csts.cfs() && csts.shst() == Shst::NORMAL;
            Some(cc.en() && cc.shn() == Shn::NONE && up)
        };
        if self.life() != life
            || !matches!(inner.stop, Stop::Running)
            || inner.queues.is_empty()
            || self.lost.load(Ordering::Acquire)
            || works() != Some(true)
        {
            return Vec::new();
        }
        self.dead.store(true, Ordering::Release);
        self.ring();
        inner.stop = Stop::Deleting { until: now + MAX_DELETE };
        inner.queues.iter().copied().collect()
    }

    /// The I/O queues are deleted, or cannot be: the controller may be disabled.
    pub(crate) fn queues_deleted(&self, life: u32, now: Instant) {
        let mut inner = self.lock();
        if self.life() == life && matches!(inner.stop, Stop::Deleting { .. }) {
            inner.stop = Stop::Deleting { until: now };
        }
    }

    /// Stops the controller one step further: CC.EN is cleared and CSTS.RDY awaited (NVMe Base 2.1 §3.1.4.5: afterwards the
    /// controller has forgotten all queues). Whoever is gone or does not obey is cut off from memory. `life` is that of the
    /// queue that asks: the queues of an earlier one were stopped with it.
    pub(crate) fn stop(&self, life: u32, now: Instant) -> Quiesce {
        let mut inner = self.lock();
        if self.life() != life {
            return Quiesce::Done;
        }
        if !self.dead.swap(true, Ordering::AcqRel) {
            self.ring();
        }
        inner.stop = match inner.stop {
            Stop::Deleting { until } if now < until => Stop::Deleting { until },
            Stop::Elsewhere => Stop::Elsewhere,
            // The primary sees it, too. When it has ended there is nobody else to stop the controller.
            Stop::Running if self.awaits_primary(now) => Stop::Running,
            Stop::Running | Stop::Deleting { .. } => self.disable(&mut inner, now),
            Stop::Disabling { not_before, deadline } => {
                self.await_disabled(&mut inner, now, not_before, deadline)
            }
            done => done,
        };
        if self.orphaned.get().is_some()
            && matches!(inner.stop, Stop::Quiet | Stop::CutOff | Stop::Unconfirmed)
        {
            // The function is free for the next primary.
            inner.device.isolate();
        }
        match inner.stop {
            Stop::Running | Stop::Elsewhere | Stop::Deleting { .. } | Stop::Disabling { .. } => {
                Quiesce::Pending
            }
            Stop::Quiet | Stop::CutOff => Quiesce::Done,
            Stop::Unconfirmed => Quiesce::Unconfirmed,
        }
    }

    /// Whether the primary has to stop the controller, or may still be ending.
    fn awaits_primary(&self, now: Instant) -> bool {
        let Some(primary) = &self.primary else { return false };
        // The sockets of a process are closed a moment before it has ended.
        self.orphaned.get().is_none_or(|&since| !primary.has_ended() && now < since + MAX_ENDING)
    }

    /// Begins another life of a controller that was stopped and obeyed. Mappings and interrupts stay.
    pub(crate) fn restart(&self) -> Result<()> {
        let inner = &mut *self.lock();
        match inner.stop {
            Stop::Running => {}
            // The primary says when.
            _ if self.primary.is_some() => {}
            Stop::Quiet if self.lost.load(Ordering::Acquire) || inner.device.is_removed() => {
                return Err(self.mark_lost());
            }
            Stop::Quiet => self.begin_life(inner),
            Stop::CutOff | Stop::Unconfirmed => {
                return Err(Error::disconnected(format!(
                    "the controller of {} did not stop and was cut off from memory",
                    self.name
                ))
                .hint("detach it and attach it anew"));
            }
            Stop::Elsewhere | Stop::Deleting { .. } | Stop::Disabling { .. } => {
                return Err(Error::api_misuse("a controller is used again before it is stopped"));
            }
        }
        Ok(())
    }

    fn begin_life(&self, inner: &mut Inner) {
        // It has forgotten its shadow doorbells as well.
        self.set_shadow(None);
        if let Some(bell) = &self.bell {
            bell.silence();
        }
        // Queues of the life before see that it is over before they could see the controller running again.
        self.life.fetch_add(1, Ordering::AcqRel);
        inner.stop = Stop::Running;
        inner.queues.clear();
        self.dead.store(false, Ordering::Release);
    }

    fn disable(&self, inner: &mut Inner, now: Instant) -> Stop {
        let offset = u64::from(PropertyOffset::CC.0);
        let disabled = match self.bar.read32(offset) {
            Ok(NOBODY_32) | Err(_) => None,
            Ok(cc) => self.bar.write32(offset, ControllerConfig(cc).with_en(false).0).ok(),
        };
        if disabled.is_none() || inner.device.is_removed() {
            return self.isolate(inner, "it is gone");
        }
        let limit = self.cap.ready_timeout().clamp(MIN_DISABLE, MAX_DISABLE);
        let not_before = now + self.quirks.delays.after_disable;
        self.await_disabled(inner, now, not_before, not_before + limit)
    }

    fn await_disabled(
        &self,
        inner: &mut Inner,
        now: Instant,
        not_before: Instant,
        deadline: Instant,
    ) -> Stop {
        if now < not_before {
            return Stop::Disabling { not_before, deadline };
        }
        match self.bar.read32(u64::from(PropertyOffset::CSTS.0)) {
            Ok(NOBODY_32) | Err(_) => self.isolate(inner, "it is gone"),
            Ok(csts) if !ControllerStatus(csts).rdy() => Stop::Quiet,
            Ok(_) if now < deadline => Stop::Disabling { not_before, deadline },
            Ok(_) => self.isolate(inner, "it stays ready although CC.EN is 0"),
        }
    }

    fn isolate(&self, inner: &mut Inner, why: &str) -> Stop {
        let certain = inner.device.isolate();
        tracing::warn!(function = %self.name, why, certain, "the controller is cut off from memory");
        if certain { Stop::CutOff } else { Stop::Unconfirmed }
    }
}

/// In a secondary: what the primary says about the controller.
impl PrimaryWatcher for Shared {
    fn look(&self, standing: Standing) {
        let mut inner = self.lock();
        if standing == Standing::Lost {
            self.orphaned.get_or_init(Instant::now);
        }
        match (standing, inner.stop) {
            (Standing::Usable, Stop::Quiet) => return self.begin_life(&mut inner),
            (Standing::Usable, _) => return,
            (Standing::Ending, Stop::Running) => inner.stop = Stop::Elsewhere,
            (Standing::Ended, _) => inner.stop = Stop::Quiet,
            // Each queue now asks for itself, and this side does what is left to be done.
            (Standing::Lost, Stop::Elsewhere) => inner.stop = Stop::Running,
            (Standing::Ending | Standing::Lost, _) => {}
        }
        self.dead.store(true, Ordering::Release);
        self.ring();
        if standing == Standing::Lost && (inner.queues.is_empty() || matches!(inner.stop, Stop::Quiet)) {
            // Nothing of ours is left there: the function is free for the next primary.
            inner.device.isolate();
        }
    }
}

impl Inner {
    /// Takes back mappings of regions that nobody uses any more.
    fn sweep(&mut self) {
        let unused: Vec<RegionId> =
            self.maps.iter().filter(|(_, (region, _))| !region.in_use()).map(|(&id, _)| id).collect();
        for id in unused {
            let unmapped = self.device.dma_unmap(id);
            let Some((region, _)) = self.maps.remove(&id) else { continue };
            if let Err(error) = unmapped {
                tracing::error!(%error, ?region, "I/O memory could not be unmapped; it is given up");
                region.leak();
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Without an admin queue nobody has stopped the controller, and nobody has started it either.
        let quiet = matches!(inner.stop, Stop::Quiet | Stop::CutOff)
            || inner.maps.is_empty()
            || inner.device.isolate();
        if !quiet {
            tracing::error!(
                function = %self.name,
                regions = inner.maps.len(),
                "the controller may still access memory; what was mapped for it is given up"
            );
            inner.maps.values().for_each(|(region, _)| region.leak());
        }
    }
}

//! What a controller and its queue pairs share: registers, mappings, and how the controller is stopped.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nvmf_core::dma::RegionId;
use nvmf_core::spec::registers::{Cap, ControllerConfig, ControllerStatus, PropertyOffset};
use nvmf_core::transport::Quiesce;
use nvmf_core::{DmaPool, DmaRegion, Error, ErrorKind, Result};

use crate::device::{Bar0, PciDevice};

/// Shortest time a controller is given to become disabled, whatever CAP.TO says: some report zero.
const MIN_DISABLE: Duration = Duration::from_millis(500);
/// Longest; a caller that drops a queue pair waits for it.
const MAX_DISABLE: Duration = Duration::from_secs(20);
/// What a read returns that nobody answers.
const NOBODY_32: u32 = u32::MAX;

/// The removal notice among what the admin queue's descriptor stands for.
const REMOVAL: Token = Token(0);

/// How SGLs may be used for I/O commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum SglSupport {
    No = 0,
    Yes = 1,
    /// Addresses and lengths in whole dwords only.
    Dwords = 2,
}

/// Behind an `Arc`, in the controller and in every queue pair; the function is given up with the last of them.
pub(crate) struct Shared {
    pub(crate) bar: Bar0,
    pub(crate) cap: Cap,
    /// Memory for data that neither PRPs nor SGLs can describe.
    pub(crate) bounce: DmaPool,
    name: String,
    vectors: Vec<File>,
    /// Sleeps on vector 0 and the removal notice together.
    admin_wait: Option<Mutex<Poll>>,
    sgl: AtomicU8,
    /// Reads return all ones, or the function says that it is gone.
    lost: AtomicBool,
    /// The controller is being stopped, or was.
    dead: AtomicBool,
    /// Counts the controller's lives: it begins another one when it is used again after it was stopped.
    life: AtomicU32,
    inner: Mutex<Inner>,
}

struct Inner {
    device: Box<dyn PciDevice>,
    /// What the function may reach. The clone keeps a region until the function has forgotten it.
    maps: HashMap<RegionId, (DmaRegion, u64)>,
    stop: Stop,
}

/// How far the controller is stopped as a whole.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Running,
    /// CC.EN was cleared; CSTS.RDY has to follow.
    Disabling {
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
    pub(crate) fn new(device: Box<dyn PciDevice>, bar: Bar0, cap: Cap, vectors: Vec<OwnedFd>) -> Self {
        let admin_wait = device.removal_fd().and_then(|removal| {
            let poll = Poll::new().ok()?;
            for (token, fd) in
                [removal].into_iter().chain(vectors.first().map(AsRawFd::as_raw_fd)).enumerate()
            {
                poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE).ok()?;
            }
            Some(poll)
        });
        Self {
            bar,
            cap,
            bounce: DmaPool::new(),
            name: device.identity().to_string(),
            vectors: vectors.into_iter().map(File::from).collect(),
            admin_wait: admin_wait.map(Mutex::new),
            sgl: AtomicU8::new(SglSupport::No as u8),
            lost: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            life: AtomicU32::new(0),
            inner: Mutex::new(Inner { device, maps: HashMap::new(), stop: Stop::Running }),
        }
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

    // --- interrupts --------------------------------------------------------------------------------------------------

    /// Vectors there are.
    pub(crate) fn vectors(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// What to sleep on for the admin queue: its vector, and the removal notice where there is one.
    pub(crate) fn admin_fd(&self) -> Option<RawFd> {
        match &self.admin_wait {
            Some(poll) => Some(poll.lock().unwrap_or_else(PoisonError::into_inner).as_raw_fd()),
            None => self.vector_fd(0),
        }
    }

    /// Silences [`Shared::admin_fd`] and looks whether the function was removed. Whoever does that has to look at the queue
    /// afterwards.
    pub(crate) fn silence_admin(&self) -> Result<()> {
        if let Some(poll) = &self.admin_wait {
            let mut events = Events::with_capacity(2);
            let mut poll = poll.lock().unwrap_or_else(PoisonError::into_inner);
            // Fails only when interrupted: then it is silenced the next time.
            let _ = poll.poll(&mut events, Some(Duration::ZERO));
            if events.iter().any(|event| event.token() == REMOVAL) && self.lock().device.is_removed() {
                return Err(self.mark_lost());
            }
        }
        self.silence(0);
        Ok(())
    }

    pub(crate) fn vector_fd(&self, vector: u16) -> Option<RawFd> {
        self.vectors.get(usize::from(vector)).map(AsRawFd::as_raw_fd)
    }

    /// Silences a vector's descriptor. Whoever does that has to look at the queue afterwards.
    pub(crate) fn silence(&self, vector: u16) {
        let Some(mut file) = self.vectors.get(usize::from(vector)) else { return };
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

    /// Remembers that the function is gone.
    pub(crate) fn mark_lost(&self) -> Error {
        self.lost.store(true, Ordering::Release);
        self.gone()
    }

    /// Whether the controller cannot be used any more by queues of this life, and why.
    pub(crate) fn failure(&self, life: u32) -> Option<Error> {
        if self.lost.load(Ordering::Acquire) {
            return Some(self.gone());
        }
        (self.dead.load(Ordering::Acquire) || self.life() != life)
            .then(|| Error::disconnected(format!("the controller of {} was disabled", self.name)))
    }

    /// The controller's current life. Queues of an earlier one do not exist any more.
    pub(crate) fn life(&self) -> u32 {
        self.life.load(Ordering::Acquire)
    }

    /// Looks whether the function still answers and its controller works.
    pub(crate) fn check_alive(&self) -> Result<()> {
        let csts = self
            .bar
            .read32(u64::from(PropertyOffset::CSTS.0))
            .inspect_err(|_| self.lost.store(true, Ordering::Release))?;
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
        let iova = inner.device.dma_map(region).map_err(|error| {
            error.doing(format!("mapping {} KiB of I/O memory for {}", region.len() >> 10, self.name))
        })?;
        inner.maps.insert(region.id(), (region.clone(), iova));
        Ok(iova)
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

    /// Stops the controller one step further: CC.EN is cleared and CSTS.RDY awaited (NVMe Base 2.1 §3.1.4.5: afterwards the
    /// controller has forgotten all queues). Whoever is gone or does not obey is cut off from memory. `life` is that of the
    /// queue that asks: the queues of an earlier one were stopped with it.
    pub(crate) fn stop(&self, life: u32, now: Instant) -> Quiesce {
        let mut inner = self.lock();
        if self.life() != life {
            return Quiesce::Done;
        }
        self.dead.store(true, Ordering::Release);
        inner.stop = match inner.stop {
            Stop::Running => self.disable(&mut inner, now),
            Stop::Disabling { deadline } => self.await_disabled(&mut inner, now, deadline),
            done => done,
        };
        match inner.stop {
            Stop::Running | Stop::Disabling { .. } => Quiesce::Pending,
            Stop::Quiet | Stop::CutOff => Quiesce::Done,
            Stop::Unconfirmed => Quiesce::Unconfirmed,
        }
    }

    /// Begins another life of a controller that was stopped and obeyed. Mappings and interrupts stay.
    pub(crate) fn restart(&self) -> Result<()> {
        let inner = &mut *self.lock();
        match inner.stop {
            Stop::Running => {}
            Stop::Quiet if self.lost.load(Ordering::Acquire) || inner.device.is_removed() => {
                return Err(self.mark_lost());
            }
            Stop::Quiet => {
                // Queues of the life before see that it is over before they could see the controller running again.
                self.life.fetch_add(1, Ordering::AcqRel);
                inner.stop = Stop::Running;
                self.dead.store(false, Ordering::Release);
            }
            Stop::CutOff | Stop::Unconfirmed => {
                return Err(Error::disconnected(format!(
                    "the controller of {} did not stop and was cut off from memory",
                    self.name
                ))
                .hint("detach it and attach it anew"));
            }
            Stop::Disabling { .. } => {
                return Err(Error::api_misuse("a controller is used again before it is stopped"));
            }
        }
        Ok(())
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
        self.await_disabled(inner, now, now + limit)
    }

    fn await_disabled(&self, inner: &mut Inner, now: Instant, deadline: Instant) -> Stop {
        match self.bar.read32(u64::from(PropertyOffset::CSTS.0)) {
            Ok(NOBODY_32) | Err(_) => self.isolate(inner, "it is gone"),
            Ok(csts) if !ControllerStatus(csts).rdy() => Stop::Quiet,
            Ok(_) if now < deadline => Stop::Disabling { deadline },
            Ok(_) => self.isolate(inner, "it stays ready although CC.EN is 0"),
        }
    }

    fn isolate(&self, inner: &mut Inner, why: &str) -> Stop {
        let certain = inner.device.isolate();
        tracing::warn!(function = %self.name, why, certain, "the controller is cut off from memory");
        if certain { Stop::CutOff } else { Stop::Unconfirmed }
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

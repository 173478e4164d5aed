//! Connections of one thread to one target.

use std::cell::RefCell;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::driver::ProbeContext;
use nvmf_core::{
    Controller, ControllerOptions, Driver, GroupKey, HostIdentity, IoBuf, IoQpairOptions, Namespace,
    PollGroup, TransportId,
};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::time::Timespec;

use super::usage::{cpu_time, resident};
use crate::rng::Rng;

/// Queue pairs of a controller.
const QPAIRS: usize = 64;
/// Bytes of an I/O.
const IO: usize = 4096;
/// Polls between two looks at the clock.
const POLLS: u32 = 256;
/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(60);

/// Queue pairs of one thread, in one poll group.
pub struct Host {
    group: PollGroup,
    keys: Vec<GroupKey>,
    ns: Namespace,
    controllers: Vec<Controller>,
    random: Rng,
}

/// What idle connections cost.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Bytes of memory that each has, of this process.
    pub memory: u64,
    /// One poll of all of them.
    pub poll: Duration,
    /// One epoll_wait, with nothing around it, for as many sockets at which nothing happens: what this machine's kernel takes.
    pub bare: Duration,
    /// Processor time while asleep, as a share of one core.
    pub asleep: f64,
}

/// What busy connections achieve.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// I/Os per second.
    pub iops: f64,
    /// Processor time, as a share of one core.
    pub cpu: f64,
}

/// Controllers attached at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Attached {
    /// How long it took until all of them were attached.
    pub together: Duration,
    /// How long one alone took.
    pub one: Duration,
}

/// Which connections are busy.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// How many, the first ones made.
    pub connections: usize,
    /// I/Os outstanding on each.
    pub depth: usize,
}

impl Host {
    /// Connects `connections` queue pairs, and does one I/O on each, so that everything is there that will be needed.
    /// Returns how many bytes of memory each of them has taken, too.
    ///
    /// # Errors
    /// When a connection cannot be made.
    pub fn connect(
        driver: &Driver,
        trid: &TransportId,
        options: &ControllerOptions,
        connections: usize,
    ) -> Result<(Self, u64)> {
        let before = resident()?;
        let mut controllers = Vec::new();
        let mut group = PollGroup::new();
        let mut keys = Vec::new();
        for number in 0..connections {
            if number % QPAIRS == 0 {
                controllers.push(driver.connect(trid, &of_another_host(options)?)?);
            }
            let controller = controllers.last().context("no controller")?;
            keys.push(
                group.add(controller.alloc_io_qpair_async(&IoQpairOptions::default().delay_submit(true))?),
            );
        }
        let ns =
            controllers.first().and_then(|controller| controller.namespace(1)).context("no namespace 1")?;
        let mut host = Self { group, keys, ns, controllers, random: Rng::new(1) };
        let began = Instant::now();
        while !host.group.all_connected() {
            host.group.process_completions(0, |_, _| {}, |_, error| tracing_lost(&error));
            ensure!(began.elapsed() < DEADLINE, "the queue pairs are not connected within {DEADLINE:?}");
        }
        host.run(Share { connections, depth: 1 }, None)?;
        let taken = resident()?.saturating_sub(before) / connections as u64;
        Ok((host, taken))
    }

    /// Measures with nothing to do.
    ///
    /// # Errors
    /// When a connection is lost, or `/proc` does not tell.
    pub fn idle(&mut self, time: Duration, memory: u64) -> Result<Idle> {
        let mut bare = BareSet::new(self.keys.len())?;
        let (mut turns, mut ours, mut theirs) = (0u32, Duration::ZERO, Duration::ZERO);
        // In turn, so that whatever else this machine does slows both down.
        while ours < time / 4 {
            let began = Instant::now();
            for _ in 0..POLLS {
                self.poll(&mut |_, _| {})?;
            }
            let between = Instant::now();
            for _ in 0..POLLS {
                bare.poll()?;
            }
            ours += between - began;
            theirs += between.elapsed();
            turns += 1;
        }
        let (poll, bare) = (ours / turns / POLLS, theirs / turns / POLLS);
        let (began, before) = (Instant::now(), cpu_time()?);
        while began.elapsed() < time {
            self.poll(&mut |_, _| {})?;
            self.group.wait(time.saturating_sub(began.elapsed()))?;
        }
        let asleep = share(before, began)?;
        Ok(Idle { memory, poll, bare, asleep })
    }

    /// Random reads for as long as asked, polled for.
    ///
    /// # Errors
    /// When a read fails or a connection is lost.
    pub fn busy(&mut self, share_of: Share, time: Duration) -> Result<Busy> {
        self.run(share_of, Some(time / 8))?;
        let (began, before) = (Instant::now(), cpu_time()?);
        let ios = self.run(share_of, Some(time))?;
        Ok(Busy { iops: ios as f64 / began.elapsed().as_secs_f64(), cpu: share(before, began)? })
    }

    /// Each connection keeps its depth for a time, or does that many I/Os. Returns how many there were.
    fn run(&mut self, share: Share, time: Option<Duration>) -> Result<u64> {
        let began = Instant::now();
        let mut ready: Vec<(GroupKey, IoBuf)> = Vec::new();
        for &key in self.keys.iter().take(share.connections) {
            for _ in 0..share.depth {
                let qpair = self.group.qpair_mut(key).context("no such queue pair")?;
                ready.push((key, qpair.alloc(IO)?.into()));
            }
        }
        let (mut outstanding, mut ios, mut heard) = (0usize, 0u64, began);
        loop {
            let ending = time.is_none_or(|time| began.elapsed() >= time);
            if ios == 0 || !ending {
                outstanding += ready.len();
                self.submit(&mut ready)?;
            }
            if outstanding == 0 {
                return Ok(ios);
            }
            let (mut done, mut failed) = (0, None);
            self.poll(&mut |key, completion| {
                failed = failed.take().or(completion.result.err());
                ready.push((key, completion.buf));
                done += 1;
            })?;
            if let Some(error) = failed {
                bail!("a read failed: {error}");
            }
            ios += done as u64;
            outstanding -= done;
            if done > 0 {
                heard = Instant::now();
            } else {
                ensure!(heard.elapsed() < DEADLINE, "no read has completed within {DEADLINE:?}");
            }
        }
    }

    /// Submits all of them; completions of one queue pair follow each other, so that it is sent for once for all of them.
    fn submit(&mut self, ready: &mut Vec<(GroupKey, IoBuf)>) -> Result<()> {
        let blocks = IO as u64 / u64::from(self.ns.block_size());
        let places = self.ns.size() / IO as u64;
        let mut last: Option<GroupKey> = None;
        for (key, buf) in ready.drain(..) {
            if let Some(before) = last
                && before != key
                && let Some(qpair) = self.group.qpair_mut(before)
            {
                qpair.flush();
            }
            last = Some(key);
            let slba = self.random.below(places) * blocks;
            let qpair = self.group.qpair_mut(key).context("no such queue pair")?;
            qpair.read(&self.ns, slba, buf, 0).map_err(|refused| refused.error)?;
        }
        if let Some(key) = last
            && let Some(qpair) = self.group.qpair_mut(key)
        {
            qpair.flush();
        }
        Ok(())
    }

    fn poll(&mut self, f: &mut dyn FnMut(GroupKey, nvmf_core::Completion)) -> Result<usize> {
        let mut lost = None;
        let count = self.group.process_completions(0, f, |_, error| lost = Some(error));
        match lost {
            None => Ok(count),
            Some(error) => Err(error).context("a queue pair is lost"),
        }
    }

    /// Ends all connections.
    ///
    /// # Errors
    /// When a controller cannot be told.
    pub fn close(self) -> Result<()> {
        drop(self.group);
        for controller in self.controllers {
            controller.detach()?;
        }
        Ok(())
    }
}

/// Connected sockets at which nothing happens, in an epoll set.
struct BareSet {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    _sockets: Vec<(TcpStream, TcpStream)>,
}

impl BareSet {
    fn new(count: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut sockets = Vec::with_capacity(count);
        for number in 0..count {
            let socket = TcpStream::connect(listener.local_addr()?).context("a socket for comparison")?;
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&epoll, &socket, epoll::EventData::new_u64(number as u64), flags)?;
            sockets.push((socket, listener.accept()?.0));
        }
        let mut set = Self { epoll, events: Vec::with_capacity(256), _sockets: sockets };
        // That they can be written to is told once.
        while set.poll()? > 0 {}
        Ok(set)
    }

    fn poll(&mut self) -> Result<usize> {
        self.events.clear();
        Ok(epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&Timespec::default()))?)
    }
}

/// The same host would be given the controller again that it has.
fn of_another_host(options: &ControllerOptions) -> Result<ControllerOptions> {
    let host = HostIdentity::random().context("a host identity")?;
    let mut options = options.clone();
    options.host = Some(host);
    Ok(options)
}

fn tracing_lost(error: &nvmf_core::Error) {
    eprintln!("a queue pair is lost: {error}");
}

/// Processor time since, as a share of the time that has passed.
fn share(before: Duration, began: Instant) -> Result<f64> {
    Ok(cpu_time()?.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64())
}

impl Attached {
    /// Attaches one controller, and then `count` at the same time, from one thread.
    ///
    /// # Errors
    /// When one of them cannot be attached.
    pub fn measure(
        driver: &Driver,
        trid: &TransportId,
        options: &ControllerOptions,
        count: usize,
    ) -> Result<Self> {
        let began = Instant::now();
        let alone = driver.connect(trid, options)?;
        let one = began.elapsed();
        alone.detach()?;

        let outcomes = RefCell::new(Vec::with_capacity(count));
        let began = Instant::now();
        let mut probes: Vec<ProbeContext<'_>> = (0..count)
            .map(|_| {
                let options = of_another_host(options)?;
                Ok(driver.connect_async(trid, &options, |outcome| outcomes.borrow_mut().push(outcome))?)
            })
            .collect::<Result<_>>()?;
        while !probes.is_empty() {
            let mut left = Vec::with_capacity(probes.len());
            for mut probe in probes {
                if !probe.poll()? {
                    left.push(probe);
                }
            }
            probes = left;
            if let Some(probe) = probes.first_mut() {
                probe.wait(Duration::from_millis(1))?;
            }
            ensure!(began.elapsed() < DEADLINE, "the controllers are not attached within {DEADLINE:?}");
        }
        let together = began.elapsed();
        drop(probes);
        for controller in outcomes.into_inner() {
            controller?.detach()?;
        }
        Ok(Self { together, one })
    }
}

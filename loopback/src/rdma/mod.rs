//! The NVMe/RDMA front, over a simulated fabric: listeners, and a thread for each connection.

// UNSAFETY: a promise about what sessions write.
#[expect(unsafe_code, reason = "the controller's part of docs/safety.md, A1")]
mod grant;
mod session;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nvmf_core::spec::rdma::{CmAccept, CmReject, CmRequest, CmStatus, RECFMT_0};
use nvmf_transport_rdma::sim::{Sim, SimListener, SimRequest};
use zerocopy::IntoBytes;

use crate::config::MAX_ADMIN_ENTRIES;
use crate::error::LoopbackError;
use crate::target::{Target, count};
use session::Session;

/// What a thread sleeps on.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.heard.notify_all();
    }

    /// Sleeps until it rings, or has rung since the last time, or the time has come.
    pub(super) fn wait(&self, until: Option<Instant>) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !std::mem::take(&mut *rung) {
            rung = match until {
                None => self.heard.wait(rung).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    self.heard.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Listeners that are open and not served yet.
pub(crate) struct Listeners {
    bell: Arc<Bell>,
    listeners: Vec<SimListener>,
}

/// Opens listeners; each with the fabric it is on and its address as users write them.
pub(crate) fn listen(addresses: &[(Sim, String)]) -> Result<Listeners, LoopbackError> {
    let bell = Arc::new(Bell::default());
    let mut listeners = Vec::new();
    for (sim, text) in addresses {
        let address: SocketAddr = text.parse().map_err(|error| LoopbackError::ListenAddress {
            address: text.clone(),
            source: io::Error::new(io::ErrorKind::InvalidInput, format!("{error}")),
        })?;
        let notify = Arc::clone(&bell);
        let listener = grant::listen(sim, address, Arc::new(move || notify.ring()));
        listeners.push(listener.map_err(|source| LoopbackError::Listen { address, source })?);
    }
    Ok(Listeners { bell, listeners })
}

impl Listeners {
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(SimListener::local_addr).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }
}

/// The listeners of a loopback; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(target: Arc<Target>, listeners: Listeners) -> io::Result<Self> {
        let bell = Arc::clone(&listeners.bell);
        let acceptor = Acceptor { target, listeners, running: Vec::new() };
        let name = "nvmf-loop-rdma".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || acceptor.run())?;
        Ok(Self { bell, thread: Some(thread) })
    }
}

impl Drop for Server {
    /// The target has been stopped before; every thread notices and ends within bounded time.
    fn drop(&mut self) {
        self.bell.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the RDMA listeners panicked");
        }
    }
}

struct Running {
    bell: Arc<Bell>,
    thread: JoinHandle<()>,
}

struct Acceptor {
    target: Arc<Target>,
    listeners: Listeners,
    running: Vec<Running>,
}

impl Acceptor {
    fn run(mut self) {
        while !self.target.is_stopped() {
            for running in self.running.extract_if(.., |running| running.thread.is_finished()) {
                join(running);
            }
            for index in 0..self.listeners.listeners.len() {
                let listener = &self.listeners.listeners[index];
                let local = listener.local_addr();
                while let Some(request) = self.listeners.listeners[index].next_request() {
                    self.accept(request, local);
                }
            }
            self.listeners.bell.wait(None);
        }
        self.listeners.listeners.clear();
        self.running.iter().for_each(|running| running.bell.ring());
        self.running.drain(..).for_each(join);
    }

    fn accept(&mut self, request: SimRequest, local: SocketAddr) {
        let fields = request.request();
        if let Err(status) = self.check(&fields) {
            tracing::info!(%status, "an RDMA connection was rejected");
            request.reject(CmReject::new(status).as_bytes());
            return;
        }
        count(&self.target.counters.connections, 1);
        let most = u32::from(self.target.config.rdma.max_receives);
        let receives = (u32::from(fields.hsqsize_z.get()) + 1).min(most);
        let bell = Arc::new(Bell::default());
        let notify = Arc::clone(&bell);
        let accept = CmAccept::new(receives as u16);
        let peer = request.accept(accept.as_bytes(), receives, Arc::new(move || notify.ring()));
        let session = Session::new(Arc::clone(&self.target), peer, Arc::clone(&bell), local, &fields);
        let name = "nvmf-loop-qp".to_owned();
        match std::thread::Builder::new().name(name).spawn(move || session.run()) {
            Ok(thread) => self.running.push(Running { bell, thread }),
            Err(error) => tracing::warn!(%error, "serving an RDMA connection"),
        }
    }

    /// NVMe RDMA Transport 1.1 §3.3: what the private data may say.
    fn check(&self, fields: &CmRequest) -> Result<(), CmStatus> {
        let config = &self.target.config;
        let qid = fields.qid.get();
        let most = if qid == 0 { MAX_ADMIN_ENTRIES } else { config.max_queue_entries };
        let entries = u32::from(fields.hsqsize_z.get()) + 1;
        if fields.recfmt.get() != RECFMT_0 {
            Err(CmStatus::INVALID_RECFMT)
        } else if qid > config.max_io_queues {
            Err(CmStatus::INVALID_QID)
        } else if entries < 2 || entries > most {
            Err(CmStatus::INVALID_HSQSIZE)
        } else if fields.hrqsize.get() == 0 {
            Err(CmStatus::INVALID_HRQSIZE)
        } else if self.target.is_refusing() || self.running.len() >= config.rdma.max_connections {
            Err(CmStatus::NO_RESOURCES)
        } else {
            Ok(())
        }
    }
}

fn join(running: Running) {
    if running.thread.join().is_err() {
        tracing::error!("the thread of an RDMA connection panicked");
    }
}

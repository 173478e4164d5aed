//! NVMe/RDMA for the nvmf initiator, host side (NVM Express RDMA Transport Specification 1.1).
//!
//! * [`VerbsProvider`] opens libibverbs and librdmacm at run time: building needs neither, and a program starts where they are
//!   missing. [`sim`] is a fabric in memory. What both have in common is not public: it lets devices write to memory.
//! * [`proto`] is the protocol without I/O: credits, slots, capsules.
//! * [`RdmaQpair`] drives both: registered memory is read and written by the controller itself, commands are posted in
//!   batches, completions are taken in batches, and a queue that is only polled raises no interrupt.
//! * [`RdmaTransport`] is what a program registers with its driver.

#![deny(unsafe_code)]

mod address;
mod controller;
mod memory;
mod options;
pub mod proto;
mod provider;
mod qpair;
mod requirements;
pub mod sim;
// UNSAFETY: declarations of foreign functions, dlopen and dlsym.
#[expect(unsafe_code, reason = "finds the functions of libibverbs and librdmacm at run time")]
mod sys;
mod verbs;

use std::sync::Arc;

use nvmf_core::transport::{Transport, TransportController};
use nvmf_core::{ControllerOptions, Error, Result, TransportId, TransportType};

pub use controller::RdmaController;
pub use options::RdmaOptions;
pub use qpair::RdmaQpair;
pub use requirements::{Missing, Requirements};
pub use verbs::{VerbsDomain, VerbsEndpoint, VerbsProvider, VerbsRegistration, VerbsShared};

use crate::provider::Provider;
use crate::qpair::Memories;

/// NVMe over RDMA.
pub struct RdmaTransport<P: Provider = VerbsProvider> {
    provider: Arc<P>,
    options: RdmaOptions,
    memories: Arc<Memories<P>>,
}

impl RdmaTransport {
    /// This machine's RDMA devices.
    #[must_use]
    pub fn new() -> Self {
        Self::with_provider(VerbsProvider::new())
    }

    /// What this machine has and lacks.
    #[must_use]
    pub fn requirements(&self) -> Requirements {
        self.provider.requirements()
    }
}

impl<P: Provider> RdmaTransport<P> {
    /// Over [`VerbsProvider`] or [`sim::Sim`].
    #[must_use]
    pub fn with_provider(provider: P) -> Self {
        Self { provider: Arc::new(provider), options: RdmaOptions::default(), memories: Arc::default() }
    }

    /// Sets how connections are made.
    #[must_use]
    pub fn with_options(mut self, options: RdmaOptions) -> Self {
        self.options = options;
        self
    }

    /// As [`Transport::ctrlr_construct`], with the type known.
    ///
    /// # Errors
    /// When the address is none of NVMe/RDMA, a local address makes no sense, or this machine lacks something.
    pub fn controller(&self, trid: &TransportId, options: &ControllerOptions) -> Result<RdmaController<P>> {
        if trid.trtype() != TransportType::Rdma {
            return Err(Error::api_misuse("this transport identifier is not for NVMe/RDMA").peer(trid));
        }
        self.provider.check().map_err(|error| error.peer(trid))?;
        RdmaController::new(
            Arc::clone(&self.provider),
            Arc::clone(&self.memories),
            self.options,
            trid,
            options,
        )
        .map_err(|error| error.peer(trid))
    }
}

impl Default for RdmaTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Provider> std::fmt::Debug for RdmaTransport<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RdmaTransport").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<P: Provider> Transport for RdmaTransport<P> {
    fn trtype(&self) -> TransportType {
        TransportType::Rdma
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        Ok(Box::new(self.controller(trid, options)?))
    }
}

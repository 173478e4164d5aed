//! What a secondary registers with its driver in place of a transport: controllers that the primary has attached.
//!
//! Registers and the admin queue are those of a virtual controller in front of the shared one, so that everything above the
//! transport does what it always does. I/O queues are the transport's own.

use std::any::Any;
use std::sync::Arc;

use super::admin_qpair::AdminQpair;
use super::client::{Instance, Primary, SharedController, is_same};
use super::wire::{Facts, MAX_DATA};
use crate::error::Result;
use crate::host::HostIdentity;
use crate::options::ControllerOptions;
use crate::spec::identify::IdentifyController;
use crate::transport::{
    Capabilities, InitDelays, QpairSetup, Transport, TransportController, TransportQpair,
};
use crate::transport_id::{TransportId, TransportType};

/// A transport whose controllers are those of the primary.
pub(crate) struct SecondaryTransport {
    inner: Arc<dyn Transport>,
    instance: Arc<Instance>,
}

impl SecondaryTransport {
    pub(crate) fn new(inner: Arc<dyn Transport>, instance: Arc<Instance>) -> Self {
        Self { inner, instance }
    }
}

impl Transport for SecondaryTransport {
    fn trtype(&self) -> TransportType {
        self.inner.trtype()
    }

    /// What the primary shares is all there is to be found.
    fn is_local(&self) -> bool {
        true
    }

    fn scan(&self, filter: Option<&TransportId>, found: &mut dyn FnMut(TransportId)) -> Result<()> {
        for shared in self.instance.controllers()? {
            if shared.trid.trtype() == self.trtype() && filter.is_none_or(|trid| is_same(&shared.trid, trid))
            {
                found(shared.trid);
            }
        }
        Ok(())
    }

    fn ctrlr_construct(
        &self,
        trid: &TransportId,
        options: &ControllerOptions,
    ) -> Result<Box<dyn TransportController>> {
        let shared = self.instance.find(trid)?;
        // A primary that has asked for digests has a reason.
        let mut options = options.clone();
        options.header_digest |= shared.facts.has(Facts::HEADER_DIGEST);
        options.data_digest |= shared.facts.has(Facts::DATA_DIGEST);
        let link = Arc::new(self.instance.attach(&shared)?);
        let inner = self.inner.ctrlr_construct_secondary(&shared.trid, &options, &link)?;
        Ok(Box::new(SecondaryController {
            transport: Arc::clone(&self.inner),
            trid: shared.trid,
            options,
            inner,
            link,
        }))
    }

    fn shared_host(&self, trid: &TransportId) -> Result<Option<HostIdentity>> {
        let SharedController { host, .. } = self.instance.find(trid)?;
        Ok(Some(host))
    }
}

/// A controller of the primary's.
struct SecondaryController {
    transport: Arc<dyn Transport>,
    trid: TransportId,
    options: ControllerOptions,
    /// The transport's own side, for I/O queues.
    inner: Box<dyn TransportController>,
    link: Arc<Primary>,
}

impl TransportController for SecondaryController {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        capabilities.max_admin_transfer = MAX_DATA as u32;
        // The admin queue is one of messages, whatever the others are. What it takes to start the controller the primary has done.
        capabilities.fabrics = true;
        capabilities.delays = InitDelays::default();
        capabilities
    }

    fn create_qpair(&mut self, setup: &QpairSetup) -> Result<Box<dyn TransportQpair>> {
        if setup.qid == 0 {
            return Ok(Box::new(AdminQpair::new(Arc::clone(&self.link), setup.slots)));
        }
        self.inner.create_qpair(setup)
    }

    fn identified(&mut self, identify: &IdentifyController) -> Result<()> {
        self.inner.identified(identify)
    }

    fn restart(&mut self) -> Result<bool> {
        if let Some(error) = self.link.failure() {
            return Err(error);
        }
        if !self.inner.restart()? {
            self.inner = self.transport.ctrlr_construct_secondary(&self.trid, &self.options, &self.link)?;
        }
        Ok(true)
    }

    fn lease_qid(&mut self) -> Result<Option<u16>> {
        self.link.lease().map(Some)
    }

    fn return_qid(&mut self, qid: u16) {
        // With the primary gone there is nobody to return it to.
        if let Err(error) = self.link.give_back(qid) {
            tracing::debug!(%error, qid, "an I/O queue could not be returned");
        }
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self.inner.as_any()
    }
}

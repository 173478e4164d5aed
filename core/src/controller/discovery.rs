//! Reading the discovery log page of a discovery controller, and being entered into a discovery service.

use std::sync::Arc;
use std::time::Duration;

use super::{AdminPending, Controller};
use crate::error::{Error, Result};
use crate::proto::discovery_log::{
    DiscoveryLog, DiscoveryLogError, DiscoveryLogLimits, DiscoveryLogReader, Step,
};
use crate::spec::dim::{DimTask, dim_command};
use crate::spec::discovery::DiscoveryLogAsk;
use crate::spec::identify::lpa;
use crate::spec::log_page::{GetLogPage, LogPageId};
use crate::wait::Waiter;

/// Bytes of Supported Log Pages.
const SUPPORTED_LOG_PAGES: usize = 1024;

/// How a discovery log is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscoveryLogOptions {
    /// What is asked of the controller. Nothing. A controller that does not know what is asked may fail the command or ignore it;
    /// [`Controller::discovery_log_support`] tells.
    pub ask: DiscoveryLogAsk,
    /// How often to start over when the log changes while it is read. 10, as in nvme-cli.
    pub max_retries: Option<u32>,
    /// The most records the log may claim to have. 16,384.
    pub max_records: Option<u64>,
}

impl DiscoveryLogOptions {
    /// Nothing special is asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what is asked of the controller.
    #[must_use]
    pub fn ask(mut self, ask: DiscoveryLogAsk) -> Self {
        self.ask = ask;
        self
    }

    /// Sets how often to start over.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// Sets the most records.
    #[must_use]
    pub fn max_records(mut self, records: u64) -> Self {
        self.max_records = Some(records);
        self
    }
}

/// A discovery log being read, without blocking.
#[derive(Debug)]
#[must_use = "nothing happens unless it is polled"]
pub struct DiscoveryLogRead {
    controller: Controller,
    ask: DiscoveryLogAsk,
    reader: Option<DiscoveryLogReader>,
    pending: Option<AdminPending>,
    seen: u64,
    waiter: Option<Waiter>,
}

impl DiscoveryLogRead {
    fn new(controller: &Controller, options: &DiscoveryLogOptions) -> Self {
        let mut limits = DiscoveryLogLimits::new(controller.log_chunk());
        limits.max_retries = options.max_retries.unwrap_or(limits.max_retries);
        limits.max_records = options.max_records.unwrap_or(limits.max_records);
        let reader = match options.ask.contains(DiscoveryLogAsk::EXTENDED) {
            true => DiscoveryLogReader::extended(limits),
            false => DiscoveryLogReader::new(limits),
        };
        Self {
            controller: controller.clone(),
            ask: options.ask,
            reader: Some(reader),
            pending: None,
            seen: 0,
            waiter: None,
        }
    }

    /// The controller it is read from.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// One step, which does not block; `Some` once the log is complete, and `None` for ever afterwards.
    ///
    /// # Errors
    /// As [`Controller::discovery_log`].
    pub fn poll(&mut self) -> Result<Option<DiscoveryLog>> {
        self.seen = self.controller.arrivals();
        let step = self.step();
        step.map_err(|error| error.doing("reading the discovery log").peer(self.controller.trid()))
    }

    /// Sleeps until [`DiscoveryLogRead::poll`] may have something to do, a tenth of a second at most.
    ///
    /// # Errors
    /// When the operating system cannot wait.
    pub fn wait(&mut self) -> Result<()> {
        self.controller.wait_arrival(self.seen, &mut self.waiter)
    }

    fn step(&mut self) -> Result<Option<DiscoveryLog>> {
        loop {
            let Some(reader) = &mut self.reader else { return Ok(None) };
            if let Some(pending) = &mut self.pending {
                let Some(result) = pending.poll_result() else { return Ok(None) };
                self.pending = None;
                match result {
                    Ok(result) => reader.complete(&result.data).map_err(log_error)?,
                    Err(error) => match error.status() {
                        Some(status) => reader.failed(status).map_err(log_error)?,
                        None => return Err(error),
                    },
                }
            }
            match reader.next() {
                Step::Read { offset, len } => {
                    let read = GetLogPage::new(LogPageId::DISCOVERY, offset, u64::from(len));
                    let sqe = read
                        .ok_or_else(|| Error::api_misuse(format!("{len} bytes at {offset} of a log page")))?
                        .with_lsp(self.ask.0)
                        .to_sqe(0);
                    let command =
                        self.controller.admin(sqe).data_in(len as usize).name("Get Log Page (discovery)");
                    self.pending = Some(command.submit()?);
                }
                Step::Done => {
                    return match self.reader.take() {
                        Some(reader) => reader.finish().map(Some).map_err(log_error),
                        None => Ok(None),
                    };
                }
            }
        }
    }
}

fn log_error(error: DiscoveryLogError) -> Error {
    Error::new(crate::ErrorKind::DiscoveryLog(Arc::new(error)))
}

impl Controller {
    /// Reads the discovery log: header, entries, header again, started over when it changed meanwhile. Waits.
    ///
    /// # Errors
    /// When the controller fails a command, keeps changing the log, claims more entries than are accepted, or is
    /// lost.
    pub fn discovery_log(&self) -> Result<DiscoveryLog> {
        self.discovery_log_with(&DiscoveryLogOptions::new())
    }

    /// As [`Controller::discovery_log`], with options.
    ///
    /// # Errors
    /// As [`Controller::discovery_log`]; also when the controller refuses what is asked of it.
    pub fn discovery_log_with(&self, options: &DiscoveryLogOptions) -> Result<DiscoveryLog> {
        let mut read = self.read_discovery_log(options);
        loop {
            if let Some(log) = read.poll()? {
                return Ok(log);
            }
            read.wait()?;
        }
    }

    /// Begins reading the discovery log. Nothing is sent before the first [`DiscoveryLogRead::poll`].
    pub fn read_discovery_log(&self, options: &DiscoveryLogOptions) -> DiscoveryLogRead {
        DiscoveryLogRead::new(self, options)
    }

    /// What may be asked of the discovery log ([`DiscoveryLogOptions::ask`]), from Supported Log Pages; nothing if the
    /// controller does not have that page.
    ///
    /// # Errors
    /// When the controller fails the command or is lost.
    pub fn discovery_log_support(&self) -> Result<DiscoveryLogAsk> {
        if self.identify().lpa & lpa::SUPPORTED_PAGES == 0 {
            return Ok(DiscoveryLogAsk::default());
        }
        let page = self.log_page(LogPageId::SUPPORTED_LOG_PAGES, 0, SUPPORTED_LOG_PAGES)?;
        // A dword for each page: bit 0 LSUPP, bits 31:16 LIDSP (NVMe Base 2.1 §5.1.12.1.1).
        let at = usize::from(LogPageId::DISCOVERY.0) * 4;
        let entry = page.get(at..at + 4).unwrap_or_default();
        Ok(DiscoveryLogAsk(match entry {
            [lsupp, _, lidsp, _] if lsupp & 1 != 0 => *lidsp,
            _ => 0,
        }))
    }

    /// Discovery Information Management: enters a host or a subsystem into the discovery service, or takes it out; `data` is
    /// from [`crate::spec::dim::dim_data`]. Waits, `timeout` at most.
    ///
    /// # Errors
    /// When the controller fails the command, as those do that are no central discovery controllers, or is lost.
    pub fn discovery_information(&self, task: DimTask, data: Vec<u8>, timeout: Duration) -> Result<()> {
        self.admin(dim_command(task)).data_out(data).timeout(timeout).wait().map(drop)
    }
}

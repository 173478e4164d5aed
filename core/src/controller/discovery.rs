//! Reading the discovery log page of a discovery controller.

use std::sync::Arc;

use super::{AdminPending, Controller};
use crate::error::{Error, Result};
use crate::proto::discovery_log::{
    DiscoveryLog, DiscoveryLogError, DiscoveryLogLimits, DiscoveryLogReader, Step,
};
use crate::spec::log_page::{GetLogPage, LogPageId};

/// A discovery log being read, without blocking.
pub(crate) struct DiscoveryRead {
    reader: Option<DiscoveryLogReader>,
    pending: Option<AdminPending>,
}

impl DiscoveryRead {
    pub(crate) fn new(controller: &Controller) -> Self {
        let limits = DiscoveryLogLimits::new(controller.log_chunk());
        Self { reader: Some(DiscoveryLogReader::new(limits)), pending: None }
    }

    /// One step; `Some` once the log is complete.
    pub(crate) fn poll(&mut self, controller: &Controller) -> Result<Option<DiscoveryLog>> {
        self.step(controller)
            .map_err(|error| error.doing("reading the discovery log").peer(controller.trid()))
    }

    fn step(&mut self, controller: &Controller) -> Result<Option<DiscoveryLog>> {
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
                        .to_sqe(0);
                    let command =
                        controller.admin(sqe).data_in(len as usize).name("Get Log Page (discovery)");
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
        let mut read = DiscoveryRead::new(self);
        let mut waiter = None;
        loop {
            let seen = self.arrivals();
            if let Some(log) = read.poll(self)? {
                return Ok(log);
            }
            self.wait_arrival(seen, &mut waiter)?;
        }
    }
}

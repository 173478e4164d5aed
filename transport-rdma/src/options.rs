//! Options of NVMe/RDMA connections that other transports do not have.

/// How connections are made. [`nvmf_core::ControllerOptions`] has the rest: source address, type of service, acknowledgement
/// timeout, queue sizes, deadlines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RdmaOptions {
    /// How often the device sends an unacknowledged packet again before the queue pair fails, 0..=7. 7.
    pub retry_count: u8,
    /// How often the device tries again when the controller has no receive posted, 0..=7, where 7 is for ever. 7.
    pub rnr_retry_count: u8,
    /// The controller gets access to just the bytes of a command's data, for reading or for writing, while the command is outstanding,
    /// by a memory window of its own (type 2B). Otherwise it has the keys of whole regions, which hold for as long as these
    /// are registered. Costs one or two work requests per command with data. No.
    pub memory_windows: bool,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self { retry_count: 7, rnr_retry_count: 7, memory_windows: false }
    }
}

impl RdmaOptions {
    /// Sets how often an unacknowledged packet is sent again.
    #[must_use]
    pub fn retry_count(mut self, retries: u8) -> Self {
        self.retry_count = retries.min(7);
        self
    }

    /// Sets whether the controller has access to a command's data only, and only while it is outstanding.
    #[must_use]
    pub fn memory_windows(mut self, windows: bool) -> Self {
        self.memory_windows = windows;
        self
    }

    /// Sets how often is tried again when the controller has no receive posted.
    #[must_use]
    pub fn rnr_retry_count(mut self, retries: u8) -> Self {
        self.rnr_retry_count = retries.min(7);
        self
    }
}

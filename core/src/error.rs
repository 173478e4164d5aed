//! Errors, sorted by who is at fault.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::proto::discovery_log::DiscoveryLogError;
use crate::spec::Status;
use crate::spec::status::CommandKind;
use crate::spec::tcp::FatalErrorStatus;
use crate::transport_id::TransportIdError;

/// What went wrong, by whose fault. More kinds may be added.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The peer broke the protocol: an answer that no state allows, a length that does not fit, an identifier it was
    /// never given. The connection is given up.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(Cow<'static, str>),
    /// The peer sent a PDU that NVMe/TCP does not allow; the connection is terminated with this status.
    #[error("the peer sent a bad PDU: {detail} ({fes}, FEI {fei:#x})")]
    Pdu {
        /// Fatal error status we answer with.
        fes: FatalErrorStatus,
        /// Fatal error information: byte offset or digest, by `fes`.
        fei: u32,
        /// What exactly was wrong.
        detail: Cow<'static, str>,
    },
    /// The peer terminated the connection, saying that we sent something wrong.
    #[error("the peer terminated the connection: {fes} (FES {code:#x}, FEI {fei:#x})", code = fes.0)]
    Terminated {
        /// Fatal error status from the peer.
        fes: FatalErrorStatus,
        /// Fatal error information from the peer.
        fei: u32,
    },
    /// The controller completed a command with an error status.
    #[error("{command} failed: {}", status.describe(*set))]
    Command {
        /// The command, in words.
        command: Cow<'static, str>,
        /// Its command set, which some status codes take their meaning from.
        set: CommandKind,
        /// Its status.
        status: Status,
    },
    /// The operating system or the network reported an error.
    #[error("{0}")]
    Transport(Arc<io::Error>),
    /// A deadline passed.
    #[error("no answer within {:?} while {state}", rounded(*after))]
    TimedOut {
        /// What was being waited for.
        state: Cow<'static, str>,
        /// How long was waited.
        after: Duration,
    },
    /// CSTS.CFS is set: the controller says it cannot go on.
    #[error("the controller reports a fatal status (CSTS.CFS)")]
    ControllerFatal,
    /// The connection is gone.
    #[error("the connection was lost: {0}")]
    Disconnected(Cow<'static, str>),
    /// The peer or this build cannot do what was asked.
    #[error("not supported: {0}")]
    Unsupported(Cow<'static, str>),
    /// The caller asked for something that cannot be right; fix the calling code or the command line.
    #[error("{0}")]
    ApiMisuse(Cow<'static, str>),
    /// No memory, queue, or identifier is left.
    #[error("{0}")]
    Exhausted(Cow<'static, str>),
    /// The discovery log could not be read.
    #[error("{0}")]
    DiscoveryLog(Arc<DiscoveryLogError>),
    /// A transport address could not be understood.
    #[error("{0}")]
    Address(Arc<TransportIdError>),
}

/// A duration as people state it: whole milliseconds, from ten seconds on tenths of a second.
fn rounded(time: Duration) -> Duration {
    let step = if time < Duration::from_secs(10) { 1 } else { 100 };
    let nearest = (time + Duration::from_micros(step * 500)).as_millis();
    let millis = u64::try_from(nearest).unwrap_or(u64::MAX) / step * step;
    if millis == 0 { time } else { Duration::from_millis(millis) }
}

/// An error with its context: what was attempted, against whom, and what to try next.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    doing: Option<Cow<'static, str>>,
    peer: Option<Box<str>>,
    hint: Option<Cow<'static, str>>,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind with no context yet.
    #[must_use]
    pub fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, doing: None, peer: None, hint: None }))
    }

    /// The peer broke the protocol.
    #[must_use]
    pub fn peer_misbehaved(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::PeerMisbehaved(what.into()))
    }

    /// A bad NVMe/TCP PDU.
    #[must_use]
    pub fn pdu(fes: FatalErrorStatus, fei: u32, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Pdu { fes, fei, detail: detail.into() })
    }

    /// A command of the command set `set` that completed with an error status.
    #[must_use]
    pub fn command(set: CommandKind, command: impl Into<Cow<'static, str>>, status: Status) -> Self {
        Self::new(ErrorKind::Command { command: command.into(), set, status })
    }

    /// A deadline that passed.
    #[must_use]
    pub fn timed_out(state: impl Into<Cow<'static, str>>, after: Duration) -> Self {
        Self::new(ErrorKind::TimedOut { state: state.into(), after })
    }

    /// A lost connection.
    #[must_use]
    pub fn disconnected(why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Disconnected(why.into()))
    }

    /// Something the peer or this build cannot do.
    #[must_use]
    pub fn unsupported(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported(what.into()))
    }

    /// A mistake of the caller.
    #[must_use]
    pub fn api_misuse(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::ApiMisuse(what.into()))
    }

    /// Something used up.
    #[must_use]
    pub fn exhausted(what: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Exhausted(what.into()))
    }

    /// Says what was being attempted, e.g. `connecting the admin queue`. The first statement stays.
    #[must_use]
    pub fn doing(mut self, what: impl Into<Cow<'static, str>>) -> Self {
        self.0.doing.get_or_insert_with(|| what.into());
        self
    }

    /// Says against whom: an address, a transport identifier. The first statement stays.
    #[must_use]
    pub fn peer(mut self, peer: impl fmt::Display) -> Self {
        self.0.peer.get_or_insert_with(|| peer.to_string().into());
        self
    }

    /// Says what to try next. The first statement stays.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The status of a command the controller failed, if that is what this is.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self.0.kind {
            ErrorKind::Command { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether a deadline passed.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.kind, ErrorKind::TimedOut { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        match (&inner.doing, &inner.peer) {
            (Some(doing), Some(peer)) => write!(f, "{doing} ({peer}): ")?,
            (Some(doing), None) => write!(f, "{doing}: ")?,
            (None, Some(peer)) => write!(f, "{peer}: ")?,
            (None, None) => {}
        }
        write!(f, "{}", inner.kind)?;
        if let Some(hint) = &inner.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::new(ErrorKind::Transport(Arc::new(error)))
    }
}

impl From<TransportIdError> for Error {
    fn from(error: TransportIdError) -> Self {
        Self::new(ErrorKind::Address(Arc::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_says_what_whom_why_and_what_next() {
        let error = Error::timed_out("waiting for the ICResp", Duration::from_secs(2))
            .doing("connecting the admin queue")
            .peer("tcp 127.0.0.1:4420")
            .hint("is an NVMe/TCP target listening there?");
        assert_eq!(
            error.to_string(),
            "connecting the admin queue (tcp 127.0.0.1:4420): no answer within 2s while waiting for the ICResp; \
             is an NVMe/TCP target listening there?"
        );
    }

    #[test]
    fn times_are_stated_without_noise() {
        let text = |time| Error::timed_out("waiting", time).to_string();
        assert_eq!(text(Duration::from_nanos(500_172_349)), "no answer within 500ms while waiting");
        assert_eq!(text(Duration::from_nanos(499_972_349)), "no answer within 500ms while waiting");
        assert_eq!(text(Duration::from_nanos(30_012_345_678)), "no answer within 30s while waiting");
        assert_eq!(text(Duration::from_micros(20)), "no answer within 20µs while waiting");
    }

    #[test]
    fn first_context_stays() {
        let error = Error::disconnected("end of stream").doing("reading").doing("attaching");
        assert_eq!(error.to_string(), "reading: the connection was lost: end of stream");
    }
}

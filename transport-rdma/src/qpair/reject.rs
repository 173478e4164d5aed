//! Why a connection was rejected: by the controller, in NVMe's words, or by the connection manager, in its own.

use nvmf_core::Error;
use nvmf_core::spec::rdma::{CmReject, CmStatus, RECFMT_0};
use zerocopy::FromBytes;

/// Reasons of the InfiniBand connection manager (InfiniBand Architecture, volume 1, §12.6.7.2).
const STALE_CONNECTION: i32 = 10;
const NO_SUCH_SERVICE: i32 = 8;
const CONSUMER: i32 = 28;

/// A rejection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rejection {
    /// The peer knows an old connection of the same name.
    Stale,
    /// Nothing listens there.
    NobodyListens,
    /// The controller does not want it.
    Controller(CmStatus),
    /// Something else listens there, or says no without a reason.
    Unexplained,
    /// The connection manager's reason.
    Manager(i32),
}

impl Rejection {
    pub(super) fn new(reason: i32, private_data: &[u8]) -> Self {
        match reason {
            STALE_CONNECTION => Self::Stale,
            NO_SUCH_SERVICE => Self::NobodyListens,
            // iWARP has no reasons.
            CONSUMER | ..0 => match CmReject::read_from_prefix(private_data) {
                Ok((reject, _)) if reject.recfmt.get() == RECFMT_0 && reject.sts.get() != 0 => {
                    Self::Controller(reject.status())
                }
                _ if reason == -libc::ECONNREFUSED => Self::NobodyListens,
                _ => Self::Unexplained,
            },
            other => Self::Manager(other),
        }
    }

    pub(super) fn error(self) -> Error {
        match self {
            Self::Stale => Error::disconnected(
                "the controller's host rejected the connection: it still knows an old one of the same name",
            )
            .hint("try again in a few seconds"),
            Self::NobodyListens => Error::disconnected("the connection was rejected: nothing listens there")
                .hint("is an NVMe/RDMA target listening on that address and port?"),
            Self::Controller(status) => {
                let error = Error::disconnected(format!(
                    "the controller rejected the connection: {status} (status {:#04x})",
                    status.0
                ));
                match status {
                    CmStatus::INVALID_HSQSIZE | CmStatus::INVALID_HRQSIZE => {
                        error.hint("ask for a smaller queue (admin_queue_size, io_queue_size)")
                    }
                    CmStatus::NO_RESOURCES => {
                        error.hint("ask for fewer or smaller queues, or try again later")
                    }
                    _ => error,
                }
            }
            Self::Unexplained => Error::disconnected("the connection was rejected without a reason")
                .hint("is it an NVMe/RDMA target that listens there?"),
            Self::Manager(reason) => Error::disconnected(match reason_words(reason) {
                Some(words) => format!("the connection was rejected: {words} (reason {reason})"),
                None => format!("the connection was rejected for reason {reason}"),
            }),
        }
    }
}

/// A reason of the connection manager in words.
pub(super) const fn reason_words(reason: i32) -> Option<&'static str> {
    Some(match reason {
        1 => "no queue pair is available",
        2 => "no end-to-end context is available",
        3 => "no resources are available",
        4 => "the request timed out",
        5 => "the request is not supported",
        6 => "invalid communication identifier",
        7 => "invalid communication instance",
        8 => "invalid service identifier",
        9 => "invalid transport service type",
        10 => "stale connection",
        11 => "the reliable datagram channel does not exist",
        12 => "the primary remote GID was rejected",
        13 => "the primary remote LID was rejected",
        14 => "invalid primary service level",
        15 => "invalid primary traffic class",
        16 => "invalid primary hop limit",
        17 => "the primary packet rate was rejected",
        18 => "the alternate remote GID was rejected",
        19 => "the alternate remote LID was rejected",
        20 => "invalid alternate service level",
        21 => "invalid alternate traffic class",
        22 => "invalid alternate hop limit",
        23 => "the alternate packet rate was rejected",
        24 => "redirected to another communication manager port",
        25 => "redirected to another port",
        26 => "invalid path MTU",
        27 => "not enough responder resources",
        28 => "rejected by the consumer",
        29 => "the RNR retry count was rejected",
        30 => "duplicate local communication identifier",
        31 => "invalid class version",
        32 => "invalid primary flow label",
        33 => "invalid alternate flow label",
        _ => return None,
    })
}

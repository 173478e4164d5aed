//! The private data of RDMA_CM connection events. NVMe RDMA Transport 1.1.
//!
//! Each I/O or admin queue is one RDMA connection; the private data of the connect request says which queue,
//! so that the target can size it before the first capsule.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The only private data format defined.
pub const RECFMT_0: u16 = 0;

/// Private data of RDMA_CM_REQUEST, host to target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CmRequest {
    /// Format: [`RECFMT_0`].
    pub recfmt: U16,
    /// Queue identifier; 0 is the admin queue.
    pub qid: U16,
    /// HRQSIZE: receive work requests the host posts, i.e. responses it can take at once. Not 0's based.
    pub hrqsize: U16,
    /// HSQSIZE: submission queue size, 0's based: the value the Connect command's SQSIZE repeats.
    pub hsqsize_z: U16,
    /// Controller the I/O queue belongs to; 0 in a request for an admin queue.
    pub cntlid: U16,
    /// Reserved.
    pub reserved: [u8; 22],
}

const _: () = assert!(size_of::<CmRequest>() == 32);
const _: () = assert!(offset_of!(CmRequest, qid) == 2);
const _: () = assert!(offset_of!(CmRequest, hrqsize) == 4);
const _: () = assert!(offset_of!(CmRequest, hsqsize_z) == 6);
const _: () = assert!(offset_of!(CmRequest, cntlid) == 8);

impl CmRequest {
    /// Private data for a queue of `entries` submission queue entries, 2..=65535, which is also the number of
    /// receive requests posted.
    #[must_use]
    pub fn new(qid: u16, entries: u16, cntlid: u16) -> Self {
        Self {
            recfmt: U16::new(RECFMT_0),
            qid: U16::new(qid),
            hrqsize: U16::new(entries),
            hsqsize_z: U16::new(entries.saturating_sub(1)),
            cntlid: U16::new(cntlid),
            reserved: [0; 22],
        }
    }
}

/// Private data of an accepted connection, target to host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CmAccept {
    /// Format: [`RECFMT_0`].
    pub recfmt: U16,
    /// CRQSIZE: receive work requests the controller posts, i.e. commands it can take at once.
    pub crqsize: U16,
    /// Reserved.
    pub reserved: [u8; 28],
}

const _: () = assert!(size_of::<CmAccept>() == 32);
const _: () = assert!(offset_of!(CmAccept, crqsize) == 2);

impl CmAccept {
    /// Private data granting `crqsize` receive requests.
    #[must_use]
    pub fn new(crqsize: u16) -> Self {
        Self { recfmt: U16::new(RECFMT_0), crqsize: U16::new(crqsize), reserved: [0; 28] }
    }
}

/// Private data of a rejected connection, target to host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CmReject {
    /// Format: [`RECFMT_0`].
    pub recfmt: U16,
    /// Why; see [`CmReject::status`].
    pub sts: U16,
}

const _: () = assert!(size_of::<CmReject>() == 4);
const _: () = assert!(offset_of!(CmReject, sts) == 2);

impl CmReject {
    /// Private data of a rejection.
    #[must_use]
    pub fn new(status: CmStatus) -> Self {
        Self { recfmt: U16::new(RECFMT_0), sts: U16::new(status.0) }
    }

    /// Why the target rejected the connection.
    #[must_use]
    pub const fn status(&self) -> CmStatus {
        CmStatus(self.sts.get())
    }
}

open_enum! {
    /// Status of a rejected RDMA connection.
    pub struct CmStatus(u16) {
        /// The private data has the wrong length.
        INVALID_LENGTH = 0x01 => "invalid length of the RDMA_CM private data",
        /// RECFMT is not supported.
        INVALID_RECFMT = 0x02 => "invalid record format (RECFMT)",
        /// QID is not valid.
        INVALID_QID = 0x03 => "invalid queue identifier (QID)",
        /// HSQSIZE is not valid.
        INVALID_HSQSIZE = 0x04 => "invalid host submission queue size (HSQSIZE)",
        /// HRQSIZE is not valid.
        INVALID_HRQSIZE = 0x05 => "invalid host receive queue size (HRQSIZE)",
        /// The target has no RDMA resources for another queue.
        NO_RESOURCES = 0x06 => "the target has no RDMA resources left for another queue",
        /// The inbound read depth is not valid.
        INVALID_IRD = 0x07 => "invalid inbound RDMA read queue depth (IRD)",
        /// The outbound read depth is not valid.
        INVALID_ORD = 0x08 => "invalid outbound RDMA read queue depth (ORD)",
        /// CNTLID names no controller.
        INVALID_CNTLID = 0x09 => "invalid controller identifier (CNTLID)",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn request_layout() {
        let request = CmRequest::new(0x0102, 128, 0x0a0b);
        let bytes = request.as_bytes();
        assert_eq!(bytes[..10], [0, 0, 0x02, 0x01, 128, 0, 127, 0, 0x0b, 0x0a]);
        assert_eq!(bytes[10..], [0; 22]);
    }

    #[test]
    fn accept_and_reject_layout() {
        assert_eq!(CmAccept::new(0x0140).as_bytes()[..4], [0, 0, 0x40, 0x01]);
        let reject = CmReject::new(CmStatus::NO_RESOURCES);
        assert_eq!(reject.as_bytes(), [0, 0, 6, 0]);
        assert_eq!(reject.status().to_string(), "the target has no RDMA resources left for another queue");
    }

    proptest! {
        #[test]
        fn any_bytes_round_trip(bytes: [u8; 32]) {
            let request: CmRequest = zerocopy::transmute!(bytes);
            prop_assert_eq!(request.as_bytes(), &bytes[..]);
            let accept: CmAccept = zerocopy::transmute!(bytes);
            prop_assert_eq!(accept.as_bytes(), &bytes[..]);
            let (reject, rest) = CmReject::read_from_prefix(&bytes[..]).unwrap();
            prop_assert_eq!(rest.len(), 28);
            let _ = reject.status().to_string();
        }
    }
}

//! The host side of one NVMe/TCP connection.
//!
//! ```text
//!   new ──▶ AwaitIcResp ──ICResp──▶ Running ──┐
//!              │                      │       │ error: H2CTermReq is queued
//!              └──────────────────────┴──────▶ Failed
//! ```

use std::collections::VecDeque;

use nvmf_core::spec::completion::Cqe;
use nvmf_core::spec::tcp::{
    CommonHeader, DIGEST_DATA, DIGEST_HEADER, FatalErrorStatus, IcReq, MAX_PDA, MIN_MAXH2CDATA, PduType,
    TermReq,
};
use nvmf_core::{Error, ErrorKind, Result};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::digest::PayloadDigest;
use super::header::{HEADER_LEN, IC_LEN, Rules};
use super::staging::Staging;
use super::tx_queue::TxQueue;

mod receive;
mod send;

pub use receive::RecvTarget;
pub use send::SEND_MAX;

/// Bytes of the PDU at fault that a H2CTermReq repeats.
const TERM_DATA_MAX: usize = 128;
/// Smallest staging buffer: the largest header, PDO being one byte, and then some.
const STAGING_MIN: usize = 4096;

/// What a connection is to be.
#[derive(Clone, Debug)]
pub struct ConnectionParams {
    /// Queue identifier; 0 is the admin queue.
    pub qid: u16,
    /// Slots of the tracker that will be lent.
    pub slots: u16,
    /// Ask for header digests. Not getting them is an error.
    pub header_digest: bool,
    /// Ask for data digests. Not getting them is an error.
    pub data_digest: bool,
    /// Alignment of C2HData payload to ask for, 0's based dwords (0..=31, clamped).
    pub hpda: u8,
    /// R2Ts accepted per command at a time, 0's based.
    pub maxr2t_z: u32,
    /// In-capsule data of I/O commands, bytes: IOCCSZ × 16 − 64. Admin and fabrics commands have 8,192 always.
    pub in_capsule_io: u32,
    /// Size of the receive staging buffer, bytes; at least 4,096.
    pub staging: usize,
}

impl ConnectionParams {
    /// No digests, no alignment, one R2T at a time, no in-capsule data for I/O, 256 KiB of staging (admin queue: 64 KiB).
    #[must_use]
    pub fn new(qid: u16, slots: u16) -> Self {
        Self {
            qid,
            slots,
            header_digest: false,
            data_digest: false,
            hpda: 0,
            maxr2t_z: 0,
            in_capsule_io: 0,
            staging: if qid == 0 { 64 * 1024 } else { 256 * 1024 },
        }
    }
}

#[derive(Debug)]
enum State {
    AwaitIcResp,
    Running,
    Failed(Error),
}

/// What the command in a slot has done so far.
#[derive(Clone, Copy, Default, Debug)]
struct Progress {
    /// Bytes of C2HData taken.
    received: u32,
    /// Bytes of the data asked for by R2T.
    requested: u32,
    /// R2Ts whose data has not left.
    r2ts: u32,
    /// Stream position behind the command's SQE.
    sqe_end: u64,
    /// Stream position behind the last byte queued for the command.
    tx_end: u64,
    /// The data goes by R2T, not in the capsule.
    by_r2t: bool,
    /// A data digest did not match: whatever the controller says, the command failed.
    damaged: bool,
    /// C2HData with LAST_PDU was seen.
    last_seen: bool,
    /// The completion is here, but bytes of the command still have to leave.
    held: bool,
}

/// What is being received.
#[derive(Clone, Copy, Debug)]
enum Rx {
    Header,
    Payload(Payload),
    /// The data digest behind a payload.
    Digest(Payload),
}

#[derive(Clone, Copy, Debug)]
struct Payload {
    slot: u16,
    /// Where in the command's data the next byte goes.
    offset: u32,
    left: u32,
    success: bool,
}

/// A R2T that is being served. Those whose PDUs are all queued come first.
#[derive(Debug)]
struct Grant {
    slot: u16,
    ttag: u16,
    offset: u32,
    left: u32,
    /// Stream position behind the last PDU queued.
    end: u64,
}

/// The host side of one NVMe/TCP connection: a state machine over bytes.
#[derive(Debug)]
pub struct Connection {
    params: ConnectionParams,
    state: State,
    rules: Rules,
    /// CPDA in bytes.
    alignment: usize,
    maxh2cdata: u32,
    staging: Staging,
    /// Length of the direct part of the last [`RecvTarget`].
    direct_len: usize,
    rx: Rx,
    /// Digest of the payload that is being received.
    rx_crc: PayloadDigest,
    bulk: bool,
    /// The budget ended [`Connection::process`], not the lack of bytes.
    paused: bool,
    tx: TxQueue,
    /// Receives until the host is taken to be behind the controller.
    ahead: u8,
    /// Stream position from which on what is queued is due to be sent before its batch is complete.
    due_at: u64,
    grants: VecDeque<Grant>,
    /// How many of `grants` have all their PDUs queued.
    granted: usize,
    /// Of the slots used so far.
    progress: Vec<Progress>,
    held: Vec<(u16, Cqe)>,
}

impl Connection {
    /// A connection that has to send its ICReq.
    #[must_use]
    pub fn new(params: ConnectionParams) -> Self {
        let hpda = params.hpda.min(MAX_PDA);
        let mut connection = Self {
            state: State::AwaitIcResp,
            rules: Rules {
                running: false,
                header_digest: false,
                data_digest: false,
                alignment: (u32::from(hpda) + 1) * 4,
            },
            alignment: 4,
            maxh2cdata: MIN_MAXH2CDATA,
            staging: Staging::new(params.staging.max(STAGING_MIN)),
            direct_len: 0,
            rx: Rx::Header,
            rx_crc: PayloadDigest::default(),
            bulk: false,
            paused: false,
            tx: TxQueue::default(),
            ahead: 0,
            due_at: u64::MAX,
            grants: VecDeque::new(),
            granted: 0,
            progress: Vec::new(),
            held: Vec::new(),
            params,
        };
        let digest = if connection.params.header_digest { DIGEST_HEADER } else { 0 }
            | if connection.params.data_digest { DIGEST_DATA } else { 0 };
        let request = IcReq {
            ch: common(PduType::IC_REQ, 0, IC_LEN, 0, IC_LEN),
            hpda,
            digest,
            maxr2t_z: U32::new(connection.params.maxr2t_z),
            ..IcReq::new_zeroed()
        };
        connection.tx.put(request.as_bytes());
        connection
    }

    /// Whether the ICResp was received and accepted, and nothing failed since.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    /// Why the connection was given up, if it was.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        match &self.state {
            State::Failed(error) => Some(error),
            _ => None,
        }
    }

    /// Whether there is something to send.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        !self.tx.is_empty() || self.granted < self.grants.len()
    }

    /// Whether [`Connection::process`] stopped at its budget and can go on without receiving.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// In words, what the peer was doing; for the message when it goes away.
    #[must_use]
    pub fn situation(&self) -> &'static str {
        match (&self.state, self.rx) {
            (State::AwaitIcResp, _) => "before it answered the ICReq",
            (_, Rx::Header) if self.staging.is_empty() => "between two PDUs",
            (_, Rx::Header) => "in the middle of a PDU header",
            (_, Rx::Payload(_) | Rx::Digest(_)) => "in the middle of a C2HData PDU",
        }
    }

    fn check_failed(&self) -> Result<()> {
        match &self.state {
            State::Failed(error) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Gives the connection up and queues the H2CTermReq that tells the peer why, where it is to be told.
    fn fail(&mut self, error: Error) -> Error {
        let status = match error.kind() {
            ErrorKind::Pdu { fes, fei, .. } => Some((*fes, *fei)),
            ErrorKind::PeerMisbehaved(_) => Some((FatalErrorStatus::PDU_SEQUENCE_ERROR, 0)),
            _ => None,
        };
        if let Some((fes, fei)) = status {
            // A header is consumed only once it has been accepted, so the one at fault is in front.
            let staged = self.staging.bytes();
            let hlen = staged.get(2).map_or(0, |&hlen| usize::from(hlen)).max(HEADER_LEN);
            let data = &staged[..staged.len().min(hlen).min(TERM_DATA_MAX)];
            let term = TermReq {
                ch: common(PduType::H2C_TERM_REQ, 0, HEADER_LEN, 0, HEADER_LEN + data.len()),
                fes: U16::new(fes.0),
                fei: U32::new(fei),
                reserved: [0; 10],
            };
            self.tx.put(term.as_bytes());
            self.tx.put(data);
        }
        self.grants.clear();
        self.granted = 0;
        self.paused = false;
        self.state = State::Failed(error.clone());
        error
    }
}

fn common(pdu_type: PduType, flags: u8, hlen: usize, pdo: usize, plen: usize) -> CommonHeader {
    // hlen and pdo are at most 204; plen is at most a transfer of 1 GiB and a header.
    CommonHeader {
        pdu_type: pdu_type.0,
        flags,
        hlen: hlen as u8,
        pdo: pdo as u8,
        plen: U32::new(plen as u32),
    }
}

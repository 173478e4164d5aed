//! A connection against hand-made PDUs of a controller.

use std::io::IoSlice;

use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::tcp::{
    CapsuleCmd, CommonHeader, DataPdu, FLAG_DDGST, FLAG_HDGST, FatalErrorStatus, IcResp, PduType, R2t,
    TermReq,
};
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::{DmaPool, Error, ErrorKind, Result};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::digest::crc32c;
use super::{Connection, ConnectionParams, SEND_MAX};

mod properties;
mod receive;
mod refusals;
mod transmit;

const MAXH2CDATA: u32 = 16 * 1024;

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    header_digest: bool,
    data_digest: bool,
    cpda: u8,
    hpda: u8,
    maxr2t_z: u32,
}

impl Terms {
    fn digests() -> Self {
        Self { header_digest: true, data_digest: true, ..Self::default() }
    }

    fn params(self) -> ConnectionParams {
        ConnectionParams {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            hpda: self.hpda,
            maxr2t_z: self.maxr2t_z,
            in_capsule_io: 4096,
            ..ConnectionParams::new(1, 8)
        }
    }

    fn ic_resp(self) -> IcResp {
        IcResp {
            ch: CommonHeader { pdu_type: 1, flags: 0, hlen: 128, pdo: 0, plen: U32::new(128) },
            cpda: self.cpda,
            digest: u8::from(self.header_digest) | u8::from(self.data_digest) << 1,
            maxh2cdata: U32::new(MAXH2CDATA),
            ..IcResp::new_zeroed()
        }
    }

    /// A PDU as a controller frames it. `body` is the header behind the common header.
    fn pdu(self, pdu_type: PduType, mut flags: u8, body: &[u8], data: Option<&[u8]>) -> Vec<u8> {
        let hlen = 8 + body.len();
        let digest = if self.header_digest { 4 } else { 0 };
        let (mut pdo, mut plen) = (0, hlen + digest);
        flags |= if self.header_digest { FLAG_HDGST } else { 0 };
        if let Some(data) = data {
            pdo = (hlen + digest).next_multiple_of((usize::from(self.hpda) + 1) * 4);
            plen = pdo + data.len() + if self.data_digest { 4 } else { 0 };
            flags |= if self.data_digest { FLAG_DDGST } else { 0 };
        }
        let ch = CommonHeader {
            pdu_type: pdu_type.0,
            flags,
            hlen: hlen as u8,
            pdo: pdo as u8,
            plen: U32::new(plen as u32),
        };
        let mut pdu = [ch.as_bytes(), body].concat();
        if self.header_digest {
            pdu.extend(crc32c(&pdu).to_le_bytes());
        }
        if let Some(data) = data {
            pdu.resize(pdo, 0);
            pdu.extend(data);
            if self.data_digest {
                pdu.extend(crc32c(data).to_le_bytes());
            }
        }
        pdu
    }

    fn response(self, cid: u16, status: Status) -> Vec<u8> {
        self.pdu(PduType::CAPSULE_RESP, 0, Cqe::new(cid, 7, status).as_bytes(), None)
    }

    fn c2h(self, cid: u16, offset: u32, data: &[u8], flags: u8) -> Vec<u8> {
        let header = DataPdu {
            cccid: U16::new(cid),
            datao: U32::new(offset),
            datal: U32::new(data.len() as u32),
            ..DataPdu::default()
        };
        self.pdu(PduType::C2H_DATA, flags, &header.as_bytes()[8..], Some(data))
    }

    fn r2t(self, cid: u16, ttag: u16, offset: u32, len: u32) -> Vec<u8> {
        let header = R2t {
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            r2to: U32::new(offset),
            r2tl: U32::new(len),
            ..R2t::default()
        };
        self.pdu(PduType::R2T, 0, &header.as_bytes()[8..], None)
    }
}

/// A PDU that the host sent, taken apart.
#[derive(Clone, PartialEq, Debug)]
struct Sent {
    pdu_type: PduType,
    flags: u8,
    pdo: usize,
    header: Vec<u8>,
    data: Vec<u8>,
}

impl Sent {
    fn command(&self) -> Sqe {
        CapsuleCmd::read_from_bytes(&self.header).unwrap().sqe
    }

    fn data_pdu(&self) -> DataPdu {
        DataPdu::read_from_bytes(&self.header).unwrap()
    }

    fn term(&self) -> TermReq {
        TermReq::read_from_bytes(&self.header).unwrap()
    }
}

/// Takes a byte stream from the host apart and checks its framing: lengths, alignment, padding, digests.
fn dissect(terms: Terms, mut bytes: &[u8]) -> Vec<Sent> {
    let mut pdus = Vec::new();
    while !bytes.is_empty() {
        let ch = CommonHeader::read_from_prefix(bytes).unwrap().0;
        let pdu_type = PduType(ch.pdu_type);
        let (hlen, pdo, plen) = (usize::from(ch.hlen), usize::from(ch.pdo), ch.plen.get() as usize);
        let plain = matches!(pdu_type, PduType::IC_REQ | PduType::H2C_TERM_REQ);
        let (header_digest, data_digest) = (terms.header_digest && !plain, terms.data_digest && pdo > 0);
        assert_eq!(ch.flags & FLAG_HDGST != 0, header_digest, "{pdu_type}");
        assert_eq!(ch.flags & FLAG_DDGST != 0, data_digest, "{pdu_type}");
        let (pdu, rest) = bytes.split_at(plen);
        let mut end = hlen;
        if header_digest {
            assert_eq!(pdu[hlen..hlen + 4], crc32c(&pdu[..hlen]).to_le_bytes());
            end += 4;
        }
        let mut data = &pdu[end..];
        if pdo > 0 {
            let alignment = (usize::from(terms.cpda) + 1) * 4;
            assert_eq!(pdo, end.next_multiple_of(alignment));
            assert!(pdu[end..pdo].iter().all(|&byte| byte == 0), "padding");
            data = &pdu[pdo..];
            if data_digest {
                let digest;
                (data, digest) = data.split_at(data.len() - 4);
                assert_eq!(digest, crc32c(data).to_le_bytes());
            }
        } else {
            assert!(data.is_empty() || plain, "{pdu_type} has {} bytes too many", data.len());
        }
        pdus.push(Sent { pdu_type, flags: ch.flags, pdo, header: pdu[..hlen].to_vec(), data: data.to_vec() });
        bytes = rest;
    }
    pdus
}

/// A connection with commands and the means to drive it.
struct Rig {
    terms: Terms,
    pool: DmaPool,
    tracker: Tracker,
    connection: Connection,
    /// How many bytes went straight into a command's buffer.
    direct: usize,
}

impl Rig {
    /// A connection that has sent its ICReq.
    fn new(terms: Terms, params: ConnectionParams) -> Self {
        let mut connection = Connection::new(params);
        connection.sent(connection.transmit_staged().len());
        let tracker = Tracker::new(8, 8, true);
        Self { terms, pool: DmaPool::new(), tracker, connection, direct: 0 }
    }

    /// A running connection.
    fn running(terms: Terms) -> Self {
        let mut rig = Self::new(terms, terms.params());
        assert!(rig.connect(terms.ic_resp().as_bytes()).unwrap());
        rig
    }

    fn connect(&mut self, bytes: &[u8]) -> Result<bool> {
        self.connection.connect_target()[..bytes.len()].copy_from_slice(bytes);
        self.connection.connect_received(bytes.len());
        self.connection.process_connect()
    }

    /// Submits operation `op` with `len` bytes of data in buffers of `piece` bytes; byte `i` of a write's data is
    /// [`pattern`]`(i)`.
    fn submit(&mut self, op: u32, opcode: NvmOpcode, len: usize, piece: usize) -> u16 {
        let direction = DataDirection::of_opcode(opcode.0);
        let mut bufs = Vec::new();
        let mut at = 0;
        while at < len {
            let mut buf = self.pool.alloc(piece.min(len - at)).unwrap();
            if direction == DataDirection::HostToController {
                buf.iter_mut().enumerate().for_each(|(i, byte)| *byte = pattern(at + i));
            }
            at += buf.len();
            bufs.push(buf);
        }
        self.tracker.put_buf(op, bufs.into());
        let (slot, cid) = self.tracker.begin(op, 0, len as u32, direction).unwrap();
        let mut sqe = Sqe::nvm(opcode, 1);
        sqe.cid = U16::new(cid);
        self.connection.submit(slot, &sqe, &self.tracker).unwrap();
        cid
    }

    fn read(&mut self, op: u32, len: usize) -> u16 {
        let cid = self.submit(op, NvmOpcode::READ, len, usize::MAX);
        self.transmit();
        cid
    }

    fn write(&mut self, op: u32, len: usize) -> u16 {
        let cid = self.submit(op, NvmOpcode::WRITE, len, usize::MAX);
        self.transmit();
        cid
    }

    /// Sends at most `limit` bytes and returns them.
    fn transmit_some(&mut self, limit: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < limit && self.connection.wants_transmit() {
            self.connection.fill(&self.tracker).unwrap();
            let mut slices = [IoSlice::new(&[]); 3];
            // A prime number: parts end anywhere.
            let most = (limit - all.len()).min(9973);
            let count = self.connection.transmit_slices(&self.tracker, most, &mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            assert!((1..=most).contains(&bytes.len()));
            self.connection.sent(bytes.len());
            all.extend(bytes);
        }
        all
    }

    fn transmit(&mut self) -> Vec<Sent> {
        dissect(self.terms, &self.transmit_some(usize::MAX))
    }

    /// Receives `bytes`, at most `step` at a time.
    fn feed_in(&mut self, mut bytes: &[u8], step: usize) -> Result<()> {
        while !bytes.is_empty() {
            let target = self.connection.recv_target(&mut self.tracker);
            let n = bytes.len().min(step).min(target.len());
            assert!(n > 0, "no room to receive");
            let direct = n.min(target.direct.len());
            target.direct[..direct].copy_from_slice(&bytes[..direct]);
            target.staging[..n - direct].copy_from_slice(&bytes[direct..n]);
            self.direct += direct;
            self.connection.received(n, &self.tracker);
            self.connection.process(&mut self.tracker, usize::MAX)?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        self.feed_in(bytes, usize::MAX)
    }

    /// Completions reported so far: operation, status, data.
    fn completions(&mut self) -> Vec<(u32, Status, Vec<u8>)> {
        let all = (0..self.tracker.completed())
            .map(|index| {
                let (op, _, _, cqe) = self.tracker.take_completed(index).unwrap();
                (
                    op,
                    cqe.status(),
                    self.tracker.take_buf(op).bufs().iter().flat_map(|buf| buf.to_vec()).collect(),
                )
            })
            .collect();
        self.tracker.clear_completed();
        all
    }

    /// The status and information of the H2CTermReq that is the last thing sent, with the data it carries.
    fn terminated(&mut self) -> (FatalErrorStatus, u32, Vec<u8>) {
        let last = self.transmit().pop().expect("a H2CTermReq is due");
        assert_eq!(last.pdu_type, PduType::H2C_TERM_REQ);
        (FatalErrorStatus(last.term().fes.get()), last.term().fei.get(), last.data)
    }
}

fn pattern(index: usize) -> u8 {
    (index * 7 + index / 251) as u8
}

fn patterned(offset: usize, len: usize) -> Vec<u8> {
    (offset..offset + len).map(pattern).collect()
}

fn pdu_error(error: &Error) -> (FatalErrorStatus, u32) {
    match error.kind() {
        ErrorKind::Pdu { fes, fei, .. } => (*fes, *fei),
        other => panic!("not a PDU error: {other:?}"),
    }
}

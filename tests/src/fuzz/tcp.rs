//! The NVMe/TCP connection, as a hostile target sees it.

use std::io::IoSlice;

use nvmf_core::proto::Tracker;
use nvmf_core::spec::command::DataDirection;
use nvmf_core::spec::tcp::{CommonHeader, FLAG_LAST, FLAG_SUCCESS, IcResp, PduType};
use nvmf_core::spec::{Cqe, NvmOpcode, Sqe, Status};
use nvmf_core::{DmaPool, IoBuf};
use nvmf_transport_tcp::proto::{Connection, ConnectionParams};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::Bytes;

const SLOTS: u16 = 4;
const MARK: u8 = 0xa5;

struct Rig {
    pool: DmaPool,
    tracker: Tracker,
    connection: Connection,
    /// Of each operation: its command and length of data; none once it is complete.
    open: Vec<Option<(u16, bool)>>,
}

impl Rig {
    fn new(bytes: &mut Bytes<'_>) -> Self {
        let choice = bytes.byte();
        let params = ConnectionParams {
            header_digest: choice & 1 != 0,
            data_digest: choice & 2 != 0,
            hpda: choice >> 3,
            in_capsule_io: if choice & 4 != 0 { 4096 } else { 0 },
            ..ConnectionParams::new(1, SLOTS)
        };
        let mut connection = Connection::new(params);
        connection.sent(connection.transmit_staged().len());
        Self { pool: super::pool(), tracker: Tracker::new(SLOTS, 8, true), connection, open: Vec::new() }
    }

    /// Answers the ICReq well, with MAXH2CDATA 4096.
    fn connect(&mut self, digest: u8) {
        let resp = IcResp {
            ch: CommonHeader { pdu_type: 1, flags: 0, hlen: 128, pdo: 0, plen: U32::new(128) },
            digest,
            maxh2cdata: U32::new(4096),
            ..IcResp::new_zeroed()
        };
        self.connection.connect_target()[..128].copy_from_slice(resp.as_bytes());
        self.connection.connect_received(128);
        assert!(self.connection.process_connect().expect("a good ICResp"), "it is complete");
    }

    fn submit(&mut self, opcode: NvmOpcode, len: usize) {
        let op = self.open.len() as u32;
        let direction = DataDirection::of_opcode(opcode.0);
        let mut buf = self.pool.alloc(len).expect("memory");
        buf.fill(MARK);
        self.tracker.put_buf(op, IoBuf::from(buf));
        let (slot, cid) = self.tracker.begin(op, 0, len as u32, direction).expect("a slot");
        let mut sqe = Sqe::nvm(opcode, 1);
        sqe.cid = U16::new(cid);
        self.connection.submit(slot, &sqe, &self.tracker).expect("a living connection");
        self.open.push(Some((cid, opcode == NvmOpcode::WRITE)));
    }

    /// Sends everything there is to send; what is sent is bounded by what was submitted.
    fn transmit(&mut self) {
        let mut total = 0;
        while self.connection.wants_transmit() {
            if self.connection.fill(&self.tracker).is_err() {
                return;
            }
            let mut slices = [IoSlice::new(&[]); 3];
            let count = self.connection.transmit_slices(&self.tracker, usize::MAX, &mut slices);
            let n: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            assert!(n > 0, "it wants to send, but has nothing");
            self.connection.sent(n);
            total += n;
            assert!(total < 4 << 20, "it sends without end");
        }
    }

    /// Receives `bytes` in pieces of at most `step`. False when the connection is broken.
    fn feed(&mut self, mut bytes: &[u8], step: usize) -> bool {
        while !bytes.is_empty() {
            let target = self.connection.recv_target(&mut self.tracker);
            let n = bytes.len().min(step.max(1)).min(target.len());
            assert!(n > 0, "no room to receive");
            let direct = n.min(target.direct.len());
            target.direct[..direct].copy_from_slice(&bytes[..direct]);
            target.staging[..n - direct].copy_from_slice(&bytes[direct..n]);
            self.connection.received(n, &self.tracker);
            let outcome = self.connection.process(&mut self.tracker, usize::MAX);
            self.collect();
            if outcome.is_err() {
                assert!(self.connection.failure().is_some(), "a failure is remembered");
                return false;
            }
            bytes = &bytes[n..];
        }
        true
    }

    /// Every operation completes at most once, and the data of a write is what it was.
    fn collect(&mut self) {
        for index in 0..self.tracker.completed() {
            let (op, ..) = self.tracker.take_completed(index).expect("a completion");
            let (_, is_write) = self.open[op as usize].take().expect("an operation that is open");
            let buf = self.tracker.take_buf(op);
            assert!(
                !is_write || buf.bufs().iter().all(|b| b.iter().all(|&byte| byte == MARK)),
                "a write's data changed"
            );
        }
        self.tracker.clear_completed();
    }
}

/// Any bytes in place of the ICResp, and behind a good one.
pub(super) fn stream(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let digest = input.first().map_or(0, |choice| choice & 3);
    let mut rig = Rig::new(&mut bytes);
    if bytes.byte() & 1 != 0 {
        while !bytes.is_empty() {
            let target = rig.connection.connect_target();
            if target.is_empty() {
                break;
            }
            let piece = bytes.take(target.len());
            target[..piece.len()].copy_from_slice(piece);
            rig.connection.connect_received(piece.len());
            match rig.connection.process_connect() {
                Ok(false) => {}
                Ok(true) => break,
                Err(_) => return,
            }
        }
        return;
    }
    rig.connect(digest);
    rig.submit(NvmOpcode::READ, 5000);
    rig.submit(NvmOpcode::WRITE, 20_000);
    rig.transmit();
    let step = bytes.below(3000);
    rig.feed(bytes.rest(), step);
    rig.transmit();
}

/// PDUs that are well-formed on the outside, with any fields: gets deeper than noise.
pub(super) fn session(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let mut rig = Rig::new(&mut Bytes::new(&[4]));
    rig.connect(0);
    for _ in 0..2 {
        rig.submit(NvmOpcode::READ, 9000);
        rig.submit(NvmOpcode::WRITE, 30_000);
    }
    rig.transmit();
    while !bytes.is_empty() {
        let choice = bytes.byte();
        let open = rig.open[usize::from(choice >> 6)];
        let cid = match (choice & 0x20 != 0, open) {
            (false, Some((cid, _))) => cid,
            _ => bytes.below(65_536) as u16,
        };
        let number = |bytes: &mut Bytes<'_>| -> u32 {
            match bytes.byte() {
                0 => u32::MAX,
                1 => bytes.u64() as u32,
                n => u32::from(n - 2) * 500,
            }
        };
        let mut header = vec![0; 16];
        header[..2].copy_from_slice(&cid.to_le_bytes());
        let (pdu_type, flags, data) = match choice & 7 {
            0 | 1 => {
                header.copy_from_slice(Cqe::new(cid, bytes.byte().into(), Status::SUCCESS).as_bytes());
                (PduType::CAPSULE_RESP, 0, None)
            }
            2..5 => {
                let len = number(&mut bytes) % 12_000;
                header[4..8].copy_from_slice(&number(&mut bytes).to_le_bytes());
                header[8..12]
                    .copy_from_slice(&(if choice & 8 != 0 { number(&mut bytes) } else { len }).to_le_bytes());
                let flags = bytes.byte() & (FLAG_LAST | FLAG_SUCCESS);
                (PduType::C2H_DATA, flags, Some(vec![0x3c; len as usize]))
            }
            5 | 6 => {
                header[2] = bytes.byte();
                header[4..8].copy_from_slice(&number(&mut bytes).to_le_bytes());
                header[8..12].copy_from_slice(&number(&mut bytes).to_le_bytes());
                (PduType::R2T, 0, None)
            }
            _ => (PduType(bytes.byte()), bytes.byte(), None),
        };
        let plen = 24 + data.as_ref().map_or(0, Vec::len) as u32;
        let ch = CommonHeader {
            pdu_type: pdu_type.0,
            flags,
            hlen: 24,
            pdo: if data.is_some() { 24 } else { 0 },
            plen: U32::new(plen),
        };
        let mut pdu = [ch.as_bytes(), &header].concat();
        pdu.extend(data.unwrap_or_default());
        if !rig.feed(&pdu, usize::MAX) {
            break;
        }
        rig.transmit();
    }
}

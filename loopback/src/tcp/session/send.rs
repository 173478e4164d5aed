//! What a connection sends: response capsules, data, R2Ts, and the last word.

use nvmf_core::spec::tcp::{
    CapsuleResp, CommonHeader, DataPdu, FLAG_DDGST, FLAG_HDGST, FLAG_LAST, FLAG_SUCCESS, PduType, R2t,
    TermReq,
};
use nvmf_core::spec::{Cqe, Sqe};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::*;
use crate::tcp::output::Layout;

/// Most bytes of an offending PDU that a C2HTermReq repeats.
const TERM_REQ_DATA: usize = 128;
/// A command identifier no host uses: FFFFh is reserved.
const NOBODY: u16 = u16::MAX;

pub(super) fn header(pdu_type: PduType, flags: u8, hlen: u8, pdo: usize, plen: usize) -> CommonHeader {
    CommonHeader { pdu_type: pdu_type.0, flags, hlen, pdo: pdo as u8, plen: U32::new(plen as u32) }
}

fn data_header(agreed: &Agreed, cid: u16, offset: usize, layout: &Layout, flags: u8) -> DataPdu {
    let digests =
        if agreed.header_digest { FLAG_HDGST } else { 0 } | if agreed.data_digest { FLAG_DDGST } else { 0 };
    DataPdu {
        ch: header(PduType::C2H_DATA, flags | digests, 24, layout.pdo, layout.plen),
        cccid: U16::new(cid),
        datao: U32::new(offset as u32),
        datal: U32::new(layout.data.len() as u32),
        ..DataPdu::default()
    }
}

/// Puts what comes before the data of a PDU into its place.
fn frame_head(pdu: &mut [u8], agreed: &Agreed, header: &DataPdu, layout: &Layout, fault: Option<&Fault>) {
    const HLEN: usize = size_of::<DataPdu>();
    pdu[..HLEN].copy_from_slice(header.as_bytes());
    pdu[HLEN..layout.pdo].fill(0);
    if agreed.header_digest {
        let digest = crc32c(header.as_bytes()) ^ u32::from(fault == Some(&Fault::BadHeaderDigest));
        pdu[HLEN..HLEN + 4].copy_from_slice(&digest.to_le_bytes());
    }
}

/// Puts header and digests around the data of a PDU.
fn frame(pdu: &mut [u8], agreed: &Agreed, header: &DataPdu, layout: &Layout, fault: Option<&Fault>) {
    frame_head(pdu, agreed, header, layout, fault);
    if agreed.data_digest {
        let digest = crc32c(&pdu[layout.data.clone()]) ^ u32::from(fault == Some(&Fault::BadDataDigest));
        pdu[layout.data.end..layout.plen].copy_from_slice(&digest.to_le_bytes());
    }
}

impl Session {
    /// Executes a command that returns data, and sends it.
    pub(super) fn read(&mut self, sqe: &Sqe, len: usize, fault: Option<Fault>) {
        if fault.is_some() || len > self.target.config.tcp.max_c2h_data as usize {
            return self.read_in_pieces(sqe, len, fault);
        }
        let agreed = self.agreed;
        let stored = self.queue.moves_data(sqe);
        let may_leave_out = self.may_leave_out_responses();
        // The data goes from the namespace right to where it is sent from.
        let layout =
            Layout::new(size_of::<DataPdu>(), len, agreed.header_digest, agreed.data_digest, agreed.hpda);
        let pdu = self.output.reserve(layout.plen);
        let outcome = self.queue.execute(sqe, Data::In(&mut pdu[layout.data.clone()]));
        match outcome {
            Outcome::Answer(cqe) if cqe.status().is_success() => {
                let success = may_leave_out && cqe.result64() == 0;
                let flags = FLAG_LAST | if success { FLAG_SUCCESS } else { 0 };
                let header = data_header(&agreed, sqe.cid.get(), 0, &layout, flags);
                if stored {
                    frame(pdu, &agreed, &header, &layout, None);
                    self.output.commit(layout.plen);
                } else {
                    frame_head(pdu, &agreed, &header, &layout, None);
                    self.output.commit(layout.pdo);
                    self.send_zeroes(len);
                }
                if success { self.answered() } else { self.answer(cqe, None) }
            }
            other => self.finish(other, None),
        }
    }

    /// The data of a namespace that stores nothing, behind its header: no byte of it is touched.
    fn send_zeroes(&mut self, len: usize) {
        self.output.put_zeroes(len);
        if self.agreed.data_digest {
            if self.zero_digest.0 != len {
                self.zero_digest = (len, crc32c(&vec![0; len]));
            }
            self.output.put(&self.zero_digest.1.to_le_bytes());
        }
    }

    /// Whether the SUCCESS flag of data may stand for a response capsule without a result: with flow control the host waits for SQHD.
    fn may_leave_out_responses(&self) -> bool {
        self.target.config.tcp.c2h_success && !self.queue.has_flow_control()
    }

    fn read_in_pieces(&mut self, sqe: &Sqe, len: usize, fault: Option<Fault>) {
        let mut data = vec![0; len];
        let cqe = match self.queue.execute(sqe, Data::In(&mut data)) {
            Outcome::Answer(cqe) if cqe.status().is_success() => cqe,
            other => return self.finish(other, fault),
        };
        let cid = sqe.cid.get();
        match fault {
            Some(Fault::ShortData(short)) => {
                data.truncate(short as usize);
                self.send_c2h(cid, 0, &data, true, true, &None);
                return self.answered();
            }
            Some(Fault::CorruptData) => {
                if let Some(byte) = data.get_mut(len / 2) {
                    *byte ^= 0xff;
                }
            }
            _ => {}
        }
        let success = self.may_leave_out_responses() && cqe.result64() == 0 && fault != Some(Fault::WrongCid);
        let piece = self.target.config.tcp.max_c2h_data as usize;
        let last = data.len().div_ceil(piece).saturating_sub(1);
        for (index, bytes) in data.chunks(piece).enumerate() {
            let is_last = index == last;
            let shift = if is_last && fault == Some(Fault::WrongDatao) { 4096 } else { 0 };
            self.send_c2h(cid, index * piece + shift, bytes, is_last, is_last && success, &fault);
        }
        match fault {
            Some(Fault::DuplicateCompletion) if success => self.answer(cqe, None),
            // The header digest was spoilt on the data already.
            Some(Fault::BadHeaderDigest) if !success => self.answer(cqe, None),
            _ if success => self.answered(),
            fault => self.answer(cqe, fault),
        }
    }

    /// Sends a C2HData PDU.
    pub(super) fn send_c2h(
        &mut self,
        cid: u16,
        offset: usize,
        data: &[u8],
        last: bool,
        success: bool,
        fault: &Option<Fault>,
    ) {
        let agreed = self.agreed;
        let hlen = size_of::<DataPdu>();
        let layout = Layout::new(hlen, data.len(), agreed.header_digest, agreed.data_digest, agreed.hpda);
        let flags = if last { FLAG_LAST } else { 0 } | if success { FLAG_SUCCESS } else { 0 };
        let header = data_header(&agreed, cid, offset, &layout, flags);
        let pdu = self.output.reserve(layout.plen);
        pdu[layout.data.clone()].copy_from_slice(data);
        frame(pdu, &agreed, &header, &layout, fault.as_ref());
        self.output.commit(layout.plen);
    }

    /// Sends a PDU that is a header only.
    fn send_header(&mut self, bytes: &[u8], bad_digest: bool) {
        self.output.put(bytes);
        if self.agreed.header_digest {
            let digest = crc32c(bytes) ^ u32::from(bad_digest);
            self.output.put(&digest.to_le_bytes());
        }
    }

    fn plain_header(&self, pdu_type: PduType) -> CommonHeader {
        let (flags, digest) = if self.agreed.header_digest { (FLAG_HDGST, 4) } else { (0, 0) };
        header(pdu_type, flags, 24, 0, 24 + digest)
    }

    pub(super) fn send_r2t(&mut self, cid: u16, ttag: u16, offset: u32, len: u32, bad_digest: bool) {
        let r2t = R2t {
            ch: self.plain_header(PduType::R2T),
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            r2to: U32::new(offset),
            r2tl: U32::new(len),
            reserved: [0; 4],
        };
        self.send_header(r2t.as_bytes(), bad_digest);
    }

    /// A command is done as far as we are concerned.
    fn answered(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
    }

    /// Sends a response capsule.
    pub(super) fn answer(&mut self, mut cqe: Cqe, fault: Option<Fault>) {
        self.answered();
        if fault == Some(Fault::WrongCid) {
            cqe.cid = U16::new(NOBODY);
        }
        let resp = CapsuleResp { ch: self.plain_header(PduType::CAPSULE_RESP), cqe };
        self.send_header(resp.as_bytes(), fault == Some(Fault::BadHeaderDigest));
        if fault == Some(Fault::DuplicateCompletion) {
            self.send_header(resp.as_bytes(), false);
        }
    }

    /// Sends a C2HTermReq with the header of the PDU at fault. Nothing that comes after it is looked at.
    pub(super) fn terminate(&mut self, fatal: Fatal) {
        tracing::warn!(fes = %fatal.fes, fei = fatal.fei, "the host broke the protocol; terminating the connection");
        count(&self.target.counters.terminated_connections, 1);
        let received = &self.input[self.start..self.end];
        let hlen = received.get(2).map_or(0, |&hlen| usize::from(hlen));
        let repeated = &received[..received.len().min(hlen).min(TERM_REQ_DATA)];
        let req = TermReq {
            ch: header(PduType::C2H_TERM_REQ, 0, 24, 0, size_of::<TermReq>() + repeated.len()),
            fes: U16::new(fatal.fes.0),
            fei: U32::new(fatal.fei),
            reserved: [0; 10],
        };
        self.output.put(req.as_bytes());
        self.output.put(repeated);
        self.closing = true;
        self.terminated = true;
    }
}

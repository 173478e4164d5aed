//! For the tests: a host's side of NVMe/TCP, written out by hand.

use nvmf_core::Nqn;
use nvmf_core::spec::data_ptr::SglDescriptor;
use nvmf_core::spec::fabrics::{self, ConnectData, PropertySize};
use nvmf_core::spec::registers::{ControllerConfig, PropertyOffset};
use nvmf_core::spec::tcp::{
    CapsuleCmd, CapsuleResp, CommonHeader, DataPdu, FLAG_DDGST, FLAG_HDGST, FLAG_LAST, IcReq, IcResp,
    PduType, R2t, TermReq,
};
use nvmf_core::spec::{Cqe, Sqe};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::pdu::crc32c;

pub(crate) const HOST: &str = "nqn.2024-01.org.example:host";

/// A PDU from the controller.
#[derive(Debug)]
pub(crate) enum Pdu {
    IcResp(IcResp),
    Resp(Cqe),
    Data { header: DataPdu, data: Vec<u8>, digests_ok: bool },
    R2t(R2t),
    Term(TermReq, Vec<u8>),
}

/// Builds and reads PDUs as was agreed on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wire {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// CPDA, 0's based dwords.
    pub(crate) cpda: u8,
}

impl Wire {
    pub(crate) fn ic_req(digest: u8, hpda: u8, maxr2t_z: u32) -> Vec<u8> {
        let mut req = IcReq::new_zeroed();
        req.ch = CommonHeader {
            pdu_type: PduType::IC_REQ.0,
            hlen: 128,
            plen: U32::new(128),
            ..Default::default()
        };
        (req.digest, req.hpda, req.maxr2t_z) = (digest, hpda, U32::new(maxr2t_z));
        req.as_bytes().to_vec()
    }

    /// A PDU: `header` with its common header filled in, then data.
    fn build(self, header: &[u8], pdu_type: PduType, mut flags: u8, data: &[u8]) -> Vec<u8> {
        let hlen = header.len();
        let head = hlen + if self.header_digest { 4 } else { 0 };
        let pdo = if data.is_empty() { 0 } else { head.next_multiple_of((usize::from(self.cpda) + 1) * 4) };
        let digest = if self.data_digest && !data.is_empty() { 4 } else { 0 };
        let plen = if data.is_empty() { head } else { pdo + data.len() + digest };
        flags |= if self.header_digest { FLAG_HDGST } else { 0 } | if digest > 0 { FLAG_DDGST } else { 0 };
        let plen32 = U32::new(plen as u32);
        let ch = CommonHeader { pdu_type: pdu_type.0, flags, hlen: hlen as u8, pdo: pdo as u8, plen: plen32 };
        let mut pdu = header.to_vec();
        pdu[..8].copy_from_slice(ch.as_bytes());
        if self.header_digest {
            pdu.extend(crc32c(&pdu).to_le_bytes());
        }
        pdu.resize(pdo.max(pdu.len()), 0);
        pdu.extend(data);
        if digest > 0 {
            pdu.extend(crc32c(data).to_le_bytes());
        }
        pdu
    }

    /// A command; its SGL is made to fit: in-capsule data, `len` bytes in PDUs of their own, or none.
    pub(crate) fn command(self, cid: u16, mut sqe: Sqe, in_capsule: &[u8], len: u32) -> Vec<u8> {
        sqe.cid = U16::new(cid);
        sqe.set_sgl(match in_capsule.len() as u32 {
            0 => SglDescriptor::transport(len),
            n => SglDescriptor::in_capsule(0, n),
        });
        self.raw_command(sqe, in_capsule)
    }

    pub(crate) fn raw_command(self, sqe: Sqe, in_capsule: &[u8]) -> Vec<u8> {
        let capsule = CapsuleCmd { ch: CommonHeader::default(), sqe };
        self.build(capsule.as_bytes(), PduType::CAPSULE_CMD, 0, in_capsule)
    }

    pub(crate) fn connect(self, cid: u16, subnqn: &str, qid: u16, cntlid: u16, entries: u16) -> Vec<u8> {
        self.connect_asking(0, cid, subnqn, qid, cntlid, entries)
    }

    /// With these connect attributes (CATTR).
    pub(crate) fn connect_asking(
        self,
        cattr: u8,
        cid: u16,
        subnqn: &str,
        qid: u16,
        cntlid: u16,
        entries: u16,
    ) -> Vec<u8> {
        let mut data = ConnectData::new_zeroed();
        data.hostid = [3; 16];
        data.cntlid = U16::new(cntlid);
        data.subnqn = Nqn::new(subnqn).unwrap().to_wire();
        data.hostnqn = Nqn::new(HOST).unwrap().to_wire();
        self.command(cid, fabrics::connect(qid, entries - 1, cattr, 0), data.as_bytes(), 0)
    }

    pub(crate) fn enable(self, cid: u16) -> Vec<u8> {
        let cc = ControllerConfig(0).with_en(true).with_iosqes(6).with_iocqes(4);
        self.command(
            cid,
            fabrics::property_set(PropertyOffset::CC.0, PropertySize::Dword, cc.0.into()),
            &[],
            0,
        )
    }

    pub(crate) fn h2c_data(self, cid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
        let header = DataPdu {
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            datao: U32::new(offset),
            datal: U32::new(data.len() as u32),
            ..DataPdu::default()
        };
        self.build(header.as_bytes(), PduType::H2C_DATA, if last { FLAG_LAST } else { 0 }, data)
    }

    /// Takes the first PDU off `bytes`; `None` when it is not complete.
    pub(crate) fn parse(self, bytes: &mut Vec<u8>) -> Option<Pdu> {
        let (ch, _) = CommonHeader::read_from_prefix(bytes).ok()?;
        let plen = ch.plen.get() as usize;
        if bytes.len() < plen {
            return None;
        }
        let pdu: Vec<u8> = bytes.drain(..plen).collect();
        let hlen = usize::from(ch.hlen);
        let digest = |at: usize| u32::from_le_bytes(*pdu[at..].first_chunk().unwrap());
        let pdu_type = PduType(ch.pdu_type);
        let digested = self.header_digest && !matches!(pdu_type, PduType::IC_RESP | PduType::C2H_TERM_REQ);
        assert_eq!(ch.flags & FLAG_HDGST != 0, digested, "{pdu_type}");
        let header_ok = !digested || digest(hlen) == crc32c(&pdu[..hlen]);
        fn header<T: FromBytes>(pdu: &[u8]) -> T {
            T::read_from_prefix(pdu).unwrap().0
        }
        Some(match pdu_type {
            PduType::IC_RESP => Pdu::IcResp(header(&pdu)),
            PduType::CAPSULE_RESP => {
                assert!(header_ok, "header digest of a response capsule");
                Pdu::Resp(header::<CapsuleResp>(&pdu).cqe)
            }
            PduType::R2T => Pdu::R2t(header(&pdu)),
            PduType::C2H_TERM_REQ => Pdu::Term(header(&pdu), pdu[hlen..].to_vec()),
            PduType::C2H_DATA => {
                let header: DataPdu = header(&pdu);
                let pdo = usize::from(ch.pdo);
                let end = pdo + header.datal.get() as usize;
                let data = pdu[pdo..end].to_vec();
                assert_eq!(ch.flags & FLAG_DDGST != 0, self.data_digest);
                let data_ok = !self.data_digest || digest(end) == crc32c(&data);
                Pdu::Data { header, data, digests_ok: header_ok && data_ok }
            }
            other => panic!("a controller does not send {other}"),
        })
    }
}

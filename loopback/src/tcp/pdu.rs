//! Checking the headers of PDUs from a host. NVMe/TCP 1.1 §3.6.

use nvmf_core::spec::tcp::{
    CapsuleCmd, CommonHeader, DIGEST_LEN, DataPdu, FLAG_DDGST, FLAG_HDGST, FLAG_LAST, FatalErrorStatus,
    IcReq, PduType, TERM_REQ_MAX_PLEN, TermReq,
};

/// Offsets of fields in a PDU header, for the fatal error information.
pub(super) mod at {
    pub(crate) const TYPE: u32 = 0;
    pub(crate) const FLAGS: u32 = 1;
    pub(crate) const HLEN: u32 = 2;
    pub(crate) const PDO: u32 = 3;
    pub(crate) const PLEN: u32 = 4;
    pub(crate) const IC_PFV: u32 = 8;
    pub(crate) const IC_HPDA: u32 = 10;
    pub(crate) const DATA_CCCID: u32 = 8;
    pub(crate) const DATA_TTAG: u32 = 10;
    pub(crate) const DATA_DATAL: u32 = 16;
}

/// Why a connection is terminated: what goes into the C2HTermReq.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fatal {
    pub(super) fes: FatalErrorStatus,
    pub(super) fei: u32,
}

impl Fatal {
    pub(super) const fn new(fes: FatalErrorStatus, fei: u32) -> Self {
        Self { fes, fei }
    }

    /// A header field that makes no sense, at this offset.
    pub(super) const fn field(offset: u32) -> Self {
        Self::new(FatalErrorStatus::INVALID_HEADER_FIELD, offset)
    }

    pub(super) const fn sequence() -> Self {
        Self::new(FatalErrorStatus::PDU_SEQUENCE_ERROR, 0)
    }
}

/// What was agreed on for a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Agreed {
    /// ICReq was received and answered.
    pub(super) initialized: bool,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// Alignment of data from the host, bytes.
    pub(super) cpda: usize,
    /// Alignment of data to the host, bytes.
    pub(super) hpda: usize,
    /// R2Ts a command may have outstanding.
    pub(super) max_r2t: u32,
    /// Room for in-capsule data, bytes.
    pub(super) in_capsule: u32,
    pub(super) max_h2c_data: u32,
}

/// A header that passed: how the PDU is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Checked {
    pub(super) pdu_type: PduType,
    pub(super) flags: u8,
    pub(super) hlen: usize,
    pub(super) plen: usize,
    /// Header and header digest.
    pub(super) head: usize,
    /// Where data starts; equals `head` when there is none.
    pub(super) pdo: usize,
    /// Bytes of data, without the digest.
    pub(super) data_len: usize,
    pub(super) has_data_digest: bool,
}

/// Checks everything the first eight bytes of a PDU tell.
pub(super) fn check(ch: &CommonHeader, agreed: &Agreed) -> Result<Checked, Fatal> {
    let pdu_type = PduType(ch.pdu_type);
    let hlen = match pdu_type {
        PduType::IC_REQ => size_of::<IcReq>(),
        PduType::CAPSULE_CMD => size_of::<CapsuleCmd>(),
        PduType::H2C_DATA => size_of::<DataPdu>(),
        PduType::H2C_TERM_REQ => size_of::<TermReq>(),
        _ => return Err(Fatal::field(at::TYPE)),
    };
    // ICReq comes first and once (§3.4.1).
    let initializes = pdu_type == PduType::IC_REQ;
    if initializes == agreed.initialized && pdu_type != PduType::H2C_TERM_REQ {
        return Err(Fatal::sequence());
    }
    if usize::from(ch.hlen) != hlen {
        return Err(Fatal::field(at::HLEN));
    }
    let digests = matches!(pdu_type, PduType::CAPSULE_CMD | PduType::H2C_DATA);
    let header_digest = digests && agreed.header_digest;
    let head = hlen + if header_digest { DIGEST_LEN } else { 0 };
    let plen = ch.plen.get() as usize;
    let mut checked = Checked {
        pdu_type,
        flags: ch.flags,
        hlen,
        plen,
        head,
        pdo: head,
        data_len: 0,
        has_data_digest: false,
    };
    let flags = (ch.flags & FLAG_HDGST != 0, ch.flags & FLAG_DDGST != 0);
    match pdu_type {
        PduType::IC_REQ if plen != hlen => return Err(Fatal::field(at::PLEN)),
        PduType::H2C_TERM_REQ if !(hlen..=TERM_REQ_MAX_PLEN as usize).contains(&plen) => {
            return Err(Fatal::field(at::PLEN));
        }
        PduType::IC_REQ | PduType::H2C_TERM_REQ => return Ok(checked),
        _ => {}
    }
    if flags.0 != header_digest {
        return Err(Fatal::field(at::FLAGS));
    }
    if plen == head && pdu_type == PduType::CAPSULE_CMD {
        return Ok(checked);
    }
    // There is data, and behind it its digest.
    if flags.1 != agreed.data_digest {
        return Err(Fatal::field(at::FLAGS));
    }
    checked.has_data_digest = agreed.data_digest;
    checked.pdo = usize::from(ch.pdo);
    if checked.pdo < head || !checked.pdo.is_multiple_of(agreed.cpda) {
        return Err(Fatal::field(at::PDO));
    }
    let digest = if agreed.data_digest { DIGEST_LEN } else { 0 };
    let most = if pdu_type == PduType::CAPSULE_CMD { agreed.in_capsule } else { agreed.max_h2c_data };
    match plen.checked_sub(checked.pdo + digest) {
        Some(len) if len > 0 && len <= most as usize => checked.data_len = len,
        Some(len) if len > 0 && pdu_type == PduType::H2C_DATA => {
            return Err(Fatal::new(FatalErrorStatus::R2T_LIMIT_EXCEEDED, at::PLEN));
        }
        _ => return Err(Fatal::field(at::PLEN)),
    }
    Ok(checked)
}

/// Whether an H2CData PDU says it is the last one of its R2T.
pub(super) const fn is_last(flags: u8) -> bool {
    flags & FLAG_LAST != 0
}

/// CRC32C, as NVMe/TCP §3.1.2 has it.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests {
    use zerocopy::little_endian::U32;

    use super::*;

    const PLAIN: Agreed = Agreed {
        initialized: true,
        header_digest: false,
        data_digest: false,
        cpda: 4,
        hpda: 4,
        max_r2t: 1,
        in_capsule: 8192,
        max_h2c_data: 131_072,
    };
    const DIGESTS: Agreed = Agreed { header_digest: true, data_digest: true, ..PLAIN };

    fn header(pdu_type: PduType, flags: u8, hlen: u8, pdo: u8, plen: u32) -> CommonHeader {
        CommonHeader { pdu_type: pdu_type.0, flags, hlen, pdo, plen: U32::new(plen) }
    }

    #[test]
    fn good_headers_pass() {
        let fresh = Agreed { initialized: false, ..PLAIN };
        assert!(check(&header(PduType::IC_REQ, 0, 128, 0, 128), &fresh).is_ok());
        let capsule = check(&header(PduType::CAPSULE_CMD, 0, 72, 72, 72 + 4096), &PLAIN).unwrap();
        assert_eq!((capsule.pdo, capsule.data_len, capsule.head), (72, 4096, 72));
        let capsule = check(&header(PduType::CAPSULE_CMD, FLAG_HDGST, 72, 0, 76), &DIGESTS).unwrap();
        assert_eq!((capsule.data_len, capsule.has_data_digest), (0, false));
        let data = header(PduType::H2C_DATA, FLAG_HDGST | FLAG_DDGST | FLAG_LAST, 24, 28, 28 + 512 + 4);
        let data = check(&data, &DIGESTS).unwrap();
        assert_eq!((data.pdo, data.data_len, data.has_data_digest), (28, 512, true));
        assert!(is_last(data.flags));
    }

    #[test]
    fn bad_headers_name_the_field() {
        use FatalErrorStatus as F;
        let fresh = Agreed { initialized: false, ..PLAIN };
        let cases = [
            (header(PduType(0x0a), 0, 72, 0, 72), PLAIN, F::INVALID_HEADER_FIELD, at::TYPE),
            (header(PduType::C2H_DATA, 0, 24, 0, 24), PLAIN, F::INVALID_HEADER_FIELD, at::TYPE),
            (header(PduType::IC_REQ, 0, 128, 0, 128), PLAIN, F::PDU_SEQUENCE_ERROR, 0),
            (header(PduType::CAPSULE_CMD, 0, 72, 0, 72), fresh, F::PDU_SEQUENCE_ERROR, 0),
            (header(PduType::IC_REQ, 0, 127, 0, 128), fresh, F::INVALID_HEADER_FIELD, at::HLEN),
            (header(PduType::IC_REQ, 0, 128, 0, u32::MAX), fresh, F::INVALID_HEADER_FIELD, at::PLEN),
            (header(PduType::CAPSULE_CMD, FLAG_HDGST, 72, 0, 76), PLAIN, F::INVALID_HEADER_FIELD, at::FLAGS),
            (header(PduType::CAPSULE_CMD, 0, 72, 0, 72), DIGESTS, F::INVALID_HEADER_FIELD, at::FLAGS),
            (header(PduType::CAPSULE_CMD, 0, 72, 0, 71), PLAIN, F::INVALID_HEADER_FIELD, at::PDO),
            (header(PduType::CAPSULE_CMD, 0, 72, 72, 71), PLAIN, F::INVALID_HEADER_FIELD, at::PLEN),
            (header(PduType::CAPSULE_CMD, 0, 72, 70, 4096), PLAIN, F::INVALID_HEADER_FIELD, at::PDO),
            (header(PduType::CAPSULE_CMD, 0, 72, 73, 4096), PLAIN, F::INVALID_HEADER_FIELD, at::PDO),
            (header(PduType::CAPSULE_CMD, 0, 72, 72, 72 + 8193), PLAIN, F::INVALID_HEADER_FIELD, at::PLEN),
            (header(PduType::CAPSULE_CMD, 0, 72, 72, u32::MAX), PLAIN, F::INVALID_HEADER_FIELD, at::PLEN),
            (header(PduType::H2C_DATA, 0, 24, 24, 24), PLAIN, F::INVALID_HEADER_FIELD, at::PLEN),
            (header(PduType::H2C_DATA, 0, 24, 24, 24 + 131_076), PLAIN, F::R2T_LIMIT_EXCEEDED, at::PLEN),
            (header(PduType::H2C_DATA, 0, 24, 24, u32::MAX), PLAIN, F::R2T_LIMIT_EXCEEDED, at::PLEN),
            (header(PduType::H2C_TERM_REQ, 0, 24, 0, 153), PLAIN, F::INVALID_HEADER_FIELD, at::PLEN),
        ];
        for (ch, agreed, fes, fei) in cases {
            assert_eq!(check(&ch, &agreed), Err(Fatal::new(fes, fei)), "{ch:?}");
        }
    }

    #[test]
    fn crc32c_is_castagnolis() {
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }
}

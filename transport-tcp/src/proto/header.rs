//! Checks of a received PDU's header that need nothing but the header and what was negotiated.

use std::borrow::Cow;

use nvmf_core::spec::tcp::{
    CommonHeader, DIGEST_LEN, FLAG_DDGST, FLAG_HDGST, FLAG_LAST, FLAG_SUCCESS, FatalErrorStatus, PduType,
    TERM_REQ_MAX_PLEN,
};
use nvmf_core::{Error, Result};

use super::digest::crc32c;

/// Bytes of the header of ICResp.
pub(super) const IC_LEN: usize = 128;
/// Bytes of the header of every other PDU a controller sends.
pub(super) const HEADER_LEN: usize = 24;

const FLAGS_LAST_SUCCESS: u8 = FLAG_LAST | FLAG_SUCCESS;

/// Byte offsets within the common header, for FEI.
mod field {
    pub(super) const TYPE: u32 = 0;
    pub(super) const FLAGS: u32 = 1;
    pub(super) const HLEN: u32 = 2;
    pub(super) const PDO: u32 = 3;
    pub(super) const PLEN: u32 = 4;
}

/// What was negotiated and what may come now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// The ICResp has been accepted.
    pub(super) running: bool,
    pub(super) header_digest: bool,
    pub(super) data_digest: bool,
    /// Alignment of C2HData payload that was asked for, bytes.
    pub(super) alignment: u32,
}

/// An error of the "invalid PDU header field" kind; `fei` is the offset of the field.
pub(super) fn invalid(fei: u32, detail: impl Into<Cow<'static, str>>) -> Error {
    Error::pdu(FatalErrorStatus::INVALID_HEADER_FIELD, fei, detail)
}

/// An error of the "PDU sequence error" kind.
pub(super) fn out_of_sequence(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::pdu(FatalErrorStatus::PDU_SEQUENCE_ERROR, 0, detail)
}

/// An error of the "data transfer out of range" kind.
pub(super) fn out_of_range(detail: impl Into<Cow<'static, str>>) -> Error {
    Error::pdu(FatalErrorStatus::DATA_OUT_OF_RANGE, 0, detail)
}

impl Rules {
    fn header_digest_len(&self) -> u32 {
        if self.header_digest { DIGEST_LEN as u32 } else { 0 }
    }

    fn data_digest_len(&self) -> u32 {
        if self.data_digest { DIGEST_LEN as u32 } else { 0 }
    }

    /// Checks the common header. Returns how many bytes make up the header with its digest and the padding behind it:
    /// that many have to be there before anything else is looked at. At most 255.
    #[inline]
    pub(super) fn check(&self, ch: &CommonHeader) -> Result<usize> {
        // Nearly all PDUs, and what is wrong with the others is found below.
        if self.running && PduType(ch.pdu_type) == PduType::C2H_DATA && usize::from(ch.hlen) == HEADER_LEN {
            let digests = if self.header_digest { FLAG_HDGST } else { 0 }
                | if self.data_digest { FLAG_DDGST } else { 0 };
            let (others, pdo) = (ch.flags & !digests, u32::from(ch.pdo));
            let header = HEADER_LEN as u32 + self.header_digest_len();
            if ch.flags & digests == digests
                && matches!(others, 0 | FLAG_LAST | FLAGS_LAST_SUCCESS)
                && pdo == header
                && self.alignment == 4
                && ch.plen.get() > pdo + self.data_digest_len()
            {
                return Ok(pdo as usize);
            }
        }
        self.check_fields(ch)
    }

    /// All of [`Rules::check`].
    fn check_fields(&self, ch: &CommonHeader) -> Result<usize> {
        let pdu_type = PduType(ch.pdu_type);
        let hlen = match pdu_type {
            PduType::IC_RESP => IC_LEN,
            PduType::C2H_TERM_REQ | PduType::CAPSULE_RESP | PduType::C2H_DATA | PduType::R2T => HEADER_LEN,
            other => {
                return Err(invalid(
                    field::TYPE,
                    format!("type {:#04x} ({other}) is none a controller sends", other.0),
                ));
            }
        };
        match (self.running, pdu_type) {
            (_, PduType::C2H_TERM_REQ) | (false, PduType::IC_RESP) => {}
            (true, PduType::IC_RESP) => return Err(out_of_sequence("a second ICResp")),
            (false, other) => return Err(out_of_sequence(format!("{other} in place of the ICResp"))),
            (true, _) => {}
        }
        if usize::from(ch.hlen) != hlen {
            return Err(invalid(field::HLEN, format!("HLEN of {pdu_type} is {}, not {hlen}", ch.hlen)));
        }
        self.check_flags(pdu_type, ch.flags)?;
        let plen = ch.plen.get();
        let bad_plen = || invalid(field::PLEN, format!("PLEN of {pdu_type} can not be {plen}"));
        // Digests are 4 bytes, headers at most 128: no overflow.
        let header = HEADER_LEN as u32 + self.header_digest_len();
        match pdu_type {
            PduType::IC_RESP if plen != IC_LEN as u32 => Err(bad_plen()),
            PduType::IC_RESP => Ok(IC_LEN),
            PduType::C2H_TERM_REQ if !(HEADER_LEN as u32..=TERM_REQ_MAX_PLEN).contains(&plen) => {
                Err(bad_plen())
            }
            PduType::C2H_TERM_REQ => Ok(HEADER_LEN),
            PduType::C2H_DATA => {
                let pdo = u32::from(ch.pdo);
                if pdo < header || !pdo.is_multiple_of(self.alignment) {
                    let detail = format!("PDO {pdo} is before {header} or no multiple of {}", self.alignment);
                    return Err(invalid(field::PDO, detail));
                }
                if plen <= pdo + self.data_digest_len() {
                    return Err(bad_plen());
                }
                Ok(pdo as usize)
            }
            _ if plen != header => Err(bad_plen()),
            _ => Ok(header as usize),
        }
    }

    fn check_flags(&self, pdu_type: PduType, flags: u8) -> Result<()> {
        let mut digests = 0;
        if self.header_digest && !matches!(pdu_type, PduType::IC_RESP | PduType::C2H_TERM_REQ) {
            digests |= FLAG_HDGST;
        }
        if self.data_digest && pdu_type == PduType::C2H_DATA {
            digests |= FLAG_DDGST;
        }
        let others = if pdu_type == PduType::C2H_DATA { FLAG_LAST | FLAG_SUCCESS } else { 0 };
        if flags & !others != digests {
            let detail =
                format!("flags {flags:#04x} of {pdu_type} are not those negotiated ({digests:#04x})");
            return Err(invalid(field::FLAGS, detail));
        }
        if flags & FLAG_SUCCESS != 0 && flags & FLAG_LAST == 0 {
            return Err(invalid(field::FLAGS, "C2HData with the SUCCESS flag but without LAST_PDU"));
        }
        Ok(())
    }

    /// Checks the header digest of a PDU that [`Rules::check`] accepted, of which at least the header is in `pdu`.
    #[inline(always)]
    pub(super) fn check_digest(&self, pdu: &[u8]) -> Result<()> {
        if !self.header_digest {
            return Ok(());
        }
        let Some((header, rest)) = pdu.split_at_checked(HEADER_LEN) else { return Ok(()) };
        let Some(&received) = rest.first_chunk() else { return Ok(()) };
        let received = u32::from_le_bytes(received);
        let computed = crc32c(header);
        if received != computed {
            let detail = format!("header digest {received:#010x}, but the header's is {computed:#010x}");
            return Err(Error::pdu(FatalErrorStatus::HEADER_DIGEST_ERROR, received, detail));
        }
        Ok(())
    }

    /// Checks PLEN of C2HData against its DATAL.
    #[inline(always)]
    pub(super) fn check_data_plen(&self, ch: &CommonHeader, datal: u32) -> Result<()> {
        let expected = u64::from(ch.pdo) + u64::from(datal) + u64::from(self.data_digest_len());
        if u64::from(ch.plen.get()) != expected {
            let detail =
                format!("PLEN of C2HData is {}, but PDO, data and digest make {expected}", ch.plen.get());
            return Err(invalid(field::PLEN, detail));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is taken for good at once is what all checks together take, with the same result.
        #[test]
        fn the_short_check_says_what_the_long_one_says(
            digests in any::<(bool, bool)>(),
            alignment in prop_oneof![Just(4u32), Just(8), Just(64)],
            running in any::<bool>(),
            pdu_type in prop_oneof![3 => Just(PduType::C2H_DATA.0), 1 => any::<u8>()],
            flags in 0u8..32,
            hlen in prop_oneof![3 => Just(24u8), 1 => any::<u8>()],
            pdo in prop_oneof![Just(24u8), Just(28), any::<u8>()],
            plen in prop_oneof![0u32..64, any::<u32>()],
        ) {
            let (header_digest, data_digest) = digests;
            let rules = Rules { running, header_digest, data_digest, alignment };
            let ch = CommonHeader { pdu_type, flags, hlen, pdo, plen: plen.into() };
            let said = |result: Result<usize>| result.map_err(|error| error.to_string());
            prop_assert_eq!(said(rules.check(&ch)), said(rules.check_fields(&ch)));
        }
    }
}

//! Chains of capabilities, as VFIO puts them behind its answers.

/// The capabilities of an answer, beginning at offset `first` (0: none): the identifier, and the bytes from the capability's header
/// to the end of the answer. A chain that leads back or out of the answer ends there.
pub(super) fn capabilities(answer: &[u8], first: u32) -> impl Iterator<Item = (u16, &[u8])> {
    let mut next = first as usize;
    let mut behind = 0;
    std::iter::from_fn(move || {
        // Forward only, so that it ends.
        if next <= behind {
            return None;
        }
        let body = answer.get(next..)?;
        let id = u16::from_ne_bytes(body.get(..2)?.try_into().ok()?);
        behind = next;
        next = u32_at(body, 4)? as usize;
        Some((id, body))
    })
}

/// The 32-bit number at an offset, in the machine's byte order.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

/// The 64-bit number at an offset.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_lead_back_or_out_end() {
        let header = |id: u32, next: u32| [id.to_ne_bytes(), next.to_ne_bytes()].concat();
        let ids = |bytes: &[u8], first| capabilities(bytes, first).map(|(id, _)| id).collect::<Vec<_>>();
        let bytes = [header(0, 0), header(7, 16), header(9, 8)].concat();
        assert_eq!(ids(&bytes, 8), [7, 9]);
        assert_eq!(ids(&bytes, 0), [0; 0]);
        assert_eq!(ids(&bytes, 100), [0; 0]);
        let bytes = [header(0, 0), header(7, 8)].concat();
        assert_eq!(ids(&bytes, 8), [7]);
        assert_eq!(ids(&bytes[..12], 8), [0; 0]);
    }
}

//! The data of one command as the controller role sees it.

use nvmf_core::spec::Status;

/// Data that came with a command, or the room for what it returns. The length is what the command's SGL says.
#[derive(Debug)]
pub(crate) enum Data<'a> {
    None,
    /// From the host.
    Out(&'a [u8]),
    /// To the host. A command that succeeds fills all of it.
    In(&'a mut [u8]),
}

/// "The SGL is too short or too long", not to be retried.
const WRONG_LENGTH: Status = Status::INVALID_DATA_SGL_LENGTH.with_dnr();

impl<'a> Data<'a> {
    /// Data from the host, exactly `len` bytes.
    pub(crate) fn sent(self, len: usize) -> Result<&'a [u8], Status> {
        match self {
            Self::Out(data) if data.len() == len => Ok(data),
            Self::None if len == 0 => Ok(&[]),
            _ => Err(WRONG_LENGTH),
        }
    }

    /// Data from the host, at least `len` bytes. Some hosts always send a whole page of ranges.
    pub(crate) fn sent_at_least(self, len: usize) -> Result<&'a [u8], Status> {
        match self {
            Self::Out(data) => data.get(..len).ok_or(WRONG_LENGTH),
            Self::None if len == 0 => Ok(&[]),
            _ => Err(WRONG_LENGTH),
        }
    }

    /// Room for exactly `len` bytes.
    pub(crate) fn room(self, len: usize) -> Result<&'a mut [u8], Status> {
        match self {
            Self::In(data) if data.len() == len => Ok(data),
            Self::None if len == 0 => Ok(&mut []),
            _ => Err(WRONG_LENGTH),
        }
    }

    /// A command without data must have none.
    pub(crate) fn none(self) -> Result<(), Status> {
        match self {
            Self::None => Ok(()),
            Self::Out([]) | Self::In([]) => Ok(()),
            Self::Out(_) | Self::In(_) => Err(WRONG_LENGTH),
        }
    }
}

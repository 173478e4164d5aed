//! What both sides of a vfio-user connection can take, told to each other in JSON by the first message.

use serde_json::Value;
use zerocopy::{FromBytes, IntoBytes};

use super::message::{MAJOR, MINOR, Version};

/// Data in one message, unless the other side says less.
pub const MAX_DATA: u32 = 1 << 20;
/// Descriptors with one message, unless the other side says otherwise.
pub const DEFAULT_FDS: u32 = 1;
/// Descriptors with one message that are taken here. The kernel passes at most 253.
pub const MAX_FDS: usize = 64;
/// Bytes of a VERSION message's body that are taken.
pub const MAX_VERSION: usize = 16 << 10;

/// What one side can take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Minor version it speaks.
    pub minor: u16,
    /// Descriptors with one message.
    pub max_msg_fds: u32,
    /// Bytes of data in one message, without headers.
    pub max_data_xfer_size: u32,
}

/// Why a VERSION message cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VersionError {
    /// Another protocol.
    #[error("major version {0}, not {MAJOR}")]
    Major(u16),
    /// Fewer bytes than a version has, or more than anybody needs.
    #[error("a VERSION message with {0} bytes")]
    Size(usize),
    /// The capabilities are no JSON object with a NUL at the end, or a number in them is no number.
    #[error("capabilities that cannot be read: {0}")]
    Json(String),
}

impl Capabilities {
    /// Those of this side.
    #[must_use]
    pub fn ours(max_data_xfer_size: u32) -> Self {
        Self { minor: MINOR, max_msg_fds: MAX_FDS as u32, max_data_xfer_size }
    }

    /// The body of a VERSION message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let version = Version { major: MAJOR.into(), minor: self.minor.into() };
        let text = serde_json::json!({ "capabilities": {
            "max_msg_fds": self.max_msg_fds,
            "max_data_xfer_size": self.max_data_xfer_size,
            "pgsizes": 4096,
        }});
        [version.as_bytes(), text.to_string().as_bytes(), b"\0"].concat()
    }

    /// Reads the body of a VERSION message. What it does not say has its default.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn decode(body: &[u8]) -> Result<Self, VersionError> {
        if body.len() > MAX_VERSION {
            return Err(VersionError::Size(body.len()));
        }
        let (version, text) = Version::read_from_prefix(body).map_err(|_| VersionError::Size(body.len()))?;
        if version.major.get() != MAJOR {
            return Err(VersionError::Major(version.major.get()));
        }
        let mut capabilities = Self {
            minor: version.minor.get().min(MINOR),
            max_msg_fds: DEFAULT_FDS,
            max_data_xfer_size: MAX_DATA,
        };
        if text.is_empty() || text == b"\0" {
            return Ok(capabilities);
        }
        let Some((0, text)) = text.split_last() else {
            return Err(VersionError::Json("no NUL at the end".to_owned()));
        };
        let value: Value =
            serde_json::from_slice(text).map_err(|error| VersionError::Json(error.to_string()))?;
        if !value.is_object() {
            return Err(VersionError::Json("not an object".to_owned()));
        }
        let said = &value["capabilities"];
        for (name, to) in [
            ("max_msg_fds", &mut capabilities.max_msg_fds),
            ("max_data_xfer_size", &mut capabilities.max_data_xfer_size),
        ] {
            if let Some(number) = said.get(name) {
                let number =
                    number.as_u64().ok_or_else(|| VersionError::Json(format!("{name} is {number}")))?;
                *to = u32::try_from(number).unwrap_or(u32::MAX);
            }
        }
        Ok(capabilities)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ours_is_understood() {
        let ours = Capabilities::ours(65536);
        let body = ours.encode();
        assert_eq!(body[..4], [0, 0, 1, 0]);
        assert_eq!(body.last(), Some(&0));
        assert_eq!(Capabilities::decode(&body), Ok(ours));
    }

    #[test]
    fn what_others_say() {
        let defaults = Capabilities { minor: 0, max_msg_fds: 1, max_data_xfer_size: 1 << 20 };
        assert_eq!(Capabilities::decode(&[0, 0, 0, 0]), Ok(defaults));
        assert_eq!(Capabilities::decode(&[0, 0, 0, 0, 0]), Ok(defaults));
        let with = |text: &str| Capabilities::decode(&[&[0, 0, 9, 0], text.as_bytes()].concat());
        let libvfio_user = "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\"migration\":{\"pgsize\":4096}}}\0";
        let expected = Capabilities { minor: 1, max_msg_fds: 8, max_data_xfer_size: 1 << 20 };
        assert_eq!(with(libvfio_user), Ok(expected));
        assert_eq!(with("{\"x\":1}\0"), Ok(Capabilities { minor: 1, ..defaults }));
        for wrong in ["{}", "\0\0", "[1]\0", "{\"capabilities\":{\"max_msg_fds\":-1}}\0", "{\0"] {
            assert!(matches!(with(wrong), Err(VersionError::Json(_))), "{wrong:?}");
        }
        assert_eq!(Capabilities::decode(&[1, 0, 0, 0]), Err(VersionError::Major(1)));
        assert_eq!(Capabilities::decode(&[0, 0, 0]), Err(VersionError::Size(3)));
        assert_eq!(with(&"[".repeat(MAX_VERSION)), Err(VersionError::Size(MAX_VERSION + 4)));
        assert!(with(&format!("{}\0", "[".repeat(10_000))).is_err());
    }

    proptest! {
        #[test]
        fn any_version_is_taken_without_panic(text in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Capabilities::decode(&text);
            let _ = Capabilities::decode(&[&[0, 0, 1, 0], &text[..], &[0]].concat());
        }
    }
}

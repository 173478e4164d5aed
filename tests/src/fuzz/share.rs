//! Messages between the processes of an instance.

use nvmf_core::share::wire::{MAX_DATA, MAX_FUNCTION, MAX_PACKET, MAX_TEXT, Reply, Request};

/// What is accepted can be said again, and means the same; nothing accepted is larger than it may be.
pub(super) fn messages(input: &[u8]) {
    match Request::decode(input) {
        Ok((tag, request)) => {
            if let Request::Admin { data_in, data, .. } = request {
                assert!(data.len() <= MAX_DATA && data_in as usize <= MAX_DATA);
            }
            let said = request.encode(tag);
            assert!(said.len() <= MAX_PACKET);
            assert_eq!(Request::decode(&said), Ok((tag, request)));
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says something"),
    }
    match Reply::decode(input) {
        Ok((tag, reply)) => {
            if let Reply::Refused(text) | Reply::Down(text) | Reply::Removed(text) = reply {
                assert!(text.len() <= MAX_TEXT);
            }
            if let Reply::Function(bytes) = reply {
                assert!(bytes.len() <= MAX_FUNCTION);
            }
            let said = reply.encode(tag);
            assert!(said.len() <= MAX_PACKET);
            assert_eq!(Reply::decode(&said), Ok((tag, reply)));
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says something"),
    }
}

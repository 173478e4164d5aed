//! What people and files say: transport identifiers and names.

use nvmf_core::TransportId;
use nvmf_core::nqn::{HostId, Nqn, Uuid};
use nvmf_core::transport_id::PciAddress;

/// What is accepted can be said again, and means the same.
pub(super) fn transport_id(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match text.parse::<TransportId>() {
        Ok(trid) => {
            let said = trid.to_string();
            let again: TransportId = said.parse().unwrap_or_else(|e| panic!("{said:?} of {text:?}: {e}"));
            assert_eq!(again, trid, "{said:?} of {text:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says something"),
    }
}

/// NQNs, UUIDs, host identifiers, PCI addresses.
pub(super) fn names(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(nqn) = text.parse::<Nqn>() {
        assert!(nqn.to_string().len() <= 223, "an NQN has at most 223 bytes");
        assert_eq!(nqn.to_string().parse::<Nqn>().as_ref(), Ok(&nqn));
    }
    if let Ok(uuid) = text.parse::<Uuid>() {
        assert_eq!(uuid.to_string().parse::<Uuid>().as_ref(), Ok(&uuid));
    }
    if let Ok(id) = text.parse::<HostId>() {
        assert_eq!(id.to_string().parse::<HostId>().as_ref(), Ok(&id));
    }
    if let Ok(address) = text.parse::<PciAddress>() {
        assert_eq!(address.to_string().parse::<PciAddress>().as_ref(), Ok(&address));
    }
}

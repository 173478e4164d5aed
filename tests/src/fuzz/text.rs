//! What people and files say: transport identifiers, names and key strings.

use nvmf_core::nqn::{HostId, Nqn, Uuid};
use nvmf_core::transport_id::PciAddress;
use nvmf_core::{KeyHash, KeyKind, KeyString, TransportId};

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

/// Key strings, as they are and with an encoding made from the input, which gets behind the CRC now and then.
pub(super) fn keys(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match text.parse::<KeyString>() {
        Ok(key) => assert_eq!(*key.expose_text(), text, "there is one text for a key"),
        Err(error) => {
            let said = error.to_string();
            assert!(!said.is_empty());
            // What may be part of a secret. No word of a message is so long.
            let secret = |part: &&str| part.len() >= 16 && part.bytes().all(|b| b.is_ascii_alphanumeric());
            let secrets = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(secret);
            secrets.for_each(|part| assert!(!said.contains(part), "secrets are not repeated"));
        }
    }
    let (kinds, hashes) = (
        [KeyKind::TlsPsk, KeyKind::Dhchap],
        [KeyHash::None, KeyHash::Sha256, KeyHash::Sha384, KeyHash::Sha512],
    );
    let Some((&choice, secret)) = input.split_first() else { return };
    let (kind, hash) = (kinds[usize::from(choice & 1)], hashes[usize::from(choice >> 1 & 3)]);
    if let Ok(key) = KeyString::new(kind, hash, secret.to_vec()) {
        assert_eq!(key.expose_text().parse::<KeyString>().as_ref(), Ok(&key));
    }
}

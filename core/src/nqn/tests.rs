use super::*;
use proptest::prelude::*;

const UUID: &str = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";

fn nqn(text: &str) -> Nqn {
    text.parse().expect("a valid NQN")
}

#[test]
fn accepts_what_targets_use_and_judges_form_separately() {
    let of_the_specification = [
        "nqn.2014-08.com.example:nvme:nvm-subsystem-sn-d78432",
        "nqn.2016-06.io.spdk:cnode1",
        "nqn.2024-01.lab:sub1",
        "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        Nqn::DISCOVERY,
    ];
    for text in of_the_specification {
        assert!(nqn(text).is_well_formed(), "{text}");
    }
    let of_the_field = [
        "testnqn",
        "blktests-subsystem-1",
        "nqn.2016-06.io.spdk",
        "nqn.2016-13.io.spdk:x",
        "nqn.2016-6.io.spdk:x",
        "nqn.16-06.io.spdk:x",
        "nqn.2016-06.io..spdk:x",
        "nqn.2016-06.-io:x",
        "nqn.2016-06.io:",
        "nqn.2014-08.org.nvmexpress:uuid:not-a-uuid",
        "größe",
    ];
    for text in of_the_field {
        assert!(!nqn(text).is_well_formed(), "{text}");
    }
}

#[test]
fn rejects_what_can_not_be_a_name() {
    assert_eq!(Nqn::new(""), Err(NqnError::Empty));
    assert!(Nqn::new(&"a".repeat(223)).is_ok());
    assert_eq!(Nqn::new(&"a".repeat(224)), Err(NqnError::TooLong { length: 224 }));
    // 112 two-byte characters are 224 bytes: the limit is in bytes.
    assert_eq!(Nqn::new(&"é".repeat(112)), Err(NqnError::TooLong { length: 224 }));
    for character in [' ', '\t', '\n', '\0', '\u{7f}', '\u{85}', '\u{2003}'] {
        assert_eq!(
            Nqn::new(&format!("ab{character}c")),
            Err(NqnError::ForbiddenCharacter { character, position: 2 })
        );
    }
}

#[test]
fn discovery_and_uuid_forms() {
    assert!(Nqn::discovery().is_discovery());
    assert!(nqn(Nqn::DISCOVERY).is_discovery());
    assert!(!nqn("nqn.2014-08.org.nvmexpress.Discovery").is_discovery());
    let uuid: Uuid = UUID.parse().expect("a UUID");
    let named = Nqn::from_uuid(uuid);
    assert_eq!(named.as_str(), format!("nqn.2014-08.org.nvmexpress:uuid:{UUID}"));
    assert_eq!(named.uuid(), Some(uuid));
    assert_eq!(nqn("nqn.2014-08.org.nvmexpress:uuid:zz").uuid(), None);
    assert_eq!(nqn("testnqn").uuid(), None);
}

#[test]
fn wire_form_is_nul_padded() {
    let wire = nqn("testnqn").to_wire();
    assert_eq!(&wire[..7], b"testnqn");
    assert!(wire[7..].iter().all(|&b| b == 0));
    assert_eq!(Nqn::from_wire(&wire), Ok(nqn("testnqn")));
    let longest = nqn(&"x".repeat(223));
    assert_eq!(Nqn::from_wire(&longest.to_wire()), Ok(longest));
}

#[test]
fn hostile_wire_fields_are_typed_errors() {
    let field = |text: &[u8], fill: u8| {
        let mut field = [fill; NQN_FIELD_SIZE];
        field[..text.len()].copy_from_slice(text);
        field
    };
    assert_eq!(Nqn::from_wire(&[0; 256]), Err(NqnError::Empty));
    assert_eq!(Nqn::from_wire(&[b'a'; 256]), Err(NqnError::NotTerminated));
    assert_eq!(Nqn::from_wire(&field(&[b'a'; 224], 0)), Err(NqnError::TooLong { length: 224 }));
    assert_eq!(Nqn::from_wire(&field(b"ab\xff", 0)), Err(NqnError::NotUtf8 { position: 2 }));
    assert_eq!(
        Nqn::from_wire(&field(b"a\x1b[2J", 0)),
        Err(NqnError::ForbiddenCharacter { character: '\x1b', position: 1 })
    );
    assert_eq!(Nqn::from_wire(&field(b"name\0", 0xff)), Ok(nqn("name")));
    assert_eq!(Nqn::from_wire(&field(b"name   ", 0)), Ok(nqn("name")));
    assert_eq!(Nqn::from_wire(&field(b"   ", 0)), Err(NqnError::Empty));
}

#[test]
fn uuid_text() {
    let uuid: Uuid = "F81D4FAE-7dec-11d0-a765-00a0c91e6bf6".parse().expect("either case");
    assert_eq!(uuid.to_string(), UUID);
    assert_eq!(uuid.to_bytes()[..4], [0xf8, 0x1d, 0x4f, 0xae]);
    let wrong = [
        "",
        "f81d4fae7dec11d0a76500a0c91e6bf6",
        "f81d4fae-7dec-11d0-a765-00a0c91e6bf",
        "f81d4fae-7dec-11d0-a765-00a0c91e6bf66",
        "g81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "f81d4fae07dec-11d0-a765-00a0c91e6bf6",
        "f81d4fae-7dec-11d0-a765-00a0c91e6bé",
        "f81d4fae-7dec-11d0-a765-00a0c91e6bf-",
        "+81d4fae-7dec-11d0-a765-00a0c91e6bf6",
    ];
    for text in wrong {
        assert_eq!(text.parse::<Uuid>(), Err(UuidError), "{text}");
    }
}

#[test]
fn random_uuids_are_version_4_and_differ() {
    let (one, two) = (Uuid::random().expect("urandom"), Uuid::random().expect("urandom"));
    assert_ne!(one, two);
    for uuid in [one, two] {
        assert_eq!(uuid.to_bytes()[6] >> 4, 4);
        assert_eq!(uuid.to_bytes()[8] >> 6, 0b10);
    }
}

#[test]
fn host_id_is_a_uuid_in_text_and_bytes_on_the_wire() {
    let id: HostId = UUID.parse().expect("a UUID");
    assert_eq!(id.to_string(), UUID);
    assert_eq!(HostId::from_bytes(id.to_bytes()), id);
    assert!(!id.is_zero());
    assert!(HostId::from_bytes([0; 16]).is_zero());
    assert!(!HostId::random().expect("urandom").is_zero());
}

proptest! {
    #[test]
    fn any_text_is_judged_and_survives_the_wire(text in ".{0,300}") {
        if let Ok(name) = Nqn::new(&text) {
            let _ = name.is_well_formed();
            prop_assert_eq!(Nqn::from_wire(&name.to_wire()), Ok(name));
        }
    }

    #[test]
    fn any_field_is_judged(bytes in proptest::collection::vec(any::<u8>(), NQN_FIELD_SIZE)) {
        let field: [u8; NQN_FIELD_SIZE] = bytes.try_into().expect("256 bytes");
        let _ = Nqn::from_wire(&field);
    }

    #[test]
    fn uuids_round_trip(bytes in any::<[u8; 16]>(), text in ".{30,40}") {
        let uuid = Uuid::from_bytes(bytes);
        prop_assert_eq!(uuid.to_string().parse(), Ok(uuid));
        let _ = text.parse::<Uuid>();
    }
}

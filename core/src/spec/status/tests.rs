use std::collections::HashSet;

use super::codes::TABLE;
use super::*;

#[test]
fn table_has_no_duplicates() {
    let mut names = HashSet::new();
    let mut codes = HashSet::new();
    for entry in TABLE {
        assert!(names.insert(entry.name), "{} appears twice", entry.name);
        assert!(codes.insert((entry.status, entry.kind)), "{} shares its code", entry.name);
    }
    assert!(TABLE.len() > 130);
}

#[test]
fn only_command_set_specific_codes_share_a_number() {
    for entry in TABLE {
        let others = TABLE.iter().filter(|other| other.status == entry.status).count();
        assert!(others == 1 || entry.kind.is_some(), "{}", entry.name);
    }
}

#[test]
fn every_code_has_a_name_and_a_text_fit_for_a_log_line() {
    for entry in TABLE {
        let kind = entry.kind.unwrap_or(CommandKind::Admin);
        assert_eq!(entry.status.name_for(kind), Some(entry.name));
        assert_eq!(entry.status.text_for(kind), entry.text);
        assert!(entry.name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{}", entry.name);
        assert!(
            !entry.text.is_empty() && !entry.text.ends_with('.') && !entry.text.contains("  "),
            "{}",
            entry.text
        );
        assert!(entry.text.is_ascii() && !entry.text.contains('\n'), "{}", entry.text);
        assert_eq!(entry.status.0 >> 11, 0, "{}: only SCT and SC", entry.name);
    }
}

#[test]
fn bits_are_where_the_completion_has_them() {
    // DW3 of a CQE, bits 31:17: phase removed.
    let dw3: u32 = 0xe305_beef;
    let status = Status((dw3 >> 17) as u16);
    assert_eq!((status.sct(), status.sc()), (1, 0x82));
    assert_eq!(status.crd(), 2);
    assert!(status.more() && status.dnr());
    assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.with_crd(2).with_more().with_dnr());
    assert!(status.is(Status::CONNECT_INVALID_PARAMETERS));
    assert_ne!(status, Status::CONNECT_INVALID_PARAMETERS);
}

#[test]
fn success_and_retry() {
    assert!(Status::default().is_success());
    assert!(Status::SUCCESS.with_dnr().is_success(), "DNR means nothing on success");
    assert!(!Status::SUCCESS.is_retryable());
    assert!(Status::COMMAND_INTERRUPTED.is_retryable());
    assert!(!Status::COMMAND_INTERRUPTED.with_dnr().is_retryable());
    // Type 3, code 0 is not success.
    assert!(!Status::INTERNAL_PATH_ERROR.is_success());
    assert!(Status::INTERNAL_PATH_ERROR.is_path_related());
    assert!(!Status::new(1, 0).is_success());
}

#[test]
fn well_known_values() {
    for (status, value) in [
        (Status::INVALID_FIELD, 0x002),
        (Status::INVALID_NAMESPACE_OR_FORMAT, 0x00b),
        (Status::KEEP_ALIVE_TIMER_EXPIRED, 0x019),
        (Status::LBA_OUT_OF_RANGE, 0x080),
        (Status::INVALID_LOG_PAGE, 0x109),
        (Status::CONNECT_INVALID_HOST, 0x184),
        (Status::AUTHENTICATION_REQUIRED, 0x191),
        (Status::ZONED_INVALID_WRITE, 0x1bc),
        (Status::UNRECOVERED_READ_ERROR, 0x281),
        (Status::ANA_INACCESSIBLE, 0x302),
        (Status::HOST_PATHING_ERROR, 0x370),
    ] {
        assert_eq!(status.0, value, "{status}");
    }
}

#[test]
fn display_is_one_readable_line() {
    assert_eq!(
        Status::INVALID_FIELD.with_dnr().to_string(),
        "INVALID_FIELD (00h/02h): a reserved or unsupported value in a defined field; do not retry"
    );
    assert_eq!(
        Status::COMMAND_INTERRUPTED.with_crd(1).with_more().to_string(),
        "COMMAND_INTERRUPTED (00h/21h): the controller interrupted the command and did not complete it; issue it \
         again; retry after CRDT1; the Error Information log page has more"
    );
    assert_eq!(Status::SUCCESS.to_string(), "SUCCESS (00h/00h): the command completed without error");
}

#[test]
fn shared_codes_print_every_meaning_or_the_one_asked_for() {
    let status = Status::new(1, 0x80);
    assert_eq!(
        status.to_string(),
        "CONFLICTING_ATTRIBUTES or CONNECT_INCOMPATIBLE_FORMAT (01h/80h): the attributes of the command contradict \
         each other; or the subsystem does not understand this format of the Connect command"
    );
    assert_eq!(status.name(), Some("CONFLICTING_ATTRIBUTES"));
    assert_eq!(status.name_for(CommandKind::Zoned), Some("CONFLICTING_ATTRIBUTES"));
    assert_eq!(status.name_for(CommandKind::Fabrics), Some("CONNECT_INCOMPATIBLE_FORMAT"));
    let described = status.with_dnr().describe(CommandKind::Fabrics).to_string();
    assert!(described.starts_with("CONNECT_INCOMPATIBLE_FORMAT (01h/80h): the subsystem"), "{described}");
    assert!(described.ends_with("Connect command; do not retry"), "{described}");
    assert_eq!(Status::ZONED_FULL.name_for(CommandKind::Nvm), Some("ZONED_FULL"));
    assert_eq!(Status::DISCOVERY_RESTART.name_for(CommandKind::Admin), Some("DISCOVERY_RESTART"));
}

#[test]
fn every_possible_field_prints() {
    for raw in 0..=u16::MAX {
        let status = Status(raw);
        let text = status.to_string();
        assert!(text.contains("h): ") && text.is_ascii(), "{text}");
        assert_eq!(text.starts_with("UNKNOWN_STATUS"), status.name().is_none());
        assert_eq!(text.ends_with("do not retry"), status.dnr() && !status.more());
    }
    assert_eq!(
        Status::new(7, 0x12).to_string(),
        "UNKNOWN_STATUS (07h/12h): vendor-specific status; the vendor's documentation explains it"
    );
}

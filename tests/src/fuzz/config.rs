//! Configuration files: administrators write them, programs generate them, and they may be anything.

use std::path::{Path, PathBuf};

use nvmf_core::{ControllerOptions, HostIdentity, nqn::Uuid};
use nvmf_discovery::config::{Config, Format, Source, show};

use super::Bytes;

/// The first byte chooses the format; `nvme-fabrics.conf` may have a drop-in behind a NUL.
pub(super) fn files(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let choice = bytes.byte();
    let text = String::from_utf8_lossy(bytes.rest()).into_owned();
    match choice % 3 {
        0 => read(Format::Fabrics, text.split('\0').take(4)),
        1 => read(Format::Json, [text.as_str()]),
        _ => read(Format::Discovery, [text.as_str()]),
    }
    let _ = Format::guess(Path::new("file"), &text);
}

fn read<'a>(format: Format, texts: impl IntoIterator<Item = &'a str>) {
    let source = |(index, text): (usize, &str)| Source {
        path: PathBuf::from(format!("f{index}")),
        format,
        drop_in: index > 0,
        text: text.to_owned(),
    };
    let sources: Vec<Source> = texts.into_iter().enumerate().map(source).collect();
    // What ends too early may end in the line after the last.
    let lines = sources.iter().map(|source| source.text.lines().count() + 1).max().unwrap_or_default();
    let size: usize = sources.iter().map(|source| source.text.len()).sum();
    let checked = Config::check_sources(sources);
    for diagnostic in &checked.diagnostics {
        let said = diagnostic.to_string();
        assert!((1..=lines).contains(&diagnostic.line), "{said}: there are {lines} lines");
        assert!(!said.contains('\n') && said.len() < 2000, "{said}");
    }
    let mut base = ControllerOptions::default();
    base.host = Some(HostIdentity::from_uuid(Uuid::from_bytes([7; 16])));
    let mut count = 0;
    for controller in checked.config.controllers() {
        count += 1;
        // What was accepted is an address, or one of a transport this initiator lacks.
        match controller.trid() {
            Ok(trid) => assert!(trid.subnqn().is_some(), "{trid}"),
            Err(error) => assert!(
                !matches!(controller.path.address.transport.value.as_str(), "tcp" | "rdma"),
                "{error}"
            ),
        }
        let _ = controller.controller_options(&base);
    }
    assert!(count <= size, "controllers out of nothing");
    let shown = show::text(&checked.config, None) + &show::json(&checked.config, None).to_string();
    assert!(count == 0 || shown.contains("traddr"), "{shown}");
    assert_eq!(
        checked.clone().into_result().is_ok(),
        !checked.diagnostics.iter().any(|d| !d.to_string().contains(": warning: "))
    );
}

//! Configuration files: properties of their readers.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use nvmf_discovery::config::{Checked, Config, Format, Key, Severity, Source, show};
use proptest::prelude::*;

const FORMATS: [Format; 3] = [Format::Fabrics, Format::Json, Format::Discovery];

fn check(format: Format, text: &str) -> Checked {
    let source = Source { path: PathBuf::from("/etc/nvme/f"), format, drop_in: false, text: text.to_owned() };
    Config::check_sources(vec![source])
}

/// What holds of any text.
fn judge(format: Format, text: &str) -> Result<Checked, TestCaseError> {
    let checked = check(format, text);
    // What ends too early may end in the line after the last.
    let lines = text.lines().count() + 1;
    for diagnostic in &checked.diagnostics {
        let said = diagnostic.to_string();
        prop_assert!((1..=lines).contains(&diagnostic.line), "{} lines: {}", lines, said);
        prop_assert!(said.starts_with(&format!("/etc/nvme/f:{}: ", diagnostic.line)), "{}", said);
        prop_assert!(!said.contains(char::is_control), "{:?}", said);
        prop_assert!(!said.contains("c2VjcmV0"), "a secret is told: {}", said);
    }
    let shown = show::text(&checked.config, None) + &show::json(&checked.config, None).to_string();
    prop_assert!(!shown.contains("c2VjcmV0"), "a secret is shown: {}", shown);
    let errors = checked.diagnostics.iter().any(|d| d.severity == Severity::Error);
    match checked.clone().into_result() {
        Ok(_) => prop_assert!(!errors),
        // The first error is told with its place.
        Err(error) => prop_assert!(errors && error.to_string().starts_with("/etc/nvme/f:"), "{}", error),
    }
    Ok(checked)
}

/// Pieces that files consist of, right and wrong.
fn piece() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "--transport=tcp",
        "-t",
        "tcp",
        "rdma",
        "fc",
        "-a",
        "192.0.2.1",
        "::1",
        "--traddr",
        "=",
        "-s",
        "8009",
        "70000",
        "--hostnqn",
        "nqn.2014-08.org.nvmexpress.discovery",
        "nqn.2024-01.a:b",
        "-k",
        "-1",
        "5",
        "--persistent=auto",
        "--dhchap-secret=DHHC-1:00:c2VjcmV0:",
        "DHHC-1:00:c2VjcmV0:",
        "NVMeTLSkey-1:01:c2VjcmV0:",
        "--tls-key",
        "[Host]",
        "[Subsystem]",
        "[Discovery Controller]",
        "[I/O Controller Defaults]",
        "[",
        "]",
        "nqn =",
        "controller =",
        "transport=tcp;traddr=192.0.2.1",
        ";keep-alive-tmo=5",
        "tos = 1",
        "kxchap-secret =",
        "hostnqn =",
        "# ",
        "\"",
        "'",
        "{",
        "}",
        "[{",
        "}]",
        ":",
        ",",
        "\"hostnqn\":",
        "\"subsystems\":",
        "\"ports\":",
        "\"transport\":\"tcp\"",
        "\"traddr\":\"::1\"",
        "\"nqn\":\"nqn.a\"",
        "\"queue_size\":",
        "8",
        "true",
        "null",
        "1e400",
        "\\u0000",
        "\u{e9}",
        "\u{2028}",
        "\0",
        "\t",
        "\r",
        "\u{1b}[2J",
    ];
    prop_oneof![8 => prop::sample::select(PIECES).prop_map(str::to_owned), 1 => ".{0,12}"]
}

fn text() -> impl Strategy<Value = String> {
    let separator = prop::sample::select(vec!["", " ", "\n", "\r\n", "\n\n"]);
    prop::collection::vec((piece(), separator), 0..40)
        .prop_map(|pieces| pieces.into_iter().fold(String::new(), |text, (piece, gap)| text + &piece + gap))
}

/// A discovery controller with options, as it may be configured.
#[derive(Clone, Debug)]
struct Controller {
    address: [u8; 4],
    port: u16,
    keep_alive: u32,
    loss: i32,
    tos: u8,
    digest: bool,
}

fn controller() -> impl Strategy<Value = Controller> {
    (any::<[u8; 4]>(), 1u16.., 0u32..100_000, -1i32..100_000, any::<u8>(), any::<bool>()).prop_map(
        |(address, port, keep_alive, loss, tos, digest)| Controller {
            address,
            port,
            keep_alive,
            loss,
            tos,
            digest,
        },
    )
}

impl Controller {
    fn traddr(&self) -> String {
        self.address.map(|byte| byte.to_string()).join(".")
    }

    /// In a line of its own; `broken` is a mistake in it.
    fn line(&self, format: Format, broken: bool) -> String {
        let Self { port, keep_alive, loss, tos, digest, .. } = self;
        let (traddr, transport) = (self.traddr(), if broken { "tpc" } else { "tcp" });
        match format {
            Format::Discovery => {
                let digest = if *digest { " -G" } else { "" };
                format!(
                    "-t {transport} -a {traddr} --trsvcid={port} -k {keep_alive} -l {loss} --tos={tos}{digest}\n"
                )
            }
            Format::Json => {
                let digest = if *digest { ",\"data_digest\":true" } else { "" };
                format!(
                    "{{\"transport\":\"{transport}\",\"traddr\":\"{traddr}\",\"trsvcid\":\"{port}\",\"keep_alive_tmo\":{keep_alive},\
                     \"ctrl_loss_tmo\":{loss},\"tos\":{tos}{digest}}}"
                )
            }
            Format::Fabrics => {
                let digest = if *digest { ";data-digest=yes" } else { "" };
                format!(
                    "controller = transport={transport};traddr={traddr};trsvcid={port};keep-alive-tmo={keep_alive};\
                     ctrl-loss-tmo={loss};tos={tos}{digest}\n"
                )
            }
        }
    }
}

/// A file with these, and the lines they stand in; the one numbered `broken` has a mistake in it.
fn file(format: Format, controllers: &[Controller], broken: Option<usize>) -> (String, Vec<usize>) {
    let (mut text, mut lines) = (String::new(), Vec::new());
    match format {
        Format::Discovery => text.push_str("# discovery controllers\n\n"),
        Format::Json => text.push_str(
            "[{\"hostnqn\":\"nqn.2024-01.a:host\",\"subsystems\":[{\"nqn\":\"nqn.2014-08.org.nvmexpress.discovery\",\n\"ports\":[\n",
        ),
        Format::Fabrics => text.push_str("[Host]\nhostsymname = a\n\n[Discovery Controller]\n"),
    }
    for (nth, controller) in controllers.iter().enumerate() {
        lines.push(text.lines().count() + 1);
        text.push_str(&controller.line(format, broken == Some(nth)));
        if format == Format::Json {
            text.push_str(if nth + 1 == controllers.len() { "\n" } else { ",\n" });
        }
    }
    if format == Format::Json {
        let _ = write!(text, "]}}]}}]");
    }
    (text, lines)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_text_is_read_without_a_panic(text in text()) {
        for format in FORMATS {
            judge(format, &text)?;
        }
        let _ = Format::guess(Path::new("f"), &text);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for format in FORMATS {
            judge(format, &String::from_utf8_lossy(&bytes))?;
        }
    }

    #[test]
    fn the_three_formats_say_the_same(controllers in prop::collection::vec(controller(), 1..8)) {
        for format in FORMATS {
            let (text, lines) = file(format, &controllers, None);
            let checked = judge(format, &text)?;
            let config = checked.config;
            let found: Vec<_> = config.discovery_controllers().collect();
            // The same address twice is one controller, and a warning.
            let mut expected: Vec<(&Controller, usize)> = Vec::new();
            for (controller, line) in controllers.iter().zip(lines) {
                if !expected.iter().any(|(c, _)| (c.address, c.port) == (controller.address, controller.port)) {
                    expected.push((controller, line));
                }
            }
            prop_assert_eq!(found.len(), expected.len(), "{}", text);
            prop_assert_eq!(checked.diagnostics.len(), controllers.len() - expected.len());
            for (found, (expected, line)) in found.iter().zip(expected) {
                let (trid, options) = (found.trid().unwrap(), &found.path.options);
                prop_assert_eq!((trid.traddr().to_owned(), trid.port()), (expected.traddr(), Some(expected.port)));
                prop_assert_eq!(options.int(Key::KeepAliveTmo), Some(expected.keep_alive.into()));
                prop_assert_eq!(options.int(Key::CtrlLossTmo), Some(expected.loss.into()));
                prop_assert_eq!(options.int(Key::Tos), Some(expected.tos.into()));
                prop_assert_eq!(options.bool(Key::DataDigest).unwrap_or_default(), expected.digest);
                prop_assert_eq!(found.path.origin.line, line, "{}", text);
            }
        }
    }

    #[test]
    fn a_mistake_is_reported_in_its_line(
        controllers in prop::collection::vec(controller(), 1..8),
        at in any::<prop::sample::Index>(),
    ) {
        for format in FORMATS {
            let broken = at.index(controllers.len());
            let (text, lines) = file(format, &controllers, Some(broken));
            let checked = judge(format, &text)?;
            let errors: Vec<_> = checked.diagnostics.iter().filter(|d| d.severity == Severity::Error).collect();
            prop_assert_eq!(errors.len(), 1, "{}", text);
            prop_assert_eq!(errors[0].line, lines[broken], "{}", text);
            prop_assert!(errors[0].what.contains("did you mean \"tcp\"?"), "{}", errors[0]);
        }
    }
}

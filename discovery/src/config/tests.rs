//! The three formats, precedence, and every kind of error with its line.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use nvmf_core::ControllerOptions;
use nvmf_core::HostIdentity;

use super::*;

fn check(format: Format, text: &str) -> Checked {
    let source = Source { path: PathBuf::from("f"), format, drop_in: false, text: text.to_owned() };
    Config::check_sources(vec![source])
}

fn said(checked: &Checked) -> Vec<String> {
    checked.diagnostics.iter().map(ToString::to_string).collect()
}

fn good(format: Format, text: &str) -> Config {
    let checked = check(format, text);
    assert_eq!(said(&checked), Vec::<String>::new(), "{text}");
    checked.config
}

/// Each text has exactly one thing wrong with it.
fn wrong(format: Format, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let found = said(&check(format, text));
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{text:?}: {found:?}, expected {expected:?}"
        );
    }
}

#[test]
fn discovery_conf() {
    let text = "\
# Used by the boot scripts
--transport=tcp --traddr=192.0.2.10 --trsvcid=8009 --host-iface=eth1
-t tcp -a 192.0.2.11 -k 30 -l -1 -gG   # two digests

\t--transport rdma --traddr=192.0.2.12 -q nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555 -p
-t fc -a nn-0x1:pn-0x2 -w nn-0x3:pn-0x4 --persistent=force --fast_io_fail_tmo=5
";
    let config = good(Format::Discovery, text);
    let found: Vec<_> = config.discovery_controllers().collect();
    assert_eq!(found.len(), 4);
    assert_eq!(config.io_controllers().count(), 0);
    let trid = found[0].trid().unwrap();
    assert_eq!((trid.traddr(), trid.trsvcid(), trid.host_iface()), ("192.0.2.10", "8009", Some("eth1")));
    assert!(trid.is_discovery());
    assert_eq!(found[1].trid().unwrap().trsvcid(), "8009");
    let options = &found[1].path.options;
    assert_eq!((options.int(Key::KeepAliveTmo), options.int(Key::CtrlLossTmo)), (Some(30), Some(-1)));
    assert_eq!((options.bool(Key::HdrDigest), options.bool(Key::DataDigest)), (Some(true), Some(true)));
    assert_eq!(found[1].path.origin.to_string(), "f:3");
    assert_eq!(found[2].path.options.persistent(), Some(Persistent::Force));
    assert!(found[2].trid().unwrap_err().to_string().contains("f:6"));
    // Another host's come after.
    assert_eq!(found[3].trid().unwrap().trsvcid(), "4420");
    assert_eq!(found[3].path.options.persistent(), Some(Persistent::Auto));
    assert_eq!(config.hosts.len(), 2);
    let other = config.hosts.iter().find(|host| host.nqn.is_some()).unwrap();
    let identity =
        other.identity(|| -> Result<HostIdentity, ()> { panic!("the UUID is in the name") }).unwrap();
    assert_eq!(identity.id.to_string(), "11111111-2222-3333-4444-555555555555");
}

#[test]
fn discovery_conf_errors() {
    wrong(
        Format::Discovery,
        &[
            (
                "--transport=tcp --tradr=192.0.2.1",
                "f:1: unknown option \"--tradr\"; did you mean \"traddr\"?",
            ),
            ("\n\n-t tcp", "f:3: a controller needs transport and traddr"),
            ("-k 5", "f:1: warning: the line names no controller"),
            ("-t tcp -a ::1 -s 70000", "f:1: "),
            ("-t tcp -a ::1 -k x", "f:1: -k: \"x\" is no number"),
            ("-t tcp -a \"192.0.2.1\"", "f:1: -a: quotation marks would be part of the value"),
            ("-t tcp -a", "f:1: -a wants a value"),
            (
                "-t tpc -a ::1",
                "transport \"tpc\" is none of tcp, rdma, fc, loop, pcie; did you mean \"tcp\"?",
            ),
            ("-t tcp -a ::1 -Z", "f:1: unknown option \"-Z\""),
            ("-t tcp -a ::1 word", "f:1: \"word\" is no option"),
            ("-t tcp -a ::1 -o json", "f:1: warning: -o has no effect here"),
            ("-t tcp -a ::1 -I 00000000-0000-0000-0000-000000000000", "all zeroes"),
            ("-t tcp -a ::1\n-t tcp -a ::1", "f:2: warning: the controller is configured in f:1 already"),
        ],
    );
}

const JSON: &str = r#"[
  {
    "hostnqn": "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555",
    "hostid": "11111111-2222-3333-4444-555555555555",
    "dhchap_key": "DHHC-1:00:b3VyIHNlY3JldCwgdGhhdCBpcyBub3QgdG9sZCB5b3U1nCvm:",
    "hostsymname": "web-1",
    "persistent_discovery_ctrl": true,
    "subsystems": [
      {
        "nqn": "nqn.2024-01.com.example:disk",
        "application": "stas",
        "ports": [
          { "transport": "tcp", "traddr": "192.0.2.20", "trsvcid": 4420,
            "nr_io_queues": 4, "ctrl_loss_tmo": -1, "hdr_digest": true, "host_iface": null },
          { "transport": "tcp", "traddr": "192.0.2.21", "trsvcid": "4420",
            "tls": true, "tls_key": "NVMeTLSkey-1:01:b3VyIGtleSwgd2hpY2ggaXMgbm90IGZvciBvdGhlcnMYAgfX:" }
        ]
      },
      {
        "nqn": "nqn.2014-08.org.nvmexpress.discovery",
        "ports": [ { "transport": "tcp", "traddr": "192.0.2.10", "persistent": false },
                   { "transport": "tcp", "traddr": "192.0.2.11", "discovery": true } ]
      }
    ]
  }
]"#;

#[test]
fn config_json() {
    let config = good(Format::Json, JSON);
    let io: Vec<_> = config.io_controllers().collect();
    let discovery: Vec<_> = config.discovery_controllers().collect();
    assert_eq!((io.len(), discovery.len()), (2, 2));
    let trid = io[0].trid().unwrap();
    assert!(trid.to_uri().starts_with("nvme+tcp://192.0.2.20:4420/nqn.2024-01.com.example:disk"), "{trid}");
    assert_eq!(trid.hostnqn(), io[0].host.nqn.as_ref().map(|nqn| &nqn.value), "two hosts are two paths");
    let option = io[0].path.options.iter().find(|(key, _)| *key == Key::HdrDigest).unwrap().1;
    assert_eq!((option.value.clone(), option.origin.to_string().as_str()), (Value::Bool(true), "f:14"));
    assert_eq!(discovery[0].path.options.persistent(), Some(Persistent::No), "the port goes before the host");
    assert_eq!(discovery[1].path.options.persistent(), Some(Persistent::Force));
    assert_eq!(
        io[0].path.options.secret(Key::DhchapSecret).unwrap().expose(),
        "DHHC-1:00:b3VyIHNlY3JldCwgdGhhdCBpcyBub3QgdG9sZCB5b3U1nCvm:"
    );
    assert_eq!(config.hosts[0].symname.as_ref().unwrap().origin.line, 6);
}

#[test]
fn secrets_are_not_displayed() {
    let config = good(Format::Json, JSON);
    let shown = format!("{config:?}{}{}", show::text(&config, None), show::json(&config, None));
    for secret in ["DHHC", "NVMeTLSkey", "b3Vy"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.matches("<secret>").count() > 10, "they are not left out either");
    let line = "-t tcp -a ::1 --tls-key=NVMeTLSkey-1:01:b3VyIGtleQ==:' --dhchap-sekret=DHHC-1:00:b3Vy: DHHC-1:00:b3Vy:";
    let ini =
        "[Host]\nkxchap-secret DHHC-1:00:b3Vy:\n[Subsystem]\nnqn=nqn.2024-01.a:b\ncontroller=DHHC-1:00:b3Vy:";
    for (format, text) in [(Format::Discovery, line), (Format::Fabrics, ini)] {
        let found = said(&check(format, text)).join("\n");
        assert!(!found.is_empty() && !found.contains("b3Vy"), "{found}");
    }
    // Where a name or an address belongs, which would be displayed.
    for (format, text) in [
        (Format::Fabrics, "[Subsystem]\nnqn =--dhchap-secret=DHHC-1:00:b3Vy:"),
        (Format::Fabrics, "[Subsystem]\nnqn=nqn.2024-01.a:b\nkeyring=DHHC-1:00:b3Vy:"),
        (Format::Fabrics, "[Host]\nhostsymname=DHHC-1:00:b3Vy:"),
        (Format::Discovery, "-t tcp -a--dhchap-secret=DHHC-1:00:b3Vy:"),
        (Format::Discovery, "-t fc -a NVMeTLSkey-1:01:b3Vy:"),
        (Format::Discovery, "-t tcp -a ::1 -s DHHC-1:00:b3Vy:"),
    ] {
        let checked = check(format, text);
        let (found, shown) = (said(&checked).join("\n"), show::text(&checked.config, None));
        assert!(found.contains("a key does not belong here"), "{found}");
        assert!(!found.contains("b3Vy") && !shown.contains("b3Vy"), "{found}{shown}");
    }
}

#[test]
fn secrets_that_were_copied_badly_are_told() {
    let good = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
    let ini = |option: &str| {
        format!("[Subsystem]\nnqn=nqn.2024-01.a:b\n{option}\ncontroller=transport=tcp;traddr=::1")
    };
    for (option, expected) in [
        (format!("kxchap-secret={}", &good[..good.len() - 1]), "with a colon at its end"),
        (format!("kxchap-secret={}", good.replace("AAEC", "AAED")), "the CRC of the secret does not match"),
        (format!("kxchap-secret={}", good.replace(":00:", ":02:")), "32 bytes instead of 48"),
        (format!("tls-key={good}"), "a key string of DHHC-1 is none of NVMeTLSkey-1"),
        ("tls-key=secret".to_owned(), "a key string begins with"),
    ] {
        let found = said(&check(Format::Fabrics, &ini(&option))).join("\n");
        let name = option.split_once('=').unwrap().0;
        assert!(found.contains(&format!("f:3: {name}: ")) && found.contains(expected), "{option}: {found}");
    }
    for option in [format!("kxchap-secret={good}"), "tls-key=0x1a2b3c".to_owned(), "tls-key=12345".to_owned()]
    {
        let found = said(&check(Format::Fabrics, &ini(&option)));
        assert!(found.iter().all(|line| !line.contains("f:3")), "{option}: {found:?}");
    }
}

#[test]
fn options_this_initiator_lacks_are_not_passed_over() {
    let config = good(Format::Json, JSON);
    let errors: Vec<String> = config
        .io_controllers()
        .map(|c| c.controller_options(&ControllerOptions::default()).unwrap_err().to_string())
        .collect();
    assert!(errors[0].contains("f:5 asks for DH-HMAC-CHAP"), "{errors:?}");
    assert!(errors[1].contains("f:16 asks for TLS"), "{errors:?}");
}

#[test]
fn config_json_errors() {
    let host = |rest: &str| format!("[{{\"hostnqn\":\"nqn.2024-01.a:b\",\n{rest}}}]");
    let port = |rest: &str| {
        host(&format!("\"subsystems\":[{{\"nqn\":\"nqn.2024-01.a:c\",\"ports\":[\n{{{rest}}}]}}]"))
    };
    let address = "\"transport\":\"tcp\",\"traddr\":\"::1\"";
    let cases = [
        ("{}".to_owned(), "f:1: the file: an array is expected"),
        ("[\n{\"hostnqn\": }]".to_owned(), "f:2: expected value (column"),
        ("[{}]".to_owned(), "f:1: a host needs a hostnqn"),
        ("[7]".to_owned(), "f:1: a host: an object is expected"),
        (host("\"hostid\":\"x\""), "f:2: hostid: a UUID has the form"),
        (
            host("\"hostsymnam\":\"x\""),
            "f:2: warning: unknown key \"hostsymnam\" is passed over; did you mean \"hostsymname\"?",
        ),
        (host("\"hostid\":[]"), "f:2: hostid: a string is expected"),
        (host("\"subsystems\":[{\"ports\":[]}]"), "f:2: a subsystem needs an nqn"),
        (port("\"transport\":\"tcp\""), "f:3: a controller needs transport and traddr"),
        (
            port(&format!("{address},\n\"queue_size\":8")),
            "f:4: queue_size: 8 is out of range, 0 or 16 to 1024",
        ),
        (port(&format!("{address},\"tls\":\"no\"")), "f:3: tls: true or false is expected"),
        (port(&format!("{address},\"tos\":1.5")), "f:3: tos: an integer is expected"),
        (port(&format!("{address},\"traddr\":\"::2\"")), "f:3: \"traddr\" is there twice"),
        (port(&format!("{address},\"nr_io_queue\":1")), "did you mean \"nr_io_queues\"?"),
    ];
    for (text, expected) in cases {
        wrong(Format::Json, &[(text.as_str(), expected)]);
    }
    let deep = "[".repeat(100_000);
    assert_eq!(said(&check(Format::Json, &deep)).len(), 1);
}

const FABRICS: &str = "\
# Everything once
[Discovery Controller Defaults]
keep-alive-tmo = 30
ctrl-loss-tmo  = 600

[I/O Controller Defaults]
keep-alive-tmo = 5
queue-size = 64
tos = 3

[Host]
hostsymname = lab-host-01
data-digest = yes
queue-size = 128

[Discovery Controller]
nqn        = nqn.2014-08.org.example:cdc.main
controller = transport=tcp;traddr=192.0.2.10;trsvcid=8009;keep-alive-tmo=7;persistent=auto

[Discovery Controller]
controller = transport=tcp;traddr=192.0.2.11

[Subsystem]
nqn           = nqn.2024-01.com.example:data.vol2
ctrl-loss-tmo = 1800
tos =
controller    = transport=tcp;traddr=192.0.2.21;trsvcid=4420;
controller    = transport = tcp; traddr = 192.0.2.22; queue-size = 256
";

#[test]
fn nvme_fabrics_conf_and_its_precedence() {
    let config = good(Format::Fabrics, FABRICS);
    let all: Vec<_> = config.controllers().collect();
    assert_eq!(all.len(), 4);
    let int = |index: usize, key| all[index].path.options.int(key);
    assert_eq!(int(0, Key::KeepAliveTmo), Some(7), "controller line");
    assert_eq!(int(1, Key::KeepAliveTmo), Some(30), "defaults of discovery controllers");
    assert_eq!(int(2, Key::KeepAliveTmo), Some(5), "defaults of I/O controllers");
    assert_eq!(int(2, Key::QueueSize), Some(128), "the host before the defaults");
    assert_eq!(int(3, Key::QueueSize), Some(256), "the controller line before the host");
    assert_eq!(int(2, Key::CtrlLossTmo), Some(1800), "the section before the defaults");
    assert_eq!(int(2, Key::Tos), None, "an empty value is the default again");
    assert_eq!(all[2].path.options.bool(Key::DataDigest), Some(true));
    assert_eq!(
        all[1].trid().unwrap().to_uri(),
        "nvme+tcp://192.0.2.11:8009/nqn.2014-08.org.nvmexpress.discovery"
    );
    assert_eq!(
        all[3].trid().unwrap().to_uri(),
        "nvme+tcp://192.0.2.22:4420/nqn.2024-01.com.example:data.vol2"
    );
    let mut base = ControllerOptions::default();
    base.host = Some(HostIdentity::from_uuid("11111111-2222-3333-4444-555555555555".parse().unwrap()));
    base.transport_tos = 9;
    let options = all[3].controller_options(&base).unwrap();
    assert_eq!((options.io_queue_size, options.transport_tos, options.data_digest), (256, 9, true));
    assert_eq!(options.ctrl_loss_timeout, Some(std::time::Duration::from_secs(1800)));
    let text = show::text(&config, None);
    let row = text.lines().find(|line| line.contains("keep-alive-tmo")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["keep-alive-tmo", "7", "f:18"]);
    assert!(text.contains("f:3 (discovery controller defaults)"), "{text}");
    let json = show::json(&config, None);
    let queue_size = &json["hosts"][0]["subsystems"][0]["controllers"][0]["queue-size"];
    assert_eq!(queue_size, &serde_json::json!({ "value": "128", "origin": "f:14 (host)" }));
}

#[test]
fn nvme_fabrics_conf_errors() {
    let dc = "[Discovery Controller]\n";
    let ok = "controller=transport=tcp;traddr=::1";
    let cases = [
        ("tos = 1".to_owned(), "f:1: \"tos\" stands before any section"),
        ("[Host".to_owned(), "f:1: a section is written [Name]"),
        ("[Host]\nhello".to_owned(), "f:2: this is none of"),
        (
            "[Hosts]\nx=1".to_owned(),
            "f:1: warning: unknown section \"Hosts\" is passed over; did you mean \"Host\"?",
        ),
        ("[Host]\n[Host]".to_owned(), "f:2: a second [Host]; the first is in line 1"),
        (
            "[Host]\nhostnqm=x".to_owned(),
            "f:2: warning: unknown key \"hostnqm\" is passed over; did you mean \"hostnqn\"?",
        ),
        ("[Host]\ncontroller=x".to_owned(), "f:2: controller does not belong into this section"),
        ("[Host]\npersistent=no".to_owned(), "f:2: persistent does not belong"),
        ("[Host]\ntls=maybe".to_owned(), "f:2: tls: \"maybe\" is neither yes nor no"),
        (
            "[I/O Controller Defaults]\nkeep-alive-tmo = 5   # s".to_owned(),
            "a comment needs a line of its own",
        ),
        (format!("[Subsystem]\n{ok}"), "f:1: [Subsystem] needs an nqn"),
        (dc.to_owned(), "f:1: warning: the section has no controller"),
        (format!("{dc}{ok}\nhostid=x"), "f:3: hostid does not belong"),
        (
            format!("{dc}{ok}\n{ok};host-ifac=eth0"),
            "f:3: unknown key \"host-ifac\" in a controller line; did you mean \"host-iface\"?",
        ),
        (format!("{dc}{ok}\n{ok};tls=yes"), "f:3: tls belongs to the host and subsystem"),
        (format!("{dc}{ok}\n{ok};traddr=::2"), "f:3: traddr is there twice"),
        (format!("{dc}{ok}\n{ok};x"), "f:3: \"x\" is not key=value"),
        (format!("{dc}{ok}\n{ok};persistent=maybe"), "is none of no, auto, force"),
        (format!("{dc}{ok}\ncontroller=transport=tcp"), "f:3: a controller needs transport and traddr"),
    ];
    for (text, expected) in &cases {
        wrong(Format::Fabrics, &[(text.as_str(), expected)]);
    }
}

/// A root directory of our own, removed at the end of the test.
struct Root(PathBuf);

impl Root {
    fn new(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nvmf-config-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = Self(std::env::temp_dir().join(name));
        for (path, content) in files {
            let path = root.0.join("etc/nvme").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // A leftover under the temporary directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn files_of_a_system() {
    assert!(Config::check_system(&Root::new(&[]).0).into_result().unwrap().is_empty());
    let drop_in = "[I/O Controller Defaults]\nqueue-size=32\n[Host]\nhostnqn=nqn.2024-01.org.example:other\n\
                   [Subsystem]\nnqn=nqn.2024-01.com.example:b\ncontroller=transport=tcp;traddr=192.0.2.30\n";
    let main = "[I/O Controller Defaults]\nqueue-size=64\ntos=1\n[Host]\nhdr-digest=on\n";
    let root = Root::new(&[
        ("nvme-fabrics.conf", main),
        ("nvme-fabrics.conf.d/10-b.conf", drop_in),
        ("nvme-fabrics.conf.d/README", "not read"),
        ("config.json", JSON),
        ("discovery.conf", "-t tcp -a 192.0.2.40\n"),
    ]);
    let config = Config::check_system(&root.0).into_result().unwrap();
    assert_eq!(config.files.len(), 4);
    let b = config.io_controllers().next().unwrap();
    assert_eq!(b.host.nqn.as_ref().unwrap().value.as_str(), "nqn.2024-01.org.example:other");
    assert_eq!(b.path.options.int(Key::QueueSize), Some(32), "its own defaults first");
    assert_eq!(b.path.options.int(Key::Tos), Some(1), "then those of the main file");
    assert_eq!(b.path.options.bool(Key::HdrDigest), None, "but not the host of the main file");
    assert_eq!(config.discovery_controllers().count(), 3);
    // What was converted is not read twice.
    fs::write(root.0.join("etc/nvme/config.json.converted"), "").unwrap();
    let config = Config::check_system(&root.0).into_result().unwrap();
    assert_eq!(config.discovery_controllers().count(), 1);
    let found = Config::check_file(&root.0.join("etc/nvme/discovery.conf")).into_result().unwrap();
    assert_eq!(found.controllers().count(), 1);
    let found = Config::check_file(&root.0.join("etc/nvme/nvme-fabrics.conf")).into_result().unwrap();
    assert_eq!(found.files.len(), 2, "with its drop-ins");
}

#[test]
fn hosts_of_drop_ins() {
    let host = "[Host]\nhostnqn=nqn.2024-01.org.example:one\nhostid=11111111-2222-3333-4444-555555555555\n";
    let same_id = host.replace("example:one", "example:two");
    for (second, expected) in [
        (host, "b.conf:2: hostnqn nqn.2024-01.org.example:one is that of "),
        (same_id.as_str(), "b.conf:3: hostid 11111111-2222-3333-4444-555555555555 is that of "),
        ("[Host]\ntos=1\n", "b.conf:1: [Host] of a drop-in needs a hostnqn"),
    ] {
        let files = [("nvme-fabrics.conf.d/a.conf", host), ("nvme-fabrics.conf.d/b.conf", second)];
        let found = said(&Config::check_system(&Root::new(&files).0));
        assert!(found.len() == 1 && found[0].contains(expected), "{found:?}, expected {expected}");
    }
}

#[test]
fn files_that_are_none() {
    let root = Root::new(&[("nvme-fabrics.conf", &"#".repeat(MAX_FILE_SIZE + 1)), ("config.json/x", "")]);
    fs::write(root.0.join("etc/nvme/discovery.conf"), b"-t tcp\xff").unwrap();
    let error = Config::check_system(&root.0).into_result().unwrap_err();
    let found: Vec<String> = error.diagnostics().iter().map(ToString::to_string).collect();
    for (found, expected) in
        found.iter().zip(["more than 1048576 bytes", "no regular file", "byte 6 is not UTF-8"])
    {
        assert!(found.contains(expected), "{found}");
    }
    assert!(error.to_string().contains("(and 2 more; `nvmf config validate` lists them)"), "{error}");
    let missing = Config::check_file(&root.0.join("none")).into_result().unwrap_err();
    assert!(missing.to_string().ends_with("none: there is no such file"), "{missing}");
}

#[test]
fn formats_are_guessed() {
    for (name, text, expected) in [
        ("a.json", "", Format::Json),
        ("a", " [ { } ]", Format::Json),
        ("a", "[]", Format::Json),
        ("a", "# c\n\n  --transport=tcp", Format::Discovery),
        ("discovery.conf", "", Format::Discovery),
        ("a.conf", "# c\n[Host]", Format::Fabrics),
    ] {
        assert_eq!(Format::guess(Path::new(name), text), expected, "{name} {text:?}");
    }
}

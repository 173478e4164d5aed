//! The commands around discovery.

use nvmf_core::Nqn;
use nvmf_loopback::{Loopback, SubsystemBuilder};

use crate::support::{NQN, nvmf, target};

fn other(name: &str) -> nvmf_loopback::Builder {
    let subsystem = SubsystemBuilder::new(format!("nqn.2024-01.com.example:{name}"));
    Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0")
}

#[test]
fn options_of_nvme_cli_are_taken() {
    let target = target();
    let plain = nvmf(&[&"discover", &"-t", &"tcp", &"-a", &"127.0.0.1", &"-s", &target.port]).text();
    let all = "-k 5 -c 3 -l 60 -F 5 -i 2 -W 0 -P 0 -Q 64 -T 16 -D -g -G --quiet --no-reuse --no-nbft --disable-sqflow -p=no";
    let port: &str = &target.port;
    let mut line = vec!["discover", "--transport=tcp", "--traddr=127.0.0.1", "--trsvcid", port];
    line.extend(all.split(' '));
    let words: Vec<&dyn std::fmt::Display> = line.iter().map(|word| word as &dyn std::fmt::Display).collect();
    assert_eq!(nvmf(&words).text(), plain);
}

#[test]
fn options_that_cannot_be_honoured_are_refused() {
    let target = target();
    let cases = [
        ("--dhchap-secret=DHHC-1:00:x:", "--dhchap-secret: in-band authentication"),
        ("-SDHHC-1:00:x:", "--dhchap-secret: in-band authentication"),
        ("-CDHHC-1:00:x:", "--dhchap-ctrl-secret: in-band authentication"),
        ("--tls", "--tls: TLS is not supported"),
        ("--concat", "--concat: TLS is not supported"),
        ("--tls-key=1", "--tls-key: TLS is not supported"),
        ("--keyring=.nvme", "--keyring: TLS is not supported"),
        ("-W4", "--nr-write-queues: it is about the kernel's"),
        ("-P4", "--nr-poll-queues: it is about the kernel's"),
        ("-p", "--persistent: a connection lasts as long as"),
        ("--persistent=force", "--persistent: "),
        ("-d/dev/nvme0", "--device: it names a device of the kernel"),
        ("--nbft", "--nbft: NVMe boot firmware tables"),
        ("--persistant", "a similar argument exists: '--persistent'"),
        ("--hostnq=x", "a similar argument exists: '--hostnqn'"),
    ];
    for (option, expected) in cases {
        let line = nvmf(&[&"discover", &target.discovery, &option]).failed(2);
        assert!(line.contains(expected), "{option}: {line}");
    }
}

#[test]
fn referrals_print_one_log_after_the_other() {
    let b = other("b").build().unwrap();
    let a = other("a").referral(b.tcp_trid(Nqn::DISCOVERY).unwrap().unwrap()).build().unwrap();
    let discovery = format!("nvme+tcp://{}", a.tcp_addrs()[0]);
    let text = nvmf(&[&"discover", &discovery, &"--referrals"]).text();
    assert_eq!(text.matches("Discovery Log Number of Records").count(), 2);
    assert!(text.contains(":a\n") && text.contains(":b\n"), "{text}");
}

#[test]
fn a_raw_log_is_the_log_page() {
    let target = target();
    let path = std::env::temp_dir().join(format!("nvmf-raw-{}", std::process::id()));
    let run = nvmf(&[&"discover", &target.discovery, &format!("--raw={}", path.display())]);
    assert_eq!(run.text(), "");
    let file = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(file, nvmf(&[&"discover", &target.discovery, &"-o", &"binary"]).ok());
    assert_eq!(file.len(), 2048);
    let extended = nvmf(&[&"discover", &target.discovery, &"-o", &"binary", &"--extended"]).ok();
    assert!(extended.len() > 2048);
}

#[test]
fn a_plan_gives_reasons() {
    let b = other("b").build().unwrap();
    let to_b = b.tcp_trid(Nqn::DISCOVERY).unwrap().unwrap();
    let a =
        other("a").referral(to_b.clone()).referral(to_b).report_discovery_subsystem(true).build().unwrap();
    let discovery = format!("nvme+tcp://{}", a.tcp_addrs()[0]);
    let plan = nvmf(&[&"connect-all", &"--dry-run", &discovery, &"-o", &"json"]).json();
    let actions: Vec<(&str, &str)> = plan["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["action"].as_str().unwrap(), entry["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(
        actions,
        [
            ("skip", "the discovery subsystem itself"),
            ("attach", "not attached yet"),
            ("follow", "a referral"),
            ("skip", "a referral to one that is asked anyway"),
            ("attach", "not attached yet"),
        ]
    );
    let text = nvmf(&[&"connect-all", &"--dry-run", &discovery]).text();
    assert!(text.ends_with("2 to attach, 2 left out\n"), "{text}");
    assert_eq!(a.controllers("nqn.2024-01.com.example:a"), 0);
    let line = nvmf(&[&"connect-all", &discovery]).failed(2);
    assert!(line.contains("--dry-run"), "{line}");
}

#[test]
fn subsystems_are_listed_as_nvme_does() {
    let target = target();
    let text = nvmf(&[&"list-subsys", &target.discovery]).text();
    let first = format!("nvmf-subsys0 - NQN={NQN}\n               hostnqn=nqn.");
    assert!(text.starts_with(&first), "{text}");
    let path = format!("\\\n +- nvmf0 tcp traddr=127.0.0.1,trsvcid={} live\n", target.port);
    assert!(text.ends_with(&path), "{text}");
    let json = nvmf(&[&"list-subsys", &target.discovery, &"-o", &"json"]).json();
    assert_eq!(json[0]["Subsystems"][0]["NQN"], NQN);
    assert_eq!(json[0]["Subsystems"][0]["Paths"][0]["State"], "live");
}

#[test]
fn hosts_are_registered_and_taken_out() {
    let central = other("a").central_discovery(true).build().unwrap();
    let discovery = format!("nvme+tcp://{}", central.tcp_addrs()[0]);
    nvmf(&[&"dim", &discovery, &"--task", &"register", &"--hostsymname", &"rack 1"]).ok();
    assert_eq!(central.registrations().len(), 1);
    nvmf(&[&"dim", &discovery, &"--task", &"deregister"]).ok();
    assert!(central.registrations().is_empty());
    nvmf(&[&"dim", &discovery, &"--task", &"deregister"]).failed(1);
    let direct = target();
    let line = nvmf(&[&"dim", &direct.discovery, &"--task", &"register"]).failed(1);
    assert!(line.contains("does not call itself a central discovery controller"), "{line}");
}

#[test]
fn what_is_asked_of_the_log() {
    let secret = SubsystemBuilder::new("nqn.2024-01.com.example:secret").deny_other_hosts();
    let target = other("open").subsystem(secret).listen_tcp("127.0.0.1:0").build().unwrap();
    let discovery = format!("nvme+tcp://{}", target.tcp_addrs()[1]);
    let count = |options: &[&str]| {
        let mut line: Vec<&dyn std::fmt::Display> = vec![&"discover", &discovery];
        line.extend(options.iter().map(|option| option as &dyn std::fmt::Display));
        nvmf(&line).text().matches("subtype: nvme subsystem").count()
    };
    assert_eq!(count(&[]), 2);
    assert_eq!(count(&["--port-local"]), 1);
    assert_eq!(count(&["--all-subsystems", "--extended"]), 4);
    assert_eq!(count(&["--pleo", "--allsube"]), 2);
}

#[test]
fn nothing_colours_a_pipe() {
    let target = target();
    for line in [
        &["--help"][..],
        &["discover", "--help"],
        &["list", &target.discovery],
        &["list-subsys", &target.discovery],
    ] {
        let line: Vec<&dyn std::fmt::Display> =
            line.iter().map(|word| word as &dyn std::fmt::Display).collect();
        assert!(!nvmf(&line).text().contains('\x1b'), "{line:?}", line = line.len());
    }
}

//! How the program fails to reach a target: one line, the right code, in time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nvmf_core::spec::command::NvmOpcode;
use nvmf_loopback::{Fault, Loopback, Namespace, Rule, SubsystemBuilder};

use crate::support::{NQN, nvmf, target};

/// Serves connections one after the other, for as long as the process lives.
fn server(mut serve: impl FnMut(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().flatten().for_each(&mut serve));
    address
}

/// Every command that connects, with what it needs at least.
const COMMANDS: [&[&str]; 6] = [
    &["identify"],
    &["list"],
    &["read", "--length", "512"],
    &["write", "--pad-zeroes"],
    &["verify", "--yes"],
    &["perf", "-w", "read"],
];

#[test]
fn refused_connection() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let line = nvmf(&[&"discover", &format!("nvme+tcp://{address}")]).failed(3);
    assert!(line.contains(&address.to_string()) && line.contains("refused"), "{line}");
    for command in COMMANDS {
        let trid = format!("nvme+tcp://{address}/{NQN}");
        let mut line: Vec<&dyn std::fmt::Display> = vec![&command[0], &trid];
        line.extend(command[1..].iter().map(|word| word as &dyn std::fmt::Display));
        let line = nvmf(&line).failed(3);
        assert!(line.contains(&address.to_string()) && line.contains("refused"), "{line}");
    }
}

#[test]
fn unresolvable_name() {
    let run = nvmf(&[&"discover", &"-t", &"tcp", &"-a", &"no-such-host.invalid", &"--timeout", &10]);
    assert!(run.took < Duration::from_secs(20), "{run:?}");
    let line = run.failed(3);
    assert!(line.contains("no-such-host.invalid"), "{line}");
}

#[test]
fn wrong_subsystem() {
    let target = target();
    let trid = format!("nvme+tcp://{}/nqn.2024-01.com.example:other", target.address);
    for command in ["identify", "list", "read"] {
        let line = nvmf(&[&command, &trid]).failed(3);
        assert!(line.contains("nqn.2024-01.com.example:other") && line.contains("nvmf discover"), "{line}");
    }
    let line = nvmf(&[&"identify", &target.discovery]).failed(2);
    assert!(line.contains("no subsystem is named"), "{line}");
    assert!(line.contains(&format!("`nvmf discover -t tcp -a 127.0.0.1 -s {}`", target.port)), "{line}");
    let line = nvmf(&[&"discover", &target.trid]).failed(3);
    assert!(line.contains("this is an I/O controller, it has no discovery log"), "{line}");
}

#[test]
fn host_that_is_not_allowed() {
    let subsystem = SubsystemBuilder::new(NQN).namespace(Namespace::memory(1 << 20)).allow_host("nqn.good");
    let loopback = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build().unwrap();
    let trid = format!("nvme+tcp://{}/{NQN}", loopback.tcp_addrs()[0]);
    let id = "00000000-0000-0000-0000-000000000007";
    nvmf(&[&"identify", &trid, &"-q", &"nqn.good", &"-I", &id]).ok();
    let line = nvmf(&[&"identify", &trid, &"-q", &"nqn.bad", &"-I", &id]).failed(3);
    assert!(line.contains("nqn.bad"), "{line}");
}

#[test]
fn garbage_server() {
    let address = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nServer: \x1b[2J\r\n\r\n");
        let _ = stream.read(&mut [0; 4096]);
    });
    let run = nvmf(&[&"discover", &format!("nvme+tcp://{address}"), &"--timeout", &5]);
    assert!(run.took < Duration::from_secs(10), "{run:?}");
    let line = run.failed(3);
    assert!(line.contains(&address), "{line}");
    assert!(!line.contains('\x1b'), "{line:?}");
}

#[test]
fn server_that_hangs_up() {
    let address = server(drop);
    let run = nvmf(&[&"discover", &format!("nvme+tcp://{address}"), &"--timeout", &5]);
    assert!(run.took < Duration::from_secs(10), "{run:?}");
    let line = run.failed(3);
    assert!(line.contains(&address), "{line}");
}

#[test]
fn silent_server() {
    let mut open = Vec::new();
    let address = server(move |stream| open.push(stream));
    for (command, trid) in
        [("discover", format!("nvme+tcp://{address}")), ("read", format!("nvme+tcp://{address}/{NQN}"))]
    {
        let run = nvmf(&[&command, &trid, &"--timeout", &"0.5"]);
        assert!((Duration::from_millis(400)..Duration::from_secs(5)).contains(&run.took), "{run:?}");
        let line = run.failed(3);
        // To the millisecond at which it was given up, on a busy machine.
        assert!(line.contains("no answer within 5") && line.contains("ms while waiting"), "{line}");
    }
}

#[test]
fn target_that_stops_answering() {
    let target = target();
    target.loopback.faults().push(Rule::from(Fault::Drop).io().opcode(NvmOpcode::READ.0).after(3));
    let run = nvmf(&[&"read", &target.trid, &"--output", &"/dev/null", &"--timeout", &1]);
    assert!(run.took < Duration::from_secs(10), "{run:?}");
    let line = run.failed(3);
    assert!(line.contains("reading 128 KiB at byte offset 393216 of namespace 1: "), "{line}");
    assert!(line.contains("no answer within 1s"), "{line}");
}

#[test]
fn target_that_goes_away() {
    let target = target();
    for line in [
        &[&"read" as &dyn std::fmt::Display, &target.trid, &"--output", &"/dev/null"]
            as &[&dyn std::fmt::Display],
        &[&"verify", &target.trid, &"--length", &"1M", &"--yes"],
        &[&"perf", &target.trid, &"-t", &5],
    ] {
        target.loopback.faults().push(Rule::from(Fault::Disconnect).io().opcode(NvmOpcode::READ.0).after(3));
        let run = nvmf(line);
        assert!(run.took < Duration::from_secs(5), "{run:?}");
        run.failed(3);
    }
}

#[test]
fn local_files() {
    let target = target();
    let line = nvmf(&[&"write", &target.trid, &"--input", &"/nonexistent/file"]).failed(1);
    assert!(line.contains("opening /nonexistent/file: No such file or directory"), "{line}");
    let line = nvmf(&[&"read", &target.trid, &"--output", &"/nonexistent/file"]).failed(1);
    assert!(line.contains("creating /nonexistent/file: No such file or directory"), "{line}");
    let line = nvmf(&[&"discover", &target.discovery, &"--raw", &"/nonexistent/file"]).failed(1);
    assert!(line.contains("writing /nonexistent/file: No such file or directory"), "{line}");
    let line = nvmf(&[&"read", &target.trid, &"--output", &"/dev/full"]).failed(1);
    assert!(line.contains("writing /dev/full: No space left on device"), "{line}");
}

#[test]
fn command_lines() {
    let cases: &[(&[&str], &str)] = &[
        (&["discovr"], "unrecognized subcommand 'discovr'"),
        (&["discover"], "no discovery controller is named"),
        (&["discover", "-t", "tcp"], "--traddr <ADDR>"),
        (&["discover", "-t", "tpc", "-a", "::1"], "--transport tpc: no such transport"),
        (&["discover", "-t", "tcp", "-a", "::1", "-q", "a b"], "--hostnqn: "),
        (&["discover", "-t", "tcp", "-a", "::1", "-I", "7"], "--hostid: a UUID has the form"),
        (&["discover", "trtype:tcp traddr:::1 trsvcid:99999"], "TRID: "),
        (&["read", "nvme+tcp://[::1]/nqn.a", "--length", "1kB"], "kB may mean 1000s or 1024s"),
        (&["target"], "--namespace <SIZE|FILE[:SIZE]>"),
        (&["target", "--namespace", "1M", "--listen", "nowhere"], "\"nowhere\" is no address to listen on"),
        (
            &["target", "--namespace", "1M,ms=8,pi=9"],
            "pi=9: there is no such type; options are lba=SIZE, ms=BYTES",
        ),
        (
            &["target", "--namespace", "1M,ms=8,pi=1,guard=64"],
            "protection information takes 16 bytes of metadata",
        ),
        (&["target", "--namespace", "1M", "--block-size", "1000"], "choose a power of two from 512 to 65536"),
    ];
    for (words, expected) in cases {
        let words: Vec<_> = words.iter().map(|word| word as &dyn std::fmt::Display).collect();
        let line = nvmf(&words).failed(2);
        assert!(line.contains(expected), "{line}");
    }
}

//! `nvmf monitor`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nvmf_core::Nqn;
use nvmf_loopback::{Builder, Fault, Loopback, Rule, SubsystemBuilder};
use serde_json::Value;

use crate::support::{NQN, nvmf, target};

/// Nothing here takes that long.
const HANG: Duration = Duration::from_secs(30);

/// A monitor that runs. Killed when dropped.
struct Monitor {
    child: Child,
    lines: Receiver<String>,
    /// The subsystems it has told of.
    told: BTreeSet<String>,
}

impl Monitor {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nvmf"))
            .args(["monitor", "-o", "json"])
            .args(arguments)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout: BufReader<ChildStdout> = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, told: BTreeSet::new() }
    }

    #[track_caller]
    fn next(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(HANG).expect("nothing happens")).unwrap()
    }

    /// The event and the last part of the subsystem's name.
    #[track_caller]
    fn short(&self) -> (String, String) {
        let line = self.next();
        let name = line["subnqn"].as_str().unwrap_or_default().rsplit(':').next().unwrap().to_owned();
        (line["event"].as_str().unwrap().to_owned(), name)
    }

    /// Waits for an event of this kind, and passes over others.
    #[track_caller]
    fn until(&mut self, event: &str) -> Value {
        loop {
            let line = self.next();
            self.follow(&line);
            if line["event"] == event {
                return line;
            }
        }
    }

    /// Takes an event about a path for what it says.
    fn follow(&mut self, line: &Value) {
        let name = line["subnqn"].as_str().unwrap_or_default();
        match line["event"].as_str() {
            Some("added") => assert!(self.told.insert(name.to_owned()), "added twice: {line}"),
            Some("removed") => assert!(self.told.remove(name), "never added: {line}"),
            _ => {}
        }
    }

    /// Open descriptors and threads.
    fn holdings(&self) -> (usize, usize) {
        let count =
            |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", self.child.id())).unwrap().count();
        (count("fd"), count("task"))
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Tells it to end. How long that took, and what it had said on stderr.
    #[track_caller]
    fn end(mut self, signal: &str) -> (Duration, String) {
        self.signal(signal);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < HANG, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let took = started.elapsed();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(0), "{said}");
        (took, said)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(names: &[&str]) -> Builder {
    names.iter().fold(Loopback::builder(), |builder, name| {
        builder.subsystem(SubsystemBuilder::new(format!("nqn.2024-01.com.example:{name}")))
    })
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("nvmf-monitor-{name}-{}", std::process::id()))
}

#[track_caller]
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < HANG, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pair(event: &str, name: &str) -> (String, String) {
    (event.to_owned(), name.to_owned())
}

#[test]
fn changes_are_printed_and_hooked_until_it_is_told_to_stop() {
    let target = target();
    let log = temporary("hook");
    let hook = format!("echo \"$NVMF_EVENT $NVMF_SUBNQN $NVMF_TRSVCID\" >>{}", log.display());
    let monitor = Monitor::start(&[&target.discovery, "--exec", &hook]);
    assert_eq!(monitor.short().0, "watching");
    assert_eq!(monitor.short().0, "connected");
    assert_eq!(monitor.short(), pair("added", "cli"));
    target.loopback.add_subsystem(SubsystemBuilder::new("nqn.2024-01.com.example:new")).unwrap();
    assert_eq!(monitor.short(), pair("added", "new"));
    target.loopback.remove_subsystem("nqn.2024-01.com.example:new").unwrap();
    assert_eq!(monitor.short(), pair("removed", "new"));
    let (_, said) = monitor.end("-TERM");
    assert_eq!(said, "");
    let hooks = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    let port = &target.port;
    assert_eq!(
        hooks,
        format!(
            "added {NQN} {port}\nadded nqn.2024-01.com.example:new {port}\nremoved nqn.2024-01.com.example:new {port}\n"
        )
    );
    wait_for("the end of its connection", || target.loopback.controllers(Nqn::DISCOVERY) == 0);
}

#[test]
fn hooks_that_fail_or_take_too_long_are_told_and_ended() {
    let target = target();
    let mut monitor = Monitor::start(&[&target.discovery, "--exec", "exit 3"]);
    monitor.until("added");
    let (_, said) = monitor.end("-TERM");
    let expected = format!("nvmf: hook for added {}: exit status: 3\n", target.trid);
    assert_eq!(said, expected);
    // With what it has started itself.
    let pid = temporary("pid");
    let hook = format!("sleep 1000 & echo $! >{0}.new; mv {0}.new {0}; wait", pid.display());
    let monitor = Monitor::start(&[&target.discovery, "--exec-timeout", "2.5", "--exec", &hook]);
    wait_for("the hook", || pid.exists());
    let child = std::fs::read_to_string(&pid).unwrap().trim().to_owned();
    std::fs::remove_file(&pid).unwrap();
    let gone = || {
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // Where nobody collects orphans it stays as a zombie.
        state.is_empty() || state.contains(") Z ")
    };
    wait_for("the end of what the hook has started", gone);
    let (_, said) = monitor.end("-INT");
    assert!(said.ends_with(": killed, because it took more than 2.5 s\n"), "{said}");
    // At the end there is a limit, however many there are and however long they take.
    for n in 0..5 {
        let name = format!("nqn.2024-01.com.example:{n}");
        target.loopback.add_subsystem(SubsystemBuilder::new(name)).unwrap();
    }
    let mut monitor = Monitor::start(&[&target.discovery, "--exec", "sleep 1000"]);
    for _ in 0..6 {
        monitor.until("added");
    }
    let (took, said) = monitor.end("-INT");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].ends_with("killed, because the monitor ends"), "{said}");
    assert_eq!(lines[1], "nvmf: the monitor ended with 5 changes the hook was not run for");
}

/// Thousands of changes while a hook takes its time: what is held for it stays small, and the hooks in the end tell what there is.
#[test]
fn hooks_that_are_slower_than_the_changes_end_in_the_truth() {
    let target = target();
    let (log, go) = (temporary("slow"), temporary("go"));
    let hook = format!(
        "while [ ! -e {0} ]; do sleep 0.05; done; echo \"$NVMF_EVENT $NVMF_SUBNQN\" >>{1}",
        go.display(),
        log.display()
    );
    let mut monitor = Monitor::start(&[&target.discovery, "--exec-timeout", "300", "--exec", &hook]);
    monitor.until("added");
    let name = |n: usize| format!("nqn.2024-01.com.example:{n}");
    let (mut truth, mut changes) = (BTreeSet::from([NQN.to_owned()]), 1);
    for round in 0..100 {
        // Those of the round before go, others come; some stay for good.
        for n in round * 20..(round + 1) * 20 {
            target.loopback.add_subsystem(SubsystemBuilder::new(name(n))).unwrap();
            truth.insert(name(n));
        }
        for gone in (0..round * 20).rev().take(20).filter(|n| n % 20 != 0) {
            target.loopback.remove_subsystem(&name(gone)).unwrap();
            truth.remove(&name(gone));
        }
        // The monitor has seen it, and so has the hook's queue.
        while monitor.told != truth {
            let line = monitor.next();
            changes += usize::from(line["event"] == "added" || line["event"] == "removed");
            monitor.follow(&line);
        }
    }
    assert!(changes > 3000, "{changes}");
    std::fs::write(&go, "").unwrap();
    let hooked = || std::fs::read_to_string(&log).unwrap_or_default();
    let follow = |hooks: &str| {
        let mut there = BTreeSet::new();
        for line in hooks.lines() {
            let (event, name) = line.split_once(' ').unwrap();
            // It is told of nothing twice.
            assert!(
                if event == "added" { there.insert(name.to_owned()) } else { there.remove(name) },
                "{line}"
            );
        }
        there
    };
    wait_for("the end of the hooks", || follow(&hooked()) == truth);
    let (_, said) = monitor.end("-TERM");
    let runs = hooked().lines().count();
    // What was held is what hooks were run for.
    assert!(runs < 600, "{runs} hooks for {changes} changes");
    assert!(said.contains(" changes were merged"), "{said}");
    println!("{changes} changes, {runs} hooks");
    for file in [&log, &go] {
        std::fs::remove_file(file).unwrap();
    }
}

/// Listens where something has listened before. For a moment an attempt to connect there may have the port: to one of the numbers that
/// are given out, it can meet itself.
fn once_free<T, E: std::fmt::Display>(mut listen: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match listen() {
            Ok(listener) => return listener,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A discovery controller that is away for what is minutes at the usual pace (pauses of up to 10 s, here 0.1 s), in every way
/// there is, time and again: it comes back, and nothing is held that was not held before.
#[test]
fn it_outlives_its_discovery_controller_and_leaks_nothing() {
    let back = || names(&["a"]).central_discovery(true);
    let mut loopback = back().listen_tcp("127.0.0.1:0").build().unwrap();
    let address = loopback.tcp_addrs()[0].to_string();
    let discovery = format!("nvme+tcp://{address}");
    let mut monitor = Monitor::start(&[&discovery, "-c", "0.1", "--timeout", "0.5"]);
    monitor.until("added");
    // Loses and finds it once before it is counted, so that what is made once is there.
    loopback.disconnect_all();
    monitor.until("connected");
    wait_for("its registration", || loopback.registrations().len() == 1);
    let held = monitor.holdings();
    let mut losses = 0;
    for round in 0..3 {
        // Refused: nobody listens.
        drop(loopback);
        let attempts = 20;
        for _ in 0..attempts {
            let line = monitor.until("disconnected");
            assert!(line["retry_in_ms"].as_u64().unwrap() <= 100, "{line}");
        }
        losses += attempts;
        // Accepted, and never answered.
        let silent = once_free(|| std::net::TcpListener::bind(&address));
        let line = loop {
            let line = monitor.until("disconnected");
            if !line["error"].as_str().unwrap().contains("refused") {
                break line;
            }
        };
        assert!(line["error"].as_str().unwrap().contains("no answer within"), "{line}");
        drop(silent);
        // There again, closing every connection at once, and then with everything as it was.
        loopback = once_free(|| back().listen_tcp(&address).build());
        loopback.refuse_connections(true);
        for _ in 0..5 {
            monitor.until("disconnected");
        }
        loopback.refuse_connections(false);
        monitor.until("connected");
        // Connected, and the log cannot be read.
        loopback.faults().push(
            Rule::new(Fault::Disconnect)
                .admin()
                .opcode(nvmf_core::spec::AdminOpcode::GET_LOG_PAGE.0)
                .times(5),
        );
        loopback.disconnect_all();
        for _ in 0..6 {
            monitor.until("disconnected");
        }
        monitor.until("connected");
        wait_for("its registration", || loopback.registrations().len() == 1);
        wait_for("one connection", || loopback.controllers(Nqn::DISCOVERY) == 1);
        wait_for("what it held before", || monitor.holdings() == held);
        println!("round {round}: {} descriptors, {} threads", held.0, held.1);
    }
    println!("{losses} refused attempts: at the usual pace {} minutes", losses * 10 / 60);
    let (took, said) = monitor.end("-INT");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(said, "");
    wait_for("the end of its connection", || loopback.controllers(Nqn::DISCOVERY) == 0);
    assert!(loopback.registrations().is_empty(), "it was taken out");
}

#[test]
fn it_ends_while_nobody_answers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let discovery = format!("nvme+tcp://{}", silent.local_addr().unwrap());
    for (discovery, signal) in [(discovery.as_str(), "-INT"), ("nvme+tcp://127.0.0.1:1", "-TERM")] {
        let mut monitor = Monitor::start(&[discovery]);
        monitor.until("watching");
        std::thread::sleep(Duration::from_millis(300));
        let (took, _) = monitor.end(signal);
        assert!(took < Duration::from_secs(5), "{discovery}: {took:?}");
    }
}

#[test]
fn it_ends_when_its_reader_does() {
    let target = target();
    let mut monitor = Monitor::start(&[&target.discovery]);
    // The reading thread ends with the next line, and closes the pipe.
    monitor.lines = channel().1;
    for n in 0..20 {
        let name = format!("nqn.2024-01.com.example:{n}");
        target.loopback.add_subsystem(SubsystemBuilder::new(name)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_for("its end", || target.loopback.controllers(Nqn::DISCOVERY) == 0);
}

/// What is configured for a discovery controller holds: who connects, and how the connection is kept.
#[test]
fn what_is_configured_holds() {
    let central = || names(&["a"]).central_discovery(true).listen_tcp("127.0.0.1:0").build().unwrap();
    let (one, two) = (central(), central());
    let host = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
    let port = |loopback: &Loopback| loopback.tcp_addrs()[0].port();
    let file = temporary("discovery.conf");
    let text = format!(
        "-t tcp -a 127.0.0.1 -s {} -k 7 -q {host}\n-t tcp -a 127.0.0.1 -s {} -k 0\n",
        port(&one),
        port(&two)
    );
    std::fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let monitor = Monitor::start(&["-J", path]);
    for loopback in [&one, &two] {
        wait_for("a registration", || loopback.registrations().len() == 1);
    }
    let kato = |loopback: &Loopback| loopback.keep_alive_timeouts(Nqn::DISCOVERY);
    assert_eq!(kato(&one), [Duration::from_secs(7)]);
    assert_eq!(one.registrations()[0].eid, host);
    assert_eq!(kato(&two), [Duration::from_secs(30)], "nvme-cli's, where none is set");
    assert_ne!(two.registrations()[0].eid, host);
    monitor.end("-TERM");
    // The command line is for those that do not say themselves.
    let monitor = Monitor::start(&["-J", path, "-k", "9"]);
    wait_for("both connections", || kato(&one).len() == 1 && kato(&two).len() == 1);
    assert_eq!(kato(&one), [Duration::from_secs(7)]);
    monitor.end("-TERM");
    // One reading needs no keep alive, whatever is configured, as with nvme-cli; unless it is asked for.
    for (option, expected) in [("-D", 0), ("-k5", 5)] {
        one.faults().push(Rule::new(Fault::Delay(Duration::from_millis(500))).admin().opcode(2));
        std::thread::scope(|scope| {
            scope.spawn(|| nvmf(&[&"discover", &"-J", &path, &option]).text());
            wait_for("the connection", || !kato(&one).is_empty());
            assert_eq!(kato(&one), [Duration::from_secs(expected)]);
        });
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_monitor_with_a_time_ends() {
    let target = target();
    let text = nvmf(&[&"monitor", &target.discovery, &"--for", &"0.5"]).text();
    let line = text.lines().find(|line| line.contains(" added ")).unwrap();
    assert!(line.starts_with("20") && line.contains("Z added        nvme+tcp://127.0.0.1:"), "{line}");
    let line = nvmf(&[&"monitor", &"-J", &"/nonexistent/discovery.conf"]).failed(2);
    assert!(line.contains("/nonexistent/discovery.conf"), "{line}");
    let line = nvmf(&[&"monitor", &target.discovery, &"-J", &"discovery.conf"]).failed(2);
    assert!(line.contains("--config: the command line names a discovery controller already"), "{line}");
    nvmf(&[&"discover", &target.discovery, &"-J", &"none"]).text();
    assert!(nvmf(&[&"discover", &"-J", &"none"]).failed(2).contains("no discovery controller is named"));
    let line = nvmf(&[&"monitor", &"--mdns", &"--mdns-iface", &"nosuch0"]).failed(2);
    assert!(
        line.contains("nosuch0: there is no such interface; there are ") && line.contains("lo"),
        "{line}"
    );
}

#[test]
fn what_is_forgotten_is_let_go_of() {
    let b = names(&["b"]).listen_tcp("127.0.0.1:0").build().unwrap();
    let a = names(&["a"]).listen_tcp("127.0.0.1:0").build().unwrap();
    let mut monitor = Monitor::start(&[&format!("nvme+tcp://{}", a.tcp_addrs()[0])]);
    monitor.until("added");
    let to_b = b.tcp_trid(Nqn::DISCOVERY).unwrap().unwrap();
    let mut held = None;
    for _ in 0..10 {
        a.set_referrals(vec![to_b.clone()]);
        monitor.until("added");
        a.set_referrals(Vec::new());
        monitor.until("forgotten");
        wait_for("the end of the connection", || b.controllers(Nqn::DISCOVERY) == 0);
        match held {
            // What is kept for the next one is there after the first.
            None => {
                std::thread::sleep(Duration::from_millis(300));
                held = Some(monitor.holdings());
            }
            Some(held) => wait_for("what it held before", || monitor.holdings() == held),
        }
    }
    monitor.end("-INT");
}

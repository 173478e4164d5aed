//! What the commands print.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use crate::support::{NQN, SIZE, nvmf, target};

#[test]
fn demo_runs_and_matches() {
    let text = nvmf(&[&"demo"]).text();
    for label in ["discover", "attach", "identify", "write", "verify", "latency", "IOPS", "throughput"] {
        assert!(text.contains(&format!("\n  {label} ")), "{label}: {text}");
    }
    assert!(text.contains("1 subsystem in "), "{text}");
    assert!(
        text.ends_with("\nok: 64 MiB written, read back in another order, every byte matches\n"),
        "{text}"
    );
}

#[test]
fn discover_prints_what_nvme_cli_prints() {
    let target = target();
    let expected = format!(
        "
Discovery Log Number of Records 1, Generation counter {}
=====Discovery Log Entry 0======
trtype:  tcp
adrfam:  ipv4
subtype: nvme subsystem
treq:    not specified, sq flow control disable supported
portid:  1
trsvcid: {}
subnqn:  {NQN}
traddr:  127.0.0.1
eflags:  none
sectype: none
",
        target.loopback.discovery_generation(),
        target.port
    );
    assert_eq!(nvmf(&[&"discover", &target.discovery]).text(), expected);
    let line: &[&dyn std::fmt::Display] = &[
        &"discover",
        &"-t",
        &"tcp",
        &"-a",
        &"127.0.0.1",
        &"-s",
        &target.port,
        &"-w",
        &"127.0.0.1",
        &"-q",
        &"nqn.my-host",
        &"-I",
        &"00000000-0000-0000-0000-000000000007",
        &"-g",
        &"-G",
    ];
    assert_eq!(nvmf(line).text(), expected);
}

#[test]
fn discover_in_json_and_binary() {
    let target = target();
    let text = nvmf(&[&"discover", &target.discovery, &"-o", &"json"]).text();
    assert!(
        text.starts_with(&format!("{{\n  \"genctr\":{},\n", target.loopback.discovery_generation())),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let record = &json["records"][0];
    assert_eq!(record["subnqn"], NQN);
    assert_eq!(record["trsvcid"], target.port);
    assert_eq!(record["portid"], 1);

    let page = nvmf(&[&"discover", &target.discovery, &"-o", &"binary"]).ok();
    assert_eq!(page.len(), 2048);
    assert_eq!(page[..8], target.loopback.discovery_generation().to_le_bytes());
    assert_eq!(page[8..16], 1u64.to_le_bytes());
    assert_eq!(page[1024], 3, "TRTYPE");

    let path = std::env::temp_dir().join(format!("nvmf-cli-raw-{}", std::process::id()));
    let printed = nvmf(&[&"discover", &target.discovery, &"--raw", &path.display()]).ok();
    let raw = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(printed.is_empty());
    assert_eq!(raw, page);
}

#[test]
fn list_attaches_everything() {
    let target = target();
    let text = nvmf(&[&"list", &"-t", &"tcp", &"-a", &"127.0.0.1", &"-s", &target.port]).text();
    let lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines.len(), 6, "{text}");
    assert_eq!(lines[1], format!("{NQN} 1 tcp {} test target CLI0001", target.address));
    assert_eq!(lines[4], format!("{NQN} 1 8 MiB 512 B + 0 B 11111111-1111-1111-1111-111111111111"));
    assert_eq!(lines[5], format!("{NQN} 2 1 MiB 4 KiB + 0 B 22222222-2222-2222-2222-222222222222"));

    let json = nvmf(&[&"list", &target.trid, &"-o", &"json"]).json();
    let subsystem = &json["subsystems"][0];
    assert_eq!(subsystem["subnqn"], NQN);
    assert_eq!(subsystem["controllers"][0]["trsvcid"], target.port);
    assert_eq!(subsystem["namespaces"][0]["size"], SIZE);
    assert_eq!(subsystem["namespaces"][1]["block_size"], 4096);
    assert_eq!(json["failed"].as_array().map(Vec::len), Some(0));
}

#[test]
fn identify_describes() {
    let target = target();
    let text = nvmf(&[&"identify", &target.trid]).text();
    assert!(text.starts_with("Controller ") && text.contains(&format!(" of {NQN}\n")), "{text}");
    assert!(text.contains("  Model                  test target\n"), "{text}");
    assert!(
        text.contains("\nNamespace 1\n  Size                   8 MiB (8,388,608 bytes, 16,384 blocks)\n"),
        "{text}"
    );
    assert!(text.contains("  UUID                   22222222-2222-2222-2222-222222222222\n"), "{text}");

    let json = nvmf(&[&"identify", &target.trid, &"--nsid", &2, &"-o", &"json"]).json();
    assert_eq!(json["controller"]["sn"], "CLI0001");
    assert_eq!(json["controller"]["subnqn"], NQN);
    assert_eq!(json["namespaces"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["namespaces"][0]["nsze"], 256);
    assert_eq!(json["namespaces"][0]["lbafs"][0]["ds"], 12);

    let text = nvmf(&[&"identify", &target.discovery, &"-n", &"nqn.2014-08.org.nvmexpress.discovery"]).text();
    assert!(text.contains("  Type                   discovery controller\n"), "{text}");
}

#[test]
fn words_need_no_quotes() {
    let target = target();
    let port = format!("trsvcid:{}", target.port);
    let nqn = format!("subnqn:{NQN}");
    let text = nvmf(&[&"identify", &"trtype:tcp", &"traddr:127.0.0.1", &port, &nqn, &"--nsid", &1]).text();
    assert!(text.contains(NQN), "{text}");
}

#[test]
fn perf_reports() {
    let target = target();
    let json = nvmf(&[
        &"perf",
        &target.trid,
        &"-q",
        &8,
        &"-o",
        &"4K",
        &"-w",
        &"randrw",
        &"-M",
        &70,
        &"-t",
        &"0.3",
        &"-P",
        &2,
        &"--warmup",
        &"0.1",
        &"--yes",
        &"--json",
    ])
    .json();
    let number = |key: &str| json[key].as_f64().unwrap_or_else(|| panic!("{key}: {json}"));
    assert!(number("ios") > 0.0 && number("errors") == 0.0, "{json}");
    assert!((number("iops") - number("ios") / number("seconds")).abs() < 1.0, "{json}");
    assert!((number("mib_per_s") - number("iops") / 256.0).abs() < 0.01, "{json}");
    let us = |key: &str| json["latency_us"][key].as_f64().unwrap_or_else(|| panic!("{key}: {json}"));
    let ladder = [us("min"), us("p50"), us("p90"), us("p99"), us("p999"), us("max")];
    assert!(ladder[0] > 0.0 && ladder.is_sorted(), "{json}");
    assert!((ladder[0]..=ladder[5]).contains(&us("mean")), "{json}");
    assert_eq!((number("read_percent"), number("queue_depth"), number("qpairs")), (70.0, 8.0, 2.0));
    let stats = target.loopback.stats();
    let share = stats.reads as f64 / (stats.reads + stats.writes) as f64;
    assert!((0.6..0.8).contains(&share), "{share} of I/Os were reads: {stats:?}");

    let text =
        nvmf(&[&"perf", &target.trid, &"-t", &"0.2", &"-q", &1, &"--interrupt", &"--threads", &2]).text();
    assert!(text.starts_with("randread, 4 KiB, queue depth 1 x 2 threads, sleeping\n"), "{text}");
    assert!(text.contains("\n  IOPS  ") && text.contains("\n              p99.9 "), "{text}");
}

#[test]
fn perf_drives_several_controllers_and_many_queue_pairs() {
    let (one, other) = (target(), target());
    let json = nvmf(&[
        &"perf",
        &"-r",
        &one.trid,
        &"-r",
        &other.trid,
        &"--io-depth",
        &4,
        &"--num-qpairs",
        &5,
        &"--time",
        &30,
        &"-d",
        &40,
        &"-H",
        &"-I",
        &"-LL",
        &"--transport-stats",
        &"--json",
    ])
    .json();
    // Each of 5 queue pairs to each controller did 40 I/Os, all of them long before 30 s were over.
    assert_eq!(json["ios"], 400, "{json}");
    for (index, target) in [&one, &other].into_iter().enumerate() {
        assert_eq!(json["controllers"][index]["ios"], 200, "{json}");
        assert_eq!(target.loopback.stats().reads, 200);
    }
    assert!(json["seconds"].as_f64().unwrap() < 20.0, "{json}");
    assert_eq!(json["transport_stats"]["commands"], 400, "{json}");
    assert!(json["transport_stats"]["bytes_received"].as_u64().unwrap() > 400 * 4096, "{json}");
    let steps = json["histogram"].as_array().unwrap();
    assert_eq!(steps.iter().map(|step| step["ios"].as_u64().unwrap()).sum::<u64>(), 400, "{json}");

    let text = nvmf(&[&"perf", &one.trid, &"-r", &other.trid, &"-d", &5, &"-q", &1, &"-L", &"-E"]).text();
    assert!(text.contains("\n2 namespaces from offset 0") && text.contains("99.9999 %"), "{text}");
    assert!(!text.contains("histogram"), "{text}");

    let line = nvmf(&[&"perf", &one.trid, &"-c", &"[1023]", &"-t", &"0.1"]).failed(2);
    assert!(line.contains("may not run on CPU"), "{line}");
}

#[test]
fn perf_reads_in_order_within_the_range() {
    let target = target();
    let before = target.loopback.stats();
    nvmf(&[
        &"perf",
        &target.trid,
        &"-w",
        &"write",
        &"--yes",
        &"-t",
        &"0.1",
        &"--offset",
        &"1M",
        &"--length",
        &"64K",
    ])
    .ok();
    assert!(target.loopback.stats().writes > before.writes);
    let data = nvmf(&[&"read", &target.trid]).ok();
    let (start, end) = (1 << 20, (1 << 20) + (64 << 10));
    assert!(data[..start].iter().chain(&data[end..]).all(|&byte| byte == 0), "written outside of the range");
    assert!(
        data[start..end].chunks(512).all(|block| block.iter().any(|&byte| byte != 0)),
        "a block was left out"
    );
}

#[test]
fn target_serves_until_told_to_stop() {
    let path = std::env::temp_dir().join(format!("nvmf-cli-target-{}", std::process::id()));
    let mut child = Command::new(env!("CARGO_BIN_EXE_nvmf"))
        .args(["target", "--listen", "127.0.0.1:0", "--namespace", "1MiB", "--namespace"])
        .arg(format!("{}:64K", path.display()))
        .args(["--nqn", NQN, "--block-size", "4KiB"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let address =
        line.strip_prefix("listening on ").and_then(|line| line.strip_suffix('\n')).unwrap().to_owned();
    let trid = format!("nvme+tcp://{address}/{NQN}");
    nvmf(&[&"verify", &trid, &"--nsid", &2, &"--length", &"64K", &"--yes"]).ok();

    // The shell's own kill: the program is not on every machine.
    let stopped = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap();
    assert!(stopped.success());
    let status = child.wait().unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
    let stored = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!((status.code(), rest.as_str()), (Some(0), ""));
    // The pattern begins with offset and seed.
    assert_eq!(stored.len(), 64 << 10);
    assert_eq!(stored[4096..4112], [4096u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
}

#[cfg(feature = "pcie")]
/// A program that is ended with the test, however that ends.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_vfio_user_target_is_a_controller_like_any_other() {
    let directory = std::env::temp_dir().join(format!("nvmf-cli-vfio-user-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let start = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nvmf"))
            .args(["target", "--namespace", "1MiB", "--nqn", NQN, "--vfio-user"])
            .arg(&directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, format!("listening on {}/cntrl\n", directory.display()));
        Running(child)
    };
    let child = start();
    let trid = format!("trtype:vfiouser traddr:{}", directory.display());
    nvmf(&[&"verify", &trid, &"--length", &"64K", &"--yes"]).ok();
    let text = nvmf(&[&"identify", &trid]).text();
    assert!(text.contains(NQN), "{text}");
    let run = nvmf(&[&"perf", &trid, &"-w", &"randread", &"-t", &"0.2", &"--interrupt"]);
    assert_eq!(run.code, Some(0), "{run:?}");

    // It dies without a word while somebody reads, and leaves its socket behind.
    let reader = std::thread::spawn({
        let trid = trid.clone();
        move || nvmf(&[&"perf", &trid, &"-w", &"randread", &"-t", &"30"])
    });
    std::thread::sleep(std::time::Duration::from_millis(700));
    drop(child);
    let run = reader.join().unwrap();
    assert_ne!(run.code, Some(0), "{run:?}");
    assert!(run.took < std::time::Duration::from_secs(20), "{run:?}");
    let line = nvmf(&[&"identify", &trid]).failed(3);
    assert!(line.contains("no server listens on it"), "{line}");

    let mut child = start();
    nvmf(&[&"verify", &trid, &"--length", &"64K", &"--yes"]).ok();
    let kill = format!("kill -TERM {}", child.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    // The socket is gone, and nothing else was left.
    std::fs::remove_dir(&directory).unwrap();
}

#[test]
fn logs_only_when_asked_to() {
    let target = target();
    let run = nvmf(&[&"discover", &target.discovery, &"-vvv"]);
    assert_eq!(run.code, Some(0));
    assert!(run.stderr.contains("TRACE") || run.stderr.contains("DEBUG"), "{}", run.stderr);
}

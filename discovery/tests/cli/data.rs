//! What `read`, `write` and `verify` do to data.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use nvmf_core::spec::Status;
use nvmf_core::spec::command::NvmOpcode;
use nvmf_loopback::{Fault, Rule};

use crate::support::{SIZE, noise, nvmf, nvmf_with, target};

#[test]
fn what_is_written_is_read() {
    let target = target();
    let data = noise(3 << 20, 1);
    nvmf_with(&[&"write", &target.trid, &"--offset", &"1MiB"], &data).ok();
    // The whole namespace: what was written, and zeroes around it.
    let all = nvmf(&[&"read", &target.trid]).ok();
    assert_eq!(all.len(), SIZE);
    assert!(all[1 << 20..4 << 20] == data, "data differ");
    assert!(
        all[..1 << 20].iter().chain(&all[4 << 20..]).all(|&byte| byte == 0),
        "written outside of the range"
    );
    // A range that is no multiple of the I/O size, with digests, one I/O at a time.
    let line: &[&dyn std::fmt::Display] = &[
        &"read",
        &target.trid,
        &"--offset",
        &(1_048_576 + 512),
        &"--length",
        &(1_000 * 512),
        &"-g",
        &"-G",
        &"--queue-depth",
        &1,
    ];
    assert!(nvmf(line).ok() == data[512..1001 * 512], "a part differs");
}

#[test]
fn files_go_in_and_out() {
    let target = target();
    let directory = std::env::temp_dir().join(format!("nvmf-cli-files-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let (input, output) = (directory.join("in"), directory.join("out"));
    let data = noise(1 << 20, 2);
    fs::write(&input, &data).unwrap();
    nvmf(&[&"write", &target.trid, &"--nsid", &2, &"--input", &input.display()]).ok();
    let printed = nvmf(&[&"read", &target.trid, &"--nsid", &2, &"--output", &output.display()]).ok();
    assert!(printed.is_empty());
    assert!(fs::read(&output).unwrap() == data, "data differ");
    // One block more than there is room for: nothing is written.
    let mut longer = noise((1 << 20) + 4096, 3);
    fs::write(&input, &longer).unwrap();
    let line = nvmf(&[&"write", &target.trid, &"--nsid", &2, &"--input", &input.display()]).failed(2);
    assert!(line.contains("has 1052672 bytes, but namespace 2 only has 1048576"), "{line}");
    assert!(line.ends_with("; nothing was written"), "{line}");
    // A partial block: nothing is written either.
    longer.truncate(5000);
    fs::write(&input, &longer).unwrap();
    let line = nvmf(&[&"write", &target.trid, &"--nsid", &2, &"--input", &input.display()]).failed(2);
    assert!(
        line.contains("has 5000 bytes, 1 whole block of 4096 bytes and 904 bytes more; nothing was written"),
        "{line}"
    );
    assert!(nvmf(&[&"read", &target.trid, &"--nsid", &2]).ok() == data, "something was written");
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn the_last_block_is_padded_only_on_demand() {
    let target = target();
    nvmf_with(&[&"write", &target.trid], &[0xaa; 2048]).ok();
    let line = nvmf_with(&[&"write", &target.trid], b"hello").failed(2);
    assert!(
        line.contains("has 5 bytes, 0 whole blocks of 512 bytes and 5 bytes more; nothing was written"),
        "{line}"
    );
    assert!(line.contains("--pad-zeroes"), "{line}");
    nvmf_with(&[&"write", &target.trid, &"--pad-zeroes"], b"hello").ok();
    let data = nvmf(&[&"read", &target.trid, &"--length", &1024]).ok();
    assert_eq!(data[..5], *b"hello");
    assert!(data[5..512].iter().all(|&byte| byte == 0));
    assert!(data[512..].iter().all(|&byte| byte == 0xaa));
}

#[test]
fn input_that_ends_badly_is_written_up_to_there() {
    let target = target();
    let data = noise((1 << 20) + 100, 4);
    let line = nvmf_with(&[&"write", &target.trid], &data).failed(2);
    assert!(
        line.contains(
            "2,048 whole blocks of 512 bytes and 100 bytes more; the whole blocks before were written"
        ),
        "{line}"
    );
    assert!(nvmf(&[&"read", &target.trid, &"--length", &"1M"]).ok() == data[..1 << 20], "data differ");
    // Endless input: the namespace is full at some time.
    let line = nvmf_with(&[&"write", &target.trid, &"--nsid", &2], &vec![1; (1 << 20) + 1]).failed(2);
    assert!(line.contains("has more than 1048576 bytes"), "{line}");
    assert!(nvmf(&[&"read", &target.trid, &"--nsid", &2]).ok().iter().all(|&byte| byte == 1));
    let line = nvmf_with(&[&"write", &target.trid], b"").failed(1);
    assert!(line.contains("standard input is empty: nothing was written"), "{line}");
}

#[test]
fn ranges_are_checked() {
    let target = target();
    let cases: &[(&[&str], &str)] = &[
        (
            &["--offset", "100"],
            "--offset 100 is not a multiple of the block size of namespace 1, 512 bytes; try 0 or 512",
        ),
        (
            &["--length", "1000"],
            "--length 1000 is not a multiple of the block size of namespace 1, 512 bytes; try 512 or 1024",
        ),
        (&["--nsid", "2", "--length", "512"], "namespace 2, 4096 bytes; try 0 or 4096"),
        (&["--offset", "8M"], "is the end of namespace 1: nothing to read"),
        (
            &["--offset", "9M", "--length", "512"],
            "reach beyond the end of namespace 1, which has 8388608 bytes (8 MiB)",
        ),
        (&["--offset", "0xfffffffffffffe00", "--length", "1K"], "reach beyond the end"),
        (&["--nsid", "9"], "--nsid 9: nqn.2024-01.com.example:cli has no such namespace; it has 1, 2"),
    ];
    for (options, expected) in cases {
        let mut line: Vec<&dyn std::fmt::Display> = vec![&"read", &target.trid];
        line.extend(options.iter().map(|option| option as &dyn std::fmt::Display));
        let line = nvmf(&line).failed(2);
        assert!(line.contains(expected), "{options:?}: {line}");
    }
}

#[test]
fn closed_pipe_is_no_failure() {
    let target = target();
    let mut child = Command::new(env!("CARGO_BIN_EXE_nvmf"))
        .args(["read", &target.trid])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

#[test]
fn verify_asks_first() {
    let target = target();
    let line = nvmf(&[&"verify", &target.trid, &"--length", &"1M"]).failed(2);
    assert!(line.contains("verify overwrites 1 MiB of namespace 1 from offset 0; add --yes"), "{line}");
    let line = nvmf(&[&"perf", &target.trid, &"-w", &"randwrite"]).failed(2);
    assert!(line.contains("randwrite overwrites namespace 1; add --yes"), "{line}");
    assert_eq!(target.loopback.stats().connections, 0, "it should not even connect");
}

#[test]
fn verify_finds_all_well() {
    let target = target();
    let text = nvmf(&[&"verify", &target.trid, &"--length", &"4MiB", &"--seed", &42, &"--yes"]).text();
    assert!(
        text.starts_with("verified  4 MiB in blocks of 4 KiB, seed 42: every byte matches\nwrite "),
        "{text}"
    );
    let line: &[&dyn std::fmt::Display] = &[
        &"verify",
        &target.trid,
        &"--offset",
        &"1M",
        &"--length",
        &"2M",
        &"--block-size",
        &"64K",
        &"--queue-depth",
        &3,
        &"-g",
        &"-G",
        &"--yes",
    ];
    nvmf(line).ok();
    // Outside of the second range the first pattern is still there.
    let data = nvmf(&[&"read", &target.trid, &"--length", &"4M"]).ok();
    assert_eq!(data[4096..4112], [4096u64.to_le_bytes(), 42u64.to_le_bytes()].concat());
    assert_eq!(data[1 << 20..(1 << 20) + 16], [(1u64 << 20).to_le_bytes(), 1u64.to_le_bytes()].concat());
}

#[test]
fn verify_finds_what_is_wrong() {
    let target = target();
    target.loopback.faults().push(Rule::from(Fault::CorruptData).io().opcode(NvmOpcode::READ.0).after(17));
    let line = nvmf(&[&"verify", &target.trid, &"--length", &"1M", &"--yes"]).failed(1);
    assert!(line.contains("verification failed: first difference at byte offset "), "{line}");
    assert!(line.contains(": expected ") && line.contains(" but got "), "{line}");
    assert_eq!(target.loopback.faults().fired(), 1);
}

#[test]
fn failing_io_is_named() {
    let target = target();
    let rule =
        |opcode: NvmOpcode, status| Rule::from(Fault::CompleteWith(status)).io().opcode(opcode.0).after(2);
    // Media error: unrecovered read error.
    target.loopback.faults().push(rule(NvmOpcode::READ, Status::new(2, 0x81)));
    let line = nvmf(&[&"read", &target.trid, &"--output", &"/dev/null"]).failed(1);
    assert!(line.contains("reading 128 KiB at byte offset 262144 of namespace 1: "), "{line}");
    assert!(line.contains("(02h/81h)"), "{line}");
    target.loopback.faults().push(rule(NvmOpcode::WRITE, Status::new(2, 0x80)));
    let line = nvmf_with(&[&"write", &target.trid], &noise(1 << 20, 1)).failed(1);
    assert!(line.contains("writing 128 KiB at byte offset 262144 of namespace 1: "), "{line}");
    target.loopback.faults().push(rule(NvmOpcode::READ, Status::new(2, 0x81)));
    let run = nvmf(&[&"perf", &target.trid, &"-t", &"0.2"]);
    assert!(String::from_utf8_lossy(&run.stdout).contains("\n  errors      1\n"), "{run:?}");
    let line = run.failed(1);
    assert!(line.contains("nvmf: 1 of ") && line.contains("I/Os failed; the first: "), "{line}");
}

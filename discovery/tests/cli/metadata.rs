//! Namespaces with metadata, over TCP where it is part of the blocks and over vfio-user where it is apart.

use std::fs;
use std::path::{Path, PathBuf};

use nvmf_core::{Protection, ProtectionFormat};
use nvmf_loopback::{
    Guard, Loopback, MetadataPlace, Namespace, ProtectionType, SubsystemBuilder, VfioUserServer,
};

use crate::support::{NQN, noise, nvmf, nvmf_with};

const CHECK: Protection = Protection::NONE.check_guard().check_ref_tag().check_app_tag(0x1234, 0xffff);

/// A target that is reached both ways, and a directory of the test.
struct Target {
    tcp: String,
    vfio_user: String,
    directory: PathBuf,
    _server: VfioUserServer,
    _loopback: Loopback,
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Namespaces with blocks of 512 + 8 bytes of type 1, 4096 + 16 without protection, and 512 bytes.
fn target(name: &str) -> Target {
    let separate = MetadataPlace::Separate;
    let subsystem = SubsystemBuilder::new(NQN)
        .namespace(Namespace::memory(4 << 20).metadata(8, separate).protection(ProtectionType::Type1))
        .namespace(Namespace::memory(4 << 20).block_size(4096).metadata(16, separate))
        .namespace(Namespace::memory(1 << 20));
    let loopback = Loopback::builder().subsystem(subsystem).listen_tcp("127.0.0.1:0").build().unwrap();
    let directory = std::env::temp_dir().join(format!("nvmf-cli-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let socket = directory.join("cntrl");
    let server = VfioUserServer::listen(&loopback.pci_function(NQN).unwrap(), &socket).unwrap();
    Target {
        tcp: format!("nvme+tcp://{}/{NQN}", loopback.tcp_addrs()[0]),
        vfio_user: format!("trtype:vfiouser traddr:{}", socket.display()),
        directory,
        _server: server,
        _loopback: loopback,
    }
}

fn format() -> ProtectionFormat {
    ProtectionFormat::new(ProtectionType::Type1, Guard::Crc16, 512, 8).unwrap()
}

fn file(directory: &Path, name: &str, bytes: &[u8]) -> String {
    let path = directory.join(name);
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn data_and_metadata_go_apart_whatever_the_format() {
    let target = target("metadata-apart");
    let out = target.directory.join("out").display().to_string();
    for (seed, trid) in [(1, &target.tcp), (2, &target.vfio_user)] {
        // More than one I/O, and the second namespace, whose metadata is the caller's alone.
        let (data, metadata) = (noise(1 << 20, seed), noise(256 * 16, seed + 10));
        let metadata_file = file(&target.directory, "in", &metadata);
        let line: &[&dyn std::fmt::Display] = &[
            &"write",
            trid,
            &"--nsid",
            &2,
            &"--offset",
            &"64KiB",
            &"--metadata",
            &metadata_file,
            &"--metadata-size",
            &4096,
        ];
        nvmf_with(line, &data).ok();
        for trid in [&target.tcp, &target.vfio_user] {
            let line: &[&dyn std::fmt::Display] =
                &[&"read", trid, &"--nsid", &2, &"--offset", &"64K", &"--length", &"1M", &"--metadata", &out];
            assert!(nvmf(line).ok() == data, "data differ");
            assert!(fs::read(&out).unwrap() == metadata, "metadata differ");
        }
        // Without a place for it the metadata is dropped.
        let line: &[&dyn std::fmt::Display] =
            &[&"read", trid, &"--nsid", &2, &"--offset", &"64K", &"--length", &"1M"];
        assert!(nvmf(line).ok() == data, "data differ");
    }
}

#[test]
fn protection_is_checked_inserted_and_stripped() {
    let target = target("metadata-protection");
    let out = target.directory.join("out").display().to_string();
    for trid in [&target.tcp, &target.vfio_user] {
        // The controller inserts it.
        let data = noise(300 << 10, 3);
        nvmf_with(&[&"write", trid, &"--offset", &512, &"--prinfo", &8, &"--app-tag", &"0x1234"], &data).ok();
        let read: &[&dyn std::fmt::Display] = &[&"read", trid, &"--offset", &512, &"--length", &"300K"];
        let with = |more: &[&'static str]| {
            let more: Vec<&dyn std::fmt::Display> =
                more.iter().map(|word| word as &dyn std::fmt::Display).collect();
            nvmf(&[read, &more].concat())
        };
        assert!(with(&["--prinfo", "15", "--app-tag", "0x1234"]).ok() == data, "data differ");
        let checked =
            nvmf(&[read, &[&"--prinfo", &7, &"--app-tag", &0x1234, &"--metadata", &out]].concat()).ok();
        format().verify(1, &checked, &fs::read(&out).unwrap(), &CHECK).unwrap();
        let line = with(&["--prinfo", "2", "--app-tag", "0x1235"]).failed(1);
        assert!(line.contains("(02h/83h): end-to-end protection: the application tag is wrong"), "{line}");
        assert!(with(&["--prinfo", "2", "--app-tag", "0x1235", "--app-tag-mask", "0xfff0"]).ok() == data);
        // The host makes it, once right and once with an error in the last I/O; the reference tags go on over all I/Os.
        let mut metadata = vec![0; 600 * 8];
        format().generate(1, &data, &mut metadata, &CHECK).unwrap();
        let good = file(&target.directory, "good", &metadata);
        metadata[599 * 8] ^= 1;
        let bad = file(&target.directory, "bad", &metadata);
        let write = |metadata: &String| {
            let line: &[&dyn std::fmt::Display] = &[
                &"write",
                trid,
                &"--offset",
                &512,
                &"--prinfo",
                &7,
                &"--app-tag",
                &0x1234,
                &"--metadata",
                metadata,
                &"--ref-tag",
                &1,
            ];
            nvmf_with(line, &data)
        };
        write(&good).ok();
        let line = write(&bad).failed(1);
        assert!(line.contains("the guard (CRC) of the data is wrong"), "{line}");
    }
}

#[test]
fn what_does_not_fit_the_format_is_refused() {
    let target = target("metadata-refused");
    let short = file(&target.directory, "short", &[0; 8]);
    for trid in [&target.tcp, &target.vfio_user] {
        let cases: &[(&[&str], &str)] = &[
            (
                &["write"],
                "the blocks of namespace 1 carry 8 B of metadata each: give it with --metadata FILE, or have the controller make it with --prinfo 8",
            ),
            (&["write", "--nsid", "2"], "16 B of metadata each: give it with --metadata FILE"),
            (
                &["write", "--metadata", &short],
                "it has 8 bytes, the blocks to be written take 64; nothing was written",
            ),
            (
                &["write", "--metadata", &short, "--metadata-size", "8"],
                "--metadata-size 8: there are 64 bytes of metadata",
            ),
            (&["write", "--metadata", &short, "--prinfo", "8"], "--prinfo 8 and more does not transfer"),
            (&["read", "--nsid", "3", "--metadata", "x"], "--metadata: namespace 3 has no metadata"),
            (
                &["read", "--nsid", "2", "--prinfo", "4"],
                "--prinfo: namespace 2 is not formatted with protection information",
            ),
            (
                &["read", "--nsid", "3", "--ref-tag", "4"],
                "--ref-tag: namespace 3 is not formatted with protection information",
            ),
            (
                &["verify", "--length", "1M", "--yes"],
                "its blocks carry 8 B of metadata, which this command does not handle; `nvmf read`",
            ),
            (&["perf"], "its blocks carry 8 B of metadata"),
        ];
        let input = file(&target.directory, "input", &[0; 4096]);
        for (words, expected) in cases {
            let mut line: Vec<&dyn std::fmt::Display> =
                words[..1].iter().map(|word| word as &dyn std::fmt::Display).collect();
            line.push(trid);
            line.extend(words[1..].iter().map(|word| word as &dyn std::fmt::Display));
            if words[0] == "write" {
                line.extend([&"--input" as &dyn std::fmt::Display, &input]);
            }
            let line = nvmf(&line).failed(2);
            assert!(line.contains(expected), "{words:?}: {line}");
        }
        // From a pipe nobody knows how much there is to come.
        let line = nvmf_with(&[&"write", trid, &"--metadata", &short], &[0; 1024]).failed(1);
        assert!(line.contains("it ends before the data does"), "{line}");
        let long = file(&target.directory, "long", &[0; 17]);
        let line = nvmf_with(&[&"write", trid, &"--metadata", &long], &[0; 1024]).failed(1);
        assert!(line.contains("it has more than the blocks that were written"), "{line}");
    }
}

#[test]
fn formats_are_told() {
    let target = target("metadata-told");
    let text = nvmf(&[&"list", &target.tcp]).text();
    assert!(text.contains("  512   B +  8 B  ") && text.contains("    4 KiB + 16 B  "), "{text}");
    let text = nvmf(&[&"identify", &target.tcp, &"--nsid", &1]).text();
    assert!(text.contains("Format                 512   B +  8 B\n"), "{text}");
    assert!(text.contains("Metadata               8 B per block, at the end of its data\n"), "{text}");
    assert!(
        text.contains("Protection             type 1, 16-bit guard, in the last 8 B of the metadata\n"),
        "{text}"
    );
    let json = nvmf(&[&"identify", &target.vfio_user, &"-o", &"json"]).json();
    let ns = &json["namespaces"][0];
    assert_eq!((&ns["metadata_extended"], &ns["guard_bits"]), (&false.into(), &16.into()));
    assert_eq!((&ns["dps"], &ns["flbas"], &ns["lbafs"][0]["ms"]), (&1.into(), &0.into(), &8.into()));
}

//! One program for all harnesses: `NVMF_FUZZ_TARGET` names the one that libFuzzer drives.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use nvmf_tests::fuzz::{TARGETS, Target};

fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("NVMF_FUZZ_TARGET").unwrap_or_default();
        TARGETS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| {
            let known: Vec<_> = TARGETS.iter().map(|(known, _)| *known).collect();
            eprintln!("NVMF_FUZZ_TARGET={name:?}: known are {}", known.join(", "));
            std::process::exit(2)
        })
    })
}

fuzz_target!(|input: &[u8]| (target().1)(input));

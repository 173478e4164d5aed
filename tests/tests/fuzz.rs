//! The fuzz harnesses over their corpora and over seeded noise. `cargo xtask fuzz` gives them to libFuzzer.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use nvmf_tests::fuzz::{TARGETS, mutate};
use nvmf_tests::rng::Rng;

/// Inputs made of each corpus.
const NOISE: u64 = 4000;

fn corpus(name: &str) -> Result<Vec<Vec<u8>>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    ensure!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|path| std::fs::read(path).with_context(|| path.display().to_string())).collect()
}

#[test]
fn every_corpus_and_noise() -> Result<()> {
    std::thread::scope(|scope| {
        let runs: Vec<_> = TARGETS
            .iter()
            .map(|&(name, harness)| {
                let run = move || -> Result<()> {
                    let seeds = corpus(name)?;
                    for seed in &seeds {
                        harness(seed);
                    }
                    let mut rng = Rng::new(0x5eed_0000 + name.len() as u64);
                    for _ in 0..NOISE {
                        let input = mutate(&seeds, &mut rng);
                        // A panic shows the assertion; this shows the input.
                        if let Err(panic) = std::panic::catch_unwind(|| harness(&input)) {
                            eprintln!("{name} fails on {input:02x?}");
                            std::panic::resume_unwind(panic);
                        }
                    }
                    Ok(())
                };
                (name, scope.spawn(run))
            })
            .collect();
        for (name, run) in runs {
            match run.join() {
                Ok(outcome) => outcome.with_context(|| name.to_owned())?,
                Err(_) => anyhow::bail!("{name}: see above"),
            }
        }
        Ok(())
    })
}

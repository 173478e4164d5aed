//! Random I/O under random harm, for as long as asked. `cargo xtask soak` runs it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nvmf_tests::program;
use nvmf_tests::soak::{Report, SLOW, Soak};

const HELP: &str = "soak [--seconds N] [--seed S] [--workers N] [--pace MILLISECONDS]

Random I/O over TCP on loopback through a proxy that cuts, resets, stalls, delays and (where digests are on) damages the
connections, at most a pace apart. Fails when an I/O ends twice or never, a read cannot be explained, or anything leaks.";

fn main() -> ExitCode {
    let outcome = options().and_then(|soak| soak.map(|soak| run(&soak)).transpose());
    program::ended("soak", outcome.map(drop))
}

fn options() -> Result<Option<Soak>> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut soak = Soak {
        time: Duration::from_secs(60),
        seed: u64::from(now.subsec_nanos()) ^ now.as_secs(),
        workers: 4,
        pace: Duration::from_secs(1),
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        if matches!(name.as_str(), "-h" | "--help") {
            println!("{HELP}");
            return Ok(None);
        }
        let value = args.next().with_context(|| format!("{name} needs a value"))?;
        let number: u64 = value.parse().with_context(|| format!("{name} {value}: not a number"))?;
        match name.as_str() {
            "--seconds" => soak.time = Duration::from_secs(number),
            "--seed" => soak.seed = number,
            "--workers" => soak.workers = usize::try_from(number)?.clamp(1, 64),
            "--pace" => soak.pace = Duration::from_millis(number.max(1)),
            _ => bail!("unknown option {name}\n\n{HELP}"),
        }
    }
    Ok(Some(soak))
}

fn run(soak: &Soak) -> Result<()> {
    println!("{} s, {} workers, seed {}", soak.time.as_secs(), soak.workers, soak.seed);
    let report = soak.run()?;
    print(&report);
    Ok(())
}

fn print(r: &Report) {
    println!(
        "I/Os               {} ({} succeeded, {} lost with their connection, {} not sent or refused while it was away)",
        r.submitted, r.succeeded, r.lost, r.not_sent
    );
    println!("blocks read        {}, all explained", r.blocks_read);
    println!("writes unanswered  {} ({} reads told what became of one)", r.unknown_writes, r.resolved);
    println!(
        "harm               {} acts; attached {} times, {} attempts failed",
        r.harm, r.attached, r.refused
    );
    println!(
        "recovery policy    {} of these times; connected again {} times on its own",
        r.persistent, r.reconnected
    );
    println!("longest call       process_completions {:?}, submit {:?}", r.longest_poll, r.longest_submit);
    println!(
        "of any one call    {:?} of work, {:?} waiting for a processor, {:?} asleep ({} slept for more than {SLOW:?})",
        r.longest_work, r.longest_preempted, r.longest_sleep, r.slept
    );
    println!("open files         {} before, {} after", r.files[0], r.files[1]);
    println!(
        "resident memory    {} KiB after a quarter of the time, {} KiB at the end",
        r.resident[0], r.resident[1]
    );
}

//! Drives a controller until it is taken away, and again when it is back: every I/O has to end exactly once, the remove callback
//! has to be called once, and what was written with success has to be there afterwards.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::{
    Callbacks, Completion, Controller, Driver, IoBuf, IoQpair, IoQpairOptions, Namespace, TransportId,
};
use nvmf_tests::program;
use nvmf_tests::rng::Rng;
use nvmf_tests::workload::{copy_in, copy_out, fill_block};

const HELP: &str = "\
hotplug_load TRID [--nsid N] [--offset BYTES] [--length BYTES] [--interrupt] --content FILE

Reads and writes a part of a namespace, which must be all zeroes, until the controller is gone; waits until it can be attached
again; checks every block; works on for a moment; and leaves in FILE what that part of the namespace holds then. Prints
`running` when I/O is under way, and `gone` when everything has ended.
";

/// Longest wait for anything that has to happen.
const DEADLINE: Duration = Duration::from_secs(120);
/// Longest wait for the controller's return, which somebody else sees to.
const RETURN_DEADLINE: Duration = Duration::from_secs(300);
/// Bytes of an I/O.
const IO: u64 = 4096;
/// I/Os outstanding on a queue pair.
const DEPTH: usize = 32;
/// Queue pairs with I/O; one more has none and sleeps.
const LOADED: u64 = 2;

struct Args {
    trid: TransportId,
    nsid: u32,
    offset: u64,
    length: u64,
    interrupt: bool,
    content: PathBuf,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let (mut trid, mut content, mut interrupt) = (None, None, false);
        let (mut nsid, mut offset, mut length) = (1, 0, 8 << 20);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("`{word}` needs a value"));
            match word.as_str() {
                "--nsid" => nsid = value()?.parse().context("--nsid")?,
                "--offset" => offset = value()?.parse().context("--offset")?,
                "--length" => length = value()?.parse().context("--length")?,
                "--content" => content = Some(value()?.into()),
                "--interrupt" => interrupt = true,
                option if option.starts_with('-') => bail!("unknown option `{option}`\n\n{HELP}"),
                text => trid = Some(text.parse().with_context(|| format!("`{text}`"))?),
            }
        }
        let (Some(trid), Some(content)) = (trid, content) else { bail!("{HELP}") };
        ensure!(offset % IO == 0 && length % (IO * LOADED) == 0 && length > 0, "not made of whole I/Os");
        Ok(Self { trid, nsid, offset, length, interrupt, content })
    }
}

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("hotplug_load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let driver = program::driver();
    let removed = Arc::new(AtomicUsize::new(0));
    let controller = attach(&driver, args, &removed)?.context("there is no controller to attach")?;
    let ns = namespace(&controller, args)?;
    let mut shares = Share::all(args, &ns);

    let progress = AtomicU64::new(0);
    let began = Instant::now();
    let idle = std::thread::scope(|scope| -> Result<()> {
        let loads: Vec<_> = shares
            .iter_mut()
            .map(|share| scope.spawn(|| share.load(&controller, &ns, args.interrupt, None, &progress)))
            .collect();
        let idle = scope.spawn(|| idle(&controller));
        while progress.load(Ordering::Relaxed) < 200 && !idle.is_finished() {
            if began.elapsed() > DEADLINE {
                say("hotplug_load: no progress");
                // The loading threads would wait for the loss of the controller.
                std::process::exit(1);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        say("running");
        for load in loads {
            load.join().unwrap_or_else(|_| bail!("a loading thread panicked"))?;
        }
        idle.join().unwrap_or_else(|_| bail!("the idle thread panicked"))
    });
    idle?;
    let (submitted, succeeded, failed) = Share::counts(&shares);
    ensure!(submitted == succeeded + failed, "{submitted} submitted, {succeeded} succeeded, {failed} failed");
    ensure!(
        failed > 0 && succeeded > 0,
        "{succeeded} I/Os succeeded and {failed} failed: no removal under load"
    );

    until("the remove callback", || removed.load(Ordering::SeqCst) > 0)?;
    ensure!(controller.is_failed(), "the controller is lost and does not know it");
    drop((ns, controller));
    ensure!(driver.controllers().is_empty(), "a lost controller is still attached: {driver:?}");
    until("every buffer's return", || driver.pool().stats().outstanding == 0)?;
    let in_doubt: usize = shares.iter().map(|share| share.in_doubt.len()).sum();
    say(&format!(
        "gone: {submitted} I/Os, of which {succeeded} succeeded and {failed} failed ({in_doubt} writes in doubt); remove callback \
         called {} time",
        removed.load(Ordering::SeqCst)
    ));

    let began = Instant::now();
    let controller = loop {
        match attach(&driver, args, &removed) {
            Ok(Some(controller)) => break controller,
            Ok(None) => {}
            Err(error) if began.elapsed() > RETURN_DEADLINE => {
                return Err(error.context("it did not come back"));
            }
            Err(_) => {}
        }
        ensure!(began.elapsed() < RETURN_DEADLINE, "it did not come back");
        std::thread::sleep(Duration::from_millis(200));
    };
    let ns = namespace(&controller, args)?;
    for share in &mut shares {
        share.check(&controller, &ns)?;
    }
    std::thread::scope(|scope| -> Result<()> {
        let load = |share| {
            scope.spawn(|| Share::load(share, &controller, &ns, args.interrupt, Some(100), &progress))
        };
        let loads: Vec<_> = shares.iter_mut().map(load).collect();
        for load in loads {
            load.join().unwrap_or_else(|_| bail!("a loading thread panicked"))?;
        }
        Ok(())
    })?;
    for share in &mut shares {
        share.check(&controller, &ns)?;
    }
    controller.detach()?;
    ensure!(removed.load(Ordering::SeqCst) == 1, "the remove callback was called {removed:?} times");

    let mut content = Vec::with_capacity(args.length as usize);
    shares.iter().for_each(|share| share.write_content(&mut content));
    std::fs::write(&args.content, content).with_context(|| format!("write {}", args.content.display()))?;
    let (blocks, in_all) = shares.iter().fold((0, 0), |(written, all), share| {
        (written + share.versions.iter().filter(|&&version| version > 0).count(), all + share.versions.len())
    });
    say(&format!("back: {blocks} of {in_all} blocks had been written, all are as they must be"));
    Ok(())
}

fn say(line: &str) {
    println!("{line}");
    // Whoever waits for it reads a file.
    let _ = std::io::stdout().flush();
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !is_so() {
        ensure!(began.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Probes the one address. None when nothing is there.
fn attach(driver: &Driver, args: &Args, removed: &Arc<AtomicUsize>) -> Result<Option<Controller>> {
    let (mut attached, mut failure) = (None, None);
    let removed = Arc::clone(removed);
    let (expected, options) = (args.trid.clone(), program::options(args.interrupt));
    let callbacks = Callbacks::new()
        .options(options)
        .attach(|controller| attached = Some(controller))
        .attach_fail(|_, error| failure = Some(error.clone()))
        .remove(move |trid| {
            assert_eq!(*trid, expected);
            removed.fetch_add(1, Ordering::SeqCst);
        });
    driver.probe(Some(&args.trid), callbacks)?;
    match failure {
        Some(error) => Err(error.into()),
        None => Ok(attached),
    }
}

fn namespace(controller: &Controller, args: &Args) -> Result<Namespace> {
    let ns = controller.namespace(args.nsid).with_context(|| format!("no namespace {}", args.nsid))?;
    ensure!(
        args.offset + args.length <= ns.size() && u64::from(ns.block_size()) <= IO,
        "it does not fit: {ns:?}"
    );
    Ok(ns)
}

/// A queue pair without I/O, asleep most of the time, has to learn of the loss too.
fn idle(controller: &Controller) -> Result<()> {
    let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
    loop {
        match qpair.process_completions(0, |_| {}) {
            Ok(_) => qpair.wait(Duration::from_secs(1))?,
            Err(_) => return Ok(()),
        };
    }
}

/// One thread's part of the namespace and what is known of it.
struct Share {
    first_block: u64,
    block_size: usize,
    /// Version of each block: the I/O that wrote it last, 0 when none did.
    versions: Vec<u64>,
    /// By first block of an I/O, relative: writes that failed, which may have happened or not, block by block.
    in_doubt: HashMap<u64, u64>,
    rng: Rng,
    submitted: u64,
    succeeded: u64,
    failed: u64,
}

impl Share {
    fn all(args: &Args, ns: &Namespace) -> Vec<Self> {
        let block = u64::from(ns.block_size());
        let blocks = args.length / LOADED / block;
        let share = |index| Self {
            first_block: args.offset / block + index * blocks,
            block_size: block as usize,
            versions: vec![0; blocks as usize],
            in_doubt: HashMap::new(),
            rng: Rng::new(index + 1),
            submitted: 0,
            succeeded: 0,
            failed: 0,
        };
        (0..LOADED).map(share).collect()
    }

    fn counts(shares: &[Self]) -> (u64, u64, u64) {
        shares
            .iter()
            .fold((0, 0, 0), |(a, b, c), share| (a + share.submitted, b + share.succeeded, c + share.failed))
    }

    fn blocks_per_io(&self) -> u64 {
        IO / self.block_size as u64
    }

    /// Reads and writes at random until the queue pair is lost, or until `limit` I/Os have succeeded.
    fn load(
        &mut self,
        controller: &Controller,
        ns: &Namespace,
        interrupt: bool,
        limit: Option<u64>,
        progress: &AtomicU64,
    ) -> Result<()> {
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        // By first block: the version that is written, none for a read.
        let mut pending: HashMap<u64, Option<u64>> = HashMap::new();
        let (mut done, mut lost, mut began_to_fail) = (Vec::new(), None, None);
        let mut left = limit.unwrap_or(u64::MAX);
        while lost.is_none() && (left > 0 || !pending.is_empty()) {
            while left > 0 && pending.len() < DEPTH && lost.is_none() {
                let slot =
                    self.rng.below(self.versions.len() as u64 / self.blocks_per_io()) * self.blocks_per_io();
                if pending.contains_key(&slot) || self.in_doubt.contains_key(&slot) {
                    continue;
                }
                match self.submit(&mut qpair, ns, slot)? {
                    Some(version) => drop(pending.insert(slot, version)),
                    // Refused: what there is to say about it comes with the next poll.
                    None => break,
                }
                left -= 1;
            }
            match qpair.process_completions(0, |completion| done.push(completion)) {
                Ok(0) if interrupt => drop(qpair.wait(Duration::from_secs(1))?),
                Ok(0) => std::thread::yield_now(),
                Ok(_) => {}
                Err(error) => lost = Some(error),
            }
            for completion in done.drain(..) {
                let slot = completion.user_data;
                let version = pending
                    .remove(&slot)
                    .with_context(|| format!("the I/O at {slot} completed twice, or nobody submitted it"))?;
                if self.completed(slot, version, &completion)? {
                    progress.fetch_add(1, Ordering::Relaxed);
                } else {
                    began_to_fail.get_or_insert_with(Instant::now);
                }
            }
            if let Some(began) = began_to_fail {
                ensure!(began.elapsed() < DEADLINE, "I/Os fail, but the queue pair is said to be well");
            }
        }
        let Some(error) = lost else { return Ok(()) };
        ensure!(limit.is_none(), "the queue pair was lost: {error}");
        ensure!(pending.is_empty(), "{} I/Os never completed", pending.len());
        ensure!(qpair.outstanding() == 0, "{} operations left over", qpair.outstanding());
        // Nothing completes any more, and nothing is taken on.
        let mut more = 0;
        ensure!(
            qpair.process_completions(0, |_| more += 1).is_err() && more == 0,
            "{more} I/Os completed again"
        );
        let buf = qpair.alloc(IO as usize)?;
        let Err(refused) = qpair.read(ns, self.first_block, buf, 0) else {
            bail!("a lost queue pair takes I/Os")
        };
        ensure!(refused.buf.len() == IO as usize, "the buffer of a refused I/O did not come back");
        Ok(())
    }

    /// Submits an I/O at a relative block; returns the version it writes, if it writes. `None` when it was refused.
    fn submit(&mut self, qpair: &mut IoQpair, ns: &Namespace, slot: u64) -> Result<Option<Option<u64>>> {
        let version = (self.rng.below(2) == 0).then_some(self.submitted + 1);
        let mut buf = IoBuf::from(qpair.alloc(IO as usize)?);
        let slba = self.first_block + slot;
        let accepted = if let Some(version) = version {
            copy_in(&mut buf, &self.data(slot, |_| version));
            qpair.write(ns, slba, buf, slot)
        } else {
            qpair.read(ns, slba, buf, slot)
        };
        if let Err(refused) = accepted {
            ensure!(!refused.buf.is_empty(), "the buffer of a refused I/O did not come back");
            return Ok(None);
        }
        self.submitted += 1;
        Ok(Some(version))
    }

    /// Takes note of a completion. Returns whether it was a success.
    fn completed(&mut self, slot: u64, version: Option<u64>, completion: &Completion) -> Result<bool> {
        ensure!(completion.buf.len() == IO as usize, "the buffer came back with another length");
        if completion.result.is_err() {
            self.failed += 1;
            if let Some(version) = version {
                self.in_doubt.insert(slot, version);
            }
            return Ok(false);
        }
        self.succeeded += 1;
        let blocks = slot as usize..(slot + self.blocks_per_io()) as usize;
        match version {
            Some(version) => self.versions[blocks].fill(version),
            None => {
                let expected = self.data(slot, |block| self.versions[block]);
                ensure!(
                    copy_out(&completion.buf) == expected,
                    "block {} and after: other data",
                    self.first_block + slot
                );
            }
        }
        Ok(true)
    }

    /// What the blocks of an I/O hold, by version of each.
    fn data(&self, slot: u64, version: impl Fn(usize) -> u64) -> Vec<u8> {
        let mut data = vec![0; IO as usize];
        for (relative, block) in (slot as usize..).zip(data.chunks_mut(self.block_size)) {
            match version(relative) {
                // Nobody has written it, and it was all zeroes.
                0 => block.fill(0),
                version => fill_block(block, self.first_block + relative as u64, version),
            }
        }
        data
    }

    /// Reads everything. What is in doubt is in doubt no more.
    fn check(&mut self, controller: &Controller, ns: &Namespace) -> Result<()> {
        let mut qpair = controller.alloc_io_qpair(&IoQpairOptions::default())?;
        const AT_ONCE: usize = 256 << 10;
        let mut content = Vec::with_capacity(self.versions.len() * self.block_size);
        for first in (0..self.versions.len()).step_by(AT_ONCE / self.block_size) {
            let left = (self.versions.len() - first) * self.block_size;
            let buf = qpair.alloc(AT_ONCE.min(left))?;
            content.extend_from_slice(&qpair.read_blocking(ns, self.first_block + first as u64, buf)?);
        }
        for (slot, buf) in (0..).step_by(self.blocks_per_io() as usize).zip(content.chunks(IO as usize)) {
            let old = self.data(slot, |block| self.versions[block]);
            let new = self.in_doubt.get(&slot).map(|&version| (version, self.data(slot, |_| version)));
            for (i, found) in buf.chunks(self.block_size).enumerate() {
                let (at, relative) = (i * self.block_size, slot as usize + i);
                let is = |data: &[u8]| data[at..at + self.block_size] == *found;
                match &new {
                    _ if is(&old) => {}
                    Some((version, data)) if is(data) => self.versions[relative] = *version,
                    _ => bail!(
                        "block {} has lost version {}: it begins with {:02x?}",
                        self.first_block + relative as u64,
                        self.versions[relative],
                        &found[..16]
                    ),
                }
            }
        }
        self.in_doubt.clear();
        Ok(())
    }

    fn write_content(&self, into: &mut Vec<u8>) {
        for slot in (0..self.versions.len() as u64).step_by(self.blocks_per_io() as usize) {
            into.extend_from_slice(&self.data(slot, |block| self.versions[block]));
        }
    }
}

//! Tries memory of dma-bufs with a controller that exists. What its namespace holds is lost.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvmf_core::dma::{DeviceBuf, DmaBuf, DmaBufError};
use nvmf_core::{Controller, DmaRegion, ErrorKind, IoBuf, IoCommand, IoQpair, Namespace, TransportId};
use nvmf_tests::dma_buf::{begin, system_heap, udmabuf};
use nvmf_tests::program;
use nvmf_tests::rng::Rng;

const HELP: &str = "\
dma_buf TRID NSID

Writes and reads memory of dma-bufs (/dev/udmabuf, and the system's DMA heap): as it is, which a controller's transport may
refuse with an error that costs nothing else, and opened to the processor. OVERWRITES the first 2 MiB of the namespace.
Prints what came of it.
";

/// Of a dma-buf, and of what is used of it.
const WHOLE: usize = 1 << 20;
const PART: usize = 512 << 10;
const START: usize = 64 << 10;
/// A command that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    program::by_words("dma_buf", HELP, |words| match words {
        [trid, nsid] => Some(run(trid, nsid)),
        _ => None,
    })
}

fn run(trid: &str, nsid: &str) -> Result<()> {
    let trid: TransportId = trid.parse().with_context(|| format!("`{trid}`"))?;
    let nsid: u32 = nsid.parse().context("NSID")?;
    refusals()?;
    let controller = program::driver().connect(&trid, &program::options(false))?;
    let namespaces = controller.namespaces();
    let ns = namespaces.into_iter().find(|ns| ns.nsid() == nsid).context("there is no such namespace")?;
    let mut qpair = controller.alloc_io_qpair(&nvmf_core::IoQpairOptions::default())?;
    let mut bench = Bench { ns, qpair: &mut qpair, controller: &controller, rng: Rng::new(4711) };

    let (memory, fd) = udmabuf(WHOLE).context("/dev/udmabuf")?;
    bench.as_it_is("udmabuf", fd.try_clone()?, Some(&memory))?;
    bench.opened("udmabuf", fd)?;
    bench.as_it_is("heap", system_heap(WHOLE, true).context("the system's DMA heap")?, None)?;
    bench.opened("heap", system_heap(WHOLE, true)?)?;
    drop(qpair);
    controller.detach()?;
    Ok(())
}

/// What is no memory to work with.
fn refusals() -> Result<()> {
    let (memory, fd) = udmabuf(WHOLE)?;
    let made = |fd: OwnedFd, offset, len| DmaRegion::from_dma_buf(fd, offset, len).map(drop);
    ensure!(matches!(made(memory.into(), 0, WHOLE), Err(DmaBufError::NotADmaBuf)));
    ensure!(matches!(made(system_heap(WHOLE, false)?, 0, WHOLE), Err(DmaBufError::ReadOnly)));
    for (offset, len) in
        [(0, 0), (0, WHOLE + 4096), (4096, WHOLE), (512, 4096), (0, 512), (u64::MAX - 4095, 4096)]
    {
        let refused = made(fd.try_clone()?, offset, len);
        ensure!(
            matches!(refused, Err(DmaBufError::Range { size: 0x10_0000, .. })),
            "{refused:?}: {offset} {len}"
        );
    }
    made(fd, WHOLE as u64 - 4096, 4096)?;
    Ok(())
}

struct Bench<'a> {
    ns: Namespace,
    qpair: &'a mut IoQpair,
    controller: &'a Controller,
    rng: Rng,
}

impl Bench<'_> {
    fn pattern(&mut self) -> Vec<u8> {
        (0..PART).map(|_| self.rng.below(256) as u8).collect()
    }

    /// Data in ordinary memory.
    fn ordinary(&self, bytes: &[u8]) -> Result<DmaBuf> {
        Ok(self.controller.pool().copy_from(bytes)?)
    }

    fn read_ordinary(&mut self) -> Result<DmaBuf> {
        let command = IoCommand::read(&self.ns, 0, self.ordinary(&[0; PART])?);
        self.qpair.execute(command)?.1.into_one().context("the buffer comes back")
    }

    fn write_ordinary(&mut self, bytes: &[u8]) -> Result<()> {
        let command = IoCommand::write(&self.ns, 0, self.ordinary(bytes)?);
        self.qpair.execute(command)?;
        Ok(())
    }

    /// Memory the processor does not access. What is in it is seen by its file, or else when it is opened afterwards.
    fn as_it_is(&mut self, what: &str, fd: OwnedFd, memory: Option<&File>) -> Result<()> {
        let (written, pattern) = (self.pattern(), self.pattern());
        let mut buf = DmaRegion::from_dma_buf(fd, START as u64, PART)?;
        match memory {
            Some(memory) => memory.write_all_at(&written, START as u64)?,
            None => buf = self.fill(buf, &written)?,
        }
        self.write_ordinary(&pattern)?;
        let buf = match self.qpair.submit(IoCommand::write(&self.ns, 0, buf), 0) {
            Ok(_) => self.completion()?.into_device().context("the memory comes back")?,
            Err(refused) => {
                let kind = refused.error.kind();
                ensure!(matches!(kind, ErrorKind::Unsupported(_)), "{}", refused.error);
                println!("{what} as it is: refused: {}", refused.error);
                ensure!(
                    refused.buf.into_device().is_some_and(|buf| buf.len() == PART),
                    "the memory comes back"
                );
                ensure!(
                    self.read_ordinary()?[..] == pattern,
                    "nothing was written, and the queue pair works"
                );
                return Ok(());
            }
        };
        ensure!(self.read_ordinary()?[..] == written, "{what}: other data was written");
        self.write_ordinary(&pattern)?;
        self.qpair.submit(IoCommand::read(&self.ns, 0, buf), 0).map_err(|refused| refused.error)?;
        let buf = self.completion()?.into_device().context("the memory comes back")?;
        let mut found = vec![0; PART];
        match memory {
            Some(memory) => memory.read_exact_at(&mut found, START as u64)?,
            None => found.copy_from_slice(&begin(buf, self.controller.pool())?),
        }
        ensure!(found == pattern, "{what}: other data was read");
        println!("{what} as it is: works");
        Ok(())
    }

    fn fill(&self, buf: DeviceBuf, bytes: &[u8]) -> Result<DeviceBuf> {
        let mut open = begin(buf, self.controller.pool())?;
        open.copy_from_slice(bytes);
        open.end_cpu_access().map_err(|(error, _)| error.into())
    }

    /// Memory opened to the processor, which every transport takes.
    fn opened(&mut self, what: &str, fd: OwnedFd) -> Result<()> {
        let (written, pattern) = (self.pattern(), self.pattern());
        let mut open = begin(DmaRegion::from_dma_buf(fd, START as u64, PART)?, self.controller.pool())?;
        open.copy_from_slice(&written);
        let command = IoCommand::write(&self.ns, 0, open);
        let (_, io) = self.qpair.execute(command)?;
        ensure!(self.read_ordinary()?[..] == written, "{what}: other data was written");
        self.write_ordinary(&pattern)?;
        let (_, io) = self.qpair.execute(IoCommand::read(&self.ns, 0, io))?;
        let open = io.into_one().context("the memory comes back")?;
        ensure!(open[..] == pattern, "{what}: other data was read");
        open.end_cpu_access().map_err(|(error, _)| error)?;
        println!("{what} opened: works");
        Ok(())
    }

    fn completion(&mut self) -> Result<IoBuf> {
        let (mut done, until) = (None, Instant::now() + DEADLINE);
        let done = loop {
            self.qpair.process_completions(1, |completion| done = Some(completion))?;
            match done.take() {
                Some(done) => break done,
                None => ensure!(Instant::now() < until, "no completion within {DEADLINE:?}"),
            }
        };
        done.result.map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(done.buf)
    }
}

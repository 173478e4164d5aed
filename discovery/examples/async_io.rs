//! Futures over a queue pair: 64 blocks written concurrently, read back, compared. No runtime is needed; any would do.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context, Result, ensure};
use nvmf_core::future::{AsyncQpair, block_on};
use nvmf_core::{ControllerOptions, Driver, IoQpairOptions};
use nvmf_loopback::{DEFAULT_NQN, Loopback, Namespace};

/// Polls many futures side by side.
struct All<F: Future>(Vec<Option<Pin<Box<F>>>>, Vec<F::Output>);

impl<F: Future> Future for All<F>
where
    F::Output: Unpin,
{
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        for slot in &mut this.0 {
            if let Some(future) = slot
                && let Poll::Ready(output) = future.as_mut().poll(cx)
            {
                *slot = None;
                this.1.push(output);
            }
        }
        if this.1.len() == this.0.len() { Poll::Ready(std::mem::take(&mut this.1)) } else { Poll::Pending }
    }
}

fn all<F: Future>(futures: impl Iterator<Item = F>) -> All<F> {
    All(futures.map(|f| Some(Box::pin(f))).collect(), Vec::new())
}

fn main() -> Result<()> {
    let target = Loopback::builder().namespace(Namespace::memory(16 << 20)).build()?;
    let driver = Driver::builder().transport(target.transport()).build();
    let controller = driver.connect(&target.trid(DEFAULT_NQN)?, &ControllerOptions::default())?;
    let ns = controller.namespace(1).context("no namespace 1")?;
    let qpair = AsyncQpair::new(controller.alloc_io_qpair(&IoQpairOptions::default())?);

    let work = async {
        let written = all((0..64u64).map(|lba| {
            let (qpair, ns) = (&qpair, &ns);
            async move {
                let mut buf = qpair.alloc(512)?;
                buf.fill(lba as u8);
                qpair.write(ns, lba, buf).await
            }
        }))
        .await;
        for result in written {
            result?;
        }
        qpair.flush(&ns).await?;
        let buf = qpair.read(&ns, 0, qpair.alloc(64 * 512)?).await?;
        ensure!(buf.chunks(512).enumerate().all(|(lba, block)| block.iter().all(|&b| b == lba as u8)));
        Ok(buf.len())
    };
    println!("{} bytes written and read back", block_on(&qpair, pin!(work))??);
    Ok(())
}

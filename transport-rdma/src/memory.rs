//! Registrations of regions: made once per protection domain, shared by all of its queue pairs, ended when nobody uses
//! the region any more.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvmf_core::dma::{DMA_PAGE, RegionId};
use nvmf_core::{DmaRegion, Error, Result};

use crate::provider::{Access, Domain, Registration};
use crate::requirements::locked_memory_limit;

/// Largest transfer of one command, bytes: what any registration holds in one piece, and a keyed descriptor can name.
pub(crate) const MAX_TRANSFER: u32 = 8 << 20;

/// The two keys of a registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Keys {
    pub(crate) local: u32,
    pub(crate) remote: u32,
}

/// A region, registered in windows that overlap by [`MAX_TRANSFER`] where the device takes it in one piece no more.
struct Registered<D: Domain> {
    region: DmaRegion,
    windows: Vec<D::Registration>,
}

/// The registrations of a protection domain.
pub(crate) struct Memory<D: Domain> {
    domain: Arc<D>,
    /// What is registered for.
    access: Access,
    /// Longest registration, a multiple of the page size.
    window: usize,
    regions: Mutex<HashMap<RegionId, Registered<D>>>,
}

/// What a queue pair may remember of a region: keys that hold for all of it.
pub(crate) enum Found {
    /// One registration holds the whole region.
    Whole(Keys),
    /// This one holds the range asked for.
    Part(Keys),
}

impl<D: Domain> Memory<D> {
    pub(crate) fn new(domain: Arc<D>, access: Access) -> Result<Self> {
        let longest = usize::try_from(domain.limits().max_registration).unwrap_or(usize::MAX);
        let window = longest / DMA_PAGE * DMA_PAGE;
        if window < 2 * MAX_TRANSFER as usize {
            return Err(Error::unsupported(format!(
                "the RDMA device {} registers at most {longest} bytes at a time; {} are needed",
                domain.device(),
                2 * MAX_TRANSFER
            )));
        }
        Ok(Self { domain, access, window, regions: Mutex::default() })
    }

    pub(crate) fn domain(&self) -> &Arc<D> {
        &self.domain
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Regions registered.
    #[cfg(test)]
    pub(crate) fn registered(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RegionId, Registered<D>>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys for `len` bytes of a region from `offset` on; at most [`MAX_TRANSFER`] bytes. The region is registered if it is not yet.
    pub(crate) fn keys(&self, region: &DmaRegion, offset: usize, len: usize) -> Result<Found> {
        let mut regions = self.lock();
        if !regions.contains_key(&region.id()) {
            // A region nobody uses will never be used again.
            regions.retain(|_, registered| registered.region.in_use());
            regions.insert(region.id(), self.register(region)?);
        }
        let stride = self.window - MAX_TRANSFER as usize;
        let windows = regions.get(&region.id()).map_or(&[][..], |registered| &registered.windows);
        let index =
            if windows.len() == 1 { 0 } else { (offset / stride).min(windows.len().saturating_sub(1)) };
        let inside = offset + len <= region.len() && offset - index * stride + len <= self.window;
        match windows.get(index).filter(|_| inside) {
            Some(window) => {
                let keys = Keys { local: window.local_key(), remote: window.remote_key() };
                Ok(if windows.len() == 1 { Found::Whole(keys) } else { Found::Part(keys) })
            }
            None => {
                Err(Error::api_misuse(format!("{len} bytes at {offset} of {region:?} are not one transfer")))
            }
        }
    }

    fn register(&self, region: &DmaRegion) -> Result<Registered<D>> {
        let stride = self.window - MAX_TRANSFER as usize;
        let mut windows = Vec::new();
        let mut offset = 0;
        loop {
            let len = (region.len() - offset).min(self.window);
            let window = if region.dma_buf().is_none() {
                let window = self.domain.register(region, offset, len, self.access);
                window.map_err(|error| refused(&*self.domain, len, error))
            } else {
                let window = self.domain.register_dma_buf(region, offset, len, self.access);
                window.map_err(|error| dma_buf_refused(&*self.domain, len, error))
            };
            windows.push(window?);
            if offset + len == region.len() {
                return Ok(Registered { region: region.clone(), windows });
            }
            offset += stride;
        }
    }
}

/// Why memory could not be registered, and what to do about it.
pub(crate) fn refused<D: Domain>(domain: &D, len: usize, error: io::Error) -> Error {
    let locked = matches!(error.kind(), io::ErrorKind::OutOfMemory | io::ErrorKind::PermissionDenied);
    let doing = format!("registering {} KiB of memory with the RDMA device {}", len >> 10, domain.device());
    let error = Error::from(error).doing(doing);
    match locked_memory_limit(Path::new("/")) {
        Some(limit) if locked => error.hint(format!(
            "at most {} KiB of memory may be locked here; raise that: ulimit -l unlimited, or LimitMEMLOCK=infinity in a systemd unit",
            limit >> 10
        )),
        _ => error,
    }
}

/// Why memory of a dma-buf could not be registered, and what to do about it.
fn dma_buf_refused<D: Domain>(domain: &D, len: usize, error: io::Error) -> Error {
    let device = domain.device();
    let tried = format!(
        "registering {} KiB of a dma-buf with the RDMA device {device} (ibv_reg_dmabuf_mr)",
        len >> 10
    );
    match error.raw_os_error() {
        // What libibverbs, and what the kernel says for a driver without it.
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOSYS | libc::ENOTTY) => {
            Error::unsupported(format!("{tried}: its driver takes no dma-bufs ({error})")).hint(
                "use ordinary memory (DmaPool); mlx5 takes dma-bufs since Linux 5.12 and rdma-core 34, newer versions of efa, irdma and bnxt_re do, soft-RoCE does not",
            )
        }
        None if error.kind() == io::ErrorKind::Unsupported => {
            Error::unsupported(format!("{tried}: {error}")).hint("install rdma-core 34 or newer, or use ordinary memory (DmaPool)")
        }
        _ => Error::from(error).doing(tried).hint(
            "the device must reach the exporter's memory (the same IOMMU domain, or peer-to-peer PCIe); ordinary memory (DmaPool) needs nothing of it",
        ),
    }
}

#[cfg(test)]
mod tests;

//! A BAR of a VFIO device: mapped where the kernel allows it, by system calls elsewhere.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError, RwLock};

use nvmf_core::dma::DMA_PAGE;
use nvmf_core::{Error, Result};
use vfio_bindings::bindings::vfio;

use super::capability::{capabilities, u32_at, u64_at};
use crate::device::{BarAccess, BarArea, BarFile};
use crate::mmio::MappedAreas;

/// Where a region of a device is in its file, and which parts of it can be mapped.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Region {
    pub(super) size: u64,
    pub(super) offset: u64,
    /// Offset and length in the region of what can be mapped, whole pages.
    areas: Vec<(u64, u64)>,
}

impl Region {
    /// From `vfio_region_info` and its capabilities: argsz, flags, index, offset of the first capability, size, offset.
    pub(super) fn parse(info: &[u8]) -> Option<Self> {
        let flags = u32_at(info, 4)?;
        let (size, offset) = (u64_at(info, 16)?, u64_at(info, 24)?);
        let mut areas = Vec::new();
        if flags & vfio::VFIO_REGION_INFO_FLAG_MMAP != 0 {
            let first =
                u32_at(info, 12).filter(|_| flags & vfio::VFIO_REGION_INFO_FLAG_CAPS != 0).unwrap_or(0);
            let sparse = capabilities(info, first)
                .find(|&(id, _)| u32::from(id) == vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP);
            match sparse {
                // Kernels that do not let the MSI-X table be mapped leave it out; others say so with a capability of its own.
                Some((_, body)) => {
                    let count = u32_at(body, 8)? as usize;
                    areas.extend(
                        (0..count)
                            .map_while(|i| Some((u64_at(body, 16 + 16 * i)?, u64_at(body, 24 + 16 * i)?))),
                    );
                }
                None => areas.push((0, size)),
            }
        }
        let page = DMA_PAGE as u64;
        areas.retain(|&(at, len)| {
            let inside = at.checked_add(len).is_some_and(|end| end <= size);
            inside && len > 0 && at.is_multiple_of(page) && len.is_multiple_of(page)
        });
        Some(Self { size, offset, areas })
    }
}

impl Region {
    /// What can be mapped of it in another process.
    pub(super) fn lend(&self, device: &File) -> std::io::Result<BarFile> {
        Ok(BarFile { file: device.try_clone()?.into(), areas: self.parts(), len: self.size, sealed: false })
    }

    /// What can be mapped, in the device's file.
    fn parts(&self) -> Vec<BarArea> {
        let part =
            |&(offset, len): &(u64, u64)| BarArea { offset, at: self.offset.saturating_add(offset), len };
        self.areas.iter().map(part).collect()
    }
}

/// The registers of a VFIO device, or other memory behind one of its BARs.
#[derive(Debug)]
pub(super) struct VfioBar {
    size: u64,
    mapped: MappedAreas,
    /// For what is not mapped: the device's file and where the region is in it. Gone once the device is given up.
    file: RwLock<Option<(Arc<File>, u64)>>,
}

impl VfioBar {
    /// Maps what can be mapped.
    pub(super) fn map(device: &Arc<File>, region: &Region) -> Result<Self> {
        let mapped = MappedAreas::map(device.as_fd(), &region.parts())
            .map_err(|error| Error::from(error).doing("mapping a BAR"))?;
        let file = RwLock::new(Some((Arc::clone(device), region.offset)));
        Ok(Self { size: region.size, mapped, file })
    }

    /// Gives the device up for every holder of the registers: they read as all ones from now on.
    pub(super) fn revoke(&self) {
        self.mapped.revoke();
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl BarAccess for VfioBar {
    fn len(&self) -> u64 {
        self.size
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        if let Some((bar, within)) = self.mapped.find(offset) {
            return bar.read32(within);
        }
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let Some((file, base)) = file.as_ref() else { return Ok(u32::MAX) };
        let mut word = [0; 4];
        file.read_exact_at(&mut word, base.saturating_add(offset))
            .map_err(|error| Error::from(error).doing(format!("reading register {offset:#x}")))?;
        Ok(u32::from_le_bytes(word))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        if let Some((bar, within)) = self.mapped.find(offset) {
            return bar.write32(within, value);
        }
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        let Some((file, base)) = file.as_ref() else { return Ok(()) };
        file.write_all_at(&value.to_le_bytes(), base.saturating_add(offset))
            .map_err(|error| Error::from(error).doing(format!("writing register {offset:#x}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, sparse: Option<&[(u64, u64)]>) -> Vec<u8> {
        let mut info = Vec::new();
        let cap = if sparse.is_some() { 32u32 } else { 0 };
        [0, flags, 0, cap].iter().for_each(|word| info.extend(word.to_ne_bytes()));
        [0x4000u64, 0].iter().for_each(|word| info.extend(word.to_ne_bytes()));
        if let Some(areas) = sparse {
            [1 << 16 | 1, 0, areas.len() as u32, 0]
                .iter()
                .for_each(|word: &u32| info.extend(word.to_ne_bytes()));
            areas.iter().for_each(|(at, len)| info.extend([at.to_ne_bytes(), len.to_ne_bytes()].concat()));
        }
        info
    }

    fn file(len: usize) -> Arc<File> {
        let path = std::env::temp_dir().join(format!(
            "nvmf-bar-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, vec![0; len]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        Arc::new(file)
    }

    #[test]
    fn what_can_be_mapped() {
        let areas = |info: &[u8]| Region::parse(info).unwrap().areas;
        assert_eq!(areas(&info(7, None)), [(0, 0x4000)]);
        assert_eq!(areas(&info(3, None)), []);
        let sparse = [(0, 0x2000), (0x3000, 0x1000), (0x3800, 0x1000), (0x4000, 0x1000), (0, 0)];
        assert_eq!(areas(&info(15, Some(&sparse))), [(0, 0x2000), (0x3000, 0x1000)]);
        assert_eq!(Region::parse(&[0; 31]), None);
    }

    #[test]
    fn mapped_and_unmapped_parts_are_one_bar_until_it_is_revoked() {
        let file = file(0x4000);
        let region = Region::parse(&info(15, Some(&[(0, 0x1000), (0x3000, 0x1000)]))).unwrap();
        let bar = VfioBar::map(&file, &region).unwrap();
        for offset in [0, 0xffc, 0x1000, 0x2ffc, 0x3000, 0x3ffc] {
            bar.write32(offset, offset as u32 + 1).unwrap();
            assert_eq!(bar.read32(offset).unwrap(), offset as u32 + 1);
            let mut word = [0; 4];
            file.read_exact_at(&mut word, offset).unwrap();
            assert_eq!(u32::from_le_bytes(word), offset as u32 + 1);
        }
        bar.revoke();
        for offset in [0, 0x1000, 0x3ffc] {
            assert_eq!(bar.read32(offset).unwrap(), u32::MAX);
            bar.write32(offset, 0).unwrap();
        }
        assert_eq!(Arc::strong_count(&file), 1);
    }
}

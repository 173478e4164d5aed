//! A function used by several processes: what the primary lends, and the function as a secondary has it.
//!
//! The primary holds the device, maps memory and makes queues. A secondary has the registers that can be mapped, of which it writes
//! doorbells, and memory of its own, which the primary maps for it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nvmf_core::dma::{DmaGrant, RegionId, SharedMemory};
use nvmf_core::spec::registers::DOORBELL_BASE;
use nvmf_core::transport::{Lender, Primary};
use nvmf_core::{Error, Result};
use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::device::{Bar0, BarAccess, BarArea, BarFile, PciDevice, PciIdentity};
use crate::grant::file_for_primary;
use crate::mmio::{MappedAreas, MappedBar};
use crate::shadow::{LentShadow, ShadowDoorbells};
use crate::shared::Shared;

/// Most parts of a BAR.
const MAX_AREAS: usize = 256;
/// Most bytes of a name.
const MAX_NAME: usize = 1024;
/// Longest BAR.
const MAX_BAR: u64 = 1 << 36;
/// [`Head::flags`]: the file is sealed memory.
const SEALED: u32 = 1;

/// What a secondary is told of a function; its areas and its name follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    vendor: U16,
    device: U16,
    flags: U32,
    len: U64,
    areas: U16,
    name: U16,
    reserved: U32,
    /// Of the shadow doorbells: where the buffers are in their file, and how long each is; all zero without.
    shadow: [U64; 3],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Area {
    offset: U64,
    at: U64,
    len: U64,
}

/// What a secondary has of a function.
struct Lent {
    identity: PciIdentity,
    bar: BarFile,
    /// The controller uses shadow doorbells: so must everybody.
    shadow: Option<LentShadow>,
}

fn encode(identity: &PciIdentity, bar: &BarFile, shadow: Option<&LentShadow>) -> Vec<u8> {
    let mut end = identity.name.len().min(MAX_NAME);
    while !identity.name.is_char_boundary(end) {
        end -= 1;
    }
    let areas = &bar.areas[..bar.areas.len().min(MAX_AREAS)];
    let head = Head {
        vendor: identity.vendor.into(),
        device: identity.device.into(),
        flags: if bar.sealed { SEALED } else { 0 }.into(),
        len: bar.len.into(),
        areas: (areas.len() as u16).into(),
        name: (end as u16).into(),
        reserved: 0.into(),
        shadow: shadow.map_or([0; 3], |shadow| [shadow.doorbells, shadow.events, shadow.len]).map(U64::new),
    };
    let mut bytes = head.as_bytes().to_vec();
    for area in areas {
        let area = Area { offset: area.offset.into(), at: area.at.into(), len: area.len.into() };
        bytes.extend_from_slice(area.as_bytes());
    }
    bytes.extend_from_slice(&identity.name.as_bytes()[..end]);
    bytes
}

/// `None` for what makes no sense.
fn decode(bytes: &[u8], mut fds: Vec<OwnedFd>) -> Option<Lent> {
    let (head, rest) = Head::read_from_prefix(bytes).ok()?;
    let (count, len) = (usize::from(head.areas.get()), head.len.get());
    if count > MAX_AREAS || usize::from(head.name.get()) > MAX_NAME || !(0x1008..=MAX_BAR).contains(&len) {
        return None;
    }
    let (areas, name) = <[Area]>::ref_from_prefix_with_elems(rest, count).ok()?;
    if name.len() != usize::from(head.name.get()) {
        return None;
    }
    let area = |area: &Area| {
        let area = BarArea { offset: area.offset.get(), at: area.at.get(), len: area.len.get() };
        let inside = area.len > 0 && area.offset.checked_add(area.len)? <= len;
        (inside && area.at.checked_add(area.len).is_some()).then_some(area)
    };
    let areas = areas.iter().map(area).collect::<Option<Vec<BarArea>>>()?;
    let name = std::str::from_utf8(name).ok()?.to_owned();
    let identity = PciIdentity { vendor: head.vendor.get(), device: head.device.get(), name };
    let [doorbells, events, shadow_len] = head.shadow.map(U64::get);
    let shadow = if shadow_len == 0 { None } else { Some(fds.pop()?) };
    let shadow = shadow.map(|file| LentShadow { file, doorbells, events, len: shadow_len });
    let file = fds.pop().filter(|_| fds.is_empty())?;
    Some(Lent { identity, bar: BarFile { file, areas, len, sealed: head.flags.get() & SEALED != 0 }, shadow })
}

// --- in the primary --------------------------------------------------------------------------------------------------

impl Lender for Shared {
    fn function(&self) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
        let (identity, bar) = self.lend()?;
        let shadow = self.shadow().map(|shadow| shadow.lend()).transpose()?.flatten();
        let bytes = encode(&identity, &bar, shadow.as_ref());
        Ok((bytes, [Some(bar.file), shadow.map(|shadow| shadow.file)].into_iter().flatten().collect()))
    }

    fn vector(&self, qid: u16) -> Result<Option<OwnedFd>> {
        if qid == 0 { Ok(None) } else { self.vector_for_another(qid) }
    }

    fn map(&self, memory: &SharedMemory) -> Result<u64> {
        // All of a region: it was made of a file.
        Self::map(self, memory.extent().region())
    }

    fn unmap(&self, memory: &SharedMemory) -> Result<()> {
        Self::unmap(self, memory.extent().region())
    }

    fn life(&self) -> u32 {
        Self::life(self)
    }

    fn note_queue(&self, life: u32, qid: u16, exists: bool) {
        Self::note_queue(self, life, qid, exists);
    }
}

// --- in a secondary --------------------------------------------------------------------------------------------------

fn ask(primary: &Primary) -> Result<Lent> {
    let (bytes, fds) = primary.function()?;
    decode(&bytes, fds)
        .ok_or_else(|| Error::peer_misbehaved("what the primary says of its function makes no sense"))
}

/// The shadow doorbells that the controller uses in its present life, if it does.
pub(crate) fn shadow(primary: &Primary, page: u64) -> Result<Option<ShadowDoorbells>> {
    let shadow = ask(primary)?.shadow;
    shadow.map(|shadow| ShadowDoorbells::lent(shadow, primary.cap(), page)).transpose()
}

/// The function of another process.
pub(crate) struct LentFunction {
    identity: PciIdentity,
    primary: Arc<Primary>,
    registers: Arc<LentRegisters>,
    /// What the primary calls the memory that it has mapped.
    mapped: HashMap<RegionId, u32>,
}

impl LentFunction {
    /// The function that the primary has, and its doorbells.
    pub(crate) fn open(primary: &Arc<Primary>) -> Result<(Self, Bar0)> {
        let Lent { identity, bar, .. } = ask(primary)?;
        let registers = Arc::new(LentRegisters::map(&bar, Some(Arc::clone(primary)))?);
        let function = Self {
            identity,
            primary: Arc::clone(primary),
            registers: Arc::clone(&registers),
            mapped: HashMap::new(),
        };
        Ok((function, Bar0::new(registers)))
    }

    fn not_here<T>(&self) -> Result<T> {
        Err(Error::unsupported("only the primary of the instance does that").peer(&self.identity))
    }
}

impl PciDevice for LentFunction {
    fn identity(&self) -> PciIdentity {
        self.identity.clone()
    }

    fn bar0(&mut self) -> Result<Bar0> {
        Ok(Bar0::new(Arc::<LentRegisters>::clone(&self.registers)))
    }

    fn dma_map(&mut self, grant: &DmaGrant) -> Result<u64> {
        let region = grant.region();
        let Some(file) = file_for_primary(grant) else {
            return Err(Error::unsupported("memory without a file cannot be shared with another process")
                .peer(&self.identity)
                .hint("allocate buffers from the controller's pool instead of registering memory"));
        };
        let (memory, iova) = self.primary.map(file)?;
        self.mapped.insert(region.id(), memory);
        Ok(iova)
    }

    fn dma_unmap(&mut self, region: RegionId) -> Result<()> {
        let Some(&memory) = self.mapped.get(&region) else {
            return Err(Error::api_misuse("this region is not mapped for the function").peer(&self.identity));
        };
        self.primary.unmap(memory)?;
        self.mapped.remove(&region);
        Ok(())
    }

    fn max_vectors(&self) -> u16 {
        0
    }

    fn enable_interrupts(&mut self, _vectors: u16) -> Result<Vec<OwnedFd>> {
        self.not_here()
    }

    fn reset(&mut self) -> Result<()> {
        self.not_here()
    }

    fn read_config(&mut self, _offset: u32, _to: &mut [u8]) -> Result<()> {
        self.not_here()
    }

    fn write_config(&mut self, _offset: u32, _from: &[u8]) -> Result<()> {
        self.not_here()
    }

    /// Lets go of the registers. What the function reaches of memory is not this process's to say.
    fn isolate(&mut self) -> bool {
        self.registers.mapped.revoke();
        false
    }
}

impl Drop for LentFunction {
    fn drop(&mut self) {
        self.registers.mapped.revoke();
    }
}

/// Registers as far as they are mapped. Doorbells can be written; the others only when there is no primary any more whose they are.
struct LentRegisters {
    len: u64,
    mapped: MappedAreas,
    primary: Option<Arc<Primary>>,
}

impl LentRegisters {
    fn map(bar: &BarFile, primary: Option<Arc<Primary>>) -> Result<Self> {
        let refuse =
            |why| Err(Error::unsupported(why).doing("mapping the doorbells of the primary's function"));
        if !bar.has_doorbells() {
            return refuse("they cannot be mapped");
        }
        let file = fstat(&bar.file).map_err(std::io::Error::from)?;
        // A device's file is checked by its driver.
        if FileType::from_raw_mode(file.st_mode) == FileType::RegularFile {
            let size = u64::try_from(file.st_size).unwrap_or(0);
            if bar.areas.iter().any(|area| area.at.saturating_add(area.len) > size) {
                return refuse("their file is too short");
            }
            let seals = fcntl_get_seals(&bar.file).unwrap_or(SealFlags::empty());
            if bar.sealed && !seals.contains(SealFlags::SHRINK) {
                return refuse("their file can be cut short");
            }
        }
        let mapped = MappedAreas::map(bar.file.as_fd(), &bar.areas)
            .map_err(|error| Error::from(error).doing("mapping doorbells"))?;
        Ok(Self { len: bar.len, mapped, primary })
    }

    fn find(&self, offset: u64) -> Result<(&MappedBar, u64)> {
        self.mapped.find(offset).ok_or_else(|| {
            Error::unsupported(format!("register {offset:#x} cannot be reached from this process"))
                .hint("only what can be mapped of the registers can be used by several processes")
        })
    }
}

impl BarAccess for LentRegisters {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_readable(&self) -> bool {
        // CSTS.
        self.mapped.find(0x1c).is_some()
    }

    fn read32(&self, offset: u64) -> Result<u32> {
        let (bar, within) = self.find(offset)?;
        bar.read32(within)
    }

    fn write32(&self, offset: u64, value: u32) -> Result<()> {
        if offset < DOORBELL_BASE && !self.primary.as_ref().is_some_and(|primary| primary.has_ended()) {
            return Err(Error::unsupported("only the primary of the instance writes this register"));
        }
        let (bar, within) = self.find(offset)?;
        bar.write32(within, value)
    }

    fn doorbell(&self, offset: u64, value: u32) -> Result<()> {
        let (bar, within) = self.find(offset)?;
        bar.write32(within, value)
    }
}

#[cfg(test)]
mod tests {
    use nvmf_core::spec::registers::Cap;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    fn file(len: u64, sealed: bool) -> OwnedFd {
        let fd = memfd_create("bar", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, len).unwrap();
        if sealed {
            fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
        }
        fd
    }

    fn bar(areas: &[(u64, u64, u64)], sealed: bool) -> BarFile {
        let areas = areas.iter().map(|&(offset, at, len)| BarArea { offset, at, len }).collect();
        BarFile { file: file(0x2000, sealed), areas, len: 0x4000, sealed }
    }

    fn identity() -> PciIdentity {
        PciIdentity { vendor: 0x1b36, device: 0x10, name: "a function".to_owned() }
    }

    #[test]
    fn what_is_lent_is_understood_and_nonsense_is_not() {
        let lent = bar(&[(0x1000, 0, 0x1000), (0x2000, 0x1000, 0x1000)], true);
        let bytes = encode(&identity(), &lent, None);
        let one = || vec![file(0, false)];
        let what = decode(&bytes, one()).unwrap();
        assert_eq!((what.identity, &what.bar.areas), (identity(), &lent.areas));
        assert_eq!((what.bar.len, what.bar.sealed), (0x4000, true));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], one()).is_none(), "{cut} bytes");
        }
        assert!(decode(&[&bytes[..], b"x"].concat(), one()).is_none());
        for fds in [0, 2] {
            assert!(decode(&bytes, (0..fds).map(|_| file(0, false)).collect()).is_none(), "{fds} files");
        }
        for areas in [[(0x4000, 0, 1)], [(0x1000, 0, 0)], [(u64::MAX, 0, 2)], [(0x1000, u64::MAX, 2)]] {
            let bytes = encode(&identity(), &bar(&areas, true), None);
            assert!(decode(&bytes, one()).is_none(), "{areas:x?}");
        }
        let long = PciIdentity { name: "é".repeat(MAX_NAME), ..identity() };
        assert!(decode(&encode(&long, &lent, None), one()).is_some());
    }

    #[test]
    fn shadow_doorbells_are_taken_only_inside_of_their_memory() {
        let cap = Cap(0);
        let memory = || SharedMemory::allocate(8192).unwrap().file().unwrap().try_clone_to_owned().unwrap();
        let shadow = |doorbells, events, len| LentShadow { file: memory(), doorbells, events, len };
        let lent = bar(&[(0x1000, 0, 0x1000)], true);
        let bytes = encode(&identity(), &lent, Some(&shadow(0, 4096, 4096)));
        assert!(decode(&bytes, vec![memory()]).is_none(), "a file is missing");
        let what = decode(&bytes, vec![file(0, false), memory()]).unwrap().shadow.unwrap();
        assert_eq!((what.doorbells, what.events, what.len), (0, 4096, 4096));
        assert!(ShadowDoorbells::lent(what, cap, 4096).is_ok());
        for (doorbells, events, len) in
            [(4096, 8192, 4096), (0, 4100, 4096), (2, 4096, 4096), (u64::MAX - 3, 0, 4096), (0, 0, u64::MAX)]
        {
            assert!(ShadowDoorbells::lent(shadow(doorbells, events, len), cap, 4096).is_err());
        }
        assert!(
            ShadowDoorbells::lent(LentShadow { file: file(8192, false), ..shadow(0, 0, 4) }, cap, 4096)
                .is_err()
        );
    }

    #[test]
    fn doorbells_are_written_and_other_registers_are_not() {
        let lent = bar(&[(0, 0, 0x2000)], true);
        let registers = LentRegisters::map(&lent, None).unwrap();
        registers.doorbell(0x1008, 7).unwrap();
        assert_eq!(registers.read32(0x1008).unwrap(), 7);
        assert!(registers.write32(0x14, 0).unwrap_err().to_string().contains("only the primary"));
        let error = registers.doorbell(0x2000, 1).unwrap_err();
        assert!(error.to_string().contains("cannot be reached"), "{error}");
        assert!(registers.is_readable());
        registers.mapped.revoke();
        assert_eq!(registers.read32(0x1008).unwrap(), u32::MAX);
        let doorbells = LentRegisters::map(&bar(&[(0x1000, 0, 0x1000)], false), None).unwrap();
        assert!(!doorbells.is_readable() && doorbells.read32(0x1c).is_err());
    }

    #[test]
    fn what_cannot_be_mapped_safely_is_not() {
        for (bar, why) in [
            (bar(&[(0x2000, 0, 0x1000)], true), "cannot be mapped"),
            (bar(&[(0x1000, 0x2000, 0x1000)], true), "too short"),
            (BarFile { file: file(0x2000, false), ..bar(&[(0x1000, 0, 0x1000)], true) }, "cut short"),
        ] {
            let error = LentRegisters::map(&bar, None).err().unwrap().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

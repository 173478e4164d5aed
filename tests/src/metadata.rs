//! What every transport must do on namespaces whose blocks carry metadata, as one body of code. A transport's test calls
//! [`metadata_suite!`](crate::metadata_suite) with a function that makes a [`Fixture`].
//!
//! The fixture's subsystem has, each of at least 4 MiB:
//!
//! | namespace | block | metadata | protection |
//! |---|---|---|---|
//! | 1 | 512 | 8 | type 1 |
//! | 2 | 4,096 | 64 | type 2, in the first bytes |
//! | 3 | 512 | 16 | none |
//! | 4 | 4,096 | 16 | type 1, 64-bit guard |
//! | 5 | 512 | none | none |

use anyhow::{Context, Result, bail, ensure};
use nvmf_core::future::{AsyncQpair, block_on};
use nvmf_core::protection::{Guard, Protection, ProtectionError, ProtectionField};
use nvmf_core::spec::Status;
use nvmf_core::{Controller, DmaBuf, Error, ErrorKind, IoBuf, IoCommand, IoQpair, IoQpairOptions, Namespace};
use nvmf_loopback::{MetadataPlace, ProtectionType, SubsystemBuilder};

use crate::conformance::Fixture;

/// Checks of everything there is to check.
const CHECK: Protection = Protection::NONE.check_guard().check_ref_tag().check_app_tag(0xa55a, 0xffff);

/// The namespaces the suite wants.
#[must_use]
pub fn subsystem(nqn: &str, place: MetadataPlace) -> SubsystemBuilder {
    let memory = |block| nvmf_loopback::Namespace::memory(16 << 20).block_size(block);
    SubsystemBuilder::new(nqn)
        .namespace(memory(512).metadata(8, place).protection(ProtectionType::Type1))
        .namespace(memory(4096).metadata(64, place).protection(ProtectionType::Type2).protection_first())
        .namespace(memory(512).metadata(16, place))
        .namespace(memory(4096).metadata(16, place).protection(ProtectionType::Type1).guard(Guard::Crc64))
        .namespace(memory(512))
}

/// Blocks in the host's memory, in the layout of the namespace.
struct Blocks {
    data: DmaBuf,
    metadata: Option<DmaBuf>,
}

impl Blocks {
    /// Zeroed buffers for a command that says `p`.
    fn new(q: &IoQpair, ns: &Namespace, blocks: u64, p: &Protection) -> Result<Self> {
        let data = q.alloc(ns.data_len(blocks, p) as usize)?;
        let metadata = match ns.metadata_len(blocks, p) as usize {
            0 => None,
            len => Some(q.alloc(len)?),
        };
        Ok(Self { data, metadata })
    }

    /// Buffers with contents that depend on the block and `seed`, protected where the namespace is.
    fn filled(q: &IoQpair, ns: &Namespace, slba: u64, blocks: u64, seed: u8) -> Result<Self> {
        let mut new = Self::new(q, ns, blocks, &CHECK)?;
        let byte = |i: usize, salt: usize| ((i / 7) as u8) ^ (slba as u8) ^ seed ^ salt as u8;
        new.data.iter_mut().enumerate().for_each(|(i, b)| *b = byte(i, 1));
        let metadata = new.metadata.iter_mut().flat_map(|metadata| metadata.iter_mut());
        metadata.enumerate().for_each(|(i, b)| *b = byte(i, 2));
        if let Some(format) = ns.protection() {
            match &mut new.metadata {
                Some(metadata) => format.generate(slba, &new.data, metadata, &CHECK)?,
                None => format.generate_extended(slba, &mut new.data, &CHECK)?,
            }
        }
        Ok(new)
    }

    fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        (self.data.to_vec(), self.metadata.as_ref().map_or_else(Vec::new, |metadata| metadata.to_vec()))
    }

    /// The host's own check.
    fn verify(&self, ns: &Namespace, slba: u64) -> Result<(), ProtectionError> {
        match (ns.protection(), &self.metadata) {
            (None, _) => Ok(()),
            (Some(format), Some(metadata)) => format.verify(slba, &self.data, metadata, &CHECK),
            (Some(format), None) => format.verify_extended(slba, &self.data, &CHECK),
        }
    }

    /// Changes a byte of the data of block `index`.
    fn damage(&mut self, ns: &Namespace, index: u64) {
        let stride = (ns.data_len(1, &CHECK)) as usize;
        self.data[index as usize * stride + 5] ^= 1;
    }

    /// A byte of the metadata of block `index`.
    fn metadata_byte(&mut self, ns: &Namespace, index: u64, at: usize) -> &mut u8 {
        let size = usize::from(ns.metadata_size());
        match &mut self.metadata {
            Some(metadata) => &mut metadata[index as usize * size + at],
            None => {
                &mut self.data
                    [index as usize * (ns.block_size() as usize + size) + ns.block_size() as usize + at]
            }
        }
    }
}

fn write(q: &mut IoQpair, ns: &Namespace, slba: u64, blocks: Blocks, p: Protection) -> Result<Blocks, Error> {
    finish(q, IoCommand::write_with_md(ns, slba, blocks.data, blocks.metadata, p))
}

fn read(q: &mut IoQpair, ns: &Namespace, slba: u64, blocks: u64, p: Protection) -> Result<Blocks> {
    let to = Blocks::new(q, ns, blocks, &p)?;
    Ok(finish(q, IoCommand::read_with_md(ns, slba, to.data, to.metadata, p))?)
}

fn compare(
    q: &mut IoQpair,
    ns: &Namespace,
    slba: u64,
    blocks: Blocks,
    p: Protection,
) -> Result<Blocks, Error> {
    finish(q, IoCommand::compare_with_md(ns, slba, blocks.data, blocks.metadata, p))
}

fn finish(q: &mut IoQpair, command: IoCommand) -> Result<Blocks, Error> {
    let (_, buf) = q.execute(command)?;
    let (data, metadata) = buf.into_parts();
    let data = data.into_one().ok_or_else(|| Error::disconnected("no buffer came back"))?;
    Ok(Blocks { data, metadata })
}

fn expect(what: &str, result: Result<Blocks>, status: Status) -> Result<()> {
    let Err(error) = result else { bail!("{what}: it succeeded") };
    let found = error.downcast_ref::<Error>().and_then(Error::status);
    ensure!(found.is_some_and(|found| found.is(status)), "{what}: {error}, expected {status}");
    Ok(())
}

fn setup(f: &Fixture) -> Result<(Controller, IoQpair, Vec<Namespace>)> {
    let c = f.attach()?;
    let q = c.alloc_io_qpair(&IoQpairOptions::default())?;
    let namespaces: Option<Vec<_>> = (1..=5).map(|nsid| c.namespace(nsid)).collect();
    Ok((c, q, namespaces.context("a namespace is missing")?))
}

/// What Identify says of the formats.
///
/// # Errors
/// What is not as it must be.
pub fn formats(f: &Fixture) -> Result<()> {
    let (c, _, all) = setup(f)?;
    let extended = all[0].is_extended();
    ensure!(extended || !c.trid().trtype().is_fabrics(), "fabrics know extended blocks only");
    for (ns, (block, metadata, protection)) in all.iter().zip([
        (512, 8, Some((1, Guard::Crc16, false))),
        (4096, 64, Some((2, Guard::Crc16, true))),
        (512, 16, None),
        (4096, 16, Some((1, Guard::Crc64, false))),
        (512, 0, None),
    ]) {
        ensure!((ns.block_size(), ns.metadata_size()) == (block, metadata), "{ns:?}");
        ensure!(ns.is_extended() == (extended && metadata > 0), "{ns:?}");
        let found = ns.protection().map(|p| (p.kind().number(), p.guard(), p.is_first()));
        ensure!(found == protection, "namespace {}: {found:?}", ns.nsid());
        ensure!(ns.size() == 16 << 20);
    }
    Ok(())
}

/// Data and metadata come back as they were written, and Compare looks at both.
///
/// # Errors
/// What is not as it must be.
pub fn round_trip(f: &Fixture) -> Result<()> {
    let (_c, mut q, all) = setup(f)?;
    for ns in &all[..4] {
        let check = if ns.protection().is_some() { CHECK } else { Protection::NONE };
        for (slba, blocks) in [(0, 1), (17, 5), (100, 8)] {
            let out = Blocks::filled(&q, ns, slba, blocks, 3)?;
            let bytes = out.bytes();
            write(&mut q, ns, slba, out, check)?;
            let back = read(&mut q, ns, slba, blocks, check)?;
            ensure!(back.bytes() == bytes, "namespace {}: other bytes came back", ns.nsid());
            back.verify(ns, slba)?;
            compare(&mut q, ns, slba, back, check)?;
        }
        // The blocks around are untouched.
        let before = read(&mut q, ns, 16, 1, Protection::NONE)?;
        let zero = before.data[..ns.block_size() as usize].iter().all(|&byte| byte == 0);
        ensure!(zero, "namespace {}: block 16 was written", ns.nsid());
        let mut other = Blocks::filled(&q, ns, 17, 5, 3)?;
        other.damage(ns, 4);
        let compared = compare(&mut q, ns, 17, other, Protection::NONE).map_err(Into::into);
        expect("comparing other data", compared, Status::COMPARE_FAILURE)?;
    }
    // Metadata that is no protection information is compared as well.
    let ns = &all[2];
    let mut other = Blocks::filled(&q, ns, 17, 5, 3)?;
    *other.metadata_byte(ns, 4, 15) ^= 1;
    let compared = compare(&mut q, ns, 17, other, Protection::NONE).map_err(Into::into);
    expect("comparing other metadata", compared, Status::COMPARE_FAILURE)
}

/// The controller tells guard, application tag and reference tag errors apart, on writes, reads, compares and Verify; and so does
/// the host.
///
/// # Errors
/// What is not as it must be.
pub fn wrong_protection(f: &Fixture) -> Result<()> {
    let (_c, mut q, all) = setup(f)?;
    for ns in [&all[0], &all[1], &all[3]] {
        let format = *ns.protection().context("no protection")?;
        // Of the tags, from the start of protection information: the application tag follows the guard, the reference tag ends it.
        let app = format.position().start + usize::from(format.guard().bits() / 8);
        let last = format.position().end - 1;
        let wrongs = [
            (None, Status::GUARD_CHECK_ERROR, ProtectionField::Guard),
            (Some(app), Status::APPLICATION_TAG_CHECK_ERROR, ProtectionField::AppTag),
            (Some(last), Status::REFERENCE_TAG_CHECK_ERROR, ProtectionField::RefTag),
        ];
        for (at, status, wrong_field) in wrongs {
            let what = format!("namespace {}: {wrong_field}", ns.nsid());
            let damaged = |q: &IoQpair| {
                let mut blocks = Blocks::filled(q, ns, 40, 6, 9)?;
                match at {
                    None => blocks.damage(ns, 3),
                    Some(at) => *blocks.metadata_byte(ns, 3, at) ^= 1,
                }
                anyhow::Ok(blocks)
            };
            let blocks = damaged(&q)?;
            expect(&what, write(&mut q, ns, 40, blocks, CHECK).map_err(Into::into), status)?;
            let blocks = damaged(&q)?;
            write(&mut q, ns, 40, blocks, Protection::NONE)?;
            expect(&what, read(&mut q, ns, 40, 6, CHECK), status)?;
            let verified = q.execute(IoCommand::verify_with_md(ns, 40, 6, CHECK)).map(|_| ());
            let Err(error) = verified else { bail!("{what}: Verify succeeded") };
            ensure!(error.status().is_some_and(|found| found.is(status)), "{what}: {error}");
            let back = read(&mut q, ns, 40, 6, Protection::NONE)?;
            match back.verify(ns, 40) {
                Err(ProtectionError::Mismatch { lba: 43, field, .. }) if field == wrong_field => {}
                other => bail!("{what}: the host found {other:?}"),
            }
            expect(&what, compare(&mut q, ns, 40, back, CHECK).map_err(Into::into), status)?;
            // Bits that are not looked at, and checks that are not asked for.
            let mask = Protection::NONE.check_app_tag(0xa55a, if at == Some(app) { 0x00ff } else { 0xffff });
            if wrong_field != ProtectionField::RefTag {
                read(&mut q, ns, 40, 6, mask)?;
            }
        }
        // Blocks of another place.
        let moved = Blocks::filled(&q, ns, 41, 6, 9)?;
        expect(
            "moved blocks",
            write(&mut q, ns, 40, moved, CHECK).map_err(Into::into),
            Status::REFERENCE_TAG_CHECK_ERROR,
        )?;
    }
    // The reference tag of a type 1 block is its LBA; a type 2 command states it.
    let blocks = Blocks::filled(&q, &all[0], 40, 6, 9)?;
    let stated = write(&mut q, &all[0], 40, blocks, CHECK.ref_tag(41)).map_err(Into::into);
    expect("another reference tag with type 1", stated, Status::INVALID_PROTECTION_INFORMATION)?;
    let mut blocks = Blocks::new(&q, &all[1], 6, &CHECK)?;
    let (format, own) = (*all[1].protection().context("no protection")?, CHECK.ref_tag(0xffff_fffe));
    match &mut blocks.metadata {
        Some(metadata) => format.generate(40, &blocks.data, metadata, &own)?,
        None => format.generate_extended(40, &mut blocks.data, &own)?,
    }
    write(&mut q, &all[1], 40, blocks, own)?;
    read(&mut q, &all[1], 40, 6, own)?;
    expect("another reference tag", read(&mut q, &all[1], 40, 6, CHECK), Status::REFERENCE_TAG_CHECK_ERROR)
}

/// PRACT: the controller inserts protection information and strips it where it is all of the metadata.
///
/// # Errors
/// What is not as it must be.
pub fn pract(f: &Fixture) -> Result<()> {
    let (_c, mut q, all) = setup(f)?;
    let action = CHECK.pract();
    for ns in [&all[0], &all[3], &all[1]] {
        let stripped = ns.protection().context("no protection")?.is_all_metadata();
        let mut out = Blocks::new(&q, ns, 4, &action)?;
        ensure!(!stripped || out.metadata.is_none() && out.data.len() == 4 * ns.block_size() as usize);
        out.data.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 3) as u8);
        let bytes = out.bytes();
        write(&mut q, ns, 60, out, action)?;
        // With it the same comes back; without it there is protection information, and it is right.
        let back = read(&mut q, ns, 60, 4, action)?;
        ensure!(!stripped || back.bytes() == bytes, "namespace {}: other bytes came back", ns.nsid());
        let all_of_it = read(&mut q, ns, 60, 4, CHECK)?;
        all_of_it.verify(ns, 60)?;
        compare(&mut q, ns, 60, back, action)?;
        // Write Zeroes inserts it as well.
        q.execute(IoCommand::write_zeroes_with_md(ns, 61, 2, Protection::NONE.pract().app_tag(0xa55a, 0)))?;
        read(&mut q, ns, 60, 4, CHECK)?.verify(ns, 60)?;
        q.execute(IoCommand::verify_with_md(ns, 60, 4, CHECK))?;
    }
    Ok(())
}

/// I/Os larger than one command are cut with their metadata, and reference tags go on.
///
/// # Errors
/// What is not as it must be.
pub fn large(f: &Fixture) -> Result<()> {
    let (_c, mut q, all) = setup(f)?;
    for ns in &all[..4] {
        let blocks = (3 << 20) / u64::from(ns.block_size());
        let check = if ns.protection().is_some() { CHECK } else { Protection::NONE };
        let out = Blocks::filled(&q, ns, 7, blocks, 77)?;
        let bytes = out.bytes();
        let before = q.stats().commands;
        write(&mut q, ns, 7, out, check)?;
        if u64::from(ns.max_transfer()) < 3 << 20 {
            ensure!(q.stats().commands > before + 1, "nothing was cut");
        }
        let back = read(&mut q, ns, 7, blocks, check)?;
        ensure!(back.bytes() == bytes, "namespace {}: other bytes came back", ns.nsid());
        compare(&mut q, ns, 7, back, check)?;
        // The last block alone, where a wrong offset would show.
        let last = read(&mut q, ns, 7 + blocks - 1, 1, check)?.bytes();
        let (data, metadata) = (ns.data_len(1, &check) as usize, ns.metadata_len(1, &check) as usize);
        ensure!(last.0 == bytes.0[bytes.0.len() - data..] && last.1 == bytes.1[bytes.1.len() - metadata..]);
        if ns.protection().is_some() {
            q.execute(IoCommand::verify_with_md(ns, 7, blocks, CHECK))?;
            let wrong = blocks - 2;
            let mut damaged = Blocks::filled(&q, ns, 7, blocks, 77)?;
            damaged.damage(ns, wrong);
            write(&mut q, ns, 7, damaged, Protection::NONE)?;
            expect(
                "a wrong guard at the end",
                read(&mut q, ns, 7, blocks, CHECK),
                Status::GUARD_CHECK_ERROR,
            )?;
        }
    }
    Ok(())
}

/// Data in several buffers of odd lengths, with metadata.
///
/// # Errors
/// What is not as it must be.
pub fn vectored(f: &Fixture) -> Result<()> {
    let (_c, mut q, all) = setup(f)?;
    for ns in &all[..4] {
        let check = if ns.protection().is_some() { CHECK } else { Protection::NONE };
        let whole = Blocks::filled(&q, ns, 90, 16, 5)?;
        let (data, metadata) = whole.bytes();
        let cuts = [0, 100, 612, data.len() / 2 + 4, data.len()];
        let mut parts = Vec::new();
        for pair in cuts.windows(2) {
            parts.push(q.controller().pool().copy_from(&data[pair[0]..pair[1]])?);
        }
        let command = IoCommand::write_with_md(ns, 90, parts, whole.metadata, check);
        let (_, buf) = q.execute(command)?;
        let (parts, md) = buf.into_parts();
        ensure!(parts.bufs().len() == 4 && md.as_deref().unwrap_or_default() == metadata);
        // The same buffers again, for the way back; the metadata is cleared first.
        let mut parts = parts.into_vec();
        parts.iter_mut().for_each(|part| part.fill(0));
        let cleared = md.map(|mut md| {
            md.fill(0);
            md
        });
        let (_, buf) = q.execute(IoCommand::read_with_md(ns, 90, parts, cleared, check))?;
        let found: Vec<u8> = buf.bufs().iter().flat_map(|part| part.to_vec()).collect();
        ensure!(found == data, "namespace {}: other data came back", ns.nsid());
        ensure!(buf.metadata().map_or(&[][..], |md| md) == metadata, "other metadata came back");
    }
    Ok(())
}

/// Buffers that do not fit the format are refused before anything is sent, and handed back.
///
/// # Errors
/// What is not as it must be.
pub fn sizes(f: &Fixture) -> Result<()> {
    let (_c, mut q, all) = setup(f)?;
    let (protected, plain, none) = (&all[0], &all[2], &all[4]);
    let no = Protection::NONE;
    let mut cases: Vec<(&Namespace, usize, usize, Protection)> = vec![
        (none, 512, 8, no),
        (none, 512, 0, no.check_guard()),
        (plain, 528, 0, no.check_guard()),
        (protected, 512, 8, no.pract()),
        (protected, 511, 0, no),
    ];
    match protected.is_extended() {
        true => {
            cases.extend([(protected, 512, 0, no), (protected, 520, 8, no), (protected, 520, 0, no.pract())])
        }
        false => cases.extend([
            (protected, 512, 0, no),
            (protected, 512, 7, no),
            (protected, 512, 16, no),
            (protected, 1024, 8, no),
            (protected, 520, 8, no),
        ]),
    }
    for (ns, data, metadata, p) in cases {
        let what = format!("namespace {}: {data} and {metadata} bytes, {p:?}", ns.nsid());
        let md = if metadata > 0 { Some(q.alloc(metadata)?) } else { None };
        let buf = q.alloc(data)?;
        let Err(refused) = q.write_with_md(ns, 0, buf, md, p, 0) else { bail!("{what}: accepted") };
        ensure!(matches!(refused.error.kind(), ErrorKind::ApiMisuse(_)), "{what}: {}", refused.error);
        ensure!(refused.buf.len() == data, "{what}: the data did not come back");
        ensure!(refused.buf.metadata().map_or(0, |md| md.len()) == metadata, "{what}: no metadata came back");
    }
    // Without a word about metadata, blocks that have it apart cannot be moved.
    if !plain.is_extended() {
        let Err(refused) = q.read(plain, 0, q.alloc(512)?, 0) else { bail!("accepted without metadata") };
        ensure!(refused.error.to_string().contains("read_with_md"), "{}", refused.error);
    }
    // Metadata where a command says nothing of it, whatever the transport.
    let both = IoBuf::with_metadata(q.alloc(512)?, q.alloc(8)?);
    let Err(refused) = q.read(none, 0, both, 0) else { bail!("accepted") };
    ensure!(refused.buf.metadata().is_some(), "no metadata came back");
    if q.controller().trid().trtype().is_fabrics() {
        ensure!(matches!(refused.error.kind(), ErrorKind::Unsupported(_)), "{}", refused.error);
    }
    ensure!(q.stats().commands == 0, "something was sent");
    Ok(())
}

/// Futures, also such as are dropped: metadata comes back, and stays with the command as long as it is in flight.
///
/// # Errors
/// What is not as it must be.
pub fn futures(f: &Fixture) -> Result<()> {
    let (c, q, all) = setup(f)?;
    let (ns, pool) = (&all[0], c.pool().clone());
    let out = Blocks::filled(&q, ns, 200, 8, 1)?;
    let bytes = out.bytes();
    let q = AsyncQpair::new(q);
    block_on(&q, async {
        let (data, metadata) = q.write_with_md(ns, 200, out.data, out.metadata, CHECK).await?;
        ensure!((data.to_vec(), metadata.as_ref().map_or_else(Vec::new, |md| md.to_vec())) == bytes);
        let dropped =
            IoCommand::read_with_md(ns, 0, q.alloc(data.len())?, same_len(&pool, metadata.as_ref())?, CHECK);
        drop(q.submit(dropped));
        let (mut data, mut metadata) = (data, metadata);
        data.fill(0);
        metadata.iter_mut().for_each(|md| md.fill(0));
        let (data, metadata) = q.read_with_md(ns, 200, data, metadata, CHECK).await?;
        let back = Blocks { data, metadata };
        ensure!(back.bytes() == bytes, "other bytes came back");
        anyhow::Ok(())
    })??;
    drop(q);
    ensure!(pool.stats().outstanding == 0, "{:?}", pool.stats());
    Ok(())
}

fn same_len(pool: &nvmf_core::DmaPool, like: Option<&DmaBuf>) -> Result<Option<DmaBuf>> {
    Ok(match like {
        Some(buf) => Some(pool.alloc(buf.len())?),
        None => None,
    })
}

/// Queue pairs dropped with metadata in flight give it back.
///
/// # Errors
/// What is not as it must be.
pub fn drop_in_flight(f: &Fixture) -> Result<()> {
    let (c, q, all) = setup(f)?;
    let pool = c.pool().clone();
    drop(q);
    for _ in 0..3 {
        let mut q = c.alloc_io_qpair(&IoQpairOptions::default())?;
        for i in 0..16 {
            let to = Blocks::new(&q, &all[0], 128, &Protection::NONE)?;
            q.read_with_md(&all[0], i * 128, to.data, to.metadata, Protection::NONE, i)?;
        }
        drop(q);
    }
    ensure!(pool.stats().outstanding == 0, "{:?}", pool.stats());
    Ok(())
}

/// Defines a test for every part of the suite. `$fixture` is a function that makes a [`Fixture`].
#[macro_export]
macro_rules! metadata_suite {
    ($fixture:path) => {
        $crate::metadata_suite!($fixture:
            formats round_trip wrong_protection pract large vectored sizes futures drop_in_flight);
    };
    ($fixture:path: $($name:ident)*) => {
        $(
            #[test]
            fn $name() -> anyhow::Result<()> {
                $crate::metadata::$name(&$fixture()?)
            }
        )*
    };
}

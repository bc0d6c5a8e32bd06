//! A tar archive (plain, gzip or zstd) into a tree: a whole root file system, or one layer over those before it.
//!
//! Invariant: no more than `header_bytes_max` is read between the contents of two entries, so a long name can't fill the memory;
//! no more is unpacked than the expansion bound allows; an archive without its end mark is refused as truncated.

use std::cell::{Cell, RefCell};
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use sha2::{Digest, Sha256};
use tar::EntryType;

use super::bounds::{Bounds, EXPANSION_FREE_BYTES};
use super::entry::{EntryPath, Meta, show};
use super::sparse;
use super::tree::Tree;
use super::{ImageError, Refusal};

const BLOCK_BYTES: u64 = 512;

/// How an archive is packed, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// RFC 1952, one or many members.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl std::fmt::Display for Packing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "a plain tar",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl Packing {
    /// By magic number.
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// What the readers count, shared by those inside the tar crate's iterator and the loop around it.
#[derive(Default)]
struct Counters {
    packed: Cell<u64>,
    unpacked: Cell<u64>,
    /// Bytes that may still be read before `Budget` must be renewed.
    budget: Cell<u64>,
    /// Zero bytes in a row at the end of what was read.
    zeros: Cell<u64>,
    /// Which bound a reader met.
    met: Cell<Option<(&'static str, u64)>>,
}

/// The packed stream: counted, and hashed unless it is the unpacked one as well.
struct Packed {
    inner: Box<dyn Read>,
    counters: Rc<Counters>,
    hash: Option<Rc<RefCell<Sha256>>>,
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.counters.packed.set(self.counters.packed.get() + read as u64);
        if let Some(hash) = &self.hash {
            hash.borrow_mut().update(&buffer[..read]);
        }
        Ok(read)
    }
}

/// The unpacked stream: bounded, hashed.
struct Unpacked {
    inner: Box<dyn Read>,
    counters: Rc<Counters>,
    hash: Rc<RefCell<Sha256>>,
    bounds: Bounds,
    packing: Packing,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let counters = &self.counters;
        if counters.budget.get() == 0 && !buffer.is_empty() {
            return Err(self.bound("header_bytes_max", self.bounds.header_bytes_max));
        }
        let wanted = buffer.len().min(usize::try_from(counters.budget.get()).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..wanted])?;
        let part = &buffer[..read];
        counters.budget.set(counters.budget.get() - read as u64);
        counters.unpacked.set(counters.unpacked.get() + read as u64);
        let tail = part.iter().rev().take_while(|&&byte| byte == 0).count() as u64;
        counters.zeros.set(if tail == read as u64 { counters.zeros.get() + tail } else { tail });
        self.hash.borrow_mut().update(part);
        let past = counters.unpacked.get().saturating_sub(EXPANSION_FREE_BYTES);
        if self.packing != Packing::Plain && past / self.bounds.expansion_max > counters.packed.get() {
            return Err(self.bound("expansion_max", self.bounds.expansion_max));
        }
        Ok(read)
    }
}

impl Unpacked {
    fn bound(&self, name: &'static str, limit: u64) -> io::Error {
        self.counters.met.set(Some((name, limit)));
        io::Error::new(io::ErrorKind::InvalidData, format!("the bound {name} of {limit} is met"))
    }
}

/// Called after each entry with the bytes of the archive read so far.
pub type Tick<'a> = &'a mut dyn FnMut(&Tree, u64) -> Result<(), ImageError>;

/// What the names of an archive mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A root file system: every name is a file's.
    RootFs,
    /// A layer: `.wh.` in front of a name takes that name away from the layers below.
    Layer,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// How it was packed.
    pub packing: Packing,
    /// SHA-256 of the archive as it came.
    pub packed: [u8; 32],
    /// SHA-256 of the unpacked archive (OCI's diff id).
    pub unpacked: [u8; 32],
}

/// A stream of known packing.
pub struct Opened {
    unpacked: Unpacked,
    counters: Rc<Counters>,
    packed_hash: Option<Rc<RefCell<Sha256>>>,
}

impl Opened {
    /// Looks at the first bytes.
    pub fn new(mut input: impl Read + 'static, bounds: Bounds) -> Result<Self, ImageError> {
        let unreadable = |source| ImageError::Archive { entry: String::new(), source };
        let mut magic = Vec::new();
        input.by_ref().take(4).read_to_end(&mut magic).map_err(unreadable)?;
        let packing = Packing::of(&magic);
        let counters = Rc::new(Counters::default());
        counters.budget.set(u64::MAX);
        let packed_hash = (packing != Packing::Plain).then(|| Rc::new(RefCell::new(Sha256::new())));
        let inner: Box<dyn Read> = Box::new(io::Cursor::new(magic).chain(input));
        let packed = Packed { inner, counters: Rc::clone(&counters), hash: packed_hash.clone() };
        let packed = BufReader::with_capacity(128 << 10, packed);
        let inner: Box<dyn Read> = match packing {
            Packing::Plain => Box::new(packed),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Packing::Zstd => Box::new(zstd::Decoder::with_buffer(packed).map_err(unreadable)?),
        };
        let hash = Rc::new(RefCell::new(Sha256::new()));
        let unpacked = Unpacked { inner, counters: Rc::clone(&counters), hash, bounds, packing };
        Ok(Self { unpacked, counters, packed_hash })
    }

    /// How it is packed.
    pub fn packing(&self) -> Packing {
        self.unpacked.packing
    }

    /// The unpacked bytes into `file`, no more than `bytes_max` of them.
    pub fn spool(
        mut self,
        file: &mut impl io::Write,
        tick: &mut dyn FnMut(u64) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let bounds = self.unpacked.bounds;
        let mut block = vec![0; 256 << 10];
        loop {
            let read = self.unpacked.read(&mut block).map_err(|source| self.explain("", source))?;
            if read == 0 {
                return Ok(());
            }
            super::bounds::check("", "bytes_max", self.counters.unpacked.get(), bounds.bytes_max)?;
            let unwritten =
                |source| ImageError::Entry { operation: "writing".into(), entry: "the unpacked archive".into(), source };
            file.write_all(&block[..read]).map_err(unwritten)?;
            tick(self.counters.packed.get())?;
        }
    }

    /// Up to that many of the first unpacked bytes.
    pub fn peek(mut self, bytes: u64) -> Vec<u8> {
        let mut first = Vec::new();
        // What can't be read is told by the one who reads it in earnest.
        self.unpacked.by_ref().take(bytes).read_to_end(&mut first).ok();
        first
    }

    fn explain(&self, entry: &str, source: io::Error) -> ImageError {
        match self.counters.met.get() {
            Some((bound, limit)) => ImageError::BoundExceeded { entry: entry.to_owned(), bound: bound.into(), limit },
            None => ImageError::Archive { entry: entry.to_owned(), source },
        }
    }

    /// Unpacks into the tree.
    pub fn unpack(self, tree: &mut Tree, meaning: Meaning, tick: Tick<'_>) -> Result<Digests, ImageError> {
        let Self { unpacked, counters, packed_hash } = self;
        let (packing, hash) = (unpacked.packing, Rc::clone(&unpacked.hash));
        let mut archive = tar::Archive::new(unpacked);
        let mut last = String::new();
        let outcome = entries(&mut archive, &counters, tree, (meaning, &mut last), tick);
        outcome.and_then(|()| drain(archive.into_inner(), &counters, &last)).map_err(|error| {
            match (error, counters.met.get()) {
                (ImageError::Archive { entry, .. }, Some((bound, limit))) => {
                    ImageError::BoundExceeded { entry, bound: bound.into(), limit }
                }
                (error, _) => error,
            }
        })?;
        let unpacked = hash.borrow_mut().finalize_reset().into();
        let packed = packed_hash.map_or(unpacked, |hash| hash.borrow_mut().finalize_reset().into());
        Ok(Digests { packing, packed, unpacked })
    }
}

fn entries(
    archive: &mut tar::Archive<Unpacked>,
    counters: &Counters,
    tree: &mut Tree,
    (meaning, last): (Meaning, &mut String),
    tick: Tick<'_>,
) -> Result<(), ImageError> {
    let header_bytes_max = tree.meter.bounds().header_bytes_max;
    let mut iterator = archive.entries().map_err(|source| ImageError::Archive { entry: String::new(), source })?;
    loop {
        counters.budget.set(header_bytes_max);
        let Some(entry) = iterator.next() else { return Ok(()) };
        let mut entry = entry.map_err(|source| ImageError::Archive { entry: last.clone(), source })?;
        *last = show(&entry.path_bytes());
        counters.budget.set(u64::MAX);
        write_entry(&mut entry, tree, meaning, last)?;
        tick(tree, counters.packed.get())?;
    }
}

/// Reads to the end, so that the digest covers all of it, and looks for the mark that ends an archive.
fn drain(mut rest: Unpacked, counters: &Counters, last: &str) -> Result<(), ImageError> {
    let failed = |source| ImageError::Archive { entry: last.to_owned(), source };
    // What follows the mark is padding; a mebibyte of it is more than any tool writes.
    counters.budget.set(1 << 20);
    io::copy(&mut rest, &mut io::sink()).map_err(failed)?;
    if counters.zeros.get() < BLOCK_BYTES {
        return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "the mark that ends an archive is missing")));
    }
    Ok(())
}

fn write_entry(entry: &mut tar::Entry<'_, Unpacked>, tree: &mut Tree, meaning: Meaning, shown: &str) -> Result<(), ImageError> {
    let kind = entry.header().entry_type();
    if kind.is_pax_global_extensions() {
        return tree.meter.entry(shown);
    }
    let bounds = *tree.meter.bounds();
    let (meta, extras) = read_meta(entry, shown)?;
    let name = extras.name.as_deref().map_or_else(|| entry.path_bytes(), Into::into).into_owned();
    let path = EntryPath::parse(&name, &bounds)?;
    if meaning == Meaning::Layer && tree.whiteout(&path)? {
        return Ok(());
    }
    match kind {
        EntryType::Directory => tree.directory(&path, &meta),
        EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => tree.directory(&path, &meta),
        EntryType::Regular | EntryType::Continuous => {
            let stored = entry.size();
            let Some(bytes) = extras.real_bytes else { return tree.file(&path, &meta, stored, entry) };
            let mut contents = sparse::Expanded::new(entry, stored, bytes)
                .map_err(|source| ImageError::Archive { entry: shown.to_owned(), source })?;
            tree.file(&path, &meta, bytes, &mut contents)
        }
        EntryType::GNUSparse => {
            let bytes = entry.size();
            tree.file(&path, &meta, bytes, entry)
        }
        EntryType::Symlink => tree.symlink(&path, &meta, &link_name(entry, &bounds, shown)?),
        EntryType::Link => {
            let target = EntryPath::parse(&link_name(entry, &bounds, shown)?, &bounds)?;
            tree.hard_link(&path, &target)
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => tree.special(&path),
        _ => Err(ImageError::EntryRefused { entry: shown.to_owned(), refusal: Refusal::Type }),
    }
}

fn link_name(entry: &tar::Entry<'_, Unpacked>, bounds: &Bounds, shown: &str) -> Result<Vec<u8>, ImageError> {
    let name = entry.link_name_bytes().unwrap_or_default().into_owned();
    super::bounds::check(shown, "path_bytes_max", name.len() as u64, bounds.path_bytes_max)?;
    Ok(name)
}

/// What extended headers say beyond [`Meta`].
#[derive(Default)]
struct Extras {
    /// The name of a sparse file; its entry's own name is made up.
    name: Option<Vec<u8>>,
    /// The size of a sparse file with its holes.
    real_bytes: Option<u64>,
}

fn read_meta(entry: &mut tar::Entry<'_, Unpacked>, shown: &str) -> Result<(Meta, Extras), ImageError> {
    let broken = |source| ImageError::Archive { entry: shown.to_owned(), source };
    let header = entry.header();
    let mut meta = Meta {
        mode: header.mode().map_err(broken)?,
        uid: header.uid().map_err(broken)?,
        gid: header.gid().map_err(broken)?,
        modified_s: i64::try_from(header.mtime().map_err(broken)?).unwrap_or(0),
        xattrs: Vec::new(),
    };
    let mut extras = Extras::default();
    let mut sparse = Vec::new();
    let Some(extensions) = entry.pax_extensions().map_err(broken)? else { return Ok((meta, extras)) };
    for extension in extensions {
        let extension = extension.map_err(broken)?;
        let (key, value) = (extension.key_bytes(), extension.value_bytes());
        let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            meta.xattrs.push((name.to_vec(), value.to_vec()));
        } else if key == b"mtime" {
            let whole = value.split(|&byte| byte == b'.').next().and_then(|text| std::str::from_utf8(text).ok());
            meta.modified_s = whole.and_then(|text| text.parse().ok()).unwrap_or(meta.modified_s);
        } else if key == b"GNU.sparse.name" {
            extras.name = Some(value.to_vec());
        } else if key == b"GNU.sparse.realsize" {
            extras.real_bytes = number();
        } else if key.starts_with(b"GNU.sparse.") {
            sparse.push((key.to_vec(), number()));
        }
    }
    let version_1 = [(b"GNU.sparse.major".to_vec(), Some(1)), (b"GNU.sparse.minor".to_vec(), Some(0))];
    let any = extras.name.is_some() || extras.real_bytes.is_some() || !sparse.is_empty();
    if any && !(extras.name.is_some() && extras.real_bytes.is_some() && version_1.iter().all(|part| sparse.contains(part))) {
        return Err(ImageError::EntryRefused { entry: shown.to_owned(), refusal: Refusal::PaxSparse });
    }
    Ok((meta, extras))
}

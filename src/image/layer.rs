//! A tar archive (plain, gzip or zstd) into a tree.
//!
//! Invariant: no more than `header_bytes_max` is read between the contents of two entries, so a long name can't fill the memory;
//! no more is unpacked than the expansion bound allows; an archive without its end mark is refused as truncated.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use sha2::{Digest, Sha256};
use tar::EntryType;

use super::bounds::{Bounds, EXPANSION_FREE_BYTES};
use super::entry::{EntryPath, Meta, show};
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

struct Packed {
    file: File,
    counters: Rc<Counters>,
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.counters.packed.set(self.counters.packed.get() + read as u64);
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

/// Unpacks the archive into the tree; the answer is the SHA-256 of the unpacked archive (OCI's diff id).
pub fn unpack(mut file: File, tree: &mut Tree, tick: Tick<'_>) -> Result<[u8; 32], ImageError> {
    let bounds = *tree.meter.bounds();
    let unreadable = |source| ImageError::Archive { entry: String::new(), source };
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(unreadable)?;
    io::Seek::rewind(&mut file).map_err(unreadable)?;
    let counters = Rc::new(Counters::default());
    let packing = Packing::of(&magic);
    let packed = BufReader::with_capacity(128 << 10, Packed { file, counters: Rc::clone(&counters) });
    let inner: Box<dyn Read> = match packing {
        Packing::Plain => Box::new(packed),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        Packing::Zstd => Box::new(zstd::Decoder::with_buffer(packed).map_err(unreadable)?),
    };
    let hash = Rc::new(RefCell::new(Sha256::new()));
    let unpacked = Unpacked { inner, counters: Rc::clone(&counters), hash: Rc::clone(&hash), bounds, packing };
    let mut archive = tar::Archive::new(unpacked);
    let mut last = String::new();
    let outcome = entries(&mut archive, &counters, tree, &mut last, tick);
    outcome.and_then(|()| drain(archive.into_inner(), &counters, &last)).map_err(|error| {
        match (error, counters.met.get()) {
            (ImageError::Archive { entry, .. }, Some((bound, limit))) => ImageError::BoundExceeded { entry, bound, limit },
            (error, _) => error,
        }
    })?;
    let digest = hash.borrow_mut().finalize_reset();
    Ok(digest.into())
}

fn entries(
    archive: &mut tar::Archive<Unpacked>,
    counters: &Counters,
    tree: &mut Tree,
    last: &mut String,
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
        write_entry(&mut entry, tree, last)?;
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

fn write_entry(entry: &mut tar::Entry<'_, Unpacked>, tree: &mut Tree, shown: &str) -> Result<(), ImageError> {
    let kind = entry.header().entry_type();
    if kind.is_pax_global_extensions() {
        return tree.meter.entry(shown);
    }
    let bounds = *tree.meter.bounds();
    let path = EntryPath::parse(&entry.path_bytes(), &bounds)?;
    let meta = read_meta(entry, shown)?;
    match kind {
        EntryType::Directory => tree.directory(&path, &meta),
        EntryType::Regular | EntryType::Continuous if entry.path_bytes().ends_with(b"/") => tree.directory(&path, &meta),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
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

fn read_meta(entry: &mut tar::Entry<'_, Unpacked>, shown: &str) -> Result<Meta, ImageError> {
    let broken = |source| ImageError::Archive { entry: shown.to_owned(), source };
    let header = entry.header();
    let mut meta = Meta {
        mode: header.mode().map_err(broken)?,
        uid: header.uid().map_err(broken)?,
        gid: header.gid().map_err(broken)?,
        modified_s: i64::try_from(header.mtime().map_err(broken)?).unwrap_or(0),
        xattrs: Vec::new(),
    };
    let Some(extensions) = entry.pax_extensions().map_err(broken)? else { return Ok(meta) };
    for extension in extensions {
        let extension = extension.map_err(broken)?;
        let key = extension.key_bytes();
        if key.starts_with(b"GNU.sparse.") {
            return Err(ImageError::EntryRefused { entry: shown.to_owned(), refusal: Refusal::PaxSparse });
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            meta.xattrs.push((name.to_vec(), extension.value_bytes().to_vec()));
        }
    }
    Ok(meta)
}

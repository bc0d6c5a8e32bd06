//! A fifo in the place of a program's source: whoever opens it waits until the source is known, and then reads it.
//!
//! Invariants: it takes the place of nothing, and nothing takes its own while somebody may come for it; of the two ends init keeps only
//! the one that is written to, so the other end says whether somebody reads.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, mknodat, statat};
use rustix::io::Errno;

use super::FileContext;
use super::error::{failed, io_failed, refused};
use super::open::{Identity, open_fifo, open_regular};
use super::path::{LastLink, Parents, locate};
use super::write::discard;
use crate::plan::files::{FileError, FileErrorKind};

/// Of a source: what a pipe holds by default (pipe(7)), so that it is written without waiting for its reader.
const SOURCE_BYTES_MAX: usize = 64 << 10;

const MODE: u32 = 0o644;

/// The fifo, or the place where it was.
#[derive(Debug)]
pub struct Gate {
    parent: OwnedFd,
    name: Vec<u8>,
    identity: Identity,
    writer: OwnedFd,
}

impl Gate {
    /// Makes one at `path`, where nothing is. As all file commands do, with the rights of the session's programs.
    pub fn make(context: &FileContext, path: &[u8]) -> Result<Self, FileError> {
        let place = locate(context, path, LastLink::Kept, Parents::Required)?;
        place.refuse_non_file()?;
        mknodat(&place.parent, place.name.as_slice(), FileType::Fifo, Mode::from_raw_mode(MODE), 0)
            .map_err(failed("make a fifo"))?;
        let opened = open_fifo(&place.parent, &place.name, OFlags::RDONLY).and_then(|reader| {
            // Without a reader this end could not be opened.
            let writer = open_fifo(&place.parent, &place.name, OFlags::WRONLY)?;
            let identify = |end: &OwnedFd| fstat(end).map(|stat| Identity::of(&stat)).map_err(failed("look at a fifo"));
            let identity = identify(&writer)?;
            if identity != identify(&reader)? {
                return Err(refused(FileErrorKind::IoError, "make a fifo that stays"));
            }
            Ok((writer, identity))
        });
        match opened {
            Ok((writer, identity)) => Ok(Self { parent: place.parent, name: place.name, identity, writer }),
            Err(error) => {
                discard(place.parent.as_fd(), &place.name);
                Err(error)
            }
        }
    }

    /// Whether somebody has it open for reading.
    pub fn has_reader(&self) -> bool {
        let mut ends = [PollFd::new(&self.writer, PollFlags::OUT)];
        // Without a reader the kernel says ERR (poll(2)).
        let polled = rustix::event::poll(&mut ends, Some(&Timespec::default()));
        polled.is_ok() && ends[0].revents().contains(PollFlags::OUT) && !ends[0].revents().contains(PollFlags::ERR)
    }

    /// Whether the fifo is at its path.
    pub fn stands(&self) -> bool {
        let there = statat(&self.parent, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        there.is_ok_and(|stat| Identity::of(&stat) == self.identity)
    }

    /// Whether a path leads to the fifo, through links too.
    pub fn is_reached_by(&self, path: &[u8], context: &FileContext) -> bool {
        let place = locate(context, path, LastLink::Followed, Parents::Required);
        place.is_ok_and(|place| place.found.is_some_and(|found| found.identity == self.identity))
    }

    /// Whether one of these names is beside it, or in the directory above, where what looks for such a thing goes on.
    pub fn is_beside_any(&self, names: &[Vec<u8>]) -> bool {
        let is_there = |path: &[u8]| statat(&self.parent, path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        names.iter().any(|name| is_there(name) || is_there(&[b"../", name.as_slice()].concat()))
    }

    /// Takes it from its path; whoever has opened it goes on waiting.
    pub fn remove(&self) {
        if self.stands() {
            discard(self.parent.as_fd(), &self.name);
        }
    }

    /// What the file holds that is at its path by now; an error when it is more than goes through.
    pub fn source(&self) -> Result<Vec<u8>, FileError> {
        let (file, _) = open_regular(&self.parent, &self.name, OFlags::RDONLY)?;
        let mut source = Vec::new();
        let room = rustix::pipe::fcntl_getpipe_size(&self.writer).map_err(failed("look at a fifo"))?.min(SOURCE_BYTES_MAX);
        std::fs::File::from(file).take(room as u64 + 1).read_to_end(&mut source).map_err(io_failed("read the file"))?;
        if source.len() > room {
            return Err(refused(FileErrorKind::LimitExceeded, "hand over so much"));
        }
        Ok(source)
    }

    /// Hands the source to whoever has the fifo open, and the end of it; to nobody when it holds something already.
    pub fn feed(self, source: &[u8]) -> Result<(), FileError> {
        let held = rustix::io::ioctl_fionread(&self.writer).map_err(failed("look at a fifo"))?;
        if held > 0 {
            return Err(refused(FileErrorKind::IoError, "hand over what is awaited"));
        }
        let written = rustix::io::write(&self.writer, source).map_err(failed("hand over the source"))?;
        if written < source.len() {
            return Err(failed("hand over the source")(Errno::AGAIN));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileTypeExt;

    use super::*;
    use crate::init::files::testbed::Sandbox;

    const PATH: &[u8] = b"/workspace/.main.js";

    fn reader(sandbox: &Sandbox) -> File {
        let file = sandbox.host("/workspace/.main.js");
        File::open(file).expect("the gate keeps an end for writing, so this waits for nobody")
    }

    #[test]
    fn who_opened_it_reads_what_is_fed_and_nobody_else_sees_it() {
        let sandbox = Sandbox::new();
        let gate = Gate::make(&sandbox.context, PATH).expect("the place is free");
        assert!(sandbox.host("/workspace/.main.js").symlink_metadata().expect("there").file_type().is_fifo());
        assert!(!gate.has_reader() && gate.stands());
        let mut file = reader(&sandbox);
        assert!(gate.has_reader());
        gate.remove();
        assert!(!gate.stands() && gate.has_reader() && sandbox.names("/workspace").is_empty());
        sandbox.put("/workspace/.main.js", b"one");
        let source = gate.source().expect("a small file");
        gate.feed(&source).expect("there is room");
        let mut read = String::new();
        file.read_to_string(&mut read).expect("it ends");
        assert_eq!(read, "one");
    }

    #[test]
    fn it_takes_the_place_of_nothing_and_what_took_its_own_is_not_removed() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/.main.js", b"own");
        assert_eq!(Gate::make(&sandbox.context, PATH).expect_err("a file is there").kind, FileErrorKind::AlreadyExists);
        assert_eq!(sandbox.get("/workspace/.main.js"), b"own");
        std::fs::remove_file(sandbox.host("/workspace/.main.js")).expect("it is there");
        let gate = Gate::make(&sandbox.context, PATH).expect("the place is free");
        std::fs::remove_file(sandbox.host("/workspace/.main.js")).expect("it is there");
        sandbox.put("/workspace/.main.js", b"new");
        assert!(!gate.stands() && !gate.has_reader());
        gate.remove();
        assert_eq!(sandbox.get("/workspace/.main.js"), b"new");
    }

    #[test]
    fn what_is_too_large_or_was_written_by_somebody_else_is_not_fed() {
        let sandbox = Sandbox::new();
        let gate = Gate::make(&sandbox.context, PATH).expect("the place is free");
        gate.remove();
        sandbox.put("/workspace/.main.js", &vec![b'x'; SOURCE_BYTES_MAX + 1]);
        assert_eq!(gate.source().expect_err("more than a pipe holds").kind, FileErrorKind::LimitExceeded);
        sandbox.put("/workspace/.main.js", &vec![b'x'; SOURCE_BYTES_MAX]);
        assert_eq!(gate.source().expect("as much as a pipe holds").len(), SOURCE_BYTES_MAX);
        let other = Sandbox::new();
        let gate = Gate::make(&other.context, PATH).expect("the place is free");
        let _reader = reader(&other);
        let mut stranger = File::options().write(true).open(other.host("/workspace/.main.js")).expect("a fifo");
        stranger.write_all(b"foreign").expect("room in the pipe");
        assert!(gate.feed(b"one").is_err());
    }

    #[test]
    fn a_name_beside_it_is_found_and_one_elsewhere_is_not() {
        let sandbox = Sandbox::new();
        let gate = Gate::make(&sandbox.context, PATH).expect("the place is free");
        sandbox.put("/workspace/sub/package.json", b"{}");
        let names = [b"deno.json".to_vec(), b"package.json".to_vec()];
        assert!(!gate.is_beside_any(&names));
        std::os::unix::fs::symlink("nowhere", sandbox.host("/workspace/package.json")).expect("room on the disk");
        assert!(gate.is_beside_any(&names), "a link that leads nowhere is one too");
        std::fs::remove_file(sandbox.host("/workspace/package.json")).expect("just made");
        assert!(!gate.is_beside_any(&names));
        sandbox.put("/deno.json", b"{}");
        assert!(gate.is_beside_any(&names), "and one above");
    }
}

//! What stands in the place of a program's source until the source is known, and makes whoever was started for it wait: a fifo, or an
//! empty file beside another one that names what is to be loaded first.
//!
//! Invariants: it takes the place of nothing, and nothing takes its own while somebody may come for it; of what is waited on init keeps
//! only its own end, so the other end says whether somebody waits.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, mknodat, statat};
use rustix::io::Errno;

use super::FileContext;
use super::error::{failed, io_failed, refused};
use super::open::{Identity, create_file, for_each_entry, open_directory, open_fifo, open_regular};
use super::path::{LastLink, Parents, Place, locate};
use super::write::discard;
use crate::plan::files::{FileError, FileErrorKind};
use crate::plan::messages::WaitsIn;
use crate::sys::socket;

/// Of a source: what a pipe holds by default (pipe(7)), so that it is written without waiting for its reader.
const SOURCE_BYTES_MAX: usize = 64 << 10;

const MODE: u32 = 0o644;

/// Entries of the directory that are kept in mind.
const NEIGHBOURS_MAX: usize = 1024;

/// What stands there, or the place where it stood.
#[derive(Debug)]
pub struct Gate {
    parent: OwnedFd,
    /// In the source's place first.
    entries: Vec<Entry>,
    way: Way,
}

/// Something that was made.
#[derive(Debug)]
struct Entry {
    name: Vec<u8>,
    identity: Identity,
    /// As long as it is open nothing else gets its number; the fifo's end does that too.
    _file: Option<OwnedFd>,
}

/// How what comes is handed over.
#[derive(Debug)]
enum Way {
    /// Through the fifo: the end that is written to.
    Source(OwnedFd),
    /// It finds it in its place, at a word.
    Word(OwnedFd),
}

impl Gate {
    /// Makes one at `path`, where nothing is. As all file commands do, with the rights of the session's programs. Gives what the program
    /// is to have at [`WARM_SOCKET`](crate::plan::messages::WARM_SOCKET), if anything.
    pub fn make(context: &FileContext, path: &[u8], waits_in: &WaitsIn) -> Result<(Self, Option<OwnedFd>), FileError> {
        let place = locate(context, path, LastLink::Kept, Parents::Required)?;
        place.refuse_non_file()?;
        match waits_in {
            WaitsIn::Source => Ok((Self::with_fifo(place)?, None)),
            WaitsIn::Preload { name, content } => {
                let (ours, theirs) = socket::pair().map_err(|error| failed("make a socket")(error.errno))?;
                let mut gate = Self { parent: place.parent, entries: Vec::new(), way: Way::Word(ours) };
                for (name, content) in [(&place.name, &[][..]), (name, content)] {
                    if let Err(error) = gate.add_file(name, content) {
                        gate.remove();
                        return Err(error);
                    }
                }
                Ok((gate, Some(theirs)))
            }
        }
    }

    fn with_fifo(place: Place) -> Result<Self, FileError> {
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
            Ok((writer, identity)) => {
                let entries = vec![Entry { name: place.name, identity, _file: None }];
                Ok(Self { parent: place.parent, entries, way: Way::Source(writer) })
            }
            Err(error) => {
                discard(place.parent.as_fd(), &place.name);
                Err(error)
            }
        }
    }

    fn add_file(&mut self, name: &[u8], content: &[u8]) -> Result<(), FileError> {
        let file = create_file(&self.parent, name, Mode::from_raw_mode(MODE)).map_err(failed("make a file"))?;
        let identity = fstat(&file).map(|stat| Identity::of(&stat)).map_err(|errno| {
            discard(self.parent.as_fd(), name);
            failed("look at a file")(errno)
        })?;
        let mut file = std::fs::File::from(file);
        let written = file.write_all(content).map_err(io_failed("write the file"));
        self.entries.push(Entry { name: name.to_vec(), identity, _file: Some(file.into()) });
        written
    }

    /// Whether somebody waits.
    pub fn has_waiter(&self) -> bool {
        let (end, event) = match &self.way {
            Way::Source(writer) => (writer, PollFlags::OUT),
            Way::Word(socket) => (socket, PollFlags::IN),
        };
        let mut ends = [PollFd::new(end, event)];
        // Without a reader the kernel says ERR of a pipe, HUP of a socket (poll(2)).
        let polled = rustix::event::poll(&mut ends, Some(&Timespec::default()));
        let events = ends[0].revents();
        polled.is_ok() && events.contains(event) && !events.intersects(PollFlags::ERR | PollFlags::HUP)
    }

    /// Whether a path leads to what stands there, through links too.
    pub fn is_reached_by(&self, path: &[u8], context: &FileContext) -> bool {
        let place = locate(context, path, LastLink::Followed, Parents::Required);
        let found = place.ok().and_then(|place| place.found);
        found.is_some_and(|found| self.entries.iter().any(|entry| entry.identity == found.identity))
    }

    /// Whether a path ends in a name of its own.
    pub fn has_name_of(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next();
        self.entries.iter().any(|entry| Some(entry.name.as_slice()) == name)
    }

    /// Names and kinds of what is beside it, in order; none when that is too much to keep.
    pub fn neighbours(&self) -> Option<Vec<(Vec<u8>, FileType)>> {
        let directory = open_directory(&self.parent, b".").ok()?;
        let mut found = Vec::new();
        let read = for_each_entry(&directory, |name, kind| {
            if self.entries.iter().all(|entry| entry.name != name) {
                found.push((name.to_vec(), kind));
            }
            if found.len() > NEIGHBOURS_MAX { Err(refused(FileErrorKind::LimitExceeded, "keep so many names")) } else { Ok(()) }
        });
        found.sort_by(|one, other| one.0.cmp(&other.0));
        read.ok().map(|()| found)
    }

    /// Whether one of these names is beside it, or in the directory above, where what looks for such a thing goes on.
    pub fn is_beside_any(&self, names: &[Vec<u8>]) -> bool {
        let is_there = |path: &[u8]| statat(&self.parent, path, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        let is_own = |name: &[u8]| self.entries.iter().any(|entry| entry.name == name && self.stands(entry));
        names.iter().any(|name| is_there(name) && !is_own(name) || is_there(&[b"../", name.as_slice()].concat()))
    }

    fn stands(&self, entry: &Entry) -> bool {
        let there = statat(&self.parent, entry.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
        there.is_ok_and(|stat| Identity::of(&stat) == entry.identity)
    }

    /// Takes it from its place; who waits goes on waiting.
    pub fn remove(&self) {
        for entry in self.entries.iter().filter(|entry| self.stands(entry)) {
            discard(self.parent.as_fd(), &entry.name);
        }
    }

    /// What is to be handed over of the file that is in the source's place by now; an error when it is more than goes through.
    pub fn source(&self) -> Result<Vec<u8>, FileError> {
        let name = self.entries.first().map(|entry| entry.name.as_slice()).unwrap_or_default();
        let (file, _) = open_regular(&self.parent, name, OFlags::RDONLY)?;
        let mut source = Vec::new();
        let Way::Source(writer) = &self.way else { return Ok(source) };
        let room = rustix::pipe::fcntl_getpipe_size(writer).map_err(failed("look at a fifo"))?.min(SOURCE_BYTES_MAX);
        std::fs::File::from(file).take(room as u64 + 1).read_to_end(&mut source).map_err(io_failed("read the file"))?;
        if source.len() > room {
            return Err(refused(FileErrorKind::LimitExceeded, "hand over so much"));
        }
        Ok(source)
    }

    /// Hands whoever waits the source and the end of it, or the word that it is in its place; nobody anything when the fifo holds something
    /// already.
    pub fn feed(self, source: &[u8]) -> Result<(), FileError> {
        let writer = match self.way {
            Way::Source(writer) => writer,
            Way::Word(socket) => {
                // What is unread when this end closes would undo the word (unix(7): ECONNRESET).
                let mut waits = [0];
                let read = rustix::io::read(&socket, &mut waits).map_err(failed("hear who waits"))?;
                let said = rustix::io::write(&socket, b"g").map_err(failed("hand over the source"))?;
                return if read == said { Ok(()) } else { Err(failed("hand over the source")(Errno::PIPE)) };
            }
        };
        let held = rustix::io::ioctl_fionread(&writer).map_err(failed("look at a fifo"))?;
        if held > 0 {
            return Err(refused(FileErrorKind::IoError, "hand over what is awaited"));
        }
        let written = rustix::io::write(&writer, source).map_err(failed("hand over the source"))?;
        if written < source.len() {
            return Err(failed("hand over the source")(Errno::AGAIN));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileTypeExt;

    use super::*;
    use crate::init::files::testbed::Sandbox;

    const PATH: &[u8] = b"/workspace/.main.js";

    fn fifo(sandbox: &Sandbox) -> Result<Gate, FileError> {
        Gate::make(&sandbox.context, PATH, &WaitsIn::Source).map(|(gate, _)| gate)
    }

    fn stands(gate: &Gate) -> bool {
        gate.entries.iter().all(|entry| gate.stands(entry))
    }

    fn reader(sandbox: &Sandbox) -> File {
        let file = sandbox.host("/workspace/.main.js");
        File::open(file).expect("the gate keeps an end for writing, so this waits for nobody")
    }

    #[test]
    fn who_opened_it_reads_what_is_fed_and_nobody_else_sees_it() {
        let sandbox = Sandbox::new();
        let gate = fifo(&sandbox).expect("the place is free");
        assert!(sandbox.host("/workspace/.main.js").symlink_metadata().expect("there").file_type().is_fifo());
        assert!(!gate.has_waiter() && gate.stands(&gate.entries[0]));
        let mut file = reader(&sandbox);
        assert!(gate.has_waiter());
        gate.remove();
        assert!(!stands(&gate) && gate.has_waiter() && sandbox.names("/workspace").is_empty());
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
        assert_eq!(fifo(&sandbox).expect_err("a file is there").kind, FileErrorKind::AlreadyExists);
        assert_eq!(sandbox.get("/workspace/.main.js"), b"own");
        std::fs::remove_file(sandbox.host("/workspace/.main.js")).expect("it is there");
        let gate = fifo(&sandbox).expect("the place is free");
        std::fs::remove_file(sandbox.host("/workspace/.main.js")).expect("it is there");
        sandbox.put("/workspace/.main.js", b"new");
        assert!(!stands(&gate) && !gate.has_waiter());
        gate.remove();
        assert_eq!(sandbox.get("/workspace/.main.js"), b"new");
    }

    #[test]
    fn what_is_too_large_or_was_written_by_somebody_else_is_not_fed() {
        let sandbox = Sandbox::new();
        let gate = fifo(&sandbox).expect("the place is free");
        gate.remove();
        sandbox.put("/workspace/.main.js", &vec![b'x'; SOURCE_BYTES_MAX + 1]);
        assert_eq!(gate.source().expect_err("more than a pipe holds").kind, FileErrorKind::LimitExceeded);
        sandbox.put("/workspace/.main.js", &vec![b'x'; SOURCE_BYTES_MAX]);
        assert_eq!(gate.source().expect("as much as a pipe holds").len(), SOURCE_BYTES_MAX);
        let other = Sandbox::new();
        let gate = fifo(&other).expect("the place is free");
        let _reader = reader(&other);
        let mut stranger = File::options().write(true).open(other.host("/workspace/.main.js")).expect("a fifo");
        stranger.write_all(b"foreign").expect("room in the pipe");
        assert!(gate.feed(b"one").is_err());
    }

    #[test]
    fn a_name_beside_it_is_found_and_one_elsewhere_is_not() {
        let sandbox = Sandbox::new();
        let gate = fifo(&sandbox).expect("the place is free");
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

    #[test]
    fn who_waits_before_its_source_finds_two_files_that_go_and_is_told_by_a_word() {
        let sandbox = Sandbox::new();
        let waits_in = WaitsIn::Preload { name: b"bunfig.toml".to_vec(), content: b"preload = []".to_vec() };
        let make = || Gate::make(&sandbox.context, PATH, &waits_in);
        sandbox.put("/workspace/bunfig.toml", b"own");
        assert_eq!(make().expect_err("there is one already").kind, FileErrorKind::AlreadyExists);
        assert_eq!(sandbox.get("/workspace/bunfig.toml"), b"own");
        assert_eq!(sandbox.names("/workspace").len(), 1, "and nothing else");
        std::fs::remove_file(sandbox.host("/workspace/bunfig.toml")).expect("just made");
        let (gate, theirs) = make().expect("the places are free");
        let theirs = theirs.expect("what it waits on");
        assert_eq!(sandbox.get("/workspace/bunfig.toml"), b"preload = []");
        assert_eq!(sandbox.get("/workspace/.main.js"), b"", "what must be there and may be run");
        assert!(!gate.is_beside_any(&[b"bunfig.toml".to_vec()]), "its own");
        assert!(gate.is_reached_by(b"/workspace/bunfig.toml", &sandbox.context));
        assert!(gate.is_reached_by(PATH, &sandbox.context) && !gate.has_waiter());
        assert_eq!(gate.neighbours(), Some(Vec::new()), "without its own");
        sandbox.put("/workspace/part.js", b"");
        assert_eq!(gate.neighbours(), Some(vec![(b"part.js".to_vec(), FileType::RegularFile)]));
        std::fs::remove_file(sandbox.host("/workspace/part.js")).expect("just made");
        (0..=NEIGHBOURS_MAX).for_each(|number| sandbox.put(&format!("/workspace/{number}"), b""));
        assert_eq!(gate.neighbours(), None, "too many");
        (0..=NEIGHBOURS_MAX)
            .for_each(|number| std::fs::remove_file(sandbox.host(&format!("/workspace/{number}"))).expect("made"));
        rustix::io::write(&theirs, b"r").expect("both ends are open");
        assert!(gate.has_waiter());
        gate.remove();
        assert!(sandbox.names("/workspace").is_empty() && gate.has_waiter());
        assert_eq!(gate.source().expect_err("no source yet").kind, FileErrorKind::FileNotFound);
        sandbox.put("/workspace/.main.js", &vec![b'x'; SOURCE_BYTES_MAX + 1]);
        sandbox.put("/workspace/bunfig.toml", b"another");
        assert!(gate.is_beside_any(&[b"bunfig.toml".to_vec()]), "no longer its own");
        let source = gate.source().expect("whatever its size");
        gate.feed(&source).expect("it waits");
        let mut word = [0; 2];
        assert_eq!(rustix::io::read(&theirs, &mut word).expect("a word, though the other end is closed"), 1);
        let (gate, theirs) = Gate::make(&Sandbox::new().context, PATH, &waits_in).expect("the places are free");
        rustix::io::write(theirs.as_ref().expect("there"), b"r").expect("both ends are open");
        drop(theirs);
        assert!(!gate.has_waiter(), "it has ended");
    }
}

//! `read_file`: a span of a regular file.
//!
//! A large one goes into a memory file, which the kernel copies it into.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::FileContext;
use super::budget::Budget;
use super::error::{failed, io_failed, refused};
use super::open::open_regular;
use super::path::{LastLink, Parents, locate};
use crate::plan::files::{CONTENTS_INLINE_BYTES_MAX, Contents, FileError, FileErrorKind, FileReply};
use crate::sys::memory;

/// Bytes copied at once, so that the clock is looked at in between.
const CHUNK_BYTES: u64 = 4 << 20;

/// Which bytes.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The first.
    pub offset: u64,
    /// How many at most.
    pub length: u64,
}

/// Reads what the file holds of `span`; `filled` is the memory file that a large one is in. A file that grows meanwhile is read up to the size it
/// had when it was opened.
pub fn read(
    context: &FileContext,
    budget: &Budget,
    path: &[u8],
    span: Span,
    filled: &mut Option<OwnedFd>,
) -> Result<FileReply, FileError> {
    let place = locate(context, path, LastLink::Followed, Parents::Required)?;
    place.require()?;
    place.refuse_non_file()?;
    let (file, stat) = open_regular(&place.parent, &place.name, OFlags::RDONLY)?;
    let mut file = File::from(file);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let wanted = span.length.min(size.saturating_sub(span.offset));
    if wanted > 0 {
        file.seek(SeekFrom::Start(span.offset)).map_err(io_failed("read the file"))?;
    }
    let (content, count) = if wanted > CONTENTS_INLINE_BYTES_MAX as u64 {
        let mut carrier = memory::message_carrier().map_err(|error| failed("carry the contents")(error.errno))?;
        let count = copy(&file, wanted, budget, &mut carrier)?;
        *filled = Some(carrier.into());
        (Contents::Carried, count)
    } else {
        let mut bytes = Vec::with_capacity(wanted as usize);
        let count = copy(&file, wanted, budget, &mut bytes)?;
        (Contents::Inline(bytes), count)
    };
    let end = span.offset.saturating_add(count);
    let size = if count < wanted { size.min(end) } else { size };
    Ok(FileReply::Read { truncated: end < size, size, content })
}

/// Copies at most `wanted` bytes from where the file stands; how many there were.
fn copy(file: &File, wanted: u64, budget: &Budget, into: &mut impl Write) -> Result<u64, FileError> {
    let mut copied = 0;
    while copied < wanted {
        budget.check_time()?;
        // std copies from file to file inside the kernel.
        let count =
            std::io::copy(&mut file.take(CHUNK_BYTES.min(wanted - copied)), into).map_err(
                |error| match Errno::from_io_error(&error) {
                    Some(Errno::NOMEM | Errno::NOSPC) => refused(FileErrorKind::LimitExceeded, "hold the contents in memory"),
                    _ => io_failed("read the file")(error),
                },
            )?;
        if count == 0 {
            break;
        }
        copied += count;
    }
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::WriteMode;
    use crate::init::files::testbed::Sandbox;
    use crate::init::files::{Carriers, run};
    use crate::plan::files::FileCommand;

    #[test]
    fn a_span_in_the_middle_says_that_more_follows_and_the_last_one_does_not() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"0123456789");
        assert_eq!(
            sandbox.read_span("a", 2, 3),
            Ok(FileReply::Read { content: b"234".to_vec().into(), size: 10, truncated: true })
        );
        assert_eq!(
            sandbox.read_span("a", 7, 30),
            Ok(FileReply::Read { content: b"789".to_vec().into(), size: 10, truncated: false })
        );
    }

    #[test]
    fn past_the_end_there_is_nothing_and_no_error() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"0123");
        let nothing = Ok(FileReply::Read { content: vec![].into(), size: 4, truncated: false });
        assert_eq!(sandbox.read_span("a", 4, 1), nothing);
        assert_eq!(sandbox.read_span("a", u64::MAX, u64::MAX), nothing);
    }

    #[test]
    fn a_sparse_file_costs_no_more_memory_than_the_span() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"");
        let file = File::options().write(true).open(sandbox.host("/workspace/a")).expect("just made");
        file.set_len(1 << 40).expect("a hole costs nothing");
        let reply = sandbox.read_span("a", 1 << 39, 4).expect("it is a regular file");
        assert_eq!(reply, FileReply::Read { content: vec![0; 4].into(), size: 1 << 40, truncated: true });
    }

    #[test]
    fn what_is_not_there_and_what_is_no_file_are_told_apart() {
        let sandbox = Sandbox::new();
        assert_eq!(sandbox.read("none").expect_err("nothing there").kind, FileErrorKind::FileNotFound);
        assert_eq!(sandbox.read("/workspace").expect_err("a directory").kind, FileErrorKind::NotARegularFile);
        sandbox.put("/workspace/a", b"x");
        assert_eq!(sandbox.read("a/b").expect_err("a file as a parent").kind, FileErrorKind::NotADirectory);
        assert_eq!(sandbox.read("a/").expect_err("a slash after a file").kind, FileErrorKind::NotADirectory);
        assert_eq!(sandbox.read("a"), Ok(b"x".to_vec()));
    }

    #[test]
    fn large_contents_go_beside_the_message_and_come_as_they_are() {
        let sandbox = Sandbox::new();
        let content: Vec<u8> = (0..9_000_000_u32).map(|at| (at % 251) as u8).collect();
        let written = FileReply::Written { bytes: content.len() as u64 };
        assert_eq!(sandbox.write("a", &content), Ok(written));
        assert!(sandbox.get("/workspace/a") == content);
        let span = FileCommand::Read { path: b"a".to_vec(), offset: 1_000_000, length: 5_000_000 };
        let mut carriers = Carriers::default();
        let reply = run(span, &sandbox.context, &mut carriers).expect("read");
        assert_eq!(reply, FileReply::Read { content: Contents::Carried, size: 9_000_000, truncated: true });
        let carrier = carriers.filled.expect("beside the answer");
        assert!(memory::read_carrier(carrier, u64::MAX).expect("read") == content[1_000_000..6_000_000]);
    }

    #[test]
    fn contents_that_are_said_to_come_and_do_not_are_an_error() {
        let sandbox = Sandbox::new();
        let (path, mode) = (b"a".to_vec(), WriteMode::Create);
        let command = FileCommand::Write { path, content: Contents::Carried, mode, permissions: None };
        let error = run(command, &sandbox.context, &mut Carriers::default()).expect_err("nothing came");
        assert_eq!(error.operation, "take the contents");
        assert_eq!(sandbox.names("/workspace"), Vec::<String>::new());
    }
}

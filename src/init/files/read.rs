//! `read_file`: a span of a regular file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::OFlags;

use super::FileContext;
use super::budget::Budget;
use super::error::{io_failed, refused};
use super::open::open_regular;
use super::path::{LastLink, Parents, locate};
use crate::plan::files::{FileError, FileErrorKind, FileReply};

/// Bytes per read call, so that the clock is looked at in between.
const CHUNK_BYTES: usize = 4 << 20;

/// Which bytes.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// The first.
    pub offset: u64,
    /// How many at most.
    pub length: u64,
}

/// Reads what the file holds of `span`. A file that grows meanwhile is read up to the size it had when it was opened.
pub fn read(context: &FileContext, budget: &Budget, path: &[u8], span: Span) -> Result<FileReply, FileError> {
    let place = locate(context, path, LastLink::Followed, Parents::Required)?;
    place.require()?;
    place.refuse_non_file()?;
    let (file, stat) = open_regular(&place.parent, &place.name, OFlags::RDONLY)?;
    let file = File::from(file);
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let wanted = usize::try_from(span.length.min(size.saturating_sub(span.offset))).unwrap_or(usize::MAX);
    let mut content = Vec::new();
    content.try_reserve_exact(wanted).map_err(|_| refused(FileErrorKind::LimitExceeded, "hold the contents in memory"))?;
    while content.len() < wanted {
        budget.check_time()?;
        let filled = content.len();
        content.resize(wanted.min(filled + CHUNK_BYTES), 0);
        let count = file.read_at(&mut content[filled..], span.offset + filled as u64).map_err(io_failed("read the file"))?;
        content.truncate(filled + count);
        if count == 0 {
            break;
        }
    }
    let ended = content.len() < wanted;
    let end = span.offset.saturating_add(content.len() as u64);
    let size = if ended { size.min(end) } else { size };
    Ok(FileReply::Read { truncated: end < size, size, content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::files::testbed::Sandbox;

    #[test]
    fn a_span_in_the_middle_says_that_more_follows_and_the_last_one_does_not() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"0123456789");
        assert_eq!(sandbox.read_span("a", 2, 3), Ok(FileReply::Read { content: b"234".to_vec(), size: 10, truncated: true }));
        assert_eq!(sandbox.read_span("a", 7, 30), Ok(FileReply::Read { content: b"789".to_vec(), size: 10, truncated: false }));
    }

    #[test]
    fn past_the_end_there_is_nothing_and_no_error() {
        let sandbox = Sandbox::new();
        sandbox.put("/workspace/a", b"0123");
        let nothing = Ok(FileReply::Read { content: vec![], size: 4, truncated: false });
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
        assert_eq!(reply, FileReply::Read { content: vec![0; 4], size: 1 << 40, truncated: true });
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
}

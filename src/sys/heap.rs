//! The allocator: the C library's, but for blocks of two mebibytes and more, which are mappings of their own that begin at a huge page.
//!
//! A file of 8 MiB goes through half a dozen buffers of its size on its way between a client's JSON and a session. Each is taken from the
//! kernel and given back, so that a server at rest is small, and each of its 2,048 pages would fault: by measurement 55 of 105 ms for one
//! `write_file`. In huge pages a buffer is four faults. A server asks for them; in a sandbox they would be charged to its session.
//!
//! Invariant: which of the two a block comes from is told by its layout alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// The size of a huge page, and of the blocks that get them: less would be mostly unused.
pub(super) const HUGE_BYTES: usize = 2 << 20;

static HUGE_PAGES: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static HEAP: Heap = Heap;

/// Has this process' large blocks put into huge pages from now on, where the kernel has some (madvise(2), `MADV_HUGEPAGE`).
pub fn use_huge_pages() {
    HUGE_PAGES.store(true, Ordering::Relaxed);
}

struct Heap;

// SAFETY: a block that is large by its layout is a mapping of `mapped` bytes that is given back only by `dealloc`, or in part by `realloc`;
// every other one is the C library's from the beginning to the end, since `is_large` looks at the layout, which the caller must give back as it
// was. Neither panics.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            map(layout.size())
        } else {
            // SAFETY: the caller's layout.
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            // The kernel's pages are.
            map(layout.size())
        } else {
            // SAFETY: the caller's layout.
            unsafe { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: `map` made it, this long, and the caller uses it no more.
            unsafe { libc::munmap(block.cast(), mapped(layout.size())) };
        } else {
            // SAFETY: it came from there with this layout.
            unsafe { System.dealloc(block, layout) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller sees to it that the size fits the alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (is_large(layout), is_large(new_layout)) {
            // SAFETY: it came from there with this layout.
            (false, false) => unsafe { System.realloc(block, layout, new_size) },
            (true, true) if mapped(new_size) <= mapped(layout.size()) => {
                let left = mapped(layout.size()) - mapped(new_size);
                if left > 0 {
                    // SAFETY: the end of the block's own mapping, which the caller will not use any more.
                    unsafe { libc::munmap(block.add(mapped(new_size)).cast(), left) };
                }
                block
            }
            (true, _) | (_, true) => {
                // SAFETY: as the caller's; the old block is valid for its size and the new one for its own.
                unsafe {
                    let new = self.alloc(new_layout);
                    if !new.is_null() {
                        ptr::copy_nonoverlapping(block, new, layout.size().min(new_size));
                        self.dealloc(block, layout);
                    }
                    new
                }
            }
        }
    }
}

fn is_large(layout: Layout) -> bool {
    layout.size() >= HUGE_BYTES && layout.align() <= HUGE_BYTES
}

/// Bytes of the mapping of a large block; no layout is so large that this overflows.
fn mapped(size: usize) -> usize {
    size.next_multiple_of(HUGE_BYTES)
}

/// A new mapping that begins at a huge page; null when the kernel has none.
fn map(size: usize) -> *mut u8 {
    let wanted = mapped(size);
    let Some(length) = wanted.checked_add(HUGE_BYTES) else { return ptr::null_mut() };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new private mapping at a place of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return ptr::null_mut();
    }
    let start = start.cast::<u8>();
    let before = start.align_offset(HUGE_BYTES);
    // SAFETY: both are parts of the mapping just made, which is longer than what is wanted by the two together.
    unsafe {
        if before > 0 {
            libc::munmap(start.cast(), before);
        }
        let block = start.add(before);
        libc::munmap(block.add(wanted).cast(), HUGE_BYTES - before);
        if HUGE_PAGES.load(Ordering::Relaxed) {
            // A kernel without them refuses, and the pages are small ones.
            libc::madvise(block.cast(), wanted, libc::MADV_HUGEPAGE);
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_its_bytes_through_every_size_and_begins_at_a_huge_page_when_it_is_large() {
        let sizes =
            [1, 1000, HUGE_BYTES - 1, HUGE_BYTES, HUGE_BYTES + 1, 5 * HUGE_BYTES, 3 * HUGE_BYTES - 7, 17, 4 * HUGE_BYTES];
        for first in sizes {
            let mut bytes = vec![7_u8; first];
            for size in sizes {
                let kept = bytes.len().min(size);
                bytes.truncate(size);
                bytes.shrink_to_fit();
                bytes.reserve_exact(size - bytes.len());
                assert!(bytes.iter().all(|byte| *byte == 7) && bytes.len() == kept);
                assert!(size < HUGE_BYTES || bytes.as_ptr().align_offset(HUGE_BYTES) == 0, "{size}");
                bytes.resize(size, 7);
            }
        }
    }

    #[test]
    fn a_cleared_block_is_clear_and_one_that_no_host_has_is_refused() {
        assert!(vec![0_u8; 3 * HUGE_BYTES + 5].iter().all(|byte| *byte == 0));
        assert!(Vec::<u8>::new().try_reserve_exact(isize::MAX as usize).is_err());
    }
}

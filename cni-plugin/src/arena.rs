//! Memory for one short operation: taken from one piece, given back by the end of the process. It saves the plugin
//! some forty system calls, as musl's allocator returns every small group of pages at once. What does not fit
//! comes from there as before.
#![expect(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Several times what an ADD uses. Pages that are never touched cost nothing.
const SIZE: usize = 512 * 1024;

/// The piece, and how much of it is taken. Only its end can grow, shrink or be given back.
#[repr(align(64))]
pub struct Arena {
    memory: UnsafeCell<[u8; SIZE]>,
    taken: AtomicUsize,
    /// Up to where anybody may have written. What lies behind is zero without a page being touched for it.
    used: AtomicUsize,
}

// SAFETY: a part of `memory` is handed out once, by an atomic step of `taken`, and never touched here after that.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena of which nothing is taken.
    pub const fn new() -> Self {
        Self { memory: UnsafeCell::new([0; SIZE]), taken: AtomicUsize::new(0), used: AtomicUsize::new(0) }
    }

    fn start(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    /// Where `pointer` lies in the piece; `None` if it is the system's.
    fn offset(&self, pointer: *mut u8) -> Option<usize> {
        (pointer as usize).checked_sub(self.start() as usize).filter(|offset| *offset < SIZE)
    }

    /// Moves the end from `from` to `to`, unless somebody else moved it. Returns up to where the piece was used
    /// before: asked only after the move, so that whoever gave the part back has noted his use of it.
    fn move_end(&self, from: usize, to: usize) -> Option<usize> {
        if to > SIZE {
            return None;
        }
        self.taken.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Some(self.used.fetch_max(to, Ordering::AcqRel))
    }

    /// Takes a part: where it starts, and up to where the piece was used before. `None`: it does not fit.
    fn take(&self, layout: Layout) -> Option<(usize, usize)> {
        loop {
            let taken = self.taken.load(Ordering::Relaxed);
            let start = taken.next_multiple_of(layout.align());
            let end = start.saturating_add(layout.size());
            if layout.align() > 64 || end > SIZE {
                return None;
            }
            if let Some(used) = self.move_end(taken, end) {
                return Some((start, used));
            }
        }
    }
}

impl Default for Arena {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: parts do not overlap and are aligned (the piece is aligned to 64, larger alignments are the system's);
// what is not from the piece is passed to the system with the layout it came with.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // SAFETY: `start` lies inside the piece.
            Some((start, _)) => unsafe { self.start().add(start) },
            // SAFETY: the caller's layout.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the part lies inside the piece, and so does that of it which was used before.
        unsafe {
            let Some((start, used)) = self.take(layout) else { return System.alloc_zeroed(layout) };
            let pointer = self.start().add(start);
            pointer.write_bytes(0, used.saturating_sub(start).min(layout.size()));
            pointer
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        match self.offset(pointer) {
            Some(offset) => {
                self.move_end(offset + layout.size(), offset);
            }
            // SAFETY: it came from the system with this layout.
            None => unsafe { System.dealloc(pointer, layout) },
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(pointer) else {
            // SAFETY: it came from the system with this layout.
            return unsafe { System.realloc(pointer, layout, size) };
        };
        if self.move_end(offset + layout.size(), offset.saturating_add(size)).is_some() {
            return pointer;
        }
        // SAFETY: the old part holds `layout.size()` bytes, the new one `size`; they do not overlap.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(pointer, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn parts_are_aligned_and_apart_and_the_last_one_grows_in_place() {
        let arena = Box::new(Arena::new());
        // SAFETY: each pointer is used with its layout, inside its size.
        unsafe {
            let a = arena.alloc(layout(3, 1));
            let b = arena.alloc(layout(8, 8));
            assert_eq!(b as usize % 8, 0);
            a.write_bytes(1, 3);
            b.write_bytes(2, 8);
            assert_eq!(arena.realloc(b, layout(8, 8), 64), b);
            let moved = arena.realloc(a, layout(3, 1), 100);
            assert_ne!(moved, a);
            assert_eq!(std::slice::from_raw_parts(moved, 3), [1, 1, 1]);
            assert_eq!(std::slice::from_raw_parts(b, 8), [2; 8]);
        }
    }

    #[test]
    fn what_does_not_fit_comes_from_the_system_and_goes_back_there() {
        let arena = Box::new(Arena::new());
        // SAFETY: as above.
        unsafe {
            let large = arena.alloc(layout(SIZE + 1, 1));
            assert!(arena.offset(large).is_none());
            large.add(SIZE).write(7);
            let larger = arena.realloc(large, layout(SIZE + 1, 1), 2 * SIZE);
            assert_eq!(larger.add(SIZE).read(), 7);
            arena.dealloc(larger, layout(2 * SIZE, 1));
            let page = arena.alloc(layout(10, 4096));
            assert_eq!(page as usize % 4096, 0);
            arena.dealloc(page, layout(10, 4096));
        }
    }

    #[test]
    fn zeroed_parts_are_zero_whether_used_before_or_not() {
        let arena = Box::new(Arena::new());
        // SAFETY: as above.
        unsafe {
            let fresh = arena.alloc_zeroed(layout(100, 1));
            assert_eq!(std::slice::from_raw_parts(fresh, 100), [0; 100]);
            fresh.write_bytes(7, 100);
            arena.dealloc(fresh, layout(100, 1));
            let again = arena.alloc_zeroed(layout(300, 1));
            assert_eq!(again, fresh);
            assert_eq!(std::slice::from_raw_parts(again, 300), [0; 300]);
            again.write_bytes(7, 300);
            assert_eq!(arena.realloc(again, layout(300, 1), 10), again);
            let behind = arena.alloc_zeroed(layout(400, 1));
            assert_eq!(std::slice::from_raw_parts(behind, 400), [0; 400]);
        }
    }

    #[test]
    fn the_last_part_can_be_given_back_and_is_taken_again() {
        let arena = Box::new(Arena::new());
        // SAFETY: as above.
        unsafe {
            let a = arena.alloc(layout(100, 1));
            arena.dealloc(a, layout(100, 1));
            assert_eq!(arena.alloc(layout(50, 1)), a);
        }
    }
}

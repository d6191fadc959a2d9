//! An allocator that clears what is freed.
//!
//! The secrets of this program zeroize themselves. What passes through libraries on its way (a gRPC message, a TLS record,
//! a page of the store) is freed by code that knows of no secret, and the bytes would stay in the heap for as long as
//! nothing overwrites them.

// A global allocator can't be written without it. Each block below says why it is sound.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// The system's allocator, with every block cleared before it is given back.
pub struct Zeroizing;

// SAFETY: every method hands its arguments to `System` as they came, or gives what `System` gave. Blocks are only written
// to while they belong to the caller that gives them up.
unsafe impl GlobalAlloc for Zeroizing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller promises that `block` was allocated here with `layout`, so it has that many bytes, and that
        // nobody uses it any more.
        unsafe {
            clear(block, layout.size());
            System.dealloc(block, layout);
        }
    }

    /// Always moves: growing in place would be the same, but when `System` moves a block it leaves the old bytes behind.
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `new_size` with this alignment is a layout, and not 0.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: as above.
        let new_block = unsafe { self.alloc(new_layout) };
        if !new_block.is_null() {
            // SAFETY: both blocks have at least the copied bytes and are different allocations; `block` is given up by
            // the caller, because the result is not null.
            unsafe {
                ptr::copy_nonoverlapping(block, new_block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
        }
        new_block
    }
}

/// Clears a block, also when the compiler knows that nobody will read it.
///
/// # Safety
///
/// `block` must have `size` bytes that may be written to.
unsafe fn clear(block: *mut u8, size: usize) {
    // SAFETY: the caller's promise. Once written, the bytes are initialized, so a slice of them may be looked at; the
    // barrier is where the compiler must take them for looked at.
    unsafe {
        ptr::write_bytes(block, 0, size);
        zeroize::optimization_barrier(&*ptr::slice_from_raw_parts(block, size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the block before the allocator gets it back, which is where its own bookkeeping would begin.
    #[test]
    fn clears_a_block_of_any_size() {
        for size in [1, 7, 8, 63, 4_096] {
            let mut block = vec![0xA5_u8; size];
            // SAFETY: the vector has `size` bytes.
            unsafe { clear(block.as_mut_ptr(), size) };
            assert!(block.iter().all(|byte| *byte == 0), "{size} bytes");
        }
    }

    #[test]
    fn a_grown_block_keeps_its_bytes() {
        let layout = Layout::from_size_align(3, 1).unwrap();
        // SAFETY: the block is used within its size and given back with the layout that it was last resized to.
        unsafe {
            let block = Zeroizing.alloc(layout);
            ptr::copy_nonoverlapping(b"abc".as_ptr(), block, 3);
            let grown = Zeroizing.realloc(block, layout, 10_000);
            assert_eq!(&*ptr::slice_from_raw_parts(grown, 3), b"abc");
            Zeroizing.dealloc(grown, Layout::from_size_align(10_000, 1).unwrap());
        }
    }
}

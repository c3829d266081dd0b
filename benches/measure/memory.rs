//! Memory that is alive.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Bytes of all that is allocated now.
pub fn alive() -> i64 {
    ALIVE.load(Relaxed)
}

/// The system's allocator, counting what is alive. Nothing but an allocator can know that, and the trait is unsafe.
struct Counting;

static ALIVE: AtomicI64 = AtomicI64::new(0);

// SAFETY: every call is handed to `System` unchanged; counting touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALIVE.fetch_add(layout.size() as i64, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALIVE.fetch_sub(layout.size() as i64, Relaxed);
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

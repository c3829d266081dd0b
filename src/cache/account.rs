//! What one body takes of the memory: each byte is counted once for as long as anybody has it, as kept while it is kept,
//! and as on its way before, and after, when it gave way and is still read.
//!
//! Invariant: a byte that is let go by all is counted no more, whoever was the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::memory::Memory;

#[derive(Debug)]
pub struct Account {
    memory: Arc<Memory>,
    /// Twice the bytes that somebody has, and one more while they are kept: in one word, as the two change together.
    state: AtomicU64,
}

/// Bytes that take themselves off the account.
struct Piece<B> {
    bytes: B,
    counted: u64,
    account: Arc<Account>,
}

/// As long as it lives the body is kept, and weighed with what is.
#[derive(Debug)]
pub struct Lease(Arc<Account>);

impl Account {
    pub fn new(memory: &Arc<Memory>) -> Arc<Self> {
        Arc::new(Self { memory: Arc::clone(memory), state: AtomicU64::new(0) })
    }

    /// Whether there is room for so much more; then it is counted.
    pub fn comes(&self, bytes: u64) -> bool {
        let has_room = self.memory.comes(bytes);
        if has_room {
            self.state.fetch_add(2 * bytes, Ordering::AcqRel);
        }
        has_room
    }

    /// Counts what must be held, room or not.
    pub fn must_come(&self, bytes: u64) {
        self.memory.must_come(bytes);
        self.state.fetch_add(2 * bytes, Ordering::AcqRel);
    }

    pub fn has_room(&self) -> bool {
        self.memory.must_come(0)
    }

    /// Nobody has so many of them any more.
    pub fn went(&self, bytes: u64) {
        let before = self.state.fetch_sub(2 * bytes, Ordering::AcqRel);
        if before & 1 == 0 {
            self.memory.came(bytes);
        }
    }

    /// Bytes of which `counted` were counted when they came.
    pub fn piece(self: &Arc<Self>, bytes: impl AsRef<[u8]> + Send + 'static, counted: u64) -> Bytes {
        Bytes::from_owner(Piece { bytes, counted, account: Arc::clone(self) })
    }

    /// From now on they are weighed with what is kept. There is one at most.
    pub fn lease(self: &Arc<Self>) -> Arc<Lease> {
        let before = self.state.fetch_or(1, Ordering::AcqRel);
        self.memory.came(before >> 1);
        Arc::new(Lease(Arc::clone(self)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let before = self.0.state.fetch_and(!1, Ordering::AcqRel);
        self.0.memory.must_come(before >> 1);
    }
}

impl<B: AsRef<[u8]>> AsRef<[u8]> for Piece<B> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl<B> Drop for Piece<B> {
    fn drop(&mut self) {
        self.account.went(self.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_counted_once_whoever_has_it() {
        let memory = Memory::new(4 << 20);
        let account = Account::new(&memory);
        assert!(account.comes(1_000) && account.comes(500));
        let (one, two) = (account.piece(vec![1; 1_000], 1_000), account.piece(vec![2; 500], 500));
        assert_eq!(memory.coming(), 1_500);
        let lease = account.lease();
        assert_eq!(memory.coming(), 0, "it is kept");
        let read = one.slice(10..20);
        drop((one, two));
        assert_eq!(memory.coming(), 0, "what nobody has any more was not counted here");
        drop(lease);
        assert_eq!((memory.coming(), &read[..]), (1_000, &[1; 10][..]), "all of the piece is still there");
        drop(read);
        assert_eq!(memory.coming(), 0);
    }

    #[test]
    fn what_finds_no_room_is_not_counted() {
        let memory = Memory::new(4 << 10);
        let account = Account::new(&memory);
        assert!(account.has_room() && !account.comes(2 << 10) && memory.coming() == 0);
        account.must_come(2 << 10);
        assert!(!account.has_room() && memory.coming() == 2 << 10);
        account.went(2 << 10);
        assert_eq!(memory.coming(), 0);
    }
}

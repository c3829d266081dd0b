//! What all routes together may keep: a budget in bytes, shared so that none can push the others out.
//!
//! Invariants: a route may use what the others leave, but always has an equal share: whoever has more gives way to whoever
//! has less. What is kept and what is on its way have parts of one budget. Nobody waits here: who finds another one
//! making room goes on, and the next one makes it.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::marks::{Marks, Purge};
use super::partition::Partition;

/// Of the budget so much is for answers on their way: one in four bytes.
const COMING: u64 = 4;
/// So many addresses that were written to may wait to be told to the other replicas.
const WRITTEN: usize = 4_096;

#[derive(Debug)]
pub struct Memory {
    /// For what is kept.
    budget: u64,
    pub(super) marks: Marks,
    /// Changed as routes come and go, read without a lock.
    partitions: ArcSwap<Vec<Weak<Partition>>>,
    /// Those that live.
    count: AtomicUsize,
    /// What they have together; for a moment it may be less than nothing, as changes of one meet.
    kept: AtomicI64,
    /// Held by who makes others give way.
    shrinking: Mutex<()>,
    /// For answers on their way, and their bytes.
    room: u64,
    coming: AtomicU64,
    /// Where there are other replicas: what was written here.
    written: OnceLock<mpsc::Sender<Box<[u8]>>>,
}

impl Memory {
    pub fn new(budget: u64) -> Arc<Self> {
        let room = budget / COMING;
        Arc::new(Self {
            budget: budget - room,
            marks: Marks::default(),
            partitions: ArcSwap::default(),
            count: AtomicUsize::new(0),
            kept: AtomicI64::new(0),
            shrinking: Mutex::default(),
            room,
            coming: AtomicU64::new(0),
            written: OnceLock::new(),
        })
    }

    /// What may be kept.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// A part of its own for a route.
    pub fn partition(self: &Arc<Self>, namespace: &str, route: &str) -> Arc<Partition> {
        let partition = Arc::new(Partition::new(self, namespace, route));
        self.count.fetch_add(1, Ordering::Relaxed);
        self.partitions.rcu(|known| {
            let living = known.iter().filter(|one| one.strong_count() > 0).cloned();
            living.chain([Arc::downgrade(&partition)]).collect::<Vec<_>>()
        });
        partition
    }

    /// One has gone, with all that it kept.
    pub(super) fn gone(&self, weight: u64) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.changed(weight, 0);
    }

    /// One keeps so much now, and kept so much before.
    pub(super) fn changed(&self, before: u64, now: u64) {
        self.kept.fetch_add(now.cast_signed() - before.cast_signed(), Ordering::Relaxed);
    }

    /// What is not used from now on.
    pub fn purge(&self, purge: Purge) {
        self.marks.purge(purge, || {
            self.partitions.load().iter().filter_map(Weak::upgrade).for_each(|one| one.sweep());
        });
    }

    /// What is at this address has changed, whoever keeps it.
    pub fn change(&self, address: &[u8]) {
        self.marks.change(address);
    }

    /// A client has changed what is at this address, and other replicas may keep it.
    pub fn write(&self, address: &[u8]) {
        self.change(address);
        if let Some(written) = self.written.get() {
            // What finds no room is told to nobody: this is done as well as it can be.
            let _ = written.try_send(address.into());
        }
    }

    /// For who tells the other replicas, once: the addresses that are written to from now on.
    pub fn writes(&self) -> Option<mpsc::Receiver<Box<[u8]>>> {
        let (written, writes) = mpsc::channel(WRITTEN);
        self.written.set(written).ok().map(|()| writes)
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed).max(0).cast_unsigned()
    }

    /// Bytes of answers on their way.
    pub fn coming(&self) -> u64 {
        self.coming.load(Ordering::Relaxed)
    }

    /// Makes room for `more` bytes of `of`, and says how many it may have in all.
    pub(super) fn make_room(&self, of: &Partition, more: u64) {
        let share = self.budget / (self.count.load(Ordering::Relaxed).max(1) as u64);
        let own = of.weight();
        let wanted = (own + more).min(share);
        if self.kept().saturating_sub(own) + wanted > self.budget {
            self.shrink_others(of, wanted, share);
        }
        let others = self.kept().saturating_sub(of.weight());
        of.resize(self.budget.saturating_sub(others).max(share));
    }

    /// The others have more than is left for them, so some have more than their share.
    fn shrink_others(&self, of: &Partition, wanted: u64, share: u64) {
        let Ok(_alone) = self.shrinking.try_lock() else { return };
        let mut excess = (self.kept().saturating_sub(of.weight()) + wanted).saturating_sub(self.budget);
        for one in self.partitions.load().iter().filter_map(Weak::upgrade) {
            if excess == 0 {
                return;
            }
            if std::ptr::eq(&raw const *one, of) {
                continue;
            }
            let over = one.weight().saturating_sub(share).min(excess);
            if over > 0 {
                one.shrink_to(one.weight() - over);
                excess -= over;
            }
        }
    }

    /// Whether there is room for so much more on its way; then it is counted.
    pub(super) fn comes(&self, bytes: u64) -> bool {
        let before = self.coming.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.room {
            self.coming.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Counts what must be held, room or not; whether there was room.
    pub(super) fn must_come(&self, bytes: u64) -> bool {
        self.coming.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.room
    }

    pub(super) fn came(&self, bytes: u64) {
        self.coming.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::cache::tests::stored;

    #[test]
    fn what_is_remembered_about_keys_has_its_part_of_the_budget() {
        let memory = Memory::new((4 << 20) / 3);
        let (one, two) = (memory.partition("shop", "one"), memory.partition("shop", "two"));
        let now = tokio::time::Instant::now();
        let long = |index: usize| format!("key {index} {}", "x".repeat(8 << 10)).into_bytes();
        one.alone(&long(0), 0, now);
        let each = memory.kept();
        assert!((1..1024).contains(&each), "counted, and not by the client's length: {each}");
        assert!(one.is_alone(&long(0), 0, now) && !one.is_alone(&long(0), 1, now));
        for index in 0..8_000 {
            one.alone(&long(index), 0, now);
            two.alone(&long(index), 0, now);
        }
        assert!(memory.kept() <= memory.budget(), "{} of {}", memory.kept(), memory.budget());
        assert_eq!(memory.kept(), one.weight() + two.weight());
    }

    #[test]
    fn who_finds_another_one_making_room_goes_on() {
        let memory = Memory::new((4 << 20) / 3);
        let (one, two) = (memory.partition("shop", "one"), memory.partition("shop", "two"));
        let key = |index: usize| format!("key {index}").into_bytes();
        (0..16).for_each(|index| one.keep(key(index).into(), stored(&one, 60 << 10)));
        let before = one.weight();
        let alone = memory.shrinking.try_lock().expect("nobody makes room");
        two.keep(key(0).into(), stored(&two, 60 << 10));
        assert!(two.look(&mut key(0), &HeaderMap::new()).is_some() && one.weight() == before);
        drop(alone);
        // The next one makes it.
        two.keep(key(1).into(), stored(&two, 60 << 10));
        assert!(one.weight() < before && memory.kept() <= memory.budget(), "{} of {}", one.weight(), before);
    }
}

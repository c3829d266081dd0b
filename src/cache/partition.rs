//! What one route keeps, and what it fetches now.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::{self, HeaderName};
use quick_cache::sync::Cache;
use quick_cache::sync::DefaultLifecycle;
use quick_cache::{OptionsBuilder, Weighter};
use tokio::time::Instant;

use super::Hasher;
use super::fill::{Fill, Heard, Reader};
use super::judge::Terms;
use super::key;
use super::marks::Place;
use super::memory::Memory;
use super::stored::Stored;

/// A shard is locked on its own; it holds nothing larger than itself.
const SHARD: u64 = 16 << 20;
const MAX_SHARDS: u64 = 16;
/// A size that many answers have, to plan for their number.
const USUAL: u64 = 16 << 10;
/// How long an answer that nobody else may have keeps equal requests from waiting for each other.
const ALONE: Duration = Duration::from_secs(10);
/// An answer that varies by more is not kept.
const MAX_VARY: usize = 16;
const FILLS: usize = 64;

pub struct Partition {
    memory: Arc<Memory>,
    namespace: Box<str>,
    route: Box<str>,
    kept: Cache<Box<[u8]>, Slot, Bytes, Hasher>,
    weight: AtomicU64,
    capacity: AtomicU64,
    /// What is fetched now, by hashes of the keys: workers seldom meet at one of them.
    fills: [Mutex<Fills>; FILLS],
    generations: AtomicU64,
}

type Fills = HashMap<Box<[u8]>, Arc<Fill>, Hasher>;

/// What stands under a key.
#[derive(Clone)]
enum Slot {
    Answer(Arc<Stored>),
    /// There are several, told apart by these fields of the request.
    Varies(Arc<Varies>),
    /// Answers are for those who asked only.
    Alone(Instant),
}

#[derive(Debug)]
struct Varies {
    names: Box<[HeaderName]>,
    /// Part of the keys of its variants.
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bytes;

impl Weighter<Box<[u8]>, Slot> for Bytes {
    fn weight(&self, key: &Box<[u8]>, slot: &Slot) -> u64 {
        match slot {
            Slot::Answer(stored) => stored.weight(key.len()),
            Slot::Varies(_) | Slot::Alone(_) => 256 + key.len() as u64,
        }
    }
}

/// Who fetches what is not there.
pub enum Join {
    /// This request.
    Lead(Lead),
    /// Another one does already.
    Wait(Reader),
    /// It came in the meantime.
    Here(Arc<Stored>),
}

/// A fetch that others may wait for. Dropped before its end, it frees them.
pub struct Lead {
    partition: Arc<Partition>,
    key: Box<[u8]>,
    pub fill: Arc<Fill>,
}

impl Partition {
    pub(super) fn new(memory: &Arc<Memory>, namespace: &str, route: &str) -> Self {
        let budget = memory.budget();
        let shards = (budget / SHARD).clamp(1, MAX_SHARDS);
        let options = OptionsBuilder::new()
            .shards(usize::try_from(shards).unwrap_or(1))
            .estimated_items_capacity(usize::try_from((budget / USUAL).clamp(256, 1 << 18)).unwrap_or(256))
            .weight_capacity(budget)
            .build()
            .expect("every option is given");
        Self {
            memory: Arc::clone(memory),
            namespace: namespace.into(),
            route: route.into(),
            kept: Cache::with_options(options, Bytes, Hasher::default(), DefaultLifecycle::default()),
            weight: AtomicU64::new(0),
            capacity: AtomicU64::new(budget),
            fills: std::array::from_fn(|_| Mutex::default()),
            generations: AtomicU64::new(0),
        }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The moment at which something is asked for.
    pub fn now(&self) -> u64 {
        self.memory.marks.now()
    }

    /// What changes of this address are told to.
    pub fn place(&self, address: &[u8]) -> Arc<Place> {
        self.memory.marks.place(address)
    }

    /// What is kept for a request with this key and head. `key` becomes that of the variant, where there are several.
    pub fn look(&self, key: &mut Vec<u8>, headers: &HeaderMap) -> Option<Arc<Stored>> {
        let slot = match self.kept.get(&key[..]) {
            Some(Slot::Varies(varies)) => {
                key.extend(varies.generation.to_be_bytes());
                key::vary(key, headers, &varies.names);
                self.kept.get(&key[..])
            }
            slot => slot,
        };
        match slot {
            Some(Slot::Answer(stored)) if self.holds(&stored) => Some(stored),
            _ => None,
        }
    }

    /// Whether answers under this key were, lately, for those who asked only; see [`Self::alone`].
    pub fn is_alone(&self, key: &[u8], class: u8, now: Instant) -> bool {
        matches!(self.kept.get(&marked(key, class)[..]), Some(Slot::Alone(until)) if until > now)
    }

    /// Remembers that an answer under this key was for one who asked, of requests of this class.
    pub fn alone(&self, key: &[u8], class: u8, now: Instant) {
        self.put(marked(key, class), Slot::Alone(now + ALONE));
    }

    /// Finds who fetches. `place`: of the address. `is_fresh`: whether what came then on these terms is good enough.
    pub fn join(
        self: &Arc<Self>,
        key: &[u8],
        place: &Arc<Place>,
        is_fresh: impl Fn(&Terms, Instant) -> bool,
    ) -> Join {
        let mut fills = self.fills(key);
        if let Some(fill) = fills.get(key)
            && self.memory.marks.is_current(fill.born, place)
            && let Some(reader) = fill.join(|opening| is_fresh(&opening.terms, opening.received))
        {
            return Join::Wait(reader);
        }
        // It may have been kept between our look and this lock.
        if let Some(Slot::Answer(stored)) = self.kept.get(key)
            && self.holds(&stored)
            && !stored.is_doubted()
            && is_fresh(&stored.terms, stored.received)
        {
            return Join::Here(stored);
        }
        let lead = self.lead(key);
        fills.insert(key.into(), Arc::clone(&lead.fill));
        Join::Lead(lead)
    }

    /// A fetch that nobody else is told of.
    pub fn lead(self: &Arc<Self>, key: &[u8]) -> Lead {
        let fill = Fill::new(self.now(), &self.memory);
        Lead { partition: Arc::clone(self), key: key.into(), fill }
    }

    fn fills(&self, key: &[u8]) -> MutexGuard<'_, Fills> {
        let shard = super::hash(key) as usize % FILLS;
        self.fills[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is at this address has changed.
    pub fn change(&self, address: &[u8]) {
        self.memory.change(address);
    }

    /// Prepares the key under which an answer that varies by `vary` is kept; `None`: by too much, or by anything.
    pub fn variant(&self, key: &[u8], request: &HeaderMap, vary: &[HeaderName]) -> Option<Vec<u8>> {
        let known = match self.kept.get(key) {
            Some(Slot::Varies(varies)) => Some(varies),
            _ => None,
        };
        let mut key = key.to_vec();
        if vary.is_empty() && known.is_none() {
            return Some(key);
        }
        let lacks = |known: &Varies| vary.iter().any(|name| !known.names.contains(name));
        let varies = match known {
            Some(known) if !lacks(&known) => known,
            known => {
                let mut names: Vec<HeaderName> = vary.to_vec();
                names.extend(known.iter().flat_map(|known| known.names.iter().cloned()));
                names.sort_by(|one, two| one.as_str().cmp(two.as_str()));
                names.dedup();
                if names.len() > MAX_VARY {
                    return None;
                }
                let generation = self.generations.fetch_add(1, Ordering::Relaxed);
                let varies = Arc::new(Varies { names: names.into(), generation });
                self.put(key.as_slice().into(), Slot::Varies(Arc::clone(&varies)));
                varies
            }
        };
        key.extend(varies.generation.to_be_bytes());
        key::vary(&mut key, request, &varies.names);
        Some(key)
    }

    /// Keeps an answer, unless it was purged or changed since it was asked for.
    pub fn keep(&self, key: Box<[u8]>, stored: Arc<Stored>) {
        if self.holds(&stored) {
            self.put(key, Slot::Answer(stored));
        }
    }

    pub fn forget(&self, key: &[u8]) {
        self.kept.remove(key);
        self.weigh();
    }

    pub fn holds(&self, stored: &Stored) -> bool {
        let named = stored.named(&self.namespace, &self.route);
        self.memory.marks.holds(stored.born, &stored.place, &stored.checked, named)
    }

    /// Holds all that is kept against the purges that are known.
    pub(super) fn sweep(&self) {
        for (key, slot) in self.kept.iter() {
            if let Slot::Answer(stored) = &slot
                && !self.holds(stored)
            {
                let is_it = |now: &Slot| matches!(now, Slot::Answer(now) if Arc::ptr_eq(now, stored));
                self.kept.remove_if(&key, is_it);
            }
        }
        self.weigh();
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight.load(Ordering::Relaxed)
    }

    pub(super) fn resize(&self, capacity: u64) {
        // Each change visits all shards: small ones wait.
        let known = self.capacity.load(Ordering::Relaxed);
        if known.abs_diff(capacity) > known / 64 {
            self.capacity.store(capacity, Ordering::Relaxed);
            self.kept.set_capacity(capacity);
            self.weigh();
        }
    }

    pub(super) fn shrink_to(&self, capacity: u64) {
        self.capacity.store(capacity, Ordering::Relaxed);
        self.kept.set_capacity(capacity);
        self.weigh();
    }

    fn weigh(&self) {
        let now = self.kept.weight();
        self.memory.changed(self.weight.swap(now, Ordering::Relaxed), now);
    }

    fn put(&self, key: Box<[u8]>, slot: Slot) {
        self.memory.make_room(self, Bytes.weight(&key, &slot));
        self.kept.insert(key, slot);
        self.weigh();
    }
}

impl Lead {
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    pub fn partition(&self) -> &Arc<Partition> {
        &self.partition
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.fill.tell(Heard::Abandoned);
        let mut fills = self.partition.fills(&self.key);
        if fills.get(&self.key).is_some_and(|known| Arc::ptr_eq(known, &self.fill)) {
            fills.remove(&self.key);
        }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.memory.gone(*self.weight.get_mut());
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition of {}/{}", self.namespace, self.route)
    }
}

/// The fields of the request that an answer varies by. `None`: by anything.
pub fn vary(headers: &HeaderMap) -> Option<Box<[HeaderName]>> {
    let mut names = Vec::new();
    for line in headers.get_all(header::VARY) {
        for name in line.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if name == "*" {
                return None;
            }
            names.push(HeaderName::try_from(name).ok()?);
        }
    }
    names.sort_by(|one, two| one.as_str().cmp(two.as_str()));
    names.dedup();
    Some(names.into())
}

/// The key of what is remembered about a key: short, as a client may ask for many. Others that hash alike do not wait for
/// each other either. No answer is kept under the like: their keys begin with a rule's name.
fn marked(key: &[u8], class: u8) -> Box<[u8]> {
    [&[0xff, class][..], &super::hash(key).to_be_bytes()].concat().into()
}

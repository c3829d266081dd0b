//! What was purged or changed since an answer was asked for. What is kept carries the moment at which it was asked for, and
//! who finds it compares.
//!
//! Invariants: an answer that was asked for before a purge or a change is not used after it, whether it was kept, is on
//! its way, or comes later. A change is told to its own address alone: whatever others write, answers elsewhere stay. A
//! purge that is not told apart any more has been held against all that was kept then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;

use super::{Hasher, key};

/// So many purges are told apart.
const MAX_PURGES: usize = 512;
/// Addresses are found in parts that are locked on their own.
const PARTS: usize = 64;
/// A part that has room for more gives back what it does not use.
const ROOMY: usize = 64;

#[derive(Debug)]
pub struct Marks {
    /// Counts changes.
    now: AtomicU64,
    places: Arc<Places>,
    /// Held by who purges, so that the newest is known last.
    purging: Mutex<()>,
    purges: ArcSwap<Purges>,
    newest_purge: AtomicU64,
}

/// The addresses of what is kept or on its way, by hashes of them: two that hash alike change together.
#[derive(Debug)]
struct Places([Mutex<HashMap<u64, Weak<Place>, Hasher>>; PARTS]);

/// One address, for as long as something of it is kept or on its way.
#[derive(Debug)]
pub struct Place {
    hash: u64,
    /// The newest change.
    changed: AtomicU64,
    all: Arc<Places>,
}

#[derive(Debug, Default)]
struct Purges {
    /// Those up to here are not told apart any more: everything that was not held against them counts as purged.
    all_before: u64,
    purges: Vec<(u64, Arc<Purge>)>,
}

/// What is not to be used any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Host and path with query, of both schemes.
    Url {
        host: String,
        target: String,
    },
    /// Of all paths that begin so.
    Prefix {
        host: String,
        path: String,
    },
    /// What the origin marked with `Surrogate-Key` or `Cache-Tag`.
    Tag(String),
    Route {
        namespace: String,
        name: String,
    },
    Everything,
}

/// What of an answer a purge can name.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    pub namespace: &'a str,
    pub route: &'a str,
    /// As [`key::address_of`] writes it.
    pub address: &'a [u8],
    pub tags: &'a [Box<str>],
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            now: AtomicU64::new(1),
            places: Arc::new(Places(std::array::from_fn(|_| Mutex::default()))),
            purging: Mutex::default(),
            purges: ArcSwap::default(),
            newest_purge: AtomicU64::new(0),
        }
    }
}

impl Marks {
    /// The moment at which something is asked for.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// What changes of this address are told to.
    pub fn place(&self, address: &[u8]) -> Arc<Place> {
        let hash = super::hash(address);
        let mut part = self.places.part(hash);
        if let Some(known) = part.get(&hash).and_then(Weak::upgrade) {
            return known;
        }
        let place = Arc::new(Place { hash, changed: AtomicU64::new(0), all: Arc::clone(&self.places) });
        part.insert(hash, Arc::downgrade(&place));
        place
    }

    /// What is at this address has changed.
    pub fn change(&self, address: &[u8]) {
        let moment = self.now.fetch_add(1, Ordering::AcqRel);
        let hash = super::hash(address);
        let known = self.places.part(hash).get(&hash).and_then(Weak::upgrade);
        // Where nothing is kept nor on its way, nothing is old.
        if let Some(place) = known {
            place.changed.fetch_max(moment, Ordering::AcqRel);
        }
    }

    /// `sweep` holds all that is kept against the purges that are known.
    pub fn purge(&self, purge: Purge, sweep: impl FnOnce()) {
        if let Purge::Url { host, target } = &purge {
            let (path, query) = match target.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (target.as_str(), None),
            };
            for scheme in ["http", "https"] {
                let mut address = Vec::new();
                key::address_of(&mut address, scheme, host.as_bytes(), path, query);
                self.change(&address);
            }
            return;
        }
        let _alone = self.purging.lock().unwrap_or_else(PoisonError::into_inner);
        let moment = self.now.fetch_add(1, Ordering::AcqRel);
        let known = self.purges.load_full();
        let mut purges = Purges { all_before: moment, purges: Vec::new() };
        if purge != Purge::Everything {
            // One that is said again replaces itself.
            let others = known.purges.iter().filter(|(_, known)| **known != purge).cloned();
            purges = Purges { all_before: known.all_before, purges: others.collect() };
            purges.purges.push((moment, Arc::new(purge)));
        }
        let purges = Arc::new(purges);
        self.purges.store(Arc::clone(&purges));
        self.newest_purge.store(moment, Ordering::Release);
        if purges.purges.len() > MAX_PURGES {
            sweep();
            let (older, newer) = purges.purges.split_at(MAX_PURGES / 2);
            let newest = older.last().map_or(0, |(moment, _)| *moment);
            let all_before = purges.all_before.max(newest);
            self.purges.store(Arc::new(Purges { all_before, purges: newer.to_vec() }));
        }
    }

    /// Whether nothing happened to this address since, nor was anything purged that might mean it.
    pub fn is_current(&self, born: u64, place: &Place) -> bool {
        !place.changed_since(born) && self.newest_purge.load(Ordering::Acquire) < born
    }

    /// Whether what was asked for at `born` is as it was. `checked`: the newest purge that is known not to name it.
    pub fn holds(&self, born: u64, place: &Place, checked: &AtomicU64, named: Named<'_>) -> bool {
        if place.changed_since(born) {
            return false;
        }
        let newest = self.newest_purge.load(Ordering::Acquire);
        let since = checked.load(Ordering::Relaxed).max(born.saturating_sub(1));
        if newest <= since {
            return true;
        }
        // All up to the newest are in it.
        let purges = self.purges.load();
        let is_named = |(moment, purge): &(u64, Arc<Purge>)| *moment > since && purge.names(named);
        if purges.all_before > since || purges.purges.iter().any(is_named) {
            return false;
        }
        checked.fetch_max(newest, Ordering::Relaxed);
        true
    }
}

impl Places {
    fn part(&self, hash: u64) -> MutexGuard<'_, HashMap<u64, Weak<Place>, Hasher>> {
        self.0[hash as usize % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn changed_since(&self, born: u64) -> bool {
        self.changed.load(Ordering::Acquire) >= born
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut part = self.all.part(self.hash);
        // Another one may have taken its place.
        if part.get(&self.hash).is_some_and(|known| std::ptr::eq(known.as_ptr(), self)) {
            part.remove(&self.hash);
        }
        if part.capacity() > ROOMY && part.len() * 4 < part.capacity() {
            part.shrink_to_fit();
        }
    }
}

impl Purge {
    fn names(&self, named: Named<'_>) -> bool {
        match self {
            Self::Everything => true,
            Self::Url { .. } => false,
            Self::Route { namespace, name } => named.namespace == namespace && named.route == name,
            Self::Tag(tag) => named.tags.iter().any(|known| **known == **tag),
            Self::Prefix { host, path } => {
                let mut parts = named.address.split(|byte| *byte == 0).skip(1);
                parts.next() == Some(host.as_bytes())
                    && parts.next().is_some_and(|target| target.starts_with(path.as_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(scheme: &str, host: &str, path: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        key::address_of(&mut bytes, scheme, host.as_bytes(), path, query);
        bytes
    }

    /// An answer that was asked for at some moment.
    struct Kept<'m> {
        marks: &'m Marks,
        born: u64,
        address: Vec<u8>,
        place: Arc<Place>,
        tags: Vec<Box<str>>,
        checked: AtomicU64,
    }

    impl<'m> Kept<'m> {
        fn new(marks: &'m Marks, address: &[u8], tags: &[&str]) -> Self {
            let (place, address) = (marks.place(address), address.to_vec());
            let tags = tags.iter().map(|tag| (*tag).into()).collect();
            Self { marks, born: marks.now(), address, place, tags, checked: AtomicU64::new(0) }
        }

        fn holds(&self) -> bool {
            let named = Named { namespace: "shop", route: "web", address: &self.address, tags: &self.tags };
            self.marks.holds(self.born, &self.place, &self.checked, named)
        }
    }

    fn known_places(marks: &Marks) -> usize {
        (0..PARTS as u64).map(|part| marks.places.part(part).len()).sum()
    }

    #[test]
    fn what_changed_is_not_used_and_what_is_asked_for_after_is() {
        let marks = Marks::default();
        let here = address("http", "a", "/x?y");
        let (old, other) =
            (Kept::new(&marks, &here, &[]), Kept::new(&marks, &address("http", "a", "/x"), &[]));
        marks.change(&here);
        assert!(!old.holds() && other.holds());
        assert!(!marks.is_current(old.born, &old.place) && marks.is_current(other.born, &other.place));
        assert!(Kept::new(&marks, &here, &[]).holds());
    }

    #[test]
    fn however_much_is_written_elsewhere_what_is_kept_stays() {
        let marks = Marks::default();
        let kept: Vec<_> =
            (0..100).map(|at| Kept::new(&marks, &address("http", "quiet", &format!("/{at}")), &[])).collect();
        for at in 0..300_000 {
            marks.change(format!("http\0busy\0/{at}\0").as_bytes());
        }
        assert!(kept.iter().all(Kept::holds));
        marks.change(&address("http", "quiet", "/7"));
        assert_eq!(kept.iter().filter(|kept| !kept.holds()).count(), 1, "the control");
    }

    #[test]
    fn an_address_is_known_as_long_as_something_of_it_is_kept() {
        let marks = Marks::default();
        let here = address("http", "a", "/x");
        let (one, two) = (Kept::new(&marks, &here, &[]), Kept::new(&marks, &here, &[]));
        assert_eq!(known_places(&marks), 1);
        drop(one);
        marks.change(&here);
        assert!(!two.holds(), "the other one is still told");
        drop(two);
        assert_eq!(known_places(&marks), 0);
        let many: Vec<_> = (0..10_000).map(|at| Kept::new(&marks, format!("{at}").as_bytes(), &[])).collect();
        assert_eq!(known_places(&marks), 10_000);
        drop(many);
        let left: usize = (0..PARTS as u64).map(|part| marks.places.part(part).capacity()).sum();
        assert!(known_places(&marks) == 0 && left <= PARTS * ROOMY, "room for {left}");
    }

    #[test]
    fn purges_hit_what_they_name() {
        let at = |path: &str| address("https", "a.example", path);
        let url = |target: &str| Purge::Url { host: "a.example".into(), target: target.into() };
        let prefix = |path: &str| Purge::Prefix { host: "a.example".into(), path: path.into() };
        let route = |name: &str| Purge::Route { namespace: "shop".into(), name: name.into() };
        for (purge, hit) in [
            (url("/a/b?c"), true),
            (url("/a/b"), false),
            (prefix("/a/"), true),
            (prefix("/b"), false),
            (Purge::Prefix { host: "b.example".into(), path: "/".into() }, false),
            (Purge::Tag("two".into()), true),
            (Purge::Tag("tw".into()), false),
            (route("web"), true),
            (route("api"), false),
            (Purge::Everything, true),
        ] {
            let marks = Marks::default();
            let kept = Kept::new(&marks, &at("/a/b?c"), &["one", "two"]);
            marks.purge(purge.clone(), || {});
            assert_eq!(kept.holds(), !hit, "{purge:?}");
            assert_eq!(kept.holds(), !hit, "asked again: {purge:?}");
            assert!(Kept::new(&marks, &at("/a/b?c"), &["one", "two"]).holds(), "asked for after: {purge:?}");
        }
    }

    #[test]
    fn many_purges_count_for_what_they_name_and_for_what_nobody_held_against_them() {
        let marks = Marks::default();
        let of = |tag: &str| Kept::new(&marks, &address("http", "a", &format!("/{tag}")), &[tag]);
        let (kept, named, on_its_way) = (of("kept"), of("t7"), of("other"));
        let mut sweeps = 0;
        for tag in 0..2_000 {
            marks.purge(Purge::Tag(format!("t{tag}")), || {
                sweeps += 1;
                assert!(kept.holds());
            });
            assert!(marks.purges.load().purges.len() <= MAX_PURGES + 1);
        }
        assert!(kept.holds() && !named.holds() && sweeps <= 2_000 / (MAX_PURGES / 2), "{sweeps}");
        assert!(!on_its_way.holds(), "nobody can tell which of them named it");
        assert!(of("t1999").holds(), "asked for after");
    }
}

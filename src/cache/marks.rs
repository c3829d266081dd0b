//! What was purged or changed since an answer was asked for. Nothing is searched for: what is kept carries the moment
//! at which it was asked for, and who finds it compares.
//!
//! Invariant: an answer that was asked for before a purge or a change is not used after it, whether it was kept, is on
//! its way, or comes later. A mark may hit others that hash alike: those are asked for again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::key;

/// Half a megabyte: of 100 changed addresses a second, one in a hundred others is asked for once a minute more.
const MARKS: usize = 1 << 16;
/// So many purges are told apart. Those before count for everything, which only costs fetches.
const MAX_PURGES: usize = 256;

#[derive(Debug)]
pub struct Marks {
    /// Counts changes.
    now: AtomicU64,
    marks: Box<[AtomicU64]>,
    purges: ArcSwap<Purges>,
    newest_purge: AtomicU64,
}

#[derive(Debug, Default)]
struct Purges {
    /// Everything that was asked for before.
    all_before: u64,
    purges: Vec<(u64, Purge)>,
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
    pub place: (u64, u64),
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            now: AtomicU64::new(1),
            marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect(),
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

    /// What is at this address has changed.
    pub fn change(&self, address: &[u8]) {
        let moment = self.now.fetch_add(1, Ordering::AcqRel);
        let (one, two) = key::place(address);
        for hash in [one, two] {
            self.mark(hash).fetch_max(moment, Ordering::AcqRel);
        }
    }

    pub fn purge(&self, purge: Purge) {
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
        let moment = self.now.fetch_add(1, Ordering::AcqRel);
        self.purges.rcu(|known| {
            let mut purges = Purges { all_before: known.all_before, purges: known.purges.clone() };
            match &purge {
                Purge::Everything => purges = Purges { all_before: moment, purges: Vec::new() },
                purge => {
                    // One that is said again replaces itself.
                    purges.purges.retain(|(_, known)| known != purge);
                    purges.purges.push((moment, purge.clone()));
                }
            }
            if purges.purges.len() > MAX_PURGES {
                let (oldest, _) = purges.purges.remove(0);
                purges.all_before = purges.all_before.max(oldest);
            }
            Arc::new(purges)
        });
        self.newest_purge.fetch_max(moment, Ordering::AcqRel);
    }

    /// Whether nothing happened to this address since, nor was anything purged that might mean it.
    pub fn is_current(&self, born: u64, place: (u64, u64)) -> bool {
        !self.changed(born, place) && self.newest_purge.load(Ordering::Acquire) < born
    }

    /// Whether what was asked for at `born` is as it was.
    pub fn holds(&self, born: u64, named: Named<'_>) -> bool {
        if self.changed(born, named.place) {
            return false;
        }
        if self.newest_purge.load(Ordering::Acquire) < born {
            return true;
        }
        let purges = self.purges.load();
        purges.all_before < born
            && !purges.purges.iter().any(|(moment, purge)| *moment >= born && purge.names(named))
    }

    fn changed(&self, born: u64, (one, two): (u64, u64)) -> bool {
        let changed = |hash| self.mark(hash).load(Ordering::Acquire) >= born;
        changed(one) && changed(two)
    }

    fn mark(&self, hash: u64) -> &AtomicU64 {
        // The upper bits are the better ones of a product.
        &self.marks[(hash >> 48) as usize % MARKS]
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

    fn holds(marks: &Marks, born: u64, address: &[u8], tags: &[&str]) -> bool {
        let tags: Vec<Box<str>> = tags.iter().map(|tag| (*tag).into()).collect();
        let place = key::place(address);
        marks.holds(born, Named { namespace: "shop", route: "web", address, tags: &tags, place })
    }

    #[test]
    fn what_changed_is_not_used_and_what_is_asked_for_after_is() {
        let marks = Marks::default();
        let (here, there) = (address("http", "a", "/x?y"), address("http", "a", "/x"));
        let born = marks.now();
        marks.change(&here);
        assert!(!holds(&marks, born, &here, &[]) && holds(&marks, born, &there, &[]));
        assert!(holds(&marks, marks.now(), &here, &[]));
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
            let born = marks.now();
            marks.purge(purge.clone());
            assert_eq!(holds(&marks, born, &at("/a/b?c"), &["one", "two"]), !hit, "{purge:?}");
            assert!(holds(&marks, marks.now(), &at("/a/b?c"), &["one", "two"]), "asked for after: {purge:?}");
        }
    }

    #[test]
    fn purges_that_are_forgotten_count_for_everything() {
        let marks = Marks::default();
        let born = marks.now();
        (0..=MAX_PURGES).for_each(|tag| marks.purge(Purge::Tag(tag.to_string())));
        assert!(!holds(&marks, born, &address("http", "a", "/"), &[]));
        assert!(marks.purges.load().purges.len() <= MAX_PURGES);
        assert!(holds(&marks, marks.now(), &address("http", "a", "/"), &[]));
    }
}

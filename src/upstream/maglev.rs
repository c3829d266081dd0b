//! Consistent hashing: which endpoint a key belongs to, by a table that is made when endpoints change (Maglev, NSDI '16,
//! section 3.4). A look-up is an index, whatever the number of endpoints.
//!
//! Invariants: the table depends on the endpoints and their weights alone, so all workers and replicas agree; of equal
//! weights no endpoint has two entries more than another; what it costs to make one does not grow with their number.

use std::hash::{Hash, Hasher};

use super::balance::mix;
use crate::route_map::Endpoint;

/// Entries of a table of at most [`FEW`] endpoints, a prime: 16 KiB, and less than half a millisecond to make.
const ENTRIES_OF_FEW: usize = 16_381;
/// Of all others: 128 KiB, and one to two milliseconds. Another size moves nearly all keys, so there are only two.
const ENTRIES_OF_MANY: usize = 65_537;
/// With more of them a table would be too coarse.
const FEW: usize = 160;

/// Places of endpoints, by the hash of a key.
#[derive(Debug)]
pub(super) struct Table {
    /// What it was made of.
    print: u64,
    places: Places,
}

#[derive(Debug)]
enum Places {
    OfFew(Box<[u8]>),
    OfMany(Box<[u16]>),
}

/// A hash that is the same in each build and on each replica. What a client can choose it can aim with: whoever chooses
/// a key chooses an endpoint.
#[derive(Debug)]
pub struct Stable(u64);

impl Table {
    /// `marks`: what tells each endpoint from the others, with its weight. `None`: there is nothing to choose from.
    pub fn new(marks: &[(u64, u32)]) -> Option<Self> {
        // More than a table's places can name get no keys.
        let marks = &marks[..marks.len().min(usize::from(u16::MAX))];
        let heaviest = u64::from(marks.iter().map(|(_, weight)| *weight).max().filter(|most| *most > 0)?);
        let entries = if marks.len() <= FEW { ENTRIES_OF_FEW } else { ENTRIES_OF_MANY };
        let mut walks: Vec<_> = marks.iter().map(|(mark, _)| Walk::of(*mark, entries)).collect();
        let mut credits = vec![0; marks.len()];
        let mut table = vec![u16::MAX; entries].into_boxed_slice();
        let mut left = entries;
        loop {
            for (place, walk) in walks.iter_mut().enumerate() {
                // The heaviest takes an entry each round, the others as often as their weight says.
                credits[place] += u64::from(marks[place].1);
                if credits[place] < heaviest {
                    continue;
                }
                credits[place] -= heaviest;
                let free = walk.find(|entry| table[*entry] == u16::MAX).expect("a walk meets every entry");
                table[free] = place as u16;
                left -= 1;
                if left > 0 {
                    continue;
                }
                let places = if marks.len() <= FEW {
                    Places::OfFew(table.iter().map(|place| *place as u8).collect())
                } else {
                    Places::OfMany(table)
                };
                return Some(Self { print: print(marks), places });
            }
        }
    }

    /// Whether it was made of these.
    pub fn is_of(&self, marks: &[(u64, u32)]) -> bool {
        self.print == print(marks)
    }

    /// The place of the endpoint that a key belongs to.
    pub fn at(&self, hash: u64) -> usize {
        match &self.places {
            Places::OfFew(places) => usize::from(places[(hash % ENTRIES_OF_FEW as u64) as usize]),
            Places::OfMany(places) => usize::from(places[(hash % ENTRIES_OF_MANY as u64) as usize]),
        }
    }
}

/// Tells what tables are made of from other such.
fn print(marks: &[(u64, u32)]) -> u64 {
    let mut hash = Stable::default();
    marks.hash(&mut hash);
    hash.finish()
}

/// The order in which an endpoint wants entries: all of them, since the number of entries is prime.
struct Walk {
    next: usize,
    step: usize,
    entries: usize,
}

impl Walk {
    fn of(mark: u64, entries: usize) -> Self {
        let (one, other) = (mix(mark), mix(mark ^ 0x9e37_79b9_7f4a_7c15));
        let (next, step) = (one % entries as u64, other % (entries as u64 - 1) + 1);
        Self { next: next as usize, step: step as usize, entries }
    }
}

/// Without an end: it begins anew.
impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let at = self.next;
        self.next += self.step;
        if self.next >= self.entries {
            self.next -= self.entries;
        }
        Some(at)
    }
}

/// What tells an endpoint from others, on every replica.
pub(super) fn mark(endpoint: &Endpoint) -> u64 {
    let mut hash = Stable::default();
    endpoint.address.ip().hash(&mut hash);
    endpoint.address.port().hash(&mut hash);
    endpoint.name.as_deref().hash(&mut hash);
    hash.finish()
}

/// FNV-1a, mixed at the end.
impl Default for Stable {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Stable {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn endpoints(count: usize) -> Vec<u64> {
        let address =
            |at: usize| std::net::SocketAddr::from(([10, (at >> 16) as u8, (at >> 8) as u8, at as u8], 8080));
        (0..count).map(|at| mark(&address(at).into())).collect()
    }

    fn table(marks: &[u64]) -> Table {
        Table::new(&marks.iter().map(|mark| (*mark, 1)).collect::<Vec<_>>()).expect("some")
    }

    fn entries(table: &Table) -> usize {
        match &table.places {
            Places::OfFew(places) => places.len(),
            Places::OfMany(places) => places.len(),
        }
    }

    fn places(table: &Table) -> impl Iterator<Item = usize> {
        (0..entries(table) as u64).map(|entry| table.at(entry))
    }

    fn counts(table: &Table) -> BTreeMap<usize, usize> {
        places(table).fold(BTreeMap::new(), |mut counts, place| {
            *counts.entry(place).or_default() += 1;
            counts
        })
    }

    #[test]
    fn there_is_a_prime_number_of_entries() {
        for entries in [ENTRIES_OF_FEW, ENTRIES_OF_MANY] {
            assert!((2..=256).all(|divisor| !entries.is_multiple_of(divisor)), "{entries} < 257²");
        }
    }

    #[test]
    fn a_table_is_of_the_endpoints_in_the_order_that_it_was_made_of() {
        let marks = [(1, 1), (2, 1), (3, 1)];
        let table = Table::new(&marks).expect("some");
        assert!(table.is_of(&marks));
        for other in [&[(1, 1), (3, 1), (2, 1)][..], &marks[..2], &[(1, 1), (2, 1), (3, 2)], &[]] {
            assert!(!table.is_of(other), "{other:?}");
        }
    }

    #[test]
    fn nothing_has_no_table() {
        assert!(Table::new(&[]).is_none() && Table::new(&[(7, 0), (8, 0)]).is_none());
    }

    #[test]
    fn a_table_of_very_many_endpoints_is_whole() {
        let counts = counts(&table(&endpoints(20_000)));
        assert_eq!(counts.len(), 20_000);
        assert!(counts.values().all(|count| (3..=4).contains(count)));
    }

    #[test]
    fn weights_are_shares_of_the_keys() {
        let marks = endpoints(4);
        let weights = [1, 2, 0, 5];
        let weighted: Vec<_> = marks.iter().copied().zip(weights).collect();
        let counts = counts(&Table::new(&weighted).expect("some"));
        for (place, weight) in weights.iter().enumerate() {
            let (found, fair) =
                (counts.get(&place).copied().unwrap_or(0), ENTRIES_OF_FEW * *weight as usize / 8);
            assert!(found.abs_diff(fair) <= 5, "{found} of {fair}");
        }
    }

    #[test]
    fn the_same_key_is_the_same_hash_in_each_build() {
        let mut hash = Stable::default();
        "alice".hash(&mut hash);
        assert_eq!(hash.finish(), 0x441b_53b1_b6ba_2c50);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn keys_are_spread_evenly(count in 1_usize..600) {
            let table = table(&endpoints(count));
            let counts = counts(&table);
            prop_assert_eq!(counts.len(), count);
            prop_assert!(counts.values().all(|found| found.abs_diff(entries(&table) / count) <= 1));
            prop_assert!(entries(&table) >= 100 * count, "fine enough");
        }

        /// The paper's own figure for one of a thousand lost is a few hundredths beyond the share of the lost one.
        #[test]
        fn an_endpoint_that_goes_moves_its_own_keys_and_few_others(
            count in prop_oneof![2..=FEW, FEW + 2..300],
            gone in any::<prop::sample::Index>(),
        ) {
            let before = endpoints(count);
            let gone = gone.index(count);
            let mut after = before.clone();
            after.remove(gone);
            let (one, two) = (table(&before), table(&after));
            let moved = places(&one).zip(places(&two)).filter(|(one, two)| before[*one] != after[*two]).count();
            let entries = entries(&one);
            let (share, bound) = (entries / count, entries / count * 2 + entries / 50);
            prop_assert!(moved >= share, "its own keys at least: {moved} of {share}");
            prop_assert!(moved <= bound, "{moved} moved, of which {share} were its own");
        }
    }
}

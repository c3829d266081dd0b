//! What was found out about credentials, by their fingerprints, until it ends.
//!
//! A table of a fixed size without locks, shared by all workers: a hit costs a hash and a few loads.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::entry::Fingerprint;

const SETS: usize = 1 << 11;
const WAYS: usize = 4;

/// What was found out about a credential.
pub struct Verdict<T> {
    pub credential: Fingerprint,
    /// What it was judged by, as a digest: it counts for nothing else.
    pub by: [u8; 32],
    /// When it ends, in the time of whoever keeps it.
    pub until: i64,
    pub found: T,
}

pub struct Verdicts<T>(Box<[[ArcSwapOption<Verdict<T>>; WAYS]]>);

impl<T> Default for Verdicts<T> {
    fn default() -> Self {
        Self((0..SETS).map(|_| Default::default()).collect())
    }
}

impl<T: Clone> Verdicts<T> {
    pub fn find(&self, credential: &Fingerprint, by: &[u8; 32], now: i64) -> Option<T> {
        self.set(credential).iter().find_map(|place| {
            let known = place.load();
            let known = known.as_ref().filter(|known| known.credential == *credential)?;
            (known.by == *by && now < known.until).then(|| known.found.clone())
        })
    }

    /// Takes the place of the same credential, or of the one that ends first.
    pub fn insert(&self, verdict: Verdict<T>) {
        let set = self.set(&verdict.credential);
        let ends = |place: &&ArcSwapOption<Verdict<T>>| match &*place.load() {
            None => i64::MIN + 1,
            Some(known) if known.credential == verdict.credential => i64::MIN,
            Some(known) => known.until,
        };
        let place = set.iter().min_by_key(ends).expect("a set has places");
        place.store(Some(Arc::new(verdict)));
    }

    /// From now on nothing is known of it.
    pub fn forget(&self, credential: &Fingerprint) {
        for place in self.set(credential) {
            if place.load().as_ref().is_some_and(|known| known.credential == *credential) {
                place.store(None);
            }
        }
    }

    fn set(&self, credential: &Fingerprint) -> &[ArcSwapOption<Verdict<T>>; WAYS] {
        &self.0[usize::from(u16::from_le_bytes([credential[0], credential[1]])) % SETS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(credential: Fingerprint, until: i64) -> Verdict<()> {
        Verdict { credential, by: [9; 32], until, found: () }
    }

    #[test]
    fn a_credential_is_known_until_it_ends_and_while_it_is_judged_by_the_same() {
        let verdicts = Verdicts::default();
        verdicts.insert(verdict([1; 32], 100));
        assert!(verdicts.find(&[1; 32], &[9; 32], 99).is_some());
        assert!(verdicts.find(&[1; 32], &[9; 32], 100).is_none());
        assert!(verdicts.find(&[1; 32], &[8; 32], 99).is_none());
        let mut other = [1; 32];
        other[31] = 2;
        assert!(verdicts.find(&other, &[9; 32], 99).is_none());
        verdicts.forget(&other);
        assert!(verdicts.find(&[1; 32], &[9; 32], 99).is_some());
        verdicts.forget(&[1; 32]);
        assert!(verdicts.find(&[1; 32], &[9; 32], 99).is_none());
    }

    #[test]
    fn a_full_set_forgets_what_ends_first() {
        let verdicts = Verdicts::default();
        let credential = |last| {
            let mut credential = [1; 32];
            credential[31] = last;
            credential
        };
        for last in 0..6 {
            verdicts.insert(verdict(credential(last), 100 + i64::from(last)));
            verdicts.insert(verdict(credential(last), 100 + i64::from(last)));
        }
        let known: Vec<_> =
            (0..6).filter(|last| verdicts.find(&credential(*last), &[9; 32], 0).is_some()).collect();
        assert_eq!(known, [2, 3, 4, 5]);
    }
}

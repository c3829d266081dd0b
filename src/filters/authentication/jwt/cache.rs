//! Tokens that were verified, by their SHA-256, until they expire or their issuer's keys change.
//!
//! A table of a fixed size without locks, shared by all workers: a hit costs a hash and a few loads.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::super::entry::Fingerprint;
use crate::message::Identity;

const SETS: usize = 1 << 11;
const WAYS: usize = 4;

pub struct Verified {
    pub token: Fingerprint,
    /// Of the key set that it was verified with.
    pub keys: [u8; 32],
    /// Seconds since the epoch.
    pub until: i64,
    pub identity: Identity,
}

pub struct TokenCache(Box<[[ArcSwapOption<Verified>; WAYS]]>);

impl Default for TokenCache {
    fn default() -> Self {
        Self((0..SETS).map(|_| Default::default()).collect())
    }
}

impl TokenCache {
    pub fn find(&self, token: &Fingerprint, keys: &[u8; 32], now: i64) -> Option<Identity> {
        self.set(token).iter().find_map(|place| {
            let known = place.load();
            let known = known.as_ref().filter(|known| known.token == *token)?;
            (known.keys == *keys && now < known.until).then(|| known.identity.clone())
        })
    }

    /// Takes the place of the same token, or of the one that ends first.
    pub fn insert(&self, verified: Verified) {
        let set = self.set(&verified.token);
        let ends = |place: &&ArcSwapOption<Verified>| match &*place.load() {
            None => i64::MIN,
            Some(known) if known.token == verified.token => i64::MIN,
            Some(known) => known.until,
        };
        let place = set.iter().min_by_key(ends).expect("a set has places");
        place.store(Some(Arc::new(verified)));
    }

    fn set(&self, token: &Fingerprint) -> &[ArcSwapOption<Verified>; WAYS] {
        &self.0[usize::from(u16::from_le_bytes([token[0], token[1]])) % SETS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(token: Fingerprint, until: i64) -> Verified {
        Verified { token, keys: [9; 32], until, identity: Identity::ANONYMOUS }
    }

    #[test]
    fn a_token_is_known_until_it_ends_and_while_the_keys_are_the_same() {
        let cache = TokenCache::default();
        cache.insert(verified([1; 32], 100));
        assert!(cache.find(&[1; 32], &[9; 32], 99).is_some());
        assert!(cache.find(&[1; 32], &[9; 32], 100).is_none());
        assert!(cache.find(&[1; 32], &[8; 32], 99).is_none());
        let mut other = [1; 32];
        other[31] = 2;
        assert!(cache.find(&other, &[9; 32], 99).is_none());
    }

    #[test]
    fn a_full_set_forgets_what_ends_first() {
        let cache = TokenCache::default();
        let token = |last| {
            let mut token = [1; 32];
            token[31] = last;
            token
        };
        for last in 0..6 {
            cache.insert(verified(token(last), 100 + i64::from(last)));
            cache.insert(verified(token(last), 100 + i64::from(last)));
        }
        let known: Vec<_> = (0..6).filter(|last| cache.find(&token(*last), &[9; 32], 0).is_some()).collect();
        assert_eq!(known, [2, 3, 4, 5]);
    }
}

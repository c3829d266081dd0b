//! Readiness: a set of named things that must happen first. `/readyz` names those that have not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<String>>>);

/// Holds readiness back until it is dropped.
#[derive(Debug)]
pub struct Guard {
    name: String,
    owner: Readiness,
}

impl Readiness {
    /// Registers something that readiness waits for.
    pub fn wait_for(&self, name: impl Into<String>) -> Guard {
        let name = name.into();
        self.names().insert(name.clone());
        Guard { name, owner: self.clone() }
    }

    /// What is still missing; empty: ready.
    pub fn missing(&self) -> Vec<String> {
        self.names().iter().cloned().collect()
    }

    fn names(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.owner.names().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_it_waits_for() {
        let readiness = Readiness::default();
        let first = readiness.wait_for("first lists");
        let second = readiness.wait_for("first route map");
        assert_eq!(readiness.missing(), ["first lists", "first route map"]);
        drop(first);
        assert_eq!(readiness.missing(), ["first route map"]);
        drop(second);
        assert!(readiness.missing().is_empty());
    }
}

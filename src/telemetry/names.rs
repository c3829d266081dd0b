//! What became of look-ups of names, and how old the answers are that are served while servers fail.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::control::{ControlStats, HostSeries};

/// How a look-up ends.
pub(super) const RESULTS: [&str; 3] = ["found", "nothing", "failed"];

#[derive(Debug, Default)]
pub(super) struct NameStats(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By result.
    lookups: [u64; RESULTS.len()],
    /// Names that are looked up again and again.
    names: u64,
    /// Numbers them.
    takers: u64,
    /// Those that fail now, with the time of their last answer.
    failing: BTreeMap<u64, Option<Instant>>,
}

#[derive(Debug, Default)]
pub(super) struct NameTotals {
    pub lookups: [u64; RESULTS.len()],
    pub names: u64,
    pub failing: u64,
    /// Of answers that are served although the servers fail.
    pub oldest: Option<Duration>,
}

/// The part of one name.
#[derive(Debug)]
pub struct NameSeries {
    control: Arc<ControlStats>,
    /// For what cannot be had now.
    told: HostSeries,
    name: String,
    number: u64,
    answered: Option<Instant>,
}

impl NameStats {
    pub fn totals(&self) -> NameTotals {
        let state = self.state();
        let oldest = state.failing.values().flatten().min();
        NameTotals {
            lookups: state.lookups,
            names: state.names,
            failing: state.failing.len() as u64,
            oldest: oldest.map(Instant::elapsed),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ControlStats {
    /// Of a name that is looked up again and again while what this gives lives.
    pub fn of_name(self: &Arc<Self>, name: &str) -> NameSeries {
        let number = {
            let mut state = self.names.state();
            state.names += 1;
            state.takers += 1;
            state.takers
        };
        let told = self.of_host(name);
        NameSeries { control: Arc::clone(self), told, name: name.to_owned(), number, answered: None }
    }
}

impl NameSeries {
    /// It has addresses.
    pub fn found(&mut self) {
        self.answers(0);
    }

    /// It is said to have none.
    pub fn is_not_there(&mut self) {
        self.answers(1);
    }

    /// The servers do not say, for this cause.
    pub fn failed(&mut self, cause: &str) {
        let mut state = self.control.names.state();
        state.lookups[2] += 1;
        state.failing.insert(self.number, self.answered);
        drop(state);
        self.told.fails(&format_args!("name {}", self.name), cause);
    }

    fn answers(&mut self, result: usize) {
        self.answered = Some(Instant::now());
        let mut state = self.control.names.state();
        state.lookups[result] += 1;
        let was_failing = state.failing.remove(&self.number).is_some();
        drop(state);
        if was_failing {
            self.told.is_well();
        }
    }
}

impl Drop for NameSeries {
    fn drop(&mut self) {
        let mut state = self.control.names.state();
        state.names -= 1;
        state.failing.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fail_are_counted_while_somebody_wants_them() {
        let control = Arc::<ControlStats>::default();
        let [mut one, mut other] = ["pay.test", "login.test"].map(|name| control.of_name(name));
        let now = || {
            let totals = control.names.totals();
            (totals.lookups, totals.names, totals.failing, totals.oldest.is_some())
        };
        one.found();
        other.is_not_there();
        assert_eq!(now(), ([1, 1, 0], 2, 0, false));
        one.failed("late");
        assert_eq!(now(), ([1, 1, 1], 2, 1, true));
        assert_eq!(control.failing(), [("name pay.test".to_owned(), "late".to_owned())]);
        one.found();
        assert_eq!((now(), control.failing()), (([2, 1, 1], 2, 0, false), vec![]));
        control.of_name("never.test").failed("late");
        other.failed("late");
        drop(other);
        assert_eq!((now(), control.failing()), (([2, 1, 3], 1, 0, false), vec![]));
    }
}

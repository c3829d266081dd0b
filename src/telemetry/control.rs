//! The series of the control side: what is programmed, how long it took, how fresh it is. Counted seldom, by any thread.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::HitCount;
use super::cells::{Histogram, Total};
use super::names::{NameStats, NameTotals};

/// Upper bounds of compile and propagation times in microseconds.
pub(super) const STEPS: [u64; 12] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
];

/// How much the installed route map holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    pub routes: usize,
    pub rules: usize,
    pub backends: usize,
    pub certificates: usize,
}

/// When a certificate in use ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateExpiry {
    pub namespace: String,
    pub secret: String,
    pub not_after: SystemTime,
}

/// Series of the control side, one set a process.
#[derive(Debug, Default)]
pub struct ControlStats {
    state: Mutex<State>,
    pub(super) names: NameStats,
}

/// What was fetched well last: when, and when it is of no more use.
#[derive(Debug)]
struct Known {
    host: String,
    fetched: Instant,
    ends: Option<Instant>,
}

/// How old what is known of a host is, and what is left of it until it ends; where several things are fetched from it, of
/// the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Freshness {
    pub age: Duration,
    /// Seconds, below zero once it is over.
    pub left: Option<f64>,
}

/// What was fetched from a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fetches {
    pub good: u64,
    pub failed: u64,
}

#[derive(Debug)]
struct State {
    compile: Histogram<{ STEPS.len() }>,
    propagation: Histogram<{ STEPS.len() }>,
    watch_errors: BTreeMap<&'static str, u64>,
    /// By how many tasks.
    hosts: BTreeMap<String, usize>,
    fetches: BTreeMap<String, Fetches>,
    /// What cannot be had now, and why, by who wants it.
    failing: BTreeMap<u64, (String, String)>,
    /// What was fetched, by who wants it.
    fresh: BTreeMap<u64, Known>,
    /// Numbers those.
    takers: u64,
    questions: BTreeMap<(String, &'static str), u64>,
    known: Vec<(String, Arc<HitCount>)>,
    known_before: BTreeMap<String, u64>,
    programmed: Programmed,
    certificates: Vec<CertificateExpiry>,
    synced: Option<Instant>,
    installed: Option<Instant>,
    leader: bool,
    store: Option<StoreState>,
}

/// How the store does in which replicas count together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreState {
    pub up: bool,
    pub failures: u64,
}

#[derive(Debug)]
pub(super) struct ControlTotals {
    pub compile: Total,
    pub propagation: Total,
    pub watch_errors: BTreeMap<&'static str, u64>,
    pub fetches: BTreeMap<String, Fetches>,
    /// Of what was fetched, by host.
    pub fresh: BTreeMap<String, Freshness>,
    pub names: NameTotals,
    /// Questions by host and result.
    pub questions: BTreeMap<(String, &'static str), u64>,
    /// What was known without a question, by host.
    pub known: BTreeMap<String, u64>,
    pub programmed: Programmed,
    pub certificates: Vec<CertificateExpiry>,
    /// Since the source was last known to be in step; none before the first time.
    pub sync_age: Option<Duration>,
    pub config_age: Option<Duration>,
    pub leader: bool,
    /// None: there is none.
    pub store: Option<StoreState>,
}

impl ControlStats {
    pub fn compiled(&self, took: Duration) {
        self.state().compile.observe(micros(took));
    }

    /// From a change seen to its route map installed.
    pub fn propagated(&self, took: Duration) {
        self.state().propagation.observe(micros(took));
    }

    /// A route map was installed that holds so much.
    pub fn installed(&self, programmed: Programmed, certificates: Vec<CertificateExpiry>) {
        let mut state = self.state();
        state.programmed = programmed;
        state.certificates = certificates;
        state.installed = Some(Instant::now());
    }

    /// A watch failed; `kind` is the plural name of what was watched.
    pub fn watch_error(&self, kind: &'static str) {
        *self.state().watch_errors.entry(kind).or_default() += 1;
    }

    /// The series of a host are there while what this gives lives: as many as policies name, and no host for ever.
    pub fn of_host(self: &Arc<Self>, host: &str) -> HostSeries {
        let mut state = self.state();
        *state.hosts.entry(host.to_owned()).or_default() += 1;
        state.takers += 1;
        HostSeries { control: Arc::clone(self), host: host.to_owned(), number: state.takers }
    }

    /// What cannot be had now: from where, and why.
    pub fn failing(&self) -> Vec<(String, String)> {
        self.state().failing.values().cloned().collect()
    }

    /// Something that a policy names was fetched from a host.
    pub fn fetched(&self, host: &str) {
        self.state().fetches.entry(host.to_owned()).or_default().good += 1;
    }

    /// It could not be fetched, or not be read.
    pub fn fetch_failed(&self, host: &str) {
        self.state().fetches.entry(host.to_owned()).or_default().failed += 1;
    }

    /// A host was asked, with this result.
    pub fn asked(&self, host: &str, result: &'static str) {
        *self.state().questions.entry((host.to_owned(), result)).or_default() += 1;
    }

    /// From now on this counts what was known without asking the host.
    pub fn counts_hits(&self, host: &str, hits: &Arc<HitCount>) {
        self.state().known.push((host.to_owned(), Arc::clone(hits)));
    }

    /// It counts no more; what it counted stays.
    pub fn counted_hits(&self, hits: &Arc<HitCount>) {
        let mut state = self.state();
        let Some(place) = state.known.iter().position(|(_, known)| Arc::ptr_eq(known, hits)) else { return };
        let (host, _) = state.known.swap_remove(place);
        *state.known_before.entry(host).or_default() += hits.value();
    }

    /// The source of configuration was heard just now and nothing is missing.
    pub fn synced(&self) {
        self.state().synced = Some(Instant::now());
    }

    /// Whether this replica is the one that writes status.
    /// The store in which replicas count together is there, or away.
    pub fn store_is_up(&self, up: bool) {
        self.state().store.get_or_insert_default().up = up;
    }

    /// It did not answer a question.
    pub fn store_failed(&self) {
        self.state().store.get_or_insert_default().failures += 1;
    }

    pub fn leads(&self, leader: bool) {
        self.state().leader = leader;
    }

    pub(super) fn totals(&self) -> ControlTotals {
        let state = self.state();
        let (mut compile, mut propagation) = (Total::default(), Total::default());
        state.compile.add_to(&mut compile);
        state.propagation.add_to(&mut propagation);
        let mut known = state.known_before.clone();
        for (host, hits) in &state.known {
            *known.entry(host.clone()).or_default() += hits.value();
        }
        let mut fresh = BTreeMap::<String, Freshness>::new();
        for one in state.fresh.values() {
            let of_host = fresh.entry(one.host.clone()).or_default();
            of_host.age = of_host.age.max(one.fetched.elapsed());
            let left = one.ends.map(|end| match end.checked_duration_since(Instant::now()) {
                Some(left) => left.as_secs_f64(),
                None => -end.elapsed().as_secs_f64(),
            });
            of_host.left = [of_host.left, left].into_iter().flatten().min_by(f64::total_cmp);
        }
        ControlTotals {
            compile,
            propagation,
            watch_errors: state.watch_errors.clone(),
            fetches: state.fetches.clone(),
            fresh,
            names: self.names.totals(),
            questions: state.questions.clone(),
            known,
            programmed: state.programmed,
            certificates: state.certificates.clone(),
            sync_age: state.synced.map(|at| at.elapsed()),
            config_age: state.installed.map(|at| at.elapsed()),
            leader: state.leader,
            store: state.store,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Keeps the series of a host.
#[derive(Debug)]
pub struct HostSeries {
    control: Arc<ControlStats>,
    host: String,
    number: u64,
}

impl HostSeries {
    /// What is wanted of this place cannot be had now.
    pub fn fails(&self, place: &dyn Display, error: &str) {
        self.control.state().failing.insert(self.number, (place.to_string(), error.to_owned()));
    }

    pub fn is_well(&self) {
        self.control.state().failing.remove(&self.number);
    }

    /// It was fetched just now, and is of use until then.
    pub fn fetched(&self, ends: Option<Instant>) {
        let known = Known { host: self.host.clone(), fetched: Instant::now(), ends };
        let mut state = self.control.state();
        state.failing.remove(&self.number);
        state.fresh.insert(self.number, known);
    }
}

impl Drop for HostSeries {
    fn drop(&mut self) {
        let (mut state, host) = (self.control.state(), self.host.as_str());
        state.failing.remove(&self.number);
        state.fresh.remove(&self.number);
        let Some(others) = state.hosts.get_mut(host) else { return };
        *others -= 1;
        if *others > 0 {
            return;
        }
        state.hosts.remove(host);
        state.fetches.remove(host);
        state.known_before.remove(host);
        state.questions.retain(|(known, _), _| known != host);
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            compile: Histogram::new(&STEPS),
            propagation: Histogram::new(&STEPS),
            watch_errors: BTreeMap::new(),
            hosts: BTreeMap::new(),
            fetches: BTreeMap::new(),
            failing: BTreeMap::new(),
            fresh: BTreeMap::new(),
            takers: 0,
            questions: BTreeMap::new(),
            known: Vec::new(),
            known_before: BTreeMap::new(),
            programmed: Programmed::default(),
            certificates: Vec::new(),
            synced: None,
            installed: None,
            leader: false,
            store: None,
        }
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_nobody_names_any_more_leaves_no_series() {
        let control = Arc::<ControlStats>::default();
        let [one, other] = [(); 2].map(|()| control.of_host("login.example"));
        let (elsewhere, hits) = (control.of_host("other.example"), Arc::<HitCount>::default());
        let count = || {
            for host in ["login.example", "other.example"] {
                control.fetched(host);
                control.fetch_failed(host);
                control.asked(host, "active");
                control.counts_hits(host, &hits);
                hits.add_one();
                control.counted_hits(&hits);
            }
        };
        let hosts = || {
            let totals = control.totals();
            let of = [
                totals.fetches.into_keys().collect::<Vec<_>>(),
                totals.questions.into_keys().map(|(host, _)| host).collect(),
                totals.known.into_keys().collect(),
            ];
            assert!(of.iter().all(|hosts| *hosts == of[0]), "{of:?}");
            let [hosts, ..] = of;
            hosts
        };
        count();
        one.fails(&"https://login.example/keys", "late");
        other.fails(&"https://login.example/token", "refused");
        assert_eq!(control.failing().len(), 2);
        other.is_well();
        assert_eq!(control.failing(), [("https://login.example/keys".to_owned(), "late".to_owned())]);
        drop(one);
        assert!(control.failing().is_empty());
        assert_eq!(hosts(), ["login.example", "other.example"]);
        drop(other);
        assert_eq!(hosts(), ["other.example"]);
        drop(elsewhere);
        assert!(hosts().is_empty());
    }

    #[test]
    fn of_several_things_of_a_host_the_one_that_ends_first_is_told() {
        let control = Arc::<ControlStats>::default();
        let [one, other] = [(); 2].map(|()| control.of_host("login.example"));
        let left = || control.totals().fresh.get("login.example").map(|fresh| fresh.left);
        assert_eq!(left(), None, "nothing was fetched yet");
        one.fetched(None);
        assert_eq!(left(), Some(None));
        one.fetched(Some(Instant::now() + Duration::from_secs(1000)));
        other.fetched(Instant::now().checked_sub(Duration::from_secs(1)));
        assert!(left().flatten().is_some_and(|left| left <= -1.0));
        drop(other);
        assert!(left().flatten().is_some_and(|left| (1.0..=1000.0).contains(&left)));
        drop(one);
        assert_eq!(left(), None);
    }
}

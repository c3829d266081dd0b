//! The series of the control side: what is programmed, how long it took, how fresh it is. Counted seldom, by any thread.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::cells::{Histogram, Total};

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
pub struct ControlStats(Mutex<State>);

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
    fetches: BTreeMap<String, Fetches>,
    programmed: Programmed,
    certificates: Vec<CertificateExpiry>,
    synced: Option<Instant>,
    installed: Option<Instant>,
    leader: bool,
}

#[derive(Debug)]
pub(super) struct ControlTotals {
    pub compile: Total,
    pub propagation: Total,
    pub watch_errors: BTreeMap<&'static str, u64>,
    pub fetches: BTreeMap<String, Fetches>,
    pub programmed: Programmed,
    pub certificates: Vec<CertificateExpiry>,
    /// Since the source was last known to be in step; none before the first time.
    pub sync_age: Option<Duration>,
    pub config_age: Option<Duration>,
    pub leader: bool,
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

    /// Something that a policy names was fetched from a host.
    pub fn fetched(&self, host: &str) {
        self.state().fetches.entry(host.to_owned()).or_default().good += 1;
    }

    /// It could not be fetched, or not be read.
    pub fn fetch_failed(&self, host: &str) {
        self.state().fetches.entry(host.to_owned()).or_default().failed += 1;
    }

    /// The source of configuration was heard just now and nothing is missing.
    pub fn synced(&self) {
        self.state().synced = Some(Instant::now());
    }

    /// Whether this replica is the one that writes status.
    pub fn leads(&self, leader: bool) {
        self.state().leader = leader;
    }

    pub(super) fn totals(&self) -> ControlTotals {
        let state = self.state();
        let (mut compile, mut propagation) = (Total::default(), Total::default());
        state.compile.add_to(&mut compile);
        state.propagation.add_to(&mut propagation);
        ControlTotals {
            compile,
            propagation,
            watch_errors: state.watch_errors.clone(),
            fetches: state.fetches.clone(),
            programmed: state.programmed,
            certificates: state.certificates.clone(),
            sync_age: state.synced.map(|at| at.elapsed()),
            config_age: state.installed.map(|at| at.elapsed()),
            leader: state.leader,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            compile: Histogram::new(&STEPS),
            propagation: Histogram::new(&STEPS),
            watch_errors: BTreeMap::new(),
            fetches: BTreeMap::new(),
            programmed: Programmed::default(),
            certificates: Vec::new(),
            synced: None,
            installed: None,
            leader: false,
        }
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

//! The series of one rule: requests, durations, sizes, requests in flight.

use std::sync::{Arc, OnceLock};

use super::cells::{Count, Histogram, PerWorker, Total};
use super::sample::{CACHED, CALL_STATUSES, Cached, Consulted, Limited, Ruling, Sample};

/// Upper bounds of request durations in microseconds: half a millisecond to a minute.
pub(super) const DURATIONS: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
/// Upper bounds of body sizes in bytes.
pub(super) const SIZES: [u64; 6] = [1 << 10, 8 << 10, 64 << 10, 512 << 10, 4 << 20, 32 << 20];
/// So many different (status, method, protocol, reason) of one rule and worker are told apart; what comes after them
/// is counted as `other`. Statuses come from backends: they must not cost memory without end.
pub(super) const MAX_SERIES: usize = 64;
pub(super) const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"];

/// Series of one rule.
#[derive(Debug)]
pub struct RuleStats {
    namespace: Arc<str>,
    route: Arc<str>,
    rule: Arc<str>,
    cells: PerWorker<Arc<RuleCells>>,
}

/// A request that is counted as in flight until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<RuleCells>);

/// What one worker counted for one rule.
///
/// In the order of use: among thousands of rules each line of the cache that a request touches is a miss.
#[derive(Debug)]
#[repr(C)]
struct RuleCells {
    in_flight: Count,
    requests: OnceLock<Series<Key>>,
    response_size: Histogram<{ SIZES.len() }>,
    request_size: Histogram<{ SIZES.len() }>,
    duration: Histogram<{ DURATIONS.len() }>,
    gates: OnceLock<Box<GateCells>>,
    seldom: OnceLock<Box<Seldom>>,
}

/// What few rules have.
#[derive(Debug, Default)]
struct Seldom {
    cached: OnceLock<Box<CacheCells>>,
    packed: OnceLock<Box<Packs>>,
    mirrored: OnceLock<Series<MirrorKey>>,
    /// In the order of [`CALL_STATUSES`].
    called: OnceLock<Box<[Count; CALL_STATUSES.len()]>>,
}

/// Of each coding, in the order of [`CODINGS`].
type Packs = [PackCells; CODINGS.len()];

#[derive(Debug, Default)]
struct PackCells {
    answers: Count,
    plain: Count,
    packed: Count,
}

/// What the cache did for one rule.
#[derive(Debug, Default)]
struct CacheCells {
    outcomes: [Count; CACHED.len()],
    /// Bytes of answers that no backend sent.
    saved: Count,
}

/// What gates said, and what calls came to; most rules have none.
#[derive(Debug, Default)]
struct GateCells {
    rulings: OnceLock<Series<RulingKey>>,
    limited: OnceLock<Series<Limited>>,
    fallbacks: OnceLock<Series<Arc<str>>>,
    calls: OnceLock<Series<CallKey>>,
    consulted: [Count; Consulted::ALL.len()],
}

/// A list that only grows: its one writer appends, a scrape walks it at the same time.
#[derive(Debug)]
struct Series<K> {
    key: K,
    count: Count,
    next: OnceLock<Box<Series<K>>>,
}

/// What requests of one rule are told apart by. Status 0: any that came when the table was full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub status: u16,
    pub method: &'static str,
    pub protocol: &'static str,
    pub reason: &'static str,
}

/// What rulings of one rule are told apart by: the name of the authorization rule, and what it said.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RulingKey {
    pub rule: Option<Arc<str>>,
    pub decision: &'static str,
}

/// What the calls of an aggregation are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CallKey {
    pub call: Arc<str>,
    /// `ok`, `skipped`, or why it failed.
    pub outcome: &'static str,
}

/// What the copies of a rule's requests are told apart by: what came of them, and why.
pub(super) type MirrorKey = (&'static str, &'static str);

/// The sums of one rule over all workers.
#[derive(Debug, Default)]
pub(super) struct RuleTotals {
    pub in_flight: u64,
    pub duration: Total,
    pub request_size: Total,
    pub response_size: Total,
    pub requests: std::collections::BTreeMap<Key, u64>,
    pub rulings: std::collections::BTreeMap<RulingKey, u64>,
    pub limited: std::collections::BTreeMap<Limited, u64>,
    pub fallbacks: std::collections::BTreeMap<Arc<str>, u64>,
    pub calls: std::collections::BTreeMap<CallKey, u64>,
    pub consulted: std::collections::BTreeMap<Consulted, u64>,
    pub mirrored: std::collections::BTreeMap<MirrorKey, u64>,
    /// In the order of [`CODINGS`]: answers, their bytes before, and after.
    pub packed: [[u64; 3]; CODINGS.len()],
    /// By outcome, and bytes; none where there is no cache.
    pub cached: Option<([u64; CACHED.len()], u64)>,
    /// Calls of gRPC, in the order of [`CALL_STATUSES`].
    pub called: [u64; CALL_STATUSES.len()],
}

impl RuleTotals {
    /// What the cache did, and how often.
    pub fn cache_outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let outcomes = self.cached.iter().flat_map(|(outcomes, _)| outcomes);
        CACHED.into_iter().zip(outcomes.copied()).filter(|(_, count)| *count > 0)
    }
}

impl RuleStats {
    pub(super) fn new(namespace: Arc<str>, route: Arc<str>, rule: Arc<str>, workers: usize) -> Self {
        Self { namespace, route, rule, cells: PerWorker::new(workers) }
    }

    /// Only the worker's own thread calls this.
    pub fn record(&self, worker: usize, sample: &Sample) {
        self.cells(worker).record(sample);
    }

    /// Counts a call of an aggregation. Only the worker's own thread calls this.
    pub fn called(&self, worker: usize, call: &Arc<str>, outcome: &'static str) {
        let key = CallKey { call: call.clone(), outcome };
        let other = CallKey { call: "other".into(), outcome: "other" };
        let gates = self.cells(worker).gates.get_or_init(Box::default);
        gates.calls.get_or_init(|| Series::new(key.clone())).count(&key, other);
    }

    /// Counts a copy of a request. Only the worker's own thread calls this.
    pub fn mirrored(&self, worker: usize, outcome: &'static str, reason: &'static str) {
        let key = (outcome, reason);
        let seldom = self.cells(worker).seldom.get_or_init(Box::default);
        seldom.mirrored.get_or_init(|| Series::new(key)).count(&key, ("other", "other"));
    }

    /// Only the worker's own thread calls this, and drops what it gives.
    pub fn start(&self, worker: usize) -> InFlight {
        let cells = self.cells(worker);
        cells.in_flight.add(1);
        InFlight(cells.clone())
    }

    /// Asks for what [`Self::start`] and [`InFlight::record`] will touch, all at once: a wait for memory instead of one
    /// for each place. Any number of it.
    pub fn touch(&self, worker: usize) -> u64 {
        let cells = self.cells(worker);
        cells.in_flight.value()
            ^ cells.duration.touch()
            ^ cells.request_size.touch()
            ^ cells.response_size.touch()
            ^ cells.requests.get().map_or(0, |series| series.count.value())
    }

    /// Namespace, route, rule.
    pub(super) fn name(&self) -> [&str; 3] {
        [&self.namespace, &self.route, &self.rule]
    }

    /// None: nobody asked for this rule yet.
    pub(super) fn totals(&self) -> Option<RuleTotals> {
        let mut totals = None::<RuleTotals>;
        for cells in self.cells.iter() {
            let totals = totals.get_or_insert_default();
            totals.in_flight = totals.in_flight.wrapping_add(cells.in_flight.value());
            cells.duration.add_to(&mut totals.duration);
            cells.request_size.add_to(&mut totals.request_size);
            cells.response_size.add_to(&mut totals.response_size);
            add_to(cells.requests.get(), &mut totals.requests);
            let packs = cells
                .seldom
                .get()
                .and_then(|seldom| seldom.packed.get())
                .into_iter()
                .flat_map(|packs| packs.iter());
            for (cells, totals) in packs.zip(&mut totals.packed) {
                for (cell, total) in [&cells.answers, &cells.plain, &cells.packed].into_iter().zip(totals) {
                    *total += cell.value();
                }
            }
            add_to(cells.seldom.get().and_then(|seldom| seldom.mirrored.get()), &mut totals.mirrored);
            if let Some(cached) = cells.seldom.get().and_then(|seldom| seldom.cached.get()) {
                let (outcomes, saved) = totals.cached.get_or_insert_default();
                for (total, cell) in outcomes.iter_mut().zip(&cached.outcomes) {
                    *total += cell.value();
                }
                *saved += cached.saved.value();
            }
            if let Some(called) = cells.seldom.get().and_then(|seldom| seldom.called.get()) {
                totals.called.iter_mut().zip(called.iter()).for_each(|(total, cell)| *total += cell.value());
            }
            let Some(gates) = cells.gates.get() else { continue };
            add_to(gates.rulings.get(), &mut totals.rulings);
            add_to(gates.limited.get(), &mut totals.limited);
            add_to(gates.fallbacks.get(), &mut totals.fallbacks);
            add_to(gates.calls.get(), &mut totals.calls);
            if gates.consulted.iter().all(|count| count.value() == 0) {
                continue;
            }
            for (consulted, count) in Consulted::ALL.into_iter().zip(&gates.consulted) {
                *totals.consulted.entry(consulted).or_default() += count.value();
            }
        }
        totals
    }

    fn cells(&self, worker: usize) -> &Arc<RuleCells> {
        self.cells.of(worker, || {
            Arc::new(RuleCells {
                in_flight: Count::default(),
                duration: Histogram::new(&DURATIONS),
                request_size: Histogram::new(&SIZES),
                response_size: Histogram::new(&SIZES),
                requests: OnceLock::new(),
                gates: OnceLock::new(),
                seldom: OnceLock::new(),
            })
        })
    }
}

impl InFlight {
    /// Only the worker's own thread calls this.
    pub fn record(&self, sample: &Sample) {
        self.0.record(sample);
    }
}

impl RuleCells {
    fn record(&self, sample: &Sample) {
        self.duration.observe(u64::try_from(sample.duration.as_micros()).unwrap_or(u64::MAX));
        self.request_size.observe(sample.request_bytes);
        self.response_size.observe(sample.response_bytes);
        let key = Key {
            status: sample.status,
            method: known_method(&sample.method),
            protocol: sample.protocol,
            reason: sample.reason.unwrap_or(""),
        };
        let other = Key { status: 0, method: "other", protocol: "other", reason: "" };
        self.requests.get_or_init(|| Series::new(key)).count(&key, other);
        if let Some(cached) = sample.cached {
            let cells = self.seldom.get_or_init(Box::default).cached.get_or_init(Box::default);
            cells.outcomes[cached as usize].add(1);
            if !matches!(cached, Cached::Miss | Cached::Bypass) {
                cells.saved.add(sample.response_bytes);
            }
        }
        if let Some(call) = sample.call {
            let cells = self.seldom.get_or_init(Box::default);
            cells.called.get_or_init(|| Box::new(std::array::from_fn(|_| Count::default())))[call.index()]
                .add(1);
        }
        let is_gated = sample.consulted.is_some() || sample.ruling.is_some() || sample.limited.is_some();
        if is_gated || !sample.fallbacks.is_empty() {
            self.gates.get_or_init(Box::default).record(sample);
        }
        if let Some(packed) = &sample.packed
            && let Some(index) = CODINGS.iter().position(|coding| *coding == packed.coding)
        {
            let cells = &self.seldom.get_or_init(Box::default).packed.get_or_init(Box::default)[index];
            cells.answers.add(1);
            cells.plain.add(packed.plain);
            cells.packed.add(sample.response_bytes);
        }
    }
}

impl GateCells {
    fn record(&self, sample: &Sample) {
        if let Some(consulted) = sample.consulted {
            self.consulted[consulted as usize].add(1);
        }
        if let Some(ruling) = &sample.ruling {
            let key = RulingKey {
                rule: ruling.rule.clone(),
                decision: if ruling.allows { "allow" } else { "deny" },
            };
            // Names change with the configuration: those of a long life are more than one policy has.
            let other = RulingKey { rule: None, decision: "other" };
            self.rulings.get_or_init(|| Series::new(key.clone())).count(&key, other);
        }
        if let Some(limited) = &sample.limited {
            let other = Limited { limit: "other".into(), dry_run: limited.dry_run };
            self.limited.get_or_init(|| Series::new(limited.clone())).count(limited, other);
        }
        for limit in &sample.fallbacks {
            self.fallbacks.get_or_init(|| Series::new(limit.clone())).count(limit, "other".into());
        }
    }
}

fn add_to<K: Clone + Ord>(list: Option<&Series<K>>, totals: &mut std::collections::BTreeMap<K, u64>) {
    let mut next = list;
    while let Some(series) = next {
        *totals.entry(series.key.clone()).or_default() += series.count.value();
        next = series.next.get().map(Box::as_ref);
    }
}

impl RulingKey {
    pub fn rule_name(&self) -> &str {
        self.rule.as_deref().unwrap_or(Ruling::NO_RULE)
    }
}

impl<K: Clone + PartialEq> Series<K> {
    /// Counts under `key`, or under `other` where the list is full.
    fn count(&self, key: &K, other: K) {
        let mut series = self;
        for _ in 1..MAX_SERIES {
            if series.key == *key {
                return series.count.add(1);
            }
            series = series.next.get_or_init(|| Box::new(Series::new(key.clone())));
        }
        if series.key == *key {
            return series.count.add(1);
        }
        series.next.get_or_init(|| Box::new(Series::new(other))).count.add(1);
    }
}

impl<K> Series<K> {
    fn new(key: K) -> Self {
        Self { key, count: Count::default(), next: OnceLock::new() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.subtract(1);
    }
}

/// The nine registered methods; any other word of a client's is `other`.
fn known_method(method: &http::Method) -> &'static str {
    METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::CallStatus;

    fn stats() -> RuleStats {
        RuleStats::new("shop".into(), "orders".into(), "rule-0".into(), 2)
    }

    fn sample(status: u16, method: &str) -> Sample {
        Sample {
            status,
            method: method.parse().expect("a method"),
            protocol: "HTTP/2",
            scheme: "https",
            duration: Duration::from_micros(700),
            request_bytes: 0,
            response_bytes: 2000,
            reason: None,
            ruling: None,
            limited: None,
            fallbacks: Vec::new(),
            consulted: None,
            packed: None,
            cached: None,
            call: None,
        }
    }

    #[test]
    fn what_two_workers_count_is_one_series() {
        let stats = stats();
        stats.record(0, &sample(200, "GET"));
        stats.record(1, &sample(200, "GET"));
        stats.record(1, &sample(404, "BREW"));
        let totals = stats.totals().expect("counted");
        assert_eq!(
            totals.requests.iter().map(|(key, n)| (key.status, key.method, *n)).collect::<Vec<_>>(),
            [(200, "GET", 2), (404, "other", 1)]
        );
        assert_eq!(totals.duration.cells[..3], [0, 3, 0]);
        assert_eq!(totals.duration.sum, 2100);
        assert_eq!(totals.response_size.cells[..3], [0, 3, 0]);
    }

    #[test]
    fn a_request_is_in_flight_until_it_is_dropped() {
        let stats = stats();
        let (one, two) = (stats.start(0), stats.start(1));
        assert_eq!(stats.totals().expect("counted").in_flight, 2);
        drop((one, two));
        assert_eq!(stats.totals().expect("counted").in_flight, 0);
    }

    #[test]
    fn strange_statuses_of_a_backend_cost_no_memory_without_end() {
        let stats = stats();
        (100..600).for_each(|status| stats.record(0, &sample(status, "GET")));
        let totals = stats.totals().expect("counted");
        assert_eq!(totals.requests.len(), MAX_SERIES + 1);
        assert_eq!(totals.requests.values().sum::<u64>(), 500, "none is lost");
        assert_eq!(totals.requests.iter().next().map(|(key, n)| (key.status, *n)), Some((0, 500 - 64)));
    }

    #[test]
    fn bytes_are_saved_by_what_no_backend_sent() {
        let stats = stats();
        for cached in [Cached::Hit, Cached::Hit, Cached::Collapsed, Cached::Miss, Cached::Bypass] {
            stats.record(0, &Sample { cached: Some(cached), ..sample(200, "GET") });
        }
        let totals = stats.totals().expect("counted");
        assert_eq!(totals.cached, Some(([2, 0, 0, 1, 1, 1], 6_000)));
    }

    #[test]
    fn rulings_are_counted_by_rule_and_decision() {
        let stats = stats();
        for (rule, allows) in
            [(Some("read"), true), (Some("read"), true), (None, false), (Some("ban"), false)]
        {
            let ruling = Some(Ruling { rule: rule.map(Into::into), allows });
            stats.record(1, &Sample { ruling, ..sample(200, "GET") });
        }
        let totals = stats.totals().expect("counted");
        let told: Vec<_> =
            totals.rulings.iter().map(|(key, count)| (key.rule_name(), key.decision, *count)).collect();
        assert_eq!(told, [("(none)", "deny", 1), ("ban", "deny", 1), ("read", "allow", 2)]);
    }

    #[test]
    fn limits_that_the_store_was_not_asked_about_are_counted_by_name() {
        let stats = stats();
        for limits in [&["a", "b"][..], &["a"], &[]] {
            let fallbacks = limits.iter().map(|limit| (*limit).into()).collect();
            stats.record(0, &Sample { fallbacks, ..sample(200, "GET") });
        }
        let totals = stats.totals().expect("counted");
        assert_eq!(totals.fallbacks, [("a".into(), 2), ("b".into(), 1)].into());
    }

    #[test]
    fn what_authorizers_said_is_counted_by_word() {
        let stats = stats();
        for consulted in [Consulted::Allowed, Consulted::Failed, Consulted::Allowed] {
            stats.record(0, &Sample { consulted: Some(consulted), ..sample(200, "GET") });
        }
        stats.record(1, &Sample { consulted: Some(Consulted::Denied), ..sample(403, "GET") });
        let totals = stats.totals().expect("counted");
        let told: Vec<_> = totals.consulted.iter().map(|(key, count)| (key.as_str(), *count)).collect();
        assert_eq!(told, [("allow", 2), ("allow_on_failure", 0), ("deny", 1), ("failure", 1)]);
    }

    #[test]
    fn calls_of_grpc_are_counted_by_their_status() {
        let stats = stats();
        for (worker, call) in [(0, 0), (0, 14), (1, 14), (1, 200)] {
            stats.record(worker, &Sample { call: Some(CallStatus::Number(call)), ..sample(200, "POST") });
        }
        stats.record(0, &Sample { call: Some(CallStatus::Missing), ..sample(499, "POST") });
        stats.record(0, &sample(200, "POST"));
        let called = stats.totals().expect("counted").called;
        let told: Vec<_> = CALL_STATUSES.into_iter().zip(called).filter(|(_, count)| *count > 0).collect();
        assert_eq!(told, [("OK", 1), ("UNAVAILABLE", 2), ("(none)", 2)]);
    }

    #[test]
    fn a_rule_that_nobody_asks_for_costs_next_to_nothing() {
        assert!(size_of::<RuleStats>() <= 96, "{}", size_of::<RuleStats>());
        assert!(stats().totals().is_none());
        let used = size_of::<RuleCells>() + size_of::<Series<Key>>();
        assert!(used <= 512, "{used} bytes a worker that served the rule");
    }
}

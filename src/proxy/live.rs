//! A route map linked to state: filters, counters, backends, certificates. Workers serve from it.
//!
//! Invariants: what did not change (same `Arc`) is the same linked object in the next one, so that one changed route
//! among many costs little and loses nothing; a request holds one `Live` from start to end; a slot belongs to one
//! backend id for as long as anything linked refers to it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::{HeaderMap, HeaderName};

use super::bearer::Bearer;
use super::cached::{LiveCache, Meanings, plan_of};
use super::certificates::LiveCertificate;
use super::client_certificates::LiveValidation;
use super::keep::Kept;
use super::mirror::LiveMirror;
use super::passthrough::LivePassage;
use super::session::LiveSessions;
use super::spread::Spread;
use super::together::InStore;
use crate::cache::Keying;
use crate::cache::key::CountedNames;
use crate::filters::{
    AnyPlan, AuthenticationPlan, AuthorizationPlan, Cors, ExtAuthPlan, Filter, Keep as _, Member as _,
    RequestPlan, ResponsePlan, Row,
};
use crate::message::{ErrorKind, Labels, take_method_overrides};
use crate::route_map::{
    Action, BackendPlan, ClientValidation, Credential, Host, HostIndex, RouteMap, Rule, WeightedTarget,
};
use crate::telemetry::{RuleStats, Telemetry};
use crate::upstream::{Backend, Bucket, Located, Together};
use crate::values::{BackendId, ObjectName, ReservedHeaders, TlsVersion};

#[derive(Debug)]
pub struct Live {
    /// Made of a route map; false only before the first one.
    pub installed: bool,
    /// Some hostname's TLS is passed through.
    pub passes_through: bool,
    /// Some backend wants to know whose connection it gets.
    pub tells_clients: bool,
    hosts: HostIndex<Arc<LiveHost>>,
    /// By slot.
    backends: Vec<Option<Arc<Backend>>>,
    by_id: Table<BackendId, Linked>,
    /// Certificates by Secret, as they are served now.
    served: Table<ObjectName, Arc<LiveCertificate>>,
    /// By what they are made of.
    validations: Table<([u8; 32], TlsVersion), Arc<LiveValidation>>,
    /// For requests that no rule matches.
    pub unmatched: LiveFilters,
}

/// Linked filters in the order of work.
#[derive(Default)]
pub struct LiveFilters(pub Vec<Arc<dyn Filter>>);

/// A filter's row and plan.
type Planned = (usize, AnyPlan);
type Table<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A backend with its place, which stays its own as long as this is held.
#[derive(Clone, Debug)]
struct Linked {
    backend: Arc<Backend>,
    bearer: Option<Arc<Bearer>>,
    slot: Arc<Slot>,
}

/// A linked hostname.
#[derive(Debug)]
pub struct LiveHost {
    pub host: Arc<Host>,
    rules: Vec<LiveRule>,
    /// Which parameters of a query count, as their caches have it; nothing if none has one.
    pub counted: Box<[CountedNames]>,
    /// Rule of each entry of the match table.
    rule_of_entry: Vec<usize>,
    /// Whether any of its matches asks for a method.
    matches_methods: bool,
    /// Fields in which clients show keys: where they count, they stand in heads.
    key_headers: ReservedHeaders,
    pub certificates: Vec<Arc<LiveCertificate>>,
    pub clients: Clients,
    /// Its connections go to its backends as they are.
    pub passage: Option<Box<LivePassage>>,
}

/// Whether clients of a host are asked for a certificate.
#[derive(Debug)]
pub enum Clients {
    Unasked,
    By(Arc<LiveValidation>),
    /// They should be, but nobody can vouch for them.
    Refused,
}

/// A linked rule.
pub struct LiveRule {
    pub rule: Arc<Rule>,
    pub filters: Vec<Arc<dyn Filter>>,
    /// Around those of the filters that are further in, and the action.
    pub cache: Option<Arc<LiveCache>>,
    pub inner: Vec<Arc<dyn Filter>>,
    /// Backends may say something to the client before their answers.
    pub passes_hints: bool,
    /// How large a request's body may be, where a filter says so: the least.
    pub max_body: Option<u64>,
    pub stats: Arc<RuleStats>,
    pub targets: Spread<Target>,
    /// Somebody in its policy is asked whether a method may pass.
    judges_methods: bool,
    pub mirror: Option<Box<LiveMirror>>,
    pub sessions: Option<Box<LiveSessions>>,
}

/// Where a share of a rule's requests goes.
#[derive(Debug)]
pub enum Target {
    Backend(Arc<Slot>),
    Unresolved(ErrorKind),
}

/// A place in the table of backends; free again when nothing refers to it.
#[derive(Debug)]
pub struct Slot {
    index: usize,
    free: Arc<Mutex<Vec<usize>>>,
}

/// Makes each `Live` from the one before.
pub struct Linker {
    /// The rows that plans of filters name.
    members: &'static [Row],
    slots: Table<BackendId, Weak<Slot>>,
    slot_count: usize,
    free: Arc<Mutex<Vec<usize>>>,
    random: RandomState,
    /// Of all rules that have nothing to choose among.
    no_turns: Arc<AtomicU64>,
    meanings: Meanings,
}

impl Live {
    /// What is served before the first map: nothing, and every request is told to come back.
    pub fn empty() -> Self {
        Self {
            installed: false,
            passes_through: false,
            tells_clients: false,
            hosts: HostIndex::new([], None),
            backends: Vec::new(),
            by_id: Table::default(),
            served: Table::default(),
            validations: Table::default(),
            unmatched: LiveFilters::default(),
        }
    }

    /// The host that answers for a name (lower case, without port): exact, wildcard, then the catch-all.
    pub fn host(&self, name: &str) -> Option<&Arc<LiveHost>> {
        self.hosts.find(name)
    }

    pub fn backend(&self, slot: &Slot) -> Option<&Arc<Backend>> {
        self.backends.get(slot.index)?.as_ref()
    }

    pub fn backends_new_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a Arc<Backend>> {
        let is_new = |(id, linked): &(&BackendId, &Linked)| {
            before.by_id.get(*id).is_none_or(|known| !Arc::ptr_eq(&known.backend, &linked.backend))
        };
        self.by_id.iter().filter(is_new).map(|(_, linked)| &linked.backend)
    }

    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.by_id.values().map(|linked| &linked.backend)
    }

    pub fn backend_by_id(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.by_id.get(id).map(|linked| &linked.backend)
    }
}

impl LiveHost {
    /// As [`LiveRule::touch`], for a host.
    pub fn touch(&self) {
        let rules = self.rules.first().map_or(0, |rule| rule.filters.len());
        let entries = self.rule_of_entry.first().copied().unwrap_or_default();
        std::hint::black_box(self.host.table.touch() ^ (rules ^ entries) as u64);
    }

    /// The linked rule of an entry of this host's match table.
    pub fn rule(&self, entry: usize) -> &LiveRule {
        &self.rules[self.rule_of_entry[entry]]
    }

    /// What a client must speak at least; nothing is asked of names without TLS.
    pub fn min_version(&self) -> TlsVersion {
        self.host.tls.as_ref().map_or_else(TlsVersion::default, |tls| tls.min_version)
    }

    /// Takes away the fields that a client must not set, whichever rule it meets.
    pub fn take_own_headers(&self, headers: &mut HeaderMap) {
        take(&self.host.own_headers, headers);
    }

    /// Whether there are fields that no trailer may name under this host, beside those that none may name at all.
    pub fn restricts_trailers(&self) -> bool {
        !self.host.own_headers.is_empty() || !self.key_headers.is_empty()
    }

    /// Takes them away.
    pub fn take_trailers(&self, trailers: &mut HeaderMap) {
        take(&self.host.own_headers, trailers);
        take(&self.key_headers, trailers);
    }

    /// Takes away what would have the backend serve another method than the one by which the rule was chosen. Where the
    /// rule's own policy looks at such fields, it says which it spares.
    pub fn take_method_overrides(&self, rule: &LiveRule, headers: &mut HeaderMap) {
        if self.matches_methods && !rule.judges_methods {
            take_method_overrides(headers, |_| false);
        }
    }

    /// Whether clients of the other one are asked for the same certificates.
    pub fn asks_as(&self, other: &Self) -> bool {
        match (&self.clients, &other.clients) {
            (Clients::Unasked, Clients::Unasked) => true,
            (Clients::By(one), Clients::By(two)) => one.plan.print == two.plan.print,
            _ => false,
        }
    }

    /// Whether a client that was shown a certificate of this host may also ask the other one on the same connection.
    pub fn shares_certificate(&self, other: &Self) -> bool {
        let shown = &self.certificates;
        shown.iter().any(|one| other.certificates.iter().any(|two| one.plan.chain == two.plan.chain))
    }
}

impl LiveRule {
    /// Asks for the places that a request under this rule reads, all at once: among thousands of rules they are seldom
    /// in the cache, and one after the other each would be waited for.
    pub fn touch(&self, worker: usize) {
        let action = match &self.rule.action {
            Action::Forward(plan) => plan.backends.len(),
            _ => 0,
        };
        let read = self.targets.touch()
            ^ self.stats.touch(worker)
            ^ action as u64
            ^ Arc::strong_count(&self.rule.labels) as u64;
        std::hint::black_box(read);
    }
}

impl Linker {
    pub fn new(members: &'static [Row]) -> Self {
        Self {
            members,
            slots: Table::default(),
            slot_count: 0,
            free: Arc::default(),
            random: RandomState::default(),
            no_turns: Arc::default(),
            meanings: Meanings::default(),
        }
    }

    pub fn link(
        &mut self,
        before: &Live,
        map: &RouteMap,
        mut endpoints: BTreeMap<BackendId, Located>,
        telemetry: &Telemetry,
        keep: &Kept,
    ) -> Live {
        self.slots.retain(|_, slot| slot.strong_count() > 0);
        self.meanings.sweep();
        let mut live = Live { installed: true, ..Live::empty() };
        live.tells_clients = map.backends.values().any(|plan| plan.proxy_header.is_some());
        live.by_id.reserve(map.backends.len());
        for (id, plan) in &map.backends {
            let same =
                |known: &&Linked| Arc::ptr_eq(&known.backend.plan, plan) || known.backend.plan == *plan;
            let linked = match before.by_id.get(id).filter(same) {
                Some(known) => known.clone(),
                None => self.link_backend(id, plan, before.by_id.get(id), telemetry, keep),
            };
            if let Some(located) = endpoints.remove(id) {
                linked.backend.locate(located);
            }
            let place = linked.slot.index;
            if live.backends.len() <= place {
                live.backends.resize(place + 1, None);
            }
            live.backends[place] = Some(linked.backend.clone());
            live.by_id.insert(id.clone(), linked);
        }
        let known: Table<_, _> =
            before.hosts.values().map(|linked| (Arc::as_ptr(&linked.host), linked)).collect();
        let mut link = |host: &Arc<Host>| {
            let linked = match known.get(&Arc::as_ptr(host)) {
                Some(linked) => Arc::clone(linked),
                None => Arc::new(self.link_host(host, before, &live, telemetry, keep)),
            };
            for certificate in &linked.certificates {
                live.served.insert(certificate.plan.secret.clone(), certificate.clone());
            }
            if let Clients::By(validation) = &linked.clients {
                live.validations.insert((validation.plan.print, validation.least), validation.clone());
            }
            linked
        };
        let hosts: Vec<_> = map.hosts.iter().map(|(name, host)| (name.clone(), link(host))).collect();
        let catch_all = map.catch_all.as_ref().map(link);
        live.passes_through = hosts.iter().any(|(_, host)| host.passage.is_some());
        live.hosts = HostIndex::new(hosts, catch_all);
        live.unmatched = LiveFilters(linked(&map.unmatched, self.members, keep));
        live
    }

    fn link_backend(
        &mut self,
        id: &BackendId,
        plan: &Arc<BackendPlan>,
        before: Option<&Linked>,
        telemetry: &Telemetry,
        keep: &Kept,
    ) -> Linked {
        let slot = self.slot(id);
        let backend = match before {
            Some(before) => Backend::after(&before.backend, plan.clone()),
            None => Backend::new(plan.clone(), slot.index, telemetry.backend(&id.to_string())),
        };
        let bearer = match plan.credential.as_deref() {
            Some(Credential::Token(token)) => {
                let before = before.and_then(|before| before.bearer.as_deref());
                Some(Arc::new(Bearer::new(token, keep.fetched(&token.fetch), before)))
            }
            _ => None,
        };
        let backend = match &bearer {
            Some(bearer) => backend.with_tokens(Arc::<Bearer>::clone(bearer)),
            None => backend,
        };
        let backend = match &plan.traffic.rate {
            None => backend,
            Some(rate) => backend.counted(|host| {
                let whom = host.map_or_else(|| id.to_string(), |host| format!("{id} {host}"));
                let asked = keep.state(&format!("asked of {whom}"), &mut || Arc::new(Bucket::default()));
                let asked = asked.downcast().expect("only buckets are kept under this name");
                let together = rate
                    .shared
                    .then(|| -> Arc<dyn Together> { Arc::new(InStore::new(keep.store(), &whom, rate)) });
                (asked, together)
            }),
        };
        Linked { backend: Arc::new(backend), bearer, slot }
    }

    fn link_host(
        &mut self,
        host: &Arc<Host>,
        before: &Live,
        live: &Live,
        telemetry: &Telemetry,
        keep: &Kept,
    ) -> LiveHost {
        let (mut rules, mut known) = (Vec::new(), HashMap::new());
        let mut rule_of_entry = Vec::with_capacity(host.table.entries().len());
        for rule in host.table.entries().iter().map(|entry| &entry.rule) {
            let index = *known.entry(Arc::as_ptr(rule)).or_insert_with(|| {
                rules.push(self.link_rule(rule, host, telemetry, keep));
                rules.len() - 1
            });
            rule_of_entry.push(index);
        }
        rules.shrink_to_fit();
        let mut certificates = Vec::new();
        if let Some(tls) = &host.tls {
            for plan in &tls.certificates {
                let known = live.served.get(&plan.secret).or_else(|| before.served.get(&plan.secret));
                certificates.extend(LiveCertificate::link(plan, known));
            }
            // A Secret that is there but of no use now: what was served of it before is better than nothing.
            certificates.extend(tls.unusable.iter().filter_map(|secret| before.served.get(secret)).cloned());
        }
        let clients = match host.tls.as_ref().map(|tls| (&tls.client, tls.min_version)) {
            None | Some((ClientValidation::None, _)) => Clients::Unasked,
            Some((ClientValidation::Unusable, _)) => Clients::Refused,
            Some((ClientValidation::By(plan), least)) => {
                let key = (plan.print, least);
                let known = live.validations.get(&key).or_else(|| before.validations.get(&key));
                LiveValidation::link(plan, least, known).map_or(Clients::Refused, Clients::By)
            }
        };
        let mut counted: Vec<_> =
            rules.iter().filter_map(|rule| Some(rule.cache.as_ref()?.plan.key.query.clone())).collect();
        counted.sort();
        counted.dedup();
        let counted = counted.into();
        let passage = host.passage.as_ref().map(|rule| {
            let Labels { namespace, route, rule: name } = &*rule.labels;
            let stats = telemetry.passage(namespace, route, name);
            Box::new(LivePassage { rule: self.link_rule(rule, host, telemetry, keep), stats })
        });
        let entries = host.table.entries();
        let matches_methods = entries.iter().any(|entry| !entry.plan.predicates().methods.is_empty());
        let planned = rules.iter().flat_map(|rule| &rule.rule.filters);
        let authentications = planned.filter_map(|(_, plan)| plan.get::<AuthenticationPlan>());
        let key_headers = authentications.flat_map(AuthenticationPlan::key_headers);
        let key_headers = key_headers.map(HeaderName::as_str).collect();
        LiveHost {
            host: host.clone(),
            rules,
            counted,
            rule_of_entry,
            matches_methods,
            key_headers,
            certificates,
            clients,
            passage,
        }
    }

    fn link_rule(&mut self, rule: &Arc<Rule>, host: &Host, telemetry: &Telemetry, keep: &Kept) -> LiveRule {
        let forward = match &rule.action {
            Action::Forward(plan) => Some(plan),
            _ => None,
        };
        let targets = forward.into_iter().flat_map(|plan| &plan.backends).map(|entry| {
            let target = match &entry.target {
                WeightedTarget::Backend(id) => Target::Backend(self.slot(id)),
                WeightedTarget::Unresolved(kind) => Target::Unresolved(*kind),
            };
            (entry.weight, target)
        });
        let targets: Vec<_> = targets.collect();
        let labels = &rule.labels;
        let mirror = forward.and_then(|plan| plan.mirror.as_ref()).map(|plan| {
            let backend = plan.backend.as_ref().map(|id| self.slot(id));
            let turns = self.turns("mirror", host, labels, keep);
            Box::new(LiveMirror::new(backend, plan.percent, turns))
        });
        // Whatever else changes: weights hold over all that goes on.
        let turns = if targets.len() > 1 {
            self.turns("backends", host, labels, keep)
        } else {
            self.no_turns.clone()
        };
        let sessions = forward.and_then(|plan| plan.sessions.as_ref());
        let sessions = sessions.map(|plan| Box::new(LiveSessions::new(plan, labels)));
        let (outer, cache, inner) = self.around_cache(rule, host, keep);
        let (filters, inner) = (linked(outer, self.members, keep), linked(inner, self.members, keep));
        LiveRule {
            max_body: filters.iter().chain(&inner).filter_map(|filter| filter.max_body()).min(),
            filters,
            cache,
            inner,
            passes_hints: !rule.filters.iter().any(|(_, plan)| plan.get::<ResponsePlan>().is_some()),
            stats: telemetry.rule(&labels.namespace, &labels.route, &labels.rule),
            targets: Spread::new(targets, turns),
            mirror,
            judges_methods: rule.filters.iter().any(|(_, plan)| judges_methods(plan)),
            sessions,
            rule: rule.clone(),
        }
    }

    /// How many of a rule's requests of this name chose among something, from a random number on.
    fn turns(&self, what: &str, host: &Host, labels: &Labels, keep: &Kept) -> Arc<AtomicU64> {
        let Labels { namespace, route, rule } = labels;
        let name = host.hostname.as_ref().map_or("*".to_owned(), ToString::to_string);
        let start = self.random.hash_one((what, &name, labels)) >> 32;
        let made = keep.state(&format!("turns {what} {name} {namespace}/{route}/{rule}"), &mut || {
            Arc::new(AtomicU64::new(start))
        });
        made.downcast().expect("only turns are kept under this name")
    }

    /// A rule's filters outside of its cache, the cache, and those inside; without one all are outside.
    fn around_cache<'r>(
        &mut self,
        rule: &'r Rule,
        host: &Host,
        keep: &Kept,
    ) -> (&'r [Planned], Option<Arc<LiveCache>>, &'r [Planned]) {
        let Some((at, plan)) = plan_of(rule) else { return (&rule.filters, None, &[]) };
        let (outer, inner) = (&rule.filters[..at], &rule.filters[at + 1..]);
        let Labels { namespace, route, rule: name } = &*rule.labels;
        let (backends, idle) = match &rule.action {
            Action::Forward(plan) => (&*plan.backends, plan.timeouts.idle),
            _ => (&[][..], None),
        };
        let ids = backends.iter().filter_map(|entry| match &entry.target {
            WeightedTarget::Backend(id) => Some(id),
            WeightedTarget::Unresolved(_) => None,
        });
        let backends = ids.map(|id| self.slot(id)).collect();
        let meaning = self.meanings.of(rule, self.members, keep.forwarders());
        let rewritten = inner.iter().filter_map(|(_, plan)| plan.get::<RequestPlan>());
        let rewritten = rewritten.flat_map(RequestPlan::written_headers);
        let mut names = outer.iter().filter_map(|(row, _)| self.members.get(*row)).map(|row| row.name);
        let cache = LiveCache {
            plan: plan.clone(),
            partition: keep.partition(namespace, route),
            keying: Keying::new(name, host.own_headers.clone(), keep.forwarders()),
            meaning,
            backends,
            rewritten: rewritten.cloned().collect(),
            idle,
            has_cors: names.any(|name| name == Cors::NAME),
            has_one_backend: matches!(&rule.action, Action::Forward(plan) if plan.backends.len() == 1),
        };
        (outer, Some(Arc::new(cache)), inner)
    }

    /// The slot of a backend id: the one that it has, or a free one.
    fn slot(&mut self, id: &BackendId) -> Arc<Slot> {
        if let Some(known) = self.slots.get(id).and_then(Weak::upgrade) {
            return known;
        }
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let index = free.unwrap_or_else(|| {
            self.slot_count += 1;
            self.slot_count - 1
        });
        let slot = Arc::new(Slot { index, free: self.free.clone() });
        self.slots.insert(id.clone(), Arc::downgrade(&slot));
        slot
    }
}

fn linked(filters: &[(usize, AnyPlan)], members: &[Row], keep: &Kept) -> Vec<Arc<dyn Filter>> {
    let link = |(row, plan): &(usize, AnyPlan)| Some((members.get(*row)?.link?)(plan, keep));
    filters.iter().filter_map(link).collect()
}

fn judges_methods(plan: &AnyPlan) -> bool {
    plan.get::<AuthorizationPlan>().is_some() || plan.get::<ExtAuthPlan>().is_some()
}

fn take(names: &ReservedHeaders, fields: &mut HeaderMap) {
    while let Some(name) = fields.keys().find(|name| names.hold(name.as_str())).cloned() {
        fields.remove(name);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

impl fmt::Debug for LiveFilters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} filters", self.0.len())
    }
}

impl fmt::Debug for LiveRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveRule").field("rule", &self.rule).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

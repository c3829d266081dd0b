//! A route map linked to state: filters, counters, backends, certificates. Workers serve from it.
//!
//! Invariants: what did not change (same `Arc`) is the same linked object in the next one, so that one changed route
//! among many costs little and loses nothing; a request holds one `Live` from start to end; a slot belongs to one
//! backend id for as long as anything linked refers to it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::certificates::LiveCertificate;
use super::keep::Kept;
use super::spread::Spread;
use crate::filters::{Filter, REGISTRY};
use crate::message::ErrorKind;
use crate::route_map::{Action, EndpointSet, Host, HostIndex, RouteMap, Rule, WeightedTarget};
use crate::telemetry::{RuleStats, Telemetry};
use crate::upstream::Backend;
use crate::values::{BackendId, ObjectName};

#[derive(Debug)]
pub struct Live {
    hosts: HostIndex<Arc<LiveHost>>,
    /// By slot.
    backends: Vec<Option<Arc<Backend>>>,
    by_id: HashMap<BackendId, Arc<Backend>>,
    /// Certificates by Secret, as they are served now.
    served: HashMap<ObjectName, Arc<LiveCertificate>>,
}

/// A linked hostname.
#[derive(Debug)]
pub struct LiveHost {
    pub host: Arc<Host>,
    rules: Vec<LiveRule>,
    /// Rule of each entry of the match table.
    rule_of_entry: Vec<usize>,
    pub certificates: Vec<Arc<LiveCertificate>>,
}

/// A linked rule.
pub struct LiveRule {
    pub rule: Arc<Rule>,
    pub filters: Vec<Arc<dyn Filter>>,
    pub stats: Arc<RuleStats>,
    pub targets: Spread<Target>,
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
#[derive(Debug, Default)]
pub struct Linker {
    slots: HashMap<BackendId, Weak<Slot>>,
    slot_count: usize,
    free: Arc<Mutex<Vec<usize>>>,
    random: RandomState,
}

impl Live {
    /// What is served before the first map: nothing.
    pub fn empty() -> Self {
        Self {
            hosts: HostIndex::new([], None),
            backends: Vec::new(),
            by_id: HashMap::new(),
            served: HashMap::new(),
        }
    }

    /// The host that answers for a name (lower case, without port): exact, wildcard, then the catch-all.
    pub fn host(&self, name: &str) -> Option<&Arc<LiveHost>> {
        self.hosts.find(name)
    }

    pub fn backend(&self, slot: &Slot) -> Option<&Arc<Backend>> {
        self.backends.get(slot.index)?.as_ref()
    }

    pub fn backend_by_id(&self, id: &BackendId) -> Option<&Arc<Backend>> {
        self.by_id.get(id)
    }
}

impl LiveHost {
    /// The linked rule of an entry of this host's match table.
    pub fn rule(&self, entry: usize) -> &LiveRule {
        &self.rules[self.rule_of_entry[entry]]
    }

    /// Whether a client that was shown a certificate of this host may also ask the other one on the same connection.
    pub fn shares_certificate(&self, other: &Self) -> bool {
        let shown = &self.certificates;
        shown.iter().any(|one| other.certificates.iter().any(|two| one.plan.chain == two.plan.chain))
    }
}

impl Linker {
    pub fn link(
        &mut self,
        before: &Live,
        map: &RouteMap,
        mut endpoints: BTreeMap<BackendId, EndpointSet>,
        telemetry: &Telemetry,
        keep: &Kept,
    ) -> Live {
        self.slots.retain(|_, slot| slot.strong_count() > 0);
        let mut live = Live::empty();
        // Leases of this map's backends, so that none is given away between here and the hosts that refer to it.
        let mut leases = HashMap::with_capacity(map.backends.len());
        for (id, plan) in &map.backends {
            let slot = self.slot(id);
            let known = before.by_id.get(id).filter(|known| {
                known.slot == slot.index && (Arc::ptr_eq(&known.plan, plan) || known.plan == *plan)
            });
            let backend = match known {
                Some(known) => known.clone(),
                None => Arc::new(Backend::new(plan.clone(), slot.index, telemetry.backend(&id.to_string()))),
            };
            if let Some(set) = endpoints.remove(id) {
                backend.set_endpoints(set);
            }
            if live.backends.len() <= slot.index {
                live.backends.resize(slot.index + 1, None);
            }
            live.backends[slot.index] = Some(backend.clone());
            live.by_id.insert(id.clone(), backend);
            leases.insert(id.clone(), slot);
        }
        let known: HashMap<_, _, foldhash::fast::RandomState> =
            before.hosts.values().map(|linked| (Arc::as_ptr(&linked.host), linked)).collect();
        let mut link = |host: &Arc<Host>| {
            let linked = match known.get(&Arc::as_ptr(host)) {
                Some(linked) => Arc::clone(linked),
                None => Arc::new(self.link_host(host, before, &live, telemetry, keep)),
            };
            for certificate in &linked.certificates {
                live.served.insert(certificate.plan.secret.clone(), certificate.clone());
            }
            linked
        };
        let hosts: Vec<_> = map.hosts.iter().map(|(name, host)| (name.clone(), link(host))).collect();
        let catch_all = map.catch_all.as_ref().map(link);
        live.hosts = HostIndex::new(hosts, catch_all);
        live
    }

    fn link_host(
        &mut self,
        host: &Arc<Host>,
        before: &Live,
        live: &Live,
        telemetry: &Telemetry,
        keep: &Kept,
    ) -> LiveHost {
        let (mut rules, mut known, mut rule_of_entry) = (Vec::new(), HashMap::new(), Vec::new());
        for rule in host.table.entries().iter().map(|entry| &entry.rule) {
            let index = *known.entry(Arc::as_ptr(rule)).or_insert_with(|| {
                rules.push(self.link_rule(rule, telemetry, keep));
                rules.len() - 1
            });
            rule_of_entry.push(index);
        }
        let mut certificates = Vec::new();
        if let Some(tls) = &host.tls {
            for plan in &tls.certificates {
                let known = live.served.get(&plan.secret).or_else(|| before.served.get(&plan.secret));
                certificates.extend(LiveCertificate::link(plan, known));
            }
            // A Secret that is there but of no use now: what was served of it before is better than nothing.
            certificates.extend(tls.unusable.iter().filter_map(|secret| before.served.get(secret)).cloned());
        }
        LiveHost { host: host.clone(), rules, rule_of_entry, certificates }
    }

    fn link_rule(&mut self, rule: &Arc<Rule>, telemetry: &Telemetry, keep: &Kept) -> LiveRule {
        let link = |(row, plan): &(usize, _)| REGISTRY.get(*row)?.link.map(|link| link(plan, keep));
        let weighted = match &rule.action {
            Action::Forward(plan) => plan.backends.as_slice(),
            _ => &[],
        };
        let targets = weighted.iter().map(|entry| {
            let target = match &entry.target {
                WeightedTarget::Backend(id) => Target::Backend(self.slot(id)),
                WeightedTarget::Unresolved(kind) => Target::Unresolved(*kind),
            };
            (entry.weight, target)
        });
        let targets: Vec<_> = targets.collect();
        let labels = &rule.labels;
        LiveRule {
            filters: rule.filters.iter().filter_map(link).collect(),
            stats: telemetry.rule(&labels.namespace, &labels.route, &labels.rule),
            targets: Spread::new(targets, self.random.hash_one(labels) >> 32),
            rule: rule.clone(),
        }
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

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

impl fmt::Debug for LiveRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveRule").field("rule", &self.rule).finish_non_exhaustive()
    }
}

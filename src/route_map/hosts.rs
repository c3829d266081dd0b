//! The map itself: hostname → host → match table → rule.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::filters::{AnyPlan, Cors, Member as _, REGISTRY};
use crate::message::Labels;
use crate::route_map::{Action, BackendPlan, HostTls, MatchTable};
use crate::values::{BackendId, Hostname, ObjectName, ReservedHeaders};

/// All that is served at one instant. Hosts and backends are shared with the map before where nothing changed:
/// `install` compares by pointer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteMap {
    pub hosts: BTreeMap<Hostname, Arc<Host>>,
    /// What answers every host that no other entry names.
    pub catch_all: Option<Arc<Host>>,
    pub backends: BTreeMap<BackendId, Arc<BackendPlan>>,
    /// Filters of requests that no rule matches, as in [`Rule`]: policies on the installation.
    pub unmatched: Vec<(usize, AnyPlan)>,
}

/// Everything about one hostname.
#[derive(Debug, PartialEq)]
pub struct Host {
    /// `None` for the catch-all.
    pub hostname: Option<Hostname>,
    /// `None`: served on plain HTTP only.
    pub tls: Option<HostTls>,
    pub table: MatchTable,
    /// TLS is passed through by this rule: no request is seen, and the table is empty.
    pub passage: Option<Arc<Rule>>,
    /// Fields that only the gateway may set in a request to this host.
    pub own_headers: ReservedHeaders,
}

impl Host {
    /// All of its rules, as often as they have entries.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.table.entries().iter().map(|entry| &entry.rule).chain(&self.passage)
    }

    /// One that reserves no fields.
    pub fn new(hostname: Option<Hostname>, tls: Option<HostTls>, table: MatchTable) -> Self {
        Self { hostname, tls, table, passage: None, own_headers: ReservedHeaders::default() }
    }
}

/// One rule of one route, with every policy member that is effective on it.
#[derive(Debug, PartialEq)]
pub struct Rule {
    pub labels: Arc<Labels>,
    /// Filters in the order of work on the way in: by ring, then by row. The index is the row in the registry.
    pub filters: Vec<(usize, AnyPlan)>,
    pub action: Action,
    /// Where each effective member of the policy comes from, in the order of the registry; of one row as often as it
    /// is given, the outermost first. For people only.
    pub policy: Vec<PolicyMember>,
}

impl Rule {
    /// Whether it has `cors`, which answers preflights.
    pub fn answers_preflights(&self) -> bool {
        self.filters.iter().any(|(row, _)| REGISTRY.get(*row).is_some_and(|row| row.name == Cors::NAME))
    }
}

/// A member of a rule's effective policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyMember {
    /// Its row in the registry.
    pub row: usize,
    pub origin: PolicyOrigin,
}

/// Where a member was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyOrigin {
    /// `spec.rules[].policy`
    Rule,
    /// `spec.policy`
    Route,
    /// A GatewayPolicy.
    Policy { name: ObjectName, by: PolicyBy },
}

/// Why a GatewayPolicy applies to a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyBy {
    /// `spec.rules[].policyRefs`
    RuleRefs,
    /// `spec.policyRefs`
    RouteRefs,
    /// Its own `spec.targetRefs`, for what is said by `level`.
    Target { level: &'static str, imposed: bool },
}

/// Values by hostname, for one look-up a request.
///
/// The most specific name that covers the host decides alone: when none of its rules matches, less specific names are
/// not asked. A hostname has one owner, and a wildcard's owner must not answer under a name that is another's.
#[derive(Debug, Default)]
pub struct HostIndex<T> {
    exact: HashMap<Arc<str>, T, RandomState>,
    /// By the part after `*.`
    wildcards: HashMap<Arc<str>, T, RandomState>,
    catch_all: Option<T>,
}

impl RouteMap {
    /// The entry for `host`, as [`HostIndex`] finds it.
    pub fn host(&self, host: &str) -> Option<&Arc<Host>> {
        let name = without_root_dot(host);
        let named = self
            .hosts
            .get(&Hostname::Exact(name.into()))
            .or_else(|| suffixes(name).find_map(|suffix| self.hosts.get(&Hostname::Wildcard(suffix.into()))));
        named.or(self.catch_all.as_ref())
    }
}

impl<T> HostIndex<T> {
    pub fn new(hosts: impl IntoIterator<Item = (Hostname, T)>, catch_all: Option<T>) -> Self {
        let mut index = Self { exact: HashMap::default(), wildcards: HashMap::default(), catch_all };
        for (hostname, value) in hosts {
            match hostname {
                Hostname::Exact(name) => index.exact.insert(name, value),
                Hostname::Wildcard(suffix) => index.wildcards.insert(suffix, value),
            };
        }
        index
    }

    /// The value of the most specific name that covers `host` (lower case, without port): the exact name, the longest
    /// wildcard, the catch-all.
    pub fn find(&self, host: &str) -> Option<&T> {
        let name = without_root_dot(host);
        if let Some(value) = self.exact.get(name) {
            return Some(value);
        }
        let wildcard = match self.wildcards.is_empty() {
            true => None,
            false => suffixes(name).find_map(|suffix| self.wildcards.get(suffix)),
        };
        wildcard.or(self.catch_all.as_ref())
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.wildcards.values()).chain(&self.catch_all)
    }
}

/// `shop.example.` names the same host as `shop.example` (RFC 1034 section 3.1).
fn without_root_dot(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// What a wildcard that covers `host` may hold after its star, longest first. Longer than any DNS name: nothing.
fn suffixes(host: &str) -> impl Iterator<Item = &str> {
    let host = if host.len() > 253 { "" } else { host };
    host.match_indices('.').filter(|(dot, _)| *dot > 0).map(|(dot, _)| &host[dot + 1..])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::route_map::{MatchEntry, MatchPlan, WeightedBackend};

    /// There are tens of thousands of each: whoever makes one larger should know.
    #[test]
    fn what_there_are_many_of_stays_small() {
        let sizes = [
            size_of::<Rule>(),
            size_of::<MatchPlan>(),
            size_of::<MatchEntry>(),
            size_of::<WeightedBackend>(),
            size_of::<Host>(),
        ];
        let most = [184, 176, 64, 48, 256];
        assert!(sizes.iter().zip(most).all(|(size, most)| *size <= most), "{sizes:?}, at most {most:?}");
    }

    proptest! {
        #[test]
        fn the_index_finds_the_most_specific_covering_name(
            names in proptest::collection::btree_set("(\\*\\.)?[ab](\\.[ab]){1,3}", 0..12),
            host in "[ab](\\.[ab]){0,4}\\.?",
        ) {
            let names: Vec<Hostname> = names.iter().filter_map(|name| name.parse().ok()).collect();
            let index = HostIndex::new(names.iter().map(|name| (name.clone(), name.clone())), None);
            let bare = host.trim_end_matches('.');
            let best = names.iter().filter(|name| name.covers(bare)).max_by_key(|name| match name {
                Hostname::Exact(_) => usize::MAX,
                Hostname::Wildcard(suffix) => suffix.len(),
            });
            prop_assert_eq!(index.find(&host), best);
            let map = RouteMap {
                hosts: names
                    .iter()
                    .map(|name| {
                        let table = MatchTable::new(Vec::new());
                        (name.clone(), Arc::new(Host::new(Some(name.clone()), None, table)))
                    })
                    .collect(),
                ..RouteMap::default()
            };
            prop_assert_eq!(map.host(&host).and_then(|host| host.hostname.as_ref()), best);
        }
    }
}

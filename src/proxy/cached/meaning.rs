//! What a rule with a cache does with a request: what was kept when it did something else is not used.
//!
//! Invariants: the number of a meaning is never that of another one; a rule that changes, or comes back after it was gone,
//! begins anew. What only lets requests in, or adds to answers outside of the cache, is no part of it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::cache::Forwarders;
use crate::filters::{AnyPlan, CachePlan, Ring, Row};
use crate::message::Labels;
use crate::route_map::{Action, Rule, WeightedTarget};

/// What the answers that are kept under one number have in common.
#[derive(Debug)]
pub struct Meaning {
    pub number: u64,
    filters: Vec<(usize, AnyPlan)>,
    targets: Vec<WeightedTarget>,
    forwarders: Forwarders,
}

/// The meanings of all rules that are served.
#[derive(Debug, Default)]
pub struct Meanings {
    /// Of one rule there are several while an older map is served.
    known: HashMap<Arc<Labels>, Vec<Weak<Meaning>>>,
    last: u64,
}

impl Meanings {
    /// What the rule does; the same as long as it does the same.
    pub fn of(&mut self, rule: &Rule, rows: &[Row], forwarders: Forwarders) -> Arc<Meaning> {
        let matters =
            |(row, _): &&(usize, AnyPlan)| rows.get(*row).and_then(|row| row.ring).is_none_or(matters);
        let filters: Vec<_> = rule.filters.iter().filter(matters).cloned().collect();
        let targets = match &rule.action {
            // Shares change as a new version is let in: both answer then.
            Action::Forward(plan) => plan.backends.iter().map(|entry| entry.target.clone()).collect(),
            _ => Vec::new(),
        };
        let known = self.known.entry(Arc::clone(&rule.labels)).or_default();
        known.retain(|one| one.strong_count() > 0);
        let same = |one: &Arc<Meaning>| {
            one.filters == filters && one.targets == targets && one.forwarders == forwarders
        };
        if let Some(same) = known.iter().filter_map(Weak::upgrade).find(same) {
            return same;
        }
        self.last += 1;
        let meaning = Arc::new(Meaning { number: self.last, filters, targets, forwarders });
        known.push(Arc::downgrade(&meaning));
        meaning
    }

    /// Forgets rules that are gone.
    pub fn sweep(&mut self) {
        self.known.retain(|_, known| known.iter().any(|one| one.strong_count() > 0));
    }
}

/// Whether what a filter of this ring does may change what is asked for, what is kept, or for whom.
fn matters(ring: Ring) -> bool {
    match ring {
        Ring::SecurityHeaders
        | Ring::Errors
        | Ring::IpAccess
        | Ring::Limits
        | Ring::EarlyRateLimits
        | Ring::RateLimits
        | Ring::Validation
        | Ring::FaultInjection => false,
        Ring::Compression
        | Ring::Cors
        | Ring::Authentication
        | Ring::ExternalAuthorization
        | Ring::Authorization
        | Ring::Cache
        | Ring::Transform => true,
    }
}

/// Of a rule's filters, the cache's plan.
pub fn plan_of(rule: &Rule) -> Option<(usize, &CachePlan)> {
    rule.filters.iter().enumerate().find_map(|(at, (_, plan))| Some((at, plan.get::<CachePlan>()?)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::filters::{REGISTRY, TimeoutsPlan};
    use crate::route_map::{ForwardPlan, WeightedBackend};
    use crate::values::{BackendId, ObjectName};

    fn row(name: &str) -> usize {
        REGISTRY.iter().position(|row| row.name == name).expect(name)
    }

    struct Given {
        cache: CachePlan,
        /// In the place of these filters' plans.
        cors: &'static str,
        rate: &'static str,
        backends: Vec<(u32, &'static str)>,
        name: &'static str,
    }

    impl Default for Given {
        fn default() -> Self {
            let cache = CachePlan::default();
            Self { cache, cors: "a", rate: "a", backends: vec![(9, "one"), (1, "two")], name: "r" }
        }
    }

    impl Given {
        fn rule(self) -> Rule {
            let backends = self.backends.into_iter().map(|(weight, name)| WeightedBackend {
                weight,
                target: WeightedTarget::Backend(BackendId::Service {
                    service: ObjectName::new("ns", name),
                    port: 80,
                }),
            });
            let forward = ForwardPlan {
                backends: backends.collect(),
                timeouts: TimeoutsPlan::default(),
                retry: None,
                mirror: None,
                sessions: None,
            };
            Rule {
                labels: Arc::new(Labels {
                    namespace: "ns".into(),
                    route: "web".into(),
                    rule: self.name.into(),
                }),
                filters: vec![
                    (row("cors"), AnyPlan::new(self.cors)),
                    (row("rateLimits"), AnyPlan::new(self.rate)),
                    (row("cache"), AnyPlan::new(self.cache)),
                ],
                action: Action::Forward(forward),
                policy: Vec::new(),
            }
        }
    }

    #[test]
    fn what_changes_answers_is_another_meaning_and_nothing_else_is() {
        let mut meanings = Meanings::default();
        let mut of = |given: Given| meanings.of(&given.rule(), REGISTRY, Forwarders::Nobody);
        let first = of(Given::default());
        let is_same = |other: &Arc<Meaning>| other.number == first.number;
        assert!(is_same(&of(Given::default())));
        assert!(is_same(&of(Given { rate: "b", ..Given::default() })), "a limit lets in, and nothing else");
        assert!(is_same(&of(Given { backends: vec![(5, "one"), (5, "two")], ..Given::default() })));
        let longer = CachePlan { max_ttl: Some(Duration::from_secs(9)), ..CachePlan::default() };
        let others = [
            of(Given { cache: longer, ..Given::default() }),
            of(Given { cors: "b", ..Given::default() }),
            of(Given { backends: vec![(9, "one")], ..Given::default() }),
            of(Given { name: "s", ..Given::default() }),
        ];
        assert!(!others.iter().any(is_same), "{others:?}");
        assert!(is_same(&of(Given::default())), "both are known as long as both are served");
    }

    #[test]
    fn a_rule_that_comes_back_begins_anew() {
        let mut meanings = Meanings::default();
        let first = meanings.of(&Given::default().rule(), REGISTRY, Forwarders::Nobody).number;
        meanings.sweep();
        assert!(meanings.known.is_empty());
        assert_ne!(meanings.of(&Given::default().rule(), REGISTRY, Forwarders::Nobody).number, first);
    }
}

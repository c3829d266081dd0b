//! Which policies apply where, by their targets; and which of two on one target gives way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::gateway_policy::{LoweredPolicy, Target};
use super::gateway_route::LoweredRoute;
use crate::api::Precedence;
use crate::filters::{Combine, REGISTRY};
use crate::snapshot::Snapshot;
use crate::values::{FieldPath, NamespaceSelector, ObjectName, Problem, Reason};

/// How wide a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Rule,
    Route,
    Namespace,
    /// Namespaces by label.
    Selected,
    Installation,
}

/// The policies that apply to one route by their targets. Those of namespaces and installation are shared by all routes
/// of a namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct Applied {
    wide: Option<Arc<Wide>>,
    narrow: Option<Arc<Narrow>>,
}

/// Each list by age.
#[derive(Debug, Default)]
struct Wide {
    namespace: Vec<Arc<LoweredPolicy>>,
    selected: Vec<Arc<LoweredPolicy>>,
    installation: Vec<Arc<LoweredPolicy>>,
}

/// By age, with the rule where only one is meant.
#[derive(Debug, Default)]
struct Narrow(Vec<(Option<Arc<str>>, Arc<LoweredPolicy>)>);

/// All that targets say, in one place.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_namespace: BTreeMap<Arc<str>, Arc<Wide>>,
    /// For namespaces that are not there.
    everywhere: Option<Arc<Wide>>,
    by_route: BTreeMap<ObjectName, Arc<Narrow>>,
    conflicts: Conflicts,
}

/// By policy: what another one gives for it.
#[derive(Debug, Default)]
struct Conflicts(BTreeMap<ObjectName, Lost>);

#[derive(Debug, Default)]
struct Lost {
    /// Members, once for each target.
    given: usize,
    lost: usize,
    problems: BTreeMap<usize, Problem>,
}

impl Level {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rule => "the rule",
            Self::Route => "the route",
            Self::Namespace => "the namespace",
            Self::Selected => "namespaces by label",
            Self::Installation => "the installation",
        }
    }
}

impl Applied {
    pub fn is_empty(&self) -> bool {
        self.wide.is_none() && self.narrow.is_none()
    }

    /// Those of one level, by age.
    pub fn at<'a>(
        &'a self,
        level: Level,
        rule: &'a str,
    ) -> impl Iterator<Item = &'a Arc<LoweredPolicy>> + use<'a> {
        let wide: &[_] = match (level, self.wide.as_deref()) {
            (Level::Namespace, Some(wide)) => &wide.namespace,
            (Level::Selected, Some(wide)) => &wide.selected,
            (Level::Installation, Some(wide)) => &wide.installation,
            _ => &[],
        };
        let narrow: &[_] = match (level, self.narrow.as_deref()) {
            (Level::Rule | Level::Route, Some(Narrow(policies))) => policies,
            _ => &[],
        };
        let narrow = narrow.iter().filter(move |(only, _)| match level {
            Level::Rule => only.as_deref() == Some(rule),
            _ => only.is_none(),
        });
        wide.iter().chain(narrow.map(|(_, policy)| policy))
    }

    /// All of them, some perhaps twice.
    pub fn all(&self) -> impl Iterator<Item = &Arc<LoweredPolicy>> {
        let wide = self.wide.iter().flat_map(|wide| wide.lists().into_iter().flatten());
        wide.chain(self.narrow.iter().flat_map(|narrow| narrow.0.iter().map(|(_, policy)| policy)))
    }

    pub fn same(&self, other: &Self) -> bool {
        same_arc(self.wide.as_ref(), other.wide.as_ref())
            && same_arc(self.narrow.as_ref(), other.narrow.as_ref())
    }
}

impl Wide {
    fn lists(&self) -> [&Vec<Arc<LoweredPolicy>>; 3] {
        [&self.namespace, &self.selected, &self.installation]
    }

    fn same(&self, other: &Self) -> bool {
        self.lists()
            .into_iter()
            .zip(other.lists())
            .all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b)))
    }
}

impl Narrow {
    fn same(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|(a, b)| a.0 == b.0 && Arc::ptr_eq(&a.1, &b.1))
    }
}

impl Index {
    /// `before` lends its parts where they are the same, so that routes see at a glance that nothing changed.
    pub fn new(policies: &[Arc<LoweredPolicy>], world: &Snapshot, before: &Self) -> Self {
        let mut index = Self::default();
        if policies.is_empty() {
            return index;
        }
        let mut by_age: Vec<_> = policies.to_vec();
        by_age.sort_by(|a, b| a.age().cmp(&b.age()));
        let mut own: BTreeMap<Arc<str>, Vec<Arc<LoweredPolicy>>> = BTreeMap::new();
        let mut by_route: BTreeMap<ObjectName, Narrow> = BTreeMap::new();
        let (mut selecting, mut installation) = (Vec::new(), Vec::new());
        for policy in &by_age {
            let namespace = &policy.name.namespace;
            for (place, (_, target)) in policy.targets.iter().enumerate() {
                if policy.targets[..place].iter().any(|(_, earlier)| earlier == target) {
                    continue;
                }
                match target {
                    Target::Namespace => own.entry(namespace.clone()).or_default().push(policy.clone()),
                    Target::Selected(selector) => selecting.push((selector, policy)),
                    Target::Installation => installation.push(policy.clone()),
                    Target::Route { name, rule } => {
                        let route = ObjectName::new(namespace.clone(), name.clone());
                        by_route.entry(route).or_default().0.push((rule.clone(), policy.clone()));
                    }
                }
            }
        }
        let mut namespaces: BTreeSet<Arc<str>> = own.keys().cloned().collect();
        if !selecting.is_empty() {
            namespaces.extend(world.namespaces.keys().cloned());
            namespaces.extend(world.routes.keys().map(|name| name.namespace.clone()));
        }
        for namespace in namespaces {
            let mut selected: Vec<Arc<LoweredPolicy>> = Vec::new();
            for (selector, policy) in &selecting {
                let known = selected.last().is_some_and(|last| Arc::ptr_eq(last, policy));
                if !known && selects(selector, world, &namespace) {
                    selected.push(Arc::clone(policy));
                }
            }
            let own = own.remove(&namespace).unwrap_or_default();
            if own.is_empty() && selected.is_empty() {
                continue;
            }
            index.conflicts.settle(own.iter(), &format!("namespace {namespace}"));
            index.conflicts.settle(selected.iter(), &format!("namespace {namespace}"));
            let wide = Wide { namespace: own, selected, installation: installation.clone() };
            let wide = lent(before.by_namespace.get(&namespace), wide, Wide::same);
            index.by_namespace.insert(namespace, wide);
        }
        for (route, narrow) in by_route {
            let rules: BTreeSet<_> = narrow.0.iter().map(|(rule, _)| rule.clone()).collect();
            for rule in rules {
                let those = narrow.0.iter().filter(|(other, _)| *other == rule).map(|(_, policy)| policy);
                let what = match &rule {
                    Some(rule) => format!("rule {rule} of GatewayRoute {route}"),
                    None => format!("GatewayRoute {route}"),
                };
                index.conflicts.settle(those, &what);
            }
            let narrow = lent(before.by_route.get(&route), narrow, Narrow::same);
            index.by_route.insert(route, narrow);
        }
        index.conflicts.settle(installation.iter(), "the installation");
        if !installation.is_empty() {
            let wide = Wide { installation, ..Wide::default() };
            index.everywhere = Some(lent(before.everywhere.as_ref(), wide, Wide::same));
        }
        index
    }

    pub fn applied(&self, route: &ObjectName) -> Applied {
        let wide = match self.by_namespace.is_empty() {
            true => None,
            false => self.by_namespace.get(&route.namespace),
        };
        let narrow = if self.by_route.is_empty() { None } else { self.by_route.get(route) };
        Applied { wide: wide.or(self.everywhere.as_ref()).cloned(), narrow: narrow.cloned() }
    }

    /// What applies to requests that no rule matched.
    pub fn to_the_unmatched(&self) -> Applied {
        Applied { wide: self.everywhere.clone(), narrow: None }
    }

    /// What is to be said of a policy's targets, beside what it says itself; and whether any member of it counts.
    pub fn standing<'r>(
        &self,
        policy: &LoweredPolicy,
        world: &Snapshot,
        route: impl Fn(&ObjectName) -> Option<&'r Arc<LoweredRoute>>,
    ) -> (Vec<Problem>, bool) {
        let mut problems = Vec::new();
        for (path, target) in &policy.targets {
            let Target::Route { name, rule } = target else { continue };
            let name = ObjectName::new(policy.name.namespace.clone(), name.clone());
            if !world.routes.contains_key(&name) {
                let message = format!("there is no GatewayRoute {name}; create it or correct the name");
                problems.push(Problem::error(path.field("name"), Reason::TargetNotFound, message));
            } else if let (Some(rule), Some(route)) = (rule, route(&name))
                && !route.rules.iter().any(|known| known.name() == rule)
            {
                let message = format!("GatewayRoute {name} has no rule {rule}; correct the name");
                problems.push(Problem::error(path.field("sectionName"), Reason::TargetNotFound, message));
            }
        }
        let mut counts = true;
        if let Some(lost) = self.conflicts.0.get(&policy.name) {
            problems.extend(lost.problems.values().cloned());
            counts = lost.lost < lost.given || lost.given == 0;
        }
        (problems, counts)
    }
}

impl Conflicts {
    /// Of two on one target the older wins each member, but gates that are imposed: those add up. `policies` stand by
    /// age.
    fn settle<'p>(&mut self, policies: impl Iterator<Item = &'p Arc<LoweredPolicy>>, target: &str) {
        let mut winners: BTreeMap<(bool, usize), &ObjectName> = BTreeMap::new();
        for policy in policies {
            let imposes = policy.precedence == Precedence::Override;
            let rows = policy.layer.given.iter().map(|(row, _)| *row);
            for row in rows.chain(policy.layer.disabled.iter().copied()) {
                let standing = self.0.entry(policy.name.clone()).or_default();
                standing.given += 1;
                if imposes && REGISTRY[row].combine == Combine::Both {
                    continue;
                }
                let Some(winner) = winners.get(&(imposes, row)) else {
                    winners.insert((imposes, row), &policy.name);
                    continue;
                };
                standing.lost += 1;
                let member = REGISTRY[row].name;
                let message = format!(
                    "GatewayPolicy {winner}, which comes first, says what {member} is for {target}; leave it out of one of them"
                );
                let path = FieldPath::new("spec.policy").field(member);
                let problem = Problem::error(path, Reason::Conflicted, message);
                standing.problems.entry(row).or_insert(problem);
            }
        }
    }
}

fn selects(selector: &NamespaceSelector, world: &Snapshot, namespace: &Arc<str>) -> bool {
    selector.selects(namespace, world.namespaces.get(namespace).map(|known| &known.labels))
}

fn lent<T>(before: Option<&Arc<T>>, now: T, same: impl Fn(&T, &T) -> bool) -> Arc<T> {
    match before.filter(|before| same(before, &now)) {
        Some(before) => Arc::clone(before),
        None => Arc::new(now),
    }
}

fn same_arc<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

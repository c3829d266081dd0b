//! Which watches read the Secrets and ConfigMaps that are wanted: one a name while they are few, else one of their
//! namespace, or of all namespaces.
//!
//! Invariants: what is wanted is always served by a watch that began after it was wanted; a wide watch that is refused
//! is never begun again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::wanted::{Only, Source};
use crate::snapshot::Kind;
use crate::values::ObjectName;

/// Watches by name in one namespace, and of one class altogether; more are put together. A connection each.
const IN_A_NAMESPACE: usize = if cfg!(test) { 3 } else { 16 };
const ALTOGETHER: usize = if cfg!(test) { 6 } else { 64 };
/// What is wanted later has a watch of its own again; so large a part of a wide watch may have, lest lists of many
/// thousands are read over and over.
const LATER: usize = 64;

#[derive(Debug, Default)]
pub struct Sources {
    reach: Reach,
    /// How many objects of ours want it.
    wanted: BTreeMap<Source, usize>,
    together: BTreeMap<Group, Together>,
    refused: BTreeSet<Group>,
    serial: u32,
    /// Since the last plan.
    changed: bool,
    /// Names that nobody wants any more, not told yet.
    gone: Vec<(Kind, ObjectName)>,
}

/// How far one watch may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    #[default]
    Cluster,
    Namespaces,
}

/// What one watch can read together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    kind: Kind,
    certificates: bool,
    /// `None`: all.
    namespace: Option<Arc<str>>,
}

#[derive(Debug)]
struct Together {
    source: Source,
    /// Wanted since before it began.
    covers: BTreeSet<Source>,
}

impl Sources {
    pub fn new(reach: Reach) -> Self {
        Self { reach, ..Self::default() }
    }

    pub fn want(&mut self, source: &Source) {
        match self.wanted.get_mut(source) {
            Some(count) => *count += 1,
            None => {
                self.wanted.insert(source.clone(), 1);
                self.changed = true;
            }
        }
    }

    pub fn want_less(&mut self, source: &Source) {
        if let Some(count) = self.wanted.get_mut(source) {
            *count -= 1;
            if *count == 0 {
                self.wanted.remove(source);
                self.changed = true;
                self.gone.extend(source.name().map(|name| (source.kind, name)));
            }
        }
    }

    pub fn is_wanted(&self, source: &Source) -> bool {
        self.wanted.contains_key(source)
    }

    /// A wide watch may not read.
    pub fn refuse(&mut self, source: &Source) {
        let refused = self.together.extract_if(.., |_, together| together.source == *source);
        self.refused.extend(refused.map(|(group, _)| group));
        self.changed = true;
    }

    /// Whether the plan may be another now.
    pub const fn changed(&self) -> bool {
        self.changed
    }

    /// Names that nobody wants any more, each told once.
    pub fn let_go(&mut self) -> Vec<(Kind, ObjectName)> {
        std::mem::take(&mut self.gone)
    }

    /// The watch that something wanted is read by.
    pub fn serving<'s>(&'s self, wanted: &'s Source) -> &'s Source {
        let own = Group::of(wanted);
        let all = own.iter().map(Group::everywhere);
        let wide = own.iter().cloned().chain(all).filter_map(|group| self.together.get(&group));
        wide.filter(|wide| wide.covers.contains(wanted)).map(|wide| &wide.source).next().unwrap_or(wanted)
    }

    /// The watches there should be.
    pub fn plan(&mut self) -> BTreeSet<Source> {
        self.changed = false;
        for together in self.together.values_mut() {
            together.covers.retain(|source| self.wanted.contains_key(source));
        }
        // Half of what it takes, so that one that comes and goes does not turn it over each time.
        self.together.retain(|group, together| together.covers.len() > group.most() / 2);
        for (group, alone) in self.alone() {
            if alone > self.bound(&group) {
                self.gather(group);
            }
        }
        if self.reach == Reach::Cluster {
            let mut watches: BTreeMap<Group, usize> = BTreeMap::new();
            let narrow = self.together.keys().filter(|group| group.namespace.is_some());
            for (group, count) in self.alone().into_iter().chain(narrow.map(|group| (group.clone(), 1))) {
                *watches.entry(group.everywhere()).or_default() += count;
            }
            for (group, count) in watches {
                if count > self.bound(&group) {
                    self.gather(group);
                }
            }
        }
        self.wanted.keys().map(|source| self.serving(source).clone()).collect()
    }

    /// How many have a watch of their own and need not.
    fn alone(&self) -> BTreeMap<Group, usize> {
        let mut alone: BTreeMap<Group, usize> = BTreeMap::new();
        for source in self.wanted.keys() {
            if let Some(group) = Group::of(source).filter(|_| self.serving(source) == source) {
                *alone.entry(group).or_default() += 1;
            }
        }
        alone
    }

    /// How many of a group may.
    fn bound(&self, group: &Group) -> usize {
        let covered = self.together.get(group).map_or(0, |together| together.covers.len());
        group.most().max(covered / LATER)
    }

    /// Puts together everything of a group in a new watch.
    fn gather(&mut self, group: Group) {
        if self.refused.contains(&group) {
            return;
        }
        let is_covered = |source: &&Source| match Group::of(source) {
            Some(of) if of == group => {
                let all = self.together.get(&group.everywhere());
                all.is_none_or(|all| !all.covers.contains(*source))
            }
            Some(of) => of.everywhere() == group,
            None => false,
        };
        let covers: BTreeSet<Source> = self.wanted.keys().filter(is_covered).cloned().collect();
        if group.namespace.is_none() {
            self.together.retain(|narrow, _| narrow.everywhere() != group);
        }
        self.serial += 1;
        let only = Only::Together { certificates: group.certificates, serial: self.serial };
        let source = Source { kind: group.kind, namespace: group.namespace.clone(), only };
        self.together.insert(group, Together { source, covers });
    }
}

impl Group {
    /// Where one by name belongs; none by label.
    fn of(source: &Source) -> Option<Self> {
        let certificates = match source.only {
            Only::Named(_) => false,
            Only::Certificate(_) => true,
            Only::Everything | Only::Labelled(_) | Only::Together { .. } => return None,
        };
        Some(Self { kind: source.kind, certificates, namespace: source.namespace.clone() })
    }

    fn everywhere(&self) -> Self {
        Self { namespace: None, ..self.clone() }
    }

    const fn most(&self) -> usize {
        if self.namespace.is_some() { IN_A_NAMESPACE } else { ALTOGETHER }
    }
}

/// What a wide watch would have to be wanted by, to keep an object of this name.
pub fn by_name(wide: &Source, name: &ObjectName) -> Source {
    let only = match wide.only {
        Only::Together { certificates: true, .. } => Only::Certificate(Arc::clone(&name.name)),
        _ => Only::Named(Arc::clone(&name.name)),
    };
    Source { kind: wide.kind, namespace: Some(Arc::clone(&name.namespace)), only }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(namespace: &str, name: &str) -> Source {
        Source { kind: Kind::Secret, namespace: Some(namespace.into()), only: Only::Named(name.into()) }
    }

    fn wanting(reach: Reach, wanted: &[(&str, &str)]) -> Sources {
        let mut sources = Sources::new(reach);
        wanted.iter().for_each(|(namespace, name)| sources.want(&named(namespace, name)));
        sources
    }

    /// `shop/a`, or `shop/*1` for what is put together.
    fn plan(sources: &mut Sources) -> Vec<String> {
        let show = |source: Source| {
            let namespace = source.namespace.as_deref().unwrap_or("*").to_owned();
            match source.only {
                Only::Named(name) => format!("{namespace}/{name}"),
                Only::Together { serial, .. } => format!("{namespace}/*{serial}"),
                other => format!("{namespace}/{other:?}"),
            }
        };
        sources.plan().into_iter().map(show).collect()
    }

    #[test]
    fn few_names_have_a_watch_each_and_many_of_a_namespace_one() {
        let mut sources =
            wanting(Reach::Cluster, &[("pay", "a"), ("shop", "a"), ("shop", "b"), ("shop", "c")]);
        assert_eq!(plan(&mut sources), ["pay/a", "shop/a", "shop/b", "shop/c"]);
        sources.want(&named("shop", "d"));
        assert_eq!(plan(&mut sources), ["pay/a", "shop/*1"]);
        assert_eq!(plan(&mut sources), ["pay/a", "shop/*1"], "it stays");
        sources.want(&named("shop", "e"));
        assert_eq!(
            plan(&mut sources),
            ["pay/a", "shop/e", "shop/*1"],
            "it may have seen and dropped e already"
        );
        ["f", "g", "h"].iter().for_each(|name| sources.want(&named("shop", name)));
        assert_eq!(plan(&mut sources), ["pay/a", "shop/*2"]);
    }

    #[test]
    fn many_of_all_namespaces_have_one_where_all_may_be_read() {
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let wanted: Vec<_> = names.iter().map(|name| (*name, "key")).collect();
        let mut sources = wanting(Reach::Cluster, &wanted);
        assert_eq!(plan(&mut sources), ["*/*1"]);
        assert_eq!(sources.serving(&named("c", "key")).namespace, None);
        names.iter().skip(2).for_each(|name| sources.want_less(&named(name, "key")));
        assert_eq!(plan(&mut sources), ["a/key", "b/key"], "few again");
        assert_eq!(plan(&mut wanting(Reach::Namespaces, &wanted)).len(), 7);
    }

    #[test]
    fn what_is_wanted_twice_stays_until_both_are_gone() {
        let mut sources = wanting(Reach::Cluster, &[("shop", "a"), ("shop", "a")]);
        sources.want_less(&named("shop", "a"));
        assert_eq!(plan(&mut sources), ["shop/a"]);
        sources.want_less(&named("shop", "a"));
        assert!(plan(&mut sources).is_empty() && !sources.is_wanted(&named("shop", "a")));
    }

    #[test]
    fn a_wide_watch_that_is_refused_is_not_tried_again() {
        let mut sources =
            wanting(Reach::Cluster, &[("shop", "a"), ("shop", "b"), ("shop", "c"), ("shop", "d")]);
        let wide = sources.plan().into_iter().next().unwrap();
        sources.refuse(&wide);
        assert_eq!(plan(&mut sources).len(), 4);
        sources.want(&named("shop", "e"));
        assert_eq!(plan(&mut sources).len(), 5);
    }

    #[test]
    fn certificates_and_other_secrets_are_not_read_by_one_watch() {
        let mut sources = wanting(Reach::Cluster, &[("shop", "a"), ("shop", "b"), ("shop", "c")]);
        let certificate = Source { only: Only::Certificate("a".into()), ..named("shop", "a") };
        sources.want(&certificate);
        assert_eq!(sources.plan().len(), 4);
        let wide = Source { only: Only::Together { certificates: true, serial: 1 }, ..certificate.clone() };
        assert_eq!(by_name(&wide, &ObjectName::new("shop", "a")), certificate);
    }
}

//! The matches of one hostname in the order of precedence, and the look-up in them.
//!
//! Invariant: `find` gives the first entry that a walk over all of them, in order, would find.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::path::{NormalPath, NotNormal};
use super::path_index::PathIndex;
use super::precedence::{Specificity, Standing};
use super::predicates::{PatternText, Predicates, RequestView};
use super::template::Template;
use crate::message::Captures;
use crate::route_map::Rule;

/// One `matches` entry: its path and all of its predicates hold.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchPlan {
    path: PathPredicate,
    predicates: Predicates,
    specificity: Specificity,
}

/// Paths are compared in normal form; a regular expression sees that form too.
#[derive(Clone, Debug, PartialEq)]
pub enum PathPredicate {
    Exact(NormalPath),
    /// Whole segments; made by [`PathPredicate::prefix`], which takes the slash at the end away: `/` is empty.
    Prefix(NormalPath),
    Template(Template),
    Regex(PatternText),
}

/// A match, the rule that it leads to, and what decides between equals.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchEntry {
    pub plan: Arc<MatchPlan>,
    pub rule: Arc<Rule>,
    pub standing: Standing,
}

/// Up to so many entries a walk over them is as fast as the index and saves its memory.
const SMALL: usize = 6;

/// The matches of a host, sorted, with an index over their paths.
pub struct MatchTable {
    entries: Vec<MatchEntry>,
    /// Of each entry.
    facts: Vec<Facts>,
    /// None for a small table.
    index: Option<PathIndex>,
}

/// The winner of a look-up.
#[derive(Debug)]
pub struct Found<'t> {
    /// Its place in [`MatchTable::entries`].
    pub index: usize,
    pub rule: &'t Arc<Rule>,
    /// Bytes of the path that a winning PathPrefix covers (0 for `/`); 0 when the match is of another type.
    pub matched_prefix: usize,
    pub captures: Captures,
}

impl PathPredicate {
    /// # Errors
    /// `text` has no normal form.
    pub fn exact(text: &str) -> Result<Self, NotNormal> {
        NormalPath::new(text).map(Self::Exact)
    }

    /// # Errors
    /// `text` has no normal form.
    pub fn prefix(text: &str) -> Result<Self, NotNormal> {
        Ok(Self::Prefix(NormalPath::new(text)?.without_trailing_slash()))
    }

    /// Whether `path` (in normal form) is one of these.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == path,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Template(template) => template.matches(path),
            Self::Regex(pattern) => pattern.is_match(path),
        }
    }
}

impl MatchPlan {
    pub fn new(path: PathPredicate, predicates: Predicates) -> Self {
        let predicates = predicates.canonical();
        let specificity = Specificity::of(&path, &predicates);
        Self { path, predicates, specificity }
    }

    pub fn path(&self) -> &PathPredicate {
        &self.path
    }

    pub fn predicates(&self) -> &Predicates {
        &self.predicates
    }

    pub fn specificity(&self) -> Specificity {
        self.specificity
    }

    /// Whether both match the same requests by the same predicates; names of captures do not count.
    pub fn equals(&self, other: &Self) -> bool {
        self.predicates == other.predicates
            && match (&self.path, &other.path) {
                (PathPredicate::Template(a), PathPredicate::Template(b)) => a.same_shape(b),
                (a, b) => a == b,
            }
    }

    /// Equal for equal plans.
    fn fingerprint(&self) -> u64 {
        let mut hasher = FixedState::default().build_hasher();
        match &self.path {
            PathPredicate::Exact(path) => (0u8, path).hash(&mut hasher),
            PathPredicate::Prefix(path) => (1u8, path).hash(&mut hasher),
            PathPredicate::Regex(pattern) => (2u8, pattern).hash(&mut hasher),
            PathPredicate::Template(template) => {
                (3u8, template.has_rest()).hash(&mut hasher);
                template.literals().for_each(|literal| literal.hash(&mut hasher));
            }
        }
        self.predicates.hash(&mut hasher);
        hasher.finish()
    }
}

/// What most look-ups want to know of an entry, close together.
#[derive(Clone, Copy)]
struct Facts {
    matched_prefix: u32,
    /// It has no other predicates.
    by_path_alone: bool,
    captures: bool,
}

impl Facts {
    fn of(plan: &MatchPlan) -> Self {
        let matched_prefix = match &plan.path {
            PathPredicate::Prefix(prefix) => u32::try_from(prefix.as_str().len()).unwrap_or(u32::MAX),
            _ => 0,
        };
        Self {
            matched_prefix,
            by_path_alone: plan.predicates == Predicates::default(),
            captures: matches!(plan.path, PathPredicate::Template(_)),
        }
    }
}

impl MatchTable {
    /// Entries in any order.
    pub fn new(mut entries: Vec<MatchEntry>) -> Self {
        entries.sort_by(|a, b| (a.plan.specificity, &a.standing).cmp(&(b.plan.specificity, &b.standing)));
        entries.shrink_to_fit();
        let indexed = entries.len() > SMALL;
        let index = indexed.then(|| PathIndex::new(entries.iter().map(|entry| entry.plan.path())));
        let facts = entries.iter().map(|entry| Facts::of(&entry.plan)).collect();
        Self { entries, facts, index }
    }

    /// In the order of precedence.
    pub fn entries(&self) -> &[MatchEntry] {
        &self.entries
    }

    /// Asks for the places that a look-up begins with.
    pub fn touch(&self) -> u64 {
        let facts = self.facts.first().map_or(0, |facts| u64::from(facts.matched_prefix));
        facts ^ self.index.as_ref().map_or(0, PathIndex::touch)
    }

    /// The entry of highest precedence that matches. No lock; allocates only for captures.
    ///
    /// A preflight is for the rule that the request after it will meet, as far as that can be told: by path and the
    /// requested method, among rules that answer preflights. Where there is none it is an OPTIONS like any other.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Found<'_>> {
        let preflight = request.preflighted().and_then(|method| {
            self.winner(request.path, |rank| {
                let entry = &self.entries[rank];
                entry.plan.predicates.takes_method(method) && entry.rule.answers_preflights()
            })
        });
        let index = preflight.or_else(|| {
            self.winner(request.path, |rank| {
                self.facts[rank].by_path_alone || self.entries[rank].plan.predicates.matches(request)
            })
        })?;
        let entry = &self.entries[index];
        let Facts { matched_prefix, captures, .. } = self.facts[index];
        // Asked in this order: the plan lies elsewhere.
        let captures = match captures.then(|| &entry.plan.path) {
            Some(PathPredicate::Template(template)) => template.captures(request.path),
            _ => None,
        };
        let (matched_prefix, captures) = (matched_prefix as usize, captures.unwrap_or_default());
        Some(Found { index, rule: &entry.rule, matched_prefix, captures })
    }

    fn winner(&self, path: &str, accepts: impl Fn(usize) -> bool) -> Option<usize> {
        match &self.index {
            Some(index) => index.find(path, accepts),
            None => (0..self.entries.len())
                .find(|rank| self.entries[*rank].plan.path.matches(path) && accepts(*rank)),
        }
    }

    /// For each entry that can never win because an equal one stands before it: (its place, the winner's place), in
    /// order.
    pub fn shadowed(&self) -> Vec<(usize, usize)> {
        let mut winners: HashMap<u64, Vec<usize>> = HashMap::new();
        let mut shadowed = Vec::new();
        for (place, entry) in self.entries.iter().enumerate() {
            let alike = winners.entry(entry.plan.fingerprint()).or_default();
            match alike.iter().find(|winner| self.entries[**winner].plan.equals(&entry.plan)) {
                Some(winner) => shadowed.push((place, *winner)),
                None => alike.push(place),
            }
        }
        shadowed
    }
}

/// The index follows from the entries.
impl PartialEq for MatchTable {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl fmt::Debug for MatchTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MatchTable").field("entries", &self.entries).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Labels;
    use crate::route_map::{Action, Comparison, HeaderPredicate, NamedPredicate, RespondPlan};
    use crate::values::ObjectName;

    fn entry(place: usize, path: PathPredicate, predicates: Predicates, created: Option<i64>) -> MatchEntry {
        let labels = Labels { namespace: "ns".into(), route: "o".into(), rule: format!("r{place}").into() };
        let action =
            Action::Respond(RespondPlan { status: 200, content_type: None, body: bytes::Bytes::new() });
        MatchEntry {
            plan: Arc::new(MatchPlan::new(path, predicates)),
            rule: Arc::new(Rule {
                labels: Arc::new(labels),
                filters: Vec::new(),
                action,
                policy: Vec::new(),
            }),
            standing: Standing::new(created, ObjectName::new("ns", "o"), place, 0),
        }
    }

    fn prefix(text: &str) -> PathPredicate {
        PathPredicate::prefix(text).expect(text)
    }

    fn template(text: &str) -> PathPredicate {
        PathPredicate::Template(Template::parse(text).expect(text))
    }

    fn arbitrary_path() -> impl Strategy<Value = PathPredicate> {
        let text =
            || proptest::collection::vec("[ab]{1,2}", 0..4).prop_map(|parts| format!("/{}", parts.join("/")));
        let pieces = proptest::collection::vec(prop_oneof!["[ab]{1,2}", Just("{}".to_owned())], 1..4);
        prop_oneof![
            text().prop_map(|text| PathPredicate::exact(&text).expect("normal")),
            text().prop_map(|text| prefix(&text)),
            (pieces, 0usize..3).prop_map(|(pieces, end)| {
                let mut text = String::new();
                for (place, piece) in pieces.iter().enumerate() {
                    text.push('/');
                    text.push_str(&piece.replace("{}", &format!("{{c{place}}}")));
                }
                text.push_str(["", "/", "/{rest...}"][end]);
                template(&text)
            }),
            prop_oneof![Just("/a.*"), Just("/[ab]+"), Just("/(a|b)/.*"), Just(".*b")]
                .prop_map(|text| PathPredicate::Regex(PatternText::new(text).expect("a pattern"))),
        ]
    }

    fn arbitrary_predicates() -> impl Strategy<Value = Predicates> {
        let value = || prop_oneof![Just("1"), Just("2")].prop_map(|value| Comparison::Exact(value.into()));
        let named = || proptest::collection::vec((prop_oneof![Just("a"), Just("b")], value()), 0..2);
        (
            proptest::collection::vec(prop_oneof![Just(http::Method::GET), Just(http::Method::PUT)], 0..2),
            named(),
            named(),
            named(),
        )
            .prop_map(|(methods, headers, cookies, query)| {
                let named = |list: Vec<(&str, Comparison)>| {
                    list.into_iter()
                        .map(|(name, value)| NamedPredicate { name: name.into(), value })
                        .collect()
                };
                let header = |(name, value): (&'static str, _)| HeaderPredicate {
                    name: http::HeaderName::from_static(name),
                    value,
                };
                Predicates {
                    methods,
                    headers: headers.into_iter().map(header).collect(),
                    cookies: named(cookies),
                    query_params: named(query),
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn the_index_finds_what_a_walk_over_all_entries_finds(
            plans in proptest::collection::vec((arbitrary_path(), arbitrary_predicates(), 0i64..3), 0..40),
            requests in proptest::collection::vec(
                (
                    proptest::collection::vec("[ab]{0,2}", 1..5),
                    prop_oneof![Just(http::Method::GET), Just(http::Method::PUT)],
                    proptest::option::of(prop_oneof![Just("a=1"), Just("a=2&b=1"), Just("b=2&a=1")]),
                    proptest::option::of(prop_oneof![Just("1"), Just("2")]),
                    proptest::option::of(prop_oneof![Just("a=1"), Just("b=1; a=2")]),
                ), 1..30),
        ) {
            let entries = |order: &mut dyn Iterator<Item = usize>| -> Vec<_> {
                order
                    .map(|place| {
                        let (path, predicates, created) = &plans[place];
                        entry(place, path.clone(), predicates.clone(), Some(*created))
                    })
                    .collect()
            };
            let table = MatchTable::new(entries(&mut (0..plans.len())));
            prop_assert_eq!(&table, &MatchTable::new(entries(&mut (0..plans.len()).rev())));
            for (segments, method, query, header, cookie) in &requests {
                let path = format!("/{}", segments.join("/"));
                let path = super::super::path::normal_form(&path).expect("normal");
                let mut headers = http::HeaderMap::new();
                header.iter().for_each(|value| drop(headers.insert("a", http::HeaderValue::from_static(value))));
                cookie.iter().for_each(|value| drop(headers.insert("cookie", http::HeaderValue::from_static(value))));
                let request = RequestView { method, path: &path, query: *query, headers: &headers };
                let walked = table.entries().iter().position(|entry| {
                    entry.plan.path().matches(request.path) && entry.plan.predicates().matches(&request)
                });
                prop_assert_eq!(table.find(&request).map(|found| found.index), walked, "{:?}", request);
            }
        }

        #[test]
        fn precedence_is_a_total_order(
            plans in proptest::collection::vec((arbitrary_path(), arbitrary_predicates()), 2..30),
        ) {
            let table = MatchTable::new(
                plans.into_iter().enumerate().map(|(place, (path, predicates))| entry(place, path, predicates, None)).collect(),
            );
            let key = |entry: &MatchEntry| (entry.plan.specificity(), entry.standing.clone());
            prop_assert!(table.entries().windows(2).all(|pair| key(&pair[0]) < key(&pair[1])));
        }
    }

    #[test]
    fn only_equal_matches_shadow_each_other() {
        let get = || Predicates { methods: vec![http::Method::GET], ..Predicates::default() };
        let table = MatchTable::new(vec![
            entry(0, template("/a/{x}"), get(), None),
            entry(1, template("/a/{y}"), get(), None),
            entry(2, template("/a/{y}"), Predicates::default(), None),
            entry(3, prefix("/a"), get(), None),
            entry(4, prefix("/a/"), get(), None),
            entry(5, template("/a/{y}/"), get(), None),
            entry(6, template("/a/{y...}"), get(), None),
        ]);
        let names: Vec<_> = table
            .shadowed()
            .into_iter()
            .map(|(loser, winner)| {
                let rule = |place: usize| table.entries()[place].standing.rule();
                (rule(loser), rule(winner))
            })
            .collect();
        assert_eq!(names, [(1, 0), (4, 3)]);
    }

    #[test]
    fn a_long_hostile_path_costs_no_more_than_the_tree_is_deep() {
        let more =
            (1..20).map(|place| entry(place, prefix(&format!("/a/c{place}")), Predicates::default(), None));
        let first = entry(0, prefix("/a/b"), Predicates::default(), None);
        let table = MatchTable::new(std::iter::once(first).chain(more).collect());
        let path = format!("/a/b{}", "/x".repeat(1 << 20));
        let headers = http::HeaderMap::new();
        let request = RequestView { method: &http::Method::GET, path: &path, query: None, headers: &headers };
        assert_eq!(table.find(&request).map(|found| found.matched_prefix), Some(4));
    }
}

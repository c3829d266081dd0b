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

/// The matches of a host, sorted, with an index over their paths.
pub struct MatchTable {
    entries: Vec<MatchEntry>,
    index: PathIndex,
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
            Self::Template(template) => template.captures(path).is_some(),
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

impl MatchTable {
    /// Entries in any order.
    pub fn new(mut entries: Vec<MatchEntry>) -> Self {
        entries.sort_by(|a, b| (a.plan.specificity, &a.standing).cmp(&(b.plan.specificity, &b.standing)));
        let index = PathIndex::new(entries.iter().map(|entry| entry.plan.path()));
        Self { entries, index }
    }

    /// In the order of precedence.
    pub fn entries(&self) -> &[MatchEntry] {
        &self.entries
    }

    /// The entry of highest precedence that matches. No lock; allocates only for captures.
    pub fn find(&self, request: &RequestView<'_>) -> Option<Found<'_>> {
        let index =
            self.index.find(request.path, |rank| self.entries[rank].plan.predicates.matches(request))?;
        let entry = &self.entries[index];
        let (matched_prefix, captures) = match &entry.plan.path {
            PathPredicate::Prefix(prefix) => (prefix.as_str().len(), Captures::default()),
            PathPredicate::Template(template) => (0, template.captures(request.path).unwrap_or_default()),
            PathPredicate::Exact(_) | PathPredicate::Regex(_) => (0, Captures::default()),
        };
        Some(Found { index, rule: &entry.rule, matched_prefix, captures })
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

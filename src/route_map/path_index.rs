//! Finds the candidates of a path among thousands: a hash of exact paths, a tree of segments for prefixes and templates,
//! and regular expressions in their order.
//!
//! Ranks are places in the sorted match table, so the smallest rank wins. The work is bounded by the tree, never by the
//! length of the path alone.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::matching::PathPredicate;
use super::predicates::PatternText;
use super::segment::SegmentText;
use super::template::{Segment, Template, split_segment};

/// Up to so many literal children are searched one by one.
const FEW: usize = 6;

#[derive(Default)]
pub(super) struct PathIndex {
    exact: HashMap<Box<str>, Vec<u32>, FixedState>,
    nodes: Vec<Node>,
    patterns: Vec<(u32, PatternText)>,
}

/// The paths that share their first segments. The root is node 0.
#[derive(Default)]
struct Node {
    literals: Literals,
    capture: Option<u32>,
    /// Entries, in order of rank, whose path ends here: a template without a rest.
    closed: Ranks,
    /// Entries whose path ends here and goes on with anything: a prefix, or a template with a rest.
    open: Ranks,
}

/// Ascending ranks. One stands in the node itself: among thousands of routes each further place in memory is a miss.
#[derive(Default)]
enum Ranks {
    #[default]
    None,
    One(u32),
    Many(Vec<u32>),
}

enum Literals {
    Few(Vec<(SegmentText, u32)>),
    Many(HashMap<SegmentText, u32, FixedState>),
}

impl PathIndex {
    /// Paths in the order of precedence.
    pub(super) fn new<'p>(paths: impl Iterator<Item = &'p PathPredicate>) -> Self {
        let mut index = Self::default();
        for (rank, path) in (0u32..).zip(paths) {
            match path {
                PathPredicate::Exact(path) => index.exact.entry(path.as_str().into()).or_default().push(rank),
                PathPredicate::Regex(pattern) => index.patterns.push((rank, pattern.clone())),
                PathPredicate::Prefix(prefix) => {
                    let node = index.prefix_node(prefix.as_str());
                    node.open.push(rank);
                }
                PathPredicate::Template(template) => {
                    let node = index.template_node(template);
                    if template.has_rest() { node.open.push(rank) } else { node.closed.push(rank) }
                }
            }
        }
        index
    }

    /// Reads the root.
    pub(super) fn touch(&self) -> u64 {
        self.nodes.first().and_then(|root| root.capture).map_or(0, u64::from)
    }

    /// The smallest rank whose path matches `path` (in normal form) and that `accepts` takes.
    pub(super) fn find(&self, path: &str, mut accepts: impl FnMut(usize) -> bool) -> Option<usize> {
        // Every exact path stands before all others.
        if let Some(ranks) = self.exact.get(path)
            && let Some(rank) = ranks.iter().find(|rank| accepts(**rank as usize))
        {
            return Some(*rank as usize);
        }
        let mut best = u32::MAX;
        if let Some(root) = self.nodes.first() {
            self.walk(root, path.strip_prefix('/'), &mut best, &mut accepts);
        }
        for (rank, pattern) in &self.patterns {
            if *rank >= best {
                break;
            }
            if accepts(*rank as usize) && pattern.is_match(path) {
                best = *rank;
            }
        }
        (best != u32::MAX).then_some(best as usize)
    }

    /// `left` is what follows the slash after the node's last segment; none: the path ends with that segment. Deeper
    /// nodes first: they are more specific, so that the shallow ones are seldom asked.
    fn walk(&self, node: &Node, left: Option<&str>, best: &mut u32, accepts: &mut impl FnMut(usize) -> bool) {
        if let Some(left) = left {
            let (segment, rest) = split_segment(left);
            if let Some(child) = node.literals.get(segment) {
                self.walk(&self.nodes[child as usize], rest, best, accepts);
            }
            if let Some(child) = node.capture
                && !segment.is_empty()
            {
                self.walk(&self.nodes[child as usize], rest, best, accepts);
            }
        } else {
            improve(&node.closed, best, accepts);
        }
        improve(&node.open, best, accepts);
    }

    fn prefix_node(&mut self, prefix: &str) -> &mut Node {
        let mut at = self.root();
        for segment in prefix.split('/').skip(1) {
            at = self.literal_child(at, segment);
        }
        &mut self.nodes[at as usize]
    }

    fn template_node(&mut self, template: &Template) -> &mut Node {
        let mut at = self.root();
        for segment in template.segments() {
            at = match segment {
                Segment::Literal(text) => self.literal_child(at, text),
                Segment::Capture(_) => self.capture_child(at),
            };
        }
        &mut self.nodes[at as usize]
    }

    fn root(&mut self) -> u32 {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        0
    }

    fn literal_child(&mut self, at: u32, segment: &str) -> u32 {
        if let Some(child) = self.nodes[at as usize].literals.get(segment) {
            return child;
        }
        let child = self.add_node();
        self.nodes[at as usize].literals.insert(segment, child);
        child
    }

    fn capture_child(&mut self, at: u32) -> u32 {
        if let Some(child) = self.nodes[at as usize].capture {
            return child;
        }
        let child = self.add_node();
        self.nodes[at as usize].capture = Some(child);
        child
    }

    fn add_node(&mut self) -> u32 {
        let added = u32::try_from(self.nodes.len()).expect("a table has far fewer than 2^32 segments");
        self.nodes.push(Node::default());
        added
    }
}

impl Ranks {
    fn push(&mut self, rank: u32) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(rank),
            Self::One(first) => Self::Many(vec![first, rank]),
            Self::Many(mut ranks) => {
                ranks.push(rank);
                Self::Many(ranks)
            }
        }
    }

    fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(rank) => std::slice::from_ref(rank),
            Self::Many(ranks) => ranks,
        }
    }
}

fn improve(ranks: &Ranks, best: &mut u32, accepts: &mut impl FnMut(usize) -> bool) {
    let better =
        ranks.as_slice().iter().take_while(|rank| **rank < *best).find(|rank| accepts(**rank as usize));
    if let Some(rank) = better {
        *best = *rank;
    }
}

impl Default for Literals {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Literals {
    fn get(&self, segment: &str) -> Option<u32> {
        match self {
            Self::Few(children) => children
                .iter()
                .find(|(known, _)| known.as_bytes() == segment.as_bytes())
                .map(|(_, child)| *child),
            Self::Many(children) => children.get(segment.as_bytes()).copied(),
        }
    }

    fn insert(&mut self, segment: &str, child: u32) {
        if let Self::Few(children) = self
            && children.len() >= FEW
        {
            *self = Self::Many(children.drain(..).collect());
        }
        match self {
            Self::Few(children) => children.push((segment.into(), child)),
            Self::Many(children) => {
                children.insert(segment.into(), child);
            }
        }
    }
}

//! The walk of one request through the map, for people: which host, which matches were looked at, and why not.
//!
//! It asks the same index as the proxy; what it says beside the winner is read from the entries.

use std::sync::Arc;

use super::hosts::{Host, RouteMap};
use super::matching::{Found, MatchEntry};
use super::predicates::{Miss, RequestView};

/// At most so many near misses by path are told.
const MAX_NEAR: usize = 5;

/// What happened to a request.
#[derive(Debug)]
pub struct Trace<'m> {
    /// The entry that answers for the host; none: 404.
    pub host: Option<&'m Arc<Host>>,
    /// The matches whose path matches, in the order of precedence; when there is no winner also those whose path
    /// comes near, nearest first.
    pub candidates: Vec<Candidate<'m>>,
    /// None: 404.
    pub found: Option<Found<'m>>,
}

#[derive(Debug)]
pub struct Candidate<'m> {
    pub entry: &'m MatchEntry,
    pub verdict: Verdict<'m>,
}

#[derive(Debug, PartialEq)]
pub enum Verdict<'m> {
    Wins,
    /// Matches as well, but stands behind the winner.
    Outranked,
    /// The path matches, this does not.
    Misses(Miss<'m>),
    /// Everything but the path matches.
    PathDiffers,
}

/// Follows `request` for `host` (lower case, without port).
pub fn trace<'m>(map: &'m RouteMap, host: &str, request: &RequestView<'_>) -> Trace<'m> {
    let Some(host) = map.host(host) else {
        return Trace { host: None, candidates: Vec::new(), found: None };
    };
    let found = host.table.find(request);
    let winner = found.as_ref().map(|found| found.index);
    let mut candidates: Vec<_> = host
        .table
        .entries()
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.plan.path().matches(request.path))
        .map(|(place, entry)| Candidate { entry, verdict: verdict(entry, request, winner == Some(place)) })
        .collect();
    if winner.is_none() {
        candidates.extend(near_misses(host, request));
    }
    Trace { host: Some(host), candidates, found }
}

fn verdict<'m>(entry: &'m MatchEntry, request: &RequestView<'_>, wins: bool) -> Verdict<'m> {
    if wins {
        return Verdict::Wins;
    }
    entry.plan.predicates().first_miss(request).map_or(Verdict::Outranked, Verdict::Misses)
}

/// Entries that only the path keeps from matching and that begin like it, the longest common beginning first.
fn near_misses<'m>(host: &'m Host, request: &RequestView<'_>) -> Vec<Candidate<'m>> {
    let mut near: Vec<_> = host
        .table
        .entries()
        .iter()
        .filter(|entry| !entry.plan.path().matches(request.path) && entry.plan.predicates().matches(request))
        .map(|entry| (common_beginning(&entry.plan.path().to_string(), request.path), entry))
        .filter(|(common, _)| *common > 1)
        .collect();
    near.sort_by_key(|(common, _)| std::cmp::Reverse(*common));
    near.truncate(MAX_NEAR);
    near.into_iter().map(|(_, entry)| Candidate { entry, verdict: Verdict::PathDiffers }).collect()
}

/// Bytes that the path part of a printed predicate shares with `path`.
fn common_beginning(printed: &str, path: &str) -> usize {
    let written = printed.split_once(' ').map_or(printed, |(_, path)| path);
    written.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count()
}

//! One hostname: its TLS, its match table, and who is told what about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::claims::{Claim, Claimant};
use super::gateway_route::{LoweredRoute, LoweredTls};
use crate::route_map::{Host, HostTls, MatchEntry, MatchTable, Standing};
use crate::values::{FieldPath, Hostname, Problem, Reason};

/// A compiled host with what it was made from.
pub(super) struct HostUnit {
    routes: Vec<Arc<LoweredRoute>>,
    owner: Option<Arc<str>>,
    pub host: Arc<Host>,
    /// By the place of the route among this host's.
    notes: Vec<(usize, Problem)>,
}

impl HostUnit {
    pub fn new(hostname: Option<Hostname>, claim: &Claim, claimants: &[Claimant]) -> Self {
        let routes: Vec<_> = claim.routes.iter().map(|place| &claimants[*place]).collect();
        let mut notes = Vec::new();
        let tls = tls(&routes, claim, hostname.as_ref(), &mut notes);
        let mut entries = Vec::new();
        for route in &routes {
            for rule in &route.lowered.rules {
                for (index, plan) in rule.matches.iter().enumerate() {
                    let name = route.manifest.name.clone();
                    let standing = Standing::new(route.manifest.created, name, rule.index, index);
                    entries.push(MatchEntry { plan: plan.clone(), rule: rule.rule.clone(), standing });
                }
            }
        }
        let table = MatchTable::new(entries);
        shadowed(&table, &routes, hostname.as_ref(), &mut notes);
        let lowered = routes.iter().map(|route| route.lowered.clone()).collect();
        let host = Arc::new(Host { hostname, tls, table });
        Self { routes: lowered, owner: claim.owner.clone(), host, notes }
    }

    /// Whether compiling again would give the same.
    pub fn stands(&self, claim: &Claim, claimants: &[Claimant]) -> bool {
        self.owner == claim.owner
            && self.routes.len() == claim.routes.len()
            && self
                .routes
                .iter()
                .zip(&claim.routes)
                .all(|(known, place)| Arc::ptr_eq(known, &claimants[*place].lowered))
    }

    /// What is to be said to each claimant, by its place among them.
    pub fn notes<'a>(&'a self, claim: &'a Claim) -> impl Iterator<Item = (usize, &'a Problem)> {
        self.notes.iter().filter_map(|(route, problem)| Some((*claim.routes.get(*route)?, problem)))
    }
}

/// TLS belongs to the hostname: the owner's oldest route with `tls` sets it.
fn tls(
    routes: &[&Claimant],
    claim: &Claim,
    hostname: Option<&Hostname>,
    notes: &mut Vec<(usize, Problem)>,
) -> Option<HostTls> {
    let owners = |route: &&Claimant| Some(&route.manifest.name.namespace) == claim.owner.as_ref();
    let (first, set) = routes
        .iter()
        .enumerate()
        .filter(|(_, route)| owners(route))
        .find_map(|(place, route)| Some((place, route.lowered.tls.as_ref()?)))?;
    for (place, route) in routes.iter().enumerate().filter(|(place, _)| *place != first) {
        if route.lowered.tls.as_ref().is_some_and(|other| differs(set, other)) {
            let host = hostname.map_or_else(|| "the catch-all".into(), Hostname::to_string);
            let message = format!(
                "TLS of {host} is set by an older route of its owner; write the same here, or leave tls out"
            );
            notes.push((place, Problem::error(FieldPath::new("spec.tls"), Reason::TlsConflict, message)));
        }
    }
    Some(HostTls {
        certificates: set.certificates.clone(),
        unusable: set.unusable.clone(),
        redirect: set.redirect,
    })
}

fn differs(a: &LoweredTls, b: &LoweredTls) -> bool {
    a.named != b.named || a.redirect != b.redirect
}

/// An equal match of another object that stands first takes every request: its loser is told.
fn shadowed(
    table: &MatchTable,
    routes: &[&Claimant],
    hostname: Option<&Hostname>,
    notes: &mut Vec<(usize, Problem)>,
) {
    let places: BTreeMap<_, _> =
        routes.iter().enumerate().map(|(place, route)| (&route.manifest.name, place)).collect();
    let entries = table.entries();
    for (loser, winner) in table.shadowed() {
        let (loser, winner) = (&entries[loser], &entries[winner]);
        let (name, by) = (loser.standing.object(), winner.standing.object());
        if name == by {
            continue;
        }
        let who = if name.namespace == by.namespace {
            format!("rule {} of {by}", winner.rule.labels.rule)
        } else {
            format!("a route of namespace {}", by.namespace)
        };
        let host = hostname.map_or_else(|| "no hostname".into(), Hostname::to_string);
        let path = FieldPath::new("spec.rules")
            .index(loser.standing.rule())
            .field("matches")
            .index(loser.standing.index());
        let message = format!("an equal match of {who}, which is older, takes its requests for {host}");
        if let Some(place) = places.get(name) {
            notes.push((*place, Problem::warning(path, Reason::Shadowed, message)));
        }
    }
}

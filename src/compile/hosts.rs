//! One hostname: its TLS, its match table, and who is told what about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::HeaderName;

use super::claims::{Claim, Claimant};
use super::conditions::Fact;
use super::gateway_route::{LoweredRoute, LoweredRule, LoweredTls};
use crate::filters::AuthenticationPlan;
use crate::message::ErrorKind;
use crate::route_map::{
    Action, ClientValidation, Host, HostTls, MatchEntry, MatchTable, Rule, Standing, Unserved,
};
use crate::values::{FieldPath, Hostname, Problem, Reason};

/// A compiled host with what it was made from.
pub(super) struct HostUnit {
    routes: Vec<Arc<LoweredRoute>>,
    /// By the places of the newest claimants.
    pub claim: Claim,
    tls: Option<Arc<LoweredRoute>>,
    /// Places of those that ask for TLS under a name that its owner serves without.
    left_out: Vec<usize>,
    pub host: Arc<Host>,
    /// Fingerprint of its TLS; 0 without.
    pub tls_print: u64,
    /// By the place of the route among this host's.
    notes: Vec<(usize, Problem)>,
}

impl HostUnit {
    pub fn new(hostname: Option<Hostname>, mut claim: Claim, claimants: &[Claimant]) -> Self {
        claim.routes.shrink_to_fit();
        let routes: Vec<_> = claim.routes.iter().map(|place| &claimants[*place]).collect();
        let mut notes = Vec::new();
        let set_by = claim.tls.map(|place| claimants[place].lowered.clone());
        let set = set_by.as_ref().and_then(|route| route.tls.as_deref());
        let other_way = mixed(&routes, &claim, hostname.as_ref(), &mut notes);
        let (mut left_out, denied) = tls_notes(&routes, &other_way, set, hostname.as_ref(), &mut notes);
        left_out.extend(other_way);
        let passage = claim.passage.and_then(|place| claimants[place].lowered.rules.first());
        let tls = set.map(|set| HostTls {
            certificates: set.certificates.clone(),
            unusable: set.unusable.clone(),
            redirect: set.redirect,
            min_version: set.min_version,
            client: set.client.clone(),
        });
        let mut entries = Vec::new();
        let answers = |(place, _): &(usize, &&Claimant)| passage.is_none() && !left_out.contains(place);
        for (place, route) in routes.iter().enumerate().filter(answers) {
            for rule in &route.lowered.rules {
                let served = match denied.contains(&place) {
                    true => Arc::new(denial(&rule.rule)),
                    false => rule.rule.clone(),
                };
                for (index, plan) in rule.matches.iter().enumerate() {
                    let name = route.manifest.name.clone();
                    let standing = Standing::new(route.manifest.created, name, rule.index, index);
                    entries.push(MatchEntry { plan: plan.clone(), rule: served.clone(), standing });
                }
            }
        }
        if set.is_none_or(|set| set.client == ClientValidation::None) {
            unasked(&routes, hostname.as_ref(), &mut notes);
        }
        let table = MatchTable::new(entries);
        shadowed(&table, &routes, hostname.as_ref(), &mut notes);
        let lowered = routes.iter().map(|route| route.lowered.clone()).collect();
        let own_headers = routes.iter().flat_map(|route| &route.lowered.own_headers);
        // Every request loses the one that everybody knows; where it is written, its other spellings go as well.
        let told = set.is_some_and(LoweredTls::tells_of_clients).then_some("x-forwarded-client-cert");
        let own_headers = own_headers.map(HeaderName::as_str).chain(told).collect();
        let passage = passage.map(|rule| rule.rule.clone());
        let host = Arc::new(Host { hostname, tls, table, passage, own_headers });
        let tls_print = set.map_or(0, |set| set.print);
        Self { routes: lowered, claim, tls: set_by, left_out, host, tls_print, notes }
    }

    /// The same, as it is claimed now.
    pub fn with(self, mut claim: Claim) -> Self {
        claim.routes.shrink_to_fit();
        Self { claim, ..self }
    }

    /// Made again of the newest claimants, by the same claim.
    pub fn renew(&mut self, hostname: Option<Hostname>, claimants: &[Claimant]) {
        let claim = std::mem::take(&mut self.claim);
        *self = Self::new(hostname, claim, claimants);
    }

    /// Whether compiling again would give the same.
    pub fn stands(&self, claim: &Claim, claimants: &[Claimant]) -> bool {
        let same_tls = match (&self.tls, claim.tls) {
            (Some(known), Some(place)) => Arc::ptr_eq(known, &claimants[place].lowered),
            (None, None) => true,
            _ => false,
        };
        same_tls
            && self.claim.owner == claim.owner
            && self.routes.len() == claim.routes.len()
            && self
                .routes
                .iter()
                .zip(&claim.routes)
                .all(|(known, place)| Arc::ptr_eq(known, &claimants[*place].lowered))
    }

    /// Whether one of these claimants has a part in it.
    pub fn concerns(&self, places: &BTreeSet<usize>) -> bool {
        self.claim.routes.iter().chain(&self.claim.tls).any(|place| places.contains(place))
    }

    /// Whether only guests name it, under a wildcard of its owner's, and none of them answers.
    pub fn is_nothing_but_refused_guests(&self, claimants: &[Claimant]) -> bool {
        let is_guest =
            |place: &usize| Some(&claimants[*place].manifest.name.namespace) != self.claim.owner.as_ref();
        self.claim.routes.iter().all(is_guest) && self.served().next().is_none()
    }

    /// The claimants that answer under the name.
    pub fn served(&self) -> impl Iterator<Item = usize> {
        let places = self.claim.routes.iter().enumerate().filter(|(place, _)| !self.left_out.contains(place));
        places.map(|(_, claimant)| *claimant)
    }

    /// What was found out here about each claimant, by its place among them.
    pub fn facts<'f>(&'f self, hostname: &'f Option<Hostname>) -> impl Iterator<Item = (usize, Fact<'f>)> {
        let served = self.served().map(move |place| (place, Fact::Served(hostname, self.tls_print)));
        let routes = &self.claim.routes;
        let notes = self.notes.iter();
        served
            .chain(notes.filter_map(|(route, problem)| Some((*routes.get(*route)?, Fact::Problem(problem)))))
    }
}

/// A rule of a route that asks more of clients than the hostname does: nobody passes.
fn denial(rule: &Rule) -> Rule {
    Rule {
        labels: rule.labels.clone(),
        filters: Vec::new(),
        action: Action::Unserved(Unserved { kind: ErrorKind::PolicyInvalid }),
        policy: rule.policy.clone(),
    }
}

/// A name's TLS is either ours or passed through, by one route. Gives the places of those that want it otherwise.
fn mixed(
    routes: &[&Claimant],
    claim: &Claim,
    hostname: Option<&Hostname>,
    notes: &mut Vec<(usize, Problem)>,
) -> Vec<usize> {
    let mut left_out = Vec::new();
    for (place, route) in routes.iter().enumerate() {
        let passes = route.lowered.passes_through();
        let message = match claim.passage {
            Some(first) if claim.routes.get(place) == Some(&first) => continue,
            None if !passes => continue,
            Some(_) if passes => {
                "is passed through by an older route already; write its backends into one of them"
            }
            Some(_) => "is passed through to its backends by an older route of its owner; use another name",
            None => "is not passed through by the oldest route of its owner; use another name",
        };
        let message = format!("{} {message}, so this route does not answer there", named(hostname));
        notes.push((place, Problem::error(FieldPath::new("spec.tls"), Reason::TlsConflict, message)));
        left_out.push(place);
    }
    left_out
}

/// TLS belongs to the hostname: whoever wants another one is told. Gives the places of those that may not answer, because
/// they ask for TLS and the owner's name has none; and of those that answer 503, because they ask more of clients.
fn tls_notes(
    routes: &[&Claimant],
    left_out_already: &[usize],
    set: Option<&LoweredTls>,
    hostname: Option<&Hostname>,
    notes: &mut Vec<(usize, Problem)>,
) -> (Vec<usize>, Vec<usize>) {
    let host = || named(hostname);
    let (mut left_out, mut denied) = (Vec::new(), Vec::new());
    for (place, route) in routes.iter().enumerate() {
        let Some(own) = route.lowered.tls.as_deref().filter(|_| !left_out_already.contains(&place)) else {
            continue;
        };
        let message = match set {
            Some(set) if !differs(set, own) => continue,
            Some(set) if asks_more(own, set) => {
                denied.push(place);
                format!(
                    "{} asks less of clients, as an older route of its owner sets it, so this route answers 503 there; write the same in both",
                    host()
                )
            }
            Some(_) => format!(
                "TLS of {} is set by an older route of its owner; write the same here, or leave tls out",
                host()
            ),
            None => {
                left_out.push(place);
                format!(
                    "{} is served without TLS by its owner, so this route does not answer there; have the owner's route set tls",
                    host()
                )
            }
        };
        notes.push((place, Problem::error(FieldPath::new("spec.tls"), Reason::TlsConflict, message)));
    }
    (left_out, denied)
}

/// What its author relies on, and what is not so.
fn asks_more(own: &LoweredTls, set: &LoweredTls) -> bool {
    own.min_version > set.min_version
        || own.redirect && !set.redirect
        || own.client_written.is_some() && own.client_written != set.client_written
}

/// A rule that knows clients by their certificates, under a name that asks for none, knows nobody.
fn unasked(routes: &[&Claimant], hostname: Option<&Hostname>, notes: &mut Vec<(usize, Problem)>) {
    for (place, route) in routes.iter().enumerate() {
        let asks = |rule: &&LoweredRule| {
            let plans = rule.rule.filters.iter().filter_map(|(_, plan)| plan.get::<AuthenticationPlan>());
            plans.into_iter().any(AuthenticationPlan::asks_for_certificates)
        };
        for rule in route.lowered.rules.iter().filter(asks) {
            let message = format!(
                "clients of {} are asked for no certificate, so nobody has one; give its tls clientValidation",
                named(hostname)
            );
            let at = rule.path().field("policy").field("authentication");
            notes.push((place, Problem::warning(at, Reason::PolicyInvalid, message)));
        }
    }
}

fn named(hostname: Option<&Hostname>) -> String {
    hostname.map_or_else(|| "the catch-all".into(), Hostname::to_string)
}

fn differs(a: &LoweredTls, b: &LoweredTls) -> bool {
    a.named != b.named
        || a.redirect != b.redirect
        || a.min_version != b.min_version
        || a.client_written != b.client_written
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
        let message = format!("an equal match of {who}, which comes first, takes its requests for {host}");
        if let Some(place) = places.get(name) {
            notes.push((*place, Problem::warning(path, Reason::Shadowed, message)));
        }
    }
}

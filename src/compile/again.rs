//! A compile after which every route claims what it claimed before: what none of the changed ones has a part in stays as it
//! is, so that one changed route among tens of thousands costs little more than a look at each.
//!
//! Law: it gives what the whole way gives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::claims::{self, Claimant};
use super::conditions::RouteFacts;
use super::gateway_route::{LoweredRoute, RouteUnit};
use super::{Memo, age, found, served_backends, tell};
use crate::filters::AnyPlan;
use crate::route_map::RouteMap;

/// A route that changed, and claims what it claimed.
pub(super) struct Renewal {
    before: Arc<LoweredRoute>,
    now: Claimant,
}

/// So many more than one in eight are worth the whole way.
const FEW: usize = 16;

/// Takes note of a route that changed. `None`: its claims, or those of one before it, are not what they were.
pub(super) fn note(
    renewals: &mut Option<Vec<Renewal>>,
    (created, before): (Option<i64>, Option<Arc<LoweredRoute>>),
    RouteUnit { manifest, lowered, .. }: &RouteUnit,
) {
    let Some(noted) = renewals else { return };
    match (before, lowered) {
        // Of another class, and still.
        (None, None) => {}
        (Some(before), Some(lowered)) if created == manifest.created && claims::alike(&before, lowered) => {
            let now = Claimant { manifest: Arc::clone(manifest), lowered: Arc::clone(lowered) };
            noted.push(Renewal { before, now });
        }
        _ => *renewals = None,
    }
}

/// With their places among the claimants. `None`: the whole way is the way.
pub(super) fn places(renewals: Vec<Renewal>, claimants: &[Claimant]) -> Option<BTreeMap<usize, Renewal>> {
    if renewals.len() > FEW + claimants.len() / 8 {
        return None;
    }
    let place = |renewal: &Renewal| {
        let wanted = age(&renewal.now.manifest);
        claimants.binary_search_by(|known| age(&known.manifest).cmp(&wanted)).ok()
    };
    renewals.into_iter().map(|renewal| Some((place(&renewal)?, renewal))).collect()
}

/// The map with these in the place of what they were.
pub(super) fn map(
    renewals: BTreeMap<usize, Renewal>,
    unmatched: Vec<(usize, AnyPlan)>,
    memo: &mut Memo,
) -> RouteMap {
    let mut map = RouteMap { unmatched, ..RouteMap::clone(&memo.map) };
    let renewed: BTreeSet<usize> = renewals.keys().copied().collect();
    let mut same_backends = true;
    for (place, Renewal { before, now }) in renewals {
        same_backends &= before.backends == now.lowered.backends;
        memo.claimants[place] = now;
    }
    // Of whom something else may be to be said: whoever shares a name with them.
    let mut told = renewed.clone();
    for (hostname, unit) in &mut memo.hosts {
        if !unit.concerns(&renewed) || unit.stands(&unit.claim, &memo.claimants) {
            continue;
        }
        unit.renew(hostname.clone(), &memo.claimants);
        told.extend(&unit.claim.routes);
        match hostname {
            Some(hostname) if unit.is_nothing_but_refused_guests(&memo.claimants) => {
                map.hosts.remove(hostname);
            }
            Some(hostname) => drop(map.hosts.insert(hostname.clone(), Arc::clone(&unit.host))),
            None => map.catch_all = Some(Arc::clone(&unit.host)),
        }
    }
    for (place, facts) in facts(&told, memo) {
        let claimant = &memo.claimants[place];
        let name = &claimant.manifest.name;
        let known = memo.reports.remove(name);
        let was_served = known.as_ref().is_some_and(|(facts, _)| !facts.served.is_empty());
        same_backends &= was_served != facts.served.is_empty();
        let report = tell(known, claimant, facts);
        memo.reports.insert(name.clone(), report);
    }
    if !same_backends {
        let mut is_served = vec![false; memo.claimants.len()];
        for place in memo.hosts.values().flat_map(|unit| unit.served()) {
            is_served[place] = true;
        }
        let served = memo.claimants.iter().zip(is_served).filter(|(_, is_served)| *is_served);
        map.backends = served_backends(served.map(|(claimant, _)| claimant), &memo.map.backends);
    }
    map
}

/// What there is to say about each of these.
fn facts(told: &BTreeSet<usize>, memo: &Memo) -> BTreeMap<usize, RouteFacts> {
    let new = |place: &usize| (*place, RouteFacts::new(Arc::clone(&memo.claimants[*place].lowered)));
    let mut facts: BTreeMap<_, _> = told.iter().map(new).collect();
    let hosts = memo.hosts.iter().filter(|(_, unit)| unit.concerns(told));
    for (place, fact) in found(hosts, &memo.refused) {
        if let Some(facts) = facts.get_mut(&place) {
            facts.add(fact);
        }
    }
    facts
}

//! Snapshot → (RouteMap, Reports): pure, synchronous, total. No clock, I/O, randomness or logging.
//!
//! Three layers. *Units*: each object is lowered alone and remembers every question that it asked of the world. *Hosts*:
//! for each hostname the routes that may answer under it. *Root*: hostname → host. What did not change is the same `Arc`
//! as before.
//!
//! Law: `compile(world, memo)` gives what `compile(world, Memo::default())` gives.

mod certificates;
mod claims;
mod conditions;
mod gateway_backend;
mod gateway_route;
mod grants;
mod hosts;
mod policies;
mod published;
mod question;
mod report;
mod services;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub use published::Published;
pub use report::{Condition, ConditionStatus, ConditionType, ObjectRef, Report, RuleReport};

use self::claims::Claimant;
use self::gateway_backend::LoweredBackend;
use self::gateway_route::RouteUnit;
use self::hosts::HostUnit;
use self::question::{Answer, Asker, Question};
use crate::route_map::{BackendPlan, CertificatePlan, EndpointSet, RouteMap};
use crate::snapshot::{Kind, Manifest, SecretData, Snapshot};
use crate::values::{BackendId, Hostname, ObjectName, Problem};

/// What the installation decides about compiling; the same on all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Routes of another class are not ours: no report, nothing served.
    pub class_name: Arc<str>,
    pub hostnames: HostnameClaims,
    pub loopback: LoopbackHosts,
}

/// Who may claim a hostname.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostnameClaims {
    FirstCome,
    /// Only what the namespace's annotation `portcullis.dev/hostnames` lists.
    Listed,
}

/// Whether a GatewayBackend may name a loopback address (file mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopbackHosts {
    Allowed,
    Refused,
}

/// What is carried from one compile to the next. An empty one gives the same result, later.
#[derive(Default)]
pub struct Memo {
    options: Option<Options>,
    certificates: Certificates,
    routes: BTreeMap<ObjectName, RouteUnit>,
    backends: BTreeMap<ObjectName, BackendUnit>,
    hosts: BTreeMap<Option<Hostname>, HostUnit>,
    plans: BTreeMap<BackendId, Arc<BackendPlan>>,
    reports: BTreeMap<ObjectName, (conditions::RouteFacts, Arc<Report>)>,
}

/// Proven certificates by Secret: thousands of routes may name one.
#[derive(Default)]
struct Certificates(HashMap<ObjectName, (Arc<SecretData>, Proven)>);

/// A certificate, or one sentence about what is wrong with it.
type Proven = Result<Arc<CertificatePlan>, String>;

struct BackendUnit {
    manifest: Arc<Manifest>,
    asked: Vec<(Question, Answer)>,
    report: Arc<Report>,
}

/// The result: what to serve, and what to say about each of our objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    pub map: Arc<RouteMap>,
    /// In the order of kind and name.
    pub reports: Vec<Arc<Report>>,
}

/// Compiles the whole world, reusing from `memo` what did not change.
pub fn compile(world: &Snapshot, options: &Options, memo: Memo) -> (Compiled, Memo) {
    let mut memo = if memo.options.as_ref() == Some(options) { memo } else { Memo::default() };
    memo.options = Some(options.clone());
    memo.certificates.forget_all_but(world);

    let routes = route_units(world, options, &mut memo);
    let mut claimants: Vec<Claimant> = routes
        .values()
        .filter_map(|unit| Some(Claimant { manifest: unit.manifest.clone(), lowered: unit.lowered.clone()? }))
        .collect();
    claimants.sort_by(|a, b| age(&a.manifest).cmp(&age(&b.manifest)));
    memo.routes = routes;

    let mut claims = claims::settle(&claimants, world, options);
    let mut known = std::mem::take(&mut memo.hosts);
    let mut map = RouteMap::default();
    let mut facts: Vec<conditions::RouteFacts> =
        claimants.iter().map(|claimant| conditions::RouteFacts::new(claimant.lowered.clone())).collect();
    for (hostname, claim) in std::mem::take(&mut claims.by_host) {
        let unit = match known.remove(&hostname) {
            Some(unit) if unit.stands(&claim, &claimants) => unit,
            _ => HostUnit::new(hostname.clone(), &claim, &claimants),
        };
        for place in &claim.routes {
            facts[*place].served.push(hostname.clone());
        }
        for (place, problem) in unit.notes(&claim) {
            facts[place].problems.push(problem.clone());
        }
        match &hostname {
            Some(hostname) => drop(map.hosts.insert(hostname.clone(), unit.host.clone())),
            None => map.catch_all = Some(unit.host.clone()),
        }
        memo.hosts.insert(hostname, unit);
    }
    for (place, problems) in claims.refused {
        facts[place].problems.extend(problems);
    }
    for (claimant, facts) in claimants.iter().zip(&facts) {
        if facts.served.is_empty() {
            continue;
        }
        for (id, plan) in &claimant.lowered.backends {
            map.backends.entry(id.clone()).or_insert_with(|| match memo.plans.get(id) {
                Some(known) if known == plan => known.clone(),
                _ => plan.clone(),
            });
        }
    }
    memo.plans = map.backends.clone();
    let reports = reports(world, options, &claimants, facts, &mut memo);
    (Compiled { map: Arc::new(map), reports }, memo)
}

/// The addresses that take new requests for a Service's port.
pub fn endpoints(world: &Snapshot, service: &ObjectName, port: u16) -> EndpointSet {
    services::endpoints(world, service, port)
}

/// The oldest first; without a timestamp the name decides.
fn age(manifest: &Manifest) -> (i64, &ObjectName) {
    (manifest.created.unwrap_or(i64::MAX), &manifest.name)
}

fn route_units(world: &Snapshot, options: &Options, memo: &mut Memo) -> BTreeMap<ObjectName, RouteUnit> {
    let mut known = std::mem::take(&mut memo.routes);
    let unit = |(name, manifest): (&ObjectName, &Arc<Manifest>)| {
        let unit = match known.remove(name) {
            Some(unit) if unit.stands(manifest, world) => unit,
            _ => RouteUnit::new(manifest, world, options, &mut memo.certificates),
        };
        (name.clone(), unit)
    };
    world.routes.iter().map(unit).collect()
}

fn reports(
    world: &Snapshot,
    options: &Options,
    claimants: &[Claimant],
    facts: Vec<conditions::RouteFacts>,
    memo: &mut Memo,
) -> Vec<Arc<Report>> {
    let mut known = std::mem::take(&mut memo.reports);
    let mut by_name = BTreeMap::new();
    for (claimant, mut facts) in claimants.iter().zip(facts) {
        facts.problems.sort();
        let name = &claimant.manifest.name;
        let report = match known.remove(name) {
            Some((before, report)) if before.same(&facts) => report,
            _ => Arc::new(conditions::route(&claimant.manifest, &facts)),
        };
        by_name.insert(name.clone(), (facts, report));
    }
    let mut reports: Vec<_> = by_name.values().map(|(_, report)| report.clone()).collect();
    memo.reports = by_name;
    let mut known = std::mem::take(&mut memo.backends);
    for (name, manifest) in &world.backends {
        let unit = match known.remove(name) {
            Some(unit) if unit.stands(manifest, world) => unit,
            _ => BackendUnit::new(manifest, world, options),
        };
        reports.push(unit.report.clone());
        memo.backends.insert(name.clone(), unit);
    }
    reports
}

impl BackendUnit {
    fn new(manifest: &Arc<Manifest>, world: &Snapshot, options: &Options) -> Self {
        let mut asker = Asker::new(world);
        let LoweredBackend { plan, problems } = gateway_backend::lower(manifest, options, &mut asker);
        let object = object(manifest, Kind::GatewayBackend);
        let report = Arc::new(conditions::backend(object, manifest, plan.as_ref(), problems));
        Self { manifest: Arc::clone(manifest), asked: asker.finish(), report }
    }

    fn stands(&self, manifest: &Arc<Manifest>, world: &Snapshot) -> bool {
        Arc::ptr_eq(&self.manifest, manifest)
            && self.asked.iter().all(|(question, answer)| question.answer(world).is(answer))
    }
}

fn object(manifest: &Manifest, kind: Kind) -> ObjectRef {
    ObjectRef {
        kind,
        name: manifest.name.clone(),
        uid: manifest.uid.clone(),
        generation: manifest.generation,
    }
}

impl Certificates {
    fn prove(&mut self, secret: &Arc<SecretData>) -> Proven {
        if let Some((known, result)) = self.0.get(&secret.name)
            && Arc::ptr_eq(known, secret)
        {
            return result.clone();
        }
        let result = certificates::prove(secret).map(Arc::new);
        self.0.insert(secret.name.clone(), (Arc::clone(secret), result.clone()));
        result
    }

    fn forget_all_but(&mut self, world: &Snapshot) {
        self.0.retain(|name, _| world.secrets.contains_key(name));
    }
}

/// The worst that is said: errors before warnings, in the order of their paths.
fn worst(problems: &[Problem]) -> Option<&Problem> {
    problems.iter().min_by_key(|problem| problem.severity)
}

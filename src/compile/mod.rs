//! Snapshot → (RouteMap, Reports): pure, synchronous, total. No clock, I/O, randomness or logging.
//!
//! Three layers. *Units*: each object is lowered alone and remembers every question that it asked of the world. *Hosts*:
//! for each hostname the routes that may answer under it. *Root*: hostname → host. What did not change is the same `Arc`
//! as before.
//!
//! Law: `compile(world, memo)` gives what `compile(world, Memo::default())` gives.

mod again;
mod aggregate;
mod asking;
mod attachment;
mod authorities;
mod backend_credentials;
mod backend_refs;
mod backend_tls;
mod backend_traffic;
mod cached;
mod certificates;
mod claims;
mod client_validation;
mod conditions;
mod gateway_backend;
mod gateway_policy;
mod gateway_route;
mod grants;
mod hosts;
mod passthrough;
mod policies;
mod published;
mod question;
mod report;
mod services;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, btree_map};
use std::iter::Peekable;
use std::sync::{Arc, Weak};

pub use published::Published;
pub use report::{Condition, ConditionStatus, ConditionType, ObjectRef, Report, RuleReport};

use self::again::Renewal;
use self::attachment::Index;
use self::claims::Claimant;
use self::conditions::{Fact, RouteFacts};
use self::gateway_backend::LoweredBackend;
use self::gateway_policy::LoweredPolicy;
use self::gateway_route::RouteUnit;
use self::hosts::HostUnit;
use self::policies::{Layer, Stack};
use self::question::{Asked, Asker, Backends, Gathered, Known, Policies};
use crate::filters::{AnyPlan, OwnHost, REGISTRY, Unmatched};
use crate::route_map::{
    BackendPlan, CertificatePlan, ClientValidationPlan, Credential, EndpointSet, RouteMap, TokenPlan,
};
use crate::snapshot::{Kind, Manifest, NamespaceData, SecretData, Snapshot};
use crate::values::{BackendId, Egress, FieldPath, Hostname, LabelSelector, ObjectName, Problem};

/// What the installation decides about compiling; the same on all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Routes of another class are not ours: no report, nothing served.
    pub class_name: Arc<str>,
    pub hostnames: HostnameClaims,
    pub loopback: LoopbackHosts,
    /// Where hosts may be.
    pub egress: Egress,
    /// There is a store in which replicas count together.
    pub has_store: bool,
    /// The installation's own: only policies there may apply to everything, or to namespaces by label.
    pub namespace: Arc<str>,
    /// Objects of ours count only in namespaces with these labels, and in the installation's own.
    pub served: Option<LabelSelector>,
}

impl Options {
    fn serve(&self, world: &Snapshot, namespace: &Arc<str>) -> bool {
        let Some(selector) = &self.served else { return true };
        *namespace == self.namespace
            || world.namespaces.get(namespace).is_some_and(|namespace| selector.selects(&namespace.labels))
    }
}

/// Who may claim a hostname.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostnameClaims {
    FirstCome,
    /// Only what the namespace's annotation `portcullis.dev/hostnames` lists.
    Listed,
}

/// Whether a GatewayBackend or a URL may name a loopback address (file mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopbackHosts {
    Allowed,
    Refused,
}

impl LoopbackHosts {
    const fn own_host(self) -> OwnHost {
        match self {
            Self::Allowed => OwnHost::Allowed,
            Self::Refused => OwnHost::Refused,
        }
    }
}

/// What is carried from one compile to the next. An empty one gives the same result, later.
#[derive(Default)]
pub struct Memo {
    options: Option<Options>,
    certificates: Certificates,
    gathered: Gathered,
    routes: BTreeMap<ObjectName, RouteUnit>,
    backends: BTreeMap<ObjectName, BackendUnit>,
    policies: BTreeMap<ObjectName, PolicyUnit>,
    index: Index,
    /// In the order of age.
    claimants: Vec<Claimant>,
    hosts: BTreeMap<Option<Hostname>, HostUnit>,
    /// What a claimant did not get, by its place.
    refused: BTreeMap<usize, Vec<Problem>>,
    /// Those that claims were settled by.
    namespaces: Namespaces,
    map: Arc<RouteMap>,
    reports: BTreeMap<ObjectName, Told>,
}

type Namespaces = BTreeMap<Arc<str>, Arc<NamespaceData>>;

/// What was told of a route, and why.
type Told = (RouteFacts, Arc<Report>);

/// Proven certificates by Secret, proven validations of clients by their print, and plans of backends: thousands of routes
/// may name one.
#[derive(Default)]
struct Certificates {
    proven: HashMap<ObjectName, (Arc<SecretData>, Proven)>,
    validations: HashMap<[u8; 32], Weak<ClientValidationPlan>>,
    plans: HashMap<BackendId, Weak<BackendPlan>>,
}

/// How the spec of a backend says that another one may be asked for its tokens.
const ASKS_ANOTHER: &str = "oauth2ClientCredentials";

/// A certificate, or one sentence about what is wrong with it.
type Proven = Result<Arc<CertificatePlan>, String>;

struct BackendUnit {
    manifest: Arc<Manifest>,
    asked: Asked,
    lowered: Arc<LoweredBackend>,
    report: Arc<Report>,
}

struct PolicyUnit {
    manifest: Arc<Manifest>,
    asked: Asked,
    lowered: Arc<LoweredPolicy>,
    /// What was last told, of which standing.
    told: Option<(Standing, Arc<Report>)>,
}

/// What is to be said of a policy's targets, and whether any member of it counts.
type Standing = (Vec<Problem>, bool);

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

    let (none, no_policies, no_index) = (Backends::new(), Policies::new(), Index::default());
    let gathered = std::mem::take(&mut memo.gathered).next();
    let known = Known {
        world,
        backends: &none,
        policies: &no_policies,
        index: &no_index,
        gathered: &gathered,
        options,
    };
    let backends = backend_units(known, options, &mut memo);
    let known = Known { backends: &backends, ..known };
    let policies = policy_units(known, options, &mut memo);
    let lowered: Vec<_> = policies.values().cloned().collect();
    let index = Index::new(&lowered, world, &memo.index);
    let known = Known { policies: &policies, index: &index, ..known };
    let (routes, renewals) = route_units(known, options, &mut memo);
    memo.gathered = gathered;
    policy_reports(&index, world, &routes, &mut memo);
    memo.routes = routes;
    let unmatched = unmatched(&index);
    memo.index = index;
    let as_before = renewals.filter(|_| same_namespaces(&memo.namespaces, &world.namespaces));
    let map = match as_before.and_then(|renewals| again::places(renewals, &memo.claimants)) {
        Some(renewals) => again::map(renewals, unmatched, &mut memo),
        None => whole_map(world, options, unmatched, &mut memo),
    };
    memo.map = Arc::new(map);
    memo.certificates.forget_plans(memo.map.backends.len());
    let reports = reports(&memo);
    (Compiled { map: memo.map.clone(), reports }, memo)
}

/// Settles all claims, and reuses every host and report that stands.
fn whole_map(
    world: &Snapshot,
    options: &Options,
    unmatched: Vec<(usize, AnyPlan)>,
    memo: &mut Memo,
) -> RouteMap {
    let units = memo.routes.values();
    let mut claimants: Vec<Claimant> = units
        .filter_map(|unit| Some(Claimant { manifest: unit.manifest.clone(), lowered: unit.lowered.clone()? }))
        .collect();
    claimants.sort_by(|a, b| age(&a.manifest).cmp(&age(&b.manifest)));
    let claims = claims::settle(&claimants, world, options);
    let mut known = Walk::over(std::mem::take(&mut memo.hosts));
    let (mut map, mut hosts, mut units) = (RouteMap::default(), Vec::new(), Vec::new());
    for (hostname, claim) in claims.by_host {
        let unit = match known.take(&hostname) {
            Some(unit) if unit.stands(&claim, &claimants) => unit.with(claim),
            _ => HostUnit::new(hostname.clone(), claim, &claimants),
        };
        match &hostname {
            // It would only hide the owner's wildcard, which answers there.
            Some(_) if unit.is_nothing_but_refused_guests(&claimants) => {}
            Some(hostname) => hosts.push((hostname.clone(), unit.host.clone())),
            None => map.catch_all = Some(unit.host.clone()),
        }
        units.push((hostname, unit));
    }
    map.hosts = hosts.into_iter().collect();
    map.unmatched = unmatched;
    memo.hosts = units.into_iter().collect();
    let mut facts: Vec<RouteFacts> =
        claimants.iter().map(|claimant| RouteFacts::new(claimant.lowered.clone())).collect();
    for (place, fact) in found(memo.hosts.iter(), &claims.refused) {
        facts[place].add(fact);
    }
    let served = claimants.iter().zip(&facts).filter(|(_, facts)| !facts.served.is_empty());
    map.backends = served_backends(served.map(|(claimant, _)| claimant), &memo.map.backends);
    tell_all(&claimants, facts, memo);
    (memo.claimants, memo.refused) = (claimants, claims.refused);
    if !same_namespaces(&memo.namespaces, &world.namespaces) {
        memo.namespaces = world.namespaces.clone();
    }
    map
}

/// What was found out about the claimants at these hostnames, and where they were refused; by their places.
fn found<'f>(
    hosts: impl Iterator<Item = (&'f Option<Hostname>, &'f HostUnit)>,
    refused: &'f BTreeMap<usize, Vec<Problem>>,
) -> impl Iterator<Item = (usize, Fact<'f>)> {
    let refusals = refused
        .iter()
        .flat_map(|(place, problems)| problems.iter().map(move |problem| (*place, Fact::Problem(problem))));
    hosts.flat_map(|(hostname, unit)| unit.facts(hostname)).chain(refusals)
}

/// All that those lead to whose routes answer anywhere; the same `Arc` as before where nothing changed. The oldest
/// decides.
fn served_backends<'c>(
    claimants: impl Iterator<Item = &'c Claimant>,
    known: &BTreeMap<BackendId, Arc<BackendPlan>>,
) -> BTreeMap<BackendId, Arc<BackendPlan>> {
    let mut backends = BTreeMap::new();
    let mut add = |plan: &Arc<BackendPlan>| {
        backends.entry(plan.id.clone()).or_insert_with(|| match known.get(&plan.id) {
            Some(known) if known == plan => known.clone(),
            _ => plan.clone(),
        });
    };
    for plan in claimants.flat_map(|claimant| &claimant.lowered.backends) {
        add(plan);
        if let Some(Credential::Token(TokenPlan { from: Some(asked), .. })) = plan.credential.as_deref() {
            add(asked);
        }
    }
    backends
}

fn same_namespaces(a: &Namespaces, b: &Namespaces) -> bool {
    a.len() == b.len() && a.values().zip(b.values()).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}

/// The addresses that take new requests for a Service's port.
pub fn endpoints(world: &Snapshot, service: &ObjectName, port: u16, zone: Option<&str>) -> EndpointSet {
    services::endpoints(world, service, port, zone)
}

/// The oldest first; without a timestamp the name decides.
fn age(manifest: &Manifest) -> (i64, &ObjectName) {
    (manifest.created.unwrap_or(i64::MAX), &manifest.name)
}

/// The units; and if all that changed claims what it claimed before, what changed.
fn route_units(
    known: Known<'_>,
    options: &Options,
    memo: &mut Memo,
) -> (BTreeMap<ObjectName, RouteUnit>, Option<Vec<Renewal>>) {
    let Known { world, .. } = known;
    let all = || world.routes.iter().filter(|(name, _)| options.serve(world, &name.namespace));
    let mut units = std::mem::take(&mut memo.routes);
    let mut make =
        |manifest: &Arc<Manifest>| RouteUnit::new(manifest, known, options, &mut memo.certificates);
    let same_names = units.keys().zip(all()).all(|(one, (other, _))| is_named(one, other));
    if same_names && units.len() == all().count() {
        let mut renewals = Some(Vec::new());
        for (unit, (_, manifest)) in units.values_mut().zip(all()) {
            let stands = unit.stands(manifest, known);
            if stands && Arc::ptr_eq(&unit.manifest, manifest) {
                continue;
            }
            let before = (unit.manifest.created, unit.lowered.clone());
            match stands {
                true => unit.manifest = Arc::clone(manifest),
                false => *unit = make(manifest),
            }
            again::note(&mut renewals, before, unit);
        }
        return (units, renewals);
    }
    let mut before = Walk::over(units);
    let unit = |(name, manifest): (&ObjectName, &Arc<Manifest>)| {
        let unit = match before.take(name) {
            Some(unit) if unit.stands(manifest, known) => {
                RouteUnit { manifest: Arc::clone(manifest), ..unit }
            }
            _ => make(manifest),
        };
        (name.clone(), unit)
    };
    (all().map(unit).collect(), None)
}

/// Mostly the very same name.
fn is_named(a: &ObjectName, b: &ObjectName) -> bool {
    Arc::ptr_eq(&a.name, &b.name) && Arc::ptr_eq(&a.namespace, &b.namespace) || a == b
}

fn tell_all(claimants: &[Claimant], facts: Vec<RouteFacts>, memo: &mut Memo) {
    let mut known = Walk::over(std::mem::take(&mut memo.reports));
    let mut by_age: Vec<_> = claimants.iter().zip(facts).collect();
    by_age.sort_by(|(a, _), (b, _)| a.manifest.name.cmp(&b.manifest.name));
    let mut by_name = Vec::with_capacity(by_age.len());
    for (claimant, facts) in by_age {
        let name = &claimant.manifest.name;
        by_name.push((name.clone(), tell(known.take(name), claimant, facts)));
    }
    memo.reports = by_name.into_iter().collect();
}

/// The same report as before where nothing of it changed.
fn tell(known: Option<Told>, claimant: &Claimant, mut facts: RouteFacts) -> Told {
    facts.problems.sort();
    match known {
        Some(known) if known.0.same(&facts) && is_about(&known.1, &claimant.manifest) => known,
        _ => {
            facts.served.shrink_to_fit();
            let report = Arc::new(conditions::route(&claimant.manifest, &facts));
            (facts, report)
        }
    }
}

fn reports(memo: &Memo) -> Vec<Arc<Report>> {
    let backends = memo.backends.values().map(|unit| &unit.report);
    let policies = memo.policies.values().filter_map(|unit| Some(&unit.told.as_ref()?.1));
    let mut reports = Vec::with_capacity(memo.reports.len() + memo.backends.len() + memo.policies.len());
    reports.extend(memo.reports.values().map(|(_, report)| report).chain(backends).chain(policies).cloned());
    reports
}

/// Backends are units of their own, which routes share.
fn backend_units(world: Known<'_>, options: &Options, memo: &mut Memo) -> Backends {
    let mut known = std::mem::take(&mut memo.backends);
    let served = |name: &ObjectName| options.serve(world.world, &name.namespace);
    let all = || world.world.backends.iter().filter(|(name, _)| served(name));
    let mut unit = |(name, manifest): (&ObjectName, &Arc<Manifest>), world: Known<'_>, memo: &mut Memo| {
        let unit = match known.remove(name) {
            Some(unit) if lowers_alike(&unit.manifest, manifest) && unit.asked.stands(world) => {
                unit.now(manifest)
            }
            _ => BackendUnit::new(manifest, world, options, &mut memo.certificates),
        };
        memo.backends.insert(name.clone(), unit);
    };
    let lowered = |memo: &Memo| -> Backends {
        memo.backends.iter().map(|(name, unit)| (name.clone(), unit.lowered.clone())).collect()
    };
    // Those that get tokens may get them from others, which therefore do not: that leads nowhere in a circle.
    let (later, first): (Vec<_>, Vec<_>) = all().partition(|(_, manifest)| asks_another(&manifest.spec));
    first.into_iter().for_each(|one| unit(one, world, memo));
    if later.is_empty() {
        return lowered(memo);
    }
    let first = lowered(memo);
    later.into_iter().for_each(|one| unit(one, Known { backends: &first, ..world }, memo));
    lowered(memo)
}

/// Whether a backend gets tokens. One whose spec cannot be read has no plan anyway.
fn asks_another(spec: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Spec {
        credentials: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    }
    // The words may stand elsewhere: most specs do not have them at all.
    spec.contains(ASKS_ANOTHER)
        && serde_json::from_str(spec).map_or(true, |spec: Spec| {
            spec.credentials.is_some_and(|credentials| credentials.contains_key(ASKS_ANOTHER))
        })
}

/// Policies too: each is compiled once for all routes that it applies to.
fn policy_units(known: Known<'_>, options: &Options, memo: &mut Memo) -> Policies {
    let mut units = std::mem::take(&mut memo.policies);
    for (name, manifest) in &known.world.policies {
        if !options.serve(known.world, &name.namespace) {
            continue;
        }
        let unit = match units.remove(name) {
            Some(unit) if lowers_alike(&unit.manifest, manifest) && unit.asked.stands(known) => {
                PolicyUnit { manifest: Arc::clone(manifest), ..unit }
            }
            _ => {
                let mut asker = Asker::new(Kind::GatewayPolicy, known);
                let lowered = Arc::new(gateway_policy::lower(manifest, options, &mut asker));
                let manifest = Arc::clone(manifest);
                PolicyUnit { manifest, asked: asker.finish(), lowered, told: None }
            }
        };
        memo.policies.insert(name.clone(), unit);
    }
    memo.policies.iter().map(|(name, unit)| (name.clone(), unit.lowered.clone())).collect()
}

fn policy_reports(
    index: &Index,
    world: &Snapshot,
    routes: &BTreeMap<ObjectName, RouteUnit>,
    memo: &mut Memo,
) {
    for unit in memo.policies.values_mut() {
        let route = |name: &ObjectName| routes.get(name)?.lowered.as_ref();
        let standing = index.standing(&unit.lowered, world, route);
        let stands = unit
            .told
            .as_ref()
            .is_some_and(|(before, report)| *before == standing && is_about(report, &unit.manifest));
        if !stands {
            let report = Arc::new(conditions::policy(&unit.manifest, &unit.lowered, &standing));
            unit.told = Some((standing, report));
        }
    }
}

/// What policies on the installation do to requests that no rule matched.
fn unmatched(index: &Index) -> Vec<(usize, AnyPlan)> {
    let (applied, nothing, nowhere) = (index.to_the_unmatched(), Layer::default(), FieldPath::default());
    let effective = Stack::without_rule(&nothing, &nowhere, &applied).effective();
    let filters = effective.filters.into_iter();
    filters.filter(|(row, _)| REGISTRY[*row].unmatched == Unmatched::Applies).collect()
}

/// Whether two manifests of one object give the same when lowered. Neither status nor generation nor the place in a
/// file counts: the writer of status must not cause a compile of all that it writes about.
fn lowers_alike(a: &Arc<Manifest>, b: &Arc<Manifest>) -> bool {
    Arc::ptr_eq(a, b) || (a.name == b.name && a.created == b.created && a.spec == b.spec)
}

fn is_about(report: &Report, manifest: &Manifest) -> bool {
    let object = &report.object;
    object.uid == manifest.uid && object.generation == manifest.generation && report.origin == manifest.origin
}

/// A map taken apart in the order of its keys: one walk along tens of thousands of them, not a search for each. Maps
/// are built again from sorted entries for the same reason.
struct Walk<K, V>(Peekable<btree_map::IntoIter<K, V>>);

impl<K: Ord, V> Walk<K, V> {
    fn over(map: BTreeMap<K, V>) -> Self {
        Self(map.into_iter().peekable())
    }

    /// The value of a key. Keys are asked for in ascending order.
    fn take(&mut self, key: &K) -> Option<V> {
        while self.0.next_if(|(known, _)| known < key).is_some() {}
        self.0.next_if(|(known, _)| known == key).map(|(_, value)| value)
    }
}

impl BackendUnit {
    fn new(
        manifest: &Arc<Manifest>,
        known: Known<'_>,
        options: &Options,
        certificates: &mut Certificates,
    ) -> Self {
        let mut asker = Asker::new(Kind::GatewayBackend, known);
        let lowered = Arc::new(gateway_backend::lower(manifest, options, &mut asker, certificates));
        let report = Arc::new(conditions::backend(manifest, &lowered));
        Self { manifest: Arc::clone(manifest), asked: asker.finish(), lowered, report }
    }

    /// The same for the newest form of the object.
    fn now(mut self, manifest: &Arc<Manifest>) -> Self {
        if !is_about(&self.report, manifest) {
            self.report = Arc::new(conditions::backend(manifest, &self.lowered));
        }
        self.manifest = Arc::clone(manifest);
        self
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
        if let Some((known, result)) = self.proven.get(&secret.name)
            && (Arc::ptr_eq(known, secret) || known.data == secret.data)
        {
            return result.clone();
        }
        let result = certificates::prove(secret).map(Arc::new);
        self.proven.insert(secret.name.clone(), (Arc::clone(secret), result.clone()));
        result
    }

    fn forget_all_but(&mut self, world: &Snapshot) {
        self.proven.retain(|name, _| world.secrets.contains_key(name));
        self.validations.retain(|_, plan| plan.strong_count() > 0);
    }

    /// As often as there are twice as many as are served: looking at each costs time.
    fn forget_plans(&mut self, served: usize) {
        if self.plans.len() > 2 * served + 64 {
            self.plans.retain(|_, plan| plan.strong_count() > 0);
        }
    }

    /// The one that was made before, if it is the same.
    fn one_of(&mut self, plan: Arc<BackendPlan>) -> Arc<BackendPlan> {
        let known = self.plans.get(&plan.id).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| Arc::ptr_eq(known, &plan) || *known == plan) {
            return known;
        }
        self.plans.insert(plan.id.clone(), Arc::downgrade(&plan));
        plan
    }

    fn validation(&self, print: &[u8; 32]) -> Option<Arc<ClientValidationPlan>> {
        self.validations.get(print).and_then(Weak::upgrade)
    }

    fn remember(&mut self, plan: ClientValidationPlan) -> Arc<ClientValidationPlan> {
        let plan = Arc::new(plan);
        self.validations.insert(plan.print, Arc::downgrade(&plan));
        plan
    }
}

/// The worst that is said: errors before warnings, in the order of their paths.
fn worst(problems: &[Problem]) -> Option<&Problem> {
    problems.iter().min_by_key(|problem| problem.severity)
}

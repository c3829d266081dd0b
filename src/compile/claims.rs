//! Who may answer under which hostname.
//!
//! A name belongs to the namespace of the oldest route that names it; a wildcard owns the names under it that nobody
//! claimed earlier; the owner's routes may let other namespaces in (`allowedRoutes`). No hostname at all is one name
//! like the others, the catch-all.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::gateway_route::LoweredRoute;
use super::{HostnameClaims, Options};
use crate::api::{AllowedFrom, AllowedNamespaces};
use crate::snapshot::{Manifest, Snapshot};
use crate::values::{FieldPath, Hostname, Problem, Reason};

/// A route of ours; they stand in the order of age.
#[derive(Clone)]
pub(super) struct Claimant {
    pub manifest: Arc<Manifest>,
    pub lowered: Arc<LoweredRoute>,
}

/// The routes of one hostname, by their place among the claimants, and the namespace that owns it.
#[derive(Debug, Default)]
pub(super) struct Claim {
    pub owner: Option<Arc<str>>,
    pub routes: Vec<usize>,
    /// Whose `tls` holds for the name.
    pub tls: Option<usize>,
    /// Who passes the name's connections through. None: TLS is ours.
    pub passage: Option<usize>,
}

pub(super) struct Claims {
    /// `None`: the catch-all.
    pub by_host: BTreeMap<Option<Hostname>, Claim>,
    /// What a claimant did not get, by its place.
    pub refused: BTreeMap<usize, Vec<Problem>>,
}

/// Whether a route in the place of another one, as old and of the same name, leaves every claim as it is: `settle` reads
/// nothing else of it.
pub(super) fn alike(a: &LoweredRoute, b: &LoweredRoute) -> bool {
    a.hostnames == b.hostnames
        && a.allowed == b.allowed
        && a.is_installed() == b.is_installed()
        && a.tls.is_some() == b.tls.is_some()
        && a.passes_through() == b.passes_through()
}

#[derive(Default)]
struct Owner {
    namespace: Arc<str>,
    /// Its routes that name the hostname.
    routes: Vec<usize>,
}

pub(super) fn settle(claimants: &[Claimant], world: &Snapshot, options: &Options) -> Claims {
    let mut owners = Owners::default();
    let mut refused: BTreeMap<usize, Vec<Problem>> = BTreeMap::new();
    let mut standing = Vec::new();
    for (place, claimant) in claimants.iter().enumerate() {
        let namespace = &claimant.manifest.name.namespace;
        for (path, hostname) in claimed(&claimant.lowered) {
            if options.hostnames == HostnameClaims::Listed && !is_listed(world, namespace, hostname) {
                refused.entry(place).or_default().push(not_listed(written(path), hostname, namespace));
                continue;
            }
            standing.push((place, path, hostname));
            // What serves nothing takes nothing away from others.
            if !claimant.lowered.is_installed() {
                continue;
            }
            match owners.of(hostname) {
                Some(other) if other.namespace != *namespace => {}
                _ => owners.add(hostname, namespace, place),
            }
        }
    }
    let mut by_host: BTreeMap<Option<Hostname>, Claim> = BTreeMap::new();
    for (place, path, hostname) in standing {
        let namespace = &claimants[place].manifest.name.namespace;
        let Some(owner) = owners.of(hostname) else { continue };
        let let_in = || {
            owner.routes.iter().any(|route| {
                claimants[*route]
                    .lowered
                    .allowed
                    .as_ref()
                    .is_some_and(|allowed| admits(allowed, world, namespace))
            })
        };
        let is_guest = owner.namespace != *namespace;
        if is_guest && !claimants[place].lowered.is_installed() {
            continue;
        }
        if is_guest && !let_in() {
            refused.entry(place).or_default().push(conflict(written(path), hostname, &owner.namespace));
            continue;
        }
        let claim = by_host.entry(hostname.cloned()).or_default();
        claim.owner = Some(owner.namespace.clone());
        if claim.routes.last() != Some(&place) {
            claim.routes.push(place);
        }
    }
    settle_passages(&mut by_host, claimants);
    settle_tls(&mut by_host, claimants);
    Claims { by_host, refused }
}

/// A name is passed through if its owner's oldest route that serves anything does so: then by that route alone.
fn settle_passages(by_host: &mut BTreeMap<Option<Hostname>, Claim>, claimants: &[Claimant]) {
    for claim in by_host.values_mut() {
        let is_owners = |place: &&usize| {
            let Claimant { manifest, lowered } = &claimants[**place];
            Some(&manifest.name.namespace) == claim.owner.as_ref() && lowered.is_installed()
        };
        // A guest decides nothing about the owner's name.
        let first = claim.routes.iter().find(is_owners);
        claim.passage = first.copied().filter(|place| claimants[*place].lowered.passes_through());
    }
}

/// The owner's oldest route with `tls` sets it for the name. A name of which none has any takes it from the nearest
/// wildcard above it of the same owner: that owns the names under it, and none of them becomes plain by having a route.
fn settle_tls(by_host: &mut BTreeMap<Option<Hostname>, Claim>, claimants: &[Claimant]) {
    for claim in by_host.values_mut() {
        let own = || {
            let with_tls = |place: &&usize| {
                let Claimant { manifest, lowered } = &claimants[**place];
                let is_ours = claim.passage.is_some() == lowered.passes_through();
                lowered.tls.is_some() && is_ours && Some(&manifest.name.namespace) == claim.owner.as_ref()
            };
            claim.routes.iter().filter(with_tls).copied()
        };
        // One that serves nothing is asked last; that it means HTTPS is known all the same.
        claim.tls = own().find(|place| claimants[*place].lowered.is_installed()).or_else(|| own().next());
    }
    let wildcards: HashMap<&str, (Option<usize>, Option<&Arc<str>>)> = by_host
        .iter()
        .filter_map(|(hostname, claim)| match hostname {
            // What is passed through below a star is no TLS of ours for others.
            Some(Hostname::Wildcard(name)) if claim.passage.is_none() => {
                Some((&**name, (claim.tls, claim.owner.as_ref())))
            }
            _ => None,
        })
        .collect();
    let from_above = |hostname: &Option<Hostname>, claim: &Claim| {
        if claim.tls.is_some() {
            return None;
        }
        let (Hostname::Exact(name) | Hostname::Wildcard(name)) = hostname.as_ref()?;
        let (place, owner) = parents(name).find_map(|parent| wildcards.get::<str>(parent))?;
        place.filter(|_| *owner == claim.owner.as_ref())
    };
    let inherited: Vec<_> = by_host
        .iter()
        .filter_map(|(hostname, claim)| Some((hostname.clone(), from_above(hostname, claim)?)))
        .collect();
    for (hostname, place) in inherited {
        if let Some(claim) = by_host.get_mut(&hostname) {
            claim.tls = Some(place);
        }
    }
}

/// `a.b.example` → `b.example`, `example`
fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(dot, _)| &name[dot + 1..])
}

#[derive(Default)]
struct Owners<'r> {
    names: HashMap<&'r str, Owner, foldhash::fast::RandomState>,
    /// By the part after `*.`
    wildcards: HashMap<&'r str, Owner, foldhash::fast::RandomState>,
    catch_all: Option<Owner>,
}

impl<'r> Owners<'r> {
    /// The owner of a name: whoever owns it itself, else the most specific wildcard above it.
    fn of<'o>(&'o self, hostname: Option<&Hostname>) -> Option<&'o Owner> {
        let (itself, name) = match hostname {
            None => return self.catch_all.as_ref(),
            Some(Hostname::Exact(name)) => (self.names.get::<str>(name), name),
            Some(Hostname::Wildcard(name)) => (self.wildcards.get::<str>(name), name),
        };
        itself.or_else(|| parents(name).find_map(|parent| self.wildcards.get::<str>(parent)))
    }

    fn add(&mut self, hostname: Option<&'r Hostname>, namespace: &Arc<str>, place: usize) {
        let owner = match hostname {
            None => self.catch_all.get_or_insert_default(),
            Some(Hostname::Exact(name)) => self.names.entry(&**name).or_default(),
            Some(Hostname::Wildcard(name)) => self.wildcards.entry(&**name).or_default(),
        };
        owner.namespace = namespace.clone();
        owner.routes.push(place);
    }
}

/// Each hostname and where it is written.
fn claimed(route: &LoweredRoute) -> impl Iterator<Item = (Option<&FieldPath>, Option<&Hostname>)> {
    let nothing = route.hostnames.is_none().then_some((None, None));
    route.hostnames.iter().flatten().map(|(path, name)| (Some(path), Some(name))).chain(nothing)
}

fn written(path: Option<&FieldPath>) -> FieldPath {
    path.cloned().unwrap_or_else(|| FieldPath::new("spec.hostnames"))
}

fn admits(allowed: &AllowedNamespaces, world: &Snapshot, namespace: &Arc<str>) -> bool {
    match allowed.from {
        AllowedFrom::Same => false,
        AllowedFrom::All => true,
        AllowedFrom::Selector => {
            let Some(selector) = &allowed.selector else { return false };
            let Some(known) = world.namespaces.get(namespace) else { return false };
            selector.selects(namespace, Some(&known.labels))
        }
    }
}

fn is_listed(world: &Snapshot, namespace: &Arc<str>, hostname: Option<&Hostname>) -> bool {
    let Some(listed) = world.namespaces.get(namespace).and_then(|namespace| namespace.hostnames.as_ref())
    else {
        return false;
    };
    listed.split([',', ' ', '\n']).map(str::trim).filter(|entry| !entry.is_empty()).any(
        |entry| match hostname {
            None => entry == "*",
            Some(hostname) => entry.parse::<Hostname>().is_ok_and(|entry| entry.covers_all_of(hostname)),
        },
    )
}

fn conflict(path: FieldPath, hostname: Option<&Hostname>, owner: &str) -> Problem {
    let message = match hostname {
        Some(name) => format!(
            "{name} belongs to namespace {owner}; use another name, or let its route allow this namespace by allowedRoutes"
        ),
        None => format!("what no hostname names is answered for namespace {owner}; give the route hostnames"),
    };
    Problem::error(path, Reason::HostnameConflict, message)
}

fn not_listed(path: FieldPath, hostname: Option<&Hostname>, namespace: &str) -> Problem {
    let list = format!(
        "the annotation portcullis.dev/hostnames of namespace {namespace}, which this installation asks for"
    );
    let message = match hostname {
        Some(name) => format!("{name} is not in {list}; have it added"),
        None => format!(
            "a route without hostnames needs the entry * in {list}; give it hostnames or have * added"
        ),
    };
    Problem::error(path, Reason::HostnameConflict, message)
}

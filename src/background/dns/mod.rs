//! Host names of backends, resolved again and again while the installed route map has them: as often as their records
//! say, beside the requests.
//!
//! Invariants: what was known goes on being served while no server answers, and for five minutes after they say that the
//! name is gone; a family of addresses that cannot be asked for is not lost because the other was there; while a name
//! cannot be asked for, no other takes its place.

mod places;
mod resolver;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use self::places::{Ended, Owners, Places, Room, place};
use self::resolver::{Found, Held, LONGEST, Part, usable};
use self::wire::Name;
use super::client::jittered;
use crate::route_map::{Address, Endpoint, EndpointSet};
use crate::telemetry::{NameSeries, Telemetry};
use crate::values::BackendId;

pub use self::resolver::{Resolver, ResolverSettings};

/// After a look-up that failed; doubled with each.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(15);
/// A name that is said to be gone for so long is.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// After so many failures in a row of a name that never had addresses, those are passed over that it may mean and that
/// fail.
const PATIENT: u32 = 2;
/// Answers that wait to be told.
const TOLD_AT_ONCE: usize = 64;

/// The running resolver. It stops when the last of its handles is dropped.
#[derive(Clone, Debug)]
pub struct Names {
    known: Arc<Mutex<Known>>,
    wanted: watch::Sender<Wanted>,
}

type Hosts = Vec<(Address, u16)>;
type Wanted = Arc<Vec<(BackendId, Hosts)>>;
/// A name that was looked up in vain has no addresses; one that was not yet is not in it.
type Known = HashMap<Arc<str>, Vec<IpAddr>>;
type Answer = Pin<Box<dyn Future<Output = Found> + Send>>;
type LookUp = Arc<dyn Fn(Arc<str>, Held) -> Answer + Send + Sync>;

struct Task<P> {
    known: Arc<Mutex<Known>>,
    wanted: watch::Receiver<Wanted>,
    look_up: LookUp,
    places: Places,
    telemetry: Telemetry,
    publish: P,
    published: BTreeMap<BackendId, EndpointSet>,
}

impl Names {
    /// Starts on the runtime of the caller. `publish` is told the endpoints of a backend whenever they change; it must
    /// not block.
    pub fn start(
        resolver: Resolver,
        telemetry: Telemetry,
        publish: impl Fn(&BackendId, EndpointSet) + Send + 'static,
    ) -> Self {
        let look_up = move |name: Arc<str>, held: Held| -> Answer {
            let resolver = resolver.clone();
            Box::pin(async move { resolver.look_up(&name, &held).await })
        };
        Self::with(Arc::new(look_up), telemetry, publish)
    }

    fn with(
        look_up: LookUp,
        telemetry: Telemetry,
        publish: impl Fn(&BackendId, EndpointSet) + Send + 'static,
    ) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let known = Arc::<Mutex<Known>>::default();
        let task = Task {
            known: known.clone(),
            wanted: receiver,
            look_up,
            places: Places::default(),
            telemetry,
            publish,
            published: BTreeMap::new(),
        };
        tokio::spawn(task.run());
        Self { known, wanted }
    }

    /// The backends with hosts of the map that is installed now, addresses among them or not. What was resolved before
    /// is published again, so that a backend that is new in the map has its endpoints at once.
    pub fn wanted(&self, backends: Vec<(BackendId, Vec<(Address, u16)>)>) {
        self.wanted.send_replace(Arc::new(backends));
    }

    /// Where requests to `hosts` can go as far as is known now, for a backend that is about to be installed.
    pub fn endpoints(&self, hosts: &[(Address, u16)]) -> EndpointSet {
        endpoints(hosts, &lock(&self.known))
    }
}

impl<P: Fn(&BackendId, EndpointSet)> Task<P> {
    async fn run(mut self) {
        let (resolved, mut news) = mpsc::channel(TOLD_AT_ONCE);
        let mut watched = BTreeMap::<Arc<str>, (AbortHandle, watch::Sender<Owners>)>::new();
        // Owns the look-ups: they end with this task.
        let mut lookups = JoinSet::new();
        loop {
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let names = self.names();
                    watched.retain(|name, (task, _)| {
                        let stays = names.contains_key(name);
                        if !stays {
                            task.abort();
                        }
                        stays
                    });
                    lock(&self.known).retain(|name, _| names.contains_key(name));
                    for (name, namespaces) in names {
                        let owners: Owners =
                            namespaces.iter().map(|namespace| self.places.share(namespace)).collect();
                        if let Some((_, known)) = watched.get(&name) {
                            known.send_if_modified(|before| replace(before, owners));
                            continue;
                        }
                        let (owners, owned) = watch::channel(owners);
                        let asking = Asking {
                            name: name.clone(),
                            look_up: self.look_up.clone(),
                            owners: owned,
                            all: self.places.all(),
                            series: self.telemetry.control().of_name(&name),
                            resolved: resolved.clone(),
                        };
                        watched.insert(name, (lookups.spawn(asking.run()), owners));
                    }
                    // The installer of the map may have told the proxy less than we know: say it again.
                    self.published.clear();
                    self.publish();
                }
                Some((name, addresses)) = news.recv() => {
                    if watched.contains_key(&name) {
                        lock(&self.known).insert(name, addresses);
                        self.publish();
                    }
                }
                Some(_) = lookups.join_next() => {}
            }
        }
    }

    /// And the namespaces of those who want them.
    fn names(&self) -> BTreeMap<Arc<str>, BTreeSet<Arc<str>>> {
        let mut names = BTreeMap::<_, BTreeSet<_>>::new();
        for (backend, hosts) in self.wanted.borrow().iter() {
            for (address, _) in hosts {
                if let Address::Name(name) = address {
                    // What policies' URLs name is one share.
                    let namespace = backend.namespace().cloned().unwrap_or_default();
                    names.entry(name.clone()).or_default().insert(namespace);
                }
            }
        }
        names
    }

    /// Tells what is new.
    fn publish(&mut self) {
        let wanted = self.wanted.borrow().clone();
        for (backend, hosts) in wanted.iter() {
            let now = endpoints(hosts, &lock(&self.known));
            if self.published.get(backend) != Some(&now) {
                (self.publish)(backend, now.clone());
                self.published.insert(backend.clone(), now);
            }
        }
    }
}

/// Whether they are others than before: who waits for room waits on where they are the same.
fn replace(before: &mut Owners, now: Owners) -> bool {
    let is_same =
        before.len() == now.len() && before.iter().zip(&now).all(|(one, other)| Arc::ptr_eq(one, other));
    *before = now;
    !is_same
}

/// Keeps one name resolved.
struct Asking {
    name: Arc<str>,
    look_up: LookUp,
    owners: watch::Receiver<Owners>,
    all: Arc<Room>,
    series: NameSeries,
    resolved: mpsc::Sender<(Arc<str>, Vec<IpAddr>)>,
}

impl Asking {
    /// Tells the first answer, and each that differs from the one before.
    async fn run(mut self) {
        let (mut last, mut told) = (Last::default(), None);
        loop {
            let ended = if last.failures > 0 { Ended::Failed } else { Ended::Well };
            let Some(place) = place(&mut self.owners, &self.all, ended).await else { return };
            let found = (self.look_up)(self.name.clone(), last.held()).await;
            drop(place);
            self.count(&found);
            let delay = last.take(&self.name, found);
            let addresses = usable(last.families.iter().flatten().copied().collect());
            if told.as_ref() != Some(&addresses) {
                if self.resolved.send((self.name.clone(), addresses.clone())).await.is_err() {
                    return;
                }
                told = Some(addresses);
            }
            // Never later than the answer holds.
            tokio::time::sleep(jittered(delay * 9 / 10)).await;
        }
    }

    fn count(&mut self, found: &Found) {
        let is_there = found.parts.iter().any(|part| matches!(part, Part::Addresses(..)));
        match cause(found) {
            Some(cause) => self.series.failed(cause),
            None if is_there => self.series.found(),
            None => self.series.is_not_there(),
        }
    }
}

/// Why a look-up failed, of either family.
fn cause(found: &Found) -> Option<&String> {
    found.parts.iter().find_map(|part| match part {
        Part::Failed(error) => Some(error),
        _ => None,
    })
}

/// What holds of one name.
#[derive(Default)]
struct Last {
    families: [Vec<IpAddr>; 2],
    /// Of the names that it may mean the one whose addresses these are.
    meant: Option<Name>,
    /// In a row, of either family.
    failures: u32,
    /// Since when it is said that there is nothing.
    gone_since: Option<Instant>,
}

impl Last {
    fn held(&self) -> Held {
        let is_known = self.families.iter().any(|family| !family.is_empty());
        Held { meant: self.meant.clone().filter(|_| is_known), passes: self.failures >= PATIENT }
    }

    /// When to ask again.
    fn take(&mut self, name: &str, found: Found) -> Duration {
        let was_failing = self.failures > 0;
        let cause = cause(&found).cloned();
        let Found { parts, meant } = found;
        let is_there = parts.iter().any(|part| matches!(part, Part::Addresses(..)));
        let mut delay = LONGEST;
        match cause {
            None => self.failures = 0,
            Some(_) => {
                delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_DELAY);
                self.failures += 1;
            }
        }
        let is_gone = !is_there && self.failures == 0;
        let is_news = is_gone && self.gone_since.is_none();
        let is_forgotten = is_gone && self.gone_since.get_or_insert_with(Instant::now).elapsed() >= FORGOTTEN;
        if is_there && self.gone_since.take().is_some() {
            tracing::info!(name, "the name of a backend is there again");
        }
        if is_there {
            if self.meant != meant {
                // What is known is another name's.
                self.families = Default::default();
            }
            self.meant = meant;
        }
        for (family, part) in self.families.iter_mut().zip(parts) {
            match part {
                Part::Addresses(addresses, holds) => {
                    *family = addresses;
                    delay = delay.min(holds);
                }
                Part::Nothing(holds) => {
                    if is_there || is_forgotten {
                        family.clear();
                    }
                    // One family of a name that is there may come at any time, but not so soon.
                    if !is_there {
                        delay = delay.min(holds);
                    }
                }
                Part::Failed(_) => {}
            }
        }
        let known = self.families.iter().map(Vec::len).sum::<usize>();
        match cause {
            Some(cause) if !was_failing => {
                tracing::warn!(name, cause, known, "the name of a backend does not resolve");
            }
            None if was_failing => tracing::info!(name, "the name of a backend resolves again"),
            _ if is_news => {
                tracing::warn!(
                    name,
                    known,
                    "the name of a backend is not there; what is known stays for 5 min"
                );
            }
            _ => {}
        }
        delay
    }
}

fn endpoints(hosts: &[(Address, u16)], known: &Known) -> EndpointSet {
    let mut endpoints = Vec::new();
    for (address, port) in hosts {
        let addresses = match address {
            Address::Ip(ip) => std::slice::from_ref(ip),
            Address::Name(name) => known.get(name).map_or(&[][..], Vec::as_slice),
        };
        let name = match address {
            Address::Ip(_) => None,
            // The dot behind an absolute name is for who looks it up; servers and certificates have none.
            Address::Name(name) => Some(name.strip_suffix('.').map_or_else(|| name.clone(), Arc::from)),
        };
        endpoints
            .extend(addresses.iter().map(|ip| Endpoint { address: (*ip, *port).into(), name: name.clone() }));
    }
    endpoints.sort_unstable();
    endpoints.dedup();
    let is_asked = |address: &Address| match address {
        Address::Ip(_) => true,
        Address::Name(name) => known.contains_key(name),
    };
    let known = !endpoints.is_empty() || hosts.iter().all(|(address, _)| is_asked(address));
    EndpointSet { endpoints, near: Vec::new(), known }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

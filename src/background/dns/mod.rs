//! Host names of backends, resolved again and again while the installed route map has them: as often as their records
//! say, beside the requests.
//!
//! Invariants: what was known goes on being served while no server answers, and for five minutes after they say that the
//! name is gone; a family of addresses that cannot be asked for is not lost because the other was there.

mod resolver;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::resolver::{LONGEST, Part, Parts, usable};
use super::client::jittered;
use crate::route_map::{Address, Endpoint, EndpointSet};
use crate::values::BackendId;

pub use self::resolver::{Resolver, ResolverSettings};

/// After a look-up that failed; doubled with each.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(15);
/// A name that is said to be gone for so long is.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// Look-ups at once.
const AT_ONCE: usize = 64;

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
type Answer = Pin<Box<dyn Future<Output = Parts> + Send>>;
type LookUp = Arc<dyn Fn(Arc<str>) -> Answer + Send + Sync>;

struct Task<P> {
    known: Arc<Mutex<Known>>,
    wanted: watch::Receiver<Wanted>,
    look_up: LookUp,
    permits: Arc<Semaphore>,
    publish: P,
    published: BTreeMap<BackendId, EndpointSet>,
}

impl Names {
    /// Starts on the runtime of the caller. `publish` is told the endpoints of a backend whenever they change; it must
    /// not block.
    pub fn start(resolver: Resolver, publish: impl Fn(&BackendId, EndpointSet) + Send + 'static) -> Self {
        let look_up = move |name: Arc<str>| -> Answer {
            let resolver = resolver.clone();
            Box::pin(async move { resolver.look_up(&name).await })
        };
        Self::with(Arc::new(look_up), publish)
    }

    fn with(look_up: LookUp, publish: impl Fn(&BackendId, EndpointSet) + Send + 'static) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let known = Arc::<Mutex<Known>>::default();
        let task = Task {
            known: known.clone(),
            wanted: receiver,
            look_up,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
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
        let (resolved, mut news) = mpsc::channel(AT_ONCE);
        let mut watched = BTreeMap::<Arc<str>, tokio::task::AbortHandle>::new();
        // Owns the look-ups: they end with this task.
        let mut lookups = JoinSet::new();
        loop {
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let names = self.names();
                    watched.retain(|name, task| {
                        let stays = names.contains(name);
                        if !stays {
                            task.abort();
                        }
                        stays
                    });
                    lock(&self.known).retain(|name, _| names.contains(name));
                    for name in names {
                        watched.entry(name.clone()).or_insert_with(|| {
                            let (look_up, permits) = (self.look_up.clone(), self.permits.clone());
                            lookups.spawn(keep_resolving(name, look_up, permits, resolved.clone()))
                        });
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

    fn names(&self) -> BTreeSet<Arc<str>> {
        let wanted = self.wanted.borrow();
        let hosts = wanted.iter().flat_map(|(_, hosts)| hosts);
        hosts
            .filter_map(|(address, _)| match address {
                Address::Name(name) => Some(name.clone()),
                Address::Ip(_) => None,
            })
            .collect()
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

/// Tells the first answer, and each that differs from the one before.
async fn keep_resolving(
    name: Arc<str>,
    look_up: LookUp,
    permits: Arc<Semaphore>,
    resolved: mpsc::Sender<(Arc<str>, Vec<IpAddr>)>,
) {
    let (mut last, mut told) = (Last::default(), None);
    loop {
        let parts = match permits.acquire().await {
            Ok(_permit) => look_up(name.clone()).await,
            Err(_closed) => return,
        };
        let delay = last.take(&name, parts);
        let addresses = usable(last.families.iter().flatten().copied().collect());
        if told.as_ref() != Some(&addresses) {
            if resolved.send((name.clone(), addresses.clone())).await.is_err() {
                return;
            }
            told = Some(addresses);
        }
        // Never later than the answer holds.
        tokio::time::sleep(jittered(delay * 9 / 10)).await;
    }
}

/// What holds of one name.
#[derive(Default)]
struct Last {
    families: [Vec<IpAddr>; 2],
    /// In a row, of either family.
    failures: u32,
    /// Since when it is said that there is nothing.
    gone_since: Option<Instant>,
}

impl Last {
    /// When to ask again.
    fn take(&mut self, name: &str, parts: Parts) -> Duration {
        let was_failing = self.failures > 0;
        let cause = parts.iter().find_map(|part| match part {
            Part::Failed(error) => Some(error.clone()),
            _ => None,
        });
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
            Address::Name(name) => Some(name),
        };
        endpoints.extend(
            addresses.iter().map(|ip| Endpoint { address: (*ip, *port).into(), name: name.cloned() }),
        );
    }
    endpoints.sort_unstable();
    endpoints.dedup();
    let is_asked = |address: &Address| match address {
        Address::Ip(_) => true,
        Address::Name(name) => known.contains_key(name),
    };
    let known = !endpoints.is_empty() || hosts.iter().all(|(address, _)| is_asked(address));
    EndpointSet { endpoints, known }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Host names of backends, resolved again and again while the installed route map has them.
//!
//! Names go to the system's resolver (`getaddrinfo`: /etc/hosts, A and AAAA), every 5 s each, a few at a time, because a
//! look-up that hangs holds a thread. What was known goes on being served when a look-up fails.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::route_map::{Address, Endpoint, EndpointSet};
use crate::values::BackendId;

/// How long an answer is believed, and a failure.
const AGAIN: Duration = Duration::from_secs(5);
/// Look-ups at once.
const AT_ONCE: usize = 4;
/// So many addresses of one name are used.
const MAX_ADDRESSES: usize = 64;

/// The running resolver. It stops when the last of its handles is dropped.
#[derive(Clone, Debug)]
pub struct Names {
    known: Arc<Mutex<Known>>,
    wanted: watch::Sender<Wanted>,
}

type Hosts = Vec<(Address, u16)>;
type Wanted = Arc<Vec<(BackendId, Hosts)>>;
type Known = HashMap<Arc<str>, Vec<IpAddr>>;
type Lookup = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
type Resolver = Arc<dyn Fn(Arc<str>) -> Lookup + Send + Sync>;

struct Task<P> {
    known: Arc<Mutex<Known>>,
    wanted: watch::Receiver<Wanted>,
    resolver: Resolver,
    permits: Arc<Semaphore>,
    publish: P,
    published: BTreeMap<BackendId, EndpointSet>,
}

impl Names {
    /// Starts on the runtime of the caller. `publish` is told the endpoints of a backend whenever they change; it must
    /// not block.
    pub fn start(publish: impl Fn(&BackendId, EndpointSet) + Send + 'static) -> Self {
        Self::with(Arc::new(|name| Box::pin(system(name))), publish)
    }

    fn with(resolver: Resolver, publish: impl Fn(&BackendId, EndpointSet) + Send + 'static) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let known = Arc::<Mutex<Known>>::default();
        let task = Task {
            known: known.clone(),
            wanted: receiver,
            resolver,
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
                            let (resolver, permits) = (self.resolver.clone(), self.permits.clone());
                            lookups.spawn(keep_resolving(name, resolver, permits, resolved.clone()))
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

/// Tells each answer that differs from the one before.
async fn keep_resolving(
    name: Arc<str>,
    resolver: Resolver,
    permits: Arc<Semaphore>,
    resolved: mpsc::Sender<(Arc<str>, Vec<IpAddr>)>,
) {
    let (mut last, mut failing) = (Vec::new(), false);
    loop {
        let outcome = match permits.acquire().await {
            Ok(_permit) => resolver(name.clone()).await,
            Err(_closed) => return,
        };
        match outcome {
            Ok(addresses) if !addresses.is_empty() => {
                if std::mem::take(&mut failing) {
                    tracing::info!(name = &*name, "the name of a backend resolves again");
                }
                let addresses = tidy(addresses);
                if addresses != last {
                    last.clone_from(&addresses);
                    if resolved.send((name.clone(), addresses)).await.is_err() {
                        return;
                    }
                }
            }
            failed => {
                if !std::mem::replace(&mut failing, true) {
                    let cause =
                        failed.err().map_or_else(|| "it has no address".into(), |error| error.to_string());
                    let known = last.len();
                    tracing::warn!(name = &*name, cause, known, "the name of a backend does not resolve");
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn system(name: Arc<str>) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((&*name, 0)).await?.map(|address| address.ip()).collect())
}

/// The same addresses in any order are the same answer.
fn tidy(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    addresses
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
    EndpointSet { endpoints, known: true }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::values::ObjectName;

    /// A resolver whose answers the test sets, and what was published.
    struct World {
        answers: Arc<Mutex<HashMap<&'static str, Vec<IpAddr>>>>,
        asked: Arc<Mutex<Vec<String>>>,
        published: mpsc::UnboundedReceiver<(String, Vec<SocketAddr>)>,
        names: Names,
    }

    impl World {
        fn start() -> Self {
            let answers = Arc::<Mutex<HashMap<&'static str, Vec<IpAddr>>>>::default();
            let asked = Arc::<Mutex<Vec<String>>>::default();
            let (tell, published) = mpsc::unbounded_channel();
            let (book, list) = (answers.clone(), asked.clone());
            let resolver: Resolver = Arc::new(move |name: Arc<str>| {
                list.lock().expect("not poisoned").push(name.to_string());
                let answer = book.lock().expect("not poisoned").get(&*name).cloned();
                Box::pin(async move { answer.ok_or_else(|| io::Error::other("no such name")) })
            });
            let names = Names::with(resolver, move |backend, set| {
                let addresses = set.endpoints.iter().map(|endpoint| endpoint.address).collect();
                tell.send((backend.to_string(), addresses)).expect("the test listens");
            });
            Self { answers, asked, published, names }
        }

        fn answer(&self, name: &'static str, addresses: &[&str]) {
            let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
            self.answers.lock().expect("not poisoned").insert(name, addresses);
        }

        fn forget(&self, name: &str) {
            self.answers.lock().expect("not poisoned").remove(name);
        }

        async fn next(&mut self) -> (String, Vec<String>) {
            let next = tokio::time::timeout(Duration::from_secs(60), self.published.recv()).await;
            let (backend, addresses) = next.expect("published in time").expect("the task lives");
            (backend, addresses.iter().map(SocketAddr::to_string).collect())
        }

        /// Nothing is published while the clock passes several look-ups.
        async fn is_quiet(&mut self) {
            let next = tokio::time::timeout(4 * AGAIN, self.published.recv()).await;
            assert!(next.is_err(), "{next:?}");
        }
    }

    fn backend(name: &str) -> BackendId {
        BackendId::GatewayBackend(ObjectName::new("shop", name))
    }

    fn named(name: &str) -> (Address, u16) {
        (Address::Name(name.into()), 80)
    }

    fn told(addresses: &[&str]) -> (String, Vec<String>) {
        ("GatewayBackend/shop/pay".into(), addresses.iter().map(ToString::to_string).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_gives_all_its_addresses_and_follows_them() {
        let mut world = World::start();
        world.answer("pay.test", &["10.0.0.2", "2001:db8::1", "10.0.0.1", "10.0.0.2"]);
        world
            .names
            .wanted(vec![(backend("pay"), vec![named("pay.test"), (Address::Ip([10, 9, 9, 9].into()), 81)])]);
        assert_eq!(world.next().await, told(&["10.9.9.9:81"]), "an address needs no look-up");
        assert_eq!(
            world.next().await,
            told(&["10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:81", "[2001:db8::1]:80"])
        );
        world.answer("pay.test", &["10.0.0.1", "2001:db8::1", "10.0.0.2"]);
        world.is_quiet().await;
        world.answer("pay.test", &["10.0.0.3"]);
        assert_eq!(world.next().await, told(&["10.0.0.3:80", "10.9.9.9:81"]));
    }

    #[test]
    fn an_endpoint_knows_the_name_that_it_was_resolved_from() {
        let known = Known::from([("pay.test".into(), vec![[10, 0, 0, 1].into()])]);
        let hosts = [(Address::Name("pay.test".into()), 80), (Address::Ip([10, 0, 0, 1].into()), 81)];
        let set = endpoints(&hosts, &known);
        let names: Vec<_> = set.endpoints.iter().map(|endpoint| endpoint.name.as_deref()).collect();
        assert_eq!(names, [Some("pay.test"), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_good_answer_outlives_a_failure() {
        let mut world = World::start();
        world.answer("pay.test", &["10.0.0.1"]);
        world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
        assert_eq!(world.next().await, told(&[]));
        assert_eq!(world.next().await, told(&["10.0.0.1:80"]));
        world.forget("pay.test");
        world.is_quiet().await;
        world.answer("pay.test", &[]);
        world.is_quiet().await;
        world.answer("pay.test", &["10.0.0.2"]);
        assert_eq!(world.next().await, told(&["10.0.0.2:80"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_map_is_told_what_is_known_and_names_that_left_are_not_asked_for() {
        let mut world = World::start();
        world.answer("pay.test", &["10.0.0.1"]);
        world.names.wanted(vec![(backend("pay"), vec![named("pay.test"), named("old.test")])]);
        assert_eq!(world.next().await, told(&[]));
        assert_eq!(world.next().await, told(&["10.0.0.1:80"]));
        assert_eq!(
            world.names.endpoints(&[named("pay.test")]).endpoints.len(),
            1,
            "known before it is installed"
        );
        world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
        assert_eq!(world.next().await, told(&["10.0.0.1:80"]), "at once, for the backend may be new");
        world.asked.lock().expect("not poisoned").clear();
        world.is_quiet().await;
        let asked = world.asked.lock().expect("not poisoned").clone();
        assert!(asked.len() >= 3 && asked.iter().all(|name| name == "pay.test"), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_its_handle() {
        let mut world = World::start();
        world.names.wanted(vec![(backend("pay"), vec![named("pay.test")])]);
        assert_eq!(world.next().await, told(&[]));
        let World { mut published, names, .. } = world;
        drop(names);
        assert_eq!(published.recv().await, None, "the task and its callback are gone");
    }

    #[tokio::test]
    async fn the_system_resolves_localhost_to_loopback() {
        let addresses = system("localhost".into()).await.expect("resolves");
        assert!(!addresses.is_empty() && addresses.iter().all(IpAddr::is_loopback), "{addresses:?}");
    }
}

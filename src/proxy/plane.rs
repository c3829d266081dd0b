//! The data plane as the process sees it: bound listeners, workers, and the newest route map.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::crowd::{Crowd, Pace};
use super::keep::{Fetches, Kept};
use super::live::{Linker, Live};
use super::worker::{Desk, Ear, Shared};
use super::{Addresses, Settings, listener, tls, worker};
use crate::cache::{Forwarders, Purge};
use crate::filters::{Keep as _, Row, Store};
use crate::lifecycle::DrainSignal;
use crate::route_map::{EndpointSet, RouteMap};
use crate::telemetry::{AccessLog, Telemetry};
use crate::upstream::{Backend, Guard, Located, Loopback};
use crate::values::BackendId;

/// So many connections may be on their way to another worker.
const INBOX: usize = 256;

/// Handle of the running data plane. Cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct DataPlane(Arc<Running>);

struct Running {
    addresses: Addresses,
    shared: Arc<Shared>,
    linker: Mutex<Linker>,
    /// Backends whose endpoints are to be asked how they are, as they come; and until who asks takes them.
    checked: mpsc::UnboundedSender<Weak<Backend>>,
    checks: Mutex<Option<mpsc::UnboundedReceiver<Weak<Backend>>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl DataPlane {
    /// Binds all sockets (one `SO_REUSEPORT` socket a worker and address) and starts the workers, which answer 503
    /// until the first map is installed.
    /// `members` are the rows that the maps' filters name.
    ///
    /// # Errors
    /// An address cannot be bound, or a thread cannot be started.
    pub fn start(
        settings: Settings,
        members: &'static [Row],
        telemetry: Telemetry,
        log: AccessLog,
        drain: DrainSignal,
    ) -> io::Result<Self> {
        let workers = settings.workers.max(1);
        let mut addresses = Addresses::default();
        let mut ears: Vec<Vec<Ear>> = (0..workers).map(|_| Vec::new()).collect();
        for (wanted, bound, tls) in
            [(&settings.http, &mut addresses.http, false), (&settings.https, &mut addresses.https, true)]
        {
            for address in wanted {
                let (address, sockets) = listener::bind(*address, workers).map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
                })?;
                bound.push(address);
                ears.iter_mut().zip(sockets).for_each(|(ears, socket)| ears.push(Ear { socket, tls }));
            }
        }
        let live = Arc::new(ArcSwap::from_pointee(Live::empty()));
        let (desks, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| desk()).unzip();
        let own_port = addresses.https.first().filter(|_| settings.own_ports).map(SocketAddr::port);
        let https_port = settings.public_https_port.or(own_port);
        let loopback = if settings.loopback_backends { Loopback::Allowed } else { Loopback::Refused };
        let forwarders = if settings.trusted_hops > 0 { Forwarders::Trusted } else { Forwarders::Nobody };
        let keep = Kept::new(settings.cache_memory, forwarders);
        let memory = keep.shared_memory();
        telemetry.measures_cache(move || [memory.kept(), memory.coming()]);
        let shared = Arc::new(Shared {
            guard: Guard::of(loopback, settings.egress.clone()),
            crowd: settings.limits.connections_per_client.map(|most| Arc::new(Crowd::new(most))),
            pace: settings.limits.accepts_per_second.map(Pace::new),
            settings: Arc::new(settings),
            https_port,
            telemetry,
            log,
            drain,
            laps: Default::default(),
            tls: tls::Configurations::new(&live).map_err(io::Error::other)?,
            live,
            generation: Default::default(),
            keep,
            desks,
        });
        let threads = ears.into_iter().zip(inboxes).enumerate().map(|(index, (ears, inbox))| {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{index}"));
            thread.spawn(move || worker::run(index, shared, ears, inbox))
        });
        let threads = Mutex::new(threads.collect::<io::Result<_>>()?);
        let linker = Mutex::new(Linker::new(members));
        let (checked, checks) = mpsc::unbounded_channel();
        let checks = Mutex::new(Some(checks));
        Ok(Self(Arc::new(Running { addresses, shared, linker, checked, checks, threads })))
    }

    /// What filters want fetched beside the requests; for the one who fetches it, once.
    pub fn fetches(&self) -> Option<Fetches> {
        self.0.shared.keep.fetches()
    }

    /// Backends whose endpoints are to be asked how they are; for the one who asks, once. As many come as maps name.
    pub fn checks(&self) -> Option<mpsc::UnboundedReceiver<Weak<Backend>>> {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where replicas count together; somebody has to answer there.
    pub fn store(&self) -> Arc<Store> {
        self.0.shared.keep.store()
    }

    /// The guard of all connections to backends, for whoever else connects to what routes name.
    pub fn guard(&self) -> Guard {
        self.0.shared.guard.clone()
    }

    /// Kept answers that are not used from now on.
    pub fn purge(&self, purge: Purge) {
        self.0.shared.keep.memory().purge(purge);
    }

    /// Addresses that clients write to from now on, for who tells the other replicas; once.
    pub fn writes(&self) -> Option<mpsc::Receiver<Box<[u8]>>> {
        self.0.shared.keep.memory().writes()
    }

    pub fn addresses(&self) -> &Addresses {
        &self.0.addresses
    }

    /// Serves `map` from the next request on; state of what did not change is kept, no connection is closed. Returns
    /// when every worker will use it for requests that it accepts from now on. `endpoints` are those of the backends
    /// that are new in `map` or whose plan changed, so that no request finds them empty; the others keep theirs. The
    /// result is what `installs` says from then on.
    pub fn install(&self, map: Arc<RouteMap>, endpoints: BTreeMap<BackendId, EndpointSet>) -> u64 {
        let shared = &self.0.shared;
        // What takes a while is done before the lock is taken: endpoints that change meanwhile do not wait for it.
        let known = shared.live.load_full();
        let located = endpoints.into_iter().filter_map(|(id, set)| {
            let located =
                Located::new(set, map.backends.get(&id)?, known.backend_by_id(&id).map(|known| &**known));
            Some((id, located))
        });
        let located = located.collect();
        let mut linker = self.0.linker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = shared.live.load_full();
        let live = linker.link(&before, &map, located, &shared.telemetry, &shared.keep);
        for backend in live.backends_new_since(&before).filter(|backend| backend.check().is_some()) {
            // Without a listener, as in a test of something else, nobody asks.
            let _ = self.0.checked.send(Arc::downgrade(backend));
        }
        for backend in before.backends_new_since(&live) {
            backend.supersede();
        }
        shared.live.store(Arc::new(live));
        // Workers compare this number with each request.
        let installs = shared.generation.fetch_add(1, Ordering::Release) + 1;
        shared.keep.begin();
        shared.keep.sweep(Instant::now());
        installs
    }

    /// How many maps were installed.
    pub fn installs(&self) -> u64 {
        self.0.shared.generation.load(Ordering::Acquire)
    }

    /// Endpoints of a backend of the installed map; unknown backends are ignored.
    pub fn set_endpoints(&self, backend: &BackendId, endpoints: EndpointSet) {
        let located = match self.backend(backend) {
            Some(known) => Located::new(endpoints, &known.plan, Some(&known)),
            // An install that brings it may be under way.
            None => Located::from(endpoints),
        };
        // Under the lock, so that an install at the same time does not lose them.
        let _linker = self.0.linker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(backend) = self.0.shared.live.load().backend_by_id(backend) {
            backend.locate(located);
        }
    }

    /// A backend of the installed map, for who asks it beside the requests.
    pub fn backend(&self, id: &BackendId) -> Option<Arc<Backend>> {
        self.0.shared.live.load().backend_by_id(id).cloned()
    }

    /// All of them, in no order.
    pub fn backends(&self) -> Vec<Arc<Backend>> {
        self.0.shared.live.load().backends().cloned().collect()
    }

    /// How many connections each worker has.
    pub fn connections(&self) -> Vec<usize> {
        self.0.shared.desks.iter().map(|desk| desk.connections.load(Ordering::Relaxed)).collect()
    }

    /// Waits until all workers have ended: after drain, or after its deadline. Blocks the calling thread.
    pub fn join(self) {
        let threads = std::mem::take(&mut *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

fn desk() -> (Desk, mpsc::Receiver<listener::Handed>) {
    let (sender, inbox) = mpsc::channel(INBOX);
    (Desk { connections: Default::default(), inbox: sender }, inbox)
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane").field("addresses", &self.0.addresses).finish_non_exhaustive()
    }
}

//! From what a source says to what the proxy serves: apply → hold off → compile → install → publish.
//!
//! Invariants: the first map is installed only after the source is synced; one compile runs at a time, on its own
//! thread of low priority; endpoints take a second path that waits for no compile; what was published is served.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::announce::Announcer;
use super::egress::Egress;
use super::programmed::programmed;
use crate::background::{Names, Resolver};
use crate::compile::{self, Compiled, Memo, Options, Published};
use crate::lifecycle::Guard;
use crate::proxy::DataPlane;
use crate::route_map::{Address, BackendPlan, BackendTarget, EndpointSet, RouteMap};
use crate::snapshot::{Change, Kind, Object, Snapshot, Update};
use crate::telemetry::Telemetry;
use crate::values::{BackendId, ObjectName};

/// Changes come in flocks: wait until none came for this long …
const QUIET: Duration = Duration::from_millis(4);
/// … but never longer than this.
const HELD_OFF_AT_MOST: Duration = Duration::from_millis(40);

/// What reconcile needs, and who waits for it.
pub struct Reconcile {
    pub updates: mpsc::Receiver<Update>,
    pub options: Options,
    /// The zone that this replica is in.
    pub zone: Option<Arc<str>>,
    pub plane: DataPlane,
    pub telemetry: Telemetry,
    pub published: watch::Sender<Option<Arc<Published>>>,
    /// When the last map was installed: `Published` itself knows no clock.
    pub installed: watch::Sender<Option<Instant>>,
    pub resolver: Resolver,
    pub egress: Egress,
    pub waits_for_lists: Guard,
    pub waits_for_map: Guard,
}

/// What is being compiled.
struct Job {
    world: Arc<Snapshot>,
    /// When the oldest change in it came.
    since: Instant,
}

/// A job that was done: installed, or `None` when the compiler failed and the map before goes on serving.
struct Done {
    world: Arc<Snapshot>,
    compiled: Option<(u64, Compiled)>,
}

struct State {
    world: Snapshot,
    plane: DataPlane,
    names: Names,
    zone: Option<Arc<str>>,
    synced: bool,
    /// When the oldest and the newest change came that no compile has seen.
    dirty: Option<(Instant, Instant)>,
    compiling: bool,
    /// The backends of the installed map that follow a Service.
    followers: BTreeMap<ObjectName, Vec<(BackendId, u16)>>,
    /// Services whose endpoints changed while a compile ran: a map that is installed with older ones is put right.
    changed_meanwhile: BTreeSet<ObjectName>,
}

/// Runs until the source has ended and its last word is installed.
pub async fn run(reconcile: Reconcile) -> std::io::Result<()> {
    let Reconcile { mut updates, options, zone, plane, telemetry, published, installed, mut egress, .. } =
        reconcile;
    let mut waits_for = (Some(reconcile.waits_for_lists), Some(reconcile.waits_for_map));
    let (jobs, waiting) = std::sync::mpsc::channel();
    let (finished, mut done) = mpsc::channel(1);
    let told = plane.clone();
    let names = Names::start(reconcile.resolver, telemetry.clone(), move |backend, endpoints| {
        told.set_endpoints(backend, endpoints);
    });
    let compiler = Compiler {
        names: names.clone(),
        options,
        zone: zone.clone(),
        plane: plane.clone(),
        telemetry: telemetry.clone(),
        installed: Arc::default(),
        memo: Memo::default(),
    };
    std::thread::Builder::new().name("compile".into()).spawn(move || compiler.run(&waiting, &finished))?;

    let mut announcer = Announcer::default();
    let mut state = State::new(plane, names, zone);
    let mut open = true;
    egress.tell(&state.world);
    while open || state.compiling || state.dirty.is_some() {
        let start = state.start_at();
        tokio::select! {
            biased;
            Some(job) = done.recv() => {
                if let Some(news) = state.finish(job) {
                    announcer.tell(&news, jiff::Timestamp::now().as_second());
                    published.send_replace(Some(Arc::new(news)));
                    installed.send_replace(Some(Instant::now()));
                    waits_for.1 = None;
                }
            }
            update = updates.recv(), if open => match update {
                Some(Update::Changes(changes)) => {
                    if state.apply(changes, |service| egress.follows(service)) {
                        egress.tell(&state.world);
                    }
                }
                Some(Update::Synced) => {
                    state.sync();
                    telemetry.control().synced();
                    waits_for.0 = None;
                }
                None => open = false,
            },
            () = egress.news() => egress.tell(&state.world),
            () = sleep_until(start), if start.is_some() => {
                // The compile thread ends only after this sender.
                let _ = jobs.send(state.start());
            }
        }
        if !open && !state.synced {
            break;
        }
    }
    Ok(())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl State {
    fn new(plane: DataPlane, names: Names, zone: Option<Arc<str>>) -> Self {
        Self {
            world: Snapshot::default(),
            names,
            zone,
            plane,
            synced: false,
            dirty: None,
            compiling: false,
            followers: BTreeMap::new(),
            changed_meanwhile: BTreeSet::new(),
        }
    }

    /// Whether endpoints changed of a Service that is `followed`.
    fn apply(&mut self, changes: Vec<Change>, followed: impl Fn(&ObjectName) -> bool) -> bool {
        let mut services = BTreeSet::new();
        let (mut routes_changed, mut followed_changed) = (false, false);
        for change in changes {
            let touched = self.touches(&change);
            let listed = matches!(change, Change::Listed { kind: Kind::EndpointSlice | Kind::Service, .. });
            if self.world.apply(change) {
                followed_changed |= listed || touched.services.iter().any(&followed);
                routes_changed |= touched.routes;
                services.extend(touched.services);
            }
        }
        if routes_changed {
            let now = Instant::now();
            self.dirty = Some((self.dirty.map_or(now, |(oldest, _)| oldest), now));
        }
        for service in services {
            self.refresh(&service);
            if self.compiling {
                self.changed_meanwhile.insert(service);
            }
        }
        followed_changed
    }

    fn sync(&mut self) {
        self.synced = true;
        let now = Instant::now();
        self.dirty.get_or_insert((now, now));
    }

    /// When the next compile may begin.
    fn start_at(&self) -> Option<Instant> {
        let (oldest, newest) = self.dirty.filter(|_| self.synced && !self.compiling)?;
        Some((newest + QUIET).min(oldest + HELD_OFF_AT_MOST))
    }

    fn start(&mut self) -> Job {
        let since = self.dirty.take().map_or_else(Instant::now, |(oldest, _)| oldest);
        self.compiling = true;
        Job { world: Arc::new(self.world.clone()), since }
    }

    fn finish(&mut self, done: Done) -> Option<Published> {
        self.compiling = false;
        let meanwhile = std::mem::take(&mut self.changed_meanwhile);
        let (sequence, compiled) = done.compiled?;
        self.followers = followers(&compiled.map);
        self.names.wanted(with_hosts(&compiled.map));
        for service in &meanwhile {
            self.refresh(service);
        }
        Some(Published { sequence, compiled, world: done.world })
    }

    /// The second path: no route changes, only where requests go.
    fn refresh(&self, service: &ObjectName) {
        for (backend, port) in self.followers.get(service).into_iter().flatten() {
            self.plane.set_endpoints(
                backend,
                compile::endpoints(&self.world, service, *port, self.zone.as_deref()),
            );
        }
    }

    fn touches(&self, change: &Change) -> Touched {
        let mut services = Vec::new();
        let routes = match change {
            Change::Put(Object::EndpointSlice(slice)) => {
                services.push(ObjectName::new(Arc::clone(&slice.name.namespace), Arc::clone(&slice.service)));
                services.extend(self.world.service_of_slice(&slice.name));
                false
            }
            Change::Gone(Kind::EndpointSlice, name) => {
                services.extend(self.world.service_of_slice(name));
                false
            }
            Change::Listed { kind: Kind::EndpointSlice, .. } => {
                services.extend(self.followers.keys().cloned());
                false
            }
            // A port of the Service may have got another number or name.
            Change::Put(Object::Service(service)) => {
                services.push(service.name.clone());
                true
            }
            Change::Gone(Kind::Service, name) => {
                services.push(name.clone());
                true
            }
            Change::Listed { kind: Kind::Service, .. } => {
                services.extend(self.followers.keys().cloned());
                true
            }
            _ => true,
        };
        Touched { routes, services }
    }
}

struct Touched {
    /// Whether a compile could give something else.
    routes: bool,
    /// Whose endpoints may be others.
    services: Vec<ObjectName>,
}

fn followers(map: &RouteMap) -> BTreeMap<ObjectName, Vec<(BackendId, u16)>> {
    let mut followers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, plan) in &map.backends {
        if let BackendTarget::Service { service, port } = &plan.target {
            followers.entry(service.clone()).or_default().push((id.clone(), *port));
        }
    }
    followers
}

fn with_hosts(map: &RouteMap) -> Vec<(BackendId, Vec<(Address, u16)>)> {
    let hosts = |plan: &BackendPlan| match &plan.target {
        BackendTarget::Hosts(hosts) => Some(hosts.clone()),
        BackendTarget::Service { .. } => None,
    };
    map.backends.iter().filter_map(|(id, plan)| Some((id.clone(), hosts(plan)?))).collect()
}

/// Where a backend's requests can go as far as is known: names may be resolved later.
fn first_endpoints(
    world: &Snapshot,
    names: &Names,
    target: &BackendTarget,
    zone: Option<&str>,
) -> EndpointSet {
    match target {
        BackendTarget::Service { service, port } => compile::endpoints(world, service, *port, zone),
        BackendTarget::Hosts(hosts) => names.endpoints(hosts),
    }
}

/// The thread that compiles and installs, so that neither holds up the control runtime.
struct Compiler {
    names: Names,
    options: Options,
    zone: Option<Arc<str>>,
    plane: DataPlane,
    telemetry: Telemetry,
    installed: Arc<RouteMap>,
    memo: Memo,
}

impl Compiler {
    fn run(mut self, jobs: &std::sync::mpsc::Receiver<Job>, finished: &mpsc::Sender<Done>) {
        // Requests come first. A thread's own nice value, on Linux; without it everything works the same.
        let _ = rustix::process::nice(10);
        for job in jobs {
            let compiled = self.compile(&job.world);
            if compiled.is_some() {
                self.telemetry.control().propagated(job.since.elapsed());
                let (counts, certificates) = programmed(&self.installed);
                self.telemetry.control().installed(counts, certificates);
            }
            if finished.blocking_send(Done { world: job.world, compiled }).is_err() {
                return;
            }
        }
    }

    /// The number of the install, and what was installed.
    fn compile(&mut self, world: &Snapshot) -> Option<(u64, Compiled)> {
        let memo = std::mem::take(&mut self.memo);
        let began = Instant::now();
        // `compile` is total, and its tests hold it to that. Should it panic all the same, the world goes on being
        // served as it was, and the next change gets another try.
        let result = catch_unwind(AssertUnwindSafe(|| compile::compile(world, &self.options, memo)));
        let Ok((compiled, memo)) = result else {
            tracing::error!("the compiler failed on this configuration; the one before goes on being served");
            return None;
        };
        self.telemetry.control().compiled(began.elapsed());
        self.memo = memo;
        Some((self.install(world, &compiled.map), compiled))
    }

    fn install(&mut self, world: &Snapshot, map: &Arc<RouteMap>) -> u64 {
        let endpoints = map
            .backends
            .iter()
            .filter(|(id, plan)| self.installed.backends.get(*id) != Some(*plan))
            .map(|(id, plan)| {
                (id.clone(), first_endpoints(world, &self.names, &plan.target, self.zone.as_deref()))
            })
            .collect();
        self.installed = Arc::clone(map);
        self.plane.install(Arc::clone(map), endpoints)
    }
}

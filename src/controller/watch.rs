//! The API server's watches → [`Update`]s. One watch a kind, or a kind and namespace; one task gathers what they hear.
//!
//! Invariants: a list takes effect as a whole and only when it is complete, so that an error never empties anything;
//! `Synced` is told once, after every first list; a watch that fails is tried again for ever and stops no other.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::kinds::{Each, Watch, Watched, api, each};
use super::pulse::Pulse;
use crate::snapshot::{Change, Failure, Kind, Object, Update};
use crate::telemetry::Telemetry;
use crate::values::ObjectName;

/// What the watches have heard and nobody has gathered yet; then they wait.
const WAITING: usize = 1_024;
/// Changes that are passed on at once.
const BATCH: usize = 1_000;
/// After the first failure; doubled with each, to a bound that keeps the time to be in step again under 5 s.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// Failures so far apart do not add up.
const CALM: Duration = Duration::from_secs(30);
/// How often a kind that is not installed is looked for.
const ABSENT: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };
/// The server ends a watch after so many seconds and sends a bookmark before; a connection silent for longer is dead.
const WATCH_SECONDS: u32 = 90;
/// A watch that goes on failing is logged so often.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// One watch.
type Source = (Kind, Option<Arc<str>>);

/// A watch, or the gatherer, to be spawned.
pub type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

enum Heard {
    Put(Object),
    Gone(ObjectName),
    Failed(Failure),
    Listed { objects: Vec<Object>, failures: Vec<Failure> },
}

/// All watches and the gatherer, as futures to be spawned. They end when nobody takes the updates any more.
pub fn watches(
    client: &Client,
    namespaces: &[String],
    telemetry: &Telemetry,
    pulse: &Pulse,
    updates: mpsc::Sender<Update>,
) -> Vec<Task> {
    let (heard, receiver) = mpsc::channel(WAITING);
    let mut start = Start { client, telemetry, pulse, heard, tasks: Vec::new(), sources: BTreeSet::new() };
    each(namespaces, &mut start);
    let Start { mut tasks, sources, .. } = start;
    tasks.push(Box::pin(gather(receiver, sources, pulse.clone(), updates)));
    tasks
}

struct Start<'a> {
    client: &'a Client,
    telemetry: &'a Telemetry,
    pulse: &'a Pulse,
    heard: mpsc::Sender<(Source, Heard)>,
    tasks: Vec<Task>,
    sources: BTreeSet<Source>,
}

impl Each for Start<'_> {
    fn kind<W: Watch>(&mut self, namespace: Option<&Arc<str>>) {
        let source = (W::KIND, namespace.cloned());
        self.sources.insert(source.clone());
        let watch = One {
            source,
            telemetry: self.telemetry.clone(),
            pulse: self.pulse.clone(),
            heard: self.heard.clone(),
        };
        self.tasks.push(Box::pin(watch.run(api::<W>(self.client, namespace))));
    }
}

struct One {
    source: Source,
    telemetry: Telemetry,
    pulse: Pulse,
    heard: mpsc::Sender<(Source, Heard)>,
}

/// Why a watch is begun anew.
enum End {
    /// The kind is not installed.
    Absent,
    /// Nobody listens.
    Closed,
}

impl One {
    async fn run<W: Watch>(self, api: Api<Watched<W>>) {
        loop {
            match self.follow(&api).await {
                End::Closed => return,
                End::Absent => {
                    let nothing = Heard::Listed { objects: Vec::new(), failures: Vec::new() };
                    if self.tell(nothing).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(ABSENT).await;
                }
            }
        }
    }

    async fn follow<W: Watch>(&self, api: &Api<Watched<W>>) -> End {
        let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
        config.field_selector = W::FIELDS.map(str::to_owned);
        let mut stream = pin!(watcher::watcher(api.clone(), config));
        let mut list = (Vec::new(), Vec::new());
        let mut trouble = Trouble::default();
        while let Some(event) = stream.next().await {
            let heard = match event {
                Ok(Event::Init) => {
                    list = (Vec::new(), Vec::new());
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    match object.object {
                        Ok(Some(object)) => list.0.push(object),
                        Ok(None) => {}
                        Err(failure) => list.1.push(failure),
                    }
                    continue;
                }
                Ok(Event::InitDone) => {
                    let (objects, failures) = std::mem::take(&mut list);
                    tracing::debug!(kind = W::PLURAL, objects = objects.len(), "listed");
                    Heard::Listed { objects, failures }
                }
                Ok(Event::Apply(object)) => match (object.name(), object.object) {
                    (_, Ok(Some(object))) => Heard::Put(object),
                    (Some(name), Ok(None)) => Heard::Gone(name),
                    (None, Ok(None)) => continue,
                    (_, Err(failure)) => Heard::Failed(failure),
                },
                Ok(Event::Delete(object)) => match object.name() {
                    Some(name) => Heard::Gone(name),
                    None => continue,
                },
                Err(error) => {
                    if W::OPTIONAL && is_absent(&error) {
                        tracing::debug!(kind = W::PLURAL, "not installed");
                        return End::Absent;
                    }
                    self.telemetry.control().watch_error(W::PLURAL);
                    self.pulse.trouble();
                    let delay = trouble.next(Instant::now());
                    if trouble.is_worth_a_line(Instant::now()) {
                        let namespace = self.source.1.as_deref();
                        tracing::warn!(
                            kind = W::PLURAL,
                            namespace,
                            %error,
                            hint = hint(&error),
                            "a watch failed; it is tried again, what is known stays"
                        );
                    }
                    tokio::time::sleep(delay).await;
                    continue;
                }
            };
            trouble.over(W::PLURAL);
            if self.tell(heard).await.is_err() {
                return End::Closed;
            }
        }
        End::Closed
    }

    async fn tell(&self, heard: Heard) -> Result<(), ()> {
        self.heard.send((self.source.clone(), heard)).await.map_err(|_| ())
    }
}

/// The failures of one watch in a row.
#[derive(Default)]
struct Trouble {
    delay: Option<Duration>,
    last: Option<Instant>,
    logged: Option<Instant>,
}

impl Trouble {
    fn next(&mut self, now: Instant) -> Duration {
        let calm = self.last.is_none_or(|last| now.duration_since(last) > CALM);
        let delay = match self.delay {
            Some(delay) if !calm => (delay * 2).min(LONGEST_DELAY),
            _ => FIRST_DELAY,
        };
        self.delay = Some(delay);
        self.last = Some(now);
        delay.mul_f64(jitter())
    }

    fn is_worth_a_line(&mut self, now: Instant) -> bool {
        let due = self.logged.is_none_or(|logged| now.duration_since(logged) > LOG_EVERY);
        if due {
            self.logged = Some(now);
        }
        due
    }

    fn over(&mut self, kind: &'static str) {
        if self.logged.take().is_some() {
            tracing::info!(kind, "the watch is back");
        }
        self.delay = None;
    }
}

/// Between 0.75 and 1.25, so that replicas do not come back in step.
fn jitter() -> f64 {
    let random = super::random();
    0.75 + f64::from(u32::try_from(random >> 32).unwrap_or_default()) / f64::from(u32::MAX) / 2.0
}

/// The status of the API's answer.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn is_absent(error: &watcher::Error) -> bool {
    code(error) == Some(404)
}

/// What to do about it, where that is known.
fn hint(error: &watcher::Error) -> Option<&'static str> {
    match code(error)? {
        403 => Some("the service account may not list and watch this kind; see the chart's rbac"),
        404 => Some("the kind is not installed; apply the CRDs"),
        _ => None,
    }
}

/// Puts together what was heard at once, and keeps the failures of all watches.
async fn gather(
    mut heard: mpsc::Receiver<(Source, Heard)>,
    mut unlisted: BTreeSet<Source>,
    pulse: Pulse,
    updates: mpsc::Sender<Update>,
) {
    let mut failures = Failures::default();
    let mut synced = false;
    let mut batch = Vec::new();
    while heard.recv_many(&mut batch, BATCH).await > 0 {
        let before = failures.clone();
        let mut changes = Vec::with_capacity(batch.len());
        for (source, heard) in batch.drain(..) {
            if matches!(heard, Heard::Listed { .. }) {
                unlisted.remove(&source);
            }
            failures.hear(&source, &heard);
            changes.extend(change(&source, heard));
        }
        if failures != before {
            changes.push(Change::Failures(failures.all()));
        }
        if updates.send(Update::Changes(changes)).await.is_err() {
            return;
        }
        if !synced && unlisted.is_empty() {
            synced = true;
            pulse.listed();
            if updates.send(Update::Synced).await.is_err() {
                return;
            }
        }
    }
}

fn change((kind, namespace): &Source, heard: Heard) -> Option<Change> {
    match heard {
        Heard::Put(object) => Some(Change::Put(object)),
        Heard::Gone(name) => Some(Change::Gone(*kind, name)),
        Heard::Failed(_) => None,
        Heard::Listed { objects, .. } => {
            Some(Change::Listed { kind: *kind, namespace: namespace.clone(), objects })
        }
    }
}

/// Objects that cannot be read, by watch and name. What was read of one before stays.
#[derive(Clone, Default, PartialEq)]
struct Failures(BTreeMap<Source, BTreeMap<Option<ObjectName>, Failure>>);

impl Failures {
    fn hear(&mut self, source: &Source, heard: &Heard) {
        let of_source = self.0.entry(source.clone()).or_default();
        match heard {
            Heard::Put(object) => {
                if !of_source.is_empty() {
                    of_source.remove(&Some(name(object)));
                }
            }
            Heard::Gone(name) => {
                of_source.remove(&Some(name.clone()));
            }
            Heard::Failed(failure) => {
                of_source.insert(failure.name.clone(), failure.clone());
            }
            Heard::Listed { failures, .. } => {
                *of_source = failures.iter().map(|failure| (failure.name.clone(), failure.clone())).collect();
            }
        }
    }

    fn all(&self) -> Vec<Failure> {
        self.0.values().flat_map(BTreeMap::values).cloned().collect()
    }
}

fn name(object: &Object) -> ObjectName {
    match object {
        Object::GatewayRoute(manifest)
        | Object::GatewayBackend(manifest)
        | Object::GatewayPolicy(manifest) => manifest.name.clone(),
        Object::Secret(secret) => secret.name.clone(),
        Object::ConfigMap(map) => map.name.clone(),
        Object::Service(service) => service.name.clone(),
        Object::EndpointSlice(slice) => slice.name.clone(),
        Object::Namespace(namespace) => ObjectName::new("", &*namespace.name),
        Object::ReferenceGrant(grant) => grant.name.clone(),
    }
}

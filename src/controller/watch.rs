//! The API server's watches. One watch a kind, or a kind and namespace, and those of the Secrets and ConfigMaps that are
//! named ([`super::sources`]); one task gathers what they hear ([`super::gather`]).
//!
//! Invariants: a list takes effect as a whole and only when it is complete, so that an error never empties anything;
//! `Synced` is told once, after every first list; a watch that fails is tried again for ever and stops no other.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::gather::Heard;
use super::kinds::{ConfigMaps, Each, EndpointSlices, Secrets, Watch, Watched, api, each};
use super::pulse::Pulse;
use super::wanted::{Only, Source};
use super::{Area, gather};
use crate::snapshot::{Kind, Update};
use crate::telemetry::Telemetry;

/// What the watches have heard and nobody has gathered yet; then they wait.
const WAITING: usize = 1_024;
/// After the first failure; doubled with each, to a bound that keeps the time to be in step again under 5 s.
const FIRST_DELAY: Duration = Duration::from_millis(200);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// Failures so far apart do not add up.
const CALM: Duration = Duration::from_secs(30);
/// How often what is not installed or may not be read is looked for.
const ABSENT: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(10) };
/// The server ends a watch after so many seconds and sends a bookmark before; a connection silent for longer is dead.
const WATCH_SECONDS: u32 = 90;
/// A watch that goes on failing is logged so often.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// A watch, or the gatherer, to be spawned.
pub type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// All watches and the gatherer, as futures to be spawned. They end when nobody takes the updates any more. `own_slices`:
/// the namespace whose EndpointSlices are read in any case.
pub fn watches(
    client: &Client,
    area: &Area,
    own_slices: Option<Arc<str>>,
    telemetry: &Telemetry,
    pulse: &Pulse,
    updates: mpsc::Sender<Update>,
) -> Vec<Task> {
    let (heard, receiver) = mpsc::channel(WAITING);
    let start = Start { client: client.clone(), telemetry: telemetry.clone(), pulse: pulse.clone(), heard };
    let mut every = Every { start: &start, tasks: Vec::new(), sources: BTreeSet::new() };
    each(&area.namespaces, &mut every);
    let is_read =
        |own: &Arc<str>| area.namespaces.is_empty() || area.namespaces.iter().any(|name| **name == **own);
    if let Some(own) = own_slices.filter(|own| !is_read(own)) {
        every.kind::<EndpointSlices>(Some(&own));
    }
    let Every { mut tasks, sources, .. } = every;
    tasks.push(Box::pin(gather::gather(start, area.clone(), receiver, sources, pulse.clone(), updates)));
    tasks
}

/// What every watch is begun with.
pub struct Start {
    client: Client,
    telemetry: Telemetry,
    pulse: Pulse,
    heard: mpsc::Sender<(Source, Heard)>,
}

/// Begins the watch of every kind.
struct Every<'a> {
    start: &'a Start,
    tasks: Vec<Task>,
    sources: BTreeSet<Source>,
}

impl Each for Every<'_> {
    fn kind<W: Watch>(&mut self, namespace: Option<&Arc<str>>) {
        let source = Source::all(W::KIND, namespace.cloned());
        self.sources.insert(source.clone());
        self.tasks.push(self.start.watch::<W>(source));
    }
}

impl Start {
    /// The watch of Secrets or ConfigMaps that are named, or of Secrets by label.
    pub fn named(&self, source: &Source) -> Task {
        match source.kind {
            Kind::ConfigMap => self.watch::<ConfigMaps>(source.clone()),
            _ => self.watch::<Secrets>(source.clone()),
        }
    }

    fn watch<W: Watch>(&self, source: Source) -> Task {
        let api = api::<W>(&self.client, source.namespace.as_ref());
        let watch = One {
            source,
            telemetry: self.telemetry.clone(),
            pulse: self.pulse.clone(),
            heard: self.heard.clone(),
        };
        Box::pin(watch.run(api))
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
        config.field_selector = self.source.fields();
        config.label_selector = self.source.labels();
        let mut stream = pin!(watcher::watcher(api.clone(), config));
        let mut list = (Vec::new(), Vec::new());
        let mut listed = false;
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
                    listed = true;
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
                    let refused =
                        code(&error) == Some(403) && self.source.only != Only::Everything && !listed;
                    if refused && self.source.is_together() {
                        // Nothing is missing: each is read on its own then.
                        let _ = self.tell(Heard::Refused).await;
                        return End::Closed;
                    }
                    self.telemetry.control().watch_error(W::PLURAL);
                    self.pulse.trouble();
                    let delay = if refused { ABSENT } else { trouble.next(Instant::now()) };
                    if trouble.is_worth_a_line(Instant::now()) {
                        let namespace = self.source.namespace.as_deref();
                        tracing::warn!(
                            kind = W::PLURAL,
                            namespace,
                            %error,
                            hint = hint(&error),
                            "a watch failed; it is tried again, what is known stays"
                        );
                    }
                    // What may not be read is not there, for the one who names it; nobody else waits for it. What was
                    // read before stays.
                    if refused && !trouble.told {
                        trouble.told = true;
                        if self.tell(Heard::Refused).await.is_err() {
                            return End::Closed;
                        }
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
    /// That it may not be read.
    told: bool,
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
        self.told = false;
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

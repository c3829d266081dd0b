//! The leader's work: for each report that the watched status does not say yet, ask the replicas and write.
//!
//! Invariants: only while the term holds, looked at before each write; only where it differs; at most 100 writes a
//! second; each write is a compare-and-swap on the status it was made from, so that a stale writer changes nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::lease::Term;
use super::replicas::Peers;
use super::served::{Asked, Heard, Served, verdict};
use super::status::{self, Verdict, desired, is_decided, notices, without_installation};
use crate::api;
use crate::compile::{ObjectRef, Published, Report};
use crate::snapshot::{Kind, Manifest};
use crate::values::ObjectName;

/// Objects of one round: they are asked about together, then written. A new publication is seen after each round.
const ROUND: usize = 200;
/// 100 writes a second.
const PACE: Duration = Duration::from_millis(10);
/// Writes that wait for the API server at once.
const AT_ONCE: usize = 8;
const REQUEST: Duration = Duration::from_secs(5);
/// Until replicas that lag are asked again (they take up to a second to say no), and until a refused write is tried
/// again.
const AGAIN: Duration = Duration::from_millis(500);
/// Everything is compared anew, whatever was settled before.
const FULL: Duration = Duration::from_secs(300);
/// Events: so many at once, and one more in each interval.
const EVENTS: u32 = 50;
const EVENT_EVERY: Duration = Duration::from_millis(200);
/// The API's bound for a note, in bytes; characters take at most four.
const NOTE: usize = 250;

type Key = (Kind, ObjectName);

pub struct Writer {
    client: Client,
    installation: Arc<str>,
    /// None: this process is the only replica.
    peers: Option<Peers>,
    served: Served,
    term: watch::Receiver<Term>,
    published: watch::Receiver<Option<Arc<Published>>>,
    recorder: Recorder,
    events: Bucket,
    memory: Memory,
}

/// What is known of earlier rounds; nothing in it is needed to be right.
#[derive(Default)]
struct Memory {
    /// Objects that needed nothing: the report and the status that were compared.
    settled: HashMap<Key, (Arc<Report>, Option<Arc<str>>)>,
    /// What was written over what, until the watch has told of it.
    written: HashMap<Key, (Option<Arc<str>>, Value)>,
    /// When an object was last tried, and how often in vain.
    tried: HashMap<Key, (Instant, u32)>,
}

/// One object that needs a look.
struct Task {
    key: Key,
    manifest: Arc<Manifest>,
    /// None: this installation has nothing to say about it any more.
    report: Option<Arc<Report>>,
    previous: Option<Value>,
}

impl Writer {
    pub fn new(
        client: &Client,
        installation: &str,
        instance: &str,
        peers: Option<Peers>,
        served: Served,
        term: watch::Receiver<Term>,
        published: watch::Receiver<Option<Arc<Published>>>,
    ) -> Self {
        let reporter = Reporter {
            controller: format!("{}/{installation}", api::GROUP),
            instance: Some(instance.to_owned()),
        };
        Self {
            client: client.clone(),
            installation: installation.into(),
            peers,
            served,
            term,
            published,
            recorder: Recorder::new(client.clone(), reporter),
            events: Bucket::new(),
            memory: Memory::default(),
        }
    }

    /// Until nobody publishes any more.
    pub async fn run(mut self) {
        let mut full = Instant::now() + FULL;
        loop {
            if !self.term.borrow_and_update().holds() {
                // Another leads meanwhile: what was known of the statuses is worth nothing later.
                self.memory = Memory::default();
                if self.term.changed().await.is_err() {
                    return;
                }
                continue;
            }
            if Instant::now() >= full {
                self.memory.settled.clear();
                full = Instant::now() + FULL;
            }
            let newest = self.published.borrow_and_update().clone();
            let (tasks, more) = newest.map(|newest| self.tasks(&newest)).unwrap_or_default();
            let again = self.round(tasks).await;
            if more {
                continue;
            }
            let until = if again { Instant::now() + AGAIN } else { full };
            tokio::select! {
                changed = self.published.changed() => if changed.is_err() { return },
                // It is told every 2 s, and ends here when it is over.
                changed = self.term.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// The objects to look at now, those never tried first; and whether there are more.
    fn tasks(&mut self, published: &Published) -> (Vec<Task>, bool) {
        let world = &published.world;
        let now = Instant::now();
        let mut tasks = Vec::new();
        let mut known = HashSet::new();
        for report in &published.compiled.reports {
            let ObjectRef { kind, name, uid, generation } = &report.object;
            let Some(manifest) = manifest(published, *kind, name) else { continue };
            if manifest.uid.is_empty() || manifest.uid != *uid || manifest.generation != *generation {
                continue;
            }
            let key = (*kind, name.clone());
            if !self.memory.is_settled(&key, report, manifest.status.as_ref())
                && self.memory.is_due(&key, now)
            {
                tasks.push((key.clone(), manifest, Some(report)));
            }
            known.insert(key);
        }
        let backends = world.backends.iter().map(|object| (Kind::GatewayBackend, object));
        let policies = world.policies.iter().map(|object| (Kind::GatewayPolicy, object));
        for (kind, (name, manifest)) in backends.chain(policies) {
            let key = (kind, name.clone());
            let named = manifest.status.as_ref().is_some_and(|status| status.contains(&*self.installation));
            if named && !known.contains(&key) && self.memory.is_due(&key, now) {
                tasks.push((key, manifest, None));
            }
        }
        self.memory.forget(&known);
        tasks.sort_by_key(|(key, ..)| self.memory.tried.get(key).map(|tried| tried.0));
        let more = tasks.len() > ROUND;
        let tasks = tasks.into_iter().take(ROUND).map(|(key, manifest, report)| Task {
            previous: self.memory.previous(&key, manifest.status.as_ref()),
            key,
            manifest: Arc::clone(manifest),
            report: report.cloned(),
        });
        (tasks.collect(), more)
    }

    /// Asks and writes. Whether something is left to be done soon.
    async fn round(&mut self, tasks: Vec<Task>) -> bool {
        if tasks.is_empty() {
            return false;
        }
        let undecided: Vec<Asked> = tasks
            .iter()
            .filter_map(|task| Some((task, task.report.as_ref()?)))
            .filter(|(task, report)| !is_decided(task.previous.as_ref(), report, &self.installation))
            .map(|(_, report)| asked(report))
            .collect();
        let heard = if undecided.is_empty() { Ok(Vec::new()) } else { self.ask(&undecided).await };
        if let Err(error) = &heard {
            tracing::warn!(error, "the replicas cannot be asked what they serve; tried again");
        }
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut writes = Vec::new();
        let mut again = false;
        for task in tasks {
            let Some(report) = &task.report else {
                let status = task
                    .previous
                    .as_ref()
                    .and_then(|status| without_installation(status, &self.installation));
                writes.extend(status.map(|status| (task, status)));
                continue;
            };
            let verdict = match &heard {
                _ if is_decided(task.previous.as_ref(), report, &self.installation) => Verdict::Served,
                Ok(heard) => verdict(&asked(report), heard),
                Err(error) => Verdict::Pending(status::cut(error, 1_024)),
            };
            let pending = matches!(verdict, Verdict::Pending(_));
            again |= pending;
            match desired(task.previous.as_ref(), report, &self.installation, &verdict, &now) {
                Some(status) => writes.push((task, status)),
                // Asking again is cheap, and must not wait longer the longer a replica lags.
                None if pending => self.memory.tried(&task.key, false),
                None => self.memory.settle(&task, report),
            }
        }
        self.write(writes).await || again
    }

    async fn ask(&self, asked: &[Asked]) -> Result<Vec<Heard>, String> {
        if let Some(peers) = &self.peers {
            return peers.ask_all(asked, &self.served).await;
        }
        let answer = self.served.answer(asked).await;
        Ok(vec![Heard { replica: answer.replica, lacks: Some(answer.lacks) }])
    }

    /// Whether a write failed and is to be tried again.
    async fn write(&mut self, writes: Vec<(Task, Value)>) -> bool {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (client, term) = (self.client.clone(), self.term.clone());
        let paced = stream::unfold((pace, writes.into_iter()), |(mut pace, mut writes)| async {
            let next = writes.next()?;
            pace.tick().await;
            Some((next, (pace, writes)))
        });
        let mut done = std::pin::pin!(
            paced
                .map(|(task, status)| {
                    let (client, holds) = (client.clone(), term.borrow().holds());
                    async move {
                        let written = if holds { Some(patch(&client, &task, &status).await) } else { None };
                        (task, status, written)
                    }
                })
                .buffer_unordered(AT_ONCE)
        );
        let mut again = false;
        while let Some((task, status, written)) = done.next().await {
            match written {
                None => {}
                Some(Ok(())) => {
                    self.memory.tried(&task.key, false);
                    let basis = task.manifest.status.clone();
                    self.announce(&task, &status).await;
                    self.memory.written.insert(task.key, (basis, status));
                }
                Some(Err(Refused::Changed)) => {
                    again = true;
                    tracing::debug!(object = %task.key.1, "it changed meanwhile; its status is made anew");
                    self.memory.written.remove(&task.key);
                    self.memory.tried(&task.key, true);
                }
                Some(Err(Refused::Gone)) => self.memory.tried(&task.key, true),
                Some(Err(Refused::Failed(error))) => {
                    again = true;
                    let (kind, object) = task.key.clone();
                    tracing::warn!(?kind, %object, error, "cannot write a status; tried again");
                    self.memory.tried(&task.key, true);
                }
            }
        }
        again
    }

    async fn announce(&self, task: &Task, after: &Value) {
        let kind = task.key.0;
        for notice in notices(task.previous.as_ref(), after, kind, &self.installation) {
            if !self.events.take() {
                tracing::debug!(object = %task.key.1, reason = notice.reason, "too many Events; left out");
                continue;
            }
            let event = Event {
                type_: if notice.warning { EventType::Warning } else { EventType::Normal },
                reason: notice.reason,
                note: Some(status::cut(&notice.note, NOTE)),
                action: "Compile".into(),
                secondary: None,
            };
            let regarding = ObjectReference {
                api_version: Some(format!("{}/{}", api::GROUP, api::VERSION)),
                kind: Some(format!("{kind:?}")),
                namespace: Some(task.key.1.namespace.to_string()),
                name: Some(task.key.1.name.to_string()),
                uid: Some(task.manifest.uid.to_string()),
                ..ObjectReference::default()
            };
            // Events are for people: one that cannot be written is not tried again.
            match tokio::time::timeout(REQUEST, self.recorder.publish(&event, &regarding)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "cannot write an Event"),
                Err(_) => tracing::debug!("cannot write an Event in time"),
            }
        }
    }
}

fn asked(report: &Report) -> Asked {
    Asked(Arc::clone(&report.object.uid), report.object.generation, report.resolved)
}

fn manifest<'a>(published: &'a Published, kind: Kind, name: &ObjectName) -> Option<&'a Arc<Manifest>> {
    match kind {
        Kind::GatewayRoute => published.world.routes.get(name),
        Kind::GatewayBackend => published.world.backends.get(name),
        Kind::GatewayPolicy => published.world.policies.get(name),
        _ => None,
    }
}

impl Memory {
    fn is_settled(&self, key: &Key, report: &Arc<Report>, status: Option<&Arc<str>>) -> bool {
        self.settled.get(key).is_some_and(|(settled, with)| {
            let same_report = Arc::ptr_eq(settled, report) || settled == report;
            same_report && same_text(with.as_ref(), status)
        })
    }

    fn settle(&mut self, task: &Task, report: &Arc<Report>) {
        // Not from what was written but not heard of yet.
        if !self.written.contains_key(&task.key) {
            self.tried.remove(&task.key);
            self.settled.insert(task.key.clone(), (Arc::clone(report), task.manifest.status.clone()));
        }
    }

    /// What the status is now, as far as is known.
    fn previous(&mut self, key: &Key, watched: Option<&Arc<str>>) -> Option<Value> {
        if let Some((basis, status)) = self.written.get(key) {
            if same_text(basis.as_ref(), watched) {
                return Some(status.clone());
            }
            self.written.remove(key);
        }
        watched.and_then(|text| serde_json::from_str(text).ok())
    }

    /// An object that was tried in vain waits longer each time, to a minute.
    fn is_due(&self, key: &Key, now: Instant) -> bool {
        let Some((at, failures)) = self.tried.get(key) else { return true };
        let wait = match failures {
            0..=3 => Duration::ZERO,
            more => Duration::from_secs(1 << (more - 3).min(6)).min(Duration::from_secs(60)),
        };
        now >= *at + wait
    }

    fn tried(&mut self, key: &Key, in_vain: bool) {
        let failures = self.tried.get(key).map_or(0, |tried| tried.1);
        let failures = if in_vain { failures.saturating_add(1) } else { 0 };
        self.tried.insert(key.clone(), (Instant::now(), failures));
    }

    fn forget(&mut self, known: &HashSet<Key>) {
        self.settled.retain(|key, _| known.contains(key));
        self.written.retain(|key, _| known.contains(key));
        self.tried.retain(|key, _| known.contains(key));
    }
}

fn same_text(one: Option<&Arc<str>>, other: Option<&Arc<str>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one == other,
        (None, None) => true,
        _ => false,
    }
}

enum Refused {
    /// The object or its status is not what this write was made from.
    Changed,
    Gone,
    Failed(String),
}

/// JSON Patch (RFC 6902): `test` makes it a compare-and-swap on exactly what the status was made from. A resource
/// version would fail on every change of a label, and a second leader's apply would not fail at all.
async fn patch(client: &Client, task: &Task, status: &Value) -> Result<(), Refused> {
    let plural = match task.key.0 {
        Kind::GatewayBackend => "gatewaybackends",
        Kind::GatewayPolicy => "gatewaypolicies",
        _ => "gatewayroutes",
    };
    let ObjectName { namespace, name } = &task.key.1;
    let path = format!("/apis/{}/{}/namespaces/{namespace}/{plural}/{name}/status", api::GROUP, api::VERSION);
    let operations = json!([
        {"op": "test", "path": "/metadata/uid", "value": &*task.manifest.uid},
        {"op": "test", "path": "/metadata/generation", "value": task.manifest.generation},
        {"op": "test", "path": "/status", "value": task.previous},
        {"op": "add", "path": "/status", "value": status},
    ]);
    let request = http::Request::patch(path)
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .header(http::header::ACCEPT, "application/json")
        .body(serde_json::to_vec(&operations).map_err(|error| Refused::Failed(error.to_string()))?)
        .map_err(|error| Refused::Failed(error.to_string()))?;
    match tokio::time::timeout(REQUEST, client.request_text(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(error))) => Err(match error.code {
            404 => Refused::Gone,
            409 => Refused::Changed,
            // Also what a status gets that the schema refuses: then it says which field.
            422 if !error.message.contains("is invalid") => Refused::Changed,
            _ => Refused::Failed(error.to_string()),
        }),
        Ok(Err(error)) => Err(Refused::Failed(error.to_string())),
        Err(_) => Err(Refused::Failed(format!("no answer in {} s", REQUEST.as_secs()))),
    }
}

/// A token bucket.
struct Bucket(std::sync::Mutex<(u32, Instant)>);

impl Bucket {
    fn new() -> Self {
        Self(std::sync::Mutex::new((EVENTS, Instant::now())))
    }

    fn take(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (tokens, since) = *state;
        let earned = u32::try_from(since.elapsed().as_millis() / EVENT_EVERY.as_millis()).unwrap_or(u32::MAX);
        let tokens = tokens.saturating_add(earned).min(EVENTS);
        let since = if tokens == EVENTS { Instant::now() } else { since + EVENT_EVERY * earned };
        *state = (tokens.saturating_sub(1), since);
        tokens > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn events_are_limited_and_come_back() {
        let bucket = Bucket::new();
        assert_eq!((0..EVENTS * 2).filter(|_| bucket.take()).count(), EVENTS as usize);
        tokio::time::advance(EVENT_EVERY * 3).await;
        assert_eq!((0..10).filter(|_| bucket.take()).count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_again_and_again_waits_up_to_a_minute() {
        let mut memory = Memory::default();
        let key = (Kind::GatewayRoute, ObjectName::new("shop", "a"));
        for _ in 0..100 {
            memory.tried(&key, true);
        }
        assert!(!memory.is_due(&key, Instant::now() + Duration::from_secs(59)));
        assert!(memory.is_due(&key, Instant::now() + Duration::from_secs(60)));
        memory.tried(&key, false);
        assert!(memory.is_due(&key, Instant::now()));
    }
}

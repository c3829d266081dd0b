//! What the watches hear, put together: updates for reconcile, and the watches of Secrets and ConfigMaps begun and ended
//! as objects of ours name them.
//!
//! Invariants: an object that names something new is told together with it, so that nothing is ever judged by what is
//! merely not read yet; what one watch stops holding stays while another holds it; nothing waits longer than
//! [`PATIENCE`] for what does not come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::pulse::Pulse;
use super::wanted::{Only, Source, wanted};
use super::watch::Start;
use crate::snapshot::{Change, Failure, Kind, Manifest, Object, Update};
use crate::values::ObjectName;

/// Changes that are passed on at once.
const BATCH: usize = 1_000;
/// So long an object waits for what it names to be read.
const PATIENCE: Duration = Duration::from_secs(2);

pub enum Heard {
    Put(Object),
    Gone(ObjectName),
    Failed(Failure),
    Listed { objects: Vec<Object>, failures: Vec<Failure> },
}

/// Puts together what was heard at once, and keeps the failures of all watches.
pub async fn gather(
    start: Start,
    mut heard: mpsc::Receiver<(Source, Heard)>,
    unlisted: BTreeSet<Source>,
    pulse: Pulse,
    updates: mpsc::Sender<Update>,
) {
    let mut gatherer = Gatherer::new(start, unlisted);
    let mut synced = false;
    let mut batch = Vec::new();
    loop {
        let patience = gatherer.patience();
        tokio::select! {
            count = heard.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {}
        }
        let before = gatherer.failures.clone();
        let mut changes = Vec::with_capacity(batch.len());
        for (source, heard) in batch.drain(..) {
            gatherer.hear(source, heard, &mut changes);
        }
        gatherer.release(Instant::now(), &mut changes);
        gatherer.end_unwanted(&mut changes);
        if gatherer.failures != before {
            changes.push(Change::Failures(gatherer.failures.all()));
        }
        if !changes.is_empty() && updates.send(Update::Changes(changes)).await.is_err() {
            return;
        }
        if !synced && gatherer.unlisted.is_empty() && gatherer.held.is_empty() {
            synced = true;
            pulse.listed();
            if updates.send(Update::Synced).await.is_err() {
                return;
            }
        }
    }
}

struct Gatherer {
    start: Start,
    /// Watches that have not listed yet.
    unlisted: BTreeSet<Source>,
    failures: Failures,
    /// What each object of ours names.
    wants: BTreeMap<(Kind, ObjectName), BTreeSet<Source>>,
    /// Watches that were begun because something is named.
    begun: BTreeMap<Source, AbortHandle>,
    /// Secrets and ConfigMaps, by the watches that hold them.
    holders: BTreeMap<(Kind, ObjectName), BTreeSet<Source>>,
    /// Changes of each watch in their order, the first of which waits.
    held: BTreeMap<Source, VecDeque<Held>>,
}

struct Held {
    change: Change,
    awaits: BTreeSet<Source>,
    until: Instant,
}

impl Gatherer {
    fn new(start: Start, unlisted: BTreeSet<Source>) -> Self {
        Self {
            start,
            unlisted,
            failures: Failures::default(),
            wants: BTreeMap::new(),
            begun: BTreeMap::new(),
            holders: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    fn hear(&mut self, source: Source, heard: Heard, changes: &mut Vec<Change>) {
        // It may have been ended with this on its way.
        if source.only != Only::Everything && !self.begun.contains_key(&source) {
            return;
        }
        if matches!(heard, Heard::Listed { .. }) {
            self.unlisted.remove(&source);
        }
        self.failures.hear(&source, &heard);
        match source.kind {
            Kind::Secret | Kind::ConfigMap => self.hear_of_named(&source, heard, changes),
            _ => {
                let Some(change) = change(&source, heard) else { return };
                let awaits = self.begin_wanted(&change);
                let until = Instant::now() + PATIENCE;
                self.held.entry(source).or_default().push_back(Held { change, awaits, until });
            }
        }
    }

    /// Several watches may hold the same object: it is gone when the last lets it go.
    fn hear_of_named(&mut self, source: &Source, heard: Heard, changes: &mut Vec<Change>) {
        match heard {
            Heard::Put(object) => self.hold(source, object, changes),
            Heard::Gone(name) => self.let_go(source, &name, changes),
            Heard::Failed(_) => {}
            Heard::Listed { objects, .. } => {
                let listed: BTreeSet<_> = objects.iter().map(Object::name).collect();
                for name in self.held_by(source).filter(|name| !listed.contains(name)).collect::<Vec<_>>() {
                    self.let_go(source, &name, changes);
                }
                for object in objects {
                    self.hold(source, object, changes);
                }
            }
        }
    }

    fn hold(&mut self, source: &Source, object: Object, changes: &mut Vec<Change>) {
        self.holders.entry((source.kind, object.name())).or_default().insert(source.clone());
        changes.push(Change::Put(object));
    }

    fn let_go(&mut self, source: &Source, name: &ObjectName, changes: &mut Vec<Change>) {
        let key = (source.kind, name.clone());
        let Some(holders) = self.holders.get_mut(&key) else { return };
        if holders.remove(source) && holders.is_empty() {
            self.holders.remove(&key);
            changes.push(Change::Gone(source.kind, name.clone()));
        }
    }

    fn held_by<'a>(&'a self, source: &'a Source) -> impl Iterator<Item = ObjectName> + 'a {
        let of_kind = self.holders.iter().filter(|((kind, _), _)| *kind == source.kind);
        of_kind.filter(|(_, holders)| holders.contains(source)).map(|((_, name), _)| name.clone())
    }

    /// Begins the watches of what is named for the first time; gives those that have not listed yet.
    fn begin_wanted(&mut self, change: &Change) -> BTreeSet<Source> {
        let mut awaits = BTreeSet::new();
        let objects: &[Object] = match change {
            Change::Put(object) => std::slice::from_ref(object),
            Change::Listed { objects, .. } => objects,
            Change::Gone(..) | Change::Failures(_) => &[],
        };
        for object in objects {
            let Some((kind, manifest)) = ours(object) else { continue };
            let wants = wanted(manifest);
            for source in &wants {
                if !self.begun.contains_key(source) {
                    let task = self.start.named(source);
                    self.begun.insert(source.clone(), tokio::spawn(task).abort_handle());
                    self.unlisted.insert(source.clone());
                }
                if self.unlisted.contains(source) {
                    awaits.insert(source.clone());
                }
            }
            let key = (kind, manifest.name.clone());
            match wants.is_empty() {
                true => drop(self.wants.remove(&key)),
                false => drop(self.wants.insert(key, wants)),
            }
        }
        self.forget_those_gone(change);
        awaits
    }

    fn forget_those_gone(&mut self, change: &Change) {
        match change {
            Change::Gone(kind, name) => drop(self.wants.remove(&(*kind, name.clone()))),
            Change::Listed { kind, namespace, objects } => {
                let listed: BTreeSet<_> = objects.iter().map(Object::name).collect();
                self.wants.retain(|(of, name), _| {
                    let elsewhere = namespace.as_ref().is_some_and(|namespace| *namespace != name.namespace);
                    of != kind || elsewhere || listed.contains(name)
                });
            }
            Change::Put(_) | Change::Failures(_) => {}
        }
    }

    /// Passes on what waits for nothing any more, each watch's in its order.
    fn release(&mut self, now: Instant, changes: &mut Vec<Change>) {
        for queue in self.held.values_mut() {
            while queue
                .front()
                .is_some_and(|held| held.until <= now || held.awaits.is_disjoint(&self.unlisted))
            {
                changes.extend(queue.pop_front().map(|held| held.change));
            }
        }
        self.held.retain(|_, queue| !queue.is_empty());
    }

    fn patience(&self) -> Option<Instant> {
        self.held.values().filter_map(|queue| Some(queue.front()?.until)).min()
    }

    /// Ends the watches of what nothing names any more, and forgets what they held.
    fn end_unwanted(&mut self, changes: &mut Vec<Change>) {
        let wanted: BTreeSet<&Source> = self.wants.values().flatten().collect();
        if wanted.len() == self.begun.len() {
            return;
        }
        let ended: Vec<Source> =
            self.begun.keys().filter(|source| !wanted.contains(source)).cloned().collect();
        for source in ended {
            if let Some(task) = self.begun.remove(&source) {
                task.abort();
            }
            self.unlisted.remove(&source);
            self.failures.0.remove(&source);
            for name in self.held_by(&source).collect::<Vec<_>>() {
                self.let_go(&source, &name, changes);
            }
        }
    }
}

/// An object whose fields may name others.
fn ours(object: &Object) -> Option<(Kind, &Manifest)> {
    match object {
        Object::GatewayRoute(manifest)
        | Object::GatewayBackend(manifest)
        | Object::GatewayPolicy(manifest) => Some((object.kind(), manifest)),
        _ => None,
    }
}

fn change(source: &Source, heard: Heard) -> Option<Change> {
    match heard {
        Heard::Put(object) => Some(Change::Put(object)),
        Heard::Gone(name) => Some(Change::Gone(source.kind, name)),
        Heard::Failed(_) => None,
        Heard::Listed { objects, .. } => {
            Some(Change::Listed { kind: source.kind, namespace: source.namespace.clone(), objects })
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
                    of_source.remove(&Some(object.name()));
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

//! What the watches hear, put together: updates for reconcile, and the watches of Secrets and ConfigMaps begun and ended
//! as objects of ours name them.
//!
//! Invariants: an object that names something new is told together with it, so that nothing is ever judged by what is
//! merely not read yet; what one watch stops holding stays while another holds it; what nothing names is not kept;
//! nothing waits longer than [`PATIENCE`] for what does not come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Area;
use super::pulse::Pulse;
use super::sources::{Reach, Sources, by_name};
use super::wanted::{Only, Source, wanted};
use super::watch::Start;
use crate::snapshot::{Change, Failure, Kind, Manifest, Object, Update};
use crate::values::{LabelSelector, ObjectName};

/// Changes that are passed on at once.
const BATCH: usize = 1_000;
/// So long an object waits for what it names to be read.
const PATIENCE: Duration = Duration::from_secs(2);

pub enum Heard {
    Put(Object),
    Gone(ObjectName),
    Failed(Failure),
    Listed {
        objects: Vec<Object>,
        failures: Vec<Failure>,
    },
    /// It may not be read, and never could.
    Refused,
}

/// Puts together what was heard at once, and keeps the failures of all watches.
pub async fn gather(
    start: Start,
    area: Area,
    mut heard: mpsc::Receiver<(Source, Heard)>,
    unlisted: BTreeSet<Source>,
    pulse: Pulse,
    updates: mpsc::Sender<Update>,
) {
    let mut gatherer = Gatherer::new(start, area, unlisted);
    let mut synced = false;
    let mut batch = Vec::new();
    loop {
        let patience = gatherer.patience();
        tokio::select! {
            count = heard.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = tokio::time::sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {}
        }
        let before = (gatherer.failures.clone(), gatherer.unreadable.clone());
        let mut changes = Vec::with_capacity(batch.len());
        for (source, heard) in batch.drain(..) {
            gatherer.hear(source, heard, &mut changes);
        }
        gatherer.release(Instant::now(), &mut changes);
        gatherer.end_unwanted(&mut changes);
        if gatherer.failures != before.0 {
            changes.push(Change::Failures(gatherer.failures.all()));
        }
        if gatherer.unreadable != before.1 {
            changes.push(Change::Unreadable(
                gatherer.unreadable.iter().filter_map(Source::unreadable).collect(),
            ));
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
    namespaces: Namespaces,
    /// What each object of ours names.
    wants: BTreeMap<(Kind, ObjectName), BTreeSet<Source>>,
    sources: Sources,
    /// The watches there should be for it.
    planned: BTreeSet<Source>,
    /// Those, and others until what took their place has listed.
    begun: BTreeMap<Source, AbortHandle>,
    /// What of it may not be read.
    unreadable: BTreeSet<Source>,
    /// Secrets and ConfigMaps, by the watches that hold them.
    holders: BTreeMap<(Kind, ObjectName), BTreeSet<Source>>,
    /// Changes of each watch in their order, the first of which waits.
    held: BTreeMap<Source, VecDeque<Held>>,
}

struct Held {
    change: Change,
    /// What it names that was not read yet.
    awaits: BTreeSet<Source>,
    until: Instant,
}

/// Those whose objects count.
struct Namespaces {
    selector: Option<LabelSelector>,
    installation: Arc<str>,
    selected: BTreeSet<Arc<str>>,
}

impl Namespaces {
    fn count(&self, namespace: &str) -> bool {
        self.selector.is_none() || self.selected.contains(namespace)
    }
}

impl Gatherer {
    fn new(start: Start, area: Area, unlisted: BTreeSet<Source>) -> Self {
        let reach = if area.namespaces.is_empty() { Reach::Cluster } else { Reach::Namespaces };
        Self {
            start,
            unlisted,
            failures: Failures::default(),
            namespaces: Namespaces {
                selector: area.selector,
                selected: [area.installation.clone()].into(),
                installation: area.installation,
            },
            wants: BTreeMap::new(),
            sources: Sources::new(reach),
            planned: BTreeSet::new(),
            begun: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            holders: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    fn hear(&mut self, source: Source, heard: Heard, changes: &mut Vec<Change>) {
        // It may have been ended with this on its way.
        if source.only != Only::Everything && !self.begun.contains_key(&source) {
            return;
        }
        let heard = if source.is_together() { self.wanted_of(&source, heard) } else { heard };
        match heard {
            Heard::Refused => return self.refused(source),
            Heard::Listed { .. } => drop(self.unlisted.remove(&source)),
            _ => {}
        }
        self.unreadable.remove(&source);
        self.failures.hear(&source, &heard);
        match source.kind {
            Kind::Secret | Kind::ConfigMap => self.hear_of_named(&source, heard, changes),
            _ => {
                let Some(change) = change(&source, heard) else { return };
                let awaits = self.note_wanted(&change);
                let until = Instant::now() + PATIENCE;
                self.held.entry(source).or_default().push_back(Held { change, awaits, until });
            }
        }
    }

    fn refused(&mut self, source: Source) {
        self.unlisted.remove(&source);
        if source.is_together() {
            self.sources.refuse(&source);
            self.begin_planned();
        } else {
            self.unreadable.insert(source);
        }
    }

    /// What nobody names is dropped here, unread.
    fn wanted_of(&self, source: &Source, heard: Heard) -> Heard {
        let is_wanted = |name: &ObjectName| self.sources.is_wanted(&by_name(source, name));
        match heard {
            Heard::Put(object) if !is_wanted(&object.name()) => Heard::Gone(object.name()),
            Heard::Failed(Failure { name: Some(name), .. }) if !is_wanted(&name) => Heard::Gone(name),
            Heard::Listed { mut objects, mut failures } => {
                objects.retain(|object| is_wanted(&object.name()));
                failures.retain(|failure| failure.name.as_ref().is_none_or(is_wanted));
                Heard::Listed { objects, failures }
            }
            heard => heard,
        }
    }

    /// Several watches may hold the same object: it is gone when the last lets it go.
    fn hear_of_named(&mut self, source: &Source, heard: Heard, changes: &mut Vec<Change>) {
        match heard {
            Heard::Put(object) => self.hold(source, object, changes),
            Heard::Gone(name) => self.let_go(source, &name, changes),
            Heard::Failed(_) | Heard::Refused => {}
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

    /// Begins the watches of what is named for the first time; gives what of it is not read yet.
    fn note_wanted(&mut self, change: &Change) -> BTreeSet<Source> {
        let mut named = BTreeSet::new();
        let objects: &[Object] = match change {
            Change::Put(object) => std::slice::from_ref(object),
            Change::Listed { objects, .. } => objects,
            Change::Gone(..) | Change::Failures(_) | Change::Unreadable(_) => &[],
        };
        for object in objects {
            let Some((kind, manifest)) = ours(object) else { continue };
            let wants = wanted(manifest);
            if self.namespaces.count(&manifest.name.namespace) {
                named.extend(wants.iter().cloned());
            }
            self.wants_now((kind, manifest.name.clone()), wants);
        }
        self.forget_those_gone(change);
        named.extend(self.note_namespaces(change));
        self.begin_planned();
        named.retain(|source| self.unlisted.contains(self.sources.serving(source)));
        named
    }

    fn wants_now(&mut self, object: (Kind, ObjectName), wants: BTreeSet<Source>) {
        let counts = self.namespaces.count(&object.1.namespace);
        if counts {
            wants.iter().for_each(|source| self.sources.want(source));
        }
        let before = match wants.is_empty() {
            true => self.wants.remove(&object),
            false => self.wants.insert(object, wants),
        };
        if counts {
            before.iter().flatten().for_each(|source| self.sources.want_less(source));
        }
    }

    fn forget_those_gone(&mut self, change: &Change) {
        let gone: Vec<(Kind, ObjectName)> = match change {
            Change::Gone(kind, name) => vec![(*kind, name.clone())],
            Change::Listed { kind, namespace, objects } => {
                let listed: BTreeSet<_> = objects.iter().map(Object::name).collect();
                let here = |of: &Kind, name: &ObjectName| {
                    of == kind && namespace.as_ref().is_none_or(|only| *only == name.namespace)
                };
                let known = self.wants.keys().filter(|(of, name)| here(of, name) && !listed.contains(name));
                known.cloned().collect()
            }
            Change::Put(_) | Change::Failures(_) | Change::Unreadable(_) => return,
        };
        for object in gone {
            self.wants_now(object, BTreeSet::new());
        }
    }

    /// Which namespaces count from now on; gives what the objects of those that did not until now want.
    fn note_namespaces(&mut self, change: &Change) -> BTreeSet<Source> {
        let Some(selector) = &self.namespaces.selector else { return BTreeSet::new() };
        let now: Vec<(Arc<str>, bool)> = match change {
            Change::Put(Object::Namespace(one)) => vec![(one.name.clone(), selector.selects(&one.labels))],
            Change::Gone(Kind::Namespace, name) => vec![(name.name.clone(), false)],
            Change::Listed { kind: Kind::Namespace, objects, .. } => {
                let gone = self.namespaces.selected.iter().map(|name| (name.clone(), false));
                let there = objects.iter().filter_map(|object| match object {
                    Object::Namespace(one) => Some((one.name.clone(), selector.selects(&one.labels))),
                    _ => None,
                });
                // Of two entries the later one says it.
                gone.chain(there).collect::<BTreeMap<_, _>>().into_iter().collect()
            }
            _ => return BTreeSet::new(),
        };
        let mut wanted = BTreeSet::new();
        for (name, counts) in now {
            if name == self.namespaces.installation || counts == self.namespaces.selected.contains(&name) {
                continue;
            }
            let of_it = self.wants.iter().filter(|((_, object), _)| object.namespace == name);
            for source in of_it.flat_map(|(_, wants)| wants) {
                if counts {
                    self.sources.want(source);
                    wanted.insert(source.clone());
                } else {
                    self.sources.want_less(source);
                }
            }
            match counts {
                true => drop(self.namespaces.selected.insert(name)),
                false => drop(self.namespaces.selected.remove(&name)),
            }
        }
        wanted
    }

    fn begin_planned(&mut self) {
        if !self.sources.changed() {
            return;
        }
        self.planned = self.sources.plan();
        for source in &self.planned {
            if !self.begun.contains_key(source) {
                let task = self.start.named(source);
                self.begun.insert(source.clone(), tokio::spawn(task).abort_handle());
                self.unlisted.insert(source.clone());
            }
        }
    }

    /// Whether a watch that is over holds what the one after it has not read yet.
    fn is_awaited(&self, over: &Source, name: &ObjectName) -> bool {
        let wanted = if over.is_together() { by_name(over, name) } else { over.clone() };
        self.sources.is_wanted(&wanted) && self.unlisted.contains(self.sources.serving(&wanted))
    }

    /// Passes on what waits for nothing any more, each watch's in its order.
    fn release(&mut self, now: Instant, changes: &mut Vec<Change>) {
        let (unlisted, sources) = (&self.unlisted, &self.sources);
        let waits = |held: &Held| {
            held.until > now && held.awaits.iter().any(|source| unlisted.contains(sources.serving(source)))
        };
        for queue in self.held.values_mut() {
            while queue.front().is_some_and(|held| !waits(held)) {
                changes.extend(queue.pop_front().map(|held| held.change));
            }
        }
        self.held.retain(|_, queue| !queue.is_empty());
    }

    fn patience(&self) -> Option<Instant> {
        self.held.values().filter_map(|queue| Some(queue.front()?.until)).min()
    }

    /// Ends the watches of what nothing names any more or another has taken over, and forgets what they held.
    fn end_unwanted(&mut self, changes: &mut Vec<Change>) {
        for (kind, name) in self.sources.let_go() {
            let holders = self.holders.get(&(kind, name.clone())).into_iter().flatten();
            let wide =
                |holder: &&Source| holder.is_together() && !self.sources.is_wanted(&by_name(holder, &name));
            for holder in holders.filter(wide).cloned().collect::<Vec<_>>() {
                self.let_go(&holder, &name, changes);
            }
        }
        if self.planned.len() == self.begun.len() {
            return;
        }
        let is_over = |source: &&Source| {
            !self.planned.contains(*source)
                && !self.held_by(source).any(|name| self.is_awaited(source, &name))
        };
        let ended: Vec<Source> = self.begun.keys().filter(is_over).cloned().collect();
        for source in ended {
            if let Some(task) = self.begun.remove(&source) {
                task.abort();
            }
            self.unlisted.remove(&source);
            self.unreadable.remove(&source);
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
        Heard::Failed(_) | Heard::Refused => None,
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
            Heard::Refused => {}
            Heard::Listed { failures, .. } => {
                *of_source = failures.iter().map(|failure| (failure.name.clone(), failure.clone())).collect();
            }
        }
    }

    fn all(&self) -> Vec<Failure> {
        self.0.values().flat_map(BTreeMap::values).cloned().collect()
    }
}

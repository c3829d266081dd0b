//! What a unit asks of the world while it is lowered. A unit stands for as long as every question it asked still has the
//! same answer, "not there" included.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use super::attachment::{Applied, Index};
use super::gateway_backend::{self, LoweredBackend, Named};
use super::gateway_policy::LoweredPolicy;
use super::{Options, grants};
use crate::filters::{Derive, OwnHost, Selection};
use crate::snapshot::{ConfigMapData, Kind, SecretData, ServiceData, Snapshot, Unreadable};
use crate::values::{LabelSelector, ObjectName, Reason};

/// What can be asked: the world, and the backends and policies as they were lowered from it.
#[derive(Clone, Copy)]
pub(super) struct Known<'w> {
    pub world: &'w Snapshot,
    pub backends: &'w Backends,
    pub policies: &'w Policies,
    pub index: &'w Index,
    pub gathered: &'w Gathered,
    pub options: &'w Options,
}

/// What is found by label, and what is made of it, once for all who ask.
#[derive(Default)]
pub(super) struct Gathered {
    before: BTreeMap<Selector, Selection>,
    now: RefCell<BTreeMap<Selector, Selection>>,
    derived: RefCell<HashMap<String, Derived>>,
}

/// What was made, and of which Secrets.
type Derived = (Selection, Weak<dyn Any + Send + Sync>);

/// A namespace, and labels.
type Selector = (Arc<str>, LabelSelector);

impl Gathered {
    /// For the next compile.
    pub fn next(self) -> Self {
        let mut derived = self.derived.into_inner();
        derived.retain(|_, (_, made)| made.strong_count() > 0);
        Self { before: self.now.into_inner(), now: RefCell::default(), derived: derived.into() }
    }

    /// The same `Arc` as before where the same Secrets are found.
    fn secrets(&self, world: &Snapshot, namespace: &Arc<str>, selector: &LabelSelector) -> Selection {
        let key = (namespace.clone(), selector.clone());
        if let Some(known) = self.now.borrow().get(&key) {
            return known.clone();
        }
        // An empty selector selects nothing: what it could mean is everybody's Secrets.
        let wanted = &selector.match_labels;
        let found = world
            .secrets
            .range(ObjectName::new(namespace.clone(), "")..)
            .take_while(|(name, _)| name.namespace == *namespace && !wanted.is_empty())
            .map(|(_, secret)| secret)
            .filter(|secret| wanted.iter().all(|(name, value)| secret.labels.get(name) == Some(value)));
        let selection = match self.before.get(&key) {
            Some(before) if before.iter().map(Arc::as_ptr).eq(found.clone().map(Arc::as_ptr)) => {
                before.clone()
            }
            _ => found.cloned().collect(),
        };
        self.now.borrow_mut().insert(key, selection.clone());
        selection
    }

    pub fn derived(&self, name: String, of: &Selection, make: Derive<'_>) -> Arc<dyn Any + Send + Sync> {
        let before =
            self.derived.borrow().get(&name).and_then(|(of, made)| Some((of.clone(), made.upgrade()?)));
        let made = match before {
            Some((known, made)) if Arc::ptr_eq(&known, of) => return made,
            Some((_, made)) => make(Some(made)),
            None => make(None),
        };
        self.derived.borrow_mut().insert(name, (of.clone(), Arc::downgrade(&made)));
        made
    }
}

pub(super) type Backends = BTreeMap<ObjectName, Arc<LoweredBackend>>;
pub(super) type Policies = BTreeMap<ObjectName, Arc<LoweredPolicy>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Secret(ObjectName),
    Secrets(Arc<str>, LabelSelector),
    ConfigMap(ObjectName),
    Service(ObjectName),
    Backend(ObjectName),
    Policy(ObjectName),
    Granted(Reference),
    /// Whether the source could read it at all.
    Readable(Unreadable),
}

/// A reference from an object of ours to an object of another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// The kind of ours.
    pub by: &'static str,
    pub from: Arc<str>,
    pub group: &'static str,
    pub kind: &'static str,
    pub to: ObjectName,
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Secret(Option<Arc<SecretData>>),
    Secrets(Selection),
    ConfigMap(Option<Arc<ConfigMapData>>),
    Service(Option<Arc<ServiceData>>),
    Backend(Option<Arc<LoweredBackend>>),
    Policy(Option<Arc<LoweredPolicy>>),
    Granted(bool),
    Readable(bool),
}

impl Question {
    pub fn answer(&self, known: Known<'_>) -> Answer {
        let Known { world, backends, policies, gathered, .. } = known;
        match self {
            Self::Secrets(namespace, selector) => {
                Answer::Secrets(gathered.secrets(world, namespace, selector))
            }
            Self::ConfigMap(name) => Answer::ConfigMap(world.config_maps.get(name).cloned()),
            Self::Secret(name) => Answer::Secret(world.secrets.get(name).cloned()),
            Self::Service(name) => Answer::Service(world.services.get(name).cloned()),
            Self::Backend(name) => Answer::Backend(backends.get(name).cloned()),
            Self::Policy(name) => Answer::Policy(policies.get(name).cloned()),
            Self::Granted(reference) => Answer::Granted(grants::allows(world, reference)),
            Self::Readable(what) => Answer::Readable(!world.unreadable.contains(what)),
        }
    }
}

impl Answer {
    /// The snapshot keeps the `Arc` of what did not change; where in a file it stands does not count.
    pub fn is(&self, other: &Self) -> bool {
        fn same<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>, equal: impl Fn(&T, &T) -> bool) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) || equal(a, b),
                (None, None) => true,
                _ => false,
            }
        }
        match (self, other) {
            (Self::Secret(a), Self::Secret(b)) => same(a, b, alike),
            (Self::Secrets(a), Self::Secrets(b)) => {
                Arc::ptr_eq(a, b)
                    || (a.len() == b.len()
                        && a.iter().zip(&**b).all(|(a, b)| Arc::ptr_eq(a, b) || alike(a, b)))
            }
            (Self::ConfigMap(a), Self::ConfigMap(b)) => same(a, b, |a, b| a == b),
            (Self::Service(a), Self::Service(b)) => {
                same(a, b, |a, b| a.external_name == b.external_name && a.ports == b.ports)
            }
            (Self::Backend(a), Self::Backend(b)) => same(a, b, |_, _| false),
            (Self::Policy(a), Self::Policy(b)) => same(a, b, |_, _| false),
            (Self::Granted(a), Self::Granted(b)) | (Self::Readable(a), Self::Readable(b)) => a == b,
            _ => false,
        }
    }
}

/// Labels count where something is found by them, and there they are the same.
fn alike(a: &SecretData, b: &SecretData) -> bool {
    a.name == b.name && a.kind == b.kind && a.annotations == b.annotations && a.data == b.data
}

/// All that was asked, with the answers.
#[derive(Debug)]
pub(super) struct Asked(Vec<(Question, Answer)>);

impl Asked {
    /// Whether every question still has the same answer.
    pub fn stands(&self, known: Known<'_>) -> bool {
        self.0.iter().all(|(question, answer)| question.answer(known).is(answer))
    }
}

/// Asks, and remembers what was asked and answered.
pub(super) struct Asker<'w> {
    known: Known<'w>,
    /// The kind of the object that is lowered.
    by: &'static str,
    asked: Vec<(Question, Answer)>,
}

impl<'w> Asker<'w> {
    pub fn new(by: Kind, known: Known<'w>) -> Self {
        Self { known, by: by.as_str(), asked: Vec::new() }
    }

    pub fn secret(&mut self, name: &ObjectName) -> Option<Arc<SecretData>> {
        match self.ask(Question::Secret(name.clone())) {
            Answer::Secret(secret) => secret,
            _ => None,
        }
    }

    pub fn secrets(&mut self, namespace: &Arc<str>, selector: &LabelSelector) -> Selection {
        match self.ask(Question::Secrets(namespace.clone(), selector.clone())) {
            Answer::Secrets(selection) => selection,
            _ => Selection::default(),
        }
    }

    pub fn config_map(&mut self, name: &ObjectName) -> Option<Arc<ConfigMapData>> {
        match self.ask(Question::ConfigMap(name.clone())) {
            Answer::ConfigMap(map) => map,
            _ => None,
        }
    }

    pub fn has_store(&self) -> bool {
        self.known.options.has_store
    }

    pub fn own_host(&self) -> OwnHost {
        self.known.options.loopback.own_host()
    }

    /// Whether a URL may name this host, as far as that can be told.
    pub fn permits(&self, host: &str) -> Result<(), String> {
        let judged = gateway_backend::permitted(host, Named::Url, self.known.options);
        judged.map(drop).map_err(|(_, message)| message)
    }

    pub fn gathered(&self) -> &'w Gathered {
        self.known.gathered
    }

    pub fn service(&mut self, name: &ObjectName) -> Option<Arc<ServiceData>> {
        match self.ask(Question::Service(name.clone())) {
            Answer::Service(service) => service,
            _ => None,
        }
    }

    pub fn backend(&mut self, name: &ObjectName) -> Option<Arc<LoweredBackend>> {
        match self.ask(Question::Backend(name.clone())) {
            Answer::Backend(backend) => backend,
            _ => None,
        }
    }

    pub fn policy(&mut self, name: &ObjectName) -> Option<Arc<LoweredPolicy>> {
        match self.ask(Question::Policy(name.clone())) {
            Answer::Policy(policy) => policy,
            _ => None,
        }
    }

    /// The policies that target a route. Not among what is remembered here: the route's unit holds it.
    pub fn applied(&self, route: &ObjectName) -> Applied {
        self.known.index.applied(route)
    }

    /// Whether an object of `from`'s namespace may refer to this one.
    pub fn may_refer(
        &mut self,
        from: &Arc<str>,
        group: &'static str,
        kind: &'static str,
        to: &ObjectName,
    ) -> bool {
        if *from == to.namespace {
            return true;
        }
        let reference = Reference { by: self.by, from: Arc::clone(from), group, kind, to: to.clone() };
        matches!(self.ask(Question::Granted(reference)), Answer::Granted(true))
    }

    /// Why a Secret or ConfigMap that is named cannot be had.
    pub fn why_not(&mut self, kind: Kind, name: &ObjectName) -> (Reason, String) {
        let word = kind.as_str();
        if self.is_unreadable(Unreadable::One(kind, name.clone())) {
            let message = format!(
                "the gateway may not read {word} {name}; let its service account get, list and watch it (the chart's rbac.secrets), or name another"
            );
            return (Reason::RefNotPermitted, message);
        }
        let reason = if kind == Kind::Secret { Reason::SecretNotFound } else { Reason::ConfigMapNotFound };
        (reason, format!("there is no {word} {name}; create it or correct the name"))
    }

    /// The same for one that must hold a certificate.
    pub fn no_certificate(&mut self, name: &ObjectName) -> (Reason, String) {
        match self.why_not(Kind::Secret, name) {
            (Reason::SecretNotFound, _) => {
                let message = format!(
                    "there is no Secret {name} of type kubernetes.io/tls; create it or correct the name"
                );
                (Reason::SecretNotFound, message)
            }
            unreadable => unreadable,
        }
    }

    /// Whether something is not there because it may not be read.
    pub fn is_unreadable(&mut self, what: Unreadable) -> bool {
        matches!(self.ask(Question::Readable(what)), Answer::Readable(false))
    }

    pub fn finish(mut self) -> Asked {
        self.asked.shrink_to_fit();
        Asked(self.asked)
    }

    fn ask(&mut self, question: Question) -> Answer {
        if let Some((_, known)) = self.asked.iter().find(|(asked, _)| *asked == question) {
            return known.clone();
        }
        let answer = question.answer(self.known);
        self.asked.push((question, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Change, Object};

    fn secret(namespace: &str, name: &str, label: &str) -> Change {
        Change::Put(Object::Secret(SecretData {
            name: ObjectName::new(namespace, name),
            kind: "Opaque".into(),
            labels: [("keys".to_owned(), label.to_owned())].into_iter().collect(),
            annotations: Default::default(),
            data: Arc::default(),
        }))
    }

    fn selector(label: &str) -> LabelSelector {
        LabelSelector { match_labels: [("keys".to_owned(), label.to_owned())].into() }
    }

    fn names(selection: &Selection) -> Vec<&str> {
        selection.iter().map(|secret| &*secret.name.name).collect()
    }

    #[test]
    fn a_selection_is_the_same_one_until_something_in_it_changes() {
        let mut world = Snapshot::default();
        for change in
            [secret("a", "2", "x"), secret("a", "1", "x"), secret("a", "3", "y"), secret("b", "4", "x")]
        {
            world.apply(change);
        }
        let ask =
            |world: &Snapshot, gathered: &Gathered| gathered.secrets(world, &"a".into(), &selector("x"));
        let gathered = Gathered::default();
        let first = ask(&world, &gathered);
        assert_eq!(names(&first), ["1", "2"]);
        let made = gathered.derived("n".into(), &first, &mut |before| {
            assert!(before.is_none());
            Arc::new(1_u32)
        });
        let gathered = gathered.next();
        assert!(Arc::ptr_eq(&first, &ask(&world, &gathered)));
        let again = gathered.derived("n".into(), &first, &mut |_| panic!("it was made already"));
        assert!(Arc::ptr_eq(&made, &again));
        world.apply(secret("a", "3", "x"));
        let gathered = gathered.next();
        let second = ask(&world, &gathered);
        assert_eq!(names(&second), ["1", "2", "3"]);
        assert!(!Answer::Secrets(first).is(&Answer::Secrets(second.clone())));
        gathered.derived("n".into(), &second, &mut |before| {
            assert!(Arc::ptr_eq(&made, &before.expect("somebody has it")));
            Arc::new(2_u32)
        });
    }

    #[test]
    fn no_labels_select_no_secrets() {
        let mut world = Snapshot::default();
        world.apply(secret("a", "1", "x"));
        let none = LabelSelector { match_labels: BTreeMap::new() };
        assert!(Gathered::default().secrets(&world, &"a".into(), &none).is_empty());
    }
}

//! What a unit asks of the world while it is lowered. A unit stands for as long as every question it asked still has the
//! same answer, "not there" included.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gateway_backend::LoweredBackend;
use super::grants;
use crate::snapshot::{SecretData, ServiceData, Snapshot};
use crate::values::ObjectName;

/// What can be asked: the world, and the backends as they were lowered from it.
#[derive(Clone, Copy)]
pub(super) struct Known<'w> {
    pub world: &'w Snapshot,
    pub backends: &'w Backends,
}

pub(super) type Backends = BTreeMap<ObjectName, Arc<LoweredBackend>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Secret(ObjectName),
    Service(ObjectName),
    Backend(ObjectName),
    Granted(Reference),
}

/// A reference from a GatewayRoute to an object of another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub from: Arc<str>,
    pub group: &'static str,
    pub kind: &'static str,
    pub to: ObjectName,
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Secret(Option<Arc<SecretData>>),
    Service(Option<Arc<ServiceData>>),
    Backend(Option<Arc<LoweredBackend>>),
    Granted(bool),
}

impl Question {
    pub fn answer(&self, known: Known<'_>) -> Answer {
        let Known { world, backends } = known;
        match self {
            Self::Secret(name) => Answer::Secret(world.secrets.get(name).cloned()),
            Self::Service(name) => Answer::Service(world.services.get(name).cloned()),
            Self::Backend(name) => Answer::Backend(backends.get(name).cloned()),
            Self::Granted(reference) => Answer::Granted(grants::allows(world, reference)),
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
            (Self::Secret(a), Self::Secret(b)) => same(a, b, |a, b| a.kind == b.kind && a.data == b.data),
            (Self::Service(a), Self::Service(b)) => {
                same(a, b, |a, b| a.external_name == b.external_name && a.ports == b.ports)
            }
            (Self::Backend(a), Self::Backend(b)) => same(a, b, |_, _| false),
            (Self::Granted(a), Self::Granted(b)) => a == b,
            _ => false,
        }
    }
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
    asked: Vec<(Question, Answer)>,
}

impl<'w> Asker<'w> {
    pub fn new(known: Known<'w>) -> Self {
        Self { known, asked: Vec::new() }
    }

    pub fn secret(&mut self, name: &ObjectName) -> Option<Arc<SecretData>> {
        match self.ask(Question::Secret(name.clone())) {
            Answer::Secret(secret) => secret,
            _ => None,
        }
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
        let reference = Reference { from: Arc::clone(from), group, kind, to: to.clone() };
        matches!(self.ask(Question::Granted(reference)), Answer::Granted(true))
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

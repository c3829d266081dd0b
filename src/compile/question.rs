//! What a unit asks of the world while it is lowered. A unit stands for as long as every question it asked still has the
//! same answer, "not there" included.

use std::sync::Arc;

use super::grants;
use crate::snapshot::{Manifest, SecretData, ServiceData, Snapshot};
use crate::values::ObjectName;

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
    Backend(Option<Arc<Manifest>>),
    Granted(bool),
}

impl Question {
    pub fn answer(&self, world: &Snapshot) -> Answer {
        match self {
            Self::Secret(name) => Answer::Secret(world.secrets.get(name).cloned()),
            Self::Service(name) => Answer::Service(world.services.get(name).cloned()),
            Self::Backend(name) => Answer::Backend(world.backends.get(name).cloned()),
            Self::Granted(reference) => Answer::Granted(grants::allows(world, reference)),
        }
    }
}

impl Answer {
    /// The snapshot keeps the `Arc` of what did not change.
    pub fn is(&self, other: &Self) -> bool {
        fn same<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (None, None) => true,
                _ => false,
            }
        }
        match (self, other) {
            (Self::Secret(a), Self::Secret(b)) => same(a, b),
            (Self::Service(a), Self::Service(b)) => same(a, b),
            (Self::Backend(a), Self::Backend(b)) => same(a, b),
            (Self::Granted(a), Self::Granted(b)) => a == b,
            _ => false,
        }
    }
}

/// Asks, and remembers what was asked and answered.
pub(super) struct Asker<'w> {
    world: &'w Snapshot,
    asked: Vec<(Question, Answer)>,
}

impl<'w> Asker<'w> {
    pub fn new(world: &'w Snapshot) -> Self {
        Self { world, asked: Vec::new() }
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

    pub fn backend(&mut self, name: &ObjectName) -> Option<Arc<Manifest>> {
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

    pub fn finish(self) -> Vec<(Question, Answer)> {
        self.asked
    }

    fn ask(&mut self, question: Question) -> Answer {
        if let Some((_, known)) = self.asked.iter().find(|(asked, _)| *asked == question) {
            return known.clone();
        }
        let answer = question.answer(self.world);
        self.asked.push((question, answer.clone()));
        answer
    }
}

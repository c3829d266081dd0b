//! All there is to say about one object of ours. Status, Events, log lines and `check` are made from it alone.

use std::borrow::Cow;
use std::sync::Arc;

use crate::snapshot::{Kind, Origin};
use crate::values::{ObjectName, Problem};

/// The object, at the generation that was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    pub kind: Kind,
    pub name: ObjectName,
    pub uid: Arc<str>,
    pub generation: i64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub object: ObjectRef,
    pub origin: Option<Origin>,
    /// In the order of their paths.
    pub problems: Vec<Problem>,
    /// `Accepted`, `ResolvedRefs` and, where it applies, `Shadowed`; never `Programmed`, which the runtime decides.
    pub conditions: Vec<Condition>,
    /// Rules that have something to say.
    pub rules: Vec<RuleReport>,
    /// Fingerprint of everything that this object's generation resolved to: replicas that hold the same one serve the
    /// same (problems included).
    pub resolved: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleReport {
    pub name: Arc<str>,
    /// The worst problem's reason.
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    Accepted,
    ResolvedRefs,
    Programmed,
    Shadowed,
    /// Only beside `Accepted`: some rules are served, some are not.
    PartiallyInvalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: ConditionType,
    pub status: ConditionStatus,
    pub reason: &'static str,
    pub message: Cow<'static, str>,
}

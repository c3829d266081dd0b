//! The action `aggregate` in its proven form: a graph of calls, and what is made of them.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::action::WeightedTarget;
use crate::expression::{Expression, MethodTemplate, PathTemplate, Template};
use crate::filters::{HeaderEdits, RetryPlan, TimeoutsPlan};
use crate::message::RawJson;

/// One answer from several calls.
#[derive(Debug, PartialEq)]
pub struct AggregatePlan {
    /// At most 16, in the order in which they are written. What each needs leads in no circle.
    pub calls: Vec<CallPlan>,
    pub timeouts: TimeoutsPlan,
    /// Of all calls together.
    pub timeout: Option<Duration>,
    pub answer: AnswerPlan,
}

/// One of the calls.
#[derive(Debug, PartialEq)]
pub struct CallPlan {
    pub name: Arc<str>,
    pub target: WeightedTarget,
    /// Places of the calls that must be over before.
    pub needs: Box<[usize]>,
    pub when: Option<Expression>,
    pub method: MethodTemplate,
    pub path: PathTemplate,
    /// What stands behind the question mark of the path.
    pub query: Option<Template>,
    /// Encoded names with `=`, and values.
    pub params: Box<[(Box<str>, Template)]>,
    /// Fields of the request that are passed on, beside those that always are.
    pub pass: Box<[HeaderName]>,
    pub headers: HeaderEdits,
    pub body: Option<Expression>,
    /// Of all tries, until the last of the answer has come.
    pub timeout: Option<Duration>,
    /// `None`: only what surely was not processed goes out again.
    pub retry: Option<RetryPlan>,
    pub on_error: OnError,
}

/// What the failure of a call means.
#[derive(Clone, Debug, PartialEq)]
pub enum OnError {
    /// It fails the whole answer.
    Fail,
    /// It fails the whole answer, with this status.
    Status(u16),
    Value(Arc<RawJson>),
    Omit,
}

/// What is made of the calls.
#[derive(Debug, Default, PartialEq)]
pub struct AnswerPlan {
    pub status: Option<Expression>,
    pub headers: HeaderEdits,
    pub body: BodyPlan,
}

#[derive(Debug, Default, PartialEq)]
pub enum BodyPlan {
    /// An object with one member a call.
    #[default]
    Members,
    /// The same, and a member that tells of calls that failed.
    MembersAndErrors,
    Expression(Expression),
}

impl AggregatePlan {
    /// When all of it must be over, from its beginning.
    pub fn limit(&self) -> Option<Duration> {
        match (self.timeout, self.timeouts.request) {
            (Some(own), Some(request)) => Some(own.min(request)),
            (own, request) => own.or(request),
        }
    }

    /// When a call begins, for people.
    pub fn needs_of(&self, call: &CallPlan) -> String {
        let names: Vec<_> =
            call.needs.iter().filter_map(|place| Some(&*self.calls.get(*place)?.name)).collect();
        match names.as_slice() {
            [] => "at once".to_owned(),
            names => format!("after {}", names.join(" and ")),
        }
    }
}

impl Display for AggregatePlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "aggregate, {}", self.timeouts)?;
        if let Some(timeout) = self.timeout {
            write!(f, ", all calls within {timeout:?}")?;
        }
        writeln!(f)?;
        for call in &self.calls {
            writeln!(f, "    {} {}: {call}", call.name, self.needs_of(call))?;
        }
        writeln!(f, "    answer: {}", self.answer)
    }
}

impl Display for CallPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(when) = &self.when {
            write!(f, "when {when:?}, ")?;
        }
        write!(f, "{} {}", self.method.source(), self.path.source())?;
        for (place, (name, value)) in self.params.iter().enumerate() {
            let mark = if place == 0 && self.query.is_none() { '?' } else { '&' };
            write!(f, "{mark}{name}{}", value.source())?;
        }
        match &self.target {
            WeightedTarget::Backend(id) => write!(f, " -> {id}")?,
            WeightedTarget::Unresolved(kind) => write!(f, " -> unresolved: {}", kind.as_str())?,
        }
        if let Some(body) = &self.body {
            write!(f, ", body {body:?}")?;
        }
        if !self.pass.is_empty() {
            let names: Vec<_> = self.pass.iter().map(HeaderName::as_str).collect();
            write!(f, ", passes {}", names.join(" "))?;
        }
        if self.headers != HeaderEdits::default() {
            write!(f, ", {:?}", self.headers)?;
        }
        if let Some(timeout) = self.timeout {
            write!(f, ", within {timeout:?}")?;
        }
        if let Some(retry) = &self.retry {
            write!(f, ", retry {retry}")?;
        }
        match &self.on_error {
            OnError::Fail => f.write_str(", required"),
            OnError::Status(status) => write!(f, ", else status {status}"),
            OnError::Value(value) => write!(f, ", else {}", value.as_str()),
            OnError::Omit => f.write_str(", else left out"),
        }
    }
}

impl Display for AnswerPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.status {
            None => f.write_str("200")?,
            Some(status) => write!(f, "status {status:?}")?,
        }
        if self.headers != HeaderEdits::default() {
            write!(f, ", {:?}", self.headers)?;
        }
        match &self.body {
            BodyPlan::Members => f.write_str(", a member each call"),
            BodyPlan::MembersAndErrors => f.write_str(", a member each call, and _errors"),
            BodyPlan::Expression(body) => write!(f, ", body {body:?}"),
        }
    }
}

//! `aggregate` → its plan: the graph of calls proven, each expression checked against the calls that are over by then.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::HeaderName;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::asking::Asking;
use super::backend_refs::{self, Reference};
use crate::api::{AggregateResponseSpec, AggregateSpec, CallHeadersSpec, CallSpec, OnErrorSpec};
use crate::expression::{Kind, KnownCalls, MethodTemplate, PathTemplate, REQUEST, Template};
use crate::filters::{
    HeaderEdits, HeadersSpec, Member as _, QueryParamSpec, Retry, RetryPlan, Scope, TimeoutsPlan,
    is_forbidden,
};
use crate::message::RawJson;
use crate::route_map::{AggregatePlan, AnswerPlan, BackendPlan, BodyPlan, CallPlan, OnError, WeightedTarget};
use crate::values::{FieldPath, Problem, Reason};

/// Of one `onError.value`, as compact JSON.
const MAX_VALUE: usize = 4096;
/// Everything but unreserved characters (RFC 3986 section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// An encoded name with `=`, and its value.
type Parameter = (Box<str>, Template);

/// What became of an aggregation. Where a call cannot be resolved there is a plan all the same, and a problem.
pub(super) struct Lowered {
    /// `None`: something is wrong, and told.
    pub plan: Option<AggregatePlan>,
    pub backends: Vec<Arc<BackendPlan>>,
    pub problems: Vec<Problem>,
}

/// Proves what is written `at` a field of an object whose references resolve in the namespace `from`.
pub(super) fn lower(
    spec: &AggregateSpec,
    at: &FieldPath,
    from: &Arc<str>,
    (timeouts, retry): (TimeoutsPlan, Option<RetryPlan>),
    asking: Asking<'_, '_>,
) -> Lowered {
    let names: Arc<[Arc<str>]> = spec.calls.iter().map(|call| Arc::from(call.name.as_str())).collect();
    let mut lowering = Lowering {
        names,
        from,
        asking,
        retry,
        backends: Vec::new(),
        resolving: Vec::new(),
        problems: Vec::new(),
    };
    let plan = lowering.aggregate(spec, at, timeouts);
    let Lowering { backends, mut problems, resolving, .. } = lowering;
    let is_wrong = !problems.is_empty();
    problems.extend(resolving);
    Lowered { plan: plan.filter(|_| !is_wrong), backends, problems }
}

struct Lowering<'a, 'w> {
    names: Arc<[Arc<str>]>,
    from: &'a Arc<str>,
    asking: Asking<'a, 'w>,
    /// The rule's, for calls that have none of their own.
    retry: Option<RetryPlan>,
    backends: Vec<Arc<BackendPlan>>,
    /// Of references, which cost the call and not the rule.
    resolving: Vec<Problem>,
    problems: Vec<Problem>,
}

impl Lowering<'_, '_> {
    fn aggregate(
        &mut self,
        spec: &AggregateSpec,
        at: &FieldPath,
        timeouts: TimeoutsPlan,
    ) -> Option<AggregatePlan> {
        let calls_at = at.field("calls");
        let needs: Vec<_> =
            spec.calls.iter().enumerate().map(|(i, call)| self.needs(call, &calls_at.index(i))).collect();
        if let Some(circle) = circle(&needs) {
            let mut names: Vec<_> = circle.iter().map(|place| &*self.names[*place]).collect();
            names.extend(names.first().copied());
            let message = format!(
                "the calls wait for each other in a circle: {}; take one of them out of a dependsOn",
                names.join(" needs ")
            );
            self.refuse(calls_at.index(circle[0]).field("dependsOn"), message);
            return None;
        }
        let calls: Vec<_> = spec
            .calls
            .iter()
            .enumerate()
            .map(|(place, call)| {
                let mut over = BTreeSet::new();
                collect(place, &needs, &mut over);
                self.asking.calls = Some(KnownCalls::new(Arc::clone(&self.names), over));
                self.call(call, &needs[place], &timeouts, &calls_at.index(place))
            })
            .collect();
        self.asking.calls = Some(KnownCalls::new(Arc::clone(&self.names), 0..spec.calls.len()));
        let answer = self.answer(spec, &at.field("response"));
        let timeout = spec.timeout.map(|limit| limit.std());
        if timeout.is_some_and(|limit| limit.is_zero()) {
            self.refuse(at.field("timeout"), "0s is no time to call anybody; leave it out or write more");
        }
        let calls = calls.into_iter().collect::<Option<Vec<_>>>()?;
        Some(AggregatePlan { calls, timeouts, timeout, answer: answer? })
    }

    fn needs(&mut self, call: &CallSpec, at: &FieldPath) -> Vec<usize> {
        let mut needs = Vec::with_capacity(call.depends_on.len());
        for (index, name) in call.depends_on.iter().enumerate() {
            match self.names.iter().position(|known| **known == **name) {
                Some(place) => needs.push(place),
                None => {
                    let known: Vec<_> =
                        self.names.iter().map(|name| &**name).filter(|n| *n != call.name).collect();
                    let message = match known.as_slice() {
                        [] => format!("there is no call {name:?}, and no other call at all"),
                        known => format!("there is no call {name:?}; there are {}", known.join(", ")),
                    };
                    self.refuse(at.field("dependsOn").index(index), message);
                }
            }
        }
        needs.sort_unstable();
        needs
    }

    fn call(
        &mut self,
        spec: &CallSpec,
        needs: &[usize],
        timeouts: &TimeoutsPlan,
        at: &FieldPath,
    ) -> Option<CallPlan> {
        let target = self.target(spec, &at.field("backendRef"));
        let when = self.expression(spec.when.as_deref(), at.field("when"), Kind::BOOL);
        let method = self.method(spec.method.as_deref().unwrap_or("GET"), at.field("method"));
        let path = self.path(&spec.path, at.field("path"));
        let params = self.params(&spec.query, &at.field("query"));
        let headers = spec.headers.clone().unwrap_or_default();
        let pass = self.pass(&headers, &at.field("headers").field("pass"));
        let headers = self.headers(headers.set, at, |at| at);
        let body = self.expression(spec.body.as_deref(), at.field("body"), Kind::ANY);
        let on_error = self.on_error(spec.on_error.as_ref(), &at.field("onError"));
        let retry = self.retry(spec, &at.field("retry"));
        // One try is all of it where there is one only.
        let whole = timeouts.backend_request.filter(|_| retry.is_none());
        let (path, query) = path?;
        Some(CallPlan {
            name: spec.name.as_str().into(),
            target,
            needs: needs.into(),
            when: when?,
            method: method?,
            path,
            query,
            params: params?,
            pass,
            headers,
            body: body?,
            timeout: spec.timeout.map(|limit| limit.std()).or(whole),
            retry,
            on_error: on_error?,
        })
    }

    fn target(&mut self, spec: &CallSpec, at: &FieldPath) -> WeightedTarget {
        let backend = &spec.backend_ref;
        let reference = Reference {
            kind: backend.kind,
            name: &backend.name,
            namespace: backend.namespace.as_deref(),
            port: backend.port,
        };
        match backend_refs::resolve(&reference, self.from, self.asking.asker, at) {
            Ok(plan) => {
                let id = plan.id.clone();
                self.backends.push(plan);
                WeightedTarget::Backend(id)
            }
            Err((kind, problem)) => {
                self.resolving.push(problem);
                WeightedTarget::Unresolved(kind)
            }
        }
    }

    /// `Some(None)`: none is written.
    fn expression(
        &mut self,
        source: Option<&str>,
        at: FieldPath,
        wanted: Kind,
    ) -> Option<Option<crate::expression::Expression>> {
        let Some(source) = source else { return Some(None) };
        let expression = self.asking.expression(at, source, &REQUEST, wanted);
        self.take_over();
        expression.map(Some)
    }

    fn template(&mut self, source: &str, at: FieldPath) -> Option<Template> {
        let template = self.asking.template(at, source, &REQUEST);
        self.take_over();
        template
    }

    fn method(&mut self, source: &str, at: FieldPath) -> Option<MethodTemplate> {
        let template = self.template(source, at.clone())?;
        let method = MethodTemplate::new(template).ok();
        if method.is_none() {
            self.refuse(at, format!("around its expressions {source:?} is no name of a method that is sent"));
        }
        method
    }

    fn path(&mut self, source: &str, at: FieldPath) -> Option<(PathTemplate, Option<Template>)> {
        let (path, query) = self.template(source, at.clone())?.cut_at_query();
        if query.as_ref().is_some_and(|query| !query.outline().bytes().all(may_stand_in_query)) {
            let message = "a query has unreserved characters, sub-delimiters, / ? : @ and %-escapes only";
            self.refuse(at, message);
            return None;
        }
        match PathTemplate::new(path) {
            Ok(path) => Some((path, query)),
            Err(error) => {
                self.refuse(at, format!("around its expressions: {error}"));
                None
            }
        }
    }

    fn params(&mut self, spec: &[QueryParamSpec], at: &FieldPath) -> Option<Box<[Parameter]>> {
        let params: Vec<_> = spec
            .iter()
            .enumerate()
            .map(|(index, param)| {
                let value = self.template(&param.value, at.index(index).field("value"))?;
                let name = format!("{}=", utf8_percent_encode(&param.name, ENCODED));
                Some((name.into(), value))
            })
            .collect();
        params.into_iter().collect()
    }

    fn pass(&mut self, spec: &CallHeadersSpec, at: &FieldPath) -> Box<[HeaderName]> {
        let mut names = Vec::with_capacity(spec.pass.len());
        for (index, name) in spec.pass.iter().enumerate() {
            match HeaderName::try_from(name.as_str()) {
                Ok(name) if !is_forbidden(&name) && !belongs_to_body(&name) => names.push(name),
                Ok(name) => {
                    let message = format!("{name} belongs to one connection or body and is not passed on");
                    self.refuse(at.index(index), message);
                }
                Err(_) => self.refuse(at.index(index), format!("{name:?} is not the name of a header field")),
            }
        }
        names.into()
    }

    /// Problems of fields are told below `at` at `headers`, moved by `place`.
    fn headers(
        &mut self,
        set: Vec<crate::filters::HeaderSpec>,
        at: &FieldPath,
        place: impl Fn(FieldPath) -> FieldPath,
    ) -> HeaderEdits {
        let spec = HeadersSpec { set, ..HeadersSpec::default() };
        let mut problems = Vec::new();
        let edits = HeaderEdits::new(&spec, &REQUEST, &mut self.asking, &mut problems);
        problems.append(&mut self.asking.problems);
        self.problems.extend(problems.into_iter().map(|problem| Problem {
            path: place(problem.path).under(at),
            reason: Reason::Invalid,
            ..problem
        }));
        edits
    }

    fn retry(&mut self, spec: &CallSpec, at: &FieldPath) -> Option<RetryPlan> {
        let Some(spec) = &spec.retry else { return self.retry.clone() };
        let compiled = Retry::compile(spec.clone(), &mut self.asking);
        compiled
            .map_err(|wrong| {
                let wrong = wrong.into_iter().map(|problem| problem.under(at));
                self.problems.extend(wrong.map(|problem| Problem { reason: Reason::Invalid, ..problem }));
            })
            .ok()
    }

    fn on_error(&mut self, spec: Option<&OnErrorSpec>, at: &FieldPath) -> Option<OnError> {
        let Some(spec) = spec else { return Some(OnError::Fail) };
        if let Some(status) = spec.status {
            return Some(OnError::Status(status));
        }
        let Some(value) = &spec.value else { return Some(OnError::Omit) };
        let text = value.to_string();
        if text.len() > MAX_VALUE {
            let message = format!("the value has {} bytes, expected at most {MAX_VALUE}", text.len());
            self.refuse(at.field("value"), message);
            return None;
        }
        let json = RawJson::new(text).expect("what is printed as JSON is JSON");
        Some(OnError::Value(Arc::new(json)))
    }

    fn answer(&mut self, spec: &AggregateSpec, at: &FieldPath) -> Option<AnswerPlan> {
        let members = match spec.errors_member {
            true => BodyPlan::MembersAndErrors,
            false => BodyPlan::Members,
        };
        let Some(AggregateResponseSpec { status, headers, body }) = &spec.response else {
            return Some(AnswerPlan { body: members, ..AnswerPlan::default() });
        };
        let status = self.expression(status.as_deref(), at.field("status"), Kind::INT);
        // The list stands at `headers` itself here, not at its `set`.
        let place = |path: FieldPath| FieldPath::new(path.as_str().replacen("headers.set", "headers", 1));
        let headers = self.headers(headers.clone(), at, place);
        let body = self.expression(body.as_deref(), at.field("body"), Kind::ANY);
        Some(AnswerPlan { status: status?, headers, body: body?.map_or(members, BodyPlan::Expression) })
    }

    /// Problems that the scope has told.
    fn take_over(&mut self) {
        let told = std::mem::take(&mut self.asking.problems);
        self.problems.extend(told.into_iter().map(|problem| Problem { reason: Reason::Invalid, ..problem }));
    }

    fn refuse(&mut self, at: FieldPath, message: impl Into<String>) {
        self.problems.push(Problem::error(at, Reason::Invalid, message));
    }
}

/// All calls that are over before the one at `place` begins.
fn collect(place: usize, needs: &[Vec<usize>], over: &mut BTreeSet<usize>) {
    for need in &needs[place] {
        if over.insert(*need) {
            collect(*need, needs, over);
        }
    }
}

/// Calls that wait for each other, each for the next.
fn circle(needs: &[Vec<usize>]) -> Option<Vec<usize>> {
    (0..needs.len()).find_map(|start| {
        let mut way = vec![start];
        leads_back(&mut way, needs, &mut BTreeSet::new()).then_some(way)
    })
}

/// Extends the way until it comes back to its start.
fn leads_back(way: &mut Vec<usize>, needs: &[Vec<usize>], seen: &mut BTreeSet<usize>) -> bool {
    let (start, here) = (way[0], way[way.len() - 1]);
    for need in &needs[here] {
        if *need == start {
            return true;
        }
        if seen.insert(*need) {
            way.push(*need);
            if leads_back(way, needs, seen) {
                return true;
            }
            way.pop();
        }
    }
    false
}

fn belongs_to_body(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("content-")
        || name.starts_with("x-forwarded")
        || matches!(
            name,
            "accept" | "accept-encoding" | "range" | "expect" | "forwarded" | "x-real-ip" | "x-request-id"
        )
        || name.starts_with("if-")
}

fn may_stand_in_query(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_found_with_all_who_stand_in_it() {
        for (needs, expected) in [
            (vec![], None),
            (vec![vec![], vec![0], vec![0, 1]], None),
            (vec![vec![0]], Some(vec![0])),
            (vec![vec![], vec![2], vec![3], vec![1, 0]], Some(vec![1, 2, 3])),
            (vec![vec![1], vec![2], vec![1]], Some(vec![1, 2])),
        ] {
            assert_eq!(circle(&needs), expected, "{needs:?}");
        }
    }

    #[test]
    fn what_a_need_needs_is_over_too() {
        let needs = [vec![], vec![0], vec![1], vec![]];
        let mut over = BTreeSet::new();
        collect(2, &needs, &mut over);
        assert_eq!(over, BTreeSet::from([0, 1]));
    }
}

//! `limits`: how many requests may be under way at once where it is written, and how large their heads may be.
//!
//! Invariant: a request's place is given back when all of it is over: its answer's body, or its tunnel.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Combine, Decision, Filter, FilterKind, Keep, Member, Ring, Scope, Unmatched};
use crate::message::{ErrorKind, Exchange, Place, ProxyError};
use crate::values::{ByteSize, FieldPath, Problem, Reason};

pub struct Limits;

/// How many requests at once, and how large.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.concurrentRequests) || has(self.requestHeaders) || has(self.uri)", SAY_ONE)
)]
pub struct Spec {
    /// Requests under way at once, on each replica; others are answered 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000), extend("format" = "int32"))]
    pub concurrent_requests: Option<u32>,
    /// Header fields of a request in all; at most 32Ki. Larger ones are answered 431.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_headers: Option<ByteSize>,
    /// Path and query of a request; at most 8Ki. Longer ones are answered 414.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<ByteSize>,
}

const SAY_ONE: &str = "say concurrentRequests, requestHeaders or uri";
const MAX_CONCURRENT: u32 = 1_000_000;
/// What the gateway takes of anybody.
const MAX_HEADERS: u64 = 32 << 10;
const MAX_URI: u64 = 8 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where it is written: all rules that inherit it share one number.
    whose: Arc<str>,
    concurrent: Option<u32>,
    headers: Option<usize>,
    uri: Option<usize>,
}

impl Member for Limits {
    const NAME: &'static str = "limits";
    const COMBINE: Combine = Combine::Both;
    const UNMATCHED: Unmatched = Unmatched::Applies;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        if spec == Spec::default() {
            refuse(FieldPath::default(), SAY_ONE.into());
        }
        if let Some(found) = spec.concurrent_requests.filter(|found| !(1..=MAX_CONCURRENT).contains(found)) {
            let message = format!("found {found}, expected 1 to {MAX_CONCURRENT}");
            refuse(FieldPath::new("concurrentRequests"), message);
        }
        let mut size = |name: &str, given: Option<ByteSize>, most: u64| {
            let bytes = given?.bytes();
            if !(1..=most).contains(&bytes) {
                let message = format!(
                    "found {bytes} bytes, expected 1 to {}Ki: the gateway takes no larger ones anyway",
                    most >> 10
                );
                refuse(FieldPath::new(name), message);
            }
            usize::try_from(bytes).ok()
        };
        let plan = Plan {
            whose: scope.holder().into(),
            concurrent: spec.concurrent_requests,
            headers: size("requestHeaders", spec.request_headers, MAX_HEADERS),
            uri: size("uri", spec.uri, MAX_URI),
        };
        if problems.is_empty() { Ok(plan) } else { Err(problems) }
    }
}

impl FilterKind for Limits {
    const RING: Ring = Ring::Limits;

    fn link(plan: &Plan, keep: &dyn Keep) -> Arc<dyn Filter> {
        let concurrent = plan.concurrent.map(|most| {
            let key = format!("limits {}", plan.whose);
            let state = keep.state(&key, &mut || Arc::new(AtomicU32::new(0)));
            (state.downcast().expect("only a number is kept under this name"), most)
        });
        Arc::new(Gate { headers: plan.headers, uri: plan.uri, concurrent })
    }
}

/// The linked member.
struct Gate {
    headers: Option<usize>,
    uri: Option<usize>,
    /// How many are under way, and how many may be.
    concurrent: Option<(Arc<AtomicU32>, u32)>,
}

impl Filter for Gate {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let target = exchange.request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if self.uri.is_some_and(|most| target > most) {
            return ErrorKind::UriTooLong.into();
        }
        if self.headers.is_some_and(|most| size(exchange.request.headers()) > most) {
            return ErrorKind::HeadersTooLarge.into();
        }
        let Some((open, most)) = &self.concurrent else { return Decision::Continue };
        match Place::take(open, *most) {
            Some(place) => {
                exchange.places.push(place);
                Decision::Continue
            }
            None => {
                let error = ProxyError::from(ErrorKind::Overloaded);
                error.with_header(RETRY_AFTER, HeaderValue::from_static("1")).into()
            }
        }
    }
}

/// As HTTP/1.1 writes the fields.
fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum()
}

#[cfg(test)]
mod tests {
    use std::any::Any;
    use std::cell::RefCell;
    use std::collections::HashMap;

    use http::HeaderName;
    use serde_json::{Value, json};

    use super::*;
    use crate::filters::contract_tests::{NoScope, exchange};
    use crate::message::{LocalFuture, Outbound, Request, Response};
    use crate::values::BackendId;

    /// Nobody is asked here.
    struct Nobody;

    impl Outbound for Nobody {
        fn call<'a>(&'a self, _: &'a BackendId, _: Request) -> LocalFuture<'a, Result<Response, ProxyError>> {
            panic!("a limit asks nobody")
        }

        fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
            Err(work)
        }
    }

    fn compiled(spec: Value) -> Result<Plan, Vec<String>> {
        let spec = serde_json::from_value(spec).map_err(|error| vec![error.to_string()])?;
        let told = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect();
        Limits::compile(spec, &mut NoScope).map_err(told)
    }

    #[derive(Default)]
    struct Kept(RefCell<HashMap<String, Arc<dyn Any + Send + Sync>>>);

    impl Keep for Kept {
        fn state(
            &self,
            key: &str,
            make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
        ) -> Arc<dyn Any + Send + Sync> {
            self.0.borrow_mut().entry(key.to_owned()).or_insert_with(make).clone()
        }
    }

    /// The reason of a refusal, and its `Retry-After`.
    fn refusal(filter: &dyn Filter, exchange: &mut Exchange) -> Option<(&'static str, String)> {
        match filter.request(exchange) {
            Decision::Continue => None,
            Decision::Fail(error) => {
                let after = error.headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
                Some((error.kind.as_str(), after))
            }
            _ => panic!("it decides at once"),
        }
    }

    fn asking(target: &str) -> Exchange {
        exchange(target, 0, std::rc::Rc::new(Nobody))
    }

    #[test]
    fn as_many_as_allowed_are_under_way_at_once_wherever_they_ask() {
        let keep = Kept::default();
        let plan = compiled(json!({"concurrentRequests": 2})).expect("valid");
        let (one, other) = (Limits::link(&plan, &keep), Limits::link(&plan, &keep));
        let (mut first, mut second, mut third) = (asking("/"), asking("/"), asking("/"));
        assert_eq!((refusal(&*one, &mut first), refusal(&*other, &mut second)), (None, None));
        let overloaded = Some(("Overloaded", "retry-after: \"1\"".to_owned()));
        assert_eq!(refusal(&*one, &mut third), overloaded);
        // Its answer is still being sent.
        let held = std::mem::take(&mut first.places);
        drop(first);
        assert_eq!(refusal(&*one, &mut third), overloaded);
        drop(held);
        assert_eq!(refusal(&*one, &mut third), None);
        drop((second, third));
        let elsewhere = Limits::link(&Plan { whose: "another".into(), ..plan }, &keep);
        let mut all: Vec<_> = (0..2).map(|_| asking("/")).collect();
        assert!(all.iter_mut().all(|exchange| refusal(&*one, exchange).is_none()));
        assert_eq!(refusal(&*elsewhere, &mut asking("/")), None, "it has a number of its own");
    }

    #[test]
    fn a_new_number_counts_those_that_are_under_way() {
        let keep = Kept::default();
        let plan = compiled(json!({"concurrentRequests": 3})).expect("valid");
        let before = Limits::link(&plan, &keep);
        let mut open: Vec<_> = (0..3).map(|_| asking("/")).collect();
        assert!(open.iter_mut().all(|exchange| refusal(&*before, exchange).is_none()));
        let after = Limits::link(&Plan { concurrent: Some(2), ..plan }, &keep);
        open.pop();
        assert!(refusal(&*after, &mut asking("/")).is_some());
        open.pop();
        assert!(refusal(&*after, &mut asking("/")).is_none());
    }

    #[test]
    fn targets_and_heads_are_measured_as_they_go_out() {
        let link = |spec: Value| Limits::link(&compiled(spec).expect("valid"), &Kept::default());
        let uri = link(json!({"uri": "8"}));
        assert_eq!(refusal(&*uri, &mut asking("/abc?x=1")), None);
        assert_eq!(refusal(&*uri, &mut asking("/abcd?x=1")), Some(("UriTooLong", String::new())));
        let headers = link(json!({"requestHeaders": "20"}));
        let with = |value: &'static str| {
            let mut exchange = asking("/");
            let fields = exchange.request.headers_mut();
            fields.clear();
            fields.append(HeaderName::from_static("a"), HeaderValue::from_static(value));
            fields.append(HeaderName::from_static("a"), HeaderValue::from_static("12345"));
            exchange
        };
        assert_eq!(refusal(&*headers, &mut with("12345")), None);
        assert_eq!(refusal(&*headers, &mut with("123456")), Some(("HeadersTooLarge", String::new())));
    }

    #[test]
    fn what_could_never_hold_is_refused() {
        for (spec, part) in [
            (json!({}), SAY_ONE),
            (json!({"concurrentRequests": 0}), "found 0, expected 1 to 1000000"),
            (json!({"concurrentRequests": 1_000_001}), "expected 1 to 1000000"),
            (json!({"requestHeaders": "64Ki"}), "requestHeaders: found 65536 bytes, expected 1 to 32Ki"),
            (json!({"uri": "9Ki"}), "uri: found 9216 bytes, expected 1 to 8Ki"),
            (json!({"uri": "0"}), "uri: found 0 bytes"),
            (json!({"perClient": 1}), "unknown field"),
        ] {
            let told = compiled(spec.clone()).expect_err("refused").join("; ");
            assert!(told.contains(part), "{spec}: {told}");
        }
    }
}

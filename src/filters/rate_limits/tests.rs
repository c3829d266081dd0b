//! Tests of `rateLimits` as a filter: who is counted where, and what is told.

use std::any::Any;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use serde_json::{Value, json};

use super::hashing::shared_prefix;
use super::work::{RATE_LIMIT, RATE_LIMIT_POLICY};
use super::{MAX_LIMITS, Plan, RateLimits, Spec};
use crate::filters::chain::run;
use crate::filters::contract::{AnyPlan, Filter, FilterKind, Keep, Member, Ring};
use crate::filters::contract_tests::{FakeOutbound, NoScope, exchange, fail};
use crate::filters::store::Store;
use crate::message::{ErrorKind, Exchange, Identity, IdentityKind, KnownIdentity, Response};
use crate::values::Problem;

/// Keeps what is made, as the proxy does.
#[derive(Default)]
pub(super) struct KeepAll {
    known: Mutex<HashMap<String, Arc<dyn Any + Send + Sync>>>,
    pub store: Arc<Store>,
}

impl Keep for KeepAll {
    fn state(
        &self,
        key: &str,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        self.known.lock().expect("whole").entry(key.to_owned()).or_insert_with(make).clone()
    }

    fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }
}

fn compiled(limits: Value) -> Result<AnyPlan, Vec<Problem>> {
    let spec: Spec = serde_json::from_value(limits).expect("a spec");
    RateLimits::compile(spec, &mut NoScope).map(AnyPlan::new)
}

/// The filters of a plan, the outer one first.
pub(super) fn linked(limits: Value, keep: &KeepAll) -> Vec<Arc<dyn Filter>> {
    let mut parts = RateLimits::parts(&compiled(limits).expect("valid"));
    parts.sort_by_key(|(ring, _)| *ring);
    parts.iter().map(|(_, plan)| RateLimits::link(plan.get().expect("its own"), keep)).collect()
}

/// What several objects give to a rule, the outer one first: one filter.
pub(super) fn joined(given: &[(&str, Value)], keep: &KeepAll) -> Vec<Arc<dyn Filter>> {
    let of = |(whose, limits): &(&str, Value)| {
        let mut plan = compiled(limits.clone()).expect("valid").get::<Plan>().expect("its own").clone();
        for limit in &mut plan.0 {
            limit.whose = (*whose).into();
            limit.shared.iter_mut().for_each(|shared| shared.prefix = shared_prefix(whose, &limit.name));
        }
        AnyPlan::new(plan)
    };
    let plan = RateLimits::joined(&given.iter().map(of).collect::<Vec<_>>()).expect("limits are joined");
    vec![RateLimits::link(plan.get().expect("its own"), keep)]
}

/// A request of a named client; "" is nobody.
pub(super) fn by(client: &str, fields: &[(&'static str, &str)]) -> Exchange {
    let mut exchange = exchange("/a", 0, Rc::new(FakeOutbound::default()));
    if !client.is_empty() {
        exchange.identity = Identity::new(Arc::new(KnownIdentity {
            kind: IdentityKind::ApiKey,
            entry: "keys".into(),
            issuer: "shop".into(),
            id: client.into(),
            scopes: Arc::new([]),
            claims: Arc::default(),
        }));
    }
    for (name, value) in fields {
        exchange.request.headers_mut().append(*name, HeaderValue::from_str(value).expect("a value"));
    }
    exchange
}

pub(super) async fn ask(filters: &[Arc<dyn Filter>], mut exchange: Exchange) -> (Response, Exchange) {
    let answer = run(filters, &mut exchange, fail, async |_: &mut Exchange| {
        let mut answer = Response::default();
        answer.headers_mut().insert(RATE_LIMIT, HeaderValue::from_static("\"theirs\";r=9;t=9"));
        answer
    });
    (answer.await, exchange)
}

async fn passes(filters: &[Arc<dyn Filter>], exchange: Exchange) -> bool {
    ask(filters, exchange).await.0.extensions().get::<ErrorKind>().is_none()
}

fn told(answer: &Response) -> [String; 2] {
    [RATE_LIMIT, RATE_LIMIT_POLICY].map(|name| {
        let lines = answer.headers().get_all(name).iter();
        lines.map(|line| line.to_str().expect("ASCII")).collect::<Vec<_>>().join(" | ")
    })
}

#[tokio::test(start_paused = true)]
async fn each_client_has_its_own_bucket_and_learns_what_is_left() {
    let filters = linked(json!([{"name": "fair", "requests": 2, "per": "10s"}]), &KeepAll::default());
    let (answer, _) = ask(&filters, by("a", &[])).await;
    assert_eq!(told(&answer), ["\"fair\";r=1;t=5", "\"fair\";q=2;w=10"]);
    let (answer, _) = ask(&filters, by("a", &[])).await;
    assert_eq!(told(&answer)[0], "\"fair\";r=0;t=5");
    assert!(passes(&filters, by("b", &[])).await && passes(&filters, by("", &[])).await);
    let (answer, exchange) = ask(&filters, by("a", &[])).await;
    assert_eq!(answer.extensions().get(), Some(&ErrorKind::RateLimited));
    assert_eq!(told(&answer), ["\"fair\";r=0;t=5", "\"fair\";q=2;w=10"]);
    assert_eq!(answer.headers()["retry-after"], "5");
    let limited = exchange.limited.expect("told");
    assert_eq!((&*limited.limit, limited.dry_run), ("fair", false));
    tokio::time::advance(Duration::from_millis(4_999)).await;
    assert!(!passes(&filters, by("a", &[])).await);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(passes(&filters, by("a", &[])).await);
    assert!(!passes(&filters, by("a", &[])).await);
}

#[tokio::test(start_paused = true)]
async fn key_when_and_cost_say_who_is_counted_for_how_much() {
    let keep = KeepAll::default();
    let tenant = "request.headers['x-tenant']";
    let filters = linked(json!([{"name": "a", "requests": 1, "per": "1h", "key": tenant}]), &keep);
    assert!(passes(&filters, by("a", &[("x-tenant", "1")])).await);
    assert!(!passes(&filters, by("b", &[("x-tenant", "1")])).await);
    assert!(passes(&filters, by("a", &[("x-tenant", "2")])).await);
    // No key, or more than one: all of these share a bucket.
    assert!(passes(&filters, by("c", &[])).await);
    assert!(!passes(&filters, by("d", &[("x-tenant", "3"), ("x-tenant", "4")])).await);

    let pair = format!("[identity.id, {tenant}]");
    let filters = linked(json!([{"name": "b", "requests": 1, "per": "1h", "key": pair}]), &keep);
    assert!(passes(&filters, by("a", &[("x-tenant", "1")])).await);
    assert!(passes(&filters, by("a", &[("x-tenant", "2")])).await);
    assert!(!passes(&filters, by("a", &[("x-tenant", "2")])).await);

    let when = "request.headers['x-tenant'] == 'free'";
    let filters = linked(json!([{"name": "c", "requests": 1, "per": "1h", "when": when}]), &keep);
    for (fields, expected) in
        [(&[("x-tenant", "paid")][..], [true, true]), (&[("x-tenant", "free")], [true, false])]
    {
        for expected in expected {
            assert_eq!(passes(&filters, by("a", fields)).await, expected, "{fields:?}");
        }
    }
    // What cannot be decided is counted: that bucket is used up.
    assert!(!passes(&filters, by("a", &[])).await);

    let cost = "int(request.headers['x-cost'])";
    let filters = linked(json!([{"name": "d", "requests": 10, "per": "1h", "cost": cost}]), &keep);
    for (cost, passes_) in
        [("7", true), ("4", false), ("3", true), ("0", true), ("-5", false), ("odd", false)]
    {
        assert_eq!(passes(&filters, by("a", &[("x-cost", cost)])).await, passes_, "{cost}");
    }
    let (answer, _) = ask(&filters, by("b", &[("x-cost", "11")])).await;
    assert_eq!(answer.extensions().get(), Some(&ErrorKind::RateLimited));
    assert_eq!(answer.headers().get("retry-after"), None, "it will never pass");
    assert_eq!(told(&answer)[0], "\"d\";r=10", "others would");
}

#[tokio::test(start_paused = true)]
async fn of_several_limits_all_are_charged_or_none() {
    let limits = json!([
        {"name": "many", "requests": 5, "per": "1h"},
        {"name": "few", "requests": 1, "per": "1h", "when": "request.method == 'POST'"},
    ]);
    let keep = KeepAll::default();
    let filters = linked(limits.clone(), &keep);
    let post = || {
        let mut exchange = by("a", &[]);
        *exchange.request.method_mut() = http::Method::POST;
        exchange
    };
    let (answer, _) = ask(&filters, post()).await;
    assert_eq!(told(&answer), ["\"few\";r=0;t=3600", "\"many\";q=5;w=3600, \"few\";q=1;w=3600"]);
    for _ in 0..3 {
        assert!(!passes(&filters, post()).await);
    }
    let (answer, _) = ask(&filters, by("a", &[])).await;
    assert_eq!(told(&answer)[0], "\"many\";r=3;t=720");

    // Imposed and given.
    let imposed = json!([{"name": "imposed", "requests": 3, "per": "1h"}]);
    let both = joined(&[("policy", imposed), ("", limits)], &keep);
    let (answer, _) = ask(&both, by("a", &[])).await;
    assert_eq!(
        told(&answer),
        ["\"imposed\";r=2;t=1200", "\"imposed\";q=3;w=3600, \"many\";q=5;w=3600, \"few\";q=1;w=3600"]
    );
    for _ in 0..4 {
        assert!(!passes(&both, post()).await);
    }
    let (answer, _) = ask(&both, by("a", &[])).await;
    assert_eq!(told(&answer)[0], "\"imposed\";r=1;t=1200", "refused by another: not charged here");
}

#[tokio::test(start_paused = true)]
async fn of_those_that_refuse_the_longest_is_told_whoever_gives_it() {
    let limit = |name: &str, per: &str| json!([{"name": name, "requests": 1, "per": per}]);
    let (short, long) = (("policy", limit("short", "10s")), ("route", limit("long", "1h")));
    for given in [[short.clone(), long.clone()], [long, short]] {
        let filters = joined(&given, &KeepAll::default());
        assert!(passes(&filters, by("a", &[])).await);
        let (answer, exchange) = ask(&filters, by("a", &[])).await;
        assert_eq!(
            (&*told(&answer)[0], answer.headers()["retry-after"].as_bytes()),
            ("\"long\";r=0;t=3600", &b"3600"[..])
        );
        assert_eq!(&*exchange.limited.expect("told").limit, "long");
    }
}

#[tokio::test(start_paused = true)]
async fn more_limits_than_one_object_may_give_count_all() {
    let keep = KeepAll::default();
    let limit = |place: usize| json!({"name": format!("l{place}"), "requests": 5, "per": "1h"});
    let full: Value = (0..MAX_LIMITS).map(limit).collect();
    let tight = json!([{"name": "tight", "requests": 2, "per": "1h"}]);
    let filters = joined(&[("one", full.clone()), ("two", full), ("three", tight)], &keep);
    assert!(passes(&filters, by("a", &[])).await && passes(&filters, by("a", &[])).await);
    let (answer, _) = ask(&filters, by("a", &[])).await;
    assert_eq!(told(&answer)[0], "\"tight\";r=0;t=1800");
    let last = MAX_LIMITS - 1;
    for whose in ["one", "two"] {
        let alone = joined(&[(whose, json!([limit(last)]))], &keep);
        let (answer, _) = ask(&alone, by("a", &[])).await;
        assert_eq!(told(&answer)[0], format!("\"l{last}\";r=2;t=720"), "twice before: a third was refused");
    }
}

#[tokio::test(start_paused = true)]
async fn refused_requests_use_up_nothing_before_authentication_either() {
    let keep = KeepAll::default();
    let early = |name: &str, requests: u32, key: &str| json!([{"name": name, "requests": requests, "per": "1h", "key": key, "before": "Authentication"}]);
    let given = [("policy", early("everybody", 3, "'all'")), ("route", early("each", 1, "identity.key"))];
    let mut both = joined(&given, &keep);
    both.extend(linked(json!([{"name": "try", "requests": 1, "per": "1h", "dryRun": true}]), &keep));
    let from = |ip: &str| {
        let mut exchange = by("", &[]);
        exchange.client.ip = ip.parse().expect("an address");
        exchange
    };
    assert!(passes(&both, from("2001:db8::1")).await);
    for ip in ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:1"] {
        assert!(!passes(&both, from(ip)).await, "{ip} is in the same network");
    }
    assert!(passes(&both, from("2001:db8:0:1::1")).await && passes(&both, from("192.0.2.1")).await);
    assert!(!passes(&both, from("192.0.2.2")).await, "three in all");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_refuses_nobody_and_tells_who_would_be() {
    let limits = json!([{"name": "try", "requests": 1, "per": "1h", "dryRun": true}]);
    let filters = linked(limits, &KeepAll::default());
    let (answer, exchange) = ask(&filters, by("a", &[])).await;
    assert_eq!((told(&answer), exchange.limited), (["\"theirs\";r=9;t=9".into(), String::new()], None));
    let (answer, exchange) = ask(&filters, by("a", &[])).await;
    assert_eq!(answer.extensions().get::<ErrorKind>(), None);
    let limited = exchange.limited.expect("told");
    assert_eq!((&*limited.limit, limited.dry_run), ("try", true));
}

#[test]
fn a_limit_before_authentication_is_a_filter_of_its_own() {
    let limits = json!([
        {"name": "late", "requests": 1, "per": "1s"},
        {"name": "early", "requests": 1, "per": "1s", "before": "Authentication"},
    ]);
    let parts = RateLimits::parts(&compiled(limits).expect("valid"));
    let told: Vec<_> = parts.iter().map(|(ring, plan)| (*ring, format!("{plan:?}"))).collect();
    assert_eq!(
        told,
        [
            (Ring::EarlyRateLimits, "Plan([early 1 in 1s before Authentication])".to_owned()),
            (Ring::RateLimits, "Plan([late 1 in 1s])".to_owned()),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_left_follows_the_name_and_not_the_numbers() {
    let keep = KeepAll::default();
    let limit = |requests: u32| json!([{"name": "fair", "requests": requests, "per": "1h"}]);
    let before = linked(limit(2), &keep);
    assert!(passes(&before, by("a", &[])).await && passes(&before, by("a", &[])).await);
    let after = linked(limit(4), &keep);
    assert!(!passes(&linked(limit(2), &keep), by("a", &[])).await);
    drop(before);
    // An hour of requests is spent, whatever the hour now grants.
    assert!(!passes(&after, by("a", &[])).await);
    // And no more than the limit now is long.
    let seconds = linked(json!([{"name": "fair", "requests": 4, "per": "4s"}]), &keep);
    assert!(!passes(&seconds, by("a", &[])).await);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(passes(&seconds, by("a", &[])).await);
    assert!(passes(&after, by("b", &[])).await);
}

#[test]
fn what_cannot_be_meant_is_refused_by_field() {
    for (limits, path) in [
        (json!([]), ""),
        (json!([{"name": "a", "requests": 0, "per": "1s"}]), "[0].requests"),
        (json!([{"name": "a", "requests": 1, "per": "10ms"}]), "[0].per"),
        (json!([{"name": "a", "requests": 1, "per": "745h"}]), "[0].per"),
        (json!([{"name": "a", "requests": 1, "per": "744h", "burst": 1_000_000}]), "[0].burst"),
        (
            json!([{"name": "a", "requests": 1, "per": "1s"}, {"name": "a", "requests": 2, "per": "1s"}]),
            "[1].name",
        ),
    ] {
        let problems = compiled(limits.clone()).expect_err("refused");
        assert_eq!(problems.iter().map(|one| one.path.as_str()).collect::<Vec<_>>(), [path], "{limits}");
    }
}

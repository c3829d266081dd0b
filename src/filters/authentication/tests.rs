//! Authentication from its spec to what becomes of a request.

use std::any::Any;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use http::header::WWW_AUTHENTICATE;
use serde_json::{Value, json};

use super::entry::fingerprint;
use super::{Authentication, Plan, Spec, named};
use crate::expression::{Environment, Expression, Kind, Template};
use crate::filters::contract::{Derive, Filter, FilterKind, Keep, Member, Scope, Selection};
use crate::filters::contract_tests::{FakeOutbound, exchange, fail};
use crate::filters::run;
use crate::message::{ErrorKind, Exchange, Response};
use crate::values::{
    Attributes, ConfigMapKeyRef, FieldPath, LabelSelector, ObjectName, Problem, Reason, Redacted, SecretData,
    SecretKeyRef, SecretRef,
};

pub const ACME: &str = "acme-0f8a3c5e7d9b1a2c4e6f8091a3b5c7d9";
const OLD: &str = "old--0f8a3c5e7d9b1a2c4e6f8091a3b5c7d9";

/// A few Secrets and ConfigMaps.
#[derive(Default)]
pub struct World {
    pub secrets: Vec<Arc<SecretData>>,
    pub config_maps: BTreeMap<String, Arc<str>>,
    pub problems: Vec<Problem>,
}

impl World {
    pub fn secret(mut self, name: &str, data: &[(&str, &str)], annotations: &[(&str, &str)]) -> Self {
        let annotation =
            |(name, value): &(&str, &str)| (format!("portcullis.dev/{name}"), (*value).to_owned());
        let data =
            data.iter().map(|(key, value)| ((*key).to_owned(), Redacted::new(value.as_bytes().to_vec())));
        self.secrets.push(Arc::new(SecretData {
            name: ObjectName::new("shop", name),
            kind: "Opaque".into(),
            labels: [("keys".to_owned(), "shop".to_owned())].into_iter().collect(),
            annotations: annotations.iter().map(annotation).collect::<Attributes>(),
            data: Arc::new(data.collect()),
        }));
        self
    }
}

impl Scope for World {
    fn backend(
        &mut self,
        _: FieldPath,
        _: &crate::values::AskedBackendRef,
    ) -> Option<crate::values::BackendId> {
        None
    }

    fn origin(&mut self, origin: &crate::values::Origin) -> crate::values::BackendId {
        crate::values::BackendId::Origin(origin.clone())
    }

    fn secret(&mut self, at: FieldPath, secret: &SecretRef) -> Option<Arc<SecretData>> {
        let found = self.secrets.iter().find(|known| *known.name.name == *secret.name).cloned();
        if found.is_none() {
            self.problems.push(Problem::error(at, Reason::SecretNotFound, "not there"));
        }
        found
    }

    fn secret_key(&mut self, at: FieldPath, secret: &SecretKeyRef) -> Option<Redacted<Vec<u8>>> {
        let name = SecretRef { name: secret.name.clone(), namespace: None };
        self.secret(at, &name)?.data.get(secret.key.as_deref()?).cloned()
    }

    fn secrets(&mut self, _: FieldPath, selector: &LabelSelector) -> Selection {
        let has = |secret: &&Arc<SecretData>| {
            selector.match_labels.iter().all(|(name, value)| secret.labels.get(name) == Some(value))
        };
        self.secrets.iter().filter(has).cloned().collect()
    }

    fn config_map(&mut self, _: FieldPath, map: &ConfigMapKeyRef) -> Option<Arc<str>> {
        self.config_maps.get(&map.name).cloned()
    }

    fn derived(&mut self, _: &str, _: &Selection, make: Derive<'_>) -> Arc<dyn Any + Send + Sync> {
        make(None)
    }

    fn expression(&mut self, _: FieldPath, _: &str, _: &'static Environment, _: Kind) -> Option<Expression> {
        None
    }

    fn template(&mut self, _: FieldPath, _: &str, _: &'static Environment) -> Option<Template> {
        None
    }

    fn warn(&mut self, problem: Problem) {
        self.problems.push(problem);
    }
}

struct NoKeep;

impl Keep for NoKeep {
    fn state(
        &self,
        _: &str,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        make()
    }
}

fn world() -> World {
    World::default()
        .secret(
            "acme",
            &[("key", ACME)],
            &[("consumer", "acme"), ("scopes", "orders:read"), ("tier", "gold")],
        )
        .secret("old", &[("key", OLD)], &[("expires", "2020-01-01T00:00:00Z")])
}

pub fn compile(spec: Value, world: &mut World) -> Result<Plan, Vec<Problem>> {
    let spec: Spec = serde_json::from_value(spec).expect("a spec");
    Authentication::compile(spec, world)
}

fn linked(spec: Value) -> Arc<dyn Filter> {
    linked_in(spec, world())
}

pub fn linked_in(spec: Value, mut world: World) -> Arc<dyn Filter> {
    let plan = compile(spec, &mut world).expect("valid");
    Authentication::link(&plan, &NoKeep)
}

fn api_key(more: Value) -> Value {
    let mut entry = json!({"secretSelector": {"matchLabels": {"keys": "shop"}}});
    entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"anyOf": [{"name": "partners", "apiKey": entry}]})
}

pub fn request(uri: &str, fields: &[(&'static str, &str)]) -> Exchange {
    let mut exchange = exchange(uri, 0, Rc::new(FakeOutbound::default()));
    for (name, value) in fields {
        exchange.request.headers_mut().append(*name, HeaderValue::from_str(value).expect("a value"));
    }
    exchange
}

/// `Ok`: what the action saw.
pub async fn ask(filter: &Arc<dyn Filter>, exchange: &mut Exchange) -> Result<(), (ErrorKind, Vec<String>)> {
    let mut acted = false;
    let answer = run(std::slice::from_ref(filter), exchange, fail, async |_: &mut Exchange| {
        acted = true;
        Response::default()
    })
    .await;
    match answer.extensions().get::<ErrorKind>() {
        None => {
            assert!(acted);
            Ok(())
        }
        Some(kind) => {
            let challenges = answer.headers().get_all(WWW_AUTHENTICATE).iter();
            Err((*kind, challenges.map(|value| value.to_str().expect("ASCII").to_owned()).collect()))
        }
    }
}

#[tokio::test]
async fn a_key_is_known_and_does_not_go_on() {
    let filter = linked(api_key(
        json!({"claimsToHeaders": [{"claim": "tier", "header": "X-Tier"}, {"claim": "id", "header": "X-Consumer"}]}),
    ));
    let mut one = request("/", &[("x-api-key", ACME), ("accept", "a")]);
    assert_eq!(ask(&filter, &mut one).await, Ok(()));
    let identity = &one.identity;
    assert_eq!((identity.kind().as_str(), identity.entry(), identity.id()), ("ApiKey", "partners", "acme"));
    assert!(identity.has_scope("orders:read"));
    assert_eq!(identity.claim("tier"), Some(&json!("gold")));
    assert_eq!(one.identity_key(), "ApiKey|shop|acme");
    let headers = one.request.headers();
    assert_eq!(
        (headers.get("x-api-key"), &headers["x-tier"], &headers["x-consumer"]),
        (None, &HeaderValue::from_static("gold"), &HeaderValue::from_static("acme"))
    );
    let mut forwarded = request("/", &[("x-api-key", ACME)]);
    assert_eq!(ask(&linked(api_key(json!({"forward": true}))), &mut forwarded).await, Ok(()));
    assert_eq!(forwarded.request.headers()["x-api-key"], ACME);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_key_is_answered_alike() {
    let challenge = vec!["ApiKey realm=\"api\"".to_owned()];
    for mode in ["Required", "Optional"] {
        let mut spec = api_key(json!({}));
        spec["mode"] = mode.into();
        let filter = linked(spec);
        for wrong in ["", "x", OLD, &ACME[..ACME.len() - 1], &format!("{ACME}0"), &ACME.to_uppercase()] {
            let answer = ask(&filter, &mut request("/", &[("x-api-key", wrong)])).await;
            assert_eq!(answer, Err((ErrorKind::ApiKeyInvalid, challenge.clone())), "{mode} {wrong:?}");
        }
        let twice = ask(&filter, &mut request("/", &[("x-api-key", ACME), ("x-api-key", ACME)])).await;
        assert_eq!(twice, Err((ErrorKind::ApiKeyInvalid, challenge.clone())));
        let mut nothing = request(&format!("/?key={ACME}"), &[("x_api_key", ACME)]);
        let answer = ask(&filter, &mut nothing).await;
        match mode {
            "Optional" => {
                assert_eq!((answer, nothing.identity.kind().as_str()), (Ok(()), "Anonymous"));
                // It is no key, and a backend that reads it as one gets none.
                assert_eq!(nothing.request.headers().get("x_api_key"), None);
                assert_eq!(nothing.identity_key(), "Anonymous||127.0.0.1");
            }
            _ => assert_eq!(answer, Err((ErrorKind::ApiKeyMissing, challenge.clone()))),
        }
    }
}

#[tokio::test]
async fn a_key_may_stand_elsewhere_and_every_place_is_emptied() {
    let from = json!({"from": [{"query": "key"}, {"cookie": "key"}, {"header": "X-Key"}]});
    let filter = linked(api_key(from));
    for (uri, fields) in [
        (format!("/a?x=1&key={ACME}"), vec![("x-key", "y"), ("cookie", "key=z; a=b")]),
        ("/a?x=1".to_owned(), vec![("cookie", &*format!("a=b; key={ACME}")), ("x-key", "y")]),
        ("/a?x=1".to_owned(), vec![("x-key", ACME), ("cookie", "a=b")]),
    ] {
        let mut one = request(&uri, &fields);
        assert_eq!(ask(&filter, &mut one).await, Ok(()), "{uri}");
        assert_eq!(one.request.uri(), "/a?x=1");
        let left: Vec<_> = one
            .request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII")))
            .collect();
        assert_eq!(left, [("cookie", "a=b")]);
    }
}

#[tokio::test]
async fn an_address_that_keeps_failing_is_stopped_but_what_was_good_passes() {
    let mut spec = api_key(json!({}));
    spec["failures"] = json!({"requests": 3, "per": "1m"});
    let mut world = world().secret("new", &[("key", "new--0f8a3c5e7d9b1a2c4e6f8091a3b5c7d9")], &[]);
    let plan = compile(spec, &mut world).expect("valid");
    let filter = Authentication::link(&plan, &NoKeep);
    assert_eq!(ask(&filter, &mut request("/", &[("x-api-key", ACME)])).await, Ok(()));
    for guess in ["1", "2", "3"] {
        let answer = ask(&filter, &mut request("/", &[("x-api-key", guess)])).await;
        assert_eq!(answer.map_err(|(kind, _)| kind), Err(ErrorKind::ApiKeyInvalid));
    }
    // A guess that would be right is not told so either.
    for key in ["4", "new--0f8a3c5e7d9b1a2c4e6f8091a3b5c7d9"] {
        let answer = ask(&filter, &mut request("/", &[("x-api-key", key)])).await;
        assert_eq!(answer, Err((ErrorKind::TooManyFailures, vec![])), "{key}");
    }
    assert_eq!(ask(&filter, &mut request("/", &[("x-api-key", ACME)])).await, Ok(()));
    let mut elsewhere = request("/", &[("x-api-key", "5")]);
    elsewhere.client.ip = [10, 0, 0, 9].into();
    assert_eq!(ask(&filter, &mut elsewhere).await.map_err(|(kind, _)| kind), Err(ErrorKind::ApiKeyInvalid));
}

#[tokio::test]
async fn nobody_is_stopped_where_the_brake_is_off() {
    let mut spec = api_key(json!({}));
    spec["failures"] = json!({"requests": 0});
    let filter = linked(spec);
    for _ in 0..100 {
        let answer = ask(&filter, &mut request("/", &[("x-api-key", "x")])).await;
        assert_eq!(answer.map_err(|(kind, _)| kind), Err(ErrorKind::ApiKeyInvalid));
    }
}

#[tokio::test]
async fn disabled_lets_everybody_pass_as_nobody() {
    let filter = linked(json!({"mode": "Disabled"}));
    let mut one = request("/", &[("x-api-key", ACME)]);
    assert_eq!(ask(&filter, &mut one).await, Ok(()));
    assert_eq!(one.identity.kind().as_str(), "Anonymous");
}

/// As where a rule says Disabled, or takes other credentials than its route.
#[tokio::test]
async fn what_policies_name_that_another_takes_the_place_of_goes_no_further() {
    let named = named::named_in(&json!({"anyOf": [
        {"name": "keys", "apiKey": {"from": [{"header": "X-Key"}, {"query": "key"}, {"cookie": "key"}], "forward": true}},
        {"name": "users", "jwt": {}}, {"name": "people", "basicAuth": {}}, {"name": "more", "apiKey": {}},
    ]}));
    let named: Vec<_> = named.iter().collect();
    let fields = |scheme| {
        vec![
            ("authorization", scheme),
            ("x-api-key", ACME),
            ("x.key", "y"),
            ("cookie", "key=z; a=b"),
            ("x-mine", "1"),
        ]
    };
    let disabled = compile(json!({"mode": "Disabled"}), &mut World::default()).expect("a plan");
    let known = compile(api_key(json!({"forward": true})), &mut world()).expect("a plan");
    for (plan, scheme, left) in [
        (&disabled, "bEARER x", vec![("cookie", "a=b"), ("x-mine", "1")]),
        (&disabled, "Basic x", vec![("cookie", "a=b"), ("x-mine", "1")]),
        // Not of a kind that anybody named: the backend's own.
        (&disabled, "Digest x", vec![("authorization", "Digest x"), ("cookie", "a=b"), ("x-mine", "1")]),
        (&known, "Bearer x", vec![("cookie", "a=b"), ("x-api-key", ACME), ("x-mine", "1")]),
    ] {
        let plan = Authentication::instead_of(plan, &named).expect("another plan");
        let filter = Authentication::link(&plan, &NoKeep);
        let mut one = request("/a?key=k&b=1", &fields(scheme));
        assert_eq!(ask(&filter, &mut one).await, Ok(()), "{scheme}");
        let headers = one.request.headers().iter();
        let mut found: Vec<_> =
            headers.map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII"))).collect();
        found.sort_unstable();
        assert_eq!((one.request.uri().to_string().as_str(), found), ("/a?b=1", left), "{scheme}");
    }
    // What it takes itself, it takes as it says; there is nothing besides.
    let own = named::named_in(&api_key(json!({})));
    assert_eq!(Authentication::instead_of(&known, &own.iter().collect::<Vec<_>>()), None);
    assert_eq!(Authentication::instead_of(&disabled, &[]), None);
}

#[tokio::test]
async fn an_empty_key_is_wrong_whatever_the_secrets_say() {
    const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let world = world().secret("nothing", &[("keyHash", OF_NOTHING)], &[]).secret(
        "list",
        &[("keys", &format!("[{{hash: {OF_NOTHING}, consumer: nobody}}]"))],
        &[],
    );
    let filter = linked_in(api_key(json!({"from": [{"header": "X-Api-Key"}, {"query": "key"}]})), world);
    for (uri, fields) in [("/", &[("x-api-key", "")][..]), ("/?key=", &[]), ("/?key", &[])] {
        let answer = ask(&filter, &mut request(uri, fields)).await;
        assert_eq!(answer.map_err(|(kind, _)| kind), Err(ErrorKind::ApiKeyInvalid), "{uri}");
    }
}

/// Two entries that look in the same places; the backend gets what decided, and nothing else.
#[tokio::test]
async fn what_one_entry_forwards_another_leaves_and_takes_away_the_rest() {
    let entry = |name: &str, forward: bool, secret: &str, from: Value| json!({"name": name, "apiKey": {"secretRef": {"name": secret}, "forward": forward, "from": from}});
    let places = json!([{"header": "X-Key"}, {"query": "key"}, {"cookie": "key"}]);
    let spec = json!({"anyOf": [
        entry("one", true, "acme", places.clone()),
        entry("other", false, "old", places),
        entry("field", false, "old", json!([{"header": "Authorization"}])),
    ]});
    let filter = linked(spec);
    for (uri, fields, left) in [
        ("/a?b=1", vec![("x-key", ACME)], ("/a?b=1", vec![("x-key", ACME)])),
        (
            "/a?key=other&b=1",
            vec![("x-key", ACME), ("cookie", "key=other; a=b"), ("authorization", "other")],
            ("/a?b=1", vec![("cookie", "a=b"), ("x-key", ACME)]),
        ),
        (&format!("/a?key={ACME}"), vec![("cookie", "key=other")], (&format!("/a?key={ACME}"), vec![])),
    ] {
        let mut one = request(uri, &fields);
        assert_eq!(ask(&filter, &mut one).await, Ok(()), "{uri}");
        assert_eq!(one.identity.entry(), "one");
        let headers = one.request.headers().iter();
        let mut found: Vec<_> =
            headers.map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII"))).collect();
        found.sort_unstable();
        assert_eq!((&*one.request.uri().to_string(), found), left, "{uri}");
    }
}

#[test]
fn what_cannot_work_says_where_and_what_to_do() {
    let labels = json!({"matchLabels": {"keys": "shop"}});
    for (spec, path) in [
        (json!({}), "anyOf"),
        (
            json!({"mode": "Disabled", "anyOf": [{"name": "a", "apiKey": {"secretSelector": labels}}]}),
            "anyOf",
        ),
        (json!({"anyOf": [{"name": "a"}]}), "anyOf[0]"),
        (json!({"anyOf": [{"name": "a", "apiKey": {}}]}), "anyOf[0].apiKey"),
        (
            json!({"anyOf": [{"name": "a", "apiKey": {"secretSelector": {"matchLabels": {}}}}]}),
            "anyOf[0].apiKey.secretSelector.matchLabels",
        ),
        (
            json!({"anyOf": [{"name": "a", "apiKey": {"secretSelector": labels, "secretRef": {"name": "acme"}}}]}),
            "anyOf[0].apiKey",
        ),
        (
            json!({"anyOf": [{"name": "a", "apiKey": {"secretSelector": labels, "from": [{"header": "Cookie"}]}}]}),
            "anyOf[0].apiKey.from[0].header",
        ),
        (
            json!({"anyOf": [{"name": "a", "apiKey": {"secretSelector": labels, "from": [{}]}}]}),
            "anyOf[0].apiKey.from[0]",
        ),
        (
            json!({"failures": {"per": "0s"}, "anyOf": [{"name": "a", "apiKey": {"secretSelector": labels}}]}),
            "failures.per",
        ),
        (
            json!({"anyOf": [{"name": "a", "apiKey": {"secretSelector": labels}}, {"name": "a", "apiKey": {"secretSelector": labels}}]}),
            "anyOf",
        ),
    ] {
        let problems = compile(spec.clone(), &mut world()).expect_err("refused");
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, [path], "{spec}");
    }
    let mut world = world();
    let missing = json!({"anyOf": [{"name": "a", "apiKey": {"secretRef": {"name": "nowhere"}}}]});
    assert!(compile(missing, &mut world).is_err());
    assert_eq!(world.problems[0].path.as_str(), "anyOf[0].apiKey.secretRef");
}

#[test]
fn nothing_printed_holds_a_key() {
    let plan = compile(api_key(json!({})), &mut world()).expect("valid");
    let printed = format!("{plan:?}");
    assert!(printed.contains("partners") || printed.contains("KeyTable"), "{printed}");
    assert!(!printed.contains(ACME) && !printed.contains(&format!("{:?}", fingerprint(ACME.as_bytes()))));
}

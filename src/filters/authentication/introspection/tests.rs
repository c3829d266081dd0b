//! Introspection from its spec to what becomes of a request, with the test in the server's place.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::advance;

use super::super::tests::{World, ask, compile, request};
use super::super::{Authentication, Plan};
use super::form;
use crate::filters::contract::{Filter, FilterKind as _, Keep};
use crate::filters::{Answers, Inquiry, NoAnswer};
use crate::message::{ErrorKind, Exchange};

const SECRET: &str = "canary+secret/of=the client";
const KEYS: &str =
    r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// The form of a token that says so, with no good signature.
fn of_issuer(issuer: &str) -> String {
    use base64::Engine as _;
    let payload = json!({"iss": issuer}).to_string();
    format!("e30.{}.AA", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload))
}

/// Hands what is to be asked to the test.
#[derive(Default)]
struct Asking(RefCell<Option<Inquiry>>);

impl Keep for Asking {
    fn state(
        &self,
        _: &str,
        make: &mut dyn FnMut() -> Arc<dyn std::any::Any + Send + Sync>,
    ) -> Arc<dyn std::any::Any + Send + Sync> {
        make()
    }

    fn asks(&self, inquiry: Inquiry) {
        *self.0.borrow_mut() = Some(inquiry);
    }
}

fn world() -> World {
    World::default()
        .secret("client", &[("clientId", "shop gateway\n"), ("clientSecret", SECRET)], &[])
        .secret("half", &[("clientId", "shop")], &[])
        .secret("empty", &[("clientId", "shop"), ("clientSecret", "\n")], &[])
}

fn spec(more: Value) -> Value {
    let mut entry =
        json!({"endpoint": "https://login.example/introspect", "clientSecretRef": {"name": "client"}});
    entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"anyOf": [{"name": "opaque", "introspection": entry}]})
}

fn plan(more: Value) -> Plan {
    compile(spec(more), &mut world()).expect("valid")
}

fn linked(plan: &Plan) -> (Arc<dyn Filter>, Inquiry) {
    let keep = Asking::default();
    let filter = Authentication::link(plan, &keep);
    (filter, keep.0.into_inner().expect("it asks"))
}

type Verdict = Result<(), ErrorKind>;

async fn verdict(filter: &Arc<dyn Filter>, exchange: &mut Exchange) -> Verdict {
    ask(filter, exchange).await.map_err(|(kind, _)| kind)
}

fn shows(token: &str) -> Exchange {
    request("/", &[("authorization", &format!("Bearer {token}"))])
}

/// Answers the next question: `None`, it could not be asked.
async fn answer(inquiry: &mut Inquiry, said: Option<&Value>) -> String {
    let question = inquiry.questions.recv().await.expect("a question");
    let about = question.about;
    let (form, reply) = question.split();
    let heard = said.and_then(|said| inquiry.answers.read(&about, said.to_string().as_bytes()).ok());
    let _ = reply.send(heard.map(|(answer, _)| answer).ok_or(NoAnswer::Failed));
    form.expose().clone()
}

/// What becomes of a request whose question is answered so.
async fn judged(more: Value, said: &Value) -> (Verdict, Exchange) {
    let (filter, mut inquiry) = linked(&plan(more));
    let mut exchange = shows("token");
    let (verdict, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(said)));
    (verdict, exchange)
}

/// Whether nothing waits to be answered.
fn asks_nothing(inquiry: &mut Inquiry) -> bool {
    inquiry.questions.try_recv().is_err()
}

#[tokio::test(start_paused = true)]
async fn an_active_token_is_somebody_and_does_not_go_on() {
    let (filter, mut inquiry) = linked(&plan(
        json!({"claimsToHeaders": [{"claim": "username", "header": "X-User"}, {"claim": "id", "header": "X-Id"}]}),
    ));
    let said =
        json!({"active": true, "sub": "u1", "username": "alice", "scope": "read write", "client_id": "app"});
    let mut exchange = shows("a.b+/~==");
    let (verdict, form) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&said)));
    assert_eq!((verdict, form.as_str()), (Ok(()), "token=a.b%2B%2F%7E%3D%3D&token_type_hint=access_token"));
    let identity = &exchange.identity;
    assert_eq!((identity.kind().as_str(), identity.entry(), identity.id()), ("Token", "opaque", "u1"));
    assert!(identity.has_scope("write") && identity.claim("active").is_none());
    assert_eq!(exchange.identity_key(), "Token|https://login.example/introspect|u1");
    let headers = exchange.request.headers();
    assert_eq!(
        (&headers["x-user"], &headers["x-id"], headers.len()),
        (&"alice".parse().unwrap(), &"u1".parse().unwrap(), 2)
    );
    let authorization = inquiry.plan.authorization.expose();
    assert!(authorization.is_sensitive());
    // RFC 6749 section 2.3.1: both are form-encoded before they are joined.
    assert_eq!(authorization, "Basic c2hvcCtnYXRld2F5OmNhbmFyeSUyQnNlY3JldCUyRm9mJTNEdGhlK2NsaWVudA==");
}

#[test]
fn forms_are_encoded_as_rfc_6749_has_it() {
    assert_eq!(form(" %&+£€".as_bytes()), "+%25%26%2B%C2%A3%E2%82%AC");
    assert_eq!(form(b"aZ0-._*~"), "aZ0-._*%7E");
}

#[tokio::test(start_paused = true)]
async fn an_answer_counts_for_a_while_and_never_past_the_end_of_the_token() {
    let now = std::time::UNIX_EPOCH.elapsed().expect("after the epoch").as_secs();
    for (said, seconds) in [
        (json!({"active": true}), 60),
        (json!({"active": true, "exp": now + 3_600}), 60),
        (json!({"active": true, "exp": now + 20}), 20),
        (json!({"active": true, "exp": now}), 0),
        (json!({"active": false}), 10),
    ] {
        let (filter, mut inquiry) = linked(&plan(json!({})));
        let expected = if said["active"] == true { Ok(()) } else { Err(ErrorKind::TokenInvalid) };
        let mut exchange = shows("token");
        let (first, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&said)));
        assert_eq!(first, expected, "{said}");
        if seconds > 0 {
            advance(Duration::from_millis(seconds * 1_000 - 1_500)).await;
            assert_eq!(verdict(&filter, &mut shows("token")).await, expected, "{said}");
            assert!(asks_nothing(&mut inquiry), "{said}");
            assert_eq!(inquiry.hits.value(), 1);
        }
        advance(Duration::from_millis(1_600)).await;
        let revoked = json!({"active": false});
        let mut exchange = shows("token");
        let (after, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&revoked)));
        assert_eq!(after, Err(ErrorKind::TokenInvalid), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_the_rules_and_the_types_allow_counts() {
    use ErrorKind::{IntrospectionFailed, TokenInvalid};
    let now = std::time::UNIX_EPOCH.elapsed().expect("after the epoch").as_secs();
    let rules = json!({"audiences": ["shop"], "issuer": "https://login.example"});
    let good = json!({"active": true, "aud": ["x", "shop"], "iss": "https://login.example", "nbf": now, "exp": now + 9});
    for (change, expected) in [
        (json!({}), Ok(())),
        (json!({"aud": "shop"}), Ok(())),
        (json!({"nbf": now + 20, "exp": now - 20}), Ok(())),
        (json!({"aud": "shop2"}), Err(TokenInvalid)),
        (json!({"aud": []}), Err(TokenInvalid)),
        (json!({"aud": null}), Err(IntrospectionFailed)),
        (json!({"iss": "https://other.example"}), Err(TokenInvalid)),
        (json!({"iss": 1}), Err(IntrospectionFailed)),
        (json!({"exp": now - 40}), Err(TokenInvalid)),
        (json!({"exp": "tomorrow"}), Err(IntrospectionFailed)),
        (json!({"nbf": now + 40}), Err(TokenInvalid)),
        (json!({"active": "true"}), Err(IntrospectionFailed)),
        (json!({"active": 1}), Err(IntrospectionFailed)),
        (json!({"active": null}), Err(IntrospectionFailed)),
        (json!({"active": false, "exp": "x"}), Err(TokenInvalid)),
        (json!({"sub": ["root"]}), Err(IntrospectionFailed)),
        (json!({"scope": 7}), Err(IntrospectionFailed)),
        (json!({"username": {}}), Err(IntrospectionFailed)),
    ] {
        let mut said = good.clone();
        said.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        assert_eq!(judged(rules.clone(), &said).await.0, expected, "{change}");
    }
    for missing in ["aud", "iss"] {
        let mut said = good.clone();
        said.as_object_mut().expect("an object").remove(missing);
        assert_eq!(judged(rules.clone(), &said).await.0, Err(TokenInvalid), "{missing}");
    }
    for text in ["", "[]", "true", "{\"active\":true,\"active\":false}", "{\"active\":true} x", "<html>"] {
        let (_, inquiry) = linked(&plan(json!({})));
        assert!(inquiry.answers.read(&[0; 32], text.as_bytes()).is_err(), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_asked_is_denied_unless_the_last_answer_may_count() {
    let yes = json!({"active": true, "sub": "u1"});
    let failed = Err(ErrorKind::IntrospectionFailed);
    for (policy, after_failure) in [("Deny", failed), ("LastAnswer", Ok(()))] {
        let (filter, mut inquiry) = linked(&plan(json!({"onFailure": policy, "cacheDuration": "5s"})));
        let mut exchange = shows("token");
        let (before, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, None));
        assert_eq!(before, failed, "nothing was ever answered about it");
        let (first, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&yes)));
        assert_eq!(first, Ok(()));
        advance(Duration::from_secs(6)).await;
        let mut exchange = shows("token");
        let (later, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, None));
        assert_eq!(later, after_failure, "{policy}");
        // Revoked is revoked, whatever happens then.
        let mut exchange = shows("token");
        let no = json!({"active": false});
        let (revoked, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&no)));
        assert_eq!(revoked, Err(ErrorKind::TokenInvalid));
        advance(Duration::from_secs(11)).await;
        let mut exchange = shows("token");
        let (at_last, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, None));
        assert_eq!(at_last, failed, "{policy}");
        let mut exchange = shows("token");
        let (again, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&yes)));
        assert_eq!(again, Ok(()));
        advance(Duration::from_secs(601)).await;
        let mut exchange = shows("token");
        let (old, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, None));
        assert_eq!(old, failed, "not for ever: {policy}");
    }
}

/// A policy that stops nobody.
fn unbraked(more: Value) -> Plan {
    let mut spec = spec(more);
    spec["failures"] = json!({"requests": 0});
    compile(spec, &mut world()).expect("valid")
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_past_the_deadline_and_too_many_do_not_wait_at_all() {
    let (filter, mut inquiry) = linked(&unbraked(json!({"timeout": "1s"})));
    let began = tokio::time::Instant::now();
    let all = (0..1_100).map(|token| {
        let filter = &filter;
        async move {
            let verdict = verdict(filter, &mut shows(&format!("t{token}"))).await;
            (verdict, began.elapsed().as_millis())
        }
    });
    let verdicts = futures_util::future::join_all(all).await;
    assert!(verdicts.iter().all(|(verdict, _)| *verdict == Err(ErrorKind::Overloaded)));
    let waited = verdicts.iter().filter(|(_, waited)| (1_100..1_110).contains(waited)).count();
    let did_not = verdicts.iter().filter(|(_, waited)| *waited < 10).count();
    assert_eq!((waited, did_not), (1_024, 76));
    while inquiry.questions.try_recv().is_ok() {}
    drop(inquiry);
    assert_eq!(verdict(&filter, &mut shows("t")).await, Err(ErrorKind::IntrospectionFailed));
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_past_its_own_deadline() {
    let (filter, _inquiry) = linked(&plan(json!({"timeout": "20s"})));
    let began = tokio::time::Instant::now();
    let mut exchange = shows("token");
    exchange.deadline = Some(began + Duration::from_millis(300));
    assert_eq!(verdict(&filter, &mut exchange).await, Err(ErrorKind::BackendTimeout));
    assert_eq!(began.elapsed().as_millis(), 300);
}

/// Whoever can ask much must not bring back what counted before a token was revoked.
#[tokio::test(start_paused = true)]
async fn too_many_questions_are_no_failure_of_the_server() {
    let (filter, mut inquiry) = linked(&plan(json!({"onFailure": "LastAnswer", "cacheDuration": "5s"})));
    let said = json!({"active": true, "sub": "u1"});
    let mut exchange = shows("token");
    let (first, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&said)));
    assert_eq!(first, Ok(()));
    advance(Duration::from_secs(6)).await;
    for (why, expected) in [(NoAnswer::TooMany, Err(ErrorKind::Overloaded)), (NoAnswer::Failed, Ok(()))] {
        let mut exchange = shows("token");
        let (verdict, ()) = tokio::join!(verdict(&filter, &mut exchange), async {
            let (_, reply) = inquiry.questions.recv().await.expect("a question").split();
            assert!(reply.send(Err(why)).is_ok());
        });
        assert_eq!(verdict, expected, "{why:?}");
    }
    let mut exchange = shows("token");
    assert_eq!(verdict(&filter, &mut exchange).await, Err(ErrorKind::Overloaded), "nobody comes to ask");
}

#[tokio::test(start_paused = true)]
async fn guesses_at_the_same_time_do_not_pass_the_brake_together() {
    let mut spec = spec(json!({}));
    spec["failures"] = json!({"requests": 3, "per": "1h"});
    let plan = compile(spec, &mut world()).expect("valid");
    for (active, after) in [(false, Err(ErrorKind::TooManyFailures)), (true, Ok(()))] {
        let (filter, mut inquiry) = linked(&plan);
        let guess = |token: String| {
            let filter = &filter;
            async move { verdict(filter, &mut shows(&token)).await }
        };
        // Equal ones are one guess.
        let tokens = ["0", "0", "0", "1", "2", "3", "4"].map(|token| guess(token.to_owned()));
        let said = json!({"active": active});
        let (verdicts, asked) = tokio::join!(futures_util::future::join_all(tokens), async {
            for _ in 0..5 {
                answer(&mut inquiry, Some(&said)).await;
            }
            asks_nothing(&mut inquiry)
        });
        let good = if active { Ok(()) } else { Err(ErrorKind::TokenInvalid) };
        let stopped = Err(ErrorKind::TooManyFailures);
        assert_eq!(verdicts, [good, good, good, good, good, stopped, stopped]);
        assert!(asked);
        let mut exchange = shows("5");
        let later = verdict(&filter, &mut exchange);
        let later = match after {
            Ok(()) => tokio::join!(later, answer(&mut inquiry, Some(&said))).0,
            Err(_) => later.await,
        };
        assert_eq!(later, after, "what was good was no failure");
    }
}

/// Hands out one state for one name.
#[derive(Default)]
struct Sharing {
    states: RefCell<std::collections::HashMap<String, Arc<dyn std::any::Any + Send + Sync>>>,
    asking: Asking,
}

impl Keep for Sharing {
    fn state(
        &self,
        key: &str,
        make: &mut dyn FnMut() -> Arc<dyn std::any::Any + Send + Sync>,
    ) -> Arc<dyn std::any::Any + Send + Sync> {
        Arc::clone(self.states.borrow_mut().entry(key.to_owned()).or_insert_with(make))
    }

    fn asks(&self, inquiry: Inquiry) {
        self.asking.asks(inquiry);
    }
}

/// Another policy asks the same server about a token that a jwt entry of this one judges.
#[tokio::test(start_paused = true)]
async fn what_the_server_said_to_another_policy_does_not_go_before_a_jwt_entry() {
    let keep = Sharing::default();
    let alone = Authentication::link(&plan(json!({})), &keep);
    let mut spec = spec(json!({}));
    let jwt = json!({"name": "users", "jwt": {"issuer": "https://users.example", "audiences": ["shop"], "jwks": {"inline": KEYS}}});
    spec["anyOf"].as_array_mut().expect("a list").push(jwt);
    let beside = Authentication::link(&compile(spec, &mut world()).expect("valid"), &keep);
    let mut inquiry = keep.asking.0.take().expect("it asks");
    let said = json!({"active": true, "sub": "u1"});
    let token = of_issuer("https://users.example");
    let mut exchange = shows(&token);
    let (known, _) = tokio::join!(verdict(&alone, &mut exchange), answer(&mut inquiry, Some(&said)));
    assert_eq!((known, verdict(&alone, &mut shows(&token)).await), (Ok(()), Ok(())), "it is known now");
    assert_eq!(verdict(&beside, &mut shows(&token)).await, Err(ErrorKind::TokenInvalid));
}

#[tokio::test(start_paused = true)]
async fn tokens_without_a_subject_are_not_one_identity_and_large_answers_are_not_kept() {
    let (filter, mut inquiry) = linked(&plan(json!({})));
    let mut keys = Vec::new();
    for (token, said) in [
        ("1", json!({"active": true})),
        ("2", json!({"active": true})),
        ("3", json!({"active": true, "username": "a"})),
        ("4", json!({"active": true, "client_id": "a"})),
        ("5", json!({"active": true, "sub": "a", "large": "x".repeat(17 << 10)})),
    ] {
        let mut exchange = shows(token);
        let (verdict, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&said)));
        assert_eq!(verdict, Ok(()), "{token}");
        keys.push(exchange.identity_key());
    }
    let different: std::collections::BTreeSet<_> = keys.iter().collect();
    assert_eq!(different.len(), keys.len(), "{keys:?}");
    let known: Vec<_> = ["1", "5"]
        .into_iter()
        .map(|token| inquiry.answers.known(&super::super::entry::fingerprint(token.as_bytes())).is_some())
        .collect();
    assert_eq!(known, [true, false]);
}

#[tokio::test(start_paused = true)]
async fn whoever_keeps_failing_is_not_asked_about_any_more() {
    let mut spec = spec(json!({}));
    spec["failures"] = json!({"requests": 3, "per": "1h"});
    let (filter, mut inquiry) = linked(&compile(spec, &mut world()).expect("valid"));
    for (token, said) in [("good", true), ("1", false), ("2", false), ("3", false)] {
        let (mut exchange, said) = (shows(token), json!({"active": said}));
        let _ = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&said)));
    }
    for (token, expected) in
        [("4", Err(ErrorKind::TooManyFailures)), ("1", Err(ErrorKind::TooManyFailures)), ("good", Ok(()))]
    {
        assert_eq!(verdict(&filter, &mut shows(token)).await, expected, "{token}");
    }
    assert!(asks_nothing(&mut inquiry));
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_jwt_entry_are_left_to_it_whatever_the_order() {
    let mut spec = spec(json!({}));
    let jwt = json!({"name": "users", "jwt": {"issuer": "https://users.example", "audiences": ["shop"], "jwks": {"inline": KEYS}}});
    spec["anyOf"].as_array_mut().expect("a list").push(jwt);
    let (filter, mut inquiry) = linked(&compile(spec, &mut world()).expect("valid"));
    let of_users = of_issuer("https://users.example");
    assert_eq!(verdict(&filter, &mut shows(&of_users)).await, Err(ErrorKind::TokenInvalid));
    assert!(asks_nothing(&mut inquiry));
    for other in [of_issuer("https://others.example"), "opaque".to_owned()] {
        let (mut exchange, said) = (shows(&other), json!({"active": true}));
        let (verdict, _) = tokio::join!(verdict(&filter, &mut exchange), answer(&mut inquiry, Some(&said)));
        assert_eq!((verdict, exchange.identity.entry()), (Ok(()), "opaque"));
    }
    for malformed in ["a b", "\"a\"", "", &"x".repeat(8_193)] {
        assert_eq!(
            verdict(&filter, &mut shows(malformed)).await,
            Err(ErrorKind::TokenInvalid),
            "{malformed:.9}"
        );
    }
    assert!(asks_nothing(&mut inquiry));
    let missing = ask(&filter, &mut request("/", &[])).await;
    assert_eq!(missing, Err((ErrorKind::TokenMissing, vec!["Bearer realm=\"api\"".to_owned()])));
}

#[tokio::test(start_paused = true)]
async fn what_is_known_answers_a_question_that_comes_late() {
    let (_, inquiry) = linked(&plan(json!({})));
    assert!(inquiry.answers.known(&[7; 32]).is_none());
    inquiry.answers.read(&[7; 32], b"{\"active\": true}").expect("an answer");
    assert!(inquiry.answers.known(&[7; 32]).is_some());
    assert!(inquiry.answers.known(&[8; 32]).is_none());
}

#[tokio::test]
async fn made_up_tokens_push_out_neither_each_other_s_bound_nor_good_ones() {
    let (_, inquiry) = linked(&plan(json!({})));
    let answers: &dyn Answers = &*inquiry.answers;
    answers.read(&[7; 32], b"{\"active\": true}").expect("an answer");
    for number in 0..100_000_u32 {
        let mut about = [0; 32];
        about[..4].copy_from_slice(&number.to_le_bytes());
        answers.read(&about, b"{\"active\": false}").expect("an answer");
    }
    assert!(answers.known(&[7; 32]).is_some());
}

#[test]
fn what_cannot_work_says_where_and_what_to_do() {
    for (change, path, words) in [
        (json!({"endpoint": "http://login.example/"}), "endpoint", "use https"),
        (json!({"endpoint": "https://127.0.0.1/"}), "endpoint", "own host"),
        (json!({"endpoint": "https://user@login.example/"}), "endpoint", "without a user"),
        (json!({"path": "/x"}), "path", "goes with backendRef"),
        (json!({"endpoint": null, "backendRef": {"name": "a", "port": 80}}), "path", "goes with backendRef"),
        (
            json!({"endpoint": null, "backendRef": {"name": "a", "port": 80}, "path": "x"}),
            "path",
            "from / on",
        ),
        (json!({"cacheDuration": "2h"}), "cacheDuration", "at most 1h"),
        (json!({"timeout": "0s"}), "timeout", "more than 0s"),
        (json!({"timeout": "1m"}), "timeout", "at most 30s"),
        (json!({"clientSecretRef": {"name": "half"}}), "clientSecretRef", "clientSecret"),
        (json!({"clientSecretRef": {"name": "empty"}}), "clientSecretRef", "clientSecret"),
    ] {
        let problems = compile(spec(change.clone()), &mut world()).expect_err("refused");
        let found: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(found, [format!("anyOf[0].introspection.{path}")], "{change}");
        assert!(problems[0].message.contains(words), "{}", problems[0].message);
    }
    let mut world = world();
    assert!(compile(spec(json!({"clientSecretRef": {"name": "nowhere"}})), &mut world).is_err());
    assert_eq!(world.problems[0].path.as_str(), "anyOf[0].introspection.clientSecretRef");
}

#[test]
fn nothing_printed_holds_the_client_s_secret() {
    let plan = plan(json!({}));
    let keep = Asking::default();
    let _filter = Authentication::link(&plan, &keep);
    let printed = format!("{plan:?} {:?}", keep.0.borrow());
    assert!(printed.contains("login.example"), "{printed}");
    let encoded = "c2hvcCtnYXRld2F5";
    for secret in [SECRET, "canary", encoded] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

//! Tokens of the gateway's own: what is asked, and what is read of which answer.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, advance};

use super::fetched::{FetchPlan, OwnHost, Place, Step, Url};
use super::{ClientAuthentication, ClientToken, OauthClient};
use crate::values::{ObjectName, Redacted, SecretData};

const SECRET: &str = "canary+secret/of=us";

fn client(id: &str, secret: &str) -> Result<OauthClient, String> {
    let data = [("clientId", id), ("clientSecret", secret)]
        .map(|(key, value)| (key.to_owned(), Redacted::new(value.as_bytes().to_vec())));
    OauthClient::of(&SecretData {
        name: ObjectName::new("shop", "client"),
        kind: "Opaque".into(),
        labels: Default::default(),
        annotations: Default::default(),
        data: Arc::new(data.into()),
    })
}

fn plan(authentication: ClientAuthentication, scopes: &[&str], audience: Option<&str>) -> FetchPlan {
    let scopes: Vec<_> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    let client = client("shop gateway", SECRET).expect("a client");
    ClientToken::plan(place(), None, &client, authentication, &scopes, audience).0
}

fn place() -> Place {
    Place::Url(Url::new("https://login.example/token", OwnHost::Refused).expect("a URL"))
}

fn basic() -> FetchPlan {
    plan(ClientAuthentication::Basic, &[], None)
}

fn read(body: &str) -> Result<Arc<dyn Any + Send + Sync>, String> {
    match basic().reader.read(0, body.as_bytes(), Instant::now())? {
        Step::Done(value) => Ok(value),
        Step::Next(_) => Err("another step".into()),
    }
}

fn shown(value: &Arc<dyn Any + Send + Sync>) -> Option<String> {
    let token: &ClientToken = value.downcast_ref().expect("a token");
    token.shown().map(|field| field.to_str().expect("text").to_owned())
}

#[test]
fn the_client_says_who_it_is_in_one_of_two_ways() {
    let posted = plan(ClientAuthentication::Basic, &["read", "a:write"], Some("https://api.example"));
    let posted = posted.posted.expect("a form");
    assert_eq!(
        posted.form.expose(),
        "grant_type=client_credentials&scope=read+a%3Awrite&audience=https%3A%2F%2Fapi.example"
    );
    let field = posted.authorization.expect("it says so in a field");
    assert!(field.expose().is_sensitive());
    assert_eq!(field.expose(), "Basic c2hvcCtnYXRld2F5OmNhbmFyeSUyQnNlY3JldCUyRm9mJTNEdXM=");
    let posted = plan(ClientAuthentication::Post, &[], None).posted.expect("a form");
    assert!(posted.authorization.is_none());
    assert_eq!(
        posted.form.expose(),
        "grant_type=client_credentials&client_id=shop+gateway&client_secret=canary%2Bsecret%2Fof%3Dus"
    );
    for (id, secret) in [("", "x"), ("x", ""), ("x", "\n"), ("x", "y".repeat(1025).as_str())] {
        assert!(client(id, secret).is_err(), "{id} {}", secret.len());
    }
}

#[test]
fn whoever_asks_for_something_else_has_another_token() {
    let all = [
        basic(),
        plan(ClientAuthentication::Post, &[], None),
        plan(ClientAuthentication::Basic, &["read"], None),
        plan(ClientAuthentication::Basic, &[], Some("read")),
    ];
    for (place, one) in all.iter().enumerate() {
        assert!(all.iter().skip(place + 1).all(|other| one != other), "{place}");
    }
    assert_eq!(basic(), basic());
    let said: String = all.iter().map(|plan| format!("{plan:?} {}", plan.name())).collect();
    assert!(!said.contains("canary") && !said.contains("Y2FuYXJ5"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_shown_until_it_expires_and_refreshed_before() {
    let plan = basic();
    for (lives, fresh) in [(r#", "expires_in": 100"#, 75), (r#", "expires_in": "100""#, 75)] {
        let body = format!(r#"{{"access_token": "abc.DEF-_~+/=", "token_type": "bearer"{lives}}}"#);
        let value = read(&body).expect("a token");
        assert_eq!(shown(&value).as_deref(), Some("Bearer abc.DEF-_~+/="));
        assert_eq!(plan.reader.fresh_for(&*value), Some(Duration::from_secs(fresh)));
        assert!(!format!("{:?}", value.downcast_ref::<ClientToken>()).contains("abc"));
        advance(Duration::from_secs(99)).await;
        assert!(shown(&value).is_some() && plan.reader.ends(&*value) > Some(Instant::now()));
        advance(Duration::from_secs(1)).await;
        assert!(shown(&value).is_none() && plan.reader.ends(&*value) == Some(Instant::now()));
    }
    let endless = read(r#"{"access_token": "a", "token_type": "Bearer", "x": {"y": [1]}}"#).expect("a token");
    assert_eq!(plan.reader.fresh_for(&*endless), None, "as often as most");
    advance(Duration::from_secs(1_000_000)).await;
    assert!(shown(&endless).is_some());
    let long =
        read(r#"{"access_token": "a", "token_type": "Bearer", "expires_in": 1e300}"#).expect("a token");
    assert_eq!(plan.reader.fresh_for(&*long), Some(Duration::from_secs(24 * 3600)));
}

#[tokio::test(start_paused = true)]
async fn its_life_begins_when_it_was_asked_for() {
    let asked = Instant::now();
    advance(Duration::from_secs(9)).await;
    let body = br#"{"access_token": "a", "token_type": "Bearer", "expires_in": 10}"#;
    let Ok(Step::Done(value)) = basic().reader.read(0, body, asked) else { panic!("a token") };
    assert!(shown(&value).is_some());
    advance(Duration::from_secs(1)).await;
    assert_eq!(shown(&value), None);
}

#[test]
fn a_holder_is_the_same_with_another_secret_and_with_nothing_else() {
    let of = |giver: Option<u8>, id: &str, secret: &str, authentication, scopes: &[&str], audience| {
        let client = client(id, secret).expect("a client");
        let scopes: Vec<_> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        let giver = giver.map(|byte| [byte; 32]);
        let (plan, holder) = ClientToken::plan(place(), giver, &client, authentication, &scopes, audience);
        (plan.name(), holder)
    };
    let (basic, post) = (ClientAuthentication::Basic, ClientAuthentication::Post);
    let (name, holder) = of(None, "shop", "one", basic, &[], None);
    let (other_name, same_holder) = of(None, "shop", "two", basic, &[], None);
    assert!(name != other_name && holder == same_holder);
    for (name_of_other, other) in [
        of(Some(1), "shop", "one", basic, &[], None),
        of(Some(2), "shop", "one", basic, &[], None),
        of(None, "shop2", "one", basic, &[], None),
        of(None, "shop", "one", post, &[], None),
        of(None, "shop", "one", basic, &["read"], None),
        of(None, "shop", "one", basic, &[], Some("read")),
    ] {
        assert!(name_of_other != name && other != holder);
    }
    let post_of = |secret| of(None, "shop", secret, post, &[], None);
    assert_eq!(post_of("one").1, post_of("two").1, "the form has the secret, the holder has it not");
}

#[test]
fn what_is_no_token_is_refused_without_saying_what_it_is() {
    let long = "canary".repeat(3000);
    for body in [
        "",
        "[]",
        "canary",
        r#"{"access_token": "canary"}"#,
        r#"{"access_token": "canary", "token_type": "mac"}"#,
        r#"{"access_token": "canary", "token_type": "DPoP"}"#,
        r#"{"access_token": "", "token_type": "Bearer"}"#,
        r#"{"access_token": "canary\r\nX: y", "token_type": "Bearer"}"#,
        r#"{"access_token": "canary two", "token_type": "Bearer"}"#,
        r#"{"access_token": "canary\u00e4", "token_type": "Bearer"}"#,
        r#"{"access_token": ["canary"], "token_type": "Bearer"}"#,
        r#"{"access_token": "canary", "access_token": "canary", "token_type": "Bearer"}"#,
        r#"{"access_token": "canary", "token_type": "Bearer", "expires_in": 0}"#,
        r#"{"access_token": "canary", "token_type": "Bearer", "expires_in": -1}"#,
        r#"{"access_token": "canary", "token_type": "Bearer", "expires_in": "soon"}"#,
        r#"{"access_token": "canary", "token_type": "Bearer", "expires_in": "NaN"}"#,
        r#"{"access_token": "canary", "token_type": "Bearer", "expires_in": [1]}"#,
        &format!(r#"{{"access_token": "{long}", "token_type": "Bearer"}}"#),
    ] {
        let error = read(body).expect_err(body);
        assert!(!error.contains("canary"), "{error}");
    }
}

#[test]
fn of_a_refusal_only_the_words_of_the_standard_are_told() {
    let reader = basic().reader;
    for (body, why) in [
        (r#"{"error": "invalid_client", "error_description": "canary"}"#, Some("invalid_client")),
        (r#"{"error": "invalid_scope"}"#, Some("invalid_scope")),
        (r#"{"error": "canary"}"#, None),
        (r#"{"error": ["invalid_client"]}"#, None),
        ("canary", None),
    ] {
        assert_eq!(reader.why(body.as_bytes()), why, "{body}");
    }
}

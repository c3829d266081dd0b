//! Tokens: every legal variation counts, hostile ones do not.

mod hostile;

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::super::Authentication;
use super::super::tests::{World, ask, compile, linked_in, request};
use super::*;
use crate::filters::contract::{Filter, FilterKind as _};
use crate::message::ErrorKind;

const ISSUER: &str = "https://login.shop.example";

/// The issuer's keys, and one of somebody else.
struct Keys {
    ec: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    p521: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    rsa: RsaKeyPair,
    stranger: EcdsaKeyPair,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let ec = |algorithm: &'static EcdsaSigningAlgorithm| EcdsaKeyPair::generate(algorithm).expect("a key");
    Keys {
        ec: ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
        p384: ec(&ECDSA_P384_SHA384_FIXED_SIGNING),
        p521: ec(&ECDSA_P521_SHA512_FIXED_SIGNING),
        ed: Ed25519KeyPair::generate().expect("a key"),
        rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
        stranger: ec(&ECDSA_P256_SHA256_FIXED_SIGNING),
    }
});

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn ec_jwk(key: &EcdsaKeyPair, curve: &str) -> Value {
    let point = &key.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)})
}

fn rsa_jwk() -> Value {
    // SEQUENCE of n, 2048 bits with a zero before them, and e, in DER.
    let der = KEYS.rsa.public_key().as_ref();
    json!({"kty": "RSA", "n": b64(&der[9..265]), "e": b64([1, 0, 1])})
}

fn named(mut jwk: Value, kid: &str) -> Value {
    jwk["kid"] = kid.into();
    jwk
}

/// The issuer's set, with keys for other things in it.
fn jwks() -> String {
    json!({"keys": [
        named(ec_jwk(&KEYS.ec, "P-256"), "ec"),
        named(ec_jwk(&KEYS.p384, "P-384"), "p384"),
        named(ec_jwk(&KEYS.p521, "P-521"), "p521"),
        named(json!({"kty": "OKP", "crv": "Ed25519", "x": b64(KEYS.ed.public_key())}), "ed"),
        named(rsa_jwk(), "rsa"),
        {"kty": "oct", "kid": "shared", "k": b64("0123456789abcdef0123456789abcdef")},
        {"kty": "EC", "crv": "secp256k1", "kid": "coin", "x": "AA", "y": "AA"},
        {"kty": "new", "kid": "later"},
        {"use": "enc", "kid": "enc", "kty": "RSA", "n": rsa_jwk()["n"], "e": "AQAB"},
    ], "more": true})
    .to_string()
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
    i64::try_from(now).expect("not that late")
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "shop-api", "sub": "alice", "exp": now() + 300})
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().expect("an object").remove(name);
    claims
}

fn sign_with(key: &EcdsaKeyPair, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", b64(header), b64(claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
    format!("{signed}.{}", b64(signature))
}

/// Signed by the issuer's P-256 key, whatever the header says.
fn signed(header: &str, claims: &str) -> String {
    sign_with(&KEYS.ec, header, claims)
}

const ES256: &str = r#"{"alg":"ES256","kid":"ec","typ":"JWT"}"#;

fn of(claims: &Value) -> String {
    signed(ES256, &claims.to_string())
}

fn rsa_signed(algorithm: &'static dyn RsaEncoding, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", b64(header), b64(claims));
    let mut signature = vec![0; KEYS.rsa.public_modulus_len()];
    KEYS.rsa.sign(algorithm, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("signed");
    format!("{signed}.{}", b64(signature))
}

pub fn spec(more: Value) -> Value {
    let mut jwt =
        json!({"issuer": ISSUER, "audiences": ["shop-api", "other-api"], "jwks": {"inline": jwks()}});
    jwt.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({"failures": {"requests": 0}, "anyOf": [{"name": "users", "jwt": jwt}]})
}

fn filter(more: Value) -> Arc<dyn Filter> {
    linked_in(spec(more), World::default())
}

async fn verdict(filter: &Arc<dyn Filter>, token: &str) -> Result<(), ErrorKind> {
    let field = format!("Bearer {token}");
    let mut exchange = request("/", &[("authorization", &field)]);
    let verdict = ask(filter, &mut exchange).await.map_err(|(kind, _)| kind);
    assert_eq!(verdict.is_ok(), exchange.identity.known().is_some());
    verdict
}

#[tokio::test]
async fn every_legal_variation_counts() {
    let text = claims().to_string();
    let filter = filter(json!({}));
    let ec = |algorithm, key: &EcdsaKeyPair, kid| {
        sign_with(key, &format!(r#"{{"alg":"{algorithm}","kid":"{kid}"}}"#), &text)
    };
    let rsa =
        |name: &str, algorithm| rsa_signed(algorithm, &format!(r#"{{"alg":"{name}","kid":"rsa"}}"#), &text);
    let ed = |name: &str| {
        let signed = format!("{}.{}", b64(format!(r#"{{"alg":"{name}","kid":"ed"}}"#)), b64(&text));
        format!("{signed}.{}", b64(KEYS.ed.sign(signed.as_bytes())))
    };
    let header = |header: &str| signed(header, &text);
    for (what, token) in [
        ("ES256", ec("ES256", &KEYS.ec, "ec")),
        ("ES384", ec("ES384", &KEYS.p384, "p384")),
        ("ES512", ec("ES512", &KEYS.p521, "p521")),
        ("EdDSA", ed("EdDSA")),
        ("Ed25519", ed("Ed25519")),
        ("RS256", rsa("RS256", &RSA_PKCS1_SHA256)),
        ("RS384", rsa("RS384", &RSA_PKCS1_SHA384)),
        ("RS512", rsa("RS512", &RSA_PKCS1_SHA512)),
        ("PS256", rsa("PS256", &RSA_PSS_SHA256)),
        ("PS384", rsa("PS384", &RSA_PSS_SHA384)),
        ("PS512", rsa("PS512", &RSA_PSS_SHA512)),
        ("no kid", header(r#"{"alg":"ES256"}"#)),
        ("no typ", header(r#"{"alg":"ES256","kid":"ec"}"#)),
        ("typ in another case", header(r#"{"typ":"jwt","alg":"ES256","kid":"ec"}"#)),
        ("an access token", header(r#"{"typ":"at+jwt","alg":"ES256","kid":"ec"}"#)),
        ("a whole media type", header(r#"{"typ":"application/at+JWT","alg":"ES256","kid":"ec"}"#)),
        (
            "members that nobody knows",
            header(r#"{"alg":"ES256","kid":"ec","x":{"y":[1]},"x5t":"a","x5c":["b"]}"#),
        ),
        ("spaces and escapes in JSON", header("\n{ \"\\u0061lg\" : \"ES256\" ,\t\"kid\":\"\\u0065c\" }\r\n")),
        ("another order of claims", signed(ES256, &text.replacen('{', "{\"a\":[],", 1))),
        ("the other audience", of(&with("aud", "other-api"))),
        ("several audiences", of(&with("aud", json!(["x", "shop-api"])))),
        ("a fraction of a second", of(&with("exp", json!(1e10 + 0.5)))),
        ("an exponent", signed(ES256, &without("exp").to_string().replacen('{', "{\"exp\":4e9,", 1))),
        ("the end of time", of(&with("exp", json!(1e300)))),
        ("ended within the skew", of(&with("exp", now() - 20))),
        ("begins within the skew", of(&with("nbf", now() + 20))),
        ("valid for long", of(&with("nbf", -1))),
        ("made at a time", of(&with("iat", json!(now())))),
        ("no subject", of(&without("sub"))),
        ("a subject in another script", of(&with("sub", "älice\u{1f511}"))),
        ("scopes as text", of(&with("scope", "a b"))),
        ("scopes as a list", of(&with("scp", json!(["a", "b"])))),
        ("nested claims", of(&with("realm", json!({"roles": [{"a": null}]})))),
        ("a large one", of(&with("pad", "x".repeat(5 << 10)))),
    ] {
        assert_eq!(verdict(&filter, &token).await, Ok(()), "{what}: {token}");
        assert_eq!(verdict(&filter, &token).await, Ok(()), "{what}, from the cache");
    }
}

#[tokio::test]
async fn what_an_entry_asks_for_beyond_that_is_held() {
    let at =
        |typ: &str| signed(&format!(r#"{{"alg":"ES256","kid":"ec","typ":"{typ}"}}"#), &claims().to_string());
    for (more, token, good) in [
        (json!({"typ": "at+jwt"}), at("at+jwt"), true),
        (json!({"typ": "application/at+jwt"}), at("AT+JWT"), true),
        (json!({"typ": "at+jwt"}), at("JWT"), false),
        (json!({"typ": "at+jwt"}), signed(r#"{"alg":"ES256"}"#, &claims().to_string()), false),
        (json!({"algorithms": ["ES256"]}), of(&claims()), true),
        (json!({"algorithms": ["RS256", "EdDSA"]}), of(&claims()), false),
        (json!({"requiredClaims": ["tenant"]}), of(&with("tenant", 1)), true),
        (json!({"requiredClaims": ["tenant"]}), of(&claims()), false),
        (json!({"requiredClaims": ["tenant"]}), of(&with("tenant", Value::Null)), false),
        (json!({"clockSkew": "0s"}), of(&with("exp", now() - 2)), false),
        (json!({"clockSkew": "2m"}), of(&with("exp", now() - 100)), true),
    ] {
        assert_eq!(verdict(&filter(more.clone()), &token).await.is_ok(), good, "{more} {token}");
    }
}

#[tokio::test]
async fn a_token_is_an_identity_and_does_not_go_on() {
    let filter = filter(json!({"claimsToHeaders": [{"claim": "sub", "header": "X-User-Id"}]}));
    let token = of(&with("scope", "orders:read orders:write"));
    for _ in 0..2 {
        let mut one = request("/", &[("authorization", &format!("Bearer {token}")), ("accept", "a")]);
        assert_eq!(ask(&filter, &mut one).await, Ok(()));
        let identity = &one.identity;
        assert_eq!((identity.kind().as_str(), identity.issuer(), identity.id()), ("Jwt", ISSUER, "alice"));
        assert!(identity.has_scope("orders:write"));
        assert_eq!(one.identity_key(), format!("Jwt|{ISSUER}|alice"));
        let headers = one.request.headers();
        assert_eq!(
            (headers.get("authorization"), &headers["x-user-id"]),
            (None, &"alice".parse().expect("a value"))
        );
    }
}

#[tokio::test]
async fn each_of_several_issuers_judges_its_own_tokens_and_nobody_those_of_others() {
    let other = "https://other.example";
    let mut spec = spec(json!({}));
    let second = json!({"name": "others", "jwt": {"issuer": other, "audiences": ["shop-api"], "jwks": {"inline":
        json!({"keys": [ec_jwk(&KEYS.stranger, "P-256")]}).to_string()}}});
    spec["anyOf"].as_array_mut().expect("a list").push(second);
    let filter = linked_in(spec, World::default());
    let theirs = with("iss", other).to_string();
    assert_eq!(verdict(&filter, &of(&claims())).await, Ok(()));
    assert_eq!(verdict(&filter, &sign_with(&KEYS.stranger, r#"{"alg":"ES256"}"#, &theirs)).await, Ok(()));
    assert_eq!(verdict(&filter, &signed(ES256, &theirs)).await, Err(ErrorKind::TokenInvalid));
    let answer = ask(&filter, &mut request("/", &[])).await;
    assert_eq!(answer, Err((ErrorKind::TokenMissing, vec!["Bearer realm=\"api\"".to_owned()])));
    let answer = ask(&filter, &mut request("/", &[("authorization", "Bearer x.y.z")])).await;
    let challenge = "Bearer realm=\"api\", error=\"invalid_token\"".to_owned();
    assert_eq!(answer, Err((ErrorKind::TokenInvalid, vec![challenge])));
}

#[test]
fn sets_without_a_usable_key_are_refused() {
    let small = json!({"keys": [{"kty": "RSA", "n": b64([0xc1; 128]), "e": "AQAB"}]}).to_string();
    let even = json!({"keys": [{"kty": "RSA", "n": rsa_jwk()["n"], "e": b64([2])}]}).to_string();
    let one = json!({"keys": [{"kty": "RSA", "n": rsa_jwk()["n"], "e": b64([1])}]}).to_string();
    let off =
        json!({"keys": [{"kty": "EC", "crv": "P-256", "x": b64([1; 32]), "y": b64([1; 32])}]}).to_string();
    let private =
        json!({"keys": [{"kty": "RSA", "n": rsa_jwk()["n"], "e": "AQAB", "d": "AQAB"}]}).to_string();
    let sign_only =
        json!({"keys": [{"kty": "RSA", "n": rsa_jwk()["n"], "e": "AQAB", "key_ops": ["sign"]}]}).to_string();
    let other =
        json!({"keys": [{"kty": "RSA", "n": rsa_jwk()["n"], "e": "AQAB", "alg": "RSA-OAEP"}]}).to_string();
    let many = json!({"keys": vec![ec_jwk(&KEYS.ec, "P-256"); 65]}).to_string();
    for text in [
        "",
        "[]",
        "{}",
        r#"{"keys":{}}"#,
        r#"{"keys":[]}"#,
        r#"{"keys":[1]}"#,
        &small,
        &even,
        &one,
        &off,
        &private,
        &sign_only,
        &other,
        &many,
    ] {
        assert!(KeySet::read(text.as_bytes()).is_err(), "{text}");
    }
    let twice = jwks().replacen('{', "{\"keys\":[],", 1);
    assert!(KeySet::read(twice.as_bytes()).is_err());
    assert!(KeySet::read(jwks().as_bytes()).is_ok());
}

#[test]
fn the_first_matching_keys_alone_are_tried() {
    let mut keys = vec![ec_jwk(&KEYS.stranger, "P-256"); 8];
    keys.push(ec_jwk(&KEYS.ec, "P-256"));
    let set = KeySet::read(json!({"keys": keys}).to_string().as_bytes()).expect("a set");
    let token = signed(r#"{"alg":"ES256"}"#, &claims().to_string());
    let token = Compact::read(&token).expect("a token");
    assert_eq!(set.verify(token.algorithm, None, token.signed, &token.signature), Signed::No);
    assert_eq!(set.verify(Algorithm::RS256, None, token.signed, &token.signature), Signed::UnknownKey);
}

/// Hands what is to be fetched to the test.
#[derive(Default)]
struct Fetching(std::cell::RefCell<Option<Arc<Fetched>>>);

impl Keep for Fetching {
    fn state(
        &self,
        _: &str,
        make: &mut dyn FnMut() -> Arc<dyn std::any::Any + Send + Sync>,
    ) -> Arc<dyn std::any::Any + Send + Sync> {
        make()
    }

    fn fetched(&self, plan: &FetchPlan) -> Arc<Fetched> {
        let fetched = Arc::new(Fetched::new(plan.clone()));
        *self.0.borrow_mut() = Some(Arc::clone(&fetched));
        fetched
    }
}

#[tokio::test(start_paused = true)]
async fn keys_are_waited_for_followed_and_forgotten() {
    let keep = Fetching::default();
    let spec = spec(json!({"jwks": {"uri": "https://login.shop.example/jwks.json"}}));
    let plan = compile(spec, &mut World::default()).expect("valid");
    let filter = Authentication::link(&plan, &keep);
    let fetched = keep.0.borrow().clone().expect("wanted");
    let set = |keys: &[Value]| {
        let keys = KeySet::read(json!({"keys": keys}).to_string().as_bytes()).expect("a set");
        Some(Arc::new(keys) as Arc<dyn std::any::Any + Send + Sync>)
    };
    let (old, new) = (named(ec_jwk(&KEYS.ec, "P-256"), "ec"), named(ec_jwk(&KEYS.stranger, "P-256"), "new"));
    let (of_old, text) = (of(&claims()), claims().to_string());
    let of_new = sign_with(&KEYS.stranger, r#"{"alg":"ES256","kid":"new"}"#, &text);
    let of_none = sign_with(&KEYS.stranger, r#"{"alg":"ES256","kid":"none"}"#, &text);
    assert_eq!(verdict(&filter, &of_old).await, Err(ErrorKind::KeysUnavailable));
    fetched.tried(set(std::slice::from_ref(&old)));
    assert_eq!(verdict(&filter, &of_old).await, Ok(()));

    let fetching = async {
        fetched.wanted().notified().await;
        fetched.tried(set(&[old.clone(), new.clone()]));
    };
    let (one, other, ()) = tokio::join!(verdict(&filter, &of_new), verdict(&filter, &of_new), fetching);
    assert_eq!((one, other), (Ok(()), Ok(())));
    let began = tokio::time::Instant::now();
    assert_eq!(verdict(&filter, &of_none).await, Err(ErrorKind::TokenInvalid));
    assert!(began.elapsed().is_zero(), "nobody waits again so soon");

    // What was verified with a key that is withdrawn does not count any more.
    fetched.tried(set(&[new]));
    assert_eq!(verdict(&filter, &of_old).await, Err(ErrorKind::TokenInvalid));
    assert_eq!(verdict(&filter, &of_new).await, Ok(()));
}

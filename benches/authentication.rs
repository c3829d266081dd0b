//! What authentication costs: CPU time of this thread a request, and of a change among 100,000 keys.
//! `cargo bench --bench authentication`. What a request costs is the best of five runs; the slowest stands beside it.
//!
//! Exits with 1 when a goal is missed: 3 µs for an API key or a token that is known, 200 µs for an ES256 token that is
//! not, 250 ms until one more key among 100,000 is compiled, and a key among 100,000 at most twice one among ten.

#[path = "measure/forgetful.rs"]
mod forgetful;
#[path = "measure/options.rs"]
mod options;
#[path = "measure/request.rs"]
mod request;
#[path = "measure/time.rs"]
mod time;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use portcullis::compile::{Memo, compile};
use portcullis::filters::{Decision, Filter, REGISTRY};
use portcullis::message::{Exchange, Request};
use portcullis::snapshot::{Manifest, SecretData, Snapshot};
use portcullis::values::{ObjectName, Redacted};
use serde_json::{Value, json};

use self::request::exchange;
use self::time::{millis, timed};

use self::forgetful::Forgetful;
use self::options::options;

const KEYS: usize = 100_000;
const FEW: usize = 10;
const ROUNDS: usize = 50_000;
const TOKENS: usize = 500;

fn main() -> ExitCode {
    let mut missed = 0;
    println!("{:<46} {:>12} {:>12} {:>12}", "", "measured", "slowest", "goal");
    let mut row = |what: &str, (best, worst): (f64, f64), unit: &str, goal: f64| {
        let mark = if best > goal { " MISSED" } else { "" };
        missed += usize::from(best > goal);
        let with_unit = |number: f64| format!("{number:.2} {unit}");
        println!(
            "{what:<46} {:>12} {:>12} {:>12}{mark}",
            with_unit(best),
            with_unit(worst),
            format!("{goal} {unit}")
        );
    };
    let signer = Signer::new();
    let small = world(&signer, FEW);
    let mut world = world(&signer, KEYS);
    let (first, (compiled, mut memo)) = timed(|| compile(&world, &options(), Memo::default()));
    let first = millis(first);
    row(&format!("compile with {KEYS} keys, for the first time"), (first, first), "ms", 2_000.0);
    // As the proxy holds it.
    let mut serving = compiled.map.clone();
    let mut spent: Vec<_> = (0..9)
        .map(|round| {
            let secret = secret(KEYS + round);
            world.secrets.insert(secret.name.clone(), secret);
            let (spent, (compiled, next)) = timed(|| compile(&world, &options(), std::mem::take(&mut memo)));
            (serving, memo) = (compiled.map, next);
            millis(spent)
        })
        .collect();
    spent.sort_by(f64::total_cmp);
    row("  one more key among them, median of 9", (spent[4], spent[8]), "ms", 250.0);

    let host = serving.host("shop.example").expect("served");
    let (place, plan) = &host.table.entries()[0].rule.filters[0];
    let linked = || REGISTRY[*place].link.expect("a filter")(plan, &Forgetful);
    let filter = linked();
    let shown = field("x-api-key", &key(KEYS / 2));
    let among_all = best_of_five(|| each(&*filter, ROUNDS, |_| shown.clone(), true));
    row("an API key", among_all, "µs", 3.0);
    let (few, _) = compile(&small, &options(), Memo::default());
    let (place, plan) = &few.map.host("shop.example").expect("served").table.entries()[0].rule.filters[0];
    let filter_of_few = REGISTRY[*place].link.expect("a filter")(plan, &Forgetful);
    let shown = field("x-api-key", &key(FEW / 2));
    let among_few = best_of_five(|| each(&*filter_of_few, ROUNDS, |_| shown.clone(), true));
    // More than a miss of the processor's caches would be a search.
    row(&format!("  among {FEW} keys"), among_few, "µs", 3.0);
    let times = |all: f64, few: f64| all / few;
    row(
        "  among all, so many times that",
        (times(among_all.0, among_few.0), times(among_all.1, among_few.1)),
        "x",
        2.0,
    );
    let tokens: Vec<_> =
        (0..TOKENS).map(|place| field("authorization", &format!("Bearer {}", signer.token(place)))).collect();
    // Each time with a table that knows none.
    let anew = || each(&*linked(), TOKENS, |place| tokens[place].clone(), true);
    row("an ES256 token, for the first time", best_of_five(anew), "µs", 200.0);
    let known = || each(&*filter, ROUNDS, |_| tokens[0].clone(), true);
    known();
    row("  known", best_of_five(known), "µs", 3.0);
    // Last: from then on the address is stopped.
    let wrong = field("x-api-key", "wrong");
    row("a wrong API key", best_of_five(|| each(&*filter, ROUNDS, |_| wrong.clone(), false)), "µs", 3.0);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The best and the worst.
fn best_of_five(run: impl Fn() -> f64) -> (f64, f64) {
    let mut runs = [(); 5].map(|()| run());
    runs.sort_by(f64::total_cmp);
    (runs[0], runs[4])
}

type Field = (&'static str, HeaderValue);

fn field(name: &'static str, value: &str) -> Field {
    (name, HeaderValue::from_str(value).expect("a value"))
}

/// Microseconds a request, those of making the exchange taken off.
fn each(filter: &dyn Filter, rounds: usize, shown: impl Fn(usize) -> Field, passes: bool) -> f64 {
    let exchanges = |rounds: usize| -> Vec<Exchange> {
        let with = |place| {
            let (name, value) = shown(place);
            let mut exchange = exchange(Request::default());
            exchange.request.headers_mut().insert(name, value);
            exchange
        };
        (0..rounds).map(with).collect()
    };
    let mut waiting = exchanges(rounds);
    let (spent, passed) = timed(|| {
        let judge = |exchange: &mut Exchange| matches!(filter.request(exchange), Decision::Continue);
        waiting.iter_mut().map(judge).filter(|passed| *passed).count()
    });
    assert_eq!(passed, if passes { rounds } else { 0 });
    spent.as_secs_f64() * 1e6 / rounds as f64
}

struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"))
    }

    fn jwks(&self) -> String {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": encode(x), "y": encode(y)}]})
            .to_string()
    }

    /// Of the usual size, with the usual claims.
    fn token(&self, place: usize) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
        let claims = json!({
            "iss": "https://login.shop.example", "aud": ["shop-api", "other"], "sub": "248289761001", "exp": now + 3_600,
            "iat": now, "jti": place.to_string(), "scope": "openid profile orders:read orders:write",
            "email": "jane.doe@shop.example", "roles": ["buyer", "reviewer"], "tenant": "acme",
        });
        let header = json!({"alg": "ES256", "kid": "k", "typ": "at+jwt"});
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
        format!("{signed}.{}", encode(signature))
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn key(place: usize) -> String {
    let mixed = (place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{mixed:016x}{:016x}", mixed.rotate_left(23).wrapping_mul(0xbf58_476d_1ce4_e5b9))
}

fn secret(place: usize) -> Arc<SecretData> {
    let annotations =
        [("portcullis.dev/consumer", format!("consumer-{place}")), ("portcullis.dev/tier", "gold".into())];
    Arc::new(SecretData {
        name: ObjectName::new("shop", format!("key-{place:06}")),
        kind: "Opaque".into(),
        labels: [("portcullis.dev/api-keys".to_owned(), "shop".to_owned())].into_iter().collect(),
        annotations: annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        data: Arc::new([("key".to_owned(), Redacted::new(key(place).into_bytes()))].into()),
    })
}

fn world(signer: &Signer, keys: usize) -> Snapshot {
    let spec: Value = json!({
        "hostnames": ["shop.example"],
        "policy": {"authentication": {"anyOf": [
            {"name": "partners", "apiKey": {"secretSelector": {"matchLabels": {"portcullis.dev/api-keys": "shop"}}}},
            {"name": "users", "jwt": {"issuer": "https://login.shop.example", "audiences": ["shop-api"], "jwks": {"inline": signer.jwks()}}},
        ]}},
        "rules": [{"name": "all", "respond": {"status": 200}}],
    });
    let manifest = Manifest {
        name: ObjectName::new("shop", "shop"),
        uid: "u".into(),
        generation: 1,
        created: Some(1_700_000_000),
        spec: spec.to_string().into(),
        status: None,
        origin: None,
    };
    Snapshot {
        routes: [(manifest.name.clone(), Arc::new(manifest))].into(),
        secrets: (0..keys).map(secret).map(|secret| (secret.name.clone(), secret)).collect(),
        ..Snapshot::default()
    }
}

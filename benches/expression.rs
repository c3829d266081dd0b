//! What an expression costs a request, in nanoseconds. `cargo bench --bench expression`.
//!
//! Exits with 1 when a simple comparison costs more than a microsecond.

#[path = "measure/request.rs"]
mod request;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use http::HeaderValue;
use portcullis::expression::{Expression, Kind, REQUEST, Subject};
use portcullis::message::{Captures, Exchange, Identity, IdentityKind, KnownIdentity, Request};

const TIMES: u32 = 20_000;
const ROUNDS: usize = 9;
const MAX_SIMPLE: f64 = 1_000.0;

/// The first is the simple one that has a goal.
const SOURCES: &[&str] = &[
    "request.method == 'GET'",
    "request.headers['x-tenant'] == 'acme' && request.path.startsWith('/orders')",
    "'orders:read' in identity.scopes && identity.claims.tier in ['gold', 'silver']",
    "identity.claims.groups.exists(group, group.startsWith('ops-'))",
    "request.path.matches('^/orders/[0-9]+$')",
    "request.query.page == '2' && path.id == identity.id",
    "cidr('192.0.2.0/24').containsIP(client.address)",
];

fn main() -> ExitCode {
    let exchange = exchange();
    let mut costs = Vec::new();
    for source in SOURCES {
        let parse = || Expression::parse(black_box(source), &REQUEST, Kind::BOOL).expect(source);
        let expression = parse();
        let holds = || expression.holds(&Subject { exchange: black_box(&exchange) });
        assert_eq!(holds(), Ok(true), "{source}");
        let cost = best(|| _ = black_box(holds()), TIMES);
        println!(
            "{source:<80} {cost:>8.0} ns   (parsed in {:.0} ns)",
            best(|| drop(black_box(parse())), 500)
        );
        costs.push(cost);
    }
    if costs[0] <= MAX_SIMPLE { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nanoseconds; the best of some rounds: other work on the machine only adds.
fn best(work: impl Fn(), times: u32) -> f64 {
    let rounds = (0..ROUNDS).map(|_| {
        let start = std::time::Instant::now();
        (0..times).for_each(|_| work());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(times)
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn exchange() -> Exchange {
    let mut request = Request::default();
    *request.uri_mut() = "/orders/7?page=2".parse().expect("a URI");
    for name in
        ["host", "accept", "user-agent", "x-request-id", "x-tenant", "x-forwarded-for", "content-type"]
    {
        request.headers_mut().insert(name, HeaderValue::from_static("acme"));
    }
    let claims =
        serde_json::json!({"tier": "gold", "groups": ["dev", "support", "ops-eu"], "aud": "shop", "exp": 1});
    let identity = KnownIdentity {
        kind: IdentityKind::Jwt,
        entry: "users".into(),
        issuer: "https://login.example".into(),
        id: "7".into(),
        scopes: Arc::new(["orders:write".into(), "orders:read".into()]),
        claims: Arc::new(claims.as_object().expect("an object").clone()),
    };
    Exchange {
        identity: Identity::new(Arc::new(identity)),
        captures: Captures(vec![("id".into(), "7".into())]),
        ..request::exchange(request)
    }
}

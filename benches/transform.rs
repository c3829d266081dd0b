//! What `request` and `response` cost: CPU time of this thread. `cargo bench --bench transform`.
//!
//! Exits with 1 when a goal is missed: a microsecond for header fields, 60 µs for a JSON body of 10 KiB.

#[path = "measure/filters.rs"]
mod filters;
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

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, Method, header};
use portcullis::filters::{Decision, Filter, Outcome};
use portcullis::message::{Exchange, Request, Response};
use serde_json::{Value, json};

use self::time::{millis, timed};

const ROUNDS: usize = 2_000;

fn main() -> ExitCode {
    let mut missed = 0;
    // For the time that a body may take.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    println!("{:<60} {:>12} {:>10}", "", "measured", "goal");
    let mut row = |what: &str, measured: f64, goal: f64| {
        let mark = if measured > goal { " MISSED" } else { "" };
        missed += usize::from(measured > goal);
        println!("{what:<60} {:>12} {:>10}{mark}", format!("{measured:.2} µs"), format!("{goal} µs"));
    };
    let headers = json!({"set": [{"name": "X-Team", "value": "pay"}], "remove": ["Cookie", "Server"]});
    let request = filter(&json!({"request": {"headers": headers}}));
    row("request: header fields", asked(&*request, &Bytes::new()), 1.0);
    let response = filter(&json!({"response": {"headers": headers}}));
    row("response: header fields", answered(&*response, &Bytes::new()), 1.0);
    let filled = json!({"set": [{"name": "X-Who", "value": "${request.method} ${request.path}"}]});
    let request = filter(&json!({"request": {"headers": filled}}));
    row("request: a header field by an expression", asked(&*request, &Bytes::new()), 1.0);
    for items in [8, 82] {
        let body = Bytes::from(orders(items).to_string());
        let size = format!("{:.0} KiB", body.len() as f64 / 1024.0);
        let patch = json!({"bodyPatch": {
            "remove": ["/admin"], "rename": [{"from": "/id", "to": "/number"}], "set": [{"pointer": "/by/name", "value": "gateway"}]
        }});
        let request = filter(&json!({"request": patch}));
        row(&format!("request: remove, rename and set in {size}"), asked(&*request, &body), 60.0);
        let response = filter(&json!({"response": patch}));
        row(&format!("response: remove, rename and set in {size}"), answered(&*response, &body), 60.0);
        let response = filter(&json!({"response": {"bodyPatch": {"pick": ["/id", "/items/0/sku"]}}}));
        row(&format!("response: pick two of {size}"), answered(&*response, &body), 60.0);
        let made = json!({"body": "{'id': response.body.id, 'first': response.body.items[0].sku, 'all': response.body.items}"});
        let response = filter(&json!({"response": made}));
        row(&format!("response: a body by expression of {size}"), answered(&*response, &body), 60.0);
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn filter(policy: &Value) -> Arc<dyn Filter> {
    filters::filters(policy, &forgetful::Forgetful).into_iter().next().expect("one filter")
}

fn exchange(body: &Bytes) -> Exchange {
    let mut request = Request::new(body.clone().into());
    *request.method_mut() = Method::POST;
    fields(request.headers_mut());
    request::exchange(request)
}

fn fields(headers: &mut http::HeaderMap) {
    for name in ["host", "accept", "user-agent", "cookie", "server", "date", "x-tenant", "etag"] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static("acme"));
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
}

/// Microseconds a request; the best of some rounds.
fn asked(filter: &dyn Filter, body: &Bytes) -> f64 {
    best(|| {
        let mut exchanges: Vec<_> = (0..ROUNDS).map(|_| exchange(body)).collect();
        timed(|| {
            exchanges
                .iter_mut()
                .map(|exchange| match filter.request(exchange) {
                    Decision::Continue => true,
                    Decision::Wait(waiting) => matches!(waiting.now_or_never(), Some(Decision::Continue)),
                    _ => false,
                })
                .filter(|passed| *passed)
                .count()
        })
    })
}

/// Microseconds an answer.
fn answered(filter: &dyn Filter, body: &Bytes) -> f64 {
    best(|| {
        let with = |_| {
            let mut response = Response::new(body.clone().into());
            fields(response.headers_mut());
            (exchange(&Bytes::new()), response)
        };
        let (mut exchanges, responses): (Vec<_>, Vec<_>) = (0..ROUNDS).map(with).unzip();
        let (spent, changed) = timed(|| {
            let waiting = exchanges.iter_mut().zip(responses);
            waiting
                .filter_map(|(exchange, response)| match filter.response(exchange, response) {
                    Outcome::Ready(response) => Some(response),
                    Outcome::Wait(waiting) => match waiting.now_or_never() {
                        Some(Outcome::Ready(response)) => Some(response),
                        _ => None,
                    },
                    Outcome::Fail(_) => None,
                })
                .collect::<Vec<_>>()
        });
        (spent, changed.len())
    })
}

fn best(round: impl Fn() -> (std::time::Duration, usize)) -> f64 {
    let rounds = (0..7).map(|_| {
        let (spent, passed) = round();
        assert_eq!(passed, ROUNDS, "all are changed");
        millis(spent) * 1e3 / ROUNDS as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn orders(items: usize) -> Value {
    let item = |item| {
        json!({
            "sku": format!("ABC-{item}"), "quantity": 1, "price": 19.99, "note": "please ring twice, then wait at the door",
            "address": {"city": "Ulm", "country": "DE"}
        })
    };
    json!({"id": 7, "admin": true, "by": {"client": "web"}, "items": (0..items).map(item).collect::<Vec<_>>()})
}

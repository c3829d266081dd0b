//! What `bodySchema` costs: CPU time of this thread for each KiB of a body. `cargo bench --bench validation`.
//!
//! Exits with 1 when a goal is missed: 25 µs a KiB for what is right, 2 ms for what is wrong, of whatever form.

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
use http::{HeaderValue, Method, header};
use portcullis::filters::{Decision, Filter};
use portcullis::message::{Exchange, Request};
use serde_json::{Value, json};

use self::time::{millis, timed};

fn main() -> ExitCode {
    let mut missed = 0;
    println!("{:<52} {:>14} {:>12}", "", "measured", "goal");
    let mut row = |what: &str, measured: f64, unit: &str, goal: f64| {
        let mark = if measured > goal { " MISSED" } else { "" };
        missed += usize::from(measured > goal);
        println!("{what:<52} {:>14} {:>12}{mark}", format!("{measured:.2} {unit}"), format!("{goal} {unit}"));
    };
    let orders = filter(&orders_schema());
    for items in [5, 80, 300, 4_500] {
        let body = orders_of(items, 1).to_string();
        let rounds = (1 << 20) / body.len() + 1;
        let kib = body.len() as f64 / 1024.0;
        let spent = each(&*orders, &body, rounds, true);
        row(&format!("{kib:.0} KiB of orders"), spent * 1e3 / kib, "µs/KiB", 25.0);
    }
    row(
        "300 orders that are all wrong",
        each(&*orders, &orders_of(300, 0).to_string(), 20, false),
        "ms",
        2.0,
    );
    let tree = filter(&tree_schema());
    let nested = |inner: &str| format!("{}{inner}{}", r#"{"l":"#.repeat(60), r#","op":"a"}"#.repeat(60));
    row("alternatives 60 deep, right", each(&*tree, &nested("1"), 20, true), "ms", 2.0);
    row("alternatives 60 deep, wrong at the end", each(&*tree, &nested("true"), 20, false), "ms", 20.0);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Milliseconds a body, all of it on this thread.
fn each(filter: &dyn Filter, body: &str, rounds: usize, passes: bool) -> f64 {
    let body = Bytes::from(body.to_owned());
    let exchanges = || -> Vec<Exchange> {
        let with = |_| {
            let mut request = Request::new(body.clone().into());
            *request.method_mut() = Method::POST;
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            request::exchange(request)
        };
        (0..rounds).map(with).collect()
    };
    let mut waiting = exchanges();
    let (spent, passed) = timed(|| {
        let judge = |exchange: &mut Exchange| match filter.request(exchange) {
            Decision::Wait(waiting) => matches!(waiting.now_or_never(), Some(Decision::Continue)),
            _ => false,
        };
        waiting.iter_mut().map(judge).filter(|passed| *passed).count()
    });
    assert_eq!(passed, if passes { rounds } else { 0 });
    millis(spent) / rounds as f64
}

fn filter(schema: &Value) -> Arc<dyn Filter> {
    let policy = json!({"validation": {"maxBodySize": "2Mi", "bodySchema": {"inline": schema}}});
    filters::filters(&policy, &forgetful::Forgetful).into_iter().next().expect("one filter")
}

fn orders_schema() -> Value {
    json!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["sku", "quantity", "address"],
            "additionalProperties": false,
            "properties": {
                "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]+$"},
                "quantity": {"type": "integer", "minimum": 1, "maximum": 1000},
                "price": {"type": "number"},
                "note": {"type": ["string", "null"], "maxLength": 200},
                "address": {"$ref": "#/$defs/address"}
            }
        },
        "$defs": {"address": {
            "type": "object", "required": ["city", "country"],
            "properties": {"city": {"type": "string", "minLength": 1}, "country": {"enum": ["DE", "FR", "IT"]}}
        }}
    })
}

fn orders_of(items: usize, quantity: u32) -> Value {
    (0..items)
        .map(|item| {
            json!({
                "sku": format!("ABC-{item}"), "quantity": quantity, "price": 19.99, "note": "please ring twice, then wait at the door",
                "address": {"city": "Ulm", "country": "DE"}
            })
        })
        .collect()
}

/// Alternatives that contain each other: without memory or a bound they take exponential time.
fn tree_schema() -> Value {
    let alternative = |name: &str| {
        json!({
            "type": "object", "required": ["l", "op"],
            "properties": {"op": {"const": name}, "l": {"$ref": "#/$defs/e"}}
        })
    };
    let all: Vec<_> =
        ["a", "b", "c", "d", "e"].map(alternative).into_iter().chain([json!({"type": "integer"})]).collect();
    json!({"$ref": "#/$defs/e", "$defs": {"e": {"oneOf": all}}})
}

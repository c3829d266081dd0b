//! What finding the rule of a request costs, host included, in nanoseconds. `cargo bench --bench lookup`.
//!
//! Exits with 1 when 10,000 routes cost more than 500 ns above one: a twentieth of a small request.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use http::{HeaderMap, Method};
use portcullis::message::Labels;
use portcullis::route_map::path::normal_form;
use portcullis::route_map::{
    Action, HostIndex, MatchEntry, MatchPlan, MatchTable, PathPredicate, Predicates, RequestView,
    RespondPlan, Rule, Standing, Template,
};
use portcullis::values::ObjectName;

const REQUESTS: usize = 4_096;
const ROUNDS: usize = 7;
const MAX_ABOVE_ONE: f64 = 500.0;

fn main() -> ExitCode {
    let prefix = |place: usize| PathPredicate::prefix(&format!("/p{place}/")).expect("normal");
    let exact = |place: usize| PathPredicate::exact(&format!("/p{place}/item")).expect("normal");
    let template = |place: usize| {
        PathPredicate::Template(Template::parse(&format!("/p{place}/{{id}}")).expect("a template"))
    };
    type Make<'m> = &'m dyn Fn(usize) -> PathPredicate;
    let shapes: [(&str, Make<'_>); 3] =
        [("prefixes", &prefix), ("exact paths", &exact), ("templates", &template)];
    let one = measure(1, 1, &prefix);
    println!("{:<44} {one:>8.0} ns", "one route");
    let mut worst = 0f64;
    for (name, make) in shapes {
        for (hosts, paths) in [(1, 1_000), (1, 10_000), (100, 10), (1_000, 10), (10_000, 1)] {
            let cost = measure(hosts, paths, make);
            println!("{:<44} {cost:>8.0} ns", format!("{hosts} hosts with {paths} {name}"));
            worst = worst.max(cost);
        }
    }
    let above = worst - one;
    let mark = if above <= MAX_ABOVE_ONE { "ok" } else { "MISSED" };
    println!("{:<44} {above:>8.0} ns, goal {MAX_ABOVE_ONE:.0} ns  {mark}", "worst above one route");
    if above <= MAX_ABOVE_ONE { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The best of some rounds: other work on the machine only adds.
fn measure(hosts: usize, paths: usize, make: &dyn Fn(usize) -> PathPredicate) -> f64 {
    let named = (0..hosts).map(|host| {
        let entries = (0..paths).map(|path| entry(path, make(path))).collect();
        (format!("h{host}.bench.example").parse().expect("a hostname"), MatchTable::new(entries))
    });
    let index = HostIndex::new(named, None);
    let requests: Vec<_> = (0..REQUESTS)
        .map(|request| {
            // Spread like a hash, the same each time.
            let place = request.wrapping_mul(2_654_435_761);
            (format!("h{}.bench.example", place % hosts), format!("/p{}/item", (place / 7) % paths))
        })
        .collect();
    let headers = HeaderMap::new();
    let rounds = (0..ROUNDS).map(|_| {
        let start = std::time::Instant::now();
        for (host, path) in &requests {
            let path = normal_form(black_box(path)).expect("normal");
            let request = RequestView { method: &Method::GET, path: &path, query: None, headers: &headers };
            let found = index.find(black_box(host)).and_then(|table| table.find(&request));
            assert!(black_box(found).is_some(), "each request has its rule");
        }
        start.elapsed().as_secs_f64() * 1e9 / REQUESTS as f64
    });
    rounds.fold(f64::INFINITY, f64::min)
}

fn entry(place: usize, path: PathPredicate) -> MatchEntry {
    let labels = Labels { namespace: "bench".into(), route: "o".into(), rule: format!("r{place}").into() };
    let action = Action::Respond(RespondPlan { status: 200, content_type: None, body: Default::default() });
    MatchEntry {
        plan: Arc::new(MatchPlan::new(path, Predicates::default())),
        rule: Arc::new(Rule { labels: Arc::new(labels), filters: Vec::new(), action, policy: Vec::new() }),
        standing: Standing::new(None, ObjectName::new("bench", "o"), place, 0),
    }
}

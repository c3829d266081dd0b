//! What compiling and installing cost: CPU time of this thread and memory of the result, as a table.
//! `cargo bench --bench compile`.
//!
//! Exits with 1 when a goal is missed: 10,000 routes in 1 s, 50,000 in 5 s, one changed among 10,000 in 50 ms, 2 KiB a
//! rule, compiled and installed.

#[path = "measure/memory.rs"]
mod memory;
#[path = "measure/options.rs"]
mod options;
#[path = "measure/time.rs"]
mod time;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use portcullis::compile::{Memo, compile};
use portcullis::filters::REGISTRY;
use portcullis::lifecycle::Drain;
use portcullis::proxy::{DataPlane, Limits, Settings};
use portcullis::snapshot::{Manifest, ServiceData, ServicePort, Snapshot};
use portcullis::telemetry::{AccessLog, Telemetry};
use portcullis::values::ObjectName;

use self::options::options;
use self::time::{millis, timed};

/// Rules of each route; with three of them one host.
const RULES: usize = 3;

fn main() -> ExitCode {
    let mut missed = 0;
    println!("{:<44} {:>12} {:>12}", "", "measured", "goal");
    let mut row = |what: &str, measured: f64, unit: &str, goal: f64| {
        let mark = if measured > goal { "  MISSED" } else { "  ok" };
        missed += usize::from(measured > goal);
        println!("{what:<44} {:>12} {:>12}{mark}", format!("{measured:.1} {unit}"), format!("{goal} {unit}"));
    };
    for (routes, goal) in [(10_000, 1_000.0), (50_000, 5_000.0)] {
        let world = world(routes);
        let before = memory::alive();
        let (spent, kept) = timed(|| compile(&world, &options(), Memo::default()));
        let bytes = (memory::alive() - before) as f64 / (routes * RULES) as f64;
        assert_eq!(kept.0.map.hosts.len(), routes, "every host is served");
        let rules: usize = kept.0.map.hosts.values().map(|host| host.table.entries().len()).sum();
        assert_eq!(rules, routes * RULES, "every rule is served");
        row(&format!("{routes} routes, {RULES} rules each"), millis(spent), "ms", goal);
        row("  memory a rule, map, memo and reports", bytes, "B", 2_048.0);
        let (_drain, plane) = plane();
        let (spent, _) = timed(|| plane.install(kept.0.map.clone(), BTreeMap::new()));
        row("  installed, for the first time", millis(spent), "ms", goal);
        let bytes = (memory::alive() - before) as f64 / (routes * RULES) as f64;
        // With the counters, filters and pools of each rule.
        row("  memory a rule, installed", bytes, "B", 2_048.0);
        if routes == 10_000 {
            let (compiled, installed) = one_change(world, kept.1, &plane);
            row("  one changed route of them, compiled; median of 9", compiled, "ms", 50.0);
            row("  compiled and installed", installed, "ms", 50.0);
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A gateway of one worker that serves nothing yet.
fn plane() -> (Drain, DataPlane) {
    let settings = Settings {
        http: vec!["127.0.0.1:0".parse().expect("an address")],
        https: Vec::new(),
        workers: 1,
        trusted_hops: 0,
        proxy_protocol: Default::default(),
        loopback_backends: false,
        egress: Default::default(),
        own_ports: false,
        public_https_port: None,
        installation: "bench".into(),
        cache_memory: 1 << 20,
        limits: Limits::default(),
    };
    let (drain, signal) = Drain::new();
    let plane = DataPlane::start(settings, REGISTRY, Telemetry::new(1), AccessLog::default(), signal);
    (drain, plane.expect("starts"))
}

/// Changes another route each time: what compiling takes, and with its install.
fn one_change(mut world: Snapshot, mut memo: Memo, plane: &DataPlane) -> (f64, f64) {
    let mut spent: Vec<_> = (0..9)
        .map(|round| {
            let (name, manifest) = route(round * 1_000 + 1, "/changed");
            world.routes.insert(name, manifest);
            let (spent, (compiled, next)) = timed(|| compile(&world, &options(), std::mem::take(&mut memo)));
            let host = compiled.map.host(&format!("h{}.example.test", round * 1_000 + 1)).expect("a host");
            assert!(host.to_string().contains("/changed"), "the change is in the map");
            memo = next;
            let (installed, _) = timed(|| plane.install(compiled.map, BTreeMap::new()));
            (millis(spent), millis(spent + installed))
        })
        .collect();
    spent.sort_by(|one, other| one.1.total_cmp(&other.1));
    spent[spent.len() / 2]
}

fn world(routes: usize) -> Snapshot {
    let service = ServiceData {
        name: ObjectName::new("bench", "orders"),
        external_name: None,
        addresses: Vec::new(),
        ports: vec![ServicePort { name: "".into(), port: 8080, app_protocol: None }],
        prefers_near: false,
        origin: None,
    };
    Snapshot {
        routes: (0..routes).map(|place| route(place, "/orders")).collect(),
        services: [(service.name.clone(), Arc::new(service))].into(),
        ..Snapshot::default()
    }
}

fn route(place: usize, first: &str) -> (ObjectName, Arc<Manifest>) {
    let name = ObjectName::new("bench", format!("route-{place:05}"));
    let rule = |name: &str, path: &str, more: serde_json::Value| {
        let mut rule = serde_json::json!({
            "name": name,
            "matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "backendRefs": [{"name": "orders", "port": 8080}],
        });
        rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        rule
    };
    let spec = serde_json::json!({
        "hostnames": [format!("h{place}.example.test")],
        "rules": [
            rule("first", first, serde_json::json!({"policy": {"timeouts": {"request": "5s"}}})),
            rule("second", "/catalog", serde_json::json!({})),
            rule("third", "/", serde_json::json!({})),
        ],
    });
    let manifest = Manifest {
        name: name.clone(),
        uid: format!("00000000-0000-0000-0000-{place:012}").into(),
        generation: 1,
        created: Some(1_700_000_000 + place as i64),
        spec: spec.to_string().into(),
        status: None,
        origin: None,
    };
    (name, Arc::new(manifest))
}

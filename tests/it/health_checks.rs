//! Active health checks in the whole program.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::harness::{Backend, Gateway, connect, route, until};

/// A server that answers requests with its name, and `/healthz` as it is told.
struct Server {
    address: SocketAddr,
    well: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
    held: Arc<AtomicUsize>,
}

impl Server {
    fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let well = Arc::new(AtomicBool::new(true));
        let server =
            Self { address, well, requests: Arc::default(), checks: Arc::default(), held: Arc::default() };
        let (well, requests, checks) = (server.well.clone(), server.requests.clone(), server.checks.clone());
        let held = server.held.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (well, requests, checks) = (well.clone(), requests.clone(), checks.clone());
                let held = held.clone();
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() {
                        head.push(byte[0]);
                        if !head.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        let is_check = head.starts_with(b"GET /healthz?deep=1 ");
                        let is_held = head.starts_with(b"GET /held ");
                        head.clear();
                        if is_held {
                            // No answer: it is over when the client leaves.
                            held.fetch_add(1, Ordering::SeqCst);
                            continue;
                        }
                        let status = if is_check && !well.load(Ordering::SeqCst) { 503 } else { 200 };
                        let count = if is_check { &checks } else { &requests };
                        count.fetch_add(1, Ordering::SeqCst);
                        let length = name.len();
                        let _ =
                            write!(stream, "HTTP/1.1 {status} -\r\ncontent-length: {length}\r\n\r\n{name}");
                    }
                });
            }
        });
        server
    }
}

fn gauge(gateway: &Gateway, wanted: usize) {
    let line =
        format!("portcullis_upstream_endpoints_unhealthy{{backend=\"GatewayBackend/test/two\"}} {wanted}\n");
    until(&line, || gateway.ask_admin("/metrics").body.contains(&line).then_some(()));
}

#[test]
fn an_endpoint_that_says_it_is_unwell_gets_no_requests_until_it_is_well() {
    let (one, two) = (Server::start("one"), Server::start("two"));
    let backend = |check: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: two}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}, {{address: 127.0.0.1, port: {}}}]{check}}}\n---\n",
            one.address.port(),
            two.address.port()
        )
    };
    let check = ", healthCheck: {active: {path: '/healthz?deep=1', interval: 100ms, timeout: 100ms, healthyAfter: 2, unhealthyAfter: 2}}";
    let spec =
        "{hostnames: [shop.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: two}]}]}";
    let gateway = Gateway::start(&[("backend.yaml", &backend(check)), ("route.yaml", &route("shop", spec))]);
    let ask = |count: usize| {
        for _ in 0..count {
            assert_eq!(gateway.get("shop.example", "/").status, 200);
        }
    };
    let asked = |server: &Server| server.requests.swap(0, Ordering::SeqCst);
    ask(10);
    assert!(asked(&one) > 0 && asked(&two) > 0, "the control: both are asked");

    one.well.store(false, Ordering::SeqCst);
    gauge(&gateway, 1);
    ask(20);
    assert_eq!((asked(&one), asked(&two)), (0, 20));

    // All unwell: somebody is asked all the same.
    two.well.store(false, Ordering::SeqCst);
    gauge(&gateway, 2);
    ask(4);
    assert_eq!(asked(&one) + asked(&two), 4);

    one.well.store(true, Ordering::SeqCst);
    gauge(&gateway, 1);
    ask(20);
    assert_eq!((asked(&one), asked(&two)), (20, 0));

    // Who is not to be checked any more is not, and counts as well.
    gateway.write("backend.yaml", &backend(""));
    until("both to be asked", || {
        ask(4);
        (asked(&one) > 0 && asked(&two) > 0).then_some(())
    });
    let metrics = gateway.ask_admin("/metrics").body;
    for result in ["passed", "failed"] {
        let line = format!(
            "portcullis_upstream_health_checks_total{{backend=\"GatewayBackend/test/two\",result=\"{result}\"}} "
        );
        let count = metrics.lines().find_map(|found| found.strip_prefix(&*line)).expect("counted");
        assert_ne!(count, "0", "{metrics}");
    }
    let log = gateway.process.log();
    assert!(log.contains("endpoint unhealthy") && log.contains("it answered 503"), "{log}");
}

#[test]
fn an_endpoint_that_is_gone_is_found_out_without_a_request() {
    let (one, gone) = (Server::start("one"), TcpListener::bind("127.0.0.1:0").expect("a port"));
    let port = gone.local_addr().expect("an address").port();
    let backend = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: two}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}, {{address: 127.0.0.1, port: {port}}}], healthCheck: {{active: {{interval: 100ms, timeout: 100ms, unhealthyAfter: 1}}, panicPercent: 40}}}}\n---\n",
        one.address.port(),
    );
    let spec =
        "{hostnames: [shop.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: two}]}]}";
    let gateway = Gateway::start(&[("backend.yaml", &backend), ("route.yaml", &route("shop", spec))]);
    until("checks", || {
        let line =
            "portcullis_upstream_health_checks_total{backend=\"GatewayBackend/test/two\",result=\"passed\"}";
        gateway.ask_admin("/metrics").body.contains(line).then_some(())
    });
    assert_eq!(one.checks.load(Ordering::SeqCst), 0, "a connection is enough");
    drop(gone);
    gauge(&gateway, 1);
    for _ in 0..10 {
        assert_eq!(gateway.get("shop.example", "/").status, 200);
    }
    assert_eq!(one.requests.load(Ordering::SeqCst), 10);
}

/// A GatewayBackend `two` with these hosts.
fn two(addresses: [SocketAddr; 2], more: &str) -> String {
    let hosts =
        addresses.map(|address| format!("{{address: 127.0.0.1, port: {}}}", address.port())).join(", ");
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: two}}\nspec: {{hosts: [{hosts}]{more}}}\n---\n"
    )
}

const TO_TWO: &str =
    "{hostnames: [shop.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: two}]}]}";

#[test]
fn a_superseded_description_is_checked_no_more_while_a_request_still_holds_it() {
    let (one, two_) = (Server::start("one"), Server::start("two"));
    let checked = |path: &str| {
        let check = format!(", healthCheck: {{active: {{path: '{path}', interval: 100ms, timeout: 100ms}}}}");
        two([one.address, two_.address], &check)
    };
    let files = [("backend.yaml", &*checked("/healthz?deep=1")), ("route.yaml", &route("shop", TO_TWO))];
    let gateway = Gateway::start(&files);
    let count = |server: &Server| server.checks.load(Ordering::SeqCst);
    until("checks", || (count(&one) > 1).then_some(()));

    let mut held = connect(gateway.http);
    held.write_all(b"GET /held HTTP/1.1\r\nhost: shop.example\r\n\r\n").expect("sent");
    let is_held = || one.held.load(Ordering::SeqCst) + two_.held.load(Ordering::SeqCst) == 1;
    until("the request to be under way", || is_held().then_some(()));
    // Other checks than these count as requests.
    gateway.write("backend.yaml", &checked("/other"));
    let of_new = || one.requests.load(Ordering::SeqCst);
    until("the new checks", || (of_new() > 0).then_some(()));
    let (before, begun) = (count(&one), of_new());
    until("more of them", || (of_new() > begun + 5).then_some(()));
    assert!(is_held(), "the control: it is still under way");
    assert_eq!(count(&one), before, "nobody asks by the old description");
}

#[test]
fn grpc_s_own_health_service_says_who_is_well() {
    let servers = ["one", "two"].map(|name| Backend::with(name, &["--drain", "60s"]));
    let check = ", protocol: H2C, healthCheck: {active: {grpc: {service: shop.v1.Orders}, interval: 100ms, timeout: 100ms, unhealthyAfter: 2}}";
    let backend = two([servers[0].address, servers[1].address], check);
    let gateway = Gateway::start(&[("backend.yaml", &backend), ("route.yaml", &route("shop", TO_TWO))]);
    let asked = || -> std::collections::BTreeSet<String> {
        let name = |_| gateway.get("shop.example", "/").json()["name"].as_str().expect("told").to_owned();
        (0..12).map(name).collect()
    };
    until("checks", || {
        let line =
            "portcullis_upstream_health_checks_total{backend=\"GatewayBackend/test/two\",result=\"passed\"}";
        gateway.ask_admin("/metrics").body.contains(line).then_some(())
    });
    assert_eq!(asked().len(), 2, "the control: both are asked");
    // It still answers, and says that it is about to go.
    servers[0].process.signal(rustix::process::Signal::TERM);
    gauge(&gateway, 1);
    assert_eq!(asked(), ["two".to_owned()].into());
    let log = gateway.process.log();
    assert!(log.contains("endpoint unhealthy") && log.contains("it says NOT_SERVING"), "{log}");
}

#[test]
fn a_server_without_grpc_s_health_service_is_unwell() {
    let (one, two_) = (Server::start("one"), Server::start("two"));
    let check = ", protocol: H2C, healthCheck: {active: {grpc: {}, interval: 100ms, timeout: 100ms, unhealthyAfter: 1}}";
    let backend = two([one.address, two_.address], check);
    let gateway = Gateway::start(&[("backend.yaml", &backend), ("route.yaml", &route("shop", TO_TWO))]);
    gauge(&gateway, 2);
}

/// What `/endpoints` says of a backend's endpoints, by port.
fn states(gateway: &Gateway, backend: &str) -> BTreeMap<u16, String> {
    let told = gateway.ask_admin("/endpoints").json();
    let backends = told["backends"].as_array().expect("a list");
    let Some(found) = backends.iter().find(|entry| entry["backend"] == backend) else {
        return BTreeMap::new();
    };
    let endpoints = found["endpoints"].as_array().expect("a list").iter();
    let state = |endpoint: &serde_json::Value| {
        let address: SocketAddr = endpoint["address"].as_str().expect("told").parse().expect("an address");
        (address.port(), endpoint["state"].as_str().expect("told").to_owned())
    };
    endpoints.map(state).collect()
}

#[test]
fn the_admin_port_tells_how_each_endpoint_stands() {
    let (one, two_) = (Server::start("one"), Server::start("two"));
    let echoes = ["three", "four"].map(Backend::start);
    // So slowly that it can be seen.
    let check = ", loadBalancer: {slowStart: 15m}, healthCheck: {active: {path: '/healthz?deep=1', interval: 100ms, timeout: 100ms, healthyAfter: 1, unhealthyAfter: 1}}";
    let ejects = ", healthCheck: {passive: {consecutiveErrors: 1, ejectFor: 1h}}";
    let others = two([echoes[0].address, echoes[1].address], ejects).replace("name: two", "name: others");
    let other_route = route(
        "others",
        &TO_TWO.replace("shop.example", "others.example").replace("name: two", "name: others"),
    );
    let gateway = Gateway::start(&[
        ("backend.yaml", &(two([one.address, two_.address], check) + &others)),
        ("route.yaml", &(route("shop", TO_TWO) + &other_route)),
    ]);
    let (checked, judged) = ("GatewayBackend/test/two", "GatewayBackend/test/others");
    let good = |ports: [u16; 2]| BTreeMap::from(ports.map(|port| (port, "good".to_owned())));
    let [first, second] = [one.address.port(), two_.address.port()];
    let echoing = echoes.each_ref().map(|echo| echo.address.port());
    assert_eq!((states(&gateway, checked), states(&gateway, judged)), (good([first, second]), good(echoing)));

    one.well.store(false, Ordering::SeqCst);
    until("the check to tell", || (states(&gateway, checked)[&first] == "unhealthy").then_some(()));
    assert_eq!(states(&gateway, checked)[&second], "good");
    one.well.store(true, Ordering::SeqCst);
    until("it to come back", || (states(&gateway, checked)[&first] == "recovering").then_some(()));
    let told = gateway.ask_admin("/endpoints").json();
    let backend = &told["backends"][0];
    let places = backend["endpoints"].as_array().expect("a list");
    let place = places.iter().find(|place| place["state"] == "recovering").expect("it is there still");
    assert_eq!(backend["backend"], checked, "who is not well stands first: {told}");
    assert!(place["share"].as_u64().is_some_and(|share| (10..20).contains(&share)), "{told}");
    assert_eq!(place.get("near"), None, "without a zone nothing is near");

    assert_eq!(gateway.get("others.example", "/status/503").status, 503);
    let stands = states(&gateway, judged).into_values().collect::<Vec<_>>();
    assert_eq!(stands.iter().filter(|state| *state == "ejected").count(), 1, "{stands:?}");
    assert_eq!(stands.iter().filter(|state| *state == "good").count(), 1, "{stands:?}");
}

#[test]
fn each_replica_asks_once_for_all_its_workers() {
    let (once, often) = (Server::start("once"), Server::start("often"));
    let backend = |name: &str, server: &Server, interval: &str| {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: {name}}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}], healthCheck: {{active: {{path: '/healthz?deep=1', interval: {interval}, timeout: 100ms}}}}}}\n---\n",
            server.address.port()
        )
    };
    let to = |name: &str| {
        let backend = format!("{{kind: GatewayBackend, name: {name}}}");
        route(
            name,
            &format!("{{hostnames: [{name}.test], rules: [{{name: all, backendRefs: [{backend}]}}]}}"),
        )
    };
    let files = [backend("once", &once, "1h"), backend("often", &often, "100ms"), to("once"), to("often")];
    let gateway = Gateway::start(&[("all.yaml", &files.concat())]);
    // On both of the two workers.
    for _ in 0..16 {
        assert_eq!((gateway.get("once.test", "/").status, gateway.get("often.test", "/").status), (200, 200));
    }
    // The first of each is asked within a second.
    until("a while to pass", || (often.checks.load(Ordering::SeqCst) > 25).then_some(()));
    assert_eq!(once.checks.load(Ordering::SeqCst), 1);
}

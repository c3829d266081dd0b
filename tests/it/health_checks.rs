//! Active health checks in the whole program.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::harness::{Gateway, route, until};

/// A server that answers requests with its name, and `/healthz` as it is told.
struct Server {
    address: SocketAddr,
    well: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
}

impl Server {
    fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (well, requests, checks) = (Arc::new(AtomicBool::new(true)), Arc::default(), Arc::default());
        let server = Self { address, well, requests, checks };
        let (well, requests, checks) = (server.well.clone(), server.requests.clone(), server.checks.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (well, requests, checks) = (well.clone(), requests.clone(), checks.clone());
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() {
                        head.push(byte[0]);
                        if !head.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        let is_check = head.starts_with(b"GET /healthz?deep=1 ");
                        head.clear();
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

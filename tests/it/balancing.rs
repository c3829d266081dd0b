//! Which endpoint requests go to, and how many connections there may be at once: in the whole program.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{Answer, Backend, Gateway, connect, exchange, route, until};

/// A GatewayBackend of these servers, with more of its spec.
fn backend(name: &str, ports: &[u16], more: &str) -> String {
    let hosts: Vec<_> = ports.iter().map(|port| format!("{{address: 127.0.0.1, port: {port}}}")).collect();
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: {name}}}\nspec: {{hosts: [{}]{more}}}\n---\n",
        hosts.join(", ")
    )
}

/// So many echo servers.
fn servers(count: usize) -> (Vec<Backend>, Vec<u16>) {
    let servers: Vec<_> = (0..count).map(|at| Backend::start(&format!("server-{at}"))).collect();
    let ports = servers.iter().map(|server| server.address.port()).collect();
    (servers, ports)
}

/// Who answered.
fn name(gateway: &Gateway, path: &str, fields: &[&str]) -> String {
    let answer = gateway.request("GET", "shop.example", path, fields, "");
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["name"].as_str().expect("a name").to_owned()
}

#[test]
fn weights_hold_exactly_over_all_workers() {
    let (servers, ports) = servers(2);
    let backends = backend("stable", &ports[..1], "") + &backend("canary", &ports[1..], "");
    let spec = "{hostnames: [shop.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: stable, weight: 95}, {kind: GatewayBackend, name: canary, weight: 5}]}]}";
    let gateway = Gateway::start(&[("backends.yaml", &backends), ("route.yaml", &route("shop", spec))]);
    let counts = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    // A new connection each, so that both workers have some.
                    (0..250).filter(|_| name(&gateway, "/", &[]) == "server-1").count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).sum::<usize>()
    });
    assert_eq!(counts, 50, "of a thousand");
    drop(servers);
}

#[test]
fn requests_of_one_key_meet_at_one_endpoint() {
    let (mut servers, ports) = servers(3);
    let hashed =
        ", loadBalancer: {policy: ConsistentHash, consistentHash: {key: \"request.headers['x-tenant']\"}}";
    let spec = "{hostnames: [shop.example], rules: [{name: all, backendRefs: [{kind: GatewayBackend, name: three}]}]}";
    let gateway = Gateway::start(&[
        ("backend.yaml", &backend("three", &ports, hashed)),
        ("route.yaml", &route("shop", spec)),
    ]);
    let of = |tenant: usize| name(&gateway, "/", &[&format!("X-Tenant: {tenant}")]);
    let before: BTreeMap<usize, String> = (0..60).map(|tenant| (tenant, of(tenant))).collect();
    assert_eq!(before.values().collect::<BTreeSet<_>>().len(), 3, "keys are spread");
    for (tenant, at) in &before {
        assert_eq!(of(*tenant), *at);
    }
    // Without a key: in turn.
    let keyless: BTreeSet<_> = (0..12).map(|_| name(&gateway, "/", &[])).collect();
    assert_eq!(keyless.len(), 3);
    // One that is gone: its keys move, and no others.
    let gone = servers.remove(0);
    drop(gone);
    for (tenant, at) in &before {
        let now = of(*tenant);
        assert!(now != "server-0" && (at == "server-0" || now == *at), "{tenant}: {at}, then {now}");
    }
}

#[test]
fn requests_stay_in_the_gateway_s_own_zone_where_the_service_wants_it() {
    let (servers, ports) = servers(2);
    let slice = |at: usize, zone: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-{zone}, namespace: test, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: {}}}]\nendpoints: [{{addresses: [127.0.0.1], zone: {zone}}}]\n---\n",
            ports[at]
        )
    };
    let spec = "{hostnames: [shop.example], rules: [{name: all, backendRefs: [{name: web, port: 80}]}]}";
    let manifests = |more: &str| {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: test}}\nspec: {{ports: [{{port: 80}}]{more}}}\n---\n"
        );
        [&*service, &slice(0, "a"), &slice(1, "b"), &route("shop", spec)].concat()
    };
    let near = manifests(", trafficDistribution: PreferSameZone");
    let asked = |gateway: &Gateway| (0..24).map(|_| name(gateway, "/", &[])).collect::<BTreeSet<_>>();
    let gateway = Gateway::with(&[("all.yaml", &near)], &["--zone", "b"]);
    assert_eq!(asked(&gateway), ["server-1".to_owned()].into());
    let told = gateway.ask_admin("/endpoints").json();
    let places = told["backends"][0]["endpoints"].as_array().expect("a list");
    for place in places {
        let is_near = place["address"] == format!("127.0.0.1:{}", ports[1]);
        assert_eq!(place["near"], is_near, "{told}");
    }
    // The controls: a Service that does not want it, and a gateway that does not know where it is.
    gateway.write("all.yaml", &manifests(""));
    until("both to be asked", || (asked(&gateway).len() == 2).then_some(()));
    let gateway = Gateway::start(&[("all.yaml", &near)]);
    assert_eq!(asked(&gateway).len(), 2);
    drop(servers);
}

/// A server that takes a while to answer; and how many connections it has had open at once.
struct Slow {
    port: u16,
    most: Arc<AtomicUsize>,
}

impl Slow {
    fn start(time: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (open, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let slow = Self { port, most: most.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let (open, most) = (open.clone(), most.clone());
                most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while stream.read_exact(&mut byte).is_ok() {
                        head.push(byte[0]);
                        if head.ends_with(b"\r\n\r\n") {
                            head.clear();
                            std::thread::park_timeout(time);
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                        }
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        slow
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

#[test]
fn a_backend_has_no_more_connections_than_it_may_and_the_rest_waits_or_is_told() {
    let slow = Slow::start(Duration::from_millis(20));
    let spec = "{hostnames: [shop.example], rules: [{name: all, policy: {timeouts: {connect: 20s}}, backendRefs: [{kind: GatewayBackend, name: slow}]}]}";
    // One for each of the two workers, so that none is closed for another.
    let gateway = Gateway::start(&[
        ("backend.yaml", &backend("slow", &[slow.port], ", limits: {connections: 2, pendingRequests: 40}")),
        ("route.yaml", &route("shop", spec)),
    ]);
    let all = |count: usize| -> Vec<Answer> {
        std::thread::scope(|scope| {
            let ask = || exchange(connect(gateway.http), "GET", "shop.example", "/", &[], "");
            let clients: Vec<_> = (0..count).map(|_| scope.spawn(ask)).collect();
            clients.into_iter().map(|client| client.join().expect("no panic")).collect()
        })
    };
    let answers = all(30);
    assert!(answers.iter().all(|answer| answer.status == 200), "they wait");
    assert!(slow.most() <= 2, "{}", slow.most());

    // Who waits is told when there is no room for it, and told no sooner.
    gateway.write(
        "backend.yaml",
        &backend("slow", &[slow.port], ", limits: {connections: 2, pendingRequests: 0}"),
    );
    let answer = until("nobody to wait", || all(30).into_iter().find(|answer| answer.status == 503));
    assert_eq!(answer.json()["reason"], "Overloaded");
    assert_eq!(answer.field("retry-after"), Some("1"));
    assert_eq!(all(1)[0].status, 200);
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(
        metrics.contains("portcullis_upstream_pending_requests{backend=\"GatewayBackend/test/slow\"} 0\n")
    );
    assert!(metrics.contains(
        "portcullis_upstream_errors_total{backend=\"GatewayBackend/test/slow\",kind=\"Overloaded\"} "
    ));

    // The control.
    gateway.write("backend.yaml", &backend("slow", &[slow.port], ""));
    until("as many as are wanted", || {
        all(30);
        (slow.most() > 3).then_some(())
    });
}

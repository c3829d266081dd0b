//! Which endpoint requests go to, in the whole program.

use std::collections::{BTreeMap, BTreeSet};

use crate::harness::{Backend, Gateway, route};

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

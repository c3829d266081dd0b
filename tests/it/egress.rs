//! Where the gateway connects to, in the whole program: nothing that a route names leads to the API server, to a Pod of the
//! gateway or into a denied network, whichever way it is named, and to the cluster's Pods only what is named as a Service. Nobody accepts here: whether somebody called shows in the
//! queue of a listening socket.

use std::io::Write as _;
use std::net::TcpListener;

use crate::harness::{Gateway, connect, program, route, until};

const API_SERVER: &str = "127.0.0.2";
const POD: &str = "127.0.0.3";
const OTHER_POD: &str = "127.0.0.4";
const DENIED: &str = "127.0.7.7";
const PERMITTED: &str = "127.0.0.9";
/// Of the cluster: Services lead there, hosts and URLs do not.
const CLUSTER_POD: &str = "127.0.8.1";
/// Of the cluster, and open to hosts.
const ALLOWED: &str = "127.0.8.9";

/// A way to name an address, and the objects for it, under a name of their own.
type Way = (&'static str, fn(&str, &str, u16) -> String);

const WAYS: [Way; 6] = [
    ("host", |name, ip, port| server(name, ip, port) + &to(name, "", name)),
    ("slice", |name, ip, port| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: test, name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n{}{}",
            slice("test", name, &[ip], port),
            route(
                name,
                &format!(
                    "{{hostnames: [{name}.example], rules: [{{name: all, backendRefs: [{{name: {name}, port: 80}}]}}]}}"
                )
            )
        )
    }),
    ("jwks", |name, ip, port| {
        let jwt = format!(
            "jwt: {{issuer: 'https://{name}.example', audiences: [a], jwks: {{uri: 'http://{ip}:{port}/keys'}}}}"
        );
        server(name, PERMITTED, 9) + &to(name, &by(&jwt), name)
    }),
    ("introspection", |name, ip, port| {
        let entry = format!(
            "introspection: {{endpoint: 'http://{ip}:{port}/introspect', clientSecretRef: {{name: client}}}}"
        );
        server(name, PERMITTED, 9) + &to(name, &by(&entry), name)
    }),
    ("authorizer", |name, ip, port| {
        let policy = format!("policy: {{extAuth: {{url: 'http://{ip}:{port}/verify'}}}}, ");
        server(name, PERMITTED, 9) + &to(name, &policy, name)
    }),
    ("authorizer-backend", |name, ip, port| {
        let policy =
            format!("policy: {{extAuth: {{backendRef: {{kind: GatewayBackend, name: {name}-authz}}}}}}, ");
        server(&format!("{name}-authz"), ip, port) + &server(name, PERMITTED, 9) + &to(name, &policy, name)
    }),
];

fn server(name: &str, ip: &str, port: u16) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{namespace: test, name: {name}}}\nspec: {{hosts: [{{address: {ip}, port: {port}}}]}}\n---\n"
    )
}

fn to(name: &str, policy: &str, backend: &str) -> String {
    route(
        name,
        &format!(
            "{{hostnames: [{name}.example], rules: [{{name: all, {policy}backendRefs: [{{kind: GatewayBackend, name: {backend}}}]}}]}}"
        ),
    )
}

fn by(entry: &str) -> String {
    format!("policy: {{authentication: {{failures: {{requests: 0}}, anyOf: [{{name: entry, {entry}}}]}}}}, ")
}

fn slice(namespace: &str, service: &str, addresses: &[&str], port: u16) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: {namespace}, name: {service}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{{addresses: [{}]}}]\n---\n",
        addresses.join("]}, {addresses: [")
    )
}

fn secret() -> &'static str {
    "apiVersion: v1\nkind: Secret\nmetadata: {namespace: test, name: client}\nstringData: {clientId: gateway, clientSecret: secret}\n---\n"
}

/// A socket at which one way to one address leads.
struct Trap {
    name: String,
    way: &'static str,
    listener: TcpListener,
    manifest: String,
}

impl Trap {
    fn set(way: &Way, at: &str, port: u16) -> Self {
        let listener = TcpListener::bind((at, port)).expect("loopback is ours");
        listener.set_nonblocking(true).expect("ours");
        let port = listener.local_addr().expect("bound").port();
        let name = format!("{}-{}", way.0, at.replace('.', "-"));
        Self { manifest: way.1(&name, at, port), name, way: way.0, listener }
    }

    fn was_called(&self) -> bool {
        self.listener.accept().is_ok()
    }

    fn host(&self) -> String {
        format!("{}.example", self.name)
    }

    /// What makes the gateway look for whom the route names.
    fn credential(&self) -> &'static str {
        match self.way {
            // Keys are fetched without a request.
            "introspection" => "Authorization: Bearer opaque-0123456789",
            _ => "X-Plain: 1",
        }
    }
}

#[test]
fn no_way_to_name_an_address_leads_to_one_that_is_not_permitted() {
    // One port for the API server, since it is known by address and port.
    let api_port =
        TcpListener::bind((API_SERVER, 0)).and_then(|port| port.local_addr()).expect("a port").port();
    let mut refused: Vec<Trap> = Vec::new();
    for at in [POD, OTHER_POD, DENIED] {
        refused.extend(WAYS.iter().map(|way| Trap::set(way, at, 0)));
    }
    let (by_service, by_host): (Vec<_>, Vec<_>) = WAYS.iter().partition(|way| way.0 == "slice");
    refused.extend(by_host.into_iter().map(|way| Trap::set(way, CLUSTER_POD, 0)));
    // All its ways lead to the same socket.
    let api = Trap::set(&WAYS[0], API_SERVER, api_port);
    let api_ways: String =
        WAYS.iter().map(|way| (way.1)(&format!("{}-api", way.0), API_SERVER, api_port)).collect();
    let mut permitted: Vec<Trap> = WAYS.iter().map(|way| Trap::set(way, PERMITTED, 0)).collect();
    permitted.extend(WAYS.iter().map(|way| Trap::set(way, ALLOWED, 0)));
    permitted.extend(by_service.into_iter().map(|way| Trap::set(way, CLUSTER_POD, 0)));
    // Another port of the API server's host.
    let beside = Trap::set(&WAYS[0], API_SERVER, 0);
    let traps = refused.iter().chain(&permitted).chain([&beside]);
    let manifests: String = traps.map(|trap| trap.manifest.as_str()).collect();
    let own = slice("default", "kubernetes", &[API_SERVER], api_port)
        + &slice("gateway", "peers", &[OTHER_POD], 9091)
        + secret();
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("routes.yaml"), manifests + &api_ways).expect("written");
    std::fs::write(folder.path().join("own.yaml"), own).expect("written");
    let token = folder.path().join("token");
    let mut command = program();
    command.envs([
        ("POD_IP", POD),
        ("POD_NAMESPACE", "gateway"),
        ("PORTCULLIS_EGRESS_DENY", "127.0.7.0/24,10.9.9.9"),
        ("PORTCULLIS_EGRESS_CLUSTER", "127.0.8.0/24"),
        ("PORTCULLIS_EGRESS_ALLOW", ALLOWED),
    ]);
    let token = token.to_str().expect("UTF-8");
    let peers = ["--peer", "127.0.0.1:0", "--peer-service", "peers", "--peer-token-file", token];
    let gateway = Gateway::launched(command, folder, &peers);

    // The control: every way leads to an address that is permitted.
    for trap in permitted.iter().chain([&beside]) {
        let head = format!("GET / HTTP/1.1\r\nHost: {}\r\n{}\r\n\r\n", trap.host(), trap.credential());
        let mut asking = connect(gateway.http);
        asking.write_all(head.as_bytes()).expect("sent");
        until(&format!("{} to lead to where it may", trap.name), || trap.was_called().then_some(()));
    }
    let ask = |host: &str, credential: &str, way: &str| {
        let answer = gateway.request("GET", host, "/", &[credential], "");
        let reason = answer.json()["reason"].clone();
        // An address that is written is told at once.
        let is_told = [CLUSTER_POD, DENIED].iter().any(|at| host.contains(&at.replace('.', "-")));
        match way {
            "host" if is_told => assert_eq!(reason, "BackendNotFound", "{host}"),
            "jwks" | "introspection" | "authorizer" if is_told => {
                assert_eq!(reason, "PolicyInvalid", "{host}");
            }
            "host" | "slice" => assert_eq!(reason, "AddressNotPermitted", "{host}"),
            "jwks" => assert_eq!(answer.status, 401, "{host}: nobody is let in"),
            _ => assert_eq!(answer.status, 503, "{host}: {reason}"),
        }
    };
    for trap in &refused {
        ask(&trap.host(), trap.credential(), trap.way);
    }
    for (way, _) in &WAYS {
        let credential = if *way == "introspection" { permitted[3].credential() } else { "X-Plain: 1" };
        ask(&format!("{way}-api.example"), credential, way);
    }
    // What is fetched without a request was looked for too.
    for at in [API_SERVER, POD, OTHER_POD] {
        let refusal = format!("the egress guard refuses {at}:");
        until(&refusal, || gateway.process.log().contains(&refusal).then_some(()));
    }
    for trap in refused.iter().chain([&api]) {
        assert!(!trap.was_called(), "{} was called", trap.name);
    }
}

#[test]
fn what_becomes_the_gateway_s_own_is_refused_from_then_on_and_what_is_no_more_is_not() {
    let backend = crate::harness::Backend::start("one");
    let files = [("routes.yaml", to("shop", "", "one") + &backend.manifest("one"))];
    let given: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let gateway = Gateway::start(&given);
    assert_eq!(gateway.get("shop.example", "/").status, 200);
    let ip = backend.address.ip().to_string();
    gateway.write("api.yaml", &slice("default", "kubernetes", &[&ip], backend.address.port()));
    gateway.until_answer("shop.example", "/", 502, "AddressNotPermitted");
    gateway.write("api.yaml", &slice("default", "kubernetes", &[&ip], backend.address.port() ^ 1));
    gateway.until_answer("shop.example", "/", 200, "");
}

//! What the tests of the data plane stand on: a gateway in this process on port 0 with a hand-made route map, and
//! backends that are a few lines of script over raw TCP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::filters::{AnyPlan, Row, TimeoutsPlan};
use portcullis::lifecycle::{Drain, Phase};
use portcullis::message::{ErrorKind, Labels};
use portcullis::proxy::{DataPlane, Limits, Settings};
use portcullis::route_map::{
    Action, BackendPlan, BackendTarget, Endpoint, EndpointSet, ForwardPlan, Host, HostTls, MatchEntry,
    MatchPlan, MatchTable, PathPredicate, Predicates, RespondPlan, RouteMap, Rule, Standing, WeightedBackend,
    WeightedTarget,
};
use portcullis::telemetry::{AccessLog, Telemetry};
use portcullis::values::{BackendId, ObjectName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Gateway {
    pub plane: DataPlane,
    pub drain: Drain,
    pub telemetry: Telemetry,
}

impl Gateway {
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::with_members(portcullis::filters::REGISTRY, change)
    }

    /// With other members of `policy` than those that users can write.
    pub fn with_members(members: &'static [Row], change: impl FnOnce(&mut Settings)) -> Self {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
        let mut settings = Settings {
            http: vec![any],
            https: vec![any],
            workers: 2,
            trusted_hops: 0,
            proxy_protocol: Default::default(),
            loopback_backends: true,
            egress: Default::default(),
            own_ports: false,
            public_https_port: None,
            installation: "test".into(),
            cache_memory: 64 << 20,
            limits: Limits::default(),
        };
        change(&mut settings);
        let (drain, signal) = Drain::new();
        let telemetry = Telemetry::new(settings.workers);
        let plane = DataPlane::start(settings, members, telemetry.clone(), AccessLog::default(), signal)
            .expect("starts");
        Self { plane, drain, telemetry }
    }

    /// A gateway that sends everything to `backend`.
    pub fn before(backend: SocketAddr) -> Self {
        let gateway = Self::start();
        gateway.serve(&[("", forward("b"))], &[("b", backend)]);
        gateway
    }

    pub fn http(&self) -> SocketAddr {
        self.plane.addresses().http[0]
    }

    pub fn https(&self) -> SocketAddr {
        self.plane.addresses().https[0]
    }

    /// Waits until all workers have ended by themselves.
    pub async fn ended(&self) {
        let plane = self.plane.clone();
        let joining = std::thread::spawn(move || plane.join());
        until("the workers' end", || joining.is_finished()).await;
    }

    /// Installs one rule a host, for every path.
    pub fn serve(&self, hosts: &[(&str, Action)], backends: &[(&str, SocketAddr)]) {
        let hosts = hosts.iter().map(|(name, action)| host(name, None, copy(action))).collect();
        let (map, endpoints) = route_map(hosts, backends);
        self.plane.install(map, endpoints);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.drain.advance(Phase::Closing);
        self.plane.clone().join();
    }
}

pub fn route_map(
    hosts: Vec<Arc<Host>>,
    backends: &[(&str, SocketAddr)],
) -> (Arc<RouteMap>, BTreeMap<BackendId, EndpointSet>) {
    let mut map = RouteMap::default();
    for host in hosts {
        match host.hostname.clone() {
            Some(name) => drop(map.hosts.insert(name, host)),
            None => map.catch_all = Some(host),
        }
    }
    let mut endpoints = BTreeMap::new();
    for (name, address) in backends {
        let id = backend_id(name);
        map.backends.insert(id.clone(), Arc::new(plan(name)));
        let endpoints_of = vec![Endpoint::from(*address)];
        endpoints.insert(id, EndpointSet { endpoints: endpoints_of, known: true, ..EndpointSet::default() });
    }
    (Arc::new(map), endpoints)
}

pub fn plan(name: &str) -> BackendPlan {
    let target = BackendTarget::Service { service: ObjectName::new("ns", name), port: 80 };
    BackendPlan::new(backend_id(name), target)
}

pub fn backend_id(name: &str) -> BackendId {
    BackendId::Service { service: ObjectName::new("ns", name), port: 80 }
}

/// A host with one rule for every path; no name: the catch-all.
pub fn host(name: &str, tls: Option<HostTls>, action: Action) -> Arc<Host> {
    host_with(name, tls, vec![("/", action)])
}

/// A host with a rule a path prefix.
pub fn host_with(name: &str, tls: Option<HostTls>, rules: Vec<(&str, Action)>) -> Arc<Host> {
    let rules = rules.into_iter().map(|(prefix, action)| (prefix, vec![], action)).collect();
    host_filtered(name, tls, rules)
}

/// Rows and plans of filters.
pub type Filters = Vec<(usize, AnyPlan)>;

/// A host with a rule with these filters a path prefix.
pub fn host_filtered(name: &str, tls: Option<HostTls>, rules: Vec<(&str, Filters, Action)>) -> Arc<Host> {
    let entry = |(index, (prefix, filters, action)): (usize, (&str, Filters, Action))| {
        let labels = Labels { namespace: "ns".into(), route: name.into(), rule: format!("r{index}").into() };
        MatchEntry {
            plan: Arc::new(MatchPlan::new(
                PathPredicate::prefix(prefix).expect(prefix),
                Predicates::default(),
            )),
            rule: Arc::new(Rule { labels: Arc::new(labels), filters, action, policy: vec![] }),
            standing: Standing::new(None, ObjectName::new("ns", name), index, 0),
        }
    };
    let table = MatchTable::new(rules.into_iter().enumerate().map(entry).collect());
    let hostname = (!name.is_empty()).then(|| name.parse().expect(name));
    Arc::new(Host::new(hostname, tls, table))
}

pub fn forward(backend: &str) -> Action {
    forward_within(backend, TimeoutsPlan::default())
}

pub fn forward_within(backend: &str, timeouts: TimeoutsPlan) -> Action {
    shared_out(&[(backend, 1)], timeouts)
}

pub fn shared_out(backends: &[(&str, u32)], timeouts: TimeoutsPlan) -> Action {
    let weighted = |(name, weight): &(&str, u32)| WeightedBackend {
        weight: *weight,
        target: WeightedTarget::Backend(backend_id(name)),
    };
    Action::Forward(ForwardPlan {
        backends: backends.iter().map(weighted).collect(),
        timeouts,
        retry: None,
        mirror: None,
        sessions: None,
    })
}

pub fn respond(body: &'static str) -> Action {
    Action::Respond(RespondPlan {
        status: 200,
        content_type: Some("text/plain".into()),
        body: Bytes::from_static(body.as_bytes()),
    })
}

fn copy(action: &Action) -> Action {
    match action {
        Action::Forward(plan) => Action::Forward(ForwardPlan {
            backends: plan.backends.clone(),
            timeouts: plan.timeouts.clone(),
            retry: plan.retry.clone(),
            mirror: plan.mirror.clone(),
            sessions: plan.sessions.clone(),
        }),
        Action::Respond(plan) => Action::Respond(RespondPlan {
            status: plan.status,
            content_type: plan.content_type.clone(),
            body: plan.body.clone(),
        }),
        Action::Unserved(plan) => Action::Unserved(plan.clone()),
        Action::Aggregate(_) | Action::Redirect(_) => panic!("built where they are used"),
    }
}

/// A backend that answers every request with the same bytes and keeps what it was sent.
#[derive(Clone)]
pub struct Backend {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Backend {
    /// Answers with `answer`; an answer with `connection: close` or without a length ends the connection.
    pub async fn answering(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let (address, heard) = (listener.local_addr().expect("bound"), Arc::<Mutex<Vec<String>>>::default());
        let backend = Self { address, heard };
        let (answer, told) = (answer.to_owned(), backend.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(told.clone().converse(socket, answer.clone()));
            }
        });
        backend
    }

    pub async fn ok() -> Self {
        Self::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await
    }

    async fn converse(self, mut socket: TcpStream, answer: String) {
        let mut rest = Vec::new();
        while let Some(request) = read_message(&mut socket, &mut rest).await {
            self.heard.lock().expect("unpoisoned").push(request);
            if socket.write_all(answer.as_bytes()).await.is_err() || closes(&answer) {
                return;
            }
        }
    }

    /// All requests so far, as they came over the wire.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("unpoisoned").clone()
    }

    pub fn last(&self) -> String {
        self.heard().pop().unwrap_or_default()
    }
}

fn closes(answer: &str) -> bool {
    let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    head.contains("connection: close") || !(head.contains("content-length") || head.contains("chunked"))
}

/// Reads one HTTP/1.1 message, head and body, as it came. `rest` holds what came after it.
pub async fn read_message(socket: &mut (impl AsyncRead + Unpin), rest: &mut Vec<u8>) -> Option<String> {
    let mut read = std::mem::take(rest);
    loop {
        if let Some(length) = message_length(&read) {
            *rest = read.split_off(length);
            return Some(String::from_utf8_lossy(&read).into_owned());
        }
        let mut buffer = [0; 16 << 10];
        match socket.read(&mut buffer).await {
            Ok(count @ 1..) => read.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
}

fn message_length(read: &[u8]) -> Option<usize> {
    let head = read.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        let end = read[head..].windows(5).position(|window| window == b"0\r\n\r\n").map(|at| head + at + 5);
        // With trailers the last chunk is followed by fields and an empty line.
        let trailers = read[head..].windows(5).position(|window| window == b"\r\n0\r\n").and_then(|at| {
            read[head + at + 5..]
                .windows(4)
                .position(|w| w == b"\r\n\r\n")
                .map(|tail| head + at + 5 + tail + 4)
        });
        return end.or(trailers);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let whole = head + length.unwrap_or(0);
    (read.len() >= whole).then_some(whole)
}

/// Sends bytes on a new connection and gives everything that comes until the gateway closes it, or the first whole
/// message if it stays open.
pub async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.expect("connects");
    socket.write_all(request.as_bytes()).await.expect("sent");
    answer(&mut socket).await
}

/// One answer, or what came before the connection ended.
pub async fn answer(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut read = Vec::new();
    let reading = async {
        loop {
            let mut buffer = [0; 16 << 10];
            match socket.read(&mut buffer).await {
                Ok(count @ 1..) => read.extend_from_slice(&buffer[..count]),
                _ => return,
            }
            if message_length(&read).is_some() && !read.starts_with(b"HTTP/1.1 100 ") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the gateway answers or closes in time");
    String::from_utf8_lossy(&read).into_owned()
}

/// A client of HTTP/2, and its connection until that ends.
pub async fn http2_client<B>(address: SocketAddr) -> (http2::SendRequest<B>, JoinHandle<hyper::Result<()>>)
where
    B: hyper::body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static,
{
    let socket = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.expect("speaks HTTP/2");
    (sender, tokio::spawn(connection))
}

/// The status of an answer; 0 when there is none.
pub fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// The reason of a problem document.
pub fn reason(answer: &str) -> String {
    let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
    let problem: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    problem["reason"].as_str().unwrap_or_default().to_owned()
}

/// A field of a message's head.
pub fn field<'m>(message: &'m str, name: &str) -> Option<&'m str> {
    let head = message.split("\r\n\r\n").next()?;
    head.lines().skip(1).find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Waits until `holds`, at most `PATIENCE`.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            looks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Nothing of a rule is served.
pub fn unserved(kind: ErrorKind) -> Action {
    Action::Unserved(portcullis::route_map::Unserved { kind })
}

//! Backends on loopback that follow a script, and the requests that are sent to them.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

use crate::message::{Body, ErrorKind, ProxyError, Request};
use crate::route_map::{
    BackendPlan, BackendProtocol, BackendTarget, Endpoint, EndpointSet, HostHeader, TrafficPlan,
};
use crate::telemetry::Telemetry;
use crate::upstream::{Answer, Backend, Guard, Loopback, Pools, SendLimits};
use crate::values::{BackendId, ObjectName};

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A backend that does with each connection what its script says: one entry a request, `None` closes.
pub(super) struct Scripted {
    pub address: SocketAddr,
    /// Per connection, the heads of its requests.
    pub seen: Rc<RefCell<Vec<Vec<String>>>>,
    pub open: Rc<RefCell<usize>>,
}

#[derive(Clone)]
pub(super) enum Step {
    /// Reads a request's head and says this.
    Answer(&'static str),
    /// Reads a request's head and closes without a word.
    Close,
    /// Says this, then closes.
    Last(&'static str),
    /// Reads a request's head and keeps silent.
    Silence,
}

/// What connection number n does, from 0; its last step repeats.
pub(super) type Script = fn(usize) -> Vec<Step>;

impl Scripted {
    /// Answers each request with 200, on as many connections as come.
    pub async fn answering() -> Self {
        Self::start(|_| vec![Step::Answer(OK)]).await
    }

    pub async fn start(script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let (seen, open) = (Rc::new(RefCell::new(Vec::new())), Rc::new(RefCell::new(0)));
        let (heads, count) = (seen.clone(), open.clone());
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = heads.borrow().len();
                heads.borrow_mut().push(Vec::new());
                *count.borrow_mut() += 1;
                let (heads, count) = (heads.clone(), count.clone());
                tokio::task::spawn_local(async move {
                    play(stream, script(number), &heads, number).await;
                    *count.borrow_mut() -= 1;
                });
            }
        });
        Self { address, seen, open }
    }

    pub fn connections(&self) -> usize {
        self.seen.borrow().len()
    }

    pub fn requests(&self) -> usize {
        self.seen.borrow().iter().map(Vec::len).sum()
    }

    pub async fn has_open(&self, wanted: usize) {
        for _ in 0..10_000 {
            if *self.open.borrow() == wanted {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{} connections are open, not {wanted}", self.open.borrow());
    }
}

pub(super) async fn play(
    mut stream: TcpStream,
    steps: Vec<Step>,
    heads: &RefCell<Vec<Vec<String>>>,
    number: usize,
) {
    let mut steps = steps.into_iter();
    let mut step = steps.next().expect("a script has a step");
    while let Some(head) = head(&mut stream).await {
        heads.borrow_mut()[number].push(head);
        match step {
            Step::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap_or_default(),
            Step::Close => return,
            Step::Last(text) => return stream.write_all(text.as_bytes()).await.unwrap_or_default(),
            Step::Silence => {}
        }
        step = steps.next().unwrap_or(step);
    }
}

/// None: the other side closed.
pub(super) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

pub(super) fn backend(addresses: &[SocketAddr], host: HostHeader) -> Arc<Backend> {
    backend_with(addresses, host, TrafficPlan::default())
}

pub(super) fn backend_with(addresses: &[SocketAddr], host: HostHeader, traffic: TrafficPlan) -> Arc<Backend> {
    speaking(addresses, host, traffic, BackendProtocol::Http1)
}

pub(super) fn speaking(
    addresses: &[SocketAddr],
    host: HostHeader,
    traffic: TrafficPlan,
    protocol: BackendProtocol,
) -> Arc<Backend> {
    asked_by(1, addresses, host, traffic, protocol)
}

/// By so many workers.
pub(super) fn asked_by(
    workers: usize,
    addresses: &[SocketAddr],
    host: HostHeader,
    traffic: TrafficPlan,
    protocol: BackendProtocol,
) -> Arc<Backend> {
    let service = ObjectName::new("shop", "orders");
    let id = BackendId::Service { service: service.clone(), port: 80 };
    let plain = BackendPlan::new(id, BackendTarget::Service { service, port: 80 });
    let plan = BackendPlan { host_header: host, traffic, protocol, ..plain };
    let backend = Backend::new(Arc::new(plan), 0, Telemetry::new(workers).backend("orders"));
    backend.set_endpoints(set(addresses));
    Arc::new(backend)
}

pub(super) fn set(addresses: &[SocketAddr]) -> EndpointSet {
    let endpoints = addresses.iter().map(|address| Endpoint::from(*address)).collect();
    EndpointSet { endpoints, known: true, ..EndpointSet::default() }
}

pub(super) fn pools() -> Rc<Pools> {
    Pools::new(0, 7, Guard::new(Loopback::Allowed))
}

pub(super) fn request(method: Method, body: Body) -> Request {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = "/orders?page=2".parse().expect("a path");
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("shop.test"));
    request
}

pub(super) fn get() -> Request {
    request(Method::GET, Body::Empty)
}

pub(super) async fn whole(outcome: Result<Answer, ProxyError>) -> Bytes {
    let answer = outcome.expect("an answer");
    assert_eq!(answer.response.status(), 200);
    answer.response.into_body().read(1 << 20).await.expect("a whole body").0
}

pub(super) fn kind(outcome: Result<Answer, ProxyError>) -> ErrorKind {
    outcome.map(|answer| answer.response.status()).expect_err("no answer").kind
}

/// Lets all tasks run that can.
pub(super) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Waits until it is so.
pub(super) async fn is_so(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        sleep(Duration::from_millis(1)).await;
    }
}

pub(super) async fn refused() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    listener.local_addr().expect("bound")
}

/// Runs a test on one thread, as a worker does, within a deadline.
pub(super) fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(20), test).await.expect("the test ends");
    });
}

/// The same with a clock that runs only when nothing else can.
pub(super) fn local_paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

/// Sends `count` requests at once and reads their answers.
pub(super) async fn together(pools: &Pools, backend: &Arc<Backend>, count: usize) {
    let all = (0..count).map(|_| pools.send(backend, get(), None, SendLimits::default()));
    for outcome in futures_util::future::join_all(all).await {
        whole(outcome).await;
    }
}

/// A backend that writes a row of texts without end, after it has read a head.
pub(super) async fn flood(start: &'static str, more: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let address = listener.local_addr().expect("bound");
    tokio::task::spawn_local(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        head(&mut stream).await;
        let mut outcome = stream.write_all(start.as_bytes()).await;
        while outcome.is_ok() {
            outcome = stream.write_all(more.repeat(64).as_bytes()).await;
        }
    });
    address
}

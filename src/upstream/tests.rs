//! The pools against scripted backends on loopback: what they do to us, and what a client of ours sees of it.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};

use crate::message::{Body, BodyError, ErrorKind, FixedHost, ProxyError, Request};
use crate::route_map::{BackendPlan, BackendTarget, Endpoint, EndpointSet, HostHeader};
use crate::telemetry::Telemetry;
use crate::upstream::{Answer, Backend, Guard, Loopback, Pools, SendLimits};
use crate::values::{BackendId, ObjectName};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A backend that does with each connection what its script says: one entry a request, `None` closes.
struct Scripted {
    address: SocketAddr,
    /// Per connection, the heads of its requests.
    seen: Rc<RefCell<Vec<Vec<String>>>>,
    open: Rc<RefCell<usize>>,
}

#[derive(Clone)]
enum Step {
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
type Script = fn(usize) -> Vec<Step>;

impl Scripted {
    async fn start(script: Script) -> Self {
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

    fn connections(&self) -> usize {
        self.seen.borrow().len()
    }

    fn requests(&self) -> usize {
        self.seen.borrow().iter().map(Vec::len).sum()
    }

    async fn has_open(&self, wanted: usize) {
        for _ in 0..10_000 {
            if *self.open.borrow() == wanted {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{} connections are open, not {wanted}", self.open.borrow());
    }
}

async fn play(mut stream: TcpStream, steps: Vec<Step>, heads: &RefCell<Vec<Vec<String>>>, number: usize) {
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
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

fn backend(addresses: &[SocketAddr], host: HostHeader) -> Arc<Backend> {
    let service = ObjectName::new("shop", "orders");
    let plan = BackendPlan {
        id: BackendId::Service { service: service.clone(), port: 80 },
        target: BackendTarget::Service { service, port: 80 },
        host_header: host,
    };
    let backend = Backend::new(Arc::new(plan), 0, Telemetry::new(1).backend("orders"));
    backend.set_endpoints(set(addresses));
    Arc::new(backend)
}

fn set(addresses: &[SocketAddr]) -> EndpointSet {
    let endpoints = addresses.iter().map(|address| Endpoint { address: *address }).collect();
    EndpointSet { endpoints, known: true }
}

fn pools() -> Rc<Pools> {
    Pools::new(0, 7, Guard::new(Loopback::Allowed))
}

fn request(method: Method, body: Body) -> Request {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = "/orders?page=2".parse().expect("a path");
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("shop.test"));
    request
}

fn get() -> Request {
    request(Method::GET, Body::Empty)
}

async fn whole(outcome: Result<Answer, ProxyError>) -> Bytes {
    let answer = outcome.expect("an answer");
    assert_eq!(answer.response.status(), 200);
    answer.response.into_body().read(1 << 20).await.expect("a whole body").0
}

fn kind(outcome: Result<Answer, ProxyError>) -> ErrorKind {
    outcome.map(|answer| answer.response.status()).expect_err("no answer").kind
}

/// Lets all tasks run that can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn refused() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    listener.local_addr().expect("bound")
}

/// Runs a test on one thread, as a worker does, within a deadline.
fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        timeout(Duration::from_secs(20), test).await.expect("the test ends");
    });
}

/// The same with a clock that runs only when nothing else can.
fn local_paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn one_connection_serves_request_after_request() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK)]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        for _ in 0..5 {
            let outcome = pools.send(&backend, get(), SendLimits::default()).await;
            assert_eq!(outcome.as_ref().expect("an answer").endpoint, server.address);
            assert_eq!(whole(outcome).await, "ok");
        }
        assert_eq!((server.connections(), server.requests()), (1, 5));
        assert_eq!(server.seen.borrow()[0][0], "GET /orders?page=2 HTTP/1.1\r\nhost: shop.test\r\n\r\n");
    });
}

#[test]
fn the_backends_name_replaces_host_unless_a_rule_set_it() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK)]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Name("api.test".into())));
        whole(pools.send(&backend, get(), SendLimits::default()).await).await;
        let mut fixed = get();
        fixed.extensions_mut().insert(FixedHost);
        whole(pools.send(&backend, fixed, SendLimits::default()).await).await;
        let hosts: Vec<_> =
            server.seen.borrow()[0].iter().map(|head| head.contains("host: api.test\r\n")).collect();
        assert_eq!(hosts, [true, false]);
    });
}

#[test]
fn a_kept_connection_that_closes_as_we_write_never_shows() {
    local(async {
        // The race: every first connection takes a second request and closes on it without a word.
        let server = Scripted::start(|number| match number {
            0 => vec![Step::Answer(OK), Step::Close],
            _ => vec![Step::Answer(OK)],
        })
        .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        whole(pools.send(&backend, get(), SendLimits::default()).await).await;
        assert_eq!(whole(pools.send(&backend, get(), SendLimits::default()).await).await, "ok");
        assert_eq!(server.requests(), 3, "the second request was sent twice");
    });
}

#[test]
fn a_request_that_must_not_be_repeated_is_not() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Close]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        whole(pools.send(&backend, get(), SendLimits::default()).await).await;
        let post = request(Method::POST, Body::Empty);
        assert_eq!(kind(pools.send(&backend, post, SendLimits::default()).await), ErrorKind::Reset);
        assert_eq!(server.requests(), 2);
    });
}

#[test]
fn a_streamed_body_that_was_begun_is_not_sent_twice() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Close]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        whole(pools.send(&backend, get(), SendLimits::default()).await).await;
        let frames = [Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"part")))];
        let put = request(Method::PUT, Body::stream(StreamBody::new(futures_util::stream::iter(frames))));
        assert_eq!(kind(pools.send(&backend, put, SendLimits::default()).await), ErrorKind::Reset);
        assert_eq!(server.requests(), 2);
    });
}

#[test]
fn a_new_connection_that_closes_is_no_reason_to_ask_again() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Close]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        assert_eq!(kind(pools.send(&backend, get(), SendLimits::default()).await), ErrorKind::Reset);
        assert_eq!(server.requests(), 1);
    });
}

#[test]
fn a_connection_closed_while_idle_is_not_used_again() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Last(OK)]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        for _ in 0..3 {
            whole(pools.send(&backend, request(Method::POST, Body::Empty), SendLimits::default()).await)
                .await;
            settle().await;
        }
        assert_eq!((server.connections(), server.requests()), (3, 3));
    });
}

#[test]
fn endpoints_take_turns() {
    local(async {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Scripted::start(|_| vec![Step::Answer(OK)]).await);
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let (pools, backend) = (pools(), backend(&addresses, HostHeader::Preserve));
        for _ in 0..30 {
            whole(pools.send(&backend, get(), SendLimits::default()).await).await;
        }
        assert_eq!(servers.iter().map(Scripted::requests).collect::<Vec<_>>(), [10, 10, 10]);
    });
}

#[test]
fn the_first_turn_differs_from_worker_to_worker() {
    local(async {
        let mut servers = Vec::new();
        for _ in 0..4 {
            servers.push(Scripted::start(|_| vec![Step::Answer(OK)]).await);
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        let backend = backend(&addresses, HostHeader::Preserve);
        for seed in 0..64 {
            let pools = Pools::new(0, seed, Guard::new(Loopback::Allowed));
            whole(pools.send(&backend, get(), SendLimits::default()).await).await;
        }
        assert!(servers.iter().all(|server| (6..=26).contains(&server.requests())));
    });
}

#[test]
fn an_endpoint_that_cannot_be_reached_is_passed_over_and_then_left_alone() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK)]).await;
        let dead = refused().await;
        let (pools, backend) = (pools(), backend(&[dead, server.address], HostHeader::Preserve));
        for _ in 0..10 {
            let body = Body::from("not to be lost");
            whole(pools.send(&backend, request(Method::POST, body), SendLimits::default()).await).await;
        }
        assert_eq!(server.requests(), 10);
        let metrics = backend.stats.totals().expect("counted");
        assert_eq!(metrics.connects[1], 1, "it was tried once and left alone for a while");
    });
}

#[test]
fn all_endpoints_dead_is_a_connect_failure_after_three() {
    local(async {
        let mut dead = Vec::new();
        for _ in 0..5 {
            dead.push(refused().await);
        }
        let (pools, backend) = (pools(), backend(&dead, HostHeader::Preserve));
        assert_eq!(kind(pools.send(&backend, get(), SendLimits::default()).await), ErrorKind::ConnectFailure);
        assert_eq!(backend.stats.totals().expect("counted").connects[1], 3);
    });
}

#[test]
fn an_endpoint_that_swallows_packets_leaves_time_for_the_next() {
    local(async {
        // A backlog of one, filled: the kernel drops further SYNs without an answer.
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("bind");
        let full = socket.listen(1).expect("listen");
        let silent = full.local_addr().expect("bound");
        let mut fillers = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(50), TcpStream::connect(silent)).await {
            fillers.push(stream);
        }
        let limits = SendLimits { connect: Some(Duration::from_millis(300)), deadline: None };
        let (pools, alone) = (pools(), backend(&[silent], HostHeader::Preserve));
        assert_eq!(kind(pools.send(&alone, get(), limits).await), ErrorKind::ConnectTimeout);

        let server = Scripted::start(|_| vec![Step::Answer(OK)]).await;
        let both = backend(&[silent, server.address], HostHeader::Preserve);
        for _ in 0..2 {
            assert_eq!(whole(pools.send(&both, get(), limits).await).await, "ok");
        }
    });
}

#[test]
fn no_endpoints_and_refused_ones_are_told_apart() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK)]).await;
        let empty = backend(&[], HostHeader::Preserve);
        assert_eq!(
            kind(pools().send(&empty, get(), SendLimits::default()).await),
            ErrorKind::NoHealthyEndpoints
        );
        let strict = Pools::new(0, 7, Guard::new(Loopback::Refused));
        let loopback = backend(&[server.address], HostHeader::Preserve);
        let outcome = strict.send(&loopback, get(), SendLimits::default()).await;
        assert_eq!(kind(outcome), ErrorKind::AddressNotPermitted);
        assert_eq!(server.connections(), 0);
    });
}

#[test]
fn a_silent_backend_times_out_and_its_connection_is_closed() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let limits = SendLimits { connect: None, deadline: Some(Instant::now() + Duration::from_millis(50)) };
        assert_eq!(kind(pools.send(&backend, get(), limits).await), ErrorKind::BackendTimeout);
        server.has_open(0).await;
    });
}

#[test]
fn a_client_that_leaves_takes_its_connection_with_it() {
    local(async {
        let server = Scripted::start(|_| vec![Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let mut sent = Box::pin(pools.send(&backend, get(), SendLimits::default()));
        while server.requests() == 0 {
            assert!(timeout(Duration::from_millis(1), &mut sent).await.is_err());
        }
        drop(sent);
        server.has_open(0).await;
    });
}

#[test]
fn a_body_left_unread_closes_its_connection_and_one_read_gives_it_back() {
    local(async {
        let server =
            Scripted::start(|_| vec![Step::Answer("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nstart")])
                .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let answer = pools.send(&backend, get(), SendLimits::default()).await.expect("an answer");
        server.has_open(1).await;
        drop(answer);
        server.has_open(0).await;
        assert_eq!(backend.stats.totals().expect("counted").active, 0);
    });
}

#[test]
fn a_body_that_is_cut_ends_in_an_error() {
    local(async {
        for cut in [
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nstart",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nstart\r\n",
        ] {
            let script: Script = if cut.contains("chunked") {
                |_| vec![Step::Last("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nstart\r\n")]
            } else {
                |_| vec![Step::Last("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nstart")]
            };
            let server = Scripted::start(script).await;
            let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
            let answer = pools.send(&backend, get(), SendLimits::default()).await.expect("a head");
            assert!(answer.response.into_body().read(1 << 20).await.is_err(), "{cut}");
        }
    });
}

#[test]
fn what_is_no_http_answer_is_invalid() {
    local(async {
        let scripts: [Script; 4] = [
            |_| vec![Step::Answer("SSH-2.0-OpenSSH_9.2\r\n\r\n")],
            |_| vec![Step::Last("HTTP/1.1 200 OK\r\nbroken")],
            |_| vec![Step::Answer("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx")],
            |_| vec![Step::Answer("HTTP/1.1 999999 OK\r\n\r\n")],
        ];
        for script in scripts {
            let server = Scripted::start(script).await;
            let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
            let outcome = pools.send(&backend, get(), SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::InvalidResponse);
        }
    });
}

/// A backend that writes a row of texts without end, after it has read a head.
async fn flood(start: &'static str, more: &'static str) -> SocketAddr {
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

#[test]
fn answers_without_end_are_cut() {
    local(async {
        for (start, more) in [
            ("HTTP/1.1 200 OK\r\n", "x-more: of the same, and then some\r\n"),
            (
                "HTTP/1.1 200 OK\r\nx-long: ",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            ),
            ("", "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"),
        ] {
            let address = flood(start, more).await;
            let (pools, backend) = (pools(), backend(&[address], HostHeader::Preserve));
            let outcome = pools.send(&backend, get(), SendLimits::default()).await;
            assert_eq!(kind(outcome), ErrorKind::InvalidResponse, "{more}");
        }
    });
}

#[test]
fn an_interim_answer_is_passed_over() {
    local(async {
        let server = Scripted::start(|_| {
            vec![Step::Answer(
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )]
        })
        .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        assert_eq!(whole(pools.send(&backend, get(), SendLimits::default()).await).await, "ok");
    });
}

#[test]
fn a_tunnel_carries_bytes_both_ways_and_never_returns_to_the_pool() {
    local(async {
        let server = Scripted::start(|_| {
            vec![Step::Answer(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nhello",
            )]
        })
        .await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let mut upgrade = get();
        upgrade.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        upgrade.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
        let answer = pools.send(&backend, upgrade, SendLimits::default()).await.expect("an answer");
        assert_eq!(answer.response.status(), 101);
        let mut tunnel =
            hyper_util::rt::TokioIo::new(hyper::upgrade::on(answer.response).await.expect("upgraded"));
        let mut hello = [0; 5];
        tunnel.read_exact(&mut hello).await.expect("bytes");
        assert_eq!(&hello, b"hello");
        let totals = backend.stats.totals().expect("counted");
        assert_eq!((totals.active, totals.idle), (0, 0));
        drop(tunnel);
        server.has_open(0).await;
    });
}

#[test]
fn an_answer_before_the_request_was_read_ends_the_upload() {
    local_paused(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        let endless = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, BodyError>>());
        let post = request(Method::POST, Body::stream(endless));
        assert_eq!(whole(pools.send(&backend, post, SendLimits::default()).await).await, "ok");
        whole(pools.send(&backend, get(), SendLimits::default()).await).await;
        assert_eq!(server.connections(), 2, "the busy connection is not used again");
        sleep(Duration::from_secs(3)).await;
        assert_eq!(*server.open.borrow(), 1);
    });
}

/// Sends `count` requests at once and reads their answers.
async fn together(pools: &Pools, backend: &Arc<Backend>, count: usize) {
    let all = (0..count).map(|_| pools.send(backend, get(), SendLimits::default()));
    for outcome in futures_util::future::join_all(all).await {
        whole(outcome).await;
    }
}

#[test]
fn as_many_connections_stay_as_were_in_use_at_once_of_late() {
    local_paused(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK)]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        together(&pools, &backend, 50).await;
        assert_eq!(server.connections(), 50);
        for second in 0..20 {
            together(&pools, &backend, 3).await;
            if second < 9 {
                assert_eq!(*server.open.borrow(), 50, "after {second} s");
            }
            sleep(Duration::from_secs(1)).await;
        }
        server.has_open(3).await;
        assert_eq!(server.connections(), 50, "none was made anew");
        assert_eq!(backend.stats.totals().expect("counted").idle, 3);
        sleep(Duration::from_secs(12)).await;
        assert_eq!(*server.open.borrow(), 0, "nobody asks any more");
    });
}

#[test]
fn an_idle_connection_is_closed_below_a_minute_however_busy_the_endpoint_was() {
    local_paused(async {
        // The first four connections answer and are then idle for ever; every later one never answers. Four requests
        // at a time wait on those, so that the endpoint is always busy.
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        together(&pools, &backend, 4).await;
        let waiting = (0..2).map(|_| pools.send(&backend, get(), SendLimits::default()));
        let waiting = futures_util::future::join_all(waiting);
        assert!(timeout(Duration::from_secs(50), waiting).await.is_err());
        server.has_open(2).await;
        let waiting = pools.send(&backend, get(), SendLimits::default());
        assert!(timeout(Duration::from_secs(8), waiting).await.is_err());
        server.has_open(0).await;
    });
}

#[test]
fn an_endpoint_that_left_takes_no_requests_and_its_connections_close() {
    local_paused(async {
        let (old, new) = (
            Scripted::start(|_| vec![Step::Answer(OK)]).await,
            Scripted::start(|_| vec![Step::Answer(OK)]).await,
        );
        let (pools, backend) = (pools(), backend(&[old.address], HostHeader::Preserve));
        let under_way = pools.send(&backend, get(), SendLimits::default()).await;
        together(&pools, &backend, 2).await;
        backend.set_endpoints(set(&[new.address]));
        together(&pools, &backend, 2).await;
        assert_eq!(new.requests(), 2);
        old.has_open(1).await;
        assert_eq!(whole(under_way).await, "ok", "what was begun is finished");
        old.has_open(0).await;
        backend.set_endpoints(set(&[]));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(*new.open.borrow(), 0, "idle ones close without a request");
    });
}

#[test]
fn a_slot_given_again_starts_anew() {
    local_paused(async {
        let (one, two) = (
            Scripted::start(|_| vec![Step::Answer(OK)]).await,
            Scripted::start(|_| vec![Step::Answer(OK)]).await,
        );
        let pools = pools();
        let first = backend(&[one.address], HostHeader::Preserve);
        let second = backend(&[two.address], HostHeader::Name("other.test".into()));
        together(&pools, &first, 1).await;
        drop(first);
        together(&pools, &second, 1).await;
        assert_eq!((one.requests(), two.requests()), (1, 1));
        assert!(two.seen.borrow()[0][0].contains("host: other.test"));
        one.has_open(0).await;
        drop(second);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(*two.open.borrow(), 0, "a backend that is gone keeps nothing open");
    });
}

#[test]
fn an_unused_pool_is_forgotten() {
    local_paused(async {
        let server = Scripted::start(|_| vec![Step::Answer(OK)]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        together(&pools, &backend, 2).await;
        assert_eq!(pools.known(), 1);
        sleep(Duration::from_secs(15)).await;
        assert_eq!(pools.known(), 0);
        assert_eq!(Arc::strong_count(&backend), 1);
    });
}

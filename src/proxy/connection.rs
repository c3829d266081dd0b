//! One connection from its first byte to its last: plain or TLS, HTTP/1.1 or HTTP/2, and what follows an upgrade.
//!
//! The only place besides `listener` where tasks of a worker begin. Deadlines are the worker's sweep's (see `watch`).

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::forwarded::{Introduction, Seen};
use super::observed::Upload;
use super::tls::{Reached, Session};
use super::transport::{Transport, Wire};
use super::watch::{Verdict, Wait, Watch, Watched};
use super::worker::Worker;
use super::{connection_http2, passthrough, proxy_header, refusal, service, tls, tunnel};
use crate::message::{Body, Hints, Scheme};
use crate::telemetry::{HandshakeFailure, HeaderRefusal};
use crate::upstream::{ClientConnection, Presence};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read at most before we know which HTTP it is.
const FIRST_READ: usize = 4096;
/// A client that is still sending when we close gets this much time and bytes to read our answer first; closing at
/// once would reset the connection and the answer with it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// From so many streams of a connection on it counts how many the client gives up within this time.
const CHURN: u32 = 500;
const SOON: Duration = Duration::from_secs(1);

/// What the requests of a connection share.
pub struct Connection {
    pub worker: Rc<Worker>,
    /// The other end, or whom a load balancer there speaks for.
    pub peer: SocketAddr,
    /// Where it connected to, where backends wanted to know it when it came.
    local: Option<SocketAddr>,
    /// Of what it has to itself at backends.
    presence: OnceCell<Rc<Presence>>,
    pub scheme: Scheme,
    /// Of the handshake; none on plain connections.
    pub session: Option<Session>,
    pub introduction: Introduction,
    /// HTTP/1: what backends say to the client before their answers.
    pub hints: Arc<Hints>,
    /// HTTP/1: what an answer 101 leaves for after it.
    pub tunnel: Cell<Option<tunnel::Pending>>,
    /// The body that is being read on HTTP/1.
    pub reading: RefCell<Option<Rc<Upload>>>,
    pub(super) watch: Rc<Watch>,
    streams: Cell<usize>,
    /// Streams in all, and those that the client gave up soon.
    opened: Cell<u32>,
    given_up: Cell<u32>,
}

/// Starts to serve a connection that was counted for this worker.
pub fn begin(worker: &Rc<Worker>, socket: TcpStream, peer: SocketAddr, tls: bool) {
    let place = Place(worker.clone());
    spawn(async move { serve(&place.0, socket, peer, tls).await });
}

/// A task of this worker.
pub fn spawn(work: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(work);
}

/// A counted connection.
struct Place(Rc<Worker>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.desk().connections.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn serve(worker: &Rc<Worker>, socket: TcpStream, peer: SocketAddr, tls: bool) {
    let watched = worker.sweep.watch(Wait::FirstByte, Some(age(worker)));
    let watch = watched.share();
    let scheme = if tls { Scheme::Https } else { Scheme::Http };
    let (mut socket, mut peer) = (socket, peer);
    let local = if worker.live().tells_clients { socket.local_addr().ok() } else { None };
    let said = &worker.settings.proxy_protocol;
    if said.listeners.contains(&scheme) {
        let header = proxy_header::receive(&mut socket, peer, &said.trusted);
        match unless_cut(&watch, header).await.unwrap_or(Err(HeaderRefusal::Unfinished)) {
            Ok(client) => peer = client,
            Err(why) => return worker.stats.header_refused(why),
        }
        watch.read_waits(Wait::FirstByte);
    }
    let mut seat = None;
    if let Some(crowd) = &worker.shared.crowd {
        seat = crowd.seat(peer.ip());
        if seat.is_none() {
            tracing::debug!(client = %peer.ip(), "a client has too many connections; this one is closed");
            return worker.stats.turned_away();
        }
    }
    let _seat = seat;
    let (wire, read_ahead, http2, session) = if tls {
        let Some(reached) = unless_cut(&watch, tls::reach(worker, socket)).await else {
            worker.stats.handshake_failure(HandshakeFailure::TimedOut);
            return;
        };
        let established = match reached {
            Some(Reached::Us(established)) => established,
            Some(Reached::Others(guest)) => {
                watch.read_waits(Wait::Nothing);
                let ends = ends(peer, guest.socket.local_addr().ok(), Rc::default());
                return Box::pin(passthrough::serve(worker, guest, ends)).await;
            }
            None => return,
        };
        watch.read_waits(Wait::FirstByte);
        (Wire::Tls(established.stream), Bytes::new(), established.http2, Some(established.session))
    } else {
        let Some(Some((read_ahead, http2))) = unless_cut(&watch, sniff(&mut socket, &watch)).await else {
            return;
        };
        (Wire::Plain(socket), read_ahead, http2, None)
    };
    let connection = Rc::new(Connection {
        worker: worker.clone(),
        peer,
        local,
        presence: OnceCell::new(),
        scheme,
        session,
        introduction: Introduction::new(peer, scheme, worker.settings.installation.clone()),
        hints: Arc::default(),
        tunnel: Cell::new(None),
        reading: RefCell::default(),
        watch: watch.clone(),
        streams: Cell::new(0),
        opened: Cell::new(0),
        given_up: Cell::new(0),
    });
    let protocol = if http2 { "HTTP/2" } else { "HTTP/1.1" };
    let _open = worker.stats.connection(scheme.as_str(), protocol);
    let transport = Transport::new(wire, read_ahead, watch);
    if http2 {
        connection_http2::serve(&connection, transport.counting_frames()).await;
    } else {
        let transport = transport.telling(&connection.hints);
        serve_http1(&connection, transport).await;
    }
}

fn ends(source: SocketAddr, local: Option<SocketAddr>, presence: Rc<Presence>) -> ClientConnection {
    let unknown: IpAddr = match source.ip().to_canonical() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    ClientConnection { source, destination: local.unwrap_or((unknown, 0).into()), presence }
}

/// The configured age, give or take a tenth, so that clients do not come back all at once.
fn age(worker: &Worker) -> Duration {
    let tenths = 900 + u32::try_from(worker.next_random() % 201).unwrap_or(100);
    worker.settings.limits.connection_age / 1000 * tenths
}

/// Runs `work` until the sweep cuts it.
pub(super) async fn unless_cut<T>(watch: &Watch, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|context| match watch.verdict(context) {
        Some(Verdict::Cut | Verdict::End) => Poll::Ready(None),
        _ => work.as_mut().poll(context).map(Some),
    })
    .await
}

/// Reads until it is clear whether the client speaks HTTP/2 (RFC 9113 section 3.4).
async fn sniff(socket: &mut TcpStream, watch: &Watch) -> Option<(Bytes, bool)> {
    let mut read = BytesMut::with_capacity(FIRST_READ);
    loop {
        if socket.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
        let known = read.len().min(PREFACE.len());
        if read[..known] != PREFACE[..known] {
            watch.read_waits(Wait::FirstByte);
            return Some((read.freeze(), false));
        }
        if known == PREFACE.len() {
            return Some((read.freeze(), true));
        }
        if watch.read_wait() == Wait::FirstByte {
            watch.read_waits(Wait::Head);
        }
    }
}

/// How serving ended.
enum End {
    Over(hyper::Result<()>),
    Cut,
}

async fn serve_http1(connection: &Rc<Connection>, transport: Transport) {
    let watch = connection.watch.clone();
    watch.keeps_alive();
    let handler = service_fn(|request: http::Request<_>| {
        service::answer(connection.clone(), watch.clone(), None, request.map(Body::Incoming))
    });
    // The limit of 100 fields is hyper's default; setting it would cost an allocation a request. Heads are timed by
    // the sweep, which tells a slow head from an idle connection; hyper's one timer cannot.
    let mut serving = http1::Builder::new()
        .half_close(false)
        .header_read_timeout(None)
        .max_header_size(connection.worker.settings.limits.head_bytes)
        .serve_connection(TokioIo::new(transport), handler);
    let mut ending = false;
    let end = poll_fn(|context| {
        connection.hints.wakes(context.waker());
        match watch.verdict(context) {
            Some(Verdict::Cut) => return Poll::Ready(End::Cut),
            Some(Verdict::End) if !ending => {
                ending = true;
                Pin::new(&mut serving).graceful_shutdown();
            }
            // To retire, the next answer says so.
            _ => {}
        }
        Pin::new(&mut serving).poll(context).map(End::Over)
    })
    .await;
    let http1::Parts { io, read_buf, .. } = serving.into_parts();
    let mut transport = io.into_inner();
    match end {
        End::Over(Ok(())) => match connection.tunnel.take() {
            Some(pending) => {
                transport.give_back(read_buf);
                watch.read_waits(Wait::Nothing);
                tunnel::run(transport, pending, connection.worker.shared.drain.clone()).await;
            }
            None if connection.still_reading() => linger(transport).await,
            None => {}
        },
        End::Over(Err(error)) if error.is_parse() => {
            if let Some(status) = transport.take_refused() {
                let answer = refusal::answer(connection, &mut transport, status);
                let _ = tokio::time::timeout(LINGER, answer).await;
            }
            linger(transport).await;
        }
        // An answer was cut: without a reset, one that ends with the connection would look whole.
        End::Over(Err(_)) | End::Cut => {
            let _ = transport.wire().tcp().set_zero_linger();
        }
    }
}

/// Says that nothing more comes, and reads on for a while.
pub(super) async fn linger(mut transport: impl AsyncRead + AsyncWrite + Unpin) {
    let discard = async {
        let _ = transport.shutdown().await;
        let mut buffer = vec![0; 16 << 10];
        let mut left = LINGER_BYTES;
        while let Ok(read @ 1..) = transport.read(&mut buffer).await {
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, discard).await;
}

/// An open stream of HTTP/2.
pub(super) struct Stream {
    pub watched: Watched,
    pub connection: Rc<Connection>,
}

impl Connection {
    /// A new stream, until it is dropped.
    pub(super) fn open_stream(self: &Rc<Self>) -> Stream {
        self.streams.set(self.streams.get() + 1);
        self.opened.set(self.opened.get().saturating_add(1));
        self.watch.read_waits(Wait::Nothing);
        Stream { watched: self.worker.sweep.watch(Wait::Nothing, None), connection: self.clone() }
    }

    /// Something goes on here that is no stream of its own.
    pub fn hold(self: &Rc<Self>) -> Held {
        self.streams.set(self.streams.get() + 1);
        self.watch.read_waits(Wait::Nothing);
        Held(Rc::clone(self))
    }

    fn ends(&self) {
        let left = self.streams.get() - 1;
        self.streams.set(left);
        if left == 0 {
            self.watch.read_waits(Wait::Idle);
        }
    }

    /// A client that opens streams and gives most of them up at once makes work for nothing: it is told to leave.
    fn note_end(&self, stream: &Watch) {
        if !stream.was_given_up_within(SOON) {
            return;
        }
        self.given_up.set(self.given_up.get().saturating_add(1));
        if self.opened.get() > CHURN && self.given_up.get() > self.opened.get() / 2 {
            self.watch.tell(Verdict::Retire);
        }
    }

    /// Both ends of it, for backends that are told: who is `seen` behind the trusted hops has no port.
    pub fn client_connection(&self, seen: &Seen) -> ClientConnection {
        let is_peer = self.peer.ip().to_canonical() == seen.ip;
        let source = if is_peer { self.peer } else { SocketAddr::new(seen.ip, 0) };
        ends(source, self.local, Rc::clone(self.presence.get_or_init(Rc::default)))
    }

    /// Tells the client to come back on another connection.
    pub fn retire(&self) {
        self.watch.tell(Verdict::Retire);
    }

    /// Whether the client may still be sending a body that nobody reads any more.
    fn still_reading(&self) -> bool {
        self.reading.borrow().as_ref().is_some_and(|upload| upload.ended.get().is_none())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.note_end(&self.watched);
        self.connection.ends();
    }
}

/// As long as this is there, the connection is in use.
pub struct Held(Rc<Connection>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.ends();
    }
}

//! An HTTP/2 connection to an endpoint, shared by the requests of one worker (RFC 9113). With TLS it has to be agreed on
//! by ALPN, without it is spoken from the first byte (prior knowledge, h2c).

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::HeadLines;
use super::bounds::{Permit, Slot};
use super::broken::Broken;
use super::connect::{Closing, ConnectError, Driver, Unanswered};
use super::connect_stream::{Coming, Opener};
use super::lifespan::Lifespan;
use super::line::{Free, Line};
use super::socket::Socket;
use super::tls::Failed;
use super::wire_http2::{Heard, Wire};
use crate::http1::MAX_HEAD;
use crate::http2::KeepAlive;
use crate::message::{Hinted, Request, websocket_accept, websocket_key};
use crate::telemetry::BackendStats;

/// Requests under way at once on a connection, and fewer where the endpoint says so; more open another.
const MAX_STREAMS: usize = 100;
/// What an endpoint may send of one answer, and of all, before the client has taken it.
const STREAM_WINDOW: u32 = 128 << 10;
/// Of all: what slow readers leave untaken must not hold up the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;
/// What is kept of a request's body on its way.
const SEND_BUFFER: usize = 64 << 10;
/// An endpoint that is silent for so long while requests are under way is asked whether it lives. Servers of gRPC take
/// more than one such question in 5 min for abuse and end the connection; that nothing is acknowledged any more, TCP
/// finds after 30 s (see `connect`).
const PING_AFTER: Duration = Duration::from_secs(310);
const PING_WAIT: Duration = Duration::from_secs(20);
/// A request that was given up after at least this time, in which nothing at all came: the connection may be dead.
const SILENCE: Duration = Duration::from_secs(1);
/// What is still to be said on a connection that nobody holds any more: farewells and resets. An endpoint that takes no
/// bytes, or took back windows after we had used them, would keep it open for ever.
const FAREWELL: Duration = Duration::from_secs(5);

/// A connection that many requests share. It is closed when the pool and the last request let go of it.
#[derive(Debug)]
pub(super) struct Multiplexed {
    opener: Opener,
    scheme: Scheme,
    streams: Rc<Cell<usize>>,
    lifespan: Lifespan,
    /// As many as the endpoint lets be open at once.
    permitted: Rc<Cell<usize>>,
    idle_since: Cell<Instant>,
    /// It takes no new requests.
    leaving: Cell<bool>,
    /// It ended under a request.
    lost: Cell<bool>,
    /// Nothing drives it any more.
    ended: Rc<Cell<bool>>,
    heard: Rc<Heard>,
    /// Tells the driver, by its drop, that nobody has use for the connection.
    _held: oneshot::Sender<Infallible>,
    stats: Arc<BackendStats>,
    worker: usize,
    /// Of a bounded backend: who waits for it.
    line: Option<Rc<Line>>,
    address: SocketAddr,
    slot: Weak<Slot>,
    driver: Driver,
}

/// A request's place on a shared connection.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Rc<Multiplexed>,
    /// When the request that waits for its answer was sent, and how often anything had come by then.
    waits: Option<(Instant, u64)>,
}

/// What became of a request without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It was not sent.
    Unsent,
    /// The endpoint says that it did nothing with it, though some of it was sent (REFUSED_STREAM, GOAWAY).
    Refused,
    /// The connection ended; nobody knows.
    WithItsConnection {
        /// Of those on it this one was told first: one failure counts once.
        first: bool,
    },
    /// Its own body failed: the client's doing.
    Ours,
    /// The endpoint gave it up.
    GivenUp,
    /// What came is not HTTP/2, or more than we take.
    Nonsense,
}

impl Multiplexed {
    /// # Errors
    /// What is at the other end does not speak HTTP/2, or not in time.
    pub async fn over(
        socket: Socket,
        address: SocketAddr,
        (stats, worker): (&Arc<BackendStats>, usize),
        (line, permit): (Option<&Rc<Line>>, Option<Permit>),
        until: Instant,
    ) -> Result<Rc<Self>, ConnectError> {
        let started = Instant::now();
        let slot = permit.as_ref().map(Arc::downgrade).unwrap_or_default();
        let is_tls = socket.is_tls();
        let heard = Heard::new();
        let permitted = Rc::new(Cell::new(MAX_STREAMS));
        let (streams, ended) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let opening = async {
            let (sender, mut connection) = h2::client::Builder::new()
                .enable_push(false)
                .initial_max_send_streams(MAX_STREAMS)
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buffer_size(SEND_BUFFER)
                .max_header_list_size(MAX_HEAD as u32)
                .handshake::<_, Bytes>(Wire::new(socket, &heard, permit))
                .await
                .map_err(|error| ConnectError::Failed(address, std::io::Error::other(error)))?;
            let mut alive = connection.ping_pong().map(|pings| KeepAlive::new(pings, PING_AFTER, PING_WAIT));
            let (told, looked) = (Rc::clone(&permitted), Rc::clone(&heard));
            let (used, over) = (Rc::clone(&streams), Rc::clone(&ended));
            let (held, left) = oneshot::channel::<Infallible>();
            let task = tokio::task::spawn_local(async move {
                let mut late = pin!(async {
                    let _ = left.await;
                    tokio::time::sleep(FAREWELL).await;
                });
                let driven = std::future::poll_fn(|context| {
                    told.set(connection.max_concurrent_send_streams());
                    looked.looks(context);
                    let polled = Pin::new(&mut connection).poll(context);
                    // After it: what it has read counts.
                    if polled.is_pending()
                        && let Some(alive) = &mut alive
                        && alive.poll(context, looked.reads(), used.get() > 0).is_ready()
                    {
                        tracing::debug!(%address, "HTTP/2 connection does not answer");
                        return Poll::Ready(Ok(()));
                    }
                    if polled.is_pending() && late.as_mut().poll(context).is_ready() {
                        tracing::debug!(%address, "HTTP/2 connection does not end");
                        return Poll::Ready(Ok(()));
                    }
                    polled
                });
                // What goes wrong with a request is told to the request; what goes wrong while idle concerns nobody.
                if let Err(error) = driven.await {
                    tracing::debug!(%address, error = &error as &dyn std::error::Error, "HTTP/2 connection ended");
                }
                over.set(true);
            });
            let driver = Driver::of(task.abort_handle());
            heard.hello().await.map_err(|error| match Failed::late(&error) {
                Some(cause) if is_tls => ConnectError::Tls(address, cause, error),
                _ => ConnectError::Failed(address, error),
            })?;
            Ok((sender, driver, held))
        };
        let (sender, driver, held) = tokio::time::timeout_at(until, opening)
            .await
            .map_err(|_| ConnectError::TimedOut(address, started.elapsed()))??;
        stats.shared(worker, 1);
        line.iter().for_each(|line| line.idles(1));
        let now = Instant::now();
        Ok(Rc::new(Self {
            opener: Opener::new(sender),
            scheme: if is_tls { Scheme::HTTPS } else { Scheme::HTTP },
            streams,
            lifespan: Lifespan::new(now, Rc::as_ptr(&heard) as usize as u64),
            permitted,
            idle_since: Cell::new(now),
            leaving: Cell::new(false),
            lost: Cell::new(false),
            ended,
            heard,
            _held: held,
            stats: Arc::clone(stats),
            worker,
            line: line.cloned(),
            address,
            slot,
            // From here on it ends by itself, once nobody can send on it any more and what is under way is over.
            driver: driver.left_alone(),
        }))
    }

    /// A place, if there is one. None: it is leaving, or as many requests are under way as may be.
    pub fn stream(self: &Rc<Self>) -> Option<Stream> {
        if self.is_leaving() || self.streams.get() >= self.most() {
            return None;
        }
        self.lifespan.counts();
        if self.lifespan.is_over(Instant::now()) {
            self.leaving.set(true);
        }
        if self.streams.get() == 0 {
            self.line.iter().for_each(|line| line.idles(-1));
        }
        self.streams.set(self.streams.get() + 1);
        Some(Stream { connection: Rc::clone(self), waits: None })
    }

    /// Whether it takes WebSockets (RFC 8441, 3).
    pub fn takes_websockets(&self) -> bool {
        self.opener.takes_protocols()
    }

    /// How many requests it carries at once.
    pub fn most(&self) -> usize {
        self.permitted.get().clamp(1, MAX_STREAMS)
    }

    /// It is left: another may be opened, also while requests on it go on.
    pub fn gives_back(&self) {
        self.slot.upgrade().iter().for_each(|slot| slot.give_back());
    }

    /// Closes it for another one; nothing may be under way.
    pub fn give_up(&self) -> Closing {
        self.leaving.set(true);
        self.driver.closing(&self.slot)
    }

    /// Whether it takes no new requests.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get() || self.ended.get() || self.heard.is_going_away()
    }

    /// Since when nothing was under way. None: something is.
    pub fn idle_since(&self) -> Option<Instant> {
        (self.streams.get() == 0).then(|| self.idle_since.get())
    }
}

impl Drop for Multiplexed {
    fn drop(&mut self) {
        self.stats.shared(self.worker, -1);
        self.line.iter().for_each(|line| line.idles(-1));
    }
}

impl Stream {
    /// What it is a place on.
    pub fn connection(&self) -> &Rc<Multiplexed> {
        &self.connection
    }

    /// `lines` become fields of the head. `hinted` is told of early hints.
    ///
    /// # Errors
    /// What became of it. The request itself is gone: whoever wants to send it again has kept it.
    pub async fn send(
        &mut self,
        mut request: Request,
        lines: Option<&HeadLines>,
        hinted: Option<&Hinted>,
    ) -> Result<http::Response<Coming>, Box<Unanswered>> {
        lines.iter().for_each(|lines| lines.add_to(request.headers_mut()));
        let key = websocket_key(request.headers()).cloned().filter(|_| self.connection.takes_websockets());
        to_http2(&mut request, &self.connection.scheme);
        if key.is_some() {
            to_connect(&mut request);
        }
        self.waits = Some((Instant::now(), self.connection.heard.reads()));
        self.connection.heard.asks();
        let outcome = self.connection.opener.exchange(request, hinted).await;
        self.waits = None;
        match (outcome, key) {
            (Ok(head), Some(key)) => Ok(switched(head, &key)),
            (Ok(head), None) => Ok(head),
            (Err((error, lost)), _) => Err(self.failed(error, lost)),
        }
    }

    fn failed(&self, error: Broken, mut lost: Lost) -> Box<Unanswered> {
        let connection = &self.connection;
        if matches!(lost, Lost::Unsent | Lost::WithItsConnection { .. }) {
            // It may not know yet that it ended.
            connection.leaving.set(true);
        }
        if let Lost::WithItsConnection { first } = &mut lost {
            *first = !connection.lost.replace(true);
        }
        let heard = lost == Lost::Nonsense;
        Box::new(Unanswered { error, unsent: None, lost: Some(lost), heard, refused: None })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.streams.set(connection.streams.get() - 1);
        connection.idle_since.set(Instant::now());
        if let Some(line) = &connection.line {
            if connection.streams.get() == 0 {
                line.idles(1);
            }
            line.is_free(Free::Stream(connection.address));
        }
        // Given up before its answer.
        if let Some((since, reads)) = self.waits
            && since.elapsed() >= SILENCE
            && reads == connection.heard.reads()
        {
            connection.leaving.set(true);
        }
    }
}

impl Lost {
    pub fn by(error: &h2::Error) -> Self {
        match (error.is_remote(), error.is_reset(), error.is_go_away()) {
            // RFC 9113, 8.7: it refused the stream, or was about to leave; only those behind the last it takes get this.
            (true, true, _) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => Self::Refused,
            (true, _, true) => Self::Refused,
            (true, true, _) => Self::GivenUp,
            (_, reset, away) if error.is_library() && (reset || away) => Self::Nonsense,
            (false, true, _) => Self::Ours,
            _ => Self::WithItsConnection { first: true },
        }
    }
}

/// The form of RFC 9113, 8.2.2 and 8.3.1: no fields that concern a connection, the host in the place of its own.
fn to_http2(request: &mut Request, scheme: &Scheme) {
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    let host = headers.remove(header::HOST);
    let takes_trailers = is_trailers(headers);
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    // A request without a host has none here, either; a URI has both or none.
    if let Some(authority) = authority {
        parts.scheme = Some(scheme.clone());
        parts.authority = Some(authority);
    }
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// RFC 8441, 5: the key and its proof are of HTTP/1.1 only.
fn to_connect(request: &mut Request) {
    *request.method_mut() = Method::CONNECT;
    request.headers_mut().remove(header::SEC_WEBSOCKET_KEY);
    // What follows is no body: even 0 would be counted against the tunnel by some.
    request.headers_mut().remove(header::CONTENT_LENGTH);
    request.extensions_mut().insert(Protocol::from_static("websocket"));
}

/// An answer to CONNECT as the answer to the GET that was meant: 200 is 101, with the proof that its client waits for.
/// Another success is none (RFC 9110, 9.3.6: it has begun a tunnel), which whoever gets it must not take for an answer.
fn switched(mut head: http::Response<Coming>, key: &HeaderValue) -> http::Response<Coming> {
    if head.status() != StatusCode::OK {
        if head.status().is_success() {
            *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        }
        return head;
    }
    *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = head.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, websocket_accept(key.as_bytes()));
    head
}

fn is_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Body;

    #[test]
    fn what_concerns_a_connection_stays_behind() {
        let mut request = Request::new(Body::Empty);
        *request.method_mut() = Method::GET;
        *request.uri_mut() = "/a?b".parse().expect("a path");
        for (name, value) in [
            ("host", "shop.test:8080"),
            ("connection", "te, upgrade"),
            ("upgrade", "websocket"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "timeout=5"),
            ("x-own", "1"),
        ] {
            request.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        to_http2(&mut request, &Scheme::HTTPS);
        assert_eq!(request.uri(), "https://shop.test:8080/a?b");
        let left: Vec<_> =
            request.headers().iter().map(|(n, v)| (n.as_str(), v.to_str().expect("text"))).collect();
        assert_eq!(left, [("x-own", "1"), ("te", "trailers")]);
    }
}

//! Backends that speak HTTP/2 and what they do to us: by h2 where they behave, by hand where they do not.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::scripted::speaking;
use crate::route_map::{BackendProtocol, HostHeader, TrafficPlan};
use crate::upstream::Backend;

/// What a request of a [`Multiplexing`] is answered with.
#[derive(Clone)]
pub(super) enum Step {
    Ok,
    /// Once so many requests are there, over all connections.
    When(usize),
    Reset(Reason),
    /// A head, half of a body, then this.
    Half(Reason),
    /// A head with a field of so many bytes.
    Large(usize),
    /// A call of gRPC that comes to this, in its head or behind a body.
    Call(&'static str),
    CallAfterBody(&'static str),
    /// A head of so many fields.
    Fields(usize),
    /// So many interim answers, and then the answer.
    Interim(usize),
    /// What came, with the trailers that came.
    Echo,
    Never,
}

/// A server that behaves. Its n-th request (over all connections) gets the n-th answer, those behind get the last.
pub(super) struct Multiplexing {
    pub address: SocketAddr,
    pub seen: Rc<RefCell<Vec<Request<()>>>>,
    pub connections: Rc<Cell<usize>>,
    pub open: Rc<Cell<usize>>,
    /// Reasons for which requests were reset.
    pub reset: Rc<RefCell<Vec<Reason>>>,
}

impl Multiplexing {
    pub async fn start(most: u32, steps: Vec<Step>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let server = Self {
            address: listener.local_addr().expect("bound"),
            seen: Rc::default(),
            connections: Rc::default(),
            open: Rc::default(),
            reset: Rc::default(),
        };
        let (seen, reset, arrived) = (server.seen.clone(), server.reset.clone(), Rc::new(Notify::new()));
        let (connections, open, steps) = (server.connections.clone(), server.open.clone(), Rc::new(steps));
        tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.set(connections.get() + 1);
                open.set(open.get() + 1);
                let (seen, reset, arrived) = (seen.clone(), reset.clone(), arrived.clone());
                let (open, steps) = (open.clone(), steps.clone());
                tokio::task::spawn_local(async move {
                    let mut builder = h2::server::Builder::new();
                    builder.max_concurrent_streams(most).max_header_list_size(1 << 20);
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                    while let Some(Ok((request, answer))) = connection.accept().await {
                        let (head, body) = request.into_parts();
                        let number = seen.borrow().len();
                        seen.borrow_mut().push(Request::from_parts(head, ()));
                        arrived.notify_waiters();
                        let step = steps[number.min(steps.len() - 1)].clone();
                        let (seen, reset, arrived) = (seen.clone(), reset.clone(), arrived.clone());
                        tokio::task::spawn_local(async move {
                            if let Err(reason) = play(step, body, answer, &seen, &arrived).await {
                                reset.borrow_mut().push(reason);
                            }
                        });
                    }
                    open.set(open.get() - 1);
                });
            }
        });
        server
    }

    pub fn requests(&self) -> usize {
        self.seen.borrow().len()
    }

    pub fn backend(&self) -> Arc<Backend> {
        backend(self.address)
    }
}

/// Of several servers.
pub(super) fn backend_of(addresses: &[SocketAddr], traffic: TrafficPlan) -> Arc<Backend> {
    speaking(addresses, HostHeader::Preserve, traffic, BackendProtocol::Http2)
}

pub(super) fn backend(address: SocketAddr) -> Arc<Backend> {
    speaking(&[address], HostHeader::Preserve, TrafficPlan::default(), BackendProtocol::Http2)
}

async fn play(
    step: Step,
    mut body: RecvStream,
    mut answer: SendResponse<Bytes>,
    seen: &RefCell<Vec<Request<()>>>,
    arrived: &Notify,
) -> Result<(), Reason> {
    let mut head = Response::new(());
    match step {
        Step::Ok => {}
        Step::When(count) => {
            while seen.borrow().len() < count {
                arrived.notified().await;
            }
        }
        Step::Reset(reason) => {
            answer.send_reset(reason);
            return Ok(());
        }
        Step::Half(reason) => {
            let mut stream = answer.send_response(head, false).map_err(|_| Reason::INTERNAL_ERROR)?;
            stream.send_data("half".into(), false).map_err(|_| Reason::INTERNAL_ERROR)?;
            // What is queued is lost with a reset.
            super::scripted::settle().await;
            stream.send_reset(reason);
            return Ok(());
        }
        Step::Large(size) => {
            let value = HeaderValue::from_str(&"x".repeat(size)).expect("a value");
            head.headers_mut().insert("x-large", value);
        }
        Step::Interim(count) => {
            for number in 0..count {
                let mut interim = Response::new(());
                *interim.status_mut() = [StatusCode::EARLY_HINTS, StatusCode::PROCESSING][number % 2];
                interim.headers_mut().insert(header::LINK, HeaderValue::from_static("</a.css>"));
                // Whoever had enough has reset the stream.
                let _ = answer.send_informational(interim);
            }
        }
        Step::Fields(count) => {
            for number in 0..count {
                let name = http::HeaderName::try_from(format!("x-{number}")).expect("a name");
                head.headers_mut().insert(name, HeaderValue::from_static("1"));
            }
        }
        Step::Call(status) => {
            head.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
        }
        Step::CallAfterBody(status) => {
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
            let mut stream = answer.send_response(head, false).map_err(|_| Reason::INTERNAL_ERROR)?;
            let status = (http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status));
            let _ = stream.send_trailers(HeaderMap::from_iter([status]));
            return Ok(());
        }
        Step::Echo => return echo(body, answer).await.map_err(|_| Reason::INTERNAL_ERROR),
        Step::Never => {
            let reason = std::future::poll_fn(|context| answer.poll_reset(context)).await;
            return Err(reason.unwrap_or(Reason::INTERNAL_ERROR));
        }
    }
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let Ok(mut stream) = answer.send_response(head, false) else { return Ok(()) };
    let _ = stream.send_data("ok".into(), true);
    Ok(())
}

async fn echo(mut body: RecvStream, mut answer: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut stream = answer.send_response(Response::new(()), false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        stream.send_data(data, false)?;
    }
    let mut trailers = body.trailers().await?.unwrap_or_default();
    trailers.insert("x-echoed", HeaderValue::from_static("1"));
    stream.send_trailers(trailers)
}

/// A frame (RFC 9113, 4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
/// `:status: 200` by HPACK's static table.
pub(super) const STATUS_200: &[u8] = &[0x88];

/// The other end of a connection, by hand.
pub(super) struct ByHand(pub TcpStream);

impl ByHand {
    /// Accepts a connection and says hello.
    pub async fn accept(listener: &TcpListener) -> Self {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.expect("a preface");
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut this = Self(stream);
        this.say(&frame(SETTINGS, 0, 0, &[])).await;
        this
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        // Whoever had enough of us has closed.
        let _ = self.0.write_all(bytes).await;
    }

    /// The stream of the next request.
    pub async fn request(&mut self) -> u32 {
        loop {
            let (kind, stream) = self.frame().await.expect("a frame");
            if kind == HEADERS {
                return stream;
            }
        }
    }

    /// The next frame's kind and stream; none: the other side closed.
    pub async fn frame(&mut self) -> Option<(u8, u32)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        self.0.read_exact(&mut vec![0; length]).await.ok()?;
        Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
    }
}

pub(super) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

pub(super) fn trailers(name: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static("1"))])
}

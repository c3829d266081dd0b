//! `portcullis echo`: a small backend for trials and tests. It answers with what it was asked; some paths do more:
//!
//! | path | answers |
//! | --- | --- |
//! | `/healthz` | 200 `ok`; 503 once it drains |
//! | `…/status/503` | that status |
//! | `…/fails/2` | 503 to the first two requests of that very path, then like any |
//! | `…/delay/200ms` | after that time |
//! | `…/bytes/1048576` | that many bytes |
//! | `…/trailers` | a body in two chunks and trailers |
//! | anything with `Upgrade: websocket`, or CONNECT for one by HTTP/2 | a WebSocket that sends back what it gets |
//! | anything of `Content-Type: application/grpc` | each message as it comes, then `grpc-status: 0` |
//! | the same at `…/grpc-status/5` | that status at once |
//! | the same at `/grpc.health.v1.Health/Check` | SERVING; NOT_SERVING once it drains |
//!
//! HTTP/1.1, and HTTP/2 to those who begin with it (h2c).
//!
//! The last two segments of the path decide, so that these work below any prefix of a route.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::websocket;
use crate::lifecycle::terminated;
use crate::values::Duration;

/// Request bodies are read up to this size and answered as text.
const MAX_BODY: usize = 4 << 20;
/// The largest answer of `/bytes/N`.
const MAX_BYTES: u64 = 16 << 30;
const CHUNK: usize = 64 << 10;
/// What a connection of HTTP/2 begins with (RFC 9113, 3.4), as far as no method does.
const PREFACE: &[u8] = b"PRI ";
const TRAILER: &str = "x-echo-trailer";
const GRPC_STATUS: &str = "grpc-status";
/// `HealthCheckResponse {status}` in its frame.
const SERVING: &[u8; 7] = &[0, 0, 0, 0, 2, 8, 1];
const NOT_SERVING: &[u8; 7] = &[0, 0, 0, 0, 2, 8, 2];
/// So many paths below `fails` are counted.
const MAX_PATHS: usize = 10_000;

#[derive(Args, Debug)]
pub struct Echo {
    /// Where to listen; port 0 takes any free port, which is printed.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0", env = "PORTCULLIS_ECHO_LISTEN")]
    listen: SocketAddr,
    /// Name in the answers; the Pod's by default.
    #[arg(long, env = "POD_NAME")]
    name: Option<String>,
    /// How long to go on serving after SIGTERM, so that no gateway still sends to a port that is closed.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    drain: Duration,
}

struct Server {
    name: String,
    /// Answers ask clients to leave.
    leaving: CancellationToken,
    /// How often each path below `fails` was asked for.
    asked: RefCell<HashMap<String, u32>>,
}

pub fn run(args: &Echo) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(serve(args)))
}

async fn serve(args: &Echo) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let server =
        Rc::new(Server { name: name(args), leaving: CancellationToken::new(), asked: RefCell::default() });
    let connections = tokio_util::task::TaskTracker::new();
    let closing = CancellationToken::new();
    let mut terminated = terminated()?;
    // Last: whoever reads this may send signals.
    super::say(&format!("echo {}\n", listener.local_addr()?))?;
    let leave_at = async {
        terminated.recv().await;
        server.leaving.cancel();
        tokio::time::sleep(args.drain.std()).await;
    };
    tokio::pin!(leave_at);
    loop {
        tokio::select! {
            () = &mut leave_at => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let task = connection(stream, Rc::clone(&server), closing.clone());
                    tokio::task::spawn_local(connections.track_future(task));
                }
                // Out of file descriptors, most likely: waiting is all that helps.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            },
        }
    }
    drop(listener);
    closing.cancel();
    connections.close();
    // What is open has a few seconds; tunnels would stay for ever.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), connections.wait()).await;
    Ok(())
}

fn name(args: &Echo) -> String {
    args.name.clone().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_else(|| "echo".into())
}

async fn connection(stream: TcpStream, server: Rc<Server>, closing: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = Rc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    if begins_with_http2(&stream).await {
        let serving = hyper::server::conn::http2::Builder::new(OnThisThread)
            .timer(TokioTimer::new())
            .max_header_list_size(64 << 10)
            .enable_connect_protocol()
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(serving);
        tokio::select! {
            _ = serving.as_mut() => {}
            () = closing.cancelled() => {
                serving.as_mut().graceful_shutdown();
                let _ = serving.await;
            }
        }
        return;
    }
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(std::time::Duration::from_secs(120))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => {}
        () = closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

/// Looks at the first bytes, which stay where they are.
async fn begins_with_http2(stream: &TcpStream) -> bool {
    let mut first = [0; PREFACE.len()];
    loop {
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return false,
            Ok(length) if first[..length] != PREFACE[..length] => return false,
            Ok(length) if length == PREFACE.len() => return true,
            // A part of it: there is nothing to wait on but time.
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    }
}

#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, work: F) {
        tokio::task::spawn_local(async move {
            work.await;
        });
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        let version = request.version();
        let mut response = self.respond(request).await;
        let may_say_so = version < Version::HTTP_2 && response.status() != StatusCode::SWITCHING_PROTOCOLS;
        if self.leaving.is_cancelled() && may_say_so {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn respond(&self, mut request: Request<Incoming>) -> Response<Answer> {
        if request.uri().path() == "/healthz" {
            let leaving = self.leaving.is_cancelled();
            return text(
                if leaving { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK },
                if leaving { "draining\n" } else { "ok\n" },
            );
        }
        if request.method() == Method::CONNECT {
            return match websocket::accept_connect(&mut request) {
                Ok(answer) => answer.map(|()| Answer::default()),
                Err(why) => text(StatusCode::NOT_IMPLEMENTED, why),
            };
        }
        if websocket::is_handshake(request.headers()) {
            return match websocket::accept(&mut request) {
                Ok(answer) => answer.map(|()| Answer::default()),
                Err(why) => text(StatusCode::BAD_REQUEST, why),
            };
        }
        if is_grpc(request.headers()) {
            return match request.uri().path() {
                "/grpc.health.v1.Health/Check" if self.leaving.is_cancelled() => grpc_health(NOT_SERVING),
                "/grpc.health.v1.Health/Check" => grpc_health(SERVING),
                _ => grpc(request),
            };
        }
        let mut status = StatusCode::OK;
        let path = request.uri().path().to_owned();
        let mut segments = path.rsplit('/');
        match (segments.next().unwrap_or_default(), segments.next().unwrap_or_default()) {
            (code, "status") => match code.parse::<u16>().ok().and_then(|c| StatusCode::from_u16(c).ok()) {
                Some(code) if code.as_u16() >= 200 => status = code,
                _ => return text(StatusCode::BAD_REQUEST, "a status has three digits, 200 or more\n"),
            },
            (count, "fails") => match count.parse::<u32>() {
                Ok(count) if self.fails(&path, count) => status = StatusCode::SERVICE_UNAVAILABLE,
                Ok(_) => {}
                Err(_) => return text(StatusCode::BAD_REQUEST, "how often? a whole number\n"),
            },
            (time, "delay") => match time.parse::<Duration>() {
                Ok(time) => tokio::time::sleep(time.std()).await,
                Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            },
            (size, "bytes") => {
                return match size.parse::<u64>() {
                    Ok(size) if size <= MAX_BYTES => Response::new(Answer::zeros(size)),
                    _ => text(StatusCode::BAD_REQUEST, "the number of bytes is at most 16 GiB\n"),
                };
            }
            ("trailers", _) => {
                let mut response = Response::new(Answer::with_trailers());
                // HTTP/1.1 sends no others.
                response.headers_mut().insert(header::TRAILER, HeaderValue::from_static(TRAILER));
                return response;
            }
            _ => {}
        }
        let described = match self.describe(request).await {
            Ok(described) => described,
            Err(why) => return text(StatusCode::PAYLOAD_TOO_LARGE, why),
        };
        let mut response = Response::new(Answer::from(described + "\n"));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    /// Whether this request of the path is among its first ones.
    fn fails(&self, path: &str, first: u32) -> bool {
        let mut asked = self.asked.borrow_mut();
        if asked.len() >= MAX_PATHS {
            asked.clear();
        }
        let count = asked.entry(path.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        *count <= first
    }

    async fn describe(&self, request: Request<Incoming>) -> Result<String, &'static str> {
        let (head, body) = request.into_parts();
        let whole = Limited::new(body, MAX_BODY)
            .collect()
            .await
            .map_err(|_| "the body is larger than 4 MiB, or was cut short\n")?;
        let trailers = whole.trailers().map(fields);
        let body = whole.to_bytes();
        let mut answer = json!({
            "name": self.name,
            "method": head.method.as_str(),
            "path": head.uri.path(),
            "query": head.uri.query(),
            "host": host(&head),
            "protocol": format!("{:?}", head.version),
            "headers": fields(&head.headers),
            "body": String::from_utf8_lossy(&body),
            "bytes": body.len(),
        });
        if let Some(trailers) = trailers {
            answer["trailers"] = trailers;
        }
        serde_json::to_string_pretty(&answer).map_err(|_| "the request cannot be described\n")
    }
}

fn host(head: &http::request::Parts) -> Option<String> {
    let field = head.headers.get(header::HOST).map(|value| String::from_utf8_lossy(value.as_bytes()).into());
    field.or_else(|| head.uri.authority().map(|authority| authority.to_string()))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

fn grpc_health(message: &'static [u8; 7]) -> Response<Answer> {
    let message = Bytes::from_static(message);
    let trailers =
        HeaderMap::from_iter([(header::HeaderName::from_static(GRPC_STATUS), HeaderValue::from(0))]);
    let mut response =
        Response::new(Answer { chunks: vec![message], trailers: Some(trailers), ..Answer::default() });
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Messages go back as they come; each is whole in its own prefix, so nothing needs to be known of them.
fn grpc(request: Request<Incoming>) -> Response<Answer> {
    let mut segments = request.uri().path().rsplit('/');
    let status = match (segments.next(), segments.next()) {
        (Some(status), Some("grpc-status")) => HeaderValue::from_str(status).ok(),
        _ => None,
    };
    let mut trailers = HeaderMap::new();
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    let body = match &status {
        Some(_) => Answer::default(),
        None => Answer { incoming: Some(request.into_body()), trailers: Some(trailers), ..Answer::default() },
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(status) = status {
        response.headers_mut().insert(GRPC_STATUS, status);
    }
    response
}

/// One string a field; a list of strings where a field stands more than once.
fn fields(headers: &HeaderMap) -> Value {
    let mut all = Map::new();
    for name in headers.keys() {
        let mut values: Vec<Value> = headers
            .get_all(name)
            .iter()
            .map(|value| Value::from(String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let value = if values.len() == 1 { values.remove(0) } else { Value::from(values) };
        all.insert(name.as_str().to_owned(), value);
    }
    Value::Object(all)
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<Answer> {
    let mut response = Response::new(Answer::from(text.into()));
    *response.status_mut() = status;
    response
}

/// The body of an answer: some bytes, then zeros, then what is sent back as it comes, then trailers.
#[derive(Default)]
struct Answer {
    chunks: Vec<Bytes>,
    zeros: u64,
    incoming: Option<Incoming>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn zeros(zeros: u64) -> Self {
        Self { zeros, ..Self::default() }
    }

    fn with_trailers() -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert(TRAILER, HeaderValue::from_static("at the end"));
        // Taken from the end.
        Self { chunks: vec!["two\n".into(), "one\n".into()], trailers: Some(trailers), ..Self::default() }
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        let chunks = if text.is_empty() { Vec::new() } else { vec![Bytes::from(text)] };
        Self { chunks, ..Self::default() }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        static ZEROS: [u8; CHUNK] = [b'0'; CHUNK];
        if let Some(chunk) = self.chunks.pop() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if self.zeros > 0 {
            let length = self.zeros.min(CHUNK as u64);
            self.zeros -= length;
            let length = usize::try_from(length).unwrap_or(CHUNK);
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..length])))));
        }
        if let Some(incoming) = &mut self.incoming {
            match std::task::ready!(Pin::new(incoming).poll_frame(context)).transpose()? {
                Some(frame) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                _ => self.incoming = None,
            }
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty() && self.zeros == 0 && self.incoming.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.trailers.is_some() {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.zeros + self.chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>())
    }
}

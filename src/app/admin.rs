//! The admin listener: `/metrics`, `/livez`, `/readyz`, `/status`, `/endpoints`, and `/purge` for who has the token. Plain HTTP/1.1 on
//! the control runtime, never on a port of the data path. Small and bounded: it shows, and changes nothing but what is
//! kept of answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::endpoints;
use super::purge::{self, Purger};
use super::status::Status;
use crate::lifecycle::{DrainSignal, Phase, Readiness};
use crate::telemetry::Telemetry;

/// Probes, a scraper or two and a person: more wait in the accept queue.
const CONNECTIONS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A scrape interval of a minute keeps its connection; nobody holds one for ever.
const CONNECTION_AGE: Duration = Duration::from_secs(600);

pub struct Admin {
    pub telemetry: Telemetry,
    pub readiness: Readiness,
    pub drain: DrainSignal,
    pub status: Status,
    pub purger: Purger,
}

/// Serves until the process ends: probes and scrapes go on during drain.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let admin = Arc::clone(&admin);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION_AGE, connection(stream, admin)).await;
                    drop(permit);
                });
            }
            // No file descriptors, most likely. The permit comes back, and so do we.
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, admin: Arc<Admin>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.respond(request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 << 10)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

impl Admin {
    async fn respond(&self, request: Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/purge" {
            if matches!(request.uri().path(), "/status" | "/metrics") {
                self.status.settled(self.purger.plane.installs()).await;
            }
            return self.answer(request.method(), request.uri().path());
        }
        if request.method() != Method::POST {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only POST\n".into());
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return refused;
        }
        if let Err((status, text)) = self.purger.admits(request.headers()).await {
            return plain(status, text);
        }
        let body = Limited::new(request.into_body(), purge::MAX_BODY).collect();
        let Ok(Ok(body)) = tokio::time::timeout(HEAD_TIMEOUT, body).await else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "too much, or too slow\n".into());
        };
        let (status, text) = self.purger.purge(body.to_bytes()).await;
        plain(status, text)
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET && method != Method::HEAD {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/livez" => plain(StatusCode::OK, "ok\n".into()),
            "/readyz" => self.readyz(),
            "/metrics" => {
                let mut metrics = plain(StatusCode::OK, self.telemetry.render());
                metrics.headers_mut().insert(
                    CONTENT_TYPE,
                    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
                );
                metrics
            }
            "/status" => json(self.status.render(&self.readiness, &self.drain)),
            "/endpoints" => json(endpoints::render(&self.purger.plane)),
            _ => plain(
                StatusCode::NOT_FOUND,
                "there are /metrics, /livez, /readyz, /status, /endpoints and /purge\n".into(),
            ),
        }
    }

    fn readyz(&self) -> Response<Full<Bytes>> {
        if self.drain.phase() > Phase::Serving {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n".into());
        }
        let missing = self.readiness.missing();
        if missing.is_empty() {
            return plain(StatusCode::OK, "ready\n".into());
        }
        plain(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", ")))
    }
}

fn json(text: String) -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::OK, text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

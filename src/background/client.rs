//! The way to servers that policies name: the name looked up, the egress guard asked about each address that is dialled,
//! TLS with the system's roots, one connection, of HTTP/2 to backends that speak nothing else. Redirects are not followed, and sizes are bounded.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::dns::Resolver;
use crate::filters::{Place, Transport, Url};
use crate::route_map::{BackendPlan, BackendTarget, Endpoint, HostHeader};
use crate::upstream::{Backend, Guard, Spoken, system_authorities};
use crate::values::BackendId;

/// So many endpoints of a backend are tried, each for so long.
const MOST_ENDPOINTS: usize = 3;
const CONNECT: Duration = Duration::from_secs(2);
const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 64 << 10;

/// What decides where a connection may go.
#[derive(Clone)]
pub struct Ways {
    pub guard: Guard,
    /// The backends of the installed route map.
    pub backends: Arc<Backends>,
    pub resolver: Resolver,
}

type Backends = dyn Fn(&BackendId) -> Option<Arc<Backend>> + Send + Sync;

#[derive(Clone)]
pub(super) struct Client {
    ways: Ways,
    tls: TlsConnector,
}

/// A connection; dropping it closes it at once.
pub(super) struct Connection {
    sender: Sender,
    driver: AbortHandle,
    /// As `Host` names who is asked.
    pub authority: HeaderValue,
    /// What of ours it is to be shown.
    backend: Option<Arc<Backend>>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    /// And how its targets begin.
    Http2(http2::SendRequest<Full<Bytes>>, &'static str),
}

/// An answer to its end.
#[derive(Debug)]
pub(super) struct Whole {
    pub head: http::response::Parts,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// Nothing came back: it may never have got the request.
    Silent(String),
    /// It began to answer and did not get to the end of it.
    Broken(String),
}

impl Client {
    pub fn new(ways: Ways) -> Self {
        Self { ways, tls: TlsConnector::from(Arc::new(tls())) }
    }

    /// # Errors
    /// One sentence for the log.
    pub async fn connect(&self, place: &Place) -> Result<Connection, String> {
        self.connect_as(place, None).await
    }

    /// The same, where the backend at that place has to be one in particular ([`BackendPlan::print`]).
    ///
    /// # Errors
    /// One sentence for the log.
    pub async fn connect_as(&self, place: &Place, meant: Option<[u8; 32]>) -> Result<Connection, String> {
        match place {
            Place::Url(url) => self.connect_to_host(url).await,
            Place::Backend(id, _) => self.connect_to_backend(id, meant).await,
        }
    }

    async fn connect_to_host(&self, url: &Url) -> Result<Connection, String> {
        let stream = self.dial(url).await?;
        let authority = url.authority();
        match url.transport {
            Transport::Plain => Connection::on(stream, &authority, Spoken::Http1).await,
            Transport::Tls => {
                let name =
                    ServerName::try_from(url.host.to_string()).map_err(|_| "it has no name for TLS")?;
                let stream = self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
                Connection::on(stream, &authority, Spoken::Http1).await
            }
        }
    }

    /// To one endpoint after the other, beginning anywhere, until one takes it. The caller bounds the time.
    async fn connect_to_backend(
        &self,
        id: &BackendId,
        meant: Option<[u8; 32]>,
    ) -> Result<Connection, String> {
        let backend = (self.ways.backends)(id).ok_or("it is no part of what is served")?;
        if meant.is_some_and(|meant| meant != backend.plan.print()) {
            return Err("it has become another one".into());
        }
        let mut endpoints = backend.known_endpoints();
        if endpoints.is_empty() && backend.resolves(Instant::now() + CONNECT).await {
            endpoints = backend.known_endpoints();
        }
        let first = usize::from(random_byte()) % endpoints.len().max(1);
        let mut why = "it has no endpoint that is ready".to_owned();
        for endpoint in endpoints.iter().cycle().skip(first).take(endpoints.len().min(MOST_ENDPOINTS)) {
            let until = Instant::now() + CONNECT;
            match backend.dial(endpoint, &self.ways.guard, until).await {
                Ok((stream, spoken)) => {
                    let authority = authority(&backend.plan, endpoint);
                    return Ok(Connection::on(stream, &authority, spoken).await?.to(&backend));
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    async fn dial(&self, url: &Url) -> Result<TcpStream, String> {
        let found = self.ways.resolver.addresses(&url.host, url.port).await;
        let addresses = found.map_err(|error| format!("no address: {error}"))?;
        let (gate, mut why) = (self.ways.guard.to_hosts(), "no address".to_owned());
        for address in addresses {
            if !gate.permits(address) {
                why = format!("the egress guard refuses {address}");
                continue;
            }
            match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => why = format!("cannot connect to {address}: {error}"),
                Err(_) => why = format!("no connection to {address} within {CONNECT:?}"),
            }
        }
        Err(why)
    }
}

impl Connection {
    pub async fn on(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        authority: &str,
        spoken: Spoken,
    ) -> Result<Self, String> {
        let authority = authority.parse().map_err(|_| "its name cannot stand in Host".to_owned())?;
        if let Spoken::Http2 { scheme } = spoken {
            let connected = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(MAX_HEAD as u32)
                .handshake(TokioIo::new(stream))
                .await;
            let (sender, connection) = connected.map_err(|error| error.to_string())?;
            let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
            return Ok(Self { sender: Sender::Http2(sender, scheme), driver, authority, backend: None });
        }
        let connected = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = connected.map_err(|error| error.to_string())?;
        // What goes wrong is told to the request.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { sender: Sender::Http1(sender), driver, authority, backend: None })
    }

    /// The same, to a backend that may want to know us.
    pub fn to(mut self, backend: &Arc<Backend>) -> Self {
        self.backend = backend.plan.credential.is_some().then(|| Arc::clone(backend));
        self
    }

    /// Shows what is to be shown, and sends. A field that the request has already is the question's own.
    async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        let Some(backend) = &self.backend else {
            return self.sender.ask(request).await.map_err(|error| error.to_string());
        };
        backend.has_tried(Instant::now() + CONNECT).await;
        let shown = match backend.plan.credential.as_deref() {
            Some(credential) if credential.is_in(request.headers()) => None,
            _ => backend.show(&mut request).map_err(|error| error.to_string())?,
        };
        let answer = self.sender.ask(request).await.map_err(|error| error.to_string())?;
        backend.took(shown.as_ref(), answer.status());
        Ok(answer)
    }

    /// Sends a request and gathers its answer, of whatever status. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is none, for the log.
    pub async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
        max_body: usize,
    ) -> Result<Response<Bytes>, Unanswered> {
        let (head, body) = self.ask(request).await.map_err(Unanswered::Silent)?.into_parts();
        let body = Limited::new(body, max_body).collect().await;
        let body = body.map_err(|error| Unanswered::Broken(error.to_string()))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    /// Sends a request of whose answer only the status matters. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is none, for the log.
    pub async fn status(&mut self, request: Request<Full<Bytes>>) -> Result<StatusCode, String> {
        self.ask(request).await.map(|answer| answer.status())
    }

    /// Sends a request and gathers its answer with what comes behind its body. The caller bounds the time.
    ///
    /// # Errors
    /// Why there is none, for the log.
    pub async fn whole(&mut self, request: Request<Full<Bytes>>, max_body: usize) -> Result<Whole, String> {
        let answer = self.ask(request).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, max_body).collect().await.map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned();
        Ok(Whole { head, body: body.to_bytes(), trailers })
    }

    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender, _) => sender.is_closed(),
        }
    }
}

impl Sender {
    async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender, scheme) => {
                sender.ready().await?;
                let host = request.headers_mut().remove(HOST);
                let host = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
                if let Ok(target) = format!("{scheme}://{host}{}", request.uri()).parse::<Uri>() {
                    *request.uri_mut() = target;
                }
                *request.version_mut() = Version::HTTP_2;
                sender.send_request(request).await
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Unanswered {
    pub fn into_text(self) -> String {
        match self {
            Self::Silent(text) | Self::Broken(text) => text,
        }
    }
}

/// As a GatewayBackend wants to be called; a Service by its name in the cluster.
pub(super) fn authority(plan: &BackendPlan, endpoint: &Endpoint) -> String {
    if let HostHeader::Name(name) = &plan.host_header {
        return name.to_string();
    }
    let usual = if plan.tls.is_some() { 443 } else { 80 };
    let (host, port) = match (&plan.target, &endpoint.name) {
        (BackendTarget::Service { service, port }, _) => {
            (format!("{}.{}.svc", service.name, service.namespace), *port)
        }
        (BackendTarget::Hosts(_), Some(name)) => (name.to_string(), endpoint.address.port()),
        (BackendTarget::Hosts(_), None) => return endpoint.address.to_string(),
    };
    if port == usual { host } else { format!("{host}:{port}") }
}

/// A tenth more or less, so that replicas do not ask at once.
pub(super) fn jittered(interval: Duration) -> Duration {
    interval * (230 + u32::from(random_byte()) / 5) / 256
}

pub(super) fn random_byte() -> u8 {
    let mut byte = [0];
    // Without it the first endpoint is asked first.
    let _ = SystemRandom::new().fill(&mut byte);
    byte[0]
}

/// Trusts whom connections to backends trust.
fn tls() -> rustls::ClientConfig {
    let roots = system_authorities();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_differ_by_a_tenth() {
        let interval = Duration::from_secs(10);
        for _ in 0..200 {
            let one = jittered(interval);
            assert!((Duration::from_millis(8900)..Duration::from_millis(11_100)).contains(&one), "{one:?}");
        }
    }
}

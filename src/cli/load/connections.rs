//! The load client's connections: kept or fresh, HTTP/1.1 or HTTP/2, plain or TLS.

use std::cell::RefCell;
use std::error::Error as _;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};

use super::tally::Lost;

/// Where requests go.
pub struct Target {
    address: SocketAddr,
    tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    url: Uri,
    http2: bool,
}

pub struct Connections {
    target: Target,
    fresh: bool,
    /// One a request of HTTP/1.1.
    permits: Semaphore,
    idle: RefCell<Vec<http1::SendRequest<Empty<Bytes>>>>,
    /// Each is used by many requests of HTTP/2 at once.
    shared: Vec<Mutex<Shared>>,
    next: std::cell::Cell<usize>,
}

#[derive(Default)]
struct Shared {
    /// Counts the connections of this place.
    number: u64,
    sender: Option<Http2>,
}

/// h2 itself, because it tells a request that never left from one that was lost: hyper gives one error for both.
type Http2 = h2::client::SendRequest<Bytes>;

enum Asked {
    Answered(Result<StatusCode, Lost>),
    /// The connection had been announced closed (GOAWAY) before. Asking on another is no second sending.
    NeverLeft,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

impl Target {
    pub async fn new(
        url: &Uri,
        connect: Option<SocketAddr>,
        ca: Option<&Path>,
        http2: bool,
    ) -> anyhow::Result<Self> {
        let host = url.host().context("the URL has no host")?;
        let https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => bail!("the URL begins with http:// or https://"),
        };
        let port = url.port_u16().unwrap_or(if https { 443 } else { 80 });
        let address = match connect {
            Some(address) => address,
            None => tokio::net::lookup_host((host.trim_matches(['[', ']']), port))
                .await
                .with_context(|| format!("cannot resolve {host}"))?
                .next()
                .with_context(|| format!("{host} has no address"))?,
        };
        let tls = if https { Some(tls(host, ca, http2)?) } else { None };
        Ok(Self { address, tls, url: url.clone(), http2 })
    }

    async fn stream(&self) -> Result<Box<dyn Stream>, Lost> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| match error.kind() {
            ErrorKind::ConnectionReset => Lost::Reset,
            _ => Lost::Refused,
        })?;
        let _ = stream.set_nodelay(true);
        let Some((config, name)) = &self.tls else { return Ok(Box::new(stream)) };
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), stream)
            .await
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => Lost::Closed,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Lost::Reset,
                _ => Lost::Refused,
            })?;
        Ok(Box::new(stream))
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        if self.http2 {
            *request.uri_mut() = self.url.clone();
            return request;
        }
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().unwrap_or_default();
        if let Some(host) = self.url.authority().and_then(|host| host.as_str().parse().ok()) {
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }
}

fn tls(
    host: &str,
    ca: Option<&Path>,
    http2: bool,
) -> anyhow::Result<(Arc<rustls::ClientConfig>, ServerName<'static>)> {
    let path = ca.context("https needs --ca with the certificates to trust")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(path).with_context(|| format!("cannot read {}", path.display()))?
    {
        roots.add(certificate?)?;
    }
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    Ok((Arc::new(config), name))
}

impl Connections {
    pub fn new(target: Target, connections: usize, fresh: bool) -> Self {
        Self {
            target,
            fresh,
            permits: Semaphore::new(connections),
            idle: RefCell::default(),
            shared: (0..connections).map(|_| Mutex::default()).collect(),
            next: std::cell::Cell::new(0),
        }
    }

    /// Sends one request, once, and reads its whole answer.
    pub async fn request(&self) -> Result<StatusCode, Lost> {
        if self.target.http2 {
            return self.request_http2().await;
        }
        let Ok(_permit) = self.permits.acquire().await else { return Err(Lost::Refused) };
        let kept = if self.fresh { None } else { self.kept() };
        let mut sender = match kept {
            Some(sender) => sender,
            None => {
                let stream = self.target.stream().await?;
                let (sender, connection) =
                    http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
                tokio::task::spawn_local(connection);
                sender
            }
        };
        let response = sender.send_request(self.target.request()).await.map_err(|error| lost(&error))?;
        let announced_close = response
            .headers()
            .get_all(header::CONNECTION)
            .iter()
            .any(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        let status = whole(response).await?;
        if !announced_close && !self.fresh {
            self.idle.borrow_mut().push(sender);
        }
        Ok(status)
    }

    /// A connection that is open as far as we have heard.
    fn kept(&self) -> Option<http1::SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop()).find(|sender| !sender.is_closed())
    }

    async fn request_http2(&self) -> Result<StatusCode, Lost> {
        if self.fresh {
            return match self.ask(self.connect_http2().await?).await {
                Asked::Answered(outcome) => outcome,
                Asked::NeverLeft => Err(Lost::Closed),
            };
        }
        loop {
            let slot = self.next.get();
            self.next.set((slot + 1) % self.shared.len());
            let (number, sender) = {
                let mut shared = self.shared[slot].lock().await;
                if shared.sender.is_none() {
                    shared.sender = Some(self.connect_http2().await?);
                    shared.number += 1;
                }
                let sender = shared.sender.clone().expect("it was put there just now");
                (shared.number, sender)
            };
            if let Asked::Answered(outcome) = self.ask(sender).await {
                return outcome;
            }
            let mut shared = self.shared[slot].lock().await;
            if shared.number == number {
                shared.sender = None;
            }
        }
    }

    async fn ask(&self, sender: Http2) -> Asked {
        let Ok(mut sender) = sender.ready().await else { return Asked::NeverLeft };
        let request = self.target.request().map(drop);
        let Ok((answer, _)) = sender.send_request(request, true) else { return Asked::NeverLeft };
        Asked::Answered(match answer.await {
            Ok(answer) => whole_http2(answer).await,
            Err(error) => {
                tracing::warn!(error = %error, "a request was lost");
                Err(lost_http2(&error))
            }
        })
    }

    async fn connect_http2(&self) -> Result<Http2, Lost> {
        let stream = self.target.stream().await?;
        let (sender, connection) = h2::client::handshake(stream).await.map_err(|error| lost_http2(&error))?;
        tokio::task::spawn_local(connection);
        Ok(sender)
    }
}

async fn whole_http2(response: Response<h2::RecvStream>) -> Result<StatusCode, Lost> {
    let status = response.status();
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let data = data.map_err(|_| Lost::Cut)?;
        let _ = body.flow_control().release_capacity(data.len());
    }
    Ok(status)
}

fn lost_http2(error: &h2::Error) -> Lost {
    match error.get_io().map(std::io::Error::kind) {
        Some(ErrorKind::UnexpectedEof) => Lost::Closed,
        _ => Lost::Reset,
    }
}

async fn whole(response: Response<Incoming>) -> Result<StatusCode, Lost> {
    let status = response.status();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| Lost::Cut)?;
    }
    Ok(status)
}

fn lost(error: &hyper::Error) -> Lost {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return Lost::Closed;
    }
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    match io.map(std::io::Error::kind) {
        Some(ErrorKind::UnexpectedEof) => Lost::Closed,
        _ => Lost::Reset,
    }
}

//! The way to servers that policies name: the name looked up, the egress guard asked about each address that is dialled,
//! TLS with the system's roots, one HTTP/1.1 connection. Redirects are not followed, and sizes are bounded.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

use crate::filters::{Transport, Url};
use crate::upstream::{Guard, system_authorities};

const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 64 << 10;

#[derive(Clone)]
pub(super) struct Client {
    guard: Guard,
    tls: TlsConnector,
}

/// A connection; dropping it closes it at once.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: AbortHandle,
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
    pub fn new(guard: Guard) -> Self {
        Self { guard, tls: TlsConnector::from(Arc::new(tls())) }
    }

    /// # Errors
    /// One sentence for the log.
    pub async fn connect(&self, url: &Url) -> Result<Connection, String> {
        let stream = self.dial(url).await?;
        match url.transport {
            Transport::Plain => Connection::on(stream).await,
            Transport::Tls => {
                let name =
                    ServerName::try_from(url.host.to_string()).map_err(|_| "it has no name for TLS")?;
                let stream = self.tls.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
                Connection::on(stream).await
            }
        }
    }

    async fn dial(&self, url: &Url) -> Result<TcpStream, String> {
        let found = tokio::net::lookup_host((&*url.host, url.port)).await;
        let addresses: Vec<SocketAddr> = found.map_err(|error| format!("no address: {error}"))?.collect();
        let mut why = "no address".to_owned();
        for address in addresses {
            if !self.guard.permits(address) {
                why = format!("the egress guard refuses {address}");
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => why = format!("cannot connect to {address}: {error}"),
            }
        }
        Err(why)
    }
}

impl Connection {
    async fn on(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self, String> {
        let connected = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await;
        let (sender, connection) = connected.map_err(|error| error.to_string())?;
        // What goes wrong is told to the request.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Self { sender, driver })
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
        let silent = |error: hyper::Error| Unanswered::Silent(error.to_string());
        self.sender.ready().await.map_err(silent)?;
        let (head, body) = self.sender.send_request(request).await.map_err(silent)?.into_parts();
        let body = Limited::new(body, max_body).collect().await;
        let body = body.map_err(|error| Unanswered::Broken(error.to_string()))?.to_bytes();
        Ok(Response::from_parts(head, body))
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
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

/// Trusts whom connections to backends trust.
fn tls() -> rustls::ClientConfig {
    let roots = system_authorities();
    let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

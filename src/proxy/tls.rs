//! TLS of clients: certificates by server name from the live map, so that a new Secret needs no restart.
//!
//! Invariants: a name that no certificate is configured for gets `unrecognized_name` and no certificate at all; a
//! catch-all's certificate answers for its own names and for clients without a server name only.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::certificates::LiveCertificate;
use super::client_certificates::{LiveValidation, NotValid, Shown};
use super::hello;
use super::live::{Clients, Live};
use super::passthrough::Guest;
use super::worker::Worker;
use crate::telemetry::HandshakeFailure;
use crate::values::TlsVersion;

/// A fatal `unrecognized_name` (RFC 6066 section 3), as a plain record: no keys exist yet.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A finished handshake.
pub struct Established {
    pub stream: Box<TlsStream<TcpStream>>,
    pub session: Session,
    pub http2: bool,
}

/// What was agreed on in a handshake.
#[derive(Debug)]
pub struct Session {
    /// As the client sent it, lower case.
    pub server_name: Option<Arc<str>>,
    pub version: TlsVersion,
    /// Whether the client was asked for a certificate.
    pub asked: bool,
    pub shown: Option<Shown>,
}

/// The configurations of all listeners, by the least version that they speak.
#[derive(Debug)]
pub struct Configurations {
    tls12: Arc<ServerConfig>,
    tls13: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
}

impl Configurations {
    /// # Errors
    /// The crypto library fails.
    pub fn new(live: &Arc<ArcSwap<Live>>) -> Result<Self, rustls::Error> {
        let resolver = Arc::new(Resolver { live: live.clone() });
        let of = |least| server_config(least, resolver.clone(), None).map(Arc::new);
        let (tls12, tls13) = (of(TlsVersion::Tls12)?, of(TlsVersion::Tls13)?);
        Ok(Self { tls12, tls13, resolver })
    }

    fn at_least(&self, version: TlsVersion) -> Arc<ServerConfig> {
        match version {
            TlsVersion::Tls12 => self.tls12.clone(),
            TlsVersion::Tls13 => self.tls13.clone(),
        }
    }

    fn asking(&self, validation: &LiveValidation) -> Option<Arc<ServerConfig>> {
        let made = validation.config.get_or_init(|| {
            let config = server_config(validation.least, self.resolver.clone(), Some(&validation.verifier));
            config
                .map(Arc::new)
                .map_err(|error| tracing::error!(%error, "clients cannot be asked for certificates"))
                .ok()
        });
        made.clone()
    }
}

/// Sessions of clients that were asked for certificates are not resumed: a ticket would go on vouching for a client
/// whose certificate is revoked, or whose authority is no longer one.
fn server_config(
    least: TlsVersion,
    resolver: Arc<Resolver>,
    clients: Option<&Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let versions: &[_] = match least {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)?;
    let builder = match clients {
        Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if clients.is_some() {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = Ticketer::new()?;
    }
    config.max_early_data_size = 0;
    Ok(config)
}

/// What a client's first message leads to.
pub enum Reached {
    Us(Established),
    /// The name is its backends' own.
    Others(Guest),
}

/// Shakes hands, or finds that others will; none when it failed. The caller bounds the time.
pub async fn reach(worker: &Worker, socket: TcpStream) -> Option<Reached> {
    if !worker.live().passes_through {
        return match LazyConfigAcceptor::new(Acceptor::default(), socket).await {
            Ok(start) => handshake(worker, start).await.map(Reached::Us),
            Err(error) => failed(worker, &error),
        };
    }
    // Boxed: rare, and its state need not be in that of every connection.
    Box::pin(reach_either(worker, socket)).await
}

async fn reach_either(worker: &Worker, mut socket: TcpStream) -> Option<Reached> {
    let hello = match hello::read(&mut socket).await {
        Ok(hello) => hello,
        Err(error) => return failed(worker, &error),
    };
    let name = hello.accepted.client_hello().server_name().map(str::to_ascii_lowercase);
    // The newest: the client may have taken its time.
    let live = worker.live();
    if let Some(name) = name
        && let Some(host) = live.host(&name).filter(|host| host.passage.is_some()).cloned()
    {
        return Some(Reached::Others(Guest { socket, hello: hello.bytes, name: name.into(), host, live }));
    }
    let start = StartHandshake::from_parts(hello.accepted, socket);
    handshake(worker, start).await.map(Reached::Us)
}

async fn handshake(worker: &Worker, mut start: StartHandshake<TcpStream>) -> Option<Established> {
    let server_name = start.client_hello().server_name().map(str::to_ascii_lowercase);
    let Some((config, validation)) = configuration(worker, server_name.as_deref()) else {
        worker.stats.handshake_failure(HandshakeFailure::UnknownName);
        let _ = start.io.write_all(&UNRECOGNIZED_NAME).await;
        let _ = start.io.shutdown().await;
        return None;
    };
    let stream = match start.into_stream(config).await {
        Ok(stream) => stream,
        Err(error) => return failed(worker, &error),
    };
    let session = stream.get_ref().1;
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => TlsVersion::Tls13,
        _ => TlsVersion::Tls12,
    };
    worker.stats.handshake(version.as_str());
    let http2 = session.alpn_protocol() == Some(b"h2");
    let shown = match &validation {
        Some(validation) => match shown(session.peer_certificates(), validation) {
            Ok(shown) => shown,
            Err(NotValid) => {
                worker.stats.handshake_failure(HandshakeFailure::ClientCertificate);
                return None;
            }
        },
        None => None,
    };
    let asked = validation.is_some();
    let session = Session { server_name: server_name.map(Arc::from), version, asked, shown };
    Some(Established { stream: Box::new(stream), session, http2 })
}

fn failed<T>(worker: &Worker, error: &io::Error) -> Option<T> {
    worker.stats.handshake_failure(cause(error));
    None
}

fn cause(error: &io::Error) -> HandshakeFailure {
    use rustls::Error;
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(Error::AlertReceived(_)) => HandshakeFailure::Alert,
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => HandshakeFailure::NothingInCommon,
        Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)) => {
            HandshakeFailure::ClientCertificate
        }
        Some(Error::InvalidMessage(_)) => HandshakeFailure::NotTls,
        Some(_) => HandshakeFailure::Other,
        None => HandshakeFailure::Closed,
    }
}

#[derive(Debug)]
struct Resolver {
    live: Arc<ArcSwap<Live>>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        LiveCertificate::choose(certificates(&self.live.load(), name.as_deref()), &hello)
    }
}

/// How hands are shaken under a name, and who vouches for its clients; none: it has no certificate.
fn configuration(
    worker: &Worker,
    server_name: Option<&str>,
) -> Option<(Arc<ServerConfig>, Option<Arc<LiveValidation>>)> {
    let (live, configurations) = (worker.live(), &worker.shared.tls);
    certificates(&live, server_name).next()?;
    let host = live.host(server_name.unwrap_or_default())?;
    match &host.clients {
        Clients::By(validation) => Some((configurations.asking(validation)?, Some(validation.clone()))),
        // Requests are refused one by one, with a reason.
        Clients::Unasked | Clients::Refused => Some((configurations.at_least(host.min_version()), None)),
    }
}

/// What a client showed, which the handshake verified.
fn shown(
    chain: Option<&[CertificateDer<'static>]>,
    by: &Arc<LiveValidation>,
) -> Result<Option<Shown>, NotValid> {
    match chain {
        Some(chain) if !chain.is_empty() => Shown::new(chain.to_vec(), by).map(Some).ok_or(NotValid),
        _ if by.is_required() => Err(NotValid),
        _ => Ok(None),
    }
}

/// The certificates that may be shown to a client that asks for `server_name`.
fn certificates<'l>(
    live: &'l Live,
    server_name: Option<&str>,
) -> impl Iterator<Item = &'l Arc<LiveCertificate>> {
    let host = live.host(server_name.unwrap_or_default());
    let of_catch_all = host.is_some_and(|host| host.host.hostname.is_none());
    let name = server_name.map(str::to_owned);
    let all = host.map(|host| host.certificates.as_slice()).unwrap_or_default();
    all.iter().filter(move |certificate| match &name {
        Some(name) if of_catch_all => certificate.names(name),
        _ => true,
    })
}

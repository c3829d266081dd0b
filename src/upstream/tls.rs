//! TLS to the endpoints of a backend: one configuration a plan, so that sessions are resumed by all workers and never
//! under another plan.
//!
//! Invariants: every certificate is verified, by authorities and by name; a plan that cannot be used makes no connection
//! at all.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::trust::system_authorities;
use crate::message::{ErrorKind, ProxyError};
use crate::route_map::{BackendProtocol, BackendTlsPlan, CertificatePlan, Endpoint, PinnedName, PrivateKey};

/// Names with sessions that can be resumed, of one backend.
const SESSIONS: usize = 256;
/// A cause that stays the same is told so often.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// The way to a backend's endpoints.
#[derive(Debug)]
pub(super) enum Security {
    Plain,
    Tls(TlsClient),
    /// TLS is asked for and cannot be had.
    Unusable,
}

#[derive(Debug)]
pub(super) struct TlsClient {
    config: Arc<ClientConfig>,
    /// Where another protocol may be agreed on.
    http1: Option<Arc<ClientConfig>>,
    /// `None`: each endpoint's own name or address.
    server_name: Option<ServerName<'static>>,
    told: Told,
}

/// Which protocols an endpoint may choose from (ALPN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// What the backend's plan says.
    Planned,
    /// What only HTTP/1.1 can do is asked for.
    Http1,
}

/// What went wrong between us and an endpoint, as metrics and the log have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    Expired,
    NotYetValid,
    UnknownIssuer,
    NameMismatch,
    /// Its certificate is wrong in another way.
    Certificate,
    /// It does not take ours, or wants one.
    ClientCertificate,
    /// No protocol version, cipher or ALPN protocol that both have.
    NothingInCommon,
    /// What came is no TLS.
    NotTls,
    /// It ended the connection.
    Closed,
    /// It sent another alert.
    Alert,
    Other,
}

/// When which cause was told last.
#[derive(Debug)]
struct Told {
    began: Instant,
    /// Milliseconds since, and in the low byte the cause; 0: nothing was told.
    last: AtomicU64,
}

impl Security {
    /// `who` names the backend in the log.
    pub fn new(plan: Option<&BackendTlsPlan>, protocol: BackendProtocol, who: &dyn fmt::Display) -> Self {
        match plan.map(|plan| TlsClient::new(plan, protocol)) {
            None => Self::Plain,
            Some(Ok(client)) => Self::Tls(client),
            Some(Err(error)) => {
                tracing::error!(backend = %who, error, "TLS to the backend cannot be set up; it is not asked");
                Self::Unusable
            }
        }
    }
}

impl Security {
    /// How an endpoint of that name is spoken to; `None`: plainly. Without a name nothing can be proven.
    ///
    /// # Errors
    /// TLS is asked for and cannot be had.
    pub fn towards(
        &self,
        name: Option<&ServerName<'static>>,
    ) -> Result<Option<(&TlsClient, ServerName<'static>)>, ProxyError> {
        match (self, name) {
            (Self::Plain, _) => Ok(None),
            (Self::Tls(client), Some(name)) => Ok(Some((client, name.clone()))),
            (Self::Tls(_), None) | (Self::Unusable, _) => Err(ErrorKind::TlsFailure.into()),
        }
    }
}

impl TlsClient {
    fn new(plan: &BackendTlsPlan, protocol: BackendProtocol) -> Result<Self, String> {
        let roots = match &plan.authorities {
            None => system_authorities(),
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                for der in authorities.iter().flat_map(|one| &one.certificates) {
                    roots.add(der.clone().into()).map_err(|error| error.to_string())?;
                }
                Arc::new(roots)
            }
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match &*plan.names {
            [] => WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(|error| error.to_string())?,
            _ if roots.is_empty() => return Err("no certificate authority is trusted".into()),
            names => Arc::new(Pinned::new(roots, names, &provider)?),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &plan.client_certificate {
            None => config.with_no_client_auth(),
            Some(certificate) => {
                let key = certified_key(certificate).map_err(|error| error.to_string())?;
                config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
            }
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Arc::new(config)
        };
        let (config, http1) = match protocol {
            BackendProtocol::Http1 => (offering(&[b"http/1.1"]), None),
            BackendProtocol::Http2 => (offering(&[b"h2"]), Some(offering(&[b"http/1.1"]))),
            BackendProtocol::Negotiated => (offering(&[b"h2", b"http/1.1"]), Some(offering(&[b"http/1.1"]))),
        };
        let server_name = match &plan.server_name {
            None => None,
            Some(name) => Some(server_name(name)?),
        };
        Ok(Self { config, http1, server_name, told: Told::new() })
    }

    /// The name that an endpoint is asked for and has to prove; an address is proven, not asked for.
    pub fn name_of(&self, endpoint: &Endpoint) -> ServerName<'static> {
        if let Some(name) = &self.server_name {
            return name.clone();
        }
        let own = endpoint.name.as_deref().and_then(|name| server_name(name).ok());
        own.unwrap_or_else(|| ServerName::from(endpoint.address.ip()))
    }

    /// The caller bounds the time.
    pub async fn shake_hands(
        &self,
        name: ServerName<'static>,
        socket: TcpStream,
        offer: Offer,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let config = match (offer, &self.http1) {
            (Offer::Http1, Some(http1)) => http1,
            _ => &self.config,
        };
        TlsConnector::from(config.clone()).connect(name, socket).await
    }

    /// Tells why there is no connection, unless that was told a moment ago.
    pub fn tell(
        &self,
        backend: &dyn fmt::Display,
        endpoint: SocketAddr,
        cause: Failed,
        error: &(dyn std::error::Error + 'static),
    ) {
        if self.told.is_due(cause) {
            let reason = cause.as_str();
            tracing::warn!(%backend, %endpoint, reason, error, "no TLS connection to an endpoint");
        }
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    let name = DnsName::try_from(name.to_owned()).map_err(|_| format!("{name:?} is no server name"))?;
    Ok(ServerName::DnsName(name))
}

/// A certificate with its key, as TLS signs with it.
///
/// # Errors
/// The key is none that TLS uses here, or not the certificate's.
pub fn certified_key(plan: &CertificatePlan) -> Result<CertifiedKey, Error> {
    use rustls::pki_types::PrivateKeyDer;
    let key = match plan.key.expose() {
        PrivateKey::Pkcs1(der) => PrivateKeyDer::Pkcs1(der.clone().into()),
        PrivateKey::Pkcs8(der) => PrivateKeyDer::Pkcs8(der.clone().into()),
        PrivateKey::Sec1(der) => PrivateKeyDer::Sec1(der.clone().into()),
    };
    let chain = plan.chain.iter().cloned().map(CertificateDer::from).collect();
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
}

/// Verifies by authorities, and by names that are not the one asked for.
#[derive(Debug)]
struct Pinned {
    roots: Arc<RootCertStore>,
    hostnames: Vec<ServerName<'static>>,
    uris: Vec<Arc<str>>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn new(
        roots: Arc<RootCertStore>,
        names: &[PinnedName],
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut pinned = Self { roots, hostnames: Vec::new(), uris: Vec::new(), provider: provider.clone() };
        for name in names {
            match name {
                PinnedName::Hostname(name) => pinned.hostnames.push(server_name(name)?),
                PinnedName::Uri(uri) => pinned.uris.push(uri.clone()),
            }
        }
        Ok(pinned)
    }

    fn names(&self, certificate: &ParsedCertificate<'_>, der: &[u8]) -> bool {
        if self.hostnames.iter().any(|name| verify_server_name(certificate, name).is_ok()) {
            return true;
        }
        if self.uris.is_empty() {
            return false;
        }
        let Ok((_, parsed)) = X509Certificate::from_der(der) else { return false };
        let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
        let mut names = names.value.general_names.iter();
        names.any(|name| matches!(name, GeneralName::URI(uri) if self.uris.iter().any(|own| **own == **uri)))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        if !self.names(&certificate, end_entity) {
            return Err(CertificateError::NotValidForName.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Failed {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::NameMismatch => "name_mismatch",
            Self::Certificate => "bad_certificate",
            Self::ClientCertificate => "client_certificate",
            Self::NothingInCommon => "nothing_in_common",
            Self::NotTls => "not_tls",
            Self::Closed => "closed",
            Self::Alert => "alert",
            Self::Other => "other",
        }
    }

    /// Of a handshake.
    pub fn of(error: &std::io::Error) -> Self {
        match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
            Some(error) => Self::by(error),
            None => Self::Closed,
        }
    }

    /// Of a connection whose handshake is over for us: in TLS 1.3 a server judges our certificate only then.
    pub fn late(error: &std::io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            error @ Error::AlertReceived(_) => Some(Self::by(error)),
            _ => None,
        }
    }

    fn by(error: &Error) -> Self {
        use AlertDescription as Alert;
        match error {
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotYetValid
                }
                CertificateError::UnknownIssuer => Self::UnknownIssuer,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::NameMismatch
                }
                _ => Self::Certificate,
            },
            Error::AlertReceived(alert) => match alert {
                Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied => Self::ClientCertificate,
                Alert::ProtocolVersion
                | Alert::InsufficientSecurity
                | Alert::HandshakeFailure
                | Alert::NoApplicationProtocol => Self::NothingInCommon,
                _ => Self::Alert,
            },
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::NothingInCommon,
            Error::InvalidMessage(_) => Self::NotTls,
            _ => Self::Other,
        }
    }
}

impl Told {
    fn new() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0) }
    }

    fn is_due(&self, cause: Failed) -> bool {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0) << 8 | (cause as u64 + 1);
        let last = self.last.load(Ordering::Relaxed);
        let same = last & 0xff == now & 0xff;
        let long_ago = (now >> 8).saturating_sub(last >> 8) >= TOLD_EVERY.as_millis() as u64;
        let is_due = last == 0 || !same || long_ago;
        is_due && self.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        authorities: Option<Vec<crate::route_map::Authorities>>,
        names: Vec<PinnedName>,
    ) -> BackendTlsPlan {
        BackendTlsPlan { server_name: None, authorities, names, client_certificate: None, print: 0 }
    }

    #[test]
    fn without_an_authority_there_is_no_connection() {
        let pinned = || vec![PinnedName::Hostname("a.example".into())];
        for names in [Vec::new(), pinned()] {
            let security =
                Security::new(Some(&plan(Some(Vec::new()), names)), BackendProtocol::Http1, &"a backend");
            assert!(matches!(security, Security::Unusable), "{security:?}");
            let name = ServerName::try_from("a.example").expect("a name");
            assert_eq!(security.towards(Some(&name)).expect_err("no way").kind, ErrorKind::TlsFailure);
        }
        let plain = Security::new(None, BackendProtocol::Http1, &"a backend");
        assert!(plain.towards(None).expect("no TLS is asked for").is_none());
    }

    #[test]
    fn an_endpoint_is_asked_for_the_plans_name_its_own_or_its_address() {
        let address: SocketAddr = "10.0.0.1:443".parse().expect("an address");
        let named = Endpoint { address, name: Some("own.example".into()) };
        let authority = || webpki_root_certs::TLS_SERVER_ROOT_CERTS[0].to_vec();
        let trust = crate::route_map::Authorities { source: "".into(), certificates: vec![authority()] };
        let mut plan = plan(Some(vec![trust]), Vec::new());
        let client = TlsClient::new(&plan, BackendProtocol::Http1).expect("a client");
        assert_eq!(client.name_of(&named), ServerName::try_from("own.example").expect("a name"));
        assert_eq!(client.name_of(&Endpoint::from(address)), ServerName::from(address.ip()));
        let security = Security::Tls(TlsClient::new(&plan, BackendProtocol::Http1).expect("a client"));
        let unnamed = security.towards(None).expect_err("nothing could be proven");
        assert_eq!(unnamed.kind, ErrorKind::TlsFailure);
        assert!(security.towards(Some(&client.name_of(&named))).expect("a name").is_some());
        plan.server_name = Some("other.example".into());
        let client = TlsClient::new(&plan, BackendProtocol::Http1).expect("a client");
        for endpoint in [named, Endpoint::from(address)] {
            assert_eq!(client.name_of(&endpoint), ServerName::try_from("other.example").expect("a name"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cause_is_told_once_a_minute_and_another_at_once() {
        let told = Told::new();
        assert!(told.is_due(Failed::Expired) && !told.is_due(Failed::Expired));
        assert!(told.is_due(Failed::NotTls) && !told.is_due(Failed::NotTls));
        tokio::time::advance(TOLD_EVERY - Duration::from_millis(1)).await;
        assert!(!told.is_due(Failed::NotTls));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(told.is_due(Failed::NotTls));
    }

    #[test]
    fn causes_have_words() {
        let of = |error: Error| Failed::of(&std::io::Error::other(error)).as_str();
        assert_eq!(of(CertificateError::NotValidForName.into()), "name_mismatch");
        assert_eq!(of(CertificateError::BadSignature.into()), "bad_certificate");
        assert_eq!(of(Error::AlertReceived(AlertDescription::HandshakeFailure)), "nothing_in_common");
        assert_eq!(of(Error::AlertReceived(AlertDescription::InternalError)), "alert");
        assert_eq!(of(Error::DecryptError), "other");
        assert_eq!(Failed::of(&std::io::ErrorKind::UnexpectedEof.into()).as_str(), "closed");
        // What goes wrong later is no refusal unless the other side says so.
        assert_eq!(Failed::late(&std::io::Error::other(Error::DecryptError)), None);
        assert_eq!(Failed::late(&std::io::ErrorKind::ConnectionReset.into()), None);
        let refused = Error::AlertReceived(AlertDescription::UnknownCA);
        assert_eq!(Failed::late(&std::io::Error::other(refused)), Some(Failed::ClientCertificate));
    }
}

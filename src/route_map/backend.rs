//! How to reach a backend, as proven by the compiler.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest;

use super::credential::Credential;
use super::tls::CertificatePlan;
use super::traffic::TrafficPlan;
use crate::values::{BackendId, ObjectName};

#[derive(Clone, Debug, PartialEq)]
pub struct BackendPlan {
    pub id: BackendId,
    pub target: BackendTarget,
    pub host_header: HostHeader,
    /// `None`: plain HTTP.
    pub tls: Option<Arc<BackendTlsPlan>>,
    pub traffic: TrafficPlan,
    /// What of ours it is shown.
    pub credential: Option<Arc<Credential>>,
    pub protocol: BackendProtocol,
    /// What each connection begins with; only before HTTP/1.1.
    pub proxy_header: Option<ProxyHeader>,
}

/// Version of the header that tells a backend whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    V1,
    V2,
}

impl BackendPlan {
    /// Plain HTTP/1.1 with the client's Host, and nothing else asked for.
    pub fn new(id: BackendId, target: BackendTarget) -> Self {
        Self {
            id,
            target,
            host_header: HostHeader::Preserve,
            tls: None,
            traffic: TrafficPlan::default(),
            credential: None,
            protocol: BackendProtocol::default(),
            proxy_header: None,
        }
    }

    /// What tells apart whom requests reach and as whom, whatever else changes.
    pub fn print(&self) -> [u8; 32] {
        let mut print = digest::Context::new(&digest::SHA256);
        // Its parts cannot run into each other: texts are quoted there.
        let place = format!("{:?} {:?} {:?} {:?}", self.target, self.host_header, self.tls, self.protocol);
        print.update(&(place.len() as u64).to_be_bytes());
        print.update(place.as_bytes());
        match self.credential.as_deref() {
            None => {}
            Some(Credential::Header { name, value, .. }) => {
                print.update(format!("header {name}: ").as_bytes());
                print.update(value.expose().as_bytes());
            }
            Some(Credential::Query { name, value }) => {
                print.update(format!("query {name}=").as_bytes());
                print.update(value.expose().as_bytes());
            }
            Some(Credential::Token(token)) => print.update(token.fetch.name().as_bytes()),
        }
        print.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// What is spoken to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendProtocol {
    #[default]
    Http1,
    /// With TLS agreed on by ALPN, without from the first byte (h2c).
    Http2,
    /// With TLS: whichever the endpoint prefers.
    Negotiated,
}

/// How a backend proves who it is, and we to it. There is no plan that takes any certificate.
#[derive(PartialEq)]
pub struct BackendTlsPlan {
    /// Asked for, and looked for in the certificate. `None`: each host's own name or address.
    pub server_name: Option<Arc<str>>,
    /// `None`: the system's.
    pub authorities: Option<Vec<Authorities>>,
    /// Where there are any, the certificate has one of them; the server name is not looked for then.
    pub names: Vec<PinnedName>,
    pub client_certificate: Option<Arc<CertificatePlan>>,
    /// Fingerprint of all certificates here.
    pub print: u64,
}

/// Certificate authorities and the object that holds them.
#[derive(PartialEq)]
pub struct Authorities {
    /// `ConfigMap shop/ca`
    pub source: Arc<str>,
    /// DER.
    pub certificates: Vec<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinnedName {
    Hostname(Arc<str>),
    Uri(Arc<str>),
}

/// Without the bytes of certificates: their fingerprint stands for them.
impl fmt::Debug for BackendTlsPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendTlsPlan")
            .field("server_name", &self.server_name)
            .field("authorities", &self.authorities)
            .field("names", &self.names)
            .field("client_certificate", &self.client_certificate.as_ref().map(|plan| &plan.secret))
            .field("print", &self.print)
            .finish()
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.certificates.len(), self.source)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum BackendTarget {
    /// The endpoints of a Service's port, by EndpointSlices.
    Service { service: ObjectName, port: u16 },
    /// Hosts of a GatewayBackend; names are resolved at run time.
    Hosts(Vec<(Address, u16)>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(IpAddr),
    Name(Arc<str>),
}

/// Under which name a backend is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// The client's.
    Preserve,
    /// Each host that is a name under that name, with its port where it is not the usual one; one that is an address under the
    /// client's.
    Own,
    /// `GatewayBackend.host`
    Name(Arc<str>),
}

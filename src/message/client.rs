//! Who asks, and over what.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;

use crate::message::ClientCertificate;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

/// The client of one request.
#[derive(Clone, Debug)]
pub struct Client {
    /// The other end of the TCP connection, or whom a load balancer there speaks for (PROXY protocol).
    pub peer: SocketAddr,
    /// The client's address after the trusted hops of `X-Forwarded-For` were taken away.
    pub ip: IpAddr,
    /// The scheme that the client itself used, as far as trusted hops say.
    pub scheme: Scheme,
    pub protocol: Protocol,
    /// The server name of the TLS handshake (RFC 6066), lower case; none on plain connections and without SNI.
    pub server_name: Option<Arc<str>>,
    /// What it showed in the TLS handshake, verified as the host asks for now.
    pub certificate: Option<Arc<ClientCertificate>>,
    /// None: no hop is trusted.
    pub vouched: Option<Arc<Vouched>>,
}

/// What trusted hops say of a request's way, as everybody is told it who is told of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    /// `X-Forwarded-For`, with the hop that speaks to us at its end.
    pub chain: HeaderValue,
    /// `X-Forwarded-Host`: theirs, or the request's own where they say nothing.
    pub host: HeaderValue,
    pub port: HeaderValue,
}

impl Client {
    /// The address that tells clients apart: whoever has an IPv6 address has the other 2⁶⁴ of its network too.
    pub fn network(&self) -> IpAddr {
        match self.ip.to_canonical() {
            IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
            v4 => v4,
        }
    }
}

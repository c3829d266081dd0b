//! The endpoints of a backend: the second path, which changes without a new map.

use std::net::SocketAddr;
use std::sync::Arc;

/// Where a backend's requests can go now, in a stable order (by address).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    pub endpoints: Vec<Endpoint>,
    /// Those of them that are in the gateway's own zone, in order; empty: all are alike.
    pub near: Vec<SocketAddr>,
    /// The Service exists (so that "no endpoints" and "no such Service" are told apart).
    pub known: bool,
}

/// One address that takes new requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The name that it was resolved from.
    pub name: Option<Arc<str>>,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address, name: None }
    }
}

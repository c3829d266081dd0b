//! How to reach a backend, as proven by the compiler.

use std::net::IpAddr;
use std::sync::Arc;

use crate::values::{BackendId, ObjectName};

#[derive(Clone, Debug, PartialEq)]
pub struct BackendPlan {
    pub id: BackendId,
    pub target: BackendTarget,
    pub host_header: HostHeader,
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
    /// Each host that is a name under that name, with its port where it is not 80; one that is an address under the
    /// client's.
    Own,
    /// `GatewayBackend.host`
    Name(Arc<str>),
}

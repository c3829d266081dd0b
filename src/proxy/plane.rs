//! The data plane as the process sees it: bound listeners, workers, and the newest route map.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::lifecycle::DrainSignal;
use crate::route_map::{EndpointSet, RouteMap};
use crate::telemetry::{AccessLog, Telemetry};
use crate::values::BackendId;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Port 0 binds any. Empty: no such listener.
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    pub workers: usize,
    /// How many proxies in front of us are ours: that many entries of `X-Forwarded-For` are believed.
    pub trusted_hops: usize,
    /// Egress guard: loopback addresses may be backends (file mode).
    pub loopback_backends: bool,
    /// Names this installation in `Via`-like loop detection (four passes: 508).
    pub installation: Arc<str>,
    pub limits: Limits,
}

/// Hardening defaults; see docs/limits.md.
#[derive(Clone, Debug)]
pub struct Limits {
    pub tls_handshake: Duration,
    pub request_head: Duration,
    pub keep_alive_idle: Duration,
    pub connection_age: Duration,
    pub max_body: u64,
}

/// What was bound, port 0 resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
}

/// Handle of the running data plane. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct DataPlane {
    addresses: Addresses,
}

impl DataPlane {
    /// Binds all sockets (one `SO_REUSEPORT` socket a worker and address) and starts the workers, which answer 404
    /// until the first map is installed.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn start(
        settings: Settings,
        telemetry: Telemetry,
        log: AccessLog,
        drain: DrainSignal,
    ) -> std::io::Result<Self> {
        let _ = (settings, telemetry, log, drain);
        Ok(Self { addresses: Addresses::default() })
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves `map` from the next request on; state of what did not change is kept, no connection is closed. Returns
    /// when every worker will use it for requests that it accepts from now on. `endpoints` are those of the backends
    /// that are new in `map` or whose plan changed, so that no request finds them empty; the others keep theirs.
    pub fn install(&self, map: Arc<RouteMap>, endpoints: BTreeMap<BackendId, EndpointSet>) {
        let _ = (map, endpoints);
    }

    /// Endpoints of a backend of the installed map; unknown backends are ignored.
    pub fn set_endpoints(&self, backend: &BackendId, endpoints: EndpointSet) {
        let _ = (backend, endpoints);
    }

    /// Waits until all workers have ended: after drain, or after its deadline. Blocks the calling thread.
    pub fn join(self) {}
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tls_handshake: Duration::from_secs(10),
            request_head: Duration::from_secs(10),
            keep_alive_idle: Duration::from_secs(60),
            connection_age: Duration::from_secs(3600),
            max_body: 10 << 20,
        }
    }
}

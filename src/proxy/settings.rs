//! What the data plane is told at its start, and the hardening defaults. Nothing of it changes while it runs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::message::Scheme;
use crate::values::Egress;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Port 0 binds any. Empty: no such listener.
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    pub workers: usize,
    /// How many proxies in front of us are ours: that many entries of `X-Forwarded-For` are believed.
    pub trusted_hops: usize,
    /// Load balancers that say who their clients are before the first byte of those.
    pub proxy_protocol: ProxyProtocol,
    /// Egress guard: loopback addresses may be backends (file mode).
    pub loopback_backends: bool,
    /// Egress guard: which networks are closed to backends, or open to hosts.
    pub egress: Egress,
    /// Clients reach the listeners under their own ports (file mode). Otherwise a Service stands before them, and HTTPS
    /// is on 443.
    pub own_ports: bool,
    /// Under which port clients reach HTTPS, where it is neither.
    pub public_https_port: Option<u16>,
    /// Names this installation in `Via`-like loop detection (four passes: 508).
    pub installation: Arc<str>,
    /// Bytes that kept answers may have, all together.
    pub cache_memory: u64,
    pub limits: Limits,
}

/// Which listeners' connections begin with a PROXY header, and whose is believed. On such a listener nobody else has a
/// connection.
#[derive(Clone, Debug, Default)]
pub struct ProxyProtocol {
    pub listeners: Vec<Scheme>,
    pub trusted: Vec<IpNet>,
}

/// Hardening defaults; see docs/limits.md. Everything that a client could hold or fill has its bound here.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections of clients; what comes after them waits in the kernel's queue.
    pub connections: usize,
    /// Of one client's address; what comes after them is closed. `None`: nobody counts.
    pub connections_per_client: Option<u32>,
    /// So many connections are accepted in a second; the others wait. `None`: as they come.
    pub accepts_per_second: Option<u32>,
    /// A TLS handshake, and the first byte of a connection.
    pub tls_handshake: Duration,
    /// A request's head, from its first byte.
    pub request_head: Duration,
    /// A kept connection between two requests.
    pub keep_alive_idle: Duration,
    /// After about this age (± 10 %) a client is asked to connect anew.
    pub connection_age: Duration,
    /// Bytes of a request's body, where its rule says nothing else.
    pub max_body: u64,
    /// A request's body brings at least 1 KiB in this time while we wait for it, and an answer can be written on.
    pub progress: Duration,
    /// HTTP/2: so often a client is pinged, and so long it has to answer.
    pub ping: Duration,
    pub pong: Duration,
    /// How long an idle kept connection is left open in drain, so that a request on its way is still answered.
    pub drain_idle: Duration,
    /// Request heads: bytes in all (HTTP/1), fields, bytes of one field, of the target and of the method.
    pub head_bytes: usize,
    pub head_fields: usize,
    pub field_bytes: usize,
    pub target_bytes: usize,
    pub method_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            connections_per_client: None,
            accepts_per_second: None,
            tls_handshake: Duration::from_secs(10),
            request_head: Duration::from_secs(10),
            keep_alive_idle: Duration::from_secs(60),
            connection_age: Duration::from_secs(3600),
            max_body: 10 << 20,
            progress: Duration::from_secs(30),
            ping: Duration::from_secs(30),
            pong: Duration::from_secs(10),
            drain_idle: Duration::from_secs(1),
            head_bytes: 32 << 10,
            head_fields: 100,
            field_bytes: 16 << 10,
            target_bytes: 8 << 10,
            method_bytes: 32,
        }
    }
}

/// What was bound, port 0 resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
}

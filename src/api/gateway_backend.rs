//! `GatewayBackend`: how to reach a server, in the cluster or outside.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::backend_credentials::BackendCredentials;
use super::backend_rate_limit::BackendRateLimit;
use super::gateway_route::{EXACT_HOSTNAME, OBJECT_NAME};
use super::status::GatewayBackendStatus;
use crate::values::{CaCertificateRef, Duration, SecretRef};

/// What is wanted.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "GatewayBackend",
    plural = "gatewaybackends",
    shortname = "gwb",
    category = "portcullis",
    namespaced,
    status = "GatewayBackendStatus",
    derive = "PartialEq",
    doc = "How to reach a server: a Service with special settings, or a host outside.",
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.hosts[*].address"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.service.name"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.installations[*].conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = r#".status.installations[*].conditions[?(@.type=="Programmed")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.installations[*].conditions[?(@.type=="Accepted")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.hosts) != has(self.service)", "a backend has either hosts or a service"),
    validation = (
        "!has(self.protocol) || self.protocol == 'Auto' || self.protocol == 'HTTP1' || (self.protocol == 'HTTP2') == has(self.tls)",
        "HTTP2 needs tls, and H2C is without it"
    ),
    validation = (
        "!has(self.proxyProtocol) || !has(self.protocol) || self.protocol == 'Auto' || self.protocol == 'HTTP1'",
        "a PROXY header goes before HTTP/1.1; with proxyProtocol, protocol is HTTP1 or left out"
    ),
    validation = (
        "!has(self.tls) || has(self.hosts) || has(self.tls.serverName)",
        "a Service has no name of its own; set tls.serverName"
    ),
    validation = (
        "!has(self.protocol) || self.protocol != 'HTTP1' || !has(self.healthCheck) || !has(self.healthCheck.active) || !has(self.healthCheck.active.grpc)",
        "a check by grpc needs HTTP/2; set protocol to HTTP2 or H2C"
    )
)]
pub struct GatewayBackendSpec {
    /// Hosts by IP or name; requests are spread over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub hosts: Option<Vec<BackendHost>>,
    /// A Service in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<BackendService>,
    /// Host under which it is asked; by default a host's own name, or the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = EXACT_HOSTNAME))]
    pub host: Option<String>,
    /// Asks it over TLS. Its certificate is always verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<BackendTls>,
    /// What it knows us by, in place of what the client sent there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<BackendCredentials>,
    /// Auto: what TLS agrees on; h2c where the port's appProtocol says so; HTTP/1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Begins each connection with a PROXY header of this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How requests are spread over its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// When an endpoint is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// How often each of its hosts may be asked, so that they do not refuse us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<BackendRateLimit>,
    /// What it has to bear from each replica of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<BackendLimits>,
}

/// What is spoken to a backend.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Auto,
    #[serde(rename = "HTTP1")]
    Http1,
    #[serde(rename = "HTTP2")]
    Http2,
    #[serde(rename = "H2C")]
    H2c,
}

/// Tells a backend whose connection it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    V1,
    V2,
}

/// How requests are spread.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("(has(self.policy) && self.policy == 'ConsistentHash') == has(self.consistentHash)", HASHED))]
pub struct LoadBalancer {
    /// In turn by default.
    #[serde(default)]
    pub policy: BalancePolicy,
    /// What ConsistentHash goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// How long new endpoints, and those that come back, take to their full share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('15m')", SLOW_START))]
    pub slow_start: Option<Duration>,
}

const SLOW_START: &str = "from 1s to 15m are possible";
const HASHED: &str = "ConsistentHash needs consistentHash, and only it";

impl LoadBalancer {
    /// What its rules say of it: the field below it, and why.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let bounds = std::time::Duration::from_secs(1)..=std::time::Duration::from_secs(15 * 60);
        if let Some(time) = self.slow_start.filter(|time| !bounds.contains(&time.std())) {
            return Some(("slowStart", format!("found {time}; {SLOW_START}")));
        }
        let is_hashed = self.policy == BalancePolicy::ConsistentHash;
        (is_hashed != self.consistent_hash.is_some()).then(|| ("consistentHash", HASHED.into()))
    }
}

/// What tells requests apart.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsistentHash {
    /// CEL; requests of one value go to one endpoint, those without a value in turn.
    #[schemars(length(min = 1, max = 2048))]
    pub key: String,
}

/// Which endpoint is asked next.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancePolicy {
    #[default]
    RoundRobin,
    LeastRequest,
    PeakEwma,
    Random,
    ConsistentHash,
}

/// How an endpoint is found to be unfit.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.active) || has(self.passive)", "a health check is active, passive or both"))]
pub struct HealthCheck {
    /// By asking endpoints now and then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveCheck>,
    /// By how the requests of clients go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<PassiveCheck>,
    /// With fewer fit ones in a hundred than this all are asked; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub panic_percent: Option<i32>,
}

/// Endpoints are asked by each replica; those that answer badly get no requests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "duration(has(self.timeout) ? self.timeout : '1s') <= duration(has(self.interval) ? self.interval : '5s')",
        "timeout is at most as long as interval"
    ),
    validation = ("!has(self.path) || !has(self.grpc)", "a check is by path or by grpc, not by both")
)]
pub struct ActiveCheck {
    /// GET of this path has to give 2xx or 3xx; without it a connection is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = TARGET))]
    pub path: Option<String>,
    /// grpc.health.v1.Health/Check has to say SERVING; needs HTTP/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// From the end of a check to the next, a tenth more or less; 5s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('100ms') && duration(self) <= duration('1h')", "from 100ms to 1h are possible"))]
    pub interval: Option<Duration>,
    /// For one check; 1s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('10ms') && duration(self) <= duration('1m')", "from 10ms to 1m are possible"))]
    pub timeout: Option<Duration>,
    /// Good checks in a row that bring an endpoint back; 2 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_after: Option<i32>,
    /// Bad checks in a row after which it gets no requests; 3 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_after: Option<i32>,
}

/// gRPC's own health service is asked.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcCheck {
    /// Service that is asked about, like shop.v1.Orders; by default the whole server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = GRPC_SERVICE))]
    pub service: Option<String>,
}

/// A full name of protobuf's.
const GRPC_SERVICE: &str = "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*$";

/// An endpoint that fails is left alone for a while.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PassiveCheck {
    /// Answers 5xx, or none, in a row; 5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_errors: Option<i32>,
    /// Least good answers in a hundred, of 20 or more in ten seconds; any by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_success_percent: Option<i32>,
    /// How long the first time; n times that the n-th. 30s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('1h')", "from 1s to 1h are possible"))]
    pub eject_for: Option<Duration>,
    /// Of its endpoints at most so many in a hundred; 50 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: Option<i32>,
}

/// Bounds for each replica of the gateway, over all its workers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.connections) || has(self.requests)", LIMIT_OF_NOTHING),
    validation = ("!has(self.pendingRequests) || has(self.connections)", PENDING)
)]
pub struct BackendLimits {
    /// Open at once, idle ones among them; one for each worker in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub connections: Option<i32>,
    /// Requests that wait for one; 1024 by default. Others get 503 Overloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000000))]
    pub pending_requests: Option<i32>,
    /// Requests under way at once; others get 503 Overloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub requests: Option<i32>,
}

const LIMIT_OF_NOTHING: &str = "limits are of connections, requests or both";
const PENDING: &str = "pendingRequests wait for connections; set connections";

impl BackendLimits {
    /// What its rules say of it: the field below it, and why.
    pub(super) fn problem(&self) -> Option<(Option<&'static str>, &'static str)> {
        match self {
            Self { connections: None, requests: None, .. } => Some((None, LIMIT_OF_NOTHING)),
            Self { connections: None, pending_requests: Some(_), .. } => {
                Some((Some("pendingRequests"), PENDING))
            }
            _ => None,
        }
    }
}

/// Path and query.
const TARGET: &str = "^/[!-~]*$";
/// TLS to the backend.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTls {
    /// Name to ask for and to find in the certificate; by default each host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = EXACT_HOSTNAME))]
    #[x_kube(validation = ("!isIP(self)", "a server name is a DNS name"))]
    pub server_name: Option<String>,
    /// Whom to trust, in place of the system's certificate authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ca_certificate_refs: Option<Vec<CaCertificateRef>>,
    /// Names of which its certificate has one, in place of the server name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub subject_alt_names: Option<Vec<SubjectAltName>>,
    /// Secret of type kubernetes.io/tls that is shown to a server that asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_ref: Option<SecretRef>,
}

/// A name in a certificate: one of these.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.hostname) != has(self.uri)", "a subject alternative name is a hostname or a uri"))]
pub struct SubjectAltName {
    /// DNS name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = EXACT_HOSTNAME))]
    #[x_kube(validation = ("!isIP(self)", "a hostname is a DNS name"))]
    pub hostname: Option<String>,
    /// URI, like spiffe://cluster.local/ns/shop/sa/orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = URI))]
    pub uri: Option<String>,
}

/// A scheme, and more.
const URI: &str = "^[A-Za-z][-+.A-Za-z0-9]*:[!-~]+$";

/// A server by address.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new(
        "isIP(self.address) || self.address.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*[.]?$')"
    )
    .message("an address is an IP address or a DNS name in lower case")
    .field_path(".address"))]
pub struct BackendHost {
    /// IP address or DNS name.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
    /// Port of the server.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
}

/// A Service and one of its ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendService {
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
}

//! `GatewayBackend`: how to reach a server, in the cluster or outside.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gateway_route::{EXACT_HOSTNAME, OBJECT_NAME};
use super::status::GatewayBackendStatus;
use crate::values::{CaCertificateRef, Duration, SecretKeyRef, SecretRef};

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
    /// How requests are spread over its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// When an endpoint is left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
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

/// How requests are spread.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// In turn by default.
    #[serde(default)]
    pub policy: BalancePolicy,
}

/// Which endpoint is asked next.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancePolicy {
    #[default]
    RoundRobin,
    LeastRequest,
    PeakEwma,
    Random,
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
    /// How long the first time; n times that the n-th. 30s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('1h')", "from 1s to 1h are possible"))]
    pub eject_for: Option<Duration>,
    /// Of its endpoints at most so many in a hundred; 50 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: Option<i32>,
}

/// Bounds for each replica of the gateway.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendLimits {
    /// Requests under way at once; others get 503 Overloaded.
    #[schemars(range(min = 1, max = 1000000))]
    pub requests: i32,
}

/// What of ours a backend is shown: in a field, as a parameter of the query, or as user and password.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "[has(self.header), has(self.query), has(self.basic)].filter(given, given).size() == 1",
        "credentials stand in one place: header, query or basic"
    ),
    validation = (
        "has(self.basic) != has(self.secretKeyRef)",
        "header and query take secretKeyRef, basic has a secretRef of its own"
    ),
    validation = ("!has(self.prefix) || has(self.header)", "prefix means something only with header")
)]
pub struct BackendCredentials {
    /// Field that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    #[x_kube(validation = (
        "!(self.lowerAscii() in ['host', 'content-length', 'content-type', 'content-encoding', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive', 'expect', 'forwarded', 'via', 'x-real-ip', 'x-request-id']) && !self.lowerAscii().startsWith('proxy-') && !self.lowerAscii().startsWith('x-forwarded-') && !self.lowerAscii().startsWith('x-portcullis-')",
        "this field is the gateway's own; a credential stands in another field"
    ))]
    pub header: Option<String>,
    /// Stands before it in the field, like "Bearer ".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = PREFIX))]
    pub prefix: Option<String>,
    /// Parameter of the query that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub query: Option<String>,
    /// Key of a Secret that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// User and password (RFC 7617).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicCredentials>,
}

impl BackendCredentials {
    /// What its rules say of it: the field below it, and why.
    pub(super) fn problem(&self) -> Option<(Option<&'static str>, String)> {
        let places = [self.header.is_some(), self.query.is_some(), self.basic.is_some()];
        if places.iter().filter(|given| **given).count() != 1 {
            return Some((None, "credentials stand in one place: header, query or basic".into()));
        }
        if self.basic.is_some() == self.secret_key_ref.is_some() {
            let message = "header and query take secretKeyRef, basic has a secretRef of its own";
            return Some((None, message.into()));
        }
        if self.prefix.is_some() && self.header.is_none() {
            return Some((Some("prefix"), "prefix means something only with header".into()));
        }
        let name = self.header.as_deref().filter(|name| is_gateways_own(&name.to_ascii_lowercase()))?;
        Some((
            Some("header"),
            format!("{name}: this field is the gateway's own; a credential stands in another field"),
        ))
    }
}

/// Fields of this hop, and what the gateway says of a request itself.
fn is_gateways_own(name: &str) -> bool {
    const OURS: [&str; 15] = [
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "keep-alive",
        "expect",
        "forwarded",
        "via",
        "x-real-ip",
        "x-request-id",
    ];
    let begins = |start: &&str| name.starts_with(start);
    OURS.contains(&name) || ["proxy-", "x-forwarded-", "x-portcullis-"].iter().any(begins)
}

/// A user and its password.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicCredentials {
    /// Secret with the keys username and password.
    pub secret_ref: SecretRef,
}

/// Path and query.
const TARGET: &str = "^/[!-~]*$";
/// A token (RFC 9110 section 5.6.2).
const TOKEN: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";
/// Visible ASCII and spaces.
const PREFIX: &str = "^[!-~][ -~]*$";

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
        "isIP(self.address) || self.address.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$')"
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

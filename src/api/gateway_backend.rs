//! `GatewayBackend`: how to reach a server, in the cluster or outside.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::status::GatewayBackendStatus;

/// How to reach a server.
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
    doc = "How to reach a server: a Service with special settings, or a host outside."
)]
#[serde(rename_all = "camelCase")]
pub struct GatewayBackendSpec {
    /// Hosts by IP or name; requests are spread over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub hosts: Option<Vec<BackendHost>>,
    /// A Service in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<BackendService>,
    /// Name under which it is asked (Host header); see docs for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub host: Option<String>,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendHost {
    /// IP address or DNS name.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
}

#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendService {
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: u16,
}

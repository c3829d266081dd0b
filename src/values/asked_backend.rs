//! A backend that a policy asks by itself, beside those that a rule's requests go to.

use std::sync::Arc;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A backend that is asked: a Service or a GatewayBackend.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(self.kind == 'Service') == has(self.port)")
        .message("port is required for a Service, and not for a GatewayBackend")
        .field_path(".port"),
    validation = Rule::new("!has(self.group) || self.group == (self.kind == 'Service' ? '' : 'portcullis.dev')")
        .message("group is \"\" for a Service and portcullis.dev for a GatewayBackend; leave it out")
        .field_path(".group")
)]
pub struct AskedBackendRef {
    /// Follows from kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// Service or GatewayBackend.
    #[serde(default)]
    pub kind: BackendKind,
    /// Name of the Service or GatewayBackend.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Another one only where a ReferenceGrant there allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// Port of the Service; not for a GatewayBackend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: Option<u16>,
}

impl AskedBackendRef {
    /// What the schema refuses as well: a field, and what is wrong with it.
    pub fn mistake(&self) -> Option<(&'static str, &'static str)> {
        let group = match self.kind {
            BackendKind::Service => "",
            BackendKind::GatewayBackend => "portcullis.dev",
        };
        if (self.kind == BackendKind::Service) != self.port.is_some() {
            return Some(("port", "port is required for a Service, and not for a GatewayBackend"));
        }
        let is_other = self.group.as_ref().is_some_and(|given| given != group);
        is_other.then_some((
            "group",
            "group is \"\" for a Service and portcullis.dev for a GatewayBackend; leave it out",
        ))
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendKind {
    #[default]
    Service,
    GatewayBackend,
}

/// Scheme, host and port of a URL, where requests go that no object describes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    pub scheme: OriginScheme,
    /// Lower case, without brackets.
    pub host: Arc<str>,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OriginScheme {
    Http,
    Https,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.scheme {
            OriginScheme::Http => "http",
            OriginScheme::Https => "https",
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

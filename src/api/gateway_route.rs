//! `GatewayRoute`: which requests go where, and what happens to them on the way.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::aggregate::AggregateSpec;
use super::policy::{Policy, PolicyRef};
use super::route_match::RouteMatch;
use super::status::GatewayRouteStatus;
use crate::values::{
    BackendKind, CaCertificateRef, ForwardedCertificate, NamespaceSelector, PathRewriteSpec, SecretRef,
    TlsVersion, ValidationMode,
};

/// What is wanted.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "GatewayRoute",
    plural = "gatewayroutes",
    shortname = "gwr",
    category = "portcullis",
    namespaced,
    status = "GatewayRouteStatus",
    derive = "PartialEq",
    doc = "Which requests go where, and what happens to them on the way.",
    printcolumn(name = "Hostnames", type_ = "string", json_path = ".spec.hostnames"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Programmed")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "!has(self.tls) || self.tls.mode != 'Passthrough' || (has(self.hostnames) && size(self.hostnames) > 0)",
        "a route that passes TLS through needs hostnames"
    ),
    validation = (
        "!has(self.tls) || self.tls.mode != 'Passthrough' || (size(self.rules) == 1 && has(self.rules[0].backendRefs) && !has(self.rules[0].matches))",
        "a route that passes TLS through has one rule, with backendRefs and without matches"
    )
)]
pub struct GatewayRouteSpec {
    /// Which installation serves the route.
    #[serde(default = "default_class")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub class_name: String,
    /// Names that it answers; none: every host that no other route names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253), regex(pattern = HOSTNAME)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = ("self.all(name, !isIP(name))", "an IP address is not a hostname")
    )]
    pub hostnames: Vec<String>,
    /// Serves the hostnames over HTTPS, or lets their backends do so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RouteTls>,
    /// Who else may serve the hostnames of this route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
    /// GatewayPolicies of this namespace; the first that has a member gives it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub policy_refs: Vec<PolicyRef>,
    /// For every rule, unless a rule says otherwise; explained at rules.policy.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub policy: Policy,
    /// What happens to which requests.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<RouteRule>,
}

/// A DNS label (RFC 1123).
pub(super) const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// DNS labels, and before them a star where two follow.
const HOSTNAME: &str = r"^([*][.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?[.])?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";
/// DNS labels.
pub(super) const EXACT_HOSTNAME: &str =
    r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$";
/// A name of an object.
pub(super) const OBJECT_NAME: &str = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

fn default_class() -> String {
    "portcullis".into()
}

/// TLS of the hostnames.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("(self.mode == 'Passthrough') != has(self.certificateRefs)", CERTIFICATES_OR_NOT),
    validation = (
        "self.mode != 'Passthrough' || (!has(self.clientValidation) && self.minVersion == 'Tls12')",
        BACKENDS_OWN
    ),
    validation = ("!has(self.clientValidation) || !has(self.redirect) || self.redirect", VALIDATION_NEEDS_REDIRECT)
)]
pub struct RouteTls {
    /// Terminate (default), or Passthrough: the backends have the certificates.
    #[serde(default)]
    pub mode: TlsMode,
    /// Secrets of type kubernetes.io/tls; a changed one is served at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub certificate_refs: Vec<SecretRef>,
    /// Plain HTTP goes to HTTPS (308).
    #[serde(default = "default_redirect")]
    pub redirect: bool,
    /// Tls12 (default) or Tls13: what clients must speak at least.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Asks clients for a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_validation: Option<ClientValidationSpec>,
}

/// Who ends clients' TLS.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    #[default]
    Terminate,
    Passthrough,
}

pub(super) const CERTIFICATES_OR_NOT: &str = "tls has certificateRefs, or mode: Passthrough and none";
pub(super) const BACKENDS_OWN: &str =
    "with mode: Passthrough, clientValidation and minVersion are the backend's own; leave them out";
pub(super) const VALIDATION_NEEDS_REDIRECT: &str =
    "clientValidation needs redirect: over plain HTTP nobody shows a certificate";

/// Certificates that clients show.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientValidationSpec {
    /// ConfigMaps or Secrets whose ca.crt holds the authorities.
    #[schemars(length(min = 1, max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ca_certificate_refs: Vec<CaCertificateRef>,
    /// ConfigMaps or Secrets whose ca.crl tells what the authorities revoked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub crl_refs: Vec<CaCertificateRef>,
    /// Require (default) or Optional (none is fine, a wrong one is not).
    #[serde(default)]
    pub mode: ValidationMode,
    /// What X-Forwarded-Client-Cert tells backends: None, Details or Certificate.
    #[serde(default)]
    pub forward: ForwardedCertificate,
}

fn default_redirect() -> bool {
    true
}

/// Delegation of the hostnames, in Gateway API's words.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowedRoutes {
    /// Namespaces whose routes may name the same hostnames.
    pub namespaces: AllowedNamespaces,
}

/// Namespaces by relation or label.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("(self.from == 'Selector') == has(self.selector)", "selector goes with from: Selector, and only with it")
)]
pub struct AllowedNamespaces {
    /// Same (this namespace alone), Selector or All.
    #[serde(default)]
    pub from: AllowedFrom,
    /// Labels of the namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<NamespaceSelector>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedFrom {
    #[default]
    Same,
    Selector,
    All,
}

/// Requests that match get this treatment.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "(has(self.backendRefs) ? 1 : 0) + (has(self.aggregate) ? 1 : 0) + (has(self.redirect) ? 1 : 0) + (has(self.respond) ? 1 : 0) == 1",
        "a rule has exactly one of backendRefs, aggregate, redirect and respond"
    ),
    validation = Rule::new(
        "!has(self.redirect) || !has(self.redirect.path) || !has(self.redirect.path.replacePrefix) || !has(self.matches) || (size(self.matches) == 1 && (!has(self.matches[0].path) || self.matches[0].path.type == 'PathPrefix'))"
    )
    .message("replacePrefix needs exactly one match, of type PathPrefix")
    .field_path(".redirect.path.replacePrefix"),
    validation = Rule::new(
        "!has(self.policy) || !has(self.policy.request) || !has(self.policy.request.path) || !has(self.policy.request.path.replacePrefix) || !has(self.matches) || (size(self.matches) == 1 && (!has(self.matches[0].path) || self.matches[0].path.type == 'PathPrefix'))"
    )
    .message("replacePrefix needs exactly one match, of type PathPrefix")
    .field_path(".policy.request.path.replacePrefix")
)]
pub struct RouteRule {
    /// Names the rule in status, logs and metrics.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub name: String,
    /// Any of these; none: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub matches: Vec<RouteMatch>,
    /// GatewayPolicies of this namespace; they go before the route's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub policy_refs: Vec<PolicyRef>,
    /// What happens on the way; a member here replaces the route's as a whole.
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub policy: Policy,
    /// Forwards to these, by weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub backend_refs: Option<Vec<BackendRef>>,
    /// Makes one answer of several calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<AggregateSpec>,
    /// Sends the client elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<RedirectSpec>,
    /// Answers with fixed text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<RespondSpec>,
}

/// A backend and its share of the requests.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(self.kind == 'Service') == has(self.port)")
        .message("port is required for a Service, and not for a GatewayBackend")
        .field_path(".port"),
    validation = Rule::new("!has(self.group) || self.group == (self.kind == 'Service' ? '' : 'portcullis.dev')")
        .message("group is \"\" for a Service and portcullis.dev for a GatewayBackend; leave it out")
        .field_path(".group")
)]
pub struct BackendRef {
    /// Follows from kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// Service or GatewayBackend.
    #[serde(default)]
    pub kind: BackendKind,
    /// Name of the Service or GatewayBackend.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
    /// Another one only where a ReferenceGrant there allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub namespace: Option<String>,
    /// Port of the Service; not for a GatewayBackend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: Option<u16>,
    /// Share of the requests, in proportion to the sum of all.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 0, max = 1_000_000), extend("format" = "int32"))]
    pub weight: u32,
}

fn default_weight() -> u32 {
    1
}

/// Where the client is sent. What is left out stays as in the request.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "has(self.scheme) || has(self.hostname) || has(self.port) || has(self.path)",
        "a redirect changes at least one of scheme, hostname, port and path, else it leads to itself"
    )
)]
pub struct RedirectSpec {
    /// http or https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["http", "https"]))]
    pub scheme: Option<String>,
    /// Host of the new address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = EXACT_HOSTNAME))]
    pub hostname: Option<String>,
    /// Port; by default the scheme's own where scheme is given, else as asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535), extend("format" = "int32"))]
    pub port: Option<u16>,
    /// Path of the new address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewriteSpec>,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "default_redirect_status")]
    #[schemars(extend("enum" = [301, 302, 303, 307, 308], "format" = "int32"))]
    pub status_code: u16,
}

fn default_redirect_status() -> u16 {
    302
}

/// A fixed answer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "!(self.status in [204, 205, 304]) || (!has(self.text) && !has(self.contentType))",
        "an answer of status 204, 205 or 304 has no text and no contentType"
    )
)]
pub struct RespondSpec {
    /// Status of the answer.
    #[schemars(range(min = 200, max = 599), extend("format" = "int32"))]
    pub status: u16,
    /// Content type of the text; text/plain by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[!-~]([ -~]*[!-~])?$"))]
    pub content_type: Option<String>,
    /// The body as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub text: Option<String>,
}

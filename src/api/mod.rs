//! What users write: the CRD types, nothing else. The schema is generated from them into `crds/`.

mod aggregate;
mod backend_credentials;
mod backend_rate_limit;
#[cfg(test)]
mod cases_tests;
mod crd;
#[cfg(test)]
mod crd_tests;
#[allow(clippy::duplicated_attributes, reason = "columns have types and paths in common")]
mod gateway_backend;
#[allow(clippy::duplicated_attributes, reason = "columns have types and paths in common")]
mod gateway_policy;
#[allow(clippy::duplicated_attributes, reason = "columns have types and paths in common")]
mod gateway_route;
mod layers;
mod layers_aggregate;
mod layers_gateway_policy;
mod layers_passthrough;
mod layers_policy;
mod layers_rule;
#[cfg(test)]
mod layers_tests;
mod policy;
mod reference;
mod route_match;
mod shape;
mod status;

pub use aggregate::{AggregateResponseSpec, AggregateSpec, CallHeadersSpec, CallSpec, OnErrorSpec};
pub use backend_credentials::{BackendCredentials, BasicCredentials, Oauth2ClientCredentials};
pub use backend_rate_limit::BackendRateLimit;
pub use crd::{ON_CONNECTIONS, crds};
pub use gateway_backend::{
    ActiveCheck, BackendHost, BackendLimits, BackendService, BackendTls, BalancePolicy, GatewayBackend,
    GatewayBackendSpec, HealthCheck, LoadBalancer, PassiveCheck, Protocol, ProxyProtocol, SubjectAltName,
};
pub use gateway_policy::{GatewayPolicy, GatewayPolicySpec, PolicyTarget, Precedence, TargetKind};
pub use gateway_route::{
    AllowedFrom, AllowedNamespaces, AllowedRoutes, BackendRef, ClientValidationSpec, GatewayRoute,
    GatewayRouteSpec, RedirectSpec, RespondSpec, RouteRule, RouteTls, TlsMode,
};
pub use layers::{ParsedBackend, ParsedRoute, ParsedRule, RuleAction, parse_backend, parse_route};
pub use layers_gateway_policy::{ParsedPolicy, parse_policy};
pub use layers_policy::{PolicyLayer, PolicyMember, REPLACE_PREFIX_NEEDS};
pub use policy::{Policy, PolicyRef};
pub use reference::reference;
pub use route_match::{
    CookieMatch, HeaderMatch, PathMatch, PathMatchType, QueryParamMatch, RouteMatch, ValueMatchType,
};
pub use status::{
    GatewayBackendStatus, GatewayPolicyStatus, GatewayRouteStatus, InstallationStatus, RuleStatus,
};

/// The API group of all our kinds.
pub const GROUP: &str = "portcullis.dev";
pub const VERSION: &str = "v1alpha1";

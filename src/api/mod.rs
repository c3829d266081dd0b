//! What users write: the CRD types, nothing else. The schema is generated from them into `crds/`.

mod gateway_backend;
mod gateway_route;
mod layers;
mod policy;
mod status;

pub use gateway_backend::{BackendHost, BackendService, GatewayBackend, GatewayBackendSpec};
pub use gateway_route::{
    AllowedFrom, AllowedNamespaces, AllowedRoutes, BackendKind, BackendRef, CookieMatch, GatewayRoute,
    GatewayRouteSpec, HeaderMatch, LabelSelector, PathMatch, PathMatchType, QueryParamMatch, RedirectSpec,
    RespondSpec, RouteMatch, RouteRule, RouteTls, ValueMatchType,
};
pub use layers::{
    ParsedBackend, ParsedRoute, ParsedRule, PolicyMember, RuleAction, parse_backend, parse_route,
};
pub use policy::Policy;
pub use status::{GatewayBackendStatus, GatewayRouteStatus, InstallationStatus, RuleStatus};

/// The API group of all our kinds.
pub const GROUP: &str = "portcullis.dev";
pub const VERSION: &str = "v1alpha1";

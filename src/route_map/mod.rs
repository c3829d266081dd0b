//! The compiled form: what the proxy serves from. Plain data, immutable, comparable and printable; no locks, sockets,
//! counters or clocks. `compile` makes it, `proxy/live` links it to state.

mod action;
mod backend;
mod endpoints;
mod hosts;
mod matching;
mod tls;

pub use action::{Action, ForwardPlan, RedirectPlan, RespondPlan, Unserved, WeightedBackend, WeightedTarget};
pub use backend::{Address, BackendPlan, BackendTarget, HostHeader};
pub use endpoints::{Endpoint, EndpointSet};
pub use hosts::{Host, RouteMap, Rule};
pub use matching::{
    Comparison, HeaderPredicate, MatchPlan, MatchTable, NamedPredicate, PathPredicate, PatternText,
};
pub use tls::{CertificatePlan, HostTls, PrivateKey};

pub use crate::values::PathRewrite;

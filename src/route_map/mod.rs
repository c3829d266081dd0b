//! The compiled form: what the proxy serves from. Plain data, immutable, comparable and printable; no locks, sockets,
//! counters or clocks. `compile` makes it, `proxy/live` links it to state.

mod action;
mod aggregate;
mod backend;
mod credential;
mod dump;
mod endpoints;
mod hosts;
mod matching;
pub mod path;
mod path_index;
mod precedence;
mod predicates;
mod segment;
mod template;
mod tls;
mod trace;
mod traffic;

pub use action::{Action, ForwardPlan, RedirectPlan, RespondPlan, Unserved, WeightedBackend, WeightedTarget};
pub use aggregate::{AggregatePlan, AnswerPlan, BodyPlan, CallPlan, OnError};
pub use backend::{
    Address, Authorities, BackendPlan, BackendProtocol, BackendTarget, BackendTlsPlan, HostHeader,
    PinnedName, ProxyHeader,
};
pub use credential::{Credential, TokenPlan};
pub use endpoints::{Endpoint, EndpointSet};
pub use hosts::{Host, HostIndex, PolicyBy, PolicyMember, PolicyOrigin, RouteMap, Rule};
pub use matching::{Found, MatchEntry, MatchPlan, MatchTable, PathPredicate};
pub use precedence::{Specificity, Standing};
pub use predicates::{
    Comparison, HeaderPredicate, Miss, NamedPredicate, PatternText, Predicates, RequestView,
};
pub use template::{InvalidTemplate, Template};
pub use tls::{CertificatePlan, ClientValidation, ClientValidationPlan, HostTls, PrivateKey};
pub use trace::{Candidate, Trace, Verdict, trace};
pub use traffic::{Balance, CheckPlan, ConnectionBounds, EjectionPlan, Question, RatePlan, TrafficPlan};

pub use crate::filters::{PathChange, RetryPlan};

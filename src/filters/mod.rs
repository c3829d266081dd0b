//! The members of `policy`: one file each, one row each in [`REGISTRY`]. CRD, docs and the order of work follow from
//! the rows.

mod asked;
mod authentication;
mod authorization;
mod backend_path;
mod body_patch;
#[cfg(test)]
mod body_patch_tests;
#[cfg(test)]
mod body_transform_tests;
mod chain;
mod changed_body;
mod client_token;
#[cfg(test)]
mod client_token_tests;
mod contract;
#[cfg(test)]
mod contract_tests;
mod credential;
mod fetched;
mod header_edits;
mod held;
mod oauth_client;
mod offload;
mod path_change;
mod places;
mod query_edits;
mod registry;
mod store;

mod cache;
mod compression;
mod cors;
mod errors;
mod ext_auth;
mod failures;
mod fault_injection;
mod ip_access;
mod limits;
mod media;
mod mirror;
mod rate_limits;
mod request;
mod response;
mod retry;
mod security_headers;
mod session_affinity;
mod timeouts;
#[cfg(test)]
mod transform_tests;
mod validation;

pub use asked::{
    About, Answer, Answers, AskPlan, Asked, Inquiry, NoAnswer, NotAsked, Question, Reply, Wanted,
};
pub use authentication::{Plan as AuthenticationPlan, Token, unverified_issuer};
pub use authorization::{Action as AuthorizationAction, Authorization, Plan as AuthorizationPlan};
pub use backend_path::{PATH as BACKEND_PATH, PATH_OF_BACKEND, backend_path};
pub use cache::{ClientDirectives, Collapse, Key as CacheKey, Plan as CachePlan};
pub use chain::run;
pub use client_token::{ClientAuthentication, ClientToken, TokenHolder};
pub use contract::{
    AnyPlan, Applies, Combine, Decision, Derive, Filter, FilterKind, Keep, Member, Outcome, Ring, Row, Scope,
    Selection, Unmatched, filter, room, setting,
};
#[cfg(test)]
pub use contract_tests::NoScope;
pub use cors::Cors;
pub use credential::Credential;
pub use errors::Plan as ErrorsPlan;
pub use ext_auth::Plan as ExtAuthPlan;
pub use failures::ServeStale;
pub use fetched::{FetchPlan, Fetched, OwnHost, Place, Posted, Reader, Step, Transport, Url};
pub use header_edits::{Filled, HeaderEdits, HeaderSpec, HeadersSpec, is_forbidden};
pub use ip_access::Plan as IpAccessPlan;
pub use mirror::{Mirror, MirrorPlan};
pub use oauth_client::OauthClient;
pub use offload::{Offload, Taken, Work};
pub use path_change::PathChange;
pub use query_edits::QueryParamSpec;
pub use rate_limits::{Counted as RateLimitScope, Hashed};
pub use registry::REGISTRY;
pub use request::{Plan as RequestPlan, Request};
pub use response::{Plan as ResponsePlan, Response};
pub use retry::{Retry, RetryPlan, Spec as RetrySpec};
pub use session_affinity::{CookiePlan, Lifetime, SameSite, SessionPlan};
pub use store::{Charged, Charges, Count, SCRIPT, Store, Told, Verdict};
pub use timeouts::{Timeouts, TimeoutsPlan};

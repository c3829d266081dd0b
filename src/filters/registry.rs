//! The table of all members of `policy`. A new member is one new file and one row here.

use super::contract::{Row, filter, room, setting};
use super::{
    authentication, authorization, cache, compression, cors, errors, ext_auth, fault_injection, ip_access,
    limits, mirror, rate_limits, request, response, retry, security_headers, session_affinity, timeouts,
    validation,
};

/// Rows of one ring work in the order in which they stand here.
pub static REGISTRY: &[Row] = &[
    filter::<authentication::Authentication>(),
    filter::<authorization::Authorization>(),
    room::<cache::Cache>(),
    filter::<compression::Compression>(),
    filter::<cors::Cors>(),
    filter::<ext_auth::ExtAuth>(),
    filter::<errors::Errors>(),
    filter::<fault_injection::FaultInjection>(),
    filter::<ip_access::IpAccess>(),
    filter::<limits::Limits>(),
    setting::<mirror::Mirror>(),
    filter::<rate_limits::RateLimits>(),
    // Keeps what was asked before it is changed.
    filter::<response::Response>(),
    filter::<request::Request>(),
    setting::<retry::Retry>(),
    filter::<security_headers::SecurityHeaders>(),
    setting::<session_affinity::SessionAffinity>(),
    setting::<timeouts::Timeouts>(),
    filter::<validation::Validation>(),
];

//! Whether a request may come over its connection: the host belongs to the certificate that was shown, the TLS version
//! is enough, and the client showed what the host asks for.

use std::sync::Arc;

use http::HeaderValue;

use super::connection::Connection;
use super::live::{Clients, Live, LiveHost};
use crate::message::{ClientCertificate, ErrorKind, ProxyError};
use crate::route_map::PathPredicate;

const CHALLENGES: &str = "/.well-known/acme-challenge";

/// The host's entry; none is 404 (before the first map 503), and 421 when the client meant another certificate's name
/// (RFC 9110 section 15.5.20) or one of whose clients something else is asked.
pub fn find_host<'l>(
    connection: &Connection,
    live: &'l Live,
    name: &str,
) -> Result<&'l Arc<LiveHost>, ProxyError> {
    let found = live.host(name);
    if found.is_none() && !live.installed {
        return Err(ErrorKind::Starting.into());
    }
    if let Some(session) = &connection.session {
        if session.server_name.as_deref() != Some(name) {
            let meant = live.host(session.server_name.as_deref().unwrap_or_default());
            let same = match (meant, found) {
                (Some(meant), Some(found)) => {
                    Arc::ptr_eq(meant, found) || (meant.shares_certificate(found) && meant.asks_as(found))
                }
                _ => false,
            };
            if !same {
                return Err(ErrorKind::MisdirectedRequest.into());
            }
        }
        if found.is_some_and(|host| host.min_version() > session.version) {
            return Err(elsewhere(connection, name));
        }
    }
    found.ok_or_else(|| ErrorKind::NoRouteMatch.into())
}

/// A client that the host asks for no certificate, or that showed a good one.
#[derive(Default)]
pub struct Admitted {
    pub certificate: Option<Arc<ClientCertificate>>,
    /// For `X-Forwarded-Client-Cert`.
    pub told: Option<HeaderValue>,
}

/// What the client showed, as far as the host asks for it now. `is_challenge`: of a certificate's issuer, who has none.
pub fn admit(
    connection: &Connection,
    host: &LiveHost,
    name: &str,
    is_challenge: bool,
) -> Result<Admitted, ProxyError> {
    let validation = match &host.clients {
        Clients::Unasked => return Ok(Admitted::default()),
        Clients::Refused => return Err(ErrorKind::PolicyInvalid.into()),
        Clients::By(validation) => validation,
    };
    let Some(session) = &connection.session else {
        // Plain, behind a proxy that says that its client used TLS.
        return match validation.is_required() && !is_challenge {
            true => Err(ErrorKind::MisdirectedRequest.into()),
            false => Ok(Admitted::default()),
        };
    };
    match &session.shown {
        _ if !session.asked => Err(elsewhere(connection, name)),
        None if validation.is_required() => Err(elsewhere(connection, name)),
        None => Ok(Admitted::default()),
        Some(shown) => match shown.stands(validation) {
            Ok(told) => Ok(Admitted { certificate: Some(shown.certificate.clone()), told }),
            Err(_) => Err(elsewhere(connection, name)),
        },
    }
}

/// The name's connections go to its backends as they are; this one was not for it, or came before it was so.
pub fn not_over_http(connection: &Connection) -> ProxyError {
    connection.retire();
    ErrorKind::MisdirectedRequest.into()
}

/// More is asked for than this connection has; another one has it, or fails.
fn elsewhere(connection: &Connection, name: &str) -> ProxyError {
    let meant = connection.session.as_ref().and_then(|session| session.server_name.as_deref());
    if meant == Some(name) || meant.is_none() {
        connection.retire();
    }
    ErrorKind::MisdirectedRequest.into()
}

/// Whether a request that the rule of `entry` takes is one from a certificate's issuer (RFC 8555 section 8.3), over plain HTTP. Where
/// clients must show certificates, the rule has to be for nothing else.
pub fn is_challenge(host: &LiveHost, path: &str, entry: usize) -> bool {
    let is_below = |path: &str| path.strip_prefix(CHALLENGES).is_some_and(|rest| rest.starts_with('/'));
    is_below(path)
        && (matches!(host.clients, Clients::Unasked)
            || is_for_challenges(host.host.table.entries()[entry].plan.path()))
}

fn is_for_challenges(rule: &PathPredicate) -> bool {
    match rule {
        PathPredicate::Exact(path) | PathPredicate::Prefix(path) => path.as_str().starts_with(CHALLENGES),
        PathPredicate::Template(_) | PathPredicate::Regex(_) => false,
    }
}

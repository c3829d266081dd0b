//! Who asks, and what authorization says to it: which rule decides, and why the others do not.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{Lines, Question};
use crate::filters::AuthorizationPlan;
use crate::message::{
    Client, ErrorKind, Exchange, Identity, IdentityKind, KnownIdentity, LocalFuture, Outbound, Protocol,
    ProxyError, Request, RequestId, Response,
};
use crate::route_map::Found;
use crate::values::BackendId;

/// The client of the request, as authentication would find it; nobody by default.
#[derive(Clone, Debug, Default)]
pub struct Somebody(Option<Arc<KnownIdentity>>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Told {
    id: String,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    entry: String,
    #[serde(default)]
    scopes: Vec<Box<str>>,
    #[serde(default)]
    claims: Map<String, Value>,
}

impl FromStr for Somebody {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let told: Told = serde_json::from_str(text).context("not a client like {\"id\": \"alice\"}")?;
        let kind = told.kind.as_deref().unwrap_or(IdentityKind::Jwt.as_str());
        let known = IdentityKind::ALL.iter().find(|known| known.as_str() == kind);
        let kind = *known.filter(|kind| **kind != IdentityKind::Anonymous).with_context(|| {
            let known: Vec<_> = IdentityKind::ALL[1..].iter().map(|kind| kind.as_str()).collect();
            format!("there is no kind {kind:?}; there are {}", known.join(", "))
        })?;
        Ok(Self(Some(Arc::new(KnownIdentity {
            kind,
            entry: told.entry.into(),
            issuer: told.issuer.into(),
            id: told.id.into(),
            scopes: told.scopes.into(),
            claims: Arc::new(told.claims),
        }))))
    }
}

impl Lines {
    /// Whether the request comes past the rule's authorization.
    pub(super) fn authorization(
        &mut self,
        question: &Question,
        somebody: &Somebody,
        path: &str,
        found: &Found<'_>,
    ) -> bool {
        let plans: Vec<_> =
            found.rule.filters.iter().filter_map(|(_, plan)| plan.get::<AuthorizationPlan>()).collect();
        if plans.is_empty() {
            return true;
        }
        match &somebody.0 {
            Some(known) => self.add("as", format!("{} ({})", known.id, known.kind.as_str())),
            None => self.add("as", "nobody (Anonymous); --as '{\"id\": …}' asks for somebody"),
        }
        let Some(exchange) = exchange(question, somebody, path, found) else {
            self.add("answer", "400 BadRequest: the path and query are no target");
            return false;
        };
        for plan in plans {
            let verdict = plan.decide(&exchange);
            for (rule, outcome) in plan.outcomes(&exchange) {
                let decides = verdict.rule.is_some_and(|deciding| deciding.name == rule.name);
                let mark = if decides { "yes" } else { "no " };
                let outcome = match (outcome.is_match(), decides) {
                    (true, false) => "matches too, another decides".to_owned(),
                    _ => outcome.to_string(),
                };
                self.add("authorize", format!("{mark} {:?} {} ({outcome})", rule.action, rule.name));
            }
            if !verdict.allows {
                let why = match verdict.rule {
                    Some(rule) => format!("rule {} denies it", rule.name),
                    None => "no rule allows it".to_owned(),
                };
                self.add("answer", format!("403 {}: {why}", ErrorKind::Forbidden.as_str()));
                return false;
            }
        }
        true
    }
}

/// The request as filters would see it. `None`: its target is none.
fn exchange(question: &Question, somebody: &Somebody, path: &str, found: &Found<'_>) -> Option<Exchange> {
    let query = question.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
    let mut request = Request::default();
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = format!("{path}{query}").parse().ok()?;
    *request.headers_mut() = question.headers.clone();
    let ip = Ipv4Addr::LOCALHOST.into();
    Some(Exchange {
        identity: somebody.0.clone().map_or(Identity::ANONYMOUS, Identity::new),
        captures: found.captures.clone(),
        matched_prefix: found.matched_prefix,
        ..Exchange::new(
            request,
            Client {
                peer: SocketAddr::new(ip, 0),
                ip,
                scheme: question.scheme,
                protocol: Protocol::Http11,
                server_name: None,
                certificate: None,
                vouched: None,
            },
            question.host.as_str().into(),
            found.rule.labels.clone(),
            RequestId([0; 16]),
            Instant::now(),
            Rc::new(Nowhere),
        )
    })
}

/// Nothing is sent to explain a request.
struct Nowhere;

impl Outbound for Nowhere {
    fn call<'a>(&'a self, _: &'a BackendId, _: Request) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async { Err(ErrorKind::Internal.into()) })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        Err(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_is_told_in_json() {
        let alice: Somebody =
            r#"{"id": "alice", "scopes": ["a"], "claims": {"x": 1}}"#.parse().expect("somebody");
        let known = alice.0.expect("known");
        assert_eq!((known.kind, &*known.id, known.scopes.len()), (IdentityKind::Jwt, "alice", 1));
        for (text, message) in [
            ("alice", "not a client like {\"id\": \"alice\"}"),
            ("{}", "not a client like {\"id\": \"alice\"}"),
            (r#"{"id": "a", "nosuch": 1}"#, "not a client like {\"id\": \"alice\"}"),
            (
                r#"{"id": "a", "kind": "jwt"}"#,
                "there is no kind \"jwt\"; there are ApiKey, Jwt, Token, Basic, Certificate, External",
            ),
        ] {
            assert_eq!(text.parse::<Somebody>().expect_err(text).to_string(), message);
        }
    }
}

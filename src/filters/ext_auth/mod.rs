//! `extAuth`: another server is asked over HTTP whether a request may pass, and may say who it is from.
//!
//! Invariants: only a whole answer with a status of 2xx lets a request pass; what the authorizer is shown of a request
//! is, byte for byte, what stands in it for the backend; what it says of the client reaches the backend in fields that
//! no client can set; redirects are never followed.

mod ask;
#[cfg(test)]
mod tests;
mod verdict;

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Transport;
use super::contract::{Combine, Filter, FilterKind, Keep, Member, Ring, Scope};
use super::header_edits::{is_forbidden, may_be_reserved};
use super::held::Held;
use crate::values::{
    AskedBackendRef, BackendId, ByteSize, Duration, FieldPath, Origin, OriginScheme, Problem, Reason,
    plain_name,
};

pub struct ExtAuth;

/// Asks another server whether a request may pass.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.url) != has(self.backendRef)", ONE_PLACE),
    validation = ("!has(self.path) || has(self.backendRef)", PATH_OF_URL)
)]
pub struct Spec {
    /// Where it is asked, by https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
    /// A Service or GatewayBackend that is asked, in place of url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<AskedBackendRef>,
    /// Path at the backend; / by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    pub path: Option<String>,
    /// ForwardAuth asks for the path alone, ExtAuthz for the request's behind it.
    #[serde(default)]
    pub style: Style,
    /// Fields of the request that it sees, or '*'; Authorization and Cookie by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub request_headers: Option<Vec<String>>,
    /// Shows it the request's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodySpec>,
    /// How long its answer may take; 2s by default, at most 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What becomes of a request when it gives no answer that counts.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Fields of its answer that the backend gets; clients cannot set them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub backend_headers: Vec<String>,
    /// Fields of a refusal that the client gets, in place of the usual four.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub client_headers: Option<Vec<String>>,
    /// Where its answer says who the client is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<IdentitySpec>,
}

/// A request's body, as it is shown.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BodySpec {
    /// A larger body is refused; 64Ki by default, at most 1Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
}

/// Fields of the authorizer's answer that say who the client is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentitySpec {
    /// The field that holds the id.
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    pub id_header: String,
    /// The field that holds scopes, with spaces or commas between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    pub scopes_header: Option<String>,
}

/// How it is asked, by the names of those who ask so.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    #[default]
    ForwardAuth,
    ExtAuthz,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    #[default]
    Deny,
    Allow,
}

const ONE_PLACE: &str = "give either url or backendRef";
const PATH_OF_URL: &str = "path goes with backendRef; a url has its own";
/// A token (RFC 9110 section 5.6.2).
const TOKEN: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";
/// Visible ASCII without a fragment.
const PATH: &str = r#"^/[!"$-~]*$"#;

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
const MAX_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
const BODY: usize = 64 << 10;
const MAX_BODY: u64 = 1 << 20;
const SHOWN: [&str; 2] = ["authorization", "cookie"];
const TOLD_TO_CLIENTS: [&str; 4] = ["location", "retry-after", "set-cookie", "www-authenticate"];

/// The proven form.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    backend: BackendId,
    /// `None`: the client's.
    host: Option<HeaderValue>,
    target: Box<str>,
    style: Style,
    shown: Shown,
    /// The largest body that it is shown; `None`: it is shown none.
    body: Option<usize>,
    timeout: std::time::Duration,
    on_failure: OnFailure,
    backend_headers: Box<[HeaderName]>,
    client_headers: Box<[HeaderName]>,
    id_header: Option<HeaderName>,
    scopes_header: Option<HeaderName>,
    /// Who vouches for its identities.
    issuer: Arc<str>,
}

#[derive(Clone, Debug, PartialEq)]
enum Shown {
    All,
    These(Box<[HeaderName]>),
}

impl Member for ExtAuth {
    const NAME: &'static str = "extAuth";
    const COMBINE: Combine = Combine::Both;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Problems(Vec::new());
        let place = place(&spec, scope, &mut problems);
        let timeout = spec.timeout.map_or(TIMEOUT, Duration::std);
        if timeout.is_zero() || timeout > MAX_TIMEOUT {
            problems.refuse("timeout", format!("found {timeout:?}, expected more than 0s and at most 30s"));
        }
        let body = spec.body.map(|body| match body.max_size.map(ByteSize::bytes) {
            None => BODY,
            Some(size @ 1..=MAX_BODY) => usize::try_from(size).unwrap_or(BODY),
            Some(size) => {
                let message = format!("found {size} bytes, expected 1 to 1Mi: it is held in memory");
                problems.refuse("body.maxSize", message);
                BODY
            }
        });
        let shown = match spec.request_headers.as_deref() {
            None => Shown::These(SHOWN.map(HeaderName::from_static).into()),
            Some([all]) if all == "*" => Shown::All,
            Some(names) => Shown::These(problems.names("requestHeaders", names, |name| {
                ask::is_ours(name).then_some("is always told, as the gateway sees it; leave it out")
            })),
        };
        let backend_headers = problems.names("backendHeaders", &spec.backend_headers, not_to_backends);
        let client_headers = match &spec.client_headers {
            None => TOLD_TO_CLIENTS.map(HeaderName::from_static).into(),
            Some(names) => problems.names("clientHeaders", names, |name| {
                name.as_str().starts_with("content-").then_some("goes along with the body; leave it out")
            }),
        };
        let mut field = |at: &str, name: &Option<String>| {
            let name = name.as_ref()?;
            problems.names(at, std::slice::from_ref(name), |_| None).first().cloned()
        };
        let identity = spec.identity.unwrap_or_default();
        let id = (!identity.id_header.is_empty()).then_some(identity.id_header);
        let id_header = field("identity.idHeader", &id);
        let scopes_header = field("identity.scopesHeader", &identity.scopes_header);
        match place {
            Some((backend, host, target)) if problems.0.is_empty() => Ok(Plan {
                issuer: backend.to_string().into(),
                backend,
                host,
                target: target.into(),
                style: spec.style,
                shown,
                body,
                timeout,
                on_failure: spec.on_failure,
                backend_headers,
                client_headers,
                id_header,
                scopes_header,
            }),
            _ => Err(problems.0),
        }
    }

    fn own_headers(written: &Value) -> Vec<HeaderName> {
        let names = written.get("backendHeaders").and_then(Value::as_array).into_iter().flatten();
        let names = names.filter_map(|name| HeaderName::try_from(name.as_str()?).ok());
        names.filter(|name| !is_credential(name) && not_to_backends(name).is_none()).collect()
    }
}

impl FilterKind for ExtAuth {
    const RING: Ring = Ring::ExternalAuthorization;

    fn link(plan: &Plan, keep: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(ask::Consulting { plan: plan.clone(), held: Held::kept(keep) })
    }
}

type Place = (BackendId, Option<HeaderValue>, String);

/// Where it is asked. `None`: what is wrong with it is told.
fn place(spec: &Spec, scope: &mut dyn Scope, problems: &mut Problems) -> Option<Place> {
    match (&spec.url, &spec.backend_ref) {
        (Some(url), None) => {
            if spec.path.is_some() {
                problems.refuse("path", PATH_OF_URL);
            }
            let url = match scope.url(url) {
                Ok(url) => url,
                Err(message) => {
                    problems.refuse("url", message);
                    return None;
                }
            };
            let scheme = match url.transport {
                Transport::Plain => OriginScheme::Http,
                Transport::Tls => OriginScheme::Https,
            };
            let target = target("url", &url.target, spec.style, problems)?;
            let host = HeaderValue::try_from(url.authority()).ok()?;
            let backend = scope.origin(&Origin { scheme, host: url.host, port: url.port });
            Some((backend, Some(host), target))
        }
        (None, Some(backend)) => {
            let target = target("path", spec.path.as_deref().unwrap_or("/"), spec.style, problems);
            if let Some((field, message)) = backend.mistake() {
                problems.refuse(&format!("backendRef.{field}"), message);
                return None;
            }
            let backend = scope.backend(FieldPath::new("backendRef"), backend);
            Some((backend?, None, target?))
        }
        _ => {
            problems.refuse("url", ONE_PLACE);
            None
        }
    }
}

/// The target of its requests, or what stands before the client's.
fn target(at: &str, text: &str, style: Style, problems: &mut Problems) -> Option<String> {
    if !text.starts_with('/') || text.contains('#') || PathAndQuery::try_from(text).is_err() {
        problems.refuse(at, format!("found {text:?}, expected a path like /verify"));
        return None;
    }
    if style == Style::ForwardAuth {
        return Some(text.to_owned());
    }
    if text.contains('?') {
        problems.refuse(at, "the client's path and query come behind it; leave the query out");
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}

/// What clients show of their own right: it is taken where the authorizer's word takes its place, not everywhere under the
/// hostname.
fn is_credential(name: &HeaderName) -> bool {
    matches!(name.as_str(), "authorization" | "cookie" | "x-api-key")
}

/// Why an authorizer may not set the field in a request, in any spelling.
fn not_to_backends(name: &HeaderName) -> Option<&'static str> {
    match HeaderName::try_from(plain_name(name.as_str())) {
        Ok(plain) if is_forbidden(&plain) => Some("belongs to the connection; leave it out"),
        Ok(plain) if ask::is_gateways(&plain) => Some("is the gateway's own word to backends; leave it out"),
        Ok(_) if is_credential(name) || may_be_reserved(name) => None,
        Ok(_) => Some(
            "is what clients say of their requests, under every route of the hostname; take another name",
        ),
        Err(_) => Some("is no name of a field"),
    }
}

struct Problems(Vec<Problem>);

impl Problems {
    fn refuse(&mut self, at: &str, message: impl Into<String>) {
        self.0.push(Problem::error(FieldPath::new(at), Reason::PolicyInvalid, message));
    }

    fn names(
        &mut self,
        at: &str,
        names: &[String],
        refuse: impl Fn(&HeaderName) -> Option<&'static str>,
    ) -> Box<[HeaderName]> {
        let mut proven: Vec<HeaderName> = Vec::new();
        for text in names {
            let why = match HeaderName::try_from(text.as_str()) {
                Err(_) => "is no name of a field",
                Ok(_) if text == "*" => "stands alone where all fields are meant",
                Ok(name) if is_forbidden(&name) => "belongs to the connection; leave it out",
                Ok(name) if proven.contains(&name) => "is named twice; leave one out",
                Ok(name) => match refuse(&name) {
                    Some(why) => why,
                    None => {
                        proven.push(name);
                        continue;
                    }
                },
            };
            self.refuse(at, format!("{text} {why}"));
        }
        proven.into()
    }
}

//! `introspection`: opaque tokens, judged by the server that issued them (RFC 7662).
//!
//! Invariants: a token counts while the server calls it active, for `cacheDuration` at most and never past its `exp`;
//! what the server cannot be asked about does not count; its answer counts only as far as every claim is of its type.

mod answer;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration as Time, SystemTime};

use http::HeaderMap;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::answer::{Introspected, Rules};
use super::bearer::{self, Bearer};
use super::claim_headers::{ClaimHeaders, ClaimToHeader};
use super::entry::{Checked, Entry, EntryKind, Fingerprint, Gate, Scheme};
use super::jwt::unverified_issuer;
use crate::filters::backend_path::{PATH, PATH_OF_BACKEND, backend_path};
use crate::filters::credential::AUTHORIZATION_FIELD;
use crate::filters::oauth_client::form;
use crate::filters::places;
use crate::filters::{AskPlan, Asked, Keep, NoAnswer, NotAsked, OauthClient, Place, Scope};
use crate::message::{ErrorKind, Exchange, Identity, KnownIdentity, Request};
use crate::telemetry::HitCount;
use crate::values::{AskedBackendRef, Duration, FieldPath, Problem, Reason, Redacted, SecretRef};

pub struct Introspection;

/// Opaque tokens that a server is asked about (RFC 7662).
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.endpoint) != has(self.backendRef)", ONE_PLACE),
    validation = ("has(self.path) == has(self.backendRef)", PATH_OF_BACKEND)
)]
pub struct Spec {
    /// Where the server is asked, by https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub endpoint: Option<String>,
    /// A Service or GatewayBackend that is asked at path, in place of endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<AskedBackendRef>,
    /// Path at the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    pub path: Option<String>,
    /// A Secret with clientId and clientSecret: as whom the gateway asks.
    pub client_secret_ref: SecretRef,
    /// For how long an answer counts, at most 1h; 60s by default, 0s asks each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_duration: Option<Duration>,
    /// How long an answer is waited for, at most 30s; 2s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What becomes of a request when the server cannot be asked.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// The issuer that the answer must name, in iss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub issuer: Option<String>,
    /// Tokens are for one of these: aud of the answer; without it for anybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub audiences: Vec<String>,
    /// The token goes on to the backend.
    #[serde(default)]
    pub forward: bool,
    /// Fields that tell the backend members of the answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub claims_to_headers: Vec<ClaimToHeader>,
}

/// 503, or what was answered last, if it was active within 10m and has not expired.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    #[default]
    Deny,
    LastAnswer,
}

const ONE_PLACE: &str = "give either endpoint or backendRef";
const CACHED: Time = Time::from_secs(60);
const LONGEST_CACHED: Time = Time::from_secs(3600);
const PATIENCE: Time = Time::from_secs(2);
const LONGEST_PATIENCE: Time = Time::from_secs(30);
/// Longer is no token that somebody made for a header field.
const MAX_TOKEN: usize = 8 << 10;

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    ask: AskPlan,
    rules: Rules,
    /// Tokens of these are for `jwt` entries.
    spared: Box<[Box<str>]>,
    forward: bool,
    headers: ClaimHeaders,
}

impl Plan {
    /// Leaves the tokens of these issuers to others.
    pub fn spare<'i>(&mut self, issuers: impl Iterator<Item = &'i str>) {
        self.spared = issuers.map(Into::into).collect();
    }
}

impl EntryKind for Introspection {
    type Spec = Spec;
    type Plan = Plan;

    fn compile(
        name: &Arc<str>,
        spec: Spec,
        at: &FieldPath,
        scope: &mut dyn Scope,
    ) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let headers = ClaimHeaders::new(&spec.claims_to_headers, &mut problems);
        let mut refuse = |at: &str, message: String| {
            problems.push(Problem::error(FieldPath::new(at), Reason::PolicyInvalid, message));
        };
        let cached = spec.cache_duration.map_or(CACHED, Duration::std);
        if cached > LONGEST_CACHED {
            refuse(
                "cacheDuration",
                format!("found {cached:?}, expected at most 1h; a token that is revoked counts for so long"),
            );
        }
        let patience = spec.timeout.map_or(PATIENCE, Duration::std);
        if patience.is_zero() || patience > LONGEST_PATIENCE {
            refuse("timeout", format!("found {patience:?}, expected more than 0s and at most 30s"));
        }
        let place = place(&spec, at, scope).map_err(|told| {
            if let Some((field, message)) = told {
                refuse(field, message);
            }
        });
        let secret = scope.secret(at.field("clientSecretRef"), &spec.client_secret_ref);
        let client = secret.and_then(|secret| {
            OauthClient::of(&secret).map_err(|error| refuse("clientSecretRef", error)).ok()
        });
        let (Ok(place), Some(client), true) = (place, client, problems.is_empty()) else {
            return Err(problems);
        };
        let rules = Rules {
            entry: Arc::clone(name),
            endpoint: place.to_string().into(),
            client: Redacted::new(client.digest()),
            issuer: spec.issuer.as_deref().map(Into::into),
            audiences: spec.audiences.into_iter().map(Into::into).collect(),
            cached,
            on_failure: spec.on_failure,
        };
        let ask = AskPlan { place, authorization: client.basic(), patience };
        Ok(Plan { ask, rules, spared: Box::default(), forward: spec.forward, headers })
    }

    fn link(plan: &Plan, keep: &dyn Keep) -> Box<dyn Entry> {
        let Plan { ask, rules, .. } = plan;
        // Answers outlive other changes of the route: they are for these rules and this client.
        let name = format!("introspection {} {:?}", rules.name(), ask.patience);
        let mut inquiry = None;
        let made = keep.state(&name, &mut || {
            let (asking, new) = Asking::new(ask.clone(), rules.clone(), SystemTime::now);
            inquiry = Some(new);
            Arc::new(asking)
        });
        if let Some(inquiry) = inquiry {
            keep.asks(inquiry);
        }
        let asking = made.downcast().expect("only questions are kept under this name");
        let (forward, headers) = (plan.forward, plan.headers.clone());
        Box::new(Linked { asking, spared: plan.spared.clone(), forward, headers })
    }
}

/// `Err(None)`: the problem is told.
fn place(
    spec: &Spec,
    at: &FieldPath,
    scope: &mut dyn Scope,
) -> Result<Place, Option<(&'static str, String)>> {
    match (&spec.endpoint, &spec.backend_ref) {
        (Some(_), None) if spec.path.is_some() => Err(Some(("path", PATH_OF_BACKEND.into()))),
        (Some(endpoint), None) => {
            let url = scope.url(endpoint);
            url.map(Place::Url).map_err(|message| Some(("endpoint", message)))
        }
        (None, Some(backend)) => {
            let path =
                backend_path(spec.path.as_deref()).map_err(|message| Some(("path", message.into())))?;
            let backend = scope.trusted_backend(at.field("backendRef"), backend).ok_or(None)?;
            Ok(Place::Backend(backend, path.into()))
        }
        _ => Err(Some(("", ONE_PLACE.into()))),
    }
}

/// The server and what it said, for all who have the same rules.
struct Asking {
    introspected: Arc<Introspected>,
    asked: Asked,
    hits: Arc<HitCount>,
    patience: Time,
}

impl Asking {
    fn new(plan: AskPlan, rules: Rules, clock: fn() -> SystemTime) -> (Self, crate::filters::Inquiry) {
        let (introspected, hits) = (Arc::new(Introspected::new(rules, clock)), Arc::<HitCount>::default());
        let patience = plan.patience;
        let answers = Arc::clone(&introspected);
        let (asked, inquiry) = Asked::new(plan, answers, Arc::clone(&hits));
        (Self { introspected, asked, hits, patience }, inquiry)
    }

    fn ask(&self, token: &str, print: Fingerprint, gate: &Gate<'_>) -> Checked {
        let Some(admission) = gate.charge(&print) else { return Checked::Stopped };
        let question = format!("token={}&token_type_hint=access_token", form(token.as_bytes()));
        let answer = match self.asked.ask(print, Redacted::new(question)) {
            Ok(answer) => answer,
            Err(why) => {
                admission.refund();
                return Checked::Unavailable(match why {
                    NotAsked::TooMany => ErrorKind::Overloaded,
                    NotAsked::Over => ErrorKind::IntrospectionFailed,
                });
            }
        };
        let introspected = Arc::clone(&self.introspected);
        // Who asks the server has the same deadline: this one is for when it does not come to work.
        let until = Instant::now() + self.patience + Time::from_millis(100);
        Checked::Later(
            admission,
            Box::pin(async move {
                let answer = match tokio::time::timeout_at(until, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => return Checked::Unavailable(ErrorKind::IntrospectionFailed),
                    Err(_) => Err(NoAnswer::TooMany),
                };
                let verdict = answer.map(|verdict| verdict.downcast::<Option<Identity>>());
                match verdict.as_ref().map(|verdict| verdict.as_ref().map(AsRef::as_ref)) {
                    Ok(Ok(Some(identity))) => Checked::Known(identity.clone(), print),
                    Ok(Ok(None)) => Checked::Refused,
                    // The server is well, as far as is known: whoever asks much must not bring back what it said before.
                    Err(NoAnswer::TooMany) => Checked::Unavailable(ErrorKind::Overloaded),
                    Err(NoAnswer::Failed) | Ok(Err(_)) => match introspected.last(&print) {
                        Some(identity) => Checked::Known(identity, print),
                        None => Checked::Unavailable(ErrorKind::IntrospectionFailed),
                    },
                }
            }),
        )
    }
}

struct Linked {
    asking: Arc<Asking>,
    spared: Box<[Box<str>]>,
    forward: bool,
    headers: ClaimHeaders,
}

impl Entry for Linked {
    fn check(&self, exchange: &Exchange, gate: &Gate<'_>) -> Checked {
        let token = match bearer::find(exchange.request.headers()) {
            Bearer::Nothing => return Checked::Absent,
            Bearer::Malformed => return Checked::Refused,
            Bearer::Token(token) => token,
        };
        // Before anything that is known: another policy with the same server may have asked about this token.
        if !self.spared.is_empty()
            && unverified_issuer(token)
                .is_some_and(|issuer| self.spared.iter().any(|spared| **spared == *issuer))
        {
            return Checked::Absent;
        }
        let (asking, known) = (&self.asking, &self.asking.introspected);
        let (print, now) = (gate.token_print(token), known.millis_at(exchange.started));
        if let Some(identity) = known.active(&print, now) {
            asking.hits.add_one();
            return Checked::Known(identity, print);
        }
        if token.len() > MAX_TOKEN {
            return Checked::Refused;
        }
        if !gate.admits(&print) {
            return Checked::Stopped;
        }
        if known.is_inactive(&print, now) {
            asking.hits.add_one();
            return Checked::Refused;
        }
        asking.ask(token, print, gate)
    }

    fn forwards(&self) -> bool {
        self.forward
    }

    fn place(&self, _: &Request) -> Option<&places::Place> {
        Some(&AUTHORIZATION_FIELD)
    }

    fn strip(&self, request: &mut Request, kept: Option<&places::Place>) {
        bearer::strip(request.headers_mut(), kept);
    }

    fn tell(&self, identity: &KnownIdentity, headers: &mut HeaderMap) {
        self.headers.tell(identity, headers);
    }

    fn scheme(&self) -> Scheme {
        Scheme::Bearer
    }
}

//! `jwt`: tokens that an issuer signs, verified here with its public keys.
//!
//! Invariants: the signature's algorithm and key are what the issuer's key set and the entry say, never what the token
//! says; nothing of a token counts before its signature is good; a cached verdict is for exactly this token and these
//! keys.

mod compact;
mod issuer;
mod key_set;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

pub use self::compact::{Compact, unverified_issuer};
use self::key_set::{Algorithm, KeySet, Signed};
use self::rules::Rules;
use super::bearer::{self, Bearer};
use super::claim_headers::{ClaimHeaders, ClaimToHeader};
use super::claims;
use super::entry::{Checked, Entry, EntryKind, Fingerprint, Gate, Scheme};
use super::verdicts::{Verdict, Verdicts};
use crate::filters::backend_path::{PATH, PATH_OF_BACKEND, backend_path};
use crate::filters::credential::AUTHORIZATION_FIELD;
use crate::filters::places::Place;
use crate::filters::{FetchPlan, Fetched, Keep, Scope};
use crate::message::{ErrorKind, Exchange, Identity, JsonBounds, KnownIdentity, Request};
use crate::values::{AskedBackendRef, ConfigMapKeyRef, Duration, FieldPath, Problem, Reason, SecretKeyRef};

pub struct Jwt;

/// More than any token, key set or metadata needs.
const JSON: JsonBounds = JsonBounds { depth: 16, values: 1 << 16, name: 1 << 10 };

/// Tokens that an issuer signs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The claim iss of its tokens, sign for sign.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// Tokens are for one of these: the claim aud.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub audiences: Vec<String>,
    /// The issuer's public keys (RFC 7517); without it they are discovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<JwksSpec>,
    /// Algorithms that are taken; without it every one that the keys are for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub algorithms: Vec<Algorithm>,
    /// Kind of token in its header, as at+jwt; without it JWT, at+jwt or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub typ: Option<String>,
    /// Claims that must be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub required_claims: Vec<String>,
    /// By how much clocks may differ; 30s by default, at most 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew: Option<Duration>,
    /// The token goes on to the backend.
    #[serde(default)]
    pub forward: bool,
    /// Fields that tell the backend claims of the token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub claims_to_headers: Vec<ClaimToHeader>,
}

/// A JWK Set: exactly one of these.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("[has(self.uri), has(self.inline), has(self.secretRef), has(self.configMapRef), has(self.backendRef)].exists_one(x, x)", ONE_SOURCE),
    validation = ("has(self.path) == has(self.backendRef)", PATH_OF_BACKEND)
)]
pub struct JwksSpec {
    /// Where it is fetched from, by https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub uri: Option<String>,
    /// The set itself, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub inline: Option<String>,
    /// A key of a Secret that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
    /// A key of a ConfigMap that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapKeyRef>,
    /// A Service or GatewayBackend that it is fetched from, at path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<AskedBackendRef>,
    /// Path at the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = PATH))]
    pub path: Option<String>,
}

const ONE_SOURCE: &str = "give exactly one of uri, inline, secretRef, configMapRef and backendRef";
const SKEW: std::time::Duration = std::time::Duration::from_secs(30);
const MAX_SKEW: std::time::Duration = std::time::Duration::from_secs(300);

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    rules: Rules,
    keys: Keys,
    forward: bool,
    headers: ClaimHeaders,
}

/// Where the issuer's keys are.
#[derive(Clone, Debug, PartialEq)]
enum Keys {
    Here(Arc<KeySet>),
    Fetched(FetchPlan),
}

impl Plan {
    pub fn issuer(&self) -> &str {
        &self.rules.issuer
    }
}

impl EntryKind for Jwt {
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
        if spec.audiences.is_empty() {
            refuse("audiences", "a token for somebody else must not count here; name at least one".into());
        }
        let skew = spec.clock_skew.map_or(SKEW, Duration::std);
        if skew > MAX_SKEW {
            refuse("clockSkew", format!("found {skew:?}, expected at most 5m; set the clocks"));
        }
        let keys = match keys(&spec, &at.field("jwks"), scope) {
            Some(Ok(keys)) => Some(keys),
            Some(Err(message)) => {
                refuse(if spec.jwks.is_some() { "jwks" } else { "issuer" }, message);
                None
            }
            None => None,
        };
        let boxed = |texts: Vec<String>| texts.into_iter().map(Into::into).collect();
        let algorithms = if spec.algorithms.is_empty() {
            Algorithm::ALL.into()
        } else {
            spec.algorithms.into_boxed_slice()
        };
        let rules = Rules {
            entry: Arc::clone(name),
            issuer: spec.issuer.as_str().into(),
            audiences: boxed(spec.audiences),
            algorithms,
            kind: spec.typ.as_deref().map(compact::plain).map(Into::into),
            required: boxed(spec.required_claims),
            skew: i64::try_from(skew.as_secs()).unwrap_or(0),
        };
        match keys {
            Some(keys) if problems.is_empty() => Ok(Plan { rules, keys, forward: spec.forward, headers }),
            _ => Err(problems),
        }
    }

    fn link(plan: &Plan, keep: &dyn Keep) -> Box<dyn Entry> {
        // Verdicts outlive other changes of the route: they are for these rules and, each, for its keys.
        let made =
            keep.state(&format!("jwt {:?}", plan.rules), &mut || Arc::new(Verdicts::<Identity>::default()));
        let cache = made.downcast().expect("only tokens are kept under this name");
        let keys = match &plan.keys {
            Keys::Here(keys) => LiveKeys::Here(Arc::clone(keys)),
            Keys::Fetched(fetch) => LiveKeys::Fetched(keep.fetched(fetch)),
        };
        let judge = Judge { rules: plan.rules.clone(), keys, cache, clock: SystemTime::now };
        Box::new(Linked { judge: Arc::new(judge), forward: plan.forward, headers: plan.headers.clone() })
    }
}

/// From a URL, if that may lead there.
fn fetched(plan: Result<FetchPlan, String>, scope: &dyn Scope) -> Result<Keys, String> {
    let plan = plan?;
    scope.permits(&plan.place.host())?;
    Ok(Keys::Fetched(plan))
}

/// `None`: a problem is told.
fn keys(spec: &Spec, at: &FieldPath, scope: &mut dyn Scope) -> Option<Result<Keys, String>> {
    let own_host = scope.own_host();
    let read = |text: &[u8]| KeySet::read(text).map(|keys| Keys::Here(Arc::new(keys)));
    let Some(jwks) = &spec.jwks else {
        return Some(fetched(issuer::discovery(&spec.issuer, own_host), scope));
    };
    let elsewhere = (&jwks.uri, &jwks.inline, &jwks.secret_ref, &jwks.config_map_ref);
    if let Some(backend) = &jwks.backend_ref {
        let (None, None, None, None) = elsewhere else { return Some(Err(ONE_SOURCE.into())) };
        let path = match backend_path(jwks.path.as_deref()) {
            Ok(path) => path,
            Err(message) => return Some(Err(message.into())),
        };
        let backend = scope.trusted_backend(at.field("backendRef"), backend)?;
        return Some(Ok(Keys::Fetched(issuer::key_set_at(backend, path))));
    }
    if jwks.path.is_some() {
        return Some(Err(PATH_OF_BACKEND.into()));
    }
    match elsewhere {
        (Some(uri), None, None, None) => Some(fetched(issuer::key_set(uri, own_host), scope)),
        (None, Some(text), None, None) => Some(read(text.as_bytes())),
        (None, None, Some(secret), None) => {
            let text = scope.secret_key(at.field("secretRef"), secret)?;
            Some(read(text.expose()))
        }
        (None, None, None, Some(map)) => {
            let text = scope.config_map(at.field("configMapRef"), map)?;
            Some(read(text.as_bytes()))
        }
        _ => Some(Err(ONE_SOURCE.into())),
    }
}

struct Linked {
    judge: Arc<Judge>,
    forward: bool,
    headers: ClaimHeaders,
}

/// Judges tokens, now or when new keys have come.
struct Judge {
    rules: Rules,
    keys: LiveKeys,
    cache: Arc<Verdicts<Identity>>,
    clock: fn() -> SystemTime,
}

enum LiveKeys {
    Here(Arc<KeySet>),
    Fetched(Arc<Fetched>),
}

impl LiveKeys {
    /// `None`: they were never fetched yet.
    fn now(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::Here(keys) => Some(Arc::clone(keys)),
            Self::Fetched(fetched) => fetched.value(),
        }
    }
}

impl Judge {
    fn now(&self) -> i64 {
        let now = (self.clock)().duration_since(UNIX_EPOCH);
        now.map_or(i64::MAX, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
    }

    /// `Err`: no key of the set is for it.
    fn judge(&self, token: &str, print: Fingerprint, keys: &KeySet, now: i64) -> Result<Checked, UnknownKey> {
        let Some(token) = Compact::read(token).ok().filter(|token| self.rules.takes(token)) else {
            return Ok(Checked::Refused);
        };
        match keys.verify(token.algorithm, token.key_id.as_deref(), token.signed, &token.signature) {
            Signed::Yes => {}
            Signed::No => return Ok(Checked::Refused),
            Signed::UnknownKey => return Err(UnknownKey),
        }
        let Some(counted) = self.rules.count(token.claims, &print, now) else { return Ok(Checked::Refused) };
        let is_kept = claims::may_be_kept(&counted.identity.claims);
        let identity = Identity::new(Arc::new(counted.identity));
        if is_kept {
            let (by, until, found) = (keys.digest, counted.until, identity.clone());
            self.cache.insert(Verdict { credential: print, by, until, found });
        }
        Ok(Checked::Known(identity, print))
    }

    /// The issuer may have a new key: its set is asked for once, by all who wait for it.
    fn judge_anew(self: &Arc<Self>, token: &str, print: Fingerprint, gate: &Gate<'_>) -> Checked {
        let LiveKeys::Fetched(fetched) = &self.keys else { return Checked::Refused };
        let Some(tried) = fetched.ask() else { return Checked::Refused };
        let Some(admission) = gate.charge(&print) else { return Checked::Stopped };
        let (judge, token) = (Arc::clone(self), token.to_owned());
        Checked::Later(
            admission,
            Box::pin(async move {
                tried.await;
                let Some(keys) = judge.keys.now() else {
                    return Checked::Unavailable(ErrorKind::KeysUnavailable);
                };
                judge.judge(&token, print, &keys, judge.now()).unwrap_or(Checked::Refused)
            }),
        )
    }
}

struct UnknownKey;

impl Entry for Linked {
    fn check(&self, exchange: &Exchange, gate: &Gate<'_>) -> Checked {
        let token = match bearer::find(exchange.request.headers()) {
            Bearer::Nothing => return Checked::Absent,
            Bearer::Malformed => return Checked::Refused,
            Bearer::Token(token) => token,
        };
        let judge = &self.judge;
        let (print, now) = (gate.token_print(token), judge.now());
        let keys = judge.keys.now();
        if let Some(keys) = &keys
            && let Some(identity) = judge.cache.find(&print, &keys.digest, now)
        {
            return Checked::Known(identity, print);
        }
        if unverified_issuer(token).is_none_or(|issuer| *issuer != *judge.rules.issuer) {
            return Checked::Absent;
        }
        if !gate.admits(&print) {
            return Checked::Stopped;
        }
        let Some(keys) = keys else { return Checked::Unavailable(ErrorKind::KeysUnavailable) };
        judge
            .judge(token, print, &keys, now)
            .unwrap_or_else(|UnknownKey| judge.judge_anew(token, print, gate))
    }

    fn forwards(&self) -> bool {
        self.forward
    }

    fn place(&self, _: &Request) -> Option<&Place> {
        Some(&AUTHORIZATION_FIELD)
    }

    fn strip(&self, request: &mut Request, kept: Option<&Place>) {
        bearer::strip(request.headers_mut(), kept);
    }

    fn tell(&self, identity: &KnownIdentity, headers: &mut HeaderMap) {
        self.headers.tell(identity, headers);
    }

    fn scheme(&self) -> Scheme {
        Scheme::Bearer
    }
}

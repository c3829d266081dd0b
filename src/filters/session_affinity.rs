//! `sessionAffinity`: a client's requests go to one endpoint, by a token that the gateway gives it.

use std::sync::Arc;
use std::time::Duration as Time;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Member, Scope};
use super::header_edits::is_forbidden;
use crate::values::{Duration, FieldPath, Problem, Reason, Redacted, SecretKeyRef};

pub struct SessionAffinity;

/// A client's requests go to one endpoint.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("!has(self.cookieConfig) || !has(self.type) || self.type == 'Cookie'", COOKIE),
    validation = (
        "!has(self.cookieConfig) || !has(self.cookieConfig.lifetimeType) || self.cookieConfig.lifetimeType != 'Permanent' || has(self.absoluteTimeout)",
        PERMANENT
    )
)]
pub struct Spec {
    /// What carries the token; Cookie by default.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub kind: Option<SessionType>,
    /// Name of the cookie or field; by default one that is made of the rule's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = NAME))]
    pub session_name: Option<String>,
    /// After so long a session begins anew; never by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('8784h')", LONG))]
    pub absolute_timeout: Option<Duration>,
    /// After so long without a request a session begins anew; never by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('8784h')", LONG))]
    pub idle_timeout: Option<Duration>,
    /// How the cookie is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_config: Option<CookieConfig>,
    /// Key of a Secret, at least 32 random bytes, by which tokens are signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
}

/// What carries the token of a session.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionType {
    #[default]
    Cookie,
    Header,
}

/// Attributes of the cookie. It is always HttpOnly, and Secure for clients that come by HTTPS.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieConfig {
    /// Permanent: kept for absoluteTimeout; by default as long as the browser is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifetime_type: Option<Lifetime>,
    /// Lax by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_site: Option<SameSite>,
    /// For paths below this one; / by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = PATH))]
    pub path: Option<String>,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[schemars(rename = "CookieLifetime")]
pub enum Lifetime {
    #[default]
    Session,
    Permanent,
}

#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SameSite {
    Strict,
    #[default]
    Lax,
    /// Only over HTTPS: browsers take it from nowhere else.
    None,
}

/// A token (RFC 9110 section 5.6.2).
const NAME: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";
/// What may stand in an attribute (RFC 6265 section 4.1.1).
const PATH: &str = "^/[!-:<-~]*$";
const LONG: &str = "from 1s to 366 days (8784h) are possible";
const COOKIE: &str = "cookieConfig means something only with type: Cookie";
const PERMANENT: &str = "lifetimeType: Permanent needs absoluteTimeout";
const LONGEST: Time = Time::from_secs(8784 * 3600);
/// What a key has at least, so that nobody guesses it.
const LEAST_KEY: usize = 32;

/// How a rule's sessions are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionPlan {
    /// None: in a field.
    pub cookie: Option<CookiePlan>,
    /// None: one that is made of the rule's.
    pub name: Option<Arc<str>>,
    pub absolute: Option<Time>,
    pub idle: Option<Time>,
    /// None: tokens are not signed, and name no endpoint.
    pub key: Option<Redacted<Vec<u8>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookiePlan {
    pub path: Arc<str>,
    pub same_site: SameSite,
    pub lifetime: Lifetime,
}

impl Member for SessionAffinity {
    const NAME: &'static str = "sessionAffinity";
    const APPLIES: Applies = Applies::ToBackendRefs;
    type Spec = Spec;
    type Plan = SessionPlan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<SessionPlan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        let at = |field: &'static str| FieldPath::new(field);
        // The API server refuses these; in files they are possible.
        let is_cookie = spec.kind.unwrap_or_default() == SessionType::Cookie;
        if spec.cookie_config.is_some() && !is_cookie {
            refuse(at("cookieConfig"), COOKIE.into());
        }
        let given = spec.cookie_config.unwrap_or_default();
        let lifetime = given.lifetime_type.unwrap_or_default();
        if lifetime == Lifetime::Permanent && spec.absolute_timeout.is_none() {
            refuse(at("cookieConfig.lifetimeType"), PERMANENT.into());
        }
        let mut time = |field: &'static str, given: Option<Duration>| {
            let time = given.map(Duration::std);
            if time.is_some_and(|time| !(Time::from_secs(1)..=LONGEST).contains(&time)) {
                refuse(at(field), format!("found {time:?}; {LONG}"));
            }
            time
        };
        let absolute = time("absoluteTimeout", spec.absolute_timeout);
        let idle = time("idleTimeout", spec.idle_timeout);
        if let Some(name) = &spec.session_name
            && !is_cookie
            && is_gateways_own(name)
        {
            let message = format!("{name} means something else; a session is carried in a field of its own");
            refuse(at("sessionName"), message);
        }
        let key = match &spec.secret_key_ref {
            None => None,
            Some(reference) => {
                let found = scope.secret_key(at("secretKeyRef"), reference);
                if let Some(key) = found.as_ref().filter(|key| key.expose().len() < LEAST_KEY) {
                    let message = format!(
                        "the key has {} bytes; make it at least {LEAST_KEY} random ones",
                        key.expose().len()
                    );
                    refuse(at("secretKeyRef"), message);
                }
                let Some(found) = found else { return Err(problems) };
                Some(found)
            }
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        let path = given.path.map_or_else(|| "/".into(), Arc::from);
        let cookie = CookiePlan { path, same_site: given.same_site.unwrap_or_default(), lifetime };
        Ok(SessionPlan {
            cookie: is_cookie.then_some(cookie),
            name: spec.session_name.map(Arc::from),
            absolute,
            idle,
            key,
        })
    }
}

/// Fields that say something else already.
fn is_gateways_own(name: &str) -> bool {
    const OTHERS: [&str; 12] = [
        "authorization",
        "cookie",
        "set-cookie",
        "location",
        "content-type",
        "content-encoding",
        "cache-control",
        "vary",
        "etag",
        "date",
        "via",
        "forwarded",
    ];
    let name = name.to_ascii_lowercase();
    let is_ours = name.starts_with("x-forwarded-") || name.starts_with("x-portcullis-");
    is_ours || OTHERS.contains(&&*name) || name.parse().is_ok_and(|name| is_forbidden(&name))
}

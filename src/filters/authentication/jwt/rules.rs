//! What a token must say to count: `iss`, `aud`, `exp`, `nbf`, `typ` and the claims that are required (RFC 7519, RFC
//! 8725).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::super::claims;
use super::super::entry::Fingerprint;
use super::compact::Compact;
use super::key_set::Algorithm;
use crate::message::{IdentityKind, KnownIdentity};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    pub entry: Arc<str>,
    pub issuer: Arc<str>,
    pub audiences: Box<[Box<str>]>,
    pub algorithms: Box<[Algorithm]>,
    /// `None`: a token of access or of no kind.
    pub kind: Option<Box<str>>,
    pub required: Box<[Box<str>]>,
    /// Seconds by which clocks may differ.
    pub skew: i64,
}

/// A token that counts, until then (seconds since the epoch, skew included).
pub struct Counted {
    pub identity: KnownIdentity,
    pub until: i64,
}

impl Rules {
    /// What is known before a signature is looked at: the algorithm is one that is taken.
    pub fn takes(&self, token: &Compact<'_>) -> bool {
        self.algorithms.contains(&token.algorithm) && self.is_of_kind(token.kind())
    }

    /// A token for something else that the same issuer signs (a logout, an event, a proof) is none of access (RFC 8725
    /// section 3.11).
    fn is_of_kind(&self, kind: Option<&str>) -> bool {
        match (&self.kind, kind) {
            (Some(wanted), Some(kind)) => wanted.eq_ignore_ascii_case(kind),
            (Some(_), None) => false,
            (None, None) => true,
            (None, Some(kind)) => kind.eq_ignore_ascii_case("JWT") || kind.eq_ignore_ascii_case("at+jwt"),
        }
    }

    /// Judges the claims of a token whose signature is good. `None`: it does not count.
    pub fn count(&self, claims: Map<String, Value>, token: &Fingerprint, now: i64) -> Option<Counted> {
        let ends = claims::date(&claims, "exp")??;
        let begins = claims::date(&claims, "nbf")?;
        claims::date(&claims, "iat")?;
        claims::text(&claims, "jti")?;
        let (now, skew) = (to_f64(now), to_f64(self.skew));
        let is_in_time = now < ends + skew && begins.is_none_or(|begins| begins - skew <= now);
        let has_required =
            self.required.iter().all(|name| claims.get(&**name).is_some_and(|value| !value.is_null()));
        let is_ours = claims::is_for(&claims, &self.audiences)?;
        if claims::text(&claims, "iss")?? != &*self.issuer || !is_ours || !is_in_time || !has_required {
            return None;
        }
        let id = claims::id(&claims, token)?;
        let scopes = claims::scopes(&claims)?;
        let identity = KnownIdentity {
            kind: IdentityKind::Jwt,
            entry: self.entry.clone(),
            issuer: self.issuer.clone(),
            id,
            scopes,
            claims: Arc::new(claims),
        };
        Some(Counted { identity, until: to_seconds(ends + skew) })
    }
}

#[expect(clippy::cast_precision_loss, reason = "times of the next 285 million years are exact")]
fn to_f64(seconds: i64) -> f64 {
    seconds as f64
}

#[expect(clippy::cast_possible_truncation, reason = "what is out of range becomes its end")]
fn to_seconds(time: f64) -> i64 {
    time.floor() as i64
}

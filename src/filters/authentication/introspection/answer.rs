//! What the server said about tokens: read, judged by the entry's rules, and known for a while.

use std::sync::Arc;
use std::time::{Duration as Time, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::super::claims;
use super::super::entry::{Fingerprint, keyed};
use super::super::verdicts::{Verdict, Verdicts};
use super::OnFailure;
use crate::filters::{About, Answer, Answers};
use crate::message::{Document, Identity, IdentityKind, JsonBounds, KnownIdentity};
use crate::values::Redacted;

/// That a token is not active is known for so long at most: it may be used the moment before it is issued.
const INACTIVE: Time = Time::from_secs(10);
/// What was active counts for so long when the server cannot be asked, where the policy says so.
const LAST_ANSWER: Time = Time::from_secs(600);
/// What an answer may hold.
const JSON: JsonBounds = JsonBounds { depth: 16, values: 1 << 12, name: 1 << 10 };
/// Seconds by which clocks may differ.
const SKEW: f64 = 30.0;
/// In whose place nothing is: answers are kept apart by the table that they are in.
const BY: [u8; 32] = [0; 32];

#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub entry: Arc<str>,
    pub endpoint: Arc<str>,
    /// The client's id and secret, by a digest: another client may be told something else.
    pub client: Redacted<[u8; 32]>,
    pub issuer: Option<Arc<str>>,
    pub audiences: Box<[Box<str>]>,
    pub cached: Time,
    pub on_failure: OnFailure,
}

/// Answers that are known.
pub struct Introspected {
    rules: Rules,
    began: Instant,
    clock: fn() -> SystemTime,
    active: Verdicts<Active>,
    /// Apart, so that no number of made-up tokens pushes out those that count.
    inactive: Verdicts<()>,
}

#[derive(Clone)]
struct Active {
    identity: Identity,
    /// Milliseconds since it began: until then without asking.
    fresh_until: i64,
}

/// What an answer says of a token.
#[derive(Debug)]
enum Judged {
    /// With the seconds until it expires, if it does.
    Active(KnownIdentity, Option<f64>),
    /// Not active, or not for us.
    Inactive,
}

impl Introspected {
    pub fn new(rules: Rules, clock: fn() -> SystemTime) -> Self {
        let (active, inactive) = Default::default();
        Self { rules, began: Instant::now(), clock, active, inactive }
    }

    /// In which answers are kept; it never goes backwards.
    pub fn millis_at(&self, now: Instant) -> i64 {
        millis(now.saturating_duration_since(self.began))
    }

    /// Who shows a token of which it is known that it is active.
    pub fn active(&self, token: &Fingerprint, now: i64) -> Option<Identity> {
        self.active
            .find(token, &BY, now)
            .filter(|active| now < active.fresh_until)
            .map(|active| active.identity)
    }

    pub fn is_inactive(&self, token: &Fingerprint, now: i64) -> bool {
        self.inactive.find(token, &BY, now).is_some()
    }

    /// Who showed it when the server could be asked last, where that counts.
    pub fn last(&self, token: &Fingerprint) -> Option<Identity> {
        let now = self.millis_at(Instant::now());
        self.active.find(token, &BY, now).map(|active| active.identity)
    }

    fn note(&self, token: &Fingerprint, judged: &Judged, identity: Option<&Identity>) {
        let now = self.millis_at(Instant::now());
        let cached = self.rules.cached;
        match (judged, identity) {
            // What is large is asked about each time.
            (Judged::Active(known, _), _) if !claims::may_be_kept(&known.claims) => self.active.forget(token),
            (Judged::Active(_, lifetime), Some(identity)) => {
                let lifetime =
                    lifetime.map_or(Time::MAX, |left| Time::try_from_secs_f64(left).unwrap_or_default());
                let last = match self.rules.on_failure {
                    OnFailure::Deny => Time::ZERO,
                    OnFailure::LastAnswer => LAST_ANSWER,
                };
                let after = |time: Time| now.saturating_add(millis(time.min(lifetime)));
                let (until, fresh_until) = (after(cached.max(last)), after(cached));
                let found = Active { identity: identity.clone(), fresh_until };
                self.active.insert(Verdict { credential: *token, by: BY, until, found });
            }
            _ => {
                self.active.forget(token);
                let until = now.saturating_add(millis(cached.min(INACTIVE)));
                self.inactive.insert(Verdict { credential: *token, by: BY, until, found: () });
            }
        }
    }
}

impl Answers for Introspected {
    fn known(&self, about: &About) -> Option<Answer> {
        let now = self.millis_at(Instant::now());
        if let Some(identity) = self.active(about, now) {
            return Some(Arc::new(Some(identity)));
        }
        self.is_inactive(about, now).then(|| Arc::new(None::<Identity>) as Answer)
    }

    fn read(&self, about: &About, body: &[u8]) -> Result<(Answer, &'static str), String> {
        let now = (self.clock)().duration_since(UNIX_EPOCH).map_or(f64::MAX, |time| time.as_secs_f64());
        let judged = self.rules.judge(body, about, now)?;
        let identity = match &judged {
            Judged::Active(known, _) => Some(Identity::new(Arc::new(known.clone()))),
            Judged::Inactive => None,
        };
        self.note(about, &judged, identity.as_ref());
        let word = if identity.is_some() { "active" } else { "inactive" };
        Ok((Arc::new(identity), word))
    }
}

impl Rules {
    /// Under this answers are kept. It tells nothing of the client's secret.
    pub fn name(&self) -> String {
        format!("{self:?} {:?}", keyed(self.client.expose()))
    }

    fn judge(&self, body: &[u8], token: &Fingerprint, now: f64) -> Result<Judged, String> {
        let said = Document::read_object(body, JSON)
            .map_err(|_| "what it answered is no JSON object with every member once")?;
        match said.get("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Ok(Judged::Inactive),
            _ => return Err("what it answered does not say in active whether the token is".into()),
        }
        self.active(said, token, now).ok_or_else(|| "what it answered has a member of the wrong type".into())
    }

    /// `None`: a member is of the wrong type.
    fn active(&self, mut said: Map<String, Value>, token: &Fingerprint, now: f64) -> Option<Judged> {
        let issuer = claims::text(&said, "iss")?;
        let (ends, begins) = (claims::date(&said, "exp")?, claims::date(&said, "nbf")?);
        let is_ours = claims::is_for(&said, &self.audiences)?;
        let id = claims::id(&said, token)?;
        for name in ["username", "client_id", "token_type", "jti"] {
            claims::text(&said, name)?;
        }
        claims::date(&said, "iat")?;
        let scopes = claims::scopes(&said)?;
        let is_in_time =
            ends.is_none_or(|ends| now < ends + SKEW) && begins.is_none_or(|begins| begins - SKEW <= now);
        let is_of_issuer = self.issuer.as_deref().is_none_or(|wanted| issuer == Some(wanted));
        if !is_in_time || !is_of_issuer || !(self.audiences.is_empty() || is_ours) {
            return Some(Judged::Inactive);
        }
        said.remove("active");
        let identity = KnownIdentity {
            kind: IdentityKind::Token,
            entry: Arc::clone(&self.entry),
            // Whatever the server says: it cannot speak for another one.
            issuer: self.issuer.as_ref().unwrap_or(&self.endpoint).clone(),
            id,
            scopes,
            claims: Arc::new(said),
        };
        Some(Judged::Active(identity, ends.map(|ends| (ends - now).max(0.0))))
    }
}

fn millis(time: Time) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

//! `basicAuth`: names and passwords (RFC 7617), checked against the hashes of an htpasswd file in a Secret.
//!
//! Invariants: no password is hashed on a worker, and equal ones at the same time once; an unknown name costs what a known
//! one costs; what was found out counts only while the user's line in the file is the same; no password and no hash is
//! ever printed.

mod hash;
mod known;
#[cfg(test)]
mod tests;
mod users;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use self::known::{Known, Question, Turn};
use self::users::Users;
use super::claim_headers::{ClaimHeaders, ClaimToHeader};
use super::entry::{Checked, Entry, EntryKind, Fingerprint, Gate, Scheme, keyed};
use crate::filters::credential::{AUTHORIZATION_FIELD, after_scheme, strip_scheme};
use crate::filters::places::Place;
use crate::filters::{Keep, Offload, Scope};
use crate::message::{ErrorKind, Exchange, KnownIdentity, LocalFuture, Request};
use crate::values::{FieldPath, Problem, Reason, SecretRef};

pub struct BasicAuth;

/// Names and passwords in an htpasswd file.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// A Secret with the file in auth, users or .htpasswd.
    pub secret_ref: SecretRef,
    /// Name and password go on to the backend.
    #[serde(default)]
    pub forward: bool,
    /// Fields that tell the backend who it is: the claim id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub claims_to_headers: Vec<ClaimToHeader>,
}

/// So long a request waits for its password to be hashed.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_NAME: usize = 256;
const MAX_PASSWORD: usize = 256;

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    users: Arc<Users>,
    forward: bool,
    headers: ClaimHeaders,
}

impl EntryKind for BasicAuth {
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
        let at = at.field("secretRef");
        let users = scope.secret(at.clone(), &spec.secret_ref).and_then(|secret| {
            let refuse =
                |message| Problem::error(FieldPath::new("secretRef"), Reason::PolicyInvalid, message);
            Users::read(name, &secret).map_err(|message| problems.push(refuse(message))).ok()
        });
        for note in users.iter().flat_map(|users| &users.notes) {
            scope.warn(Problem::warning(at.clone(), Reason::PolicyInvalid, note.as_str()));
        }
        match users {
            Some(users) if problems.is_empty() => {
                Ok(Plan { users: Arc::new(users), forward: spec.forward, headers })
            }
            _ => Err(problems),
        }
    }

    fn link(plan: &Plan, keep: &dyn Keep) -> Box<dyn Entry> {
        // Verdicts outlive other changes, of the file too: each is for its user's line.
        let name = format!("basicAuth {}", plan.users.name);
        let made = keep.state(&name, &mut || Arc::new(Known::default()));
        let known = made.downcast().expect("only passwords are kept under this name");
        let judge = Judge { users: Arc::clone(&plan.users), known, offload: keep.hashing() };
        Box::new(Linked { judge: Arc::new(judge), forward: plan.forward, headers: plan.headers.clone() })
    }
}

struct Linked {
    judge: Arc<Judge>,
    forward: bool,
    headers: ClaimHeaders,
}

struct Judge {
    users: Arc<Users>,
    known: Arc<Known>,
    offload: Offload,
}

impl Judge {
    /// Judges a password elsewhere.
    fn judge(
        self: &Arc<Self>,
        credentials: Credentials,
        print: Fingerprint,
    ) -> LocalFuture<'static, Checked> {
        let judge = Arc::clone(self);
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, judge.find_out(&credentials, print)).await {
                Ok(Ok(is_good)) => match judge.users.identity(&credentials.name).filter(|_| is_good) {
                    Some(identity) => Checked::Known(identity.clone(), print),
                    None => Checked::Refused,
                },
                Ok(Err(why)) => Checked::Unavailable(why),
                Err(_) => Checked::GaveUp(ErrorKind::Overloaded),
            }
        })
    }

    /// Who shows the same at the same time waits for the one that came first.
    async fn find_out(&self, credentials: &Credentials, print: Fingerprint) -> Result<bool, ErrorKind> {
        let question = Question { print, line: self.users.line_of(&credentials.name) };
        loop {
            match self.known.turn(question) {
                Turn::Wait(verdict) => {
                    if let Ok(is_good) = verdict.await {
                        return Ok(is_good);
                    }
                    // The one that came first has gone, and its work with it.
                }
                Turn::Work(turn) => {
                    let (users, credentials) = (Arc::clone(&self.users), credentials.clone());
                    let place = self.known.place().await?;
                    let work = move || {
                        let _place = place;
                        turn.settle(|| {
                            let is_good = users.verify(&credentials.name, credentials.password.as_bytes());
                            users.identity(&credentials.name).filter(|_| is_good)
                        })
                    };
                    return self.offload.run(work).await;
                }
                Turn::Full => return Err(ErrorKind::Overloaded),
            }
        }
    }
}

impl Entry for Linked {
    fn check(&self, exchange: &Exchange, gate: &Gate<'_>) -> Checked {
        let credentials = match find(exchange.request.headers()) {
            Found::Nothing => return Checked::Absent,
            Found::Malformed => return Checked::Refused,
            Found::One(credentials) => credentials,
        };
        let (judge, known) = (&self.judge, &self.judge.known);
        let print = keyed(format!("{}:{}", credentials.name, credentials.password).as_bytes());
        let question = Question { print, line: judge.users.line_of(&credentials.name) };
        let now = known.millis_at(exchange.started);
        if let Some(identity) = known.good(&question, now) {
            return Checked::Known(identity, print);
        }
        if !gate.admits(&print) {
            return Checked::Stopped;
        }
        if known.is_bad(&question, now) {
            return Checked::Refused;
        }
        match gate.charge(&print) {
            Some(admission) => Checked::Later(admission, judge.judge(credentials, print)),
            None => Checked::Stopped,
        }
    }

    fn forwards(&self) -> bool {
        self.forward
    }

    fn place(&self, _: &Request) -> Option<&Place> {
        Some(&AUTHORIZATION_FIELD)
    }

    fn strip(&self, request: &mut Request, kept: Option<&Place>) {
        strip_scheme(request.headers_mut(), b"basic", kept);
    }

    fn tell(&self, identity: &KnownIdentity, headers: &mut HeaderMap) {
        self.headers.tell(identity, headers);
    }

    fn scheme(&self) -> Scheme {
        Scheme::Basic
    }
}

enum Found {
    Nothing,
    /// What is none, or more than one.
    Malformed,
    One(Credentials),
}

#[derive(Clone)]
struct Credentials {
    name: String,
    password: String,
}

/// What the request shows (RFC 7617 section 2).
fn find(headers: &HeaderMap) -> Found {
    let after = |field: &HeaderValue| after_scheme(field.as_bytes(), b"basic").map(<[u8]>::to_vec);
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let Some(rest) = fields.next().and_then(after) else {
        let any = fields.any(|field| after(field).is_some());
        return if any { Found::Malformed } else { Found::Nothing };
    };
    if fields.next().is_some() {
        return Found::Malformed;
    }
    read(rest.trim_ascii_start()).map_or(Found::Malformed, Found::One)
}

fn read(token: &[u8]) -> Option<Credentials> {
    let text = String::from_utf8(STANDARD.decode(token).ok()?).ok()?;
    let (name, password) = text.split_once(':')?;
    // No control characters (section 2): some hashes end at the first NUL.
    let fits = name.len() <= MAX_NAME && password.len() <= MAX_PASSWORD;
    (fits && !text.chars().any(char::is_control))
        .then(|| Credentials { name: name.to_owned(), password: password.to_owned() })
}

//! `authentication`: who the client is. The entries of `anyOf` are a table of their own, a file each; the first that
//! finds a credential of its kind decides.
//!
//! Invariants: what is not recognised is never let on as somebody; a credential that decided goes to the backend only
//! where its entry says so, others never; no request waits past its deadline; nothing that is answered tells which part
//! of a credential was wrong.

mod api_key;
mod basic;
mod bearer;
mod brake;
mod claim_headers;
mod claims;
mod client_certificate;
mod entry;
mod introspection;
mod jwt;
mod key_table;
mod named;
#[cfg(test)]
mod tests;
mod verdicts;

use std::cell::OnceCell;
use std::sync::Arc;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderName, HeaderValue};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use self::bearer::Bearer;
use self::brake::{Admission, Brake, Failures};
use self::entry::{Checked, Entry, EntryKind, Gate, Scheme};
pub use self::jwt::{Compact as Token, unverified_issuer};
use crate::filters::contract::{Decision, Filter, FilterKind, Keep, Member, Ring, Scope};
use crate::filters::credential::Credential;
use crate::filters::places::Place;
use crate::message::{ErrorKind, Exchange, LocalFuture, ProxyError, Request};
use crate::values::{Duration, FieldPath, Problem, Reason};

pub struct Authentication;

/// Who the client is.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "(has(self.mode) && self.mode == 'Disabled') != (has(self.anyOf) && size(self.anyOf) > 0)",
        "anyOf is needed, unless mode is Disabled"
    )
)]
pub struct Spec {
    /// Required (default), Optional (none is fine, a wrong one is not) or Disabled.
    #[serde(default)]
    pub mode: Mode,
    /// Kinds of credentials; the first entry that finds one of its kind decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub any_of: Vec<EntrySpec>,
    /// Stops addresses whose credentials keep failing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<FailuresSpec>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Required,
    Optional,
    Disabled,
}

/// A kind of credential.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("[has(self.apiKey), has(self.jwt), has(self.introspection), has(self.basicAuth), has(self.clientCertificate)].exists_one(x, x)", ONE_KIND))]
pub struct EntrySpec {
    /// Name of the entry, as identity.entry tells it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Keys in Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<api_key::Spec>,
    /// Tokens that an issuer signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<jwt::Spec>,
    /// Tokens that a server is asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub introspection: Option<introspection::Spec>,
    /// Names and passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<basic::Spec>,
    /// What the client shows in the TLS handshake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<client_certificate::Spec>,
}

const ONE_KIND: &str =
    "give exactly one kind of credential: apiKey, jwt, introspection, basicAuth or clientCertificate";

/// So many failures within such a time.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailuresSpec {
    /// Failures of one address; 30 by default, 0 stops nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub requests: Option<i32>,
    /// Time within which they count; 1m by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    mode: Mode,
    entries: Vec<EntryPlan>,
    /// `None`: nobody is stopped.
    failures: Option<(u32, std::time::Duration)>,
    /// What the policies name that this one takes the place of, and no entry of its own takes.
    others: Box<[Credential]>,
}

/// The table of entries.
#[derive(Clone, Debug, PartialEq)]
enum EntryPlan {
    ApiKey(api_key::Plan),
    Jwt(jwt::Plan),
    Introspection(introspection::Plan),
    Basic(basic::Plan),
    ClientCertificate(client_certificate::Plan),
}

impl EntryPlan {
    fn compile(spec: EntrySpec, at: &FieldPath, scope: &mut dyn Scope) -> Result<Self, Vec<Problem>> {
        let name: Arc<str> = spec.name.as_str().into();
        match (spec.api_key, spec.jwt, spec.introspection, spec.basic_auth, spec.client_certificate) {
            (Some(spec), None, None, None, None) => {
                let at = at.field("apiKey");
                let plan = api_key::ApiKeys::compile(&name, spec, &at, scope);
                plan.map(Self::ApiKey).map_err(|own| under(&at, own))
            }
            (None, Some(spec), None, None, None) => {
                let at = at.field("jwt");
                jwt::Jwt::compile(&name, spec, &at, scope).map(Self::Jwt).map_err(|own| under(&at, own))
            }
            (None, None, Some(spec), None, None) => {
                let at = at.field("introspection");
                let plan = introspection::Introspection::compile(&name, spec, &at, scope);
                plan.map(Self::Introspection).map_err(|own| under(&at, own))
            }
            (None, None, None, Some(spec), None) => {
                let at = at.field("basicAuth");
                basic::BasicAuth::compile(&name, spec, &at, scope)
                    .map(Self::Basic)
                    .map_err(|own| under(&at, own))
            }
            (None, None, None, None, Some(spec)) => {
                let at = at.field("clientCertificate");
                let plan = client_certificate::ClientCertificates::compile(&name, spec, &at, scope);
                plan.map(Self::ClientCertificate).map_err(|own| under(&at, own))
            }
            _ => Err(vec![Problem::error(at.clone(), Reason::PolicyInvalid, ONE_KIND)]),
        }
    }

    /// What it takes from requests.
    fn takes(&self) -> Vec<Credential> {
        match self {
            Self::ApiKey(plan) => plan.places().iter().cloned().map(Credential::Key).collect(),
            Self::Jwt(_) | Self::Introspection(_) => vec![Credential::Token],
            Self::Basic(_) => vec![Credential::Password],
            Self::ClientCertificate(_) => Vec::new(),
        }
    }

    fn link(&self, keep: &dyn Keep) -> Box<dyn Entry> {
        match self {
            Self::ApiKey(plan) => api_key::ApiKeys::link(plan, keep),
            Self::Jwt(plan) => jwt::Jwt::link(plan, keep),
            Self::Introspection(plan) => introspection::Introspection::link(plan, keep),
            Self::Basic(plan) => basic::BasicAuth::link(plan, keep),
            Self::ClientCertificate(plan) => client_certificate::ClientCertificates::link(plan, keep),
        }
    }
}

impl Plan {
    /// Where it stands in the place of policies that name these.
    fn instead_of(&self, named: &[&Credential]) -> Option<Self> {
        let own: Vec<_> = self.entries.iter().flat_map(EntryPlan::takes).collect();
        let mut others: Vec<Credential> = Vec::new();
        for one in named.iter().copied().filter(|one| !own.contains(one)) {
            if !others.contains(one) {
                others.push(one.clone());
            }
        }
        (!others.is_empty()).then(|| Self { others: others.into(), ..self.clone() })
    }

    /// Header fields in which keys stand.
    pub fn key_headers(&self) -> impl Iterator<Item = &HeaderName> {
        let own = self.entries.iter().flat_map(|entry| match entry {
            EntryPlan::ApiKey(plan) => plan.places(),
            _ => &[],
        });
        let others = self.others.iter().filter_map(|other| match other {
            Credential::Key(place) => Some(place),
            Credential::Token | Credential::Password => None,
        });
        own.chain(others).filter_map(|place| match place {
            Place::Header(name) => Some(name),
            Place::Query(_) | Place::Cookie(_) => None,
        })
    }

    /// Whether somebody is recognised by the certificate of the TLS handshake.
    pub fn asks_for_certificates(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry, EntryPlan::ClientCertificate(_)))
    }
}

fn under(at: &FieldPath, problems: Vec<Problem>) -> Vec<Problem> {
    problems.into_iter().map(|problem| problem.under(at)).collect()
}

const FAILURES: u32 = 30;
const FAILURES_PER: std::time::Duration = std::time::Duration::from_secs(60);

impl Member for Authentication {
    const NAME: &'static str = "authentication";
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        if (spec.mode == Mode::Disabled) != spec.any_of.is_empty() {
            let message = match spec.mode {
                Mode::Disabled => "anyOf means nothing where mode is Disabled; leave one of them out",
                _ => "anyOf is missing: say which credentials are taken, or set mode: Disabled",
            };
            problems.push(Problem::error(FieldPath::new("anyOf"), Reason::PolicyInvalid, message));
        }
        let mut names: Vec<&str> = spec.any_of.iter().map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let message = format!("two entries are called {}; give one another name", twice[0]);
            problems.push(Problem::error(FieldPath::new("anyOf"), Reason::PolicyInvalid, message));
        }
        let failures = spec.failures.unwrap_or_default();
        let requests = failures.requests.map_or(FAILURES, |requests| u32::try_from(requests).unwrap_or(0));
        let per = failures.per.map_or(FAILURES_PER, Duration::std);
        if per.is_zero() && requests > 0 {
            let message = "no time is too short to count in; write requests: 0 to stop nobody";
            problems.push(Problem::error(FieldPath::new("failures.per"), Reason::PolicyInvalid, message));
        }
        let (mut entries, mut is_usable) = (Vec::new(), true);
        for (index, entry) in spec.any_of.into_iter().enumerate() {
            let at = FieldPath::new("anyOf").index(index);
            match EntryPlan::compile(entry, &at, scope) {
                Ok(plan) => entries.push(plan),
                // Nothing here: what it refers to is told already.
                Err(own) => {
                    is_usable = false;
                    problems.extend(own);
                }
            }
        }
        // Whatever the order: what an issuer signs is judged by its keys.
        let issuers = entries.iter().filter_map(|entry| match entry {
            EntryPlan::Jwt(plan) => Some(plan.issuer().to_owned()),
            _ => None,
        });
        let issuers: Vec<_> = issuers.collect();
        for entry in &mut entries {
            if let EntryPlan::Introspection(plan) = entry {
                plan.spare(issuers.iter().map(String::as_str));
            }
        }
        let failures = (requests > 0).then_some((requests, per));
        if is_usable && problems.is_empty() {
            Ok(Plan { mode: spec.mode, entries, failures, others: Box::default() })
        } else {
            Err(problems)
        }
    }

    fn own_headers(written: &Value) -> Vec<HeaderName> {
        let entries = written.get("anyOf").and_then(Value::as_array).into_iter().flatten();
        let kinds = entries.filter_map(Value::as_object).flat_map(|entry| entry.values());
        kinds.flat_map(claim_headers::named_in).collect()
    }

    fn credentials(written: &Value) -> Vec<Credential> {
        named::named_in(written)
    }

    fn instead_of(plan: &Plan, named: &[&Credential]) -> Option<Plan> {
        plan.instead_of(named)
    }
}

impl FilterKind for Authentication {
    const RING: Ring = Ring::Authentication;

    fn link(plan: &Plan, keep: &dyn Keep) -> Arc<dyn Filter> {
        let brake = plan.failures.map(|(requests, per)| {
            let made = keep.state("authentication.failures", &mut || Arc::new(Failures::default()));
            let failures = made.downcast().expect("only failures are kept under this name");
            Brake::new(failures, requests, per)
        });
        let entries: Vec<_> = plan.entries.iter().map(|entry| entry.link(keep)).collect();
        Arc::new(Authenticator::new(plan, entries, brake))
    }
}

/// The linked member.
struct Authenticator {
    mode: Mode,
    entries: Vec<Box<dyn Entry>>,
    brake: Option<Brake>,
    others: Box<[Credential]>,
    /// What is asked for when nothing is shown.
    missing: ErrorKind,
    challenges: Vec<HeaderValue>,
}

impl Authenticator {
    fn new(plan: &Plan, entries: Vec<Box<dyn Entry>>, brake: Option<Brake>) -> Self {
        let mut schemes: Vec<Scheme> = Vec::new();
        for entry in &entries {
            if !schemes.contains(&entry.scheme()) {
                schemes.push(entry.scheme());
            }
        }
        let missing = match schemes.as_slice() {
            [one] => one.missing(),
            _ => ErrorKind::CredentialsMissing,
        };
        let challenges = schemes.iter().map(|scheme| scheme.challenge()).collect();
        Self { mode: plan.mode, entries, brake, others: plan.others.clone(), missing, challenges }
    }

    /// No credential goes on, but what stands in the place that is `kept`.
    fn strip(&self, request: &mut Request, kept: Option<&Place>) {
        self.entries.iter().for_each(|entry| entry.strip(request, kept));
        self.others.iter().for_each(|other| other.strip(request, kept));
    }

    fn gate(&self, exchange: &Exchange) -> Gate<'_> {
        let brake = self
            .brake
            .as_ref()
            .map(|brake| (brake, brake.shown(&exchange.labels, exchange.client.ip, exchange.started)));
        Gate { brake, token: OnceCell::new() }
    }

    fn settle(
        &self,
        index: usize,
        checked: Checked,
        admission: Admission,
        gate: &Gate<'_>,
        exchange: &mut Exchange,
    ) -> Decision<'static> {
        let entry = &self.entries[index];
        match checked {
            Checked::Known(identity, credential) => {
                admission.refund();
                if let Some((brake, shown)) = gate.brake {
                    brake.succeeded(shown, &credential);
                }
                let kept = if entry.forwards() { entry.place(&exchange.request) } else { None };
                self.strip(&mut exchange.request, kept);
                if let Some(known) = identity.known() {
                    entry.tell(known, exchange.request.headers_mut());
                }
                exchange.identity = identity;
                Decision::Continue
            }
            Checked::Refused => {
                if let (Some((brake, shown)), Admission::Free) = (gate.brake, &admission) {
                    brake.failed(shown);
                }
                let scheme = entry.scheme();
                let error = ProxyError::new(scheme.invalid());
                error.with_header(WWW_AUTHENTICATE, scheme.challenge_after_failure()).into()
            }
            Checked::Stopped => ErrorKind::TooManyFailures.into(),
            Checked::Unavailable(why) => {
                admission.refund();
                why.into()
            }
            // The verdict may come yet, and be known when it is shown again: it was not for nothing.
            Checked::GaveUp(why) => why.into(),
            // Neither is a verdict: what was found is judged, and what was waited for has come.
            Checked::Absent | Checked::Later(..) => ErrorKind::Internal.into(),
        }
    }
}

impl Filter for Authenticator {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        if self.mode == Mode::Disabled {
            self.strip(&mut exchange.request, None);
            return Decision::Continue;
        }
        let gate = self.gate(exchange);
        for (index, entry) in self.entries.iter().enumerate() {
            match entry.check(exchange, &gate) {
                Checked::Absent => {}
                Checked::Later(admission, waiting) => {
                    return Decision::Wait(Box::pin(async move {
                        let checked = within(exchange.deadline, waiting).await;
                        let gate = self.gate(exchange);
                        self.settle(index, checked, admission, &gate, exchange)
                    }));
                }
                checked => return self.settle(index, checked, Admission::Free, &gate, exchange),
            }
        }
        // A token that no issuer of ours made is wrong, not missing.
        let of_tokens = self.entries.iter().position(|entry| entry.scheme() == Scheme::Bearer);
        if let Some(index) = of_tokens
            && bearer::find(exchange.request.headers()) != Bearer::Nothing
        {
            return self.settle(index, Checked::Refused, Admission::Free, &gate, exchange);
        }
        if self.mode == Mode::Optional {
            // What a backend may read as one, though it is none here.
            self.strip(&mut exchange.request, None);
            return Decision::Continue;
        }
        let mut error = ProxyError::new(self.missing);
        for challenge in &self.challenges {
            error = error.with_header(WWW_AUTHENTICATE, challenge.clone());
        }
        error.into()
    }
}

/// No request waits past its own deadline, whatever the entry would wait for.
async fn within(deadline: Option<Instant>, waiting: LocalFuture<'static, Checked>) -> Checked {
    let Some(deadline) = deadline else { return waiting.await };
    let checked = tokio::time::timeout_at(deadline, waiting).await;
    checked.unwrap_or(Checked::GaveUp(ErrorKind::BackendTimeout))
}

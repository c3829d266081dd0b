//! The contract between a policy member, the compiler that proves it and the proxy that runs it.
//!
//! A [`Member`] is a row of the registry: its spec (as users write it) is compiled once into a plan (proven, comparable,
//! secrets redacted). A [`FilterKind`] is a member that works on requests: its plan is linked to state once per install
//! and shared by all workers. A setting has no ring: the action reads its plan.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::asked::Inquiry;
use super::credential::Credential;
use super::fetched::{FetchPlan, Fetched, OwnHost, Url};
use super::offload::Offload;
use super::store::Store;
use crate::expression::{Environment, Expression, Kind, Template};
use crate::message::{ErrorKind, Exchange, LocalFuture, ProxyError, Response};
use crate::values::{
    AskedBackendRef, BackendId, ConfigMapKeyRef, FieldPath, LabelSelector, Origin, Problem, Reason, Redacted,
    SecretData, SecretKeyRef, SecretRef,
};

/// Where in the onion a filter works; requests pass the rings in this order, answers in the opposite one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ring {
    Compression,
    SecurityHeaders,
    Cors,
    Errors,
    IpAccess,
    Limits,
    EarlyRateLimits,
    Authentication,
    ExternalAuthorization,
    Authorization,
    RateLimits,
    Validation,
    Cache,
    Transform,
    FaultInjection,
}

impl Ring {
    /// The number that docs and people call it by; some rings have several filters, in the order above.
    pub const fn number(self) -> u8 {
        match self {
            Self::Compression => 3,
            Self::Cors | Self::SecurityHeaders => 4,
            Self::Errors => 5,
            Self::IpAccess | Self::Limits => 6,
            Self::EarlyRateLimits => 7,
            Self::Authentication | Self::ExternalAuthorization | Self::Authorization => 8,
            Self::RateLimits => 9,
            Self::Validation => 10,
            Self::Cache => 11,
            Self::Transform => 12,
            Self::FaultInjection => 13,
        }
    }
}

/// What a more specific policy does to the same member of a less specific one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    Replace,
    /// Both must pass: gates that an Override adds.
    Both,
}

/// On which actions a member means something. Where it means nothing it is refused when written on that rule and ignored
/// when inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    ToEveryAction,
    /// Only to actions that ask a backend.
    ToBackends,
    /// Only to `backendRefs`: one request, one answer.
    ToBackendRefs,
}

/// Whether a policy on the installation gives the member to requests that no rule matched, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmatched {
    Ignores,
    Applies,
}

/// A member of `policy`.
pub trait Member {
    /// The member's name in `policy`.
    const NAME: &'static str;
    const COMBINE: Combine = Combine::Replace;
    const APPLIES: Applies = Applies::ToEveryAction;
    const UNMATCHED: Unmatched = Unmatched::Ignores;
    /// Fields of it that mean something only on `backendRefs`, where the member as a whole means something elsewhere, too.
    const OF_ONE_REQUEST: &'static [&'static str] = &[];
    type Spec: DeserializeOwned + JsonSchema;
    type Plan: PartialEq + fmt::Debug + Send + Sync + 'static;

    /// Proves a spec. Problems carry paths relative to the member.
    fn compile(spec: Self::Spec, scope: &mut dyn Scope) -> Result<Self::Plan, Vec<Problem>>;

    /// Names of fields that only the gateway may set: they are taken from every request to a hostname as soon as one
    /// of its rules has them, in every spelling. Read from what is written, so that a member that does not compile
    /// opens nothing.
    fn own_headers(written: &Value) -> Vec<HeaderName> {
        let _ = written;
        Vec::new()
    }

    /// Credentials of clients that are named, read from what is written for the same reason.
    fn credentials(written: &Value) -> Vec<Credential> {
        let _ = written;
        Vec::new()
    }

    /// The plan where it stands in the place of others that name these. `None`: it is the same there.
    fn instead_of(plan: &Self::Plan, named: &[&Credential]) -> Option<Self::Plan> {
        let _ = (plan, named);
        None
    }

    /// The plan without those fields. `None`: there are none.
    fn for_calls(plan: &Self::Plan) -> Option<Self::Plan> {
        let _ = plan;
        None
    }
}

/// A member that works on requests and answers.
pub trait FilterKind: Member {
    const RING: Ring;

    /// The filters that a plan becomes, each with its ring: itself, unless parts of it work elsewhere.
    fn parts(plan: &AnyPlan) -> Vec<(Ring, AnyPlan)> {
        vec![(Self::RING, plan.clone())]
    }

    /// What several layers give to one ring as one filter, the outermost first. `None`: each is a filter of its own.
    fn joined(plans: &[AnyPlan]) -> Option<AnyPlan> {
        let _ = plans;
        None
    }

    fn link(plan: &Self::Plan, keep: &dyn Keep) -> Arc<dyn Filter>;
}

/// What a filter says to a request. `Wait` is for those that must await; the others cost no allocation.
pub enum Decision<'a> {
    Continue,
    Answer(Box<Response>),
    /// The answer is the gateway's own; which status and text it has is not the filter's to know.
    Fail(Box<ProxyError>),
    Wait(LocalFuture<'a, Decision<'static>>),
}

impl From<ErrorKind> for Decision<'_> {
    fn from(kind: ErrorKind) -> Self {
        Self::Fail(Box::new(kind.into()))
    }
}

impl From<ProxyError> for Decision<'_> {
    fn from(error: ProxyError) -> Self {
        Self::Fail(Box::new(error))
    }
}

/// A linked filter. Shared by all workers: per-request state belongs into the exchange.
pub trait Filter: Send + Sync {
    /// On the way in.
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let _ = exchange;
        Decision::Continue
    }

    /// On the way out, also for answers made in an inner ring.
    fn response<'a>(&'a self, exchange: &'a mut Exchange, response: Response) -> Outcome<'a> {
        let _ = exchange;
        Outcome::Ready(response)
    }

    /// How large a request's body may be here, in the place of the installation's bound; `None`: it says nothing of it.
    /// Whoever says so refuses what is announced larger.
    fn max_body(&self) -> Option<u64> {
        None
    }
}

/// What a filter makes of an answer.
pub enum Outcome<'a> {
    Ready(Response),
    /// The answer is the gateway's own, in the place of the one that came.
    Fail(Box<ProxyError>),
    Wait(LocalFuture<'a, Outcome<'static>>),
}

impl From<ProxyError> for Outcome<'_> {
    fn from(error: ProxyError) -> Self {
        Self::Fail(Box::new(error))
    }
}

/// What a member may ask while it is compiled. Implemented by the compiler, which records each question and answer,
/// "not there" included. `None`: what is asked for is not there or may not be used, and the problem is already reported.
pub trait Scope {
    /// A Secret by name.
    fn secret(&mut self, at: FieldPath, secret: &SecretRef) -> Option<Arc<SecretData>>;

    /// The Secrets of the object's own namespace that have all these labels, in the order of their names. The same
    /// `Arc` for as long as they stay the same.
    fn secrets(&mut self, at: FieldPath, selector: &LabelSelector) -> Selection;

    /// The value of one key of a ConfigMap.
    fn config_map(&mut self, at: FieldPath, map: &ConfigMapKeyRef) -> Option<Arc<str>>;

    /// Something large that is made of Secrets, made once for all who name it the same and have the same `of`. `make`
    /// is handed what it made under this name before, as long as anybody still has it, to take over what it can.
    fn derived(&mut self, name: &str, of: &Selection, make: Derive<'_>) -> Arc<dyn Any + Send + Sync>;

    /// An expression in its checked form. How many an object may hold is bounded, and how much text they have.
    fn expression(
        &mut self,
        at: FieldPath,
        source: &str,
        environment: &'static Environment,
        wanted: Kind,
    ) -> Option<Expression>;

    /// The object that holds the policy, and the rule in it: what is counted is counted under this.
    fn holder(&self) -> String {
        String::new()
    }

    /// Text with `${expression}` in it; its expressions count like others.
    fn template(
        &mut self,
        at: FieldPath,
        source: &str,
        environment: &'static Environment,
    ) -> Option<Template>;

    /// Whether the installation has a store in which replicas count together.
    fn has_store(&self) -> bool {
        false
    }

    /// A backend that the member asks by itself, through `Exchange::outbound`.
    fn backend(&mut self, at: FieldPath, backend: &AskedBackendRef) -> Option<BackendId>;

    /// The same for one that clients can do without: that it is not there is told, and the member compiles.
    fn dispensable_backend(&mut self, at: FieldPath, backend: &AskedBackendRef) -> Option<BackendId> {
        self.backend(at, backend)
    }

    /// The same, where what is said there must be between the two: one outside that is asked in the clear is refused.
    fn trusted_backend(&mut self, at: FieldPath, backend: &AskedBackendRef) -> Option<BackendId> {
        self.backend(at, backend)
    }

    /// The same for what a URL names, which [`super::Url`] has judged.
    fn origin(&mut self, origin: &Origin) -> BackendId;

    /// Whether what is fetched may be on the gateway's own host.
    fn own_host(&self) -> OwnHost {
        OwnHost::Refused
    }

    /// Whether a URL may name this host, as far as that can be told before it is dialled.
    ///
    /// # Errors
    /// Why not, and what to write.
    fn permits(&self, _host: &str) -> Result<(), String> {
        Ok(())
    }

    /// A URL that the member names.
    ///
    /// # Errors
    /// What is wrong with it, or with where it leads.
    fn url(&self, text: &str) -> Result<Url, String> {
        let url = Url::new(text, self.own_host())?;
        self.permits(&url.host)?;
        Ok(url)
    }

    /// Something to be said although the member compiles.
    fn warn(&mut self, problem: Problem);

    /// The value of one key of a Secret.
    fn secret_key(&mut self, at: FieldPath, secret: &SecretKeyRef) -> Option<Redacted<Vec<u8>>>;
}

/// Secrets that a selector found.
pub type Selection = Arc<[Arc<SecretData>]>;

/// Makes something of what was made before.
pub type Derive<'a> = &'a mut dyn FnMut(Option<Arc<dyn Any + Send + Sync>>) -> Arc<dyn Any + Send + Sync>;

/// What a filter may take hold of when it is linked. Implemented by `proxy/live`.
pub trait Keep {
    /// State that outlives a route map, found by what it is about: the same key gives the same state while any linked
    /// map refers to it, and for 60 s after.
    fn state(
        &self,
        key: &str,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync>;

    /// Hands over what is to be asked. Without anybody who asks, questions get no answer.
    fn asks(&self, inquiry: Inquiry) {
        drop(inquiry);
    }

    /// The store in which replicas count together; there may be none behind it.
    fn store(&self) -> Arc<Store> {
        Arc::default()
    }

    /// What is fetched beside the requests for as long as this, or another that wants the same, is held.
    fn fetched(&self, plan: &FetchPlan) -> Arc<Fetched> {
        let made =
            self.state(&format!("fetched {}", plan.name()), &mut || Arc::new(Fetched::new(plan.clone())));
        made.downcast().expect("only what is fetched is kept under this name")
    }

    /// Threads for passwords alone: however many are guessed, nothing else waits for them.
    fn hashing(&self) -> Offload {
        Offload::at_once()
    }

    /// The threads for what would hold a worker.
    fn offload(&self) -> Offload {
        Offload::at_once()
    }
}

/// A plan of any member: comparable, printable, shared.
#[derive(Clone)]
pub struct AnyPlan(Arc<dyn PlanObject>);

trait PlanObject: Any + fmt::Debug + Send + Sync {
    fn same(&self, other: &dyn Any) -> bool;
    fn as_any(&self) -> &dyn Any;
}

impl<T: PartialEq + fmt::Debug + Send + Sync + 'static> PlanObject for T {
    fn same(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<T>().is_some_and(|other| self == other)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl AnyPlan {
    pub fn new(plan: impl PartialEq + fmt::Debug + Send + Sync + 'static) -> Self {
        Self(Arc::new(plan))
    }

    pub fn get<T: 'static>(&self) -> Option<&T> {
        self.0.as_any().downcast_ref()
    }
}

impl PartialEq for AnyPlan {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.same(other.0.as_any())
    }
}

impl fmt::Debug for AnyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A row of the registry.
pub struct Row {
    pub name: &'static str,
    pub combine: Combine,
    pub applies: Applies,
    pub unmatched: Unmatched,
    /// `None` for a setting.
    pub ring: Option<Ring>,
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Problems carry paths relative to the member.
    pub compile: fn(&Value, &mut dyn Scope) -> Result<AnyPlan, Vec<Problem>>,
    /// The filters that a plan becomes, each with its ring; none of a setting.
    pub parts: fn(&AnyPlan) -> Vec<(Ring, AnyPlan)>,
    /// What several layers give to one ring, if it works as one filter.
    pub joined: fn(&[AnyPlan]) -> Option<AnyPlan>,
    /// `None` for a setting.
    pub link: Option<Link>,
    pub own_headers: fn(&Value) -> Vec<HeaderName>,
    pub credentials: fn(&Value) -> Vec<Credential>,
    pub instead_of: fn(&AnyPlan, &[&Credential]) -> Option<AnyPlan>,
    pub of_one_request: &'static [&'static str],
    /// What is left of a plan where a rule makes calls of its own.
    pub for_calls: fn(&AnyPlan) -> Option<AnyPlan>,
}

/// Makes a filter of a plan of its own row.
pub type Link = fn(&AnyPlan, &dyn Keep) -> Arc<dyn Filter>;

/// The row of a filter.
pub const fn filter<K: FilterKind>() -> Row {
    Row {
        ring: Some(K::RING),
        parts: K::parts,
        joined: K::joined,
        link: Some(|plan, keep| {
            K::link(plan.get::<K::Plan>().expect("a row links only plans that it compiled"), keep)
        }),
        ..setting::<K>()
    }
}

/// The row of a member that is a room of its own around all that is further in: it has its place among the filters, and
/// the proxy does its work.
pub const fn room<M: Member>() -> Row {
    Row { ring: Some(Ring::Cache), parts: |plan| vec![(Ring::Cache, plan.clone())], ..setting::<M>() }
}

/// The row of a setting: its plan is read by the action.
pub const fn setting<M: Member>() -> Row {
    Row {
        name: M::NAME,
        combine: M::COMBINE,
        applies: M::APPLIES,
        unmatched: M::UNMATCHED,
        ring: None,
        schema: schema_of::<M>,
        compile: compile_any::<M>,
        parts: |_| Vec::new(),
        joined: |_| None,
        link: None,
        own_headers: M::own_headers,
        credentials: M::credentials,
        instead_of: instead_of_others::<M>,
        of_one_request: M::OF_ONE_REQUEST,
        for_calls: left_for_calls::<M>,
    }
}

fn schema_of<M: Member>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<M::Spec>()
}

fn left_for_calls<M: Member>(plan: &AnyPlan) -> Option<AnyPlan> {
    M::for_calls(plan.get()?).map(AnyPlan::new)
}

fn instead_of_others<M: Member>(plan: &AnyPlan, named: &[&Credential]) -> Option<AnyPlan> {
    M::instead_of(plan.get()?, named).map(AnyPlan::new)
}

fn compile_any<M: Member>(value: &Value, scope: &mut dyn Scope) -> Result<AnyPlan, Vec<Problem>> {
    let spec = M::Spec::deserialize(value).map_err(|error| {
        vec![Problem::error(FieldPath::default(), Reason::PolicyInvalid, error.to_string())]
    })?;
    M::compile(spec, scope).map(AnyPlan::new)
}

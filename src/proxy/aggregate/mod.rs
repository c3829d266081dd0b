//! The action `aggregate`: a graph of calls, each begun as soon as what it needs is over, and one answer made of them.
//!
//! Invariants: everything here is one future of the client's request: who drops it drops all calls, and with them their
//! connections; a call is over once and for all; what a backend says of a failure goes to nobody.

mod answer;
mod ask;
mod hear;
mod send;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;
use tokio::time::Instant;

pub use self::answer::{Partial, keep_out_of_caches};
use self::ask::Begun;
use self::hear::{Heard, Room};
use crate::filters::Keep;
use crate::message::{Called, ErrorKind, Exchange, FailureCause, LocalFuture, ProxyError, Request, Response};
use crate::route_map::{AggregatePlan, CallPlan, OnError, WeightedTarget};
use crate::upstream::Aim;
use crate::values::BackendId;

/// Nothing waits longer for a call.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(30);
/// What a call is said to have come to that was under way, or not begun, when another one decided.
pub const CANCELLED: &str = "Cancelled";
pub const OK: &str = "ok";
/// Its `when` did not hold.
pub const SKIPPED: &str = "skipped";

/// The way of calls to their backends.
pub trait Backends {
    /// Which endpoint a call wants: what it goes by is said of the client's request.
    fn aim(&self, backend: &BackendId, exchange: &Exchange) -> Aim {
        let _ = (backend, exchange);
        Aim::Anywhere
    }

    /// Gives the head of the answer; the body streams.
    ///
    /// # Errors
    /// As a proxied request would.
    fn ask<'a>(
        &'a self,
        backend: &'a BackendId,
        request: Request,
        limits: Limits<'a>,
    ) -> LocalFuture<'a, Result<Response, ProxyError>>;
}

/// Of one call.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    pub plan: &'a AggregatePlan,
    pub call: &'a CallPlan,
    /// Nobody listens any longer.
    pub until: Instant,
    pub aim: Aim,
}

/// Why a call failed.
#[derive(Debug)]
struct Failure {
    error: ProxyError,
    /// What its backend answered, where it did.
    status: Option<StatusCode>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Over,
}

/// One aggregation on its way.
struct Run<'p> {
    plan: &'p AggregatePlan,
    states: Vec<State>,
}

/// Makes all calls and the answer of them. What each came to is left in `exchange.calls`, also where there is no answer.
///
/// # Errors
/// A call fails that fails the whole, or no answer can be made of what came.
pub async fn answer(
    plan: &AggregatePlan,
    exchange: &mut Exchange,
    backends: &dyn Backends,
    keep: &dyn Keep,
) -> Result<Response, ProxyError> {
    exchange.calls = vec![Called::default(); plan.calls.len()];
    let mut run = Run { plan, states: vec![State::Waiting; plan.calls.len()] };
    let room = Room::new(keep, plan.calls.len());
    let outcome = run.all(exchange, backends, &room).await;
    for (call, state) in exchange.calls.iter_mut().zip(&run.states) {
        if *state != State::Over {
            call.failure = Some(CANCELLED);
        }
    }
    outcome?;
    answer::make(plan, exchange)
}

/// What each call came to: ok, skipped, or the reason of its failure and what lies behind it.
pub fn outcomes<'p, 'e>(
    plan: &'p AggregatePlan,
    exchange: &'e Exchange,
) -> impl Iterator<Item = (&'p Arc<str>, &'static str, Option<&'e FailureCause>)> {
    plan.calls.iter().zip(&exchange.calls).map(|(plan, call)| {
        let outcome = match (call.failure, call.status) {
            (Some(reason), _) => reason,
            (None, Some(_)) => OK,
            (None, None) => SKIPPED,
        };
        (&plan.name, outcome, call.cause.as_ref())
    })
}

impl<'p> Run<'p> {
    async fn all(
        &mut self,
        exchange: &mut Exchange,
        backends: &dyn Backends,
        room: &Room<'_>,
    ) -> Result<(), ProxyError> {
        let mut running = FuturesUnordered::new();
        let plan = self.plan;
        loop {
            while let Some(place) = self.ready() {
                let call = &plan.calls[place];
                let until = until(call, exchange);
                let begun = match &call.target {
                    WeightedTarget::Backend(id) => ask::begin(call, exchange).map(|begun| (id, begun)),
                    WeightedTarget::Unresolved(kind) => Err((*kind).into()),
                };
                match begun {
                    Ok((id, Begun::Request(request))) => {
                        self.states[place] = State::Running;
                        let limits = Limits { plan, call, until, aim: backends.aim(id, exchange) };
                        running.push(async move {
                            let began = Instant::now();
                            let heard = async {
                                let response = backends.ask(id, *request, limits).await?;
                                hear::hear(response, room).await
                            };
                            let timed = tokio::time::timeout_at(until, heard).await;
                            (place, timed.unwrap_or_else(|_| Err(late(began).into())))
                        });
                    }
                    Ok((_, Begun::Skipped)) => self.states[place] = State::Over,
                    Err(error) => self.settle(place, Err(Failure { error, status: None }), exchange)?,
                }
            }
            let Some((place, heard)) = running.next().await else { return Ok(()) };
            self.settle(place, heard, exchange)?;
        }
    }

    /// A call that may begin.
    fn ready(&self) -> Option<usize> {
        let is_over = |need: &usize| self.states[*need] == State::Over;
        let may_begin = |place: &usize| {
            self.states[*place] == State::Waiting && self.plan.calls[*place].needs.iter().all(is_over)
        };
        (0..self.states.len()).find(may_begin)
    }

    fn settle(
        &mut self,
        place: usize,
        heard: Result<Heard, Failure>,
        exchange: &mut Exchange,
    ) -> Result<(), ProxyError> {
        self.states[place] = State::Over;
        let (plan, call) = (&self.plan.calls[place], &mut exchange.calls[place]);
        let Failure { mut error, status } = match heard {
            Ok(Heard { status, headers, body }) => {
                *call =
                    Called { status: Some(status), headers, body: Some(body), failure: None, cause: None };
                return Ok(());
            }
            Err(failure) => failure,
        };
        call.failure = Some(error.kind.as_str());
        call.status = status;
        tracing::debug!(
            call = %plan.name,
            reason = error.kind.as_str(),
            status = status.map(|status| status.as_u16()),
            error = &error as &dyn std::error::Error,
            "a call of an aggregation failed"
        );
        if matches!(plan.on_error, OnError::Value(_) | OnError::Omit) {
            call.cause = error.cause.as_ref().map(|cause| FailureCause::of(&**cause));
        }
        match &plan.on_error {
            OnError::Fail => Err(error),
            OnError::Status(status) => {
                error.status = StatusCode::from_u16(*status).ok();
                Err(error)
            }
            OnError::Value(value) => {
                call.body = Some(value.clone());
                Ok(())
            }
            OnError::Omit => Ok(()),
        }
    }
}

/// When a call that begins now must be over.
fn until(call: &CallPlan, exchange: &Exchange) -> Instant {
    let own = Instant::now() + call.timeout.map_or(LONGEST, |limit| limit.min(LONGEST));
    exchange.deadline.map_or(own, |deadline| deadline.min(own))
}

fn late(began: Instant) -> ProxyError {
    let cause = format!("its answer was not whole within {:.1?}", began.elapsed());
    ProxyError::caused(ErrorKind::BackendTimeout, cause)
}

impl From<ProxyError> for Failure {
    fn from(error: ProxyError) -> Self {
        Self { error, status: None }
    }
}

impl From<ErrorKind> for Failure {
    fn from(kind: ErrorKind) -> Self {
        Self { error: kind.into(), status: None }
    }
}

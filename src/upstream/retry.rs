//! A request that is tried again: when, how often, and at which cost for the backend.
//!
//! What surely was not processed is tried again by any method; what may have been, only by an idempotent one
//! (RFC 9110, 9.2.2) unless the rule says else. An answer whose head went on to the client is never taken back.

use std::cell::{Cell, Ref, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Body as _;
use tokio::time::Instant;

use super::limits::SendLimits;
use super::pool::{Answer, Pools};
use super::repeatable::Repeatable;
use super::replay;
use crate::message::{Body, ErrorKind, GrpcStatus, ProxyError, Request};
use crate::route_map::RetryPlan;
use crate::telemetry::Retry;
use crate::upstream::{Backend, HeadLines};
use crate::values::GrpcCode;

/// Waits are doubled up to this.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// An answer that nobody gets is read to its end for the sake of its connection, if so much is there at most.
const MAX_DRAINED: usize = 64 << 10;

/// What is known of a request that may be tried more than once.
#[derive(Debug)]
pub struct Tries<'a> {
    /// Where it was sent: these are passed over while there are others.
    asked: RefCell<Vec<SocketAddr>>,
    /// Tries after the first.
    pub(super) retries: &'a Cell<u8>,
}

impl<'a> Tries<'a> {
    pub fn counted_in(retries: &'a Cell<u8>) -> Self {
        Self { asked: RefCell::default(), retries }
    }

    pub(super) fn is_asked(&self, endpoint: SocketAddr) {
        self.asked.borrow_mut().push(endpoint);
    }

    pub(super) fn asked(&self) -> Ref<'_, [SocketAddr]> {
        Ref::map(self.asked.borrow(), Vec::as_slice)
    }
}

impl Pools {
    /// [`Pools::send`], and again where `plan` wants it and `limits` leave time for it.
    ///
    /// # Errors
    /// Those of the last try.
    pub async fn send_retrying(
        &self,
        backend: &Arc<Backend>,
        request: Request,
        lines: Option<HeadLines>,
        limits: SendLimits<'_>,
        plan: &RetryPlan,
        tries: &Tries<'_>,
    ) -> Result<Answer, ProxyError> {
        let limits = SendLimits { tries: Some(tries), budget_percent: plan.budget_percent, ..limits };
        let may_repeat = plan.non_idempotent || replay::is_idempotent(request.method());
        // Calls are always POST: naming statuses of theirs is the wish to repeat them.
        let is_kept = may_repeat || (limits.call.is_some() && !plan.grpc_codes.is_empty());
        let (mut request, repeatable) = Repeatable::of(request, is_kept);
        for retry in 1.. {
            let outcome = self.send(backend, request, lines.clone(), limits).await;
            let Some(repeatable) = repeatable.as_ref() else { return outcome };
            if retry > plan.attempts || !is_worth_it(&outcome, plan, may_repeat, &limits) {
                return outcome;
            }
            let wait = backoff(plan.backoff, retry, self.next_random());
            let begins = Instant::now() + wait;
            if limits.due().is_some_and(|due| begins >= due) {
                return outcome;
            }
            if !repeatable.is_there() {
                return outcome;
            }
            if !backend.may_retry(plan.budget_percent) {
                backend.stats.retry(self.worker(), Retry::OverBudget);
                return outcome;
            }
            backend.stats.retry(self.worker(), Retry::Sent);
            // Only now: it ends the try before, and what of its answer is still to come.
            let Some(again) = repeatable.again() else { return outcome };
            tries.retries.set(retry);
            tell(backend, &outcome, retry);
            if let Ok(answer) = outcome {
                drain(answer.response.into_body());
            }
            tokio::time::sleep_until(begins).await;
            request = again;
        }
        unreachable!("the loop ends with the last try")
    }
}

fn is_worth_it(
    outcome: &Result<Answer, ProxyError>,
    plan: &RetryPlan,
    may_repeat: bool,
    limits: &SendLimits<'_>,
) -> bool {
    if limits.call.is_some()
        && let Some(GrpcStatus::Failed(code)) = status_of_call(outcome)
        && plan.grpc_codes.binary_search(&code).is_ok()
    {
        return true;
    }
    match outcome {
        Ok(answer) => may_repeat && plan.codes.binary_search(&answer.response.status().as_u16()).is_ok(),
        Err(error) => match error.kind {
            ErrorKind::ConnectFailure | ErrorKind::ConnectTimeout => true,
            ErrorKind::Reset => may_repeat,
            ErrorKind::BackendTimeout => may_repeat && limits.is_uploaded(),
            _ => false,
        },
    }
}

/// What a call came to before anything of its answer: what stands in the head, or what the client would be told.
fn status_of_call(outcome: &Result<Answer, ProxyError>) -> Option<GrpcStatus> {
    match outcome {
        Ok(answer) => GrpcStatus::of_head(answer.response.status(), answer.response.headers()),
        Err(error) => match error.kind {
            ErrorKind::Reset => Some(GrpcStatus::Failed(GrpcCode::Unavailable)),
            ErrorKind::BackendTimeout => Some(GrpcStatus::Failed(GrpcCode::DeadlineExceeded)),
            _ => None,
        },
    }
}

/// Any time up to the bound, so that those that failed together do not come back together.
fn backoff(base: Duration, retry: u8, random: u64) -> Duration {
    let bound = base.saturating_mul(1 << (retry - 1).min(16)).min(MAX_BACKOFF);
    Duration::from_micros(random % (bound.as_micros() as u64 + 1))
}

fn tell(backend: &Backend, outcome: &Result<Answer, ProxyError>, retry: u8) {
    let (id, endpoint): (_, Option<SocketAddr>) =
        (&backend.plan.id, outcome.as_ref().ok().map(|answer| answer.endpoint));
    let status = outcome.as_ref().ok().map(|answer| answer.response.status().as_u16());
    let error = outcome.as_ref().err().map(|error| error as &dyn std::error::Error);
    tracing::debug!(backend = %id, ?endpoint, status, error, retry, "tried again");
}

/// Reads what is there already. Whole: the connection is of use again; else it is closed.
fn drain(mut body: Body) {
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut read = 0;
    while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > MAX_DRAINED {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_doubled_within_a_bound_and_differ() {
        let base = Duration::from_millis(25);
        assert_eq!(backoff(base, 1, 25_000), base);
        assert_eq!(backoff(base, 1, 25_001), Duration::ZERO);
        assert_eq!(backoff(base, 3, 100_000), base * 4);
        assert_eq!(backoff(base, 10, 10_000_000), MAX_BACKOFF);
        assert_eq!(backoff(Duration::ZERO, 10, 77), Duration::ZERO);
    }
}

//! The way of a request through a rule's filters: inwards to the action, and outwards again from where an answer was made.

use std::sync::Arc;

use super::contract::{Decision, Filter, Outcome};
use crate::message::{Exchange, ProxyError, Response};

/// Runs `filters` (outermost first) around `action`; `answer` makes the answer of one that fails a request.
///
/// An answer that a filter makes goes outwards from there: through the filters outside of it, neither through itself nor
/// through those further in. Nothing is allocated here; filters that do not wait cost two virtual calls each.
pub async fn run<F, A>(filters: &[Arc<dyn Filter>], exchange: &mut Exchange, answer: F, action: A) -> Response
where
    F: Fn(&ProxyError) -> Response,
    A: AsyncFnOnce(&mut Exchange) -> Response,
{
    let mut made = None;
    let mut outside = filters.len();
    for (depth, filter) in filters.iter().enumerate() {
        let mut decision = filter.request(exchange);
        while let Decision::Wait(waiting) = decision {
            decision = waiting.await;
        }
        made = match decision {
            Decision::Answer(response) => Some(*response),
            Decision::Fail(error) => Some(answer(&error)),
            Decision::Continue | Decision::Wait(_) => continue,
        };
        outside = depth;
        break;
    }
    let mut response = match made {
        Some(made) => made,
        None => action(exchange).await,
    };
    for filter in filters[..outside].iter().rev() {
        let mut outcome = filter.response(exchange, response);
        while let Outcome::Wait(waiting) = outcome {
            outcome = waiting.await;
        }
        response = match outcome {
            Outcome::Ready(response) => response,
            Outcome::Fail(error) => answer(&error),
            Outcome::Wait(_) => unreachable!("it is waited for above"),
        };
    }
    response
}

//! The way of a request through a rule's filters: inwards to the action, and outwards again from where an answer was made.

use std::sync::Arc;

use super::contract::{Decision, Filter, Outcome};
use crate::message::{Exchange, Response};

/// Runs `filters` (outermost first) around `action`.
///
/// An answer that a filter makes goes outwards from there: through the filters outside of it, neither through itself nor
/// through those further in. Nothing is allocated here; filters that do not wait cost two virtual calls each.
pub async fn run<A>(filters: &[Arc<dyn Filter>], exchange: &mut Exchange, action: A) -> Response
where
    A: AsyncFnOnce(&mut Exchange) -> Response,
{
    let mut answer = None;
    let mut outside = filters.len();
    for (depth, filter) in filters.iter().enumerate() {
        let made = match filter.request(exchange) {
            Decision::Continue => None,
            Decision::Answer(response) => Some(response),
            Decision::Wait(waiting) => waiting.await,
        };
        if let Some(made) = made {
            (answer, outside) = (Some(*made), depth);
            break;
        }
    }
    let mut response = match answer {
        Some(made) => made,
        None => action(exchange).await,
    };
    for filter in filters[..outside].iter().rev() {
        response = match filter.response(exchange, response) {
            Outcome::Ready(response) => response,
            Outcome::Wait(waiting) => waiting.await,
        };
    }
    response
}

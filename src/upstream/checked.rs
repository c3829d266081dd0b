//! Endpoints that are asked how they are, beside the requests: who is to be asked, for how long this plan's word counts,
//! and what came of it.
//!
//! Law: once a backend's successor is there, nothing that was asked by the old plan changes anything.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::health::{Health, RAMP};
use crate::route_map::{CheckPlan, Endpoint};
use crate::upstream::Backend;

/// An endpoint that is asked how it is.
#[derive(Clone, Debug)]
pub struct Checked {
    pub endpoint: Endpoint,
    health: Arc<Health>,
}

#[cfg(test)]
impl Checked {
    pub fn is_unhealthy(&self) -> bool {
        self.health.is_unhealthy()
    }
}

/// For how long a backend's endpoints are asked by its plan. Held without holding the backend.
#[derive(Clone, Debug, Default)]
pub struct Term {
    over: CancellationToken,
    changed: Arc<Notify>,
}

impl Term {
    /// Ends when the backend is no longer the one that is served.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Other endpoints than a moment ago. For one who waits.
    pub async fn new_endpoints(&self) {
        self.changed.notified().await;
    }

    pub(super) fn endpoints_changed(&self) {
        self.changed.notify_one();
    }
}

impl Backend {
    /// How its endpoints are to be asked how they are.
    pub fn check(&self) -> Option<&CheckPlan> {
        self.plan.traffic.check.as_ref()
    }

    pub fn term(&self) -> Term {
        self.term.clone()
    }

    /// Another backend is served in its place, or none: whoever still holds it for a request goes on, checks do not.
    pub fn supersede(&self) {
        // With the lock: what is being found now is said before this returns, and nothing after.
        let _one_at_a_time = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        self.term.over.cancel();
    }

    /// Who is to be asked; each address once.
    pub fn checked(&self) -> Vec<Checked> {
        let all = self.endpoints();
        let mut known = HashSet::new();
        let both = all.set.endpoints.iter().zip(&all.healths);
        both.filter(|(endpoint, _)| known.insert(endpoint.address))
            .map(|(endpoint, health)| Checked { endpoint: endpoint.clone(), health: Arc::clone(health) })
            .collect()
    }

    /// What came of asking one.
    pub fn found(&self, one: &Checked, outcome: Result<(), String>) {
        let Some(plan) = self.check() else { return };
        let changed = {
            let _one_at_a_time = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
            if self.term.over.is_cancelled() {
                return;
            }
            self.stats.check(outcome.is_ok());
            one.health.checked(outcome.is_ok(), plan)
        };
        match (changed, outcome) {
            (None, _) => return,
            (Some(_), Ok(())) => {
                one.health.returns(self.plan.traffic.slow_start.unwrap_or(RAMP));
                tracing::info!(backend = %self.plan.id, endpoint = %one.endpoint.address, "endpoint healthy");
            }
            (Some(_), Err(error)) => {
                let endpoint = one.endpoint.address;
                tracing::warn!(backend = %self.plan.id, %endpoint, error, "endpoint unhealthy");
            }
        }
        self.judge();
    }
}

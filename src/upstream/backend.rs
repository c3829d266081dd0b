//! A backend as all workers share it: its plan and where its requests can go now.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::budget::RetryBudget;
use super::tls::Security;
use crate::route_map::{BackendPlan, EndpointSet};
use crate::telemetry::BackendStats;

#[derive(Debug)]
pub struct Backend {
    pub plan: Arc<BackendPlan>,
    /// Dense number of the backend among those that live: workers keep their pools in a table by it. It may be given
    /// again once this backend is gone.
    pub slot: usize,
    pub stats: Arc<BackendStats>,
    pub(super) security: Security,
    budget: RetryBudget,
    endpoints: ArcSwap<EndpointSet>,
}

impl Backend {
    pub fn new(plan: Arc<BackendPlan>, slot: usize, stats: Arc<BackendStats>) -> Self {
        let security = Security::new(plan.tls.as_deref(), &plan.id);
        Self {
            plan,
            slot,
            stats,
            security,
            budget: RetryBudget::new(),
            endpoints: ArcSwap::from_pointee(EndpointSet::default()),
        }
    }

    /// Where requests go from now on; connections to endpoints that are gone take no new ones.
    pub fn set_endpoints(&self, endpoints: EndpointSet) {
        self.endpoints.store(Arc::new(endpoints));
    }

    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    /// Whether one more retry fits into what the backend is to bear; then it is counted.
    pub(super) fn may_retry(&self, percent: u8) -> bool {
        self.budget.spend(percent, self.stats.requests())
    }

    /// To be called once a second.
    pub(super) fn tick(&self, now: Instant) {
        self.budget.tick(now, || self.stats.requests());
    }

    /// Whether `known` is still the newest set; cheaper than to fetch it.
    pub(super) fn has_endpoints(&self, known: &Arc<EndpointSet>) -> bool {
        Arc::ptr_eq(&self.endpoints.load(), known)
    }
}

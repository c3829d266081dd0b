//! A backend as all workers share it: its plan and where its requests can go now.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::route_map::{BackendPlan, EndpointSet};
use crate::telemetry::BackendStats;

#[derive(Debug)]
pub struct Backend {
    pub plan: Arc<BackendPlan>,
    /// Dense number of the backend among those that live: workers keep their pools in a table by it.
    pub slot: usize,
    pub stats: Arc<BackendStats>,
    endpoints: ArcSwap<EndpointSet>,
}

impl Backend {
    pub fn new(plan: Arc<BackendPlan>, slot: usize, stats: Arc<BackendStats>) -> Self {
        Self { plan, slot, stats, endpoints: ArcSwap::from_pointee(EndpointSet::default()) }
    }

    /// Where requests go from now on; connections to endpoints that are gone take no new ones.
    pub fn set_endpoints(&self, endpoints: EndpointSet) {
        self.endpoints.store(Arc::new(endpoints));
    }
}

//! What a replica knows of a backend's endpoints, for people who look.

use super::health::Standing;
use crate::route_map::Endpoint;
use crate::upstream::Backend;

/// How one stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    pub endpoint: Endpoint,
    pub fitness: Fitness,
    /// In the gateway's own zone. None: zones are all the same.
    pub near: Option<bool>,
}

/// Whether it is asked, as far as that is the same for all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fitness {
    Good,
    /// It is new, or back: it gets so many of a hundred of its requests.
    Recovering(u64),
    /// By how requests went.
    Ejected,
    /// By active checks.
    Unhealthy,
}

impl Backend {
    /// In the order of the set; an address that two names lead to is there twice.
    pub fn states(&self) -> Vec<EndpointState> {
        let all = self.endpoints();
        let knows_zones = all.near_share().is_some();
        let state = |(endpoint, health): (&Endpoint, &std::sync::Arc<super::health::Health>)| EndpointState {
            endpoint: endpoint.clone(),
            fitness: match health.standing() {
                Standing::Good => Fitness::Good,
                Standing::Recovering(share) => Fitness::Recovering(share),
                Standing::Ejected => Fitness::Ejected,
                Standing::Unhealthy => Fitness::Unhealthy,
            },
            near: knows_zones.then(|| all.set.near.binary_search(&endpoint.address).is_ok()),
        };
        all.set.endpoints.iter().zip(&all.healths).map(state).collect()
    }

    /// So few are fit that all are asked.
    pub fn is_in_panic(&self) -> bool {
        self.endpoints().in_panic()
    }
}

//! A backend as all workers share it: its plan and where its requests can go now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::budget::RetryBudget;
use super::health::{Health, Standing};
use super::tls::Security;
use super::{Guard, connect};
use crate::route_map::{BackendPlan, Balance, Endpoint, EndpointSet};
use crate::telemetry::BackendStats;

/// What an endpoint that gives no answer is taken to need for one.
const NO_ANSWER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Backend {
    pub plan: Arc<BackendPlan>,
    /// Dense number of the backend among those that live: workers keep their pools in a table by it. It may be given
    /// again once this backend is gone.
    pub slot: usize,
    pub stats: Arc<BackendStats>,
    pub(super) security: Security,
    budget: RetryBudget,
    endpoints: ArcSwap<Endpoints>,
}

/// Where requests can go now, and what is known of each place, in the same order.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    pub set: EndpointSet,
    pub healths: Vec<Arc<Health>>,
}

impl Backend {
    pub fn new(plan: Arc<BackendPlan>, slot: usize, stats: Arc<BackendStats>) -> Self {
        let security = Security::new(plan.tls.as_deref(), &plan.id);
        let budget = RetryBudget::new(stats.requests());
        Self { plan, slot, stats, security, budget, endpoints: ArcSwap::default() }
    }

    /// Where requests go from now on; connections to endpoints that are gone take no new ones.
    pub fn set_endpoints(&self, set: EndpointSet) {
        let before = self.endpoints.load();
        let known: HashMap<_, _> = before.healths.iter().map(|health| (health.address, health)).collect();
        let health =
            |address| known.get(&address).map_or_else(|| Arc::new(Health::new(address)), |h| Arc::clone(h));
        let healths = set.endpoints.iter().map(|endpoint| health(endpoint.address)).collect();
        self.endpoints.store(Arc::new(Endpoints { set, healths }));
    }

    pub(super) fn endpoints(&self) -> Arc<Endpoints> {
        self.endpoints.load_full()
    }

    /// Whether it matters how requests went.
    pub(super) fn cares(&self) -> bool {
        self.plan.traffic.ejection.is_some()
    }

    /// Whether it matters how long answers took.
    pub(super) fn measures(&self) -> bool {
        self.plan.traffic.balance == Balance::PeakEwma
    }

    /// Whether as many requests are under way as may be. Workers that ask at once may each let one more pass.
    pub(super) fn is_full(&self) -> bool {
        self.plan.traffic.max_requests.is_some_and(|most| self.stats.active_now() >= u64::from(most))
    }

    /// An endpoint gave no answer.
    pub(super) fn failed(&self, health: &Health) {
        if self.measures() {
            // Who closes at once would be the quickest of all.
            health.measure(NO_ANSWER);
        }
        self.is_bad(health);
    }

    /// An endpoint answered badly, or not at all: it is left alone once that was too often and enough others are left.
    pub(super) fn is_bad(&self, health: &Health) {
        let Some(plan) = &self.plan.traffic.ejection else { return };
        if !health.failed(plan) {
            return;
        }
        let all = self.endpoints.load();
        if (all.ejected() + 1) * 100 > all.healths.len() * usize::from(plan.max_percent) {
            return;
        }
        let time = health.eject(plan);
        self.stats.ejection();
        tracing::warn!(backend = %self.plan.id, endpoint = %health.address, ?time, "endpoint ejected");
    }

    /// Whether one more retry fits into what the backend is to bear; then it is counted.
    pub(super) fn may_retry(&self, percent: u8) -> bool {
        self.budget.spend(percent, self.stats.requests())
    }

    /// To be called once a second.
    pub(super) fn tick(&self, now: Instant) {
        self.budget.tick(now, || self.stats.requests());
        if self.plan.traffic.ejection.is_some() {
            self.stats.set_ejected(self.endpoints.load().ejected());
        }
    }

    /// Where requests can go now, for who asks it beside the requests.
    pub fn known_endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.load().set.endpoints.clone()
    }

    /// A connection to one of its endpoints, by the guard and with what its plan has to prove, for who speaks on it
    /// beside the requests.
    ///
    /// # Errors
    /// One sentence for the log.
    pub async fn dial(
        &self,
        endpoint: &Endpoint,
        guard: &Guard,
        until: Instant,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, String> {
        let tls = match &self.security {
            Security::Plain => None,
            Security::Tls(client) => Some((client, client.name_of(endpoint))),
            Security::Unusable => return Err("TLS to it cannot be set up".into()),
        };
        connect::reach(endpoint.address, guard, tls, until).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("{error}{}", cause.unwrap_or_default())
        })
    }

    /// Whether `known` is still the newest set; cheaper than to fetch it.
    pub(super) fn has_endpoints(&self, known: &Arc<Endpoints>) -> bool {
        Arc::ptr_eq(&self.endpoints.load(), known)
    }
}

impl Endpoints {
    fn ejected(&self) -> usize {
        self.healths.iter().filter(|health| health.standing() == Standing::Ejected).count()
    }
}

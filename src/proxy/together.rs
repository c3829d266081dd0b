//! What a backend may be asked by all replicas together, counted in their store.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::filters::{Count, Store, Told, Verdict};
use crate::route_map::RatePlan;
use crate::upstream::{Counted, Together};

#[derive(Debug)]
pub struct InStore {
    store: Arc<Store>,
    count: Count,
}

impl InStore {
    /// Replicas of one cluster count under one name; `whom`: the backend's and its host's are part of it.
    pub fn new(store: Arc<Store>, whom: &str, plan: &RatePlan) -> Self {
        let (interval, burst) = plan.rate.micros();
        let count =
            Count { key: format!("portcullis:backend:{{{whom}}}"), interval, burst, cost: 1, enforced: true };
        Self { store, count }
    }
}

impl Together for InStore {
    fn charge(&self) -> Option<Pin<Box<dyn Future<Output = Option<Counted>>>>> {
        let (store, count) = (Arc::clone(&self.store), self.count.clone());
        Some(Box::pin(async move {
            match store.charge(vec![count])?.await {
                Verdict::All(told) => (!told.contains(&Told::Away)).then_some(Ok(())),
                Verdict::Full { wait, .. } => Some(Err(wait.map_or(LONGEST, Duration::from_micros))),
            }
        }))
    }
}

/// One that no time empties; the compiler lets none of those pass.
const LONGEST: Duration = Duration::from_secs(3600);

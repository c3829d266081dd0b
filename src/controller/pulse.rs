//! Whether what is known is in step with the API server: every first list was had, no watch is failing, and the server
//! answers. A watch is silent when nothing changes, so the heartbeat is the lease's request, every 2 s.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::Telemetry;

/// A watch that failed so long ago and not again since works: it is tried again within 4 s.
const RECOVERED: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub struct Pulse {
    state: Arc<Mutex<State>>,
    telemetry: Telemetry,
}

#[derive(Debug, Default)]
struct State {
    listed: bool,
    trouble: Option<Instant>,
}

impl Pulse {
    pub fn new(telemetry: Telemetry) -> Self {
        Self { state: Arc::default(), telemetry }
    }

    /// Every first list was had.
    pub fn listed(&self) {
        self.state().listed = true;
        self.beat();
    }

    /// A watch failed.
    pub fn trouble(&self) {
        self.state().trouble = Some(Instant::now());
    }

    /// The API server answered.
    pub fn beat(&self) {
        if self.is_in_step() {
            self.telemetry.control().synced();
        }
    }

    fn is_in_step(&self) -> bool {
        let state = self.state();
        state.listed && state.trouble.is_none_or(|at| at.elapsed() > RECOVERED)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn in_step_only_after_the_lists_and_while_no_watch_fails() {
        let pulse = Pulse::new(Telemetry::new(1));
        assert!(!pulse.is_in_step());
        pulse.listed();
        assert!(pulse.is_in_step());
        pulse.trouble();
        assert!(!pulse.is_in_step());
        tokio::time::advance(RECOVERED + Duration::from_secs(1)).await;
        assert!(pulse.is_in_step());
    }
}

//! The handles that the data path counts with. They are resolved when a map is installed, never per request.

use std::sync::Arc;
use std::time::Duration;

/// All series of the process. A series goes when its last handle does.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {}

/// One finished request. Everything in it is from configuration or a closed set.
#[derive(Clone, Debug)]
pub struct Sample {
    pub status: u16,
    pub method: http::Method,
    /// "HTTP/1.0", "HTTP/1.1" or "HTTP/2"
    pub protocol: &'static str,
    pub scheme: &'static str,
    /// From the request's head to the end of the answer's body.
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Why the gateway itself answered, or why the answer was cut.
    pub reason: Option<&'static str>,
}

/// Series of one rule.
#[derive(Debug, Default)]
pub struct RuleStats {}

/// Series of one backend.
#[derive(Debug, Default)]
pub struct BackendStats {}

/// Series of one worker: connections, handshakes.
#[derive(Debug, Default)]
pub struct WorkerStats {}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
pub struct InFlight {}

/// Where access log lines go; they are dropped and counted when it does not keep up.
#[derive(Clone, Debug, Default)]
pub struct AccessLog {}

impl Telemetry {
    /// The series of a rule; the same ones while anybody holds them. No rule: requests that matched none.
    pub fn rule(&self, namespace: &str, route: &str, rule: &str) -> Arc<RuleStats> {
        let _ = (namespace, route, rule);
        Arc::default()
    }

    pub fn backend(&self, backend: &str) -> Arc<BackendStats> {
        let _ = backend;
        Arc::default()
    }

    pub fn worker(&self, index: usize) -> Arc<WorkerStats> {
        let _ = index;
        Arc::default()
    }

    /// Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        String::new()
    }
}

impl RuleStats {
    pub fn record(&self, worker: usize, sample: &Sample) {
        let _ = (worker, sample);
    }

    pub fn start(self: &Arc<Self>, worker: usize) -> InFlight {
        let _ = worker;
        InFlight {}
    }
}

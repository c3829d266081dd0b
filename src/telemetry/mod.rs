//! What is counted and logged. Metric cells are per worker and summed at scrape; the access log never blocks a worker.

mod stats;

pub use stats::{AccessLog, BackendStats, InFlight, RuleStats, Sample, Telemetry, WorkerStats};

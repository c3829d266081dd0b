//! What is counted and logged. Metric cells are per worker and summed at scrape; the access log never blocks a worker.

mod access_log;
mod backend;
mod cells;
mod control;
mod rule;
mod stats;
mod worker;

pub use access_log::{AccessLog, AccessTarget, AccessWriter, Record};
pub use backend::{BackendStats, Connect};
pub use control::{CertificateExpiry, ControlStats, Programmed};
pub use rule::{InFlight, RuleStats, Sample};
pub use stats::Telemetry;
pub use worker::{HandshakeFailure, OpenConnection, WorkerStats};

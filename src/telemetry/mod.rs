//! What is counted and logged. Metric cells are per worker and summed at scrape; the access log never blocks a worker.

mod access_log;
mod backend;
mod cells;
mod control;
mod hits;
mod names;
mod passage;
mod record;
mod render;
mod rule;
mod sample;
mod stats;
mod table;
mod worker;

pub use access_log::{AccessLog, AccessTarget, AccessWriter};
pub use backend::{BackendStats, Connect, Retry, Session};
pub use control::{CertificateExpiry, ControlStats, HostSeries, Programmed};
pub use hits::HitCount;
pub use names::NameSeries;
pub use passage::{OpenPassage, PassageEnd, PassageStats};
pub use record::{Record, Somebody};
pub use rule::{InFlight, RuleStats};
pub use sample::{Cached, CallStatus, Consulted, Limited, Packed, Ruling, Sample};
pub use stats::Telemetry;
pub use worker::{HandshakeFailure, HeaderRefusal, OpenConnection, WorkerStats};

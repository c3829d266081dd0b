//! Snapshot → (RouteMap, Reports): pure, synchronous, total. No clock, I/O, randomness or logging.

mod published;
mod report;

use std::sync::Arc;

pub use published::Published;
pub use report::{Condition, ConditionStatus, ConditionType, ObjectRef, Report, RuleReport};

use crate::route_map::{EndpointSet, RouteMap};
use crate::snapshot::Snapshot;
use crate::values::ObjectName;

/// What the installation decides about compiling; the same on all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Routes of another class are not ours: no report, nothing served.
    pub class_name: Arc<str>,
    pub hostnames: HostnameClaims,
    pub loopback: LoopbackHosts,
}

/// Who may claim a hostname.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostnameClaims {
    FirstCome,
    /// Only what the namespace's annotation `portcullis.dev/hostnames` lists.
    Listed,
}

/// Whether a GatewayBackend may name a loopback address (file mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopbackHosts {
    Allowed,
    Refused,
}

/// What is carried from one compile to the next. An empty one gives the same result, later.
#[derive(Default)]
pub struct Memo {}

/// The result: what to serve, and what to say about each of our objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    pub map: Arc<RouteMap>,
    /// In the order of kind and name.
    pub reports: Vec<Arc<Report>>,
}

/// Compiles the whole world, reusing from `memo` what did not change.
pub fn compile(world: &Snapshot, options: &Options, memo: Memo) -> (Compiled, Memo) {
    let _ = (world, options, memo);
    (Compiled { map: Arc::default(), reports: Vec::new() }, Memo::default())
}

/// The addresses that take new requests for a Service's port.
pub fn endpoints(world: &Snapshot, service: &ObjectName, port: u16) -> EndpointSet {
    let _ = (world, service, port);
    EndpointSet::default()
}

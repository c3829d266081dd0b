//! The map itself: hostname → host → match table → rule.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::filters::AnyPlan;
use crate::message::Labels;
use crate::route_map::{Action, BackendPlan, HostTls, MatchTable};
use crate::values::{BackendId, Hostname};

/// All that is served at one instant. Hosts and backends are shared with the map before where nothing changed:
/// `install` compares by pointer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteMap {
    pub hosts: BTreeMap<Hostname, Arc<Host>>,
    /// What answers every host that no other entry names.
    pub catch_all: Option<Arc<Host>>,
    pub backends: BTreeMap<BackendId, Arc<BackendPlan>>,
}

/// Everything about one hostname.
#[derive(Debug, PartialEq)]
pub struct Host {
    /// `None` for the catch-all.
    pub hostname: Option<Hostname>,
    /// `None`: served on plain HTTP only.
    pub tls: Option<HostTls>,
    pub table: MatchTable,
}

/// One rule of one route, with every policy member that is effective on it.
#[derive(Debug, PartialEq)]
pub struct Rule {
    pub labels: Arc<Labels>,
    /// Filters in the order of work on the way in: by ring, then by row. The index is the row in the registry.
    pub filters: Vec<(usize, AnyPlan)>,
    pub action: Action,
}

//! Everything that one process is told at its start. Nothing of it changes later.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::background::{ResolverSettings, StoreUrl};
use crate::compile;
use crate::controller;
use crate::proxy;
use crate::telemetry::AccessTarget;
use crate::values::ObjectName;

#[derive(Clone, Debug)]
pub struct Settings {
    pub source: Source,
    pub proxy: proxy::Settings,
    pub compile: compile::Options,
    /// Metrics, health, `/status`. None: no such listener.
    pub admin: Option<SocketAddr>,
    /// The token that purges want to see. None: no purges.
    pub admin_token: Option<PathBuf>,
    pub access_log: AccessTarget,
    /// Where names are looked up.
    pub resolver: ResolverSettings,
    /// The zone that this replica is in, if that is known.
    pub zone: Option<Arc<str>>,
    /// No backend may be there.
    pub own_pods: OwnPods,
    /// Where replicas count together.
    pub store: Option<Store>,
    /// How long to go on accepting after the signal to end, while load balancers learn of it.
    pub drain_delay: Duration,
    /// How long open requests have after that.
    pub drain_timeout: Duration,
}

/// How the gateway's own Pods are known.
#[derive(Clone, Debug, Default)]
pub struct OwnPods {
    /// This one.
    pub address: Option<IpAddr>,
    /// The headless Service over all of them.
    pub service: Option<ObjectName>,
}

/// The store in which replicas count together.
#[derive(Clone, Debug)]
pub struct Store {
    pub url: StoreUrl,
    /// No request waits for it longer.
    pub patience: Duration,
}

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Folders and files of manifests.
    Files(Vec<PathBuf>),
    /// The API server of a cluster, and where the other replicas ask this one.
    Cluster { controller: Box<controller::Settings>, peer: Option<SocketAddr> },
}

/// A worker for each CPU that the process may use (affinity and cgroup quota), at most 16.
pub fn default_workers() -> usize {
    // Linux: the standard library reads both, quota rounded down but never to zero.
    std::thread::available_parallelism().map_or(1, usize::from).min(16)
}

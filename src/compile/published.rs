//! What this process serves now, as reconcile tells it: the base of status, of the peers' protocol and of `/status`.

use std::sync::Arc;

use super::Compiled;
use crate::snapshot::Snapshot;

/// One installed route map with the world that it was made from. Passed on through a `tokio::sync::watch` channel of
/// `Option<Arc<Published>>`; `None` until the first map is installed.
#[derive(Clone, Debug)]
pub struct Published {
    /// Counts installs from 1.
    pub sequence: u64,
    /// The map that every worker serves, and its reports: each holds the generation and `resolved` fingerprint that
    /// this process serves of an object of ours. What has no report here is not served.
    pub compiled: Compiled,
    /// What it was compiled from; a manifest's `status` here is the newest one that had been heard of.
    pub world: Arc<Snapshot>,
}

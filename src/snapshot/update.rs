//! What a source of objects (the API server's watches, a folder of files) hands over, in the order in which it happened.

use super::object::Change;

/// One message of a source. Sources send them through a bounded channel: when reconcile does not keep up, they wait.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Happened together: no route map is made from a part of them.
    Changes(Vec<Change>),
    /// Everything that was there at the start has been told: the first route map may be made and installed.
    Synced,
}

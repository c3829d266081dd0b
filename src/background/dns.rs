//! Host names of backends, resolved again and again while the installed route map has them.

use crate::route_map::{Address, EndpointSet};
use crate::values::BackendId;

/// The running resolver. It stops when it is dropped.
#[derive(Debug)]
pub struct Names {}

impl Names {
    /// Starts on the runtime of the caller. `publish` is told the endpoints of a backend whenever they change; it must
    /// not block.
    pub fn start(publish: impl Fn(&BackendId, EndpointSet) + Send + 'static) -> Self {
        let _ = publish;
        Self {}
    }

    /// The backends with hosts of the map that is installed now, addresses among them or not. What was resolved before
    /// is published again, so that a backend that is new in the map has its endpoints at once.
    pub fn wanted(&self, backends: Vec<(BackendId, Vec<(Address, u16)>)>) {
        let _ = backends;
    }
}

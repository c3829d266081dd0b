//! `/endpoints`: how each endpoint of each backend stands with this replica, as JSON for people and scripts.

use std::sync::Arc;

use serde::Serialize;

use crate::proxy::DataPlane;
use crate::upstream::{Backend, EndpointState, Fitness};

/// At most so many endpoints; `omitted` counts the others. Backends of which not all are good come first.
const MOST: usize = 10_000;

#[derive(Serialize)]
struct Document {
    backends: Vec<Entry>,
    omitted: usize,
}

#[derive(Serialize)]
struct Entry {
    backend: String,
    /// So few are fit that all are asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    panic: bool,
    endpoints: Vec<Place>,
}

#[derive(Serialize)]
struct Place {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Arc<str>>,
    state: &'static str,
    /// Of a hundred of its requests it gets so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    near: Option<bool>,
}

pub fn render(plane: &DataPlane) -> String {
    let mut entries: Vec<_> = plane.backends().iter().map(|backend| entry(backend)).collect();
    entries
        .sort_unstable_by(|one, other| (one.is_good(), &one.backend).cmp(&(other.is_good(), &other.backend)));
    let document = bounded(entries, MOST);
    serde_json::to_string_pretty(&document).map_or_else(|error| error.to_string(), |text| text + "\n")
}

fn bounded(mut entries: Vec<Entry>, most: usize) -> Document {
    let (mut left, mut omitted) = (most, 0);
    entries.retain_mut(|entry| {
        omitted += entry.endpoints.len().saturating_sub(left);
        let is_shown = left > 0 || entry.endpoints.is_empty();
        entry.endpoints.truncate(left);
        left -= entry.endpoints.len();
        is_shown
    });
    Document { backends: entries, omitted }
}

fn entry(backend: &Backend) -> Entry {
    let endpoints = backend.states().into_iter().map(place).collect();
    Entry { backend: backend.plan.id.to_string(), panic: backend.is_in_panic(), endpoints }
}

fn place(EndpointState { endpoint, fitness, near }: EndpointState) -> Place {
    let (state, share) = match fitness {
        Fitness::Good => ("good", None),
        Fitness::Recovering(share) => ("recovering", Some(share)),
        Fitness::Ejected => ("ejected", None),
        Fitness::Unhealthy => ("unhealthy", None),
    };
    Place { address: endpoint.address.to_string(), name: endpoint.name, state, share, near }
}

impl Entry {
    fn is_good(&self) -> bool {
        self.endpoints.iter().all(|place| place.state == "good")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_counted() {
        let entry = |count: u16| Entry {
            backend: count.to_string(),
            panic: false,
            endpoints: (1..=count)
                .map(|port| {
                    let endpoint = std::net::SocketAddr::from(([10, 0, 0, 1], port)).into();
                    place(EndpointState { endpoint, fitness: Fitness::Good, near: None })
                })
                .collect(),
        };
        let shown = bounded([3, 0, 4, 2].map(entry).into(), 5);
        let counts: Vec<_> = shown.backends.iter().map(|entry| entry.endpoints.len()).collect();
        assert_eq!((counts, shown.omitted), (vec![3, 0, 2], 2 + 2));
        let all = bounded([3, 0, 4, 2].map(entry).into(), 9);
        assert_eq!((all.backends.len(), all.omitted), (4, 0));
    }
}

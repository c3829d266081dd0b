//! What the egress guard must know of the world: where the API server answers and which Pods are the gateway's own.
//!
//! Both stand in EndpointSlices, of the Service `kubernetes` and of the headless Service over all replicas. Where those
//! cannot be read, the API server is known by the address under which it is asked, and this Pod by its own.

use std::net::{IpAddr, SocketAddr};

use tokio::sync::watch;

use super::OwnPods;
use crate::snapshot::Snapshot;
use crate::upstream::{Guard, Own};
use crate::values::ObjectName;

/// Keeps the guard at what holds.
pub struct Egress {
    guard: Guard,
    own: OwnPods,
    /// The Service that every cluster has.
    kubernetes: ObjectName,
    /// Where the API server is asked, and where it says it is.
    asked: watch::Receiver<Vec<SocketAddr>>,
}

impl Egress {
    pub fn new(guard: Guard, own: OwnPods, asked: watch::Receiver<Vec<SocketAddr>>) -> Self {
        Self { guard, own, kubernetes: ObjectName::new("default", "kubernetes"), asked }
    }

    /// Whether a change of this Service's endpoints changes what the guard must know.
    pub fn follows(&self, service: &ObjectName) -> bool {
        *service == self.kubernetes || self.own.service.as_ref() == Some(service)
    }

    /// Waits for news of where the API server is asked; for ever where nobody asks it.
    pub async fn news(&mut self) {
        if self.asked.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Tells the guard what holds in this world.
    pub fn tell(&self, world: &Snapshot) {
        let mut own = Own::default();
        own.api_server.extend(self.asked.borrow().iter().map(canonical));
        for slice in world.slices_of(&self.kubernetes) {
            for address in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
                let sockets = slice.ports.iter().map(|port| SocketAddr::new(*address, port.port));
                own.api_server.extend(sockets.map(|socket| canonical(&socket)));
            }
        }
        own.pods.extend(self.own.address.as_ref().map(IpAddr::to_canonical));
        let slices = self.own.service.iter().flat_map(|service| world.slices_of(service));
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        own.pods.extend(endpoints.flat_map(|endpoint| &endpoint.addresses).map(IpAddr::to_canonical));
        self.guard.protect(own);
    }
}

/// As the guard compares them.
fn canonical(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

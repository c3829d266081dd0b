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
        // The API server keeps this one; others of the label are whoever's may write slices there.
        for slice in world.slices_of(&self.kubernetes).filter(|slice| slice.name == self.kubernetes) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Change, EndpointAddress, EndpointSliceData, Object, SlicePort};
    use crate::upstream::Loopback;

    fn slice(name: &str, address: &str) -> Change {
        Change::Put(Object::EndpointSlice(EndpointSliceData {
            name: ObjectName::new("default", name),
            service: "kubernetes".into(),
            ports: vec![SlicePort { name: "https".into(), port: 6443 }],
            endpoints: vec![EndpointAddress {
                addresses: vec![address.parse().expect("an address")],
                ready: true,
                serving: true,
                terminating: false,
                target: None,
            }],
        }))
    }

    #[test]
    fn only_the_api_server_s_own_slice_says_where_it_is() {
        let guard = Guard::new(Loopback::Refused);
        let (_asked, asked) = watch::channel(Vec::new());
        let egress = Egress::new(guard.clone(), OwnPods::default(), asked);
        let mut world = Snapshot::default();
        world.apply(slice("kubernetes", "10.1.0.1"));
        world.apply(slice("somebody-s", "10.1.0.2"));
        egress.tell(&world);
        let permits =
            |address: &str| guard.permits(SocketAddr::new(address.parse().expect("an address"), 6443));
        assert!(!permits("10.1.0.1"), "the API server");
        assert!(permits("10.1.0.2"), "a backend that somebody calls the API server");
    }
}

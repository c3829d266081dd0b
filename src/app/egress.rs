//! What the egress guard must know of the world: where the API server answers, which Pods are the gateway's own, and
//! which Services lead to them.
//!
//! It stands in EndpointSlices, of the Service `kubernetes` and of the headless Service over all replicas, and of those
//! beside that one in its namespace (who may write others could have somebody else's address refused). Where those
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

    /// Whether a change of this Service or its endpoints changes what the guard must know.
    pub fn follows(&self, service: &ObjectName) -> bool {
        *service == self.kubernetes || self.is_beside_us(service)
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
        for service in world.services.values().filter(|service| self.is_beside_us(&service.name)) {
            let endpoints = world.slices_of(&service.name).flat_map(|slice| &slice.endpoints);
            let mut addresses = endpoints.flat_map(|endpoint| &endpoint.addresses);
            if addresses.any(|address| own.pods.contains(&address.to_canonical())) {
                let ports = service.ports.iter().map(|port| port.port);
                let sockets =
                    ports.flat_map(|port| service.addresses.iter().map(move |ip| SocketAddr::new(*ip, port)));
                own.services.extend(sockets.map(|socket| canonical(&socket)));
            }
        }
        self.guard.protect(own);
    }

    fn is_beside_us(&self, service: &ObjectName) -> bool {
        self.own.service.as_ref().is_some_and(|own| own.namespace == service.namespace)
    }
}

/// As the guard compares them.
fn canonical(address: &SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Change, EndpointAddress, EndpointSliceData, Kind, Object, ServiceData, SlicePort};
    use crate::upstream::Loopback;

    fn slice(name: &str, address: &str) -> Change {
        slice_of(ObjectName::new("default", name), "kubernetes", address)
    }

    fn slice_of(name: ObjectName, service: &str, address: &str) -> Change {
        Change::Put(Object::EndpointSlice(EndpointSliceData {
            name,
            service: service.into(),
            ports: vec![SlicePort { name: "https".into(), port: 6443 }],
            endpoints: vec![EndpointAddress {
                addresses: vec![address.parse().expect("an address")],
                ready: true,
                serving: true,
                terminating: false,
                target: None,
                zone: None,
                for_zones: Vec::new(),
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
        let permits = |address: &str| {
            guard.to_services().permits(SocketAddr::new(address.parse().expect("an address"), 6443))
        };
        assert!(!permits("10.1.0.1"), "the API server");
        assert!(permits("10.1.0.2"), "a backend that somebody calls the API server");
    }

    #[test]
    fn services_that_lead_to_us_are_ours_port_by_port_if_they_stand_beside_us() {
        let guard = Guard::new(Loopback::Refused);
        let (_asked, asked) = watch::channel(Vec::new());
        let own = OwnPods { address: None, service: Some(ObjectName::new("gateway", "replicas")) };
        let egress = Egress::new(guard.clone(), own, asked);
        let mut world = Snapshot::default();
        world.apply(slice_of(ObjectName::new("gateway", "replicas-1"), "replicas", "10.1.0.1"));
        for (number, (namespace, name, leads_to)) in [
            ("gateway", "front", "10.1.0.1"),
            ("gateway", "store", "10.1.0.2"),
            ("tenant", "front", "10.1.0.1"),
        ]
        .into_iter()
        .enumerate()
        {
            let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(serde_json::json!({
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"clusterIPs": [format!("10.9.0.{number}"), "fd00::9"], "ports": [{"port": 443}]},
                "status": {"loadBalancer": {"ingress": [{"ip": format!("198.51.100.{number}")}, {"hostname": "a.example"}]}},
            }))
            .expect("a Service");
            let service = ServiceData::new(service, None).expect("complete");
            assert_eq!(egress.follows(&service.name), namespace == "gateway");
            world.apply(Change::Put(Object::Service(service)));
            world.apply(slice_of(ObjectName::new(namespace, name), name, leads_to));
        }
        egress.tell(&world);
        let permits = |address: &str| guard.to_services().permits(address.parse().expect("an address"));
        for address in ["10.9.0.0:443", "198.51.100.0:443", "[fd00::9]:443", "10.1.0.1:80"] {
            assert!(!permits(address), "{address}");
        }
        for address in ["10.9.0.0:80", "10.9.0.1:443", "198.51.100.1:443", "10.9.0.2:443", "198.51.100.2:443"]
        {
            assert!(permits(address), "{address}");
        }
        world.apply(Change::Gone(Kind::Service, ObjectName::new("gateway", "front")));
        egress.tell(&world);
        assert!(permits("198.51.100.0:443"), "as long as it is there");
    }
}

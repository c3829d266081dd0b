//! Services and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::question::Asker;
use crate::route_map::{BackendPlan, BackendProtocol, BackendTarget, Endpoint, EndpointSet};
use crate::snapshot::{EndpointAddress, EndpointSliceData, Snapshot};
use crate::values::{BackendId, ObjectName, Reason};

/// Why a Service's port cannot be a backend.
pub(super) enum Unusable {
    NoService(ObjectName),
    NoPort(ObjectName, u16, Vec<u16>),
    ExternalName(ObjectName),
}

impl Unusable {
    pub fn into_parts(self) -> (Reason, String) {
        match self {
            Self::NoService(name) => (
                Reason::BackendNotFound,
                format!("there is no Service {name}; create it or correct the name"),
            ),
            Self::NoPort(name, port, ports) => {
                let known: Vec<_> = ports.iter().map(u16::to_string).collect();
                (
                    Reason::PortNotFound,
                    format!("Service {name} has no port {port}; it has {}", known.join(", ")),
                )
            }
            Self::ExternalName(name) => (
                Reason::InvalidKind,
                format!(
                    "Service {name} is of type ExternalName, which is not served; use a GatewayBackend with hosts"
                ),
            ),
        }
    }
}

/// What the port says that is spoken there.
pub(super) fn check(
    name: &ObjectName,
    port: u16,
    asker: &mut Asker<'_>,
) -> Result<BackendProtocol, Unusable> {
    let Some(service) = asker.service(name) else { return Err(Unusable::NoService(name.clone())) };
    if service.external_name.is_some() {
        return Err(Unusable::ExternalName(name.clone()));
    }
    let Some(known) = service.ports.iter().find(|known| known.port == port) else {
        let ports = service.ports.iter().map(|known| known.port).collect();
        return Err(Unusable::NoPort(name.clone(), port, ports));
    };
    Ok(match known.app_protocol.as_deref() {
        Some("kubernetes.io/h2c" | "h2c" | "grpc") => BackendProtocol::Http2,
        _ => BackendProtocol::Http1,
    })
}

/// The addresses that take new requests for a Service's port: ready ones that are not terminating; when there is none,
/// those that terminate but still serve (as kube-proxy does). One address of each endpoint, each address once.
///
/// `zone`: the gateway's own. Endpoints are near if their hints name it, as soon as all of them have hints; without any,
/// where the Service prefers near ones, if they stand there.
pub(super) fn endpoints(
    world: &Snapshot,
    service: &ObjectName,
    port: u16,
    zone: Option<&str>,
) -> EndpointSet {
    let Some(known) = world.services.get(service) else { return EndpointSet::default() };
    let Some(name) = known.ports.iter().find(|known| known.port == port).map(|known| &known.name) else {
        return EndpointSet { known: true, ..EndpointSet::default() };
    };
    let gather = |takes: fn(bool, bool, bool) -> bool| -> BTreeMap<SocketAddr, &EndpointAddress> {
        let mut taken = BTreeMap::new();
        let mut targets = BTreeSet::new();
        for slice in by_family(world, service) {
            let Some(port) = slice.ports.iter().find(|port| port.name == *name).map(|port| port.port) else {
                continue;
            };
            for endpoint in &slice.endpoints {
                if !takes(endpoint.ready, endpoint.serving, endpoint.terminating) {
                    continue;
                }
                // A dual-stack Pod stands in a slice of each family: it gets its share once.
                if endpoint.target.as_ref().is_some_and(|target| !targets.insert((target.clone(), port))) {
                    continue;
                }
                if let Some(address) = endpoint.addresses.first() {
                    taken.entry(SocketAddr::new(*address, port)).or_insert(endpoint);
                }
            }
        }
        taken
    };
    let ready = gather(|ready, _, terminating| ready && !terminating);
    let endpoints =
        if ready.is_empty() { gather(|_, serving, terminating| serving && terminating) } else { ready };
    let near = zone.map(|zone| near(&endpoints, zone, known.prefers_near)).unwrap_or_default();
    EndpointSet { endpoints: endpoints.into_keys().map(Endpoint::from).collect(), near, known: true }
}

fn near(
    endpoints: &BTreeMap<SocketAddr, &EndpointAddress>,
    zone: &str,
    prefers_near: bool,
) -> Vec<SocketAddr> {
    let are_hinted = endpoints.values().all(|endpoint| !endpoint.for_zones.is_empty());
    let is_near = |endpoint: &EndpointAddress| match are_hinted {
        true => endpoint.for_zones.iter().any(|hint| **hint == *zone),
        false => prefers_near && endpoint.zone.as_deref() == Some(zone),
    };
    endpoints.iter().filter(|(_, endpoint)| is_near(endpoint)).map(|(address, _)| *address).collect()
}

/// IPv4 slices first.
fn by_family<'w>(world: &'w Snapshot, service: &ObjectName) -> Vec<&'w EndpointSliceData> {
    let mut slices: Vec<_> = world.slices_of(service).collect();
    slices.sort_by_key(|slice| {
        slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).any(IpAddr::is_ipv6)
    });
    slices
}

/// The plan of a Service's port that passed `check`.
pub(super) fn plan(id: &BackendId, service: ObjectName, port: u16, protocol: BackendProtocol) -> BackendPlan {
    BackendPlan { protocol, ..BackendPlan::new(id.clone(), BackendTarget::Service { service, port }) }
}

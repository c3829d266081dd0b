//! References to backends, from rules and from policies alike, and the backends that URLs name.

use std::net::IpAddr;
use std::sync::Arc;

use super::gateway_route::not_permitted;
use super::question::Asker;
use super::services;
use crate::api::GROUP;
use crate::message::ErrorKind;
use crate::route_map::{Address, BackendPlan, BackendTarget, BackendTlsPlan, HostHeader};
use crate::values::{BackendId, BackendKind, FieldPath, ObjectName, Origin, OriginScheme, Problem, Reason};

/// What a reference says.
pub(super) struct Reference<'r> {
    pub kind: BackendKind,
    pub name: &'r str,
    pub namespace: Option<&'r str>,
    pub port: Option<u16>,
}

/// The backend that an object of the namespace `from` means, or what a rule answers in its place and why.
pub(super) fn resolve(
    reference: &Reference<'_>,
    from: &Arc<str>,
    asker: &mut Asker<'_>,
    at: &FieldPath,
) -> Result<Arc<BackendPlan>, (ErrorKind, Problem)> {
    let not_found = |problem| (ErrorKind::BackendNotFound, problem);
    let namespace: Arc<str> = reference.namespace.map_or_else(|| Arc::clone(from), Into::into);
    let name = ObjectName::new(namespace, reference.name);
    let (group, kind) = match reference.kind {
        BackendKind::Service => ("", "Service"),
        BackendKind::GatewayBackend => (GROUP, "GatewayBackend"),
    };
    if !asker.may_refer(from, group, kind, &name) {
        return Err(not_found(not_permitted(at.clone(), kind, &name)));
    }
    match reference.kind {
        BackendKind::Service => {
            let Some(port) = reference.port else {
                let message = "a Service needs a port; add it";
                return Err(not_found(Problem::error(at.field("port"), Reason::Invalid, message)));
            };
            let protocol = services::check(&name, port, asker)
                .map_err(|unusable| not_found(unusable.problem(at.clone())))?;
            let id = BackendId::Service { service: name.clone(), port };
            Ok(Arc::new(services::plan(&id, name, port, protocol)))
        }
        BackendKind::GatewayBackend => gateway_backend(&name, asker, at),
    }
}

fn gateway_backend(
    name: &ObjectName,
    asker: &mut Asker<'_>,
    at: &FieldPath,
) -> Result<Arc<BackendPlan>, (ErrorKind, Problem)> {
    let problem = |message| Problem::error(at.clone(), Reason::BackendNotFound, message);
    let Some(lowered) = asker.backend(name) else {
        let message = format!("there is no GatewayBackend {name}; create it or correct the name");
        return Err((ErrorKind::BackendNotFound, problem(message)));
    };
    lowered.plan.as_ref().map(Arc::clone).map_err(|kind| {
        let message = format!("GatewayBackend {name} cannot be used; its own status says why");
        (*kind, problem(message))
    })
}

/// A host of it that is not this machine, where everybody on the way could read and answer what is asked.
pub(super) fn outside_in_the_clear(backend: &BackendPlan) -> Option<String> {
    let outside = |(address, _): &(Address, u16)| {
        let host = match address {
            Address::Ip(ip) => ip.to_string(),
            Address::Name(name) => name.to_string(),
        };
        Some(host).filter(|host| !is_own(host))
    };
    match &backend.target {
        BackendTarget::Hosts(hosts) if backend.tls.is_none() => hosts.iter().find_map(outside),
        BackendTarget::Hosts(_) | BackendTarget::Service { .. } => None,
    }
}

/// What is said of it.
pub(super) fn in_the_clear(at: &FieldPath, host: &str) -> Problem {
    let message = format!(
        "{host} is asked in the clear, where anybody on the way could read and answer; set spec.tls of its GatewayBackend"
    );
    Problem::error(at.clone(), Reason::UnsupportedValue, message)
}

/// This machine itself.
pub(super) fn is_own(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_loopback = || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    host == "localhost" || host.ends_with(".localhost") || is_loopback()
}

/// The backend that a URL names. Where it may be is for the URL's parser and the egress guard to say.
pub(super) fn of_origin(origin: &Origin) -> Arc<BackendPlan> {
    let address = match origin.host.parse::<IpAddr>() {
        Ok(ip) => Address::Ip(ip),
        Err(_) => Address::Name(Arc::clone(&origin.host)),
    };
    Arc::new(BackendPlan {
        host_header: HostHeader::Own,
        tls: matches!(origin.scheme, OriginScheme::Https).then(|| Arc::new(by_its_own_name())),
        ..BackendPlan::new(
            BackendId::Origin(origin.clone()),
            BackendTarget::Hosts(vec![(address, origin.port)]),
        )
    })
}

/// TLS by the system's authorities, to the name or address that the URL has.
fn by_its_own_name() -> BackendTlsPlan {
    BackendTlsPlan {
        server_name: None,
        authorities: None,
        names: Vec::new(),
        client_certificate: None,
        print: 0,
    }
}

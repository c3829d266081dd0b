//! How much a route map holds, as the metrics say it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::route_map::{Host, RouteMap};
use crate::telemetry::{CertificateExpiry, Programmed};

pub fn programmed(map: &RouteMap) -> (Programmed, Vec<CertificateExpiry>) {
    let hosts = || map.hosts.values().chain(&map.catch_all).map(Arc::as_ref);
    let (mut routes, mut rules) = (HashSet::new(), HashSet::new());
    for rule in hosts().flat_map(Host::rules) {
        routes.insert((&rule.labels.namespace, &rule.labels.route));
        rules.insert(Arc::as_ptr(rule));
    }
    let certificates = expiries(map, hosts());
    let counts = Programmed {
        routes: routes.len(),
        rules: rules.len(),
        backends: map.backends.len(),
        certificates: certificates.len(),
    };
    (counts, certificates)
}

/// One a Secret in use.
fn expiries<'a>(map: &'a RouteMap, hosts: impl Iterator<Item = &'a Host>) -> Vec<CertificateExpiry> {
    let plans = hosts.filter_map(|host| host.tls.as_ref()).flat_map(|tls| &tls.certificates);
    let to_backends = map.backends.values().filter_map(|plan| plan.tls.as_ref()?.client_certificate.as_ref());
    let plans = plans.chain(to_backends);
    let mut seen = HashSet::new();
    plans
        .filter(|plan| seen.insert(&plan.secret))
        .map(|plan| CertificateExpiry {
            namespace: plan.secret.namespace.to_string(),
            secret: plan.secret.name.to_string(),
            // Before 1970 it was never valid.
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(plan.not_after.try_into().unwrap_or(0)),
        })
        .collect()
}

//! How much a route map holds, as the metrics say it, and which of its certificates nobody takes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::route_map::{CertificatePlan, Host, RouteMap};
use crate::telemetry::{CertificateExpiry, Programmed};
use crate::values::ObjectName;

pub fn programmed(map: &RouteMap) -> (Programmed, Vec<CertificateExpiry>) {
    let hosts = || map.hosts.values().chain(&map.catch_all).map(Arc::as_ref);
    let (mut routes, mut rules) = (HashSet::new(), HashSet::new());
    for rule in hosts().flat_map(Host::rules) {
        routes.insert((&rule.labels.namespace, &rule.labels.route));
        rules.insert(Arc::as_ptr(rule));
    }
    let certificates = expiries(map);
    let counts = Programmed {
        routes: routes.len(),
        rules: rules.len(),
        backends: map.backends.len(),
        certificates: certificates.len(),
    };
    (counts, certificates)
}

/// The certificates in use whose time is over or has not come, by Secret, each with what to do. They are shown all the
/// same: which clock is wrong is not known here. `now`: seconds since the epoch.
pub fn out_of_time(map: &RouteMap, now: i64) -> BTreeMap<ObjectName, String> {
    let judge = |plan: &CertificatePlan| {
        let date = |seconds| {
            jiff::Timestamp::from_second(seconds).map_or_else(|_| "(no date)".into(), |date| date.to_string())
        };
        let message = if now > plan.not_after {
            format!("the certificate expired at {}; renew it", date(plan.not_after))
        } else if now < plan.not_before {
            format!("the certificate is valid from {} on only; look at the clocks", date(plan.not_before))
        } else {
            return None;
        };
        Some((plan.secret.clone(), message))
    };
    certificates(map).filter_map(judge).collect()
}

/// One a Secret in use, clients' side and backends'.
fn certificates(map: &RouteMap) -> impl Iterator<Item = &CertificatePlan> {
    let hosts = map.hosts.values().chain(&map.catch_all).map(Arc::as_ref);
    let to_clients = hosts.filter_map(|host: &Host| host.tls.as_ref()).flat_map(|tls| &tls.certificates);
    let to_backends = map.backends.values().filter_map(|plan| plan.tls.as_ref()?.client_certificate.as_ref());
    let mut seen = HashSet::new();
    to_clients
        .chain(to_backends)
        .map(AsRef::as_ref)
        .filter(move |plan: &&CertificatePlan| seen.insert(&plan.secret))
}

fn expiries(map: &RouteMap) -> Vec<CertificateExpiry> {
    certificates(map)
        .map(|plan| CertificateExpiry {
            namespace: plan.secret.namespace.to_string(),
            secret: plan.secret.name.to_string(),
            // Before 1970 it was never valid.
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(plan.not_after.try_into().unwrap_or(0)),
        })
        .collect()
}

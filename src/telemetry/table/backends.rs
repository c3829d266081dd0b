//! Metrics of backends: connections, tries, health.

use super::{Emit, Kind, Metric, Scrape, number};
use crate::telemetry::backend::{BackendTotals, Connect, Retry, Session};

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "portcullis_upstream_requests_total",
        kind: Kind::Counter,
        labels: &["backend"],
        help: "Requests sent to a backend",
        read: |scrape, emit| of_backends(scrape, emit, |totals| totals.requests),
    },
    Metric {
        name: "portcullis_upstream_errors_total",
        kind: Kind::Counter,
        labels: &["backend", "kind"],
        help: "Requests that a backend did not answer, by what went wrong",
        read: |scrape, emit| {
            for (totals, backend) in &scrape.backends {
                for (kind, count) in &totals.errors {
                    emit(&[&backend.name, kind], number(*count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_upstream_connects_total",
        kind: Kind::Counter,
        labels: &["backend", "result"],
        help: "Attempts to connect to an endpoint: connected, failed, timed_out, refused (by the egress guard), tls",
        read: |scrape, emit| {
            for (totals, backend) in &scrape.backends {
                for (result, count) in
                    Connect::ALL.iter().zip(totals.connects).filter(|(_, count)| *count > 0)
                {
                    emit(&[&backend.name, result], number(count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_upstream_retries_total",
        kind: Kind::Counter,
        labels: &["backend", "result"],
        help: "Requests to be tried again: sent, or over_budget and so left as they were",
        read: |scrape, emit| {
            for (totals, backend) in &scrape.backends {
                for (result, count) in Retry::ALL.iter().zip(totals.retries).filter(|(_, count)| *count > 0) {
                    emit(&[&backend.name, result], number(count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_upstream_sessions_total",
        kind: Kind::Counter,
        labels: &["backend", "result"],
        help: "Requests under `sessionAffinity` that were answered: began a session, kept it, or moved it to another endpoint",
        read: |scrape, emit| {
            for (totals, backend) in &scrape.backends {
                for (result, count) in
                    Session::ALL.iter().zip(totals.sessions).filter(|(_, count)| *count > 0)
                {
                    emit(&[&backend.name, result], number(count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_upstream_ejections_total",
        kind: Kind::Counter,
        labels: &["backend"],
        help: "Endpoints that were left alone for a while because they answered badly",
        read: |scrape, emit| of_backends(scrape, emit, |totals| totals.ejections),
    },
    Metric {
        name: "portcullis_upstream_endpoints_ejected",
        kind: Kind::Gauge,
        labels: &["backend"],
        help: "Endpoints that are left alone now",
        read: |scrape, emit| of_backends(scrape, emit, |totals| totals.ejected),
    },
    Metric {
        name: "portcullis_upstream_health_checks_total",
        kind: Kind::Counter,
        labels: &["backend", "result"],
        help: "Active health checks of endpoints, by what they came to",
        read: |scrape, emit| {
            for (totals, backend) in &scrape.backends {
                for (result, count) in ["passed", "failed"].iter().zip(totals.checks) {
                    emit(&[&backend.name, result], number(count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_upstream_endpoints_unhealthy",
        kind: Kind::Gauge,
        labels: &["backend"],
        help: "Endpoints that active health checks found unfit",
        read: |scrape, emit| of_backends(scrape, emit, |totals| totals.unhealthy),
    },
    Metric {
        name: "portcullis_upstream_tls_failures_total",
        kind: Kind::Counter,
        labels: &["backend", "reason"],
        help: "TLS connections to an endpoint that did not come about or that it refused, by what went wrong",
        read: |scrape, emit| {
            for (totals, backend) in &scrape.backends {
                for (reason, count) in &totals.tls_failures {
                    emit(&[&backend.name, reason], number(*count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_upstream_connections",
        kind: Kind::Gauge,
        labels: &["backend", "state"],
        help: "Open connections to a backend: active ones carry a request (or are one of the streams of HTTP/2), idle ones wait for the next, shared ones are of HTTP/2",
        read: |scrape, emit| {
            for (totals, backend) in &scrape.backends {
                emit(&[&backend.name, "active"], number(totals.active));
                emit(&[&backend.name, "idle"], number(totals.idle));
                emit(&[&backend.name, "shared"], number(totals.shared));
            }
        },
    },
    Metric {
        name: "portcullis_upstream_pending_requests",
        kind: Kind::Gauge,
        labels: &["backend"],
        help: "Requests that wait for a connection, because as many are open as `limits.connections` allows",
        read: |scrape, emit| of_backends(scrape, emit, |totals| totals.pending),
    },
];

fn of_backends(scrape: &Scrape, emit: &mut Emit, what: fn(&BackendTotals) -> u64) {
    for (totals, backend) in &scrape.backends {
        emit(&[&backend.name], number(what(totals)));
    }
}

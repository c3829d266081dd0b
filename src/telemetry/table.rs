//! Every metric that there is: name, type, labels, help, and where its values come from. The page docs/metrics.md is
//! made of this table. Labels hold names from the configuration and words of closed sets, never a client's text.

use std::sync::Arc;

use super::backend::{BackendTotals, Connect, Retry};
use super::cells::{Count, Total};
use super::control::{ControlTotals, STEPS};
use super::rule::{CODINGS, DURATIONS, RuleTotals, SIZES};
use super::worker::{FAILURES, LISTENERS, PROTOCOLS, REFUSALS, VERSIONS};
use super::{BackendStats, RuleStats, WorkerStats};

/// One row.
pub(super) struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
    pub read: fn(&Scrape, &mut Emit),
}

/// Takes one series: the values of the row's labels, and its own.
pub(super) type Emit<'a> = dyn FnMut(&[&str], Value) + 'a;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub(super) enum Value<'a> {
    Number(f64),
    /// Sums of cells, their upper bounds, and what one unit of both is in the unit of the metric.
    Cells(&'a Total, &'static [u64], f64),
}

/// All values at one instant, summed over the workers.
pub(super) struct Scrape {
    pub rules: Vec<(RuleTotals, Arc<RuleStats>)>,
    pub backends: Vec<(BackendTotals, Arc<BackendStats>)>,
    pub workers: Vec<Arc<WorkerStats>>,
    pub control: ControlTotals,
    pub log_dropped: u64,
}

const RULE: &[&str] = &["namespace", "route", "rule"];
const MICROSECOND: f64 = 1e-6;

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "portcullis_requests_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "code", "method", "protocol", "reason"],
        help: "Finished requests. Empty names: no rule matched. `reason` says why the gateway itself answered or cut the answer",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for (key, count) in &totals.requests {
                    let code = if key.status == 0 { "other".into() } else { key.status.to_string() };
                    let [namespace, route, name] = rule.name();
                    emit(
                        &[namespace, route, name, &code, key.method, key.protocol, key.reason],
                        number(*count),
                    );
                }
            }
        },
    },
    Metric {
        name: "portcullis_authorization_decisions_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "authorization_rule", "decision"],
        help: "Finished requests that authorization decided, by its rule; `(none)`: no rule allowed them",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for (key, count) in &totals.rulings {
                    let [namespace, route, name] = rule.name();
                    emit(&[namespace, route, name, key.rule_name(), key.decision], number(*count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_ext_auth_decisions_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "decision"],
        help: "Finished requests that external authorizers were asked about: allow, deny, failure (refused for want of an answer), allow_on_failure",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for (consulted, count) in &totals.consulted {
                    let [namespace, route, name] = rule.name();
                    emit(&[namespace, route, name, consulted.as_str()], number(*count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_aggregate_calls_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "call", "outcome"],
        help: "Calls of aggregations: ok, skipped (`when`), Cancelled (another one decided), or why they failed",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for (key, count) in &totals.calls {
                    let [namespace, route, name] = rule.name();
                    emit(&[namespace, route, name, &key.call, key.outcome], number(*count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_rate_limited_requests_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "limit", "mode"],
        help: "Requests that a rate limit refused (`enforced`), or would have refused (`dry_run`)",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for (key, count) in &totals.limited {
                    let [namespace, route, name] = rule.name();
                    let mode = if key.dry_run { "dry_run" } else { "enforced" };
                    emit(&[namespace, route, name, &key.limit, mode], number(*count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_cache_requests_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "outcome"],
        help: "Finished requests of rules with `cache`: `hit`, `stale`, `revalidated`, `collapsed`, `miss` or `bypass`",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                let [namespace, route, name] = rule.name();
                for (outcome, count) in totals.cache_outcomes() {
                    emit(&[namespace, route, name, outcome], number(count));
                }
            }
        },
    },
    Metric {
        name: "portcullis_cache_saved_bytes_total",
        kind: Kind::Counter,
        labels: RULE,
        help: "Bytes of answers' bodies that no backend sent, because they were kept or fetched for another",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                totals.cached.iter().for_each(|(_, saved)| emit(&rule.name(), number(*saved)));
            }
        },
    },
    Metric {
        name: "portcullis_compressed_answers_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "coding"],
        help: "Answers that the gateway compressed, by coding: gzip, br, zstd",
        read: |scrape, emit| {
            packed(scrape, &mut |[namespace, route, name], coding, [answers, ..]| {
                emit(&[namespace, route, name, coding], number(answers));
            })
        },
    },
    Metric {
        name: "portcullis_compression_bytes_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "coding", "side"],
        help: "Bytes of these answers, before and after",
        read: |scrape, emit| {
            packed(scrape, &mut |[namespace, route, name], coding, [_, before, after]| {
                emit(&[namespace, route, name, coding, "before"], number(before));
                emit(&[namespace, route, name, coding, "after"], number(after));
            })
        },
    },
    Metric {
        name: "portcullis_request_duration_seconds",
        kind: Kind::Histogram,
        labels: RULE,
        help: "From a request's head to the end of its answer's body",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                emit(&rule.name(), Value::Cells(&totals.duration, &DURATIONS, MICROSECOND));
            }
        },
    },
    Metric {
        name: "portcullis_request_size_bytes",
        kind: Kind::Histogram,
        labels: RULE,
        help: "Size of request bodies",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                emit(&rule.name(), Value::Cells(&totals.request_size, &SIZES, 1.0));
            }
        },
    },
    Metric {
        name: "portcullis_response_size_bytes",
        kind: Kind::Histogram,
        labels: RULE,
        help: "Size of answers' bodies",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                emit(&rule.name(), Value::Cells(&totals.response_size, &SIZES, 1.0));
            }
        },
    },
    Metric {
        name: "portcullis_requests_in_flight",
        kind: Kind::Gauge,
        labels: RULE,
        help: "Requests whose answer is not over yet",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                emit(&rule.name(), number(totals.in_flight));
            }
        },
    },
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
        name: "portcullis_connections",
        kind: Kind::Gauge,
        labels: &["listener", "protocol"],
        help: "Open connections of clients",
        read: |scrape, emit| connections(scrape, emit, |worker| &worker.open),
    },
    Metric {
        name: "portcullis_connections_total",
        kind: Kind::Counter,
        labels: &["listener", "protocol"],
        help: "Connections of clients since the start",
        read: |scrape, emit| connections(scrape, emit, |worker| &worker.opened),
    },
    Metric {
        name: "portcullis_proxy_headers_refused_total",
        kind: Kind::Counter,
        labels: &["cause"],
        help: "Connections without a PROXY header that counts, on listeners that want one",
        read: |scrape, emit| {
            for (at, cause) in REFUSALS.iter().enumerate() {
                emit(&[cause], sum(scrape, |worker| &worker.refused_headers[at]));
            }
        },
    },
    Metric {
        name: "portcullis_connections_refused_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Connections of clients that had as many as --max-connections-per-client allows",
        read: |scrape, emit| emit(&[], sum(scrape, |worker| &worker.turned_away)),
    },
    Metric {
        name: "portcullis_accepts_delayed_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Connections of clients that waited for their turn by --max-accepts-per-second",
        read: |scrape, emit| emit(&[], sum(scrape, |worker| &worker.delayed)),
    },
    Metric {
        name: "portcullis_tls_handshakes_total",
        kind: Kind::Counter,
        labels: &["version"],
        help: "Finished TLS handshakes with clients",
        read: |scrape, emit| {
            for (at, version) in VERSIONS.iter().enumerate() {
                emit(&[version], sum(scrape, |worker| &worker.handshakes[at]));
            }
        },
    },
    Metric {
        name: "portcullis_tls_handshake_failures_total",
        kind: Kind::Counter,
        labels: &["cause"],
        help: "TLS handshakes with clients that failed",
        read: |scrape, emit| {
            for (at, cause) in FAILURES.iter().enumerate() {
                emit(&[cause], sum(scrape, |worker| &worker.failures[at]));
            }
        },
    },
    Metric {
        name: "portcullis_panics_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Panics of the gateway's code, each of which lost one request or connection",
        read: |scrape, emit| emit(&[], sum(scrape, |worker| &worker.panics)),
    },
    Metric {
        name: "portcullis_access_log_dropped_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Lines of the access log that were dropped because its target did not take them in time",
        read: |scrape, emit| emit(&[], number(scrape.log_dropped)),
    },
    Metric {
        name: "portcullis_certificate_not_after_seconds",
        kind: Kind::Gauge,
        labels: &["namespace", "secret"],
        help: "Unix time at which a served certificate ends",
        read: |scrape, emit| {
            for certificate in &scrape.control.certificates {
                let unix = certificate.not_after.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                emit(&[&certificate.namespace, &certificate.secret], Value::Number(unix.as_secs() as f64));
            }
        },
    },
    Metric {
        name: "portcullis_programmed",
        kind: Kind::Gauge,
        labels: &["kind"],
        help: "How much the installed route map holds: routes, rules, backends, certificates",
        read: |scrape, emit| {
            let now = scrape.control.programmed;
            emit(&["routes"], Value::Number(now.routes as f64));
            emit(&["rules"], Value::Number(now.rules as f64));
            emit(&["backends"], Value::Number(now.backends as f64));
            emit(&["certificates"], Value::Number(now.certificates as f64));
        },
    },
    Metric {
        name: "portcullis_compile_duration_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "Time to compile the manifests into a route map",
        read: |scrape, emit| emit(&[], Value::Cells(&scrape.control.compile, &STEPS, MICROSECOND)),
    },
    Metric {
        name: "portcullis_config_propagation_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "From a change seen to the route map that holds it installed on every worker",
        read: |scrape, emit| emit(&[], Value::Cells(&scrape.control.propagation, &STEPS, MICROSECOND)),
    },
    Metric {
        name: "portcullis_config_age_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "Since the serving route map was installed; absent before the first",
        read: |scrape, emit| {
            if let Some(age) = scrape.control.config_age {
                emit(&[], Value::Number(age.as_secs_f64()));
            }
        },
    },
    Metric {
        name: "portcullis_config_sync_age_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "Since the source of the configuration was last heard of; absent before the first time",
        read: |scrape, emit| {
            if let Some(age) = scrape.control.sync_age {
                emit(&[], Value::Number(age.as_secs_f64()));
            }
        },
    },
    Metric {
        name: "portcullis_watch_errors_total",
        kind: Kind::Counter,
        labels: &["kind"],
        help: "Failures of a watch on the API server, by what is watched",
        read: |scrape, emit| {
            for (kind, count) in &scrape.control.watch_errors {
                emit(&[kind], number(*count));
            }
        },
    },
    Metric {
        name: "portcullis_fetches_total",
        kind: Kind::Counter,
        labels: &["host", "result"],
        help: "Keys and the like that policies name, fetched from their host: good or failed",
        read: |scrape, emit| {
            for (host, count) in &scrape.control.fetches {
                emit(&[host, "good"], number(count.good));
                emit(&[host, "failed"], number(count.failed));
            }
        },
    },
    Metric {
        name: "portcullis_introspections_total",
        kind: Kind::Counter,
        labels: &["host", "result"],
        help: "Questions about tokens, by the host that was asked: active, inactive, failed, not_asked (too many, or it keeps failing)",
        read: |scrape, emit| {
            for ((host, result), count) in &scrape.control.questions {
                emit(&[host, result], number(*count));
            }
        },
    },
    Metric {
        name: "portcullis_introspection_cache_hits_total",
        kind: Kind::Counter,
        labels: &["host"],
        help: "Tokens that were known without a question, by the host that would have been asked",
        read: |scrape, emit| {
            for (host, count) in &scrape.control.known {
                emit(&[host], number(*count));
            }
        },
    },
    Metric {
        name: "portcullis_store_up",
        kind: Kind::Gauge,
        labels: &[],
        help: "1 while the store is there in which replicas count together; absent without one",
        read: |scrape, emit| {
            if let Some(store) = &scrape.control.store {
                emit(&[], number(u64::from(store.up)));
            }
        },
    },
    Metric {
        name: "portcullis_store_failures_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Questions that the store did not answer",
        read: |scrape, emit| {
            if let Some(store) = &scrape.control.store {
                emit(&[], number(store.failures));
            }
        },
    },
    Metric {
        name: "portcullis_leader",
        kind: Kind::Gauge,
        labels: &[],
        help: "1 on the replica that writes status",
        read: |scrape, emit| emit(&[], Value::Number(f64::from(u8::from(scrape.control.leader)))),
    },
    Metric {
        name: "portcullis_workers",
        kind: Kind::Gauge,
        labels: &[],
        help: "Worker threads",
        read: |scrape, emit| emit(&[], Value::Number(scrape.workers.len() as f64)),
    },
    Metric {
        name: "portcullis_build_info",
        kind: Kind::Gauge,
        labels: &["version"],
        help: "Always 1; the version that runs",
        read: |_, emit| emit(&[env!("CARGO_PKG_VERSION")], Value::Number(1.0)),
    },
];

/// A rule's names, a coding, and answers in it with their bytes before and after.
type EmitPacked<'a> = dyn FnMut([&str; 3], &str, [u64; 3]) + 'a;

fn packed(scrape: &Scrape, emit: &mut EmitPacked) {
    for (totals, rule) in &scrape.rules {
        for (coding, packed) in CODINGS.iter().zip(totals.packed).filter(|(_, [answers, ..])| *answers > 0) {
            emit(rule.name(), coding, packed);
        }
    }
}

fn of_backends(scrape: &Scrape, emit: &mut Emit, what: fn(&BackendTotals) -> u64) {
    for (totals, backend) in &scrape.backends {
        emit(&[&backend.name], number(what(totals)));
    }
}

fn connections(
    scrape: &Scrape,
    emit: &mut Emit,
    of: fn(&WorkerStats) -> &[[Count; PROTOCOLS.len()]; LISTENERS.len()],
) {
    for (at, listener) in LISTENERS.iter().enumerate() {
        for (which, protocol) in PROTOCOLS.iter().enumerate() {
            emit(&[listener, protocol], sum(scrape, |worker| &of(worker)[at][which]));
        }
    }
}

fn sum<'a>(scrape: &'a Scrape, of: impl Fn(&'a WorkerStats) -> &'a Count) -> Value<'static> {
    number(scrape.workers.iter().map(|worker| of(worker).value()).sum())
}

/// Prometheus knows no integers; counts are exact up to 2⁵³. A gauge that is read while workers count may be seen
/// below zero for an instant: that is zero.
fn number(count: u64) -> Value<'static> {
    Value::Number(if count > u64::MAX / 2 { 0.0 } else { count as f64 })
}

//! Metrics of a replica: connections of clients, configuration, what is fetched, the process.

use super::{Emit, Kind, MICROSECOND, Metric, Scrape, Value, number};
use crate::telemetry::WorkerStats;
use crate::telemetry::cells::Count;
use crate::telemetry::control::STEPS;
use crate::telemetry::names::RESULTS;
use crate::telemetry::worker::{FAILURES, LISTENERS, PROTOCOLS, REFUSALS, VERSIONS};

pub(super) const METRICS: &[Metric] = &[
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
        name: "portcullis_fetched_age_seconds",
        kind: Kind::Gauge,
        labels: &["host"],
        help: "Since keys or a token were fetched well from a host; of several the oldest",
        read: |scrape, emit| {
            for (host, fresh) in &scrape.control.fresh {
                emit(&[host], Value::Number(fresh.age.as_secs_f64()));
            }
        },
    },
    Metric {
        name: "portcullis_fetched_expires_seconds",
        kind: Kind::Gauge,
        labels: &["host"],
        help: "Until a token ends that was fetched from a host, below zero once it has; of several the first",
        read: |scrape, emit| {
            for (host, fresh) in &scrape.control.fresh {
                if let Some(left) = fresh.left {
                    emit(&[host], Value::Number(left));
                }
            }
        },
    },
    Metric {
        name: "portcullis_name_lookups_total",
        kind: Kind::Counter,
        labels: &["result"],
        help: "Look-ups of backends' names: found, nothing (there is no such name), failed",
        read: |scrape, emit| {
            for (result, count) in RESULTS.iter().zip(scrape.control.names.lookups) {
                emit(&[result], number(count));
            }
        },
    },
    Metric {
        name: "portcullis_names",
        kind: Kind::Gauge,
        labels: &["state"],
        help: "Names of backends by how the last look-up ended: answered, failing",
        read: |scrape, emit| {
            let names = &scrape.control.names;
            emit(&["answered"], number(names.names.saturating_sub(names.failing)));
            emit(&["failing"], number(names.failing));
        },
    },
    Metric {
        name: "portcullis_name_answer_age_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "The age of the oldest answer that is served although the servers fail; absent while none do",
        read: |scrape, emit| {
            if let Some(age) = scrape.control.names.oldest {
                emit(&[], Value::Number(age.as_secs_f64()));
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
        name: "portcullis_cache_bytes",
        kind: Kind::Gauge,
        labels: &["part"],
        help: "Bytes of answers in memory: `kept`, and `coming` (on their way, or still read)",
        read: |scrape, emit| {
            if let Some([kept, coming]) = scrape.cache {
                emit(&["kept"], number(kept));
                emit(&["coming"], number(coming));
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

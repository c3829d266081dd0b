//! Metrics of rules: what their requests came to.

use super::{Kind, MICROSECOND, Metric, Scrape, Value, number};
use crate::telemetry::rule::{CODINGS, DURATIONS, SIZES};
use crate::telemetry::sample::CALL_STATUSES;

const RULE: &[&str] = &["namespace", "route", "rule"];

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
        name: "portcullis_grpc_calls_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "grpc_status"],
        help: "Finished calls of gRPC by their status, also where the gateway itself answered; `(none)`: cut before there was one",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for (status, count) in CALL_STATUSES.iter().zip(totals.called).filter(|(_, count)| *count > 0)
                {
                    let [namespace, route, name] = rule.name();
                    emit(&[namespace, route, name, status], number(count));
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
        name: "portcullis_mirror_requests_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "outcome", "reason"],
        help: "Copies of requests that `mirror` wants: sent (and answered), failed, or dropped, and why",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for ((outcome, reason), count) in &totals.mirrored {
                    let [namespace, route, name] = rule.name();
                    emit(&[namespace, route, name, outcome, reason], number(*count));
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
        name: "portcullis_rate_limit_fallback_requests_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "limit"],
        help: "Requests for which a Global limit did what `onStoreFailure` says, as the store could not be asked",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.rules {
                for (limit, count) in &totals.fallbacks {
                    let [namespace, route, name] = rule.name();
                    emit(&[namespace, route, name, limit], number(*count));
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

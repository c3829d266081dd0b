//! What is counted of connections whose TLS is passed through.

use super::{Kind, Metric, number};
use crate::telemetry::passage::PassageEnd;

const RULE: &[&str] = &["namespace", "route", "rule"];

pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "portcullis_passthrough_connections",
        kind: Kind::Gauge,
        labels: RULE,
        help: "Open connections of clients whose TLS is passed through",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.passages {
                emit(&rule.name(), number(totals.open));
            }
        },
    },
    Metric {
        name: "portcullis_passthrough_connections_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "outcome"],
        help: "The same that are over, by how: ended, reset, idle, closing (the gateway ended), refused (`ipAccess`), failed (no backend), unserved (the route is broken)",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.passages {
                let [namespace, route, name] = rule.name();
                let ends = PassageEnd::ALL.iter().zip(totals.ends).filter(|(_, count)| *count > 0);
                ends.for_each(|(end, count)| emit(&[namespace, route, name, end], number(count)));
            }
        },
    },
    Metric {
        name: "portcullis_passthrough_bytes_total",
        kind: Kind::Counter,
        labels: &["namespace", "route", "rule", "direction"],
        help: "Bytes of these connections: received from clients, sent to them",
        read: |scrape, emit| {
            for (totals, rule) in &scrape.passages {
                let [namespace, route, name] = rule.name();
                emit(&[namespace, route, name, "received"], number(totals.received));
                emit(&[namespace, route, name, "sent"], number(totals.sent));
            }
        },
    },
];

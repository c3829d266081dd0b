//! Prometheus text from the metric table. Families are made and written one after the other: with many rules, all of
//! them at once would be most of the process's memory.

use std::sync::OnceLock;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, MetricFamily, MetricType};
use prometheus::{TextEncoder, proto};

use super::cells::Total;
use super::table::{Kind, Metric, Scrape, Value, metrics};

pub(super) fn text(scrape: &Scrape) -> String {
    let mut text = String::new();
    for metric in metrics() {
        let mut values = Vec::new();
        (metric.read)(scrape, &mut |labels, value| values.push(one(metric, labels, value)));
        if !values.is_empty() {
            write(&[family(metric, values)], &mut text);
        }
    }
    write(&process(), &mut text);
    text
}

fn write(families: &[MetricFamily], text: &mut String) {
    let before = text.len();
    if let Err(error) = TextEncoder::new().encode_utf8(families, text) {
        // One bad family must not cost the others.
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot write a metric");
        text.truncate(before);
    }
}

fn family(metric: &Metric, values: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(metric.name.to_owned());
    family.set_help(metric.help.to_owned());
    family.set_field_type(match metric.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(values);
    family
}

fn one(metric: &Metric, labels: &[&str], value: Value) -> proto::Metric {
    debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
    let pairs = metric.labels.iter().zip(labels).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    let mut one = proto::Metric::from_label(pairs.collect());
    match (metric.kind, value) {
        (Kind::Counter, Value::Number(number)) => {
            let mut counter = Counter::default();
            counter.set_value(number);
            one.set_counter(counter);
        }
        (_, Value::Number(number)) => {
            let mut gauge = Gauge::default();
            gauge.set_value(number);
            one.set_gauge(gauge);
        }
        (_, Value::Cells(total, bounds, unit)) => one.set_histogram(histogram(total, bounds, unit)),
    }
    one
}

fn histogram(total: &Total, bounds: &[u64], unit: f64) -> Histogram {
    let (mut buckets, mut count) = (Vec::with_capacity(bounds.len()), 0);
    for (bound, cell) in bounds.iter().zip(&total.cells) {
        count += cell;
        let mut bucket = Bucket::default();
        // Microseconds divide better than they multiply: 0.005, not 0.0049999.
        bucket.set_upper_bound(*bound as f64 / (1.0 / unit));
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
    }
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(count + total.cells.get(bounds.len()).copied().unwrap_or(0));
    histogram.set_sample_sum(total.sum as f64 * unit);
    histogram
}

/// CPU, memory, file descriptors. One collector a process: it remembers the CPU time that it has counted.
fn process() -> Vec<MetricFamily> {
    static PROCESS: OnceLock<ProcessCollector> = OnceLock::new();
    PROCESS.get_or_init(ProcessCollector::for_self).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::super::rule::MAX_SERIES;
    use super::*;
    use crate::telemetry::{
        CertificateExpiry, Connect, HandshakeFailure, Programmed, Retry, Sample, Session, Telemetry,
    };

    fn sample() -> Sample {
        Sample {
            status: 503,
            method: http::Method::POST,
            protocol: "HTTP/1.1",
            scheme: "https",
            duration: Duration::from_millis(3),
            request_bytes: 10,
            response_bytes: 20,
            reason: Some("NoHealthyEndpoints"),
            consulted: Some(crate::telemetry::Consulted::Allowed),
            ruling: Some(crate::telemetry::Ruling { rule: Some("read".into()), allows: true }),
            limited: Some(crate::telemetry::Limited { limit: "fair".into(), dry_run: true }),
            fallbacks: vec!["fleet".into()],
            packed: Some(crate::telemetry::Packed { coding: "br", plain: 100 }),
            cached: Some(crate::telemetry::Cached::Hit),
            call: Some(crate::telemetry::CallStatus::Number(14)),
        }
    }

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start} in\n{text}"))
    }

    #[test]
    fn every_metric_of_the_table_appears_once_it_has_a_value() {
        let telemetry = Telemetry::new(2);
        let [shop, orders, rule] = ["shop", "orders", "create \"big\""].map(Arc::<str>::from);
        let stats = telemetry.rule(&shop, &orders, &rule);
        stats.called(0, &"user".into(), "ok");
        stats.mirrored(0, "dropped", "busy");
        let passage = telemetry.passage(&shop, &orders, &rule);
        passage.open(0).ends(crate::telemetry::PassageEnd::Ended);
        stats.record(0, &sample());
        stats.record(1, &sample());
        let _flying = stats.start(1);
        let backend = telemetry.backend("Service/shop/orders:80");
        backend.request(0);
        backend.error(0, "Reset");
        backend.tls_failure(0, "expired");
        backend.retry(0, Retry::Sent);
        backend.session(0, Session::Began);
        backend.ejection();
        backend.connect(1, Connect::Connected);
        let _open = telemetry.worker(0).connection("https", "HTTP/2");
        telemetry.worker(1).handshake_failure(HandshakeFailure::UnknownName);
        let control = telemetry.control();
        control.compiled(Duration::from_millis(4));
        control.propagated(Duration::from_millis(40));
        control.watch_error("secrets");
        control.store_is_up(true);
        telemetry.measures_cache(|| [7, 1]);
        control.fetched("login.example");
        control.fetch_failed("login.example");
        let host = control.of_host("login.example");
        host.fetched(Some(std::time::Instant::now()));
        let mut name = control.of_name("pay.test");
        name.found();
        name.failed("late");
        control.asked("login.example", "active");
        let hits = Arc::<crate::telemetry::HitCount>::default();
        control.counts_hits("login.example", &hits);
        hits.add_one();
        control.synced();
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let certificate = CertificateExpiry { namespace: "shop".into(), secret: "tls".into(), not_after };
        control.installed(Programmed { routes: 3, ..Programmed::default() }, vec![certificate]);

        let text = telemetry.render();
        for metric in metrics() {
            assert!(text.contains(&format!("\n# TYPE {} ", metric.name)) || text.contains(metric.name));
            line(&text, &format!("# TYPE {}", metric.name));
        }
        assert_eq!(
            line(&text, "portcullis_requests_total{"),
            "portcullis_requests_total{namespace=\"shop\",route=\"orders\",rule=\"create \\\"big\\\"\",code=\"503\",\
             method=\"POST\",protocol=\"HTTP/1.1\",reason=\"NoHealthyEndpoints\"} 2"
        );
        let rule = "namespace=\"shop\",route=\"orders\",rule=\"create \\\"big\\\"\"";
        for expected in [
            format!("portcullis_request_duration_seconds_bucket{{{rule},le=\"0.0025\"}} 0"),
            format!("portcullis_request_duration_seconds_bucket{{{rule},le=\"0.005\"}} 2"),
            format!("portcullis_request_duration_seconds_bucket{{{rule},le=\"+Inf\"}} 2"),
            format!("portcullis_request_duration_seconds_count{{{rule}}} 2"),
            format!("portcullis_requests_in_flight{{{rule}}} 1"),
            "portcullis_connections{listener=\"https\",protocol=\"HTTP/2\"} 1".into(),
            "portcullis_tls_handshake_failures_total{cause=\"unknown_name\"} 1".into(),
            "portcullis_certificate_not_after_seconds{namespace=\"shop\",secret=\"tls\"} 2000000000".into(),
            "portcullis_programmed{kind=\"routes\"} 3".into(),
            "portcullis_cache_bytes{part=\"kept\"} 7".into(),
            "portcullis_cache_bytes{part=\"coming\"} 1".into(),
            "portcullis_introspection_cache_hits_total{host=\"login.example\"} 1".into(),
            "portcullis_upstream_errors_total{backend=\"Service/shop/orders:80\",kind=\"Reset\"} 1".into(),
        ] {
            assert!(text.lines().any(|line| line == expected), "no line {expected}\n{text}");
        }
        control.counted_hits(&hits);
        line(&telemetry.render(), "portcullis_introspection_cache_hits_total{host=\"login.example\"} 1");
        line(&text, "process_resident_memory_bytes ");
    }

    #[test]
    fn a_series_goes_with_its_last_handle() {
        let telemetry = Telemetry::new(1);
        let empty = Arc::<str>::from("");
        let (stats, again) = (telemetry.rule(&empty, &empty, &empty), telemetry.rule(&empty, &empty, &empty));
        stats.record(0, &sample());
        drop(stats);
        assert!(telemetry.render().contains("portcullis_requests_total{"), "somebody still holds it");
        drop(again);
        assert!(!telemetry.render().contains("portcullis_requests_total{"));
        telemetry.rule(&empty, &empty, &empty).record(0, &sample());
    }

    #[test]
    fn names_are_prefixed_unique_and_of_the_form_that_prometheus_wants() {
        let mut seen = std::collections::HashSet::new();
        for metric in metrics() {
            assert!(metric.name.starts_with("portcullis_") && seen.insert(metric.name), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            assert!(!metric.help.ends_with('.') && !metric.help.is_empty(), "{}", metric.name);
        }
    }

    #[test]
    fn the_page_of_metrics_is_that_of_the_table() {
        let mut page = String::from(
            "# Metrics\n\nWhat `/metrics` on the admin port shows. Made from the table in `src/telemetry/table` by \
             its test; `UPDATE_DOCS=1 cargo test --lib the_page_of_metrics` writes it again.\n\n\
             | metric | type | labels | what it says |\n| --- | --- | --- | --- |\n",
        );
        for metric in metrics() {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let kind = format!("{:?}", metric.kind).to_lowercase();
            page += &format!("| `{}` | {kind} | {} | {} |\n", metric.name, labels.join(", "), metric.help);
        }
        page += "\nBeside them the `process_*` metrics that every Prometheus client has: CPU, memory, threads, file \
                 descriptors, start time. Durations are in seconds, sizes in bytes. A series of a rule or a backend \
                 appears with its first request and goes when the route or backend goes.\n";
        page += &format!(
            "\nThe number of series is bounded: labels come from the configuration and from closed sets, never from \
             what a client sent. Statuses come from backends, so each worker tells at most {MAX_SERIES} different \
             `code`, `method`, `protocol` and `reason` together of a rule apart, and what comes after them is counted \
             as `other`; so it is with the names that a rule's other counters have (authorization rules, limits, \
             calls, mirrors), which change with the configuration.\n"
        );
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, &page).expect("docs/ can be written");
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            page,
            "write it again with UPDATE_DOCS=1"
        );
    }
}

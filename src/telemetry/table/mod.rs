//! Every metric that there is: name, type, labels, help, and where its values come from. The page docs/metrics.md is
//! made of this table. Labels hold names from the configuration and words of closed sets, never a client's text.

mod backends;
mod passages;
mod replica;
mod rules;

use std::sync::Arc;

use super::backend::BackendTotals;
use super::cells::Total;
use super::control::ControlTotals;
use super::passage::PassageTotals;
use super::rule::RuleTotals;
use super::{BackendStats, PassageStats, RuleStats, WorkerStats};

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
    pub passages: Vec<(PassageTotals, Arc<PassageStats>)>,
    pub backends: Vec<(BackendTotals, Arc<BackendStats>)>,
    pub workers: Vec<Arc<WorkerStats>>,
    pub control: ControlTotals,
    pub log_dropped: u64,
    /// Bytes that are kept, and on their way.
    pub cache: Option<[u64; 2]>,
}

const MICROSECOND: f64 = 1e-6;

/// All rows, in the order of the page.
pub(super) fn metrics() -> impl Iterator<Item = &'static Metric> {
    [rules::METRICS, passages::METRICS, backends::METRICS, replica::METRICS].into_iter().flatten()
}

/// Prometheus knows no integers; counts are exact up to 2⁵³. A gauge that is read while workers count may be seen
/// below zero for an instant: that is zero.
fn number(count: u64) -> Value<'static> {
    Value::Number(if count > u64::MAX / 2 { 0.0 } else { count as f64 })
}

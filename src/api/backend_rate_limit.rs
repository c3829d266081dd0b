//! `GatewayBackend.spec.rateLimit`: how often each host of a backend may be asked.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::filters::RateLimitScope;
use crate::values::Duration;

/// So many requests to each host in a time; others go to other hosts, and where there is none left get 503 Overloaded.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendRateLimit {
    /// So many requests; each time that one is tried again counts.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: i64,
    /// In so long: a second to a month.
    #[x_kube(validation = ("duration(self) >= duration('1s') && duration(self) <= duration('744h')", PER))]
    pub per: Duration,
    /// So many at once after a pause; as many as `requests` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<i64>,
    /// Where it is counted; Local by default: each replica for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<RateLimitScope>,
}

const PER: &str = "a limit counts in a second to 31 days (744h)";
const MONTH: std::time::Duration = std::time::Duration::from_secs(744 * 3_600);

impl BackendRateLimit {
    /// What its rules say of it: the field, and why.
    pub(super) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let range = std::time::Duration::from_secs(1)..=MONTH;
        (!range.contains(&self.per.std())).then_some(("per", PER))
    }
}

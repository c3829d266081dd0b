//! `/status`: what this process serves and what it has to say about it, as JSON for people and scripts.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Addresses;
use super::programmed::out_of_time;
use crate::compile::Published;
use crate::lifecycle::{DrainSignal, Readiness};
use crate::snapshot::Origin;
use crate::telemetry::Telemetry;
use crate::values::Severity;

/// At most so many entries of each list; `omitted` counts the others.
const MOST: usize = 1_000;

/// Who asks gets an answer all the same when nothing is told of an install for so long.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Status {
    pub started: Instant,
    pub addresses: Addresses,
    pub published: watch::Receiver<Option<Arc<Published>>>,
    pub installed_at: watch::Receiver<Option<Instant>>,
    pub telemetry: Telemetry,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    version: &'static str,
    uptime_seconds: u64,
    phase: String,
    ready: bool,
    waiting_for: Vec<String>,
    addresses: &'a Addresses,
    #[serde(skip_serializing_if = "Option::is_none")]
    route_map: Option<Installed>,
    problems: Vec<Entry<'a>>,
    failures: Vec<Unread<'a>>,
    /// What is fetched or asked beside the requests and cannot be had now, and certificates that nobody takes.
    failing: Vec<Failing>,
    omitted: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Installed {
    /// Counts installs from 1.
    sequence: u64,
    age_seconds: u64,
    hostnames: usize,
    backends: usize,
    objects: usize,
}

#[derive(Serialize)]
struct Entry<'a> {
    kind: String,
    namespace: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    path: &'a str,
    reason: &'static str,
    severity: &'static str,
    message: &'a str,
}

/// An object, or a place in a file, that could not be read.
#[derive(Serialize)]
struct Unread<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    message: &'a str,
}

#[derive(Serialize)]
struct Failing {
    place: String,
    error: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(generation: &i64) -> bool {
    *generation == 0
}

impl Status {
    /// Waits until what is told is of the last of so many `installs`: between one and its news lies a moment.
    pub async fn settled(&self, installs: u64) {
        let mut published = self.published.clone();
        let told = published.wait_for(|told| told.as_ref().map_or(0, |told| told.sequence) >= installs);
        let _ = tokio::time::timeout(PATIENCE, told).await;
    }

    pub fn render(&self, readiness: &Readiness, drain: &DrainSignal) -> String {
        let published = self.published.borrow().clone();
        let now = Instant::now();
        let age = self.installed_at.borrow().map_or(0, |at| now.duration_since(at).as_secs());
        let mut omitted = 0;
        let missing = readiness.missing();
        let failing = self.failing(published.as_deref(), &mut omitted);
        let document = Document {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: now.duration_since(self.started).as_secs(),
            phase: format!("{:?}", drain.phase()),
            ready: missing.is_empty() && drain.phase() == crate::lifecycle::Phase::Serving,
            waiting_for: missing,
            addresses: &self.addresses,
            route_map: published.as_deref().map(|published| Installed {
                sequence: published.sequence,
                age_seconds: age,
                hostnames: published.compiled.map.hosts.len(),
                backends: published.compiled.map.backends.len(),
                objects: published.compiled.reports.len(),
            }),
            problems: published.as_deref().map(|p| problems(p, &mut omitted)).unwrap_or_default(),
            failures: published.as_deref().map(|p| failures(p, &mut omitted)).unwrap_or_default(),
            failing,
            omitted,
        };
        serde_json::to_string_pretty(&document).map_or_else(|error| error.to_string(), |text| text + "\n")
    }

    fn failing(&self, published: Option<&Published>, omitted: &mut usize) -> Vec<Failing> {
        let mut all = self.telemetry.control().failing();
        if let Some(published) = published {
            let certificates = out_of_time(&published.compiled.map, jiff::Timestamp::now().as_second());
            all.extend(
                certificates.into_iter().map(|(secret, message)| (format!("Secret {secret}"), message)),
            );
        }
        *omitted += all.len().saturating_sub(MOST);
        all.into_iter().take(MOST).map(|(place, error)| Failing { place, error }).collect()
    }
}

fn problems<'a>(published: &'a Published, omitted: &mut usize) -> Vec<Entry<'a>> {
    let mut all = published.compiled.reports.iter().flat_map(|report| {
        report.problems.iter().map(move |problem| Entry {
            kind: format!("{:?}", report.object.kind),
            namespace: &report.object.name.namespace,
            name: &report.object.name.name,
            generation: report.object.generation,
            place: place(report.origin.as_ref()),
            path: problem.path.as_str(),
            reason: problem.reason.as_str(),
            severity: match problem.severity {
                Severity::Error => "Error",
                Severity::Warning => "Warning",
            },
            message: &problem.message,
        })
    });
    let shown = all.by_ref().take(MOST).collect();
    *omitted += all.count();
    shown
}

fn failures<'a>(published: &'a Published, omitted: &mut usize) -> Vec<Unread<'a>> {
    let failures = &published.world.failures;
    *omitted += failures.len().saturating_sub(MOST);
    failures
        .iter()
        .take(MOST)
        .map(|failure| Unread {
            kind: failure.kind.map(|kind| format!("{kind:?}")),
            name: failure.name.as_ref().map(ToString::to_string),
            place: failure.place(),
            message: &failure.message,
        })
        .collect()
}

fn place(origin: Option<&Origin>) -> Option<String> {
    origin.map(|origin| format!("{}:{}", origin.file, origin.line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Compiled;

    #[tokio::test(start_paused = true)]
    async fn what_is_told_is_of_the_map_that_serves() {
        let published = |sequence| {
            let compiled = Compiled { map: Arc::default(), reports: Vec::new() };
            Some(Arc::new(Published { sequence, compiled, world: Arc::default() }))
        };
        let (tell, heard) = watch::channel(None);
        let status = Status {
            started: Instant::now(),
            addresses: Addresses::default(),
            published: heard,
            installed_at: watch::channel(None).1,
            telemetry: Telemetry::new(1),
        };
        let began = Instant::now();
        status.settled(0).await;
        let later = async {
            tokio::time::sleep(PATIENCE / 4).await;
            tell.send_replace(published(1));
            tokio::time::sleep(PATIENCE / 4).await;
            tell.send_replace(published(2));
        };
        tokio::join!(later, status.settled(2));
        assert_eq!(began.elapsed(), PATIENCE / 2);
        status.settled(2).await;
        assert_eq!(began.elapsed(), PATIENCE / 2);
        status.settled(3).await;
        assert_eq!(began.elapsed(), PATIENCE * 3 / 2);
    }
}

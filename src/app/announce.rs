//! Problems in the log: each once, when it appears, with file and line, and a word when it is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::programmed::out_of_time;
use crate::compile::{Published, Report};
use crate::snapshot::{Failure, Kind, Origin};
use crate::standalone::Sources;
use crate::values::{ObjectName, Problem};

/// At most so many lines for one install: somebody's 10,000 broken routes do not fill the disk.
const MOST_LINES: usize = 100;
/// So many bytes of files are read and parsed for one install, to say on which line a field is: some 100 ms at most.
const MOST_READ: u64 = 4 << 20;

#[derive(Debug, Default)]
pub struct Announcer {
    reports: BTreeMap<(Kind, ObjectName), Arc<Report>>,
    failures: BTreeSet<Failure>,
    out_of_time: BTreeMap<ObjectName, String>,
}

impl Announcer {
    /// Logs what is new since the install before. `now`: seconds since the epoch.
    pub fn tell(&mut self, news: &Published, now: i64) {
        let mut lines = 0;
        self.tell_failures(&news.world.failures, &mut lines);
        self.tell_reports(&news.compiled.reports, &mut lines);
        self.tell_certificates(out_of_time(&news.compiled.map, now), &mut lines);
        if lines > MOST_LINES {
            tracing::warn!(more = lines - MOST_LINES, "more problems than are logged at once; see /status");
        }
        tracing::info!(
            sequence = news.sequence,
            hostnames = news.compiled.map.hosts.len(),
            backends = news.compiled.map.backends.len(),
            objects = news.compiled.reports.len(),
            "route map installed"
        );
    }

    fn tell_failures(&mut self, failures: &[Failure], lines: &mut usize) {
        let now: BTreeSet<Failure> = failures.iter().cloned().collect();
        for failure in now.difference(&self.failures) {
            *lines += 1;
            if *lines <= MOST_LINES {
                let place = failure.place().unwrap_or_default();
                let object = failure.name.as_ref().map(ToString::to_string).unwrap_or_default();
                tracing::warn!(place, object, "{}", failure.message);
            }
        }
        for failure in self.failures.difference(&now) {
            *lines += 1;
            if *lines <= MOST_LINES {
                tracing::info!(place = failure.place().unwrap_or_default(), "no longer: {}", failure.message);
            }
        }
        self.failures = now;
    }

    fn tell_certificates(&mut self, now: BTreeMap<ObjectName, String>, lines: &mut usize) {
        for (secret, message) in
            now.iter().filter(|(secret, message)| self.out_of_time.get(secret) != Some(message))
        {
            *lines += 1;
            if *lines <= MOST_LINES {
                tracing::warn!(object = %format_args!("Secret {secret}"), "{message}");
            }
        }
        self.out_of_time = now;
    }

    fn tell_reports(&mut self, reports: &[Arc<Report>], lines: &mut usize) {
        let mut now = BTreeMap::new();
        let mut sources = Sources::up_to(MOST_READ);
        for report in reports {
            let key = (report.object.kind, report.object.name.clone());
            let before = self.reports.get(&key);
            if !before.is_some_and(|before| Arc::ptr_eq(before, report)) {
                let known = before.map_or(&[][..], |before| &before.problems);
                tell_problems(report, known, &mut sources, lines);
            }
            now.insert(key, Arc::clone(report));
        }
        self.reports = now;
    }
}

fn tell_problems(report: &Report, known: &[Problem], sources: &mut Sources, lines: &mut usize) {
    for problem in report.problems.iter().filter(|problem| !known.contains(problem)) {
        *lines += 1;
        if *lines <= MOST_LINES {
            tracing::warn!(
                object = %format_args!("{:?} {}", report.object.kind, report.object.name),
                place = place(report.origin.as_ref(), problem.path.as_str(), sources),
                path = %problem.path,
                reason = problem.reason.as_str(),
                "{}",
                problem.message
            );
        }
    }
    if report.problems.is_empty() && !known.is_empty() {
        *lines += 1;
        if *lines <= MOST_LINES {
            tracing::info!(
                object = %format_args!("{:?} {}", report.object.kind, report.object.name),
                "no problems any more"
            );
        }
    }
}

/// `file:line:column` of the field, `file:line` of the object where it cannot be told; empty for objects of the API
/// server.
fn place(origin: Option<&Origin>, path: &str, sources: &mut Sources) -> String {
    let Some(origin) = origin else { return String::new() };
    match sources.field(origin, path) {
        Some(place) => format!("{}:{}:{}", origin.file, place.line, place.column),
        None => format!("{}:{}", origin.file, origin.line),
    }
}

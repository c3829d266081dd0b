//! Findings of `check`: a code, a place in a file, and a sentence, shown like a compiler's or as JSON.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use super::place::{Place, find};
use crate::app::out_of_time;
use crate::compile::Compiled;
use crate::snapshot::{self, Origin, Snapshot};
use crate::values::Severity;

/// The code of what could not be read at all.
const UNREADABLE: &str = "Unreadable";

#[derive(Debug, Serialize)]
pub struct Finding {
    pub severity: &'static str,
    pub code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The user's path of the field; empty for the whole object.
    pub path: String,
    pub message: String,
    #[serde(skip)]
    shown: Option<(String, Place)>,
}

#[derive(Debug, Serialize)]
pub struct Object {
    pub kind: String,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// The code of a certificate whose time is over or has not come.
const OUT_OF_TIME: &str = "CertificateOutOfTime";

/// Everything that is to be said about a world, errors and warnings, by file and line. `now`: seconds since the epoch.
pub fn all(world: &Snapshot, compiled: &Compiled, now: i64) -> Vec<Finding> {
    let mut sources = Sources::default();
    let mut findings = Vec::new();
    for failure in &world.failures {
        let object = failure.name.as_ref().zip(failure.kind).map(|(name, kind)| Object {
            kind: format!("{kind:?}"),
            namespace: Arc::clone(&name.namespace),
            name: Arc::clone(&name.name),
        });
        let (origin, message) = (failure.origin.as_ref(), failure.message.clone());
        findings.push(sources.finding("error", UNREADABLE, object, origin, String::new(), message));
    }
    for report in &compiled.reports {
        for problem in &report.problems {
            let severity = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            let object = Object {
                kind: format!("{:?}", report.object.kind),
                namespace: Arc::clone(&report.object.name.namespace),
                name: Arc::clone(&report.object.name.name),
            };
            let (origin, path) = (report.origin.as_ref(), problem.path.as_str().to_owned());
            let message = problem.message.clone();
            findings.push(sources.finding(
                severity,
                problem.reason.as_str(),
                Some(object),
                origin,
                path,
                message,
            ));
        }
    }
    for (secret, message) in out_of_time(&compiled.map, now) {
        let object = Object { kind: "Secret".to_owned(), namespace: secret.namespace, name: secret.name };
        findings.push(sources.finding("warning", OUT_OF_TIME, Some(object), None, String::new(), message));
    }
    findings.sort_by(|a, b| (&a.file, a.line, a.column, &a.path).cmp(&(&b.file, b.line, b.column, &b.path)));
    findings
}

/// The files that findings point into, each read once.
#[derive(Default)]
struct Sources {
    texts: HashMap<Arc<str>, Option<String>>,
}

impl Sources {
    fn finding(
        &mut self,
        severity: &'static str,
        code: &'static str,
        object: Option<Object>,
        origin: Option<&Origin>,
        path: String,
        message: String,
    ) -> Finding {
        let shown = origin.and_then(|origin| self.show(origin, &path));
        Finding {
            severity,
            code,
            object,
            file: origin.map(|origin| Arc::clone(&origin.file)),
            line: shown.as_ref().map(|(_, place)| place.line).or(origin.map(|origin| origin.line as usize)),
            column: shown.as_ref().map(|(_, place)| place.column),
            path,
            message,
            shown,
        }
    }

    /// The line to show and the place in it.
    fn show(&mut self, origin: &Origin, path: &str) -> Option<(String, Place)> {
        let text = self
            .texts
            .entry(Arc::clone(&origin.file))
            .or_insert_with(|| std::fs::read_to_string(&*origin.file).ok())
            .as_deref()?;
        let first = origin.line as usize;
        let inside = snapshot::documents(text)
            .find(|document| document.line == origin.line)
            .and_then(|document| find(document.text, path));
        let place = match inside {
            Some(place) => Place { line: first + place.line - 1, ..place },
            None => Place { line: first, column: 1, width: usize::MAX },
        };
        let line = text.lines().nth(place.line - 1)?;
        let whole = line.trim_end().chars().count();
        let column = place.column.min(whole.max(1));
        let width = place.width.min((whole + 1).saturating_sub(column)).max(1);
        Some((line.to_owned(), Place { column, width, ..place }))
    }
}

impl Finding {
    pub fn is_error(&self) -> bool {
        self.severity == "error"
    }

    /// As a compiler would show it.
    pub fn render(&self, renderer: &Renderer) -> String {
        let level = if self.is_error() { Level::ERROR } else { Level::WARNING };
        let title = match &self.object {
            Some(object) => {
                format!("{} {}/{}: {}", object.kind, object.namespace, object.name, self.message)
            }
            None => self.message.clone(),
        };
        let title = level.primary_title(title).id(self.code);
        let Some((line, place)) = &self.shown else {
            let mut text = renderer.render(&[Group::with_title(title)]);
            if let Some(file) = &self.file {
                let _ = write!(text, "\n --> {file}");
            }
            return text;
        };
        let start = offset(line, place.column - 1);
        let end = offset(line, place.column - 1 + place.width).max(start);
        let mut annotation = AnnotationKind::Primary.span(start..end);
        if !self.path.is_empty() {
            annotation = annotation.label(&self.path);
        }
        let snippet = Snippet::source(line.as_str())
            .path(self.file.as_deref())
            .line_start(place.line)
            .annotation(annotation);
        renderer.render(&[title.element(snippet)])
    }
}

/// The byte at which the character of this number begins.
fn offset(line: &str, character: usize) -> usize {
    line.char_indices().nth(character).map_or(line.len(), |(at, _)| at)
}

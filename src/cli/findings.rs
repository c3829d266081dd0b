//! Findings of `check`: a code, a place in a file, and a sentence, shown like a compiler's or as JSON.

use std::fmt::Write as _;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::app::out_of_time;
use crate::compile::Compiled;
use crate::snapshot::{Failure, Origin, Place, Snapshot};
use crate::standalone::Sources;
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
    let mut sources = Sources::up_to(u64::MAX);
    let mut findings = Vec::new();
    for failure in &world.failures {
        let object = failure.name.as_ref().zip(failure.kind).map(|(name, kind)| Object {
            kind: format!("{kind:?}"),
            namespace: Arc::clone(&name.namespace),
            name: Arc::clone(&name.name),
        });
        let place = failure.origin.as_ref().map(|origin| of_failure(failure, origin));
        let (file, message) = (failure.origin.as_ref().map(|origin| &origin.file), failure.message.clone());
        let mut finding =
            finding(&mut sources, "error", UNREADABLE, object, file.zip(place), String::new(), message);
        if failure.is_secret {
            finding.shown = None;
        }
        findings.push(finding);
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
            let place = origin.map(|origin| {
                let field = sources.field(origin, &path);
                field.unwrap_or(Place { line: origin.line as usize, column: 1, width: usize::MAX })
            });
            let at = origin.map(|origin| &origin.file).zip(place);
            let (code, message) = (problem.reason.as_str(), problem.message.clone());
            findings.push(finding(&mut sources, severity, code, Some(object), at, path, message));
        }
    }
    for (secret, message) in out_of_time(&compiled.map, now) {
        let object = Object { kind: "Secret".to_owned(), namespace: secret.namespace, name: secret.name };
        let path = String::new();
        findings.push(finding(&mut sources, "warning", OUT_OF_TIME, Some(object), None, path, message));
    }
    findings.sort_by(|a, b| (&a.file, a.line, a.column, &a.path).cmp(&(&b.file, b.line, b.column, &b.path)));
    findings
}

/// What could not be read stands at a character, or nobody knows where in its line.
fn of_failure(failure: &Failure, origin: &Origin) -> Place {
    let column = failure.column.map_or(1, |column| column as usize);
    let width = if failure.column.is_some() { 1 } else { usize::MAX };
    Place { line: origin.line as usize, column, width }
}

fn finding(
    sources: &mut Sources,
    severity: &'static str,
    code: &'static str,
    object: Option<Object>,
    at: Option<(&Arc<str>, Place)>,
    path: String,
    message: String,
) -> Finding {
    let shown = at.and_then(|(file, place)| show(sources, file, place));
    let place = shown.as_ref().map(|(_, place)| *place).or(at.map(|(_, place)| place));
    // Of a file that cannot be shown, all that is known may be its name.
    let is_known = |place: &Place| shown.is_some() || place.width != usize::MAX;
    Finding {
        severity,
        code,
        object,
        file: at.map(|(file, _)| Arc::clone(file)),
        line: place.map(|place| place.line),
        column: place.filter(is_known).map(|place| place.column),
        path,
        message,
        shown,
    }
}

/// The line to show and the place in it.
fn show(sources: &mut Sources, file: &Arc<str>, place: Place) -> Option<(String, Place)> {
    let line = sources.line(file, place.line)?;
    let whole = line.trim_end().chars().count();
    let column = place.column.min(whole.max(1));
    let width = place.width.min((whole + 1).saturating_sub(column)).max(1);
    Some((line.to_owned(), Place { column, width, ..place }))
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
                if let (Some(line), Some(column)) = (self.line, self.column) {
                    let _ = write!(text, ":{line}:{column}");
                }
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

//! `path` of `request` and of a redirect: what was asked, rewritten, or a template that is filled in.

use std::fmt;

use super::contract::Scope;
use crate::expression::{Environment, Fault, PathTemplate, Subject};
use crate::message::Exchange;
use crate::values::{FieldPath, PathRewrite, PathRewriteSpec, Problem, Reason};

#[derive(Clone, Debug, PartialEq)]
pub enum PathChange {
    Rewrite(PathRewrite),
    Template(PathTemplate),
}

impl PathChange {
    /// Proves what is written `at` a field; `reason` is what it is called if it is wrong. What expressions may read is in
    /// `environment`.
    ///
    /// # Errors
    /// What is wrong; `None` where `scope` has told it.
    pub fn new(
        spec: &PathRewriteSpec,
        at: &FieldPath,
        reason: Reason,
        environment: &'static Environment,
        scope: &mut dyn Scope,
    ) -> Result<Self, Option<Problem>> {
        let Some(text) = spec.as_template() else {
            let wrong = |error: crate::values::InvalidPathRewrite| {
                Some(Problem::error(at.clone(), reason, error.to_string()))
            };
            return PathRewrite::new(spec).map(Self::Rewrite).map_err(wrong);
        };
        let at = at.field("template");
        let template = scope.template(at.clone(), text, environment).ok_or(None)?;
        let wrong = |error: crate::values::InvalidPathRewrite| {
            Some(Problem::error(at.clone(), reason, format!("around its expressions: {error}")))
        };
        PathTemplate::new(template).map(Self::Template).map_err(wrong)
    }

    pub const fn replaces_prefix(&self) -> bool {
        match self {
            Self::Rewrite(rewrite) => rewrite.replaces_prefix(),
            Self::Template(_) => false,
        }
    }

    /// Whether an expression reads a field of this name.
    pub fn reads(&self, field: &str) -> bool {
        match self {
            Self::Rewrite(_) => false,
            Self::Template(template) => template.reads(field),
        }
    }

    /// The new path of the exchange's request, in normal form.
    ///
    /// # Errors
    /// A value cannot be had, or may not stand in a path.
    pub fn apply(&self, exchange: &Exchange) -> Result<String, Fault> {
        match self {
            Self::Rewrite(rewrite) => {
                Ok(rewrite.apply(exchange.request.uri().path(), exchange.matched_prefix))
            }
            Self::Template(template) => template.fill(&Subject { exchange }),
        }
    }
}

impl fmt::Display for PathChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rewrite(rewrite) => rewrite.fmt(f),
            Self::Template(template) => write!(f, "template {}", template.source()),
        }
    }
}

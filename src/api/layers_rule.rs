//! The layer of rules: a broken rule answers 503 on its usable matches; one without a usable match is not installed.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::layers::{ParsedRule, RuleAction, checked, warn_of_unknown};
use super::layers_aggregate;
use super::layers_policy::{self, PolicyLayer, REPLACE_PREFIX_NEEDS};
use super::shape::{Findings, Place, Shape, kind_of};
use super::{
    AggregateSpec, BackendRef, GROUP, PathMatch, PathMatchType, RedirectSpec, RespondSpec, RouteMatch,
    ValueMatchType,
};
use crate::values::{BackendKind, FieldPath, PathRewrite, PathRewriteSpec, Problem, Reason};

/// Regular expressions in one object; each costs memory in every replica.
const MAX_REGULAR_EXPRESSIONS: usize = 100;
/// Characters of one regular expression.
const MAX_REGULAR_EXPRESSION: usize = 512;

/// Parses all rules of a route. There are at most 64.
pub(super) fn parse(rules: Vec<Value>, shape: &Shape, at: &FieldPath) -> Vec<ParsedRule> {
    let mut names = BTreeSet::new();
    let mut expressions = 0;
    rules
        .into_iter()
        .enumerate()
        .map(|(index, value)| {
            let mut rule = Rule::new(index, shape, at).parse(value);
            if !names.insert(rule.name.clone()) {
                let message = format!("another rule is called {:?} too; names are unique", rule.name);
                rule.problems.push(Problem::error(rule.path.field("name"), Reason::Invalid, message));
                rule.failed = Some(Reason::Invalid);
                rule.name = format!("rules[{index}]");
            }
            expressions += rule.matches.iter().map(|(_, one)| regular_expressions(one)).sum::<usize>();
            if expressions > MAX_REGULAR_EXPRESSIONS {
                let message = format!(
                    "found {expressions} regular expressions up to here, expected at most {MAX_REGULAR_EXPRESSIONS} in a route"
                );
                rule.problems.push(Problem::error(rule.path.field("matches"), Reason::Invalid, message));
                rule.failed = Some(Reason::Invalid);
                rule.matches.retain(|(_, one)| regular_expressions(one) == 0);
            }
            rule
        })
        .collect()
}

/// One rule on its way.
struct Rule<'a> {
    shape: &'a Shape,
    parsed: ParsedRule,
    /// The form of the rule itself is broken.
    broken: bool,
}

impl<'a> Rule<'a> {
    fn new(index: usize, shape: &'a Shape, at: &FieldPath) -> Self {
        let parsed = ParsedRule {
            index,
            path: at.index(index),
            name: format!("rules[{index}]"),
            matches: Vec::new(),
            policy_refs: Vec::new(),
            policy: PolicyLayer::default(),
            has_one_prefix: false,
            action: None,
            failed: None,
            problems: Vec::new(),
        };
        Self { shape, parsed, broken: false }
    }

    fn parse(mut self, value: Value) -> ParsedRule {
        let at = self.parsed.path.clone();
        let Value::Object(mut object) = value else {
            self.refuse(at, format!("found {}, expected an object", kind_of(&value)));
            self.parsed.failed = Some(Reason::Invalid);
            return self.parsed;
        };
        object.retain(|_, value| !value.is_null());
        warn_of_unknown(&mut object, self.shape, &at, &mut self.parsed.problems);
        match object.remove("name") {
            Some(name) => {
                if let Some(name) = self.read("name", name) {
                    self.parsed.name = name;
                }
            }
            None => self.refuse(at.clone(), "name is missing"),
        }
        self.matches(object.remove("matches"));
        self.parsed.has_one_prefix = self.has_one_prefix();
        let (policy, refs) = (object.remove("policy"), object.remove("policyRefs"));
        self.parsed.action = self.action(object);
        self.policy(policy, refs);
        let failed = self.parsed.policy.is_unusable();
        self.parsed.failed = match (self.broken, failed) {
            (true, _) => Some(Reason::Invalid),
            (false, true) => Some(Reason::PolicyInvalid),
            (false, false) => None,
        };
        self.parsed
    }

    fn refuse(&mut self, path: FieldPath, message: impl Into<String>) {
        self.parsed.problems.push(Problem::error(path, Reason::Invalid, message));
        self.broken = true;
    }

    /// Reads a field of the rule.
    fn read<T: DeserializeOwned>(&mut self, name: &str, mut value: Value) -> Option<T> {
        let shape = self.shape.at(name).expect("the schema has it");
        let read = checked(&mut value, shape, &self.parsed.path.field(name), &mut self.parsed.problems);
        self.broken |= read.is_none();
        read
    }

    fn matches(&mut self, value: Option<Value>) {
        let at = self.parsed.path.field("matches");
        let list = match value {
            None => {
                self.parsed.matches.push((at, RouteMatch::default()));
                return;
            }
            Some(Value::Array(list)) if (1..=16).contains(&list.len()) => list,
            Some(Value::Array(list)) => {
                return self.refuse(at, format!("found {} entries, expected 1 to 16", list.len()));
            }
            Some(other) => return self.refuse(at, format!("found {}, expected a list", kind_of(&other))),
        };
        let shape = self.shape.at("matches").and_then(|list| list.at("[]")).expect("the schema has it");
        for (index, value) in list.into_iter().enumerate() {
            let at = at.index(index);
            if let Some(usable) = self.one_match(value, shape, &at) {
                self.parsed.matches.push((at, usable));
            }
        }
    }

    /// What is unknown in a match costs the rule, not the match: its path keeps its requests from rules that are less
    /// specific. Without a path the unknown word may have been the path, and the match would take the whole host.
    fn one_match(&mut self, mut value: Value, shape: &Shape, at: &FieldPath) -> Option<RouteMatch> {
        let mut findings = Findings::default();
        shape.check(&mut value, Place::At(at), &mut findings);
        let is_wrong = !findings.wrong.is_empty();
        let takes_all = !findings.unknown.is_empty() && value.get("path").is_none_or(Value::is_null);
        for (path, message) in findings.wrong.into_iter().chain(findings.unknown) {
            self.refuse(path, message);
        }
        if takes_all && !is_wrong {
            self.refuse(at.clone(), "not installed: without a path it would take the whole host");
        }
        if is_wrong || takes_all {
            return None;
        }
        let one: RouteMatch = match serde::Deserialize::deserialize(&value) {
            Ok(one) => one,
            Err(error) => {
                let error: serde_json::Error = error;
                self.refuse(at.clone(), error.to_string());
                return None;
            }
        };
        let wrong = match_problems(&one, at);
        let is_usable = wrong.is_empty();
        for (path, message) in wrong {
            self.refuse(path, message);
        }
        is_usable.then_some(one)
    }

    fn action(&mut self, mut object: Map<String, Value>) -> Option<RuleAction> {
        let at = self.parsed.path.clone();
        let mut given = ["backendRefs", "aggregate", "redirect", "respond"]
            .into_iter()
            .filter_map(|name| object.remove(name).map(|value| (name, value)));
        let (first, second) = (given.next(), given.next());
        let (Some((name, value)), None) = (first, second) else {
            self.refuse(at, "a rule has exactly one of backendRefs, aggregate, redirect and respond");
            return None;
        };
        match name {
            "backendRefs" => self.backend_refs(value),
            "aggregate" => self.aggregate(value),
            "redirect" => self.redirect(value),
            _ => self.respond(value),
        }
    }

    fn backend_refs(&mut self, value: Value) -> Option<RuleAction> {
        let refs: Vec<BackendRef> = self.read("backendRefs", value)?;
        let at = self.parsed.path.field("backendRefs");
        let before = self.parsed.problems.len();
        for (index, reference) in refs.iter().enumerate() {
            let at = at.index(index);
            if (reference.kind == BackendKind::Service) != reference.port.is_some() {
                let message = "port is required for a Service, and not for a GatewayBackend";
                self.refuse(at.field("port"), message);
            }
            let group = match reference.kind {
                BackendKind::Service => "",
                BackendKind::GatewayBackend => GROUP,
            };
            if reference.group.as_deref().is_some_and(|found| found != group) {
                let message =
                    "group is \"\" for a Service and portcullis.dev for a GatewayBackend; leave it out";
                self.refuse(at.field("group"), message);
            }
        }
        (self.parsed.problems.len() == before).then_some(RuleAction::BackendRefs(refs))
    }

    fn aggregate(&mut self, value: Value) -> Option<RuleAction> {
        let aggregate: AggregateSpec = self.read("aggregate", value)?;
        let wrong = layers_aggregate::mistakes(&aggregate, &self.parsed.path.field("aggregate"));
        let is_usable = wrong.is_empty();
        for (path, message) in wrong {
            self.refuse(path, message);
        }
        is_usable.then(|| RuleAction::Aggregate(Box::new(aggregate)))
    }

    fn redirect(&mut self, value: Value) -> Option<RuleAction> {
        let redirect: RedirectSpec = self.read("redirect", value)?;
        let at = self.parsed.path.field("redirect");
        let RedirectSpec { scheme, hostname, port, path, .. } = &redirect;
        if scheme.is_none() && hostname.is_none() && port.is_none() && path.is_none() {
            let message =
                "a redirect changes at least one of scheme, hostname, port and path, else it leads to itself";
            self.refuse(at, message);
            return None;
        }
        if let Some(path) = path {
            if let Err((field, message)) = rewrite_problem(path) {
                self.refuse(FieldPath::new(field).under(&at.field("path")), message);
                return None;
            }
            if path.replace_prefix.is_some() && !self.has_one_prefix() {
                self.refuse(at.field("path").field("replacePrefix"), REPLACE_PREFIX_NEEDS);
                return None;
            }
        }
        Some(RuleAction::Redirect(redirect))
    }

    fn respond(&mut self, value: Value) -> Option<RuleAction> {
        let respond: RespondSpec = self.read("respond", value)?;
        let has_content = respond.text.is_some() || respond.content_type.is_some();
        if matches!(respond.status, 204 | 205 | 304) && has_content {
            let message = "an answer of status 204, 205 or 304 has no text and no contentType";
            self.refuse(self.parsed.path.field("respond"), message);
            return None;
        }
        Some(RuleAction::Respond(respond))
    }

    fn policy(&mut self, policy: Option<Value>, refs: Option<Value>) {
        let of = |name: &str| self.shape.at(name).expect("the schema has it");
        let ParsedRule { path, action, problems, .. } = &mut self.parsed;
        let at = path.field("policy");
        let mut layer = PolicyLayer::default();
        if let Some(policy) = policy {
            layer = layers_policy::read(policy, of("policy"), &at, problems);
            layers_policy::refuse_meaningless(&mut layer, action.as_ref(), &at, problems);
        }
        if let Some(refs) = refs {
            let (shape, at) = (of("policyRefs"), path.field("policyRefs"));
            self.parsed.policy_refs = layers_policy::references(refs, shape, &at, &mut layer, problems);
        }
        self.parsed.policy = layer;
        self.misplaced_prefix();
    }

    /// `request.path.replacePrefix` on a rule that has not one prefix.
    fn misplaced_prefix(&mut self) {
        let members = self.parsed.policy.given.iter();
        let mut replacing = members.filter_map(|(row, member)| member.as_ref()?.replaces_prefix(*row));
        if let Some(path) = replacing.next().filter(|_| !self.parsed.has_one_prefix) {
            self.parsed.problems.push(Problem::error(path, Reason::PolicyInvalid, REPLACE_PREFIX_NEEDS));
            self.parsed.policy.broken = true;
        }
    }

    fn has_one_prefix(&self) -> bool {
        match self.parsed.matches.as_slice() {
            [(_, only)] => only.path.as_ref().is_none_or(|path| path.kind == PathMatchType::PathPrefix),
            _ => false,
        }
    }
}

/// The field below `path`, and what is wrong with it.
fn rewrite_problem(path: &PathRewriteSpec) -> Result<(), (&'static str, String)> {
    if path.as_template().is_some() {
        // The compiler reads it.
        return Ok(());
    }
    let field = match (&path.replace_prefix, &path.replace_full) {
        (Some(_), None) => "replacePrefix",
        (None, Some(_)) => "replaceFull",
        _ => "",
    };
    PathRewrite::new(path).map(drop).map_err(|error| (field, error.to_string()))
}

fn regular_expressions(one: &RouteMatch) -> usize {
    let is_one = |kind: ValueMatchType| usize::from(kind == ValueMatchType::RegularExpression);
    let in_path = one.path.iter().filter(|path| path.kind == PathMatchType::RegularExpression).count();
    in_path
        + one.headers.iter().map(|one| is_one(one.kind)).sum::<usize>()
        + one.query_params.iter().map(|one| is_one(one.kind)).sum::<usize>()
        + one.cookies.iter().map(|one| is_one(one.kind)).sum::<usize>()
}

/// What the CRD's rules refuse in a match.
fn match_problems(one: &RouteMatch, at: &FieldPath) -> Vec<(FieldPath, String)> {
    let mut problems = Vec::new();
    let mut refuse = |path: FieldPath, message: &str| problems.push((path, message.to_owned()));
    if one.method.is_some() && !one.methods.is_empty() {
        refuse(at.clone(), "give either method or methods");
    }
    if one.method.iter().chain(&one.methods).any(|method| method == "CONNECT") {
        refuse(at.clone(), "CONNECT is never routed");
    }
    if let Some(message) = one.path.as_ref().and_then(path_problem) {
        refuse(at.field("path").field("value"), message);
    }
    let headers = one.headers.iter().map(|one| (one.kind, &one.value));
    let query = one.query_params.iter().map(|one| (one.kind, &one.value));
    let cookies = one.cookies.iter().map(|one| (one.kind, &one.value));
    let lists = [
        ("headers", headers.collect::<Vec<_>>()),
        ("queryParams", query.collect()),
        ("cookies", cookies.collect()),
    ];
    for (list, entries) in lists {
        for (index, (kind, value)) in entries.into_iter().enumerate() {
            if kind == ValueMatchType::RegularExpression && value.chars().count() > MAX_REGULAR_EXPRESSION {
                refuse(at.field(list).index(index).field("value"), LONG_EXPRESSION);
            }
        }
    }
    problems
}

const LONG_EXPRESSION: &str = "a regular expression has at most 512 characters";

/// The patterns of the rules that stand at `PathMatch`.
static PLAIN: LazyLock<Regex> =
    LazyLock::new(|| pattern("^([-A-Za-z0-9/._~!$&'()*+,;=:@{}]|%[0-9A-Fa-f]{2})*$"));
static NOT_NORMAL: LazyLock<Regex> =
    LazyLock::new(|| pattern("//|/([.]|%2[eE]){1,2}([/;]|%3[bB]|$)|%(2[fF]|5[cC]|[01]|7[fF])"));
static TEMPLATE: LazyLock<Regex> = LazyLock::new(|| {
    pattern("^(/[^/{}]+|/[{][a-z][A-Za-z0-9_]{0,30}[}])*(/([{][a-z][A-Za-z0-9_]{0,30}[.]{3}[}])?)?$")
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a test uses each")
}

fn path_problem(path: &PathMatch) -> Option<&'static str> {
    let value = path.value.as_str();
    if path.kind == PathMatchType::RegularExpression {
        return (value.chars().count() > MAX_REGULAR_EXPRESSION).then_some(LONG_EXPRESSION);
    }
    if !value.starts_with('/') {
        return Some("a path begins with '/'");
    }
    if NOT_NORMAL.is_match(value) {
        return Some("write the path without empty and dot segments, encoded slashes and control characters");
    }
    if !PLAIN.is_match(value) {
        return Some("a path has unreserved characters, sub-delimiters and %-escapes only (RFC 3986)");
    }
    if path.kind == PathMatchType::PathTemplate {
        return (!TEMPLATE.is_match(value))
            .then_some("a template has segments of text and {name}, and at its end {name...} for the rest");
    }
    value.contains(['{', '}']).then_some("braces stand in a PathTemplate only; a brace itself is %7B or %7D")
}

//! What was found out → conditions, rules with something to say, and the fingerprint that replicas compare.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use super::gateway_backend::LoweredBackend;
use super::gateway_policy::LoweredPolicy;
use super::gateway_route::LoweredRoute;
use super::report::{Condition, ConditionStatus, ConditionType, Report, RuleReport};
use super::{object, worst};
use crate::route_map::{Action, CertificatePlan, ClientValidation};
use crate::snapshot::{Kind, Manifest};
use crate::values::{Hostname, ObjectName, Problem, Reason, Severity, TlsVersion};

/// So much of what is wrong stands in one message; all of it stands in the report.
const TOLD: usize = 4;

/// Everything that a route's report is made from.
pub(super) struct RouteFacts {
    pub lowered: Arc<LoweredRoute>,
    /// Hostnames under which it answers, `None` is the catch-all; and the fingerprint of the TLS that holds there, whoever
    /// set it.
    pub served: Vec<(Option<Hostname>, u64)>,
    /// Those of its hostnames, beside what it says of itself.
    pub problems: Vec<Problem>,
}

/// Something that was found out about a route under a hostname.
pub(super) enum Fact<'f> {
    /// It answers there, where this TLS holds.
    Served(&'f Option<Hostname>, u64),
    Problem(&'f Problem),
}

impl RouteFacts {
    pub fn new(lowered: Arc<LoweredRoute>) -> Self {
        Self { lowered, served: Vec::new(), problems: Vec::new() }
    }

    pub fn add(&mut self, fact: Fact<'_>) {
        match fact {
            Fact::Served(hostname, tls) => self.served.push((hostname.clone(), tls)),
            Fact::Problem(problem) => self.problems.push(problem.clone()),
        }
    }

    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lowered, &other.lowered)
            && self.served == other.served
            && self.problems == other.problems
    }
}

pub(super) fn route(manifest: &Manifest, facts: &RouteFacts) -> Report {
    let lowered = &facts.lowered;
    let mut problems = lowered.problems.clone();
    problems.extend(facts.problems.iter().cloned());
    problems.sort();
    problems.dedup();
    let is_served = !facts.served.is_empty()
        && lowered
            .rules
            .iter()
            .any(|rule| !rule.matches.is_empty() && !matches!(rule.rule.action, Action::Unserved(_)));
    let mut conditions = accepted(&problems, is_served);
    let shadowed: Vec<_> = problems.iter().filter(|problem| problem.reason == Reason::Shadowed).collect();
    // As many reports as there are routes: none has room that it does not need.
    conditions.reserve_exact(1 + usize::from(!shadowed.is_empty()));
    conditions.push(resolved_refs(&problems));
    if !shadowed.is_empty() {
        conditions.push(condition(
            ConditionType::Shadowed,
            ConditionStatus::True,
            "Shadowed",
            told(&shadowed),
        ));
    }
    let rules = rules(lowered, &problems);
    let mut print = Fingerprint::new();
    print.text(&manifest.spec);
    print.problems(&problems);
    for (hostname, tls) in &facts.served {
        print.text(&hostname.as_ref().map_or_else(String::new, Hostname::to_string));
        print.bytes(&tls.to_le_bytes());
    }
    print.bytes(&lowered.policies.to_le_bytes());
    for plan in &lowered.backends {
        print.text(&format!("{plan:?}"));
    }
    Report {
        object: object(manifest, Kind::GatewayRoute),
        origin: manifest.origin.clone(),
        problems,
        conditions,
        rules,
        resolved: print.finish(),
    }
}

pub(super) fn backend(manifest: &Manifest, lowered: &LoweredBackend) -> Report {
    let LoweredBackend { plan, problems } = lowered;
    let mut conditions = accepted(problems, plan.is_ok());
    conditions.push(resolved_refs(problems));
    let mut print = Fingerprint::new();
    print.text(&manifest.spec);
    print.problems(problems);
    print.text(&format!("{plan:?}"));
    Report {
        object: object(manifest, Kind::GatewayBackend),
        origin: manifest.origin.clone(),
        problems: problems.clone(),
        conditions,
        rules: Vec::new(),
        resolved: print.finish(),
    }
}

/// `standing` is what is said of its targets, and whether any of its members counts there.
pub(super) fn policy(
    manifest: &Manifest,
    lowered: &LoweredPolicy,
    standing: &(Vec<Problem>, bool),
) -> Report {
    let (said, counts) = standing;
    let mut problems = lowered.problems.clone();
    problems.extend(said.iter().cloned());
    problems.sort();
    problems.dedup();
    let mut conditions = accepted(&problems, *counts && lowered.is_usable());
    conditions.push(resolved_refs(&problems));
    let mut print = Fingerprint::new();
    print.text(&manifest.spec);
    print.problems(&problems);
    Report {
        object: object(manifest, Kind::GatewayPolicy),
        origin: manifest.origin.clone(),
        problems,
        conditions,
        rules: Vec::new(),
        resolved: print.finish(),
    }
}

/// What policies add to the fingerprint of a route that they apply to.
pub(super) fn print_of<'p>(policies: impl Iterator<Item = &'p Arc<LoweredPolicy>>) -> u64 {
    let mut print = Fingerprint::new();
    for policy in policies {
        print.text(&policy.name.to_string());
        print.text(&policy.spec);
        print.problems(&policy.problems);
    }
    print.finish()
}

/// `Accepted`, and `PartiallyInvalid` where some of it is served and some is not.
fn accepted(problems: &[Problem], is_served: bool) -> Vec<Condition> {
    let own = |severity| {
        move |problem: &&Problem| {
            problem.severity == severity
                && !problem.reason.is_about_references()
                && problem.reason != Reason::Shadowed
        }
    };
    let errors: Vec<_> = problems.iter().filter(own(Severity::Error)).collect();
    let warnings: Vec<_> = problems.iter().filter(own(Severity::Warning)).collect();
    let Some(first) = errors.first() else {
        let message = if warnings.is_empty() {
            Cow::Borrowed("the spec compiles")
        } else {
            format!("the spec compiles; {}", told(&warnings)).into()
        };
        return vec![condition(ConditionType::Accepted, ConditionStatus::True, "Accepted", message)];
    };
    if !is_served {
        return vec![condition(
            ConditionType::Accepted,
            ConditionStatus::False,
            first.reason.as_str(),
            told(&errors),
        )];
    }
    vec![
        condition(
            ConditionType::Accepted,
            ConditionStatus::True,
            "Accepted",
            format!("served in part; {}", told(&errors)),
        ),
        condition(
            ConditionType::PartiallyInvalid,
            ConditionStatus::True,
            first.reason.as_str(),
            told(&errors),
        ),
    ]
}

fn resolved_refs(problems: &[Problem]) -> Condition {
    let broken: Vec<_> = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error && problem.reason.is_about_references())
        .collect();
    let doubtful: Vec<_> = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Warning && problem.reason.is_about_references())
        .collect();
    match broken.first() {
        None if !doubtful.is_empty() => condition(
            ConditionType::ResolvedRefs,
            ConditionStatus::True,
            "ResolvedRefs",
            format!("everything that it refers to is there and may be used; {}", told(&doubtful)),
        ),
        None => condition(
            ConditionType::ResolvedRefs,
            ConditionStatus::True,
            "ResolvedRefs",
            "everything that it refers to is there and may be used",
        ),
        Some(first) => condition(
            ConditionType::ResolvedRefs,
            ConditionStatus::False,
            first.reason.as_str(),
            told(&broken),
        ),
    }
}

fn condition(
    kind: ConditionType,
    status: ConditionStatus,
    reason: &'static str,
    message: impl Into<Cow<'static, str>>,
) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

fn told(problems: &[&Problem]) -> String {
    let mut text = String::new();
    for problem in problems.iter().take(TOLD) {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = write!(text, "{separator}{problem}");
    }
    if problems.len() > TOLD {
        let _ = write!(text, "; and {} more", problems.len() - TOLD);
    }
    text
}

fn rules(lowered: &LoweredRoute, problems: &[Problem]) -> Vec<RuleReport> {
    let of_rule = |path: &str| -> Vec<Problem> {
        let below = |problem: &&Problem| {
            problem
                .path
                .as_str()
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        problems.iter().filter(below).cloned().collect()
    };
    let report = |rule: &super::gateway_route::LoweredRule| {
        let mut problems = of_rule(rule.path().as_str());
        problems.sort_by_key(|problem| problem.severity);
        let worst = worst(&problems)?;
        let message = told(&problems.iter().collect::<Vec<_>>());
        Some(RuleReport { name: rule.name().clone(), reason: worst.reason.as_str(), message })
    };
    if problems.is_empty() { Vec::new() } else { lowered.rules.iter().filter_map(report).collect() }
}

/// What clients of a hostname are shown. A key belongs to its chain and adds nothing.
pub(super) fn tls_print(
    certificates: &[Arc<CertificatePlan>],
    unusable: &[ObjectName],
    redirect: bool,
    min_version: TlsVersion,
    client: &ClientValidation,
) -> u64 {
    let mut print = Fingerprint::new();
    print.bytes(&[u8::from(redirect)]);
    print.text(min_version.as_str());
    match client {
        ClientValidation::None => {}
        ClientValidation::Unusable => print.text("unusable"),
        ClientValidation::By(plan) => print.bytes(&plan.print),
    }
    for certificate in certificates {
        certificate.chain.iter().for_each(|der| print.bytes(der));
    }
    for secret in unusable {
        print.text(&secret.to_string());
    }
    print.finish()
}

/// Of certificates in DER.
pub(super) fn print_of_certificates<'c>(certificates: impl Iterator<Item = &'c Vec<u8>>) -> u64 {
    let mut print = Fingerprint::new();
    certificates.for_each(|der| print.bytes(der));
    print.finish()
}

/// FNV-1a, 64 bit: the same in every process and version.
struct Fingerprint(u64);

impl Fingerprint {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        // The length first, so that two texts are never taken for one.
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn problems(&mut self, problems: &[Problem]) {
        for problem in problems {
            self.text(&problem.to_string());
        }
    }

    const fn finish(self) -> u64 {
        self.0
    }
}

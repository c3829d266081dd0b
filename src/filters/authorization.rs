//! `authorization`: who of those that are known may do what. A Deny that matches denies; then an Allow must match;
//! nothing else passes.
//!
//! Invariant: what cannot be decided denies. A `when` without a value is no match in an Allow and a match in a Deny.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderName, HeaderValue, Method};
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::contract::{Combine, Decision, Filter, FilterKind, Keep, Member, Ring, Scope};
use crate::expression::{Expression, Fault, Kind, MAX_SOURCE, REQUEST, Subject};
use crate::message::{
    ErrorKind, Exchange, IdentityKind, ProxyError, overrides_method, take_method_overrides,
};
use crate::telemetry::Ruling;
use crate::values::{FieldPath, Problem, Reason};

pub struct Authorization;

/// Who may do what: a Deny that matches denies, then an Allow must match.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Without a matching Allow rule a request is denied.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rules: Vec<RuleSpec>,
}

/// All that a rule names must hold; one that names nothing matches every request.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleSpec {
    /// Stands in the access log of what it decides.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    pub action: Action,
    /// The client must have all of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub scopes: Vec<String>,
    /// Of each claim, one of these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "claims_schema")]
    pub claims: BTreeMap<String, Vec<String>>,
    /// Any of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32), regex(pattern = METHOD)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub methods: Vec<String>,
    /// CEL that gives a bool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_SOURCE))]
    pub when: Option<String>,
}

/// What a rule that matches does.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Allow,
    Deny,
}

const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const METHOD: &str = "^[A-Z][-A-Z0-9_]*$";

fn claims_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Of each claim, one of these values.",
        "type": "object",
        "minProperties": 1,
        "maxProperties": 16,
        "additionalProperties": {
            "type": "array", "minItems": 1, "maxItems": 16, "x-kubernetes-list-type": "set",
            "items": {"type": "string", "maxLength": 256},
        },
    })
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    rules: Vec<Rule>,
}

#[derive(Clone, PartialEq)]
pub struct Rule {
    pub name: Arc<str>,
    pub action: Action,
    methods: Vec<Method>,
    claims: Vec<(Box<str>, Vec<Box<str>>)>,
    when: Option<Expression>,
    scopes: Vec<Box<str>>,
}

/// What a rule says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Matches,
    /// A Deny whose `when` has no value.
    MatchesForWantOf(Fault),
    Misses(Part),
    /// An Allow whose `when` has no value.
    Fails(Fault),
}

/// What of a rule does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Methods,
    Claims,
    When,
    /// Asked last: everything else holds.
    Scopes,
}

/// What all rules together say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict<'p> {
    /// The rule that decided; none: no rule allows it.
    pub rule: Option<&'p Rule>,
    pub allows: bool,
    /// More scopes would have done.
    pub lacks_scopes: bool,
}

impl Member for Authorization {
    const NAME: &'static str = "authorization";
    const COMBINE: Combine = Combine::Both;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, scope: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let (mut rules, mut problems, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut is_whole = true;
        for (index, rule) in spec.rules.into_iter().enumerate() {
            let at = FieldPath::new("rules").index(index);
            let mut refuse =
                |path, message| problems.push(Problem::error(path, Reason::PolicyInvalid, message));
            if !names.insert(rule.name.clone()) {
                refuse(at.field("name"), format!("there are two rules {}; rename one", rule.name));
            }
            let mut methods = Vec::new();
            for (index, method) in rule.methods.iter().enumerate() {
                match Method::from_bytes(method.as_bytes()) {
                    Ok(method) => methods.push(method),
                    Err(_) => refuse(at.field("methods").index(index), format!("{method:?} is not a method")),
                }
            }
            let when = rule.when.map(|when| scope.expression(at.field("when"), &when, &REQUEST, Kind::BOOL));
            // What is wrong with it is told already.
            is_whole &= !matches!(when, Some(None));
            let claims = rule.claims.into_iter().map(|(name, values)| {
                (name.into(), values.into_iter().map(String::into_boxed_str).collect())
            });
            rules.push(Rule {
                name: rule.name.into(),
                action: rule.action,
                methods,
                claims: claims.collect(),
                when: when.flatten(),
                scopes: rule.scopes.into_iter().map(String::into_boxed_str).collect(),
            });
        }
        if !problems.is_empty() || !is_whole {
            return Err(problems);
        }
        if !rules.iter().any(|rule| rule.action == Action::Allow) {
            let message =
                "no rule has action Allow, so every request is denied; add one that allows what may pass";
            scope.warn(Problem::warning(FieldPath::new("rules"), Reason::PolicyInvalid, message));
        }
        Ok(Plan { rules })
    }
}

impl FilterKind for Authorization {
    const RING: Ring = Ring::Authorization;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(Judge { plan: plan.clone(), considered: plan.considered() })
    }
}

/// The linked member.
struct Judge {
    plan: Plan,
    /// Fields that override the method, and that a `when` reads.
    considered: Vec<Box<str>>,
}

impl Filter for Judge {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        // The backend would serve another method than the one that is judged here.
        let is_considered = |name: &HeaderName| self.considered.iter().any(|known| **known == *name.as_str());
        take_method_overrides(exchange.request.headers_mut(), is_considered);
        let verdict = self.plan.decide(exchange);
        let rule = verdict.rule.map(|rule| rule.name.clone());
        exchange.ruling = Some(Ruling { rule, allows: verdict.allows });
        if verdict.allows {
            return Decision::Continue;
        }
        let error = ProxyError::new(ErrorKind::Forbidden);
        let is_bearer = matches!(exchange.identity.kind(), IdentityKind::Jwt | IdentityKind::Token);
        if verdict.lacks_scopes && is_bearer {
            // RFC 6750 section 3.1. Which scopes would do is not for everyone to know.
            let value = HeaderValue::from_static("Bearer error=\"insufficient_scope\"");
            return error.with_header(WWW_AUTHENTICATE, value).into();
        }
        error.into()
    }
}

impl Plan {
    /// Fields that override the method, as far as a `when` asks for them by name.
    fn considered(&self) -> Vec<Box<str>> {
        let reads =
            self.rules.iter().filter_map(|rule| rule.when.as_ref()).flat_map(Expression::what_it_reads);
        let fields = reads.filter(|read| (read.variable, read.field) == ("request", "headers"));
        fields.filter_map(|read| read.key).filter(|name| overrides_method(name)).collect()
    }

    /// Every rule with what it says to a request, in the order written.
    pub fn outcomes<'p>(&'p self, exchange: &'p Exchange) -> impl Iterator<Item = (&'p Rule, Outcome)> {
        self.rules.iter().map(|rule| (rule, rule.look(exchange)))
    }

    pub fn decide(&self, exchange: &Exchange) -> Verdict<'_> {
        let mut lacks_scopes = false;
        let denies = self.of(Action::Deny).find(|rule| rule.look(exchange).is_match());
        if denies.is_some() {
            return Verdict { rule: denies, allows: false, lacks_scopes };
        }
        for rule in self.of(Action::Allow) {
            match rule.look(exchange) {
                outcome if outcome.is_match() => {
                    return Verdict { rule: Some(rule), allows: true, lacks_scopes: false };
                }
                Outcome::Misses(Part::Scopes) => lacks_scopes = true,
                _ => {}
            }
        }
        Verdict { rule: None, allows: false, lacks_scopes }
    }

    fn of(&self, action: Action) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.action == action)
    }
}

impl Rule {
    fn look(&self, exchange: &Exchange) -> Outcome {
        if !self.methods.is_empty() && !self.methods.contains(exchange.request.method()) {
            return Outcome::Misses(Part::Methods);
        }
        let has_claim = |(name, values): &(Box<str>, Vec<Box<str>>)| {
            exchange
                .identity
                .claim(name)
                .is_some_and(|claim| values.iter().any(|value| is_or_holds(claim, value)))
        };
        if !self.claims.iter().all(has_claim) {
            return Outcome::Misses(Part::Claims);
        }
        let mut fault = None;
        match self.when.as_ref().map(|when| when.holds(&Subject { exchange })) {
            None | Some(Ok(true)) => {}
            Some(Ok(false)) => return Outcome::Misses(Part::When),
            Some(Err(found)) if self.action == Action::Allow => return Outcome::Fails(found),
            Some(Err(found)) => fault = Some(found),
        }
        if !self.scopes.iter().all(|scope| exchange.identity.has_scope(scope)) {
            return Outcome::Misses(Part::Scopes);
        }
        fault.map_or(Outcome::Matches, Outcome::MatchesForWantOf)
    }
}

impl Outcome {
    pub const fn is_match(self) -> bool {
        matches!(self, Self::Matches | Self::MatchesForWantOf(_))
    }
}

/// Text as it is, numbers and booleans as JSON writes them; of a list, any element.
fn is_or_holds(claim: &serde_json::Value, value: &str) -> bool {
    match claim {
        serde_json::Value::Array(elements) => elements.iter().any(|element| is(element, value)),
        claim => is(claim, value),
    }
}

fn is(claim: &serde_json::Value, value: &str) -> bool {
    match claim {
        serde_json::Value::String(text) => text == value,
        serde_json::Value::Number(number) => number.to_string() == value,
        serde_json::Value::Bool(claim) => value == if *claim { "true" } else { "false" },
        _ => false,
    }
}

/// In short, with what it asks for only.
impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.action, self.name)?;
        if !self.methods.is_empty() {
            write!(f, " methods {:?}", self.methods)?;
        }
        if !self.claims.is_empty() {
            write!(f, " claims {:?}", self.claims)?;
        }
        if let Some(when) = &self.when {
            write!(f, " when {when:?}")?;
        }
        if !self.scopes.is_empty() {
            write!(f, " scopes {:?}", self.scopes)?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matches => f.write_str("matches"),
            Self::MatchesForWantOf(fault) => write!(f, "matches, because its when has no value: {fault}"),
            Self::Misses(Part::Methods) => f.write_str("the method differs"),
            Self::Misses(Part::Claims) => f.write_str("a claim differs"),
            Self::Misses(Part::When) => f.write_str("its when is false"),
            Self::Misses(Part::Scopes) => f.write_str("a scope is missing"),
            Self::Fails(fault) => write!(f, "its when has no value: {fault}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use serde_json::{Value, json};

    use super::*;
    use crate::filters::contract_tests::{FakeOutbound, NoKeep, NoScope, exchange};
    use crate::message::{Identity, KnownIdentity};

    fn plan(rules: &Value) -> Result<Plan, Vec<Problem>> {
        let spec = Spec { rules: serde_json::from_value(rules.clone()).expect("rules") };
        Authorization::compile(spec, &mut NoScope)
    }

    fn as_somebody(kind: IdentityKind, scopes: &[&str]) -> Exchange {
        let claims =
            json!({"tier": "gold", "level": 7, "verified": true, "groups": ["dev", "ops", 3], "org": {}});
        let identity = KnownIdentity {
            kind,
            entry: "users".into(),
            issuer: "i".into(),
            id: "alice".into(),
            scopes: scopes.iter().map(|scope| (*scope).into()).collect(),
            claims: Arc::new(claims.as_object().expect("an object").clone()),
        };
        let mut exchange = exchange("/orders/7?page=1", 0, Rc::new(FakeOutbound::default()));
        exchange.identity = Identity::new(Arc::new(identity));
        exchange
    }

    /// The rule that decides, and whether it allows.
    fn decided(rules: &Value, exchange: &Exchange) -> (String, bool) {
        let plan = plan(rules).expect("valid");
        let verdict = plan.decide(exchange);
        (verdict.rule.map_or("-".to_owned(), |rule| rule.name.to_string()), verdict.allows)
    }

    #[test]
    fn all_that_a_rule_names_must_hold() {
        let alice = as_somebody(IdentityKind::Jwt, &["a", "b"]);
        for (condition, holds) in [
            (json!({}), true),
            (json!({"scopes": ["a", "b"]}), true),
            (json!({"scopes": ["a", "c"]}), false),
            (json!({"methods": ["POST", "GET"]}), true),
            (json!({"methods": ["POST"]}), false),
            (json!({"claims": {"tier": ["silver", "gold"], "level": ["7"], "verified": ["true"]}}), true),
            (json!({"claims": {"tier": ["gold"], "level": ["8"]}}), false),
            (json!({"claims": {"groups": ["ops"]}}), true),
            (json!({"claims": {"groups": ["3"]}}), true),
            (json!({"claims": {"groups": ["admin"]}}), false),
            (json!({"claims": {"nosuch": ["x"]}}), false),
            (json!({"claims": {"org": ["{}"]}}), false),
            (json!({"when": "request.path.startsWith('/orders/')"}), true),
            (json!({"when": "identity.id == 'bob'"}), false),
            (json!({"scopes": ["a"], "when": "identity.id == 'alice'", "methods": ["GET"]}), true),
            (json!({"scopes": ["c"], "when": "identity.id == 'alice'", "methods": ["GET"]}), false),
        ] {
            let mut rule = json!({"name": "r", "action": "Allow"});
            rule.as_object_mut()
                .expect("an object")
                .extend(condition.as_object().expect("an object").clone());
            let name = if holds { "r" } else { "-" };
            assert_eq!(decided(&json!([rule]), &alice), (name.to_owned(), holds), "{condition}");
        }
    }

    #[test]
    fn a_deny_goes_before_every_allow_and_without_an_allow_nothing_passes() {
        let alice = as_somebody(IdentityKind::Jwt, &[]);
        let allow = json!({"name": "all", "action": "Allow"});
        let deny = json!({"name": "gold", "action": "Deny", "claims": {"tier": ["gold"]}});
        let other = json!({"name": "silver", "action": "Deny", "claims": {"tier": ["silver"]}});
        assert_eq!(decided(&json!([allow, deny]), &alice), ("gold".into(), false));
        assert_eq!(decided(&json!([allow, other]), &alice), ("all".into(), true));
        assert_eq!(decided(&json!([other]), &alice), ("-".into(), false));
    }

    #[test]
    fn a_condition_without_a_value_denies_in_either() {
        let alice = as_somebody(IdentityKind::Jwt, &[]);
        let faulty = "identity.claims.nosuch == 'x'";
        let allow = json!({"name": "a", "action": "Allow", "when": faulty});
        let deny = json!({"name": "d", "action": "Deny", "when": faulty});
        let all = json!({"name": "all", "action": "Allow"});
        assert_eq!(decided(&json!([allow]), &alice), ("-".into(), false));
        assert_eq!(decided(&json!([allow, all]), &alice), ("all".into(), true));
        assert_eq!(decided(&json!([deny, all]), &alice), ("d".into(), false));
        let narrower = json!({"name": "d", "action": "Deny", "when": faulty, "scopes": ["x"]});
        assert_eq!(
            decided(&json!([narrower, all]), &alice),
            ("all".into(), true),
            "the rest must hold all the same"
        );
    }

    #[test]
    fn the_anonymous_have_neither_scopes_nor_claims() {
        let nobody = exchange("/", 0, Rc::new(FakeOutbound::default()));
        for condition in [json!({"scopes": ["a"]}), json!({"claims": {"tier": ["gold"]}})] {
            let mut rule = json!({"name": "r", "action": "Allow"});
            rule.as_object_mut()
                .expect("an object")
                .extend(condition.as_object().expect("an object").clone());
            assert_eq!(decided(&json!([rule]), &nobody), ("-".into(), false));
        }
    }

    #[test]
    fn bearers_are_told_that_a_scope_is_missing_and_only_then() {
        let rules = json!([{"name": "r", "action": "Allow", "scopes": ["write"], "methods": ["GET"]}]);
        let judge = Authorization::link(&plan(&rules).expect("valid"), &NoKeep);
        let told = |mut exchange: Exchange| {
            let Decision::Fail(error) = judge.request(&mut exchange) else { panic!("it passed") };
            assert_eq!(exchange.ruling, Some(Ruling { rule: None, allows: false }));
            assert_eq!(error.kind, ErrorKind::Forbidden);
            error.headers.iter().any(|(name, value)| {
                name == WWW_AUTHENTICATE && value == "Bearer error=\"insufficient_scope\""
            })
        };
        assert!(told(as_somebody(IdentityKind::Jwt, &[])) && told(as_somebody(IdentityKind::Token, &[])));
        assert!(!told(as_somebody(IdentityKind::ApiKey, &[])));
        let mut post = as_somebody(IdentityKind::Jwt, &[]);
        *post.request.method_mut() = Method::POST;
        assert!(!told(post), "no scope would have helped");
    }

    #[test]
    fn mistakes_name_their_field() {
        let wrong = |rules: Value| -> Vec<String> {
            plan(&rules).expect_err("wrong").iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            wrong(json!([{"name": "a", "action": "Allow"}, {"name": "a", "action": "Deny"}])),
            ["rules[1].name: there are two rules a; rename one"]
        );
        assert_eq!(
            wrong(json!([{"name": "a", "action": "Allow", "methods": ["G T"]}])),
            ["rules[0].methods[0]: \"G T\" is not a method"]
        );
        assert!(plan(&json!([{"name": "a", "action": "Allow", "when": "nosuch"}])).is_err());
    }
}

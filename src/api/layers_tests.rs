//! Tests of the layers: what is broken, and what it costs.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::layers::{ParsedRoute, ParsedRule, RuleAction, SHAPES, parse_backend, parse_route};
use super::{Precedence, RouteMatch, RouteTls, parse_policy};
use crate::values::{FieldPath, Problem, Reason, TlsVersion};

fn parse(spec: &Value) -> ParsedRoute {
    parse_route(&spec.to_string())
}

/// A route with these rules.
fn rules(rules: Value) -> ParsedRoute {
    parse(&json!({"rules": rules}))
}

/// A rule that is good but for what is given.
fn rule(changes: Value) -> ParsedRule {
    let mut rule = json!({"name": "a", "backendRefs": [{"name": "b", "port": 80}]});
    for (name, value) in changes.as_object().expect("an object") {
        rule[name] = value.clone();
    }
    rules(json!([rule])).rules.remove(0)
}

fn told(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|p| format!("{} {p}", p.reason.as_str())).collect()
}

#[test]
fn the_shapes_are_built_from_the_schemas() {
    assert!(SHAPES.route.at("rules").is_some() && SHAPES.backend.at("hosts").is_some());
}

#[test]
fn a_small_route_is_read_with_its_defaults() {
    let route = parse(&json!({
        "hostnames": ["a.example", "*.b.example"],
        "tls": {"certificateRefs": [{"name": "cert"}]},
        "policy": {"timeouts": {"request": "5s"}},
        "rules": [{"name": "a", "backendRefs": [{"name": "b", "port": 80}]}],
    }));
    assert_eq!(route.class_name, "portcullis");
    assert_eq!(route.hostnames.expect("given").len(), 2);
    assert!(route.tls.expect("given").redirect);
    assert_eq!(told(&route.problems), [""; 0]);
    let rule = &route.rules[0];
    assert_eq!(rule.matches, [(FieldPath::new("spec.rules[0].matches"), RouteMatch::default())]);
    let (_, member) = &route.policy.given[0];
    assert_eq!(member.as_ref().map(|member| member.path.as_str()), Some("spec.policy.timeouts"));
    assert!(rule.policy.given.is_empty());
    assert!(matches!(&rule.action, Some(RuleAction::BackendRefs(refs)) if refs[0].weight == 1));
    assert_eq!((rule.failed, told(&rule.problems)), (None, vec![]));
}

#[test]
fn what_is_no_object_is_one_problem() {
    for (spec, expected) in [
        ("", "Invalid spec: the spec cannot be read: EOF while parsing a value at line 1 column 0"),
        ("[]", "Invalid spec: found a list, expected an object"),
        ("{}", "Invalid spec: rules is missing"),
        (r#"{"rules": 7}"#, "Invalid spec.rules: found a number, expected a list"),
        (r#"{"rules": []}"#, "Invalid spec.rules: found 0 entries, expected 1 to 64"),
    ] {
        let route = parse_route(spec);
        assert_eq!((told(&route.problems), route.rules.len()), (vec![expected.to_owned()], 0), "{spec}");
    }
}

#[test]
fn a_broken_hostname_costs_itself_and_never_makes_a_catch_all() {
    let route = parse(&json!({"hostnames": ["a.example", "B.example", "*.x", 7, "a.example"], "rules": []}));
    assert_eq!(route.hostnames.expect("given").len(), 1);
    assert_eq!(route.problems.iter().filter(|p| p.path.as_str().starts_with("spec.hostnames[")).count(), 4);
    for broken in [json!(["10.0.0.1"]), json!("a.example"), json!(vec!["a.example"; 17])] {
        let route = parse(&json!({"hostnames": broken, "rules": []}));
        assert_eq!(route.hostnames.as_deref(), Some(&[][..]));
    }
    assert_eq!(parse(&json!({"rules": []})).hostnames, None);
}

#[test]
fn broken_tls_still_forbids_plain_http() {
    for broken in [
        json!("yes"),
        json!({}),
        json!({"certificateRefs": []}),
        json!({"certificateRefs": [{"name": "Bad_Name"}], "redirect": "no"}),
    ] {
        let route = parse(&json!({"tls": broken, "rules": []}));
        assert_eq!(
            route.tls,
            Some(RouteTls {
                mode: crate::api::TlsMode::Terminate,
                certificate_refs: vec![],
                redirect: true,
                min_version: TlsVersion::Tls12,
                client_validation: None
            })
        );
        assert!(route.problems.len() > 1, "{broken}");
    }
}

#[test]
fn a_least_version_that_cannot_be_read_is_the_newest() {
    let tls = |version: Value| {
        let refs = json!([{"name": "a"}]);
        let route = parse(&json!({"tls": {"certificateRefs": refs, "minVersion": version}, "rules": []}));
        (route.tls.map(|tls| tls.min_version), route.problems.len())
    };
    assert_eq!(tls(json!("Tls12")), (Some(TlsVersion::Tls12), 1));
    assert_eq!(tls(json!("Tls13")), (Some(TlsVersion::Tls13), 1));
    assert_eq!(tls(json!("Tls14")), (Some(TlsVersion::Tls13), 2));
    assert_eq!(tls(json!(1.2)), (Some(TlsVersion::Tls13), 2));
}

#[test]
fn a_field_of_tls_that_nobody_knows_may_be_what_asks_for_certificates() {
    let tls = |more: Value| {
        let mut tls = json!({"certificateRefs": [{"name": "a"}], "redirect": false});
        tls.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let route = parse(&json!({"tls": tls, "rules": []}));
        let tls = route.tls.expect("something");
        (tls.redirect, tls.min_version, tls.client_validation, told(&route.problems))
    };
    let (redirect, least, clients, _) = tls(json!({}));
    assert_eq!((redirect, least, clients), (false, TlsVersion::Tls12, None), "the control");
    for name in ["clientValidations", "minversion", "clients"] {
        let (redirect, least, clients, problems) = tls(json!({name: {}}));
        assert_eq!((redirect, least, clients), (true, TlsVersion::Tls13, Some(Default::default())), "{name}");
        let said = format!("Invalid spec.tls.{name}: there is no field {name:?}");
        assert!(problems.iter().any(|problem| problem.starts_with(&said)), "{said} in {problems:?}");
    }
    // Who passes the connection through has nobody to ask.
    let passed = parse(&json!({"tls": {"mode": "Passthrough", "clientValidations": {}}, "rules": []}));
    let passed = passed.tls.expect("something");
    assert_eq!((passed.min_version, passed.client_validation), (TlsVersion::Tls12, None));
}

#[test]
fn a_broken_delegation_allows_nobody() {
    for broken in [
        json!({"namespaces": {"from": "Everyone"}}),
        json!({"namespaces": {"from": "Selector"}}),
        json!({"namespaces": {"from": "All", "selector": {"matchLabels": {"a": "b"}}}}),
        json!({"namespaces": {"from": "Selector", "selector": {"matchLabels": {}}}}),
    ] {
        let route =
            parse(&json!({"allowedRoutes": broken, "rules": [{"name": "a", "respond": {"status": 200}}]}));
        assert_eq!((route.allowed_routes, route.problems.len()), (None, 1), "{broken}");
        assert_eq!(route.rules[0].failed, None);
    }
}

#[test]
fn an_unknown_field_is_served_with_a_warning() {
    let route = parse(&json!({
        "hostname": [], "rules": [{"name": "a", "respond": {"status": 200, "body": ""}, "when": 1}]
    }));
    assert_eq!(
        told(&route.problems),
        ["UnknownField spec.hostname: there is no field \"hostname\"; did you mean hostnames?; ignored"]
    );
    let rule = &route.rules[0];
    assert_eq!((rule.failed, rule.problems.len()), (None, 2));
    assert!(rule.problems.iter().all(|problem| problem.severity == crate::values::Severity::Warning));
}

#[test]
fn a_broken_rest_leaves_the_matches() {
    for rest in [
        json!({"name": "B_"}),
        json!({"redirect": {"port": 80}}),
        json!({"backendRefs": []}),
        json!({"backendRefs": [{"name": "b"}]}),
        json!({"backendRefs": [{"name": "b", "port": 80, "kind": "GatewayBackend"}]}),
        json!({"backendRefs": [{"name": "b", "port": 80, "group": "apps"}]}),
        json!({"backendRefs": null}),
        json!({"backendRefs": null, "redirect": {}}),
        json!({"backendRefs": null, "redirect": {"path": {"replaceFull": "/a/../b"}}}),
        json!({"backendRefs": null, "respond": {"status": 204, "text": "x"}}),
    ] {
        let mut changes = rest.clone();
        changes["matches"] = json!([{"path": {"value": "/a"}}]);
        let rule = rule(changes);
        assert_eq!((rule.matches.len(), rule.failed), (1, Some(Reason::Invalid)), "{rest}");
        assert!(!rule.problems.is_empty(), "{rest}");
    }
}

#[test]
fn a_rule_without_a_usable_match_is_not_installed() {
    for matches in [
        json!([]),
        json!("/a"),
        json!([7]),
        json!([{"path": "/a"}]),
        json!([{"path": {"value": "a"}}]),
        json!([{"path": {"value": "/a//b"}}]),
        json!([{"path": {"value": "/a b"}}]),
        json!([{"path": {"type": "PathTemplate", "value": "/a{b}"}}]),
        json!([{"path": {"type": "RegularExpression", "value": "a".repeat(513)}}]),
        json!([{"headers": [{"name": "x y", "value": ""}]}]),
        json!([{"headers": [{"name": "x", "value": ""}, {"name": "x", "value": ""}]}]),
        json!([{"method": "get"}]),
        json!([{"method": "CONNECT"}]),
        json!([{"method": "GET", "methods": ["PUT"]}]),
        json!([{"pth": {"value": "/a"}}]),
        json!([{"method": "GET", "header": []}]),
    ] {
        let rule = rule(json!({"matches": matches}));
        assert_eq!((rule.matches.len(), rule.failed), (0, Some(Reason::Invalid)), "{matches}");
    }
}

#[test]
fn one_broken_match_makes_the_others_answer_503() {
    let rule = rule(json!({"matches": [{"path": {"value": "/a"}}, {"path": {"value": 7}}]}));
    assert_eq!((rule.matches.len(), rule.failed), (1, Some(Reason::Invalid)));
    assert_eq!(
        told(&rule.problems),
        ["Invalid spec.rules[0].matches[1].path.value: found a number, expected a string"]
    );
}

#[test]
fn an_unknown_predicate_keeps_its_match_and_costs_the_rule() {
    let rule = rule(json!({"matches": [{"path": {"value": "/a"}, "header": []}]}));
    assert_eq!((rule.matches.len(), rule.failed), (1, Some(Reason::Invalid)));
    assert_eq!(
        told(&rule.problems),
        ["Invalid spec.rules[0].matches[0].header: there is no field \"header\"; did you mean headers?"]
    );
}

#[test]
fn a_policy_that_cannot_be_told_costs_its_rules() {
    for policy in [
        json!({"timeout": {}}),
        json!({"timeouts": {"requst": "5s"}}),
        json!({"timeouts": {"request": "5"}}),
        json!([]),
        json!({"disable": ["telepathy"]}),
        json!({"disable": ["timeouts"], "timeouts": {}}),
    ] {
        let rule = rule(json!({"policy": policy}));
        assert_eq!(rule.failed, Some(Reason::PolicyInvalid), "{policy}");
        assert!(rule.problems.iter().all(|p| p.reason == Reason::PolicyInvalid), "{policy}");
    }
}

#[test]
fn a_broken_member_of_the_route_is_left_for_the_rules_that_inherit_it() {
    let route = |policy: Value| {
        parse(
            &json!({"policy": policy, "rules": [{"name": "a", "backendRefs": [{"name": "b", "port": 80}]}]}),
        )
    };
    let broken = route(json!({"timeouts": {"request": 5}}));
    assert_eq!(
        told(&broken.problems),
        ["PolicyInvalid spec.policy.timeouts.request: found a number, expected a string"]
    );
    assert!(matches!(broken.policy.given[..], [(_, None)]) && !broken.policy.broken);
    assert_eq!(broken.rules[0].failed, None, "whether it inherits is the compiler's to say");
    assert!(route(json!({"timeout": {}})).policy.broken);
    assert_eq!(route(json!({"disable": ["timeouts"]})).policy.disabled.len(), 1);
    assert!(route(json!({"disable": ["timeouts"], "timeouts": {}})).policy.is_unusable());
}

#[test]
fn policies_that_cannot_be_told_are_not_left_out() {
    for refs in [json!(7), json!([]), json!([{"name": "A B"}]), json!([{"name": "a", "namespace": "b"}])] {
        let rule = rule(json!({"policyRefs": refs}));
        assert_eq!((rule.failed, rule.policy_refs.len()), (Some(Reason::PolicyInvalid), 0), "{refs}");
        assert!(!rule.problems.is_empty(), "{refs}");
        let route = parse(&json!({"policyRefs": refs, "rules": []}));
        assert!(route.policy.broken && route.policy_refs.is_empty(), "{refs}");
    }
    // Those that can be told still say what clients may not set elsewhere under the hostname.
    for (refs, left) in [
        (json!([{"name": "a"}, {"nam": "b"}]), vec![0]),
        (json!([7, {"name": "b"}]), vec![1]),
        (json!([null, {"name": "b"}, {"name": "c", "namespace": "d"}]), vec![1]),
        (json!(vec![json!({"name": "a"}); 17]), (0..16).collect()),
    ] {
        let left: Vec<_> = left.iter().map(|index| format!("spec.rules[0].policyRefs[{index}]")).collect();
        let rule = rule(json!({"policyRefs": refs}));
        let told: Vec<_> = rule.policy_refs.iter().map(|(at, _)| at.to_string()).collect();
        assert_eq!((rule.failed, told), (Some(Reason::PolicyInvalid), left), "{refs}");
        let route = parse(&json!({"policyRefs": refs, "rules": []}));
        assert!(route.policy.broken && route.policy_refs.len() == rule.policy_refs.len(), "{refs}");
    }
    let good = rule(json!({"policyRefs": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!((good.failed, good.policy_refs.len()), (None, 2));
}

#[test]
fn a_policy_denies_where_its_reach_or_its_force_cannot_be_told() {
    let parse = |spec: Value| parse_policy(&spec.to_string());
    let small =
        parse(json!({"targetRefs": [{"kind": "Namespace"}], "policy": {"timeouts": {"request": "5s"}}}));
    assert_eq!((small.targets.len(), small.precedence), (1, Precedence::Default));
    assert_eq!((small.policy.given.len(), small.reach_unknown, told(&small.problems)), (1, false, vec![]));
    for targets in [
        json!(7),
        json!([]),
        json!([7]),
        json!([{"kind": "Namespac"}]),
        json!([{"kind": "GatewayRoute"}]),
        json!([{"kind": "Namespace", "name": "a"}]),
        json!([{"kind": "Namespace", "sectionName": "a"}]),
        json!([{"kind": "Namespace", "selecter": {"matchLabels": {"a": "b"}}}]),
        json!([{"kind": "Installation", "selector": {"matchLabels": {"a": "b"}}}]),
        json!(vec![json!({"kind": "Namespace"}); 17]),
    ] {
        let parsed = parse(json!({"targetRefs": targets}));
        assert!(parsed.reach_unknown && !parsed.problems.is_empty(), "{targets}");
    }
    for (spec, is_broken) in [
        (json!({"precedence": "Overide"}), true),
        (json!({"precedence": "Override", "policy": {"disable": ["timeouts"]}}), true),
        (json!({"policy": {"timeout": {}}}), true),
        (json!({"policy": {"timeouts": {"request": 5}}}), false),
        (json!({"precedence": "Override", "policy": {}}), false),
        (json!({"targetRefs": [{"kind": "Gateway", "name": "a"}], "policy": {}}), false),
        (json!({"precedence": "Override"}), true),
        (json!({"polcy": {"timeouts": {"request": "5s"}}}), true),
        (json!({"policy": null}), true),
    ] {
        let parsed = parse(spec.clone());
        assert_eq!((parsed.policy.broken, parsed.reach_unknown), (is_broken, false), "{spec}");
    }
    for spec in ["", "7", "[]"] {
        let parsed = parse_policy(spec);
        assert!(parsed.reach_unknown && parsed.policy.broken, "{spec:?}");
    }
}

#[test]
fn a_member_without_meaning_is_refused_where_written() {
    let rule = rule(json!({
        "backendRefs": null, "redirect": {"port": 80}, "policy": {"timeouts": {"request": "1s"}}
    }));
    assert_eq!(rule.failed, Some(Reason::PolicyInvalid));
}

#[test]
fn names_of_rules_are_unique() {
    let two = json!([{"name": "a", "respond": {"status": 200}}, {"name": "a", "respond": {"status": 200}}]);
    let route = rules(two);
    assert_eq!((route.rules[0].failed, route.rules[1].failed), (None, Some(Reason::Invalid)));
    assert_eq!(route.rules[1].name, "rules[1]");
}

#[test]
fn a_prefix_is_replaced_only_where_there_is_one() {
    let replaced = |matches: Value| {
        let redirect = json!({"path": {"replacePrefix": "/"}});
        rule(json!({"backendRefs": null, "redirect": redirect, "matches": matches})).failed
    };
    assert_eq!(replaced(json!([{"path": {"value": "/v0"}}])), None);
    assert_eq!(replaced(json!([{}])), None);
    assert_eq!(replaced(json!([{"path": {"type": "Exact", "value": "/v0"}}])), Some(Reason::Invalid));
    assert_eq!(
        replaced(json!([{"path": {"value": "/a"}}, {"path": {"value": "/b"}}])),
        Some(Reason::Invalid)
    );
}

#[test]
fn a_route_has_at_most_a_hundred_regular_expressions() {
    let one = json!({"path": {"type": "RegularExpression", "value": "/a"}});
    let many: Vec<_> = (0..8)
        .map(|i| json!({"name": format!("r{i}"), "matches": vec![&one; 16], "respond": {"status": 200}}))
        .collect();
    let route = rules(many.into());
    let failed = route.rules.iter().filter(|rule| rule.failed.is_some()).count();
    assert_eq!(failed, 2, "6 rules have 96, the seventh passes the bound");
}

#[test]
fn a_backend_is_whole_or_not_at_all() {
    let parse = |spec: Value| parse_backend(&spec.to_string());
    let good = json!({"hosts": [{"address": "10.0.0.1", "port": 80}, {"address": "a.example", "port": 80}]});
    assert!(parse(good).spec.is_some());
    assert!(parse(json!({"service": {"name": "a", "port": 80}, "protocol": "Auto"})).spec.is_some());
    for bad in [
        json!({}),
        json!({"hosts": []}),
        json!({"hosts": [{"address": "*.a.example", "port": 80}]}),
        json!({"hosts": [{"address": "a.example", "port": 0}]}),
        json!({"hosts": [{"address": "a.example", "port": 80}], "service": {"name": "a", "port": 80}}),
        json!({"service": {"name": "a", "port": 80}, "host": "a.example:80"}),
    ] {
        let parsed = parse(bad.clone());
        assert_eq!((parsed.spec, parsed.problems.len()), (None, 1), "{bad}");
    }
}

/// JSON made of the words of the API, in all the wrong places.
fn any_value() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "rules",
        "name",
        "matches",
        "path",
        "type",
        "value",
        "policy",
        "timeouts",
        "request",
        "disable",
        "backendRefs",
        "redirect",
        "respond",
        "hostnames",
        "tls",
        "certificateRefs",
        "status",
        "port",
        "a",
        "/a",
        "Exact",
        "headers",
        "method",
        "allowedRoutes",
        "namespaces",
        "selector",
        "from",
        "hosts",
        "replacePrefix",
        "policyRefs",
        "targetRefs",
        "precedence",
        "Override",
        "kind",
        "Namespace",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(word.clone(), inner, 0..8)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_parsed(text in "\\PC{0,200}") {
        parse_route(&text);
        parse_backend(&text);
        parse_policy(&text);
    }

    #[test]
    fn any_json_is_parsed(value in any_value(), rule in any_value()) {
        parse(&value);
        parse_backend(&value.to_string());
        parse_policy(&value.to_string());
        parse_policy(&json!({"targetRefs": [rule], "policy": value, "precedence": "Override"}).to_string());
        parse(&json!({"rules": [rule], "hostnames": value}));
    }

    #[test]
    fn a_broken_rule_changes_nothing_about_the_others(broken in any_value()) {
        let good = json!({"name": "good", "matches": [{"path": {"value": "/a"}}], "respond": {"status": 200}});
        let alone = rules(json!([good]));
        let beside = rules(json!([good, broken]));
        prop_assert_eq!(&alone.rules[0], &beside.rules[0]);
        prop_assert_eq!(alone.problems, beside.problems);
    }
}

//! The cases of tests/crd, as files would be judged. A real API server is asked the same by tests/crd/check.sh.

use std::path::Path;

use serde_json::Value;

use super::layers::{parse_backend, parse_route};
use super::{PolicyLayer, crd, parse_policy};
use crate::filters::{NoScope, REGISTRY};
use crate::values::{Problem, Severity};

/// Name, text and object of each case.
fn cases(folder: &str) -> Vec<(String, String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crd").join(folder);
    let mut cases: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let object = serde_saphyr::from_str(&text).expect("YAML");
            (path.file_name().expect("a name").to_string_lossy().into_owned(), text, object)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

/// All errors, those of the policy members included.
fn errors(object: &Value) -> Vec<String> {
    let spec = object["spec"].to_string();
    let problems = match object["kind"].as_str() {
        Some("GatewayBackend") => parse_backend(&spec).problems,
        Some("GatewayPolicy") => {
            let parsed = parse_policy(&spec);
            parsed.problems.into_iter().chain(member_problems(&parsed.policy)).collect()
        }
        _ => {
            let route = parse_route(&spec);
            let mut problems = route.problems;
            problems.extend(member_problems(&route.policy));
            for rule in &route.rules {
                problems.extend(rule.problems.iter().cloned());
                problems.extend(member_problems(&rule.policy));
            }
            problems
        }
    };
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(ToString::to_string).collect()
}

fn member_problems(layer: &PolicyLayer) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (row, member) in layer.given.iter().filter_map(|(row, member)| Some((row, member.as_ref()?))) {
        let compiled = (REGISTRY[*row].compile)(&member.value, &mut NoScope);
        problems.extend(compiled.err().unwrap_or_default().into_iter().map(|one| one.under(&member.path)));
    }
    problems
}

#[test]
fn what_the_api_server_accepts_is_accepted_in_files() {
    let cases = cases("good");
    assert!(cases.len() > 10);
    for (name, _, object) in cases {
        assert_eq!(errors(&object), [""; 0], "{name}");
    }
}

#[test]
fn what_the_api_server_refuses_is_refused_in_files() {
    let cases = cases("bad");
    assert!(cases.len() > 100);
    for (name, _, object) in cases {
        assert!(!errors(&object).is_empty(), "{name}");
    }
}

#[test]
fn each_rule_of_the_schemas_has_a_case() {
    let expected: Vec<_> = cases("bad")
        .into_iter()
        .map(|(name, text, _)| {
            let first = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
            first.unwrap_or_else(|| panic!("{name} does not say what to expect")).to_owned()
        })
        .collect();
    let mut rules = 0;
    for mut definition in [crd::gateway_route(), crd::gateway_backend(), crd::gateway_policy()] {
        let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        crd::walk(schema, &mut |schema| {
            for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten()
            {
                rules += 1;
                let message = rule["message"].as_str().expect("each rule has a message");
                assert!(expected.iter().any(|words| message.contains(words)), "no case for {message:?}");
            }
        });
    }
    assert!(rules > 30, "found {rules}");
}

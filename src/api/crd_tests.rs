//! Tests of the definitions as a whole: their files, limits and words, what is still to come, and the reference.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::crd::{crds, gateway_backend, gateway_policy, gateway_route};
use super::reference::reference;
use crate::filters::REGISTRY;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compares a generated file, or writes it.
fn compare(file: &str, text: &str) {
    let path = root().join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, text).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "{file} is out of date: run `UPDATE_GOLDEN=1 cargo test --lib api::` and look at the change"
    );
}

/// Every field with its schema, by its path from the kind: `GatewayRoute.spec.rules[].name`.
fn fields() -> BTreeMap<String, Map<String, Value>> {
    fn visit(path: &str, schema: &Value, fields: &mut BTreeMap<String, Map<String, Value>>) {
        let Some(object) = schema.as_object() else { return };
        fields.insert(path.to_owned(), object.clone());
        for (name, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            visit(&format!("{path}.{name}"), property, fields);
        }
        for (word, step) in [("items", "[]"), ("additionalProperties", "{}")] {
            if let Some(schema) = object.get(word) {
                visit(&format!("{path}{step}"), schema, fields);
            }
        }
    }
    let mut fields = BTreeMap::new();
    for crd in [gateway_backend(), gateway_policy(), gateway_route()] {
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let kind = crd["spec"]["names"]["kind"].as_str().expect("a kind");
        for part in ["spec", "status"] {
            visit(&format!("{kind}.{part}"), &schema[part], &mut fields);
        }
    }
    fields
}

#[test]
fn the_files_are_what_the_types_say() {
    for (file, yaml) in crds() {
        compare(&format!("crds/{file}"), &yaml);
        // A copy, not a link: tools that install charts from git do not follow links.
        compare(&format!("charts/portcullis/crds/{file}"), &yaml);
    }
}

#[test]
fn the_reference_is_what_the_schemas_say() {
    compare("docs/reference.md", &reference());
}

#[test]
fn the_yaml_reads_back_as_the_same_definition() {
    for ((_, yaml), crd) in crds().into_iter().zip([gateway_backend(), gateway_policy(), gateway_route()]) {
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).expect("YAML"), crd);
    }
}

/// Plain `kubectl apply` puts the whole object into an annotation of at most 262,144 bytes.
#[test]
fn each_definition_stays_small() {
    let sizes = [gateway_backend(), gateway_policy(), gateway_route()].map(|crd| crd.to_string().len());
    assert!(sizes.iter().all(|size| *size < 200_000), "{sizes:?} bytes");
    assert!(sizes.iter().sum::<usize>() < 300_000, "{sizes:?} bytes");
}

#[test]
fn every_field_is_described_in_at_most_80_characters() {
    for (path, schema) in fields() {
        let description = schema.get("description").and_then(Value::as_str);
        assert!(description.is_none_or(|text| text.chars().count() <= 80), "{path}: {description:?}");
        let is_copy = ["GatewayRoute.spec.policy.", "GatewayPolicy.spec.policy."]
            .iter()
            .any(|copy| path.starts_with(copy));
        let is_field = !path.ends_with("[]") && !path.ends_with("{}");
        assert!(!is_field || description.is_some() != is_copy, "{path}: {description:?}");
    }
}

/// Else the API server refuses the definition for the cost of its rules, and an object has no bound.
#[test]
fn every_list_string_and_map_has_a_limit() {
    for (path, schema) in fields() {
        let has = |word: &str| schema.contains_key(word);
        match schema.get("type").and_then(Value::as_str) {
            Some("array") => {
                assert!(has("maxItems"), "{path} needs maxItems");
                assert!(has("x-kubernetes-list-type"), "{path} needs a list type");
            }
            Some("string") => {
                assert!(has("maxLength") || has("enum") || has("format"), "{path} needs maxLength");
            }
            Some("object") if has("additionalProperties") => {
                assert!(has("maxProperties"), "{path} needs maxProperties");
            }
            Some("integer") => {
                let format = schema.get("format").and_then(Value::as_str);
                assert!(matches!(format, Some("int32" | "int64")), "{path}: {format:?}");
            }
            Some("object" | "boolean" | "number") => {}
            // The size of what is any JSON is for the compiler to bound.
            None if has("x-kubernetes-preserve-unknown-fields") => {}
            other => panic!("{path} is of type {other:?}"),
        }
        assert!(!has("nullable"), "{path} is nullable");
    }
}

#[test]
fn kubectl_is_told_names_columns_and_the_status_subresource() {
    let crd = gateway_route();
    assert_eq!(crd["spec"]["names"]["shortNames"], json!(["gwr"]));
    assert_eq!(crd["spec"]["names"]["categories"], json!(["portcullis"]));
    assert_eq!(crd["spec"]["versions"][0]["subresources"], json!({"status": {}}));
    let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array().expect("columns");
    let names: Vec<_> = columns.iter().map(|column| column["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["Hostnames", "Accepted", "Programmed", "Reason", "Age"]);
}

/// The paths of tests/api-to-come.txt.
fn to_come() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("tests/api-to-come.txt")).expect("the list");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (path, topic) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?} has no topic"));
            assert!(!topic.trim().is_empty(), "{line:?} has no topic");
            path.to_owned()
        })
        .collect()
}

#[test]
fn what_is_to_come_is_not_there_yet() {
    let fields = fields();
    let paths = to_come();
    let sorted: BTreeSet<_> = paths.iter().cloned().collect();
    assert_eq!(paths, sorted.iter().cloned().collect::<Vec<_>>(), "sort the list");
    for path in &paths {
        let places = match path.strip_prefix("policy.") {
            Some(rest) => vec![
                format!("GatewayRoute.spec.rules[].policy.{rest}"),
                format!("GatewayRoute.spec.policy.{rest}"),
                format!("GatewayPolicy.spec.policy.{rest}"),
            ],
            None => vec![path.clone()],
        };
        if let Some((field, value)) = path.split_once('=') {
            let known = fields.get(field).and_then(|schema| schema.get("enum")?.as_array());
            let known = known.unwrap_or_else(|| panic!("{field} has no values"));
            assert!(!known.contains(&json!(value)), "{path} is in the schema: take it off the list");
            continue;
        }
        for place in places {
            assert!(!fields.contains_key(&place), "{place} is in the schema: take it off the list");
        }
        let below = sorted.iter().find(|other| other.starts_with(&format!("{path}.")));
        assert_eq!(below, None, "{path} is said twice");
    }
}

#[test]
fn every_member_of_a_policy_is_there_or_to_come() {
    let mut names: BTreeSet<String> = REGISTRY.iter().map(|row| row.name.to_owned()).collect();
    let word = |rest: &str| rest.split(['.', '[']).next().expect("a first part").to_owned();
    names.extend(to_come().iter().filter_map(|path| path.strip_prefix("policy.")).map(word));
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "accessLog",
            "authentication",
            "authorization",
            "cache",
            "compression",
            "cors",
            "errors",
            "extAuth",
            "faultInjection",
            "ipAccess",
            "limits",
            "mirror",
            "rateLimits",
            "request",
            "response",
            "retry",
            "securityHeaders",
            "sessionAffinity",
            "timeouts",
            "validation",
        ]
    );
}

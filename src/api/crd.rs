//! The CustomResourceDefinitions, generated from the types: what `portcullis crds` prints and `crds/` holds.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{GatewayBackend, GatewayRoute};
use crate::filters::{Applies, REGISTRY};

/// File name and YAML of each kind.
pub fn crds() -> Vec<(&'static str, String)> {
    [("gatewaybackends.yaml", gateway_backend()), ("gatewayroutes.yaml", gateway_route())]
        .map(|(file, crd)| {
            (file, serde_saphyr::to_string(&crd).expect("a JSON value without exotic numbers is YAML"))
        })
        .into()
}

pub(super) fn gateway_backend() -> Value {
    tidied(&GatewayBackend::crd())
}

pub(super) fn gateway_route() -> Value {
    let mut crd = tidied(&GatewayRoute::crd());
    let spec = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    // `kubectl explain gwr.spec.rules.policy` has them; twice they would be a third of the CRD.
    for member in fields(&mut spec["properties"]["policy"]).values_mut() {
        walk(member, &mut |schema| {
            schema.remove("description");
        });
    }
    if let Some(Value::Array(rules)) = spec.pointer_mut("/properties/rules/items/x-kubernetes-validations") {
        rules.extend(only_with_backends());
    }
    crd
}

/// The schema of a kind's `spec`, as the API server is told.
pub(super) fn spec_schema(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
}

/// One rule for each member that means nothing without a backend.
fn only_with_backends() -> impl Iterator<Item = Value> {
    REGISTRY.iter().filter(|row| row.applies == Applies::ToBackends).map(|row| {
        let name = row.name;
        json!({
            "rule": format!("has(self.backendRefs) || !has(self.policy) || !has(self.policy.{name})"),
            "message": meaningless(name),
            "fieldPath": format!(".policy.{name}"),
        })
    })
}

/// What is said about such a member, here and in `layers`.
pub(super) fn meaningless(member: &str) -> String {
    format!("{member} concerns requests to backends; remove it from a rule with redirect or respond")
}

/// The definition as JSON, without what Kubernetes does not want.
fn tidied(crd: &impl serde::Serialize) -> Value {
    let mut crd = serde_json::to_value(crd).expect("a definition is JSON");
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    walk(schema, &mut |schema| {
        // Without it the API server prunes a null like an absent field; with it `has()` would be true for a null.
        schema.remove("nullable");
        // Structural schemas prune unknown fields by themselves and forbid this word beside `properties`.
        if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
            schema.remove("additionalProperties");
        }
        // Kubernetes' own type holds bounds as floats.
        for word in ["minimum", "maximum"] {
            if let Some(bound) = schema.get_mut(word)
                && let Some(whole) = bound.as_f64().and_then(whole)
            {
                *bound = whole.into();
            }
        }
    });
    crd
}

fn whole(number: f64) -> Option<i64> {
    format!("{number:.0}").parse().ok().filter(|_| number.fract() == 0.0)
}

/// Visits every schema within `schema`.
pub(super) fn walk(schema: &mut Value, visit: &mut impl FnMut(&mut Map<String, Value>)) {
    let Some(object) = schema.as_object_mut() else { return };
    visit(object);
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(|property| walk(property, visit));
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(schema) = object.get_mut(inner) {
            walk(schema, visit);
        }
    }
}

fn fields(schema: &mut Value) -> &mut Map<String, Value> {
    schema["properties"].as_object_mut().expect("a schema of an object has properties")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_the_types_say() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        // A copy, not a link: tools that install charts from git do not follow links.
        for folder in ["crds", "charts/portcullis/crds"].map(|folder| root.join(folder)) {
            for (file, yaml) in crds() {
                let path = folder.join(file);
                if std::env::var_os("UPDATE_GOLDEN").is_some() {
                    std::fs::create_dir_all(&folder).expect("a folder");
                    std::fs::write(&path, &yaml).expect("written");
                }
                let found = std::fs::read_to_string(&path).unwrap_or_default();
                assert!(found == yaml, "{} is out of date: run `make crds`", path.display());
            }
        }
    }

    #[test]
    fn the_yaml_reads_back_as_the_same_definition() {
        for ((_, yaml), crd) in crds().into_iter().zip([gateway_backend(), gateway_route()]) {
            assert_eq!(serde_saphyr::from_str::<Value>(&yaml).expect("YAML"), crd);
        }
    }

    /// Plain `kubectl apply` puts the whole object into an annotation of at most 262,144 bytes.
    #[test]
    fn each_definition_stays_small() {
        for crd in [gateway_backend(), gateway_route()] {
            let size = crd.to_string().len();
            assert!(size < 200_000, "{} bytes", size);
        }
    }

    fn each_schema(visit: &mut dyn FnMut(&str, &Map<String, Value>)) {
        fn inner(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Map<String, Value>)) {
            let Some(object) = schema.as_object() else { return };
            visit(path, object);
            for (name, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten()
            {
                inner(&format!("{path}.{name}"), property, visit);
            }
            for (word, step) in [("items", "[]"), ("additionalProperties", "{}")] {
                if let Some(schema) = object.get(word) {
                    inner(&format!("{path}{step}"), schema, visit);
                }
            }
        }
        for crd in [gateway_backend(), gateway_route()] {
            let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
            let kind = crd["spec"]["names"]["kind"].as_str().expect("a kind");
            for part in ["spec", "status"] {
                inner(&format!("{kind}.{part}"), &root[part], visit);
            }
        }
    }

    #[test]
    fn every_field_is_described_in_at_most_80_characters() {
        each_schema(&mut |path, schema| {
            let description = schema.get("description").and_then(Value::as_str);
            assert!(description.is_none_or(|text| text.chars().count() <= 80), "{path}: {description:?}");
            let is_copy = path.starts_with("GatewayRoute.spec.policy.");
            let is_field = !path.ends_with("[]") && !path.ends_with("{}");
            assert!(!is_field || description.is_some() != is_copy, "{path}: {description:?}");
        });
    }

    /// Else the API server refuses the definition for the cost of its rules, and an object has no bound.
    #[test]
    fn every_list_string_and_map_has_a_limit() {
        each_schema(&mut |path, schema| {
            let kind = schema.get("type").and_then(Value::as_str);
            let has = |word: &str| schema.contains_key(word);
            match kind {
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
                Some("object" | "boolean") => {}
                other => panic!("{path} is of type {other:?}"),
            }
        });
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
}

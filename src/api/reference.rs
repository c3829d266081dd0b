//! The reference of all fields, as docs/reference.md has it: written from the schemas.

use std::fmt::Write;

use serde_json::Value;

use super::crd;
use crate::filters::{Applies, Combine, REGISTRY};

/// The whole page.
pub fn reference() -> String {
    let mut page = String::from(HEAD);
    for (crd, words) in
        [(crd::gateway_route(), ROUTE), (crd::gateway_policy(), POLICY), (crd::gateway_backend(), BACKEND)]
    {
        let names = &crd["spec"]["names"];
        let kind = names["kind"].as_str().unwrap_or_default();
        let short = names["shortNames"][0].as_str().unwrap_or_default();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let _ = write!(page, "\n## {kind} (`{short}`)\n\n{}\n{words}", text(schema, "description"));
        for part in ["spec", "status"] {
            let _ = write!(page, "\n### {kind} {part}\n\n{TABLE}");
            rows(part, &schema["properties"][part], &mut page);
            let mut rules = Vec::new();
            conditions(part, &schema["properties"][part], &mut rules);
            if !rules.is_empty() {
                let _ = write!(page, "\nRefused besides, with these words:\n\n{}", rules.concat());
            }
        }
    }
    let _ = write!(page, "{}", members());
    page
}

const HEAD: &str = "<!-- Written from the schemas by a test: UPDATE_GOLDEN=1 cargo test --lib api:: -->
# Reference of the API

Group `portcullis.dev`, version `v1alpha1`, category `portcullis`. A field that is not here does not exist: on a cluster
it is dropped by the API server (and refused by a strict `kubectl apply`), in files it is reported with a warning, inside
a `policy` or a `matches` entry it makes the rule answer 503. `kubectl explain gwr.spec` tells the same.
";

const ROUTE: &str = "
`spec.policy` takes the members of `spec.rules[].policy` and holds for every rule; a member that stands on the rule
replaces it as a whole, `disable` drops it. How policies combine stands in [policies.md](policies.md).
";

const POLICY: &str = "
`spec.policy` takes the members of a route's `spec.rules[].policy`. How policies combine stands in
[policies.md](policies.md).
";

const BACKEND: &str = "
A backend whose host is a name is asked under that name, one with an IP address or a Service under the client's; `host`
and `request.host` of a rule replace either. In file mode loopback addresses are allowed.
";

const TABLE: &str = "| field | type | default | what it is |\n| --- | --- | --- | --- |\n";

fn rows(path: &str, schema: &Value, page: &mut String) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let required = schema.get("required").and_then(Value::as_array);
    for (name, field) in properties {
        let path = format!("{path}.{name}");
        let is_required = required.is_some_and(|names| names.iter().any(|one| one == name.as_str()));
        let default = match field.get("default") {
            _ if is_required => "required".to_owned(),
            Some(default) => format!("`{default}`"),
            None => String::new(),
        };
        let _ = writeln!(page, "| `{path}` | {} | {default} | {} |", kind(field), text(field, "description"));
        // The members are explained at the rule.
        if path != "spec.policy" {
            let (step, inner) = match field.get("items") {
                Some(items) => ("[]", items),
                None => ("", field),
            };
            rows(&format!("{path}{step}"), inner, page);
        }
    }
}

/// Type and limits.
fn kind(schema: &Value) -> String {
    let number = |word: &str| schema.get(word).map(ToString::to_string);
    let span = |low: &str, high: &str, unit: &str| match (number(low), number(high)) {
        (Some(low), Some(high)) => format!(", {low} to {high}{unit}"),
        (None, Some(high)) => format!(", at most {high}{unit}"),
        (Some(low), None) => format!(", at least {low}{unit}"),
        (None, None) => String::new(),
    };
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let words: Vec<_> = words
            .iter()
            .map(|word| format!("`{}`", word.as_str().map_or(word.to_string(), str::to_owned)))
            .collect();
        return words.join(", ");
    }
    match text(schema, "type") {
        "array" => {
            let of = match text(schema, "x-kubernetes-list-type") {
                "set" => "set",
                "map" => "list by name",
                _ => "list",
            };
            let of = if text(schema, "x-kubernetes-list-map-keys") == "type" { "list by type" } else { of };
            format!("{of} of {}{}", kind_of_items(&schema["items"]), span("minItems", "maxItems", " entries"))
        }
        "string" => format!("string{}", span("minLength", "maxLength", " characters")),
        "integer" => format!("integer{}", span("minimum", "maximum", "")),
        "object" if schema.get("additionalProperties").is_some() => {
            format!("map{}", span("minProperties", "maxProperties", " entries"))
        }
        other => other.to_owned(),
    }
}

fn kind_of_items(items: &Value) -> String {
    match text(items, "type") {
        "object" => "objects".to_owned(),
        _ => format!("{} each", kind(items)),
    }
}

/// One line for each CEL rule.
fn conditions(path: &str, schema: &Value, lines: &mut Vec<String>) {
    for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        lines.push(format!("- `{path}`: {}\n", text(rule, "message")));
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if path != "spec" || name != "policy" {
            conditions(&format!("{path}.{name}"), field, lines);
        }
    }
    if let Some(items) = schema.get("items") {
        conditions(&format!("{path}[]"), items, lines);
    }
}

/// What is special about each member.
fn members() -> String {
    let mut page = String::from(
        "\n## Members of `policy`\n\nRequests pass the rings from low to high, answers from high to low. Members without a ring are settings of the\naction. A member that concerns backends only is refused on a rule with `redirect` or `respond`, and ignored there when\ninherited. A member that an Override policy imposes replaces the rule's, or is added to it.\n\n| member | ring | concerns | imposed |\n| --- | --- | --- | --- |\n",
    );
    for row in REGISTRY {
        let ring = row.ring.map(|ring| (ring.number()).to_string()).unwrap_or_default();
        let concerns = match row.applies {
            Applies::ToEveryAction => "every action",
            Applies::ToBackends => "requests to backends",
            Applies::ToBackendRefs => "`backendRefs`",
        };
        let imposed = match row.combine {
            Combine::Replace => "replaces",
            Combine::Both => "is added: both must pass",
        };
        let _ = writeln!(page, "| `{}` | {ring} | {concerns} | {imposed} |", row.name);
    }
    page
}

fn text<'a>(schema: &'a Value, word: &str) -> &'a str {
    schema.get(word).and_then(Value::as_str).unwrap_or_default()
}

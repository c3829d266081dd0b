//! The CustomResourceDefinitions, generated from the types: what `portcullis crds` prints and `crds/` holds.

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{GatewayBackend, GatewayPolicy, GatewayRoute};
use crate::filters::{Applies, REGISTRY, Row};

/// File name and YAML of each kind.
pub fn crds() -> Vec<(&'static str, String)> {
    [
        ("gatewaybackends.yaml", gateway_backend()),
        ("gatewaypolicies.yaml", gateway_policy()),
        ("gatewayroutes.yaml", gateway_route()),
    ]
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
    let spec = without_descriptions(&mut crd);
    if let Some(Value::Array(rules)) = spec.pointer_mut("/properties/rules/items/x-kubernetes-validations") {
        rules.extend(only_with_backends());
        rules.extend(only_of_one_request());
    }
    if let Some(Value::Array(rules)) = spec.pointer_mut("/x-kubernetes-validations") {
        rules.push(only_with_requests());
    }
    crd
}

pub(super) fn gateway_policy() -> Value {
    let mut crd = tidied(&GatewayPolicy::crd());
    without_descriptions(&mut crd);
    crd
}

/// The spec, its policy without words: `kubectl explain gwr.spec.rules.policy` has them; three times they would be a
/// third of the definitions.
fn without_descriptions(crd: &mut Value) -> &mut Value {
    let spec = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for member in fields(&mut spec["properties"]["policy"]).values_mut() {
        walk(member, &mut |schema| {
            schema.remove("description");
        });
    }
    spec
}

/// The schema of a kind's `spec`, as the API server is told.
pub(super) fn spec_schema(crd: &Value) -> &Value {
    &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
}

/// One rule for each member that means nothing without a backend.
fn only_with_backends() -> impl Iterator<Item = Value> {
    REGISTRY.iter().filter(|row| row.applies != Applies::ToEveryAction).map(|row| {
        let name = row.name;
        let also = if row.applies == Applies::ToBackends { "has(self.aggregate) || " } else { "" };
        json!({
            "rule": format!("has(self.backendRefs) || {also}!has(self.policy) || !has(self.policy.{name})"),
            "message": meaningless(row),
            "fieldPath": format!(".policy.{name}"),
        })
    })
}

/// One rule for each member of which some fields mean nothing beside calls.
fn only_of_one_request() -> impl Iterator<Item = Value> {
    REGISTRY.iter().filter(|row| !row.of_one_request.is_empty()).map(|row| {
        let name = row.name;
        let given = row.of_one_request.iter().map(|field| format!("has(self.policy.{name}.{field})"));
        let given = given.collect::<Vec<_>>().join(" || ");
        json!({
            "rule": format!("!has(self.aggregate) || !has(self.policy) || !has(self.policy.{name}) || !({given})"),
            "message": of_calls(row),
            "fieldPath": format!(".policy.{name}"),
        })
    })
}

/// What is said about such a field, here and in `layers`.
pub(super) fn of_calls(row: &Row) -> String {
    let fields = row.of_one_request.join(", ");
    format!(
        "{fields} of {} change the request to a backend; on a rule with aggregate each call says its own",
        row.name
    )
}

/// What a route that passes TLS through says of members which work on requests.
fn only_with_requests() -> Value {
    let members = REGISTRY.iter().map(|row| row.name).filter(|name| !ON_CONNECTIONS.contains(name));
    let paths = members.chain(["timeouts.request", "timeouts.backendRequest"]);
    let of = |policy: &str| {
        let absent = |path: &str| match path.split_once('.') {
            None => format!("!has({policy}.{path})"),
            Some((member, _)) => format!("(!has({policy}.{member}) || !has({policy}.{path}))"),
        };
        let absent: Vec<_> = paths.clone().map(absent).collect();
        format!("(!has({policy}) || ({}))", absent.join(" && "))
    };
    let (route, rule) = (of("self.policy"), of("self.rules[0].policy"));
    json!({
        "rule": format!("!has(self.tls) || self.tls.mode != 'Passthrough' || ({route} && {rule})"),
        "message": NO_REQUESTS,
    })
}

/// Members of a policy that mean something where TLS is passed through.
pub const ON_CONNECTIONS: [&str; 2] = ["ipAccess", "timeouts"];
/// What is said about the others, here and by the compiler.
pub const NO_REQUESTS: &str = "what is passed through is not HTTP to us; of a policy only ipAccess and timeouts (connect, idle) mean something there";

/// What is said about such a member, here and in `layers`.
pub(super) fn meaningless(row: &Row) -> String {
    let (name, action) = (row.name, if row.applies == Applies::ToBackendRefs { "aggregate, " } else { "" });
    format!("{name} concerns requests to backends; remove it from a rule with {action}redirect or respond")
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

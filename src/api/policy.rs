//! `policy`: members by name, raw until the row of each compiles it, so that a broken member costs only its rules.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::gateway_route::OBJECT_NAME;
use super::layers_policy::given_and_disabled;
use crate::filters::REGISTRY;

/// A policy, wherever it stands: members, and the names of inherited ones that are dropped.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Policy {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disable: Vec<String>,
    #[serde(flatten)]
    pub members: BTreeMap<String, serde_json::Value>,
}

/// A GatewayPolicy of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyRef {
    /// Name of the GatewayPolicy.
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: String,
}

/// The field of `policy` that is no member.
pub(super) const DISABLE: &str = "disable";

impl Policy {
    pub fn is_empty(&self) -> bool {
        self.disable.is_empty() && self.members.is_empty()
    }
}

impl JsonSchema for Policy {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Policy".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = REGISTRY.iter().map(|row| row.name).collect();
        let mut properties = members(generator);
        properties.insert(
            DISABLE.to_owned(),
            serde_json::json!({
                "description": "Inherited members that are dropped; what is imposed stays.",
                "type": "array", "minItems": 1, "maxItems": 64, "x-kubernetes-list-type": "set",
                "items": {"type": "string", "enum": names},
            }),
        );
        let not_both: Vec<_> = names
            .iter()
            .map(|name| {
                serde_json::json!({
                    "rule": format!("!has(self.disable) || !has(self.{name}) || !('{name}' in self.disable)"),
                    "message": given_and_disabled(name),
                })
            })
            .collect();
        json_schema!({"type": "object", "properties": properties, "x-kubernetes-validations": not_both})
    }
}

fn members(generator: &mut SchemaGenerator) -> serde_json::Map<String, serde_json::Value> {
    REGISTRY.iter().map(|row| (row.name.to_owned(), (row.schema)(generator).to_value())).collect()
}

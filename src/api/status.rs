//! The status of our kinds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of the route; written by the installation that serves it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRouteStatus {
    /// Generation of the spec that all of this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, ResolvedRefs, Programmed and, where they apply, others.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// Rules that have something to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<RuleStatus>,
}

/// What there is to say about one rule.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Name of the rule.
    #[schemars(length(max = 63))]
    pub name: String,
    /// One word that does not change between versions.
    #[schemars(length(max = 63))]
    pub reason: String,
    /// What was found, what was expected, and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// What became of the backend, for each installation.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayBackendStatus {
    /// Installations that know the backend.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub installations: Vec<InstallationStatus>,
}

/// What became of the policy, for each installation.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayPolicyStatus {
    /// Installations that know the policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub installations: Vec<InstallationStatus>,
}

/// What one installation says.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct InstallationStatus {
    /// The className that the installation serves.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Accepted, ResolvedRefs and Programmed.
    #[serde(default)]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// A list-map by `type`, so that two writers do not fight.
fn conditions(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "maxItems": 16, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object", "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {"description": "What the condition is about.", "type": "string", "maxLength": 316},
                "status": {"description": "Whether it holds.", "type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {
                    "description": "Generation of the spec that the condition is about.",
                    "type": "integer", "format": "int64"
                },
                "reason": {"description": "One word: why.", "type": "string", "maxLength": 1024},
                "message": {"description": "What to know and what to do.", "type": "string", "maxLength": 32768},
                "lastTransitionTime": {
                    "description": "When the status last changed.", "type": "string", "format": "date-time"
                }
            }
        }
    })
}

//! `GatewayPolicy`: policies under a name, to share among routes or to impose.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gateway_route::{LABEL, OBJECT_NAME};
use super::policy::Policy;
use super::status::GatewayPolicyStatus;
use crate::values::NamespaceSelector;

/// What is wanted.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "portcullis.dev",
    version = "v1alpha1",
    kind = "GatewayPolicy",
    plural = "gatewaypolicies",
    shortname = "gwp",
    category = "portcullis",
    namespaced,
    status = "GatewayPolicyStatus",
    derive = "PartialEq",
    doc = "Policies under a name: to share among routes, or to impose.",
    printcolumn(name = "Precedence", type_ = "string", json_path = ".spec.precedence"),
    printcolumn(name = "Targets", type_ = "string", json_path = ".spec.targetRefs[*].kind"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.installations[*].conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = r#".status.installations[*].conditions[?(@.type=="Programmed")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.installations[*].conditions[?(@.type=="Accepted")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.precedence == 'Default' || !has(self.policy) || !has(self.policy.disable)")
        .message("disable drops inherited members, so it goes with precedence Default")
        .field_path(".policy.disable")
)]
pub struct GatewayPolicySpec {
    /// To what it applies; none: to what names it in policyRefs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub target_refs: Vec<PolicyTarget>,
    /// Default: routes may say otherwise. Override: they may not.
    #[serde(default)]
    pub precedence: Precedence,
    /// The members; explained at gwr.spec.rules.policy.
    pub policy: Policy,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precedence {
    #[default]
    Default,
    Override,
}

/// To what a policy applies.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("(self.kind == 'GatewayRoute') == has(self.name)")
        .message("name is required for a GatewayRoute, and not for other kinds")
        .field_path(".name"),
    validation = Rule::new("!has(self.sectionName) || self.kind == 'GatewayRoute'")
        .message("sectionName goes with kind GatewayRoute: it names one of its rules")
        .field_path(".sectionName"),
    validation = Rule::new("!has(self.selector) || self.kind == 'Namespace'")
        .message("selector goes with kind Namespace")
        .field_path(".selector")
)]
pub struct PolicyTarget {
    /// Namespace, GatewayRoute or Installation.
    pub kind: TargetKind,
    /// Name of the GatewayRoute, in the policy's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = OBJECT_NAME))]
    pub name: Option<String>,
    /// One rule of the GatewayRoute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL))]
    pub section_name: Option<String>,
    /// Namespaces by label; only in the installation's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<NamespaceSelector>,
}

/// The policy's own namespace or those that the selector finds; a route; all that the installation serves. Other kinds
/// come with their objects.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    Namespace,
    GatewayRoute,
    Installation,
}

//! `rules[].aggregate`: one answer that is made of several calls.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::filters::{HeaderSpec, QueryParamSpec, RetrySpec};
use crate::values::{AskedBackendRef, Duration};

/// One answer from several calls.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.errorsMember) || !self.errorsMember || !has(self.response) || !has(self.response.body)")
        .message("errorsMember goes with the object of all calls; response.body says itself what the body is")
        .field_path(".errorsMember")
)]
pub struct AggregateSpec {
    /// All calls are over by then; timeouts.request may end them before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Those without dependsOn begin at once, others when what they need is over.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub calls: Vec<CallSpec>,
    /// The answer; by default an object with a member a call, in their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<AggregateResponseSpec>,
    /// Adds the member _errors to a partial answer: which calls failed, and why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub errors_member: bool,
}

/// A request to one backend.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!has(self.body) || (has(self.method) && self.method != 'GET')")
        .message("a GET has no body; set method")
        .field_path(".body"),
    validation = Rule::new("!has(self.dependsOn) || !(self.name in self.dependsOn)")
        .message("a call cannot wait for itself")
        .field_path(".dependsOn")
)]
pub struct CallSpec {
    /// Names the call in the answer and in expressions.
    #[schemars(length(min = 1, max = 31), regex(pattern = "^[a-z][A-Za-z0-9]*$"))]
    #[x_kube(validation = ("!(self in ['request', 'response', 'path', 'identity', 'client', 'route', 'calls', 'call', 'error', 'env', 'now', 'has', 'true', 'false', 'null', 'in', 'as', 'break', 'const', 'continue', 'else', 'for', 'function', 'if', 'import', 'let', 'loop', 'namespace', 'package', 'return', 'var', 'void', 'while', 'bool', 'bytes', 'double', 'int', 'list', 'map', 'string', 'type', 'uint'])", RESERVED_NAME))]
    pub name: String,
    /// Who is asked.
    pub backend_ref: AskedBackendRef,
    /// Calls that must be over before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 15), inner(length(min = 1, max = 31)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub depends_on: Vec<String>,
    /// CEL: whether the call is made at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub when: Option<String>,
    /// GET by default; POST, PUT, PATCH, DELETE, or a name with ${expression} in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = ("self in ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'] || self.contains('${')", METHOD))]
    pub method: Option<String>,
    /// Path and query, with ${expression} in them.
    #[schemars(length(min = 1, max = 2048), regex(pattern = "^/"))]
    pub path: String,
    /// Parameters that follow those of the path; values may hold ${expression}.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub query: Vec<QueryParamSpec>,
    /// Header fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<CallHeadersSpec>,
    /// CEL: what is sent, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub body: Option<String>,
    /// Of all its tries; by default policy.timeouts.backendRequest; at most 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = ("duration(self) > duration('0s') && duration(self) <= duration('30s')", CALL_TIMEOUT))]
    pub timeout: Option<Duration>,
    /// When it is tried again; by default policy.retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// What its failure means; by default it fails the whole answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnErrorSpec>,
}

/// Of those without an expression.
pub(super) const METHODS: &[&str] = &["GET", "POST", "PUT", "PATCH", "DELETE"];
pub(super) const METHOD: &str =
    "a call's method is GET, POST, PUT, PATCH, DELETE, or a name with ${expression} in it";
pub(super) const RESERVED_NAME: &str = "the name means something else in expressions; choose another";
pub(super) const CALL_TIMEOUT: &str = "the timeout of a call is more than 0s and at most 30s";

/// Names that no call can have: what expressions call by them is something else.
pub(super) const RESERVED: &[&str] = &[
    "request",
    "response",
    "path",
    "identity",
    "client",
    "route",
    "calls",
    "call",
    "error",
    "env",
    "now",
    "has",
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "namespace",
    "package",
    "return",
    "var",
    "void",
    "while",
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "string",
    "type",
    "uint",
];

/// Header fields of a call.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CallHeadersSpec {
    /// Fields of the request that are passed on, beside tracing and Accept-Language.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 256), regex(pattern = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub pass: Vec<String>,
    /// Fields that get exactly this value, which may hold ${expression}.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub set: Vec<HeaderSpec>,
}

/// What the failure of a call means.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["value"]}, {"required": ["omit"]}, {"required": ["status"]}]))]
pub struct OnErrorSpec {
    /// Stands in the place of its answer, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub value: Option<serde_json::Value>,
    /// true: nothing stands in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub omit: Option<bool>,
    /// Status of the whole answer then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599), extend("format" = "int32"))]
    pub status: Option<u16>,
}

fn any_json(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Stands in the place of its answer, as JSON.",
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// The answer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AggregateResponseSpec {
    /// CEL: the status; 200 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub status: Option<String>,
    /// Header fields; values may hold ${expression}.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<HeaderSpec>,
    /// CEL: the body, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub body: Option<String>,
}

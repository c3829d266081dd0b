//! `matches`: which requests a rule is for.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All that is given must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("!has(self.method) || !has(self.methods)", "give either method or methods"),
    validation = (
        "(!has(self.method) || self.method != 'CONNECT') && (!has(self.methods) || !('CONNECT' in self.methods))",
        "CONNECT is never routed"
    )
)]
pub struct RouteMatch {
    /// Path of the request; none: every path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Short for methods with one entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = METHOD))]
    pub method: Option<String>,
    /// Any of these; none: every method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32), regex(pattern = METHOD)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub methods: Vec<String>,
    /// Header fields, each of which must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query, each of which must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub query_params: Vec<QueryParamMatch>,
    /// Cookies, each of which must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub cookies: Vec<CookieMatch>,
}

const METHOD: &str = "^[A-Z][-A-Z0-9_]*$";
/// A token (RFC 9110 section 5.6.2).
const TOKEN: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";

/// Of what is matched by `type` and `value`.
fn short_expression() -> kube::core::Rule {
    kube::core::Rule::new("self.type != 'RegularExpression' || size(self.value) <= 512")
        .message("a regular expression has at most 512 characters")
        .field_path(".value")
}

/// A path, as the type says.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("self.type == 'RegularExpression' || self.value.startsWith('/')")
        .message("a path begins with '/'")
        .field_path(".value"),
    validation = Rule::new(
        "self.type == 'RegularExpression' || self.value.matches(\"^([-A-Za-z0-9/._~!$&'()*+,;=:@{}]|%[0-9A-Fa-f]{2})*$\")"
    )
    .message("a path has unreserved characters, sub-delimiters and %-escapes only (RFC 3986)")
    .field_path(".value"),
    validation = Rule::new("!(self.type in ['Exact', 'PathPrefix']) || !(self.value.contains('{') || self.value.contains('}'))")
        .message("braces stand in a PathTemplate only; a brace itself is %7B or %7D")
        .field_path(".value"),
    validation = Rule::new(
        "self.type == 'RegularExpression' || !self.value.matches('//|/([.]|%2[eE]){1,2}([/;]|%3[bB]|$)|%(2[fF]|5[cC]|[01]|7[fF])')"
    )
    .message("write the path without empty and dot segments, encoded slashes and control characters")
    .field_path(".value"),
    validation = Rule::new(
        "self.type != 'PathTemplate' || self.value.matches('^(/[^/{}]+|/[{][a-z][A-Za-z0-9_]{0,30}[}])*(/([{][a-z][A-Za-z0-9_]{0,30}[.]{3}[}])?)?$')"
    )
    .message("a template has segments of text and {name}, and at its end {name...} for the rest")
    .field_path(".value"),
    validation = short_expression()
)]
pub struct PathMatch {
    /// Exact, PathPrefix (whole segments), PathTemplate or RegularExpression.
    #[serde(default, rename = "type")]
    pub kind: PathMatchType,
    /// The path, template or regular expression.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathMatchType {
    Exact,
    #[default]
    PathPrefix,
    PathTemplate,
    RegularExpression,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ValueMatchType {
    #[default]
    Exact,
    RegularExpression,
}

/// A header field with a value.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = short_expression())]
pub struct HeaderMatch {
    /// Name of the field, in any case.
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    pub name: String,
    /// Exact or RegularExpression.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// The whole value, or an expression that matches it.
    #[schemars(length(max = 1024))]
    pub value: String,
}

/// A parameter of the query with a value.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = short_expression())]
pub struct QueryParamMatch {
    /// Name of the parameter, not percent-encoded.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Exact or RegularExpression.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// The whole value, or an expression that matches it.
    #[schemars(length(max = 1024))]
    pub value: String,
}

/// A cookie with a value.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = short_expression())]
pub struct CookieMatch {
    /// Name of the cookie.
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    pub name: String,
    /// Exact or RegularExpression.
    #[serde(default, rename = "type")]
    pub kind: ValueMatchType,
    /// The whole value, or an expression that matches it.
    #[schemars(length(max = 1024))]
    pub value: String,
}

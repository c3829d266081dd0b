//! `cache`: which answers are kept, for how long, and by what they are told apart. The work is done in `cache/` and
//! `proxy/cached`: a room around the action, which can be run again without the client.

use std::time::Duration as Time;

use http::HeaderName;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Applies, Member, Scope};
use super::failures::ServeStale;
use crate::values::{ByteSize, Duration, FieldPath, Problem, Reason};

pub struct Cache;

/// Answers that are kept and used again (RFC 9111).
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// How long to keep what the origin says nothing about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_ttl: Option<Duration>,
    /// The longest, whatever the origin says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Duration>,
    /// How long to keep 404, 405, 410, 414 and 501 that the origin says nothing about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Duration>,
    /// So long after its time it is used while it is asked for again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate: Option<Duration>,
    /// So long after its time it is used when the backend fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Duration>,
    /// The largest body that is kept; 1Mi by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body_size: Option<ByteSize>,
    /// Keeps answers that set cookies, and gives everybody the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_set_cookie: bool,
    /// What tells answers apart beside scheme, host, path and query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySpec>,
    /// Which equal requests at the same time share one fetch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse: Option<Collapse>,
    /// What becomes of what requests ask of the cache; Honor by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_directives: Option<ClientDirectives>,
}

/// What tells answers apart beside scheme, host, path and query.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeySpec {
    /// Names of header fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub headers: Vec<String>,
    /// Parameters of the query; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_params: Option<QueryParams>,
    /// Names of cookies; an empty list says that none matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub cookies: Option<Vec<String>>,
    /// Each client has answers of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub identity: bool,
}

/// Which parameters of the query count; the backend is not sent the others.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryParams {
    /// Names as they stand in the query.
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = PARAMETER)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub include: Vec<String>,
}

/// Which equal requests at the same time share one fetch.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Collapse {
    /// Those that find nothing, or nothing fresh.
    #[default]
    Misses,
    /// The same, and nothing is kept after.
    Only,
    /// None.
    Off,
}

/// What becomes of `Cache-Control` and `Pragma` of requests.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientDirectives {
    /// Who wants an answer anew gets it from the backend.
    #[default]
    Honor,
    /// They mean nothing to this cache.
    Ignore,
}

const TOKEN: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";
const PARAMETER: &str = "^[^&=#[:space:][:cntrl:]]+$";
const MAX_NAMES: usize = 16;
const MAX_BODY: u64 = 1 << 20;
const MAX_MAX_BODY: u64 = 1 << 30;

/// How answers are kept. `None` is "not said".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub default_ttl: Option<Time>,
    pub max_ttl: Option<Time>,
    pub negative_ttl: Option<Time>,
    pub stale_while_revalidate: Time,
    pub stale_if_error: Time,
    pub max_body: u64,
    pub allow_set_cookie: bool,
    pub collapse: Collapse,
    pub client_directives: ClientDirectives,
    pub key: Key,
    /// What `errors` of the same rule wants of it.
    pub serve_stale: ServeStale,
}

/// What tells answers apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub headers: Box<[HeaderName]>,
    /// `None`: the whole query.
    pub query: Option<Box<[Box<str>]>>,
    /// `None`: nobody said which cookies matter.
    pub cookies: Option<Box<[Box<str>]>>,
    pub identity: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            default_ttl: None,
            max_ttl: None,
            negative_ttl: None,
            stale_while_revalidate: Time::ZERO,
            stale_if_error: Time::ZERO,
            max_body: MAX_BODY,
            allow_set_cookie: false,
            collapse: Collapse::Misses,
            client_directives: ClientDirectives::Honor,
            key: Key::default(),
            serve_stale: ServeStale::default(),
        }
    }
}

impl Member for Cache {
    const NAME: &'static str = "cache";
    const APPLIES: Applies = Applies::ToBackendRefs;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        if let (Some(default), Some(most)) = (spec.default_ttl, spec.max_ttl)
            && default > most
        {
            refuse(
                FieldPath::new("defaultTtl"),
                format!(
                    "defaultTtl is {default} and longer than maxTtl, which is {most}; make it at most as long"
                ),
            );
        }
        let max_body = spec.max_body_size.map_or(MAX_BODY, ByteSize::bytes);
        if !(1..=MAX_MAX_BODY).contains(&max_body) {
            refuse(FieldPath::new("maxBodySize"), format!("found {max_body} bytes, expected 1 to 1Gi"));
        }
        let written = spec.key.unwrap_or_default();
        let at = FieldPath::new("key");
        let lists = [
            ("headers", written.headers.len()),
            ("queryParams.include", written.query_params.as_ref().map_or(0, |params| params.include.len())),
            ("cookies", written.cookies.as_ref().map_or(0, Vec::len)),
        ];
        for (name, count) in lists.into_iter().filter(|(_, count)| *count > MAX_NAMES) {
            refuse(at.field(name), format!("found {count} names, expected at most {MAX_NAMES}"));
        }
        let mut headers = Vec::new();
        for (index, name) in written.headers.iter().enumerate() {
            let at = at.field("headers").index(index);
            match HeaderName::try_from(name.as_str()) {
                Ok(name) if name == http::header::COOKIE => {
                    refuse(at, "each client has other cookies; name those that matter in key.cookies".into());
                }
                Ok(name) if name == http::header::AUTHORIZATION => {
                    refuse(at, "credentials are no part of the key; say key.identity: true".into());
                }
                Ok(name) if is_of_this_hop(name.as_str()) => refuse(
                    at,
                    format!(
                        "{name} is written by the gateway: what the client says in it is not what the backend is \
                         told; leave it out"
                    ),
                ),
                Ok(name) => headers.push(name),
                Err(_) => refuse(at, format!("found {name:?}, expected the name of a header field")),
            }
        }
        headers.sort_by(|one, two| one.as_str().cmp(two.as_str()));
        headers.dedup();
        let query = written.query_params.map(|params| sorted(params.include));
        for name in query.iter().flatten().filter(|name| !is_parameter(name)) {
            refuse(
                at.field("queryParams").field("include"),
                format!("found {name:?}, expected the name of a parameter as it stands in the query"),
            );
        }
        let cookies = written.cookies.map(sorted);
        for name in cookies.iter().flatten().filter(|name| HeaderName::try_from(&***name).is_err()) {
            refuse(at.field("cookies"), format!("found {name:?}, expected the name of a cookie"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Plan {
            default_ttl: spec.default_ttl.map(Duration::std),
            max_ttl: spec.max_ttl.map(Duration::std),
            negative_ttl: spec.negative_ttl.map(Duration::std),
            stale_while_revalidate: spec.stale_while_revalidate.unwrap_or_default().std(),
            stale_if_error: spec.stale_if_error.unwrap_or_default().std(),
            max_body,
            allow_set_cookie: spec.allow_set_cookie,
            collapse: spec.collapse.unwrap_or_default(),
            client_directives: spec.client_directives.unwrap_or_default(),
            key: Key { headers: headers.into(), query, cookies, identity: written.identity },
            serve_stale: ServeStale::default(),
        })
    }
}

/// Whether backends are told in this field what the gateway says, which the key does not hold.
fn is_of_this_hop(name: &str) -> bool {
    match name {
        // These it holds, as they are told.
        "x-forwarded-host" | "x-forwarded-port" | "x-forwarded-proto" | "x-forwarded-client-cert" => false,
        "forwarded" | "x-real-ip" | "x-request-id" | "x-portcullis-passes" => true,
        "connection" | "keep-alive" | "te" | "transfer-encoding" | "upgrade" => true,
        name => name.starts_with("x-forwarded"),
    }
}

fn sorted(mut names: Vec<String>) -> Box<[Box<str>]> {
    names.sort();
    names.dedup();
    names.into_iter().map(Into::into).collect()
}

fn is_parameter(name: &str) -> bool {
    !name.is_empty() && !name.bytes().any(|byte| byte <= b' ' || byte == 0x7f || b"&=#".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::contract_tests::NoScope;

    fn compile(text: &str) -> Result<Plan, Vec<String>> {
        let spec: Spec = serde_json::from_str(text).expect("a spec");
        Cache::compile(spec, &mut NoScope)
            .map_err(|found| found.into_iter().map(|one| format!("{} {}", one.path, one.message)).collect())
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(compile("{}"), Ok(Plan::default()));
        assert_eq!(compile(r#"{"key": {}}"#), Ok(Plan::default()));
    }

    #[test]
    fn names_in_the_key_are_told_once_and_in_one_order() {
        let plan = compile(
            r#"{"key": {"headers": ["X-B", "x-a", "X-A"], "queryParams": {"include": ["q", "page"]}, "cookies": [], "identity": true}}"#,
        )
        .expect("valid");
        assert_eq!(*plan.key.headers, ["x-a", "x-b"].map(HeaderName::from_static));
        assert_eq!(plan.key.query, Some(["page".into(), "q".into()].into()));
        assert_eq!((plan.key.cookies, plan.key.identity), (Some([].into()), true));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_field() {
        for (text, told) in [
            (r#"{"defaultTtl": "2m", "maxTtl": "1m"}"#, "defaultTtl defaultTtl is"),
            (r#"{"maxBodySize": "2Gi"}"#, "maxBodySize found"),
            (r#"{"maxBodySize": "0"}"#, "maxBodySize found"),
            (r#"{"key": {"headers": ["Cookie"]}}"#, "key.headers[0] each client"),
            (r#"{"key": {"headers": ["authorization"]}}"#, "key.headers[0] credentials"),
            (r#"{"key": {"headers": ["X-Real-IP"]}}"#, "key.headers[0] x-real-ip is written by the gateway"),
            (r#"{"key": {"headers": ["x-a", "X-Forwarded-For"]}}"#, "key.headers[1] x-forwarded-for is"),
            (r#"{"key": {"headers": ["Forwarded"]}}"#, "key.headers[0] forwarded is"),
            (r#"{"key": {"headers": ["X-Request-ID"]}}"#, "key.headers[0] x-request-id is"),
            (r#"{"key": {"headers": ["TE"]}}"#, "key.headers[0] te is"),
            (r#"{"key": {"headers": ["a b"]}}"#, "key.headers[0] found"),
            (r#"{"key": {"queryParams": {"include": ["a=b"]}}}"#, "key.queryParams.include found"),
            (r#"{"key": {"cookies": ["a b"]}}"#, "key.cookies found"),
        ] {
            let found = compile(text).expect_err(text);
            assert!(found[0].starts_with(told), "{text}: {found:?}");
        }
    }
}

//! `cors`: which sites' scripts may read what the rule answers (the Fetch standard, "CORS protocol").
//!
//! Answers preflights itself, and puts its fields on every answer of the rule, gateway-made ones too: a script that
//! may not read an error cannot tell it from a broken network.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use kube::KubeSchema;
use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::contract::{Decision, Filter, FilterKind, Keep, Member, Outcome, Ring, Scope};
use crate::message::{Exchange, Response};
use crate::values::{Duration, FieldPath, Problem, Reason};

pub struct Cors;

/// Sites whose scripts may read the answers.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.allowOrigins) || has(self.allowOriginPatterns)", NO_ORIGIN),
    validation = Rule::new("!self.allowCredentials || !has(self.allowOrigins) || !('*' in self.allowOrigins)")
        .message(WITH_CREDENTIALS)
        .field_path(".allowCredentials")
)]
pub struct Spec {
    /// Like https://a.example or https://*.a.example; * for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 300), regex(pattern = ORIGIN_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow_origins: Vec<String>,
    /// Regular expressions of which one matches the whole origin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 512)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow_origin_patterns: Vec<String>,
    /// Methods beside GET, HEAD and POST, which are always allowed; * for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32), regex(pattern = METHOD)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow_methods: Vec<String>,
    /// Header fields that a script may send; * for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allow_headers: Vec<String>,
    /// Header fields of the answer that a script may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub expose_headers: Vec<String>,
    /// Cookies and other credentials may be sent along.
    #[serde(default)]
    pub allow_credentials: bool,
    /// How long a browser remembers a preflight.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
}

/// Scheme, host and port, as browsers send them; a star for whole labels at the beginning of the host.
const ORIGIN_PATTERN: &str =
    r"^([*]|[a-z][a-z0-9+.-]*://([*][.])?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?)$";
const METHOD: &str = "^([*]|[-A-Z]+)$";
const TOKEN: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";
const NO_ORIGIN: &str = "say allowOrigins, allowOriginPatterns or both";
const WITH_CREDENTIALS: &str =
    "with allowCredentials every site could act for its visitors; name the origins instead of *";
const MAX_PATTERN: usize = 256 << 10;

fn default_max_age() -> Duration {
    "10m".parse().expect("it is a duration")
}

#[derive(Clone, Debug)]
pub struct Plan {
    origins: Origins,
    /// Texts of the expressions, by which plans are compared.
    texts: Box<[Box<str>]>,
    patterns: Box<[Regex]>,
    credentials: bool,
    methods: Allowed,
    headers: Allowed,
    expose: Option<HeaderValue>,
    max_age: HeaderValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origins {
    Every,
    These(Box<[Origin]>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Exact(Box<[u8]>),
    /// `https://` and `.a.example:8443`
    Below {
        scheme: Box<[u8]>,
        suffix: Box<[u8]>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    /// What is asked for is said back: with credentials a star would be a name like others.
    Asked,
    These(Option<HeaderValue>),
}

impl PartialEq for Plan {
    fn eq(&self, other: &Self) -> bool {
        self.origins == other.origins
            && self.texts == other.texts
            && self.credentials == other.credentials
            && self.methods == other.methods
            && self.headers == other.headers
            && self.expose == other.expose
            && self.max_age == other.max_age
    }
}

impl Member for Cors {
    const NAME: &'static str = "cors";
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        if spec.allow_origins.is_empty() && spec.allow_origin_patterns.is_empty() {
            refuse(FieldPath::default(), NO_ORIGIN.into());
        }
        let every = spec.allow_origins.iter().any(|one| one == "*");
        if every && spec.allow_credentials {
            refuse(FieldPath::new("allowCredentials"), WITH_CREDENTIALS.into());
        }
        let mut origins = Vec::new();
        for (index, text) in spec.allow_origins.iter().enumerate().filter(|(_, text)| *text != "*") {
            match origin(text) {
                Ok(origin) => origins.push(origin),
                Err(message) => refuse(FieldPath::new("allowOrigins").index(index), message),
            }
        }
        let mut patterns = Vec::new();
        for (index, text) in spec.allow_origin_patterns.iter().enumerate() {
            match pattern(text) {
                Ok(pattern) => patterns.push(pattern),
                Err(message) => refuse(FieldPath::new("allowOriginPatterns").index(index), message),
            }
        }
        let mut list = |name: &str, names: &[String]| {
            if names.iter().any(|one| one == "*") {
                return Allowed::Asked;
            }
            let value = HeaderValue::from_str(&names.join(", "));
            match value {
                Ok(value) => Allowed::These(Some(value).filter(|_| !names.is_empty())),
                Err(_) => {
                    refuse(FieldPath::new(name), "found signs that no header field holds".into());
                    Allowed::These(None)
                }
            }
        };
        let mut methods: Vec<String> = ["GET", "HEAD", "POST"].map(str::to_owned).into();
        methods.extend(
            spec.allow_methods.iter().filter(|one| !methods.contains(one)).cloned().collect::<Vec<_>>(),
        );
        let methods = list("allowMethods", &methods);
        let headers = list("allowHeaders", &spec.allow_headers);
        let expose = match list("exposeHeaders", &spec.expose_headers) {
            Allowed::These(value) => value,
            // Without credentials browsers read the star as all.
            Allowed::Asked if !spec.allow_credentials => Some(HeaderValue::from_static("*")),
            Allowed::Asked => {
                refuse(
                    FieldPath::new("exposeHeaders"),
                    "with allowCredentials * is no wildcard; name the fields".into(),
                );
                None
            }
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Plan {
            origins: if every { Origins::Every } else { Origins::These(origins.into()) },
            texts: spec.allow_origin_patterns.into_iter().map(Into::into).collect(),
            patterns: patterns.into(),
            credentials: spec.allow_credentials,
            methods,
            headers,
            expose,
            max_age: HeaderValue::from(spec.max_age.std().as_secs()),
        })
    }
}

fn origin(text: &str) -> Result<Origin, String> {
    let wrong = || {
        format!(
            "found {text:?}, expected an origin like https://a.example or https://*.a.example:8443, in lower case and without a path"
        )
    };
    if text == "null" {
        return Err(
            "null is the origin of every sandboxed page, whoever wrote it; it cannot be allowed".into()
        );
    }
    let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
    let plain = |text: &str, more: &[u8]| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte))
    };
    let bare = host.strip_prefix("*.").unwrap_or(host);
    if !plain(scheme, b"+.-") || !plain(bare, b".-:") {
        return Err(wrong());
    }
    Ok(match host.strip_prefix('*') {
        Some(suffix) => Origin::Below {
            scheme: format!("{scheme}://").into_bytes().into(),
            suffix: suffix.as_bytes().into(),
        },
        None => Origin::Exact(text.as_bytes().into()),
    })
}

/// Anchored: an expression that matches a part of an origin lets strangers in.
fn pattern(text: &str) -> Result<Regex, String> {
    // The expression by itself first: a bracket of it must not close our group.
    let alone = RegexBuilder::new(text).size_limit(MAX_PATTERN).nest_limit(50).build();
    let anchored = RegexBuilder::new(&format!("^(?:{text})$")).size_limit(MAX_PATTERN).nest_limit(52).build();
    alone.and(anchored).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("not a regular expression that is supported: {reason}")
    })
}

impl FilterKind for Cors {
    const RING: Ring = Ring::Cors;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Filter for Plan {
    fn request<'a>(&'a self, exchange: &'a mut Exchange) -> Decision<'a> {
        let headers = exchange.request.headers();
        let origin = headers.get(ORIGIN).filter(|origin| self.allows(origin.as_bytes()));
        if exchange.request.method() == Method::OPTIONS
            && headers.contains_key(ORIGIN)
            && let Some(method) = headers.get(ACCESS_CONTROL_REQUEST_METHOD)
        {
            return Decision::Answer(Box::new(self.preflight(origin, method, headers)));
        }
        exchange.origin = origin.cloned();
        Decision::Continue
    }

    fn response<'a>(&'a self, exchange: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        let headers = response.headers_mut();
        for name in OURS {
            headers.remove(name);
        }
        self.write(headers, exchange.origin.as_ref());
        if let Some(expose) = self.expose.as_ref().filter(|_| exchange.origin.is_some()) {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        Outcome::Ready(response)
    }
}

/// What a backend says of these is the gateway's to say: two answers to one question are none.
static OURS: &[HeaderName] = &[
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

impl Plan {
    fn allows(&self, origin: &[u8]) -> bool {
        // Sandboxed pages of anybody; only a star covers it, and that promises nothing.
        let is_null = origin == b"null";
        match &self.origins {
            Origins::Every => true,
            Origins::These(these) => {
                !is_null
                    && (these.iter().any(|one| one.is(origin))
                        || self.patterns.iter().any(|pattern| pattern.is_match(origin)))
            }
        }
    }

    /// `origin` is the client's where it is allowed.
    fn write(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
        if self.origins != Origins::Every {
            // Also without an Origin: what a cache keeps of this must not answer another site.
            let varies = headers.get_all(VARY).iter().any(|vary| {
                vary.to_str().is_ok_and(|text| {
                    text.split(',')
                        .any(|one| matches!(one.trim(), "*") || one.trim().eq_ignore_ascii_case("origin"))
                })
            });
            if !varies {
                headers.append(VARY, HeaderValue::from_name(ORIGIN));
            }
        }
        let Some(origin) = origin else { return };
        let shown = match &self.origins {
            Origins::Every => HeaderValue::from_static("*"),
            Origins::These(_) => origin.clone(),
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, shown);
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }

    /// Without the fields of consent where the origin is not allowed: the browser says why.
    fn preflight(&self, origin: Option<&HeaderValue>, method: &HeaderValue, asked: &HeaderMap) -> Response {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        self.write(headers, origin);
        let varying =
            [(&self.methods, ACCESS_CONTROL_REQUEST_METHOD), (&self.headers, ACCESS_CONTROL_REQUEST_HEADERS)];
        for (_, name) in varying.into_iter().filter(|(allowed, _)| **allowed == Allowed::Asked) {
            headers.append(VARY, HeaderValue::from_name(name));
        }
        if origin.is_none() {
            return response;
        }
        match &self.methods {
            Allowed::Asked => drop(headers.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone())),
            Allowed::These(Some(methods)) => {
                headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
            }
            Allowed::These(None) => {}
        }
        let fields = match &self.headers {
            Allowed::Asked => asked.get(ACCESS_CONTROL_REQUEST_HEADERS),
            Allowed::These(fields) => fields.as_ref(),
        };
        if let Some(fields) = fields {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, fields.clone());
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        response
    }
}

impl Origin {
    fn is(&self, origin: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => **exact == *origin,
            Self::Below { scheme, suffix } => {
                let below = origin.strip_prefix(&**scheme).and_then(|host| host.strip_suffix(&**suffix));
                // A port, a user or a path before the suffix would be another host.
                below.is_some_and(|labels| {
                    !labels.is_empty()
                        && labels
                            .iter()
                            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use serde_json::{Value, json};

    use super::*;
    use crate::filters::NoScope;
    use crate::filters::contract_tests::{FakeOutbound, exchange};

    fn compile(spec: Value) -> Result<Plan, Vec<Problem>> {
        Cors::compile(serde_json::from_value(spec).expect("a spec"), &mut NoScope)
    }

    fn plan(spec: Value) -> Plan {
        compile(spec).expect("valid")
    }

    /// A request with these fields through the filter, and a backend's answer with `backend` back.
    fn answered(
        plan: &Plan,
        method: &str,
        fields: &[(&str, &str)],
        backend: &[(&'static str, &'static str)],
    ) -> Response {
        let mut exchange = exchange("/", 1, Rc::new(FakeOutbound::default()));
        *exchange.request.method_mut() = method.parse().expect("a method");
        for (name, value) in fields {
            let name: HeaderName = name.parse().expect("a name");
            exchange.request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        if let Decision::Answer(answer) = plan.request(&mut exchange) {
            return *answer;
        }
        // A transform may have taken it away meanwhile.
        exchange.request.headers_mut().clear();
        let mut response = Response::default();
        for (name, value) in backend {
            response.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        match plan.response(&mut exchange, response) {
            Outcome::Ready(response) => response,
            Outcome::Fail(_) | Outcome::Wait(_) => panic!("it need not wait"),
        }
    }

    fn lines(response: &Response) -> Vec<String> {
        let mut lines: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("ASCII")))
            .collect();
        lines.sort();
        lines
    }

    const SHOP: (&str, &str) = ("origin", "https://shop.example");

    #[test]
    fn origins_are_compared_whole() {
        let plan = plan(json!({
            "allowOrigins": ["https://shop.example", "https://*.team.example:8443"],
            "allowOriginPatterns": ["https://pr-[0-9]+[.]preview[.]example"],
        }));
        for (origin, allowed) in [
            ("https://shop.example", true),
            ("http://shop.example", false),
            ("https://shop.example:443", false),
            ("https://shop.example.evil.example", false),
            ("https://a.team.example:8443", true),
            ("https://a.b.team.example:8443", true),
            ("https://team.example:8443", false),
            ("https://.team.example:8443", false),
            ("https://evil.example/.team.example:8443", false),
            ("https://evil.example:1.team.example:8443", false),
            ("https://evilteam.example:8443", false),
            ("https://pr-7.preview.example", true),
            ("https://pr-7.preview.example.evil.example", false),
            ("https://evil.example/https://pr-7.preview.example", false),
            ("null", false),
            ("", false),
        ] {
            assert_eq!(plan.allows(origin.as_bytes()), allowed, "{origin}");
        }
        assert!(!self::plan(json!({"allowOriginPatterns": [".*"]})).allows(b"null"));
    }

    #[test]
    fn a_preflight_is_answered_without_the_backend() {
        let plan = plan(json!({
            "allowOrigins": ["https://shop.example"], "allowMethods": ["PUT", "GET"], "allowHeaders": ["X-Api-Key"],
            "allowCredentials": true, "maxAge": "1h", "exposeHeaders": ["X-Total"],
        }));
        let asks = ("access-control-request-method", "PUT");
        let answer = answered(&plan, "OPTIONS", &[SHOP, asks], &[]);
        assert_eq!(answer.status(), 204);
        assert_eq!(
            lines(&answer),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: X-Api-Key",
                "access-control-allow-methods: GET, HEAD, POST, PUT",
                "access-control-allow-origin: https://shop.example",
                "access-control-max-age: 3600",
                "vary: origin",
            ]
        );
        let stranger = answered(&plan, "OPTIONS", &[("origin", "https://evil.example"), asks], &[]);
        assert_eq!((stranger.status().as_u16(), lines(&stranger)), (204, vec!["vary: origin".to_owned()]));
        let ordinary = answered(&plan, "OPTIONS", &[SHOP], &[("allow", "GET")]);
        assert_eq!(ordinary.status(), 200, "without a requested method it is no preflight");
    }

    #[test]
    fn every_answer_says_who_may_read_it_and_the_backend_does_not() {
        let plan = plan(json!({"allowOrigins": ["https://shop.example"], "exposeHeaders": ["X-Total"]}));
        let backend = [("access-control-allow-origin", "*"), ("vary", "accept"), ("x-total", "7")];
        assert_eq!(
            lines(&answered(&plan, "GET", &[SHOP], &backend)),
            [
                "access-control-allow-origin: https://shop.example",
                "access-control-expose-headers: X-Total",
                "vary: accept",
                "vary: origin",
                "x-total: 7",
            ]
        );
        for fields in [&[][..], &[("origin", "https://evil.example")]] {
            let answer = answered(&plan, "GET", fields, &backend);
            assert_eq!(lines(&answer), ["vary: accept", "vary: origin", "x-total: 7"]);
        }
        let twice = answered(&plan, "GET", &[SHOP], &[("vary", "Accept, Origin")]);
        assert_eq!(twice.headers().get_all(VARY).iter().count(), 1);
    }

    #[test]
    fn a_star_is_for_everybody_and_for_nobody_s_cookies() {
        let plan = plan(json!({"allowOrigins": ["*"], "allowMethods": ["*"], "allowHeaders": ["*"]}));
        let asks = [
            ("origin", "https://a.example"),
            ("access-control-request-method", "PATCH"),
            ("access-control-request-headers", "x-a, authorization"),
        ];
        assert_eq!(
            lines(&answered(&plan, "OPTIONS", &asks, &[])),
            [
                "access-control-allow-headers: x-a, authorization",
                "access-control-allow-methods: PATCH",
                "access-control-allow-origin: *",
                "access-control-max-age: 600",
                "vary: access-control-request-headers",
                "vary: access-control-request-method",
            ]
        );
        let problems =
            compile(json!({"allowOrigins": ["*"], "allowCredentials": true})).expect_err("refused");
        assert_eq!(problems[0].path.as_str(), "allowCredentials");
    }

    #[test]
    fn what_lets_strangers_in_or_nobody_is_refused() {
        for spec in [
            json!({}),
            json!({"allowOrigins": ["null"]}),
            json!({"allowOrigins": ["shop.example"]}),
            json!({"allowOrigins": ["https://shop.example/"]}),
            json!({"allowOrigins": ["https://a.*.example"]}),
            json!({"allowOrigins": ["https://Shop.example"]}),
            json!({"allowOrigins": ["https://*"]}),
            json!({"allowOriginPatterns": ["("]}),
            json!({"allowOriginPatterns": ["a)|(b"]}),
            json!({"allowOrigins": ["https://a.example"], "allowCredentials": true, "exposeHeaders": ["*"]}),
        ] {
            assert!(compile(spec.clone()).is_err(), "{spec}");
        }
    }
}

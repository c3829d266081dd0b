//! `securityHeaders`: fields that tell browsers to be careful, on every answer of the rule, gateway-made ones too.

use std::sync::Arc;

use http::header::{
    CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::contract::{Filter, FilterKind, Keep, Member, Outcome, Ring, Scope, Unmatched};
use crate::message::{Exchange, Response, Scheme};
use crate::values::{Duration, FieldPath, Problem, Reason};

pub struct SecurityHeaders;

/// Header fields for browsers; {} sets the defaults.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Strict-Transport-Security, on HTTPS only.
    #[serde(default)]
    pub hsts: Hsts,
    /// X-Content-Type-Options: NoSniff or Off.
    #[serde(default)]
    pub content_type_options: ContentTypeOptions,
    /// X-Frame-Options: Deny, SameOrigin or Off.
    #[serde(default)]
    pub frame_options: FrameOptions,
    /// Referrer-Policy, in its own words; empty: left to the backend.
    #[serde(default = "default_referrer")]
    #[schemars(extend("enum" = [
        "", "no-referrer", "no-referrer-when-downgrade", "origin", "origin-when-cross-origin", "same-origin",
        "strict-origin", "strict-origin-when-cross-origin", "unsafe-url"
    ]))]
    pub referrer_policy: String,
    /// Content-Security-Policy; none: left to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = VALUE))]
    pub content_security_policy: Option<String>,
    /// Permissions-Policy; none: left to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048), regex(pattern = VALUE))]
    pub permissions_policy: Option<String>,
    /// Cross-Origin-Opener-Policy; none: left to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["same-origin", "same-origin-allow-popups", "noopener-allow-popups", "unsafe-none"]))]
    pub cross_origin_opener_policy: Option<String>,
    /// Cross-Origin-Resource-Policy; none: left to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["same-origin", "same-site", "cross-origin"]))]
    pub cross_origin_resource_policy: Option<String>,
}

/// Visible ASCII with spaces between.
const VALUE: &str = "^[!-~]([ -~]*[!-~])?$";
/// One year: what preload lists ask for.
const YEAR: u64 = 365 * 24 * 60 * 60;

/// How long, and for what, browsers keep to HTTPS.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new("!self.preload || (self.includeSubdomains && duration(self.maxAge) >= duration('8760h'))")
        .message("preload needs includeSubdomains and a maxAge of at least 8760h")
        .field_path(".preload")
)]
pub struct Hsts {
    /// How long; 0s sends none.
    #[serde(default = "default_max_age")]
    pub max_age: Duration,
    /// Names below the host too.
    #[serde(default)]
    pub include_subdomains: bool,
    /// Asks browsers to have it built in.
    #[serde(default)]
    pub preload: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentTypeOptions {
    #[default]
    NoSniff,
    Off,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrameOptions {
    #[default]
    Deny,
    SameOrigin,
    Off,
}

fn default_max_age() -> Duration {
    "8760h".parse().expect("it is a duration")
}

fn default_referrer() -> String {
    "strict-origin-when-cross-origin".into()
}

impl Default for Hsts {
    fn default() -> Self {
        Self { max_age: default_max_age(), include_subdomains: false, preload: false }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    fields: Box<[(HeaderName, HeaderValue)]>,
    /// On HTTPS only (RFC 6797 section 7.2).
    hsts: Option<HeaderValue>,
}

impl Member for SecurityHeaders {
    const NAME: &'static str = "securityHeaders";
    const UNMATCHED: Unmatched = Unmatched::Applies;
    type Spec = Spec;
    type Plan = Plan;

    fn compile(spec: Spec, _: &mut dyn Scope) -> Result<Plan, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut refuse = |path: FieldPath, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        let seconds = spec.hsts.max_age.std().as_secs();
        if spec.hsts.preload && (!spec.hsts.include_subdomains || seconds < YEAR) {
            let message = "preload needs includeSubdomains and a maxAge of at least 8760h";
            refuse(FieldPath::new("hsts.preload"), message.into());
        }
        let mut fields = Vec::new();
        let mut field = |path: &str, name: HeaderName, value: &str| match HeaderValue::from_str(value) {
            Ok(value) => fields.push((name, value)),
            Err(_) => refuse(FieldPath::new(path), "found signs that no header field holds".into()),
        };
        if spec.content_type_options == ContentTypeOptions::NoSniff {
            field("contentTypeOptions", X_CONTENT_TYPE_OPTIONS, "nosniff");
        }
        match spec.frame_options {
            FrameOptions::Deny => field("frameOptions", X_FRAME_OPTIONS, "DENY"),
            FrameOptions::SameOrigin => field("frameOptions", X_FRAME_OPTIONS, "SAMEORIGIN"),
            FrameOptions::Off => {}
        }
        let texts = [
            ("referrerPolicy", REFERRER_POLICY, Some(spec.referrer_policy).filter(|text| !text.is_empty())),
            ("contentSecurityPolicy", CONTENT_SECURITY_POLICY, spec.content_security_policy),
            ("permissionsPolicy", HeaderName::from_static("permissions-policy"), spec.permissions_policy),
            (
                "crossOriginOpenerPolicy",
                HeaderName::from_static("cross-origin-opener-policy"),
                spec.cross_origin_opener_policy,
            ),
            (
                "crossOriginResourcePolicy",
                HeaderName::from_static("cross-origin-resource-policy"),
                spec.cross_origin_resource_policy,
            ),
        ];
        for (path, name, text) in texts {
            if let Some(text) = text {
                field(path, name, &text);
            }
        }
        let subdomains = if spec.hsts.include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if spec.hsts.preload { "; preload" } else { "" };
        let hsts = HeaderValue::from_str(&format!("max-age={seconds}{subdomains}{preload}")).ok();
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Plan { fields: fields.into(), hsts: hsts.filter(|_| seconds > 0) })
    }
}

impl FilterKind for SecurityHeaders {
    const RING: Ring = Ring::SecurityHeaders;

    fn link(plan: &Plan, _: &dyn Keep) -> Arc<dyn Filter> {
        Arc::new(plan.clone())
    }
}

impl Plan {
    fn write(&self, headers: &mut HeaderMap, scheme: Scheme) {
        for (name, value) in &self.fields {
            headers.insert(name, value.clone());
        }
        if let Some(hsts) = self.hsts.as_ref().filter(|_| scheme == Scheme::Https) {
            headers.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
    }
}

impl Filter for Plan {
    fn response<'a>(&'a self, exchange: &'a mut Exchange, mut response: Response) -> Outcome<'a> {
        self.write(response.headers_mut(), exchange.client.scheme);
        Outcome::Ready(response)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::filters::NoScope;

    fn compile(spec: Value) -> Result<Plan, Vec<Problem>> {
        SecurityHeaders::compile(serde_json::from_value(spec).expect("a spec"), &mut NoScope)
    }

    fn written(spec: Value, scheme: Scheme) -> Vec<String> {
        let mut headers = HeaderMap::new();
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("ALLOWALL"));
        compile(spec).expect("valid").write(&mut headers, scheme);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("ASCII")))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn nothing_asked_for_is_what_suits_most() {
        assert_eq!(
            written(json!({}), Scheme::Https),
            [
                "referrer-policy: strict-origin-when-cross-origin",
                "strict-transport-security: max-age=31536000",
                "x-content-type-options: nosniff",
                "x-frame-options: DENY",
            ]
        );
    }

    #[test]
    fn strict_transport_security_is_for_https_alone() {
        let plain = written(json!({}), Scheme::Http);
        assert!(plain.len() == 3 && !plain.iter().any(|line| line.starts_with("strict")), "{plain:?}");
        assert_eq!(written(json!({"hsts": {"maxAge": "0s"}}), Scheme::Https).len(), 3);
    }

    #[test]
    fn each_field_can_be_said_or_left_to_the_backend() {
        let spec = json!({
            "hsts": {"maxAge": "17520h", "includeSubdomains": true, "preload": true},
            "contentTypeOptions": "Off", "frameOptions": "Off", "referrerPolicy": "",
            "contentSecurityPolicy": "default-src 'self'", "permissionsPolicy": "camera=()",
            "crossOriginOpenerPolicy": "same-origin", "crossOriginResourcePolicy": "same-site",
        });
        assert_eq!(
            written(spec, Scheme::Https),
            [
                "content-security-policy: default-src 'self'",
                "cross-origin-opener-policy: same-origin",
                "cross-origin-resource-policy: same-site",
                "permissions-policy: camera=()",
                "strict-transport-security: max-age=63072000; includeSubDomains; preload",
                "x-frame-options: ALLOWALL",
            ]
        );
    }

    #[test]
    fn preload_is_for_those_who_mean_it() {
        for hsts in
            [json!({"preload": true}), json!({"preload": true, "includeSubdomains": true, "maxAge": "8759h"})]
        {
            assert!(compile(json!({"hsts": hsts})).is_err(), "{hsts}");
        }
        assert!(compile(json!({"contentSecurityPolicy": "a\nb"})).is_err());
    }
}

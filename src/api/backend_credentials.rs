//! `GatewayBackend.spec.credentials`: what of ours a backend is shown.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::filters::{BACKEND_PATH, ClientAuthentication, PATH_OF_BACKEND};
use crate::values::{AskedBackendRef, SecretKeyRef, SecretRef};

const ONE_PLACE: &str = "credentials stand in one place: header, query, basic or oauth2ClientCredentials";
const WHOSE_SECRET: &str = "header and query take secretKeyRef, the others have a Secret of their own";
const ONE_ENDPOINT: &str = "give either tokenEndpoint or backendRef";

/// What of ours a backend is shown: in a field, as a parameter of the query, as user and password, or as a token.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = (
        "[has(self.header), has(self.query), has(self.basic), has(self.oauth2ClientCredentials)].filter(given, given).size() == 1",
        ONE_PLACE
    ),
    validation = (
        "has(self.secretKeyRef) == (has(self.header) || has(self.query))",
        WHOSE_SECRET
    ),
    validation = ("!has(self.prefix) || has(self.header)", "prefix means something only with header")
)]
pub struct BackendCredentials {
    /// Field that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    #[x_kube(validation = (
        "!(self.lowerAscii() in ['host', 'content-length', 'content-type', 'content-encoding', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive', 'expect', 'forwarded', 'via', 'x-real-ip', 'x-request-id']) && !self.lowerAscii().startsWith('proxy-') && !self.lowerAscii().startsWith('x-forwarded-') && !self.lowerAscii().startsWith('x-portcullis-')",
        "this field is the gateway's own; a credential stands in another field"
    ))]
    pub header: Option<String>,
    /// Stands before it in the field, like "Bearer ".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = PREFIX))]
    pub prefix: Option<String>,
    /// Parameter of the query that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub query: Option<String>,
    /// Key of a Secret that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// User and password (RFC 7617).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicCredentials>,
    /// A token that the gateway fetches for itself (RFC 6749, 4.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2_client_credentials: Option<Oauth2ClientCredentials>,
}

impl BackendCredentials {
    /// What its rules say of it: the field below it, and why.
    pub(super) fn problem(&self) -> Option<(Option<&'static str>, String)> {
        let token = self.oauth2_client_credentials.as_ref();
        let places = [self.header.is_some(), self.query.is_some(), self.basic.is_some(), token.is_some()];
        if places.iter().filter(|given| **given).count() != 1 {
            return Some((None, ONE_PLACE.into()));
        }
        if self.secret_key_ref.is_some() != (self.header.is_some() || self.query.is_some()) {
            return Some((None, WHOSE_SECRET.into()));
        }
        if self.prefix.is_some() && self.header.is_none() {
            return Some((Some("prefix"), "prefix means something only with header".into()));
        }
        if let Some((field, message)) = token.and_then(Oauth2ClientCredentials::problem) {
            return Some((Some(field), message.into()));
        }
        let name = self.header.as_deref().filter(|name| is_gateways_own(&name.to_ascii_lowercase()))?;
        Some((
            Some("header"),
            format!("{name}: this field is the gateway's own; a credential stands in another field"),
        ))
    }
}

/// Fields of this hop, and what the gateway says of a request itself.
fn is_gateways_own(name: &str) -> bool {
    const OURS: [&str; 15] = [
        "host",
        "content-length",
        "content-type",
        "content-encoding",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "keep-alive",
        "expect",
        "forwarded",
        "via",
        "x-real-ip",
        "x-request-id",
    ];
    let begins = |start: &&str| name.starts_with(start);
    OURS.contains(&name) || ["proxy-", "x-forwarded-", "x-portcullis-"].iter().any(begins)
}

/// A user and its password.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicCredentials {
    /// Secret with the keys username and password.
    pub secret_ref: SecretRef,
}

/// Where tokens are given, to whom, and for what.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = ("has(self.tokenEndpoint) != has(self.backendRef)", ONE_ENDPOINT),
    validation = ("has(self.path) == has(self.backendRef)", PATH_OF_BACKEND)
)]
pub struct Oauth2ClientCredentials {
    /// Where tokens are given, by https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub token_endpoint: Option<String>,
    /// A Service or GatewayBackend that is asked at path, in place of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<AskedBackendRef>,
    /// Path at the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = BACKEND_PATH))]
    pub path: Option<String>,
    /// A Secret with clientId and clientSecret: as whom the gateway asks.
    pub client_secret_ref: SecretRef,
    /// What the token is to be good for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = SCOPE)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub scopes: Vec<String>,
    /// Whom it is for, as some servers want to know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub audience: Option<String>,
    /// How the gateway says who it is (RFC 6749, 2.3.1).
    #[serde(default)]
    pub authentication: ClientAuthentication,
}

impl Oauth2ClientCredentials {
    fn problem(&self) -> Option<(&'static str, &'static str)> {
        if self.token_endpoint.is_some() == self.backend_ref.is_some() {
            return Some((FIELD, ONE_ENDPOINT));
        }
        if self.path.is_some() != self.backend_ref.is_some() {
            return Some((FIELD, PATH_OF_BACKEND));
        }
        let mistake = self.backend_ref.as_ref().and_then(AskedBackendRef::mistake);
        mistake.map(|(_, message)| (FIELD, message))
    }
}

const FIELD: &str = "oauth2ClientCredentials";
/// RFC 6749 section 3.3.
const SCOPE: &str = r"^[!#-\[\]-~]+$";
/// A token (RFC 9110 section 5.6.2).
const TOKEN: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";
/// Visible ASCII and spaces.
const PREFIX: &str = "^[!-~][ -~]*$";

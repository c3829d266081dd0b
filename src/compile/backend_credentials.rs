//! `GatewayBackend.spec.credentials` → plan. All of it or none: a backend that wants to know us is not asked without.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::backend_refs::{self, Reference};
use super::gateway_route::not_permitted;
use super::question::Asker;
use crate::api::{BackendCredentials, GatewayBackendSpec, Oauth2ClientCredentials};
use crate::filters::{ClientToken, OauthClient, Place, Url, backend_path};
use crate::route_map::{BackendPlan, Credential, TokenPlan};
use crate::snapshot::{self, SecretData};
use crate::values::{
    AskedBackendRef, BackendKind, FieldPath, ObjectName, Problem, Reason, Redacted, SecretKeyRef, SecretRef,
};

/// What stays as it is in a query (RFC 3986 section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const MAX_VALUE: usize = 8 << 10;

/// `from` is the backend's namespace. `None`: something is wrong, and told.
pub(super) fn plan(
    spec: &GatewayBackendSpec,
    credentials: &BackendCredentials,
    from: &Arc<str>,
    asker: &mut Asker<'_>,
    problems: &mut Vec<Problem>,
) -> Option<Arc<Credential>> {
    let at = FieldPath::new("spec.credentials");
    let found = refuse_in_the_clear(spec, &at).and_then(|()| {
        let mut reader = Reader { from, asker };
        credential(credentials, &at, &mut reader)
    });
    found.map(Arc::new).map_err(|problem| problems.push(problem)).ok()
}

/// On the way to a host outside everybody could read it.
fn refuse_in_the_clear(spec: &GatewayBackendSpec, at: &FieldPath) -> Result<(), Problem> {
    let mut hosts = spec.hosts.iter().flatten().map(|host| host.address.as_str());
    match hosts.find(|host| spec.tls.is_none() && !backend_refs::is_own(host)) {
        None => Ok(()),
        Some(host) => Err(in_the_clear(at, host)),
    }
}

fn in_the_clear(at: &FieldPath, host: &str) -> Problem {
    let message =
        format!("{host} is asked in the clear, where anybody on the way could read them; set spec.tls");
    Problem::error(at.clone(), Reason::UnsupportedValue, message)
}

fn credential(
    spec: &BackendCredentials,
    at: &FieldPath,
    reader: &mut Reader<'_, '_>,
) -> Result<Credential, Problem> {
    if let Some(token) = &spec.oauth2_client_credentials {
        return reader.token(token, &at.field("oauth2ClientCredentials")).map(Credential::Token);
    }
    match (&spec.header, &spec.query, &spec.basic, &spec.secret_key_ref) {
        (Some(name), None, None, Some(secret)) => {
            let name: HeaderName = name
                .parse()
                .map_err(|_| invalid(at.field("header"), format!("{name} is not the name of a field")))?;
            let (source, text) = reader.key(secret, at.field("secretKeyRef"))?;
            let text = format!("{}{text}", spec.prefix.as_deref().unwrap_or_default());
            Ok(header(name, &text, &source, at)?)
        }
        (None, Some(name), None, Some(secret)) if spec.prefix.is_none() => {
            let (_, text) = reader.key(secret, at.field("secretKeyRef"))?;
            let encoded = |text: &str| -> Arc<str> { utf8_percent_encode(text, ENCODED).to_string().into() };
            Ok(Credential::Query { name: encoded(name), value: Redacted::new(encoded(&text)) })
        }
        (None, None, Some(basic), None) if spec.prefix.is_none() => {
            let at = at.field("basic").field("secretRef");
            let secret = reader.secret(&basic.secret_ref, &at)?;
            let [user, password] = ["username", "password"].map(|key| text_of(&secret, Some(key), &at));
            let (user, password) = (user?, password?);
            if user.contains(':') {
                // RFC 7617 section 2: the first colon ends it.
                return Err(unusable(&secret, "its username has a colon", &at));
            }
            let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            Ok(header(AUTHORIZATION, &value, &secret.name, &at)?)
        }
        _ => Err(invalid(
            at.clone(),
            "expected header and secretKeyRef (and prefix), or query and secretKeyRef, basic or oauth2ClientCredentials".into(),
        )),
    }
}

fn header(name: HeaderName, text: &str, secret: &ObjectName, at: &FieldPath) -> Result<Credential, Problem> {
    let mut value = HeaderValue::try_from(text).map_err(|_| {
        let message = format!("Secret {secret} holds signs that no header field can have");
        Problem::error(at.clone(), Reason::Invalid, message)
    })?;
    value.set_sensitive(true);
    let spellings = [name.as_str()].into_iter().collect();
    Ok(Credential::Header { name, spellings, value: Redacted::new(value) })
}

struct Reader<'a, 'w> {
    from: &'a Arc<str>,
    asker: &'a mut Asker<'w>,
}

impl Reader<'_, '_> {
    fn key(&mut self, reference: &SecretKeyRef, at: FieldPath) -> Result<(ObjectName, String), Problem> {
        let whole = SecretRef { name: reference.name.clone(), namespace: reference.namespace.clone() };
        let secret = self.secret(&whole, &at)?;
        let text = text_of(&secret, reference.key.as_deref(), &at)?;
        Ok((secret.name.clone(), text))
    }

    fn token(&mut self, spec: &Oauth2ClientCredentials, at: &FieldPath) -> Result<TokenPlan, Problem> {
        let (place, from) = match (&spec.token_endpoint, &spec.backend_ref) {
            (Some(endpoint), None) => {
                let url = Url::new(endpoint, self.asker.own_host());
                let url = url.and_then(|url| self.asker.permits(&url.host).map(|()| url));
                let url = url.map_err(|message| invalid(at.field("tokenEndpoint"), message))?;
                (Place::Url(url), None)
            }
            (None, Some(backend)) => {
                let path = backend_path(spec.path.as_deref());
                let path = path.map_err(|message| invalid(at.field("path"), message.into()))?;
                let backend = self.backend(backend, &at.field("backendRef"))?;
                (Place::Backend(backend.id.clone(), path.into()), Some(backend))
            }
            _ => return Err(invalid(at.clone(), "give either tokenEndpoint or backendRef".into())),
        };
        let secret_at = at.field("clientSecretRef");
        let secret = self.secret(&spec.client_secret_ref, &secret_at)?;
        let client = OauthClient::of(&secret)
            .map_err(|message| Problem::error(secret_at, Reason::SecretNotFound, message))?;
        let audience = spec.audience.as_deref();
        let giver = from.as_ref().map(|backend| backend.print());
        let (fetch, holder) =
            ClientToken::plan(place, giver, &client, spec.authentication, &spec.scopes, audience);
        Ok(TokenPlan { fetch, holder, from, spellings: [AUTHORIZATION.as_str()].into_iter().collect() })
    }

    /// One that has no token of its own to wait for; those are compiled before.
    fn backend(&mut self, given: &AskedBackendRef, at: &FieldPath) -> Result<Arc<BackendPlan>, Problem> {
        let reference = Reference {
            kind: given.kind,
            name: &given.name,
            namespace: given.namespace.as_deref(),
            port: given.port,
        };
        let backend = backend_refs::resolve(&reference, self.from, self.asker, at);
        let backend = backend.map_err(|(_, mut problem)| {
            if given.kind == BackendKind::GatewayBackend && problem.reason == Reason::BackendNotFound {
                problem.message += "; one with oauth2ClientCredentials of its own gives no tokens";
            }
            problem
        })?;
        match backend_refs::outside_in_the_clear(&backend) {
            None => Ok(backend),
            Some(host) => Err(backend_refs::in_the_clear(at, &host)),
        }
    }

    fn secret(&mut self, reference: &SecretRef, at: &FieldPath) -> Result<Arc<SecretData>, Problem> {
        let namespace = reference.namespace.as_deref().map_or_else(|| Arc::clone(self.from), Into::into);
        let name = ObjectName::new(namespace, reference.name.as_str());
        if !self.asker.may_refer(self.from, "", "Secret", &name) {
            return Err(not_permitted(at.clone(), "Secret", &name));
        }
        self.asker.secret(&name).ok_or_else(|| {
            let (reason, message) = self.asker.why_not(snapshot::Kind::Secret, &name);
            Problem::error(at.clone(), reason, message)
        })
    }
}

fn text_of(secret: &SecretData, key: Option<&str>, at: &FieldPath) -> Result<String, Problem> {
    let name = &secret.name;
    let missing = |message: String| Problem::error(at.field("key"), Reason::SecretNotFound, message);
    let value = match key {
        Some(key) => {
            secret.data.get(key).ok_or_else(|| missing(format!("Secret {name} has no key {key}")))?
        }
        None if secret.data.len() == 1 => {
            secret.data.values().next().ok_or_else(|| missing(format!("Secret {name} is empty")))?
        }
        None => {
            let message = format!("Secret {name} has {} keys; say which one", secret.data.len());
            return Err(missing(message));
        }
    };
    // An editor's last line end is no part of it.
    let text = std::str::from_utf8(value.expose()).map(|text| text.trim_end_matches(['\r', '\n']));
    match text {
        Ok(text) if (1..=MAX_VALUE).contains(&text.len()) && !text.contains(['\r', '\n', '\0']) => {
            Ok(text.to_owned())
        }
        _ => Err(unusable(secret, "its value is no line of text of at most 8 KiB", at)),
    }
}

fn unusable(secret: &SecretData, why: &str, at: &FieldPath) -> Problem {
    Problem::error(at.clone(), Reason::Invalid, format!("Secret {}: {why}", secret.name))
}

fn invalid(at: FieldPath, message: String) -> Problem {
    Problem::error(at, Reason::Invalid, message)
}

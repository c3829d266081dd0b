//! Where an issuer's keys are fetched from: a JWK Set by its URL, or discovered (OpenID Connect Discovery 1.0, RFC 8414).

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::key_set::KeySet;
use crate::filters::{FetchPlan, OwnHost, Place, Reader, Step, Url};
use crate::message::Document;
use crate::values::BackendId;

/// A set at a URL.
///
/// # Errors
/// What is wrong with the URL.
pub fn key_set(uri: &str, own_host: OwnHost) -> Result<FetchPlan, String> {
    let place = Place::Url(Url::new(uri, own_host)?);
    Ok(FetchPlan { place, reader: Arc::new(OfKeySet), posted: None, giver: None })
}

/// A set at a backend.
pub fn key_set_at(backend: BackendId, path: &str) -> FetchPlan {
    let place = Place::Backend(backend, path.into());
    FetchPlan { place, reader: Arc::new(OfKeySet), posted: None, giver: None }
}

/// The set that the issuer's metadata names.
///
/// # Errors
/// What is wrong with the issuer as a URL.
pub fn discovery(issuer: &str, own_host: OwnHost) -> Result<FetchPlan, String> {
    let metadata = format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer));
    let url = Url::new(&metadata, own_host)
        .map_err(|error| format!("without jwks the keys are discovered from the issuer: {error}"))?;
    let reader = Arc::new(OfMetadata { issuer: issuer.into(), own_host });
    Ok(FetchPlan { place: Place::Url(url), reader, posted: None, giver: None })
}

#[derive(Debug)]
struct OfKeySet;

impl Reader for OfKeySet {
    fn name(&self) -> String {
        "jwks".into()
    }

    fn read(&self, _: usize, body: &[u8], _: Instant) -> Result<Step, String> {
        KeySet::read(body).map(|keys| Step::Done(Arc::new(keys)))
    }
}

#[derive(Debug)]
struct OfMetadata {
    issuer: Arc<str>,
    own_host: OwnHost,
}

impl Reader for OfMetadata {
    fn name(&self) -> String {
        format!("metadata of {}", self.issuer)
    }

    fn read(&self, step: usize, body: &[u8], asked: Instant) -> Result<Step, String> {
        if step > 0 {
            return OfKeySet.read(step, body, asked);
        }
        let metadata =
            Document::read_object(body, super::JSON).map_err(|_| "its metadata is no JSON object")?;
        let text = |name: &str| metadata.get(name).and_then(Value::as_str);
        // Else one issuer could speak for another (OpenID Connect Discovery 1.0 section 4.3).
        if text("issuer") != Some(&self.issuer) {
            return Err("its metadata is of another issuer".into());
        }
        let uri = text("jwks_uri").ok_or("its metadata has no jwks_uri")?;
        Url::new(uri, self.own_host).map(Step::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(issuer: &str, body: &str) -> Result<String, String> {
        let plan = discovery(issuer, OwnHost::Refused)?;
        match plan.reader.read(0, body.as_bytes(), Instant::now())? {
            Step::Next(url) => Ok(format!("{} {url}", plan.place)),
            Step::Done(_) => Err("done".into()),
        }
    }

    #[test]
    fn metadata_leads_to_the_keys_of_its_own_issuer_alone() {
        for (issuer, body, expected) in [
            (
                "https://a.example",
                r#"{"issuer":"https://a.example","jwks_uri":"https://keys.example/x"}"#,
                Some("https://a.example/.well-known/openid-configuration https://keys.example/x"),
            ),
            (
                "https://a.example/t/",
                r#"{"issuer":"https://a.example/t/","jwks_uri":"https://a.example/k","other":[1]}"#,
                Some("https://a.example/t/.well-known/openid-configuration https://a.example/k"),
            ),
            ("https://a.example", r#"{"issuer":"https://b.example","jwks_uri":"https://a.example/k"}"#, None),
            (
                "https://a.example",
                r#"{"issuer":"https://a.example/","jwks_uri":"https://a.example/k"}"#,
                None,
            ),
            ("https://a.example", r#"{"issuer":"https://a.example","jwks_uri":"http://a.example/k"}"#, None),
            ("https://a.example", r#"{"issuer":"https://a.example","jwks_uri":"https://localhost/k"}"#, None),
            ("https://a.example", r#"{"issuer":"https://a.example"}"#, None),
            ("https://a.example", "[]", None),
            ("accounts.example", "{}", None),
        ] {
            assert_eq!(step(issuer, body).ok().as_deref(), expected, "{issuer} {body}");
        }
    }
}

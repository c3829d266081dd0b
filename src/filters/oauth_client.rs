//! Whom an authorization server knows the gateway as: id and secret, in the forms that OAuth 2.0 has for them.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::values::{Redacted, SecretData};

const MAX_CREDENTIAL: usize = 1 << 10;
/// As `application/x-www-form-urlencoded` has it; a space becomes `+`.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'*').remove(b' ');

/// Both in the form that they have in a form.
pub struct OauthClient {
    id: String,
    secret: Redacted<String>,
}

impl OauthClient {
    /// # Errors
    /// What the Secret lacks.
    pub fn of(secret: &SecretData) -> Result<Self, String> {
        let value = |key: &str| {
            let missing =
                || format!("Secret {} has no {key}; it needs clientId and clientSecret", secret.name);
            let value = secret.data.get(key).ok_or_else(missing)?.expose();
            let value = value.trim_ascii_end();
            match value.len() {
                0 => Err(missing()),
                1..=MAX_CREDENTIAL => Ok(form(value)),
                _ => Err(format!("Secret {} has a {key} of more than 1024 bytes", secret.name)),
            }
        };
        Ok(Self { id: value("clientId")?, secret: Redacted::new(value("clientSecret")?) })
    }

    /// As `Authorization` has them (RFC 6749 section 2.3.1).
    pub fn basic(&self) -> Redacted<HeaderValue> {
        let mut field = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(self.both())))
            .expect("base64 can stand in a header field");
        field.set_sensitive(true);
        Redacted::new(field)
    }

    /// As parameters of a form.
    pub fn parameters(&self) -> Redacted<String> {
        Redacted::new(format!("client_id={}&client_secret={}", self.id, self.secret.expose()))
    }

    /// As a form has it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// To tell clients apart by.
    pub fn digest(&self) -> [u8; 32] {
        let digest = digest::digest(&digest::SHA256, self.both().as_bytes());
        digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn both(&self) -> String {
        format!("{}:{}", self.id, self.secret.expose())
    }
}

/// A value as it stands in a form.
pub fn form(value: &[u8]) -> String {
    percent_encode(value, FORM).to_string().replace(' ', "+")
}

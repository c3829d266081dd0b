//! JWS in compact form (RFC 7515 section 7.1), read strictly: one spelling of every token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::key_set::Algorithm;
use crate::message::Document;

/// Issuers' tokens are a tenth of it.
pub const MAX_TOKEN: usize = 8 << 10;
const MAX_KEY_ID: usize = 256;

/// Header members that choose the key or change how the token is read: whoever made the token must not (RFC 8725
/// section 3.10, RFC 7515 section 4.1.11, RFC 7797).
const NEVER: &[&str] = &["jku", "jwk", "x5u", "crit", "b64", "zip", "enc", "epk"];

/// A token that has the right form; nothing of it is verified.
pub struct Compact<'t> {
    pub algorithm: Algorithm,
    pub key_id: Option<String>,
    pub kind: Option<String>,
    /// What is signed.
    pub signed: &'t [u8],
    pub signature: Vec<u8>,
    pub claims: Map<String, Value>,
}

/// Why a token is refused; the client is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The `iss` of a token, before anything is known of it: for choosing who judges it, and for nothing else.
pub fn unverified_issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || token.len() > MAX_TOKEN {
        return None;
    }
    #[derive(serde::Deserialize)]
    struct Issued {
        iss: String,
    }
    let issued: Issued = serde_json::from_slice(&decode(payload).ok()?).ok()?;
    Some(issued.iss)
}

impl<'t> Compact<'t> {
    /// # Errors
    /// Anything about it that is not as the RFCs have it, or that a token has no business to say.
    pub fn read(token: &'t str) -> Result<Self, Malformed> {
        if token.len() > MAX_TOKEN {
            return Err(Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Malformed)?;
        // A further dot is no sign of base64 and fails there.
        let header = Document::read_object(&decode(header)?, super::JSON).map_err(|_| Malformed)?;
        if NEVER.iter().any(|name| header.contains_key(*name)) {
            return Err(Malformed);
        }
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= MAX_KEY_ID => Ok(Some(text.clone())),
            Some(_) => Err(Malformed),
        };
        // A content type is that of a nested token (RFC 7519 section 5.2): there is none in ours.
        if text("cty")?.is_some_and(|kind| !plain(&kind).eq_ignore_ascii_case("json")) {
            return Err(Malformed);
        }
        let algorithm = text("alg")?.and_then(|name| Algorithm::named(&name)).ok_or(Malformed)?;
        let signature = decode(signature)?;
        let claims = Document::read_object(&decode(payload)?, super::JSON).map_err(|_| Malformed)?;
        Ok(Self {
            algorithm,
            key_id: text("kid")?,
            kind: text("typ")?,
            signed: signed.as_bytes(),
            signature,
            claims,
        })
    }

    /// `typ` without the prefix that may be left out (RFC 7515 section 4.1.9).
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref().map(plain)
    }
}

pub fn plain(kind: &str) -> &str {
    match kind.split_at_checked("application/".len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") && !rest.contains('/') => rest,
        _ => kind,
    }
}

/// No padding, no line breaks, no bits that mean nothing, not empty.
fn decode(part: &str) -> Result<Vec<u8>, Malformed> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Malformed)?;
    if bytes.is_empty() { Err(Malformed) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_token_that_is_read_has_one_spelling(
            header in prop_oneof![
                Just(r#"{"alg":"ES256"}"#.to_owned()), Just(r#"{"alg":"RS256","kid":"a","typ":"JWT"}"#.to_owned()),
                Just(r#"{"alg":"none"}"#.to_owned()), Just(r#"{"alg":"ES256","jku":"x"}"#.to_owned()), "\\PC{0,8}",
            ],
            payload in prop_oneof![
                Just(r#"{"iss":"a"}"#.to_owned()), Just(r#"{"iss":"a","iss":"b"}"#.to_owned()), Just("[]".to_owned()),
                "\\PC{0,8}",
            ],
            signature in proptest::collection::vec(any::<u8>(), 0..4),
            broken in proptest::option::of((0_usize..60, any::<char>())),
        ) {
            let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            let mut token = format!("{}.{}.{}", b64(header.as_bytes()), b64(payload.as_bytes()), b64(&signature));
            if let Some((at, sign)) = broken && at <= token.len() {
                token.insert(at, sign);
            }
            let issuer = unverified_issuer(&token);
            if let Ok(read) = Compact::read(&token) {
                let parts: Vec<&str> = token.split('.').collect();
                prop_assert_eq!(parts.len(), 3);
                for part in &parts {
                    prop_assert_eq!(&b64(&decode(part).expect("it was read")), part);
                }
                let signed = format!("{}.{}", parts[0], parts[1]);
                prop_assert_eq!(read.signed, signed.as_bytes());
                prop_assert_eq!(read.claims.get("iss").and_then(Value::as_str), issuer.as_deref());
            }
        }
    }
}

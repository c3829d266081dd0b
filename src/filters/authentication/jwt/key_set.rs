//! JWK Sets (RFC 7517) → public keys, and signatures checked with them.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::message::Document;

pub const MAX_SET: usize = 256 << 10;
const MAX_KEYS: usize = 64;
/// So many keys are tried for a token: it costs the gateway more than its sender.
const MOST_TRIES: usize = 8;

// Signatures of a public key alone: with one of a shared secret, who can check can also sign.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
}

impl Algorithm {
    pub const ALL: &[Self] = &[
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::EdDSA,
    ];

    /// By the name in a header, which is case-sensitive (RFC 7515 section 4.1.1).
    pub fn named(name: &str) -> Option<Self> {
        // RFC 9864 calls it by its curve.
        if name == "Ed25519" {
            return Some(Self::EdDSA);
        }
        Self::ALL.iter().find(|known| format!("{known:?}") == name).copied()
    }

    fn verification(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::ES256 => &ECDSA_P256_SHA256_FIXED,
            Self::ES384 => &ECDSA_P384_SHA384_FIXED,
            Self::ES512 => &ECDSA_P521_SHA512_FIXED,
            Self::EdDSA => &ED25519,
            other => other.rsa().unwrap_or(&RSA_PKCS1_2048_8192_SHA256),
        }
    }

    fn rsa(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::RS256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::RS384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::RS512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::PS256 => &RSA_PSS_2048_8192_SHA256,
            Self::PS384 => &RSA_PSS_2048_8192_SHA384,
            Self::PS512 => &RSA_PSS_2048_8192_SHA512,
            Self::ES256 | Self::ES384 | Self::ES512 | Self::EdDSA => return None,
        })
    }

    /// Kind of key, curve, and bytes of a coordinate.
    const fn needs(self) -> (&'static str, &'static str, usize) {
        match self {
            Self::ES256 => ("EC", "P-256", 32),
            Self::ES384 => ("EC", "P-384", 48),
            Self::ES512 => ("EC", "P-521", 66),
            Self::EdDSA => ("OKP", "Ed25519", 32),
            _ => ("RSA", "", 0),
        }
    }
}

/// The public keys of an issuer.
pub struct KeySet {
    keys: Vec<Key>,
    /// SHA-256 of what it was read from.
    pub digest: [u8; 32],
}

/// A key for one algorithm: an RSA key without `alg` is six of them.
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    public: ParsedPublicKey,
}

/// What comes of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    Yes,
    No,
    /// The set has no key of that name: its issuer may have a new one.
    UnknownKey,
}

impl KeySet {
    /// # Errors
    /// One sentence: what it is instead of a set with at least one key that can be used.
    pub fn read(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_SET {
            return Err(format!("it has {} bytes, at most {MAX_SET} are read", text.len()));
        }
        let set = Document::read_object(text, super::JSON)
            .map_err(|_| "it is no JSON object with every member once")?;
        let Some(Value::Array(items)) = set.get("keys") else {
            return Err("it has no list of keys (RFC 7517)".into());
        };
        if items.len() > MAX_KEYS {
            return Err(format!("it has {} keys, at most {MAX_KEYS} are read", items.len()));
        }
        // A key that cannot be used may be for something else (RFC 7517 section 5).
        let keys: Vec<_> = items.iter().filter_map(Value::as_object).flat_map(keys_of).collect();
        if keys.is_empty() {
            return Err("it has no public key for signatures of RS, PS, ES or EdDSA".into());
        }
        let hash = digest::digest(&digest::SHA256, text);
        Ok(Self { keys, digest: hash.as_ref().try_into().expect("SHA-256 has 32 bytes") })
    }

    pub fn verify(&self, algorithm: Algorithm, id: Option<&str>, message: &[u8], signature: &[u8]) -> Signed {
        let mut fitting = self
            .keys
            .iter()
            .filter(|key| key.algorithm == algorithm)
            // A key without a name may be meant by any name, and a token without one means any key.
            .filter(|key| id.is_none() || key.id.is_none() || key.id.as_deref() == id)
            .take(MOST_TRIES)
            .peekable();
        if fitting.peek().is_none() {
            return Signed::UnknownKey;
        }
        let verifies = |key: &Key| key.public.verify_sig(message, signature).is_ok();
        if fitting.any(verifies) { Signed::Yes } else { Signed::No }
    }
}

impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet(")?;
        self.digest[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, ")")
    }
}

fn keys_of(jwk: &Map<String, Value>) -> Vec<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let is_private = jwk.contains_key("d") || jwk.contains_key("k");
    let verifies = jwk.get("key_ops").is_none_or(|uses| {
        uses.as_array().is_some_and(|uses| uses.iter().any(|one| one.as_str() == Some("verify")))
    });
    if is_private || !verifies || text("use").is_some_and(|used| used != "sig") {
        return Vec::new();
    }
    let meant = match jwk.get("alg") {
        None => None,
        Some(name) => match name.as_str().and_then(Algorithm::named) {
            Some(algorithm) => Some(algorithm),
            None => return Vec::new(),
        },
    };
    let algorithms = Algorithm::ALL.iter().filter(|known| meant.is_none_or(|meant| meant == **known));
    let key = |algorithm: &Algorithm| {
        let public = public(*algorithm, &text)?;
        Some(Key { id: text("kid").map(str::to_owned), algorithm: *algorithm, public })
    };
    algorithms.filter_map(key).collect()
}

fn public<'j>(algorithm: Algorithm, text: &impl Fn(&str) -> Option<&'j str>) -> Option<ParsedPublicKey> {
    let number = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    let (kind, curve, size) = algorithm.needs();
    if text("kty") != Some(kind) {
        return None;
    }
    if let Some(parameters) = algorithm.rsa() {
        let (n, e) = (number("n")?, number("e")?);
        let n: Vec<u8> = n.into_iter().skip_while(|byte| *byte == 0).collect();
        // Less than 2048 bits can be factored, more than 8192 takes longer than anybody may cost us.
        let is_usable =
            (256..=1024).contains(&n.len()) && e.len() <= 4 && e.last().is_some_and(|byte| byte % 2 == 1);
        if !is_usable || e == [1] {
            return None;
        }
        return PublicKeyComponents { n: &n, e: &e }.to_parsed_public_key(parameters).ok();
    }
    if text("crv") != Some(curve) {
        return None;
    }
    let x = number("x").filter(|x| x.len() == size)?;
    let bytes = if kind == "OKP" {
        x
    } else {
        let y = number("y").filter(|y| y.len() == size)?;
        [&[4], &*x, &*y].concat()
    };
    ParsedPublicKey::new(algorithm.verification(), bytes).ok()
}

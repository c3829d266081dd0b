//! Who the client is, as authentication found it. Rules without authentication pay nothing for it.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

/// How somebody was recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IdentityKind {
    #[default]
    Anonymous,
    ApiKey,
    Jwt,
    /// An opaque token that its issuer was asked about.
    Token,
    Basic,
    Certificate,
    /// By an external authorizer.
    External,
}

impl IdentityKind {
    pub const ALL: &[Self] = &[
        Self::Anonymous,
        Self::ApiKey,
        Self::Jwt,
        Self::Token,
        Self::Basic,
        Self::Certificate,
        Self::External,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anonymous => "Anonymous",
            Self::ApiKey => "ApiKey",
            Self::Jwt => "Jwt",
            Self::Token => "Token",
            Self::Basic => "Basic",
            Self::Certificate => "Certificate",
            Self::External => "External",
        }
    }
}

/// The identity of a request's client; it always exists. Cheap to clone: what is known is shared with the cache or the
/// table where it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity(Option<Arc<KnownIdentity>>);

/// Somebody who is not anonymous.
#[derive(Clone, PartialEq)]
pub struct KnownIdentity {
    pub kind: IdentityKind,
    /// Name of the `anyOf` entry that decided.
    pub entry: Arc<str>,
    /// Who vouches: a JWT's `iss`, the namespace of an API key's Secret; may be empty.
    pub issuer: Arc<str>,
    /// A JWT's `sub`, an API key's consumer, a user's name.
    pub id: Arc<str>,
    pub scopes: Arc<[Box<str>]>,
    /// A token's claims, or an API key's metadata.
    pub claims: Arc<Map<String, Value>>,
}

impl Identity {
    pub const ANONYMOUS: Self = Self(None);

    pub fn new(known: Arc<KnownIdentity>) -> Self {
        Self(Some(known))
    }

    /// `None`: anonymous.
    pub fn known(&self) -> Option<&Arc<KnownIdentity>> {
        self.0.as_ref()
    }

    pub fn kind(&self) -> IdentityKind {
        self.0.as_ref().map_or(IdentityKind::Anonymous, |known| known.kind)
    }

    /// The name of the entry that decided; empty for the anonymous.
    pub fn entry(&self) -> &str {
        self.0.as_ref().map_or("", |known| &known.entry)
    }

    /// Empty for the anonymous.
    pub fn issuer(&self) -> &str {
        self.0.as_ref().map_or("", |known| &known.issuer)
    }

    /// Empty for the anonymous.
    pub fn id(&self) -> &str {
        self.0.as_ref().map_or("", |known| &known.id)
    }

    pub fn scopes(&self) -> &[Box<str>] {
        self.0.as_ref().map_or(&[], |known| &known.scopes)
    }

    pub fn has_scope(&self, wanted: &str) -> bool {
        self.scopes().iter().any(|scope| **scope == *wanted)
    }

    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.0.as_ref()?.claims.get(name)
    }

    /// All claims; `None` for the anonymous.
    pub fn claims(&self) -> Option<&Map<String, Value>> {
        self.0.as_ref().map(|known| &*known.claims)
    }
}

impl KnownIdentity {
    /// Different for any two that differ in kind, issuer or id.
    pub fn key(&self) -> String {
        // `|` cannot stand in the first two parts, so nothing in an id can look like another's issuer.
        let issuer = self.issuer.replace('%', "%25").replace('|', "%7C");
        format!("{}|{issuer}|{}", self.kind.as_str(), self.id)
    }
}

/// Claims hold names, addresses and worse: they are not for logs.
impl fmt::Debug for KnownIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownIdentity")
            .field("kind", &self.kind)
            .field("entry", &self.entry)
            .field("issuer", &self.issuer)
            .field("id", &self.id)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(kind: IdentityKind, issuer: &str, id: &str) -> KnownIdentity {
        KnownIdentity {
            kind,
            entry: "e".into(),
            issuer: issuer.into(),
            id: id.into(),
            scopes: Arc::new(["a:read".into()]),
            claims: Arc::default(),
        }
    }

    #[test]
    fn keys_of_different_clients_differ() {
        use IdentityKind::{ApiKey, Jwt};
        let keys: Vec<_> = [(Jwt, "a|b", "c"), (Jwt, "a", "b|c"), (Jwt, "a%7Cb", "c"), (ApiKey, "a", "b|c")]
            .map(|(kind, issuer, id)| known(kind, issuer, id).key())
            .into();
        let different: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len(), "{keys:?}");
    }

    #[test]
    fn scopes_are_whole_words() {
        let identity = Identity::new(Arc::new(known(IdentityKind::Jwt, "i", "x")));
        assert!(
            identity.has_scope("a:read") && !identity.has_scope("a") && !Identity::ANONYMOUS.has_scope("")
        );
    }
}

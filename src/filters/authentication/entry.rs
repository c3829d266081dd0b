//! What every entry of `anyOf` is to the others: it finds a credential of its kind, judges it, and takes it away.

use std::cell::OnceCell;
use std::sync::{Arc, LazyLock};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::{digest, hmac};
use http::{HeaderMap, HeaderValue};

use super::brake::{Admission, Brake, Shown};
use crate::filters::places::Place;
use crate::filters::{Keep, Scope};
use crate::message::{ErrorKind, Exchange, Identity, KnownIdentity, LocalFuture, Request};
use crate::values::{FieldPath, Problem};

/// A row of the entries' table.
pub trait EntryKind {
    type Spec;
    type Plan: PartialEq + std::fmt::Debug + Send + Sync + 'static;

    /// Proves a spec that stands `at` this place of the member. Returned problems carry paths relative to it, and what
    /// `scope` is told carries whole ones.
    fn compile(
        name: &Arc<str>,
        spec: Self::Spec,
        at: &FieldPath,
        scope: &mut dyn Scope,
    ) -> Result<Self::Plan, Vec<Problem>>;

    fn link(plan: &Self::Plan, keep: &dyn Keep) -> Box<dyn Entry>;
}

/// A linked entry.
pub trait Entry: Send + Sync {
    /// Looks for a credential of the entry's kind and judges it. Before anything slow is done about a credential, and
    /// before it is said whether it is good, `gate` is asked.
    fn check(&self, exchange: &Exchange, gate: &Gate<'_>) -> Checked;

    /// Whether the credential goes on to the backend when this entry decided.
    fn forwards(&self) -> bool;

    /// Where the credential stands that decided, if it is a part of the request.
    fn place<'a>(&'a self, request: &Request) -> Option<&'a Place>;

    /// Takes credentials of this kind from the request, but the one that stands in the place that is `kept`.
    fn strip(&self, request: &mut Request, kept: Option<&Place>);

    /// Sets the fields that tell the backend who it is.
    fn tell(&self, identity: &KnownIdentity, headers: &mut HeaderMap) {
        let _ = (identity, headers);
    }

    fn scheme(&self) -> Scheme;
}

/// What an entry found.
pub enum Checked {
    /// No credential of its kind.
    Absent,
    Known(Identity, Fingerprint),
    /// A credential that is not valid, for whatever reason.
    Refused,
    /// It cannot be judged now, for this reason.
    Unavailable(ErrorKind),
    /// The address has shown too many that were not valid; this one was not looked at.
    Stopped,
    /// It was not judged in the time that there is; it may be known later.
    GaveUp(ErrorKind),
    /// It is judged once something that was asked for has come.
    Later(Admission, LocalFuture<'static, Self>),
}

/// SHA-256 of a credential: what it is looked up by, so that no comparison takes longer for a better guess.
pub type Fingerprint = [u8; 32];

pub fn fingerprint(credential: &[u8]) -> Fingerprint {
    let digest = digest::digest(&digest::SHA256, credential);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Names a secret within this process, and says nothing of it to anybody else.
pub fn keyed(secret: &[u8]) -> Fingerprint {
    static KEY: LazyLock<hmac::Key> = LazyLock::new(|| {
        let random = SystemRandom::new();
        hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the system has random numbers")
    });
    let tag = hmac::sign(&KEY, secret);
    tag.as_ref().try_into().expect("a tag of SHA-256 has 32 bytes")
}

/// Whether an address may still have credentials judged.
pub struct Gate<'a> {
    pub brake: Option<(&'a Brake, Shown)>,
    /// Of the bearer token: several entries look it up.
    pub token: OnceCell<Fingerprint>,
}

impl Gate<'_> {
    /// Of the request's bearer token, of which there is one at most.
    pub fn token_print(&self, token: &str) -> Fingerprint {
        *self.token.get_or_init(|| fingerprint(token.as_bytes()))
    }

    /// For what is judged at once.
    pub fn admits(&self, credential: &Fingerprint) -> bool {
        self.brake.is_none_or(|(brake, shown)| brake.admits(shown, credential))
    }

    /// For what is judged later: many may be shown before the first is known to be wrong.
    pub fn charge(&self, credential: &Fingerprint) -> Option<Admission> {
        match self.brake {
            Some((brake, shown)) => brake.charge(shown, credential),
            None => Some(Admission::Free),
        }
    }
}

/// What the client is asked to show (RFC 9110 section 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    ApiKey,
    Bearer,
    Basic,
    /// Of the TLS handshake.
    Certificate,
}

impl Scheme {
    pub const fn challenge(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::ApiKey => "ApiKey realm=\"api\"",
            Self::Bearer => "Bearer realm=\"api\"",
            // RFC 7617 section 2.1.
            Self::Basic => "Basic realm=\"api\", charset=\"UTF-8\"",
            Self::Certificate => "Certificate realm=\"api\"",
        })
    }

    /// The same after a wrong one.
    pub const fn challenge_after_failure(self) -> HeaderValue {
        match self {
            // RFC 6750 section 3.1: an error only when a token was shown.
            Self::Bearer => HeaderValue::from_static("Bearer realm=\"api\", error=\"invalid_token\""),
            Self::ApiKey | Self::Basic | Self::Certificate => self.challenge(),
        }
    }

    pub const fn missing(self) -> ErrorKind {
        match self {
            Self::ApiKey => ErrorKind::ApiKeyMissing,
            Self::Bearer => ErrorKind::TokenMissing,
            Self::Basic => ErrorKind::CredentialsMissing,
            Self::Certificate => ErrorKind::CertificateMissing,
        }
    }

    pub const fn invalid(self) -> ErrorKind {
        match self {
            Self::ApiKey => ErrorKind::ApiKeyInvalid,
            Self::Bearer => ErrorKind::TokenInvalid,
            Self::Basic => ErrorKind::CredentialsInvalid,
            Self::Certificate => ErrorKind::CertificateInvalid,
        }
    }
}

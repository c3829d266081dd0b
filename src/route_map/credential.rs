//! What of ours a backend is shown, and in which place of a request.

use std::fmt;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::backend::BackendPlan;
use crate::filters::{FetchPlan, TokenHolder};
use crate::values::{Redacted, ReservedHeaders};

/// It replaces whatever the client sent in the same place.
#[derive(Clone, Debug, PartialEq)]
pub enum Credential {
    Header {
        name: HeaderName,
        /// All spellings of the name.
        spellings: ReservedHeaders,
        value: Redacted<HeaderValue>,
    },
    /// A parameter of the query, in the form that it has there.
    Query { name: Arc<str>, value: Redacted<Arc<str>> },
    /// In `Authorization`.
    Token(TokenPlan),
}

/// A token of OAuth 2.0, which is fetched beside the requests.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPlan {
    pub fetch: FetchPlan,
    pub holder: TokenHolder,
    /// The backend that gives it, where one does.
    pub from: Option<Arc<BackendPlan>>,
    /// All spellings of `Authorization`.
    pub spellings: ReservedHeaders,
}

impl Credential {
    /// Whether there is something in its place.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        match self {
            Self::Header { name, .. } => headers.contains_key(name),
            Self::Query { .. } => false,
            Self::Token(_) => headers.contains_key(AUTHORIZATION),
        }
    }
}

/// Where it stands; the dump does not have the value.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header { name, .. } => write!(f, "shown a credential in {name}"),
            Self::Query { name, .. } => write!(f, "shown a credential as ?{name}"),
            Self::Token(plan) => write!(f, "shown a token of {}", plan.fetch.place),
        }
    }
}

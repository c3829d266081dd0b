//! What of ours a backend is shown, and in which place of a request.

use std::fmt;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};

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
}

/// Where it stands; the dump does not have the value.
impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header { name, .. } => write!(f, "shown a credential in {name}"),
            Self::Query { name, .. } => write!(f, "shown a credential as ?{name}"),
        }
    }
}

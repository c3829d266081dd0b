//! What broke under a request that got no answer, of either protocol.

use std::error::Error as _;

use super::interim::TooMany;
use super::repeatable;
use crate::message::{BodyError, ErrorKind};

#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Http1(hyper::Error),
    #[error(transparent)]
    Http2(h2::Error),
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("the answer to CONNECT has a length")]
    TunnelWithLength,
}

impl Broken {
    /// Whether an endpoint closed or reset a connection of HTTP/1.1; not: the request's own body failed, or nonsense came.
    pub fn is_of_the_connection(&self) -> bool {
        matches!(self, Self::Http1(error) if !error.is_user() && !error.is_parse())
    }

    /// As the client is told. `heard`: something came before.
    pub fn kind(&self, heard: bool) -> ErrorKind {
        let Self::Http1(error) = self else {
            return if heard { ErrorKind::InvalidResponse } else { ErrorKind::Reset };
        };
        match error.source().and_then(|cause| cause.downcast_ref::<BodyError>()) {
            Some(failed) => repeatable::kind_of(failed),
            None if error.is_parse() || heard => ErrorKind::InvalidResponse,
            None => ErrorKind::Reset,
        }
    }
}

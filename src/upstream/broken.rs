//! What broke under a request that got no answer, of either protocol.

use super::interim::TooMany;
use super::repeatable;
use crate::http1::HeadError;
use crate::message::{BodyError, ErrorKind};

#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the connection ended before an answer")]
    Closed,
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The request's own.
    #[error(transparent)]
    Body(BodyError),
    #[error("the connection became another one before the request was over")]
    SwitchedEarly,
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
        matches!(self, Self::Closed | Self::Io(_))
    }

    /// As the client is told. `heard`: something came before.
    pub fn kind(&self, heard: bool) -> ErrorKind {
        match self {
            Self::Body(failed) => repeatable::kind_of(failed),
            Self::Head(_) => ErrorKind::InvalidResponse,
            _ if heard => ErrorKind::InvalidResponse,
            _ => ErrorKind::Reset,
        }
    }
}

//! What carries a request to an endpoint: a connection of its own for the time (HTTP/1.1), or a place on a shared one
//! (HTTP/2).

use std::rc::Rc;

use futures_util::future::Either;

use super::HeadLines;
use super::connect::{Connection, Unanswered};
use super::connect_http2::{Multiplexed, Stream};
use super::connect_stream::Coming;
use crate::message::{Hinted, Request};

#[derive(Debug)]
pub(super) enum Carrier {
    /// Boxed: it is moved several times with each request.
    Own(Box<Connection>),
    Shared(Stream),
}

impl Carrier {
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    /// The shared connection.
    pub fn shared(&self) -> Option<&Rc<Multiplexed>> {
        match self {
            Self::Own(_) => None,
            Self::Shared(stream) => Some(stream.connection()),
        }
    }

    /// See [`Connection::send`].
    pub fn send(
        &mut self,
        request: Request,
        lines: Option<&HeadLines>,
        hinted: Option<&Hinted>,
    ) -> impl Future<Output = Result<http::Response<Coming>, Box<Unanswered>>> {
        match self {
            Self::Own(connection) => Either::Left(connection.send(request, lines, hinted)),
            // Boxed: it is large, and requests over HTTP/1.1 would carry the room for it.
            Self::Shared(stream) => Either::Right(Box::pin(stream.send(request, lines, hinted))),
        }
    }

    /// The head of the request that failed, as it went out.
    pub fn sent(&self) -> Option<Vec<u8>> {
        match self {
            Self::Own(connection) => connection.sent(),
            Self::Shared(_) => None,
        }
    }
}

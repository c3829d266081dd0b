//! The one body type of requests and answers: streamed by default, whole only where something asks for it with a bound.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::http1::Malformed;
use crate::http2::Received;

/// Why a body ended before its end. The cause is for the log; a client sees only that the body was cut.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the connection failed while the body was read")]
    Connection(#[from] hyper::Error),
    #[error("the stream failed while the body was read")]
    Stream(#[from] h2::Error),
    #[error("the connection failed while the body was read")]
    Io(#[from] std::io::Error),
    #[error("the connection ended before the body")]
    Cut,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("no progress within {0:?}")]
    Stalled(std::time::Duration),
    #[error("the body is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("{0}")]
    Other(&'static str),
}

/// So much of a body that is at hand is given at once: whoever takes it slowly is seen to, and holds no more.
const PIECE: usize = 16 << 10;

/// A body in any of the forms it can have on its way. `Empty` and `Full` need no allocation of their own.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(hyper::body::Incoming),
    /// Of a stream of HTTP/2.
    Received(Received),
    /// Any other stream: observed, limited, made by a filter.
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError>>>),
}

/// The body did not fit into the bound that a reader gave.
#[derive(Debug)]
pub enum TooLarge {
    Limit { limit: usize },
    Broken(BodyError),
}

impl Body {
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self::Stream(Box::pin(body))
    }

    /// Reads the whole body, at most `limit` bytes, and its trailers. Costs at most `limit` bytes of memory.
    ///
    /// # Errors
    /// `Limit` as soon as more than `limit` bytes are announced or have come; `Broken` when the body fails.
    pub async fn read(mut self, limit: usize) -> Result<(Bytes, Option<HeaderMap>), TooLarge> {
        if let Self::Full(bytes) = self {
            return if bytes.len() > limit { Err(TooLarge::Limit { limit }) } else { Ok((bytes, None)) };
        }
        if http_body::Body::size_hint(&self).lower() > limit as u64 {
            return Err(TooLarge::Limit { limit });
        }
        let (mut whole, mut trailers) = (BytesMut::new(), None);
        while let Some(frame) = self.frame().await {
            match frame.map_err(TooLarge::Broken)?.into_data() {
                Ok(data) if whole.len() + data.len() > limit => return Err(TooLarge::Limit { limit }),
                Ok(data) => whole.extend_from_slice(&data),
                Err(other) => trailers = other.into_trailers().ok(),
            }
        }
        Ok((whole.freeze(), trailers))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) if bytes.len() <= PIECE => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes.split_to(PIECE))))),
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(context).map_err(BodyError::from),
            Self::Received(received) => Pin::new(received).poll_frame(context).map_err(BodyError::from),
            Self::Stream(stream) => stream.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Received(received) => received.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Received(received) => received.size_hint(),
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Full(bytes)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Full(text.into())
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::Full(Bytes::from_static(text.as_bytes()))
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Body::Empty",
            Self::Full(_) => "Body::Full",
            Self::Incoming(_) => "Body::Incoming",
            Self::Received(_) => "Body::Received",
            Self::Stream(_) => "Body::Stream",
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    #[tokio::test]
    async fn what_is_at_hand_is_given_in_pieces() {
        let text = "x".repeat(2 * PIECE + 1);
        let mut body = Body::from(text.clone());
        let mut sizes = Vec::new();
        while let Some(frame) = body.frame().await {
            sizes.push(frame.expect("at hand").into_data().expect("data").len());
        }
        assert_eq!((sizes, body.is_end_stream()), (vec![PIECE, PIECE, 1], true));
        assert_eq!(Body::from(text.clone()).read(text.len()).await.expect("it fits").0, text);
    }

    #[tokio::test]
    async fn a_bounded_read_stops_at_its_bound() {
        assert!(matches!(Body::from("12345").read(4).await, Err(TooLarge::Limit { limit: 4 })));
        let chunks = http_body_util::StreamBody::new(futures_util::stream::iter(
            [&b"123"[..], b"45"].map(|c| Ok::<_, BodyError>(Frame::data(Bytes::from_static(c)))),
        ));
        assert!(matches!(Body::stream(chunks).read(4).await, Err(TooLarge::Limit { limit: 4 })));
        assert_eq!(&Body::from("1234").read(4).await.expect("fits").0[..], b"1234");
    }
}

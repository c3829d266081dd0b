//! A body on its way into a stream of HTTP/2.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// So much is asked of the windows at once.
const MOST: usize = 1 << 20;

/// Writes a body as fast as the peer takes it: the next piece of it is asked for when all of the last one has found room
/// in the peer's windows and in the bound of what a stream may hold. Dropped before its end, h2 resets the stream.
///
/// Invariant: h2 is given what the windows have room for, and the stream's end with the last of it. What it has beyond that
/// it keeps for as long as the peer likes once both sides have ended, and counts the stream among those that are open.
#[derive(Debug)]
pub struct Sending<B> {
    pub(super) body: B,
    stream: SendStream<Bytes>,
    /// Of what came of the body, what waits for room; whether it is the last.
    piece: Option<(Bytes, bool)>,
    /// How much found room.
    sent: u64,
}

/// Why a body did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum Unsent<E: Error + 'static> {
    /// The peer was told by a reset.
    #[error("the body failed")]
    Body(#[source] E),
    /// The peer wants no more, or the connection is over.
    #[error("the stream failed")]
    Stream(#[source] h2::Error),
    #[error("the stream is closed")]
    Closed,
}

impl<B> Sending<B> {
    pub fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, piece: None, sent: 0 }
    }

    /// For how many bytes the peer had room.
    pub fn sent(&self) -> u64 {
        self.sent
    }
}

/// What a peer is told of a failure: what another peer said, where that was the cause. Not what would say here that all
/// is well, or that nothing was done and the request may be sent again (RFC 9113, 8.7): a body has begun.
pub fn reason_of(error: &(dyn Error + 'static)) -> Reason {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(of_stream) = error.downcast_ref::<h2::Error>() {
            return match of_stream.reason() {
                None | Some(Reason::NO_ERROR | Reason::REFUSED_STREAM | Reason::HTTP_1_1_REQUIRED) => {
                    Reason::INTERNAL_ERROR
                }
                Some(reason) => reason,
            };
        }
        cause = error.source();
    }
    Reason::INTERNAL_ERROR
}

/// Waits until the stream has room for something of so many bytes, and gives how much.
pub(super) fn poll_room(
    stream: &mut SendStream<Bytes>,
    bytes: usize,
    context: &mut Context<'_>,
) -> Poll<Option<Result<usize, h2::Error>>> {
    stream.reserve_capacity(bytes.min(MOST));
    loop {
        match stream.capacity() {
            0 => {}
            room => return Poll::Ready(Some(Ok(room.min(bytes)))),
        }
        match ready!(stream.poll_capacity(context)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        }
    }
}

impl<B> Future for Sending<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Error + 'static,
{
    type Output = Result<(), Unsent<B::Error>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { body, stream, piece, sent } = self.get_mut();
        loop {
            // Also wakes us when the peer resets while we wait for something else.
            if let Poll::Ready(reset) = stream.poll_reset(context) {
                return Poll::Ready(Err(Unsent::Stream(reset.map_or_else(|error| error, h2::Error::from))));
            }
            if let Some((data, is_last)) = piece {
                let room = match ready!(poll_room(stream, data.len(), context)) {
                    Some(room) => room.map_err(Unsent::Stream)?,
                    None => return Poll::Ready(Err(Unsent::Closed)),
                };
                let (part, is_last) = (data.split_to(room), *is_last);
                let is_over = data.is_empty();
                stream.send_data(part, is_last && is_over).map_err(Unsent::Stream)?;
                *sent += room as u64;
                if is_over {
                    *piece = None;
                }
                if is_last && is_over {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match ready!(Pin::new(&mut *body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        // An empty frame needs no room.
                        let (is_last, is_empty) = (body.is_end_stream(), data.is_empty());
                        if is_empty && !is_last {
                            continue;
                        }
                        if is_empty {
                            return Poll::Ready(stream.send_data(data, true).map_err(Unsent::Stream));
                        }
                        *piece = Some((data, is_last));
                    }
                    Err(other) => {
                        if let Ok(fields) = other.into_trailers() {
                            stream.reserve_capacity(0);
                            return Poll::Ready(stream.send_trailers(fields).map_err(Unsent::Stream));
                        }
                    }
                },
                Some(Err(error)) => {
                    stream.send_reset(reason_of(&error));
                    return Poll::Ready(Err(Unsent::Body(error)));
                }
                None => return Poll::Ready(stream.send_data(Bytes::new(), true).map_err(Unsent::Stream)),
            }
        }
    }
}

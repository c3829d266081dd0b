//! An answer's body, read from its connection by who wants it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::Wire;
use crate::http1::{self, Taken};
use crate::message::BodyError;

/// An answer's body on its way.
#[derive(Debug)]
pub(in crate::upstream) struct Receiving {
    pub(super) wire: Wire,
    pub(super) incoming: http1::Incoming,
    /// Told when it is asked for again: what came before goes out first.
    pub(super) failed: Option<BodyError>,
}

impl Receiving {
    fn fails(
        &mut self,
        error: BodyError,
        context: &Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.wire.close();
        self.failed = Some(error);
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        let mut inner = self.wire.0.inner.borrow_mut();
        if inner.failed.is_some() || inner.socket.is_none() {
            return Poll::Ready(Err(BodyError::Cut));
        }
        match ready!(inner.poll_read(context))? {
            0 if self.incoming.may_end_here() => Poll::Ready(Ok(false)),
            0 => Poll::Ready(Err(BodyError::Cut)),
            _ => Poll::Ready(Ok(true)),
        }
    }
}

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(failed) = this.failed.take() {
            this.incoming = http1::Incoming::Length(0);
            return Poll::Ready(Some(Err(failed)));
        }
        if this.incoming.is_over() {
            return Poll::Ready(None);
        }
        loop {
            let taken = this.incoming.take(&mut this.wire.0.inner.borrow_mut().read);
            if this.incoming.is_over() {
                this.wire.answer_ends();
            }
            let frame = match taken {
                Ok(Taken::Data(data)) => Some(Ok(Frame::data(data))),
                Ok(Taken::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Ok(Taken::End) => None,
                Ok(Taken::More) => match ready!(this.poll_more(context)) {
                    Ok(true) => continue,
                    Ok(false) => {
                        this.incoming = http1::Incoming::Length(0);
                        this.wire.leave();
                        None
                    }
                    Err(error) => return this.fails(error, context),
                },
                Err(malformed) => return this.fails(malformed.into(), context),
            };
            return Poll::Ready(frame);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

//! A backend's answer while it streams: the connection goes back to the pool when the last of it was read, and is
//! closed at once when the reader leaves before.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};

use super::backend::Verdict;
use super::connect_stream::Coming;
use super::endpoint::{Lease, Place};
use super::health::Health;
use crate::message::{Body, BodyError, Duplex, Response};
use crate::upstream::Backend;

struct Streaming {
    coming: Coming,
    /// To be told what the trailers say of the endpoint.
    judge: Option<Judge>,
    /// None: the answer is over.
    lease: Option<Lease>,
}

/// Whose endpoint is judged by what comes behind the body.
pub(super) struct Judge {
    pub backend: Arc<Backend>,
    pub health: Arc<Health>,
}

/// What is behind a 101.
pub(super) struct Behind {
    /// What it takes up.
    pub place: Place,
    /// Its bytes.
    pub tunnel: Option<Box<dyn Duplex>>,
}

/// `head` with a body that takes care of the connection that it comes from; of a 101, what is behind it.
pub(super) fn stream(
    head: http::Response<Coming>,
    lease: Lease,
    judge: Option<Judge>,
) -> (Response, Option<Behind>) {
    if head.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (parts, coming) = head.into_parts();
        let behind = Behind { place: lease.release(), tunnel: coming.into_tunnel() };
        return (Response::from_parts(parts, Body::Empty), Some(behind));
    }
    if head.body().is_end_stream() {
        lease.give_back();
        return (head.map(|_| Body::Empty), None);
    }
    (head.map(|coming| Body::stream(Streaming { coming, judge, lease: Some(lease) })), None)
}

impl Streaming {
    fn is_shared(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_shared)
    }

    fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl http_body::Body for Streaming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.coming).poll_frame(context) else {
            return Poll::Pending;
        };
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
            && let Some(Judge { backend, health }) = self.judge.take()
        {
            backend.judged(&health, Verdict::of_trailers(trailers));
        }
        match &frame {
            Some(Ok(_)) if self.coming.is_end_stream() => self.end(),
            Some(Ok(_)) => {}
            Some(Err(_)) => self.lease = None,
            // A stream that was reset without an error seems to have ended.
            None if self.is_shared() && !self.coming.is_end_stream() => {
                self.lease = None;
                return Poll::Ready(Some(Err(BodyError::Other("the stream was reset before its end"))));
            }
            None => self.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.coming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.coming.size_hint()
    }
}

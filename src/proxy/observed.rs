//! Bodies on their way: a request's is bounded in size and must make progress, an answer's is counted, bounded in idle
//! time, and its end is when the request is logged.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::account::Account;
use super::live::LiveHost;
use super::trailers;
use super::watch::{Wait, Watch};
use crate::message::{Body, BodyError, ErrorKind, FailureCause};

/// So many bytes are progress.
pub(super) const PROGRESS: u64 = 1024;

/// What became of a request's body; shared between the body, which goes to the backend, and the request's account.
#[derive(Debug, Default)]
pub struct Upload {
    pub bytes: Cell<u64>,
    /// More of it is waited for.
    pub waits: Cell<bool>,
    pub failure: Cell<Option<ErrorKind>>,
    /// When it was read to its end.
    pub ended: Cell<Option<Instant>>,
    /// Its messages go on for as long as both sides like: all of them together have no bound.
    pub streams: Cell<bool>,
}

/// A request's body as the backend's connection reads it.
#[derive(Debug)]
pub struct RequestBody {
    inner: Body,
    limit: u64,
    /// It is announced as larger: nobody reads any of it.
    refused: bool,
    credited: u64,
    watch: Rc<Watch>,
    upload: Rc<Upload>,
    stall: std::time::Duration,
    /// Whose fields no trailer may name.
    host: Option<Arc<LiveHost>>,
}

impl RequestBody {
    pub fn new(
        inner: Body,
        limit: u64,
        stall: std::time::Duration,
        watch: Rc<Watch>,
        upload: Rc<Upload>,
    ) -> Self {
        let refused = inner.size_hint().lower() > limit;
        Self { inner, limit, refused, credited: 0, watch, upload, stall, host: None }
    }

    /// Takes from the trailers what only the gateway may say under this host, and keys.
    pub fn without_own_trailers(mut self, host: &Arc<LiveHost>) -> Self {
        self.host = host.restricts_trailers().then(|| Arc::clone(host));
        self
    }

    fn too_large(&self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.fail(ErrorKind::BodyTooLarge, BodyError::TooLarge { limit: self.limit })
    }

    fn fail(&self, kind: ErrorKind, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.upload.failure.set(Some(kind));
        Poll::Ready(Some(Err(error)))
    }
}

/// A body whose framing is broken is a bad request; a connection that ends in it is a client that has gone.
fn whose_fault(error: &BodyError) -> ErrorKind {
    let BodyError::Connection(error) = error else { return ErrorKind::ClientGone };
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match cause.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData) => ErrorKind::BadRequest,
        _ => ErrorKind::ClientGone,
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.refused {
            return self.too_large();
        }
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        self.upload.waits.set(polled.is_pending());
        match polled {
            Poll::Pending if self.watch.await_body(context) => {
                let stalled = BodyError::Stalled(self.stall);
                self.fail(ErrorKind::RequestTimeout, stalled)
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(fields) = frame.trailers_mut() {
                    trailers::of_request(fields, self.host.as_deref());
                }
                if let Some(data) = frame.data_ref() {
                    let bytes = self.upload.bytes.get() + data.len() as u64;
                    self.upload.bytes.set(bytes);
                    if bytes > self.limit && !self.upload.streams.get() {
                        return self.too_large();
                    }
                    let progress = bytes - self.credited >= PROGRESS || self.upload.streams.get();
                    if progress {
                        self.credited = bytes;
                    }
                    self.watch.body_came(progress);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.fail(whose_fault(&error), error),
            Poll::Ready(None) => {
                self.upload.ended.set(Some(Instant::now()));
                self.watch.body_came(true);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.upload.ended.get().is_none() && self.inner.is_end_stream() {
            self.upload.ended.set(Some(Instant::now()));
        }
        if self.watch.read_wait() == Wait::Body {
            self.watch.body_came(true);
        }
    }
}

/// An answer's body as the client's connection reads it.
pub struct AnswerBody {
    inner: Body,
    /// Trailers are for clients that said that they read them (RFC 9110 section 6.5.1).
    trailers: bool,
    watch: Rc<Watch>,
    /// None where a tunnel follows, which takes the account with it.
    account: Option<Box<Account>>,
}

impl AnswerBody {
    pub fn new(inner: Body, trailers: bool, watch: Rc<Watch>, account: Box<Account>) -> Self {
        watch.streams();
        Self { inner, trailers, watch, account: Some(account) }
    }

    /// No body: a tunnel follows.
    pub fn tunnel(watch: Rc<Watch>) -> Self {
        Self { inner: Body::Empty, trailers: false, watch, account: None }
    }

    fn fail(&mut self, kind: ErrorKind, error: &BodyError) {
        if let Some(account) = &mut self.account {
            account.fail(kind);
            account.cause.get_or_insert_with(|| FailureCause::of(error));
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let frame = match Pin::new(&mut self.inner).poll_frame(context) {
                Poll::Pending if self.watch.await_answer(context) => {
                    let silent = BodyError::Other("the backend sent nothing for too long");
                    self.fail(ErrorKind::BackendTimeout, &silent);
                    return Poll::Ready(Some(Err(silent)));
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(frame) => frame,
            };
            match frame {
                Some(Ok(mut frame)) => {
                    if let Some(data) = frame.data_ref() {
                        let bytes = data.len() as u64;
                        if let Some(account) = &mut self.account {
                            account.response_bytes += bytes;
                        }
                    }
                    if let (Some(account), Some(fields)) = (&mut self.account, frame.trailers_ref()) {
                        account.called(fields);
                    }
                    if !self.trailers && !frame.is_data() {
                        continue;
                    }
                    if let Some(fields) = frame.trailers_mut() {
                        trailers::of_answer(fields);
                    }
                    self.watch.answer_taken();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Some(Err(error)) => {
                    self.fail(ErrorKind::Reset, &error);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    if let Some(account) = &mut self.account {
                        account.complete = true;
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        let Some(account) = &mut self.account else { return self.watch.answer_over(true, false) };
        account.complete |= self.inner.is_end_stream();
        self.watch.answer_over(account.complete, account.upload.is_some());
    }
}

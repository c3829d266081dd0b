//! A request that can be sent again: its head, and as much of its body as was read so far, within a bound.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};
use http_body::{Body as _, Frame, SizeHint};

use crate::message::{Body, BodyError, ErrorKind, FixedHost, Request};

/// So much of a body is kept; a request of whose body more was sent is not repeated.
const MAX_KEPT: usize = 64 << 10;

/// What a request is made of again.
pub(super) struct Repeatable {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    fixed_host: Option<FixedHost>,
    body: Source,
}

enum Source {
    Whole(Body),
    Kept(Rc<RefCell<Kept>>),
}

/// A body that is read by one try after the other.
struct Kept {
    inner: Body,
    /// Copied: a frame may be a byte of a buffer that is a thousand times as large.
    bytes: Vec<u8>,
    trailers: Option<HeaderMap>,
    limit: usize,
    /// It was read to its end.
    ended: bool,
    /// What was read is gone, in part at least.
    lost: bool,
    /// The try that reads it; those before it get nothing more.
    reader: usize,
    /// So many of the bytes it has.
    read: usize,
    /// Readers up to this one get nothing more.
    closed: usize,
    /// Who waits for more.
    waker: Option<Waker>,
    /// Why the body ended before its end.
    failure: Option<ErrorKind>,
}

/// Holds open what a try sends of a body; when it is dropped, that ends there.
#[derive(Debug)]
pub(super) struct Upload {
    kept: Rc<RefCell<Kept>>,
    reader: usize,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Ok(mut kept) = self.kept.try_borrow_mut() else { return };
        kept.closed = kept.closed.max(self.reader);
        let waker = kept.waker.take();
        drop(kept);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("reader", &self.reader).finish_non_exhaustive()
    }
}

/// What a failed body of a client's is told as.
pub(super) fn kind_of(error: &BodyError) -> ErrorKind {
    match error {
        BodyError::Stalled(_) => ErrorKind::RequestTimeout,
        BodyError::TooLarge { .. } => ErrorKind::BodyTooLarge,
        BodyError::Other(_) => ErrorKind::BadRequest,
        _ => ErrorKind::ClientGone,
    }
}

struct Reader {
    kept: Rc<RefCell<Kept>>,
    number: usize,
    /// So many of the kept bytes it has.
    at: usize,
    has_trailers: bool,
}

impl Repeatable {
    /// The request as it goes out first, and what makes it again. None for one that begins an upgrade. Of its body
    /// something is kept only if `may_be_read_twice`; else it is made again as long as nobody read of it.
    pub fn of(request: Request, may_be_read_twice: bool) -> (Request, Option<Self>) {
        if request.headers().contains_key(header::UPGRADE) {
            return (request, None);
        }
        let (request, repeatable) = Self::whatever(request, may_be_read_twice);
        (request, Some(repeatable))
    }

    /// As [`Repeatable::of`], also of one that begins an upgrade.
    pub fn whatever(request: Request, may_be_read_twice: bool) -> (Request, Self) {
        let (parts, body) = request.into_parts();
        let source = match body {
            Body::Full(bytes) => Source::Whole(Body::Full(bytes)),
            empty if empty.is_end_stream() => Source::Whole(Body::Empty),
            inner => Source::Kept(Rc::new(RefCell::new(Kept {
                inner,
                bytes: Vec::new(),
                trailers: None,
                limit: if may_be_read_twice { MAX_KEPT } else { 0 },
                ended: false,
                lost: false,
                reader: 0,
                read: 0,
                closed: 0,
                waker: None,
                failure: None,
            }))),
        };
        let again = Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            fixed_host: parts.extensions.get::<FixedHost>().copied(),
            body: source,
        };
        let body = again.read().expect("nothing was read of it yet");
        (Request::from_parts(parts, body), again)
    }

    /// Whether all of its body can be sent again.
    pub fn is_there(&self) -> bool {
        match &self.body {
            Source::Whole(_) => true,
            Source::Kept(kept) => !kept.borrow().lost,
        }
    }

    /// What its last reader is held open by. None: its body is at hand.
    pub fn upload(&self) -> Option<Upload> {
        let Source::Kept(kept) = &self.body else { return None };
        let reader = kept.borrow().reader;
        Some(Upload { kept: Rc::clone(kept), reader })
    }

    /// Why its body ended before its end, if it did.
    pub fn failure(&self) -> Option<ErrorKind> {
        let Source::Kept(kept) = &self.body else { return None };
        kept.borrow().failure
    }

    /// The request once more. None: too much of its body is gone.
    pub fn again(&self) -> Option<Request> {
        let mut request = Request::new(self.read()?);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(fixed) = self.fixed_host {
            request.extensions_mut().insert(fixed);
        }
        Some(request)
    }

    #[cfg(test)]
    pub fn kept(&self) -> usize {
        match &self.body {
            Source::Whole(_) => 0,
            Source::Kept(kept) => kept.borrow().bytes.len(),
        }
    }

    #[cfg(test)]
    pub fn kept_after_its_end(self) -> usize {
        let Source::Kept(kept) = &self.body else { return 0 };
        let kept = kept.clone();
        drop(self);
        kept.borrow().bytes.len()
    }

    fn read(&self) -> Option<Body> {
        match &self.body {
            Source::Whole(Body::Full(bytes)) => Some(Body::Full(bytes.clone())),
            Source::Whole(_) => Some(Body::Empty),
            Source::Kept(kept) => {
                let mut state = kept.borrow_mut();
                if state.lost {
                    return None;
                }
                state.reader += 1;
                state.read = 0;
                Some(Body::stream(Reader {
                    kept: kept.clone(),
                    number: state.reader,
                    at: 0,
                    has_trailers: false,
                }))
            }
        }
    }
}

/// Nobody will ask again: what is still to be read need not be kept.
impl Drop for Repeatable {
    fn drop(&mut self) {
        if let Source::Kept(kept) = &self.body {
            let mut kept = kept.borrow_mut();
            kept.limit = 0;
            kept.free();
        }
    }
}

impl Kept {
    /// What nobody reads again is not kept.
    fn free(&mut self) {
        if self.limit == 0 && self.read >= self.bytes.len() {
            self.bytes = Vec::new();
        }
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            if self.lost || self.bytes.len() + data.len() > self.limit {
                self.lost = true;
                self.bytes = Vec::new();
            } else {
                self.bytes.extend_from_slice(data);
            }
        } else if let Some(fields) = frame.trailers_ref() {
            self.trailers = Some(fields.clone());
            self.ended = true;
        }
    }
}

impl http_body::Body for Reader {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let reader = &mut *self;
        let mut kept = reader.kept.borrow_mut();
        if kept.reader != reader.number || kept.closed >= reader.number {
            return Poll::Ready(Some(Err(BodyError::Other("another try reads this body"))));
        }
        if let Some(rest) = kept.bytes.get(reader.at..).filter(|rest| !rest.is_empty()) {
            let data = Bytes::copy_from_slice(rest);
            reader.at = kept.bytes.len();
            kept.read = reader.at;
            kept.free();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if kept.ended {
            let trailers = kept.trailers.clone().filter(|_| !reader.has_trailers);
            reader.has_trailers = true;
            return Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields))));
        }
        let Poll::Ready(frame) = Pin::new(&mut kept.inner).poll_frame(context) else {
            kept.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => kept.keep(frame),
            // The client's failure, which no try can mend.
            Some(Err(error)) => {
                kept.lost = true;
                kept.failure = Some(kind_of(error));
            }
            None => {}
        }
        kept.ended |= frame.is_none() || kept.inner.is_end_stream();
        if kept.ended {
            // Whoever waits for its end is told by this.
            kept.inner = Body::Empty;
        }
        reader.at = kept.bytes.len();
        kept.read = reader.at;
        reader.has_trailers |= matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let has_all = self.at >= kept.bytes.len() && (self.has_trailers || kept.trailers.is_none());
        has_all && (kept.ended || kept.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let again = kept.bytes.len().saturating_sub(self.at) as u64;
        let mut hint = if kept.ended { SizeHint::with_exact(0) } else { kept.inner.size_hint() };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + again);
        }
        hint.set_lower(hint.lower() + again);
        hint
    }
}

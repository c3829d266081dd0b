//! A request that can be sent again: its head, and as much of its body as was read so far, within a bound.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};
use http_body::{Body as _, Frame, SizeHint};

use crate::message::{Body, BodyError, FixedHost, Request};

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
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    bytes: usize,
    limit: usize,
    /// It was read to its end.
    ended: bool,
    /// What was read is gone, in part at least.
    lost: bool,
    /// The try that reads it; those before it get nothing more.
    reader: usize,
}

struct Reader {
    kept: Rc<RefCell<Kept>>,
    number: usize,
    /// The next frame among those that are kept.
    at: usize,
}

impl Repeatable {
    /// The request as it goes out first, and what makes it again. None for one that begins an upgrade.
    pub fn of(request: Request) -> (Request, Option<Self>) {
        if request.headers().contains_key(header::UPGRADE) {
            return (request, None);
        }
        let (parts, body) = request.into_parts();
        let source = match body {
            Body::Full(bytes) => Source::Whole(Body::Full(bytes)),
            empty if empty.is_end_stream() => Source::Whole(Body::Empty),
            inner => Source::Kept(Rc::new(RefCell::new(Kept {
                inner,
                frames: Vec::new(),
                trailers: None,
                bytes: 0,
                limit: MAX_KEPT,
                ended: false,
                lost: false,
                reader: 0,
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
        (Request::from_parts(parts, body), Some(again))
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
                Some(Body::stream(Reader { kept: kept.clone(), number: state.reader, at: 0 }))
            }
        }
    }
}

/// Nobody will ask again: what is still to be read need not be kept.
impl Drop for Repeatable {
    fn drop(&mut self) {
        if let Source::Kept(kept) = &self.body {
            kept.borrow_mut().limit = 0;
        }
    }
}

impl Kept {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len();
            self.frames.push(data.clone());
        } else if let Some(fields) = frame.trailers_ref() {
            self.trailers = Some(fields.clone());
        }
        if self.bytes > self.limit {
            self.lost = true;
            self.frames = Vec::new();
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
        if kept.reader != reader.number {
            return Poll::Ready(Some(Err(BodyError::Other("another try reads this body"))));
        }
        if let Some(data) = kept.frames.get(reader.at) {
            reader.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        if kept.ended {
            // Whoever reads is at the end: the next reader has its own copy.
            let trailers = (reader.at != usize::MAX).then(|| kept.trailers.clone()).flatten();
            reader.at = usize::MAX;
            return Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields))));
        }
        let Poll::Ready(frame) = Pin::new(&mut kept.inner).poll_frame(context) else { return Poll::Pending };
        match &frame {
            Some(Ok(frame)) => kept.keep(frame),
            // The client's failure, which no try can mend.
            Some(Err(_)) => kept.lost = true,
            None => {}
        }
        kept.ended = frame.is_none() || kept.inner.is_end_stream();
        let is_last = frame.as_ref().is_some_and(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
        reader.at = if is_last { usize::MAX } else { kept.frames.len() };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let has_all = self.at == usize::MAX || (self.at == kept.frames.len() && kept.trailers.is_none());
        has_all && (kept.ended || kept.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let again: usize = kept.frames.get(self.at..).unwrap_or_default().iter().map(Bytes::len).sum();
        let mut hint = if kept.ended { SizeHint::with_exact(0) } else { kept.inner.size_hint() };
        let again = again as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + again);
        }
        hint.set_lower(hint.lower() + again);
        hint
    }
}

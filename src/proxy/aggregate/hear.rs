//! The answer of one call: read whole within its bounds, and known to be JSON.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;

use super::Failure;
use crate::filters::Keep;
use crate::message::{Body, BodyError, ErrorKind, NotJson, ProxyError, RawJson, Response};

/// What all answers of one aggregation have together.
const MOST: usize = 1 << 20;
/// Of it each call has so much for itself: a large answer takes nothing from small ones.
const OWN: usize = 16 << 10;
/// What all aggregations of this process hold together: slow backends hold what they have sent.
const MOST_IN_ALL: usize = 64 << 20;
/// What is larger is read elsewhere, so that it holds up no other request.
const LARGE: usize = 64 << 10;
/// Of a failure's body so much is read, that its connection can be used again,
const WORTH_READING: u64 = 4 << 10;
/// if it is here by then: nobody waits for it.
const WORTH_WAITING: Duration = Duration::from_millis(20);

static HELD: AtomicUsize = AtomicUsize::new(0);

/// What one aggregation may still read. Given back when it is dropped.
pub(super) struct Room<'k> {
    /// Beyond what each call has for itself.
    left: Cell<usize>,
    held: Cell<usize>,
    keep: &'k dyn Keep,
}

/// A call that succeeded.
#[derive(Debug)]
pub(super) struct Heard {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Arc<RawJson>,
}

/// Why an answer cannot be used; for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the answers of all calls have more than {MOST} bytes together")]
    TooLarge,
    #[error("the answer is {0}")]
    NotJson(#[from] NotJson),
    #[error("the answer broke off")]
    Broken(#[source] BodyError),
    #[error("the call was answered with status {0}")]
    Status(StatusCode),
}

/// # Errors
/// It is a failure, or cannot be used.
pub(super) async fn hear(response: Response, room: &Room<'_>) -> Result<Heard, Failure> {
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        drain(body).await;
        let error = ProxyError::caused(ErrorKind::CallFailed, Unusable::Status(parts.status));
        let error = ProxyError { status: Some(mapped(parts.status)), ..error };
        return Err(Failure { error, status: Some(parts.status) });
    }
    let bytes = match read(body, room).await {
        Ok(bytes) => bytes,
        Err(error) => return Err(Failure { error, status: Some(parts.status) }),
    };
    let read = match bytes.len() {
        0 => RawJson::new(Bytes::from_static(b"null")),
        small if small <= LARGE => RawJson::new(bytes),
        _ => {
            let offload = room.keep.offload();
            let read = offload.run(move || {
                let json = RawJson::new(bytes)?;
                json.prepare();
                Ok(json)
            });
            read.await?
        }
    };
    match read {
        Ok(json) => Ok(Heard { status: parts.status, headers: parts.headers, body: Arc::new(json) }),
        Err(error) => {
            let error = ProxyError::caused(ErrorKind::InvalidResponse, Unusable::from(error));
            Err(Failure { error, status: Some(parts.status) })
        }
    }
}

/// What a client is told of a failure: what it can mend itself stays; all else is between us and the backend.
const fn mapped(status: StatusCode) -> StatusCode {
    match status.as_u16() {
        400 | 403 | 404 | 409 | 410 | 412 | 422 | 429 | 451 | 503 | 504 => status,
        _ => StatusCode::BAD_GATEWAY,
    }
}

async fn drain(mut body: Body) {
    let hint = http_body::Body::size_hint(&body);
    if hint.upper().is_none_or(|most| most > WORTH_READING) {
        return;
    }
    let reading = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(WORTH_WAITING, reading).await;
}

async fn read(mut body: Body, room: &Room<'_>) -> Result<Bytes, ProxyError> {
    let too_large = || ProxyError::caused(ErrorKind::InvalidResponse, Unusable::TooLarge);
    // What HEAD is answered with says the length of a body that does not come.
    let comes = !http_body::Body::is_end_stream(&body);
    if comes && http_body::Body::size_hint(&body).lower() > MOST as u64 {
        return Err(too_large());
    }
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    let mut share = Share { room, bytes: 0, taken: 0 };
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ProxyError::caused(ErrorKind::InvalidResponse, Unusable::Broken(error)))?;
        let Ok(data) = frame.into_data() else { continue };
        share.grow(data.len()).map_err(|kind| match kind {
            ErrorKind::InvalidResponse => too_large(),
            other => other.into(),
        })?;
        if first.is_empty() && rest.is_empty() && http_body::Body::is_end_stream(&body) {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    share.keep();
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// What one answer takes of the room, given back where it cannot be used.
struct Share<'r, 'k> {
    room: &'r Room<'k>,
    bytes: usize,
    /// Of what the calls have together.
    taken: usize,
}

impl Share<'_, '_> {
    fn grow(&mut self, bytes: usize) -> Result<(), ErrorKind> {
        let wanted = (self.bytes + bytes).saturating_sub(OWN) - self.bytes.saturating_sub(OWN);
        let left = self.room.left.get().checked_sub(wanted).ok_or(ErrorKind::InvalidResponse)?;
        self.room.left.set(left);
        self.room.held.set(self.room.held.get() + bytes);
        self.bytes += bytes;
        self.taken += wanted;
        let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > MOST_IN_ALL { Err(ErrorKind::Overloaded) } else { Ok(()) }
    }

    /// It stays with the room until all is over.
    fn keep(mut self) {
        (self.bytes, self.taken) = (0, 0);
    }
}

impl Drop for Share<'_, '_> {
    fn drop(&mut self) {
        self.room.left.set(self.room.left.get() + self.taken);
        self.room.held.set(self.room.held.get() - self.bytes);
        HELD.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<'k> Room<'k> {
    /// For so many calls.
    pub fn new(keep: &'k dyn Keep, calls: usize) -> Self {
        Self { left: Cell::new(MOST.saturating_sub(calls * OWN)), held: Cell::new(0), keep }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        HELD.fetch_sub(self.held.get(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::{Frame, SizeHint};
    use tokio::time::Instant;

    use super::super::tests::NoKeep;
    use super::*;

    /// A body that says a length, and of which nothing comes.
    struct Promised {
        length: u64,
        has_ended: bool,
    }

    impl http_body::Body for Promised {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            if self.has_ended { Poll::Ready(None) } else { Poll::Pending }
        }

        fn is_end_stream(&self) -> bool {
            self.has_ended
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.length)
        }
    }

    #[tokio::test]
    async fn what_a_head_is_answered_with_is_not_too_large() {
        let room = Room { left: Cell::new(0), held: Cell::new(0), keep: &NoKeep };
        let body = Body::stream(Promised { length: MOST as u64 + 1, has_ended: true });
        let heard = hear(Response::new(body), &room).await.expect("nothing comes");
        assert_eq!(heard.body.as_str(), "null");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_the_body_of_a_failure() {
        let started = Instant::now();
        let body = Body::stream(Promised { length: 10, has_ended: false });
        let drained = tokio::time::timeout(Duration::from_secs(5), drain(body)).await;
        assert!(drained.is_ok() && started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
}

//! Bodies that are held whole: what all of them take together is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;

use super::contract::Keep;
use crate::message::{Body, BodyError, ErrorKind, ProxyError};

/// Of the process: clients that send slowly hold what they have sent.
const MOST: u64 = 64 << 20;
/// Nobody is waited for longer where nothing else says how long: who drips would hold what is everybody's.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that are held.
#[derive(Debug, Default)]
pub struct Held(AtomicU64);

impl Held {
    /// Those of all filters.
    pub fn kept(keep: &dyn Keep) -> Arc<Self> {
        let held = keep.state("held", &mut || Arc::new(Self::default()));
        held.downcast().expect("only this is kept under this name")
    }

    /// # Errors
    /// All together would take more than they may.
    pub fn share(self: &Arc<Self>, bytes: usize) -> Result<Share, Unread> {
        let mut share = Share { held: Arc::clone(self), bytes: 0 };
        share.grow(bytes).map(|()| share)
    }

    /// Bytes that are counted from now on.
    ///
    /// # Errors
    /// All together would take more than they may.
    pub fn take(self: &Arc<Self>, bytes: Bytes) -> Result<Bytes, Unread> {
        let share = self.share(bytes.len())?;
        Ok(Bytes::from_owner(Counted { bytes, _share: share }))
    }
}

/// Why a body is not held.
#[derive(Debug)]
pub enum Unread {
    TooLarge,
    /// All together take as much as they may.
    Overloaded,
    Broken(BodyError),
}

/// A part of them, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    held: Arc<Held>,
    bytes: u64,
}

impl Share {
    /// # Errors
    /// All together would take more than they may; it is counted all the same until this is dropped.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Unread> {
        let bytes = bytes as u64;
        let before = self.held.0.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before + bytes > MOST { Err(Unread::Overloaded) } else { Ok(()) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that count as held until the last clone of them is gone.
struct Counted {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body and its trailers.
pub async fn read(mut body: Body, most: u64, held: &Arc<Held>) -> Result<(Bytes, Option<HeaderMap>), Unread> {
    let mut share = Share { held: Arc::clone(held), bytes: 0 };
    let (mut first, mut rest, mut trailers) = (Bytes::new(), BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(Unread::Broken)?.into_data() {
            Ok(data) => {
                if share.bytes + data.len() as u64 > most {
                    return Err(Unread::TooLarge);
                }
                share.grow(data.len())?;
                if first.is_empty() && rest.is_empty() && http_body::Body::is_end_stream(&body) {
                    first = data;
                } else {
                    // Copied: a small piece may hold the large buffer that it was read into.
                    rest.extend_from_slice(&data);
                }
            }
            Err(other) => trailers = other.into_trailers().ok(),
        }
    }
    let bytes = if rest.is_empty() { first } else { rest.freeze() };
    Ok((Bytes::from_owner(Counted { bytes, _share: share }), trailers))
}

/// What is told of a request's body. Whose fault it is, whoever reads the client's connection knows better.
pub fn of_request(unread: Unread) -> ProxyError {
    match unread {
        Unread::TooLarge => ErrorKind::BodyTooLarge.into(),
        Unread::Overloaded => ErrorKind::Overloaded.into(),
        Unread::Broken(error) => {
            let kind = match error {
                BodyError::TooLarge { .. } => ErrorKind::BodyTooLarge,
                BodyError::Stalled(_) => ErrorKind::RequestTimeout,
                _ => ErrorKind::BadRequest,
            };
            ProxyError::caused(kind, error)
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn chunks(chunks: &[&'static str]) -> Body {
        let frames: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok::<_, BodyError>(Frame::data(Bytes::from_static(chunk.as_bytes()))))
            .collect();
        Body::stream(StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn what_is_held_is_counted_as_long_as_it_is() {
        let held = Arc::new(Held::default());
        let (bytes, trailers) = read(chunks(&["12", "", "345"]), 5, &held).await.expect("it fits");
        assert_eq!((&bytes[..], trailers), (&b"12345"[..], None));
        let again = bytes.clone();
        drop(bytes);
        assert_eq!(held.0.load(Ordering::Relaxed), 5);
        drop(again);
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
        let error = read(chunks(&["123", "456"]), 5, &held).await.expect_err("too large");
        assert_eq!((of_request(error).kind, held.0.load(Ordering::Relaxed)), (ErrorKind::BodyTooLarge, 0));
    }

    #[tokio::test]
    async fn all_together_are_bounded() {
        let held = Arc::new(Held(AtomicU64::new(MOST - 4)));
        assert!(read(chunks(&["1234"]), 9, &held).await.is_ok());
        let error = read(chunks(&["123", "45"]), 9, &held).await.expect_err("too much");
        assert_eq!(
            (of_request(error).kind, held.0.load(Ordering::Relaxed)),
            (ErrorKind::Overloaded, MOST - 4)
        );
    }

    #[test]
    fn what_is_taken_is_counted_as_long_as_it_is_there() {
        let held = Arc::new(Held::default());
        let bytes = held.take(Bytes::from_static(b"12345")).expect("little");
        let (again, share) = (bytes.clone(), held.share(4).expect("little"));
        drop(bytes);
        assert_eq!(held.0.load(Ordering::Relaxed), 9);
        drop((again, share));
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
        let full = Arc::new(Held(AtomicU64::new(MOST - 4)));
        assert!(full.take(Bytes::from_static(b"12345")).is_err());
        assert_eq!(full.0.load(Ordering::Relaxed), MOST - 4);
    }
}

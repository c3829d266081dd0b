//! An answer's body while it is compressed.
//!
//! Invariants: what came from the backend is on its way as soon as nothing more is ready; one poll takes no more than
//! [`TURN`] bytes, then others have theirs; trailers come after the last of the data; the encoder is free as soon as the
//! last of it is out, or nobody reads any more.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};

use super::encoder::{Aim, CHUNK, Encoder};
use super::head::drop_digests;
use crate::message::{Body, BodyError};

/// Some hundred microseconds of work.
const TURN: usize = 16 << 10;

thread_local! {
    /// Where encoders write: what they gave is copied out of it in its own size.
    static OUTPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

#[derive(Debug)]
pub struct Compressing {
    inner: Body,
    encoder: Option<Encoder>,
    /// Came, and was not taken yet.
    input: Bytes,
    trailers: Option<HeaderMap>,
    stage: Stage,
    /// Something was taken that was not flushed.
    holds: bool,
    /// Everybody else had a turn since there was nothing more.
    waited: bool,
    /// Bytes taken in this turn.
    taken: usize,
    plain: Rc<Cell<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Reading,
    Flushing,
    Finishing,
    Over,
}

impl Compressing {
    /// `plain` counts the bytes that went in.
    pub fn new(inner: Body, encoder: Encoder, plain: Rc<Cell<u64>>) -> Self {
        Self {
            inner,
            encoder: Some(encoder),
            input: Bytes::new(),
            trailers: None,
            stage: Stage::Reading,
            holds: false,
            waited: false,
            taken: 0,
            plain,
        }
    }

    /// One step of the encoder; what it gave, and whether its aim is reached.
    fn encode(&mut self, aim: Aim) -> Result<(Option<Bytes>, bool), BodyError> {
        let Some(encoder) = &mut self.encoder else { return Ok((None, true)) };
        OUTPUT.with_borrow_mut(|output| {
            let input = &self.input[..self.input.len().min(TURN)];
            let step = encoder.step(input, aim, output)?;
            self.input.advance(step.taken);
            self.taken += step.taken;
            self.plain.set(self.plain.get() + step.taken as u64);
            let given = (step.given > 0).then(|| Bytes::copy_from_slice(&output[..step.given]));
            Ok((given, step.done))
        })
    }

    fn give_way(&mut self, context: &Context<'_>) {
        self.taken = 0;
        context.waker().wake_by_ref();
    }

    fn fail(&mut self, error: BodyError) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.stage = Stage::Over;
        (self.encoder, self.input, self.trailers) = (None, Bytes::new(), None);
        Some(Err(error))
    }

    /// Takes what is ready of the inner body.
    fn poll_inner(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Pending if !self.holds => {
                self.taken = 0;
                return Poll::Pending;
            }
            // Whoever hands it over here may be just about to: it is asked once more when all others were.
            Poll::Pending if !self.waited => {
                self.waited = true;
                self.give_way(context);
                return Poll::Pending;
            }
            Poll::Pending => self.stage = Stage::Flushing,
            Poll::Ready(None) => self.stage = Stage::Finishing,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
            Poll::Ready(Some(Ok(frame))) => {
                self.waited = false;
                match frame.into_data() {
                    Ok(data) => {
                        self.holds |= !data.is_empty();
                        self.input = data;
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.stage = Stage::Finishing;
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl HttpBody for Compressing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if self.taken >= TURN {
                self.give_way(context);
                return Poll::Pending;
            }
            let aim = match self.stage {
                Stage::Reading if self.input.is_empty() => match self.poll_inner(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => continue,
                    Poll::Ready(Err(error)) => return Poll::Ready(self.fail(error)),
                },
                Stage::Reading => Aim::Take,
                Stage::Flushing => Aim::Flush,
                Stage::Finishing => Aim::Finish,
                Stage::Over => {
                    let trailers = self.trailers.take().map(|mut fields| {
                        drop_digests(&mut fields);
                        Ok(Frame::trailers(fields))
                    });
                    return Poll::Ready(trailers);
                }
            };
            let (given, done) = match self.encode(aim) {
                Ok(step) => step,
                Err(error) => return Poll::Ready(self.fail(error)),
            };
            match aim {
                Aim::Flush if done => (self.stage, self.holds) = (Stage::Reading, false),
                Aim::Finish if done => (self.stage, self.encoder) = (Stage::Over, None),
                _ => {}
            }
            if let Some(given) = given {
                return Poll::Ready(Some(Ok(Frame::data(given))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stage == Stage::Over && self.trailers.is_none()
    }
}

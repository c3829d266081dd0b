//! The encoders: gzip, Brotli and Zstandard behind one step, with levels that a worker can afford, and those that are idle
//! kept on their thread for the next answer.
//!
//! Invariants: at most [`BUDGET`] bytes of encoders are in use on a thread; at most [`IDLE`] of a coding wait.

use std::cell::RefCell;

use brotli::enc::StandardAlloc;
use brotli::enc::encode::{BrotliEncoderOperation, BrotliEncoderParameter, BrotliEncoderStateStruct};
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::stream::raw::{CParameter, Encoder as Zstd, InBuffer, Operation, OutBuffer};

use crate::message::{BodyError, Coding};

/// So many bytes of output at once.
pub const CHUNK: usize = 16 << 10;
/// Answers beyond it go out as they are.
const BUDGET: usize = 64 << 20;
/// Encoders that wait for work, a coding.
const IDLE: usize = 4;
/// What is smaller is worth more effort: it is what people wait for, and it is over soon.
const SMALL: u64 = 64 << 10;

/// What is known of a body before it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub Option<u64>);

/// What one step is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// Takes more, and gives when there is enough.
    Take,
    /// Gives all that it has taken.
    Flush,
    /// The same, and the end.
    Finish,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub taken: usize,
    pub given: usize,
    /// Nothing is left to do for this aim.
    pub done: bool,
}

/// An encoder in use; it goes back to its thread when it is dropped.
pub struct Encoder {
    coding: Coding,
    /// None: gone back.
    state: Option<State>,
    weight: usize,
}

enum State {
    Gzip(Compress),
    Brotli(Box<BrotliEncoderStateStruct<StandardAlloc>>),
    Zstd(Zstd<'static>),
}

/// What a thread keeps.
#[derive(Default)]
struct Here {
    in_use: usize,
    gzip: Vec<Compress>,
    zstd: Vec<Zstd<'static>>,
}

thread_local! {
    static HERE: RefCell<Here> = RefCell::default();
}

impl Encoder {
    /// None: as many are in use as may be, or there is no memory for one.
    pub fn new(coding: Coding, size: Size) -> Option<Self> {
        let weight = weight(coding, size);
        HERE.with_borrow_mut(|here| {
            if here.in_use + weight > BUDGET {
                return None;
            }
            let state = match coding {
                Coding::Gzip => State::Gzip(gzip(here.gzip.pop(), size)),
                Coding::Brotli => State::Brotli(brotli(size)),
                Coding::Zstd => State::Zstd(zstd(here.zstd.pop(), size)?),
            };
            here.in_use += weight;
            Some(Self { coding, state: Some(state), weight })
        })
    }

    /// Takes some of `input`, and gives something into `output` where there is something to give.
    ///
    /// # Errors
    /// The codec fails, which it has no reason to.
    pub fn step(&mut self, input: &[u8], aim: Aim, output: &mut [u8]) -> Result<Step, BodyError> {
        const FAILED: BodyError = BodyError::Other("the answer could not be compressed");
        match &mut self.state {
            Some(State::Gzip(state)) => {
                let (taken, given) = (state.total_in(), state.total_out());
                let flush = match aim {
                    Aim::Take => FlushCompress::None,
                    Aim::Flush => FlushCompress::Sync,
                    Aim::Finish => FlushCompress::Finish,
                };
                let status = state.compress(input, output, flush).map_err(|_| FAILED)?;
                let taken = usize::try_from(state.total_in() - taken).map_err(|_| FAILED)?;
                let given = usize::try_from(state.total_out() - given).map_err(|_| FAILED)?;
                let done = match aim {
                    Aim::Take => taken == input.len(),
                    Aim::Flush => given < output.len(),
                    Aim::Finish => status == Status::StreamEnd,
                };
                Ok(Step { taken, given, done })
            }
            Some(State::Brotli(state)) => {
                let op = match aim {
                    Aim::Take => BrotliEncoderOperation::BROTLI_OPERATION_PROCESS,
                    Aim::Flush => BrotliEncoderOperation::BROTLI_OPERATION_FLUSH,
                    Aim::Finish => BrotliEncoderOperation::BROTLI_OPERATION_FINISH,
                };
                let (mut left, mut taken) = (input.len(), 0);
                let (mut room, mut given) = (output.len(), 0);
                let fine = state.compress_stream(
                    op,
                    &mut left,
                    input,
                    &mut taken,
                    &mut room,
                    output,
                    &mut given,
                    &mut None,
                    &mut |_, _, _, _| (),
                );
                if !fine {
                    return Err(FAILED);
                }
                let done = match aim {
                    Aim::Take => left == 0,
                    Aim::Flush => !state.has_more_output(),
                    Aim::Finish => state.is_finished(),
                };
                Ok(Step { taken, given, done })
            }
            Some(State::Zstd(state)) => {
                let mut input = InBuffer::around(input);
                let mut output = OutBuffer::around(output);
                let left = match aim {
                    Aim::Take => state.run(&mut input, &mut output).map(|_| 0),
                    Aim::Flush => state.flush(&mut output),
                    Aim::Finish => state.finish(&mut output, true),
                };
                let left = left.map_err(|_| FAILED)?;
                let done = if aim == Aim::Take { input.pos() == input.src.len() } else { left == 0 };
                Ok(Step { taken: input.pos(), given: output.pos(), done })
            }
            None => Err(FAILED),
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        let state = self.state.take();
        // Without the thread nothing is kept.
        let _ = HERE.try_with(|here| {
            let mut here = here.borrow_mut();
            here.in_use = here.in_use.saturating_sub(self.weight);
            match state {
                Some(State::Gzip(state)) if here.gzip.len() < IDLE => here.gzip.push(state),
                Some(State::Zstd(state)) if here.zstd.len() < IDLE => here.zstd.push(state),
                _ => {}
            }
        });
    }
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("coding", &self.coding).finish_non_exhaustive()
    }
}

impl Size {
    fn is_small(self) -> bool {
        self.0.is_some_and(|bytes| bytes <= SMALL)
    }
}

/// Bytes of memory that an encoder has, by measurement.
fn weight(coding: Coding, size: Size) -> usize {
    match coding {
        Coding::Gzip => 300 << 10,
        Coding::Brotli if size.is_small() => 1 << 20,
        Coding::Brotli => 2 << 20,
        Coding::Zstd if size.is_small() => 400 << 10,
        Coding::Zstd => 1 << 20,
    }
}

fn gzip(idle: Option<Compress>, size: Size) -> Compress {
    let level = Compression::new(if size.is_small() { 6 } else { 4 });
    if let Some(mut known) = idle {
        known.reset();
        if known.set_level(level).is_ok() {
            return known;
        }
    }
    Compress::new_gzip(level, 15)
}

fn brotli(size: Size) -> Box<BrotliEncoderStateStruct<StandardAlloc>> {
    let mut state = Box::new(BrotliEncoderStateStruct::new(StandardAlloc::default()));
    let (quality, window) = if size.is_small() { (5, 16) } else { (4, 18) };
    state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_QUALITY, quality);
    state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_LGWIN, window);
    if let Some(hint) = size.0.and_then(|bytes| u32::try_from(bytes).ok()) {
        state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_SIZE_HINT, hint);
    }
    state
}

fn zstd(idle: Option<Zstd<'static>>, size: Size) -> Option<Zstd<'static>> {
    let mut state = match idle {
        Some(known) => known,
        None => Zstd::new(3).ok()?,
    };
    state.reinit().ok()?;
    state.set_parameter(CParameter::CompressionLevel(if size.is_small() { 3 } else { 2 })).ok()?;
    // Readers need as much memory as the window is large.
    state.set_parameter(CParameter::WindowLog(18)).ok()?;
    state.set_pledged_src_size(size.0).ok()?;
    Some(state)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    fn decoded(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match coding {
            Coding::Gzip => drop(flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain)),
            Coding::Brotli => drop(brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain)),
            Coding::Zstd => {
                drop(zstd::stream::read::Decoder::new(bytes).expect("starts").read_to_end(&mut plain));
            }
        }
        plain
    }

    /// Everything that an aim gives, through a small output.
    fn run(encoder: &mut Encoder, mut input: &[u8], aim: Aim) -> Vec<u8> {
        let (mut all, mut output) = (Vec::new(), [0; 100]);
        loop {
            let step = encoder.step(input, aim, &mut output).expect("no reason to fail");
            all.extend_from_slice(&output[..step.given]);
            input = &input[step.taken..];
            if step.done {
                return all;
            }
        }
    }

    fn words(count: u32) -> Vec<u8> {
        (0..count).flat_map(|n| format!("word {} ", n * n % 1009).into_bytes()).collect()
    }

    #[test]
    fn what_goes_in_comes_out_again_and_idle_encoders_know_nothing_of_it() {
        for coding in ALL {
            for size in [10, 1_000, 40_000] {
                let plain = words(size);
                for known in [Some(plain.len() as u64), None] {
                    let mut encoder = Encoder::new(coding, Size(known)).expect("there is room");
                    let mut bytes = run(&mut encoder, &plain, Aim::Take);
                    bytes.extend(run(&mut encoder, &[], Aim::Finish));
                    assert!(decoded(coding, &bytes) == plain, "{coding:?} {size} {known:?}");
                    assert!(bytes.len() < plain.len(), "the control: it is compressed");
                    // Left in the middle.
                    let mut left = Encoder::new(coding, Size(None)).expect("there is room");
                    run(&mut left, b"something else", Aim::Take);
                }
            }
        }
    }

    #[test]
    fn what_is_flushed_can_be_read_at_once() {
        for coding in ALL {
            let mut encoder = Encoder::new(coding, Size(None)).expect("there is room");
            let (mut bytes, mut plain) = (Vec::new(), Vec::new());
            for n in 0..5 {
                let event = format!("data: {n}\n\n");
                plain.extend_from_slice(event.as_bytes());
                bytes.extend(run(&mut encoder, event.as_bytes(), Aim::Take));
                assert!(decoded(coding, &bytes) != plain, "the control: {coding:?} holds it back");
                bytes.extend(run(&mut encoder, &[], Aim::Flush));
                assert_eq!(decoded(coding, &bytes), plain, "{coding:?}");
            }
        }
    }

    #[test]
    fn a_thread_has_a_bound() {
        let mut held = Vec::new();
        while let Some(encoder) = Encoder::new(Coding::Gzip, Size(None)) {
            held.push(encoder);
            assert!(held.len() < 1_000, "no bound");
        }
        assert_eq!(held.len(), BUDGET / weight(Coding::Gzip, Size(None)));
        held.pop();
        assert!(Encoder::new(Coding::Gzip, Size(None)).is_some());
        drop(held);
        assert_eq!(HERE.with_borrow(|here| (here.in_use, here.gzip.len())), (0, IDLE));
    }
}

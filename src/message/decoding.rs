//! Bodies taken out of their content coding, for whoever must read them: bounded in size and in how much they grow.
//!
//! Invariants: memory is bounded by what the caller allows, and a window of 16 MiB at most; what is read here is all that
//! is there: one member, one frame, one stream, and nothing behind it that another reader would take for more.

use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::Coding;

/// No honest text shrinks more.
const MAX_RATIO: usize = 100;
/// So small that its ratio harms nobody.
const HARMLESS: usize = 64 << 10;
const CHUNK: usize = 16 << 10;
/// RFC 9659 section 3: what every reader of this coding can take.
const ZSTD_WINDOW: u32 = 23;

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    #[error("the body is larger than {0} bytes without its content coding")]
    TooLarge(usize),
    #[error("the body grows more than {MAX_RATIO} times")]
    Bomb,
    #[error("the body is not in its content coding, or more than once")]
    Broken,
}

impl Coding {
    /// What `packed` holds, at most `most` bytes.
    ///
    /// # Errors
    /// It is larger, grows too much, or is not whole and alone in this coding.
    pub fn decode(self, packed: &[u8], most: usize) -> Result<Vec<u8>, Undecodable> {
        let plain = Plain { bytes: Vec::new(), packed: packed.len(), most };
        match self {
            Self::Gzip => gunzip(packed, plain),
            Self::Brotli => unbrotli(packed, plain),
            Self::Zstd => unzstd(packed, plain),
        }
    }
}

/// What came out so far.
struct Plain {
    bytes: Vec<u8>,
    packed: usize,
    most: usize,
}

impl Plain {
    fn add(&mut self, bytes: &[u8]) -> Result<(), Undecodable> {
        let size = self.bytes.len() + bytes.len();
        if size > self.most {
            return Err(Undecodable::TooLarge(self.most));
        }
        if size > HARMLESS && size / MAX_RATIO > self.packed {
            return Err(Undecodable::Bomb);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

fn gunzip(packed: &[u8], mut plain: Plain) -> Result<Vec<u8>, Undecodable> {
    let (mut state, mut output) = (Decompress::new_gzip(15), vec![0; CHUNK]);
    loop {
        let at = |total: u64| usize::try_from(total).unwrap_or(usize::MAX);
        let (taken, given) = (at(state.total_in()), state.total_out());
        let rest = packed.get(taken..).unwrap_or_default();
        let status = state.decompress(rest, &mut output, FlushDecompress::None);
        let status = status.map_err(|_| Undecodable::Broken)?;
        let given = at(state.total_out() - given);
        plain.add(&output[..given])?;
        let is_whole = at(state.total_in()) == packed.len();
        match status {
            Status::StreamEnd if is_whole => return Ok(plain.bytes),
            Status::StreamEnd => return Err(Undecodable::Broken),
            // It wants what is not there.
            _ if given == 0 && at(state.total_in()) == taken => return Err(Undecodable::Broken),
            _ => {}
        }
    }
}

fn unbrotli(packed: &[u8], mut plain: Plain) -> Result<Vec<u8>, Undecodable> {
    let [one, two, three] = [(); 3].map(|()| StandardAlloc::default());
    // Strict: windows as RFC 7932 has them.
    let (mut state, mut output) = (BrotliState::new_strict(one, two, three), vec![0; CHUNK]);
    let (mut left, mut taken, mut total) = (packed.len(), 0, 0);
    loop {
        let (mut room, mut given) = (output.len(), 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut taken,
            packed,
            &mut room,
            &mut given,
            &mut output,
            &mut total,
            &mut state,
        );
        plain.add(&output[..given])?;
        match result {
            BrotliResult::ResultSuccess if left == 0 => return Ok(plain.bytes),
            BrotliResult::NeedsMoreOutput => {}
            _ => return Err(Undecodable::Broken),
        }
    }
}

fn unzstd(packed: &[u8], mut plain: Plain) -> Result<Vec<u8>, Undecodable> {
    let broken = |_| Undecodable::Broken;
    let mut state = Decoder::new().map_err(broken)?;
    state.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW)).map_err(broken)?;
    let mut input = InBuffer::around(packed);
    let mut output = vec![0; CHUNK];
    loop {
        let taken = input.pos();
        let mut room = OutBuffer::around(&mut output[..]);
        let left = state.run(&mut input, &mut room).map_err(broken)?;
        let given = room.pos();
        plain.add(&output[..given])?;
        if left == 0 {
            return if input.pos() == packed.len() { Ok(plain.bytes) } else { Err(Undecodable::Broken) };
        }
        if given == 0 && input.pos() == taken {
            return Err(Undecodable::Broken);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Brotli, Coding::Zstd];

    fn packed(coding: Coding, plain: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                writer.write_all(plain).expect("memory takes it");
                writer.finish().expect("memory takes it")
            }
            Coding::Brotli => {
                let mut packed = Vec::new();
                let mut writer = brotli::CompressorWriter::new(&mut packed, 4096, 5, 22);
                writer.write_all(plain).expect("memory takes it");
                drop(writer);
                packed
            }
            Coding::Zstd => zstd::stream::encode_all(plain, 3).expect("memory takes it"),
        }
    }

    fn text(lines: u32) -> Vec<u8> {
        (0..lines)
            .flat_map(|n| format!("line {} {}\n", n, n.wrapping_mul(2_654_435_761)).into_bytes())
            .collect()
    }

    #[test]
    fn what_was_packed_comes_out() {
        for coding in ALL {
            for plain in [Vec::new(), b"{}".to_vec(), text(20_000)] {
                assert!(coding.decode(&packed(coding, &plain), plain.len()) == Ok(plain), "{coding:?}");
            }
        }
    }

    #[test]
    fn what_is_larger_is_refused_where_it_grows_over_the_bound() {
        for coding in ALL {
            let plain = text(1_000);
            let most = plain.len() - 1;
            assert_eq!(coding.decode(&packed(coding, &plain), most), Err(Undecodable::TooLarge(most)));
        }
    }

    #[test]
    fn bombs_do_not_go_off() {
        for coding in ALL {
            let bomb = packed(coding, &vec![0; 64 << 20]);
            assert!(bomb.len() < 100_000, "the control: {coding:?} {}", bomb.len());
            assert_eq!(coding.decode(&bomb, 1 << 30), Err(Undecodable::Bomb), "{coding:?}");
            // So small that it may grow as it likes.
            assert!(coding.decode(&packed(coding, &vec![0; HARMLESS]), 1 << 20).is_ok());
        }
    }

    #[test]
    fn what_is_cut_or_continued_is_no_body() {
        for coding in ALL {
            let whole = packed(coding, &text(100));
            for end in [0, 1, whole.len() / 2, whole.len() - 1] {
                assert_eq!(
                    coding.decode(&whole[..end], 1 << 20),
                    Err(Undecodable::Broken),
                    "{coding:?} {end}"
                );
            }
            let twice = [whole.clone(), whole.clone()].concat();
            assert_eq!(coding.decode(&twice, 1 << 20), Err(Undecodable::Broken), "{coding:?}");
            let more = [whole.as_slice(), b"x"].concat();
            assert_eq!(coding.decode(&more, 1 << 20), Err(Undecodable::Broken), "{coding:?}");
            assert_eq!(coding.decode(b"{\"a\":1}", 1 << 20), Err(Undecodable::Broken), "{coding:?}");
        }
    }

    #[test]
    fn no_window_is_larger_than_every_reader_can_take() {
        let mut writer = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("starts");
        writer.window_log(27).expect("known");
        writer.write_all(&text(100)).expect("memory takes it");
        writer.flush().expect("memory takes it");
        let packed = writer.finish().expect("memory takes it");
        assert_eq!(Coding::Zstd.decode(&packed, 1 << 20), Err(Undecodable::Broken));
    }
}

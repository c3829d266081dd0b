//! The body of an answer, taken off what was read.

use bytes::BytesMut;

use super::chunks::{Chunks, Malformed, Piece};
use super::head::Framing;

pub use super::chunks::Piece as Taken;

/// What is still to come of an answer's body.
#[derive(Debug)]
pub enum Incoming {
    /// So many bytes.
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Incoming {
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Nothing => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether all has been taken; a body that ends with its connection never has.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_over(),
            Self::UntilClose => false,
        }
    }

    /// Whether the end of the connection is the end of the body.
    pub fn may_end_here(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunked(chunks) if chunks.is_over() => Some(0),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }

    /// # Errors
    /// What was read is no such body.
    pub fn take(&mut self, read: &mut BytesMut) -> Result<Taken, Malformed> {
        match self {
            Self::Length(0) => Ok(Piece::End),
            Self::Chunked(chunks) => chunks.take(read),
            _ if read.is_empty() => Ok(Piece::More),
            Self::UntilClose => Ok(Piece::Data(read.split().freeze())),
            Self::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                *left -= length as u64;
                Ok(Piece::Data(read.split_to(length).freeze()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_body_ends_with_its_length_and_what_follows_stays() {
        let mut read = BytesMut::from("abcdef");
        let mut body = Incoming::new(Framing::Length(4));
        assert_eq!(body.take(&mut read), Ok(Piece::Data(Bytes::from_static(b"abcd"))));
        assert!(body.is_over());
        assert_eq!((body.take(&mut read), &read[..]), (Ok(Piece::End), &b"ef"[..]));
        let mut more = Incoming::new(Framing::Length(9));
        assert_eq!(more.take(&mut read), Ok(Piece::Data(Bytes::from_static(b"ef"))));
        assert_eq!(
            (more.take(&mut read), more.left(), more.may_end_here()),
            (Ok(Piece::More), Some(7), false)
        );
    }

    #[test]
    fn a_body_without_a_length_goes_on_until_the_connection_ends() {
        let (mut read, mut body) = (BytesMut::from("ab"), Incoming::new(Framing::UntilClose));
        assert_eq!(body.take(&mut read), Ok(Piece::Data(Bytes::from_static(b"ab"))));
        assert_eq!((body.take(&mut read), body.is_over(), body.left()), (Ok(Piece::More), false, None));
        assert!(body.may_end_here());
    }
}

//! Content codings (RFC 9110 section 8.4.1): which of them a client takes, and what became of an answer's body.

use std::cell::Cell;
use std::rc::Rc;

/// A coding that bodies can be put into and taken out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Coding {
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    /// As header fields say it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// By the name in a header field, in any case (RFC 9110 section 8.4.1).
    pub fn of(name: &str) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match () {
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("br") => Some(Self::Brotli),
            () if is("zstd") => Some(Self::Zstd),
            () => None,
        }
    }
}

/// What a request says of the codings of its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wished {
    /// The one that suits both sides best; none: leave the answer as it is.
    pub coding: Option<Coding>,
    /// An answer without any coding is not wanted.
    pub not_plain: bool,
    /// Only the head is asked for.
    pub head_only: bool,
    /// Sent on behalf of another site, with what the browser knows of this one.
    pub foreign: bool,
}

/// An answer that was compressed, while it is.
#[derive(Clone, Debug)]
pub struct Compressed {
    pub coding: Coding,
    /// Bytes before.
    pub plain: Rc<Cell<u64>>,
}

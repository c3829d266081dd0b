//! What follows an answer that made something else of its connection.

use std::fmt::Debug;

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes in both directions: what is behind a 101, or behind an answer to CONNECT.
pub trait Duplex: AsyncRead + AsyncWrite + Debug + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Unpin> Duplex for T {}

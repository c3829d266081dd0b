//! HTTP/1.1 as a client has it (RFC 9112), on bytes at hand: the head of a request written, the head of an answer read,
//! bodies framed and unframed. Who moves the bytes is in `upstream`.
//!
//! Invariant: what can be read in two ways is refused; where an answer ends follows from its head and its own framing alone.

mod answer;
mod chunks;
mod head;
mod request;

pub use answer::{Incoming, Taken};
pub use chunks::Malformed;
pub use head::{Framing, Head, HeadError, Heads, MAX_FIELDS, MAX_HEAD};
pub use request::{Outgoing, WrongLength, frame, write_head};

//! What both ends of HTTP/2 share: bodies out of streams and into them, tunnels, and the question whether the peer lives.
//! The connections themselves are of `proxy` (clients) and `upstream` (backends).

mod keep_alive;
mod received;
mod sending;
mod tunnel;

#[cfg(test)]
mod tests;

pub use keep_alive::KeepAlive;
pub use received::{Received, content_length};
pub use sending::{Sending, Unsent, reason_of};
pub use tunnel::Tunnel;

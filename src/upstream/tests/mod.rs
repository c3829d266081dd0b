//! The pools against scripted backends on loopback: what they do to us, and what a client of ours sees of it.

mod answers;
mod balancing;
mod bounding;
mod bounding_http2;
mod bounding_tls;
mod bounding_turns;
mod calls;
mod failing;
mod hashing;
mod held_streams;
mod http2;
mod keeping;
mod limiting;
mod multiplexing;
mod retrying;
mod scripted;
mod sending;
mod shares;
mod spreading;

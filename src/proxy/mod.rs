//! The way of a request: listener → TLS → connection → service → action → answer. Newcomers start in `service`.

mod plane;

pub use plane::{Addresses, DataPlane, Limits, Settings};

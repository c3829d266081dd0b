//! The life of the process: what readiness waits for, and drain.

mod drain;
mod readiness;

pub use drain::{Drain, DrainSignal, Phase};
pub use readiness::{Guard, Readiness};

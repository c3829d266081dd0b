//! The life of the process: what readiness waits for, drain, and the signals that begin it.

mod drain;
mod readiness;
mod signals;

pub use drain::{Drain, DrainSignal, Phase};
pub use readiness::{Guard, Readiness};
pub use signals::{Terminated, terminated};

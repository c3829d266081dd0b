//! Backends at run time: endpoints, pools, connecting, balancing. Knows nothing of routes.

mod answer;
mod backend;
mod balance;
mod connect;
mod endpoint;
mod guard;
mod pool;
mod replay;
#[cfg(test)]
mod tests;
mod wire;

pub use backend::Backend;
pub use guard::{Guard, Loopback};
pub use pool::{Answer, Pools, SendLimits};

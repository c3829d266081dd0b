//! Backends at run time: endpoints, pools, connecting, balancing. Knows nothing of routes.

mod backend;
mod guard;
mod pool;

pub use backend::Backend;
pub use guard::{Guard, Loopback};
pub use pool::{Answer, Pools, SendLimits};

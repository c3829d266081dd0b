//! Backends at run time: endpoints, pools, connecting, balancing. Knows nothing of routes.

mod backend;
mod pool;

pub use backend::Backend;
pub use pool::{Pools, SendLimits};

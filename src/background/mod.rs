//! What is fetched and refreshed beside the requests, on the control runtime.

mod ask;
mod check;
mod client;
mod dns;
mod fetch;
mod grpc_health;
mod store;

pub use check::keep_checking;
pub use client::Ways;
pub use dns::{Names, Resolver, ResolverSettings};
pub use fetch::keep_fetching;
pub use store::{StoreUrl, keep_counting};

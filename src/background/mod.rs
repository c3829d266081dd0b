//! What is fetched and refreshed beside the requests, on the control runtime.

mod ask;
mod client;
mod dns;
mod fetch;
mod store;

pub use client::Ways;
pub use dns::Names;
pub use fetch::keep_fetching;
pub use store::{StoreUrl, keep_counting};

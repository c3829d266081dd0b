//! What is fetched and refreshed beside the requests, on the control runtime.

mod ask;
mod client;
mod dns;
mod fetch;

pub use dns::Names;
pub use fetch::keep_fetching;

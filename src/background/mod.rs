//! What is fetched and refreshed beside the requests, on the control runtime.

mod dns;

pub use dns::Names;

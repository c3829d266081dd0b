//! Backends at run time: endpoints, pools, connecting, balancing. Knows nothing of routes.

mod answer;
mod backend;
mod balance;
mod budget;
mod carrier;
mod checked;
mod connect;
mod connect_http2;
mod credentials;
mod dial;
mod endpoint;
mod eyeballs;
mod guard;
mod head_lines;
mod health;
mod interim;
mod limits;
mod outgoing;
mod passage;
mod pool;
mod proxy_header;
mod repeatable;
mod replay;
mod retry;
mod socket;
#[cfg(test)]
mod tests;
mod throttle;
mod tls;
mod trust;
mod wire;
mod wire_http2;

pub use backend::Backend;
pub use checked::{Checked, Term};
pub use credentials::Tokens;
pub use dial::Spoken;
pub use endpoint::Place;
pub use guard::{Guard, Loopback, Own};
pub use head_lines::{HeadLines, SharedLines};
pub use limits::{Call, Pace, SendLimits, Uploading};
pub use passage::Passage;
pub use pool::{Answer, Pools, Tries};
pub use proxy_header::ClientConnection;
pub use throttle::{Bucket, Counted, Together};
pub use tls::certified_key;
pub use trust::system_authorities;

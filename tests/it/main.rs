//! The one integration-test binary; each room of tests is a module.

mod architecture;
mod proxy_requests;
mod proxy_rig;
mod proxy_streams;
mod proxy_tls;

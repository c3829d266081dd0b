//! The one integration-test binary; each room of tests is a module.

mod architecture;
mod authentication;
mod authorization;
mod commands;
mod compile_golden;
mod compile_laws;
mod documentation;
mod examples;
mod file_mode;
mod hardening;
mod harness;
mod long_lived;
mod lookup;
mod mutations;
mod out_of_descriptors;
mod policies;
mod proxy_change;
mod proxy_filters;
mod proxy_hostile;
mod proxy_limits;
mod proxy_requests;
mod proxy_rig;
mod proxy_streams;
mod proxy_tls;
mod raw_requests;
mod tokens;

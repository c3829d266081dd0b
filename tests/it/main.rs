//! The one integration-test binary; each room of tests is a module.

mod architecture;

//! The table of all members of `policy`. A new member is one new file and one row here.

use super::contract::{Row, setting};
use super::timeouts;

/// Rows of one ring work in the order in which they stand here.
pub static REGISTRY: &[Row] = &[setting::<timeouts::Timeouts>()];

//! The table of all members of `policy`. A new member is one new file and one row here.

use super::contract::{Row, filter, setting};
use super::{authorization, request, response, timeouts};

/// Rows of one ring work in the order in which they stand here.
pub static REGISTRY: &[Row] = &[
    filter::<authorization::Authorization>(),
    filter::<request::Request>(),
    filter::<response::Response>(),
    setting::<timeouts::Timeouts>(),
];

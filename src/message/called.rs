//! What a call of an aggregation came to, as expressions read it by the call's name.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};

use crate::message::{FailureCause, RawJson};

/// A call that is over, or was never made.
#[derive(Clone, Debug, Default)]
pub struct Called {
    /// None: there was no answer.
    pub status: Option<StatusCode>,
    pub headers: HeaderMap,
    /// What stands for it in the answer. None: nothing does.
    pub body: Option<Arc<RawJson>>,
    /// Why it failed. None: it did not, or was not made.
    pub failure: Option<&'static str>,
    /// What lies behind it, where the answer does without the call.
    pub cause: Option<FailureCause>,
}

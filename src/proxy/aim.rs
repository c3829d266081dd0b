//! Which endpoint a request wants: by the key of a backend that hashes.

use std::hash::{Hash as _, Hasher as _};

use crate::expression::Subject;
use crate::filters::Hashed;
use crate::message::Exchange;
use crate::upstream::{Aim, Backend, Stable};

/// What `exchange` wants of `backend`. A key that cannot be told, or is none, wants nothing.
pub fn of(backend: &Backend, exchange: &Exchange) -> Aim {
    let Some(key) = &backend.plan.traffic.key else { return Aim::Anywhere };
    let value = key.evaluate(&Subject { exchange });
    let Some(value) = value.as_ref().ok().and_then(Hashed::new) else { return Aim::Anywhere };
    let mut hash = Stable::default();
    value.hash(&mut hash);
    Aim::Key(hash.finish())
}

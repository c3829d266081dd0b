//! Filters that are linked once need nothing kept.

use std::any::Any;
use std::sync::Arc;

use portcullis::filters::Keep;

pub struct Forgetful;

impl Keep for Forgetful {
    fn state(
        &self,
        _: &str,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        make()
    }
}

//! The tokens that backends are shown: what `background/` fetches, as `upstream/` asks for it.

use std::sync::Arc;

use http::HeaderValue;

use crate::filters::{ClientToken, Fetched};
use crate::upstream::Tokens;

#[derive(Debug)]
pub struct Bearer(pub Arc<Fetched>);

impl Tokens for Bearer {
    fn now(&self) -> Option<HeaderValue> {
        self.0.value::<ClientToken>()?.shown().cloned()
    }

    /// Another is asked for, if this is still the newest and nobody asked a moment ago. Nobody waits for it.
    fn refused(&self, token: &HeaderValue) {
        let is_newest = self.0.value::<ClientToken>().is_some_and(|known| known.shown() == Some(token));
        if is_newest {
            drop(self.0.ask());
        }
    }
}

//! The tokens that backends are shown: what `background/` fetches, as `upstream/` asks for it.
//!
//! Invariant: a token is shown for the backend for which it was asked alone, and for the same client at the same place.

use std::pin::Pin;
use std::sync::Arc;

use http::HeaderValue;

use crate::filters::{ClientToken, Fetched, TokenHolder};
use crate::route_map::TokenPlan;
use crate::upstream::Tokens;

#[derive(Debug)]
pub struct Bearer {
    fetched: Arc<Fetched>,
    holder: TokenHolder,
    /// Of the same client, before its secret was changed: good until the first by the new one is there.
    before: Option<Arc<ClientToken>>,
}

impl Bearer {
    /// `before`: what the same backend was shown until now. Not what any other is shown: who does not know a client's secret
    /// must not get its tokens by naming it.
    pub fn new(plan: &TokenPlan, fetched: Arc<Fetched>, before: Option<&Self>) -> Self {
        let before = before.filter(|before| before.holder == plan.holder).and_then(Self::newest);
        Self { fetched, holder: plan.holder, before }
    }

    fn newest(&self) -> Option<Arc<ClientToken>> {
        self.fetched.value().or_else(|| self.before.clone())
    }
}

impl Tokens for Bearer {
    fn now(&self) -> Option<HeaderValue> {
        self.newest()?.shown().cloned()
    }

    fn first(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        Some(Box::pin(self.fetched.first_try()?))
    }

    /// Another is asked for, if this is still the newest and nobody asked a moment ago. Nobody waits for it.
    fn refused(&self, token: &HeaderValue) {
        if self.now().as_ref() == Some(token) {
            drop(self.fetched.ask());
        }
    }
}

//! How a request to a backend whose connections are bounded comes to one: what is free, the right to open one, one that
//! is closed for it, or a wait in the [`Line`](super::line). Requests to other backends do not come here.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::time::Instant;

use super::aim::Aim;
use super::balance::BackendPool;
use super::bounds::Permit;
use super::carrier::Carrier;
use super::endpoint::{EndpointPool, Wish};
use super::eyeballs::Begin;
use super::line::{Line, Wants};
use super::proxy_header::ClientConnection;
use super::retry::Tries;
use super::throttle::{self, Charges};
use crate::message::{ErrorKind, ProxyError};
use crate::upstream::Backend;

/// Which endpoints a request may be sent to.
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    pub tried: &'a [SocketAddr],
    /// Where it was sent already, as far as nobody else counts that.
    pub refused: &'a [SocketAddr],
    pub tries: Option<&'a Tries<'a>>,
    pub aim: Aim,
    pub charges: &'a Charges,
}

/// What carries a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// What is there already, or a new one.
    Any,
    /// A connection that it opens; a shared one if no other can be had.
    New,
    /// One that nobody else has or had.
    Alone,
}

pub(super) struct Ask<'a> {
    pub manner: Manner,
    pub wish: Wish,
    /// Whose connection it must be, where the backend is told.
    pub client: Option<&'a ClientConnection>,
    pub choice: Choice<'a>,
}

pub(super) enum Got {
    /// What is there to carry it.
    Carrier(Carrier),
    /// It may open one.
    Permit(Permit),
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Newcomer,
    Waiter,
}

impl Choice<'_> {
    /// With the endpoints that it was sent to.
    pub fn asked<T>(&self, look: impl FnOnce(&[SocketAddr]) -> T) -> T {
        match self.tries {
            None => look(self.refused),
            Some(tries) => look(&tries.asked()),
        }
    }

    /// # Errors
    /// The hosts that are left must not be asked more often.
    pub fn next(&self, pool: &BackendPool) -> Result<Option<Rc<EndpointPool>>, ProxyError> {
        self.asked(|asked| pool.choose(self.tried, asked, self.aim, self.charges)).map_err(throttle::refusal)
    }

    pub fn begin(&self, pool: &BackendPool, endpoint: &EndpointPool) -> Begin {
        self.asked(|asked| pool.begin(endpoint, self.tried, asked, self.aim))
    }
}

impl Ask<'_> {
    /// At this endpoint or, if that takes a while, at whichever is chosen then. Waits until `until` at most.
    ///
    /// # Errors
    /// `Overloaded`: as many wait as may, or nothing was to be had in time. There is no endpoint any more.
    pub async fn admitted(
        &self,
        backend: &Backend,
        pool: &BackendPool,
        line: &Rc<Line>,
        endpoint: Rc<EndpointPool>,
        until: Instant,
    ) -> Result<(Rc<EndpointPool>, Got), ProxyError> {
        if let Some(got) = self.attempt(Who::Newcomer, pool, line, &endpoint).await {
            return Ok(got);
        }
        let waiting = match line.join(self.wants(&endpoint)) {
            Some(waiting) => waiting,
            None => {
                // What was in its way may just be closing: a try before this, or all that an older plan had open.
                tokio::task::yield_now().await;
                if let Some(got) = self.attempt(Who::Newcomer, pool, line, &endpoint).await {
                    return Ok(got);
                }
                line.join(self.wants(&endpoint)).ok_or(ErrorKind::Overloaded)?
            }
        };
        loop {
            if tokio::time::timeout_at(until, waiting.woken()).await.is_err() || backend.is_full() {
                return Err(ErrorKind::Overloaded.into());
            }
            pool.refresh(backend);
            let endpoint = self.choice.next(pool)?.ok_or_else(|| pool.nowhere(backend))?;
            waiting.wants(self.wants(&endpoint));
            let Some((endpoint, got)) = self.attempt(Who::Waiter, pool, line, &endpoint).await else {
                continue;
            };
            drop(waiting);
            if matches!(&got, Got::Carrier(carrier) if carrier.is_shared()) {
                // There may be room for more.
                line.is_opened(endpoint.address, 1);
            }
            return Ok((endpoint, got));
        }
    }

    async fn attempt(
        &self,
        who: Who,
        pool: &BackendPool,
        line: &Line,
        endpoint: &Rc<EndpointPool>,
    ) -> Option<(Rc<EndpointPool>, Got)> {
        let is_first = who == Who::Waiter || line.is_empty();
        let at_it = |got| Some((Rc::clone(endpoint), got));
        let free = endpoint.frees(self.wish);
        if self.manner == Manner::Any
            && (is_first || line.lets_pass(free))
            && let Some(carrier) = endpoint.take(self.wish, self.client)
        {
            if !is_first {
                line.was_passed(free);
            }
            return at_it(Got::Carrier(carrier));
        }
        if !is_first {
            return None;
        }
        // Who opens one for many is waited for.
        let may_open = self.manner == Manner::Alone || !endpoint.is_being_opened(self.wish);
        let permit = || line.permit();
        if may_open && let Some(permit) = permit() {
            return at_it(Got::Permit(permit));
        }
        if pool.forget_leaving() > 0
            && may_open
            && let Some(permit) = permit()
        {
            return at_it(Got::Permit(permit));
        }
        let elsewhere = || match (self.manner, self.choice.aim) {
            (Manner::Any, Aim::Anywhere) => pool.free(&self.choice, self.wish, self.client),
            _ => None,
        };
        // Now and then one is closed for the endpoint that was chosen, or it would never be asked.
        if !line.is_long_elsewhere()
            && let Some((other, carrier)) = elsewhere()
        {
            line.went_elsewhere(1);
            return Some((other, Got::Carrier(carrier)));
        }
        if may_open && let Some(closing) = pool.spare() {
            line.went_elsewhere(0);
            if let Some(permit) = closing.done().await.or_else(permit) {
                return at_it(Got::Permit(permit));
            }
        }
        if let Some((other, carrier)) = elsewhere() {
            return Some((other, Got::Carrier(carrier)));
        }
        // Better the connection that refused it than none.
        let again = if self.manner == Manner::New { endpoint.take_stream(self.wish) } else { None };
        at_it(Got::Carrier(Carrier::Shared(again?)))
    }

    fn wants(&self, endpoint: &EndpointPool) -> Wants {
        match (self.manner, self.wish, self.choice.aim) {
            (Manner::Alone, ..) | (_, Wish::Upgrade, _) => Wants::NoStream,
            (Manner::Any, Wish::Answer, Aim::Anywhere) => Wants::Any,
            _ => Wants::Only(endpoint.address),
        }
    }
}

//! The action once more, without a client: what is used past its time is asked for again beside.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::time::Instant;

use super::fetch::{Fetch, Readers, Settled};
use crate::cache::{Join, Stored};
use crate::filters;
use crate::message::{Body, Exchange, FailureForm, Request, Response};
use crate::proxy::connection::Connection;
use crate::proxy::forward::Way;
use crate::proxy::forwarded::Seen;
use crate::proxy::live::LiveHost;
use crate::proxy::request_head::Intake;
use crate::proxy::worker::Serving;
use crate::proxy::{respond, service};

/// What the action of a rule needs when nobody waits for it.
pub struct Rerun {
    pub connection: Rc<Connection>,
    pub live: Rc<Serving>,
    pub host: Arc<LiveHost>,
    /// The entry of the host's table that matched.
    pub entry: usize,
    pub seen: Seen,
}

/// Asks again for what is kept, unless somebody does already.
pub fn refresh(fetch: Fetch, exchange: &Exchange, stored: &Arc<Stored>, again: impl FnOnce() -> Rerun) {
    let Join::Lead(mut lead) = fetch.join_to_refresh(stored) else { return };
    let (rerun, stored) = (again(), Arc::clone(stored));
    let mut request = Request::new(Body::Empty);
    *request.uri_mut() = exchange.request.uri().clone();
    *request.headers_mut() = exchange.request.headers().clone();
    let id = rerun.connection.worker.next_request_id();
    let mut exchange = exchange.again(request, id);
    exchange.deadline = service::deadline(&rerun.host.rule(rerun.entry).rule.action, Instant::now());
    let outbound = Rc::clone(&exchange.outbound);
    let work = async move {
        let (uri, mut stale) = (exchange.request.uri().clone(), Some(stored));
        loop {
            let started = Instant::now();
            fetch.prepare(&mut exchange, stale.as_deref());
            let response = rerun.run(&mut exchange).await;
            let outbound = Rc::clone(&exchange.outbound);
            let settled =
                fetch.settle(&*outbound, lead, response, stale.as_ref(), started, |_| Readers::NotNeeded);
            if let Settled::Open(_, body) = settled {
                // Where no room is left for work of its own, it is done here.
                drain(body).await;
                return;
            }
            if !matches!(settled, Settled::Again) || stale.is_none() {
                return;
            }
            stale = None;
            lead = fetch.lead();
            fetch.restore(&mut exchange, &uri);
        }
    };
    // Without room for it the next one tries.
    drop(outbound.detach(Box::pin(work)));
}

async fn drain(mut body: Body) {
    use http_body_util::BodyExt as _;
    while let Some(Ok(_)) = body.frame().await {}
}

impl Rerun {
    async fn run(&self, exchange: &mut Exchange) -> Response {
        let rule = self.host.rule(self.entry);
        // Of the client's connection it has nothing: neither an upgrade nor trailers.
        let intake = Intake::of_nobody();
        let way = Way {
            connection: &self.connection,
            live: &self.live,
            rule,
            intake: &intake,
            seen: &self.seen,
            hop: None,
            upload: None,
            watch: None,
            turn: None,
            tunnel: &Cell::new(None),
            called: None,
        };
        let id = exchange.request_id;
        let refuse = |error: &crate::message::ProxyError| respond::failure(error, FailureForm::default(), id);
        let action = async |exchange: &mut Exchange| match service::act(&way, None, exchange).await {
            Ok(response) => response,
            Err(error) => refuse(&error),
        };
        filters::run(&rule.inner, exchange, refuse, action).await
    }
}

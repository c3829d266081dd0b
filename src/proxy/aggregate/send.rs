//! Calls on the worker's own pools, as proxied requests go.

use std::cell::Cell;

use super::{Backends, Limits};
use crate::message::{ErrorKind, Exchange, LocalFuture, ProxyError, Request, Response};
use crate::proxy::forward::Way;
use crate::proxy::{aim, forwarded};
use crate::upstream::{Aim, SendLimits, Tries};
use crate::values::BackendId;

/// So many passes is a call: sixteen of sixteen of sixteen would be asked otherwise before a circle ends.
const COUNTS: u32 = 2;

impl Backends for Way<'_> {
    fn aim(&self, backend: &BackendId, exchange: &Exchange) -> Aim {
        self.live.backend_by_id(backend).map_or(Aim::Anywhere, |backend| aim::of(backend, exchange))
    }

    fn ask<'a>(
        &'a self,
        backend: &'a BackendId,
        mut request: Request,
        limits: Limits<'a>,
    ) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async move {
            let Limits { plan, call, until, aim } = limits;
            let worker = &self.connection.worker;
            let backend = self.live.backend_by_id(backend).ok_or(ErrorKind::BackendNotFound)?;
            // A way that leads back to us must end, as that of clients' requests does, and sooner: it may be one of many.
            forwarded::pass_on(request.headers_mut(), &worker.settings.installation, COUNTS)?;
            let client = backend.plan.proxy_header.map(|_| self.connection.client_connection(self.seen));
            let limits = SendLimits {
                client: client.as_ref(),
                connect: plan.timeouts.connect,
                deadline: Some(until),
                whole: plan.timeouts.request,
                aim,
                ..SendLimits::default()
            };
            let answer = match &call.retry {
                None => worker.pools.send(backend, request, None, limits).await?,
                Some(retry) => {
                    let one_try = plan.timeouts.backend_request;
                    let limits = SendLimits { one_try, ..limits };
                    let count = Cell::default();
                    let tries = Tries::counted_in(&count);
                    worker.pools.send_retrying(backend, request, None, limits, retry, &tries).await?
                }
            };
            Ok(answer.response)
        })
    }
}

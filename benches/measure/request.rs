//! A request as filters and expressions see it, which has nowhere to go.

use std::rc::Rc;
use std::sync::Arc;

use portcullis::message::{
    Client, ErrorKind, Exchange, Labels, LocalFuture, Outbound, Protocol, ProxyError, Request, RequestId,
    Response, Scheme,
};
use portcullis::values::BackendId;

pub fn exchange(request: Request) -> Exchange {
    Exchange::new(
        request,
        Client {
            peer: ([10, 0, 0, 1], 1).into(),
            ip: [192, 0, 2, 7].into(),
            scheme: Scheme::Https,
            protocol: Protocol::Http2,
            server_name: None,
            certificate: None,
            vouched: None,
        },
        "shop.example".into(),
        Arc::new(Labels { namespace: "shop".into(), route: "web".into(), rule: "orders".into() }),
        RequestId([0; 16]),
        tokio::time::Instant::now(),
        Rc::new(Nowhere),
    )
}

struct Nowhere;

impl Outbound for Nowhere {
    fn call<'a>(&'a self, _: &'a BackendId, _: Request) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async { Err(ErrorKind::BackendNotFound.into()) })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        Err(work)
    }
}

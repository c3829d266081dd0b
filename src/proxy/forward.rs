//! The action `backendRefs`: a share of the requests to each backend, the head rewritten for the next hop, bodies
//! streamed in both directions.

use std::cell::Cell;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Version};
use http_body::Body as _;

use super::account::Hop;
use super::aim;
use super::connection::Connection;
use super::connection_http2::Turn;
use super::forwarded::Seen;
use super::live::{Live, LiveRule, Target};
use super::observed::Upload;
use super::request_head::{Intake, lists, strip_hop_by_hop};
use super::tunnel::Pending;
use super::visit::Visit;
use super::watch::Watch;
use crate::message::{
    Duplex, ErrorKind, Exchange, FixedHost, Protocol, ProxyError, Request, Response, Waiting,
};
use crate::route_map::{BackendProtocol, ForwardPlan, RetryPlan};
use crate::upstream::{Answer, Backend, Call, HeadLines, Pace, Place, SendLimits, Tries, Uploading};

/// What the way to a backend needs beside the exchange.
pub struct Way<'a> {
    pub connection: &'a Connection,
    pub live: &'a Live,
    pub rule: &'a LiveRule,
    pub intake: &'a Intake,
    pub seen: &'a Seen,
    pub hop: Option<&'a Hop>,
    pub upload: Option<&'a Upload>,
    /// None: nobody waits for the answer.
    pub watch: Option<&'a Watch>,
    /// Over HTTP/2.
    pub turn: Option<&'a Turn>,
    /// For what an answer 101 leaves.
    pub tunnel: &'a Cell<Option<Pending>>,
    /// A call of gRPC.
    pub called: Option<Call>,
}

/// Sends the exchange's request to one of the rule's backends and gives its answer.
///
/// # Errors
/// No backend, or none that answers properly.
pub async fn answer(
    way: &Way<'_>,
    plan: &ForwardPlan,
    exchange: &mut Exchange,
) -> Result<Response, ProxyError> {
    let Way { connection, live, rule, intake, seen, hop, upload, .. } = way;
    let worker = &connection.worker;
    // Boxed with what it takes: few rules have sessions.
    let mut visit = rule.sessions.as_deref().map(|sessions| Box::new(Visit::of(sessions, exchange)));
    let target = match visit.as_deref_mut().and_then(|visit| visit.choose(way)) {
        Some(own) => Some(own),
        None => rule.targets.choose(),
    };
    let backend = match target {
        Some(Target::Backend(slot)) => live.backend(slot).ok_or(ErrorKind::BackendNotFound)?,
        Some(Target::Unresolved(kind)) => return Err((*kind).into()),
        None => return Err(ErrorKind::BackendNotFound.into()),
    };
    let aim = match visit.as_deref().and_then(Visit::aim) {
        Some(aim) => aim,
        None => aim::of(backend, exchange),
    };
    let mut request = std::mem::take(&mut exchange.request);
    let headers = request.headers_mut();
    // Filters may have set fields of these names.
    let introduced = intake.introduced || !rule.filters.is_empty() || !rule.inner.is_empty();
    let lines = connection.introduction.lines(headers, seen, exchange.request_id, introduced)?;
    if let Some(host) = exchange.host_override.take() {
        headers.insert(header::HOST, host);
        request.extensions_mut().insert(FixedHost);
    }
    for_next_hop(&mut request, intake);
    if let Some(mirror) = &rule.mirror {
        mirror.see(way, &mut request, &lines);
    }

    let may_stream = way.called.is_some() && backend.plan.protocol != BackendProtocol::Http1;
    if may_stream {
        // No limit of a request's time or size ends it, silence does.
        if let Some(watch) = way.watch {
            watch.set_answer_idle(plan.timeouts.tunnel_idle);
            watch.streams();
        }
        upload.iter().for_each(|upload| upload.streams.set(true));
    }
    let client = backend.plan.proxy_header.map(|_| connection.client_connection(seen));
    let mut limits = SendLimits {
        client: client.as_ref(),
        connect: plan.timeouts.connect,
        deadline: exchange.deadline,
        whole: plan.timeouts.request,
        one_try: plan.timeouts.backend_request,
        uploaded: upload.map(|upload| &upload.ended),
        // The client says when it is over: the time of a request begins then.
        upload: upload.map(|upload| Uploading {
            since: exchange.started,
            pace: (!may_stream).then_some(Pace { bytes: &upload.bytes, waits: &upload.waits }),
        }),
        call: way.called,
        aim,
        ..SendLimits::default()
    };
    if let Some(hop) = hop {
        hop.asked(backend);
    }
    // HTTP/1.0 has none, gRPC neither, and whoever changes answers may want none.
    let may_hint = way.watch.is_some() && rule.passes_hints && exchange.client.protocol != Protocol::Http10;
    let may_hint = may_hint && way.called.is_none();
    let waiting = may_hint.then(|| way.turn.map_or(&connection.hints, Turn::hints).wait());
    limits.hinted = waiting.as_ref().map(Waiting::hinted);
    let answer = match &plan.retry {
        None => worker.pools.send(backend, request, Some(lines), limits).await?,
        Some(retry) => again(way, backend, request, lines, limits, retry).await?,
    };
    if let Some(hop) = hop {
        hop.answered(answer.endpoint);
    }
    if let Some(visit) = visit {
        exchange.session = visit.told(way, backend, answer.mark, exchange);
    }
    let Answer { mut response, place, tunnel, .. } = answer;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switch(way.tunnel, plan, intake, response, (place, tunnel));
    }
    if response.status().is_informational() {
        return Err(ErrorKind::InvalidResponse.into());
    }
    strip_answer(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

async fn again(
    way: &Way<'_>,
    backend: &Arc<Backend>,
    request: Request,
    lines: HeadLines,
    limits: SendLimits<'_>,
    plan: &RetryPlan,
) -> Result<Answer, ProxyError> {
    let own = Cell::default();
    let pools = &way.connection.worker.pools;
    let tries = Tries::counted_in(way.hop.map_or(&own, |hop| &hop.retries));
    // Boxed: it is large, and rules without retries would carry the room for it.
    Box::pin(pools.send_retrying(backend, request, Some(lines), limits, plan, &tries)).await
}

/// What concerns this hop only: framing, an upgrade that we pass on, trailers.
fn for_next_hop(request: &mut Request, intake: &Intake) {
    *request.version_mut() = Version::HTTP_11;
    let streams = !request.body().is_end_stream() && request.body().size_hint().exact().is_none();
    let headers = request.headers_mut();
    if streams {
        // What was said of its length may hold no longer.
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    match (&intake.upgrade, intake.trailers) {
        (Some(protocol), _) => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol.clone());
        }
        (None, true) => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        (None, false) => {}
    }
}

/// A 101 is an answer only to an upgrade that we passed on, to the same protocol (RFC 9110 section 7.8).
fn switch(
    tunnel: &Cell<Option<Pending>>,
    plan: &ForwardPlan,
    intake: &Intake,
    mut response: Response,
    (place, upstream): (Option<Place>, Option<Box<dyn Duplex>>),
) -> Result<Response, ProxyError> {
    let asked = intake.upgrade.as_ref().ok_or(ErrorKind::InvalidResponse)?;
    let given = response.headers().get(header::UPGRADE).ok_or(ErrorKind::InvalidResponse)?;
    if !given.as_bytes().eq_ignore_ascii_case(asked.as_bytes())
        || !lists(response.headers(), &header::CONNECTION, "upgrade")
    {
        return Err(ErrorKind::InvalidResponse.into());
    }
    let upstream = upstream.ok_or(ErrorKind::InvalidResponse)?;
    let protocol = asked.clone();
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    let is_websocket = protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    headers.insert(header::UPGRADE, protocol);
    tunnel.set(Some(Pending::new(upstream, place, plan.timeouts.tunnel_idle, is_websocket)));
    Ok(response)
}

fn strip_answer(headers: &mut HeaderMap) {
    let ends_here = headers.keys().any(|name| {
        *name == header::CONNECTION
            || *name == header::TRANSFER_ENCODING
            || *name == header::UPGRADE
            || *name == header::TE
            || matches!(name.as_str(), "keep-alive" | "proxy-connection")
    });
    if ends_here {
        strip_hop_by_hop(headers);
    }
}

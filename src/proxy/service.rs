//! One request from its head to its answer: newcomers start here.
//!
//! [`answer`] is the outer function: it always answers, and writes down what happened. [`serve`] is the inner one, which
//! uses `?`: normal form → host → rule → redirect to HTTPS → filters around the action.

use std::borrow::Cow;
use std::cell::Cell;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, StatusCode};
use http_body::Body as _;

use super::account::Account;
use super::cached::{self, Rerun};
use super::connection::Connection;
use super::connection_http2::Turn;
use super::forward::Way;
use super::live::{Live, LiveHost};
use super::observed::{AnswerBody, RequestBody, Upload};
use super::request_head::take_in;
use super::respond::{Call, form_of};
use super::tunnel::Pending;
use super::watch::Watch;
use super::websocket::Wanted;
use super::{admission, aggregate, forward, forwarded, grpc, redirect, respond, respond_with};
use crate::filters;
use crate::lifecycle::Phase;
use crate::message::{
    Body, Client, ErrorKind, Exchange, FailureCause, Labels, Outbound, Protocol, ProxyError, Request,
    RequestId, Response, Scheme, accept_of, is_grpc_call,
};
use crate::route_map::{Action, AggregatePlan, Found, RequestView};
use crate::telemetry::CallStatus;
use crate::upstream;

/// Answers a request, whatever happens. `watch` is the connection's on HTTP/1 and the stream's on HTTP/2, where it also
/// has a `turn`.
#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice, and a request is large")]
pub fn answer(
    connection: Rc<Connection>,
    watch: Rc<Watch>,
    turn: Option<&Turn>,
    mut request: Request,
) -> impl Future<Output = Result<http::Response<AnswerBody>, Infallible>> {
    async move {
        let protocol = match request.version() {
            http::Version::HTTP_2 => Protocol::Http2,
            http::Version::HTTP_10 => Protocol::Http10,
            _ => Protocol::Http11,
        };
        watch.request_begins();
        let worker = connection.worker.clone();
        let wanted = match protocol {
            Protocol::Http2 if *request.method() == Method::CONNECT => {
                Wanted::of(&mut request, worker.next_request_id().0)
            }
            _ => None,
        };
        let mut account =
            Box::new(Account::new(worker, request.method().clone(), protocol, connection.scheme));
        let accept = accept_of(request.headers());
        let call = if is_grpc_call(request.method(), request.headers()) { Call::Grpc } else { Call::Http };
        account.call = (call == Call::Grpc).then_some(CallStatus::Missing);
        let mut told = Told { trailers: false, accept, call, turn, tunnel: Cell::new(None) };
        let outcome = {
            // Pinned where it is made: its state is large to move.
            let serving = pin!(serve(&connection, &watch, request, protocol, &mut account, &mut told));
            caught(serving).await
        };
        let outcome = outcome.unwrap_or_else(|| {
            connection.worker.count_panic();
            Err(ErrorKind::Internal.into())
        });
        let failure = |error: &ProxyError| {
            respond::failure(error, form_of(told.accept.as_ref(), told.call), account.request_id)
        };
        let mut response = outcome.unwrap_or_else(|error| failure(&blame(error, &account)));
        let pending = told.tunnel.take();
        if let Some(Err(kind)) = wanted.as_ref().map(|wanted| wanted.judge(&response, pending.is_some())) {
            response = failure(&kind.into());
        }
        let follows = pending.map(|pending| Follows { pending, wanted });
        Ok(finish(&connection, watch, response, account, &told, follows))
    }
}

/// As the client wrote it, for the log alone.
fn asked_host(parts: &http::request::Parts) -> Cow<'_, str> {
    match (parts.uri.authority(), parts.headers.get(http::header::HOST)) {
        (Some(authority), _) => authority.as_str().into(),
        (None, host) => String::from_utf8_lossy(host.map_or(b"", HeaderValue::as_bytes)),
    }
}

/// A panic is the end of one request, not of all that this thread serves.
async fn caught<T>(work: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(work).catch_unwind().await.ok()
}

/// What follows an answer 101.
struct Follows {
    pending: Pending,
    /// Over HTTP/2.
    wanted: Option<Wanted>,
}

/// What [`finish`] must know of the request's head.
struct Told<'a> {
    trailers: bool,
    accept: Option<HeaderValue>,
    call: Call,
    turn: Option<&'a Turn>,
    tunnel: Cell<Option<Pending>>,
}

#[expect(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice, and a request is large")]
fn serve(
    connection: &Rc<Connection>,
    watch: &Rc<Watch>,
    request: Request,
    protocol: Protocol,
    account: &mut Account,
    told: &mut Told<'_>,
) -> impl Future<Output = Result<Response, ProxyError>> {
    async move {
        let worker = &connection.worker;
        let limits = &worker.settings.limits;
        let (mut parts, incoming) = request.into_parts();
        parts.extensions = http::Extensions::default();
        let has_body = !incoming.is_end_stream();
        if has_body {
            let upload = Rc::new(Upload::default());
            account.upload = Some(upload.clone());
            *connection.reading.borrow_mut() = Some(upload);
        }
        let peer = connection.peer.ip().to_canonical();
        let taken = take_in(&mut parts, protocol, has_body, limits);
        let mut intake = taken.inspect_err(|_| account.note(&parts, &asked_host(&parts), peer))?;
        // What a call came to stands in its trailers.
        intake.trailers |= told.call == Call::Grpc && protocol == Protocol::Http2;
        told.trailers = intake.trailers;
        if intake.asterisk {
            account.note(&parts, &asked_host(&parts), peer);
            return Ok(no_content());
        }
        let seen = connection.introduction.see(&parts.headers, worker.settings.trusted_hops);
        let seen = seen.inspect_err(|_| account.note(&parts, &asked_host(&parts), peer))?;
        account.scheme = seen.scheme;
        if intake.introduced {
            forwarded::strip_aliases(&mut parts.headers);
        }
        let mut name = intake.host(&parts.headers);
        account.note(&parts, &name, seen.ip);
        if let Some(id) = seen.request_id {
            account.request_id = id;
        }

        let live = worker.live();
        let refusing = Refusing { accept: told.accept.as_ref(), call: told.call, id: account.request_id };
        let client = |certificate| Client {
            peer: connection.peer,
            ip: seen.ip,
            scheme: seen.scheme,
            protocol,
            server_name: connection.session.as_ref().and_then(|session| session.server_name.clone()),
            certificate,
            vouched: seen.vouched.clone(),
        };
        // Rare, and its state need not be in that of every request.
        let unmatched = |host, parts| {
            let request = Request::from_parts(parts, Body::Empty);
            Box::pin(unmatched(&live, request, client(None), host, worker.outbound(), account, &refusing))
        };
        let host = match admission::find_host(connection, &live, &name) {
            Err(error) if error.kind == ErrorKind::NoRouteMatch => {
                return unmatched((*name).into(), parts).await;
            }
            found => found?,
        };
        host.touch();
        if !host.host.own_headers.is_empty() {
            // Before any rule is looked for by them.
            name = Cow::Owned(name.into_owned());
            host.take_own_headers(&mut parts.headers);
        }
        let view = RequestView {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
        };
        let found = host.host.table.find(&view);
        let is_challenge = seen.scheme == Scheme::Http
            && found
                .as_ref()
                .is_some_and(|found| admission::is_challenge(host, parts.uri.path(), found.index));
        if seen.scheme == Scheme::Http
            && host.host.tls.as_ref().is_some_and(|tls| tls.redirect)
            && !is_challenge
        {
            return redirect::to_https(&name, worker.shared.https_port, &parts.uri);
        }
        if host.passage.is_some() {
            return Err(admission::not_over_http(connection));
        }
        let admitted = admission::admit(connection, host, &name, is_challenge)?;
        let Some(Found { index, matched_prefix, captures, .. }) = found else {
            return unmatched(exact_name(host, &name), parts).await;
        };
        let rule = host.rule(index);
        rule.touch(worker.index);
        account.matched(rule);

        let most = rule.max_body.unwrap_or(limits.max_body);
        // Before anybody reads any of it or is asked; a filter that says how large it may be says so itself.
        let too_large = rule.max_body.is_none() && incoming.size_hint().lower() > most;
        let host_label = exact_name(host, &name);
        host.take_method_overrides(rule, &mut parts.headers);
        if let Some(told) = admitted.told {
            parts.headers.insert(&forwarded::X_FORWARDED_CLIENT_CERT, told);
        }
        let body = match &account.upload {
            None => Body::Empty,
            Some(upload) => {
                let body = RequestBody::new(incoming, most, limits.progress, watch.clone(), upload.clone());
                Body::stream(body.without_own_trailers(host))
            }
        };
        let called_until = match told.call {
            Call::Grpc => grpc::until(&parts.headers, account.started),
            Call::Http => None,
        };
        // Made where it stays, and changed there: it is large.
        let mut exchange = Exchange::new(
            Request::from_parts(parts, body),
            client(admitted.certificate),
            host_label,
            rule.rule.labels.clone(),
            account.request_id,
            account.started,
            worker.outbound(),
        );
        (exchange.captures, exchange.matched_prefix) = (captures, matched_prefix);
        exchange.deadline =
            deadline(&rule.rule.action, account.started).into_iter().chain(called_until).min();
        let (hop, upload) = (account.hop.clone(), account.upload.clone());
        let way = Way {
            connection,
            live: &live,
            rule,
            intake: &intake,
            seen: &seen,
            hop: hop.as_deref(),
            upload: upload.as_deref(),
            watch: Some(watch),
            turn: told.turn,
            tunnel: &told.tunnel,
            // Over HTTP/1 none is a stream: whoever says so there has the bounds of everybody.
            called: (told.call == Call::Grpc && protocol == Protocol::Http2)
                .then_some(upstream::Call { until: called_until }),
        };
        let threatened = cached::threatened(host, &exchange);
        let memory = worker.shared.keep.memory();
        if rule.filters.is_empty() && rule.cache.is_none() {
            if too_large {
                return Err(ErrorKind::BodyTooLarge.into());
            }
            let mut answered = act(&way, Some(watch), &mut exchange).await;
            if let Ok(response) = &mut answered {
                cached::judge_threat(memory, host, threatened, response);
                tell_of_session(&mut exchange, response);
            }
            return answered;
        }
        let mut response = {
            let account = &*account;
            let act = async |exchange: &mut Exchange| match act(&way, Some(watch), exchange).await {
                Ok(response) => response,
                Err(error) => {
                    let cut = exchange.body_failure.as_ref().and_then(|failure| failure.get());
                    refusing.answer(&cut.map_or_else(|| blame(error, account), ProxyError::from))
                }
            };
            // A filter that reads the body knows that it failed, not why.
            let refuse =
                |error: &ProxyError| match account.upload.as_ref().and_then(|upload| upload.failure.get()) {
                    Some(kind) => refusing.answer(&kind.into()),
                    None => refusing.answer(error),
                };
            let action = async |exchange: &mut Exchange| {
                if too_large {
                    return refusing.answer(&ErrorKind::BodyTooLarge.into());
                }
                let Some(cache) = &rule.cache else { return act(exchange).await };
                // Also where no backend is asked by this request: another one fetches for it.
                watch.set_answer_idle(cache.idle);
                let action =
                    async |exchange: &mut Exchange| filters::run(&rule.inner, exchange, refuse, &act).await;
                let again = || Rerun {
                    connection: Rc::clone(connection),
                    live: Rc::clone(&live),
                    host: Arc::clone(host),
                    entry: index,
                    seen: seen.clone(),
                };
                // Its state is large, and most rules have none.
                Box::pin(cached::answer(cache, &live, way.intake, exchange, refuse, action, again)).await
            };
            filters::run(&rule.filters, &mut exchange, refuse, action).await
        };
        tell_of_session(&mut exchange, &mut response);
        (account.ruling, account.consulted) = (exchange.ruling, exchange.consulted);
        (account.limited, account.identity) = (exchange.limited, exchange.identity);
        account.fallbacks = exchange.quotas.fallbacks;
        account.places = exchange.places;
        account.compressed = exchange.compressed;
        account.cached = exchange.cached;
        cached::judge_threat(memory, host, threatened, &response);
        Ok(response)
    }
}

/// Outside of the cache: what is kept is for everybody.
fn tell_of_session(exchange: &mut Exchange, response: &mut Response) {
    if let Some((name, value)) = exchange.session.take().map(|told| *told) {
        match name == http::header::SET_COOKIE {
            true => response.headers_mut().append(name, value),
            false => response.headers_mut().insert(name, value).is_some(),
        };
    }
}

/// How failures are told to this client.
struct Refusing<'a> {
    accept: Option<&'a HeaderValue>,
    call: Call,
    id: RequestId,
}

impl Refusing<'_> {
    fn answer(&self, error: &ProxyError) -> Response {
        respond::failure(error, form_of(self.accept, self.call), self.id)
    }
}

/// A request that no rule matches passes the filters that policies on the installation have for it, and is refused.
async fn unmatched(
    live: &Live,
    request: Request,
    client: Client,
    host: Arc<str>,
    outbound: Rc<dyn Outbound>,
    account: &Account,
    refusing: &Refusing<'_>,
) -> Result<Response, ProxyError> {
    let error = ProxyError::from(ErrorKind::NoRouteMatch);
    if live.unmatched.0.is_empty() {
        return Err(error);
    }
    let nowhere = || Arc::<str>::from("");
    let mut exchange = Exchange::new(
        request,
        client,
        host,
        Arc::new(Labels { namespace: nowhere(), route: nowhere(), rule: nowhere() }),
        account.request_id,
        account.started,
        outbound,
    );
    let action = async |_: &mut Exchange| refusing.answer(&error);
    Ok(filters::run(&live.unmatched.0, &mut exchange, |error| refusing.answer(error), action).await)
}

/// `watch`: of who waits for the answer, if anybody does.
pub(super) async fn act(
    way: &Way<'_>,
    watch: Option<&Watch>,
    exchange: &mut Exchange,
) -> Result<Response, ProxyError> {
    match &way.rule.rule.action {
        Action::Forward(plan) => {
            if let Some(watch) = watch {
                watch.set_answer_idle(plan.timeouts.idle);
                if exchange.deadline.is_none() {
                    watch.streams();
                }
            }
            forward::answer(way, plan, exchange).await
        }
        Action::Aggregate(plan) => {
            if let Some(watch) = watch {
                watch.set_answer_idle(plan.timeouts.idle);
            }
            let answered = aggregate::answer(plan, exchange, way, &way.connection.worker.shared.keep).await;
            note_calls(way, plan, exchange);
            answered
        }
        Action::Redirect(plan) => {
            exchange.fixed_answer = true;
            redirect::answer(plan, exchange)
        }
        Action::Respond(plan) => {
            exchange.fixed_answer = true;
            respond_with::answer(plan)
        }
        Action::Unserved(unserved) => Err(unserved.kind.into()),
    }
}

/// Counts what the calls came to, and tells the log of those that failed.
fn note_calls(way: &Way<'_>, plan: &AggregatePlan, exchange: &Exchange) {
    for (call, outcome, cause) in aggregate::outcomes(plan, exchange) {
        way.rule.stats.called(way.connection.worker.index, call, outcome);
        if let Some(hop) = way.hop.filter(|_| outcome != aggregate::OK && outcome != aggregate::SKIPPED) {
            hop.call_failed(call, outcome, cause);
        }
    }
}

fn exact_name(host: &LiveHost, name: &str) -> Arc<str> {
    match &host.host.hostname {
        Some(crate::values::Hostname::Exact(exact)) => exact.clone(),
        _ => Arc::from(name),
    }
}

pub(super) fn deadline(action: &Action, started: tokio::time::Instant) -> Option<tokio::time::Instant> {
    match action {
        Action::Forward(plan) => plan.timeouts.request.map(|limit| started + limit),
        Action::Aggregate(plan) => plan.limit().map(|limit| started + limit),
        _ => None,
    }
}

fn no_content() -> Response {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// A backend that fails because the client's body failed is not to blame.
fn blame(error: ProxyError, account: &Account) -> ProxyError {
    match account.upload.as_ref().and_then(|upload| upload.failure.get()) {
        Some(kind) => kind.into(),
        None => error,
    }
}

/// Puts the last touch to an answer: what its method, its status and this connection want.
fn finish(
    connection: &Rc<Connection>,
    watch: Rc<Watch>,
    response: Response,
    mut account: Box<Account>,
    told: &Told<'_>,
    follows: Option<Follows>,
) -> http::Response<AnswerBody> {
    let (mut parts, mut body) = response.into_parts();
    if account.method == Method::HEAD {
        if let Body::Full(bytes) = &body {
            parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes.len()));
        }
        body = Body::Empty;
    } else if matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        body = Body::Empty;
    }
    // Whatever a transform wrote for answers that are whole.
    if parts.extensions.get::<aggregate::Partial>().is_some() {
        aggregate::keep_out_of_caches(&mut parts.headers);
    }
    account.status = parts.status.as_u16();
    account.called(&parts.headers);
    let mut closes = connection.worker.phase() >= Phase::Leaving || watch.retiring();
    if let Some(kind) = parts.extensions.get::<ErrorKind>() {
        account.fail(*kind);
        account.cause = parts.extensions.get::<FailureCause>().cloned();
        closes |= respond::row_of(*kind).closes;
    }
    if closes && account.protocol != Protocol::Http2 && parts.status != StatusCode::SWITCHING_PROTOCOLS {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if !told.trailers {
        parts.headers.remove(http::header::TRAILER);
    }
    if parts.status == StatusCode::SWITCHING_PROTOCOLS
        && let Some(Follows { pending, wanted }) = follows
    {
        let pending = pending.accounted(account);
        wanted.iter().for_each(|wanted| wanted.begin(&mut parts));
        told.turn.map_or(&connection.tunnel, |turn| &turn.tunnel).set(Some(pending));
        return http::Response::from_parts(parts, AnswerBody::tunnel(watch));
    }
    http::Response::from_parts(parts, AnswerBody::new(body, told.trailers, watch, account))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_only_its_own_request() {
        assert_eq!(caught(async { panic!("for the test") }).await, None::<()>);
        assert_eq!(caught(async { 7 }).await, Some(7));
    }
}

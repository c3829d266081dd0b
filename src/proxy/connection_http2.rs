//! HTTP/2 towards clients: a connection's streams over h2, each a task of its own, from a request's head to the end of its
//! answer or of the tunnel that follows it.
//!
//! Invariants: a stream that the client resets drops its request; an answer that fails resets its stream; interim answers
//! stand before their answer, never behind.

use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::{self, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body::Body as _;

use super::connection::{self, Connection, Stream, linger, unless_cut};
use super::gather::Gathered;
use super::observed::{AnswerBody, PROGRESS};
use super::service;
use super::transport::Transport;
use super::tunnel::{self, Pending};
use super::watch::{Verdict, Watch};
use crate::http2::{KeepAlive, Received, Sending, Tunnel, Unsent, content_length};
use crate::message::{Body, Hints, hinted_links};

/// What the answering of a request leaves for its stream's task.
#[derive(Default)]
pub struct Turn {
    /// Made where a backend may have any.
    hints: OnceCell<Arc<Hints>>,
    /// For after an answer 101.
    pub tunnel: Cell<Option<Pending>>,
}

impl Turn {
    pub fn hints(&self) -> &Arc<Hints> {
        self.hints.get_or_init(Arc::default)
    }

    /// Tells the client what its backend said by now.
    fn tell(&self, context: &Context<'_>, respond: &mut SendResponse<Bytes>) {
        let Some(hints) = self.hints.get() else { return };
        hints.wakes(context.waker());
        for links in hints.take().iter().flat_map(|heads| hinted_links(heads)) {
            let mut head = Response::new(());
            *head.status_mut() = StatusCode::EARLY_HINTS;
            *head.headers_mut() = links;
            // Refused only where the stream is over, which its next poll tells.
            let _ = respond.send_informational(head);
        }
    }
}

pub async fn serve(connection: &Rc<Connection>, transport: Transport) {
    let watch = connection.watch.clone();
    watch.multiplexes();
    let outgoing = Gathered::new(transport);
    let mut serving = Serving::new(connection, &outgoing);
    let mut over = false;
    let told = poll_fn(|context| {
        match watch.verdict(context) {
            Some(Verdict::Cut) => return Poll::Ready(false),
            Some(Verdict::End | Verdict::Retire) => serving.leave(),
            None => {}
        }
        over = over || serving.poll(context).is_ready();
        match outgoing.poll_send(context) {
            Poll::Ready(Ok(())) if !over => Poll::Pending,
            sent => sent.map(|sent| sent.is_ok()),
        }
    })
    .await;
    // A window that the client opens for our last answer would reset the connection if it came after the close.
    if told {
        linger(outgoing).await;
    }
}

/// A connection of HTTP/2, from its first frame.
struct Serving {
    connection: Rc<Connection>,
    outgoing: Gathered,
    state: State,
    leaves: bool,
}

enum State {
    Opening(Box<Handshake<Gathered, Bytes>>),
    Open(Box<Open>),
}

struct Open {
    frames: server::Connection<Gathered, Bytes>,
    keep_alive: Option<KeepAlive>,
}

impl Serving {
    fn new(connection: &Rc<Connection>, outgoing: &Gathered) -> Self {
        let handshake = server::Builder::new()
            .max_concurrent_streams(100)
            .initial_window_size(64 << 10)
            .initial_connection_window_size(1 << 20)
            .max_frame_size(16 << 10)
            .max_header_list_size(16 << 10)
            .max_send_buffer_size(64 << 10)
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(Some(1024))
            .enable_connect_protocol()
            .handshake(outgoing.clone());
        Self {
            connection: connection.clone(),
            outgoing: outgoing.clone(),
            state: State::Opening(Box::new(handshake)),
            leaves: false,
        }
    }

    /// Says goodbye; the streams under way go on to their ends.
    fn leave(&mut self) {
        if std::mem::replace(&mut self.leaves, true) {
            return;
        }
        if let State::Open(open) = &mut self.state {
            open.frames.graceful_shutdown();
        }
    }

    /// Ready when the connection is over, however it ended.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let open = match &mut self.state {
                State::Open(open) => open,
                State::Opening(handshake) => {
                    let Ok(mut frames) = ready!(Pin::new(handshake).poll(context)) else {
                        return Poll::Ready(());
                    };
                    if self.leaves {
                        frames.graceful_shutdown();
                    }
                    let limits = &self.connection.worker.settings.limits;
                    let pings = frames.ping_pong();
                    let keep_alive = pings.map(|pings| KeepAlive::new(pings, limits.ping, limits.pong));
                    self.state = State::Open(Box::new(Open { frames, keep_alive }));
                    continue;
                }
            };
            match open.frames.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => begin(&self.connection, request, respond),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a client's HTTP/2 connection failed"
                    );
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {
                    let Some(keep_alive) = &mut open.keep_alive else { return Poll::Pending };
                    // Also while nothing is under way: who is gone is let go of.
                    ready!(keep_alive.poll(context, self.outgoing.reads(), true));
                    open.frames.abrupt_shutdown(Reason::NO_ERROR);
                }
            }
        }
    }
}

/// Runs a stream until its watch cuts it: dropping its task resets it.
fn begin(connection: &Rc<Connection>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let stream = connection.open_stream();
    connection::spawn(async move {
        unless_cut(&stream.watched, converse(&stream, request, respond)).await;
    });
}

/// One request and its answer.
async fn converse(stream: &Stream, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let connection = &stream.connection;
    let (parts, incoming) = request.into_parts();
    let (mut body, mut tunnelled) = (Body::Empty, None);
    if parts.method == Method::CONNECT {
        if content_length(&parts.headers).is_some_and(|length| length > 0) {
            // What follows its head is no body.
            return respond.send_reset(Reason::INTERNAL_ERROR);
        }
        tunnelled = Some(incoming);
    } else if !incoming.is_end_stream() {
        body = Body::Received(Received::new(incoming, &parts.headers));
    }
    let turn = Turn::default();
    let request = Request::from_parts(parts, body);
    // Boxed: it is large, and the task is moved before it begins.
    let work = Box::pin(service::answer(connection.clone(), stream.watched.share(), Some(&turn), request));
    let Some(answer) = answered(work, &turn, &mut respond).await else { return };
    let (mut parts, body) = answer.into_parts();
    of_stream(&mut parts.headers);
    parts.headers.entry(DATE).or_insert_with(|| connection.worker.date.at(SystemTime::now()));
    if let (Some(pending), Some(received)) = (turn.tunnel.take(), tunnelled) {
        parts.headers.remove(CONTENT_LENGTH);
        let Ok(sent) = respond.send_response(Response::from_parts(parts, ()), false) else {
            return respond.send_reset(Reason::INTERNAL_ERROR);
        };
        let (drain, held) = (connection.worker.shared.drain.clone(), connection.hold());
        connection::spawn(async move {
            let _held = held;
            tunnel::run(Tunnel::new(sent, received), pending, drain).await;
        });
        return;
    }
    let is_whole = body.is_end_stream();
    if let (false, Some(length)) = (is_whole, body.size_hint().exact()) {
        parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    match respond.send_response(Response::from_parts(parts, ()), is_whole) {
        Ok(_) if is_whole => {}
        // What became of it, the body has noted.
        Ok(sent) => drop(take(Sending::new(body, sent), &stream.watched).await),
        Err(_) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}

/// The answer; `None`: the client wants none any more.
async fn answered<W>(
    mut work: Pin<Box<W>>,
    turn: &Turn,
    respond: &mut SendResponse<Bytes>,
) -> Option<Response<AnswerBody>>
where
    W: Future<Output = Result<Response<AnswerBody>, std::convert::Infallible>>,
{
    poll_fn(|context| {
        if let Poll::Ready(Ok(answer)) = work.as_mut().poll(context) {
            return Poll::Ready(Some(answer));
        }
        if respond.poll_reset(context).is_ready() {
            return Poll::Ready(None);
        }
        turn.tell(context, respond);
        Poll::Pending
    })
    .await
}

/// Sends the answer; that the client makes room for some of a piece is progress.
async fn take<B>(mut sending: Sending<B>, watch: &Watch) -> Result<(), Unsent<B::Error>>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    let mut credited = 0;
    poll_fn(|context| {
        let polled = Pin::new(&mut sending).poll(context);
        if sending.sent() - credited >= PROGRESS {
            credited = sending.sent();
            watch.answer_moves();
        }
        polled
    })
    .await
}

/// Takes off what concerns a connection and not a stream (RFC 9113, 8.2.2).
fn of_stream(headers: &mut HeaderMap) {
    const OTHERS: [HeaderName; 2] =
        [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")];
    for name in [&OTHERS[0], &OTHERS[1], &TRANSFER_ENCODING, &UPGRADE, &TE] {
        headers.remove(name);
    }
    if let Some(named) = headers.remove(CONNECTION)
        && let Ok(named) = named.to_str()
    {
        named.split(',').for_each(|name| drop(headers.remove(name.trim())));
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;
    use std::time::Duration;

    use http_body_util::Full;
    use tokio::time::Instant;

    use super::super::Limits;
    use super::super::watch::{Sweep, Wait};
    use super::*;

    /// What is told of a client that takes a KiB of one large piece, rests, and takes the next; by a paused clock.
    async fn told(rest: Duration) -> Option<Verdict> {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (sweep, limits) = (Rc::new(Sweep::default()), Limits::default());
        let watched = sweep.watch(Wait::Nothing, None);
        let serving = async {
            let mut frames = server::Builder::new().handshake::<_, Bytes>(ours).await.expect("a client");
            let (_, mut respond) = frames.accept().await.expect("a request").expect("a good one");
            let stream = respond.send_response(Response::new(()), false).expect("sent");
            watched.answer_taken();
            let piece = Full::new(Bytes::from(vec![0; 16 << 10]));
            tokio::select! {
                sent = take(Sending::new(piece, stream), &watched) => sent.expect("sent"),
                _ = frames.accept() => panic!("there is no other"),
            }
            frames.accept().await.is_some()
        };
        let asking = async {
            let mut client = h2::client::Builder::new();
            client.initial_window_size(PROGRESS as u32);
            let (mut sender, connection) = client.handshake::<_, Bytes>(theirs).await.expect("a server");
            let reading = async {
                let request = Request::get("http://a.example/").body(()).expect("a request");
                let (answer, _) = sender.send_request(request, true).expect("sent");
                let (mut body, mut taken) = (answer.await.expect("answered").into_body(), 0);
                while let Some(data) = body.data().await {
                    let bytes = data.expect("good").len();
                    taken += bytes;
                    let until = Instant::now() + rest;
                    while Instant::now() < until {
                        tokio::time::advance(Sweep::interval(&limits)).await;
                        sweep.tick(&limits, None);
                    }
                    body.flow_control().release_capacity(bytes).expect("counted");
                }
                assert_eq!(taken, 16 << 10);
            };
            tokio::select! {
                () = reading => {}
                _ = connection => panic!("it stays"),
            }
        };
        tokio::select! {
            () = asking => {}
            _ = serving => panic!("the client leaves first"),
        }
        watched.verdict(&Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_some_of_a_piece_in_time_is_not_late() {
        let progress = Limits::default().progress;
        assert_eq!(told(progress * 2 / 3).await, None);
        assert_eq!(
            told(progress * 2).await,
            Some(Verdict::Cut),
            "the control: it takes nothing for too long"
        );
    }

    #[test]
    fn what_concerns_a_connection_is_not_said_on_a_stream() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("x-own", "1"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        of_stream(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-own"]);
    }
}

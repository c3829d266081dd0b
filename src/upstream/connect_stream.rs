//! A request on a stream of a shared HTTP/2 connection: the stream opened when it is its turn, the request's body sent
//! beside the answer, interim answers read until the answer is there.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::AbortHandle;

use super::broken::Broken;
use super::connect_http2::Lost;
use super::interim::Heads;
use super::wire_http1::Receiving;
use crate::http2::{Received, Sending, Tunnel, content_length};
use crate::message::{Body, BodyError, Duplex, Hinted, Request};

/// Opens the streams of a connection, one after the other.
#[derive(Debug)]
pub(super) struct Opener {
    sender: SendRequest<Bytes>,
    /// Held until a stream is open: those that wait behind it are not sent yet, whatever becomes of the connection.
    turn: tokio::sync::Mutex<()>,
}

/// Where an answer's body comes from.
#[derive(Debug)]
pub(super) enum Coming {
    /// A connection of HTTP/1.1.
    Own(Receiving),
    /// A stream of HTTP/2; what is still to be sent on it ends with the answer.
    Shared { received: Received, _upload: Option<Upload> },
    /// What was a connection or a stream.
    Tunnel(Box<dyn Duplex>),
}

/// A request's body on its way; dropped, that ends there.
#[derive(Debug)]
pub(super) struct Upload(AbortHandle);

impl Opener {
    pub fn new(sender: SendRequest<Bytes>) -> Self {
        Self { sender, turn: tokio::sync::Mutex::default() }
    }

    /// Whether the endpoint takes CONNECT for other protocols.
    pub fn takes_protocols(&self) -> bool {
        self.sender.is_extended_connect_protocol_enabled()
    }

    /// The answer to a request whose head has the form of HTTP/2. Dropped before it, the stream is reset.
    ///
    /// # Errors
    /// Why there is none, and what became of the request.
    pub async fn exchange(
        &self,
        request: Request,
        hinted: Option<&Hinted>,
    ) -> Result<http::Response<Coming>, (Broken, Lost)> {
        let (head, body) = request.into_parts();
        let mut head = http::Request::from_parts(head, ());
        announce(&mut head, &body);
        let is_tunnel = head.method() == Method::CONNECT;
        let is_whole = !is_tunnel && body.is_end_stream();
        let turn = self.turn.lock().await;
        // Its own: what is given up before it is open is forgotten with it.
        let mut sender = self.sender.clone();
        poll_fn(|context| sender.poll_ready(context))
            .await
            .map_err(|error| (Broken::Http2(error), Lost::Unsent))?;
        let (mut answer, stream) = sender.send_request(head, is_whole).map_err(failed)?;
        // It is open then. If the connection ends before, the stream knows what became of it.
        let _ = poll_fn(|context| sender.poll_ready(context)).await;
        drop((sender, turn));
        if is_tunnel {
            let (head, received) = answered(&mut answer, hinted).await?.into_parts();
            return begun(head, stream, received);
        }
        // Where nothing is to be sent, the stream is of no more use.
        let upload = if is_whole { None } else { send(Sending::new(body, stream)) };
        let (head, received) = answered(&mut answer, hinted).await?.into_parts();
        let received = Received::new(received, &head.headers);
        Ok(http::Response::from_parts(head, Coming::Shared { received, _upload: upload }))
    }
}

/// The answer to CONNECT: a tunnel, or why there is none.
fn begun(
    head: http::response::Parts,
    stream: SendStream<Bytes>,
    received: RecvStream,
) -> Result<http::Response<Coming>, (Broken, Lost)> {
    if head.status != StatusCode::OK {
        let received = Received::new(received, &head.headers);
        return Ok(http::Response::from_parts(head, Coming::Shared { received, _upload: None }));
    }
    if content_length(&head.headers).is_some_and(|length| length > 0) {
        return Err((Broken::TunnelWithLength, Lost::Nonsense));
    }
    let tunnel = Box::new(Tunnel::new(stream, received));
    Ok(http::Response::from_parts(head, Coming::Tunnel(tunnel)))
}

fn failed(error: h2::Error) -> (Broken, Lost) {
    let lost = Lost::by(&error);
    (Broken::Http2(error), lost)
}

/// A length that is known is told, as over HTTP/1.1: also that of nothing, where something is usual.
fn announce(head: &mut http::Request<()>, body: &Body) {
    let is_unusual = matches!(*head.method(), Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || !is_unusual) {
        let fields: &mut HeaderMap = head.headers_mut();
        fields.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

/// Begins to send; a task does the rest, if there is one.
fn send(mut sending: Sending<Body>) -> Option<Upload> {
    // Why it ends before its end, the answer tells.
    if (&mut sending).now_or_never().is_some() {
        return None;
    }
    let task = tokio::task::spawn_local(async move {
        let _ = sending.await;
    });
    Some(Upload(task.abort_handle()))
}

async fn answered(
    answer: &mut ResponseFuture,
    hinted: Option<&Hinted>,
) -> Result<http::Response<RecvStream>, (Broken, Lost)> {
    let mut heads = Heads::told_to(hinted);
    poll_fn(|context| {
        while let Poll::Ready(Some(interim)) = answer.poll_informational(context) {
            let interim = interim.map_err(failed)?;
            let taken = heads.take(interim.status(), interim.headers());
            taken.map_err(|error| (Broken::TooMany(error), Lost::Nonsense))?;
        }
        Pin::new(&mut *answer).poll(context).map_err(failed)
    })
    .await
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Coming {
    /// What is behind the head of an answer that began one.
    pub fn into_tunnel(self) -> Option<Box<dyn Duplex>> {
        match self {
            Self::Own(_) | Self::Shared { .. } => None,
            Self::Tunnel(tunnel) => Some(tunnel),
        }
    }
}

impl http_body::Body for Coming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(received) => Pin::new(received).poll_frame(context),
            Self::Shared { received, .. } => Pin::new(received).poll_frame(context).map_err(BodyError::from),
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(received) => received.is_end_stream(),
            Self::Shared { received, .. } => received.is_end_stream(),
            Self::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(received) => received.size_hint(),
            Self::Shared { received, .. } => received.size_hint(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}

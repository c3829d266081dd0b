//! Making a connection to an endpoint: the guard asked, the socket set up, TLS where it is due, HTTP/1.1 on it. The task that drives the
//! connection is spawned here; it belongs to the [`Connection`], which ends it when it is dropped.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::bounds::{Permit, Slot};
use super::broken::Broken;
use super::connect_http2::Lost;
use super::connect_stream::Coming;
use super::eyeballs::{self, Begin};
use super::interim::Heads;
use super::lifespan::Lifespan;
use super::line::Permits;
use super::presence::Owner;
use super::proxy_header::ClientConnection;
use super::socket::Socket;
use super::tls::{Failed, Offer, TlsClient};
use super::wire_http1::Wire;
use super::{Gate, HeadLines};
use crate::message::{ErrorKind, Hinted, ProxyError, Request};
use crate::route_map::BackendProtocol;
use crate::telemetry::Connect;

/// After so long without an acknowledgement of what we wrote, a connection is dead.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(30);

/// One HTTP/1.1 connection to an endpoint. Dropping it closes it at once.
#[derive(Debug)]
pub(super) struct Connection {
    wire: Wire,
    lifespan: Lifespan,
    driver: Driver,
    /// Of a bounded backend: its place among those that are open, for as long as it is.
    slot: Weak<Slot>,
    /// Whose it is, where the backend was told so: nobody else's requests go over it.
    pub owner: Option<Owner>,
}

/// Ends the connection's task when dropped, unless that ends by itself.
#[derive(Debug)]
pub(super) struct Driver {
    task: Option<AbortHandle>,
    ends_by_itself: bool,
}

/// A connection that is being closed.
pub(super) struct Closing {
    slot: Weak<Slot>,
    task: Option<AbortHandle>,
    /// It may say farewell.
    ends_by_itself: bool,
}

/// What a farewell takes is one turn; a socket that takes nothing more gets no more of them.
const TURNS: usize = 8;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the egress guard refuses {0}")]
    Refused(SocketAddr),
    #[error("no connection to {0} within {1:?}")]
    TimedOut(SocketAddr, Duration),
    #[error("cannot connect to {0}")]
    Failed(SocketAddr, #[source] std::io::Error),
    /// Somebody else tried at the same time.
    #[error("a connection to {0} could not be had a moment ago")]
    JustFailed(SocketAddr),
    #[error("{0}, of the same name, was quicker")]
    Outrun(SocketAddr, TcpStream),
    #[error("no TLS connection to {0}")]
    Tls(SocketAddr, Failed, #[source] std::io::Error),
    #[error("{0} speaks HTTP/2 and takes no WebSocket there")]
    NoWebSockets(SocketAddr),
    #[error("as many connections are open as may be")]
    NonePermitted,
    #[error("no socket can be made")]
    OutOfSockets(#[source] std::io::Error),
}

/// A request that got no answer.
pub(super) struct Unanswered {
    pub error: Broken,
    /// The request as it was: not a byte of it was sent.
    pub unsent: Option<Request>,
    /// On a shared connection: what became of it.
    pub lost: Option<Lost>,
    /// Whether the endpoint sent anything before it failed.
    pub heard: bool,
    /// The endpoint ended the TLS connection, and why.
    pub refused: Option<(Failed, String)>,
}

impl Connection {
    /// With `tls`, what the endpoint has to prove is proven before this returns.
    pub async fn open(
        address: SocketAddr,
        gate: &Gate,
        tls: Option<(&TlsClient, ServerName<'static>)>,
        begin: (Begin, Option<&[u8]>),
        until: Instant,
        permits: &mut Permits<'_>,
    ) -> Result<Box<Self>, ConnectError> {
        permits.have()?;
        let socket = reach(address, gate, tls, Offer::Http1, begin, until).await?;
        Ok(Self::over(socket, permits.take()))
    }

    /// Reserves it for one client's connection.
    pub fn reserved(mut self: Box<Self>, client: Option<&ClientConnection>) -> Box<Self> {
        self.owner = client.map(Owner::new);
        self
    }

    pub fn is_for(&self, client: Option<&ClientConnection>) -> bool {
        match (&self.owner, client) {
            (None, None) => true,
            (Some(owner), Some(client)) => owner.is(client),
            _ => false,
        }
    }

    /// HTTP/1.1 over what is there.
    pub fn over(stream: Socket, permit: Option<Permit>) -> Box<Self> {
        let slot = permit.as_ref().map(Arc::downgrade).unwrap_or_default();
        let wire = Wire::new(stream, permit);
        let driver = Driver::of(tokio::task::spawn_local(wire.drive()).abort_handle());
        let lifespan = Lifespan::new(Instant::now(), wire.chance());
        Box::new(Self { wire, lifespan, driver, slot, owner: None })
    }

    /// Whether a request can be sent now: the last one is over in both directions and nobody closed.
    pub fn is_ready(&self) -> bool {
        self.wire.is_ready()
    }

    pub fn is_closed(&self) -> bool {
        self.wire.is_closed()
    }

    /// Whether it had all the requests that it may have, or is too old for another.
    pub fn is_spent(&self, now: Instant) -> bool {
        self.lifespan.is_over(now)
    }

    /// `lines` are put into it on the way. `hinted` is told of early hints.
    ///
    /// # Errors
    /// The request as it was where nothing of it was sent. The connection is of no more use then.
    pub fn send(
        &mut self,
        request: Request,
        lines: Option<&HeadLines>,
        hinted: Option<&Hinted>,
    ) -> impl Future<Output = Result<http::Response<Coming>, Box<Unanswered>>> {
        self.lifespan.counts();
        // Handed over here and not in the future: each move of a request copies 264 bytes.
        let begun = self.wire.begin(request, lines);
        let wire = &self.wire;
        async move {
            let failed = |error, unsent| {
                let (heard, refused) = (wire.heard(), wire.refused());
                Box::new(Unanswered { error, unsent, lost: None, heard, refused })
            };
            if let Err(unsent) = begun {
                return Err(failed(Broken::Closed, Some(*unsent)));
            }
            let mut heads = Heads::told_to(hinted);
            let answer = poll_fn(|context| wire.poll_answer(context, &mut heads)).await;
            answer.map_err(|error| {
                let unsent = if error.is_of_the_connection() { wire.unsent() } else { None };
                failed(error, unsent)
            })
        }
    }

    /// The head of the request that failed, as it went out.
    pub fn sent(&self) -> Option<Vec<u8>> {
        self.wire.sent()
    }

    /// Closes it for another one.
    pub fn give_up(self) -> Closing {
        self.driver.closing(&self.slot)
    }

    /// Lets the connection live on as the tunnel that it has become.
    pub fn release(mut self) {
        self.driver.task = None;
    }
}

impl Driver {
    pub fn of(task: AbortHandle) -> Self {
        Self { task: Some(task), ends_by_itself: false }
    }

    /// Of a task that ends when nobody has use for its connection.
    pub fn left_alone(self) -> Self {
        let mut this = self;
        Self { task: this.task.take(), ends_by_itself: true }
    }

    /// Ends the task, whoever else still holds the connection.
    pub fn closing(&self, slot: &Weak<Slot>) -> Closing {
        if !self.ends_by_itself {
            self.task.iter().for_each(AbortHandle::abort);
        }
        let ends_by_itself = self.ends_by_itself;
        Closing { slot: Weak::clone(slot), task: self.task.clone(), ends_by_itself }
    }
}

impl Closing {
    /// Waits until its socket is closed. None: its place went to somebody else.
    pub async fn done(self) -> Option<Permit> {
        let permit = self.slot.upgrade()?;
        // The task ends on this thread, when it is its turn.
        let mut turns = 0;
        while let Some(task) = self.task.as_ref().filter(|task| !task.is_finished()) {
            if self.ends_by_itself && turns == TURNS {
                task.abort();
            }
            turns += 1;
            tokio::task::yield_now().await;
        }
        Some(permit).filter(|permit| !permit.is_given_back())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(task) = self.task.as_ref().filter(|_| !self.ends_by_itself) {
            task.abort();
        }
    }
}

impl ConnectError {
    /// As the attempt is counted.
    pub fn counted(&self) -> Connect {
        match self {
            Self::Refused(_) => Connect::Refused,
            Self::TimedOut(..) | Self::Outrun(..) => Connect::TimedOut,
            Self::Failed(..)
            | Self::JustFailed(_)
            | Self::NoWebSockets(_)
            | Self::NonePermitted
            | Self::OutOfSockets(_) => Connect::Failed,
            Self::Tls(..) => Connect::Tls,
        }
    }

    /// Whether another endpoint may do better.
    pub fn is_of_the_endpoint(&self) -> bool {
        !matches!(self, Self::OutOfSockets(_) | Self::NonePermitted)
    }
}

impl From<ConnectError> for ProxyError {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Refused(_) => ErrorKind::AddressNotPermitted,
            ConnectError::TimedOut(..) => ErrorKind::ConnectTimeout,
            ConnectError::Failed(..)
            | ConnectError::JustFailed(_)
            | ConnectError::Outrun(..)
            | ConnectError::OutOfSockets(_) => ErrorKind::ConnectFailure,
            ConnectError::Tls(..) => ErrorKind::TlsFailure,
            ConnectError::NoWebSockets(_) => ErrorKind::NoWebSockets,
            ConnectError::NonePermitted => ErrorKind::Overloaded,
        };
        Self::caused(kind, error)
    }
}

/// The bytes to an endpoint: the guard asked, a socket, `header` on it before anything else, TLS where it is due.
pub(super) async fn reach(
    address: SocketAddr,
    gate: &Gate,
    tls: Option<(&TlsClient, ServerName<'static>)>,
    offer: Offer,
    (begin, header): (Begin, Option<&[u8]>),
    until: Instant,
) -> Result<Socket, ConnectError> {
    if !gate.permits(address) {
        return Err(ConnectError::Refused(address));
    }
    let started = Instant::now();
    let late = || ConnectError::TimedOut(address, started.elapsed());
    let dialled = tokio::time::timeout_at(until, eyeballs::begin(address, begin, gate));
    let mut stream = dialled.await.map_err(|_| late())??;
    if let Some(header) = header {
        let written = tokio::time::timeout_at(until, stream.write_all(header)).await.map_err(|_| late())?;
        written.map_err(|error| ConnectError::Failed(address, error))?;
    }
    let Some((client, name)) = tls else { return Ok(Socket::Plain(stream)) };
    // Boxed: its state is large, and every request would carry the room for it.
    let handshake = Box::pin(client.shake_hands(name, stream, offer));
    let shaken = tokio::time::timeout_at(until, handshake).await.map_err(|_| late())?;
    let stream = shaken.map_err(|error| ConnectError::Tls(address, Failed::of(&error), error))?;
    Ok(Socket::Tls(Box::new(stream)))
}

/// Whether HTTP/2 is spoken on what was reached.
///
/// # Errors
/// It has to be, and TLS did not agree on it.
pub(super) fn is_http2(
    protocol: BackendProtocol,
    socket: &Socket,
    address: SocketAddr,
) -> Result<bool, ConnectError> {
    match (protocol, socket.protocol()) {
        (BackendProtocol::Http1, _) => Ok(false),
        (BackendProtocol::Http2, None) if !socket.is_tls() => Ok(true),
        (BackendProtocol::Http2, agreed) if agreed != Some(b"h2") => {
            let error = std::io::Error::other("the endpoint does not speak HTTP/2 over TLS (ALPN)");
            Err(ConnectError::Tls(address, Failed::NothingInCommon, error))
        }
        (_, agreed) => Ok(agreed == Some(b"h2")),
    }
}

pub(super) async fn dial(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        .map_err(ConnectError::OutOfSockets)?;
    let failed = |error: std::io::Error| match error.kind() {
        // Our own ephemeral ports are used up.
        std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::AddrInUse => {
            ConnectError::OutOfSockets(error)
        }
        _ => ConnectError::Failed(address, error),
    };
    set_up(&socket).map_err(failed)?;
    socket.connect(address).await.map_err(failed)
}

fn set_up(socket: &TcpSocket) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(10)),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

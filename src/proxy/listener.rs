//! Accepting: one `SO_REUSEPORT` socket a worker and address. The kernel shares connections out by hash, which is
//! uneven for few clients, so a busy worker hands new ones to the one that has fewest.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as Socket};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection;
use super::worker::{Ear, Worker};
use crate::lifecycle::{DrainSignal, Phase};

const BACKLOG: i32 = 1024;
/// A worker that is ahead by more than this hands connections over.
const UNEVEN: usize = 2;
/// Out of descriptors: so long nothing is accepted, and so seldom it is logged.
const PAUSE: Duration = Duration::from_millis(50);
const LOG_EVERY: Duration = Duration::from_secs(1);

/// A connection on its way to another worker.
#[derive(Debug)]
pub struct Handed {
    pub socket: std::net::TcpStream,
    pub peer: SocketAddr,
    pub tls: bool,
}

/// Binds one socket for each worker to the same address; port 0 is the same free one for all of them.
///
/// # Errors
/// The address cannot be bound.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<Socket>)> {
    let first = bind_one(address)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind_one(bound)?);
    }
    Ok((bound, sockets))
}

fn bind_one(address: SocketAddr) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        // `[::]` answers IPv4 as well, whatever the host's default is.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts on all sockets of a worker until drain, and until their queues are empty then.
pub async fn listen(worker: &Rc<Worker>, ears: Vec<Ear>) {
    join_all(ears.into_iter().map(|ear| accept_all(worker, ear))).await;
    // The sockets are closed; what they brought is still served.
    worker.listening.set(false);
    std::future::pending().await
}

async fn accept_all(worker: &Rc<Worker>, ear: Ear) {
    let listener = match TcpListener::from_std(ear.socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "listening socket cannot be watched");
            return;
        }
    };
    let mut drain = worker.shared.drain.clone();
    let mut logged = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.reached(Phase::Draining) => break,
        };
        match accepted {
            Ok((socket, peer)) => {
                // What is accepted too much waits here, and all others in the kernel's queue.
                while is_full(worker) {
                    tokio::select! {
                        () = pause(&mut logged, &"all are taken; raise --max-connections or add replicas") => {}
                        () = drain.reached(Phase::Draining) => break,
                    }
                }
                paced(worker, &mut drain).await;
                place(worker, socket, peer, ear.tls);
            }
            Err(error) if exhausted(&error) => {
                pause(&mut logged, &format_args!("{error}; raise the limit of open files or add replicas"))
                    .await;
            }
            // Gone before it was accepted.
            Err(_) => {}
        }
    }
    empty(worker, listener, ear.tls);
}

/// Waits until one more connection may be accepted, or for drain, in which nobody waits.
async fn paced(worker: &Worker, drain: &mut DrainSignal) {
    let Some(pace) = &worker.shared.pace else { return };
    let Err(mut wait) = pace.take() else { return };
    worker.stats.accept_delayed();
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = drain.reached(Phase::Draining) => return,
        }
        match pace.take() {
            Ok(()) => return,
            Err(longer) => wait = longer,
        }
    }
}

/// Who is in the queue has a connection already: closing the socket before it is empty would reset it. Asks the kernel
/// itself, because the runtime hears of new connections only later.
fn empty(worker: &Rc<Worker>, listener: TcpListener, tls: bool) {
    let Ok(listener) = listener.into_std() else { return };
    while let Ok((socket, peer)) = listener.accept() {
        if socket.set_nonblocking(true).is_ok()
            && let Ok(socket) = TcpStream::from_std(socket)
        {
            place(worker, socket, peer, tls);
        }
    }
}

/// Takes the connections that other workers hand over.
pub async fn receive(worker: &Rc<Worker>, mut inbox: mpsc::Receiver<Handed>) {
    while let Some(Handed { socket, peer, tls }) = inbox.recv().await {
        match TcpStream::from_std(socket) {
            Ok(socket) => connection::begin(worker, socket, peer, tls),
            Err(_) => drop(worker.desk().connections.fetch_sub(1, Ordering::AcqRel)),
        }
    }
}

/// Serves a connection here or hands it to the worker that has the fewest.
fn place(worker: &Rc<Worker>, socket: TcpStream, peer: SocketAddr, tls: bool) {
    prepare(&socket);
    let desks = &worker.shared.desks;
    let mine = worker.desk().connections.load(Ordering::Relaxed);
    let fewest = desks.iter().min_by_key(|desk| desk.connections.load(Ordering::Relaxed));
    // In drain another worker may have ended already.
    if let Some(other) = fewest
        && worker.shared.drain.phase() < Phase::Draining
        && mine > other.connections.load(Ordering::Relaxed) + UNEVEN
        && let Ok(place) = other.inbox.try_reserve()
    {
        match socket.into_std() {
            Ok(socket) => {
                other.connections.fetch_add(1, Ordering::AcqRel);
                place.send(Handed { socket, peer, tls });
            }
            Err(error) => tracing::warn!(%error, "a connection was lost on its way to another worker"),
        }
        return;
    }
    worker.desk().connections.fetch_add(1, Ordering::AcqRel);
    connection::begin(worker, socket, peer, tls);
}

fn prepare(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// No descriptor or memory for another connection: `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`.
fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

/// Whether all workers together have as many connections as they may.
fn is_full(worker: &Worker) -> bool {
    let desks = worker.shared.desks.iter();
    let open: usize = desks.map(|desk| desk.connections.load(Ordering::Relaxed)).sum();
    open >= worker.settings.limits.connections
}

async fn pause(logged: &mut Option<Instant>, why: &dyn fmt::Display) {
    if logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
        *logged = Some(Instant::now());
        tracing::warn!(%why, "cannot accept connections");
    }
    tokio::time::sleep(PAUSE).await;
}

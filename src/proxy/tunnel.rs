//! What follows a 101: bytes in both directions until one side ends, nothing moves for too long, or the process closes.
//! Just before it does, a client of a WebSocket gets a Close frame wherever the backend's frames leave room for it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::account::Account;
use super::frames::{Frames, GOING_AWAY};
use super::observed::Upload;
use crate::lifecycle::{DrainSignal, Phase};
use crate::message::Duplex;
use crate::upstream::Place;

const BUFFER: usize = 16 << 10;

/// A tunnel whose backend has agreed; it begins when the client has the 101.
pub struct Pending {
    upstream: Box<dyn Duplex>,
    /// What it takes up at its backend.
    place: Option<Place>,
    idle: Option<Duration>,
    is_websocket: bool,
    /// Of the request that asked for it: counted and logged when the tunnel ends.
    account: Option<Box<Account>>,
}

impl Pending {
    pub fn new(
        upstream: Box<dyn Duplex>,
        place: Option<Place>,
        idle: Option<Duration>,
        is_websocket: bool,
    ) -> Self {
        Self { upstream, place, idle, is_websocket, account: None }
    }

    pub fn accounted(self, account: Box<Account>) -> Self {
        Self { account: Some(account), ..self }
    }
}

/// What moves in both directions.
struct Moved {
    last: Cell<Instant>,
    upload: Rc<Upload>,
    download: Cell<u64>,
    account: RefCell<Option<Box<Account>>>,
}

/// However the tunnel ends, its request is over.
impl Drop for Moved {
    fn drop(&mut self) {
        if let Some(account) = self.account.get_mut() {
            account.response_bytes += self.download.get();
            account.upload = Some(self.upload.clone());
            account.complete = true;
        }
    }
}

/// Copies until both directions have ended. A side that ends its sending may go on receiving.
pub async fn run(client: impl AsyncRead + AsyncWrite + Unpin, pending: Pending, drain: DrainSignal) {
    let moved = Moved {
        last: Cell::new(Instant::now()),
        upload: Rc::default(),
        download: Cell::new(0),
        account: RefCell::new(pending.account),
    };
    let _place = pending.place;
    let (idle, is_websocket) = (pending.idle, pending.is_websocket);
    carry(client, pending.upstream, &moved, (idle, is_websocket), drain).await;
}

async fn carry(
    client: impl AsyncRead + AsyncWrite + Unpin,
    upstream: impl AsyncRead + AsyncWrite + Unpin,
    moved: &Moved,
    (idle, is_websocket): (Option<Duration>, bool),
    mut drain: DrainSignal,
) {
    let (client_read, client_write) = tokio::io::split(client);
    let (upstream_read, upstream_write) = tokio::io::split(upstream);
    moved.last.set(Instant::now());
    let counts = |cell: &Cell<u64>, bytes: usize| {
        moved.last.set(Instant::now());
        cell.set(cell.get() + bytes as u64);
    };
    let received = |bytes| counts(&moved.upload.bytes, bytes);
    let sent = |bytes| counts(&moved.download, bytes);
    let parting = Cell::new(false);
    let download = async {
        match is_websocket {
            true => copy_frames(upstream_read, client_write, &parting, &sent).await,
            false => copy(upstream_read, client_write, &sent).await,
        }
    };
    let copies = async {
        let _ = tokio::try_join!(copy(client_read, upstream_write, &received), download);
    };
    let closing = async {
        drain.reached(Phase::Parting).await;
        parting.set(true);
        drain.reached(Phase::Closing).await;
    };
    // In this order, so that the copies hear of the parting by the poll that brings it.
    tokio::select! {
        biased;
        () = closing => {}
        () = copies => {}
        () = silence(&moved.last, idle) => {}
    }
}

/// Copies one direction to its end; whoever sends waits until the other side has taken what came before. `moved` is told
/// of bytes as they come, and of none once they are taken.
pub async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &impl Fn(usize),
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        moved(read);
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        moved(0);
    }
}

/// Like `copy`, of the frames of a WebSocket to its client. Once it is `parting` (who sets it polls this right after),
/// the frame that is under way is the last one of the backend's: a Close frame follows, and of the backend its end is
/// waited for, which the client's own Close frame brings about. Where no frame may be put in, all goes on.
async fn copy_frames(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    parting: &Cell<bool>,
    moved: &impl Fn(usize),
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut frames = Frames::default();
    loop {
        let parts = poll_fn(|_| match parting.get() && frames.at_boundary() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        let read = tokio::select! {
            biased;
            () = parts => break,
            read = from.read(&mut buffer) => read?,
        };
        if read == 0 {
            moved(0);
            return to.shutdown().await;
        }
        let passed = if parting.get() {
            frames.pass_one(&buffer[..read])
        } else {
            frames.pass(&buffer[..read]);
            read
        };
        moved(passed);
        to.write_all(&buffer[..passed]).await?;
        to.flush().await?;
        moved(0);
    }
    to.write_all(&GOING_AWAY).await?;
    to.flush().await?;
    moved(GOING_AWAY.len());
    while let Ok(1..) = from.read(&mut buffer).await {}
    to.shutdown().await
}

/// Ends when nothing has moved for `limit`.
pub async fn silence(moved: &Cell<Instant>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    while moved.get().elapsed() < limit {
        tokio::time::sleep_until(moved.get() + limit).await;
    }
}

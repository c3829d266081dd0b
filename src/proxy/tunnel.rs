//! What follows a 101: bytes in both directions until one side ends, nothing moves for too long, or the process closes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::account::Account;
use super::observed::Upload;
use crate::lifecycle::{DrainSignal, Phase};
use crate::upstream::Place;

const BUFFER: usize = 16 << 10;

/// A tunnel whose backend has agreed; it begins when the client has the 101.
pub struct Pending {
    upstream: OnUpgrade,
    /// What it takes up at its backend.
    place: Option<Place>,
    idle: Option<Duration>,
    /// Of the request that asked for it: counted and logged when the tunnel ends.
    account: Option<Box<Account>>,
}

impl Pending {
    pub fn new(upstream: OnUpgrade, place: Option<Place>, idle: Option<Duration>) -> Self {
        Self { upstream, place, idle, account: None }
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
pub async fn run(client: impl AsyncRead + AsyncWrite + Unpin, pending: Pending, mut drain: DrainSignal) {
    let moved = Moved {
        last: Cell::new(Instant::now()),
        upload: Rc::default(),
        download: Cell::new(0),
        account: RefCell::new(pending.account),
    };
    let _place = pending.place;
    let Ok(upstream) = pending.upstream.await else { return };
    let (client_read, client_write) = tokio::io::split(client);
    let (upstream_read, upstream_write) = tokio::io::split(TokioIo::new(upstream));
    moved.last.set(Instant::now());
    let counts = |cell: &Cell<u64>, bytes: usize| {
        moved.last.set(Instant::now());
        cell.set(cell.get() + bytes as u64);
    };
    let received = |bytes| counts(&moved.upload.bytes, bytes);
    let sent = |bytes| counts(&moved.download, bytes);
    let copies = async {
        let _ = tokio::try_join!(
            copy(client_read, upstream_write, &received),
            copy(upstream_read, client_write, &sent)
        );
    };
    tokio::select! {
        () = copies => {}
        () = silence(&moved.last, pending.idle) => {}
        () = drain.reached(Phase::Closing) => {}
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

/// Ends when nothing has moved for `limit`.
pub async fn silence(moved: &Cell<Instant>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    while moved.get().elapsed() < limit {
        tokio::time::sleep_until(moved.get() + limit).await;
    }
}

//! What follows a 101: bytes in both directions until one side ends, nothing moves for too long, or the process closes.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::lifecycle::{DrainSignal, Phase};

const BUFFER: usize = 16 << 10;

/// A tunnel whose backend has agreed; it begins when the client has the 101.
#[derive(Debug)]
pub struct Pending {
    pub upstream: OnUpgrade,
    pub idle: Option<Duration>,
}

/// Copies until both directions have ended. A side that ends its sending may go on receiving.
pub async fn run(client: impl AsyncRead + AsyncWrite + Unpin, pending: Pending, mut drain: DrainSignal) {
    let Ok(upstream) = pending.upstream.await else { return };
    let (client_read, client_write) = tokio::io::split(client);
    let (upstream_read, upstream_write) = tokio::io::split(TokioIo::new(upstream));
    let moved = std::cell::Cell::new(Instant::now());
    let copies = async {
        let _ = tokio::try_join!(
            copy(client_read, upstream_write, &moved),
            copy(upstream_read, client_write, &moved)
        );
    };
    tokio::select! {
        () = copies => {}
        () = silence(&moved, pending.idle) => {}
        () = drain.reached(Phase::Closing) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &std::cell::Cell<Instant>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        moved.set(Instant::now());
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        moved.set(Instant::now());
    }
}

/// Ends when nothing has moved for `limit`.
async fn silence(moved: &std::cell::Cell<Instant>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    while moved.get().elapsed() < limit {
        tokio::time::sleep_until(moved.get() + limit).await;
    }
}

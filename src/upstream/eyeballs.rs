//! Of a name's addresses the one that answers first (Happy Eyeballs, RFC 8305): while one is waited for, another of the
//! name's, of the other family where there is one, is tried beside it. Whoever lost rests, so that the next requests do not
//! wait for it again.

use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use super::Gate;
use super::connect::{ConnectError, dial};

/// So long one is waited for alone (RFC 8305 section 5).
const ALONE: Duration = Duration::from_millis(250);
/// So many are tried beside it.
pub(super) const MAX_RIVALS: usize = 2;

/// How a connection begins.
#[derive(Debug)]
pub(super) enum Begin {
    Alone,
    /// It has to be quicker than these.
    Against(Vec<SocketAddr>),
    /// It was.
    With(TcpStream),
}

/// # Errors
/// `Outrun` by one of the others, too.
pub(super) async fn begin(address: SocketAddr, begin: Begin, gate: &Gate) -> Result<TcpStream, ConnectError> {
    let rivals = match begin {
        Begin::Alone => return dial(address).await,
        Begin::With(stream) => return Ok(stream),
        Begin::Against(rivals) => rivals,
    };
    // Boxed: seldom, and all requests would carry the room for it.
    Box::pin(async move {
        let mut own = pin!(dial(address));
        match tokio::time::timeout(ALONE, own.as_mut()).await {
            Ok(dialled) => dialled,
            Err(_) => race(own, rivals, gate).await,
        }
    })
    .await
}

async fn race(
    mut own: Pin<&mut impl Future<Output = Result<TcpStream, ConnectError>>>,
    rivals: Vec<SocketAddr>,
    gate: &Gate,
) -> Result<TcpStream, ConnectError> {
    let permitted = rivals.into_iter().filter(|rival| gate.permits(*rival)).zip(0..);
    let mut others: FuturesUnordered<_> = permitted
        .map(|(rival, place)| async move {
            tokio::time::sleep(ALONE * place).await;
            dial(rival).await.ok().map(|stream| (rival, stream))
        })
        .collect();
    let mut failed = None;
    loop {
        tokio::select! {
            biased;
            dialled = own.as_mut(), if failed.is_none() => match dialled {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Some(error),
            },
            Some(quicker) = others.next() => if let Some((rival, stream)) = quicker {
                return Err(ConnectError::Outrun(rival, stream));
            },
            else => return Err(failed.expect("there is nothing to wait for only once it failed")),
        }
    }
}

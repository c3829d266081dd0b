//! SIGTERM and SIGINT as one stream: what Kubernetes and a terminal send to end a process.

use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug)]
pub struct Terminated {
    terminate: Signal,
    interrupt: Signal,
}

/// Starts to listen; signals from now on no longer end the process by themselves.
///
/// # Errors
/// The runtime has no I/O driver, or the handler cannot be installed.
pub fn terminated() -> std::io::Result<Terminated> {
    Ok(Terminated {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    })
}

impl Terminated {
    /// The name of the next signal.
    pub async fn recv(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

//! Drain: one signal that every task of the data path can hear. Phases only go forward.

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Not ready any more; still accepts, so that nobody who has not heard of it is turned away. Answers on HTTP/1.1
    /// carry `Connection: close`.
    Leaving,
    /// Accepts no more; HTTP/2 gets GOAWAY; open requests finish.
    Draining,
    /// The time is nearly over: WebSockets are closed, as long as their clients can still hear it.
    Parting,
    /// The time is over: what is still open is cut.
    Closing,
}

/// The side that decides.
#[derive(Debug)]
pub struct Drain(watch::Sender<Phase>);

/// The side that listens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainSignal(watch::Receiver<Phase>);

impl Drain {
    pub fn new() -> (Self, DrainSignal) {
        let (sender, receiver) = watch::channel(Phase::Serving);
        (Self(sender), DrainSignal(receiver))
    }

    /// Goes to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }
}

impl DrainSignal {
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Whether the phase may be another than when this signal was made. Takes no lock.
    pub fn has_moved(&self) -> bool {
        self.0.has_changed().unwrap_or(true)
    }

    /// Waits until the process is at least in `phase`; at once when it is. Also ends when the process does.
    pub async fn reached(&mut self, phase: Phase) {
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_go_forward() {
        let (drain, mut signal) = Drain::new();
        assert!(!signal.has_moved());
        drain.advance(Phase::Draining);
        assert!(signal.has_moved());
        drain.advance(Phase::Leaving);
        signal.reached(Phase::Leaving).await;
        assert_eq!(signal.phase(), Phase::Draining);
    }
}

//! The threads for what would hold a worker: few, started with the first filter that wants them, and with a deep stack.
//!
//! Invariants: at most [`WAITING`] pieces of work wait; a panic ends one piece; the threads end with the last that holds
//! them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::filters::{Offload, Taken, Work};

/// More would only wait longer than a client does.
const WAITING: usize = 64;
/// For what calls itself as deep as what it reads is nested. Only what is used of it becomes memory.
const STACK: usize = 16 << 20;
const MOST_THREADS: usize = 4;

/// # Errors
/// A thread cannot be started.
pub fn start() -> io::Result<Offload> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (sender, receiver) = sync_channel::<Work>(WAITING);
    let receiver = Arc::new(Mutex::new(receiver));
    // The workers have the other half.
    for index in 0..(cores / 2).clamp(1, MOST_THREADS) {
        let receiver = Arc::clone(&receiver);
        let thread = std::thread::Builder::new().name(format!("offload-{index}")).stack_size(STACK);
        thread.spawn(move || work(&receiver))?;
    }
    Ok(Offload::new(move |work| if sender.try_send(work).is_ok() { Taken::Yes } else { Taken::Full }))
}

fn work(waiting: &Mutex<Receiver<Work>>) {
    loop {
        // Whoever has the lock waits for the next piece; the others wait for the lock.
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(work) = next else { return };
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("work beside the requests panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::task::Poll;

    use futures_util::poll;

    use super::*;
    use crate::message::ErrorKind;

    #[tokio::test]
    async fn work_is_done_elsewhere_and_a_panic_ends_only_itself() {
        let offload = start().expect("threads");
        let here = std::thread::current().id();
        for _ in 0..=MOST_THREADS {
            assert_eq!(offload.run(|| panic!("for the test")).await, Err::<(), _>(ErrorKind::Internal));
        }
        let there = offload.run(|| std::thread::current().id()).await.expect("done");
        assert_ne!(here, there);
    }

    #[tokio::test]
    async fn as_much_waits_as_may() {
        let offload = start().expect("threads");
        let (go, going) = channel::<()>();
        let going = Arc::new(Mutex::new(going));
        let (mut waiting, mut refused) = (Vec::new(), 0);
        for _ in 0..=MOST_THREADS + WAITING {
            let going = Arc::clone(&going);
            let mut piece = Box::pin(offload.run(move || {
                // Ends when the sender is gone.
                let _ = going.lock().unwrap_or_else(PoisonError::into_inner).recv();
            }));
            match poll!(&mut piece) {
                Poll::Pending => waiting.push(piece),
                Poll::Ready(done) => {
                    assert_eq!(done, Err(ErrorKind::Overloaded));
                    refused += 1;
                }
            }
        }
        assert!((1..=MOST_THREADS + 1).contains(&refused), "{refused}");
        drop(go);
        for piece in waiting {
            assert_eq!(piece.await, Ok(()));
        }
        assert_eq!(offload.run(|| 7).await, Ok(7), "there is room again");
    }
}

//! Work that would hold a worker for longer than its other requests should wait: slow hashes, large bodies. A filter takes
//! hold of the threads for it when it is linked; `proxy/` owns them.

use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::message::ErrorKind;

/// Something to be done on another thread.
pub type Work = Box<dyn FnOnce() + Send>;

/// The threads for it.
#[derive(Clone)]
pub struct Offload(Arc<dyn Fn(Work) -> Taken + Send + Sync>);

/// Whether work was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Yes,
    /// As much waits as may.
    Full,
}

impl Offload {
    pub fn new(take: impl Fn(Work) -> Taken + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Without threads, as in tests of something else.
    pub fn at_once() -> Self {
        Self::new(|work| {
            work();
            Taken::Yes
        })
    }

    /// What `work` gives. What is still waiting when nobody waits for it any more is not done.
    ///
    /// # Errors
    /// `Overloaded` where as much waits as may, `Internal` where it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ErrorKind> {
        let (done, doing) = oneshot::channel();
        let taken = (self.0)(Box::new(move || {
            if !done.is_closed() {
                let _ = done.send(work());
            }
        }));
        match taken {
            Taken::Yes => doing.await.map_err(|_| ErrorKind::Internal),
            Taken::Full => Err(ErrorKind::Overloaded),
        }
    }
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offload")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_gives_what_it_gives() {
        assert_eq!(Offload::at_once().run(|| 7).await, Ok(7));
        assert_eq!(Offload::new(|_| Taken::Full).run(|| 7).await, Err(ErrorKind::Overloaded));
    }

    #[test]
    fn what_nobody_waits_for_is_not_done() {
        let waiting = Arc::new(Mutex::new(Vec::<Work>::new()));
        let kept = Arc::clone(&waiting);
        let offload = Offload::new(move |work| {
            kept.lock().expect("no panic").push(work);
            Taken::Yes
        });
        for gone in [true, false] {
            let done = Arc::new(Mutex::new(false));
            let told = Arc::clone(&done);
            let mut asked = Box::pin(offload.run(move || *told.lock().expect("no panic") = true));
            assert!(asked.as_mut().now_or_never().is_none(), "it waits");
            if gone {
                drop(asked);
            }
            waiting.lock().expect("no panic").pop().expect("taken")();
            assert_eq!(*done.lock().expect("no panic"), !gone);
        }
    }
}

//! How long a request may take at a backend.
//!
//! Law: no limit of a request's time passes while its client still sends. It begins when the client has sent all: who
//! sends a stream, or slowly, is bounded by other limits (silence, and the pace of an upload), and so is an endpoint
//! that does not take what the client has sent.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;

use super::aim::Aim;
use super::proxy_header::ClientConnection;
use super::retry::Tries;
use crate::message::{ErrorKind, Hinted, ProxyError};

const CONNECT: Duration = Duration::from_secs(2);
/// Retries in a hundred requests, where no rule says else.
const BUDGET_PERCENT: u8 = 20;
/// How often to look whether a client has sent all.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes a second that a client sends at least once the time of its request would be over: who drips would hold a place
/// at the backend for hours.
const LEAST_PACE: u64 = 500;

/// Bounds of a request, and of each of its tries. `None` is "no limit".
#[derive(Clone, Copy, Debug)]
pub struct SendLimits<'a> {
    /// Over all endpoints that are tried; 2 s by default.
    pub connect: Option<Duration>,
    /// Until when the answer's head must be there; of one that is still sent this is only when it is looked at first.
    pub deadline: Option<Instant>,
    /// What there was until then when the request began; what there is, once the client has sent all.
    pub whole: Option<Duration>,
    /// How long one try may take up to the answer's head.
    pub one_try: Option<Duration>,
    /// When the client has sent its body to the end. `None`: it was at hand from the start.
    pub uploaded: Option<&'a Cell<Option<Instant>>>,
    pub tries: Option<&'a Tries<'a>>,
    /// Whose request it is, for backends that want to know it; none: ours.
    pub client: Option<&'a ClientConnection>,
    /// While the client sends, no time passes of the limits above but that of `connect`.
    pub upload: Option<Uploading<'a>>,
    /// It is a call of gRPC.
    pub call: Option<Call>,
    /// Retries in a hundred requests to the backend.
    pub budget_percent: u8,
    pub aim: Aim,
    /// Who is told of early hints; backends that are spoken to over HTTP/2 give none.
    pub hinted: Option<&'a Hinted>,
}

/// Of a call of gRPC.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// When the client's time is over. With it each try hears what is left of it.
    pub until: Option<Instant>,
}

/// Limits of a request that its client may still be sending.
#[derive(Clone, Copy, Debug)]
pub struct Uploading<'a> {
    /// When the client began.
    pub since: Instant,
    /// None: a stream, which goes at its own pace.
    pub pace: Option<Pace<'a>>,
}

/// How an upload gets on.
#[derive(Clone, Copy, Debug)]
pub struct Pace<'a> {
    pub bytes: &'a Cell<u64>,
    /// The client is waited for. Else the backend has not taken all that is there.
    pub waits: &'a Cell<bool>,
}

impl Default for SendLimits<'_> {
    fn default() -> Self {
        Self {
            connect: Some(CONNECT),
            deadline: None,
            whole: None,
            one_try: None,
            uploaded: None,
            tries: None,
            client: None,
            upload: None,
            call: None,
            budget_percent: BUDGET_PERCENT,
            aim: Aim::Anywhere,
            hinted: None,
        }
    }
}

impl<'a> SendLimits<'a> {
    /// Else silence may be the client's fault, and no endpoint's.
    pub(super) fn is_uploaded(&self) -> bool {
        self.uploaded.is_none_or(|ended| ended.get().is_some())
    }

    /// Since when an endpoint that was asked at this time has all that it needs for an answer. None: it has not.
    pub(super) fn answerable_since(&self, asked: Instant) -> Option<Instant> {
        match self.uploaded {
            None => Some(asked),
            Some(ended) => ended.get().map(|ended| ended.max(asked)),
        }
    }

    /// Until when an answer's head must be there, as far as that is known now.
    pub(super) fn due(&self) -> Option<Instant> {
        match (self.upload, self.uploaded) {
            (Some(_), Some(ended)) => {
                let whole = ended.get().zip(self.whole).map(|(ended, whole)| ended + whole);
                // A client's own deadline always counts.
                whole.into_iter().chain(self.call.and_then(|call| call.until)).min()
            }
            _ => self.deadline,
        }
    }

    /// When a try that began at this time is over, as far as that is known now.
    pub(super) fn due_of(&self, began: Instant) -> Option<Instant> {
        let own = self.answerable_since(began).zip(self.one_try).map(|(since, own)| since + own);
        own.into_iter().chain(self.due()).min()
    }

    /// When a try that begins now is looked at first.
    pub(super) fn first_look(&self, began: Instant) -> Option<Instant> {
        let own = self.one_try.map(|limit| began + limit);
        own.into_iter().chain(self.deadline).min()
    }

    /// Waits on while the client sends, and for the answer once it has sent all.
    pub(super) async fn within<T>(
        &self,
        upload: Uploading<'a>,
        began: Instant,
        mut work: Pin<&mut impl Future<Output = Result<T, ProxyError>>>,
    ) -> Result<T, ProxyError> {
        let mut moved = Moved { bytes: 0, at: began };
        loop {
            let next = if self.is_uploaded() { None } else { Some(Instant::now() + LOOK) };
            let Some(next) = next.into_iter().chain(self.due_of(began)).min() else { return work.await };
            if let Ok(outcome) = tokio::time::timeout_at(next, work.as_mut()).await {
                return outcome;
            }
            let now = Instant::now();
            if self.due_of(began).is_some_and(|due| now >= due) {
                return Err(late(began));
            }
            if !self.is_uploaded()
                && let Some(pace) = upload.pace
            {
                let patience = self.one_try.into_iter().chain(self.whole).min();
                moved.judge(&pace, now, now.saturating_duration_since(upload.since), patience)?;
            }
        }
    }

    pub(super) fn is_asked(&self, endpoint: SocketAddr) {
        if let Some(tries) = self.tries {
            tries.is_asked(endpoint);
        }
    }
}

/// Of what was asked at this time and not answered soon enough.
pub(super) fn late(began: Instant) -> ProxyError {
    ProxyError::caused(ErrorKind::BackendTimeout, format!("no answer came within {:.1?}", began.elapsed()))
}

/// What has come of an upload when it was looked at last, and since when nothing more has.
struct Moved {
    bytes: u64,
    at: Instant,
}

impl Moved {
    /// # Errors
    /// The client is too slow, or the endpoint takes nothing.
    fn judge(
        &mut self,
        pace: &Pace<'_>,
        now: Instant,
        elapsed: Duration,
        patience: Option<Duration>,
    ) -> Result<(), ProxyError> {
        let bytes = pace.bytes.get();
        if bytes != self.bytes {
            (self.bytes, self.at) = (bytes, now);
        }
        if !pace.waits.get() {
            let silent = now.saturating_duration_since(self.at);
            let is_late = patience.is_some_and(|patience| silent >= patience);
            let stuck = || {
                let cause = format!("nothing of the request's body was taken for {silent:.1?}");
                ProxyError::caused(ErrorKind::BackendTimeout, cause)
            };
            return if is_late { Err(stuck()) } else { Ok(()) };
        }
        match bytes < LEAST_PACE.saturating_mul(elapsed.as_secs()) {
            true => Err(ErrorKind::RequestTimeout.into()),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Client {
        ended: Cell<Option<Instant>>,
        bytes: Cell<u64>,
        waits: Cell<bool>,
        began: Instant,
    }

    impl Client {
        fn new() -> Self {
            Self {
                ended: Cell::default(),
                bytes: Cell::default(),
                waits: Cell::new(true),
                began: Instant::now(),
            }
        }

        fn limits(&self, whole: u64, one_try: Option<u64>) -> SendLimits<'_> {
            SendLimits {
                deadline: Some(self.began + SECOND * whole as u32),
                whole: Some(SECOND * whole as u32),
                one_try: one_try.map(Duration::from_secs),
                uploaded: Some(&self.ended),
                upload: Some(Uploading {
                    since: self.began,
                    pace: Some(Pace { bytes: &self.bytes, waits: &self.waits }),
                }),
                ..SendLimits::default()
            }
        }
    }

    /// After how many seconds a request without an answer ends, and how.
    async fn ends(limits: SendLimits<'_>, client: &Client, act: impl AsyncFn(&Client)) -> (u64, ErrorKind) {
        let mut work = std::pin::pin!(std::future::pending::<Result<(), ProxyError>>());
        let upload = limits.upload.expect("given");
        let waiting = async {
            tokio::time::sleep_until(limits.first_look(client.began).expect("it has limits")).await;
            limits.within(upload, client.began, work.as_mut()).await
        };
        let acting = async {
            act(client).await;
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = waiting => outcome,
            () = acting => unreachable!("it waits for ever"),
        };
        (client.began.elapsed().as_secs(), outcome.expect_err("there is no answer").kind)
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_begins_when_the_client_has_sent_all() {
        for (one_try, end) in [(None, 100 + 5), (Some(2), 100 + 2)] {
            let client = Client::new();
            let outcome = ends(client.limits(5, one_try), &client, async |client| {
                for _ in 0..100 {
                    tokio::time::sleep(SECOND).await;
                    client.bytes.set(client.bytes.get() + 2 * LEAST_PACE);
                }
                client.ended.set(Some(Instant::now()));
            });
            assert_eq!(outcome.await, (end, ErrorKind::BackendTimeout));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_drips_is_told_to_be_too_slow_and_a_stream_may() {
        let drip = async |client: &Client| {
            loop {
                tokio::time::sleep(SECOND).await;
                client.bytes.set(client.bytes.get() + LEAST_PACE / 2);
            }
        };
        let client = Client::new();
        assert_eq!(ends(client.limits(5, None), &client, drip).await.1, ErrorKind::RequestTimeout);
        let client = Client::new();
        let limits = client.limits(5, None);
        let stream = Uploading { pace: None, ..limits.upload.expect("given") };
        let call = Call { until: Some(client.began + SECOND * 999) };
        let limits = SendLimits { upload: Some(stream), call: Some(call), ..limits };
        assert_eq!(ends(limits, &client, drip).await, (999, ErrorKind::BackendTimeout));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_takes_nothing_has_the_time_of_an_answer() {
        let client = Client::new();
        client.waits.set(false);
        let outcome = ends(client.limits(5, None), &client, async |client| {
            tokio::time::sleep(SECOND * 20).await;
            client.bytes.set(1);
        });
        // At the first look past it. And the control: bytes that moved start its time anew.
        assert_eq!(outcome.await, (6, ErrorKind::BackendTimeout));
        let client = Client::new();
        client.waits.set(false);
        let outcome = ends(client.limits(5, None), &client, async |client| {
            for _ in 0..20 {
                tokio::time::sleep(SECOND * 2).await;
                client.bytes.set(client.bytes.get() + 1);
            }
        });
        let (after, kind) = outcome.await;
        assert!((44..=47).contains(&after) && kind == ErrorKind::BackendTimeout, "{after} {kind:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_body_was_at_hand_has_its_deadline() {
        let began = Instant::now();
        let limits = SendLimits { deadline: Some(began + SECOND), ..SendLimits::default() };
        assert_eq!((limits.due(), limits.due_of(began)), (Some(began + SECOND), Some(began + SECOND)));
    }
}

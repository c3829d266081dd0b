//! The policy `mirror`: a copy of a request goes to another backend beside it, and what comes of that concerns nobody.
//!
//! Invariants: the request never waits for its copy and never fails by it; a copy is sent once, whole or not at all; so
//! many copies at most are under way on a worker, and so much of a body is held for each; no namespace's copies leave
//! those of others no room.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use foldhash::quality::RandomState;
use http::header::{self, HeaderMap, HeaderValue};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::time::Instant;

use super::forward::Way;
use super::forwarded;
use super::live::Slot;
use super::spread::Spread;
use super::worker::Worker;
use crate::message::{Body, BodyError, FixedHost, Request};
use crate::telemetry::RuleStats;
use crate::upstream::{Backend, ClientConnection, HeadLines, SendLimits};

/// Copies of a worker that are under way at once, those included whose bodies are still on their way to us.
const MAX_AT_ONCE: usize = 256;
/// A request with a larger body is not copied.
const MAX_BODY: usize = 64 << 10;
/// From the moment a copy is sent to the end of its answer; and before, for its body to come.
const PATIENCE: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(2);
/// Of a longer answer the rest is not read.
const MAX_ANSWER: usize = 1 << 20;

/// A rule's linked mirror.
#[derive(Debug)]
pub struct LiveMirror {
    /// None: its backend is not there.
    backend: Option<Arc<Slot>>,
    /// Whether it is the next request's turn.
    turns: Spread<Turn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Copied,
    Alone,
}

/// Copies of one worker that are under way.
#[derive(Default)]
pub struct Seats(Rc<RefCell<Taken>>);

/// Law: a namespace takes no more than are free then. So one alone has half of all, and there is always one for the next.
#[derive(Default)]
struct Taken {
    all: usize,
    by_namespace: HashMap<Arc<str>, usize, RandomState>,
    /// Those whose bodies are still coming, the oldest first.
    unsent: VecDeque<Weak<Unsent>>,
}

/// Empty once it is on its way, or will not be.
type Unsent = Cell<Option<Box<Copy>>>;

/// A copy's place; free when dropped.
struct Seat {
    taken: Rc<RefCell<Taken>>,
    namespace: Arc<str>,
}

impl Seats {
    fn take(&self, namespace: &Arc<str>) -> Option<Seat> {
        if !self.0.borrow().has_room(namespace) {
            self.reclaim();
        }
        let mut taken = self.0.borrow_mut();
        if !taken.has_room(namespace) {
            return None;
        }
        taken.all += 1;
        *taken.by_namespace.entry(Arc::clone(namespace)).or_default() += 1;
        Some(Seat { taken: Rc::clone(&self.0), namespace: Arc::clone(namespace) })
    }

    /// Frees the seats of those whose bodies take too long: of one that has stopped nobody hears.
    fn reclaim(&self) {
        let now = Instant::now();
        let next = || late(&mut self.0.borrow_mut().unsent, |copy| copy.until <= now);
        while let Some(copy) = next() {
            copy.told.dropped(Dropped::BodyTooSlow);
        }
    }

    fn waits(&self, unsent: &Rc<Unsent>) {
        let waiting = &mut self.0.borrow_mut().unsent;
        if waiting.len() >= 2 * MAX_AT_ONCE {
            waiting.retain(|one| one.strong_count() > 0);
        }
        waiting.push_back(Rc::downgrade(unsent));
    }
}

impl Taken {
    fn has_room(&self, namespace: &str) -> bool {
        let own = self.by_namespace.get(namespace).copied().unwrap_or(0);
        own < MAX_AT_ONCE.saturating_sub(self.all)
    }
}

/// The first one, if it is late; those that wait no longer are passed over for good.
fn late<T>(waiting: &mut VecDeque<Weak<Cell<Option<T>>>>, is_late: impl Fn(&T) -> bool) -> Option<T> {
    while let Some(first) = waiting.pop_front() {
        let Some(cell) = first.upgrade() else { continue };
        match cell.take() {
            Some(one) if is_late(&one) => return Some(one),
            Some(one) => {
                cell.set(Some(one));
                waiting.push_front(first);
                return None;
            }
            None => {}
        }
    }
    None
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.borrow_mut();
        taken.all -= 1;
        if let Some(own) = taken.by_namespace.get_mut(&self.namespace) {
            *own -= 1;
            if *own == 0 {
                taken.by_namespace.remove(&self.namespace);
            }
        }
    }
}

/// Why a request is not copied whose turn it is; `as_str` is the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
    /// As many are under way as may be.
    Busy,
    BodyTooLarge,
    /// Its body did not come to its end: the client went, or the backend did not want it.
    BodyUnfinished,
    /// Its body took too long.
    BodyTooSlow,
    /// It begins a tunnel.
    Upgrade,
    NoBackend,
}

impl Dropped {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyUnfinished => "body_unfinished",
            Self::BodyTooSlow => "body_too_slow",
            Self::Upgrade => "upgrade",
            Self::NoBackend => "no_backend",
        }
    }
}

impl LiveMirror {
    /// `next` counts on while maps come and go.
    pub fn new(backend: Option<Arc<Slot>>, percent: u32, next: Arc<AtomicU64>) -> Self {
        let percent = percent.min(100);
        Self { backend, turns: Spread::new([(percent, Turn::Copied), (100 - percent, Turn::Alone)], next) }
    }

    /// To be called for each request as it is about to go out. If it is its turn, it is copied: what is at hand is sent
    /// at once, else as soon as its body has gone by.
    pub fn see(&self, way: &Way<'_>, request: &mut Request, lines: &HeadLines) {
        if self.turns.choose() != Some(&Turn::Copied) {
            return;
        }
        let worker = &way.connection.worker;
        let told = Told { stats: Arc::clone(&way.rule.stats), worker: worker.index };
        let backend = self.backend.as_ref().and_then(|slot| way.live.backend(slot));
        let size = request.body().size_hint();
        let dropped = match backend {
            None => Dropped::NoBackend,
            Some(_) if way.intake.upgrade.is_some() => Dropped::Upgrade,
            Some(_) if size.lower() > MAX_BODY as u64 => Dropped::BodyTooLarge,
            Some(backend) => match worker.mirrored.take(&way.rule.rule.labels.namespace) {
                None => Dropped::Busy,
                Some(seat) => {
                    let (worker, backend) = (Rc::clone(worker), Arc::clone(backend));
                    let head = head_of(request);
                    let client =
                        backend.plan.proxy_header.map(|_| way.connection.client_connection(way.seen));
                    let copy = Copy {
                        head,
                        backend,
                        lines: lines.clone(),
                        worker,
                        told,
                        client,
                        read: BytesMut::new(),
                        trailers: None,
                        whole: size.exact(),
                        until: Instant::now() + PATIENCE,
                        _seat: seat,
                    };
                    return copy.follow(request);
                }
            },
        };
        told.dropped(dropped);
    }
}

/// Counts what comes of copies.
#[derive(Clone, Debug)]
struct Told {
    stats: Arc<RuleStats>,
    worker: usize,
}

impl Told {
    fn dropped(&self, why: Dropped) {
        self.stats.mirrored(self.worker, "dropped", why.as_str());
    }
}

/// A copy that is not sent yet.
struct Copy {
    head: Request,
    backend: Arc<Backend>,
    lines: HeadLines,
    worker: Rc<Worker>,
    told: Told,
    /// Whose request it is, where its backend wants to know.
    client: Option<ClientConnection>,
    /// What was seen of its body.
    read: BytesMut,
    trailers: Option<HeaderMap>,
    /// The body's length, where it is known before.
    whole: Option<u64>,
    /// When the body must be there.
    until: Instant,
    _seat: Seat,
}

/// What the backend is sent besides its body, marked.
fn head_of(request: &Request) -> Request {
    let mut head = Request::new(Body::Empty);
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.headers_mut() = request.headers().clone();
    head.headers_mut().insert(&forwarded::MIRRORED, HeaderValue::from_static("true"));
    if let Some(fixed) = request.extensions().get::<FixedHost>() {
        head.extensions_mut().insert(*fixed);
    }
    head
}

impl Copy {
    fn follow(self, request: &mut Request) {
        match std::mem::take(request.body_mut()) {
            Body::Full(bytes) => {
                *request.body_mut() = Body::Full(bytes.clone());
                self.send(bytes, None);
            }
            empty if empty.is_end_stream() => {
                *request.body_mut() = empty;
                self.send(Bytes::new(), None);
            }
            inner => {
                let worker = Rc::clone(&self.worker);
                let unsent = Rc::new(Cell::new(Some(Box::new(self))));
                worker.mirrored.waits(&unsent);
                *request.body_mut() = Body::stream(Followed { inner, unsent: Some(unsent) });
            }
        }
    }

    fn send(mut self, body: Bytes, trailers: Option<HeaderMap>) {
        let headers = self.head.headers_mut();
        match trailers {
            // It goes out in chunks, as the request itself does.
            Some(trailers) => {
                let frames = [Ok(Frame::data(body)), Ok(Frame::trailers(trailers))];
                *self.head.body_mut() = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
            }
            None => {
                let was_chunked = headers.remove(header::TRANSFER_ENCODING).is_some();
                if was_chunked || !body.is_empty() {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
                    *self.head.body_mut() = Body::Full(body);
                }
            }
        }
        let (outbound, told) = (self.worker.outbound(), self.told.clone());
        if outbound.detach(Box::pin(self.run())).is_err() {
            told.dropped(Dropped::Busy);
        }
    }

    async fn run(self) {
        let Self { head, backend, lines, worker, told, client, _seat, .. } = self;
        let deadline = Instant::now() + PATIENCE;
        let limits = SendLimits {
            connect: Some(CONNECT),
            deadline: Some(deadline),
            client: client.as_ref(),
            ..SendLimits::default()
        };
        match worker.pools.send(&backend, head, Some(lines), limits).await {
            Ok(answer) => {
                told.stats.mirrored(told.worker, "sent", "");
                // Read to its end, so that its connection is of use again; what takes too long is cut.
                let reading = throw_away(answer.response.into_body());
                let _ = tokio::time::timeout_at(deadline, reading).await;
            }
            Err(error) => told.stats.mirrored(told.worker, "failed", error.kind.as_str()),
        }
    }
}

async fn throw_away(mut body: Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MAX_ANSWER {
            return;
        }
    }
}

/// A request's body on its way to the backend, with an eye on it.
struct Followed {
    inner: Body,
    /// None: the copy is sent, or will not be.
    unsent: Option<Rc<Unsent>>,
}

impl Followed {
    fn note(&mut self, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
        let Some(unsent) = self.unsent.take() else { return };
        // Its seat may have been wanted by another one.
        let Some(mut copy) = unsent.take() else { return };
        match frame {
            Some(Err(_)) => return copy.told.dropped(Dropped::BodyUnfinished),
            _ if copy.until <= Instant::now() => return copy.told.dropped(Dropped::BodyTooSlow),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if copy.read.len() + data.len() > MAX_BODY {
                        return copy.told.dropped(Dropped::BodyTooLarge);
                    }
                    copy.read.extend_from_slice(data);
                }
                if let Some(fields) = frame.trailers_ref() {
                    copy.trailers = Some(fields.clone());
                }
            }
            None => {}
        }
        // Whoever sends a body of known length stops reading there.
        let is_over = frame.is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers))
            || self.inner.is_end_stream()
            || copy.whole == Some(copy.read.len() as u64);
        if is_over {
            let (body, trailers) = (std::mem::take(&mut copy.read).freeze(), copy.trailers.take());
            copy.send(body, trailers);
        } else {
            unsent.set(Some(copy));
            self.unsent = Some(unsent);
        }
    }
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        self.note(frame.as_ref());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if let Some(copy) = self.unsent.take().and_then(|unsent| unsent.take()) {
            copy.told.dropped(Dropped::BodyUnfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;
    use crate::route_map::{BackendPlan, BackendTarget};
    use crate::telemetry::Telemetry;
    use crate::values::{BackendId, ObjectName};

    #[test]
    fn of_each_hundred_requests_exactly_so_many_are_copied() {
        for percent in [1, 10, 33, 99, 100] {
            let mirror = LiveMirror::new(None, percent, Arc::new(AtomicU64::new(12_345)));
            for _ in 0..3 {
                let copied = (0..100).filter(|_| mirror.turns.choose() == Some(&Turn::Copied)).count();
                assert_eq!(copied, percent as usize);
            }
        }
    }

    fn taken(seats: &Seats, namespace: &str) -> Vec<Seat> {
        let namespace = namespace.into();
        std::iter::from_fn(|| seats.take(&namespace)).collect()
    }

    #[test]
    fn a_namespace_takes_no_more_seats_than_are_free_then() {
        let seats = Seats::default();
        let first = taken(&seats, "first");
        assert_eq!(first.len(), MAX_AT_ONCE / 2);
        let second = taken(&seats, "second");
        assert_eq!(second.len(), MAX_AT_ONCE / 4);
        assert!(taken(&seats, "first").is_empty());
        let others: Vec<_> = (0..6).map(|number| taken(&seats, &format!("other-{number}"))).collect();
        assert!(others.iter().all(|seats| !seats.is_empty()), "there is always one for the next");
        drop(first);
        assert!(!taken(&seats, "first").is_empty());
        drop((second, others));
        let again = taken(&seats, "second");
        assert_eq!(again.len(), MAX_AT_ONCE / 2);
        drop(again);
        assert!(seats.0.borrow().by_namespace.is_empty() && seats.0.borrow().all == 0);
    }

    #[test]
    fn who_is_late_gives_its_place_away_and_nobody_else() {
        let [gone, sent, early, late_one, last] = [1, 2, 3, 10, 4].map(|due| Rc::new(Cell::new(Some(due))));
        let mut waiting: VecDeque<_> = [&gone, &sent, &early, &late_one, &last].map(Rc::downgrade).into();
        drop(gone);
        sent.take();
        assert_eq!(late(&mut waiting, |due| *due < 5), Some(3));
        assert_eq!(early.take(), None);
        // The first is not late; whoever came after it waits for its turn.
        assert_eq!((late(&mut waiting, |due| *due < 5), waiting.len()), (None, 2));
        assert_eq!((late_one.get(), last.get()), (Some(10), Some(4)));
        assert_eq!(late(&mut waiting, |due| *due < 11), Some(10));
        assert_eq!((late(&mut waiting, |due| *due < 11), late(&mut waiting, |_| true)), (Some(4), None));
    }

    /// A request whose body comes as `sender` says, and is followed by a copy.
    fn followed(worker: &Rc<Worker>, told: &Told) -> (UnboundedSender<Bytes>, Body) {
        let namespace = "shop".into();
        let (sender, mut pieces) = unbounded_channel();
        let body = futures_util::stream::poll_fn(move |context| {
            pieces.poll_recv(context).map(|piece| piece.map(|piece| Ok::<_, BodyError>(Frame::data(piece))))
        });
        let mut request = Request::new(Body::stream(StreamBody::new(body)));
        let copy = Copy {
            head: head_of(&request),
            backend: backend(),
            lines: HeadLines::new(Default::default(), "x-request-id", b"7"),
            worker: Rc::clone(worker),
            told: told.clone(),
            client: None,
            read: BytesMut::new(),
            trailers: None,
            whole: None,
            until: Instant::now() + PATIENCE,
            _seat: worker.mirrored.take(&namespace).expect("a seat"),
        };
        copy.follow(&mut request);
        (sender, std::mem::take(request.body_mut()))
    }

    /// Nobody is there.
    fn backend() -> Arc<Backend> {
        let service = ObjectName::new("shop", "next");
        let id = BackendId::Service { service: service.clone(), port: 80 };
        let plan = BackendPlan::new(id, BackendTarget::Service { service, port: 80 });
        Arc::new(Backend::new(Arc::new(plan), 0, Telemetry::new(1).backend("next")))
    }

    #[test]
    fn a_body_that_takes_too_long_has_no_copy_and_goes_on_whole() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let telemetry = Telemetry::new(1);
            let (worker, shop): (_, Arc<str>) = (Worker::alone(&telemetry), "shop".into());
            let told = Told { stats: telemetry.rule(&shop, &shop, &shop), worker: 0 };
            let came_to = |outcome: &str, reason: &str| {
                let end = format!("outcome=\"{outcome}\",reason=\"{reason}\"}} ");
                let metrics = telemetry.render();
                let found = metrics.lines().find_map(|line| line.split_once(&end).map(|(_, count)| count));
                found.map_or(0, |count| count.parse::<u32>().expect("a number"))
            };
            let goes_on = async |sender: &UnboundedSender<Bytes>, body: &mut Body| {
                sender.send("more".into()).expect("it is read");
                body.frame().await.expect("open").expect("whole").into_data().expect("data")
            };
            // The control: in time to its end.
            let (sender, mut body) = followed(&worker, &told);
            tokio::time::advance(PATIENCE - Duration::from_millis(1)).await;
            assert_eq!(goes_on(&sender, &mut body).await, "more");
            drop(sender);
            assert!(body.frame().await.is_none());
            // The clock is paused: it goes on once nobody has anything left to do.
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(
                (came_to("failed", "NoHealthyEndpoints"), came_to("dropped", "body_too_slow")),
                (1, 0)
            );

            // One that goes on for longer: its seat is free as soon as that is seen.
            let (sender, mut body) = followed(&worker, &told);
            assert_eq!(goes_on(&sender, &mut body).await, "more");
            assert_eq!(worker.mirrored.0.borrow().all, 1);
            tokio::time::advance(PATIENCE).await;
            assert_eq!(goes_on(&sender, &mut body).await, "more", "the request itself goes on");
            assert_eq!((worker.mirrored.0.borrow().all, came_to("dropped", "body_too_slow")), (0, 1));

            // One that has stopped gives its seat to who wants it, and only then.
            let (_silent, _unread) = followed(&worker, &told);
            let others = taken(&worker.mirrored, "shop");
            tokio::time::advance(PATIENCE).await;
            assert_eq!((worker.mirrored.0.borrow().all, came_to("dropped", "body_too_slow")), (128, 1));
            assert!(worker.mirrored.take(&shop).is_some());
            assert_eq!((others.len(), came_to("dropped", "body_too_slow")), (127, 2));
            assert_eq!(came_to("failed", "NoHealthyEndpoints"), 1, "no copy was sent of those");
        });
    }

    #[test]
    fn a_copy_is_marked_and_otherwise_asks_for_the_same() {
        let mut request = http::Request::post("/a?b=c").body(Body::Empty).expect("a request");
        request.headers_mut().insert("authorization", HeaderValue::from_static("Bearer x"));
        request.extensions_mut().insert(FixedHost);
        let head = head_of(&request);
        assert_eq!((head.method(), head.uri()), (request.method(), request.uri()));
        assert_eq!(head.headers()["authorization"], "Bearer x");
        assert_eq!(head.headers()["x-portcullis-mirror"], "true");
        assert!(head.extensions().get::<FixedHost>().is_some());
        assert!(!request.headers().contains_key("x-portcullis-mirror"));
    }
}

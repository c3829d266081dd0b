//! Deadlines of connections and streams, without a timer for each: whoever waits writes down what for, and one sweep
//! a worker looks at all of them a few times a second. A request costs a few plain stores, no clock and no timer.
//!
//! Invariant: what waits longer than its limit is told within one tick; progress of any kind starts its time anew.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::Limits;

/// What one side of a connection or stream waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Nothing of the client's.
    Nothing,
    /// The first byte of a connection.
    FirstByte,
    /// The rest of a request's head.
    Head,
    /// Another request on a kept connection.
    Idle,
    /// HTTP/2: the end, after a goodbye with nothing under way.
    End,
    /// More of a request's body.
    Body,
    /// That the client takes more of what we send.
    Writing,
    /// More of an answer's body from the backend.
    Answer,
}

/// What the task of a connection or stream is told; a later one replaces an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Tell the client to come back on another connection: with the next answer, or by GOAWAY.
    Retire,
    /// End as soon as what is under way is answered; nobody needs to be told.
    End,
    /// End now, without a word: this wait took too long, or the process closes.
    Cut,
}

#[derive(Debug)]
struct Lane {
    wait: Cell<Wait>,
    progress: Cell<u32>,
    seen: Cell<(Wait, u32)>,
    since: Cell<Instant>,
}

/// One connection or stream as the sweep sees it.
#[derive(Debug)]
pub struct Watch {
    reading: Lane,
    /// The connection's bytes.
    writing: Lane,
    /// The answer's body, on its way from the backend to the connection.
    answering: Lane,
    answer_idle: Cell<Option<Duration>>,
    /// Its bodies are a stream: who pauses is not late while anything moves, in either direction.
    streams: Cell<bool>,
    /// Counts what moved in bodies.
    moved: Cell<u32>,
    /// Connections of HTTP/1: what follows an answer is the wait for another request.
    keeps_alive: Cell<bool>,
    /// HTTP/1: no answer is on its way, so whatever is written now is the parser's own (see `refusal`).
    quiet: Cell<bool>,
    /// HTTP/1: what was read last ended as a head without a body does.
    ends_head: Cell<bool>,
    /// The answer was handed over as a whole.
    answered: Cell<bool>,
    opened: Instant,
    age: Option<Duration>,
    /// HTTP/2, which can say goodbye at any time.
    multiplexed: Cell<bool>,
    told: Cell<Option<Verdict>>,
    body_stalled: Cell<bool>,
    answer_stalled: Cell<bool>,
    task: RefCell<Option<Waker>>,
    body: RefCell<Option<Waker>>,
    answer: RefCell<Option<Waker>>,
}

impl Watch {
    fn new(wait: Wait, age: Option<Duration>) -> Self {
        let now = Instant::now();
        let lane = |wait| Lane {
            wait: Cell::new(wait),
            progress: Cell::new(0),
            seen: Cell::new((wait, 0)),
            since: Cell::new(now),
        };
        Self {
            reading: lane(wait),
            writing: lane(Wait::Nothing),
            answering: lane(Wait::Nothing),
            answer_idle: Cell::new(None),
            streams: Cell::new(false),
            moved: Cell::new(0),
            keeps_alive: Cell::new(false),
            quiet: Cell::new(true),
            ends_head: Cell::new(true),
            answered: Cell::new(false),
            opened: now,
            age,
            multiplexed: Cell::new(false),
            told: Cell::new(None),
            body_stalled: Cell::new(false),
            answer_stalled: Cell::new(false),
            task: RefCell::default(),
            body: RefCell::default(),
            answer: RefCell::default(),
        }
    }

    /// What is read for from now on; the time starts anew.
    pub fn read_waits(&self, wait: Wait) {
        self.reading.wait.set(wait);
        self.reading.progress.set(self.reading.progress.get().wrapping_add(1));
    }

    pub fn read_wait(&self) -> Wait {
        self.reading.wait.get()
    }

    /// Something was written, or nothing needs to be.
    pub fn wrote(&self) {
        self.writing.wait.set(Wait::Nothing);
        self.writing.progress.set(self.writing.progress.get().wrapping_add(1));
    }

    /// The client must take something before we can go on.
    pub fn write_blocked(&self) {
        self.writing.wait.set(Wait::Writing);
    }

    /// Registers the task and gives what it was told, which holds from then on.
    pub fn verdict(&self, context: &Context<'_>) -> Option<Verdict> {
        remember(&self.task, context);
        self.told.get()
    }

    /// Whether the client should come back on another connection.
    pub fn retiring(&self) -> bool {
        self.told.get().is_some()
    }

    pub fn multiplexes(&self) {
        self.multiplexed.set(true);
    }

    /// Waits for more of a body. Whether it took too long already.
    pub fn await_body(&self, context: &Context<'_>) -> bool {
        if self.body_stalled.get() {
            return true;
        }
        remember(&self.body, context);
        self.reading.wait.set(Wait::Body);
        false
    }

    /// Some of a body came; `progress` starts its time anew.
    pub fn body_came(&self, progress: bool) {
        self.reading.wait.set(Wait::Nothing);
        self.moved.set(self.moved.get().wrapping_add(1));
        if progress {
            self.read_waits(Wait::Nothing);
        }
    }

    pub fn request_begins(&self) {
        self.read_waits(Wait::Nothing);
        self.answer_comes();
        self.body_stalled.set(false);
        self.answer_stalled.set(false);
        self.streams.set(false);
    }

    /// The answer's head is out, or nothing bounds the time until then: from now on [`Watch::set_answer_idle`] is for
    /// both bodies.
    pub fn streams(&self) {
        self.streams.set(true);
    }

    /// How long the backend may be silent in the answer's body.
    pub fn set_answer_idle(&self, idle: Option<Duration>) {
        self.answer_idle.set(idle);
    }

    /// Waits for more of an answer. Whether it took too long already.
    pub fn await_answer(&self, context: &Context<'_>) -> bool {
        if self.answer_stalled.get() {
            return true;
        }
        if self.answer_idle.get().is_some() {
            remember(&self.answer, context);
        }
        self.answering.wait.set(Wait::Answer);
        false
    }

    /// A part of the answer was handed to the client's connection. On HTTP/2 it asks for the next one only when the
    /// client has taken this one.
    pub fn answer_taken(&self) {
        self.answering.progress.set(self.answering.progress.get().wrapping_add(1));
        self.moved.set(self.moved.get().wrapping_add(1));
        self.answering.wait.set(if self.keeps_alive.get() { Wait::Nothing } else { Wait::Writing });
    }

    /// The client made room for more of it.
    pub fn answer_moves(&self) {
        self.answering.progress.set(self.answering.progress.get().wrapping_add(1));
    }

    /// The answer's end, `whole` or not. The bytes behind a request without a body, if any, begin another head; behind
    /// a body nobody knows.
    pub fn answer_over(&self, whole: bool, had_body: bool) {
        self.answering.wait.set(Wait::Nothing);
        self.answered.set(whole);
        if self.keeps_alive.get() {
            self.read_waits(if had_body || self.ends_head.get() { Wait::Idle } else { Wait::Head });
        }
    }

    /// A stream that ended without its answer, soon after it began.
    pub fn was_given_up_within(&self, time: Duration) -> bool {
        !self.answered.get() && self.opened.elapsed() < time
    }

    pub fn read_ended_head(&self, ended: bool) {
        self.ends_head.set(ended);
    }

    /// All that was to be written is.
    pub fn flushed(&self) {
        if matches!(self.reading.wait.get(), Wait::FirstByte | Wait::Head | Wait::Idle) {
            self.quiet.set(true);
        }
    }

    pub fn answer_comes(&self) {
        self.quiet.set(false);
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet.get()
    }

    /// Connections of HTTP/1.
    pub fn keeps_alive(&self) {
        self.keeps_alive.set(true);
    }

    pub fn tell(&self, verdict: Verdict) {
        if self.told.get().is_none_or(|told| told < verdict) {
            self.told.set(Some(verdict));
            wake(&self.task);
        }
    }

    fn tick(&self, now: Instant, limits: &Limits, drain_since: Option<Instant>) {
        if self.age.is_some_and(|age| now.duration_since(self.opened) >= age) {
            self.tell(Verdict::Retire);
        }
        if let Some(since) = drain_since {
            let patience = match self.reading.wait.get() {
                Wait::Idle => Some(limits.drain_idle),
                // Perhaps still shaking hands.
                Wait::FirstByte => Some(limits.drain_idle * 3),
                _ => None,
            };
            if self.multiplexed.get() {
                self.tell(Verdict::Retire);
            } else if patience.is_some_and(|patience| now.duration_since(since) >= patience) {
                self.tell(Verdict::End);
            }
        }
        for lane in [&self.reading, &self.writing, &self.answering] {
            let of_stream = self.streams.get() && matches!(lane.wait.get(), Wait::Body | Wait::Answer);
            let progress = if of_stream { &self.moved } else { &lane.progress };
            let state = (lane.wait.get(), progress.get());
            if lane.seen.replace(state) != state {
                lane.since.set(now);
                continue;
            }
            if self.limit(state.0, limits).is_some_and(|limit| now.duration_since(lane.since.get()) >= limit)
            {
                self.expire(state.0);
            }
        }
    }

    fn expire(&self, wait: Wait) {
        match wait {
            Wait::Nothing => {}
            Wait::Idle => {
                self.tell(Verdict::End);
                if self.multiplexed.get() {
                    self.read_waits(Wait::End);
                }
            }
            Wait::FirstByte | Wait::Head | Wait::End | Wait::Writing => self.tell(Verdict::Cut),
            Wait::Body => {
                self.body_stalled.set(true);
                wake(&self.body);
            }
            Wait::Answer => {
                self.answer_stalled.set(true);
                wake(&self.answer);
            }
        }
    }

    fn limit(&self, wait: Wait, limits: &Limits) -> Option<Duration> {
        match wait {
            Wait::Nothing => None,
            Wait::FirstByte => Some(limits.tls_handshake),
            Wait::Head => Some(limits.request_head),
            Wait::Idle => Some(limits.keep_alive_idle),
            Wait::Body if self.streams.get() => self.answer_idle.get(),
            Wait::Body | Wait::End | Wait::Writing => Some(limits.progress),
            Wait::Answer => self.answer_idle.get(),
        }
    }
}

fn remember(slot: &RefCell<Option<Waker>>, context: &Context<'_>) {
    let mut slot = slot.borrow_mut();
    if !slot.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
        *slot = Some(context.waker().clone());
    }
}

fn wake(slot: &RefCell<Option<Waker>>) {
    let waker = slot.borrow().clone();
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// All watches of a worker.
#[derive(Debug, Default)]
pub struct Sweep {
    watches: RefCell<Slab<Rc<Watch>>>,
}

/// A watch that leaves the sweep when it is dropped.
#[derive(Debug)]
pub struct Watched {
    watch: Rc<Watch>,
    key: usize,
    sweep: Rc<Sweep>,
}

impl Sweep {
    pub fn watch(self: &Rc<Self>, wait: Wait, age: Option<Duration>) -> Watched {
        let watch = Rc::new(Watch::new(wait, age));
        let key = self.watches.borrow_mut().insert(watch.clone());
        Watched { watch, key, sweep: self.clone() }
    }

    /// Looks at every watch once.
    pub fn tick(&self, limits: &Limits, drain_since: Option<Instant>) {
        let now = Instant::now();
        self.watches.borrow().iter().for_each(|(_, watch)| watch.tick(now, limits, drain_since));
    }

    pub fn for_each(&self, tell: impl Fn(&Watch)) {
        self.watches.borrow().iter().for_each(|(_, watch)| tell(watch));
    }

    /// How often to look: fine enough for the shortest limit.
    pub fn interval(limits: &Limits) -> Duration {
        let shortest = [
            limits.tls_handshake,
            limits.request_head,
            limits.keep_alive_idle,
            limits.progress,
            limits.drain_idle,
        ];
        let shortest = shortest.into_iter().min().unwrap_or_default();
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_millis(500))
    }
}

impl Watched {
    pub fn share(&self) -> Rc<Watch> {
        self.watch.clone()
    }
}

impl std::ops::Deref for Watched {
    type Target = Watch;

    fn deref(&self) -> &Watch {
        &self.watch
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.sweep.watches.borrow_mut().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(watch: &Watch) -> Option<Verdict> {
        watch.verdict(&Context::from_waker(Waker::noop()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_takes_too_long_is_cut_and_progress_starts_its_time_anew() {
        let (sweep, limits) = (Rc::new(Sweep::default()), Limits::default());
        let watch = sweep.watch(Wait::Head, None);
        sweep.tick(&limits, None);
        tokio::time::advance(Duration::from_secs(9)).await;
        watch.read_waits(Wait::Head);
        sweep.tick(&limits, None);
        tokio::time::advance(Duration::from_secs(9)).await;
        sweep.tick(&limits, None);
        assert_eq!(told(&watch), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        sweep.tick(&limits, None);
        assert_eq!(told(&watch), Some(Verdict::Cut));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_to_wait_for_never_expires() {
        let (sweep, limits) = (Rc::new(Sweep::default()), Limits::default());
        let watch = sweep.watch(Wait::Nothing, None);
        sweep.tick(&limits, None);
        tokio::time::advance(Duration::from_secs(100_000)).await;
        sweep.tick(&limits, None);
        assert_eq!(told(&watch), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_is_asked_to_retire() {
        let (sweep, limits) = (Rc::new(Sweep::default()), Limits::default());
        let watch = sweep.watch(Wait::Nothing, Some(Duration::from_secs(10)));
        tokio::time::advance(Duration::from_secs(9)).await;
        sweep.tick(&limits, None);
        assert_eq!(told(&watch), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        sweep.tick(&limits, None);
        assert_eq!(told(&watch), Some(Verdict::Retire));
    }

    #[tokio::test(start_paused = true)]
    async fn after_its_goodbye_an_idle_connection_of_http2_has_a_time_to_end() {
        let (sweep, limits) = (Rc::new(Sweep::default()), Limits::default());
        let (one, other) = (sweep.watch(Wait::Idle, None), sweep.watch(Wait::Idle, None));
        one.multiplexes();
        let pass = async |time| {
            sweep.tick(&limits, None);
            tokio::time::advance(time).await;
            sweep.tick(&limits, None);
        };
        pass(limits.keep_alive_idle).await;
        assert_eq!((told(&one), told(&other)), (Some(Verdict::End), Some(Verdict::End)));
        // What crossed the goodbye is answered.
        one.read_waits(Wait::Nothing);
        pass(limits.progress * 10).await;
        assert_eq!(told(&one), Some(Verdict::End));
        one.read_waits(Wait::Idle);
        pass(limits.keep_alive_idle).await;
        pass(limits.progress - Duration::from_secs(1)).await;
        assert_eq!(told(&one), Some(Verdict::End), "and not a second before");
        tokio::time::advance(Duration::from_secs(1)).await;
        sweep.tick(&limits, None);
        assert_eq!((told(&one), told(&other)), (Some(Verdict::Cut), Some(Verdict::End)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_told_to_its_reader_and_does_not_cut_the_connection() {
        let (sweep, limits) = (Rc::new(Sweep::default()), Limits::default());
        let watch = sweep.watch(Wait::Nothing, None);
        assert!(!watch.await_body(&Context::from_waker(Waker::noop())));
        sweep.tick(&limits, None);
        tokio::time::advance(Duration::from_secs(30)).await;
        sweep.tick(&limits, None);
        assert!(watch.await_body(&Context::from_waker(Waker::noop())));
        assert_eq!(told(&watch), None);
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_stream_either_side_may_pause_while_the_other_moves() {
        let (sweep, limits, context) =
            (Rc::new(Sweep::default()), Limits::default(), Context::from_waker(Waker::noop()));
        let watch = sweep.watch(Wait::Nothing, None);
        watch.set_answer_idle(Some(Duration::from_secs(60)));
        watch.streams();
        let waits = || watch.await_body(&context) || watch.await_answer(&context);
        let pass = async |secs| {
            sweep.tick(&limits, None);
            tokio::time::advance(Duration::from_secs(secs)).await;
            sweep.tick(&limits, None);
        };
        for _ in 0..5 {
            assert!(!waits());
            pass(40).await;
            watch.body_came(false);
            assert!(!waits());
            pass(40).await;
            watch.answer_taken();
        }
        assert!(!waits());
        pass(59).await;
        assert!(!waits(), "and not a second before");
        pass(1).await;
        assert!(watch.await_body(&context) && watch.await_answer(&context));
        watch.request_begins();
        assert!(!watch.await_body(&context));
        pass(30).await;
        assert!(watch.await_body(&context), "the control: no stream, and too slow");
    }

    #[test]
    fn a_dropped_watch_leaves_the_sweep() {
        let sweep = Rc::new(Sweep::default());
        drop(sweep.watch(Wait::Idle, None));
        assert!(sweep.watches.borrow().is_empty());
    }
}

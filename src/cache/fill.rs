//! One fetch for all that ask for the same at the same time, on whatever worker: its head, then its body as it comes.
//!
//! Invariants: whoever waits is told: the answer, why there is none, or that it must ask itself, also when the one who
//! fetched is gone. Nobody waits for a slow reader while the body is kept; where it is not, at most [`WINDOW`] bytes are
//! held for the slowest, who is let go after a while if others wait for it. What ends before its end is an error for all,
//! and kept by nobody. All bytes that are held here are counted once, until nobody has them any more.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use slab::Slab;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::account::Account;
use super::memory::Memory;
use super::opening::Opening;
use super::stored::{Segments, Stored};
use crate::message::{Body, BodyError, ErrorKind};

/// Of what is not kept, so much waits for the slowest of several readers,
const WINDOW: u64 = 1 << 20;
/// for so long as it takes nothing,
const PATIENCE: Duration = Duration::from_secs(10);
/// and others wait for it not longer than this, all in all.
const ALL_PATIENCE: Duration = Duration::from_secs(60);
/// So much waits for one who reads alone, or where memory is short.
const NARROW: u64 = 64 << 10;
/// Bodies are kept in parts of this size, which have memory of their own.
const SEGMENT: usize = 64 << 10;
/// So much of a part that still grows is handed out at once, as a copy.
const PIECE: usize = 16 << 10;
/// A piece costs at least this.
const LEAST: u64 = 64;

#[derive(Debug)]
pub struct Fill {
    state: Mutex<State>,
    /// Something happened that readers wait for.
    moved: watch::Sender<()>,
    /// Something happened that the pump waits for.
    freed: Notify,
    /// When it was asked for; see `marks`.
    pub born: u64,
    account: Arc<Account>,
}

#[derive(Debug, Default)]
struct State {
    heard: Option<Heard>,
    pieces: VecDeque<Bytes>,
    /// Number of the first piece that is still here.
    first: usize,
    /// What becomes the next piece, while the body is kept.
    growing: Vec<u8>,
    /// Bytes that the slowest reader has not taken yet.
    held: u64,
    trailers: Option<HeaderMap>,
    end: Option<End>,
    readers: Slab<Place>,
    keeping: bool,
    /// Nobody may join any more.
    closed: bool,
}

/// How far a reader is: the number of the piece that it takes next, and how much of it it has.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    piece: usize,
    within: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Cut,
}

/// What became of a fetch.
#[derive(Clone, Debug)]
pub enum Heard {
    /// The head is here, the body comes.
    Open(Arc<Opening>),
    /// What is kept now, or what was kept holds.
    Kept(Arc<Stored>),
    /// The backend failed, and what was kept goes before that.
    HelpsOut(Arc<Stored>),
    /// The backend failed; it is not asked again for each who waits.
    Failed(ErrorKind),
    /// Nobody else may have this answer.
    Alone,
    /// Whoever fetched is gone.
    Abandoned,
}

/// One who waits for the head, and reads the body after.
#[derive(Debug)]
pub struct Reader {
    fill: Arc<Fill>,
    number: usize,
}

/// Who brings the body.
#[derive(Debug)]
pub struct Pump {
    fill: Arc<Fill>,
    most: u64,
    idle: Option<Duration>,
    /// It goes on although nobody reads.
    stays: bool,
    ended: bool,
}

/// What the pump has of a body in the end.
pub struct Pumped {
    pub body: Segments,
    pub trailers: Option<HeaderMap>,
}

impl Fill {
    pub(super) fn new(born: u64, memory: &Arc<Memory>) -> Arc<Self> {
        let state = State { keeping: true, ..State::default() };
        Arc::new(Self {
            state: Mutex::new(state),
            moved: watch::Sender::new(()),
            freed: Notify::new(),
            born,
            account: Account::new(memory),
        })
    }

    /// What is here as a whole, to be kept; `None`: there is no room for it. A copy: what a filter made may count as long as
    /// it is held, and this is kept for long.
    pub fn whole(&self, body: &Body) -> Option<Segments> {
        match body {
            Body::Empty => Some(Segments::default()),
            Body::Full(bytes) => {
                let length = bytes.len() as u64;
                let has_room = self.account.comes(length);
                has_room.then(|| {
                    let copy = self.account.piece(bytes.to_vec(), length);
                    Segments::of([copy].into_iter(), self.account.lease())
                })
            }
            _ => None,
        }
    }

    /// One more reader. `None`: it is too late for one, or what is open already does not suit it.
    pub fn join(self: &Arc<Self>, suits: impl Fn(&Opening) -> bool) -> Option<Reader> {
        let mut state = self.state();
        if state.closed || state.first > 0 {
            return None;
        }
        if let Some(Heard::Open(opening)) = &state.heard
            && !suits(opening)
        {
            return None;
        }
        let number = state.readers.insert(Place::default());
        drop(state);
        Some(Reader { fill: Arc::clone(self), number })
    }

    /// Tells all that wait; the first word counts.
    pub fn tell(&self, heard: Heard) {
        let mut state = self.state();
        if state.heard.is_none() {
            // What follows the other words is not for those who come now.
            state.closed |= !matches!(heard, Heard::Open(_));
            state.heard = Some(heard);
            drop(state);
            self.moved.send_replace(());
        }
    }

    fn end(&self, end: End) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some(end);
            drop(state);
            self.moved.send_replace(());
        }
    }

    /// Gives up the pieces that every reader has.
    fn forget(&self, state: &mut State) {
        let slowest = state.slowest();
        let mut freed = 0;
        while state.first < slowest
            && let Some(piece) = state.pieces.pop_front()
        {
            state.first += 1;
            freed += cost(piece.len());
        }
        // What was counted byte by byte may be less than its pieces cost.
        state.held -= freed.min(state.held);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.account.went(state.growing.len() as u64);
    }
}

impl State {
    fn slowest(&self) -> usize {
        self.readers.iter().map(|(_, place)| place.piece).min().unwrap_or(usize::MAX)
    }

    /// Whether a reader has all that is here, and so waits for what comes.
    fn somebody_waits(&self) -> bool {
        let behind = self.first + self.pieces.len();
        self.readers.iter().any(|(_, place)| place.piece >= behind)
    }

    fn grow(&mut self, mut data: &[u8], account: &Arc<Account>) {
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(SEGMENT - self.growing.len()));
            self.growing.extend_from_slice(now);
            data = later;
            if self.growing.len() == SEGMENT {
                self.seal(account);
            }
        }
    }

    /// What grew is a piece; readers that have some of it find the rest there.
    fn seal(&mut self, account: &Arc<Account>) {
        if !self.growing.is_empty() {
            let mut grown = std::mem::take(&mut self.growing);
            grown.shrink_to_fit();
            let counted = grown.len() as u64;
            self.pieces.push_back(account.piece(grown, counted));
        }
    }

    /// What the reader takes next, if it is here. `Err`: the reader was let go.
    fn take(&mut self, reader: usize) -> Result<Option<Bytes>, ()> {
        let place = self.readers.get_mut(reader).ok_or(())?;
        while let Some(piece) = self.pieces.get(place.piece - self.first) {
            let rest = piece.slice(place.within..);
            *place = Place { piece: place.piece + 1, within: 0 };
            if !rest.is_empty() {
                return Ok(Some(rest));
            }
        }
        let is_next = place.piece == self.first + self.pieces.len();
        let grown = self.growing.get(place.within..).filter(|grown| is_next && !grown.is_empty());
        let piece = grown.map(|grown| Bytes::copy_from_slice(&grown[..grown.len().min(PIECE)]));
        place.within += piece.as_ref().map_or(0, Bytes::len);
        Ok(piece)
    }
}

/// What is counted for so many bytes.
fn cost(bytes: usize) -> u64 {
    (bytes as u64).max(LEAST)
}

impl Reader {
    /// Waits for the head.
    pub async fn heard(&self) -> Heard {
        let mut moved = self.fill.moved.subscribe();
        loop {
            if let Some(heard) = self.fill.state().heard.clone() {
                return heard;
            }
            if moved.changed().await.is_err() {
                return Heard::Abandoned;
            }
        }
    }

    /// The body from its beginning.
    pub fn body(self) -> Body {
        let moved = self.fill.moved.subscribe();
        let frames = futures_util::stream::unfold(Some((self, moved)), async |reading| {
            let (reader, mut moved) = reading?;
            match reader.next(&mut moved).await? {
                Ok(frame) => Some((Ok(frame), Some((reader, moved)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Body::stream(StreamBody::new(frames))
    }

    async fn next(&self, moved: &mut watch::Receiver<()>) -> Option<Result<Frame<Bytes>, BodyError>> {
        const CUT: BodyError = BodyError::Other("the fetch that this answer came from failed");
        const SLOW: BodyError = BodyError::Other("others could not wait any longer for this reader");
        loop {
            {
                let mut state = self.fill.state();
                let state = &mut *state;
                match state.take(self.number) {
                    Err(()) => return Some(Err(SLOW)),
                    Ok(Some(piece)) => {
                        if !state.keeping {
                            self.fill.forget(state);
                            self.fill.freed.notify_one();
                        }
                        return Some(Ok(Frame::data(piece)));
                    }
                    Ok(None) => {}
                }
                match state.end {
                    None => {}
                    Some(End::Cut) => return Some(Err(CUT)),
                    Some(End::Whole) => {
                        // Nothing comes after trailers.
                        let behind = state.first + state.pieces.len();
                        let place = state.readers.get_mut(self.number)?;
                        let is_done = std::mem::replace(&mut place.piece, behind + 1) > behind;
                        return state
                            .trailers
                            .clone()
                            .filter(|_| !is_done)
                            .map(|trailers| Ok(Frame::trailers(trailers)));
                    }
                }
            }
            if moved.changed().await.is_err() {
                return Some(Err(CUT));
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.fill.state();
        state.readers.try_remove(self.number);
        if !state.keeping {
            self.fill.forget(&mut state);
        }
        drop(state);
        self.fill.freed.notify_one();
    }
}

impl Pump {
    /// `most`: more bytes are not kept; 0: none are. `idle`: how long the backend may be silent.
    pub fn new(fill: &Arc<Fill>, most: u64, idle: Option<Duration>) -> Self {
        fill.state().keeping = most > 0;
        Self { fill: Arc::clone(fill), most, idle, stays: false, ended: false }
    }

    /// Somebody wants it to be kept although nobody reads.
    #[must_use]
    pub fn staying(mut self) -> Self {
        self.stays = true;
        self
    }

    /// Brings `body` to the readers, and gives what there is to keep in the end: nothing, if it is too large. `None`: it
    /// failed, or nobody is left who wants it.
    pub async fn run(mut self, mut body: Body) -> Option<Option<Pumped>> {
        let (mut kept, mut trailers, mut held_up) = (0_u64, None, Duration::ZERO);
        loop {
            let frame = tokio::select! {
                biased;
                frame = next_frame(&mut body, self.idle) => frame?,
                () = self.nobody() => return None,
            };
            let Some(frame) = frame else { break };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    kept += data.len() as u64;
                    if !self.keep(&data, kept) {
                        self.give(data, &mut held_up).await;
                    }
                    self.fill.moved.send_replace(());
                }
                Err(other) => trailers = other.into_trailers().ok(),
            }
        }
        self.ended = true;
        let mut state = self.fill.state();
        let account = &self.fill.account;
        state.seal(account);
        state.trailers.clone_from(&trailers);
        let pumped =
            || Pumped { body: Segments::of(state.pieces.iter().cloned(), account.lease()), trailers };
        Some(state.keeping.then(pumped))
    }

    /// Tells the readers that this was all; after what is kept can be found.
    pub fn finish(fill: &Fill) {
        fill.end(End::Whole);
    }

    /// Ends when there is no reader, and nobody may become one.
    async fn nobody(&self) {
        loop {
            let freed = self.fill.freed.notified();
            {
                let mut state = self.fill.state();
                if state.readers.is_empty() && !(self.stays && state.keeping) {
                    state.closed = true;
                    return;
                }
            }
            freed.await;
        }
    }

    /// Adds to what is kept; `kept`: bytes with these. False: nothing is, from now on.
    fn keep(&self, data: &[u8], kept: u64) -> bool {
        let mut state = self.fill.state();
        if !state.keeping {
            return false;
        }
        let bytes = data.len() as u64;
        if kept > self.most || !self.fill.account.comes(bytes) {
            state.keeping = false;
            state.closed = true;
            state.seal(&self.fill.account);
            self.fill.forget(&mut state);
            return false;
        }
        state.held += bytes;
        state.grow(data, &self.fill.account);
        true
    }

    /// Hands on what is not kept, as soon as the slowest reader has enough of what came before.
    async fn give(&self, data: Bytes, held_up: &mut Duration) {
        let mut stuck: Option<(usize, Instant)> = None;
        loop {
            let freed = self.fill.freed.notified();
            let (until, others_wait) = {
                let mut state = self.fill.state();
                if state.readers.is_empty() {
                    return;
                }
                let account = &self.fill.account;
                let window = if state.readers.len() > 1 && account.has_room() { WINDOW } else { NARROW };
                if state.held < window {
                    let bytes = cost(data.len());
                    account.must_come(bytes);
                    state.held += bytes;
                    state.pieces.push_back(account.piece(data, bytes));
                    return;
                }
                let now = Instant::now();
                let since = match stuck {
                    Some((first, since)) if first == state.first => since,
                    _ => now,
                };
                stuck = Some((state.first, since));
                let others_wait = state.somebody_waits();
                let left = if others_wait { ALL_PATIENCE.saturating_sub(*held_up) } else { PATIENCE };
                if others_wait && (now - since >= PATIENCE || left.is_zero()) {
                    let first = state.first;
                    state.readers.retain(|_, place| place.piece > first);
                    self.fill.forget(&mut state);
                    drop(state);
                    // Those that were let go are told.
                    self.fill.moved.send_replace(());
                    continue;
                }
                // Whoever reads alone, or with others as slow, has all the time that its connection gives it.
                let until = if others_wait { (since + PATIENCE).min(now + left) } else { now + PATIENCE };
                (until, others_wait)
            };
            let before = Instant::now();
            let _ = tokio::time::timeout_at(until, freed).await;
            if others_wait {
                *held_up += before.elapsed();
            } else {
                // Time in which nobody was held up does not count.
                stuck = None;
            }
        }
    }
}

/// The next frame, none at the end. `None`: the body failed, or the backend was silent for too long.
async fn next_frame(body: &mut Body, idle: Option<Duration>) -> Option<Option<Frame<Bytes>>> {
    let next = body.frame();
    let frame = match idle {
        Some(idle) => tokio::time::timeout(idle, next).await.ok()?,
        None => next.await,
    };
    frame.transpose().ok()
}

impl Drop for Pump {
    fn drop(&mut self) {
        if !self.ended {
            self.fill.state().closed = true;
            self.fill.end(End::Cut);
        }
    }
}

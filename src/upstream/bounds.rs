//! How many connections a backend may have open from this replica, over all its workers, and how many requests may wait
//! for one.
//!
//! Law: at most max(connections, workers) are open. Each worker may have one whatever the others do, so that nobody's
//! long requests leave another worker with nothing; the rest is for whoever comes. Which of a worker's connections is
//! its one does not matter: closing any gives one of the rest back while it has more.
//!
//! A [`Permit`] is held by what reads and writes the socket, so it ends when the socket does, whoever ends that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tokio::sync::Notify;

use crate::route_map::ConnectionBounds;

#[derive(Debug)]
pub(super) struct Bounds {
    /// Connections beside each worker's one: how many there may be, and are.
    most: AtomicUsize,
    taken: AtomicUsize,
    /// Requests that may wait, and that do.
    pending: AtomicUsize,
    waiting: AtomicUsize,
    /// Whose turn it is to hear that something is free.
    turn: AtomicUsize,
    workers: Box<[Share]>,
}

/// What a worker has of it.
#[derive(Debug, Default)]
struct Share {
    open: AtomicUsize,
    /// Of those nobody uses.
    idle: AtomicUsize,
    waiting: AtomicUsize,
    /// Something may be free, or wanted elsewhere.
    bell: Notify,
}

/// The right to have a connection open.
pub(super) type Permit = Arc<Slot>;

#[derive(Debug)]
pub(super) struct Slot {
    bounds: Arc<Bounds>,
    worker: usize,
    is_given_back: AtomicBool,
}

impl Bounds {
    pub fn new(plan: ConnectionBounds, workers: usize) -> Arc<Self> {
        let bounds = Self {
            most: AtomicUsize::new(0),
            taken: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            workers: (0..workers.max(1)).map(|_| Share::default()).collect(),
        };
        bounds.change(plan);
        Arc::new(bounds)
    }

    /// From now on. Nothing that is open is closed for it.
    pub fn change(&self, plan: ConnectionBounds) {
        self.most.store((plan.connections as usize).saturating_sub(self.workers.len()), SeqCst);
        self.pending.store(plan.pending as usize, SeqCst);
        self.workers.iter().filter(|share| share.waiting.load(SeqCst) > 0).for_each(Share::ring);
    }

    /// None: as many are open as may be.
    pub fn permit(self: &Arc<Self>, worker: usize) -> Option<Permit> {
        let share = self.share(worker);
        loop {
            let open = share.open.load(SeqCst);
            if open > 0 && !self.take_one() {
                return None;
            }
            if share.open.compare_exchange(open, open + 1, SeqCst, SeqCst).is_ok() {
                let is_given_back = AtomicBool::new(false);
                return Some(Arc::new(Slot { bounds: Arc::clone(self), worker, is_given_back }));
            }
            if open > 0 {
                self.taken.fetch_sub(1, SeqCst);
            }
        }
    }

    fn take_one(&self) -> bool {
        let more = |taken: usize| (taken < self.most.load(SeqCst)).then_some(taken + 1);
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Who begins to wait looks once more after that, and who gives back looks then who waits: one of them sees the other.
    fn gives_back(&self, worker: usize) {
        let share = self.share(worker);
        if share.open.fetch_sub(1, SeqCst) == 1 {
            // Only this worker can take its own one again.
            if share.waiting.load(SeqCst) > 0 {
                share.ring();
            }
            return;
        }
        self.taken.fetch_sub(1, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.ring_poorest();
        }
    }

    /// Of those whose requests wait, who has fewest.
    fn ring_poorest(&self) {
        let waiting = self.in_turn().filter(|share| share.waiting.load(SeqCst) > 0);
        waiting.min_by_key(|share| share.open.load(SeqCst)).iter().for_each(|share| share.ring());
    }

    /// Another request of the worker waits. False: as many wait as may, and nobody else has one to spare.
    pub fn may_wait(&self, worker: usize) -> bool {
        let others = self.others(worker);
        let most = self.pending.load(SeqCst) + others.map(Share::to_spare).sum::<usize>();
        let more = |waiting: usize| (waiting < most).then_some(waiting + 1);
        if self.waiting.fetch_update(SeqCst, SeqCst, more).is_err() {
            return false;
        }
        self.share(worker).waiting.fetch_add(1, SeqCst);
        true
    }

    pub fn waits_no_more(&self, worker: usize) {
        self.share(worker).waiting.fetch_sub(1, SeqCst);
        // What was left to it, others may have.
        if self.waiting.fetch_sub(1, SeqCst) > 1 && self.rest() > 0 {
            self.ring_poorest();
        }
    }

    /// So many this worker could open now.
    pub fn free(&self, worker: usize) -> usize {
        self.rest() + usize::from(self.share(worker).open.load(SeqCst) == 0)
    }

    /// So many connections of this worker would be of use to others who wait, beside what is free.
    pub fn wanted_of(&self, worker: usize) -> usize {
        let share = self.share(worker);
        let waiting = self.waiting.load(SeqCst).saturating_sub(share.waiting.load(SeqCst));
        if waiting == 0 {
            return 0;
        }
        waiting.saturating_sub(self.rest()).min(share.open.load(SeqCst).saturating_sub(1))
    }

    /// Whether another worker's requests wait, beside what is free, and it has fewer connections than this one by more
    /// than that. Who waits and has fewest never sees one.
    pub fn has_poorer(&self, worker: usize, by: usize) -> bool {
        let own = self.share(worker).open.load(SeqCst);
        let is_poorer = |share: &Share| share.waiting.load(SeqCst) > 0 && share.open.load(SeqCst) + by < own;
        self.wanted_of(worker) > 0 && self.others(worker).any(is_poorer)
    }

    /// Asks a worker that has connections to spare for one.
    pub fn ask_another(&self, worker: usize) {
        let own = self.share(worker);
        let other = self.in_turn().find(|share| !std::ptr::eq(*share, own) && share.to_spare() > 0);
        other.iter().for_each(|share| share.ring());
    }

    /// Asks all of them.
    pub fn ask_others(&self, worker: usize) {
        self.others(worker).filter(|share| share.open.load(SeqCst) > 1).for_each(Share::ring);
    }

    /// A connection of the worker came to be of no use to anybody (1), or is used or closed (-1).
    pub fn idles(&self, worker: usize, by: isize) {
        let idle = &self.share(worker).idle;
        if by < 0 {
            idle.fetch_sub(by.unsigned_abs(), SeqCst)
        } else {
            idle.fetch_add(by.unsigned_abs(), SeqCst)
        };
    }

    pub fn ring(&self, worker: usize) {
        self.share(worker).ring();
    }

    /// Until this worker is to look.
    pub async fn rung(&self, worker: usize) {
        self.share(worker).bell.notified().await;
    }

    fn rest(&self) -> usize {
        self.most.load(SeqCst).saturating_sub(self.taken.load(SeqCst))
    }

    fn share(&self, worker: usize) -> &Share {
        &self.workers[worker % self.workers.len()]
    }

    fn others(&self, worker: usize) -> impl Iterator<Item = &Share> {
        let own = worker % self.workers.len();
        self.workers.iter().enumerate().filter(move |(at, _)| *at != own).map(|(_, share)| share)
    }

    /// All workers, from another one each time.
    fn in_turn(&self) -> impl Iterator<Item = &Share> {
        let (start, count) = (self.turn.fetch_add(1, SeqCst), self.workers.len());
        (0..count).map(move |step| &self.workers[start.wrapping_add(step) % count])
    }
}

impl Share {
    fn ring(&self) {
        self.bell.notify_one();
    }

    /// Its first is of use to nobody else.
    fn to_spare(&self) -> usize {
        self.idle.load(SeqCst).min(self.open.load(SeqCst).saturating_sub(1))
    }
}

impl Slot {
    /// The connection counts no longer, though it may be open for a while.
    pub fn give_back(&self) {
        if !self.is_given_back.swap(true, SeqCst) {
            self.bounds.gives_back(self.worker);
        }
    }

    /// Whether it counts no longer.
    pub fn is_given_back(&self) -> bool {
        self.is_given_back.load(SeqCst)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(connections: u32, pending: u32, workers: usize) -> Arc<Bounds> {
        Bounds::new(ConnectionBounds { connections, pending }, workers)
    }

    #[test]
    fn each_worker_has_one_and_the_rest_is_for_whoever_comes() {
        for (connections, workers, most) in [(5, 2, 5), (2, 2, 2), (1, 4, 4), (7, 1, 7)] {
            let bounds = bounds(connections, 0, workers);
            let greedy: Vec<_> = std::iter::from_fn(|| bounds.permit(0)).collect();
            assert_eq!(greedy.len(), most - (workers - 1));
            let others: Vec<_> = (1..workers).map(|worker| bounds.permit(worker).expect("its own")).collect();
            assert!((0..workers).all(|worker| bounds.permit(worker).is_none()));
            drop(greedy);
            assert_eq!(bounds.free(0), most - (workers - 1));
            drop(others);
            assert_eq!((bounds.taken.load(SeqCst), bounds.workers[0].open.load(SeqCst)), (0, 0));
        }
    }

    #[test]
    fn whichever_is_closed_first_others_get_what_is_beyond_the_first() {
        let bounds = bounds(3, 0, 2);
        let (first, second) = (bounds.permit(0).expect("its own"), bounds.permit(0).expect("the rest"));
        let others = bounds.permit(1).expect("its own");
        assert!(bounds.permit(1).is_none());
        drop(first);
        let more = bounds.permit(1).expect("what was given back");
        assert!(bounds.permit(0).is_none(), "it has one");
        drop((second, others, more));
        assert_eq!(bounds.taken.load(SeqCst), 0);
    }

    #[test]
    fn what_was_given_back_early_is_not_given_back_again() {
        let bounds = bounds(3, 0, 1);
        let (one, _two) = (bounds.permit(0).expect("one"), bounds.permit(0).expect("two"));
        one.give_back();
        drop(one);
        assert_eq!((bounds.taken.load(SeqCst), bounds.workers[0].open.load(SeqCst)), (0, 1));
    }

    #[test]
    fn a_lower_bound_counts_what_is_open_and_a_higher_one_holds_at_once() {
        let bounds = bounds(3, 0, 1);
        let mut open: Vec<_> = std::iter::from_fn(|| bounds.permit(0)).collect();
        bounds.change(ConnectionBounds { connections: 2, pending: 0 });
        for _ in 0..2 {
            assert!(bounds.permit(0).is_none());
            open.pop();
        }
        open.push(bounds.permit(0).expect("below the new bound"));
        assert!(bounds.permit(0).is_none());
        bounds.change(ConnectionBounds { connections: 4, pending: 0 });
        assert_eq!(bounds.free(0), 2);
    }

    #[test]
    fn as_many_wait_as_may_and_as_others_keep_idle() {
        let bounds = bounds(4, 1, 2);
        let _held: Vec<_> = std::iter::from_fn(|| bounds.permit(0)).collect();
        assert!(bounds.may_wait(1) && !bounds.may_wait(0) && !bounds.may_wait(1));
        assert_eq!((bounds.wanted_of(0), bounds.wanted_of(1)), (1, 0));
        bounds.idles(0, 3);
        assert!(
            bounds.may_wait(1) && bounds.may_wait(1) && !bounds.may_wait(1),
            "two of three: one is its own"
        );
        assert_eq!(bounds.wanted_of(0), 2);
        assert!(!bounds.may_wait(0), "what it keeps itself is none to wait for");
        (0..3).for_each(|_| bounds.waits_no_more(1));
        assert_eq!(bounds.wanted_of(0), 0);
    }

    #[test]
    fn no_permit_is_lost_or_made_by_threads_at_once() {
        let bounds = bounds(6, 0, 4);
        let (open, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (bounds, open, most) = (&bounds, &open, &most);
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for round in 0..20_000_usize {
                        if round % 3 == 2 || round % 7 > 4 {
                            if held.pop().is_some() {
                                // Before the permit is: the count here is never below the true one.
                                continue;
                            }
                        } else if let Some(permit) = bounds.permit(worker) {
                            held.push(Counted(open, permit));
                            most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
                        }
                    }
                });
            }
        });
        assert!(most.load(SeqCst) <= 6, "{most:?}");
        assert_eq!((open.load(SeqCst), bounds.taken.load(SeqCst)), (0, 0));
        assert!(bounds.workers.iter().all(|share| share.open.load(SeqCst) == 0));
    }

    struct Counted<'a>(&'a AtomicUsize, #[expect(dead_code, reason = "held")] Permit);

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
}

//! One worker: a thread with its own runtime, listeners, connections and pools. Nothing here is shared but what stands
//! in [`Shared`].

use std::cell::{Cell, RefCell};
use std::net::TcpListener as Socket;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::crowd::{Crowd, Pace};
use super::date::DateField;
use super::keep::Kept;
use super::live::Live;
use super::mirror::Seats;
use super::passthrough::Laps;
use super::watch::{Sweep, Verdict};
use super::{Settings, listener, outbound, tls};
use crate::lifecycle::{DrainSignal, Phase};
use crate::message::{Outbound, RequestId};
use crate::telemetry::{AccessLog, AccessWriter, RuleStats, Telemetry, WorkerStats};
use crate::upstream::{Guard, Pools};

/// So often one worker looks for kept state that nobody holds.
const KEPT_SWEEP: std::time::Duration = std::time::Duration::from_secs(10);

/// What all workers and the control side share.
pub struct Shared {
    pub settings: Arc<Settings>,
    /// Where plain HTTP is redirected to; none: 443.
    pub https_port: Option<u16>,
    pub telemetry: Telemetry,
    pub log: AccessLog,
    pub drain: DrainSignal,
    /// Where backends may be.
    pub guard: Guard,
    pub live: Arc<ArcSwap<Live>>,
    /// Counts installs, so that a worker sees a new map with one plain load.
    pub generation: AtomicU64,
    pub tls: tls::Configurations,
    /// Connections that are passed through.
    pub laps: Laps,
    pub keep: Kept,
    /// Where connections are counted by client.
    pub crowd: Option<Arc<Crowd>>,
    pub pace: Option<Pace>,
    /// Of each worker: how many connections it has, and where others hand it more.
    pub desks: Vec<Desk>,
}

#[derive(Debug)]
pub struct Desk {
    pub connections: AtomicUsize,
    pub inbox: mpsc::Sender<listener::Handed>,
}

/// A listening socket of one worker.
#[derive(Debug)]
pub struct Ear {
    pub socket: Socket,
    pub tls: bool,
}

pub struct Worker {
    pub index: usize,
    pub settings: Arc<Settings>,
    pub shared: Arc<Shared>,
    pub pools: Rc<Pools>,
    pub stats: Arc<WorkerStats>,
    pub log: AccessWriter,
    /// Requests that matched no rule.
    pub unmatched: Arc<RuleStats>,
    pub sweep: Rc<Sweep>,
    pub date: DateField,
    live: RefCell<(u64, Rc<Serving>)>,
    outbound: RefCell<Option<Rc<dyn Outbound>>>,
    phase: Cell<Phase>,
    /// Until the listening sockets are closed, their queues emptied.
    pub listening: Cell<bool>,
    /// Copies of requests under way.
    pub mirrored: Seats,
    /// SplitMix64: ids must differ, not be secret.
    random: Cell<u64>,
}

/// The map that a worker serves. Requests share it by `Rc`: no counter that other threads write is touched.
#[derive(Debug)]
pub struct Serving(Arc<Live>);

impl std::ops::Deref for Serving {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.0
    }
}

/// Runs a worker until it has drained. Called on its own thread.
pub fn run(index: usize, shared: Arc<Shared>, ears: Vec<Ear>, inbox: mpsc::Receiver<listener::Handed>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("a worker's runtime needs two descriptors; without them nothing can be served");
    runtime.block_on(async move {
        let worker = Worker::new(index, shared);
        tokio::select! {
            () = worker.keep_time() => {}
            ((), ()) = async { tokio::join!(listener::listen(&worker, ears), listener::receive(&worker, inbox)) } => {}
        }
    });
    // Whatever is left is cut.
    runtime.shutdown_background();
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), index);
        let live = shared.live.load_full();
        let empty: Arc<str> = Arc::from("");
        let worker = Rc::new(Self {
            index,
            settings: shared.settings.clone(),
            pools: Pools::new(index, seed, shared.guard.clone()),
            log: shared.log.worker(index),
            stats: shared.telemetry.worker(index),
            unmatched: shared.telemetry.rule(&empty, &empty, &empty),
            sweep: Rc::default(),
            date: DateField::default(),
            live: RefCell::new((0, Rc::new(Serving(live)))),
            outbound: RefCell::default(),
            phase: Cell::new(shared.drain.phase()),
            listening: Cell::new(true),
            mirrored: Seats::default(),
            random: Cell::new(seed),
            shared,
        });
        *worker.outbound.borrow_mut() = Some(outbound::of(&worker));
        worker
    }

    /// The newest map.
    pub fn live(&self) -> Rc<Serving> {
        let newest = self.shared.generation.load(Ordering::Acquire);
        let mut known = self.live.borrow_mut();
        if known.0 != newest {
            *known = (newest, Rc::new(Serving(self.shared.live.load_full())));
        }
        known.1.clone()
    }

    pub fn outbound(&self) -> Rc<dyn Outbound> {
        self.outbound.borrow().clone().expect("set when the worker was made")
    }

    /// As it is this moment, also before `keep_time` has heard: no answer to who asks in drain forgets to say so.
    pub fn phase(&self) -> Phase {
        let drain = &self.shared.drain;
        if drain.has_moved() { drain.phase() } else { self.phase.get() }
    }

    pub fn desk(&self) -> &Desk {
        &self.shared.desks[self.index]
    }

    pub fn next_request_id(&self) -> RequestId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_random().to_be_bytes());
        id[8..].copy_from_slice(&self.next_random().to_be_bytes());
        RequestId(id)
    }

    pub fn next_random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn count_panic(&self) {
        self.stats.panic();
        tracing::error!(
            worker = self.index,
            "a request's handler or its detached work panicked; a client that waited got 500"
        );
    }

    /// Sweeps the watches and follows the drain. Ends when all is over: drained, or closing.
    async fn keep_time(self: &Rc<Self>) {
        let limits = &self.settings.limits;
        let (mut drain, mut draining_since) = (self.shared.drain.clone(), None);
        let mut kept_swept = std::time::Instant::now();
        let mut ticks = tokio::time::interval(Sweep::interval(limits));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = following(self.phase.get());
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.reached(next), if next != self.phase.get() => {}
            }
            self.phase.set(drain.phase());
            if self.phase.get() >= Phase::Draining && draining_since.is_none() {
                draining_since = Some(Instant::now());
                // From here on each moment counts: look often.
                ticks = tokio::time::interval(std::time::Duration::from_millis(10));
            }
            self.sweep.tick(limits, draining_since);
            // So that a quiet worker does not hold an old map.
            drop(self.live());
            if self.index == 0 && kept_swept.elapsed() >= KEPT_SWEEP {
                kept_swept = std::time::Instant::now();
                self.shared.keep.sweep(kept_swept);
            }
            if self.phase.get() == Phase::Closing {
                self.sweep.for_each(|watch| watch.tell(Verdict::Cut));
                return;
            }
            if !self.listening.get() && self.desk().connections.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
impl Worker {
    /// One that serves nothing, for tests of what it does beside requests.
    pub fn alone(telemetry: &Telemetry) -> Rc<Self> {
        let settings = Settings {
            http: Vec::new(),
            https: Vec::new(),
            workers: 1,
            trusted_hops: 0,
            proxy_protocol: Default::default(),
            loopback_backends: true,
            egress: Default::default(),
            own_ports: true,
            public_https_port: None,
            installation: "test".into(),
            cache_memory: 0,
            limits: Default::default(),
        };
        let live = Arc::new(ArcSwap::from_pointee(Live::empty()));
        let shared = Shared {
            settings: Arc::new(settings),
            https_port: None,
            telemetry: telemetry.clone(),
            log: AccessLog::default(),
            drain: crate::lifecycle::Drain::new().1,
            guard: Guard::new(crate::upstream::Loopback::Allowed),
            tls: tls::Configurations::new(&live).expect("configurations"),
            live,
            generation: Default::default(),
            laps: Laps::default(),
            keep: Kept::new(0, crate::cache::Forwarders::Nobody),
            crowd: None,
            pace: None,
            desks: vec![Desk { connections: Default::default(), inbox: mpsc::channel(1).0 }],
        };
        Self::new(0, Arc::new(shared))
    }
}

fn following(phase: Phase) -> Phase {
    match phase {
        Phase::Serving => Phase::Leaving,
        Phase::Leaving => Phase::Draining,
        Phase::Draining | Phase::Parting | Phase::Closing => Phase::Closing,
    }
}

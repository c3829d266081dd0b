//! One running process: `bind(settings)` binds every socket, `Bound::run` serves until drained. All wiring, no logic.

mod admin;
mod announce;
mod egress;
mod endpoints;
mod programmed;
mod purge;
mod reconcile;
mod settings;
mod status;
mod writes;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub use programmed::out_of_time;
pub use purge::Named;
pub use settings::{OwnPods, Settings, Source, Store, default_workers};

use crate::background;
use crate::controller;
use crate::filters::REGISTRY;
use crate::lifecycle::{Drain, DrainSignal, Phase, Readiness, terminated};
use crate::proxy::DataPlane;
use crate::telemetry::{AccessLog, Telemetry};

/// Updates of the source that wait for reconcile; then the source waits.
const WAITING_UPDATES: usize = 64;
/// After the drain time-out connections are cut; so long may that take.
const CLOSING: Duration = Duration::from_secs(2);
/// What clients of WebSockets have of the drain time-out to hear of its end.
const PARTING: Duration = Duration::from_secs(1);

/// What was bound, port 0 resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Addresses {
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<SocketAddr>,
}

/// A process that holds all its sockets and serves nothing yet.
#[derive(Debug)]
pub struct Bound {
    settings: Settings,
    addresses: Addresses,
    control: tokio::runtime::Runtime,
    plane: DataPlane,
    telemetry: Telemetry,
    log: AccessLog,
    admin: Option<tokio::net::TcpListener>,
    peer: Option<tokio::net::TcpListener>,
    drain: (Drain, DrainSignal),
}

/// Binds everything, so that a port that is taken is told before anything starts.
///
/// # Errors
/// An address cannot be bound, the access log cannot be opened, a thread cannot be started.
pub fn bind(settings: Settings) -> anyhow::Result<Bound> {
    // Whoever installed one first decides; there is only one in the program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let telemetry = Telemetry::new(settings.proxy.workers);
    let log =
        AccessLog::start(settings.access_log.clone(), &telemetry).context("cannot open the access log")?;
    let drain = Drain::new();
    let signal = drain.1.clone();
    let plane = DataPlane::start(settings.proxy.clone(), REGISTRY, telemetry.clone(), log.clone(), signal)
        .context("cannot start the proxy")?;
    let listen = |address: Option<SocketAddr>, what: &str| {
        let bound = address.map(|address| {
            control
                .block_on(tokio::net::TcpListener::bind(address))
                .with_context(|| format!("cannot listen on {address} for {what}"))
        });
        bound.transpose()
    };
    let admin = listen(settings.admin, "admin")?;
    let peer = match settings.source {
        Source::Cluster { peer, .. } => listen(peer, "the other replicas")?,
        Source::Files(_) => None,
    };
    let addresses = Addresses {
        http: plane.addresses().http.clone(),
        https: plane.addresses().https.clone(),
        admin: admin.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?,
        peer: peer.as_ref().map(tokio::net::TcpListener::local_addr).transpose()?,
    };
    Ok(Bound { settings, addresses, control, plane, telemetry, log, admin, peer, drain })
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every request was answered, or the drain time-out cut it.
    Drained,
    /// A second signal came.
    AtOnce,
}

impl Bound {
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves until SIGTERM or SIGINT, then drains.
    ///
    /// # Errors
    /// The source cannot be started.
    pub fn run(self) -> anyhow::Result<Ended> {
        let Self { settings, addresses, control, plane, telemetry, log, admin, peer, drain: (drain, signal) } =
            self;
        let mut signals = {
            let _context = control.enter();
            terminated().context("cannot listen to signals")?
        };
        let resolver = background::Resolver::new(settings.resolver.clone());
        if let Some(fetches) = plane.fetches() {
            let backends = plane.clone();
            let ways = background::Ways {
                guard: plane.guard(),
                backends: Arc::new(move |id| backends.backend(id)),
                resolver: resolver.clone(),
            };
            control.spawn(background::keep_fetching(fetches, ways, telemetry.clone()));
        }
        if let Some(checks) = plane.checks() {
            control.spawn(background::keep_checking(checks, plane.guard()));
        }
        if let Some(store) = &settings.store
            && let Some(questions) = plane.store().questions(store.patience)
        {
            control.spawn(background::keep_counting(questions, store.url.clone(), telemetry.clone()));
        }
        let readiness = Readiness::default();
        let (updates, receiver) = mpsc::channel(WAITING_UPDATES);
        let (published, publications) = watch::channel(None);
        let (installed, installed_at) = watch::channel(None);
        let (api_server, api_servers) = watch::channel(Vec::new());
        let egress = egress::Egress::new(plane.guard(), settings.own_pods.clone(), api_servers);
        let reconcile = reconcile::Reconcile {
            updates: receiver,
            options: settings.compile.clone(),
            zone: settings.zone.clone(),
            plane: plane.clone(),
            telemetry: telemetry.clone(),
            resolver,
            published,
            installed,
            egress,
            waits_for_lists: readiness.wait_for("first lists"),
            waits_for_map: readiness.wait_for("first route map"),
        };
        control.spawn(async move {
            if let Err(error) = reconcile::run(reconcile).await {
                tracing::error!(%error, "cannot start the compile thread");
            }
        });
        let others = match &settings.source {
            Source::Files(paths) => crate::standalone::watch(paths.clone(), updates)
                .map(|()| None)
                .context("cannot start the thread that watches the files")?,
            Source::Cluster { controller, .. } => {
                let wiring = controller::Wiring {
                    updates,
                    published: publications.clone(),
                    telemetry: telemetry.clone(),
                    api_server,
                    drain: signal.clone(),
                    peer,
                    purges: {
                        let plane = plane.clone();
                        Arc::new(move |body: &[u8]| purge::purge_here(&plane, body))
                    },
                    waits_for_peers: readiness.wait_for("what the other replicas serve"),
                };
                control.block_on(controller::start(*controller.clone(), wiring))?
            }
        };
        if let (Some(others), Some(written)) = (&others, others.as_ref().and_then(|_| plane.writes())) {
            control.spawn(writes::tell(written, Arc::clone(others)));
        }
        if let Some(listener) = admin {
            let status = status::Status {
                started: Instant::now(),
                addresses,
                published: publications,
                installed_at,
                telemetry: telemetry.clone(),
            };
            let token = purge::token_file(settings.admin_token.clone());
            let purger = purge::Purger { plane: plane.clone(), token, others };
            let admin = admin::Admin { telemetry, readiness, drain: signal, status, purger };
            control.spawn(admin::serve(listener, Arc::new(admin)));
        }
        let ended = control.block_on(async {
            let signal = signals.recv().await;
            tracing::info!(signal, "draining");
            tokio::select! {
                () = leave(&settings, &drain, plane) => {
                    tracing::info!("drained");
                    Ended::Drained
                }
                signal = signals.recv() => {
                    tracing::warn!(signal, "ending at once; open requests are cut");
                    Ended::AtOnce
                }
            }
        });
        log.flush(CLOSING);
        control.shutdown_background();
        Ok(ended)
    }
}

/// The phases of the end. Returns when all workers have ended.
async fn leave(settings: &Settings, drain: &Drain, plane: DataPlane) {
    drain.advance(Phase::Leaving);
    tokio::time::sleep(settings.drain_delay).await;
    drain.advance(Phase::Draining);
    let (ended, mut workers) = tokio::sync::oneshot::channel();
    // Dropped with the thread, so that a thread that could not be started does not hold us up.
    let waiting = std::thread::Builder::new().name("join".into()).spawn(move || {
        plane.join();
        let _ = ended.send(());
    });
    if let Err(error) = waiting {
        tracing::error!(%error, "cannot wait for the workers");
    }
    let parting = settings.drain_timeout.min(PARTING);
    if tokio::time::timeout(settings.drain_timeout - parting, &mut workers).await.is_ok() {
        return;
    }
    tracing::info!("the drain time-out is nearly over; WebSockets are closed");
    drain.advance(Phase::Parting);
    if tokio::time::timeout(parting, &mut workers).await.is_ok() {
        return;
    }
    tracing::warn!("the drain time-out is over; what is still open is cut");
    drain.advance(Phase::Closing);
    let _ = tokio::time::timeout(CLOSING, workers).await;
}

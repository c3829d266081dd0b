//! The Kubernetes side: watches → updates for reconcile, leader election, status and Events, who serves what. The only
//! user of `kube`'s client and runtime.
//!
//! `app` binds the peer port with the other sockets, before anything starts, and calls [`start`] with the [`Wiring`].
//! It returns once the client is made; its tasks end with the runtime. Order at a start: the peer port is open, the own
//! address is seen among the replicas', the lists are read with quorum, `Synced` is told; reconcile installs the first
//! map, and readiness follows once it holds what the others asked for meanwhile. Without an API server nothing of this
//! happens and the process stays unready; when it goes away later, everything that is known stays, the watches go on
//! trying, and the data path notices nothing.

mod gather;
mod kinds;
mod lease;
mod once;
mod peer_port;
mod pulse;
mod replicas;
mod served;
mod sources;
mod status;
mod wanted;
mod watch;
mod writer;

use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as channel};

pub use self::once::{Found, Place, read};
pub use self::peer_port::{Purges, TokenFile};

use self::lease::{Candidate, Term};
use self::pulse::Pulse;
use self::replicas::Peers;
use self::served::Served;
use self::writer::Writer;
use crate::compile::Published;
use crate::lifecycle::{DrainSignal, Guard};
use crate::snapshot::Update;
use crate::telemetry::Telemetry;
use crate::values::LabelSelector;

const CONNECT: Duration = Duration::from_secs(5);
const LOCATE_AGAIN: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Settings {
    /// None: the service account of the Pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Names this installation in the status of backends and as the source of Events.
    pub class_name: Arc<str>,
    /// Of the installation: its Lease and its peer Service are there.
    pub namespace: String,
    /// Names this replica in messages.
    pub pod_name: String,
    /// Where the other replicas reach this one.
    pub pod_ip: Option<IpAddr>,
    pub area: Area,
    pub lease_name: String,
    /// None: this process is the only replica.
    pub peers: Option<PeerSettings>,
}

/// Whose objects are ours.
#[derive(Clone, Debug, Default)]
pub struct Area {
    /// Read these namespaces only; empty: all.
    pub namespaces: Vec<String>,
    /// Objects of ours count only in namespaces with these labels, and in that of the installation.
    pub selector: Option<LabelSelector>,
    pub installation: Arc<str>,
}

#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// The headless Service over all replicas, with `publishNotReadyAddresses`.
    pub service: String,
    /// Holds the token that the replicas show each other.
    pub token_file: PathBuf,
}

/// What this side is connected to.
pub struct Wiring {
    pub updates: mpsc::Sender<Update>,
    pub published: channel::Receiver<Option<Arc<Published>>>,
    pub telemetry: Telemetry,
    /// Told where the API server is asked, and where it says it is: no backend may be there.
    pub api_server: channel::Sender<Vec<SocketAddr>>,
    pub drain: DrainSignal,
    /// The peer port; needed where `Settings::peers` is given.
    pub peer: Option<TcpListener>,
    /// Takes what other replicas were asked to purge.
    pub purges: Purges,
    /// Held until this replica serves what the others asked it for while it started.
    pub waits_for_peers: Guard,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the kubeconfig {0}")]
    Kubeconfig(PathBuf, #[source] kube::config::KubeconfigError),
    #[error(
        "not in a Pod with a service account; run in a cluster, name a kubeconfig, or read files with --manifests"
    )]
    NotInCluster(#[source] kube::config::InClusterError),
    #[error(
        "no cluster: neither a kubeconfig nor the service account of a Pod can be used; name one with --kubeconfig, or read files with --manifests"
    )]
    NoCluster(#[source] Box<kube::config::InferConfigError>),
    #[error(
        "cannot list the GatewayRoutes; see whether the CRDs are installed and whether you may read them"
    )]
    Routes(#[source] Box<kube::Error>),
    #[error("cannot make a client for the API server")]
    Client(#[source] kube::Error),
    #[error("a peer Service is named but no peer address to listen on; set --peer")]
    NoPeerPort,
    #[error("the peer port has no address")]
    PeerPort(#[source] std::io::Error),
    #[error("{0}")]
    Token(String),
}

/// Makes the client and starts everything. Must be called in the runtime that it shall run on.
///
/// # Errors
/// The settings cannot work. An API server that does not answer is no error.
pub async fn start(settings: Settings, wiring: Wiring) -> Result<Option<Arc<dyn Purging>>, Error> {
    let config = config(settings.kubeconfig.as_deref()).await?;
    let asked = asked(&config);
    let client = connect(config)?;
    let Wiring { updates, published, telemetry, api_server, drain, peer, purges, waits_for_peers } = wiring;
    api_server.send_replace(resolved(&asked).await);
    tokio::spawn(locate(asked, client.clone(), api_server));
    let served = Served::new(&settings.pod_name, published.clone());
    let starting = served.clone();
    tokio::spawn(async move {
        starting.ready().await;
        drop(waits_for_peers);
    });
    let peers = match (settings.peers, peer) {
        (None, _) => None,
        (Some(_), None) => return Err(Error::NoPeerPort),
        (Some(PeerSettings { service, token_file }), Some(listener)) => {
            let token = TokenFile::new(token_file);
            token.read().await.map_err(Error::Token)?;
            let port = listener.local_addr().map_err(Error::PeerPort)?.port();
            let own = settings.pod_ip.map(|address| SocketAddr::new(address, port));
            tokio::spawn(peer_port::serve(listener, token.clone(), served.clone(), purges));
            let namespace = settings.namespace.clone();
            Some(Peers { client: client.clone(), namespace, service, token, own, lately: Arc::default() })
        }
    };
    // Where not all namespaces are read, those of the own Service are read for themselves.
    let own_slices = peers.is_some().then(|| settings.area.installation.clone());
    let pulse = Pulse::new(telemetry.clone());
    let identity = format!("{}_{:016x}", settings.pod_name, random());
    let (term_sender, term) = channel::channel(Term::default());
    let candidate = Candidate {
        client: client.clone(),
        namespace: settings.namespace,
        lease: settings.lease_name,
        identity,
        telemetry: telemetry.clone(),
        pulse: pulse.clone(),
        drain,
    };
    tokio::spawn(candidate.run(term_sender));
    let class_name = &settings.class_name;
    let writer = Writer::new(&client, class_name, &settings.pod_name, peers.clone(), served, term, published);
    tokio::spawn(writer.run());
    let watches = watch::watches(&client, &settings.area, own_slices, &telemetry, &pulse, updates);
    let others = peers.clone().map(|peers| Arc::new(peers) as Arc<dyn Purging>);
    tokio::spawn(async move {
        if let Some(peers) = peers {
            peers.seen().await;
        }
        for watch in watches {
            tokio::spawn(watch);
        }
    });
    Ok(others)
}

/// The other replicas, as those to tell of purges.
pub trait Purging: Send + Sync {
    /// Those that did not take it, each with why.
    fn purge(&self, body: Bytes) -> Telling<'_>;

    /// The same as well as it can be done: by those that were there lately, without asking who is there now.
    fn tell(&self, body: Bytes) -> Telling<'_>;
}

/// What came of telling the other replicas.
pub type Telling<'a> = Pin<Box<dyn Future<Output = Result<Vec<(String, String)>, String>> + Send + 'a>>;

impl Purging for Peers {
    fn purge(&self, body: Bytes) -> Telling<'_> {
        Box::pin(Self::purge(self, body))
    }

    fn tell(&self, body: Bytes) -> Telling<'_> {
        Box::pin(Self::tell(self, body))
    }
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, Error> {
    let Some(path) = kubeconfig else { return Config::incluster().map_err(Error::NotInCluster) };
    let failed = |error| Error::Kubeconfig(path.to_owned(), error);
    let read = Kubeconfig::read_from(path).map_err(failed)?;
    Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(failed)
}

/// The host and port under which the API server is asked.
fn asked(config: &Config) -> (String, u16) {
    let url = &config.cluster_url;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    (host, url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 }))
}

async fn resolved((host, port): &(String, u16)) -> Vec<SocketAddr> {
    let found = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host.as_str(), *port))).await;
    found.ok().and_then(Result::ok).map_or_else(Vec::new, Iterator::collect)
}

/// Where the API server is, by what is known, what its name leads to and what it says. A name that leads nowhere for now
/// takes nothing back.
fn addresses(
    known: &[SocketAddr],
    resolved: Vec<SocketAddr>,
    said: impl Iterator<Item = SocketAddr>,
) -> Vec<SocketAddr> {
    let mut found = if resolved.is_empty() { known.to_vec() } else { resolved };
    found.extend(said);
    found.sort_unstable();
    found.dedup();
    found
}

/// Tells where the API server is, now and then anew: the name or address that it is asked under, and what it says of
/// itself to everybody. What was known stays while it does not answer.
async fn locate(asked: (String, u16), client: Client, told: channel::Sender<Vec<SocketAddr>>) {
    loop {
        let answer = tokio::time::timeout(CONNECT, client.list_core_api_versions()).await;
        let said = answer.ok().and_then(Result::ok).map(|versions| versions.server_address_by_client_cidrs);
        if let Some(said) = &said {
            let said = said.iter().filter_map(|said| said.server_address.parse().ok());
            let resolved = resolved(&asked).await;
            let found = addresses(&told.borrow(), resolved, said);
            told.send_if_modified(|known| {
                *known != found && {
                    known.clone_from(&found);
                    true
                }
            });
        }
        tokio::select! {
            () = tokio::time::sleep(if said.is_some() { LOCATE_AGAIN } else { CONNECT }) => {}
            () = told.closed() => return,
        }
    }
}

fn connect(mut config: Config) -> Result<Client, Error> {
    config.connect_timeout = Some(CONNECT);
    // Every caller here has its own back-off and its own idea of how long to wait.
    config.default_retry = false;
    Client::try_from(config).map_err(Error::Client)
}

/// Not for secrets: keeps replicas apart. The standard library seeds its hash maps from the system.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests;

//! `portcullis run`: the gateway.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use ipnet::IpNet;

use super::egress::{EgressArgs, network};
use super::logging;
use crate::app::{self, Ended, Settings, Source};
use crate::background::{ResolverSettings, StoreUrl};
use crate::compile::{HostnameClaims, LoopbackHosts, Options};
use crate::controller::{self, Area, PeerSettings};
use crate::message::Scheme;
use crate::proxy;
use crate::telemetry::AccessTarget;
use crate::values::{ByteSize, Duration, LabelSelector, ObjectName, Redacted};

#[derive(Args, Debug)]
pub struct Run {
    /// Read manifests from this folder or file instead of a cluster; may be given more than once
    #[arg(long, value_name = "DIR", env = "PORTCULLIS_MANIFESTS", value_delimiter = ',')]
    manifests: Vec<PathBuf>,
    #[command(flatten)]
    cluster: Cluster,
    /// Where to listen for plain HTTP; port 0 takes any free port [default: port 8080 of every address]
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_HTTP", value_delimiter = ',')]
    http: Vec<SocketAddr>,
    /// Where to listen for TLS [default: port 8443 of every address]
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_HTTPS", value_delimiter = ',')]
    https: Vec<SocketAddr>,
    /// The port of HTTPS under which clients reach it, for redirects from plain HTTP [default: 443, with --manifests that
    /// of --https]
    #[arg(long, value_name = "PORT", env = "PORTCULLIS_PUBLIC_HTTPS_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    public_https_port: Option<u16>,
    /// Where to answer /metrics, /livez, /readyz and /status [default: port 9090, with --manifests on loopback]
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_ADMIN")]
    admin: Option<SocketAddr>,
    /// The token that POST /purge wants to see [default: in a cluster that of the replicas, with --manifests none: no purges]
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
    /// Worker threads [default: one a CPU that the process may use, at most 16]
    #[arg(long, value_name = "N", env = "PORTCULLIS_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: Option<u16>,
    /// Open connections of clients; further ones wait until one ends
    #[arg(long, value_name = "N", env = "PORTCULLIS_MAX_CONNECTIONS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Open connections of one client's address, of IPv6 its /64; further ones are closed [default: any number]
    #[arg(long, value_name = "N", env = "PORTCULLIS_MAX_CONNECTIONS_PER_CLIENT", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections_per_client: Option<u32>,
    /// Connections accepted in a second; further ones wait for their turn [default: as they come]
    #[arg(long, value_name = "N", env = "PORTCULLIS_MAX_ACCEPTS_PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_accepts_per_second: Option<u32>,
    /// Bytes that a request's body may have where its rule sets no validation.maxBodySize
    #[arg(long, value_name = "SIZE", env = "PORTCULLIS_MAX_BODY_SIZE", default_value = "10Mi")]
    max_body_size: ByteSize,
    /// One JSON line a request: off, stdout, or a file that is appended to
    #[arg(long, value_name = "off|stdout|FILE", env = "PORTCULLIS_ACCESS_LOG", default_value = "off")]
    access_log: String,
    /// Which routes are ours: their `spec.className`
    #[arg(long, value_name = "NAME", env = "PORTCULLIS_CLASS_NAME", default_value = "portcullis")]
    class_name: String,
    /// Who may claim a hostname
    #[arg(long, value_name = "FirstCome|Listed", env = "PORTCULLIS_HOSTNAMES", default_value = "FirstCome")]
    hostnames: Hostnames,
    /// How many proxies in front of the gateway are trusted to say who the client is
    #[arg(long, value_name = "N", env = "PORTCULLIS_TRUSTED_HOPS", default_value_t = 0)]
    trusted_hops: u8,
    /// Listeners whose connections begin with a PROXY header (version 1 or 2), which says who the client is
    #[arg(
        long,
        value_name = "http|https",
        env = "PORTCULLIS_PROXY_PROTOCOL",
        value_delimiter = ',',
        requires = "trusted_proxies"
    )]
    proxy_protocol: Vec<Listener>,
    /// Addresses or networks that may send it; on those listeners nobody else has a connection
    #[arg(
        long,
        value_name = "NETWORK",
        env = "PORTCULLIS_TRUSTED_PROXIES",
        value_delimiter = ',',
        value_parser = network,
        requires = "proxy_protocol"
    )]
    trusted_proxies: Vec<IpNet>,
    #[command(flatten)]
    egress: EgressArgs,
    /// DNS servers to look names of backends up at [default: those of --resolv-conf]
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_RESOLVER", value_delimiter = ',')]
    resolver: Vec<SocketAddr>,
    /// File with DNS servers, search domains and options
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// Zone that this replica is in, as endpoints have it; requests to Services that prefer near endpoints stay there
    /// [default: unknown]
    #[arg(long, value_name = "ZONE", env = "PORTCULLIS_ZONE")]
    zone: Option<String>,
    /// Redis in which replicas count together: redis://[USER:PASSWORD@]HOST:PORT/DB,
    /// redis+sentinel://HOST,HOST,HOST/PRIMARY or redis+cluster://HOST,HOST,HOST; rediss for TLS
    #[arg(long, value_name = "URL", env = "PORTCULLIS_REDIS", hide_env_values = true, value_parser = hidden)]
    redis: Option<Redacted<String>>,
    /// How long a request waits for it at most
    #[arg(long, value_name = "DURATION", env = "PORTCULLIS_REDIS_TIMEOUT", default_value = "5ms")]
    redis_timeout: Duration,
    /// Bytes that kept answers may have, all routes together
    #[arg(long, value_name = "SIZE", env = "PORTCULLIS_CACHE_MEMORY", default_value = "64Mi")]
    cache_memory: ByteSize,
    /// How long to go on accepting after the signal to end [default: 5s in a cluster, 0s with --manifests]
    #[arg(long, value_name = "DURATION", env = "PORTCULLIS_DRAIN_DELAY")]
    drain_delay: Option<Duration>,
    /// How long open requests have after that
    #[arg(long, value_name = "DURATION", env = "PORTCULLIS_DRAIN_TIMEOUT", default_value = "25s")]
    drain_timeout: Duration,
}

/// What only a gateway in a cluster needs.
#[derive(Args, Debug)]
#[command(next_help_heading = "In a cluster")]
struct Cluster {
    /// Speak to this cluster, not to the one around this Pod
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_KUBECONFIG", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
    /// Read these namespaces only [default: all]
    #[arg(long, value_name = "NAME", env = "PORTCULLIS_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// Serve objects of namespaces with these labels only, as key=value[,key=value]; the installation's own always
    /// counts (this also with --manifests) [default: all]
    #[arg(
        long,
        value_name = "LABELS",
        env = "PORTCULLIS_NAMESPACE_SELECTOR",
        conflicts_with = "watch_namespaces"
    )]
    namespace_selector: Option<LabelSelector>,
    /// Namespace of the installation: its Lease and its peer Service are there, and policies that may apply to
    /// everything (this also with --manifests)
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// Name of this replica in messages
    #[arg(long, value_name = "NAME", env = "POD_NAME", default_value = "portcullis")]
    pod_name: String,
    /// Where the other replicas reach this one
    #[arg(long, value_name = "ADDR", env = "POD_IP")]
    pod_ip: Option<IpAddr>,
    /// The Lease that the replicas elect their leader with
    #[arg(long, value_name = "NAME", env = "PORTCULLIS_LEASE_NAME", default_value = "portcullis")]
    lease_name: String,
    /// Where the other replicas ask what this one serves
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_PEER", requires = "peer_service")]
    peer: Option<SocketAddr>,
    /// The headless Service over all replicas
    #[arg(
        long,
        value_name = "NAME",
        env = "PORTCULLIS_PEER_SERVICE",
        requires = "peer_token_file",
        requires = "peer"
    )]
    peer_service: Option<String>,
    /// The token that the replicas show each other
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_PEER_TOKEN_FILE")]
    peer_token_file: Option<PathBuf>,
}

impl Cluster {
    fn own_pods(&self) -> app::OwnPods {
        let service = self.peer_service.as_deref().map(|name| ObjectName::new(&*self.namespace, name));
        app::OwnPods { address: self.pod_ip, service }
    }

    fn source(self, class_name: &str) -> Source {
        let peers = self.peer_service.zip(self.peer_token_file);
        let controller = controller::Settings {
            kubeconfig: self.kubeconfig,
            class_name: class_name.into(),
            area: Area {
                namespaces: self.watch_namespaces,
                selector: self.namespace_selector,
                installation: self.namespace.as_str().into(),
            },
            namespace: self.namespace,
            pod_name: self.pod_name,
            pod_ip: self.pod_ip,
            lease_name: self.lease_name,
            peers: peers.map(|(service, token_file)| PeerSettings { service, token_file }),
        };
        Source::Cluster { controller: Box::new(controller), peer: self.peer }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Hostnames {
    #[value(name = "FirstCome")]
    FirstCome,
    #[value(name = "Listed")]
    Listed,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Listener {
    Http,
    Https,
}

impl From<Listener> for Scheme {
    fn from(listener: Listener) -> Self {
        match listener {
            Listener::Http => Self::Http,
            Listener::Https => Self::Https,
        }
    }
}

impl From<Hostnames> for HostnameClaims {
    fn from(claims: Hostnames) -> Self {
        match claims {
            Hostnames::FirstCome => Self::FirstCome,
            Hostnames::Listed => Self::Listed,
        }
    }
}

pub fn run(args: Run) -> anyhow::Result<ExitCode> {
    logging::start();
    let settings = settings(args)?;
    let stdout = if settings.access_log == AccessTarget::Stdout { Stdout::AccessLog } else { Stdout::Free };
    let bound = app::bind(settings)?;
    print(bound.addresses(), stdout);
    let ended = bound.run()?;
    Ok(match ended {
        Ended::Drained => ExitCode::SUCCESS,
        Ended::AtOnce => ExitCode::FAILURE,
    })
}

/// What holds a password is proven later: messages about flags say what was given.
fn hidden(text: &str) -> Result<Redacted<String>, Infallible> {
    Ok(Redacted::new(text.to_owned()))
}

fn store(url: Option<&Redacted<String>>, patience: Duration) -> anyhow::Result<Option<app::Store>> {
    let Some(url) = url else { return Ok(None) };
    let url: StoreUrl = url.expose().parse().map_err(|why| anyhow!("the URL of --redis is {why}"))?;
    Ok(Some(app::Store { url, patience: patience.std() }))
}

fn settings(args: Run) -> anyhow::Result<Settings> {
    let files = !args.manifests.is_empty();
    let namespace = Arc::from(args.cluster.namespace.as_str());
    let served = args.cluster.namespace_selector.clone();
    let own_pods = args.cluster.own_pods();
    let admin_token = args.admin_token_file.or_else(|| args.cluster.peer_token_file.clone());
    let loopback = if files { LoopbackHosts::Allowed } else { LoopbackHosts::Refused };
    let egress = args.egress.beside(loopback);
    let store = store(args.redis.as_ref(), args.redis_timeout)?;
    Ok(Settings {
        source: if files { Source::Files(args.manifests) } else { args.cluster.source(&args.class_name) },
        proxy: proxy::Settings {
            http: or_every_address(args.http, 8080),
            https: or_every_address(args.https, 8443),
            workers: args.workers.map_or_else(app::default_workers, usize::from),
            trusted_hops: args.trusted_hops.into(),
            proxy_protocol: proxy::ProxyProtocol {
                listeners: args.proxy_protocol.into_iter().map(Scheme::from).collect(),
                trusted: args.trusted_proxies,
            },
            loopback_backends: files,
            egress: egress.clone(),
            own_ports: files,
            public_https_port: args.public_https_port,
            installation: Arc::from(args.class_name.as_str()),
            cache_memory: args.cache_memory.bytes(),
            limits: proxy::Limits {
                connections: usize::try_from(args.max_connections).unwrap_or(usize::MAX),
                connections_per_client: args.max_connections_per_client,
                accepts_per_second: args.max_accepts_per_second,
                max_body: args.max_body_size.bytes(),
                ..proxy::Limits::default()
            },
        },
        compile: Options {
            class_name: args.class_name.into(),
            hostnames: args.hostnames.into(),
            has_store: store.is_some(),
            loopback,
            egress,
            namespace,
            served,
        },
        admin: args
            .admin
            .or_else(|| Some(if files { (Ipv4Addr::LOCALHOST, 9090).into() } else { every_address(9090) })),
        resolver: ResolverSettings { servers: args.resolver, file: args.resolv_conf },
        zone: args.zone.filter(|zone| !zone.is_empty()).map(Arc::from),
        own_pods,
        store,
        admin_token,
        access_log: match args.access_log.as_str() {
            "off" => AccessTarget::Off,
            "stdout" => AccessTarget::Stdout,
            file => AccessTarget::File(file.into()),
        },
        drain_delay: args
            .drain_delay
            .map_or(std::time::Duration::from_secs(if files { 0 } else { 5 }), Duration::std),
        drain_timeout: args.drain_timeout.std(),
    })
}

fn or_every_address(given: Vec<SocketAddr>, port: u16) -> Vec<SocketAddr> {
    if given.is_empty() { vec![every_address(port)] } else { given }
}

/// Both families by one socket where the machine has IPv6.
fn every_address(port: u16) -> SocketAddr {
    if std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() {
        (Ipv6Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port).into()
    }
}

/// What stdout is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stdout {
    Free,
    AccessLog,
}

/// One line a listener, for people and scripts: `http 127.0.0.1:8080`. Where stdout is the access log, the log's events
/// stand for them; where the log leaves these out, stderr has the lines.
fn print(addresses: &app::Addresses, stdout: Stdout) {
    use std::io::Write as _;

    let logged = tracing::enabled!(tracing::Level::INFO);
    let http = addresses.http.iter().map(|address| ("http", address));
    let https = addresses.https.iter().map(|address| ("https", address));
    let admin = addresses.admin.iter().map(|address| ("admin", address));
    let peer = addresses.peer.iter().map(|address| ("peer", address));
    for (listener, address) in http.chain(https).chain(admin).chain(peer) {
        tracing::info!(listener, %address, "listening");
        // Whoever does not read them does not want them.
        let _ = match stdout {
            Stdout::Free => writeln!(std::io::stdout(), "{listener} {address}"),
            Stdout::AccessLog if logged => Ok(()),
            Stdout::AccessLog => writeln!(std::io::stderr(), "{listener} {address}"),
        };
    }
}

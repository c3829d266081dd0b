//! Asks DNS servers: which, under which names, and what an answer means.
//!
//! As `resolv.conf` and `/etc/hosts` say, read again when they change. Each of the names that a short one may mean is
//! asked for its A and AAAA records at once; the first that has any is meant. What one family's servers do not answer says
//! nothing of the other.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use super::wire::{self, Family, Name, Said};

const HOSTS_FILE: &str = "/etc/hosts";
const SYSTEM: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
const MAX_SERVERS: usize = 8;
/// Names that a short one may mean, beside itself.
const MAX_SEARCH: usize = 16;
/// So many addresses of one family are used.
pub(super) const MAX_ADDRESSES: usize = 64;
/// One look-up, however many names and servers are to be asked.
const LONGEST_LOOK_UP: Duration = Duration::from_secs(10);
/// However long an answer says that it holds.
pub(super) const LONGEST: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(1);
/// A name that is not there is asked for again this soon.
const LONGEST_NOTHING: Duration = Duration::from_secs(5);
/// What `/etc/hosts` says holds until it changes; it is looked at this often.
const OF_HOSTS: Duration = Duration::from_secs(5);
/// Of either file.
const MAX_FILE: u64 = 1 << 20;
/// More does not come by UDP where nothing else is agreed on (RFC 1035 section 4.2.1); some send it all the same.
const MAX_DATAGRAM: usize = 4096;

/// Where names are looked up.
#[derive(Clone, Debug)]
pub struct ResolverSettings {
    /// In place of those of the file.
    pub servers: Vec<SocketAddr>,
    /// In the form of `resolv.conf`.
    pub file: PathBuf,
}

impl Default for ResolverSettings {
    fn default() -> Self {
        Self { servers: Vec::new(), file: SYSTEM.into() }
    }
}

/// Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    settings: ResolverSettings,
    current: Mutex<Option<Arc<Current>>>,
}

/// What was made of the files as they were.
#[derive(Debug)]
struct Current {
    read: Versions,
    config: Config,
    hosts: HashMap<String, Vec<IpAddr>>,
}

/// When the files were last changed.
type Versions = [Option<SystemTime>; 2];

/// See resolv.conf(5).
#[derive(Debug, PartialEq, Eq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    patience: Duration,
    attempts: u32,
}

/// What is known of one family's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Addresses(Vec<IpAddr>, Duration),
    /// None are there; for so long.
    Nothing(Duration),
    Failed(String),
}

/// A, AAAA.
pub(super) type Parts = [Part; 2];

/// What a name came to, and which of the names that it may mean is meant, where addresses were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub parts: Parts,
    pub meant: Option<Name>,
}

/// Whose answers are good when the servers fail for one of the names that a name may mean. In another's place nobody
/// serves: it may be anybody's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// The one that was meant the last time; while it fails, none behind it is taken.
    pub meant: Option<Name>,
    /// Without one: whether those are passed over that fail, as the system's resolver does.
    pub passes: bool,
}

impl Held {
    fn stops_at(&self, name: &Name, parts: &Parts) -> bool {
        let failed = parts.iter().filter(|part| matches!(part, Part::Failed(_))).count();
        match &self.meant {
            Some(meant) => meant == name && failed > 0,
            None => !self.passes && failed == parts.len(),
        }
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(ResolverSettings::default())
    }
}

impl Resolver {
    pub fn new(settings: ResolverSettings) -> Self {
        Self(Arc::new(Inner { settings, current: Mutex::default() }))
    }

    pub(super) async fn look_up(&self, name: &str, held: &Held) -> Found {
        let unmeant = |parts| Found { parts, meant: None };
        let failed = |error: String| unmeant([Part::Failed(error.clone()), Part::Failed(error)]);
        let current = match self.current() {
            Ok(current) => current,
            Err(error) => return failed(format!("{}: {error}", self.0.settings.file.display())),
        };
        if let Some(known) = current.hosts(name) {
            return unmeant(known);
        }
        let mut nothing = None;
        let mut unanswered = None;
        let (names, first) = (current.config.names(name), AtomicUsize::new(0));
        let end = Instant::now() + LONGEST_LOOK_UP;
        for (place, name) in names.iter().enumerate() {
            let left = end.saturating_duration_since(Instant::now());
            let until = Instant::now() + share(left, names.len() - place - 1);
            let ask = |family| current.config.ask(name, family, &first, until);
            let (v4, v6) = tokio::join!(ask(Family::V4), ask(Family::V6));
            let parts = [v4, v6];
            if parts.iter().any(|part| matches!(part, Part::Addresses(..))) {
                return Found { parts, meant: Some(name.clone()) };
            }
            if held.stops_at(name, &parts) {
                return unmeant(parts);
            }
            // Another name that it may mean may be there: as the system's resolver goes on.
            let has_failed = parts.iter().any(|part| matches!(part, Part::Failed(_)));
            let place = if has_failed { &mut unanswered } else { &mut nothing };
            place.get_or_insert(parts);
        }
        unanswered.or(nothing).map_or_else(|| failed("it is no name".into()), unmeant)
    }

    /// All addresses of a host, for one connection.
    ///
    /// # Errors
    /// One sentence for the log.
    pub(in crate::background) async fn addresses(
        &self,
        host: &str,
        port: u16,
    ) -> Result<Vec<SocketAddr>, String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![(ip, port).into()]);
        }
        let mut why = "it has no address".to_owned();
        let mut addresses = Vec::new();
        for part in self.look_up(host, &Held { meant: None, passes: true }).await.parts {
            match part {
                Part::Addresses(found, _) => addresses.extend(found),
                Part::Nothing(_) => {}
                Part::Failed(error) => why = error,
            }
        }
        if addresses.is_empty() {
            return Err(why);
        }
        Ok(usable(addresses).into_iter().map(|ip| (ip, port).into()).collect())
    }

    fn current(&self) -> io::Result<Arc<Current>> {
        let Inner { settings, current } = &*self.0;
        let version = |file: &Path| std::fs::metadata(file).and_then(|found| found.modified()).ok();
        let read = [version(&settings.file), version(HOSTS_FILE.as_ref())];
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = current.as_ref().filter(|known| known.read == read) {
            return Ok(Arc::clone(known));
        }
        let config = Config::new(&text(&settings.file)?, &settings.servers);
        // A machine without that file is right.
        let hosts = hosts(&text(HOSTS_FILE.as_ref()).unwrap_or_default());
        Ok(Arc::clone(current.insert(Arc::new(Current { read, config, hosts }))))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolver").field(&self.0.settings).finish()
    }
}

/// One that is not there is empty.
fn text(file: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    match std::fs::File::open(file) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut text).map(drop)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Addresses by name, of lines like `10.0.0.1 one other # remark`.
fn hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words {
            hosts.entry(name.to_ascii_lowercase()).or_default().push(address);
        }
    }
    hosts
}

impl Current {
    /// What needs no server.
    fn hosts(&self, name: &str) -> Option<Parts> {
        let plain = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_here = plain == "localhost" || plain.ends_with(".localhost");
        let found = match self.hosts.get(&plain) {
            Some(found) => found.clone(),
            // RFC 6761 section 6.3: no server is asked about it.
            None if is_here => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
            None => return None,
        };
        let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(IpAddr::is_ipv4);
        Some([v4, v6].map(|addresses| match addresses.is_empty() {
            true => Part::Nothing(OF_HOSTS),
            false => Part::Addresses(tidy(addresses), OF_HOSTS),
        }))
    }
}

impl Config {
    fn new(text: &str, given: &[SocketAddr]) -> Self {
        let mut config = Self {
            servers: given.to_vec(),
            search: Vec::new(),
            ndots: 1,
            patience: Duration::from_secs(3),
            attempts: 2,
        };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if given.is_empty() => {
                    let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    config.servers.extend(server.map(|ip| SocketAddr::from((ip, PORT))));
                }
                // Of several the last counts.
                Some("search") => config.search = words.take(MAX_SEARCH).map(str::to_owned).collect(),
                Some("domain") => config.search = words.take(1).map(str::to_owned).collect(),
                Some("options") => words.for_each(|word| config.option(word)),
                _ => {}
            }
        }
        config.search.retain(|domain| domain != "." && Name::new(domain).is_some());
        config.servers.truncate(MAX_SERVERS);
        if config.servers.is_empty() {
            config.servers.push((Ipv4Addr::LOCALHOST, PORT).into());
        }
        config
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else { return };
        let Ok(value) = value.parse::<u8>() else { return };
        match name {
            "ndots" => self.ndots = usize::from(value.min(15)),
            // Nobody waits as long as a person would.
            "timeout" => self.patience = Duration::from_secs(value.clamp(1, 3).into()),
            "attempts" => self.attempts = value.clamp(1, 3).into(),
            _ => {}
        }
    }

    /// Which names one may mean, in the order in which they are asked for: with as many dots as `ndots` first itself.
    fn names(&self, name: &str) -> Vec<Name> {
        let own = Name::new(name);
        if name.ends_with('.') {
            return own.into_iter().collect();
        }
        let below = self.search.iter().filter_map(|domain| Name::new(&format!("{name}.{domain}")));
        let mut names: Vec<_> = below.collect();
        let dots = name.bytes().filter(|sign| *sign == b'.').count();
        let place = if dots >= self.ndots { 0 } else { names.len() };
        if let Some(own) = own {
            names.insert(place, own);
        }
        names
    }

    /// One server after the other, and all of them again, until one knows.
    /// `first`: which server is asked first; one that is silent is not any more.
    async fn ask(&self, name: &Name, family: Family, first: &AtomicUsize, until: Instant) -> Part {
        let mut why = "no time was left to ask for it".to_owned();
        let count = self.servers.len();
        let begin = first.load(Ordering::Relaxed);
        for at in (0..count * self.attempts as usize).map(|turn| (begin + turn) % count) {
            let (server, now) = (self.servers[at], Instant::now());
            if now >= until {
                break;
            }
            let patience = self.patience.min(until - now);
            let asked = tokio::time::timeout(patience, ask(server, name, family)).await;
            why = match asked {
                Ok(Ok(Said::Addresses(addresses, seconds))) => {
                    let holds = Duration::from_secs(seconds.into()).clamp(SHORTEST, LONGEST);
                    return Part::Addresses(tidy(addresses), holds);
                }
                Ok(Ok(Said::Nothing(seconds))) => {
                    let holds =
                        seconds.map_or(LONGEST_NOTHING, |seconds| Duration::from_secs(seconds.into()));
                    return Part::Nothing(holds.clamp(SHORTEST, LONGEST_NOTHING));
                }
                Ok(Ok(Said::Failure(code))) => format!("{server} answered with code {code}"),
                Ok(Ok(Said::Truncated)) => format!("{server} cut its answer by TCP, too"),
                Ok(Err(error)) => format!("{server}: {error}"),
                Err(_) => {
                    // Whether the other family's question has said so already is all the same.
                    let (old, new) = (at, (at + 1) % count);
                    let _ = first.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
                    format!("{server} did not answer within {patience:?}")
                }
            };
        }
        Part::Failed(why)
    }
}

/// How much of the time that is left one name may have: where nobody answers for it, half of it is the others'.
fn share(left: Duration, others: usize) -> Duration {
    if others == 0 { left } else { left / 2 }
}

/// Asks by UDP, and by TCP where that is too small. What comes and is no answer is not listened to.
async fn ask(server: SocketAddr, name: &Name, family: Family) -> io::Result<Said> {
    let mut id = [0; 2];
    SystemRandom::new().fill(&mut id).map_err(|_| io::Error::other("no random number can be had"))?;
    let id = u16::from_be_bytes(id);
    let question = wire::question(id, name, family);
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket, and so a port, for each question: who guesses an answer has to guess both. The kernel passes on only what
    // comes from this server.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut message = [0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut message).await?;
        match wire::answer(&message[..length], id, name, family) {
            None => {}
            Some(Said::Truncated) => break,
            Some(said) => return Ok(said),
        }
    }
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    wire::answer(&message, id, name, family).ok_or_else(|| io::Error::other("it sent no answer by TCP"))
}

/// The same addresses in any order are the same answer.
fn tidy(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

/// Those of a family to which this machine has no way are left out where there are others (RFC 6724 section 6, rule 1).
pub(super) fn usable(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv4);
    let is_reached = |family: &[IpAddr]| family.iter().any(|ip| has_way(*ip));
    match (v4.is_empty(), v6.is_empty()) {
        (false, false) if !is_reached(&v6) => v4,
        (false, false) if !is_reached(&v4) => v6,
        _ => v4.into_iter().chain(v6).collect(),
    }
}

/// Asks the kernel's routes; nothing is sent.
fn has_way(ip: IpAddr) -> bool {
    let any: SocketAddr = match ip {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    std::net::UdpSocket::bind(any).and_then(|socket| socket.connect((ip, 9))).is_ok()
}

#[cfg(test)]
mod tests;

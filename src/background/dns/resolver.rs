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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::wire::{self, Family, Name, Said};

const HOSTS_FILE: &str = "/etc/hosts";
const SYSTEM: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
const MAX_SERVERS: usize = 8;
/// Names that a short one may mean, beside itself.
const MAX_SEARCH: usize = 16;
/// So many addresses of one family are used.
pub(super) const MAX_ADDRESSES: usize = 64;
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

impl Default for Resolver {
    fn default() -> Self {
        Self::new(ResolverSettings::default())
    }
}

impl Resolver {
    pub fn new(settings: ResolverSettings) -> Self {
        Self(Arc::new(Inner { settings, current: Mutex::default() }))
    }

    pub(super) async fn look_up(&self, name: &str) -> Parts {
        let failed = |error: String| [Part::Failed(error.clone()), Part::Failed(error)];
        let current = match self.current() {
            Ok(current) => current,
            Err(error) => return failed(format!("{}: {error}", self.0.settings.file.display())),
        };
        if let Some(known) = current.hosts(name) {
            return known;
        }
        let mut nothing = None;
        let mut unanswered = None;
        for name in current.config.names(name) {
            let ask = |family| current.config.ask(&name, family);
            let (v4, v6) = tokio::join!(ask(Family::V4), ask(Family::V6));
            let parts = [v4, v6];
            if parts.iter().any(|part| matches!(part, Part::Addresses(..))) {
                return parts;
            }
            // Another name that it may mean may be there: as the system's resolver goes on.
            let has_failed = parts.iter().any(|part| matches!(part, Part::Failed(_)));
            let place = if has_failed { &mut unanswered } else { &mut nothing };
            place.get_or_insert(parts);
        }
        unanswered.or(nothing).unwrap_or_else(|| failed("it is no name".into()))
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
        for part in self.look_up(host).await {
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
    async fn ask(&self, name: &Name, family: Family) -> Part {
        let mut why = String::new();
        for server in self.servers.iter().cycle().take(self.servers.len() * self.attempts as usize) {
            let asked = tokio::time::timeout(self.patience, ask(*server, name, family)).await;
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
                Err(_) => format!("{server} did not answer within {:?}", self.patience),
            };
        }
        Part::Failed(why)
    }
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
mod tests {
    use super::*;

    fn told(name: &str, text: &str) -> Vec<Name> {
        Config::new(text, &[]).names(name)
    }

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| Name::new(text).expect("a name")).collect()
    }

    #[test]
    fn a_name_with_few_dots_is_looked_for_below_the_search_domains_first() {
        let text = "search shop.svc.cluster.local svc.cluster.local\noptions ndots:5 rotate edns0";
        let pay = ["pay.shop.svc.cluster.local", "pay.svc.cluster.local", "pay"];
        assert_eq!(told("pay", text), names(&pay));
        let text = text.replace("ndots:5", "ndots:2");
        let api = [
            "api.pay.example",
            "api.pay.example.shop.svc.cluster.local",
            "api.pay.example.svc.cluster.local",
        ];
        assert_eq!(told("api.pay.example", &text), names(&api));
        assert_eq!(told("api.pay.example.", &text), names(&["api.pay.example"]));
        assert_eq!(told("pay", ""), names(&["pay"]));
        let long = "a.".repeat(120) + "a";
        assert_eq!(told(&long, &text), names(&[&long]), "one that is too long means nothing");
        assert!(told("a..b", &text).is_empty());
    }

    #[test]
    fn the_file_says_who_is_asked_unless_somebody_else_does() {
        let of = |text: &str, given: &[&str]| {
            let given: Vec<_> = given.iter().map(|server| server.parse().expect("an address")).collect();
            let Config { servers, search, ndots, patience, attempts } = Config::new(text, &given);
            let servers: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
            (servers.join(" "), search.join(" "), ndots, patience.as_secs(), attempts)
        };
        let told = |servers: &str, search: &str, ndots, patience, attempts| {
            (servers.to_owned(), search.to_owned(), ndots, patience, attempts)
        };
        assert_eq!(of("", &[]), told("127.0.0.1:53", "", 1, 3, 2), "as the system's resolver does");
        let text = "# a remark\nnameserver 10.0.0.10\nnameserver fd00::10\nnameserver nonsense\ndomain a.test\n\
                    search b.test c.test ..\noptions ndots:99 timeout:30 attempts:0 timeout:x";
        assert_eq!(of(text, &[]), told("10.0.0.10:53 [fd00::10]:53", "b.test c.test", 15, 3, 1));
        assert_eq!(of(text, &["127.0.0.1:5353"]).0, "127.0.0.1:5353");
        assert_eq!(of(&"nameserver 10.0.0.1\n".repeat(100), &[]).0.split(' ').count(), MAX_SERVERS);
    }

    #[test]
    fn hosts_are_read_line_by_line() {
        let read = hosts(
            "127.0.0.1 localhost\n::1 localhost ip6-localhost # here\n#10.0.0.1 no\n10.0.0.2\tPay.Test\nx y\n",
        );
        let ips = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>()
        };
        assert_eq!(read.get("localhost"), Some(&ips(&["127.0.0.1", "::1"])));
        assert_eq!(
            (read.get("pay.test"), read.get("no"), read.get("y")),
            (Some(&ips(&["10.0.0.2"])), None, None)
        );
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_is_asked_for_by_tcp() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        let listener = std::net::TcpListener::bind(address).expect("the same port");
        std::thread::spawn(move || {
            let mut question = [0; 512];
            let (length, from) = socket.recv_from(&mut question).expect("a question");
            let mut cut = question[..length].to_vec();
            cut[2] = 0x83;
            socket.send_to(&cut, from).expect("sent");
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut asked = vec![0; length + 2];
            std::io::Read::read_exact(&mut stream, &mut asked).expect("a question");
            let mut answer = asked[2..].to_vec();
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, 1]);
            let length = (answer.len() as u16).to_be_bytes();
            std::io::Write::write_all(&mut stream, &[&length[..], &answer].concat()).expect("sent");
        });
        let said =
            ask(address, &Name::new("pay.test").expect("a name"), Family::V4).await.expect("an answer");
        assert_eq!(said, Said::Addresses(vec![[10, 0, 0, 1].into()], 30));
    }

    #[test]
    fn a_family_without_a_way_is_left_out_only_beside_another() {
        let here: IpAddr = [127, 0, 0, 1].into();
        // Documentation's addresses: whether there is a way is this machine's affair.
        let far: IpAddr = "2001:db8::1".parse().expect("an address");
        assert_eq!(usable(vec![far]), [far]);
        assert_eq!(usable(vec![here, far]).contains(&far), has_way(far));
        assert!(usable(vec![here, far]).contains(&here));
    }
}

//! Names of backends in the whole program, looked up at a DNS server on loopback that answers, lies, fails and goes quiet.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::{Backend, Gateway, program, route, until};

/// What the server says of a name.
#[derive(Clone)]
enum Says {
    /// These addresses, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name.
    NoSuchName,
    /// It fails (SERVFAIL).
    Failure,
    Silence,
    /// Bytes that are no answer.
    Nonsense,
}

/// Asked about what it was not told of, it says that there is no such name.
struct Dns {
    address: SocketAddr,
    book: Arc<Mutex<BTreeMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Dns {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("an address");
        let (book, asked) =
            (Arc::<Mutex<BTreeMap<String, Says>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (says, list) = (Arc::clone(&book), Arc::clone(&asked));
        std::thread::spawn(move || {
            let mut question = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let Some((name, kind, end)) = read(&question[..length]) else { continue };
                list.lock().expect("not poisoned").push(format!("{name} {kind}"));
                let says = says.lock().expect("not poisoned").get(&name).cloned();
                let answer = answer(&question[..end], kind, &says.unwrap_or(Says::NoSuchName));
                if !answer.is_empty() {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, book, asked }
    }

    fn say(&self, name: &str, says: Says) {
        self.book.lock().expect("not poisoned").insert(name.to_owned(), says);
    }

    fn gives(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        self.say(name, Says::Addresses(addresses, ttl));
    }

    fn asked(&self, name: &str) -> usize {
        let asked = self.asked.lock().expect("not poisoned");
        asked.iter().filter(|question| question.starts_with(&format!("{name} "))).count()
    }
}

/// The name, the type, and where the question ends (RFC 1035 section 4.1).
fn read(message: &[u8]) -> Option<(String, u16, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
    Some((labels.join("."), kind, at + 4))
}

fn answer(question: &[u8], kind: u16, says: &Says) -> Vec<u8> {
    let (code, records, ttl) = match says {
        Says::Silence => return Vec::new(),
        Says::Nonsense => return question[..2].iter().chain(&[0xff; 40]).copied().collect(),
        Says::NoSuchName => (3, Vec::new(), 0),
        Says::Failure => (2, Vec::new(), 0),
        Says::Addresses(addresses, ttl) => {
            let fits = |ip: &&IpAddr| (kind == 1 && ip.is_ipv4()) || (kind == 28 && ip.is_ipv6());
            (0, addresses.iter().filter(fits).copied().collect(), *ttl)
        }
    };
    let mut message = question.to_vec();
    message[2] = 0x81;
    message[3] = 0x80 | code;
    message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    message[8..12].fill(0);
    for ip in records {
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend(1_u16.to_be_bytes());
        message.extend(ttl.to_be_bytes());
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        message.extend((bytes.len() as u16).to_be_bytes());
        message.extend(bytes);
    }
    message
}

fn named(name: &str, host: &str, port: u16) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: {host}, port: {port}}}]}}\n---\n"
    ) + &route(
        name,
        &format!(
            "{{hostnames: [{name}.example], rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: {name}}}]}}]}}"
        ),
    )
}

fn gateway(dns: &Dns, files: &str, arguments: &[&str]) -> Gateway {
    let server = dns.address.to_string();
    let own = ["--resolver", server.as_str()];
    Gateway::with(&[("all.yaml", files)], &[&own[..], arguments].concat())
}

/// Two backends on one port, at 127.0.0.1 and 127.0.0.2.
fn twins() -> (Backend, Backend, u16) {
    until("a port that is free twice", || {
        let one = Backend::start("one");
        let port = one.address.port();
        // Else somebody else has it.
        std::net::TcpListener::bind(("127.0.0.2", port)).ok()?;
        let mut command = program();
        command.args(["echo", "--listen", &format!("127.0.0.2:{port}"), "--name", "two"]);
        Some((one, Backend::launched(command), port))
    })
}

/// The backend that answered, or what was said in its place.
fn who(gateway: &Gateway, host: &str) -> String {
    let answer = gateway.get(host, "/");
    match answer.status {
        200 => answer.json()["name"].as_str().unwrap_or_default().to_owned(),
        status => format!("{status} {}", answer.body),
    }
}

#[test]
fn a_name_is_followed_as_its_records_say_and_the_last_good_answer_is_kept() {
    let (_one, _two, port) = twins();
    let dns = Dns::start();
    dns.gives("pay.test", &["127.0.0.1"], 1);
    let gateway = gateway(&dns, &named("pay", "pay.test", port), &[]);
    // The first request waits for the first answer, if it has to.
    assert_eq!(who(&gateway, "pay.example"), "one");
    dns.gives("pay.test", &["127.0.0.2"], 1);
    until("the other address", || (who(&gateway, "pay.example") == "two").then_some(()));
    let questions = dns.asked("pay.test");
    assert!(questions >= 4, "A and AAAA, twice: {questions}");
    for says in [Says::Failure, Says::Silence, Says::Nonsense, Says::NoSuchName] {
        dns.say("pay.test", says);
        let before = dns.asked("pay.test");
        until("it to be asked again", || (dns.asked("pay.test") >= before + 3).then_some(()));
        assert_eq!(who(&gateway, "pay.example"), "two", "what was known is served");
    }
    dns.gives("pay.test", &["127.0.0.1"], 1);
    until("a new answer", || (who(&gateway, "pay.example") == "one").then_some(()));
    let log = gateway.process.log();
    assert!(log.contains("does not resolve") && log.contains("resolves again"), "{log}");
}

#[test]
fn a_long_lived_answer_is_not_asked_for_again_and_no_request_asks() {
    let backend = Backend::start("one");
    let dns = Dns::start();
    dns.gives("pay.test", &["127.0.0.1"], 3600);
    let gateway = gateway(&dns, &named("pay", "pay.test", backend.address.port()), &[]);
    for _ in 0..50 {
        assert_eq!(who(&gateway, "pay.example"), "one");
    }
    gateway.write("more.yaml", &named("other", "pay.test", backend.address.port()));
    until("a second backend of the name", || (who(&gateway, "other.example") == "one").then_some(()));
    assert_eq!(dns.asked("pay.test"), 2, "A and AAAA, once");
}

#[test]
fn a_name_that_cannot_be_resolved_is_told_and_found_when_it_comes() {
    let backend = Backend::start("one");
    let dns = Dns::start();
    let gateway = gateway(&dns, &named("pay", "pay.test", backend.address.port()), &[]);
    let answer = gateway.until_answer("pay.example", "/", 502, "NameResolution");
    assert_eq!(answer.json()["reason"], "NameResolution");
    dns.gives("pay.test", &["127.0.0.1"], 60);
    until("the name to be there", || (who(&gateway, "pay.example") == "one").then_some(()));
}

#[test]
fn the_guard_judges_what_a_name_leads_to() {
    let (_one, _two, port) = twins();
    let dns = Dns::start();
    dns.gives("pay.test", &["127.0.0.1"], 1);
    let gateway = gateway(&dns, &named("pay", "pay.test", port), &["--egress-deny", "127.0.0.2/32"]);
    until("the permitted one", || (who(&gateway, "pay.example") == "one").then_some(()));
    // Rebinding: the same name now leads where nobody may go.
    dns.gives("pay.test", &["127.0.0.2", "169.254.169.254"], 1);
    gateway.until_answer("pay.example", "/", 502, "AddressNotPermitted");
}

#[test]
fn short_names_are_looked_for_below_the_search_domains_of_resolv_conf() {
    let backend = Backend::start("one");
    let dns = Dns::start();
    dns.gives("pay.shop.svc.cluster.local", &["127.0.0.1"], 60);
    dns.gives("login.test", &["127.0.0.1"], 60);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, "search shop.svc.cluster.local svc.cluster.local\noptions ndots:5 timeout:1\n")
        .expect("written");
    let port = backend.address.port();
    let files = named("pay", "pay", port) + &named("login", "login.test", port);
    let gateway = gateway(&dns, &files, &["--resolv-conf", file.to_str().expect("UTF-8")]);
    until("the short name", || (who(&gateway, "pay.example") == "one").then_some(()));
    until("the long name", || (who(&gateway, "login.example") == "one").then_some(()));
    assert!(dns.asked("login.test.shop.svc.cluster.local") > 0, "ndots: that is asked for first");
    assert_eq!(dns.asked("pay"), 0, "it was found before");
}

#[test]
fn a_name_with_a_dot_behind_is_looked_for_nowhere_else() {
    let backend = Backend::start("one");
    let dns = Dns::start();
    dns.gives("pay.test", &["127.0.0.1"], 60);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, "search shop.svc.cluster.local\noptions ndots:5\n").expect("written");
    let port = backend.address.port();
    let files = named("pay", "pay.test.", port);
    let gateway = gateway(&dns, &files, &["--resolv-conf", file.to_str().expect("UTF-8")]);
    let answer = gateway.until_answer("pay.example", "/", 200, "");
    let host = answer.json()["headers"]["host"].as_str().map(str::to_owned);
    assert_eq!(host, Some(format!("pay.test:{port}")), "a server's name has no dot behind");
    assert_eq!(dns.asked("pay.test.shop.svc.cluster.local"), 0);
}

#[test]
fn while_the_name_that_is_meant_fails_another_s_answer_is_not_taken() {
    let (_one, _two, port) = twins();
    let dns = Dns::start();
    let inside = "pay.test.svc.cluster.local";
    dns.gives(inside, &["127.0.0.1"], 1);
    dns.gives("pay.test", &["127.0.0.2"], 1);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("resolv.conf");
    std::fs::write(&file, "search svc.cluster.local\noptions ndots:5\n").expect("written");
    let files = named("pay", "pay.test", port);
    let gateway = gateway(&dns, &files, &["--resolv-conf", file.to_str().expect("UTF-8")]);
    until("the one inside", || (who(&gateway, "pay.example") == "one").then_some(()));
    dns.say(inside, Says::Failure);
    let asked = dns.asked(inside);
    until("it to be asked again and again", || {
        assert_eq!(who(&gateway, "pay.example"), "one");
        (dns.asked(inside) >= asked + 10).then_some(())
    });
    let failing =
        gateway.until_status("the name among what fails", |status| status["failing"][0].is_object());
    assert_eq!(failing["failing"][0]["place"], "name pay.test");
    let page = gateway.ask_admin("/metrics").body;
    assert!(page.contains("portcullis_names{state=\"failing\"} 1\n"), "{page}");
    assert!(page.contains("portcullis_name_answer_age_seconds "), "{page}");
    // The control: once it is said that there is none inside, the one outside is meant.
    dns.say(inside, Says::NoSuchName);
    until("the one outside", || (who(&gateway, "pay.example") == "two").then_some(()));
    gateway.until_status("all well", |status| status["failing"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn of_a_name_s_addresses_the_one_that_answers_serves() {
    let (_one, _two, port) = twins();
    serves_beside_one_that_swallows("127.0.0.1", port);
}

#[test]
fn of_two_families_the_one_that_answers_serves() {
    // Where there is one family alone there is nothing to choose.
    if UdpSocket::bind("[::1]:0").is_err() {
        return;
    }
    let (_one, port) = until("a port that is free in both families", || {
        let held = std::net::TcpListener::bind("[::1]:0").ok()?;
        let port = held.local_addr().ok()?.port();
        std::net::TcpListener::bind(("127.0.0.9", port)).ok()?;
        drop(held);
        let mut command = program();
        command.args(["echo", "--listen", &format!("[::1]:{port}"), "--name", "one"]);
        Some((Backend::launched(command), port))
    });
    serves_beside_one_that_swallows("::1", port);
}

/// A backend "one" is there; a name leads there, and to where nothing is taken.
fn serves_beside_one_that_swallows(address: &str, port: u16) {
    let dns = Dns::start();
    // Nobody takes what is sent to the other: a full queue, as a firewall that drops.
    let swallowing = swallow(port);
    dns.gives("pay.test", &["127.0.0.9", address], 60);
    // Without the other beside it the first would be waited for 5 s.
    let patient =
        named("pay", "pay.test", port).replace("rules: [", "policy: {timeouts: {connect: 10s}}, rules: [");
    let gateway = gateway(&dns, &patient, &[]);
    until("the name", || (who(&gateway, "pay.example") == "one").then_some(()));
    for _ in 0..20 {
        let began = std::time::Instant::now();
        assert_eq!(who(&gateway, "pay.example"), "one");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
    drop(swallowing);
}

/// An address with this port whose queue is full: the kernel drops what comes without an answer.
fn swallow(port: u16) -> (socket2::Socket, Vec<TcpStream>) {
    let address = SocketAddr::from(([127, 0, 0, 9], port));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&address.into()).expect("bound");
    socket.listen(1).expect("listens");
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(100));
    let fillers = std::iter::from_fn(|| connect().ok()).collect();
    (socket, fillers)
}

//! Inputs broken at random: the manifests of the golden cases, paths, and requests as they come in. None may cause a
//! panic, be read in two ways, or cost anybody else anything.
//!
//! Each run breaks the same inputs; `MUTATIONS=N` breaks N times as many, `MUTATIONS_SEED` others.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portcullis::route_map::path::normal_form;

use crate::harness::{Gateway, PATIENCE};
use crate::mutations_fuzzed::{manifests, path};
use crate::raw_requests;

/// Numbers that look like chance and are the same in each run.
pub struct Chance(u64);

impl Chance {
    pub fn new(salt: u64) -> Self {
        Self(number("MUTATIONS_SEED", 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 27)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

pub fn rounds(usually: usize) -> usize {
    usually * usize::try_from(number("MUTATIONS", 1)).expect("a small number")
}

/// One of the seeds with some places removed, repeated, replaced, or with a word or a piece of another seed in between.
pub fn broken(chance: &mut Chance, seeds: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = chance.pick(seeds).clone();
    for _ in 0..=chance.below(3) {
        let at = chance.below(bytes.len() + 1);
        let end = (at + chance.below(24)).min(bytes.len());
        match chance.below(6) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            2 if at < bytes.len() => bytes[at] = chance.next().to_le_bytes()[0],
            3 => {
                let other = chance.pick(seeds);
                let from = chance.below(other.len() + 1);
                let to = (from + chance.below(64)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            4 => bytes.truncate(at.max(bytes.len() / 2)),
            _ => drop(bytes.splice(at..at, chance.pick(words).iter().copied())),
        }
    }
    bytes
}

/// Says what was given when the test fails over it.
pub struct Shown<'a>(pub &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("given: \"{}\"", self.0.escape_ascii());
        }
    }
}

pub fn files(folder: &str, extension: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = folder.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|ext| ext == extension)).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).expect("a readable file")).collect()
}

#[test]
fn broken_manifests_cost_nobody_else_anything_and_mean_the_same_with_a_memo() {
    let seeds: Vec<_> = files("tests/golden/compile", "yaml").into_iter().map(String::into_bytes).collect();
    assert!(seeds.len() > 40, "the golden cases are the seeds");
    let words = [
        "spec: ",
        "rules: ",
        "- ",
        "  ",
        "\n",
        "---\n",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "!!str ",
        "null",
        "~",
        "\"",
        "'",
        "|\n",
        ">-\n",
        "<<: ",
        "0x1F",
        "1e999",
        "-1",
        "99999999999999999999",
        ".nan",
        "true",
        "/",
        "*",
        "${x}",
        "kind: List\nitems:\n",
        "className: other",
        "policy: {disable: [timeouts]}",
        "\u{feff}",
        "\u{2028}",
        "\0",
    ]
    .map(str::as_bytes);
    let chance = &mut Chance::new(1);
    let (mut hosts, mut unreadable) = (0, 0);
    for _ in 0..rounds(600) {
        let text = String::from_utf8_lossy(&broken(chance, &seeds, &words)).into_owned();
        let _shown = Shown(text.as_bytes());
        let found = manifests::check(&text);
        hosts += found.hosts;
        unreadable += found.unreadable;
    }
    // The control: what is broken is often still something.
    assert!(hosts > 100 && unreadable > 50, "{hosts} hosts, {unreadable} unreadable documents");
}

#[test]
fn a_broken_path_has_one_normal_form_or_none() {
    let lines = files("tests/lookup", "txt").join("\n");
    let paths: BTreeSet<&str> = lines
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("http://")?.find('/').map(|slash| &word[7 + slash..]))
        .collect();
    let seeds: Vec<_> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    assert!(seeds.len() > 100, "the lookup tables are the seeds");
    let words = [
        "/", "//", ".", "..", "/../", "/./", "%2e", "%2E%2e", "%2f", "%5c", "\\", ";", "..;", "%00", "%",
        "%c0%ae", "%25", "%zz", "?", "#", "é", "\u{7f}", "%7E", "%C3%A9",
    ]
    .map(str::as_bytes);
    let chance = &mut Chance::new(2);
    let (mut normal, mut refused) = (0, 0);
    for _ in 0..rounds(40_000) {
        let path = String::from_utf8_lossy(&broken(chance, &seeds, &words)).into_owned();
        let _shown = Shown(path.as_bytes());
        if path::check(&path) { normal += 1 } else { refused += 1 }
    }
    assert!(normal > 1_000 && refused > 1_000, "the control: {normal} normal, {refused} refused");
}

#[test]
fn broken_requests_reach_the_backend_whole_or_not_at_all() {
    let backend = Strict::start();
    let manifests = format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: be}}\nspec: {{hosts: [{{address: 127.0.0.1, port: {}}}]}}\n---\napiVersion: portcullis.dev/v1alpha1\nkind: GatewayRoute\nmetadata: {{name: all}}\nspec:\n  hostnames: [gw.test]\n  rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: be}}]}}]\n",
        backend.address.port()
    );
    let gateway = Gateway::start(&[("route.yaml", &manifests)]);
    let seeds: Vec<_> = raw_requests::requests().filter(|bytes| bytes.len() < 2_000).collect();
    let words = [
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        " ",
        "\t",
        "\0",
        ":",
        ",",
        "\u{b}",
        "\u{80}",
        "chunked",
        "0\r\n\r\n",
        "5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Host: evil.test\r\n",
        "GET /smuggled HTTP/1.1\r\nHost: gw.test\r\n\r\n",
        " HTTP/1.1",
        "HTTP/1.0",
        "/../",
        "Upgrade: websocket\r\nConnection: upgrade\r\n",
        "Expect: 100-continue\r\n",
        "Connection: close\r\n",
        "%2e",
        "X-Forwarded-For: 10.9.8.7\r\n",
    ]
    .map(str::as_bytes);
    let (address, seeds, words) = (gateway.http, &seeds, &words);
    let answered: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                scope.spawn(move || {
                    let chance = &mut Chance::new(16 + client);
                    let sent = (0..rounds(50)).map(|_| broken(chance, seeds, words));
                    sent.filter(|bytes| is_answered(address, bytes)).count()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no client fails")).sum()
    });
    // What comes after on the connections that the gateway kept to its backend is not somebody else's rest.
    for number in 0..20 {
        let path = format!("/after/{number}");
        assert_eq!(gateway.get("gw.test", &path).status, 200);
        assert!(backend.seen().iter().any(|head| head.starts_with(&format!("GET {path} "))), "{path}");
    }
    let wrong = backend.wrong.lock().expect("no panic holds it").clone();
    assert!(wrong.is_empty(), "{} requests that no backend should get:\n{}", wrong.len(), wrong.join("\n"));
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(metrics.lines().any(|line| line == "portcullis_panics_total 0"), "{metrics}");
    let (all, passed) = (8 * rounds(50), backend.seen().len());
    assert!(
        answered > all / 2 && passed > all / 8,
        "the control: of {all} {answered} answered, {passed} passed"
    );
}

/// Sends the bytes and ends the sending side when nothing more comes. Whether there was an answer; the connection ends.
fn is_answered(gateway: SocketAddr, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(gateway).expect("the gateway listens");
    // A refusal may close while we still write.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    stream.set_read_timeout(Some(Duration::from_millis(40))).expect("a time-out can be set");
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..read]);
    }
    let _ = stream.shutdown(Shutdown::Write);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error}: left open after {:?}", bytes.escape_ascii().to_string()),
        }
    }
    let fits = match (answer.get(..9), answer.get(9..12)) {
        (Some(b"HTTP/1.1 " | b"HTTP/1.0 "), Some(b"501" | b"505")) => true,
        // Any other of these would be a fault of ours, or the backend's.
        (Some(b"HTTP/1.1 " | b"HTTP/1.0 "), Some(status)) => !status.starts_with(b"5"),
        _ => answer.is_empty(),
    };
    assert!(fits, "answered {} to {}", answer.escape_ascii(), bytes.escape_ascii());
    !answer.is_empty()
}

/// A backend that takes nothing but what RFC 9112 has a sender write, and notes everything else.
struct Strict {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Strict {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let address = listener.local_addr().expect("bound");
        let (seen, wrong) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let backend = Self { address, seen: Arc::clone(&seen), wrong: Arc::clone(&wrong) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, wrong) = (Arc::clone(&seen), Arc::clone(&wrong));
                std::thread::spawn(move || {
                    if let Err(why) = serve(stream, &seen) {
                        wrong.lock().expect("no panic holds it").push(why);
                    }
                });
            }
        });
        backend
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic holds it").clone()
    }
}

/// Until the gateway closes. An error: what it sent is no request.
fn serve(stream: TcpStream, seen: &Mutex<Vec<String>>) -> Result<(), String> {
    let mut connection = Connection { stream, bytes: Vec::new() };
    while let Some(head) = connection.until(b"\r\n\r\n") {
        // Bytes above 127 may stand in a field's value (RFC 9110 section 5.5).
        let head: String = head.into_iter().map(char::from).collect();
        let body = framing(&head).map_err(|why| format!("{why}: {head:?}"))?;
        // A body that is cut is the client's doing; the gateway must close then.
        let is_whole = match body {
            Body::Length(length) => connection.take(length).is_some(),
            Body::Chunked => connection.chunks().map_err(|why| format!("{why}: {head:?}"))?,
        };
        if !is_whole {
            return Ok(());
        }
        seen.lock().expect("no panic holds it").push(head);
        if connection.stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
            return Ok(());
        }
    }
    let rest = connection.bytes;
    if rest.is_empty() { Ok(()) } else { Err(format!("a rest: {}", rest.escape_ascii())) }
}

enum Body {
    Length(usize),
    Chunked,
}

fn framing(head: &str) -> Result<Body, &'static str> {
    let head = head.strip_suffix("\r\n\r\n").ok_or("no end")?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("no request line");
    };
    if !is_token(method) || ["CONNECT", "TRACE"].contains(&method) {
        return Err("a method that is not passed");
    }
    let path = target.split('?').next().unwrap_or_default();
    if normal_form(path).as_deref() != Ok(path) {
        return Err("a path that is not in normal form");
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a line that is no field")?;
        if !is_token(name) || value.contains(['\r', '\n', '\0']) {
            return Err("a field that is none");
        }
        fields.push((name.to_ascii_lowercase(), value.trim().to_ascii_lowercase()));
    }
    let all = |wanted: &str| {
        let of_it = fields.iter().filter(|(name, _)| name == wanted);
        of_it.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    if !matches!(&all("host")[..], [host] if host == "gw.test" || host.starts_with("gw.test:")) {
        return Err("another host than the one that was matched");
    }
    if all("x-forwarded-for") != ["127.0.0.1"] {
        return Err("a client that is somebody else");
    }
    match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Ok(Body::Length(0)),
        ([length], []) => length.parse().map(Body::Length).map_err(|_| "no length"),
        ([], [coding]) if coding == "chunked" => Ok(Body::Chunked),
        _ => Err("a body of two lengths"),
    }
}

fn is_token(text: &str) -> bool {
    let is_mark = |byte: u8| b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || is_mark(byte))
}

struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Connection {
    fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let Ok(read @ 1..) = self.stream.read(&mut buffer) else { return false };
        self.bytes.extend_from_slice(&buffer[..read]);
        true
    }

    /// The bytes up to and with `end`; none when the connection ends before.
    fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(end.len()).position(|window| window == end) {
                let rest = self.bytes.split_off(at + end.len());
                return Some(std::mem::replace(&mut self.bytes, rest));
            }
            if !self.more() {
                return None;
            }
        }
    }

    fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.bytes.len() < length {
            if !self.more() {
                return None;
            }
        }
        let rest = self.bytes.split_off(length);
        Some(std::mem::replace(&mut self.bytes, rest))
    }

    /// Whether the body came to its end.
    fn chunks(&mut self) -> Result<bool, &'static str> {
        loop {
            let Some(line) = self.until(b"\r\n") else { return Ok(false) };
            let size = std::str::from_utf8(&line).map_err(|_| "a chunk's size is no text")?.trim_end();
            let size = usize::from_str_radix(size, 16).map_err(|_| "a chunk's size is no number")?;
            let Some(chunk) = self.take(size + 2) else { return Ok(false) };
            if !chunk.ends_with(b"\r\n") {
                return Err("a chunk that is longer than it says");
            }
            if size == 0 {
                return Ok(true);
            }
        }
    }
}

//! An origin for the tests of the cache: it says what a test wants, and counts who asks.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use crate::harness::{Answer, Gateway, PATIENCE, route, until};

/// What one request said.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The number of the request, from 0.
    pub number: usize,
    head: String,
}

impl Asked {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).expect("a target")
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).first().copied()
    }

    pub fn fields(&self, name: &str) -> Vec<&str> {
        let named = |line: &'_ str| {
            line.split_once(':').filter(|(known, _)| known.eq_ignore_ascii_case(name)).is_some()
        };
        let lines = self.head.lines().filter(|line| named(line));
        lines.filter_map(|line| Some(line.split_once(':')?.1.trim())).collect()
    }
}

/// What an origin waits before, until the test opens it.
#[derive(Clone, Default)]
pub struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    pub fn open(&self) {
        *self.0.0.lock().expect("no panic holds it") = true;
        self.0.1.notify_all();
    }

    pub fn is_open(&self) -> bool {
        *self.0.0.lock().expect("no panic holds it")
    }

    pub fn wait(&self) {
        let (open, bell) = &*self.0;
        let open = open.lock().expect("no panic holds it");
        let _open = bell.wait_timeout_while(open, PATIENCE, |open| !*open).expect("no panic holds it");
    }
}

type Say = dyn Fn(&Asked, &mut TcpStream) + Send + Sync;

/// An origin that writes what it is told to.
pub struct Origin {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Origin {
    /// `say` gives the fields and the body of each answer.
    pub fn new(say: impl Fn(&Asked) -> (String, String) + Send + Sync + 'static) -> Self {
        Self::raw(move |asked, stream| {
            let (head, body) = say(asked);
            let status = if head.starts_with("HTTP/") { "" } else { "HTTP/1.1 200 OK\r\n" };
            let text = format!("{status}{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(text.replace("\r\n\r\nContent-Length", "\r\nContent-Length").as_bytes());
        })
    }

    /// `say` writes to the connection, which ends after.
    pub fn raw(say: impl Fn(&Asked, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (asked, say): (Arc<Mutex<Vec<Asked>>>, Arc<Say>) = (Arc::default(), Arc::new(say));
        let all = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (all, say) = (Arc::clone(&all), Arc::clone(&say));
                std::thread::spawn(move || one(stream, &all, &*say));
            }
        });
        Self { address, asked }
    }

    pub fn count(&self) -> usize {
        self.asked.lock().expect("no panic holds it").len()
    }

    pub fn last(&self) -> Asked {
        self.asked.lock().expect("no panic holds it").last().expect("asked").clone()
    }

    pub fn manifest(&self) -> String {
        self.named("origin", "")
    }

    /// A GatewayBackend of this name, with what else its spec says.
    pub fn named(&self, name: &str, more: &str) -> String {
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{service: {{name: {name}, port: 80}}{more}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: test}}\nspec: {{ports: [{{port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: test, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{{port: {}}}]\nendpoints: [{{addresses: [127.0.0.1]}}]\n---\n",
            self.address.port()
        )
    }

    pub fn behind(&self, cache: &str) -> Gateway {
        self.under(&format!("{{cache: {cache}}}"))
    }

    pub fn under(&self, policy: &str) -> Gateway {
        self.with(policy, &[])
    }

    /// Under a route with these rules.
    pub fn rules(&self, rules: &str) -> Gateway {
        let spec = format!("{{hostnames: [shop.example], rules: {rules}}}");
        Gateway::start(&[("origin.yaml", &self.manifest()), ("route.yaml", &route("shop", &spec))])
    }

    pub fn with(&self, policy: &str, arguments: &[&str]) -> Gateway {
        let rule = "{name: all, backendRefs: [{kind: GatewayBackend, name: origin}]}";
        let spec = format!("{{hostnames: [shop.example, other.example], policy: {policy}, rules: [{rule}]}}");
        Gateway::with(&[("origin.yaml", &self.manifest()), ("route.yaml", &route("shop", &spec))], arguments)
    }
}

/// What the cache says that it did.
pub fn status(answer: &Answer) -> &str {
    answer.field("cache-status").unwrap_or("(none)")
}

/// Kept for ten minutes, and every answer is another one.
pub fn fresh(asked: &Asked) -> (String, String) {
    ("Cache-Control: max-age=600\r\nConnection: close".into(), format!("answer {}", asked.number))
}

/// The answer once it is kept.
pub fn kept(ask: impl Fn() -> Answer) -> Answer {
    until("it to be kept", || Some(ask()).filter(|answer| status(answer).contains("; hit")))
}

fn one(mut stream: TcpStream, all: &Mutex<Vec<Asked>>, say: &Say) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    while !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    let head = String::from_utf8(bytes).expect("text");
    let asked = {
        let mut all = all.lock().expect("no panic holds it");
        let asked = Asked { number: all.len(), head };
        all.push(asked.clone());
        asked
    };
    say(&asked, &mut stream);
}

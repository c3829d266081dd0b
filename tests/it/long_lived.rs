//! What stays open for long: a WebSocket, and a request whose body and answer stream both at once, over HTTP/1.1 and
//! over HTTP/2. Each step moves one piece through each of them in both directions and compares every byte.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Backend, Gateway, PATIENCE, route};

const PIECE: usize = 4096;

pub struct LongLived {
    runtime: Runtime,
    socket: WebSocketStream<TcpStream>,
    http1: TcpStream,
    upload: h2::SendStream<Bytes>,
    download: h2::RecvStream,
    /// Of HTTP/2, what came beyond the last step's piece.
    rest: Vec<u8>,
    steps: usize,
    done: usize,
}

impl LongLived {
    /// A backend that sends every body back while it comes.
    pub fn backend() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let address = listener.local_addr().expect("bound");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || send_back(stream));
            }
        });
        address
    }

    pub fn manifests(websockets: &Backend, streams: SocketAddr) -> String {
        let to = |host: &str, backend: &str| {
            let spec = format!(
                "{{hostnames: [{host}], rules: [{{name: all, backendRefs: [{{kind: GatewayBackend, name: {backend}}}]}}]}}"
            );
            route(backend, &spec)
        };
        let stream_backend = format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: streams, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}]}}\n---\n",
            streams.ip(),
            streams.port()
        );
        websockets.manifest("sockets")
            + &stream_backend
            + &to("ws.example", "sockets")
            + &to("streams.example", "streams")
    }

    /// Opens all of them; they are made for so many steps.
    pub fn open(gateway: SocketAddr, steps: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let length = steps * PIECE;
        let (socket, http1, upload, download) = runtime.block_on(async {
            let stream = TcpStream::connect(gateway).await.expect("it listens");
            let (socket, _) =
                tokio_tungstenite::client_async("ws://ws.example/", stream).await.expect("upgraded");
            let mut http1 = TcpStream::connect(gateway).await.expect("it listens");
            let head =
                format!("POST / HTTP/1.1\r\nHost: streams.example\r\nContent-Length: {length}\r\n\r\n");
            http1.write_all(head.as_bytes()).await.expect("sent");
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(http1.read_u8().await.expect("the answer's head"));
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
            let stream = TcpStream::connect(gateway).await.expect("it listens");
            let (mut sender, connection) = h2::client::handshake(stream).await.expect("speaks HTTP/2");
            tokio::spawn(connection);
            let request =
                http::Request::post("http://streams.example/").header("content-length", length).body(());
            let (answer, upload) = sender.send_request(request.expect("a request"), false).expect("sent");
            let answer = answer.await.expect("the answer's head");
            assert_eq!(answer.status(), 200);
            (socket, http1, upload, answer.into_body())
        });
        Self { runtime, socket, http1, upload, download, rest: Vec::new(), steps, done: 0 }
    }

    /// One piece through each, and back.
    pub fn step(&mut self) -> Result<(), String> {
        assert!(self.done < self.steps, "opened for fewer steps");
        let last = self.done + 1 == self.steps;
        let piece = |stream: u64| piece(stream, self.done);
        let (message, first, second) = (piece(0), piece(1), piece(2));
        let Self { runtime, socket, http1, upload, download, rest, .. } = self;
        let moved = async {
            socket
                .send(Message::binary(message.clone()))
                .await
                .map_err(|error| format!("websocket: {error}"))?;
            let echoed = socket.next().await.ok_or("websocket: closed")?;
            let echoed = echoed.map_err(|error| format!("websocket: {error}"))?;
            same("websocket", &message, &echoed.into_data())?;
            http1.write_all(&first).await.map_err(|error| format!("http/1.1: {error}"))?;
            let mut back = vec![0; PIECE];
            http1.read_exact(&mut back).await.map_err(|error| format!("http/1.1: {error}"))?;
            same("http/1.1", &first, &back)?;
            upload.send_data(second.clone().into(), last).map_err(|error| format!("http/2: {error}"))?;
            while rest.len() < PIECE {
                let data = download
                    .data()
                    .await
                    .ok_or("http/2: ended")?
                    .map_err(|error| format!("http/2: {error}"))?;
                download
                    .flow_control()
                    .release_capacity(data.len())
                    .map_err(|error| format!("http/2: {error}"))?;
                rest.extend_from_slice(&data);
            }
            let later = rest.split_off(PIECE);
            same("http/2", &second, rest)?;
            *rest = later;
            Ok(())
        };
        let outcome = runtime.block_on(async { tokio::time::timeout(PATIENCE, moved).await });
        self.done += 1;
        outcome.unwrap_or_else(|_| Err("nothing moved for too long".into()))
    }

    /// After the last step: all of them end whole, with nothing more in them.
    pub fn finish(mut self) -> Result<(), String> {
        assert_eq!(self.done, self.steps, "not at its end");
        let ended = async {
            match self.download.data().await {
                None => {}
                Some(more) => return Err(format!("http/2: more than was sent: {more:?}")),
            }
            // The connection is still one of HTTP: another request gets its answer.
            let again = b"POST / HTTP/1.1\r\nHost: streams.example\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
            self.http1.write_all(again).await.map_err(|error| format!("http/1.1: {error}"))?;
            let mut answer = String::new();
            self.http1.read_to_string(&mut answer).await.map_err(|error| format!("http/1.1: {error}"))?;
            if !(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nok")) {
                return Err(format!("http/1.1: {answer:?}"));
            }
            self.socket.close(None).await.map_err(|error| format!("websocket: {error}"))
        };
        self.runtime
            .block_on(async { tokio::time::timeout(PATIENCE, ended).await })
            .unwrap_or_else(|_| Err("did not end".into()))
    }
}

/// Bytes that differ from stream to stream and from step to step.
fn piece(stream: u64, step: usize) -> Vec<u8> {
    let mut state = (step as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (stream + 1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..PIECE / 8).flat_map(|_| next()).collect()
}

fn same(what: &str, sent: &[u8], came: &[u8]) -> Result<(), String> {
    match sent.iter().zip(came).position(|(sent, came)| sent != came) {
        Some(at) => Err(format!("{what}: byte {at} differs")),
        None if sent.len() != came.len() => Err(format!("{what}: {} bytes of {}", came.len(), sent.len())),
        None => Ok(()),
    }
}

fn send_back(mut stream: std::net::TcpStream) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_err() {
                return;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let mut left = length.expect("a length");
        if write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n").is_err() {
            return;
        }
        let mut buffer = [0; PIECE];
        while left > 0 {
            let most = left.min(PIECE);
            match stream.read(&mut buffer[..most]) {
                Ok(read @ 1..) if stream.write_all(&buffer[..read]).is_ok() => left -= read,
                _ => return,
            }
        }
    }
}

#[test]
fn long_lived_streams_see_a_gateway_that_is_killed_and_bytes_that_differ() {
    let sockets = Backend::start("ws");
    let gateway = Gateway::start(&[("a.yaml", &LongLived::manifests(&sockets, LongLived::backend()))]);
    let mut held = LongLived::open(gateway.http, 3);
    held.step().expect("open");
    gateway.process.signal(rustix::process::Signal::KILL);
    crate::harness::until("the cut", || {
        held.runtime.block_on(async { cut(&mut held.http1).await }).then_some(())
    });
    assert!(held.step().is_err());
    assert!(
        same("x", b"ab", b"ac").is_err()
            && same("x", b"ab", b"a").is_err()
            && same("x", b"ab", b"ab").is_ok()
    );
    assert_ne!(piece(0, 0), piece(0, 1));
    assert_ne!(piece(0, 0), piece(1, 0));
}

/// Whether the connection has ended.
async fn cut(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0; 1])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

//! gRPC through the whole program, by raw messages over HTTP/2: calls of each kind, failures as statuses, deadlines,
//! streams that no limit of a request ends.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::harness::{Backend, Gateway, PATIENCE, route};
use super::proxy_rig::until;

/// A message in its frame of gRPC.
fn message(bytes: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + bytes.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(bytes.len()).expect("short"));
    framed.put_slice(bytes);
    framed.freeze()
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(address).await.expect("connects");
    let (sender, connection) = h2::client::handshake(socket).await.expect("speaks HTTP/2");
    tokio::spawn(async move {
        let _ = connection.await;
    });
    sender.ready().await.expect("ready")
}

fn call(host: &str, path: &str, fields: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = Request::post(format!("http://{host}{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    for (name, value) in fields {
        request.headers_mut().insert(*name, HeaderValue::from_static(value));
    }
    request
}

/// A call under way.
struct Call {
    upload: SendStream<Bytes>,
    answer: h2::client::ResponseFuture,
}

impl Call {
    fn begin(client: &mut SendRequest<Bytes>, request: Request<()>) -> Self {
        let (answer, upload) = client.send_request(request, false).expect("sent");
        Self { upload, answer }
    }

    /// Of one message.
    fn unary(client: &mut SendRequest<Bytes>, request: Request<()>) -> Self {
        let mut call = Self::begin(client, request);
        // An answer may have come before, and ended both sides.
        if let Err(error) = call.upload.send_data(message(b"hello"), true) {
            assert_eq!(error.to_string(), "user error: inactive stream");
        }
        call
    }

    async fn send(&mut self, bytes: Bytes) {
        self.upload.reserve_capacity(bytes.len());
        while self.upload.capacity() < bytes.len() {
            let more = std::future::poll_fn(|context| self.upload.poll_capacity(context));
            timeout(PATIENCE, more).await.expect("room in time").expect("open").expect("granted");
        }
        self.upload.send_data(bytes, false).expect("sent");
    }

    async fn answered(self) -> (Response<()>, RecvStream, SendStream<Bytes>) {
        let answer = timeout(PATIENCE, self.answer).await.expect("in time").expect("an answer");
        let (head, body) = answer.into_parts();
        (Response::from_parts(head, ()), body, self.upload)
    }

    async fn whole(self) -> (Response<()>, Vec<u8>, HeaderMap) {
        let (head, mut body, _upload) = self.answered().await;
        let mut read = Vec::new();
        while let Some(data) = timeout(PATIENCE, body.data()).await.expect("in time") {
            let data = data.expect("whole");
            let _ = body.flow_control().release_capacity(data.len());
            read.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.expect("whole").unwrap_or_default();
        (head, read, trailers)
    }

    /// The status of a call that was refused before anything was answered.
    async fn status(self) -> (String, String) {
        let (head, body, trailers) = self.whole().await;
        assert!(head.status() == 200 && head.headers()["content-type"] == "application/grpc", "{head:?}");
        assert!(body.is_empty() && trailers.is_empty(), "trailers only: {trailers:?}");
        let text = |name| head.headers()[name].to_str().expect("text").to_owned();
        (text("grpc-status"), text("grpc-message"))
    }
}

/// A server by h2. `/silent`: no answer; `/late`: none before the call was read to its end; `/sink`: a head at once.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<HeaderMap>>>,
    reset: Arc<Mutex<Vec<Reason>>>,
}

impl Peer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let peer = Self { address, heads: Arc::default(), reset: Arc::default() };
        let told = peer.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let told = told.clone();
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    while let Some(Ok((request, answer))) = connection.accept().await {
                        told.heads.lock().expect("not poisoned").push(request.headers().clone());
                        tokio::spawn(told.clone().answer(request, answer));
                    }
                });
            }
        });
        peer
    }

    async fn answer(self, request: Request<RecvStream>, mut answer: h2::server::SendResponse<Bytes>) {
        let path = request.uri().path().to_owned();
        let mut body = request.into_body();
        let mut head = Response::new(());
        head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        if path == "/flaky" && self.heads.lock().expect("not poisoned").len() % 2 == 1 {
            head.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
            let _ = answer.send_response(head, true);
            return;
        }
        if path == "/silent" {
            let reset = std::future::poll_fn(|context| answer.poll_reset(context)).await;
            self.reset.lock().expect("not poisoned").extend(reset);
            return;
        }
        let mut early = None;
        if path == "/sink" {
            early = answer.send_response(head.clone(), false).ok();
        }
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
        }
        // Whoever was cut gets no answer.
        let Some(mut stream) = early.or_else(|| answer.send_response(head, false).ok()) else { return };
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )]);
        let _ = stream.send_trailers(trailers);
    }

    fn last(&self) -> HeaderMap {
        self.heads.lock().expect("not poisoned").last().cloned().unwrap_or_default()
    }

    /// What the last call was told of its time, in microseconds.
    fn told(&self) -> u64 {
        let told = self.last()["grpc-timeout"].to_str().expect("text").to_owned();
        let (digits, unit) = told.split_at(told.len() - 1);
        let count: u64 = digits.parse().expect("digits");
        match unit {
            "u" => count,
            "m" => count * 1_000,
            "S" => count * 1_000_000,
            other => panic!("{other}"),
        }
    }
}

fn backend(name: &str, address: SocketAddr, protocol: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: {name}, namespace: test}}\nspec: {{hosts: [{{address: {}, port: {}}}], protocol: {protocol}}}\n---\n",
        address.ip(),
        address.port()
    )
}

/// A route `<name>.test` to a backend, under a policy.
fn to(name: &str, backend: &str, policy: &str) -> String {
    route(
        name,
        &format!(
            "{{hostnames: [{name}.test], rules: [{{name: all, policy: {policy}, backendRefs: [{{kind: GatewayBackend, name: {backend}}}]}}]}}"
        ),
    )
}

fn before_echo(echo: &Backend) -> Gateway {
    let manifests = [backend("echo", echo.address, "H2C"), to("a", "echo", "{}")];
    Gateway::start(&[("all.yaml", &manifests.concat())])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_streams_pass_with_their_statuses() {
    let echo = Backend::start("echo");
    let gateway = before_echo(&echo);
    let mut client = client(gateway.http).await;

    let (head, body, trailers) = Call::unary(&mut client, call("a.test", "/x.Y/Z", &[])).whole().await;
    assert!(head.status() == 200 && head.headers()["content-type"] == "application/grpc", "{head:?}");
    assert!(body == message(b"hello") && trailers["grpc-status"] == "0", "{trailers:?}");

    // Both directions at once: each message comes back before the next one goes.
    let mut stream = Call::begin(&mut client, call("a.test", "/x.Y/Z", &[]));
    stream.send(message(b"0")).await;
    let (_, mut body, mut upload) = stream.answered().await;
    for number in 0..20 {
        let mut got = BytesMut::new();
        while got.len() < message(number.to_string().as_bytes()).len() {
            let data = timeout(PATIENCE, body.data()).await.expect("in time").expect("more").expect("whole");
            let _ = body.flow_control().release_capacity(data.len());
            got.extend_from_slice(&data);
        }
        assert_eq!(got, message(number.to_string().as_bytes()));
        upload.send_data(message((number + 1).to_string().as_bytes()), false).expect("sent");
    }
    upload.send_data(Bytes::new(), true).expect("ended");
    while let Some(data) = body.data().await {
        let _ = body.flow_control().release_capacity(data.expect("whole").len());
    }
    assert_eq!(body.trailers().await.expect("whole").expect("some")["grpc-status"], "0");

    let (head, body, _) = Call::unary(&mut client, call("a.test", "/x/grpc-status/5", &[])).whole().await;
    assert!(head.headers()["grpc-status"] == "5" && body.is_empty(), "{head:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_the_gateway_s_is_a_status() {
    let echo = Backend::start("echo");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let peer = Peer::start().await;
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: key, namespace: test, labels: {keys: all}, annotations: {portcullis.dev/consumer: me}}\nstringData: {key: 0123456789abcdef0123456789abcdef}\n---\n";
    let keys = "{authentication: {anyOf: [{name: keys, apiKey: {from: [{header: X-Api-Key}], secretSelector: {matchLabels: {keys: all}}}}]}}";
    let manifests = [
        secret.to_owned(),
        backend("echo", echo.address, "H2C"),
        backend("nobody", nobody, "H2C"),
        backend("peer", peer.address, "H2C"),
        to("down", "nobody", "{}"),
        to("none", "absent", "{}"),
        to("denied", "echo", "{ipAccess: {deny: [127.0.0.0/8]}}"),
        to("keys", "echo", keys),
        to("limited", "echo", "{rateLimits: [{name: one, requests: 1, per: 1h}]}"),
        to("slow", "peer", "{timeouts: {request: 200ms}}"),
        to("own", "nobody", "{errors: [{on: [5xx], status: 500, text: ours}]}"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let mut client = client(gateway.http).await;
    Call::unary(&mut client, call("limited.test", "/", &[])).whole().await;
    for (host, path, status, reason) in [
        ("nowhere.test", "/", "12", "NoRouteMatch"),
        ("down.test", "/", "14", "ConnectFailure"),
        ("none.test", "/", "14", "BackendNotFound"),
        ("denied.test", "/", "7", "IpNotAllowed"),
        ("keys.test", "/", "16", "ApiKeyMissing"),
        ("limited.test", "/", "8", "RateLimited"),
        ("slow.test", "/silent", "4", "BackendTimeout"),
        // What replaces failures would say nothing to a client of gRPC.
        ("own.test", "/", "14", "ConnectFailure"),
    ] {
        let (code, message) = Call::unary(&mut client, call(host, path, &[])).status().await;
        assert_eq!(code, status, "{host}: {message}");
        assert!(message.contains(&format!("({reason}, request id ")), "{host}: {message}");
    }
    // Any other request is told as ever, and over HTTP/1.1 a call as a call.
    assert_eq!(gateway.get("nowhere.test", "/").status, 404);
    let fields = ["content-type: application/grpc", "te: trailers"];
    let answer = gateway.request("POST", "nowhere.test", "/", &fields, "x");
    assert_eq!((answer.status, answer.field("grpc-status")), (200, Some("12")));
    let web = gateway.request("POST", "nowhere.test", "/", &["content-type: application/grpc-web"], "x");
    assert_eq!(web.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_s_deadline_counts_and_is_passed_on() {
    let peer = Peer::start().await;
    let manifests = [
        backend("peer", peer.address, "H2C"),
        to("plain", "peer", "{}"),
        to("short", "peer", "{timeouts: {request: 5s, backendRequest: 2s}}"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let mut client = client(gateway.http).await;
    let timed = |host, time| call(host, "/silent", &[("grpc-timeout", time)]);

    let (code, message) = Call::unary(&mut client, timed("plain.test", "300m")).status().await;
    assert_eq!(code, "4", "{message}");
    assert!((1..=300_000).contains(&peer.told()), "{}", peer.told());
    until("the backend to be told", || *peer.reset.lock().expect("not poisoned") == [Reason::CANCEL]).await;
    // A stream has it as well, whatever is still to be sent.
    let stream = Call::begin(&mut client, timed("plain.test", "300m"));
    assert_eq!(stream.status().await.0, "4");

    let late = |host, time| call(host, "/late", &[("grpc-timeout", time)]);
    Call::unary(&mut client, late("plain.test", "1H")).whole().await;
    let hour = 3_600_000_000;
    assert!((hour - 10_000_000..=hour).contains(&peer.told()), "the rule has no limit of its own");
    Call::unary(&mut client, late("short.test", "1H")).whole().await;
    assert!((hour - 10_000_000..=hour).contains(&peer.told()), "a stream is not told the limits of a rule");
    Call::unary(&mut client, call("short.test", "/late", &[])).whole().await;
    assert!(!peer.last().contains_key("grpc-timeout"), "a stream without a deadline gets none");
    Call::unary(&mut client, late("plain.test", "soon")).whole().await;
    assert_eq!(peer.last()["grpc-timeout"], "soon", "what is no time is the backend's to judge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_limit_of_a_request_ends_a_stream_and_silence_does() {
    let peer = Peer::start().await;
    let manifests = [
        backend("peer", peer.address, "H2C"),
        to("short", "peer", "{timeouts: {request: 200ms, idle: 1h}}"),
        to("idle", "peer", "{timeouts: {idle: 700ms}}"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let mut client = client(gateway.http).await;

    // While the client sends, there is no answer to wait for.
    let mut stream = Call::begin(&mut client, call("short.test", "/late", &[]));
    stream.send(message(b"one")).await;
    assert!(timeout(Duration::from_secs(1), &mut stream.answer).await.is_err(), "it goes on");
    stream.upload.send_data(Bytes::new(), true).expect("ended");
    assert_eq!(stream.whole().await.2["grpc-status"], "0");
    // The control: once it has sent all, there is.
    assert_eq!(Call::unary(&mut client, call("short.test", "/silent", &[])).status().await.0, "4");

    // What goes one way only keeps it open.
    let stream = Call::begin(&mut client, call("idle.test", "/sink", &[]));
    let (_, mut body, mut upload) = stream.answered().await;
    for _ in 0..6 {
        upload.send_data(message(b"x"), false).expect("sent");
        assert!(
            timeout(Duration::from_millis(300), body.data()).await.is_err(),
            "nothing comes, and it is open"
        );
    }
    let end = timeout(PATIENCE, body.data()).await.expect("in time").expect("an end");
    assert!(end.expect_err("it was cut").is_reset());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_tried_again_at_a_status_that_the_rule_names_and_counted_by_its_own() {
    let peer = Peer::start().await;
    let manifests = [
        backend("peer", peer.address, "H2C"),
        to("again", "peer", "{retry: {attempts: 1, grpcCodes: [Unavailable]}}"),
        to("once", "peer", "{retry: {attempts: 1, codes: [503]}}"),
    ];
    let log = tempfile::NamedTempFile::new().expect("a file");
    let log_to = ["--access-log", log.path().to_str().expect("UTF-8")];
    let gateway = Gateway::with(&[("all.yaml", &manifests.concat())], &log_to);
    let mut client = client(gateway.http).await;
    let flaky = |host| call(host, "/flaky", &[("grpc-timeout", "30S")]);

    let (_, _, trailers) = Call::unary(&mut client, flaky("again.test")).whole().await;
    assert_eq!(trailers["grpc-status"], "0");
    {
        let heads = peer.heads.lock().expect("not poisoned");
        let told: Vec<_> = heads.iter().map(|head| head["grpc-timeout"].clone()).collect();
        assert!(told.len() == 2 && told[0] != told[1], "each try hears what is left: {told:?}");
    }
    let (head, _, _) = Call::unary(&mut client, flaky("once.test")).whole().await;
    assert_eq!(head.headers()["grpc-status"], "14", "the control");

    for (route, status) in [("again", "OK"), ("once", "UNAVAILABLE")] {
        let series = format!(
            "portcullis_grpc_calls_total{{namespace=\"test\",route=\"{route}\",rule=\"all\",grpc_status=\"{status}\"}} 1\n"
        );
        super::harness::until(&series, || gateway.ask_admin("/metrics").body.contains(&series).then_some(()));
    }
    let lines = super::harness::until("the log", || {
        let text = std::fs::read_to_string(log.path()).ok()?;
        (text.lines().count() == 2).then_some(text)
    });
    for status in ["\"grpc_status\":\"OK\"", "\"grpc_status\":\"UNAVAILABLE\""] {
        assert!(lines.contains(status), "{lines}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_on_bodies_is_for_requests_that_are_no_streams() {
    let peer = Peer::start().await;
    let echo = Backend::start("echo");
    let manifests = [
        backend("peer", peer.address, "H2C"),
        backend("old", echo.address, "HTTP1"),
        to("a", "peer", "{}"),
        to("old", "old", "{}"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let mut client = client(gateway.http).await;
    let megabyte = message(&vec![7; 1 << 20]);
    let mut stream = Call::begin(&mut client, call("a.test", "/late", &[]));
    for part in megabyte.chunks(16 << 10).cycle().take(64 * 11) {
        stream.send(Bytes::copy_from_slice(part)).await;
    }
    stream.upload.send_data(Bytes::new(), true).expect("ended");
    assert_eq!(stream.whole().await.2["grpc-status"], "0");

    // The controls: another type, and a backend that does not speak gRPC's protocol (it sends back what it gets).
    let mut other = call("a.test", "/late", &[]);
    other.headers_mut().insert("content-type", HeaderValue::from_static("application/octet-stream"));
    for (request, status) in [(other, 413), (call("old.test", "/", &[]), 200)] {
        let mut stream = Call::begin(&mut client, request);
        for part in megabyte.chunks(16 << 10).cycle().take(64 * 11) {
            stream.upload.reserve_capacity(part.len());
            if stream.upload.send_data(Bytes::copy_from_slice(part), false).is_err() {
                break;
            }
        }
        let (head, mut body, _upload) = stream.answered().await;
        assert_eq!(head.status().as_u16(), status);
        let mut is_cut = false;
        while let Some(data) = timeout(PATIENCE, body.data()).await.expect("in time") {
            match data {
                Ok(data) => drop(body.flow_control().release_capacity(data.len())),
                Err(_) => {
                    is_cut = true;
                    break;
                }
            }
        }
        assert_eq!(is_cut, status == 200, "what was refused is whole, what had begun is cut");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_cancels_cancels_the_backend_s_call() {
    let peer = Peer::start().await;
    let manifests = [backend("peer", peer.address, "H2C"), to("a", "peer", "{}")];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let mut client = client(gateway.http).await;
    let mut stream = Call::begin(&mut client, call("a.test", "/silent", &[]));
    stream.send(message(b"one")).await;
    until("the call to arrive", || !peer.heads.lock().expect("not poisoned").is_empty()).await;
    stream.upload.send_reset(Reason::CANCEL);
    until("the backend to be told", || !peer.reset.lock().expect("not poisoned").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_checked_in_the_protocol_that_it_speaks() {
    let peer = Peer::start().await;
    let spec = format!(
        "{{hosts: [{{address: {}, port: {}}}], protocol: H2C, healthCheck: {{active: {{path: /healthz, interval: 100ms, timeout: 100ms}}}}}}",
        peer.address.ip(),
        peer.address.port()
    );
    let manifests = [
        format!(
            "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayBackend\nmetadata: {{name: peer, namespace: test}}\nspec: {spec}\n---\n"
        ),
        to("a", "peer", "{}"),
    ];
    let gateway = Gateway::start(&[("all.yaml", &manifests.concat())]);
    let is_check =
        |head: &HeaderMap| head.get("user-agent").is_some_and(|by| by == "portcullis-health-check");
    until("some checks", || {
        peer.heads.lock().expect("not poisoned").iter().filter(|head| is_check(head)).count() > 4
    })
    .await;
    let mut client = client(gateway.http).await;
    assert_eq!(Call::unary(&mut client, call("a.test", "/late", &[])).whole().await.2["grpc-status"], "0");
    assert!(!gateway.process.log().contains("unhealthy"), "{}", gateway.process.log());
}

//! Limits that replicas count together, with a real Redis.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Gateway, Process, route, until};

const ACTION: &str = "respond: {status: 204}";

struct Redis {
    folder: tempfile::TempDir,
    process: Option<Process>,
}

impl Redis {
    fn start() -> Self {
        let mut redis = Self { folder: tempfile::tempdir().expect("a folder"), process: None };
        redis.launch();
        redis
    }

    fn launch(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--dir"]).arg(self.folder.path());
        command.arg("--unixsocket").arg(self.socket()).stdout(Stdio::null());
        self.process = Some(Process::start(command));
        until("Redis", || {
            (UnixStream::connect(self.socket()).ok()?.write_all(b"PING\r\n").is_ok()).then_some(())
        });
        until("Redis to answer", || self.says(&["PING"]).ok());
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("socket")
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.as_mut().expect("it runs").ended();
        self.process = None;
        let _ = std::fs::remove_file(self.socket());
    }

    fn says(&self, words: &[&str]) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        writeln!(stream, "{}\r", words.join(" "))?;
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        answer.read_line(&mut line)?;
        if let Some(length) = line.strip_prefix('$') {
            let mut text = vec![0; length.trim().parse().expect("a length")];
            answer.read_exact(&mut text)?;
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(line)
    }

    /// How many questions it was asked.
    fn asked(&self) -> u64 {
        let said = self.says(&["INFO", "commandstats"]).expect("it answers");
        let line = said.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.and_then(|line| line.split(',').next()).map_or(0, |calls| calls.parse().expect("a number"))
    }
}

/// `/limits` says which limits these are, without being limited.
fn shop(limits: &str) -> String {
    let rules = format!(
        "[{{name: all, {ACTION}}}, {{name: limits, matches: [{{path: {{type: Exact, value: /limits}}}}], policy: {{disable: [rateLimits]}}, respond: {{status: 200, text: '{limits}'}}}}]"
    );
    route(
        "shop",
        &format!("{{hostnames: [shop.example], policy: {{rateLimits: [{limits}]}}, rules: {rules}}}"),
    )
}

/// On all routes of the namespace, beside their own.
pub fn imposed(limits: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1alpha1\nkind: GatewayPolicy\nmetadata: {{name: imposed, namespace: test}}\nspec:\n  targetRefs: [{{kind: Namespace}}]\n  precedence: Override\n  policy: {{rateLimits: [{limits}]}}\n---\n"
    )
}

fn gateway(redis: &Redis, limits: &str) -> Gateway {
    let arguments = ["--redis", &redis.url(), "--redis-timeout", "5s"];
    let gateway = Gateway::with(&[("route.yaml", &shop(limits))], &arguments);
    until("the store", || up(&gateway).then_some(()));
    gateway
}

fn up(gateway: &Gateway) -> bool {
    gateway.ask_admin("/metrics").body.contains("\nportcullis_store_up 1\n")
}

/// How often each status was answered.
fn statuses(gateways: &[Gateway], requests: usize) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    std::thread::scope(|scope| {
        let asking: Vec<_> = gateways
            .iter()
            .map(|gateway| {
                scope.spawn(move || {
                    (0..requests).map(|_| gateway.get("shop.example", "/").status).collect::<Vec<_>>()
                })
            })
            .collect();
        for status in asking.into_iter().flat_map(|asked| asked.join().expect("no panic")) {
            *counts.entry(status).or_default() += 1;
        }
    });
    counts
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn four_replicas_grant_what_one_would_and_a_restart_forgives_nothing() {
    let redis = Redis::start();
    let limit = "{name: fleet, requests: 100, per: 744h, scope: Global}";
    let mut gateways: Vec<_> = (0..4).map(|_| gateway(&redis, limit)).collect();
    let counts = statuses(&gateways, 100);
    assert_eq!(counts, [(204, 100), (429, 300)].into(), "exactly what is granted");
    // Who is over its limit costs no round trip: each replica asked once or twice more, it did not know yet.
    let asked = redis.asked();
    assert!((100..=120).contains(&asked), "{asked} questions for 400 requests");
    let refused = gateways[0].get("shop.example", "/");
    assert!(refused.field("ratelimit").is_some_and(|told| told.starts_with("\"fleet\";r=0;t=")));
    assert!(refused.field("retry-after").is_some());

    gateways[0] = gateway(&redis, limit);
    assert_eq!(gateways[0].get("shop.example", "/").status, 429);
    // The control: each for itself grants as much again.
    gateways[0].write("route.yaml", &shop("{name: fleet, requests: 100, per: 744h}"));
    until("a limit of its own", || (gateways[0].get("shop.example", "/").status == 204).then_some(()));
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn limits_of_a_policy_and_of_the_route_cost_one_round_trip_together() {
    let redis = Redis::start();
    let limit = |name, requests| format!("{{name: {name}, requests: {requests}, per: 744h, scope: Global}}");
    let gateway = gateway(&redis, &limit("own", 4));
    let asks = |requests: usize| {
        let before = redis.asked();
        let counts = statuses(std::slice::from_ref(&gateway), requests);
        (counts, redis.asked() - before)
    };
    assert_eq!(asks(1), ([(204, 1)].into(), 1), "of the route alone");
    gateway.write("imposed.yaml", &imposed(&limit("imposed", 1_000)));
    until("the imposed limit", || gateway.get("shop.example", "/limits").field("ratelimit").map(drop));
    let said = gateway.get("shop.example", "/");
    assert_eq!(said.field("ratelimit-policy"), Some("\"imposed\";q=1000;w=2678400, \"own\";q=4;w=2678400"));
    assert_eq!(asks(2), ([(204, 2)].into(), 2), "of both");
    // The control: what counts before the client is known is asked before.
    let early = limit("early", 100).replace('}', ", before: Authentication}");
    gateway.write("imposed.yaml", &imposed(&format!("{}, {early}", limit("imposed", 1_000))));
    until("the early limit", || {
        let answer = gateway.get("shop.example", "/limits");
        answer.fields.iter().any(|(_, value)| value.contains("early")).then_some(())
    });
    assert_eq!(
        asks(1),
        ([(429, 1)].into(), 2),
        "the early one, and the others that it did not know to be full"
    );
    assert_eq!(asks(3), ([(429, 3)].into(), 3), "the early one");
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn without_the_store_each_limit_does_what_it_says() {
    let mut redis = Redis::start();
    let limit = |failure: &str| {
        format!("{{name: fleet, requests: 5, per: 744h, scope: Global, onStoreFailure: {failure}}}")
    };
    let gateways = ["Local", "Allow", "Deny"].map(|failure| gateway(&redis, &limit(failure)));
    assert_eq!(statuses(&gateways, 4), [(204, 5), (429, 7)].into());
    redis.kill();
    for gateway in &gateways {
        until("the loss to be seen", || (!up(gateway)).then_some(()));
    }
    // Each is asked what it never asked before: nothing that is known to be full.
    let others: Vec<_> = ["Local", "Allow", "Deny"]
        .iter()
        .zip(&gateways)
        .map(|(failure, gateway)| {
            let other = limit(failure).replace("fleet", "other");
            gateway.write("route.yaml", &shop(&other));
            gateway.until_answer("shop.example", "/limits", 200, "other");
            let answers: Vec<_> = (0..8).map(|_| gateway.get("shop.example", "/")).collect();
            let reasons = answers.iter().filter(|answer| answer.status == 503).map(|answer| answer.json());
            assert!(
                reasons.map(|problem| problem["reason"].clone()).all(|reason| reason == "StoreUnavailable")
            );
            answers.iter().map(|answer| answer.status).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(others[0], [204, 204, 204, 204, 204, 429, 429, 429]);
    assert_eq!(others[1], [204; 8]);
    assert_eq!(others[2], [503; 8]);

    redis.launch();
    for gateway in &gateways {
        until("the store to be there again", || up(gateway).then_some(()));
    }
    // Whoever was let go rests for a second.
    until("all to count together", || (gateways[2].get("shop.example", "/").status != 503).then_some(()));
    let asked = redis.asked();
    assert!(asked > 0);

    // A server that has lost the script, and one that is full.
    redis.says(&["SCRIPT", "FLUSH"]).expect("it answers");
    until("the script to be there again", || {
        let before = redis.asked();
        gateways[1].get("shop.example", "/");
        (redis.asked() > before && redis.says(&["INFO", "errorstats"]).ok()?.contains("NOSCRIPT"))
            .then_some(())
    });
    redis.says(&["CONFIG", "SET", "maxmemory", "1"]).expect("it answers");
    until("a full store to be as good as none", || {
        (gateways[2].get("shop.example", "/").status == 503).then_some(())
    });
    assert_eq!(gateways[1].get("shop.example", "/").status, 204);
    for gateway in &gateways {
        until("the full store to be told", || {
            gateway.get("shop.example", "/");
            (!up(gateway)).then_some(())
        });
    }
    let log = gateways[2].process.log();
    assert!(log.contains("the store takes no writes") && log.contains("OOM"), "{log}");
    let fallbacks = "portcullis_rate_limit_fallback_requests_total{namespace=\"test\",route=\"shop\",rule=\"all\",limit=\"other\"}";
    let told = gateways[1].ask_admin("/metrics").body;
    assert!(told.contains(fallbacks), "{told}");
    redis.says(&["CONFIG", "SET", "maxmemory", "0"]).expect("it answers");
    for gateway in &gateways {
        until("it to be told, though nobody asks", || up(gateway).then_some(()));
    }
    until("it to be used again", || (gateways[2].get("shop.example", "/").status != 503).then_some(()));
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn a_bucket_that_is_deleted_or_whose_limit_is_raised_refuses_nobody_for_long() {
    let redis = Redis::start();
    let limit = |requests| format!("{{name: fleet, requests: {requests}, per: 744h, scope: Global}}");
    let gateway = gateway(&redis, &limit(2));
    let status = || gateway.get("shop.example", "/").status;
    assert_eq!([status(), status(), status()], [204, 204, 429]);
    let asked = redis.asked();
    assert_eq!([status(), status()], [429, 429]);
    assert_eq!(redis.asked(), asked, "the control: it is not asked about what it refused just now");
    redis.says(&["FLUSHALL"]).expect("it answers");
    until("a new bucket", || (status() == 204).then_some(()));
    assert_eq!([status(), status()], [204, 429]);
    // A millionth of the time that the old numbers would have it wait for.
    gateway.write("route.yaml", &shop(&limit(1_000_000_000)));
    gateway.until_answer("shop.example", "/limits", 200, "1000000000");
    until("the new numbers to count", || (status() == 204).then_some(()));
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn a_store_that_hangs_is_asked_once_a_second() {
    let redis = Redis::start();
    let limit = "{name: fleet, requests: 1000000, per: 1h, scope: Global, onStoreFailure: Allow}";
    let arguments = ["--redis", &redis.url(), "--redis-timeout", "50ms"];
    let gateway = Gateway::with(&[("route.yaml", &shop(limit))], &arguments);
    until("the store", || up(&gateway).then_some(()));
    let before = redis.asked();
    (0..20).for_each(|_| assert_eq!(gateway.get("shop.example", "/").status, 204));
    let well = redis.asked() - before;
    assert_eq!(well, 20, "the control: a store that is well is asked each time");

    redis.signal(Signal::STOP);
    let (began, mut requests) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(gateway.get("shop.example", "/").status, 204);
        requests += 1;
    }
    let seconds = began.elapsed().as_secs();
    redis.signal(Signal::CONT);
    until("it to answer", || redis.says(&["PING"]).ok());
    let hung = redis.asked() - before - well;
    assert!(requests > 40 && hung <= seconds + 2, "{hung} questions in {seconds} s, for {requests} requests");
    until("it to be asked again", || {
        gateway.get("shop.example", "/");
        (redis.asked() > before + well + hung).then_some(())
    });
}

/// A way to a Redis. What it answers can be held back for two seconds.
struct SlowWay {
    address: SocketAddr,
    is_slow: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl SlowWay {
    fn to(redis: &Redis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let way = Self { address, is_slow: Arc::default(), calls: Arc::default() };
        let (is_slow, calls, socket) = (Arc::clone(&way.is_slow), Arc::clone(&way.calls), redis.socket());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                calls.fetch_add(1, Ordering::SeqCst);
                let server = UnixStream::connect(&socket).expect("Redis is there");
                let (mut from, mut to) =
                    (client.try_clone().expect("open"), server.try_clone().expect("open"));
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                let is_slow = Arc::clone(&is_slow);
                std::thread::spawn(move || hold_back(server, client, &is_slow));
            }
        });
        way
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

/// Each piece on its own: a server that takes two seconds for everything, not one that answers in bursts.
fn hold_back(mut server: UnixStream, client: TcpStream, is_slow: &AtomicBool) {
    let (pieces, arriving) = std::sync::mpsc::channel::<(Instant, Vec<u8>)>();
    let mut out = client.try_clone().expect("open");
    std::thread::spawn(move || {
        for (due, piece) in arriving {
            std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
            if out.write_all(&piece).is_err() {
                return;
            }
        }
    });
    let mut piece = [0; 4_096];
    while let Ok(length @ 1..) = server.read(&mut piece) {
        let delay = if is_slow.load(Ordering::SeqCst) { Duration::from_secs(2) } else { Duration::ZERO };
        if pieces.send((Instant::now() + delay, piece[..length].to_vec())).is_err() {
            break;
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn a_store_that_takes_two_seconds_is_waited_for_no_longer_than_said() {
    let redis = Redis::start();
    let way = SlowWay::to(&redis);
    let limit = "{name: fleet, requests: 1000000, per: 1h, scope: Global, onStoreFailure: Allow}";
    let arguments = ["--redis", &way.url(), "--redis-timeout", "50ms"];
    let gateway = Gateway::with(&[("route.yaml", &shop(limit))], &arguments);
    until("the store", || up(&gateway).then_some(()));
    (0..20).for_each(|_| assert_eq!(gateway.get("shop.example", "/").status, 204));
    assert_eq!(
        (redis.asked(), way.calls.load(Ordering::SeqCst)),
        (20, 1),
        "the control: one connection, all asked"
    );

    way.is_slow.store(true, Ordering::SeqCst);
    let (began, mut requests) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(5) {
        assert_eq!(gateway.get("shop.example", "/").status, 204);
        requests += 1;
    }
    let seconds = began.elapsed().as_secs();
    let asked = redis.asked() - 20;
    let calls = u64::try_from(way.calls.load(Ordering::SeqCst)).expect("few") - 1;
    // Each that waited for the answer would have taken two seconds of the five.
    assert!(requests > 40, "{requests} requests in {seconds} s");
    assert!(
        asked <= seconds + 2 && calls <= seconds + 1,
        "{asked} questions, {calls} connections in {seconds} s"
    );

    way.is_slow.store(false, Ordering::SeqCst);
    until("it to be asked again", || {
        gateway.get("shop.example", "/");
        (up(&gateway) && redis.asked() > 20 + asked).then_some(())
    });
}

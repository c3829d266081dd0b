//! What rate limits cost: CPU time a request of a local limit and of one that replicas count together in a real Redis,
//! round trips of the latter, and the memory of a million clients. `cargo bench --bench rate_limits`.
//!
//! Exits with 1 when a goal is missed: 0.5 µs for a local limit, 15 µs and one round trip for a shared one, 50 ms and then
//! 1 ms of waiting for a Redis that hangs, 100 MiB.
//! The same without redis-server (Debian: redis-server): the shared one is left out then, and the bench says so.

#[path = "measure/filters.rs"]
mod filters;
#[path = "measure/memory.rs"]
mod memory;
#[path = "measure/options.rs"]
mod options;
#[path = "measure/request.rs"]
mod request;

use std::any::Any;
use std::collections::HashMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use portcullis::background::{StoreUrl, keep_counting};
use portcullis::filters::{Decision, Filter, Keep, Store};
use portcullis::message::{Exchange, Request, Response};
use portcullis::telemetry::Telemetry;
use serde_json::{Value, json};

const REQUESTS: u32 = 20_000;
const ROUNDS: usize = 9;
const CLIENTS: u32 = 1_000_000;
/// As many connections of clients at once.
const AT_ONCE: usize = 64;

fn main() -> ExitCode {
    let mut missed = 0;
    println!("{:<52} {:>12} {:>22} {:>12}", "", "median", "least to most", "goal");
    let mut row = |what: &str, measured: &[f64], unit: &str, goal: f64| {
        let mut sorted = measured.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, median, most) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        let mark = if median > goal { "  MISSED" } else { "  ok" };
        missed += usize::from(median > goal);
        println!(
            "{what:<52} {:>12} {:>22} {:>12}{mark}",
            format!("{median:.3} {unit}"),
            format!("{least:.3} to {most:.3}"),
            format!("{goal} {unit}")
        );
    };

    let keep = Kept::default();
    let local = filter(json!([{"name": "each", "requests": 1_000_000_000, "per": "1h"}]), &keep);
    row("a local limit, one client", &local_rounds(&*local, |_| 1), "µs", 0.5);
    row("  20,000 clients", &local_rounds(&*local, |place| place), "µs", 0.5);
    let short = filter(json!([{"name": "full", "requests": 1, "per": "1h"}]), &keep);
    asked(&*short, exchange(1));
    row("  one that refuses", &local_rounds(&*short, |_| 1), "µs", 5.0);

    let (keep, before) = (Kept::default(), memory::alive());
    let many = filter(json!([{"name": "each", "requests": 10, "per": "1h"}]), &keep);
    (0..CLIENTS).for_each(|client| assert!(asked(&*many, exchange(client))));
    let bytes = memory::alive() - before;
    // The control: they are all known.
    (0..CLIENTS).step_by(1_000).for_each(|client| {
        (0..9).for_each(|_| assert!(asked(&*many, exchange(client))));
        assert!(!asked(&*many, exchange(client)), "{client} has used up its ten");
    });
    row("memory of 1,000,000 clients", &[bytes as f64 / f64::from(1 << 20)], "MiB", 100.0);

    let redis = Redis::start();
    let is_whole = redis.is_some();
    match redis {
        None => println!("a shared limit: LEFT OUT, no redis-server (Debian: redis-server)"),
        Some(redis) => {
            let (spent, trips) = shared_rounds(&redis);
            row("a shared limit, 64 at once", &spent, "µs", 15.0);
            row("  round trips", &trips, "", 1.0);
            let (first, after) = outage(&redis);
            row("a store that hangs, 99th percentile, first second", &[first], "ms", 50.0);
            row("  after", &[after], "ms", 1.0);
        }
    }
    if missed == 0 && is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Microseconds a request, the way out included; those of making the exchange taken off.
fn local_rounds(filter: &dyn Filter, client: impl Fn(u32) -> u32) -> Vec<f64> {
    let round = |_| {
        let mut exchanges: Vec<_> = (0..REQUESTS).map(|place| exchange(client(place))).collect();
        let before = cpu("/proc/thread-self/schedstat");
        for exchange in &mut exchanges {
            let passed = matches!(filter.request(exchange), Decision::Continue);
            if passed {
                black_box(filter.response(exchange, Response::default()));
            }
        }
        let spent = cpu("/proc/thread-self/schedstat") - before;
        spent.as_secs_f64() * 1e6 / f64::from(REQUESTS)
    };
    (0..ROUNDS).map(round).collect()
}

fn asked(filter: &dyn Filter, mut exchange: Exchange) -> bool {
    matches!(filter.request(&mut exchange), Decision::Continue)
}

/// CPU of the asking and the sending thread a request, and how often Redis was asked for each.
fn shared_rounds(redis: &Redis) -> (Vec<f64>, Vec<f64>) {
    let keep = Kept::default();
    redis.counts(&keep, Duration::from_secs(5));
    let limits = json!([{"name": "fleet", "requests": 1_000_000_000, "per": "1h", "scope": "Global", "onStoreFailure": "Deny"}]);
    let filter = filter(limits, &keep);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let round = |_| {
        let mut exchanges: Vec<_> = (0..REQUESTS).map(exchange).collect();
        let (questions, before) = (redis.questions(), process_cpu());
        let passed = runtime.block_on(async {
            let (mut waiting, mut left, mut passed) = (FuturesUnordered::new(), exchanges.iter_mut(), 0);
            loop {
                while waiting.len() < AT_ONCE
                    && let Some(exchange) = left.next()
                {
                    waiting.push(passes(&*filter, exchange));
                }
                match waiting.next().await {
                    Some(answer) => passed += u32::from(answer),
                    None => return passed,
                }
            }
        });
        let spent = process_cpu() - before;
        assert_eq!(passed, REQUESTS, "all are counted");
        let each = |count: f64| count / f64::from(REQUESTS);
        (each(spent.as_secs_f64() * 1e6), each((redis.questions() - questions) as f64))
    };
    // Until it is there.
    until(|| runtime.block_on(passes(&*filter, &mut exchange(0))));
    (0..ROUNDS).map(round).unzip()
}

/// Milliseconds that 99 of 100 requests wait at most, one coming each millisecond: in the first second after the store
/// stopped to answer, and in the three after that.
fn outage(redis: &Redis) -> (f64, f64) {
    let keep = Kept::default();
    // As it is by default.
    redis.counts(&keep, Duration::from_millis(5));
    let limits = json!([{"name": "hung", "requests": 1_000_000_000, "per": "1h", "scope": "Global", "onStoreFailure": "Allow"}]);
    let filter = filter(limits, &keep);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let waits = async |seconds: usize| {
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        let (mut waiting, mut waited, mut asked) = (FuturesUnordered::new(), Vec::new(), 0);
        let ask = async |client: u32| {
            let (mut exchange, began) = (exchange(client), Instant::now());
            assert!(passes(&*filter, &mut exchange).await, "it is let pass");
            began.elapsed().as_secs_f64() * 1e3
        };
        while waited.len() < seconds * 1_000 {
            tokio::select! {
                _ = ticks.tick(), if asked < seconds * 1_000 => {
                    asked += 1;
                    waiting.push(ask(asked as u32));
                }
                Some(took) = waiting.next() => waited.push(took),
            }
        }
        waited.sort_by(f64::total_cmp);
        (waited[waited.len() * 99 / 100], waited[waited.len() - 1])
    };
    let before = redis.questions();
    until(|| {
        runtime.block_on(passes(&*filter, &mut exchange(0)));
        redis.questions() > before
    });
    redis.signal("-STOP");
    let (first, longest) = runtime.block_on(waits(1));
    // The control: they did wait.
    assert!(longest >= 4.0, "nobody waited longer than {longest} ms: it does not hang");
    let (after, _) = runtime.block_on(waits(3));
    redis.signal("-CONT");
    (first, after)
}

async fn passes(filter: &dyn Filter, exchange: &mut Exchange) -> bool {
    match filter.request(exchange) {
        Decision::Continue => true,
        Decision::Wait(answer) => matches!(answer.await, Decision::Continue),
        _ => false,
    }
}

/// A server on a socket of its own.
struct Redis {
    folder: tempfile::TempDir,
    process: Child,
}

impl Redis {
    fn start() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(folder.path().join("socket"));
        let process = command.stdout(Stdio::null()).spawn().ok()?;
        let redis = Self { folder, process };
        until(|| redis.connect().is_some());
        Some(redis)
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.folder.path().join("socket").display())
    }

    /// From now on it counts for filters that keep this, each of which waits so long.
    fn counts(&self, keep: &Kept, patience: Duration) {
        let url: StoreUrl = self.url().parse().expect("a URL");
        let questions = keep.store().questions(patience).expect("once");
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(keep_counting(questions, url, Telemetry::new(1)));
        });
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
    }

    fn connect(&self) -> Option<redis::Connection> {
        redis::Client::open(self.url()).ok()?.get_connection().ok()
    }

    /// How many it was asked.
    fn questions(&self) -> u64 {
        let mut connection = self.connect().expect("it answers");
        let told: String = redis::cmd("INFO").arg("commandstats").query(&mut connection).expect("told");
        let calls = told.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()).map_or(0, |calls| calls.parse().expect("a number"))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// The filter of a rule with these limits.
fn filter(limits: Value, keep: &Kept) -> Arc<dyn Filter> {
    filters::filters(&json!({"rateLimits": limits}), keep).swap_remove(0)
}

/// Keeps what is made, as the proxy does.
#[derive(Default)]
struct Kept {
    state: Mutex<HashMap<String, Arc<dyn Any + Send + Sync>>>,
    store: Arc<Store>,
}

impl Keep for Kept {
    fn state(
        &self,
        key: &str,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        self.state.lock().expect("whole").entry(key.to_owned()).or_insert_with(make).clone()
    }

    fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }
}

/// Of an anonymous client with an address of its own.
fn exchange(client: u32) -> Exchange {
    let mut exchange = request::exchange(Request::default());
    exchange.client.ip = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + client));
    exchange
}

/// CPU time of all threads, so that other work on the machine does not count (proc(5), schedstat).
fn process_cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("this bench runs on Linux");
    let threads = tasks.map(|task| task.expect("a thread").path().join("schedstat"));
    threads.map(|path| cpu(path.to_str().expect("UTF-8"))).sum()
}

fn cpu(path: &str) -> Duration {
    // The kernel brings a thread's number up to date when it schedules.
    std::thread::yield_now();
    let text = std::fs::read_to_string(path).expect("this bench runs on Linux");
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.expect("nanoseconds first"))
}

//! TLS that is not ours: a connection to a hostname whose route passes it through goes to a backend as it is, from its
//! first byte on.
//!
//! Invariants: no certificate of ours is shown, and nothing of the bytes is changed; who sends faster than the other
//! side takes is made to wait; each direction ends by itself.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::AlertDescription;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::live::{LiveHost, LiveRule, Target};
use super::tunnel;
use super::worker::{Serving, Worker};
use crate::filters::IpAccessPlan;
use crate::lifecycle::Phase;
use crate::message::{ErrorKind, FailureCause, ProxyError};
use crate::route_map::{Action, ForwardPlan};
use crate::telemetry::{OpenPassage, PassageEnd, PassageStats, Record};
use crate::upstream::{ClientConnection, Passage};

/// A hostname's linked route.
#[derive(Debug)]
pub struct LivePassage {
    pub rule: LiveRule,
    pub stats: Arc<PassageStats>,
}

/// A client that asks for such a hostname.
pub struct Guest {
    pub socket: TcpStream,
    /// What was read of it.
    pub hello: Vec<u8>,
    pub name: Arc<str>,
    pub host: Arc<LiveHost>,
    pub live: Rc<Serving>,
}

/// First messages of the connections that are open, by their random: one that comes again comes from us, by a way that
/// leads back to the gateway, and would go round for ever.
#[derive(Debug, Default)]
pub struct Laps(Mutex<HashSet<[u8; 32]>>);

/// One of them; forgotten when dropped.
struct Lap<'a>(&'a Laps, [u8; 32]);

impl Laps {
    /// None: it is on its way already. A message that is too short to have a random is none that rustls reads.
    fn begin(&self, hello: &[u8]) -> Option<Lap<'_>> {
        let random = random_of(hello)?;
        self.open().insert(random).then(|| Lap(self, random))
    }

    fn open(&self) -> MutexGuard<'_, HashSet<[u8; 32]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lap<'_> {
    fn drop(&mut self) {
        self.0.open().remove(&self.1);
    }
}

/// What stands behind type, length and version (RFC 8446 section 4.1.2), in however many records.
fn random_of(mut hello: &[u8]) -> Option<[u8; 32]> {
    const END: usize = 38;
    let mut message = Vec::with_capacity(END);
    while message.len() < END {
        let (head, rest) = hello.split_first_chunk::<5>()?;
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        let (part, behind) = rest.split_at_checked(length)?;
        message.extend_from_slice(&part[..length.min(END - message.len())]);
        hello = behind;
    }
    message.last_chunk().copied()
}

/// What came of it, for the log.
#[derive(Default)]
struct Told {
    backend: Option<String>,
    endpoint: Option<SocketAddr>,
    connected: Option<Duration>,
    received: Cell<u64>,
    sent: Cell<u64>,
    error: Option<ProxyError>,
}

/// Serves it to its end.
pub async fn serve(worker: &Rc<Worker>, guest: Guest, ends: ClientConnection) {
    let Guest { mut socket, hello, name, host, live } = guest;
    let Some(passage) = host.passage.as_deref() else { return };
    let (time, started) = (SystemTime::now(), Instant::now());
    let open = passage.stats.open(worker.index);
    let mut told = Told::default();
    let lap = worker.shared.laps.begin(&hello);
    let mut drain = worker.shared.drain.clone();
    let connected = match &lap {
        Some(_) => tokio::select! {
            connected = passage.connect(worker, &live, &ends, &mut told) => connected,
            () = drain.reached(Phase::Closing) => Err((PassageEnd::Closing, ErrorKind::Draining.into())),
        },
        None => Err((PassageEnd::Failed, ErrorKind::LoopDetected.into())),
    };
    // It may last for days, and the map need not.
    drop(live);
    let end = match connected {
        Ok((plan, mut backend)) => {
            let copied = copy(worker, &mut socket, hello, &mut backend.stream, plan, &open, &told).await;
            if copied == PassageEnd::Reset {
                // A clean end would be taken for the other side's word.
                let _ = socket.set_zero_linger();
                let _ = backend.stream.set_zero_linger();
            }
            copied
        }
        Err(refused) => {
            let (end, error) = refused;
            let alert = if end == PassageEnd::Refused {
                AlertDescription::AccessDenied
            } else {
                AlertDescription::InternalError
            };
            // A fatal one, as a plain record: no keys exist yet.
            let _ = socket.write_all(&[21, 3, 3, 0, 2, 2, u8::from(alert)]).await;
            let _ = socket.shutdown().await;
            told.error = Some(error);
            end
        }
    };
    open.ends(end);
    if worker.log.enabled() {
        log(worker, passage, &name, &ends, end, &told, (time, started.elapsed()));
    }
}

impl LivePassage {
    /// Whether the client may connect, and its connection to a backend.
    async fn connect(
        &self,
        worker: &Rc<Worker>,
        live: &Serving,
        ends: &ClientConnection,
        told: &mut Told,
    ) -> Result<(&ForwardPlan, Passage), (PassageEnd, ProxyError)> {
        let Action::Forward(plan) = &self.rule.rule.action else {
            let kind = match &self.rule.rule.action {
                Action::Unserved(unserved) => unserved.kind,
                _ => ErrorKind::RuleInvalid,
            };
            return Err((PassageEnd::Unserved, kind.into()));
        };
        let gates = self.rule.rule.filters.iter().filter_map(|(_, plan)| plan.get::<IpAccessPlan>());
        if !gates.into_iter().all(|gate| gate.permits(ends.source.ip())) {
            return Err((PassageEnd::Refused, ErrorKind::IpNotAllowed.into()));
        }
        let failed = |error: ProxyError| (PassageEnd::Failed, error);
        let backend = match self.rule.targets.choose() {
            Some(Target::Backend(slot)) => live.backend(slot).ok_or(ErrorKind::BackendNotFound),
            Some(Target::Unresolved(kind)) => Err(*kind),
            None => Err(ErrorKind::BackendNotFound),
        };
        let backend = backend.map_err(|kind| failed(kind.into()))?;
        told.backend = Some(backend.plan.id.to_string());
        let began = Instant::now();
        let reached = worker.pools.pass(backend, plan.timeouts.connect, ends).await.map_err(failed)?;
        (told.endpoint, told.connected) = (Some(reached.endpoint), Some(began.elapsed()));
        Ok((plan, reached))
    }
}

/// Copies until both directions have ended, nothing moves for too long, or the process closes.
async fn copy(
    worker: &Rc<Worker>,
    client: &mut TcpStream,
    hello: Vec<u8>,
    backend: &mut TcpStream,
    plan: &ForwardPlan,
    open: &OpenPassage,
    told: &Told,
) -> PassageEnd {
    let last = Cell::new(Instant::now());
    let received = |bytes: usize| {
        last.set(Instant::now());
        told.received.set(told.received.get() + bytes as u64);
        open.received(bytes as u64);
    };
    let sent = |bytes: usize| {
        last.set(Instant::now());
        told.sent.set(told.sent.get() + bytes as u64);
        open.sent(bytes as u64);
    };
    let (client_read, client_write) = client.split();
    let (backend_read, mut backend_write) = backend.split();
    let copies = async {
        backend_write.write_all(&hello).await?;
        received(hello.len());
        drop(hello);
        tokio::try_join!(
            tunnel::copy(client_read, backend_write, &received),
            tunnel::copy(backend_read, client_write, &sent)
        )?;
        io::Result::Ok(())
    };
    let mut drain = worker.shared.drain.clone();
    tokio::select! {
        copied = copies => if copied.is_ok() { PassageEnd::Ended } else { PassageEnd::Reset },
        () = tunnel::silence(&last, plan.timeouts.tunnel_idle) => PassageEnd::Idle,
        () = drain.reached(Phase::Closing) => PassageEnd::Closing,
    }
}

fn log(
    worker: &Worker,
    passage: &LivePassage,
    name: &str,
    ends: &ClientConnection,
    end: PassageEnd,
    told: &Told,
    (time, duration): (SystemTime, Duration),
) {
    let labels = &passage.rule.rule.labels;
    let cause = told.error.as_ref().and_then(|error| error.cause.as_ref());
    let cause = cause.map(|cause| FailureCause::of(&**cause));
    worker.log.write(&Record {
        time,
        request_id: worker.next_request_id().0,
        client: ends.source.ip(),
        // There is no request that we could see.
        method: "",
        host: name,
        path: "",
        has_query: false,
        protocol: "TLS",
        scheme: "https",
        status: 0,
        grpc_status: None,
        reason: Some(told.error.as_ref().map_or(end.as_str(), |error| error.kind.as_str())),
        cause: cause.as_ref().map(FailureCause::as_str),
        identity: None,
        authorization: None,
        rate_limit: None,
        cache: None,
        namespace: &labels.namespace,
        route: &labels.route,
        rule: &labels.rule,
        backend: told.backend.as_deref(),
        endpoint: told.endpoint,
        retries: 0,
        failed_calls: None,
        duration,
        upstream: told.connected,
        request_bytes: told.received.get(),
        response_bytes: told.sent.get(),
        user_agent: None,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this random, in records of so many bytes.
    fn hello(random: u8, size: usize) -> Vec<u8> {
        let message = [&[1, 0, 0, 34, 3, 3][..], &[random; 32], &[9; 10]].concat();
        let record = |part: &[u8]| [&[22, 3, 1, 0, u8::try_from(part.len()).expect("short")], part].concat();
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn a_message_that_is_on_its_way_already_is_none_of_a_client() {
        let laps = Laps::default();
        let first = laps.begin(&hello(1, 48)).expect("new");
        for size in [1, 5, 37, 48] {
            assert!(laps.begin(&hello(1, size)).is_none(), "in records of {size}");
            assert!(laps.begin(&hello(2, size)).is_some(), "another client's");
        }
        drop(first);
        assert!(laps.begin(&hello(1, 48)).is_some(), "it is over");
        assert!(laps.begin(&hello(1, 48)[..20]).is_none(), "cut");
    }
}

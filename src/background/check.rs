//! Active health checks: endpoints are asked how they are, once for all workers of a replica. A task a backend, which
//! ends with it, or when another one is served in its place.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::{HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{Connection, authority, jittered, random_byte};
use super::grpc_health;
use crate::route_map::{CheckPlan, Question};
use crate::upstream::{Backend, Checked, Guard, Spoken, Term};

/// Endpoints of a backend that are asked at once.
const AT_ONCE: usize = 32;
/// And of all backends together.
const AT_ONCE_IN_ALL: usize = 128;
/// New endpoints are asked within this time, each backend's at another moment of it.
const FIRST: Duration = Duration::from_secs(1);
const USER_AGENT_OF_CHECKS: &str = "portcullis-health-check";

/// What all checks share.
struct Asking {
    guard: Guard,
    places: Semaphore,
}

/// Checks the endpoints of whatever backends come until the channel is closed.
pub async fn keep_checking(backends: mpsc::UnboundedReceiver<Weak<Backend>>, guard: Guard) {
    check_all(backends, Asking { guard, places: Semaphore::new(AT_ONCE_IN_ALL) }).await;
}

async fn check_all(mut backends: mpsc::UnboundedReceiver<Weak<Backend>>, asking: Asking) {
    let asking = Arc::new(asking);
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            next = backends.recv() => match next {
                Some(backend) => {
                    let Some(term) = backend.upgrade().map(|backend| backend.term()) else { continue };
                    let asking = Arc::clone(&asking);
                    tasks.spawn(async move {
                        tokio::select! {
                            () = term.over() => {}
                            () = check(backend, &term, &asking) => {}
                        }
                    });
                }
                None => return,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn check(backend: Weak<Backend>, term: &Term, asking: &Asking) {
    let mut asked: HashSet<SocketAddr> = HashSet::new();
    // None: nobody was asked yet.
    let mut due: Option<Instant> = None;
    loop {
        let of_all = match due {
            None => true,
            Some(due) => tokio::select! {
                () = tokio::time::sleep_until(due) => true,
                () = term.new_endpoints() => false,
            },
        };
        let Some(interval) = backend.upgrade().and_then(|known| known.check().map(|plan| plan.interval))
        else {
            return;
        };
        if due.is_none() || !of_all {
            tokio::time::sleep(first(interval)).await;
        }
        let Some(known) = backend.upgrade() else { return };
        let mut endpoints = known.checked();
        let addresses = endpoints.iter().map(|one| one.endpoint.address).collect();
        if !of_all {
            endpoints.retain(|one| !asked.contains(&one.endpoint.address));
        }
        asked = addresses;
        round(&known, endpoints, asking).await;
        drop(known);
        if of_all {
            due = Some(Instant::now() + jittered(interval));
        }
    }
}

async fn round(known: &Arc<Backend>, endpoints: Vec<Checked>, asking: &Asking) {
    let Some(plan) = known.check() else { return };
    stream::iter(endpoints)
        .for_each_concurrent(AT_ONCE, |one| async move {
            // Waiting for a place is none of the endpoint's time.
            let _place = asking.places.acquire().await;
            // Whether it knows us is no question of its health.
            if !matches!(plan.question, Question::Connect) && !known.has_credential() {
                return;
            }
            let asked = tokio::time::timeout(plan.timeout, ask(known, &one, plan, &asking.guard)).await;
            known.found(&one, asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", plan.timeout))));
        })
        .await;
}

/// # Errors
/// Why it is not well, for the log.
async fn ask(backend: &Arc<Backend>, one: &Checked, plan: &CheckPlan, guard: &Guard) -> Result<(), String> {
    let (stream, spoken) = backend.dial(&one.endpoint, guard, Instant::now() + plan.timeout).await?;
    let service = match &plan.question {
        Question::Connect => return Ok(()),
        Question::Get(_) => None,
        Question::Grpc(_) if spoken == Spoken::Http1 => return Err("it does not speak HTTP/2".into()),
        Question::Grpc(service) => Some(service),
    };
    let connection = Connection::on(stream, &authority(&backend.plan, &one.endpoint), spoken).await?;
    let mut connection = connection.to(backend);
    if let Some(service) = service {
        let request = grpc_health::request()
            .header(HOST, &connection.authority)
            .header(USER_AGENT, USER_AGENT_OF_CHECKS)
            .body(Full::from(grpc_health::message(service)))
            .map_err(|error| error.to_string())?;
        return grpc_health::judge(&connection.whole(request, grpc_health::MAX_ANSWER).await?);
    }
    let Question::Get(target) = &plan.question else { return Ok(()) };
    let request = Request::get(&**target)
        .header(HOST, &connection.authority)
        .header(USER_AGENT, USER_AGENT_OF_CHECKS)
        .body(Full::default())
        .map_err(|error| error.to_string())?;
    let status = connection.status(request).await?;
    match is_well(status) {
        true => Ok(()),
        false => Err(format!("it answered {status}")),
    }
}

fn is_well(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection()
}

/// Any time from none to the bound: backends that are installed together are not asked together.
fn first(interval: Duration) -> Duration {
    interval.min(FIRST) * u32::from(random_byte()) / 256
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::route_map::{Address, BackendPlan, BackendTarget, Endpoint, EndpointSet, TrafficPlan};
    use crate::telemetry::Telemetry;
    use crate::upstream::Loopback;
    use crate::values::{BackendId, ObjectName};

    #[test]
    fn what_leads_on_is_well_and_what_fails_is_not() {
        for (status, well) in
            [(200, true), (204, true), (302, true), (404, false), (500, false), (503, false)]
        {
            assert_eq!(is_well(StatusCode::from_u16(status).expect("a status")), well, "{status}");
        }
    }

    #[test]
    fn intervals_differ_by_a_tenth_and_the_first_is_short() {
        let interval = Duration::from_secs(10);
        let mut firsts = HashSet::new();
        for _ in 0..200 {
            let one = jittered(interval);
            assert!((Duration::from_millis(8900)..Duration::from_millis(11_100)).contains(&one), "{one:?}");
            firsts.insert(first(interval));
        }
        assert!(firsts.len() > 50 && firsts.iter().all(|one| *one < FIRST), "{firsts:?}");
        assert!(first(Duration::from_millis(100)) < Duration::from_millis(100));
    }

    fn backend(name: &str, question: Question, port: u16, endpoints: u8) -> Arc<Backend> {
        let endpoint = |last: u8| Endpoint::from(SocketAddr::from(([127, 0, 0, last], port)));
        let addresses: Vec<_> = (1..=endpoints).map(endpoint).collect();
        let check = CheckPlan {
            question,
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(20),
            healthy_after: 1,
            unhealthy_after: 1,
        };
        let plan = BackendPlan {
            traffic: TrafficPlan { check: Some(check), ..TrafficPlan::default() },
            ..BackendPlan::new(
                BackendId::GatewayBackend(ObjectName::new("ns", name)),
                BackendTarget::Hosts(vec![(Address::Name("a".into()), port)]),
            )
        };
        let backend = Backend::new(Arc::new(plan), 0, Telemetry::new(1).backend(name));
        backend.set_endpoints(EndpointSet { endpoints: addresses, known: true, ..EndpointSet::default() });
        Arc::new(backend)
    }

    /// Holds connections until so many are open at once. How many were.
    async fn most_at_once(places: usize, hold: usize) -> usize {
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let backends = ["one", "two"].map(|name| backend(name, Question::Get("/".into()), port, 6));
        let (sender, receiver) = mpsc::unbounded_channel();
        for backend in &backends {
            sender.send(Arc::downgrade(backend)).expect("it listens");
        }
        let guard = Guard::new(Loopback::Allowed);
        let checks = tokio::spawn(check_all(receiver, Asking { guard, places: Semaphore::new(places) }));
        let mut open: Vec<TcpStream> = Vec::new();
        let mut most = 0;
        for _ in 0..3 * hold {
            open.push(listener.accept().await.expect("accepted").0);
            // Those that are waiting already.
            while let Ok(Ok((stream, _))) =
                tokio::time::timeout(Duration::from_millis(1), listener.accept()).await
            {
                open.push(stream);
            }
            most = most.max(open.len());
            if open.len() >= hold {
                open.clear();
            }
        }
        checks.abort();
        most
    }

    #[tokio::test]
    async fn all_backends_together_ask_no_more_endpoints_at_once_than_there_are_places() {
        assert_eq!(most_at_once(3, 3).await, 3);
        assert_eq!(most_at_once(100, 12).await, 12, "the control: all of them");
    }

    #[tokio::test]
    async fn a_superseded_backend_is_asked_no_more_and_nothing_more_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let backend = backend("one", Question::Connect, port, 1);
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(Arc::downgrade(&backend)).expect("it listens");
        let guard = Guard::new(Loopback::Allowed);
        let checks = tokio::spawn(check_all(receiver, Asking { guard, places: Semaphore::new(9) }));
        for _ in 0..3 {
            drop(listener.accept().await.expect("asked again and again"));
        }
        let endpoint = backend.checked().remove(0);
        let next = Backend::after(&backend, backend.plan.clone());
        drop(sender);
        backend.found(&endpoint, Ok(()));
        next.set_endpoints(EndpointSet {
            endpoints: vec![endpoint.endpoint.clone()],
            known: true,
            ..EndpointSet::default()
        });
        backend.found(&endpoint, Err("late".into()));
        assert!(
            !next.checked().remove(0).is_unhealthy(),
            "what the old one finds is not said of the new one's"
        );
        next.found(&endpoint, Err("in time".into()));
        assert!(next.checked().remove(0).is_unhealthy(), "the control");
        assert!(tokio::time::timeout(Duration::from_secs(20), backend.term().over()).await.is_ok());
        checks.await.expect("ends");
    }
}

//! Active health checks: endpoints are asked how they are, once for all workers of a replica. A task a backend, which
//! ends with it.

use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::{HOST, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Full;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{Connection, authority, random_byte};
use crate::route_map::CheckPlan;
use crate::upstream::{Backend, Checked, Guard};

/// Endpoints of a backend that are asked at once.
const AT_ONCE: usize = 32;

/// Checks the endpoints of whatever backends come until the channel is closed.
pub async fn keep_checking(mut backends: mpsc::UnboundedReceiver<Weak<Backend>>, guard: Guard) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            next = backends.recv() => match next {
                Some(backend) => drop(tasks.spawn(check(backend, guard.clone()))),
                None => return,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn check(backend: Weak<Backend>, guard: Guard) {
    loop {
        let Some(known) = backend.upgrade() else { return };
        let Some(plan) = known.check().cloned() else { return };
        stream::iter(known.checked())
            .for_each_concurrent(AT_ONCE, |one| {
                let (known, plan, guard) = (&known, &plan, &guard);
                async move {
                    let asking = tokio::time::timeout(plan.timeout, ask(known, &one, plan, guard));
                    let late = |_| Err(format!("no answer within {:?}", plan.timeout));
                    known.found(&one, asking.await.unwrap_or_else(late));
                }
            })
            .await;
        drop(known);
        tokio::time::sleep(jittered(plan.interval)).await;
    }
}

/// # Errors
/// Why it is not well, for the log.
async fn ask(backend: &Backend, one: &Checked, plan: &CheckPlan, guard: &Guard) -> Result<(), String> {
    let (stream, spoken) = backend.dial(&one.endpoint, guard, Instant::now() + plan.timeout).await?;
    let Some(target) = &plan.target else { return Ok(()) };
    let mut connection = Connection::on(stream, &authority(&backend.plan, &one.endpoint), spoken).await?;
    let request = Request::get(&**target)
        .header(HOST, &connection.authority)
        .header(USER_AGENT, "portcullis-health-check")
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

/// A tenth more or less, so that replicas do not ask at once.
fn jittered(interval: Duration) -> Duration {
    interval * (230 + u32::from(random_byte()) / 5) / 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_on_is_well_and_what_fails_is_not() {
        for (status, well) in
            [(200, true), (204, true), (302, true), (404, false), (500, false), (503, false)]
        {
            assert_eq!(is_well(StatusCode::from_u16(status).expect("a status")), well, "{status}");
        }
    }

    #[test]
    fn intervals_differ_by_a_tenth() {
        let interval = Duration::from_secs(10);
        for _ in 0..200 {
            let one = jittered(interval);
            assert!((Duration::from_millis(8900)..Duration::from_millis(11_100)).contains(&one), "{one:?}");
        }
    }
}

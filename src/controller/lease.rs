//! Who leads: one replica holds the Lease and writes status. The rules are client-go's.
//!
//! Invariants: a candidate judges expiry by its own monotonic clock, from when it last *saw* the Lease change, never
//! by comparing clocks; every write carries the resource version that it was decided on; who could not renew for the
//! renew deadline stops before anybody else may start. Nothing on the data path depends on any of this.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;

use super::pulse::Pulse;
use crate::lifecycle::{DrainSignal, Phase};
use crate::telemetry::Telemetry;

const LEASE: Duration = Duration::from_secs(15);
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// One request; a silent server must not eat the renew deadline.
const REQUEST: Duration = Duration::from_secs(4);

/// How long this replica may write. Looked at before each write: a process that was stopped for a while finds its
/// term over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Term(Option<Instant>);

impl Term {
    #[cfg(test)]
    pub const fn until(end: Instant) -> Self {
        Self(Some(end))
    }

    pub fn holds(self) -> bool {
        self.0.is_some_and(|until| Instant::now() < until)
    }
}

/// What the Lease said when it last changed, and when that was seen here.
#[derive(Clone, Debug)]
struct Observed {
    spec: LeaseSpec,
    at: Instant,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Write this: it makes or keeps this replica the leader.
    Write(LeaseSpec),
    /// Somebody else leads.
    Follow,
}

/// One look at the Lease. `now` decides; `clock` is only written down.
fn step(
    found: Option<&LeaseSpec>,
    identity: &str,
    now: Instant,
    clock: Timestamp,
    observed: &mut Option<Observed>,
) -> Step {
    let Some(spec) = found else {
        return Step::Write(held(identity, clock, clock, 0));
    };
    if observed.as_ref().is_none_or(|observed| observed.spec != *spec) {
        *observed = Some(Observed { spec: spec.clone(), at: now });
    }
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let transitions = spec.lease_transitions.unwrap_or_default();
    if holder == identity {
        let acquired = spec.acquire_time.as_ref().map_or(clock, |time| time.0);
        return Step::Write(held(identity, acquired, clock, transitions));
    }
    let promised = spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(LEASE, Duration::from_secs);
    let seen = observed.as_ref().map_or(now, |observed| observed.at);
    if !holder.is_empty() && now < seen + promised {
        return Step::Follow;
    }
    Step::Write(held(identity, clock, clock, transitions.saturating_add(1)))
}

fn held(identity: &str, acquired: Timestamp, renewed: Timestamp, transitions: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        acquire_time: Some(MicroTime(acquired)),
        renew_time: Some(MicroTime(renewed)),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

pub struct Candidate {
    pub client: Client,
    pub namespace: String,
    pub lease: String,
    /// Unique to this process, however its Pod is called.
    pub identity: String,
    pub telemetry: Telemetry,
    pub pulse: Pulse,
    pub drain: DrainSignal,
}

impl Candidate {
    /// Until the process leaves: then the Lease is given back, so that another leads at once.
    pub async fn run(self, term: watch::Sender<Term>) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut observed = None;
        let mut held: Option<Lease> = None;
        let mut failing = false;
        let mut drain = self.drain.clone();
        loop {
            let asked = Instant::now();
            let tried = tokio::time::timeout(REQUEST, self.attempt(&api, &mut observed)).await;
            match tried {
                Ok(Ok(lease)) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!(lease = self.lease, "the lease can be asked again");
                    }
                    self.pulse.beat();
                    // Counted from before the request: the others count from when they saw its result.
                    let until = lease.is_some().then(|| asked + RENEW_DEADLINE);
                    held = lease;
                    self.tell(&term, Term(until));
                }
                failure => {
                    if !std::mem::replace(&mut failing, true) {
                        let error = match failure {
                            Ok(Err(error)) => error.to_string(),
                            _ => format!("no answer in {} s", REQUEST.as_secs()),
                        };
                        tracing::warn!(
                            lease = self.lease,
                            error,
                            "the lease cannot be asked or renewed; tried again"
                        );
                    }
                    let now = *term.borrow();
                    if now != Term::default() && !now.holds() {
                        self.tell(&term, Term::default());
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = drain.reached(Phase::Leaving) => break,
            }
        }
        let led = term.borrow().holds();
        self.tell(&term, Term::default());
        if let (true, Some(lease)) = (led, held) {
            self.release(&api, lease).await;
        }
    }

    /// The Lease when it is ours now.
    async fn attempt(
        &self,
        api: &Api<Lease>,
        observed: &mut Option<Observed>,
    ) -> kube::Result<Option<Lease>> {
        let found = api.get_opt(&self.lease).await?;
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        let Step::Write(spec) =
            step(spec.as_ref(), &self.identity, Instant::now(), Timestamp::now(), observed)
        else {
            return Ok(None);
        };
        let written = match found {
            // With the resource version that was read: who came later gets a conflict.
            Some(lease) => {
                api.replace(&self.lease, &PostParams::default(), &Lease { spec: Some(spec), ..lease }).await
            }
            None => {
                let metadata = ObjectMeta { name: Some(self.lease.clone()), ..ObjectMeta::default() };
                api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
            }
        };
        match written {
            Ok(lease) => Ok(Some(lease)),
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn release(&self, api: &Api<Lease>, lease: Lease) {
        let clock = MicroTime(Timestamp::now());
        let spec = lease.spec.clone().unwrap_or_default();
        let released = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: Some(clock.clone()),
            renew_time: Some(clock),
            ..spec
        };
        let lease = Lease { spec: Some(released), ..lease };
        match tokio::time::timeout(REQUEST, api.replace(&self.lease, &PostParams::default(), &lease)).await {
            Ok(Ok(_)) => tracing::info!(lease = self.lease, "gave the lease back"),
            // It expires by itself.
            _ => tracing::debug!(lease = self.lease, "could not give the lease back"),
        }
    }

    fn tell(&self, term: &watch::Sender<Term>, new: Term) {
        let leads = new != Term::default();
        let led = *term.borrow() != Term::default();
        term.send_replace(new);
        self.telemetry.control().leads(leads);
        match (led, leads) {
            (false, true) => tracing::info!(lease = self.lease, "this replica leads now: it writes status"),
            (true, false) => tracing::info!(lease = self.lease, "this replica leads no more"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "a";
    const B: &str = "b";

    fn seconds(clock: i64) -> Timestamp {
        Timestamp::from_second(clock).unwrap()
    }

    fn look(found: Option<&LeaseSpec>, who: &str, observed: &mut Option<Observed>) -> Step {
        step(found, who, Instant::now(), seconds(1_000), observed)
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_holds_it_so_it_is_taken() {
        let mut observed = None;
        let Step::Write(first) = look(None, A, &mut observed) else { panic!("follows nobody") };
        assert_eq!(first.holder_identity.as_deref(), Some(A));
        assert_eq!(first.lease_transitions, Some(0));
        let Step::Write(again) = look(Some(&LeaseSpec::default()), A, &mut None) else {
            panic!("follows nobody")
        };
        assert_eq!(again.lease_transitions, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_holder_renews_and_keeps_the_time_of_its_start() {
        let mut observed = None;
        let held = held(A, seconds(5), seconds(6), 3);
        let Step::Write(renewed) = look(Some(&held), A, &mut observed) else { panic!("does not renew") };
        assert_eq!(renewed.acquire_time, held.acquire_time);
        assert_eq!(renewed.renew_time, Some(MicroTime(seconds(1_000))));
        assert_eq!(renewed.lease_transitions, Some(3));
    }

    #[tokio::test(start_paused = true)]
    async fn another_takes_over_only_after_it_saw_no_change_for_the_whole_lease() {
        let mut observed = None;
        let mut lease = held(A, seconds(0), seconds(0), 0);
        assert_eq!(look(Some(&lease), B, &mut observed), Step::Follow);
        tokio::time::advance(Duration::from_secs(14)).await;
        assert_eq!(look(Some(&lease), B, &mut observed), Step::Follow);
        // A renewal starts the time anew.
        lease.renew_time = Some(MicroTime(seconds(1)));
        assert_eq!(look(Some(&lease), B, &mut observed), Step::Follow);
        tokio::time::advance(Duration::from_secs(14)).await;
        assert_eq!(look(Some(&lease), B, &mut observed), Step::Follow);
        tokio::time::advance(Duration::from_secs(1)).await;
        let Step::Write(taken) = look(Some(&lease), B, &mut observed) else { panic!("follows the dead") };
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some(B), Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn clocks_that_differ_decide_nothing() {
        for renewed in [0, 1_000_000] {
            let lease = held(A, seconds(0), seconds(renewed), 0);
            let mut observed = None;
            assert_eq!(look(Some(&lease), B, &mut observed), Step::Follow, "renewed at {renewed}");
            tokio::time::advance(LEASE).await;
            assert!(matches!(look(Some(&lease), B, &mut observed), Step::Write(_)), "renewed at {renewed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_given_back_is_taken_at_once() {
        let mut observed = None;
        let mut lease = held(A, seconds(0), seconds(0), 4);
        assert_eq!(look(Some(&lease), B, &mut observed), Step::Follow);
        lease.holder_identity = Some(String::new());
        assert!(matches!(look(Some(&lease), B, &mut observed), Step::Write(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_ends_by_itself() {
        let term = Term::until(Instant::now() + RENEW_DEADLINE);
        assert!(term.holds());
        tokio::time::advance(RENEW_DEADLINE).await;
        assert!(!term.holds());
        assert!(!Term::default().holds());
        assert!(RENEW_DEADLINE + REQUEST < LEASE, "who leads must stop before another starts");
    }
}

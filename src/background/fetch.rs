//! Whatever filters want fetched, kept fresh: a task each, which ends when no installed route map wants it any more.
//!
//! Invariants: every address passes the egress guard when it is dialled; redirects are not followed; time and size are
//! bounded; what was good last stays when a try fails, however often.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::ask::keep_asking;
use super::client::{Client, Unanswered, Ways, jittered};
use crate::filters::{FetchPlan, Fetched, Place, Step, Wanted};
use crate::telemetry::Telemetry;

/// How often what was fetched is fetched again, unless it says else itself.
const FRESH: Duration = Duration::from_secs(300);
/// After a failure; doubled with each.
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// Nothing is wanted sooner than this by those who never had it.
const LONGEST_FIRST_DELAY: Duration = Duration::from_secs(10);
/// How often a task looks whether anybody wants it still.
const LOOK: Duration = Duration::from_secs(10);
/// One request, from the look-up of the name to the end of the body.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 512 << 10;
const MAX_STEPS: usize = 3;

/// Fetches and asks what is wanted until the channel is closed.
pub async fn keep_fetching(mut wanted: mpsc::UnboundedReceiver<Wanted>, ways: Ways, telemetry: Telemetry) {
    let client = Client::new(ways);
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            next = wanted.recv() => match next {
                Some(Wanted::Asked(inquiry)) => {
                    tasks.spawn(keep_asking(inquiry, client.clone(), telemetry.clone()));
                }
                Some(Wanted::Fetched(fetched)) => drop(tasks.spawn(keep_fresh(fetched, client.clone(), telemetry.clone()))),
                None => return,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn keep_fresh(fetched: Weak<Fetched>, client: Client, telemetry: Telemetry) {
    let mut failures = 0_u32;
    let Some(series) = fetched.upgrade().map(|wanted| telemetry.control().of_host(&wanted.plan.place.host()))
    else {
        return;
    };
    loop {
        let Some(wanted) = fetched.upgrade() else { return };
        let host = wanted.plan.place.host();
        let delay = match run(&client, &wanted).await {
            Ok(value) => {
                if failures > 0 || !wanted.is_there() {
                    tracing::info!(place = %wanted.plan.place, "fetched");
                }
                failures = 0;
                telemetry.control().fetched(&host);
                series.fetched(wanted.plan.reader.ends(&*value).map(Instant::into_std));
                let fresh_for = wanted.plan.reader.fresh_for(&*value);
                wanted.tried(Some(value));
                fresh_for.unwrap_or(FRESH)
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(place = %wanted.plan.place, error = &*error, "cannot be fetched; it is tried again, what is known stays");
                }
                telemetry.control().fetch_failed(&host);
                series.fails(&wanted.plan.place, &error);
                wanted.tried(None);
                failures += 1;
                delay(failures, &wanted)
            }
        };
        let asked = wanted.wanted();
        drop(wanted);
        // Replicas do not ask at once, and not all again at once when a server is back.
        let until = Instant::now() + jittered(delay);
        loop {
            let next_look = (Instant::now() + LOOK).min(until);
            tokio::select! {
                () = tokio::time::sleep_until(next_look) => {}
                () = asked.notified() => break,
            }
            if fetched.strong_count() == 0 {
                return;
            }
            if Instant::now() >= until {
                break;
            }
        }
    }
}

/// After so many failures in a row. What has an end is asked for the oftener the nearer that is, so that a server that comes
/// back in time is found in time.
fn delay(failures: u32, wanted: &Fetched) -> Duration {
    let longest = if wanted.is_there() { LONGEST_DELAY } else { LONGEST_FIRST_DELAY };
    let delay = FIRST_DELAY.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest);
    let left = wanted.ends().map(|end| end.saturating_duration_since(Instant::now()));
    match left.filter(|left| !left.is_zero()) {
        Some(left) => delay.min((left / 2).max(FIRST_DELAY)),
        None => delay,
    }
}

async fn run(client: &Client, fetched: &Fetched) -> Result<Arc<dyn std::any::Any + Send + Sync>, String> {
    let (mut place, plan) = (fetched.plan.place.clone(), &fetched.plan);
    for step in 0..MAX_STEPS {
        let asked = Instant::now();
        let body = tokio::time::timeout(PATIENCE, ask(client, &place, plan));
        let body = body.await.map_err(|_| format!("{place} did not answer within {PATIENCE:?}"))?;
        let body = body.map_err(|error| format!("{place}: {error}"))?;
        match plan.reader.read(step, &body, asked).map_err(|error| format!("{place}: {error}"))? {
            Step::Done(value) => return Ok(value),
            Step::Next(next) => place = Place::Url(next),
        }
    }
    Err("it leads on and on".into())
}

async fn ask(client: &Client, place: &Place, plan: &FetchPlan) -> Result<Bytes, String> {
    let mut connection = client.connect_as(place, plan.giver).await?;
    let mut request = Request::get(&**place.target())
        .header(HOST, &connection.authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "portcullis")
        .body(Full::default())
        .map_err(|error| error.to_string())?;
    if let Some(posted) = &plan.posted {
        *request.method_mut() = Method::POST;
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, form);
        if let Some(authorization) = &posted.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.expose().clone());
        }
        *request.body_mut() = Full::new(Bytes::from(posted.form.expose().clone()));
    }
    let answer = connection.send(request, MAX_BODY).await.map_err(Unanswered::into_text)?;
    if answer.status() != StatusCode::OK {
        let why = plan.reader.why(answer.body()).map(|why| format!(" ({why})")).unwrap_or_default();
        return Err(format!("it answered {}{why}; redirects are not followed", answer.status()));
    }
    Ok(answer.into_body())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::filters::{OwnHost, Reader, Url};
    use crate::upstream::{Guard, Loopback};

    #[derive(Debug)]
    struct Text;

    impl Reader for Text {
        fn name(&self) -> String {
            "text".into()
        }

        fn read(&self, step: usize, body: &[u8], _: Instant) -> Result<Step, String> {
            let text = String::from_utf8_lossy(body).into_owned();
            match text.strip_prefix("next ") {
                Some(next) => Url::new(next, OwnHost::Allowed).map(Step::Next),
                None if text == "bad" => Err("bad".into()),
                None => Ok(Step::Done(Arc::new(format!("{step}: {text}")))),
            }
        }

        fn ends(&self, value: &(dyn std::any::Any + Send + Sync)) -> Option<Instant> {
            value.downcast_ref::<Instant>().copied()
        }
    }

    /// Answers with what the test says at the time, and counts.
    struct Issuer {
        address: SocketAddr,
        answer: Arc<std::sync::Mutex<String>>,
        asked: Arc<AtomicUsize>,
    }

    impl Issuer {
        async fn start(answer: &str) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let answer = Arc::new(std::sync::Mutex::new(ok(answer)));
            let asked = Arc::<AtomicUsize>::default();
            let (said, count) = (Arc::clone(&answer), Arc::clone(&asked));
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut head = vec![0; 4096];
                    let _ = stream.read(&mut head).await;
                    count.fetch_add(1, Ordering::SeqCst);
                    let answer = said.lock().expect("not poisoned").clone();
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
            Self { address, answer, asked }
        }

        fn say(&self, answer: String) {
            *self.answer.lock().expect("not poisoned") = answer;
        }

        fn fetched(&self) -> Arc<Fetched> {
            let url = Url::new(&format!("http://{}/keys", self.address), OwnHost::Allowed).expect("a URL");
            let reader = Arc::new(Text);
            Arc::new(Fetched::new(FetchPlan { place: Place::Url(url), reader, posted: None, giver: None }))
        }
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn start(loopback: Loopback) -> mpsc::UnboundedSender<Wanted> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (sender, receiver) = mpsc::unbounded_channel();
        let ways =
            Ways { guard: Guard::new(loopback), backends: Arc::new(|_| None), resolver: Default::default() };
        tokio::spawn(keep_fetching(receiver, ways, Telemetry::new(1)));
        sender
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_is_asked_for_again_before_its_end_and_soon_after() {
        let url = Url::new("https://login.example/token", OwnHost::Refused).expect("a URL");
        let reader = Arc::new(Text);
        for lives in [5, 61, 90, 3600] {
            let plan = FetchPlan {
                place: Place::Url(url.clone()),
                reader: reader.clone(),
                posted: None,
                giver: None,
            };
            let fetched = Fetched::new(plan);
            let end = Instant::now() + Duration::from_secs(lives);
            fetched.tried(Some(Arc::new(end)));
            let (mut tries, mut before) = (0, Instant::now());
            while before < end + LONGEST_FIRST_DELAY {
                tries += 1;
                let waited = delay(tries, &fetched);
                let left = end.saturating_duration_since(before);
                // A server that is well again at any moment is asked before the end, or soon.
                let most = if left.is_zero() { LONGEST_FIRST_DELAY } else { (left / 2).max(FIRST_DELAY) };
                assert!(
                    (FIRST_DELAY..=most.min(LONGEST_DELAY)).contains(&waited),
                    "{lives}: {waited:?} of {left:?}"
                );
                tokio::time::advance(waited).await;
                before = Instant::now();
            }
            assert!(tries <= 20 + (lives / 60) as u32, "{lives}: and it is not hammered: {tries}");
        }
        // The control: what has no end waits as long as it may.
        let fetched = Fetched::new(FetchPlan { place: Place::Url(url), reader, posted: None, giver: None });
        assert_eq!(delay(20, &fetched), LONGEST_FIRST_DELAY);
        fetched.tried(Some(Arc::new("keys".to_owned())));
        assert_eq!((delay(1, &fetched), delay(20, &fetched)), (FIRST_DELAY, LONGEST_DELAY));
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(tokio::time::Instant::now() < deadline, "waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn value(fetched: &Fetched) -> Option<String> {
        fetched.value::<String>().map(|text| (*text).clone())
    }

    #[tokio::test]
    async fn it_is_fetched_again_when_asked_for_and_the_last_good_one_stays() {
        let issuer = Issuer::start("one").await;
        let (sender, fetched) = (start(Loopback::Allowed), issuer.fetched());
        sender.send(Wanted::Fetched(fetched.weak())).expect("it runs");
        until("it came", || value(&fetched).as_deref() == Some("0: one")).await;
        issuer.say(ok("two"));
        fetched.ask().expect("not asked before").await;
        assert_eq!(value(&fetched).as_deref(), Some("0: two"));
        assert!(fetched.ask().is_none() && issuer.asked.load(Ordering::SeqCst) == 2);
    }

    #[tokio::test]
    async fn what_fails_is_tried_again_and_never_kept() {
        let large = ok(&"x".repeat(MAX_BODY + 1));
        for wrong in [
            "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
            "",
            "nonsense\r\n\r\n",
            &large,
            &ok("bad"),
        ] {
            let issuer = Issuer::start("").await;
            issuer.say(wrong.to_owned());
            let (sender, fetched) = (start(Loopback::Allowed), issuer.fetched());
            sender.send(Wanted::Fetched(fetched.weak())).expect("it runs");
            until("it was tried", || issuer.asked.load(Ordering::SeqCst) > 0).await;
            assert_eq!(value(&fetched), None, "{:.40}", wrong);
            issuer.say(ok("good"));
            until("it got well", || value(&fetched).is_some()).await;
        }
    }

    #[tokio::test]
    async fn it_goes_where_it_is_led_but_not_in_circles() {
        let (first, second) = (Issuer::start("").await, Issuer::start("there").await);
        first.say(ok(&format!("next http://{}/", second.address)));
        let (sender, fetched) = (start(Loopback::Allowed), first.fetched());
        sender.send(Wanted::Fetched(fetched.weak())).expect("it runs");
        until("it came", || value(&fetched).as_deref() == Some("1: there")).await;
        let circle = Issuer::start("").await;
        circle.say(ok(&format!("next http://{}/", circle.address)));
        let round = circle.fetched();
        sender.send(Wanted::Fetched(round.weak())).expect("it runs");
        until("it was tried", || circle.asked.load(Ordering::SeqCst) >= MAX_STEPS).await;
        assert_eq!(value(&round), None);
    }

    #[tokio::test]
    async fn the_guard_is_asked_and_what_nobody_wants_is_not_fetched() {
        let issuer = Issuer::start("one").await;
        let (sender, fetched) = (start(Loopback::Refused), issuer.fetched());
        sender.send(Wanted::Fetched(fetched.weak())).expect("it runs");
        let waiting = fetched.ask().expect("not asked before");
        waiting.await;
        assert_eq!((value(&fetched), issuer.asked.load(Ordering::SeqCst)), (None, 0));
        let (open, gone) = (start(Loopback::Allowed), issuer.fetched());
        let weak = gone.weak();
        drop(gone);
        open.send(Wanted::Fetched(weak)).expect("it runs");
        let here = issuer.fetched();
        open.send(Wanted::Fetched(here.weak())).expect("it runs");
        until("the other came", || value(&here).is_some()).await;
        assert_eq!(issuer.asked.load(Ordering::SeqCst), 1);
    }
}

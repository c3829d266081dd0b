//! Basic authentication from its spec to what becomes of a request.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::super::tests::{World, ask, compile, request};
use super::super::{Authentication, Plan};
use super::known::{AT_ONCE, MOST_UNDERWAY};
use crate::filters::contract::{Filter, FilterKind as _, Keep};
use crate::filters::{Offload, Taken, Work};
use crate::message::{ErrorKind, Exchange};

/// Of "Hello world!", from the specification.
const HASH: &str = "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5";
const OTHER: &str = "$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA";
const PASSWORD: &str = "Hello world!";

/// Counts what is hashed, and takes it while there is room.
#[derive(Default)]
struct Hashing {
    states: Mutex<HashMap<String, Arc<dyn Any + Send + Sync>>>,
    hashed: Arc<Mutex<usize>>,
    is_full: bool,
    waits: bool,
    waiting: Arc<Mutex<Vec<Work>>>,
}

impl Hashing {
    fn hashed(&self) -> usize {
        *self.hashed.lock().expect("no panic")
    }
}

impl Keep for Hashing {
    fn state(
        &self,
        key: &str,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        let mut states = self.states.lock().expect("no panic");
        Arc::clone(states.entry(key.to_owned()).or_insert_with(make))
    }

    fn hashing(&self) -> Offload {
        if self.is_full {
            return Offload::new(|_| Taken::Full);
        }
        let (hashed, waits) = (Arc::clone(&self.hashed), self.waits);
        let kept = Arc::clone(&self.waiting);
        Offload::new(move |work| {
            *hashed.lock().expect("no panic") += 1;
            if waits {
                kept.lock().expect("no panic").push(work)
            } else {
                work()
            }
            Taken::Yes
        })
    }
}

fn world(file: &str) -> World {
    World::default().secret("people", &[("auth", file)], &[])
}

fn spec() -> Value {
    json!({"anyOf": [{"name": "people", "basicAuth": {"secretRef": {"name": "people"}, "claimsToHeaders": [{"claim": "id", "header": "X-User"}]}}]})
}

fn plan(file: &str) -> Plan {
    compile(spec(), &mut world(file)).expect("valid")
}

fn shows(credentials: &str) -> Exchange {
    request("/", &[("authorization", &format!("Basic {}", STANDARD.encode(credentials)))])
}

async fn verdict(filter: &Arc<dyn Filter>, credentials: &str) -> Result<(), ErrorKind> {
    ask(filter, &mut shows(credentials)).await.map_err(|(kind, _)| kind)
}

const WRONG: Result<(), ErrorKind> = Err(ErrorKind::CredentialsInvalid);

#[tokio::test]
async fn who_knows_the_password_is_somebody_and_it_does_not_go_on() {
    let keep = Hashing::default();
    let filter = Authentication::link(&plan(&format!("# people\n\nalice:{HASH}\r\n")), &keep);
    let mut exchange = shows(&format!("alice:{PASSWORD}"));
    assert_eq!(ask(&filter, &mut exchange).await, Ok(()));
    let identity = &exchange.identity;
    assert_eq!((identity.kind().as_str(), identity.entry(), identity.id()), ("Basic", "people", "alice"));
    assert_eq!(exchange.identity_key(), "Basic|shop/people|alice");
    let headers = exchange.request.headers();
    assert_eq!((headers.len(), headers["x-user"].as_bytes()), (1, &b"alice"[..]));
    let challenge = vec!["Basic realm=\"api\", charset=\"UTF-8\"".to_owned()];
    let missing = ask(&filter, &mut request("/", &[])).await;
    assert_eq!(missing, Err((ErrorKind::CredentialsMissing, challenge.clone())));
    let wrong = ask(&filter, &mut shows("alice:x")).await;
    assert_eq!(wrong, Err((ErrorKind::CredentialsInvalid, challenge)));
}

#[tokio::test]
async fn whatever_is_wrong_is_answered_alike() {
    let filter = Authentication::link(&plan(&format!("alice:{HASH}\nbob:{OTHER}")), &Hashing::default());
    for wrong in [
        "",
        ":",
        "alice",
        "alice:",
        "Alice:Hello world!",
        "bob :Hello world!",
        "nobody:Hello world!",
        "alice:Hello world!\0",
        "alice:Hello world!\n",
        &"a:".repeat(400),
    ] {
        assert_eq!(verdict(&filter, wrong).await, WRONG, "{wrong:?}");
    }
    let good = STANDARD.encode(format!("alice:{PASSWORD}"));
    for field in [
        "Basic".to_owned(),
        "Basic !".to_owned(),
        format!("Basic {good}="),
        format!("Basic {good} {good}"),
        format!("Basic {}", STANDARD.encode(b"alice:\xff")),
    ] {
        let answer = ask(&filter, &mut request("/", &[("authorization", &field)])).await;
        assert_eq!(answer.map_err(|(kind, _)| kind), WRONG, "{field}");
    }
    let field = format!("Basic {good}");
    let twice = &mut request("/", &[("authorization", "Bearer x"), ("authorization", &field)]);
    assert_eq!(ask(&filter, twice).await.map_err(|(kind, _)| kind), WRONG);
    let spelled = &mut request("/", &[("authorization", &format!("bASIC  {good}"))]);
    assert_eq!(ask(&filter, spelled).await, Ok(()));
    let of_another_kind = ask(&filter, &mut request("/", &[("authorization", "Basics x")])).await;
    assert_eq!(of_another_kind.map_err(|(kind, _)| kind), Err(ErrorKind::CredentialsMissing));
}

#[tokio::test(start_paused = true)]
async fn a_password_is_hashed_once_in_a_while_and_anew_when_its_line_changes() {
    let keep = Hashing::default();
    let good = format!("alice:{PASSWORD}");
    let filter = Authentication::link(&plan(&format!("alice:{HASH}")), &keep);
    for _ in 0..3 {
        assert_eq!((verdict(&filter, &good).await, verdict(&filter, "alice:x").await), (Ok(()), WRONG));
    }
    assert_eq!(keep.hashed(), 2);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!((verdict(&filter, &good).await, verdict(&filter, "alice:x").await), (Ok(()), WRONG));
    assert_eq!(keep.hashed(), 3);
    // Another line changes nothing for this one.
    let filter = Authentication::link(&plan(&format!("bob:{HASH}\nalice:{HASH}")), &keep);
    assert_eq!((verdict(&filter, &good).await, keep.hashed()), (Ok(()), 3));
    let filter = Authentication::link(&plan(&format!("alice:{OTHER}")), &keep);
    assert_eq!((verdict(&filter, &good).await, keep.hashed()), (Ok(()), 4));
    let filter = Authentication::link(&plan(&format!("bob:{HASH}")), &keep);
    assert_eq!((verdict(&filter, &good).await, keep.hashed()), (WRONG, 5));
    // Somebody who comes is not held to what was known of nobody.
    let filter = Authentication::link(&plan(&format!("alice:{HASH}\nbob:{HASH}")), &keep);
    tokio::time::advance(Duration::from_secs(601)).await;
    assert_eq!((verdict(&filter, &good).await, keep.hashed()), (Ok(()), 6));
}

#[tokio::test]
async fn a_name_that_nobody_has_costs_a_hash_of_the_file() {
    let keep = Hashing::default();
    let filter = Authentication::link(&plan(&format!("alice:{HASH}")), &keep);
    for (guess, hashed) in [("nobody:x", 1), ("nobody:x", 1), ("nobody:y", 2), ("alice:y", 3), ("alice:y", 3)]
    {
        assert_eq!((verdict(&filter, guess).await, keep.hashed()), (WRONG, hashed), "{guess}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_brake_comes_before_the_hash_and_too_much_is_503() {
    let mut braked = spec();
    braked["failures"] = json!({"requests": 2, "per": "1h"});
    let keep = Hashing::default();
    let file = format!("alice:{HASH}");
    let filter = Authentication::link(&compile(braked, &mut world(&file)).expect("valid"), &keep);
    let good = format!("alice:{PASSWORD}");
    assert_eq!(verdict(&filter, &good).await, Ok(()));
    for (guess, expected) in [
        ("alice:1", ErrorKind::CredentialsInvalid),
        ("alice:2", ErrorKind::CredentialsInvalid),
        ("alice:3", ErrorKind::TooManyFailures),
        ("alice:1", ErrorKind::TooManyFailures),
    ] {
        assert_eq!(verdict(&filter, guess).await, Err(expected), "{guess}");
    }
    assert_eq!((keep.hashed(), verdict(&filter, &good).await), (3, Ok(())));
    let full = Authentication::link(&plan(&file), &Hashing { is_full: true, ..Hashing::default() });
    assert_eq!(verdict(&full, &good).await, Err(ErrorKind::Overloaded));
    let slow = Authentication::link(&plan(&file), &Hashing { waits: true, ..Hashing::default() });
    let began = tokio::time::Instant::now();
    assert_eq!(verdict(&slow, &good).await, Err(ErrorKind::Overloaded));
    assert_eq!(began.elapsed().as_secs(), 10);
}

/// Runs what waits until nothing waits any more.
async fn hash_what_waits(keep: &Hashing) {
    for _ in 0..100 {
        tokio::task::yield_now().await;
        let waiting = std::mem::take(&mut *keep.waiting.lock().expect("no panic"));
        waiting.into_iter().for_each(|work| work());
    }
}

#[tokio::test(start_paused = true)]
async fn equal_passwords_at_the_same_time_are_hashed_once() {
    let keep = Hashing { waits: true, ..Hashing::default() };
    let filter = Authentication::link(&plan(&format!("alice:{HASH}")), &keep);
    let good = format!("alice:{PASSWORD}");
    let all = futures_util::future::join_all((0..50).map(|_| verdict(&filter, &good)));
    let (verdicts, ()) = tokio::join!(all, hash_what_waits(&keep));
    assert!(verdicts.iter().all(|verdict| *verdict == Ok(())));
    assert_eq!(keep.hashed(), 1);
    // Whoever came first may leave: another takes it up.
    let first = tokio::time::timeout(Duration::from_secs(1), verdict(&filter, "alice:x"));
    let second = verdict(&filter, "alice:x");
    let (first, second, ()) = tokio::join!(first, second, async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        hash_what_waits(&keep).await;
    });
    assert!(first.is_err());
    assert_eq!((second, keep.hashed()), (WRONG, 3));
}

#[tokio::test(start_paused = true)]
async fn who_goes_on_coming_is_not_asked_to_wait_again() {
    let keep = Hashing::default();
    let filter = Authentication::link(&plan(&format!("alice:{HASH}")), &keep);
    for _ in 0..20 {
        assert_eq!(verdict(&filter, &format!("alice:{PASSWORD}")).await, Ok(()));
        tokio::time::advance(Duration::from_secs(301)).await;
    }
    assert_eq!(keep.hashed(), 1);
}

#[tokio::test(start_paused = true)]
async fn guesses_at_the_same_time_do_not_pass_the_brake_together() {
    let mut braked = spec();
    braked["failures"] = json!({"requests": 3, "per": "1h"});
    let keep = Hashing { waits: true, ..Hashing::default() };
    let plan = compile(braked, &mut world(&format!("alice:{HASH}"))).expect("valid");
    let filter = Authentication::link(&plan, &keep);
    let guesses: Vec<_> = (0..10).map(|guess| format!("alice:{guess}")).collect();
    let all = futures_util::future::join_all(guesses.iter().map(|guess| verdict(&filter, guess)));
    let (verdicts, ()) = tokio::join!(all, hash_what_waits(&keep));
    let stopped = verdicts.iter().filter(|verdict| **verdict == Err(ErrorKind::TooManyFailures)).count();
    assert_eq!((stopped, keep.hashed()), (7, 3));
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_past_its_own_deadline_and_a_guess_counts_all_the_same() {
    let mut braked = spec();
    braked["failures"] = json!({"requests": 1, "per": "1h"});
    let keep = Hashing { waits: true, ..Hashing::default() };
    let plan = compile(braked, &mut world(&format!("alice:{HASH}"))).expect("valid");
    let filter = Authentication::link(&plan, &keep);
    let began = tokio::time::Instant::now();
    let mut exchange = shows("alice:x");
    exchange.deadline = Some(began + Duration::from_millis(200));
    let answer = ask(&filter, &mut exchange).await.map_err(|(kind, _)| kind);
    assert_eq!((answer, began.elapsed().as_millis()), (Err(ErrorKind::BackendTimeout), 200));
    assert_eq!(verdict(&filter, "alice:y").await, Err(ErrorKind::TooManyFailures));
}

/// Against the file of a Secret of this name; no brake stops a guess.
fn unbraked(secret: &str, keep: &Hashing) -> Arc<dyn Filter> {
    let mut spec = spec();
    spec["failures"] = json!({"requests": 0});
    spec["anyOf"][0]["basicAuth"]["secretRef"]["name"] = secret.into();
    let mut world = World::default().secret(secret, &[("auth", &format!("alice:{HASH}"))], &[]);
    Authentication::link(&compile(spec, &mut world).expect("valid"), keep)
}

#[tokio::test(start_paused = true)]
async fn the_slow_hashes_of_one_file_leave_the_threads_to_the_others() {
    let keep = Hashing { waits: true, ..Hashing::default() };
    let (one, other) = (unbraked("people", &keep), unbraked("others", &keep));
    let guesses = ["alice:1", "alice:2", "alice:3", "alice:4"];
    let mut flood = Box::pin(join_all(guesses.map(|guess| verdict(&one, guess))));
    assert!(flood.as_mut().now_or_never().is_none());
    assert_eq!(keep.hashed(), AT_ONCE);
    let mut login = Box::pin(verdict(&other, "alice:x"));
    assert!(login.as_mut().now_or_never().is_none());
    assert_eq!(keep.hashed(), AT_ONCE + 1, "the other's turn");
    let (verdicts, login, ()) = tokio::join!(flood, login, hash_what_waits(&keep));
    assert_eq!((verdicts, login, keep.hashed()), (vec![WRONG; 4], WRONG, 5), "all in their turn");
}

#[tokio::test(start_paused = true)]
async fn more_than_may_wait_is_refused_at_once() {
    let keep = Hashing { waits: true, ..Hashing::default() };
    let filter = unbraked("people", &keep);
    let guesses: Vec<_> = (0..MOST_UNDERWAY).map(|guess| format!("alice:{guess}")).collect();
    let mut flood = Box::pin(join_all(guesses.iter().map(|guess| verdict(&filter, guess))));
    assert!(flood.as_mut().now_or_never().is_none());
    assert_eq!(verdict(&filter, "alice:x").now_or_never(), Some(Err(ErrorKind::Overloaded)));
}

#[test]
fn a_file_without_users_is_refused_and_single_lines_are_named() {
    for (data, words) in [
        (vec![], "none of auth, users and .htpasswd"),
        (vec![("auth", "a:b"), ("users", "a:b")], "both auth and users"),
        (vec![("users", "")], "has no user"),
        (vec![(".htpasswd", "# nobody\n\n")], "has no user"),
        (
            vec![("auth", "alice:$apr1$trial$K3BKM7nH3qhKW0IW01u6K/")],
            "line 1 of auth in Secret shop/people has an MD5 hash",
        ),
        (vec![("auth", "alice")], "line 1 of auth in Secret shop/people is not NAME:HASH"),
    ] {
        let mut world = World::default().secret("people", &data, &[]);
        let problems = compile(spec(), &mut world).expect_err("refused");
        assert_eq!(problems[0].path.as_str(), "anyOf[0].basicAuth.secretRef", "{words}");
        assert!(problems[0].message.contains(words), "{}", problems[0].message);
    }
    let mut world = world(&format!("alice:{HASH}\nalice:{OTHER}\n:{HASH}\nbob:secret\nx\ncarol:{OTHER}\n"));
    let plan = compile(spec(), &mut world).expect("two can come");
    let told: Vec<_> = world.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    for (note, words) in
        told.iter().zip(["line 2 of auth", "line 3 of auth", "line 4 of auth", "line 5 of auth"])
    {
        assert!(note.contains(words), "{note}");
    }
    let printed = format!("{plan:?} {told:?}");
    assert!(printed.contains("2 of shop/people people"), "{printed}");
    for secret in ["secret\"", "saltstring", "$5$", "5B8v"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

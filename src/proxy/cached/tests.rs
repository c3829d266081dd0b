//! What becomes of one answer: who is told what, and what is kept.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::time::Instant;

use super::fetch::{Fetch, Readers, Settled};
use super::{Kind, LiveCache, Meanings, Waited, key_of_head, wait};
use crate::cache::tests::exchange;
use crate::cache::{
    Forwarded, Forwarders, Heard, Join, Keying, Lead, Memory, Reader, Stored, Use, Wish, is_tagged, key,
};
use crate::filters::{CachePlan, Collapse, REGISTRY, ServeStale};
use crate::message::{
    Body, BodyError, ErrorKind, Exchange, Labels, LocalFuture, Outbound, ProxyError, Request, Response,
};
use crate::proxy::request_head::Intake;
use crate::route_map::{Action, Rule, Unserved};
use crate::values::BackendId;

/// Work of its own runs where the test runs it, or finds no room.
struct Worker {
    room: bool,
    work: RefCell<Vec<LocalFuture<'static, ()>>>,
}

impl Outbound for Worker {
    fn call<'a>(&'a self, _: &'a BackendId, _: Request) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async { Err(ErrorKind::BackendNotFound.into()) })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        if !self.room {
            return Err(work);
        }
        self.work.borrow_mut().push(work);
        Ok(())
    }
}

/// One key of one rule's cache.
struct Case {
    cache: Arc<LiveCache>,
    worker: Rc<Worker>,
}

impl Case {
    fn new(plan: CachePlan, room: bool) -> Self {
        let labels = Arc::new(Labels { namespace: "shop".into(), route: "web".into(), rule: "r".into() });
        let action = Action::Unserved(Unserved { kind: ErrorKind::PolicyInvalid });
        let rule = Rule { labels, filters: Vec::new(), action, policy: Vec::new() };
        let cache = LiveCache {
            plan,
            partition: Memory::new(16 << 20).partition("shop", "web"),
            keying: Keying::new("r", Default::default(), Forwarders::Nobody),
            meaning: Meanings::default().of(&rule, REGISTRY, Forwarders::Nobody),
            backends: Box::default(),
            rewritten: [HeaderName::from_static("x-rewritten")].into(),
            idle: None,
            has_cors: false,
            has_one_backend: true,
        };
        Self { cache: Arc::new(cache), worker: Rc::new(Worker { room, work: RefCell::default() }) }
    }

    fn fetch(&self, exchange: &Exchange) -> (Fetch, Vec<u8>) {
        let mut key = Vec::new();
        let meaning = std::iter::once(self.cache.meaning.number);
        key::write(&mut key, &self.cache.keying, meaning, &self.cache.plan.key, exchange);
        let primary = key.len();
        let stored = self.cache.partition.look(&mut key, exchange.request.headers());
        assert!(stored.is_none() || !key.is_empty());
        let wish = Wish::of(exchange.request.headers());
        (Fetch::new(&self.cache, exchange, &key, primary, wish), key)
    }

    /// What the answer comes to, and what one who waits for it hears.
    async fn settle(
        &self,
        exchange: &Exchange,
        response: Response,
        stale: Option<&Arc<Stored>>,
    ) -> (Settled, Heard) {
        let (fetch, _) = self.fetch(exchange);
        let (lead, waiting) = both(&fetch);
        let started = Instant::now();
        let settled = fetch.settle(&*self.worker, lead, response, stale, started, |_| Readers::Needed);
        (settled, waiting.heard().await)
    }

    fn kept(&self, exchange: &Exchange) -> Option<Arc<Stored>> {
        let (_, mut key) = self.fetch(exchange);
        self.cache.partition.look(&mut key, exchange.request.headers())
    }
}

/// Who fetches, and who waits for it.
fn both(fetch: &Fetch) -> (Lead, Reader) {
    let Join::Lead(lead) = fetch.join(None, false) else { panic!("nobody fetches") };
    let Join::Wait(waiting) = fetch.join(None, false) else { panic!("somebody fetches") };
    (lead, waiting)
}

fn response(status: u16, fields: &[(&'static str, &'static str)], body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    for (name, value) in fields {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    response
}

fn failure(kind: ErrorKind) -> Response {
    let mut response = response(502, &[], Body::Empty);
    response.extensions_mut().insert(kind);
    response
}

fn streamed(text: &'static str) -> Body {
    let frames =
        futures_util::stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from_static(text.as_bytes())))]);
    Body::stream(StreamBody::new(frames))
}

async fn text(body: Body) -> String {
    use http_body_util::BodyExt as _;
    let bytes = body.collect().await.expect("whole").to_bytes();
    String::from_utf8(bytes.to_vec()).expect("text")
}

const URL: &str = "http://a.example/x";
const FRESH: (&str, &str) = ("cache-control", "max-age=60");

#[tokio::test(start_paused = true)]
async fn only_a_backend_that_nobody_reaches_fails_for_all() {
    for (kind, is_shared) in [
        (ErrorKind::ConnectFailure, true),
        (ErrorKind::NoHealthyEndpoints, true),
        (ErrorKind::BackendTimeout, false),
        (ErrorKind::InvalidResponse, false),
        (ErrorKind::ExpressionFailed, false),
    ] {
        let case = Case::new(CachePlan::default(), true);
        let (settled, heard) = case.settle(&exchange(URL, &[]), failure(kind), None).await;
        assert!(matches!(settled, Settled::Passed(..)));
        assert_eq!(
            matches!(heard, Heard::Failed(shared) if shared == kind),
            is_shared,
            "{kind:?}: {heard:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_backends_another_may_be_reached() {
    let mut case = Case::new(CachePlan::default(), true);
    Arc::get_mut(&mut case.cache).expect("nobody else has it").has_one_backend = false;
    let (_, heard) = case.settle(&exchange(URL, &[]), failure(ErrorKind::ConnectFailure), None).await;
    assert!(matches!(heard, Heard::Abandoned), "{heard:?}");
}

/// What clients can say that makes their answers their own, if nobody says what matters.
const OWN: [(&str, &str); 3] =
    [("cookie", "session=1"), ("authorization", "Basic x"), ("cache-control", "no-store")];

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_forgotten_by_the_origin_s_word_and_not_by_who_asks() {
    let plan = CachePlan { default_ttl: Some(Duration::from_secs(60)), ..CachePlan::default() };
    let after =
        async |fields: &[(&'static str, &'static str)], status, said: &[(&'static str, &'static str)]| {
            let case = Case::new(plan.clone(), true);
            let old = [("etag", "\"a\""), ("cache-control", "max-age=0")];
            let (settled, _) = case.settle(&exchange(URL, &[]), response(200, &old, Body::Empty), None).await;
            let Settled::Kept(stored, _) = settled else { panic!("kept") };
            let (fetch, _) = case.fetch(&exchange(URL, fields));
            let answer = response(status, said, Body::Empty);
            let started = Instant::now();
            let settled = fetch
                .settle(&*case.worker, fetch.lead(), answer, Some(&stored), started, |_| Readers::Needed);
            drop(settled);
            case.kept(&exchange(URL, &[])).map(|stored| stored.is_doubted())
        };
    for status in [200, 304] {
        for forbids in ["no-store", "private"] {
            let said = [("cache-control", forbids)];
            assert_eq!(after(&[], status, &said).await, None, "{status} {forbids}");
            for own in OWN {
                // It may be that client's alone, or everybody's: the next one asks.
                assert_eq!(after(&[own], status, &said).await, Some(true), "{status} {forbids} {own:?}");
            }
        }
    }
    for own in OWN {
        assert!(after(&[own], 200, &[]).await.is_some(), "{own:?}");
        assert!(after(&[own], 304, &[("etag", "\"b\"")]).await.is_some(), "{own:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_doubt_is_asked_for_before_it_is_used_and_helps_out() {
    let plan = CachePlan {
        stale_while_revalidate: Duration::from_secs(60),
        stale_if_error: Duration::from_secs(60),
        ..CachePlan::default()
    };
    for said in ["max-age=60", "max-age=0"] {
        let case = Case::new(plan.clone(), true);
        let answer = response(200, &[("cache-control", said), ("etag", "\"a\"")], Body::Empty);
        let (Settled::Kept(stored, _), _) = case.settle(&exchange(URL, &[]), answer, None).await else {
            panic!("kept")
        };
        let (wish, now) = (Wish::default(), Instant::now());
        assert!(!matches!(stored.usable(&wish, now), Use::Validate { .. }), "the control: {said}");
        stored.doubt();
        assert_eq!(stored.usable(&wish, now), Use::Validate { wished: false }, "{said}");
        let (fetch, _) = case.fetch(&exchange(URL, &[]));
        assert!(matches!(fetch.join(Some(&stored), false), Join::Lead(_)), "{said}");
        // Nobody said that it does not hold.
        let (settled, _) =
            case.settle(&exchange(URL, &[]), failure(ErrorKind::ConnectFailure), Some(&stored)).await;
        assert!(matches!(settled, Settled::Kept(helps, _) if Arc::ptr_eq(&helps, &stored)), "{said}");
        // The origin's word ends the doubt.
        let (settled, _) =
            case.settle(&exchange(URL, &[]), response(304, &[FRESH], Body::Empty), Some(&stored)).await;
        assert!(matches!(settled, Settled::Kept(..)));
        let stored = case.kept(&exchange(URL, &[])).expect("kept");
        assert!(matches!(stored.usable(&wish, now), Use::Hit { .. }), "{said}");
    }
}

#[test]
fn a_field_that_a_backend_may_take_for_one_of_the_key_goes_past() {
    let mut plan = CachePlan::default();
    plan.key.headers = [HeaderName::from_static("x-tenant")].into();
    let case = Case::new(plan, true);
    let kind = |name| case.cache.kind(&exchange(URL, &[(name, "1")]), &Intake::of_nobody());
    assert_eq!((kind("x-tenant"), kind("x.other")), (Kind::Get, Kind::Get));
    for name in ["x.tenant", "x.original.url", "x-http.method-override"] {
        assert_eq!(kind(name), Kind::Other(Forwarded::Bypass, Some("override")), "{name}");
    }
}

#[test]
fn only_an_answer_to_anybody_shows_by_head_what_has_changed() {
    let case = Case::new(CachePlan::default(), true);
    let shows = |fields: &[(&'static str, &'static str)]| {
        let asked = exchange(URL, fields);
        key_of_head(&case.cache, &asked, &Wish::of(asked.request.headers())).is_some()
    };
    assert!(shows(&[]) && shows(&[("accept", "text/html")]));
    assert!(OWN.iter().all(|own| !shows(&[*own])));
}

#[test]
fn what_may_become_another_protocol_goes_past() {
    let case = Case::new(CachePlan::default(), true);
    let mut intake = Intake::of_nobody();
    assert_eq!(case.cache.kind(&exchange(URL, &[]), &intake), Kind::Get);
    intake.upgrade = Some(HeaderValue::from_static("websocket"));
    let past = Kind::Other(Forwarded::Bypass, Some("upgrade"));
    assert_eq!(case.cache.kind(&exchange(URL, &[]), &intake), past);
}

#[test]
fn a_cookie_that_a_backend_may_take_for_another_goes_past() {
    let mut plan = CachePlan::default();
    plan.key.cookies = Some(["session".into()].into());
    let case = Case::new(plan, true);
    let kind = |cookie| case.cache.kind(&exchange(URL, &[("cookie", cookie)]), &Intake::of_nobody());
    assert_eq!(kind("session =1; a=2"), Kind::Get);
    assert_eq!(kind("ses sion=1"), Kind::Other(Forwarded::Bypass, Some("cookie")));
}

#[tokio::test(start_paused = true)]
async fn what_the_policy_keeps_is_not_given_to_those_whose_answers_it_does_not_keep() {
    let plan = CachePlan { default_ttl: Some(Duration::from_secs(60)), ..CachePlan::default() };
    for (own, said, is_given) in [
        (OWN[0], &[][..], false),
        (OWN[1], &[], false),
        (("accept", "text/html"), &[], true),
        (OWN[0], &[FRESH], true),
    ] {
        let case = Case::new(plan.clone(), true);
        let mut asks = exchange(URL, &[own]);
        let (first, (second, _)) = (case.fetch(&exchange(URL, &[])).0, case.fetch(&asks));
        let Join::Lead(lead) = first.join(None, false) else { panic!("nobody fetches") };
        let Join::Wait(waiting) = second.join(None, false) else { panic!("somebody fetches") };
        let answer = response(200, said, streamed("all"));
        let settled = first.settle(&*case.worker, lead, answer, None, Instant::now(), |_| Readers::Needed);
        let refuse = |_: &ProxyError| panic!("it did not fail");
        let waited = wait(&second, &mut asks, waiting, Forwarded::UriMiss, refuse).await;
        assert_eq!(matches!(waited, Waited::Answered(_)), is_given, "on its way: {own:?} {said:?}");
        assert!(is_given || matches!(waited, Waited::Alone));
        drop(waited);
        let Settled::Open(_, body) = settled else { panic!("open") };
        let work = case.worker.work.borrow_mut().pop().expect("work");
        tokio::join!(work, text(body));
        let stored = case.kept(&asks).expect("kept");
        let wish = Wish::of(asks.request.headers());
        assert_eq!(case.cache.is_for(&asks, &wish, &stored.terms), is_given, "kept: {own:?} {said:?}");
        assert_eq!(matches!(second.join(None, false), Join::Here(_)), is_given);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_past_its_time_is_for_those_who_wait_only_where_the_backend_failed() {
    let serve_stale = ServeStale::of("Timeout", Duration::from_secs(3600));
    for plan in [
        CachePlan { serve_stale, ..CachePlan::default() },
        CachePlan { stale_if_error: Duration::from_secs(3600), ..CachePlan::default() },
    ] {
        let short = || response(200, &[("cache-control", "max-age=1")], Body::Empty);
        let refuse = |_: &ProxyError| panic!("it did not fail");
        let waits = async |case: &Case, answer, stale: Option<&Arc<Stored>>, wish| {
            let (leads, mut asks) = (exchange(URL, &[]), exchange(URL, wish));
            let (first, second) = (case.fetch(&leads).0, case.fetch(&asks).0);
            let Join::Lead(lead) = first.join(None, false) else { panic!("nobody fetches") };
            let Join::Wait(waiting) = second.join(None, false) else { panic!("somebody fetches") };
            drop(first.settle(&*case.worker, lead, answer, stale, Instant::now(), |_| Readers::Needed));
            // Who waits comes to it late.
            tokio::time::advance(Duration::from_secs(2)).await;
            wait(&second, &mut asks, waiting, Forwarded::Stale, refuse).await
        };
        let case = Case::new(plan, true);
        let waited = waits(&case, short(), None, &[]).await;
        assert!(matches!(waited, Waited::Alone), "nobody failed");
        let stored = case.kept(&exchange(URL, &[])).expect("kept");
        for (wish, is_given) in [(&[][..], true), (&[("cache-control", "max-age=1")], false)] {
            let failed = failure(ErrorKind::BackendTimeout);
            let waited = waits(&case, failed, Some(&stored), wish).await;
            assert_eq!(matches!(waited, Waited::Answered(_)), is_given, "{wish:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_of_failure_frees_those_who_wait_and_is_not_remembered() {
    let case = Case::new(CachePlan::default(), true);
    let (_, heard) = case.settle(&exchange(URL, &[]), response(503, &[], Body::Empty), None).await;
    assert!(matches!(heard, Heard::Abandoned), "{heard:?}");
    // The next ones share a fetch again.
    let (fetch, _) = case.fetch(&exchange(URL, &[]));
    drop(both(&fetch));
    // The control: what is for one only is remembered.
    let (_, heard) = case
        .settle(&exchange(URL, &[]), response(200, &[("cache-control", "private")], Body::Empty), None)
        .await;
    assert!(matches!(heard, Heard::Alone), "{heard:?}");
    let Join::Lead(_first) = fetch.join(None, false) else { panic!("alone") };
    assert!(matches!(fetch.join(None, false), Join::Lead(_)));
}

#[tokio::test(start_paused = true)]
async fn without_room_for_work_of_its_own_an_answer_is_for_one() {
    let case = Case::new(CachePlan::default(), false);
    let asked = exchange(URL, &[]);
    let (settled, heard) = case.settle(&asked, response(200, &[FRESH], streamed("all of it")), None).await;
    let Settled::Passed(response, Some("busy")) = settled else { panic!("passed on") };
    assert_eq!(response.headers()["cache-control"], "max-age=60");
    assert_eq!(text(response.into_body()).await, "all of it");
    assert!(matches!(heard, Heard::Alone), "{heard:?}");
    assert!(case.kept(&asked).is_none());
    // The control: with room it is shared, and kept.
    let case = Case::new(CachePlan::default(), true);
    let (settled, heard) =
        case.settle(&asked, self::response(200, &[FRESH], streamed("all of it")), None).await;
    assert!(matches!((&settled, &heard), (Settled::Open(..), Heard::Open(_))), "{heard:?}");
    let Settled::Open(_, body) = settled else { panic!("open") };
    let work = case.worker.work.borrow_mut().pop().expect("work");
    let ((), text) = tokio::join!(work, text(body));
    assert_eq!(text, "all of it");
    assert!(case.kept(&asked).is_some());
}

#[tokio::test(start_paused = true)]
async fn what_varies_by_what_the_gateway_tells_is_not_kept() {
    for (vary, is_kept) in [
        ("X-Forwarded-For", false),
        ("Accept, X-Real-IP", false),
        ("Forwarded", false),
        ("X-Request-Id", false),
        ("X-Forwarded-Client-Cert", false),
        ("Connection", false),
        ("X-Rewritten", false),
        ("X-Forwarded-Proto", true),
        ("X-Forwarded-Host, Host", true),
        ("Accept", true),
    ] {
        let case = Case::new(CachePlan::default(), true);
        let asked = exchange(URL, &[("x-forwarded-proto", "https")]);
        let answer = response(200, &[FRESH, ("vary", vary)], Body::Empty);
        let (settled, _) = case.settle(&asked, answer, None).await;
        assert_eq!(matches!(settled, Settled::Kept(..)), is_kept, "{vary}");
        // What the client says where the gateway says it chooses nothing.
        assert_eq!(case.kept(&exchange(URL, &[])).is_some(), is_kept, "{vary}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_for_others_is_none() {
    let stale = async |case: &Case, fields: &[(&'static str, &'static str)]| {
        let fields: Vec<_> =
            [("etag", "\"a\""), ("cache-control", "max-age=0")].iter().chain(fields).copied().collect();
        let (settled, _) = case.settle(&exchange(URL, &[]), response(200, &fields, Body::Empty), None).await;
        let Settled::Kept(stored, _) = settled else { panic!("kept") };
        stored
    };
    for (kept, said, is_confirmed) in [
        (&[][..], ("access-control-allow-origin", "https://evil.example"), false),
        (
            &[("access-control-allow-origin", "*")],
            ("access-control-allow-origin", "https://evil.example"),
            false,
        ),
        (&[], ("access-control-allow-credentials", "true"), false),
        (&[], ("vary", "Origin"), false),
        (&[], ("vary", "*"), false),
        (&[("access-control-allow-origin", "*")], ("access-control-allow-origin", "*"), true),
        (&[("vary", "Accept")], ("vary", "accept"), true),
        (&[], ("x-new", "said"), true),
    ] {
        let case = Case::new(CachePlan::default(), true);
        let stored = stale(&case, kept).await;
        let answer = response(304, &[said, FRESH], Body::Empty);
        let (settled, heard) = case.settle(&exchange(URL, &[]), answer, Some(&stored)).await;
        match settled {
            Settled::Kept(confirmed, 304) => {
                assert!(is_confirmed, "{kept:?} {said:?}");
                assert_eq!(confirmed.headers.get("vary"), stored.headers.get("vary"));
            }
            Settled::Again => {
                assert!(!is_confirmed && matches!(heard, Heard::Abandoned), "{kept:?} {said:?}")
            }
            _ => panic!("{kept:?} {said:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_it_new_waits_for_nobody_who_asked_before() {
    let case = Case::new(CachePlan::default(), true);
    let fetch = |fields: &[(&'static str, &'static str)]| case.fetch(&exchange(URL, fields)).0;
    let Join::Lead(_first) = fetch(&[]).join(None, false) else { panic!("nobody fetches") };
    for wish in ["no-cache", "max-age=0", "no-store"] {
        assert!(matches!(fetch(&[("cache-control", wish)]).join(None, false), Join::Lead(_)), "{wish}");
    }
    for wish in ["max-age=1", "min-fresh=1", "max-stale"] {
        assert!(matches!(fetch(&[("cache-control", wish)]).join(None, false), Join::Wait(_)), "{wish}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_answers_are_shared_only_nothing_is_kept() {
    let plan = CachePlan {
        collapse: Collapse::Only,
        default_ttl: Some(Duration::from_secs(60)),
        ..CachePlan::default()
    };
    let case = Case::new(plan, true);
    let asked = exchange(URL, &[]);
    let (settled, heard) = case.settle(&asked, response(200, &[], Body::Full("all".into())), None).await;
    assert!(matches!((settled, heard), (Settled::Open(..), Heard::Open(_))));
    let work = case.worker.work.borrow_mut().pop();
    work.expect("work").await;
    assert!(case.kept(&asked).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_the_origin_finds_wrong_with_one_request_is_no_word_about_the_others() {
    let odd = exchange(URL, &[("cache-control", "no-cache"), ("origin", "https://other.example")]);
    let (fresh, old) = (("cache-control", "max-age=60"), ("cache-control", "max-age=0"));
    for (status, is_heeded) in
        [(400, false), (401, false), (403, false), (429, false), (404, true), (410, true)]
    {
        for (said, is_overdue) in [(fresh, false), (old, true)] {
            let case = Case::new(CachePlan::default(), true);
            let answer = response(200, &[said, ("etag", "\"a\"")], Body::Empty);
            let (Settled::Kept(stored, _), _) = case.settle(&exchange(URL, &[]), answer, None).await else {
                panic!("kept")
            };
            let (fetch, _) = case.fetch(&odd);
            let Join::Lead(lead) = fetch.join(Some(&stored), false) else { panic!("it wants it new") };
            let answer = response(status, &[], Body::Empty);
            let started = Instant::now();
            let settled =
                fetch.settle(&*case.worker, lead, answer, Some(&stored), started, |_| Readers::Needed);
            assert!(matches!(settled, Settled::Passed(..)), "{status}");
            let kept = case.kept(&exchange(URL, &[]));
            assert_eq!(kept.is_none(), is_heeded, "{status} {said:?}");
            // What is past its time is asked for before it is used again.
            assert!(kept.is_none_or(|kept| kept.is_doubted() == is_overdue), "{status} {said:?}");

            // Who asks next shares one fetch, if there was no word about all.
            case.cache.partition.forget(&case.fetch(&exchange(URL, &[])).1);
            let (fetch, _) = case.fetch(&exchange(URL, &[]));
            let Join::Lead(_lead) = fetch.join(None, false) else { panic!("nobody fetches") };
            assert_eq!(matches!(fetch.join(None, false), Join::Wait(_)), !is_heeded, "{status} {said:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_request_that_the_origin_refuses_is_freed() {
    let case = Case::new(CachePlan::default(), true);
    for (status, is_freed) in [(400, true), (403, true), (404, false)] {
        let (_, heard) = case.settle(&exchange(URL, &[]), response(status, &[], Body::Empty), None).await;
        assert_eq!(matches!(heard, Heard::Abandoned), is_freed, "{status}: {heard:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn marks_are_kept_through_confirmations_and_told_to_nobody() {
    let case = Case::new(CachePlan::default(), true);
    let marks = [("surrogate-key", "shoes sale"), ("cache-tag", "a, b"), ("etag", "\"a\"")];
    let fields: Vec<_> = marks.into_iter().chain([("cache-control", "max-age=0")]).collect();
    let (settled, _) = case.settle(&exchange(URL, &[]), response(200, &fields, Body::Empty), None).await;
    let Settled::Kept(stored, _) = settled else { panic!("kept") };
    let tags = |stored: &Stored| stored.tags.iter().map(ToString::to_string).collect::<Vec<_>>();
    let is_marked = |stored: &Stored| is_tagged(&stored.headers);
    assert_eq!(
        (tags(&stored), is_marked(&stored)),
        (["shoes", "sale", "a", "b"].map(String::from).into(), false)
    );
    for (said, expected) in
        [(&[][..], &["shoes", "sale", "a", "b"][..]), (&[("surrogate-key", "hats")], &["hats"])]
    {
        let answer = response(304, said, Body::Empty);
        let (settled, _) = case.settle(&exchange(URL, &[]), answer, Some(&stored)).await;
        let Settled::Kept(confirmed, 304) = settled else { panic!("confirmed") };
        assert_eq!(
            (tags(&confirmed), is_marked(&confirmed)),
            (expected.iter().map(ToString::to_string).collect(), false)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn who_can_unpack_the_same_shares_a_variant() {
    let case = Case::new(CachePlan::default(), true);
    let asks = |accepted: &'static str| exchange(URL, &[("accept-encoding", accepted)]);
    let answer = response(200, &[FRESH, ("vary", "Accept-Encoding")], Body::Empty);
    let (settled, _) = case.settle(&asks("gzip, br"), answer, None).await;
    assert!(matches!(settled, Settled::Kept(..)));
    for (accepted, is_shared) in [
        ("br;q=1.0,gzip;q=0.8", true),
        ("GZIP, br", true),
        ("gzip", false),
        ("gzip, br;q=0", false),
        ("", false),
    ] {
        let kept = case.kept(&asks(accepted));
        assert_eq!(
            kept.is_some_and(|kept| kept.suits(asks(accepted).request.headers())),
            is_shared,
            "{accepted}"
        );
    }
    assert!(
        case.kept(&exchange(URL, &[])).is_none(),
        "who says nothing takes anything, and may get anything"
    );
}

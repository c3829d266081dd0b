//! What the tests of this room stand on, and the room as a whole: fills that many read, budgets, variants.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::account::Account;
use super::partition::vary;
use super::*;
use crate::message::{
    Body, BodyError, Client, ClientCertificate, Exchange, IdentityKind, KnownIdentity, Labels, LocalFuture,
    Outbound, Protocol, ProxyError, Request, RequestId, Response, Scheme,
};
use crate::values::BackendId;

/// A request as it comes to the cache.
pub fn exchange(url: &str, fields: &[(&'static str, &'static str)]) -> Exchange {
    let uri: http::Uri = url.parse().expect("a URI");
    let authority = uri.authority().expect("an authority").as_str().to_owned();
    let scheme = if uri.scheme_str() == Some("https") { Scheme::Https } else { Scheme::Http };
    let target = uri.path_and_query().expect("a target").as_str().to_owned();
    let mut request = Request::default();
    *request.uri_mut() = target.parse().expect("a target");
    request.headers_mut().insert("host", authority.parse().expect("a host"));
    for (name, value) in fields {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let client = Client {
        peer: SocketAddr::new(ip, 1),
        ip,
        scheme,
        protocol: Protocol::Http11,
        server_name: None,
        certificate: None,
        vouched: None,
    };
    let labels = Arc::new(Labels { namespace: "shop".into(), route: "web".into(), rule: "r".into() });
    Exchange::new(
        request,
        client,
        "a.example".into(),
        labels,
        RequestId([0; 16]),
        Instant::now(),
        Rc::new(Nowhere),
    )
}

/// A client that is not anonymous.
pub fn known(id: &str, scopes: &[&str]) -> KnownIdentity {
    KnownIdentity {
        kind: IdentityKind::ApiKey,
        entry: "keys".into(),
        issuer: "shop".into(),
        id: id.into(),
        scopes: scopes.iter().map(|scope| (*scope).into()).collect(),
        claims: Arc::default(),
    }
}

/// What a client showed.
pub fn certificate(fingerprint: u8) -> Arc<ClientCertificate> {
    Arc::new(ClientCertificate {
        fingerprint: [fingerprint; 32],
        subject: "CN=ann".into(),
        issuer: "CN=authority".into(),
        uris: Box::default(),
        dns: Box::default(),
        emails: Box::default(),
        not_after: i64::MAX,
        claims: Arc::default(),
    })
}

struct Nowhere;

impl Outbound for Nowhere {
    fn call<'a>(&'a self, _: &'a BackendId, _: Request) -> LocalFuture<'a, Result<Response, ProxyError>> {
        Box::pin(async { Err(crate::message::ErrorKind::BackendNotFound.into()) })
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        Err(work)
    }
}

fn terms(lifetime: u64) -> Terms {
    Terms {
        age: Duration::ZERO,
        lifetime: Duration::from_secs(lifetime),
        while_revalidate: Duration::ZERO,
        if_error: Duration::ZERO,
        no_cache: false,
        must_revalidate: false,
        by_policy: false,
    }
}

pub fn stored(partition: &Partition, body: usize) -> Arc<Stored> {
    let account = Account::new(partition.memory());
    account.must_come(body as u64);
    let segments = Segments::of([account.piece(vec![b'x'; body], body as u64)].into_iter(), account.lease());
    let mut headers = HeaderMap::new();
    headers.insert("etag", HeaderValue::from_static("\"a\""));
    Arc::new(Stored {
        status: StatusCode::OK,
        headers,
        body: segments,
        trailers: None,
        terms: terms(60),
        received: Instant::now(),
        wall: SystemTime::now(),
        born: partition.now(),
        checked: AtomicU64::new(0),
        doubted: AtomicBool::new(false),
        address: Box::default(),
        place: partition.place(b"here"),
        tags: Box::default(),
        vary: Box::default(),
        chosen_by: Box::default(),
    })
}

fn opening() -> Arc<Opening> {
    Arc::new(Opening {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        terms: terms(60),
        received: Instant::now(),
        wall: SystemTime::now(),
        vary: Box::default(),
        chosen_by: Box::default(),
        born: 1,
        address: Box::default(),
        place: Memory::new(1 << 20).partition("shop", "web").place(b"here"),
        tags: Box::default(),
    })
}

fn a_fill() -> Arc<Fill> {
    Fill::new(1, &Memory::new(64 << 20))
}

/// A body that the test says piece by piece.
fn spoken() -> (mpsc::UnboundedSender<Result<http_body::Frame<Bytes>, BodyError>>, Body) {
    let (say, said) = mpsc::unbounded_channel();
    let frames = futures_util::stream::unfold(said, |mut said| async { Some((said.recv().await?, said)) });
    (say, Body::stream(StreamBody::new(frames)))
}

fn piece(text: &str) -> Result<http_body::Frame<Bytes>, BodyError> {
    Ok(http_body::Frame::data(Bytes::copy_from_slice(text.as_bytes())))
}

async fn text(body: Body) -> Result<String, BodyError> {
    let bytes = body.collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).expect("text"))
}

#[tokio::test(start_paused = true)]
async fn all_readers_get_the_whole_wherever_they_came_in() {
    let fill = a_fill();
    let first = fill.join(|_| true).expect("open");
    let (say, body) = spoken();
    let pump = Pump::new(&fill, 1 << 20, None);
    fill.tell(Heard::Open(opening()));
    let (kept, texts) = tokio::join!(pump.run(body), async {
        assert!(matches!(first.heard().await, Heard::Open(_)));
        say.send(piece("one ")).expect("listens");
        tokio::task::yield_now().await;
        let late = fill.join(|_| true).expect("still open");
        say.send(piece("two")).expect("listens");
        drop(say);
        let finishing = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            Pump::finish(&fill);
        };
        let (first, late, ()) = tokio::join!(text(first.body()), text(late.body()), finishing);
        (first.expect("whole"), late.expect("whole"))
    });
    assert_eq!(texts, ("one two".into(), "one two".into()));
    assert_eq!(kept.flatten().expect("kept").body.length(), 7);
}

#[tokio::test(start_paused = true)]
async fn what_breaks_is_kept_by_nobody_and_an_error_for_all() {
    let fill = a_fill();
    let (one, two) = (fill.join(|_| true).expect("open"), fill.join(|_| true).expect("open"));
    let (say, body) = spoken();
    say.send(piece("half")).expect("listens");
    say.send(Err(BodyError::Other("broken"))).expect("listens");
    let kept = Pump::new(&fill, 1 << 20, None).run(body).await;
    assert!(kept.is_none());
    assert!(text(one.body()).await.is_err() && text(two.body()).await.is_err());
    assert!(fill.join(|_| true).is_none(), "nobody comes to what is broken");
}

#[tokio::test(start_paused = true)]
async fn a_silent_backend_ends_it() {
    let fill = a_fill();
    let reader = fill.join(|_| true).expect("open");
    let (_say, body) = spoken();
    let pump = Pump::new(&fill, 1 << 20, Some(Duration::from_secs(5)));
    assert!(pump.run(body).await.is_none());
    assert!(text(reader.body()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_nobody_reads_ends() {
    let fill = a_fill();
    let reader = fill.join(|_| true).expect("open");
    let (_say, body) = spoken();
    let leaving = async {
        tokio::task::yield_now().await;
        drop(reader);
    };
    let (kept, ()) = tokio::join!(Pump::new(&fill, 1 << 20, None).run(body), leaving);
    assert!(kept.is_none() && fill.join(|_| true).is_none());
    // The control: one that stays goes on.
    let fill = a_fill();
    let (say, body) = spoken();
    say.send(piece("all")).expect("listens");
    drop(say);
    assert!(Pump::new(&fill, 1 << 20, None).staying().run(body).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_too_large_is_passed_on_in_a_window() {
    let fill = a_fill();
    let (quick, slow) = (fill.join(|_| true).expect("open"), fill.join(|_| true).expect("open"));
    let (say, body) = spoken();
    let large = "x".repeat(100 << 10);
    for _ in 0..40 {
        say.send(piece(&large)).expect("listens");
    }
    drop(say);
    let pumping = async {
        let kept = Pump::new(&fill, 64 << 10, None).run(body).await;
        Pump::finish(&fill);
        kept
    };
    let (kept, quick) = tokio::join!(pumping, text(quick.body()));
    assert!(kept.is_some_and(|kept| kept.is_none()), "passed on, and not kept");
    assert_eq!(quick.expect("whole").len(), 4_000 << 10);
    assert!(text(slow.body()).await.is_err(), "nobody waits for it longer");
}

/// Reads so many frames.
async fn frames(body: &mut Body, count: usize) -> usize {
    let mut bytes = 0;
    for _ in 0..count {
        let frame = body.frame().await.expect("more").expect("whole").into_data().expect("data");
        bytes += frame.len();
    }
    bytes
}

#[tokio::test(start_paused = true)]
async fn who_reads_alone_has_all_the_time_it_takes() {
    let fill = a_fill();
    let reader = fill.join(|_| true).expect("open");
    let (say, body) = spoken();
    let large = "x".repeat(100 << 10);
    for _ in 0..40 {
        say.send(piece(&large)).expect("listens");
    }
    drop(say);
    let pumping = async {
        let kept = Pump::new(&fill, 64 << 10, None).run(body).await;
        Pump::finish(&fill);
        kept
    };
    let reading = async {
        let mut body = reader.body();
        // An hour for each piece.
        let mut bytes = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            bytes += frames(&mut body, 1).await;
        }
        bytes + text(body).await.expect("whole").len()
    };
    let (kept, bytes) = tokio::join!(pumping, reading);
    assert!(kept.is_some_and(|kept| kept.is_none()));
    assert_eq!(bytes, 4_000 << 10);
}

#[tokio::test(start_paused = true)]
async fn who_goes_on_is_waited_for_but_not_for_ever() {
    // One reads at once, the other one a piece every so many seconds.
    let outcome = async |pause: u64| {
        let fill = a_fill();
        let (quick, slow) = (fill.join(|_| true).expect("open"), fill.join(|_| true).expect("open"));
        let (say, body) = spoken();
        let large = "x".repeat(256 << 10);
        for _ in 0..16 {
            say.send(piece(&large)).expect("listens");
        }
        drop(say);
        let pumping = async {
            Pump::new(&fill, 0, None).run(body).await;
            Pump::finish(&fill);
        };
        let slowly = async {
            let mut body = slow.body();
            loop {
                match body.frame().await {
                    None => return true,
                    Some(Err(_)) => return false,
                    Some(Ok(_)) => tokio::time::sleep(Duration::from_secs(pause)).await,
                }
            }
        };
        let started = Instant::now();
        let quickly = async { (text(quick.body()).await.expect("whole").len(), started.elapsed()) };
        let ((), (bytes, took), is_whole) = tokio::join!(pumping, quickly, slowly);
        assert_eq!(bytes, 4_096 << 10);
        (is_whole, took.as_secs())
    };
    // Twelve pieces are more than fit into the window.
    assert_eq!(outcome(4).await, (true, 44), "longer than the patience, in steps that are not");
    let (is_whole, took) = outcome(9).await;
    assert!(!is_whole && (59..=61).contains(&took), "{took} s are enough, all in all");
    let (is_whole, took) = outcome(11).await;
    assert!(!is_whole && took <= 20, "{took} s without progress are enough");
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_is_counted_until_nobody_reads_it() {
    let memory = Memory::new(4 << 20);
    let partition = memory.partition("shop", "web");
    let Join::Lead(lead) = partition.join(b"k", &partition.place(b"here"), |_, _| true) else {
        panic!("nobody fetches")
    };
    let reader = lead.fill.join(|_| true).expect("open");
    let (say, body) = spoken();
    for _ in 0..3 {
        say.send(piece(&"x".repeat(100_000))).expect("listens");
    }
    drop(say);
    let pumped = Pump::new(&lead.fill, 1 << 20, None).run(body).await.expect("whole").expect("kept");
    Pump::finish(&lead.fill);
    // What is kept counts there, although somebody still reads it here.
    assert_eq!((pumped.body.length(), memory.coming()), (300_000, 0));
    // It gives way, is not fetched any more, and somebody still reads what came.
    drop((lead, pumped));
    assert_eq!(memory.coming(), 300_000);
    assert_eq!(text(reader.body()).await.expect("whole").len(), 300_000);
    assert_eq!(memory.coming(), 0);
}

#[tokio::test]
async fn what_gives_way_while_it_is_read_is_counted_until_it_has_been() {
    let memory = Memory::new(4 << 20);
    let partition = memory.partition("shop", "web");
    let whole = |partition: &Partition| {
        partition.keep(b"k"[..].into(), stored(partition, 1 << 19));
        let found = partition.look(&mut b"k".to_vec(), &HeaderMap::new()).expect("kept");
        found.answer(&http::Method::GET, &HeaderMap::new(), Instant::now()).into_body()
    };
    let (first, second) = (whole(&partition), whole(&partition));
    assert_eq!((memory.coming(), memory.kept() >> 19), (1 << 19, 1), "the first has been replaced");
    partition.forget(b"k");
    assert_eq!((memory.coming(), memory.kept()), (2 << 19, 0), "both are read");
    // Until it is read, there is no room for others on their way.
    let Join::Lead(lead) = partition.join(b"other", &partition.place(b"there"), |_, _| true) else {
        panic!("nobody fetches")
    };
    let full = || Body::Full(Bytes::from_static(b"a body"));
    assert!(lead.fill.whole(&full()).is_none());
    drop(second);
    assert_eq!((text(first).await.expect("whole").len(), memory.coming()), (1 << 19, 0));
    assert!(lead.fill.whole(&full()).is_some(), "the control");
}

#[tokio::test]
async fn what_many_purges_do_not_name_stays() {
    let memory = Memory::new(BUDGET);
    let partition = memory.partition("shop", "web");
    let tagged = |key: &str, tag: &str| {
        let stored = stored(&partition, 100);
        let stored = Stored { tags: [tag.into()].into(), ..Arc::into_inner(stored).expect("one") };
        partition.keep(key.as_bytes().into(), Arc::new(stored));
    };
    tagged("one", "quiet");
    tagged("two", "t3");
    let before = memory.kept();
    (0..1_000).for_each(|tag| memory.purge(Purge::Tag(format!("t{tag}"))));
    let is_found = |key: &str| partition.look(&mut key.into(), &HeaderMap::new()).is_some();
    assert!(is_found("one") && !is_found("two"));
    assert!(memory.kept() < before, "what was named is not there any more, without having been asked for");
}

#[tokio::test(start_paused = true)]
async fn what_finds_no_room_is_passed_on_and_given_back() {
    let memory = Memory::new(1 << 20);
    let partition = memory.partition("shop", "web");
    let fetch = |key: &[u8]| {
        let Join::Lead(lead) = partition.join(key, &partition.place(b"here"), |_, _| true) else {
            panic!("nobody fetches")
        };
        let reader = lead.fill.join(|_| true).expect("open");
        let (say, body) = spoken();
        say.send(piece(&"x".repeat(200_000))).expect("listens");
        drop(say);
        (lead, reader, body)
    };
    // A quarter of the budget is for what is on its way.
    let (first, _reader, body) = fetch(b"1");
    assert!(Pump::new(&first.fill, 1 << 20, None).run(body).await.expect("whole").is_some());
    let (second, reader, body) = fetch(b"2");
    let pumping = async {
        let kept = Pump::new(&second.fill, 1 << 20, None).run(body).await.expect("whole");
        Pump::finish(&second.fill);
        kept
    };
    let (kept, text) = tokio::join!(pumping, text(reader.body()));
    assert!(kept.is_none() && text.expect("whole").len() == 200_000);
    assert_eq!(memory.coming(), 200_000, "of the first alone");
}

#[tokio::test(start_paused = true)]
async fn who_asks_when_it_is_open_for_long_begins_anew() {
    let memory = Memory::new(1 << 20);
    let partition = memory.partition("shop", "web");
    let wish = Wish::default();
    let join = || {
        let now = Instant::now();
        partition
            .join(b"k", &partition.place(b"here"), |terms, received| terms.is_fresh(received, &wish, now))
    };
    let Join::Lead(lead) = join() else { panic!("nobody fetches") };
    lead.fill.tell(Heard::Open(opening()));
    assert!(matches!(join(), Join::Wait(_)));
    tokio::time::advance(Duration::from_secs(61)).await;
    let Join::Lead(newer) = join() else { panic!("what is open is past its time") };
    // The older one goes, and the newer one stays to be joined.
    drop(lead);
    assert!(matches!(join(), Join::Wait(_)));
    drop(newer);
}

#[tokio::test]
async fn whoever_waits_is_freed_when_the_one_who_fetches_goes() {
    let partition = Memory::new(1 << 20).partition("shop", "web");
    let Join::Lead(lead) = partition.join(b"k", &partition.place(b"here"), |_, _| true) else {
        panic!("nobody fetches")
    };
    let Join::Wait(waiting) = partition.join(b"k", &partition.place(b"here"), |_, _| true) else {
        panic!("somebody fetches")
    };
    drop(lead);
    assert!(matches!(waiting.heard().await, Heard::Abandoned));
    assert!(matches!(partition.join(b"k", &partition.place(b"here"), |_, _| true), Join::Lead(_)));
}

#[tokio::test]
async fn a_fetch_from_before_a_change_is_not_joined_and_not_kept() {
    let memory = Memory::new(1 << 20);
    let partition = memory.partition("shop", "web");
    let place = partition.place(b"here");
    let Join::Lead(lead) = partition.join(b"k", &place, |_, _| true) else { panic!("nobody fetches") };
    let answer = stored(&partition, 9);
    partition.change(b"here");
    let Join::Lead(_new) = partition.join(b"k", &place, |_, _| true) else { panic!("that one is old") };
    partition.keep(lead.key().into(), answer);
    assert!(partition.look(&mut b"k".to_vec(), &HeaderMap::new()).is_none());
}

#[tokio::test]
async fn an_answer_is_found_by_the_fields_that_chose_it() {
    let partition = Memory::new(1 << 20).partition("shop", "web");
    let request = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("accept-language", HeaderValue::from_static(value));
        headers
    };
    let names = [HeaderName::from_static("accept-language")];
    for language in ["de", "en"] {
        let key = partition.variant(b"k", &request(language), &names).expect("few fields");
        partition.keep(key.into(), stored(&partition, language.len()));
    }
    let found = |value| partition.look(&mut b"k".to_vec(), &request(value)).is_some();
    assert!(found("de") && found("en") && !found("fr"));
    // An answer without Vary does not make the others answer for everybody.
    let key = partition.variant(b"k", &request("fr"), &[]).expect("few fields");
    partition.keep(key.into(), stored(&partition, 1));
    assert!(found("de") && found("fr") && !found("it"));
}

#[test]
fn vary_names_fields_or_anything() {
    let of = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("vary", HeaderValue::from_static(value));
        vary(&headers)
    };
    assert_eq!(of("Accept, origin ,accept").map(|names| names.len()), Some(2));
    assert_eq!(of("accept, *"), None);
    assert_eq!(of("a b"), None, "what cannot be read may be anything");
    assert_eq!(vary(&HeaderMap::new()).map(|names| names.len()), Some(0));
}

/// Of it 4 MiB are for what is kept.
const BUDGET: u64 = (16 << 20) / 3;

#[tokio::test]
async fn no_route_pushes_another_below_its_share() {
    let memory = Memory::new(BUDGET);
    let (one, two) = (memory.partition("shop", "one"), memory.partition("shop", "two"));
    let key = |index: usize| format!("key {index}").into_bytes().into_boxed_slice();
    let found = |partition: &Partition, count: usize| {
        (0..count)
            .filter(|index| partition.look(&mut key(*index).to_vec(), &HeaderMap::new()).is_some())
            .count()
    };
    // Alone it may have nearly everything.
    for index in 0..64 {
        one.keep(key(index), stored(&one, 60 << 10));
    }
    assert_eq!(found(&one, 64), 64);
    // The other one comes, and gets as much; the first keeps what is left.
    for index in 0..24 {
        two.keep(key(index), stored(&two, 60 << 10));
    }
    assert_eq!(found(&two, 24), 24);
    let left = found(&one, 64);
    assert!((30..64).contains(&left), "{left}");
    assert!(memory.kept() <= 4 << 20, "{}", memory.kept());
    // However much it brings now, the other keeps its share.
    for index in 64..1_000 {
        one.keep(key(index), stored(&one, 60 << 10));
    }
    assert_eq!(found(&two, 24), 24);
    assert!(memory.kept() <= 4 << 20, "{}", memory.kept());
}

#[tokio::test]
async fn a_scan_does_not_push_out_what_is_asked_for_again_and_again() {
    let memory = Memory::new(BUDGET);
    let partition = memory.partition("shop", "web");
    let key = |index: usize| format!("key {index}").into_bytes();
    for index in 0..10 {
        partition.keep(key(index).into(), stored(&partition, 10 << 10));
    }
    for index in 10..3_000 {
        (0..10).for_each(|hot| drop(partition.look(&mut key(hot), &HeaderMap::new())));
        partition.keep(key(index).into(), stored(&partition, 10 << 10));
    }
    let hot = (0..10).filter(|hot| partition.look(&mut key(*hot), &HeaderMap::new()).is_some()).count();
    assert_eq!(hot, 10);
}

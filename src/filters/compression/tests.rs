//! The filter as a whole, and its stream.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, VARY};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use serde_json::{Value, json};

use super::*;
use crate::filters::contract_tests::{FakeOutbound, exchange, fail};
use crate::filters::{NoScope, run};
use crate::message::BodyError;

fn compile(spec: Value) -> Result<Plan, Vec<Problem>> {
    Compression::compile(serde_json::from_value(spec).expect("a spec"), &mut NoScope)
}

fn gunzipped(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    // Cut short, it gives what it has.
    let _ = flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain);
    plain
}

/// A backend's answer to a request with these fields, after the filter.
async fn answered(spec: Value, request: &[(&'static str, &str)], answer: Response) -> (Exchange, Response) {
    let filters: [Arc<dyn Filter>; 1] = [Arc::new(compile(spec).expect("valid"))];
    let mut exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
    for (name, value) in request {
        match *name {
            ":method" => *exchange.request.method_mut() = value.parse().expect("a method"),
            name => drop(exchange.request.headers_mut().insert(name, value.parse().expect("a value"))),
        }
    }
    let answer = RefCell::new(Some(answer));
    let action = async |_: &mut Exchange| answer.take().expect("asked once");
    let response = run(&filters, &mut exchange, fail, action).await;
    (exchange, response)
}

fn page(bytes: usize) -> Response {
    let mut response = Response::new(Body::from("word ".repeat(bytes.div_ceil(5))[..bytes].to_owned()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response.headers_mut().insert(ETAG, HeaderValue::from_static("\"a\""));
    response
}

fn told<'r>(response: &'r Response, name: &HeaderName) -> Option<&'r str> {
    response.headers().get(name).map(|value| value.to_str().expect("ASCII"))
}

const GZIP: (&str, &str) = ("accept-encoding", "gzip");

#[tokio::test]
async fn an_answer_is_compressed_for_who_can_unpack_it() {
    let (exchange, response) = answered(json!({}), &[GZIP], page(5_000)).await;
    assert_eq!(told(&response, &CONTENT_ENCODING), Some("gzip"));
    assert_eq!(told(&response, &VARY), Some("Accept-Encoding"));
    assert_eq!(told(&response, &ETAG), Some("W/\"a\""));
    let (bytes, _) = response.into_body().read(1 << 20).await.expect("whole");
    assert_eq!(gunzipped(&bytes).len(), 5_000);
    assert_eq!(exchange.compressed.expect("told").plain.get(), 5_000);
}

#[tokio::test]
async fn the_plain_form_says_too_that_there_is_another() {
    let (_, response) = answered(json!({}), &[], page(5_000)).await;
    assert_eq!(told(&response, &CONTENT_ENCODING), None);
    assert_eq!((told(&response, &VARY), told(&response, &ETAG)), (Some("Accept-Encoding"), Some("\"a\"")));
    let (_, small) = answered(json!({}), &[GZIP], page(1_000)).await;
    assert_eq!((told(&small, &VARY), told(&small, &CONTENT_ENCODING)), (None, None));
}

#[tokio::test]
async fn who_wants_no_plain_answer_gets_none_however_small() {
    let (_, response) = answered(json!({}), &[("accept-encoding", "gzip, identity;q=0")], page(10)).await;
    assert_eq!(told(&response, &CONTENT_ENCODING), Some("gzip"));
    let (_, response) = answered(json!({}), &[("accept-encoding", "identity;q=0")], page(5_000)).await;
    assert_eq!((response.status().as_u16(), told(&response, &CONTENT_ENCODING)), (200, None));
}

#[tokio::test]
async fn neither_side_may_forbid_it() {
    let (_, response) = answered(json!({}), &[GZIP, ("cache-control", "no-transform")], page(5_000)).await;
    assert_eq!(told(&response, &CONTENT_ENCODING), None);
    let mut forbidden = page(5_000);
    forbidden.headers_mut().insert("cache-control", HeaderValue::from_static("no-transform"));
    let (_, response) = answered(json!({}), &[GZIP], forbidden).await;
    assert_eq!((told(&response, &CONTENT_ENCODING), told(&response, &VARY)), (None, None));
}

#[tokio::test]
async fn a_head_is_what_it_would_be_with_its_body() {
    let mut head = page(0);
    head.headers_mut().insert("content-length", HeaderValue::from_static("5000"));
    *head.body_mut() = Body::Empty;
    let (exchange, response) = answered(json!({}), &[GZIP, (":method", "HEAD")], head).await;
    assert_eq!(told(&response, &CONTENT_ENCODING), Some("gzip"));
    assert_eq!((told(&response, &CONTENT_LENGTH), told(&response, &ETAG)), (None, Some("W/\"a\"")));
    assert!(exchange.compressed.is_none());
}

#[tokio::test]
async fn not_modified_names_the_form_that_the_client_may_have() {
    for (accept, tag) in [("gzip", "W/\"a\""), ("identity", "\"a\"")] {
        let mut answer = page(0);
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        let (_, response) = answered(json!({}), &[("accept-encoding", accept)], answer).await;
        assert_eq!((told(&response, &ETAG), told(&response, &VARY)), (Some(tag), Some("Accept-Encoding")));
    }
}

#[tokio::test]
async fn conditions_reach_the_backend_in_both_forms() {
    let (exchange, _) = answered(json!({}), &[("if-match", "W/\"a\"")], page(10)).await;
    assert_eq!(exchange.request.headers()["if-match"], "W/\"a\", \"a\"");
}

#[tokio::test]
async fn a_part_that_a_date_would_continue_is_asked_for_whole() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (accept, condition, is_whole) in [
        ("gzip", date, true),
        ("identity", date, false),
        ("gzip", "\"a\"", false),
        ("gzip", "W/\"a\"", false),
    ] {
        let asked = [("accept-encoding", accept), ("range", "bytes=5-"), ("if-range", condition)];
        let (exchange, _) = answered(json!({}), &asked, page(10)).await;
        let headers = exchange.request.headers();
        let has = ["range", "if-range"].map(|name| headers.contains_key(name));
        assert_eq!(has, [!is_whole; 2], "{accept} {condition}");
    }
    let (exchange, _) = answered(json!({}), &[GZIP, ("range", "bytes=5-")], page(10)).await;
    assert!(exchange.request.headers().contains_key("range"), "no condition, no promise");
}

#[tokio::test]
async fn another_site_learns_nothing_from_sizes() {
    let foreign = ("sec-fetch-site", "cross-site");
    for (fields, coding) in [
        (vec![GZIP, foreign, ("cookie", "a=b")], None),
        (vec![GZIP, foreign, ("authorization", "Basic YTpi")], None),
        (vec![GZIP, foreign], Some("gzip")),
        (vec![GZIP, ("sec-fetch-site", "same-origin"), ("cookie", "a=b")], Some("gzip")),
    ] {
        let (_, response) = answered(json!({}), &fields, page(5_000)).await;
        assert_eq!(told(&response, &CONTENT_ENCODING), coding, "{fields:?}");
        assert_eq!(told(&response, &VARY), Some("Accept-Encoding"));
    }
}

#[test]
fn algorithms_are_named_once() {
    for algorithms in [json!([]), json!(["Gzip", "Zstd", "Gzip"])] {
        assert!(compile(json!({"algorithms": algorithms})).is_err());
    }
    let plan = compile(json!({"algorithms": ["Gzip"], "minSize": "10"})).expect("valid");
    assert_eq!(plan, Plan { offered: [Coding::Gzip].into(), min_size: 10 });
    assert_eq!(compile(json!({})).expect("valid").min_size, 1024);
}

/// What is ready at each poll; the end of the list is the end of the body.
struct Script(VecDeque<Option<Result<Frame<Bytes>, BodyError>>>);

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.0.pop_front() {
            Some(Some(frame)) => Poll::Ready(Some(frame)),
            Some(None) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

fn compressing(script: impl IntoIterator<Item = Option<Frame<Bytes>>>) -> Pin<Box<Compressing>> {
    let script = script.into_iter().map(|frame| frame.map(Ok)).collect();
    let encoder = Encoder::new(Coding::Gzip, Size(None)).expect("there is room");
    Box::pin(Compressing::new(Body::stream(Script(script)), encoder, Rc::default()))
}

fn data(text: &str) -> Option<Frame<Bytes>> {
    Some(Frame::data(Bytes::copy_from_slice(text.as_bytes())))
}

/// Polls until it says pending so often; the data that came.
fn polled(body: &mut Pin<Box<Compressing>>, patience: usize, all: &mut Vec<u8>) -> Option<HeaderMap> {
    let mut context = Context::from_waker(Waker::noop());
    let mut left = patience;
    loop {
        match http_body::Body::poll_frame(body.as_mut(), &mut context) {
            Poll::Pending if left == 0 => return None,
            Poll::Pending => left -= 1,
            Poll::Ready(None) => return None,
            Poll::Ready(Some(frame)) => match frame.expect("no failure").into_data() {
                Ok(data) => all.extend_from_slice(&data),
                Err(frame) => return frame.into_trailers().ok(),
            },
        }
    }
}

#[test]
fn an_event_is_on_its_way_once_nothing_more_is_ready() {
    let mut body = compressing([data("one\n\n"), None, None, data("two\n\n"), data("three\n\n"), None, None]);
    let mut all = Vec::new();
    polled(&mut body, 0, &mut all);
    assert!(gunzipped(&all).is_empty(), "the control: others have a turn first");
    polled(&mut body, 0, &mut all);
    assert_eq!(gunzipped(&all), b"one\n\n");
    polled(&mut body, 1, &mut all);
    assert_eq!(gunzipped(&all), b"one\n\ntwo\n\nthree\n\n");
    polled(&mut body, 0, &mut all);
    assert!(http_body::Body::is_end_stream(&*body));
}

#[test]
fn trailers_come_last_and_without_digests() {
    let fields: HeaderMap = [("x-sum", "7"), ("repr-digest", "sha-256=:a:")]
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    let mut body = compressing([data("abc"), Some(Frame::trailers(fields))]);
    let mut all = Vec::new();
    let trailers = polled(&mut body, 0, &mut all).expect("trailers");
    assert_eq!(gunzipped(&all), b"abc");
    assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-sum"]);
    assert!(http_body::Body::is_end_stream(&*body));
}

#[test]
fn one_poll_takes_a_bounded_part() {
    let plain: String =
        (0..200_000_u32).map(|n| char::from(b'a' + (u64::from(n) * u64::from(n) % 23) as u8)).collect();
    let mut body = compressing([data(&plain)]);
    let (mut all, mut polls) = (Vec::new(), 0);
    while !http_body::Body::is_end_stream(&*body) {
        polled(&mut body, 0, &mut all);
        polls += 1;
        assert!(polls < 100, "it comes to an end");
    }
    assert!(polls >= 200_000 / (16 << 10), "{polls}");
    assert!(gunzipped(&all) == plain.as_bytes());
}

#[test]
fn a_body_that_breaks_off_is_not_ended_properly() {
    let script = [data("abc").map(Ok), Some(Err(BodyError::Other("reset")))].into_iter().collect();
    let encoder = Encoder::new(Coding::Gzip, Size(None)).expect("there is room");
    let mut body = Box::pin(Compressing::new(Body::stream(Script(script)), encoder, Rc::default()));
    let mut context = Context::from_waker(Waker::noop());
    // What was given before may come: a header.
    let error = loop {
        match http_body::Body::poll_frame(body.as_mut(), &mut context) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => break error,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(error, BodyError::Other("reset")));
    assert!(matches!(http_body::Body::poll_frame(body.as_mut(), &mut context), Poll::Ready(None)));
}

#[test]
fn a_request_without_the_field_wishes_for_nothing() {
    let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("br"))]);
    assert_eq!(Accepted::of(&headers).choose(&[Coding::Gzip]), None);
    assert_eq!(Wished::default().coding, None);
}

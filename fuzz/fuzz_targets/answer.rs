//! Any bytes as what a backend answers: read in one way however they are torn, with one end, and what is read of a body
//! is read again from how we would write it.
#![cfg_attr(not(test), no_main)]

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use portcullis::http1::{Framing, Head, Heads, Incoming, MAX_FIELDS, MAX_HEAD, Outgoing, Taken};

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

#[derive(Debug, PartialEq)]
struct Read {
    /// The last one is not interim, unless the rest is missing.
    heads: Vec<(StatusCode, HeaderMap, Framing, bool)>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    end: End,
    /// What stands behind the answer.
    rest: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Whole,
    /// More has to come, or the connection's end.
    Missing,
    Malformed,
}

/// Whether it is an answer. The first byte says how the others are torn, and whether the request was HEAD.
pub fn check(input: &[u8]) -> bool {
    let Some((first, wire)) = input.split_first() else { return false };
    let to_head = first & 1 == 1;
    let whole = read(wire, usize::MAX, to_head);
    let torn = read(wire, usize::from(first >> 1).max(1), to_head);
    assert_eq!(torn, whole, "torn, it is another one");
    let [interim @ .., (_, headers, framing, keeps_alive)] = &whole.heads[..] else { return false };
    assert!(
        interim.iter().all(|(status, _, framing, _)| is_interim(*status) && *framing == Framing::Nothing)
    );
    has_one_end(headers, *framing, *keeps_alive, to_head);
    let length = whole.body.len() as u64;
    match framing {
        Framing::Nothing => assert_eq!(length, 0, "a body where none can be"),
        Framing::Length(told) => {
            assert!(length <= *told && (length == *told) == (whole.end == End::Whole), "another length");
        }
        Framing::Chunked => again(&whole),
        Framing::UntilClose => assert!(whole.rest.is_empty(), "bytes of the body are missing"),
    }
    whole.end == End::Whole || *framing == Framing::UntilClose
}

fn is_interim(status: StatusCode) -> bool {
    status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
}

/// As from a connection that has `step` bytes at a time.
fn read(wire: &[u8], step: usize, to_head: bool) -> Read {
    let (mut heads, mut incoming, mut at_hand) = (Heads::default(), None, BytesMut::new());
    let mut read = Read { heads: vec![], body: vec![], trailers: None, end: End::Missing, rest: vec![] };
    for piece in wire.chunks(step.min(wire.len().max(1))) {
        at_hand.extend_from_slice(piece);
        if read.end == End::Missing {
            read.end = read_on(&mut read, &mut heads, &mut incoming, &mut at_hand, to_head);
        }
    }
    if read.end != End::Malformed {
        read.rest = at_hand.to_vec();
    }
    read
}

fn read_on(
    read: &mut Read,
    heads: &mut Heads,
    incoming: &mut Option<Incoming>,
    at_hand: &mut BytesMut,
    to_head: bool,
) -> End {
    loop {
        let Some(body) = incoming else {
            match heads.take(at_hand, to_head, &mut HeaderMap::new()) {
                Ok(None) => return End::Missing,
                Err(_) => return End::Malformed,
                Ok(Some(head)) => {
                    within_bounds(&head);
                    if !is_interim(head.status) {
                        *incoming = Some(Incoming::new(head.framing));
                    }
                    read.heads.push((head.status, head.headers, head.framing, head.keeps_alive));
                }
            }
            continue;
        };
        match body.take(at_hand) {
            Ok(Taken::Data(data)) => {
                assert!(!data.is_empty(), "a piece of nothing");
                read.body.extend_from_slice(&data);
            }
            Ok(Taken::Trailers(fields)) => {
                assert!(fields.len() <= MAX_FIELDS && read.trailers.is_none(), "too many trailers");
                read.trailers = Some(fields);
            }
            Ok(Taken::End) => {
                assert!(body.is_over() && body.left() == Some(0), "over, and not over");
                return End::Whole;
            }
            Ok(Taken::More) => {
                assert!(!body.is_over(), "over, and more is wanted");
                return End::Missing;
            }
            Err(_) => return End::Malformed,
        }
    }
}

fn within_bounds(head: &Head) {
    let length: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(head.headers.len() <= MAX_FIELDS && length <= MAX_HEAD, "a large head");
    let in_line = |value: &HeaderValue| !value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte));
    assert!(head.headers.values().all(in_line), "a value of several lines");
    let reason = head.reason.as_deref().unwrap_or_default();
    assert!(!reason.iter().any(|byte| b"\r\n\0".contains(byte)), "a reason of several lines");
}

/// How the body ends is said in one way.
fn has_one_end(headers: &HeaderMap, framing: Framing, keeps_alive: bool, to_head: bool) {
    let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
    let is_coded = headers.contains_key(header::TRANSFER_ENCODING);
    match framing {
        Framing::Nothing => {}
        Framing::Length(length) => {
            let [told] = lengths[..] else { panic!("{} lengths", lengths.len()) };
            assert_eq!(told.to_str().ok().and_then(|told| told.parse().ok()), Some(length), "another length");
            assert!(!is_coded, "a length and a coding");
        }
        Framing::Chunked => assert!(is_coded && lengths.is_empty(), "a coding and a length"),
        Framing::UntilClose => assert!(lengths.is_empty() && !keeps_alive, "it ends with its connection"),
    }
    assert!(framing == Framing::Nothing || !to_head, "a body to HEAD");
}

/// Our chunks have the same body in them, and of the trailers those that may be there.
fn again(read: &Read) {
    let trailers = read.trailers.clone().unwrap_or_default();
    let announced = trailers.keys().filter_map(|name| HeaderValue::from_str(name.as_str()).ok()).collect();
    let mut written = Outgoing::Chunked { trailers: announced };
    let mut wire = Vec::new();
    for piece in read.body.chunks(7) {
        let mut data = Bytes::copy_from_slice(piece);
        let behind = written.data(&mut wire, &mut data);
        wire.extend_from_slice(&data);
        wire.extend_from_slice(behind);
    }
    written.end(&mut wire, Some(&trailers)).expect("chunks have no length");
    let (mut body, mut found, mut at_hand) = (Vec::new(), HeaderMap::new(), BytesMut::from(&wire[..]));
    let mut incoming = Incoming::new(Framing::Chunked);
    while !incoming.is_over() {
        match incoming.take(&mut at_hand).expect("our own chunks") {
            Taken::Data(data) => body.extend_from_slice(&data),
            Taken::Trailers(fields) => found = fields,
            Taken::End => break,
            Taken::More => panic!("our own chunks have no end"),
        }
    }
    assert!(body == read.body && at_hand.is_empty(), "another body");
    for name in found.keys() {
        let of = |headers: &HeaderMap| headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        let trimmed = |values: Vec<HeaderValue>| {
            values.iter().map(|value| value.as_bytes().trim_ascii().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(trimmed(of(&found)), trimmed(of(&trailers)), "another trailer: {name}");
    }
}

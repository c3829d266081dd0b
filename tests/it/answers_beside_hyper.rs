//! Our reading of a backend's answer beside hyper's, over answers that are put together of good and bad parts: the same
//! answer to the last byte of its body, or none.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use portcullis::http1::{Heads, Incoming, Taken};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Status, fields without framing, body, trailers. `None`: no answer, or a body that breaks off.
type Read = Option<(StatusCode, HeaderMap, Vec<u8>, Option<HeaderMap>)>;

const LINES: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200\r\n",
    "HTTP/1.1 404 Not Found\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.0 200 OK\r\n",
    "\r\nHTTP/1.1 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
    "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n",
    "HTTP/2 200 OK\r\n",
    "HTTP/1.1 2000 OK\r\n",
    "HTTP/1.1 OK\r\n",
];
const FIELDS: &[&str] = &[
    "content-length: 5\r\n",
    "content-length: 0\r\n",
    "content-length: 6\r\n",
    "content-length: 5, 5\r\n",
    "content-length: +5\r\n",
    "content-length: \r\n",
    "Content-Length:5\r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: gzip, Chunked\r\n",
    "transfer-encoding: chunked, gzip\r\n",
    "transfer-encoding: identity\r\n",
    "connection: close\r\n",
    "x: 1\r\n",
    "X:  two \t\r\n",
    "x: \u{fc}\r\n",
    "y:\r\n",
    "x : 1\r\n",
    " x: 1\r\n",
    "x: a\rb\r\n",
    "x\r\n",
    ": x\r\n",
];
const BODIES: &[&str] = &[
    "",
    "hello",
    "hell",
    "hello!",
    "5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nx: 1\r\nY: 2\r\n\r\n",
    "2 ;a=b\r\nhe\r\n03\r\nllo\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\n",
    "5\r\nhello\r\n",
    "5\r\nhelloo\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "-5\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nx\r\n\r\n",
];

async fn by_hyper(method: Method, said: Vec<u8>) -> Read {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.ok()?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri("/").header(header::HOST, "a");
    let request = request.body(Empty::<Bytes>::new().map_err(|never: Infallible| match never {}));
    let answer = sender.send_request(request.expect("a request"));
    let speaks = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(theirs.read_u8().await.expect("a head"));
        }
        theirs.write_all(&said).await.expect("room");
        theirs.shutdown().await.expect("open");
    };
    let (answer, ()) = tokio::join!(answer, speaks);
    let (parts, body) = answer.ok()?.into_parts();
    let whole = body.collect().await.ok()?;
    let trailers = whole.trailers().cloned();
    Some((parts.status, framed(parts.headers), whole.to_bytes().to_vec(), trailers))
}

fn by_ours(method: &Method, said: &[u8], step: usize) -> Read {
    let (mut heads, mut read, mut spare) = (Heads::default(), BytesMut::new(), HeaderMap::new());
    let (mut head, mut body, mut trailers) = (None, Vec::new(), None);
    let mut incoming = None;
    for piece in said.chunks(step) {
        read.extend_from_slice(piece);
        while head.is_none() {
            let Some(found) = heads.take(&mut read, method == Method::HEAD, &mut spare).ok()? else { break };
            if !found.status.is_informational() {
                incoming = Some(Incoming::new(found.framing));
                head = Some((found.status, framed(found.headers)));
            }
        }
        let Some(incoming) = &mut incoming else { continue };
        loop {
            match incoming.take(&mut read).ok()? {
                Taken::Data(data) => body.extend_from_slice(&data),
                Taken::Trailers(fields) => trailers = Some(fields),
                Taken::End | Taken::More => break,
            }
        }
    }
    let is_whole = incoming.is_some_and(|incoming| incoming.is_over() || incoming.may_end_here());
    head.filter(|_| is_whole).map(|(status, headers)| (status, headers, body, trailers))
}

/// Where both say how long the body is, the chunked one has no length for us.
fn framed(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(header::CONTENT_LENGTH);
    headers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn an_answer_is_read_as_hyper_reads_it(
        line in prop::sample::select(LINES),
        fields in prop::collection::vec(prop::sample::select(FIELDS), 0..4),
        body in prop::sample::select(BODIES),
        is_head in any::<bool>(),
        step in 1_usize..200,
    ) {
        let said = [&[line], &fields[..], &["\r\n", body]].concat().concat().into_bytes();
        let method = if is_head { Method::HEAD } else { Method::GET };
        let ours = by_ours(&method, &said, step);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let hypers = runtime.block_on(by_hyper(method, said.clone()));
        prop_assert_eq!(ours, hypers, "{}", String::from_utf8_lossy(&said));
    }
}

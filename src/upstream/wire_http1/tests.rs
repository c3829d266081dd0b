//! One connection against a socket that the test holds itself.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::message::{Body, BodyError};

const EARLY: &[u8] = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (ours.expect("connected"), theirs.expect("accepted").0)
}

fn wire(ours: TcpStream) -> Wire {
    let wire = Wire::new(Socket::Plain(ours), None);
    tokio::task::spawn_local(wire.drive());
    wire
}

async fn answer(wire: &Wire) -> Result<http::Response<Coming>, Broken> {
    let mut heads = interim::Heads::told_to(None);
    poll_fn(|context| wire.poll_answer(context, &mut heads)).await
}

async fn head(theirs: &mut TcpStream) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(theirs.read_u8().await.expect("a head"));
    }
}

/// A request whose body is what is put in; `None`: it fails.
fn upload() -> (mpsc::UnboundedSender<Option<&'static [u8]>>, Request) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let pieces = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    let frames = pieces.map(|piece: Option<&'static [u8]>| {
        piece.map(|bytes| Frame::data(Bytes::from_static(bytes))).ok_or(BodyError::Other("it broke"))
    });
    let mut request = Request::new(Body::stream(StreamBody::new(frames)));
    *request.method_mut() = Method::POST;
    (sender, request)
}

async fn turns() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_came_while_nothing_was_asked_is_found_before_anything_is_sent() {
    for said in [None, Some(&b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"[..]), Some(b"")] {
        let (ours, mut theirs) = pair().await;
        let is_of_use = said == Some(b"");
        match said {
            None => drop(theirs),
            Some(said) => theirs.write_all(said).await.expect("written"),
        }
        if !is_of_use {
            ours.readable().await.expect("something came");
        }
        // Its task never gets a turn.
        let wire = Wire::new(Socket::Plain(ours), None);
        assert_eq!(wire.begin(Request::new(Body::Empty), None).is_ok(), is_of_use, "{said:?}");
        assert_eq!((wire.is_closed(), wire.sent().is_some()), (!is_of_use, is_of_use), "{said:?}");
    }
}

#[tokio::test]
async fn what_came_before_the_task_sent_leaves_the_request_unsent() {
    for said in [&b""[..], EARLY] {
        for is_read_first in [false, true] {
            let (ours, mut theirs) = pair().await;
            let wire = Wire::new(Socket::Plain(ours), None);
            let (body, mut request) = upload();
            *request.uri_mut() = "/a?b".parse().expect("a target");
            wire.begin(request, None).expect("idle");
            let mut heads = interim::Heads::told_to(None);
            let mut answer = pin!(poll_fn(|context| wire.poll_answer(context, &mut heads)));
            assert!(futures_util::poll!(&mut answer).is_pending());
            theirs.write_all(said).await.expect("written");
            drop(theirs);
            while !wire.0.inner.borrow_mut().look(Waker::noop()) {
                tokio::task::yield_now().await;
            }
            if is_read_first {
                assert!(matches!(answer.await, Err(Broken::Closed | Broken::Io(_))), "{said:?}");
            } else {
                wire.drive().await;
                assert!(matches!(answer.await, Err(Broken::Closed)), "{said:?}");
            }
            let request = wire.unsent().expect("as it was");
            let asked = (request.method(), request.uri().to_string());
            assert_eq!(asked, (&Method::POST, "/a?b".to_owned()));
            assert!(wire.unsent().is_none(), "its body is taken");
            body.send(Some(b"whole")).expect("somebody wants it");
            drop(body);
            assert_eq!(request.into_body().collect().await.expect("whole").to_bytes(), "whole");
        }
    }
}

#[tokio::test]
async fn who_reads_hears_of_a_task_that_panics() {
    let work = async {
        for (said, is_read) in [("", false), ("HTTP/1.1 200 OK\r\n\r\nstart", true)] {
            let (ours, mut theirs) = pair().await;
            let wire = wire(ours);
            let (body, request) = upload();
            let panics = request.into_body().map_frame(|_| panic!("for a test"));
            wire.begin(Request::new(Body::stream(panics)), None).expect("idle");
            head(&mut theirs).await;
            theirs.write_all(said.as_bytes()).await.expect("written");
            let answer = async {
                let mut coming = pin!(answer(&wire).await?.into_body());
                let mut read = Vec::new();
                while let Some(frame) = coming.frame().await {
                    let data = frame.map_err(Broken::Body)?.into_data().unwrap_or_default();
                    read.extend_from_slice(&data);
                    if !data.is_empty() {
                        body.send(Some(b"more")).expect("taken");
                    }
                }
                Ok(read)
            };
            let mut answer = pin!(answer);
            assert!(futures_util::poll!(&mut answer).is_pending());
            if !is_read {
                body.send(Some(b"more")).expect("taken");
            }
            let error: Broken = answer.await.expect_err("no answer");
            assert_eq!(matches!(error, Broken::Body(BodyError::Cut)), is_read, "{error:?}");
            assert!(wire.is_closed());
        }
    };
    LocalSet::new().run_until(work).await;
}

/// Both ends of a connection by TLS.
async fn tls_pair() -> (Socket, TlsStream<TcpStream>) {
    let made = rcgen::generate_simple_self_signed(["gw.test".to_owned()]).expect("a certificate");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("an anchor");
    let client = rustls::ClientConfig::builder_with_provider(provider.clone());
    let client = client.with_safe_default_protocol_versions().expect("known versions");
    let client = TlsConnector::from(Arc::new(client.with_root_certificates(roots).with_no_client_auth()));
    let server = rustls::ServerConfig::builder_with_provider(provider);
    let server = server.with_safe_default_protocol_versions().expect("known versions").with_no_client_auth();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let server = server.with_single_cert(vec![made.cert.der().clone()], key).expect("they belong together");
    let (ours, theirs) = pair().await;
    let name = "gw.test".try_into().expect("a name");
    let (ours, theirs) =
        tokio::join!(client.connect(name, ours), TlsAcceptor::from(Arc::new(server)).accept(theirs));
    (Socket::Tls(Box::new(ours.expect("shaken"))), theirs.expect("shaken"))
}

#[tokio::test]
async fn an_end_as_it_should_be_is_said_over_tls() {
    const CUT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstart of what is";
    let work = async {
        for (said, is_ended, is_told) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", false, true),
            ("HTTP/1.1 200 OK\r\n\r\nuntil the end", true, true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true, true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\ncut", true, false),
            (CUT, false, true),
            ("HTTP/1.1 nonsense\r\n\r\n", false, false),
        ] {
            let (ours, mut theirs) = tls_pair().await;
            let wire = Wire::new(ours, None);
            let task = tokio::task::spawn_local(wire.drive());
            wire.begin(Request::new(Body::Empty), None).expect("idle");
            let mut head = [0; 18];
            theirs.read_exact(&mut head).await.expect("a head");
            assert_eq!(&head, b"GET / HTTP/1.1\r\n\r\n");
            theirs.write_all(said.as_bytes()).await.expect("written");
            if is_ended {
                theirs.shutdown().await.expect("open");
            }
            if let Ok(answer) = answer(&wire).await {
                let _ = answer.into_body().collect().await;
            }
            turns().await;
            // One that is kept is given up.
            task.abort();
            let end = theirs.read(&mut head).await;
            let is_end = matches!(end, Ok(0));
            assert_eq!(is_end, is_told, "{said}: {end:?}");
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn an_answer_before_the_end_of_a_body_is_read_though_nothing_can_be_written() {
    let work = async {
        let (ours, mut theirs) = pair().await;
        let (wire, (body, request)) = (wire(ours), upload());
        wire.begin(request, None).expect("idle");
        head(&mut theirs).await;
        theirs.write_all(EARLY).await.expect("written");
        theirs.set_zero_linger().expect("open");
        drop(theirs);
        for _ in 0..1000 {
            if body.send(Some(b"more")).is_err() {
                break;
            }
            turns().await;
        }
        assert!(wire.0.inner.borrow().sending.is_deaf(), "the control: it was reset");
        assert_eq!(answer(&wire).await.expect("an answer").status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert!(wire.is_closed(), "no other request goes there");
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn an_upload_that_fails_behind_an_answer_s_head_ends_the_connection_though_nobody_reads() {
    let work = async {
        let (ours, mut theirs) = pair().await;
        let (wire, (body, request)) = (wire(ours), upload());
        wire.begin(request, None).expect("idle");
        head(&mut theirs).await;
        theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nstart").await.expect("written");
        let coming = answer(&wire).await.expect("an answer").into_body();
        assert!(!wire.is_closed());
        body.send(None).expect("taken");
        turns().await;
        assert!(wire.is_closed());
        let mut coming = std::pin::pin!(coming);
        let first = coming.frame().await.expect("what was read").expect("whole").into_data();
        assert_eq!(first.ok().as_deref(), Some(&b"start"[..]));
        assert!(matches!(coming.frame().await, Some(Err(BodyError::Cut))));
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn a_connection_goes_on_when_both_directions_are_over_and_not_before() {
    let work = async {
        let (ours, mut theirs) = pair().await;
        let (wire, (body, request)) = (wire(ours), upload());
        wire.begin(request, None).expect("idle");
        head(&mut theirs).await;
        theirs.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.expect("written");
        answer(&wire).await.expect("an answer");
        turns().await;
        assert!(!wire.is_ready() && !wire.is_closed(), "its request is on its way");
        drop(body);
        turns().await;
        assert!(wire.is_ready());
        // Its end came, too.
        let mut end = [0; 5];
        theirs.read_exact(&mut end).await.expect("the last chunk");
        assert_eq!(&end, b"0\r\n\r\n");
        drop(theirs);
        while !wire.is_closed() {
            tokio::task::yield_now().await;
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn what_comes_behind_an_answer_ends_the_connection() {
    let work = async {
        for (behind, goes_on) in [("", true), ("HTTP/1.1 200 OK\r\n", false)] {
            let (ours, mut theirs) = pair().await;
            let wire = wire(ours);
            wire.begin(Request::new(Body::Empty), None).expect("idle");
            head(&mut theirs).await;
            let said = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{behind}");
            theirs.write_all(said.as_bytes()).await.expect("written");
            let coming = answer(&wire).await.expect("an answer").into_body();
            assert_eq!(coming.collect().await.expect("whole").to_bytes(), "ok");
            assert_eq!((wire.is_ready(), wire.is_closed()), (goes_on, !goes_on));
        }
    };
    LocalSet::new().run_until(work).await;
}

#[tokio::test]
async fn the_room_of_a_large_answer_is_not_kept() {
    let work = async {
        let (ours, mut theirs) = pair().await;
        let wire = wire(ours);
        for (length, is_kept) in [(100, true), (4 << 20, false), (100, true)] {
            wire.begin(Request::new(Body::Empty), None).expect("idle");
            head(&mut theirs).await;
            let body = "x".repeat(length);
            let said = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            let said = async { theirs.write_all(said.as_bytes()).await.expect("written") };
            let read = async {
                let coming = answer(&wire).await.expect("an answer").into_body();
                coming.collect().await.expect("whole").to_bytes().len()
            };
            assert_eq!(tokio::join!(said, read).1, length);
            let inner = wire.0.inner.borrow();
            assert_eq!((inner.read.capacity() > 0, inner.next), (is_kept, READ.start), "{length}");
        }
    };
    LocalSet::new().run_until(work).await;
}

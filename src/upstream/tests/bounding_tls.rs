//! A bounded number of connections over TLS: handshakes that fail, and protocols that are agreed on only then.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Response;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::bounding::{SWITCH, bounded, pending, upgrade, workers};
use super::bounding_http2::patient;
use super::http2::listen;
use super::scripted::{OK, asked_by, get, head, is_so, kind, local, set, whole};
use crate::message::{ErrorKind, Request};
use crate::route_map::{Authorities, BackendProtocol, BackendTlsPlan, HostHeader, TrafficPlan};
use crate::upstream::{Backend, Pools};

/// What becomes of a connection.
#[derive(Clone, Copy)]
enum Hands {
    Shaken,
    /// What it says is no TLS.
    Plain,
    /// It ends without a word.
    Closed,
}

/// A server over TLS that answers everything, by what was agreed on.
struct Server {
    address: SocketAddr,
    connections: Rc<Cell<usize>>,
    open: Rc<Cell<usize>>,
    most: Rc<Cell<usize>>,
    certificate: Vec<u8>,
}

impl Server {
    /// `hands`: what becomes of its n-th connection, from 0.
    async fn start(offers: &[&str], hands: fn(usize) -> Hands) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let made = rcgen::CertificateParams::new(vec!["db.example".to_owned()]).expect("a name");
        let made = made.self_signed(&key).expect("signed");
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("known versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![made.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("they belong together");
        config.alpn_protocols = offers.iter().map(|offer| offer.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let (listener, address) = listen().await;
        let server = Self {
            address,
            connections: Rc::default(),
            open: Rc::default(),
            most: Rc::default(),
            certificate: made.der().to_vec(),
        };
        let (connections, open, most) =
            (server.connections.clone(), server.open.clone(), server.most.clone());
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let hands = hands(connections.replace(connections.get() + 1));
                let (acceptor, open, most) = (acceptor.clone(), open.clone(), most.clone());
                tokio::task::spawn_local(async move {
                    match hands {
                        Hands::Closed => return,
                        Hands::Plain => return stream.write_all(OK.as_bytes()).await.unwrap_or_default(),
                        Hands::Shaken => {}
                    }
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    open.set(open.get() + 1);
                    most.set(most.get().max(open.get()));
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    if is_http2 {
                        by_http2(stream).await
                    } else {
                        by_http1(stream).await
                    }
                    open.set(open.get() - 1);
                });
            }
        });
        server
    }

    fn backend(&self, protocol: BackendProtocol, traffic: TrafficPlan) -> Arc<Backend> {
        let made = asked_by(1, &[self.address], HostHeader::Preserve, traffic, protocol);
        let mut plan = (*made.plan).clone();
        let authority = Authorities { source: "".into(), certificates: vec![self.certificate.clone()] };
        plan.tls = Some(Arc::new(BackendTlsPlan {
            server_name: Some("db.example".into()),
            authorities: Some(vec![authority]),
            names: Vec::new(),
            client_certificate: None,
            print: 0,
        }));
        let backend = Backend::new(Arc::new(plan), 0, made.stats.clone());
        backend.set_endpoints(set(&[self.address]));
        Arc::new(backend)
    }
}

async fn by_http1(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    while let Some(head) = head(&mut stream).await {
        let answer = if head.contains("upgrade: ") { SWITCH } else { OK };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn by_http2(stream: impl AsyncRead + AsyncWrite + Unpin) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut answer))) = connection.accept().await {
        if let Ok(mut body) = answer.send_response(Response::new(()), false) {
            let _ = body.send_data(Bytes::from_static(b"ok"), true);
        }
    }
}

/// What so many get; each reads its answer, so that its connection is free for the next.
async fn at_once(pools: &Pools, backend: &Arc<Backend>, count: usize) -> Vec<Result<Bytes, ErrorKind>> {
    let one = async || match pools.send(backend, get(), None, patient()).await {
        Ok(answer) => Ok(whole(Ok(answer)).await),
        Err(error) => Err(error.kind),
    };
    join_all((0..count).map(|_| one())).await
}

async fn all_is_free(backend: &Backend, most: usize) {
    let bounds = backend.bounds.as_ref().expect("bounded");
    is_so("all is given back", || bounds.free(0) == most && pending(backend) == 0).await;
    let permits: Vec<_> = std::iter::from_fn(|| bounds.permit(0)).collect();
    assert_eq!(permits.len(), most);
}

/// An upgrade that a stream of HTTP/2 could carry.
fn websocket() -> Request {
    let mut request = upgrade();
    let headers = request.headers_mut();
    headers.insert("sec-websocket-version", http::HeaderValue::from_static("13"));
    headers.insert("sec-websocket-key", http::HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    request
}

const PROTOCOLS: [BackendProtocol; 3] =
    [BackendProtocol::Http1, BackendProtocol::Http2, BackendProtocol::Negotiated];

#[test]
fn a_handshake_that_fails_gives_its_place_back_and_the_line_goes_on() {
    local(async {
        for protocol in PROTOCOLS {
            for hands in [|_| Hands::Plain, |_| Hands::Closed] as [fn(usize) -> Hands; 2] {
                let server = Server::start(&["h2", "http/1.1"], hands).await;
                let backend = server.backend(protocol, bounded(1, 100));
                let workers = workers(1);
                let begun = Instant::now();
                for outcome in at_once(&workers[0], &backend, 50).await {
                    let kind = outcome.expect_err("no handshake");
                    assert!(matches!(kind, ErrorKind::TlsFailure | ErrorKind::ConnectFailure), "{kind:?}");
                }
                // By looking now and then alone it would take five seconds.
                assert!(begun.elapsed() < Duration::from_secs(3), "{protocol:?}: {:?}", begun.elapsed());
                all_is_free(&backend, 1).await;
            }
        }
    });
}

#[test]
fn who_waits_is_served_after_a_handshake_that_failed() {
    local(async {
        for protocol in PROTOCOLS {
            let once = |number| if number == 0 { Hands::Plain } else { Hands::Shaken };
            let server = Server::start(&["h2", "http/1.1"], once).await;
            let backend = server.backend(protocol, bounded(1, 100));
            let workers = workers(1);
            let mut failed = 0;
            for outcome in at_once(&workers[0], &backend, 20).await {
                match outcome {
                    Ok(body) => assert_eq!(body, "ok"),
                    Err(kind) => {
                        assert_eq!(kind, ErrorKind::TlsFailure);
                        failed += 1;
                    }
                }
            }
            assert_eq!((failed, server.connections.get(), server.most.get()), (1, 2, 1), "{protocol:?}");
            backend.set_endpoints(set(&[]));
            all_is_free(&backend, 1).await;
            is_so("it is closed", || server.open.get() == 0).await;
        }
    });
}

#[test]
fn what_is_agreed_on_decides_how_many_are_opened() {
    local(async {
        for (offers, opened) in [(&["h2", "http/1.1"][..], 1), (&["http/1.1"][..], 4), (&[][..], 4)] {
            let server = Server::start(offers, |_| Hands::Shaken).await;
            let backend = server.backend(BackendProtocol::Negotiated, bounded(4, 100));
            let workers = workers(1);
            for outcome in at_once(&workers[0], &backend, 50).await {
                assert_eq!(outcome.expect("an answer"), "ok");
            }
            assert_eq!((server.connections.get(), server.most.get()), (opened, opened), "{offers:?}");
            assert_eq!(backend.bounds.as_ref().expect("bounded").free(0), 4 - opened);
            backend.set_endpoints(set(&[]));
            all_is_free(&backend, 4).await;
        }
    });
}

#[test]
fn a_websocket_that_is_not_taken_there_gets_the_place_of_the_connection_that_said_so() {
    local(async {
        let server = Server::start(&["h2", "http/1.1"], |_| Hands::Shaken).await;
        let backend = server.backend(BackendProtocol::Negotiated, bounded(1, 0));
        let workers = workers(1);
        for round in 1..3 {
            let outcome = workers[0].send(&backend, websocket(), None, patient()).await;
            let mut tunnel = outcome.expect("an answer");
            assert_eq!(tunnel.response.status(), 101);
            let upgraded = tunnel.tunnel.take().expect("a tunnel");
            is_so("what was idle is closed", || server.open.get() == 1).await;
            let other = workers[0].send(&backend, get(), None, patient()).await;
            assert_eq!(kind(other), ErrorKind::Overloaded, "nobody may wait");
            drop((tunnel, upgraded));
            is_so("its place is free", || backend.bounds.as_ref().expect("bounded").free(0) == 1).await;
            whole(workers[0].send(&backend, get(), None, patient()).await).await;
            // Only the first has to find out what is spoken.
            assert_eq!(server.connections.get(), 1 + 2 * round);
        }
        assert!(server.most.get() <= 2, "one may be closing as the other is opened");
    });
}

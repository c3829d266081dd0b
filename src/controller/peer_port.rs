//! The peer port: plain HTTP/1.1 between the replicas of one installation, for `POST /peer/served` and
//! `POST /peer/purge`. Both ends of it.
//!
//! Invariants: nothing is read of a request without the installation's token, which is compared in constant time;
//! connections, heads, bodies and times are bounded on both ends. A NetworkPolicy lets only own Pods in.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::served::{Answer, Asked, MOST_ASKED, PATIENCE, Served};

const SERVED: &str = "/peer/served";
const PURGE: &str = "/peer/purge";
/// A leader holds one at a time.
const CONNECTIONS: usize = 64;
/// 1,000 entries of a uid, a generation and a fingerprint take 80 KiB.
const MAX_BODY: usize = 256 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTION_AGE: Duration = Duration::from_secs(10);
/// Connecting, asking, and the other's patience.
pub const ASK_TIMEOUT: Duration = Duration::from_millis(2_500);
/// A shorter one could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// Takes what another replica was asked to purge.
pub type Purges = Arc<dyn Fn(&[u8]) -> Result<(), String> + Send + Sync>;

/// The file that holds the installation's token. Read at each use: it may be rotated.
#[derive(Clone, Debug)]
pub struct TokenFile(Arc<Path>);

impl TokenFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path.into())
    }

    /// # Errors
    /// The file cannot be read or holds no token.
    pub async fn read(&self) -> Result<String, String> {
        let path = self.0.display();
        let text = tokio::fs::read_to_string(&self.0)
            .await
            .map_err(|error| format!("cannot read the peers' token from {path}: {error}"))?;
        let token = text.trim();
        if token.len() < SHORTEST_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!(
                "{path} holds no token; write at least {SHORTEST_TOKEN} printable ASCII characters there"
            ));
        }
        Ok(token.to_owned())
    }
}

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, token: TokenFile, served: Served, purges: Purges) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, token.clone(), served.clone(), Arc::clone(&purges));
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION_AGE, connection).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the peer port cannot accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, token: TokenFile, served: Served, purges: Purges) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (token, served, purges) = (token.clone(), served.clone(), Arc::clone(&purges));
        async move { Ok::<_, Infallible>(answer(request, &token, &served, &purges).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 << 10)
        .max_headers(32)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    request: Request<Incoming>,
    token: &TokenFile,
    served: &Served,
    purges: &Purges,
) -> Response<Full<Bytes>> {
    let is_purge = request.uri().path() == PURGE;
    if !is_purge && request.uri().path() != SERVED {
        return plain(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    let token = match token.read().await {
        Ok(token) => token,
        Err(error) => {
            tracing::warn!(error, "a peer cannot be answered");
            return plain(StatusCode::SERVICE_UNAVAILABLE);
        }
    };
    if !is_authorized(&request, &token) {
        return plain(StatusCode::UNAUTHORIZED);
    }
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
        return plain(StatusCode::PAYLOAD_TOO_LARGE);
    };
    if is_purge {
        return match purges(&body.to_bytes()) {
            Ok(()) => plain(StatusCode::NO_CONTENT),
            Err(_) => plain(StatusCode::BAD_REQUEST),
        };
    }
    let asked: Vec<Asked> = match serde_json::from_slice(&body.to_bytes()) {
        Ok(asked) => asked,
        Err(_) => return plain(StatusCode::BAD_REQUEST),
    };
    if asked.len() > MOST_ASKED {
        return plain(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let Ok(text) = serde_json::to_vec(&served.answer(&asked).await) else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn is_authorized<B>(request: &Request<B>, token: &str) -> bool {
    let Some(shown) = request.headers().get(AUTHORIZATION) else { return false };
    let Some(shown) = shown.as_bytes().strip_prefix(b"Bearer ") else { return false };
    shown.ct_eq(token.as_bytes()).into()
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Asks one replica, in [`ASK_TIMEOUT`].
///
/// # Errors
/// One sentence: why there is no answer.
pub async fn ask(address: SocketAddr, token: &str, question: Bytes) -> Result<Answer, String> {
    debug_assert!(PATIENCE < ASK_TIMEOUT);
    let answer = in_time(exchange(address, token, SERVED, question)).await?;
    serde_json::from_slice(&answer).map_err(|error| error.to_string())
}

/// Tells one replica what to purge.
///
/// # Errors
/// One sentence: why it may not have done so.
pub async fn tell(address: SocketAddr, token: &str, purge: Bytes) -> Result<(), String> {
    in_time(exchange(address, token, PURGE, purge)).await.map(drop)
}

async fn in_time(exchange: impl Future<Output = Result<Bytes, Error>>) -> Result<Bytes, String> {
    match tokio::time::timeout(ASK_TIMEOUT, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} ms", ASK_TIMEOUT.as_millis())),
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(address: SocketAddr, token: &str, path: &str, question: Bytes) -> Result<Bytes, Error> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(16 << 10)
        .handshake(TokioIo::new(stream))
        .await?;
    let request = Request::post(path)
        .header(HOST, address.to_string())
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(question))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(format!("answers {}", response.status()).into());
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await?;
        Ok(body.to_bytes())
    };
    // The connection is driven here and dropped with the answer: no task outlives the question.
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;

    use super::*;
    use crate::controller::served::tests::published;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    async fn port() -> (SocketAddr, tempfile::NamedTempFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{TOKEN}").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, receiver) = watch::channel(published(1, &[("a", 2, 7)]));
        let purges: Purges = Arc::new(|body| if body == b"good" { Ok(()) } else { Err(String::new()) });
        tokio::spawn(serve(
            listener,
            TokenFile::new(file.path().into()),
            Served::new("one", receiver),
            purges,
        ));
        (address, file)
    }

    fn question(asked: &[Asked]) -> Bytes {
        serde_json::to_vec(asked).unwrap().into()
    }

    #[tokio::test]
    async fn a_peer_with_the_token_is_answered() {
        let (address, _file) = port().await;
        let asked = [Asked("a".into(), 2, 7), Asked("b".into(), 1, u64::MAX)];
        let answer = ask(address, TOKEN, question(&asked)).await.unwrap();
        assert_eq!(answer.replica, "one");
        assert_eq!(answer.lacks.iter().map(|lacks| &*lacks.uid).collect::<Vec<_>>(), ["b"]);
    }

    #[tokio::test]
    async fn a_purge_is_taken_from_who_has_the_token() {
        let (address, _file) = port().await;
        assert_eq!(tell(address, TOKEN, Bytes::from_static(b"good")).await, Ok(()));
        let refused = tell(address, TOKEN, Bytes::from_static(b"bad")).await.unwrap_err();
        assert!(refused.contains("400"), "{refused}");
        let refused = tell(address, "0123456789abcdeF", Bytes::from_static(b"good")).await.unwrap_err();
        assert!(refused.contains("401"), "{refused}");
    }

    #[tokio::test]
    async fn another_token_gets_nothing() {
        let (address, _file) = port().await;
        for token in ["", "0123456789abcdef0123456789abcdeF", "0123456789abcdef"] {
            let refused = ask(address, token, question(&[])).await.unwrap_err();
            assert!(refused.contains("401"), "{token}: {refused}");
        }
    }

    #[tokio::test]
    async fn too_much_or_nonsense_is_refused() {
        let (address, _file) = port().await;
        let many = vec![Asked("a".into(), 2, 7); MOST_ASKED + 1];
        assert!(ask(address, TOKEN, question(&many)).await.unwrap_err().contains("413"));
        assert!(ask(address, TOKEN, Bytes::from_static(b"{}")).await.unwrap_err().contains("400"));
        let large = Bytes::from(vec![b' '; MAX_BODY + 1]);
        assert!(ask(address, TOKEN, large).await.is_err());
    }

    #[tokio::test]
    async fn a_token_that_could_be_guessed_closes_the_port() {
        let (address, file) = port().await;
        std::fs::write(file.path(), "short").unwrap();
        assert!(ask(address, "short", question(&[])).await.unwrap_err().contains("503"));
    }

    #[tokio::test]
    async fn an_endless_answer_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n").await;
            while stream.write_all(&[b' '; 4096]).await.is_ok() {}
        });
        assert!(ask(address, TOKEN, question(&[])).await.is_err());
    }
}

//! WebSockets over a stream of HTTP/2 (RFC 8441). The client's CONNECT is taken for the GET with an upgrade that it would
//! be over HTTP/1.1, so that rules, policies and backends see one kind of WebSocket; the 101 becomes its 200.
//!
//! Invariant: a CONNECT gets no other answer of 2xx than that, for it would mean a tunnel.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use h2::ext::Protocol;
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, StatusCode};

use crate::message::{ErrorKind, Response, websocket_accept};

/// A WebSocket that a client asked for by CONNECT.
pub struct Wanted {
    /// How a server proves that it read our key.
    accept: HeaderValue,
}

impl Wanted {
    /// Makes the request what it means. None: it is no WebSocket's; another CONNECT is refused by its method.
    pub fn of<B>(request: &mut http::Request<B>, nonce: [u8; 16]) -> Option<Self> {
        if request.extensions().get::<Protocol>()?.as_str() != "websocket" {
            return None;
        }
        let key = BASE64.encode(nonce);
        let accept = websocket_accept(key.as_bytes());
        *request.method_mut() = Method::GET;
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).expect("base64"));
        headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        Some(Self { accept })
    }

    /// Whether this may be the answer; `agreed`: the backend has switched to it.
    ///
    /// # Errors
    /// It is no answer to a WebSocket's client.
    pub fn judge(&self, response: &Response, agreed: bool) -> Result<(), ErrorKind> {
        let status = response.status();
        let is_good = match agreed {
            true => response.headers().get(SEC_WEBSOCKET_ACCEPT) == Some(&self.accept),
            false => !status.is_success() && !status.is_informational(),
        };
        if is_good { Ok(()) } else { Err(ErrorKind::InvalidResponse) }
    }

    /// Makes a 101 the answer to the CONNECT; the tunnel begins when the client has it.
    pub fn begin(&self, answer: &mut http::response::Parts) {
        answer.status = StatusCode::OK;
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
            answer.headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_for_a_websocket_is_the_get_that_it_means() {
        let mut request = http::Request::builder().method("CONNECT").uri("https://a.test/chat?x=1").body(());
        let request = request.as_mut().expect("a request");
        assert!(Wanted::of(request, [7; 16]).is_none(), "no protocol");
        request.extensions_mut().insert(Protocol::from_static("connect-udp"));
        assert!(Wanted::of(request, [7; 16]).is_none(), "another");
        assert_eq!(request.method(), "CONNECT");
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        assert!(Wanted::of(request, [7; 16]).is_some());
        assert!(request.method() == "GET" && request.uri() == "https://a.test/chat?x=1");
        for (name, value) in [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-key", "BwcHBwcHBwcHBwcHBwcHBw=="),
            ("sec-websocket-version", "13"),
        ] {
            assert_eq!(request.headers()[name], value, "{name}");
        }
    }

    #[test]
    fn a_connect_gets_no_other_success() {
        let mut request = http::Request::connect("https://a.test/").body(()).expect("a request");
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        let wanted = Wanted::of(&mut request, [7; 16]).expect("a WebSocket");
        let answer = |status: u16, proof: &HeaderValue| {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, proof.clone());
            response
        };
        let proof = wanted.accept.clone();
        assert!(wanted.judge(&answer(101, &proof), true).is_ok());
        assert!(wanted.judge(&answer(101, &HeaderValue::from_static("x")), true).is_err());
        for (status, is_good) in
            [(200, false), (204, false), (101, false), (302, true), (403, true), (503, true)]
        {
            assert_eq!(wanted.judge(&answer(status, &proof), false).is_ok(), is_good, "{status}");
        }
    }
}

//! The WebSocket (RFC 6455) of `echo`: sends back every message that it gets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// A frame larger than this ends the connection.
const MAX_FRAME: u64 = 16 << 20;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

pub fn is_handshake(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers the handshake and starts the echo on its connection.
pub fn accept(request: &mut Request<Incoming>) -> Result<Response<()>, &'static str> {
    let key = request.headers().get("sec-websocket-key").ok_or("Sec-WebSocket-Key is missing\n")?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept =
        HeaderValue::from_str(&accept_key(key.as_bytes())).map_err(|_| "Sec-WebSocket-Key is not a key\n")?;
    headers.insert("sec-websocket-accept", accept);
    echo_on(hyper::upgrade::on(request));
    Ok(response)
}

/// Answers a CONNECT of HTTP/2 for a WebSocket (RFC 8441) and starts the echo on its stream.
pub fn accept_connect(request: &mut Request<Incoming>) -> Result<Response<()>, &'static str> {
    let protocol = request.extensions().get::<hyper::ext::Protocol>();
    if protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
        return Err("CONNECT is for WebSockets alone\n");
    }
    echo_on(hyper::upgrade::on(request));
    Ok(Response::new(()))
}

fn echo_on(upgrade: hyper::upgrade::OnUpgrade) {
    tokio::task::spawn_local(async move {
        if let Ok(connection) = upgrade.await {
            let _ = echo(TokioIo::new(connection)).await;
        }
    });
}

fn accept_key(key: &[u8]) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key);
    digest.update(GUID.as_bytes());
    BASE64.encode(digest.finish())
}

/// Frame by frame, so that a fragmented message comes back in the same fragments.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    loop {
        let first = stream.read_u8().await?;
        let second = stream.read_u8().await?;
        let length = match second & 0x7f {
            126 => u64::from(stream.read_u16().await?),
            127 => stream.read_u64().await?,
            short => u64::from(short),
        };
        let masked = second & 0x80 != 0;
        // A client masks every frame (section 5.1).
        let Some(size) = usize::try_from(length).ok().filter(|_| masked && length <= MAX_FRAME) else {
            return Ok(());
        };
        let mut mask = [0; 4];
        stream.read_exact(&mut mask).await?;
        let mut payload = vec![0; size];
        stream.read_exact(&mut payload).await?;
        for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
        let opcode = first & 0x0f;
        let first = if opcode == PING { first & 0xf0 | PONG } else { first };
        if opcode != PONG {
            stream.write_all(&frame(first, &payload)).await?;
            stream.flush().await?;
        }
        if opcode == CLOSE {
            return stream.shutdown().await;
        }
    }
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ 0..=125), _) => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend(medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_the_key_of_the_rfc() {
        assert_eq!(accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn sends_back_frames_and_answers_ping_and_close() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let served = tokio::spawn(echo(server));
        for (first, payload) in [(0x81, &b"hello"[..]), (0x82, &[7; 300]), (0x89, b"p"), (0x88, b"\x03\xe8")]
        {
            let mut sent = frame(first, payload);
            // Mask of zeros: the payload stays as it is.
            let head = sent.len() - payload.len();
            sent[1] |= 0x80;
            sent.splice(head..head, [0; 4]);
            client.write_all(&sent).await.expect("sent");
            let expected = frame(if first == 0x89 { 0x8a } else { first }, payload);
            let mut got = vec![0; expected.len()];
            client.read_exact(&mut got).await.expect("answered");
            assert_eq!(got, expected);
        }
        served.await.expect("ended").expect("closed well");
    }
}

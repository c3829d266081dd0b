//! The handshake of WebSockets (RFC 6455), as far as both sides of the gateway need it.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, UPGRADE};

/// RFC 6455 section 1.3
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a key before it is written down.
const KEY: usize = 16;

/// How a server proves that it read this key.
pub fn websocket_accept(key: &[u8]) -> HeaderValue {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    HeaderValue::try_from(BASE64.encode(hash.finish())).expect("base64")
}

/// The key of a request that asks for a WebSocket. None: it does not, or not in the way of section 4.1.
pub fn websocket_key(headers: &HeaderMap) -> Option<&HeaderValue> {
    let is_asked = headers.get(UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let key = keys.next().filter(|_| is_asked && keys.next().is_none())?;
    BASE64.decode(key).is_ok_and(|bytes| bytes.len() == KEY).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_rfc_says() {
        assert_eq!(websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_websocket_is_asked_for_with_one_key_of_sixteen_bytes() {
        let asks = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            websocket_key(&headers).is_some()
        };
        let (key, upgrade) = (("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="), ("upgrade", "WebSocket"));
        assert!(asks(&[key, upgrade]));
        for bad in [
            &[key][..],
            &[upgrade],
            &[key, ("upgrade", "h2c")],
            &[key, key, upgrade],
            &[("sec-websocket-key", "dGhl"), upgrade],
            &[("sec-websocket-key", "not base64"), upgrade],
        ] {
            assert!(!asks(bad), "{bad:?}");
        }
    }
}

//! What backends are told about the client: `X-Forwarded-*`, `Forwarded` (RFC 7239), `X-Real-IP`, `X-Request-Id`, and
//! our own count of passes, which finds loops. They are written as lines into the head that goes out: fields of the same
//! names are taken off before.
//!
//! Invariant: nothing of these comes from a client unless that client is one of the trusted hops.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::request_head::split_host;
use crate::message::{ErrorKind, ProxyError, RequestId, Scheme};
use crate::upstream::{HeadLines, SharedLines};

pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static PASSES: HeaderName = HeaderName::from_static("x-portcullis-passes");

/// What a certificate says of its client, written where a hostname's validation wants it.
pub static X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// By what fields begin that tell some servers another target, host or method than the request has: a server that reads
/// them would serve what nobody has judged.
const RENAMING: [&str; 3] = ["x-original-", "x-rewrite-", "x-envoy-original-"];

/// What is written anew for each request.
static OURS: [HeaderName; 8] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-portcullis-passes"),
];

/// So many passes of one installation's gateways are no loop yet.
const MAX_PASSES: u32 = 4;

/// What is the same for all requests of a connection, made once.
#[derive(Debug)]
pub struct Introduction {
    peer: IpAddr,
    scheme: Scheme,
    address: HeaderValue,
    /// The last lines with the host that they were made for; clients seldom change it.
    lines: RefCell<Option<(HeaderValue, Bytes)>>,
    installation: Arc<str>,
}

/// How far a client's own word is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub ip: IpAddr,
    pub scheme: Scheme,
    pub request_id: Option<RequestId>,
}

impl Introduction {
    pub fn new(peer: SocketAddr, scheme: Scheme, installation: Arc<str>) -> Self {
        let ip = peer.ip().to_canonical();
        Self { peer: ip, scheme, address: text(&ip.to_string()), lines: RefCell::default(), installation }
    }

    /// Who the client is behind the trusted hops.
    pub fn see(&self, headers: &HeaderMap, trusted_hops: usize) -> Seen {
        let mut seen = Seen { ip: self.peer, scheme: self.scheme, request_id: None };
        if trusted_hops == 0 {
            return seen;
        }
        if let Some(ip) = believed(headers, trusted_hops).first().and_then(|entry| entry.parse().ok()) {
            seen.ip = ip;
        }
        match headers.get(&X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
            Some(b"https") => seen.scheme = Scheme::Https,
            Some(b"http") => seen.scheme = Scheme::Http,
            _ => {}
        }
        seen.request_id = headers.get(&X_REQUEST_ID).and_then(|value| parse_id(value.as_bytes()));
        seen
    }

    /// The lines that introduce the client to a backend. `introduced`: the head may hold fields of their names, which
    /// are taken off here.
    ///
    /// # Errors
    /// The request went through this installation's gateways too often: it goes in circles.
    pub fn lines(
        &self,
        headers: &mut HeaderMap,
        seen: &Seen,
        trusted_hops: usize,
        id: RequestId,
        introduced: bool,
    ) -> Result<HeadLines, ProxyError> {
        let lines = if trusted_hops == 0 && !(introduced && headers.contains_key(&PASSES)) {
            self.usual(headers)
        } else {
            self.chained(headers, seen, trusted_hops)?
        };
        if introduced {
            OURS.iter().for_each(|name| drop(headers.remove(name)));
        }
        Ok(HeadLines::new(lines, X_REQUEST_ID.as_str(), &hexadecimal(id)))
    }

    /// Of a request that comes from its client itself.
    fn usual(&self, headers: &HeaderMap) -> Bytes {
        static NONE: HeaderValue = HeaderValue::from_static("");
        let host = headers.get(header::HOST).unwrap_or(&NONE);
        let mut cached = self.lines.borrow_mut();
        if let Some((known, lines)) = &*cached
            && known == host
        {
            return lines.clone();
        }
        let mut lines = SharedLines::default();
        lines.add(&X_FORWARDED_FOR, &self.address);
        lines.add(&X_REAL_IP, &self.address);
        let forwarded = element(self.address.to_str().unwrap_or_default(), self.scheme, host);
        lines.add(&header::FORWARDED, &text(&forwarded));
        lines.add(&X_FORWARDED_HOST, host);
        lines.add(&X_FORWARDED_PORT, &asked_port(host, self.scheme));
        lines.add(&X_FORWARDED_PROTO, &HeaderValue::from_static(self.scheme.as_str()));
        lines.add(&PASSES, &pass_value(&self.installation, 1));
        let lines = lines.freeze();
        *cached = Some((host.clone(), lines.clone()));
        lines
    }

    /// Keeps what the trusted hops said and adds the hop that speaks to us.
    fn chained(&self, headers: &HeaderMap, seen: &Seen, trusted_hops: usize) -> Result<Bytes, ProxyError> {
        let mut lines = SharedLines::default();
        let mut chain = believed(headers, trusted_hops).join(", ");
        if !chain.is_empty() {
            chain += ", ";
        }
        chain += self.address.to_str().unwrap_or_default();
        lines.add(&X_FORWARDED_FOR, &text(&chain));
        lines.add(&X_REAL_IP, &text(&seen.ip.to_string()));
        let host = headers.get(header::HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        lines.add(&header::FORWARDED, &text(&element(&seen.ip.to_string(), seen.scheme, &host)));
        let said = |name| headers.get(name).filter(|_| trusted_hops > 0);
        let asked =
            said(&X_FORWARDED_HOST).filter(|value| value.to_str().ok().and_then(split_host).is_some());
        lines.add(&X_FORWARDED_HOST, asked.unwrap_or(&host));
        let port = said(&X_FORWARDED_PORT).and_then(|value| value.to_str().ok()?.parse::<u16>().ok());
        lines.add(&X_FORWARDED_PORT, &port.map_or_else(|| asked_port(&host, seen.scheme), HeaderValue::from));
        lines.add(&X_FORWARDED_PROTO, &HeaderValue::from_static(seen.scheme.as_str()));
        for value in count_pass(headers, &self.installation, 1)? {
            lines.add(&PASSES, &value);
        }
        Ok(lines.freeze())
    }
}

/// The port that the client asked for, which is seldom the one that we listen on.
fn asked_port(host: &HeaderValue, scheme: Scheme) -> HeaderValue {
    let port = host.to_str().ok().and_then(split_host).and_then(|(_, port)| port);
    HeaderValue::from(port.unwrap_or_else(|| scheme.default_port()))
}

/// Takes off what nobody but a filter of ours may say: what others call what we write, and what renames a request.
pub fn strip_aliases(headers: &mut HeaderMap) {
    let is_alias = |name: &&HeaderName| introduces(name.as_str()) && !OURS.contains(name);
    while let Some(name) = headers.keys().find(is_alias).cloned() {
        headers.remove(name);
    }
}

/// Whether a field's name is one of those that [`Introduction`] writes, stands for one, or renames the request.
pub fn introduces(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("x-") else { return false };
    rest.starts_with("forwarded")
        || matches!(rest, "real-ip" | "request-id" | "portcullis-passes")
        || RENAMING.iter().any(|start| name.starts_with(start))
}

/// Counts this pass through the installation's gateways; all counts that go on.
fn count_pass(headers: &HeaderMap, installation: &str, counts: u32) -> Result<Vec<HeaderValue>, ProxyError> {
    let (mut others, mut passes) = (Vec::new(), 0_u32);
    for value in headers.get_all(&PASSES) {
        match value.to_str().ok().and_then(|text| text.rsplit_once('=')) {
            Some((name, count)) if name == installation => {
                passes = passes.max(count.parse().unwrap_or(u32::MAX));
            }
            _ => others.push(value.clone()),
        }
    }
    if passes >= MAX_PASSES {
        return Err(ErrorKind::LoopDetected.into());
    }
    others.insert(0, pass_value(installation, passes.saturating_add(counts)));
    Ok(others)
}

/// Counts this pass in a request that a filter or an action makes. What its client's request had counted stands in it.
/// One that may be made of many counts more: circles of those multiply.
///
/// # Errors
/// It goes in circles.
pub fn pass_on(headers: &mut HeaderMap, installation: &str, counts: u32) -> Result<(), ProxyError> {
    let passes = count_pass(headers, installation, counts)?;
    headers.remove(&PASSES);
    for value in passes {
        headers.append(&PASSES, value);
    }
    Ok(())
}

/// The mark of a request's pass through an installation.
fn pass_value(installation: &str, passes: u32) -> HeaderValue {
    text(&format!("{installation}={passes}"))
}

/// The last `hops` entries of `X-Forwarded-For`: those that our own proxies wrote.
fn believed(headers: &HeaderMap, hops: usize) -> Vec<&str> {
    let entries: Vec<&str> = headers
        .get_all(&X_FORWARDED_FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let last = entries.len() - hops.min(entries.len());
    entries[last..].iter().copied().filter(|entry| entry.parse::<IpAddr>().is_ok()).collect()
}

/// RFC 7239 section 4: values with other characters than a token's are quoted.
fn element(address: &str, scheme: Scheme, host: &HeaderValue) -> String {
    let node = if address.contains(':') { format!("\"[{address}]\"") } else { address.to_owned() };
    let host = host.to_str().unwrap_or_default();
    let host = if host.contains([':', '[']) { format!("\"{host}\"") } else { host.to_owned() };
    format!("for={node};host={host};proto={}", scheme.as_str())
}

/// 32 hexadecimal digits, with or without the hyphens of a UUID.
fn parse_id(text: &[u8]) -> Option<RequestId> {
    let mut id = [0; 16];
    let mut digits = 0;
    for byte in text.iter().filter(|byte| **byte != b'-') {
        let digit = u8::try_from((*byte as char).to_digit(16)?).ok()?;
        *id.get_mut(digits / 2)? |= if digits % 2 == 0 { digit << 4 } else { digit };
        digits += 1;
    }
    (digits == 32 && text.len() <= 36).then_some(RequestId(id))
}

fn hexadecimal(id: RequestId) -> [u8; 32] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (pair, byte) in text.chunks_exact_mut(2).zip(id.0) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
    text
}

fn text(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RequestId = RequestId([0xab; 16]);

    fn introduction() -> Introduction {
        Introduction::new("192.0.2.7:4000".parse().expect("address"), Scheme::Https, "edge".into())
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn written(fields: &[(&'static str, &'static str)], hops: usize) -> (HeaderMap, Seen) {
        let (mut headers, introduction) = (headers(fields), introduction());
        strip_aliases(&mut headers);
        let seen = introduction.see(&headers, hops);
        let lines = introduction.lines(&mut headers, &seen, hops, ID, true).expect("no loop");
        OURS.iter().for_each(|name| assert!(!headers.contains_key(name), "{name} stands twice"));
        let text: Vec<u8> = lines.left(0).iter().flat_map(|slice| slice.to_vec()).collect();
        for line in String::from_utf8(text).expect("text").split_terminator("\r\n") {
            let (name, value) = line.split_once(": ").expect("a field");
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        (headers, seen)
    }

    const SPOOFED: &[(&str, &str)] = &[
        ("host", "shop.example:8443"),
        ("x-forwarded-for", "10.0.0.1, 198.51.100.9"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-prefix", "/admin"),
        ("x-forwarded-client-cert", "Hash=1"),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-scheme", "http"),
        ("x-forwarded-ssl", "off"),
        ("x-forwarded-uri", "/public"),
        ("x-original-url", "/public"),
        ("x-rewrite-url", "/public"),
        ("x-envoy-original-path", "/public"),
        ("x-forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x-request-id", "abababababababababababababababab"),
    ];

    const WRITTEN: [&str; 9] = [
        "forwarded",
        "host",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-portcullis-passes",
        "x-real-ip",
        "x-request-id",
    ];

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_client_s_word_about_itself_counts_for_nothing() {
        let (headers, seen) = written(SPOOFED, 0);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "shop.example:8443");
        assert_eq!(headers["x-forwarded-port"], "8443");
        assert_eq!(headers["x-real-ip"], "192.0.2.7");
        assert_eq!(headers["forwarded"], "for=192.0.2.7;host=\"shop.example:8443\";proto=https");
        assert_eq!(names(&headers), WRITTEN);
        assert_eq!(seen.request_id, None);
        assert_eq!(seen.ip.to_string(), "192.0.2.7");
    }

    #[test]
    fn as_many_entries_as_trusted_hops_are_believed_and_no_more() {
        let (headers, seen) = written(SPOOFED, 1);
        assert_eq!(headers["x-forwarded-for"], "198.51.100.9, 192.0.2.7");
        assert_eq!((seen.ip.to_string().as_str(), seen.scheme), ("198.51.100.9", Scheme::Http));
        assert_eq!(headers["x-request-id"], "abababababababababababababababab");
        assert_eq!(seen.request_id, Some(ID));
        assert_eq!(headers["x-forwarded-host"], "evil.example", "a trusted hop's word");
        assert_eq!(names(&headers), WRITTEN, "nobody renames a request");
        let (headers, seen) = written(SPOOFED, 2);
        assert_eq!(headers["x-forwarded-for"], "10.0.0.1, 198.51.100.9, 192.0.2.7");
        assert_eq!(seen.ip.to_string(), "10.0.0.1");
    }

    #[test]
    fn the_fifth_pass_is_a_loop_and_other_installations_do_not_count() {
        let introduction = introduction();
        let mut values = vec![HeaderValue::from_static("inner=4")];
        let seen = Seen { ip: introduction.peer, scheme: Scheme::Https, request_id: None };
        for _ in 0..4 {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(&PASSES, value.clone());
            }
            introduction.lines(&mut headers.clone(), &seen, 0, ID, true).expect("not yet");
            values = count_pass(&headers, "edge", 1).expect("not yet");
        }
        assert_eq!(values, ["edge=4", "inner=4"]);
        let mut headers = HeaderMap::new();
        for value in &values {
            headers.append(&PASSES, value.clone());
        }
        let looped = introduction.lines(&mut headers, &seen, 0, ID, true).expect_err("a loop");
        assert_eq!(looped.kind, ErrorKind::LoopDetected);
    }

    #[test]
    fn what_may_be_one_of_many_is_a_loop_sooner() {
        let mut headers = HeaderMap::new();
        assert!(pass_on(&mut headers, "edge", 2).is_ok());
        assert!(pass_on(&mut headers, "edge", 2).is_ok());
        assert!(pass_on(&mut headers, "edge", 2).is_err());
        assert_eq!(headers[&PASSES], "edge=4");
    }

    #[test]
    fn addresses_of_version_six_are_quoted_where_they_must_be() {
        let host = HeaderValue::from_static("[::1]:80");
        assert_eq!(
            element("2001:db8::1", Scheme::Http, &host),
            "for=\"[2001:db8::1]\";host=\"[::1]:80\";proto=http"
        );
    }

    #[test]
    fn request_ids_are_hexadecimal_or_made_anew() {
        assert_eq!(parse_id(b"abababab-abab-abab-abab-abababababab"), Some(ID));
        for bad in ["", "ab", "zz", "abababababababababababababababababab", "'; drop"] {
            assert_eq!(parse_id(bad.as_bytes()), None, "{bad}");
        }
    }
}

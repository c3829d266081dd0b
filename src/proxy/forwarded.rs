//! What backends are told about the client: `X-Forwarded-*`, `Forwarded` (RFC 7239), `X-Real-IP`, `X-Request-Id`, and
//! our own count of passes, which finds loops. They are written as lines into the head that goes out: fields of the same
//! names are taken off before.
//!
//! Invariant: nothing of these comes from a client unless that client is one of the trusted hops.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::request_head::split_host;
use crate::message::{ErrorKind, ProxyError, RequestId, Scheme, Vouched};
use crate::upstream::{HeadLines, SharedLines};

pub static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
static X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static PASSES: HeaderName = HeaderName::from_static("x-portcullis-passes");

/// Says that a request is a copy, of which nobody waits for the answer.
pub static MIRRORED: HeaderName = HeaderName::from_static("x-portcullis-mirror");

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

const NO_ADDRESS: &str = "what x-forwarded-for has for the client is no address";

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub ip: IpAddr,
    pub scheme: Scheme,
    pub request_id: Option<RequestId>,
    /// None: no hop is trusted.
    pub vouched: Option<Arc<Vouched>>,
}

impl Introduction {
    pub fn new(peer: SocketAddr, scheme: Scheme, installation: Arc<str>) -> Self {
        let ip = peer.ip().to_canonical();
        Self { peer: ip, scheme, address: text(&ip.to_string()), lines: RefCell::default(), installation }
    }

    /// Who the client is behind the trusted hops.
    ///
    /// # Errors
    /// The hop that stands before the client names no address: whoever it speaks for is not taken for the hop.
    pub fn see(&self, headers: &HeaderMap, trusted_hops: usize) -> Result<Seen, ProxyError> {
        let mut seen = Seen { ip: self.peer, scheme: self.scheme, request_id: None, vouched: None };
        if trusted_hops == 0 {
            return Ok(seen);
        }
        let entries = believed(headers, trusted_hops);
        if let Some(client) = entries.first() {
            seen.ip = client.ok_or(ProxyError::with_detail(ErrorKind::BadRequest, NO_ADDRESS))?;
        }
        match last(headers, &X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
            Some(b"https") => seen.scheme = Scheme::Https,
            Some(b"http") => seen.scheme = Scheme::Http,
            _ => {}
        }
        seen.request_id = last(headers, &X_REQUEST_ID).and_then(|value| parse_id(value.as_bytes()));
        seen.vouched = Some(Arc::new(self.vouched(headers, &entries, seen.scheme)));
        Ok(seen)
    }

    /// Keeps what the trusted hops said and adds the hop that speaks to us.
    fn vouched(&self, headers: &HeaderMap, entries: &[Option<IpAddr>], scheme: Scheme) -> Vouched {
        let mut chain = String::new();
        for entry in entries {
            // Left out, it would move all before it one hop nearer.
            chain += &entry.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
            chain += ", ";
        }
        chain += self.address.to_str().unwrap_or_default();
        let own = headers.get(header::HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        let port =
            last(headers, &X_FORWARDED_PORT).and_then(|value| value.to_str().ok()?.parse::<u16>().ok());
        let port = port.map_or_else(|| asked_port(&own, scheme), HeaderValue::from);
        let asked = last(headers, &X_FORWARDED_HOST)
            .filter(|value| value.to_str().ok().and_then(split_host).is_some());
        Vouched { chain: text(&chain), host: asked.cloned().unwrap_or(own), port }
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
        id: RequestId,
        introduced: bool,
    ) -> Result<HeadLines, ProxyError> {
        let lines = if seen.vouched.is_none() && !(introduced && headers.contains_key(&PASSES)) {
            self.usual(headers)
        } else {
            self.chained(headers, seen)?
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

    /// Of a request that came through trusted hops, or through ourselves.
    fn chained(&self, headers: &HeaderMap, seen: &Seen) -> Result<Bytes, ProxyError> {
        let mut lines = SharedLines::default();
        let host = headers.get(header::HOST).cloned().unwrap_or_else(|| HeaderValue::from_static(""));
        let own = || {
            let port = asked_port(&host, seen.scheme);
            Arc::new(Vouched { chain: self.address.clone(), host: host.clone(), port })
        };
        let vouched = seen.vouched.clone().unwrap_or_else(own);
        lines.add(&X_FORWARDED_FOR, &vouched.chain);
        lines.add(&X_REAL_IP, &text(&seen.ip.to_string()));
        lines.add(&header::FORWARDED, &text(&element(&seen.ip.to_string(), seen.scheme, &host)));
        lines.add(&X_FORWARDED_HOST, &vouched.host);
        lines.add(&X_FORWARDED_PORT, &vouched.port);
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

/// Takes off what nobody but a filter of ours may say: what others call what we write, what renames a request, and that it
/// is a copy (load balancers pass on what they do not know, so a trusted hop's word is no better).
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
        || matches!(rest, "real-ip" | "request-id" | "portcullis-passes" | "portcullis-mirror")
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

/// The last `hops` entries of `X-Forwarded-For`: those that our own proxies wrote, the client's first. None: no address.
/// They are counted before they are read, byte by byte: one that cannot be read moves no other.
fn believed(headers: &HeaderMap, hops: usize) -> Vec<Option<IpAddr>> {
    let fields = headers.get_all(&X_FORWARDED_FOR).iter().rev();
    let entries = fields.flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
    let mut entries: Vec<_> = entries.take(hops).map(address_of).collect();
    entries.reverse();
    entries
}

/// Also as proxies write it that add a port: `192.0.2.1:4711`, `[2001:db8::1]:4711`, `[2001:db8::1]`.
fn address_of(entry: &[u8]) -> Option<IpAddr> {
    let entry = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let with_port = || entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bracketed = || entry.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let ip = entry.parse().ok().or_else(with_port).or_else(bracketed);
    ip.map(|ip| ip.to_canonical())
}

/// The field that the hop that speaks to us wrote, if it adds its own to those of others.
fn last<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    headers.get_all(name).iter().next_back()
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
        let seen = introduction.see(&headers, hops).expect("an address");
        let lines = introduction.lines(&mut headers, &seen, ID, true).expect("no loop");
        OURS.iter().for_each(|name| assert!(!headers.contains_key(name), "{name} stands twice"));
        let text = lines.parts().concat();
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

    /// The address of a client behind so many hops, with fields of these values; none: it is refused.
    fn client(values: &[&[u8]], hops: usize) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&X_FORWARDED_FOR, HeaderValue::from_bytes(value).expect("a value"));
        }
        match introduction().see(&headers, hops) {
            Ok(seen) => Some(seen.ip.to_string()),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::BadRequest);
                None
            }
        }
    }

    #[test]
    fn entries_are_counted_before_they_are_read_and_no_client_becomes_the_hop_before_it() {
        const OBS_TEXT: &[u8] = "é, 198.51.100.9".as_bytes();
        let behind = Some("198.51.100.9".to_owned());
        // Found in an audit: one byte that is no ASCII took the whole field away, and the peer was left.
        assert_eq!(client(&[OBS_TEXT], 1), behind);
        assert_eq!(client(&[b"\xff", b"198.51.100.9"], 1), behind);
        assert_eq!(client(&[b"x, 198.51.100.9, 10.0.0.1"], 2), behind);
        assert_eq!(client(&[b"10.9.9.9", OBS_TEXT, b"10.0.0.1"], 2), behind);
        assert_eq!(
            client(&[b"198.51.100.9, \xff"], 2),
            behind,
            "what an inner hop writes is not the client's"
        );
        assert_eq!(client(&[b"198.51.100.9"], 2), behind, "it came through fewer hops");
        for unreadable in
            [&b"\xff"[..], b"", b"unknown", b"198.51.100.9,", b"1.2.3.4:x", b"[::1", b"1.2.3.4.5"]
        {
            assert_eq!(client(&[unreadable], 1), None, "{unreadable:?}");
        }
        assert_eq!(client(&[OBS_TEXT], 2), None);
        assert_eq!(client(&[], 1), Some("192.0.2.7".to_owned()), "nobody says anything");
    }

    #[test]
    fn addresses_are_read_as_balancers_write_them() {
        for (written, ip) in [
            ("198.51.100.9:4711", "198.51.100.9"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:198.51.100.9", "198.51.100.9"),
            (" 198.51.100.9\t", "198.51.100.9"),
        ] {
            assert_eq!(client(&[written.as_bytes()], 1).as_deref(), Some(ip), "{written}");
        }
    }

    #[test]
    fn backends_get_the_chain_of_addresses_with_a_place_for_each_hop() {
        let (headers, _) = written(&[("x-forwarded-for", "evil, [2001:db8::1]:4711, unknown")], 2);
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1, unknown, 192.0.2.7");
        assert_eq!(headers["x-real-ip"], "2001:db8::1");
    }

    #[test]
    fn of_several_fields_the_hop_that_speaks_to_us_wrote_the_last() {
        let twice = [
            ("x-forwarded-for", "198.51.100.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-port", "8443"),
        ];
        let (headers, seen) = written(&twice, 1);
        assert_eq!(seen.scheme, Scheme::Http);
        assert_eq!(
            (&headers["x-forwarded-host"], &headers["x-forwarded-port"]),
            (&"shop.example".parse().expect("a value"), &"8443".parse().expect("a value"))
        );
    }

    #[test]
    fn the_fifth_pass_is_a_loop_and_other_installations_do_not_count() {
        let introduction = introduction();
        let mut values = vec![HeaderValue::from_static("inner=4")];
        let seen = Seen { ip: introduction.peer, scheme: Scheme::Https, request_id: None, vouched: None };
        for _ in 0..4 {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(&PASSES, value.clone());
            }
            introduction.lines(&mut headers.clone(), &seen, ID, true).expect("not yet");
            values = count_pass(&headers, "edge", 1).expect("not yet");
        }
        assert_eq!(values, ["edge=4", "inner=4"]);
        let mut headers = HeaderMap::new();
        for value in &values {
            headers.append(&PASSES, value.clone());
        }
        let looped = introduction.lines(&mut headers, &seen, ID, true).expect_err("a loop");
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

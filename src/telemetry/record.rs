//! One line of the access log. Written by hand into the worker's own buffer: a line is made for every request, and
//! nothing of it is allocated. Every control character is escaped and every field has its bound, so that a line is one
//! line and no client's text reaches a terminal as a command.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

/// Bounds in bytes of the line; what is longer is cut and ends in `...`.
const MAX_TEXT: usize = 1024;
const MAX_NAME: usize = 256;
const MAX_BACKEND: usize = 600;
/// No line is longer than this.
pub(super) const MAX_LINE: usize = 8 << 10;

/// One request as it is logged. Query strings are not: they hold secrets too often.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// When the request's head had come.
    pub time: SystemTime,
    pub request_id: [u8; 16],
    pub client: IpAddr,
    pub method: &'a str,
    pub host: &'a str,
    /// Path without query.
    pub path: &'a str,
    pub has_query: bool,
    pub protocol: &'static str,
    pub scheme: &'static str,
    pub status: u16,
    /// What a call of gRPC came to.
    pub grpc_status: Option<&'static str>,
    pub reason: Option<&'static str>,
    /// What lies behind it: errors as they are, for whoever runs the gateway.
    pub cause: Option<&'a str>,
    /// Who asked, where that is known.
    pub identity: Option<Somebody<'a>>,
    /// The authorization rule that decided.
    pub authorization: Option<&'a str>,
    /// The rate limit that refused, or would have.
    pub rate_limit: Option<&'a str>,
    /// What the cache did.
    pub cache: Option<&'static str>,
    pub namespace: &'a str,
    pub route: &'a str,
    pub rule: &'a str,
    /// As `BackendId` prints it.
    pub backend: Option<&'a str>,
    pub endpoint: Option<SocketAddr>,
    /// Tries after the first.
    pub retries: u8,
    /// Calls of an aggregation that failed, each with its reason.
    pub failed_calls: Option<&'a str>,
    pub duration: Duration,
    /// Until the head of the backend's answer.
    pub upstream: Option<Duration>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub user_agent: Option<&'a [u8]>,
}

/// Who asked. No part of it is a credential.
#[derive(Clone, Copy, Debug)]
pub struct Somebody<'a> {
    pub id: &'a str,
    pub kind: &'static str,
    /// Of `authentication.anyOf`.
    pub entry: &'a str,
}

impl Record<'_> {
    /// Appends the line, its end included.
    pub(super) fn write_to(&self, line: &mut Vec<u8>) {
        let at = jiff::Timestamp::try_from(self.time).unwrap_or_default();
        put(line, format_args!("{{\"time\":\"{at:.3}\",\"request_id\":\""));
        for byte in self.request_id {
            line.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        put(line, format_args!("\",\"client\":\"{}\"", self.client));
        text(line, "method", self.method.as_bytes(), MAX_TEXT);
        text(line, "host", self.host.as_bytes(), MAX_TEXT);
        text(line, "path", self.path.as_bytes(), MAX_TEXT);
        put(
            line,
            format_args!(
                ",\"query\":{},\"protocol\":\"{}\",\"scheme\":\"{}\",\"status\":{}",
                self.has_query, self.protocol, self.scheme, self.status
            ),
        );
        if let Some(status) = self.grpc_status {
            text(line, "grpc_status", status.as_bytes(), MAX_NAME);
        }
        if let Some(reason) = self.reason {
            text(line, "reason", reason.as_bytes(), MAX_NAME);
        }
        if let Some(cause) = self.cause {
            text(line, "cause", cause.as_bytes(), MAX_TEXT);
        }
        if let Some(identity) = self.identity {
            text(line, "identity", identity.id.as_bytes(), MAX_NAME);
            put(line, format_args!(",\"identity_kind\":\"{}\"", identity.kind));
            text(line, "identity_entry", identity.entry.as_bytes(), MAX_NAME);
        }
        if let Some(authorization) = self.authorization {
            text(line, "authorization", authorization.as_bytes(), MAX_NAME);
        }
        if let Some(limit) = self.rate_limit {
            text(line, "rate_limit", limit.as_bytes(), MAX_NAME);
        }
        if let Some(cache) = self.cache {
            text(line, "cache", cache.as_bytes(), MAX_NAME);
        }
        if !self.route.is_empty() {
            text(line, "namespace", self.namespace.as_bytes(), MAX_NAME);
            text(line, "route", self.route.as_bytes(), MAX_NAME);
            text(line, "rule", self.rule.as_bytes(), MAX_NAME);
        }
        if let Some(backend) = self.backend {
            text(line, "backend", backend.as_bytes(), MAX_BACKEND);
        }
        if let Some(endpoint) = self.endpoint {
            put(line, format_args!(",\"endpoint\":\"{endpoint}\""));
        }
        if self.retries > 0 {
            put(line, format_args!(",\"retries\":{}", self.retries));
        }
        if let Some(calls) = self.failed_calls {
            text(line, "failed_calls", calls.as_bytes(), MAX_TEXT);
        }
        seconds(line, "duration", self.duration);
        if let Some(upstream) = self.upstream {
            seconds(line, "upstream_duration", upstream);
        }
        put(
            line,
            format_args!(
                ",\"request_bytes\":{},\"response_bytes\":{}",
                self.request_bytes, self.response_bytes
            ),
        );
        if let Some(user_agent) = self.user_agent {
            text(line, "user_agent", user_agent, MAX_TEXT);
        }
        line.extend_from_slice(b"}\n");
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn put(line: &mut Vec<u8>, words: std::fmt::Arguments) {
    line.write_fmt(words).expect("a vector takes all that is written");
}

fn seconds(line: &mut Vec<u8>, name: &str, duration: Duration) {
    put(line, format_args!(",\"{name}\":{}.{:06}", duration.as_secs(), duration.subsec_micros()));
}

/// A JSON string of bytes that should be UTF-8; what is not becomes U+FFFD.
fn text(line: &mut Vec<u8>, name: &str, value: &[u8], bound: usize) {
    put(line, format_args!(",\"{name}\":\""));
    let end = line.len() + bound - "...".len();
    if value.len() <= bound - "...".len() && value.iter().all(|byte| is_plain(*byte)) {
        line.extend_from_slice(value);
    } else if !escape(line, value, end) {
        line.extend_from_slice(b"...");
    }
    line.push(b'"');
}

/// Whether all of it fitted before `end`.
fn escape(line: &mut Vec<u8>, value: &[u8], end: usize) -> bool {
    for chunk in value.utf8_chunks() {
        let replaced = if chunk.invalid().is_empty() { None } else { Some(char::REPLACEMENT_CHARACTER) };
        for character in chunk.valid().chars().chain(replaced) {
            let before = line.len();
            match character {
                '"' => line.extend_from_slice(b"\\\""),
                '\\' => line.extend_from_slice(b"\\\\"),
                // What ends a line for some readers, is not seen, or turns the text around.
                '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                    put(line, format_args!("\\u{:04x}", u32::from(character)))
                }
                control if control.is_control() => put(line, format_args!("\\u{:04x}", u32::from(control))),
                other => line.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
            if line.len() > end {
                line.truncate(before);
                return false;
            }
        }
    }
    true
}

const fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\'
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    pub fn record() -> Record<'static> {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            request_id: [0xab; 16],
            client: [192, 0, 2, 1].into(),
            method: "GET",
            host: "shop.test",
            path: "/orders",
            has_query: true,
            protocol: "HTTP/2",
            scheme: "https",
            status: 200,
            grpc_status: Some("UNAVAILABLE"),
            reason: None,
            cause: None,
            identity: Some(Somebody { id: "alice", kind: "Jwt", entry: "users" }),
            authorization: Some("read"),
            rate_limit: Some("fair"),
            cache: Some("hit"),
            namespace: "shop",
            route: "orders",
            rule: "list",
            backend: Some("Service/shop/orders:80"),
            endpoint: Some(([10, 0, 0, 7], 8080).into()),
            retries: 1,
            failed_calls: Some("orders=BackendTimeout"),
            duration: Duration::from_micros(1_002_003),
            upstream: Some(Duration::from_micros(900)),
            request_bytes: 0,
            response_bytes: 12,
            user_agent: Some(b"curl/8"),
        }
    }

    fn line(record: &Record) -> Vec<u8> {
        let mut line = Vec::new();
        record.write_to(&mut line);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
        assert!(line.len() <= MAX_LINE, "{} bytes", line.len());
        line
    }

    #[test]
    fn a_line_says_all_of_a_request() {
        let parsed: Value = serde_json::from_slice(&line(&record())).expect("JSON");
        assert_eq!(
            parsed,
            json!({
                "time": "2023-11-14T22:13:20.123Z", "request_id": "abababababababababababababababab",
                "client": "192.0.2.1", "method": "GET", "host": "shop.test", "path": "/orders", "query": true,
                "protocol": "HTTP/2", "scheme": "https", "status": 200,
                "grpc_status": "UNAVAILABLE", "identity": "alice", "identity_kind": "Jwt", "identity_entry": "users",
                "authorization": "read", "rate_limit": "fair", "cache": "hit", "namespace": "shop", "route": "orders",
                "rule": "list", "backend": "Service/shop/orders:80", "endpoint": "10.0.0.7:8080",
                "retries": 1, "failed_calls": "orders=BackendTimeout",
                "duration": 1.002003, "upstream_duration": 0.0009, "request_bytes": 0, "response_bytes": 12,
                "user_agent": "curl/8",
            })
        );
    }

    #[test]
    fn the_longest_line_there_can_be_has_its_bound() {
        let long = "\u{1b}\"é".repeat(4000);
        let record = Record {
            method: &long,
            host: &long,
            path: &long,
            namespace: &long,
            route: &long,
            rule: &long,
            identity: Some(Somebody { id: &long, kind: "Certificate", entry: &long }),
            authorization: Some(&long),
            rate_limit: Some(&long),
            cache: None,
            backend: Some(&long),
            failed_calls: Some(&long),
            reason: Some("NoHealthyEndpoints"),
            cause: None,
            user_agent: Some(&[0xff; 4000]),
            client: "2001:db8:1111:2222:3333:4444:5555:6666".parse().expect("an address"),
            duration: Duration::MAX,
            upstream: Some(Duration::MAX),
            request_bytes: u64::MAX,
            response_bytes: u64::MAX,
            ..record()
        };
        let parsed: Value = serde_json::from_slice(&line(&record)).expect("JSON");
        assert!(parsed["path"].as_str().expect("text").ends_with("..."));
    }

    proptest! {
        #[test]
        fn any_bytes_of_a_client_are_one_line_of_json_without_control_characters(
            path in ".{0,40}", agent in proptest::collection::vec(any::<u8>(), 0..80), id in "(?s).{0,60}",
        ) {
            let identity = Some(Somebody { id: &id, kind: "Jwt", entry: "users" });
            let line = line(&Record { path: &path, user_agent: Some(&agent), identity, ..record() });
            let text = std::str::from_utf8(&line).expect("UTF-8");
            prop_assert!(!text.trim_end_matches('\n').chars().any(char::is_control));
            let parsed: Value = serde_json::from_str(text).expect("JSON");
            prop_assert_eq!(parsed["path"].as_str(), Some(path.as_str()));
            prop_assert_eq!(parsed["identity"].as_str(), Some(id.as_str()));
            let agent = String::from_utf8_lossy(&agent);
            prop_assert_eq!(parsed["user_agent"].as_str(), Some(&*agent));
        }
    }
}

//! What one request leaves behind: its sample in the metrics and its line in the access log, written once, when the
//! answer's body has ended or was dropped.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Method, Uri};
use tokio::time::Instant;

use super::live::LiveRule;
use super::observed::Upload;
use super::worker::Worker;
use crate::message::{
    Compressed, ErrorKind, FailureCause, GrpcStatus, Identity, Labels, Place, Protocol, RequestId, Scheme,
};
use crate::telemetry::{
    Cached, CallStatus, Consulted, InFlight, Limited, Packed, Record, Ruling, Sample, Somebody,
};
use crate::upstream::Backend;

pub struct Account {
    pub worker: Rc<Worker>,
    pub started: Instant,
    pub method: Method,
    pub protocol: Protocol,
    pub scheme: Scheme,
    pub request_id: RequestId,
    /// 0 until there is an answer.
    pub status: u16,
    pub reason: Option<&'static str>,
    /// What lies behind it, for the log.
    pub cause: Option<FailureCause>,
    /// Who asked, as far as the rule wanted to know.
    pub identity: Identity,
    /// What authorization said.
    pub ruling: Option<Ruling>,
    /// The rate limit that refused, or would have.
    pub limited: Option<Limited>,
    /// The limits that the store could not be asked about.
    pub fallbacks: Vec<Arc<str>>,
    /// What external authorizers said.
    pub consulted: Option<Consulted>,
    /// What it holds among the requests under way.
    pub places: Vec<Place>,
    /// The answer is compressed.
    pub compressed: Option<Compressed>,
    /// What the cache did.
    pub cached: Option<Cached>,
    /// What a call of gRPC came to. None: it is none.
    pub call: Option<CallStatus>,
    pub upload: Option<Rc<Upload>>,
    pub response_bytes: u64,
    /// The answer was sent as a whole.
    pub complete: bool,
    /// What only the access log wants; none while it is off.
    log: Option<Box<Line>>,
    rule: Option<InFlight>,
    /// With the log.
    pub hop: Option<Rc<Hop>>,
}

/// Where the request went.
#[derive(Debug, Default)]
pub struct Hop {
    asked: OnceCell<(Arc<Backend>, Instant)>,
    answered: Cell<Option<(SocketAddr, Duration)>>,
    /// Tries after the first.
    pub retries: Cell<u8>,
    /// Of an aggregation: `orders=BackendTimeout, user=InvalidResponse (the answer is …), …`
    failed_calls: RefCell<String>,
}

#[derive(Debug)]
struct Line {
    time: SystemTime,
    client: IpAddr,
    host: String,
    uri: Uri,
    user_agent: Option<HeaderValue>,
    labels: Option<Arc<Labels>>,
}

impl Account {
    pub fn new(worker: Rc<Worker>, method: Method, protocol: Protocol, scheme: Scheme) -> Self {
        let request_id = worker.next_request_id();
        Self {
            worker,
            started: Instant::now(),
            method,
            protocol,
            scheme,
            request_id,
            status: 0,
            reason: None,
            cause: None,
            identity: Identity::ANONYMOUS,
            ruling: None,
            limited: None,
            fallbacks: Vec::new(),
            consulted: None,
            places: Vec::new(),
            compressed: None,
            cached: None,
            call: None,
            upload: None,
            response_bytes: 0,
            complete: false,
            log: None,
            rule: None,
            hop: None,
        }
    }

    /// Notes for the access log what is known of the request once its head was taken in or refused.
    pub fn note(&mut self, parts: &http::request::Parts, host: &str, client: IpAddr) {
        if self.worker.log.enabled() {
            self.hop = Some(Rc::default());
            self.log = Some(Box::new(Line {
                time: SystemTime::now(),
                client,
                host: host.to_owned(),
                uri: parts.uri.clone(),
                user_agent: parts.headers.get(http::header::USER_AGENT).cloned(),
                labels: None,
            }));
        }
    }

    /// The rule under which the request is counted from now on.
    pub fn matched(&mut self, rule: &LiveRule) {
        self.rule = Some(rule.stats.start(self.worker.index));
        if let Some(line) = &mut self.log {
            line.labels = Some(rule.rule.labels.clone());
        }
    }

    /// What its head or its trailers say that a call came to.
    pub fn called(&mut self, fields: &HeaderMap) {
        if self.call.is_some()
            && let Some(status) = GrpcStatus::of(fields)
        {
            self.call = Some(CallStatus::Number(status.number()));
        }
    }

    /// Why it failed; the first reason stays.
    pub fn fail(&mut self, kind: ErrorKind) {
        self.reason.get_or_insert(kind.as_str());
    }

    fn protocol_name(&self) -> &'static str {
        match self.protocol {
            Protocol::Http10 => "HTTP/1.0",
            Protocol::Http11 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        }
    }

    fn write_line(&self, line: &Line, sample: &Sample) {
        let hop = self.hop.as_deref();
        let backend = hop.and_then(|hop| hop.asked.get()).map(|(backend, _)| backend.plan.id.to_string());
        let answered = hop.and_then(|hop| hop.answered.get());
        let failed_calls = hop.map(|hop| hop.failed_calls.take()).filter(|calls| !calls.is_empty());
        let names = line.labels.as_deref();
        self.worker.log.write(&Record {
            time: line.time,
            request_id: self.request_id.0,
            client: line.client,
            method: sample.method.as_str(),
            host: &line.host,
            path: line.uri.path(),
            has_query: line.uri.query().is_some(),
            protocol: sample.protocol,
            scheme: sample.scheme,
            status: sample.status,
            grpc_status: sample.call.map(CallStatus::as_str),
            reason: sample.reason,
            cause: self.cause.as_ref().map(FailureCause::as_str),
            identity: self.identity.known().map(|known| Somebody {
                id: &known.id,
                kind: known.kind.as_str(),
                entry: &known.entry,
            }),
            authorization: sample.ruling.as_ref().map(Ruling::rule_name),
            rate_limit: sample.limited.as_ref().map(|limited| &*limited.limit),
            cache: sample.cached.map(Cached::as_str),
            namespace: names.map_or("", |labels| &labels.namespace),
            route: names.map_or("", |labels| &labels.route),
            rule: names.map_or("", |labels| &labels.rule),
            backend: backend.as_deref(),
            failed_calls: failed_calls.as_deref(),
            endpoint: answered.map(|(endpoint, _)| endpoint),
            retries: hop.map_or(0, |hop| hop.retries.get()),
            duration: sample.duration,
            upstream: answered.map(|(_, time)| time),
            request_bytes: sample.request_bytes,
            response_bytes: sample.response_bytes,
            user_agent: line.user_agent.as_ref().map(HeaderValue::as_bytes),
        });
    }
}

impl Hop {
    pub fn asked(&self, backend: &Arc<Backend>) {
        let _ = self.asked.set((backend.clone(), Instant::now()));
    }

    pub fn call_failed(&self, call: &str, reason: &str, cause: Option<&FailureCause>) {
        let mut calls = self.failed_calls.borrow_mut();
        if !calls.is_empty() {
            calls.push_str(", ");
        }
        calls.extend([call, "=", reason]);
        if let Some(cause) = cause {
            calls.extend([" (", cause.as_str(), ")"]);
        }
    }

    pub fn answered(&self, endpoint: SocketAddr) {
        let time = self.asked.get().map(|(_, since)| since.elapsed()).unwrap_or_default();
        self.answered.set(Some((endpoint, time)));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.complete {
            self.fail(ErrorKind::ClientGone);
            if self.status == 0 {
                self.status = 499;
            }
        }
        let sample = Sample {
            status: self.status,
            method: std::mem::take(&mut self.method),
            protocol: self.protocol_name(),
            scheme: self.scheme.as_str(),
            duration: self.started.elapsed(),
            request_bytes: self.upload.as_ref().map_or(0, |upload| upload.bytes.get()),
            response_bytes: self.response_bytes,
            reason: self.reason,
            ruling: self.ruling.take(),
            limited: self.limited.take(),
            fallbacks: std::mem::take(&mut self.fallbacks),
            consulted: self.consulted,
            packed: self.compressed.as_ref().map(|compressed| Packed {
                coding: compressed.coding.as_str(),
                plain: compressed.plain.get(),
            }),
            cached: self.cached,
            call: self.call,
        };
        match &self.rule {
            Some(rule) => rule.record(&sample),
            None => self.worker.unmatched.record(self.worker.index, &sample),
        }
        if let Some(line) = &self.log {
            self.write_line(line, &sample);
        }
    }
}

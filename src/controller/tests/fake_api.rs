//! A small API server for tests: lists, watches with history, JSON Patch on status, Leases, Events. What goes wrong is
//! said by the test: a kind that is not there or refused, lists that fail, watches that close or have lost their past.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

type Body = BoxBody<Bytes, Infallible>;

const BOOKMARK: &str = "BOOKMARK";

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Counts changes; watches wait for it.
    changed: watch::Sender<u64>,
    address: SocketAddr,
}

#[derive(Default)]
struct State {
    version: u64,
    kinds: BTreeMap<String, Store>,
    /// `LIST gatewayroutes`, `WATCH secrets`, `PATCH gatewayroutes` …; also the bookmarks that were told.
    requests: Vec<String>,
    /// Watches that began before this count are closed.
    closed: u64,
}

#[derive(Default)]
struct Store {
    objects: BTreeMap<(String, String), Value>,
    history: Vec<(u64, &'static str, Value)>,
    /// Watches from an older version get 410.
    compacted: u64,
    /// Every request gets this status.
    refused: Option<u16>,
    /// Lists and watches get 403 but those of one of these names.
    only: Option<Vec<String>>,
    /// So many lists fail with 500.
    failing_lists: u32,
}

impl FakeApi {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            state: Arc::default(),
            changed: watch::channel(0).0,
            address: listener.local_addr().unwrap(),
        };
        fake.state().version = 1;
        let serving = fake.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let fake = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let fake = fake.clone();
                        async move { Ok::<_, Infallible>(fake.answer(request).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        fake
    }

    pub fn client(&self) -> kube::Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        config.default_retry = false;
        kube::Client::try_from(config).unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = key(&object);
        let store = state.kinds.entry(plural.into()).or_default();
        let event = if store.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        store.history.push((version, event, object.clone()));
        store.objects.insert(key, object);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let store = state.kinds.entry(plural.into()).or_default();
        if let Some(mut object) = store.objects.remove(&(namespace.into(), name.into())) {
            object["metadata"]["resourceVersion"] = version.to_string().into();
            store.history.push((version, "DELETED", object));
        }
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().kinds.get(plural)?.objects.get(&(namespace.into(), name.into())).cloned()
    }

    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.state()
            .kinds
            .get(plural)
            .map(|store| store.objects.values().cloned().collect())
            .unwrap_or_default()
    }

    pub fn refuse(&self, plural: &str, status: Option<u16>) {
        self.state().kinds.entry(plural.into()).or_default().refused = status;
    }

    /// As a Role with `resourceNames` has it.
    pub fn only_by_name(&self, plural: &str, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.state().kinds.entry(plural.into()).or_default().only = Some(names);
    }

    pub fn fail_lists(&self, plural: &str, times: u32) {
        self.state().kinds.entry(plural.into()).or_default().failing_lists = times;
    }

    /// Forgets the past of every kind.
    pub fn compact(&self) {
        let mut state = self.state();
        // Whoever watches from anything older must list anew, also if nothing has changed since.
        state.version += 1;
        let version = state.version;
        for store in state.kinds.values_mut() {
            store.compacted = version;
        }
    }

    /// Tells those who asked for it where a kind is, and forgets its past when it was said.
    pub async fn bookmark(&self, plural: &str) {
        let version = {
            let mut state = self.state();
            state.version += 1;
            let version = state.version;
            let metadata = json!({"resourceVersion": version.to_string()});
            let object = json!({"apiVersion": "v1", "kind": "Any", "metadata": metadata});
            let store = state.kinds.entry(plural.into()).or_default();
            store.history.push((version, BOOKMARK, object));
            version
        };
        self.changed.send_modify(|count| *count += 1);
        until("the bookmark is told", || self.count(&format!("{BOOKMARK} {plural}")) == 1).await;
        self.state().kinds.entry(plural.into()).or_default().compacted = version;
    }

    pub fn close_watches(&self) {
        self.changed.send_modify(|count| *count += 1);
        let now = *self.changed.borrow();
        self.state().closed = now;
        self.changed.send_modify(|count| *count += 1);
    }

    pub fn count(&self, request: &str) -> usize {
        self.state().requests.iter().filter(|made| *made == request).count()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let path: Vec<&str> = head.uri.path().trim_matches('/').split('/').collect();
        // /api/v1/… or /apis/GROUP/VERSION/…, then namespaces/NAME/ where it is there.
        let rest = &path[if path[0] == "api" { 2 } else { 3 }..];
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let (plural, name) = (rest[0], rest.get(1).copied());
        let is_watch = query.contains("watch=true");
        let verb = match (&head.method, name) {
            (&Method::GET, None) if is_watch => "WATCH",
            (&Method::GET, None) => "LIST",
            (method, _) => method.as_str(),
        };
        let version = {
            let mut state = self.state();
            state.requests.push(format!("{verb} {plural}"));
            let version = state.version;
            let store = state.kinds.entry(plural.into()).or_default();
            if let Some(status) = store.refused {
                return refusal(status, "refused by the test");
            }
            let named =
                selected(&query, "fieldSelector").into_iter().find(|(field, _)| field == "metadata.name");
            let is_allowed =
                |only: &Vec<String>| named.is_some_and(|(_, name)| only.iter().any(|one| one == name));
            if store.only.as_ref().is_some_and(|only| !is_allowed(only)) {
                return refusal(403, "not by this name");
            }
            if verb == "LIST" && store.failing_lists > 0 {
                store.failing_lists -= 1;
                return refusal(500, "failed by the test");
            }
            version
        };
        match verb {
            "LIST" => {
                let of_service =
                    query.split_once("service-name%3D").map(|(_, rest)| rest.split('&').next().unwrap());
                let mut items = self.all(plural);
                items.retain(|item| {
                    namespace.is_none_or(|namespace| item["metadata"]["namespace"] == namespace)
                });
                items.retain(|item| selects(&query, item));
                items.retain(|item| {
                    of_service.is_none_or(|of| item["metadata"]["labels"]["kubernetes.io/service-name"] == of)
                });
                let number = |name: &str| -> Option<usize> {
                    query.split('&').find_map(|pair| pair.strip_prefix(name)?.parse().ok())
                };
                let (from, limit) =
                    (number("continue=").unwrap_or(0), number("limit=").unwrap_or(usize::MAX));
                let rest = items.len().saturating_sub(from.saturating_add(limit));
                let next = if rest == 0 { String::new() } else { (items.len() - rest).to_string() };
                let items: Vec<_> = items.into_iter().skip(from).take(limit).collect();
                let metadata = json!({"resourceVersion": version.to_string(), "continue": next});
                json_answer(200, &json!({"metadata": metadata, "items": items}))
            }
            "WATCH" => {
                let from = query.split_once("resourceVersion=").unwrap().1.split('&').next().unwrap();
                self.watch(plural, from.parse().unwrap(), namespace.map(str::to_owned), query.clone())
            }
            "GET" => match self.get(plural, namespace.unwrap_or_default(), name.unwrap()) {
                Some(object) => json_answer(200, &object),
                None => refusal(404, "not found"),
            },
            "PATCH" => self.patch(plural, namespace.unwrap(), name.unwrap(), &body),
            _ => self.write(verb, plural, namespace.unwrap(), &body),
        }
    }

    fn watch(&self, plural: &str, from: u64, namespace: Option<String>, query: String) -> Response<Body> {
        let mut changes = self.changed.subscribe();
        let began = *changes.borrow_and_update();
        let (fake, plural) = (self.clone(), plural.to_owned());
        let events = stream::unfold((from, changes), move |(mut from, mut changes)| {
            let (fake, plural) = (fake.clone(), plural.clone());
            let (namespace, query) = (namespace.clone(), query.clone());
            async move {
                loop {
                    {
                        let mut state = fake.state();
                        if state.closed > began {
                            return None;
                        }
                        let store = state.kinds.get(&plural)?;
                        let lost = from < store.compacted;
                        let here = |object: &Value| {
                            namespace.as_ref().is_none_or(|only| object["metadata"]["namespace"] == **only)
                        };
                        let wants_bookmarks = query.contains("allowWatchBookmarks=true");
                        let next = store.history.iter().find(|(version, kind, object)| {
                            let is_theirs = match *kind {
                                BOOKMARK => wants_bookmarks,
                                _ => here(object) && is_about(&query, object),
                            };
                            *version > from && is_theirs
                        });
                        let event = if lost {
                            Some((u64::MAX, json!({"type": "ERROR", "object": status(410, "too old")})))
                        } else {
                            next.map(|(version, kind, object)| {
                                // What does not match any more is deleted, for those who watch what matches.
                                let is_there = *kind == BOOKMARK || selects(&query, object);
                                let kind = if is_there { *kind } else { "DELETED" };
                                (*version, json!({"type": kind, "object": object}))
                            })
                        };
                        if let Some((version, event)) = event {
                            from = version;
                            let line = Bytes::from(format!("{event}\n"));
                            if event["type"] == BOOKMARK {
                                state.requests.push(format!("{BOOKMARK} {plural}"));
                            }
                            drop(state);
                            return Some((Ok(Frame::data(line)), (from, changes)));
                        }
                        if from == u64::MAX {
                            return None;
                        }
                    }
                    changes.changed().await.ok()?;
                }
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(events)))
    }

    fn patch(&self, plural: &str, namespace: &str, name: &str, body: &[u8]) -> Response<Body> {
        let Some(mut object) = self.get(plural, namespace, name) else { return refusal(404, "not found") };
        for operation in serde_json::from_slice::<Vec<Value>>(body).unwrap() {
            let path = operation["path"].as_str().unwrap();
            match operation["op"].as_str().unwrap() {
                "test" if *object.pointer(path).unwrap_or(&Value::Null) != operation["value"] => {
                    return refusal(422, "the server rejected our request due to an error in our request");
                }
                "test" => {}
                _ => object[path.trim_start_matches('/')] = operation["value"].clone(),
            }
        }
        self.put(plural, object.clone());
        json_answer(200, &object)
    }

    fn write(&self, verb: &str, plural: &str, namespace: &str, body: &[u8]) -> Response<Body> {
        let mut object: Value = serde_json::from_slice(body).unwrap();
        object["metadata"]["namespace"] = namespace.into();
        let (_, name) = key(&object);
        let there = self.get(plural, namespace, &name);
        let conflict = match (verb, &there) {
            ("POST", there) => there.is_some(),
            (_, None) => return refusal(404, "not found"),
            (_, Some(there)) => there["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"],
        };
        if conflict {
            return refusal(409, "conflict");
        }
        self.put(plural, object);
        json_answer(200, &self.get(plural, namespace, &name).unwrap())
    }
}

/// Waits for a condition, 10 s at most.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain until {what}");
}

fn key(object: &Value) -> (String, String) {
    let metadata = &object["metadata"];
    (
        metadata["namespace"].as_str().unwrap_or_default().into(),
        metadata["name"].as_str().unwrap_or_default().into(),
    )
}

/// The value of a selector `name=value` in a query.
fn selected<'q>(query: &'q str, kind: &str) -> Vec<(String, &'q str)> {
    let of_kind = query.split('&').filter_map(|pair| pair.strip_prefix(kind)?.strip_prefix('='));
    let terms = of_kind.flat_map(|terms| terms.split("%2C"));
    terms
        .filter(|term| !term.contains("%21%3D") && !term.contains("!%3D"))
        .filter_map(|term| term.split_once("%3D"))
        .map(|(name, value)| (name.replace("%2F", "/"), value))
        .collect()
}

/// Whether the field selector by name means the object.
fn is_about(query: &str, object: &Value) -> bool {
    let fields = selected(query, "fieldSelector");
    fields.iter().all(|(field, value)| field != "metadata.name" || object["metadata"]["name"] == **value)
}

fn selects(query: &str, object: &Value) -> bool {
    let fields = selected(query, "fieldSelector");
    let of_type = fields.iter().all(|(field, value)| {
        let kind = object["type"].as_str().unwrap_or("Opaque");
        field != "type" || kind == value.replace("%2F", "/")
    });
    let labels = selected(query, "labelSelector");
    let by_label = labels.iter().all(|(name, value)| object["metadata"]["labels"][name] == **value);
    of_type && by_label && is_about(query, object)
}

fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

fn refusal(code: u16, message: &str) -> Response<Body> {
    json_answer(code, &status(code, message))
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed());
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
    response
}

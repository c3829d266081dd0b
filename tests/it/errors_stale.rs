//! `errors` that serve what the cache keeps, in the whole program.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;

use crate::cache_origin::{Origin, status};
use crate::harness::{Answer, Gateway};

/// Well the first time that a path is asked for, and then as the path says.
fn origin() -> Origin {
    let seen = Mutex::new(BTreeMap::<String, usize>::new());
    Origin::raw(move |asked, stream| {
        let path = asked.target().to_owned();
        let times = {
            let mut seen = seen.lock().expect("no panic holds it");
            let times = seen.entry(path.clone()).or_default();
            *times += 1;
            *times
        };
        let is_well = times == 1 && path != "/never";
        let strict = if path == "/strict" { ", must-revalidate" } else { "" };
        let (line, body) = match &*path {
            _ if is_well => ("200 OK".to_owned(), "good"),
            "/closes" => return,
            "/502" => ("502 Bad Gateway".into(), "secret"),
            "/404" => ("404 Not Found".into(), "secret"),
            _ => ("503 Service Unavailable".into(), "secret"),
        };
        let _ = write!(
            stream,
            "HTTP/1.1 {line}\r\nCache-Control: max-age=0{strict}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    })
}

/// What the path answers the second time.
fn second(gateway: &Gateway, path: &str) -> Answer {
    let first = gateway.get("shop.example", path);
    assert!(first.body == "good" || path == "/never", "{path}: {first:?}");
    gateway.get("shop.example", path)
}

#[test]
fn an_entry_serves_what_is_kept_before_what_it_says() {
    let origin = origin();
    let errors = "[{\"on\": ['502'], origin: Backend, text: first}, {\"on\": [5xx, Reset, '404'], serveStale: 1h, status: 500, contentType: text/plain, text: sorry}]";
    let gateway = origin.under(&format!("{{cache: {{}}, errors: {errors}}}"));
    for path in ["/plain", "/closes", "/404"] {
        let told = second(&gateway, path);
        assert_eq!((told.status, told.body.as_str()), (200, "good"), "{path}: {told:?}");
        assert!(told.field("age").is_some() && status(&told).contains("fwd=stale"), "{path}: {told:?}");
    }
    let asked = origin.count();
    assert_eq!(gateway.get("shop.example", "/plain").body, "good");
    assert_eq!(origin.count(), asked + 1, "it is asked each time, so that it can be well again");
    for path in ["/strict", "/never"] {
        let told = second(&gateway, path);
        assert_eq!((told.status, told.body.as_str()), (500, "sorry"), "{path}: {told:?}");
    }
    let told = second(&gateway, "/502");
    assert!(told.status == 502 && told.body.contains("first"), "an entry before it decides: {told:?}");
}

#[test]
fn without_it_nothing_stale_is_served() {
    let origin = origin();
    let gateway = origin.under("{cache: {}, errors: [{status: 500, contentType: text/plain, text: sorry}]}");
    let told = second(&gateway, "/plain");
    assert_eq!((told.status, told.body.as_str()), (500, "sorry"));
}

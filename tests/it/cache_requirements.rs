//! What docs/caching-rfc9111.md names of the whole program and no other test shows; the sections stand with the tests.

use std::io::{Read as _, Write as _};

use crate::cache_origin::{Origin, fresh, kept, status};
use crate::harness::{connect, text, until};

const PATH: &str = "/x";
const CLOSE: &str = "Connection: close";

/// Sections 4 and 5.2.2.4.
#[test]
fn what_must_be_asked_about_is_asked_about_each_time() {
    let origin = Origin::new(|asked| match asked.field("if-none-match") {
        Some("\"a\"") => (format!("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n{CLOSE}"), String::new()),
        _ => {
            let said = if asked.target() == "/asked" { "no-cache, " } else { "" };
            let fields = format!("ETag: \"a\"\r\nCache-Control: {said}max-age=600\r\n{CLOSE}");
            (fields, format!("answer {}", asked.number))
        }
    });
    let gateway = origin.behind("{}");
    let first = gateway.get("shop.example", "/asked").body;
    until("it to be kept", || {
        status(&gateway.get("shop.example", "/asked")).contains("fwd-status=304").then_some(())
    });
    for _ in 0..3 {
        let before = origin.count();
        assert_eq!(gateway.get("shop.example", "/asked").body, first);
        assert_eq!(origin.count(), before + 1);
    }
    // The control: the same without the word.
    kept(|| gateway.get("shop.example", "/used"));
    let before = origin.count();
    kept(|| gateway.get("shop.example", "/used"));
    assert_eq!(origin.count(), before);
}

/// Section 4: of several that suit the newest; there is never more than one.
#[test]
fn the_newest_answer_takes_the_place_of_the_one_before() {
    let origin = Origin::new(fresh);
    let gateway = origin.behind("{}");
    let first = kept(|| gateway.get("shop.example", PATH)).body;
    let newer = gateway.request("GET", "shop.example", PATH, &["Cache-Control: no-cache"], "").body;
    assert_ne!(newer, first);
    until("the newer one", || (gateway.get("shop.example", PATH).body == newer).then_some(()));
    for _ in 0..5 {
        assert_eq!(gateway.get("shop.example", PATH).body, newer);
    }
    assert_eq!(origin.count(), 2);
}

/// Section 4.1.
#[test]
fn who_does_not_send_the_field_has_another_variant_than_who_sends_it_empty() {
    let origin = Origin::new(|asked| {
        let (fields, body) = fresh(asked);
        (format!("Vary: Accept-Language\r\n{fields}"), body)
    });
    let gateway = origin.behind("{}");
    let variants: [&[&str]; 3] = [&[], &["Accept-Language:"], &["Accept-Language: de"]];
    let ask = |fields: &[&str]| kept(|| gateway.request("GET", "shop.example", PATH, fields, "")).body;
    let bodies = variants.map(ask);
    assert!(bodies[0] != bodies[1] && bodies[1] != bodies[2] && bodies[0] != bodies[2], "{bodies:?}");
    assert_eq!(variants.map(ask), bodies, "the control: each has what it had");
}

/// Section 4.2.4.
#[test]
fn nothing_past_its_time_is_used_unless_somebody_says_so() {
    let origin = Origin::new(|asked| match asked.field("if-none-match") {
        Some(_) => (format!("HTTP/1.1 503 Service Unavailable\r\n{CLOSE}"), "no".into()),
        None => (format!("ETag: \"a\"\r\nCache-Control: max-age=0\r\n{CLOSE}"), "all".into()),
    });
    for (policy, expected) in [("{}", 503), ("{staleIfError: 600s}", 200)] {
        let gateway = origin.behind(policy);
        assert_eq!(gateway.get("shop.example", PATH).status, 200);
        let then = until("it to be asked about", || {
            let answer = gateway.get("shop.example", PATH);
            origin.last().field("if-none-match").is_some().then_some(answer)
        });
        assert_eq!(then.status, expected, "{policy}: {then:?}");
    }
}

/// Sections 4.3.1 and 4.3.2.
#[test]
fn what_is_asked_about_is_named_by_all_that_is_known_of_it_and_each_client_has_its_own_version() {
    const MODIFIED: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    let origin = Origin::new(|asked| match asked.field("if-none-match") {
        Some("\"one\"") => (format!("HTTP/1.1 304 Not Modified\r\nETag: \"one\"\r\n{CLOSE}"), String::new()),
        _ => (
            format!(
                "ETag: \"one\"\r\nLast-Modified: {MODIFIED}\r\nVary: Accept-Language\r\nCache-Control: max-age=0\r\n{CLOSE}"
            ),
            "all".into(),
        ),
    });
    let gateway = origin.behind("{}");
    let ask = |known: &str| {
        let fields = ["Accept-Language: de", &format!("If-None-Match: {known}")];
        gateway.request("GET", "shop.example", PATH, &fields, "")
    };
    let other = until("it to be asked about", || {
        let answer = ask("\"mine\"");
        (origin.last().field("if-none-match") == Some("\"one\"")).then_some(answer)
    });
    let asked = origin.last();
    assert_eq!(asked.fields("if-none-match"), ["\"one\""], "not what the client has");
    assert_eq!(asked.field("if-modified-since"), Some(MODIFIED));
    assert_eq!(asked.field("accept-language"), Some("de"));
    // The origin's 304 is about ours, which the client has not.
    assert_eq!((other.status, other.body.as_str()), (200, "all"));
    assert_eq!(ask("\"mine\", \"one\"").status, 304, "the control");
}

/// Section 4.3.2.
#[test]
fn conditions_for_the_origin_alone_go_to_it() {
    let origin = Origin::new(fresh);
    let gateway = origin.behind("{}");
    kept(|| gateway.get("shop.example", PATH));
    for (name, value) in [("If-Match", "\"x\""), ("If-Unmodified-Since", "Tue, 14 Nov 2023 22:13:20 GMT")] {
        let before = origin.count();
        let field = format!("{name}: {value}");
        assert_eq!(gateway.request("GET", "shop.example", PATH, &[&field], "").status, 200);
        assert_eq!((origin.count(), origin.last().field(name)), (before + 1, Some(value)));
    }
    let before = origin.count();
    gateway.request("GET", "shop.example", PATH, &["If-None-Match: \"x\""], "");
    assert_eq!(origin.count(), before, "the control");
}

/// Section 4.3.2: where nothing is kept, a condition is met by what its request brings.
#[test]
fn who_asks_with_a_condition_brings_the_whole_for_all() {
    let origin = Origin::new(|asked| {
        let (fields, body) = fresh(asked);
        (format!("ETag: \"a\"\r\n{fields}"), body)
    });
    let gateway = origin.behind("{}");
    for (path, known, expected) in [("/same", "\"a\"", 304), ("/other", "\"b\"", 200)] {
        let field = format!("If-None-Match: {known}");
        assert_eq!(gateway.request("GET", "shop.example", path, &[&field], "").status, expected, "{path}");
        assert_eq!(origin.last().field("if-none-match"), None, "{path}");
        let before = origin.count();
        assert_eq!(kept(|| gateway.get("shop.example", path)).status, 200);
        assert_eq!(origin.count(), before, "{path}");
    }
}

/// Section 4.3.3.
#[test]
fn a_new_answer_takes_the_place_of_what_was_asked_about() {
    let origin = Origin::new(|asked| {
        let (tag, age) = if asked.field("if-none-match").is_some() { ("new", 600) } else { ("old", 0) };
        (format!("ETag: \"{tag}\"\r\nCache-Control: max-age={age}\r\n{CLOSE}"), tag.into())
    });
    let gateway = origin.behind("{}");
    assert_eq!(gateway.get("shop.example", PATH).body, "old");
    until("it to be asked about", || (gateway.get("shop.example", PATH).body == "new").then_some(()));
    assert_eq!(kept(|| gateway.get("shop.example", PATH)).body, "new");
    assert_eq!(origin.last().field("if-none-match"), Some("\"old\""));
}

/// Section 4.3.4; a 304 that names no version, or another date alone, is taken for an answer to what was asked.
#[test]
fn a_confirmation_of_another_version_is_none() {
    const OLD: &str = "Tue, 14 Nov 2023 22:13:20 GMT";
    const NEW: &str = "Tue, 14 Nov 2023 22:13:21 GMT";
    let origin = Origin::new(|asked| {
        if asked.field("if-none-match").is_some() {
            let named = match asked.target() {
                "/other" => "ETag: \"new\"\r\n".to_owned(),
                "/same" => "ETag: \"old\"\r\n".to_owned(),
                "/date" => format!("Last-Modified: {NEW}\r\n"),
                _ => String::new(),
            };
            return (format!("HTTP/1.1 304 Not Modified\r\n{named}X-Said: so\r\n{CLOSE}"), String::new());
        }
        let fields = format!("ETag: \"old\"\r\nLast-Modified: {OLD}\r\nCache-Control: max-age=0\r\n{CLOSE}");
        (fields, format!("answer {}", asked.number))
    });
    let gateway = origin.behind("{}");
    for (path, holds) in [("/other", false), ("/same", true), ("/date", true), ("/silent", true)] {
        let first = gateway.get("shop.example", path).body;
        let then = until("it to be asked about", || {
            let before = origin.count();
            let answer = gateway.get("shop.example", path);
            // Asked with the condition, and then without it where that brought another version.
            let is_twice = origin.count() == before + 2;
            (is_twice || status(&answer).contains("fwd-status=304")).then_some(answer)
        });
        assert_eq!((then.status, then.body == first), (200, holds), "{path}: {then:?}");
        assert_eq!(then.field("x-said").is_some(), holds, "{path}: {then:?}");
    }
}

/// Sections 3.2 and 4.3.4.
#[test]
fn what_a_confirmation_says_takes_the_place_of_what_was_kept() {
    let origin = Origin::new(|asked| {
        match asked.field("if-none-match") {
        Some(_) => (
            "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\nX-Old: 2\r\nX-Old: 3\r\nX-New: 4\r\nX-Hop: 5\r\nProxy-Authenticate: Basic\r\nConnection: close, X-Hop".into(),
            String::new(),
        ),
        None => {
            (format!("ETag: \"a\"\r\nCache-Control: max-age=0\r\nX-Old: 1\r\nX-Stays: 1\r\n{CLOSE}"), "all".into())
        }
    }
    });
    let gateway = origin.behind("{}");
    assert_eq!(gateway.get("shop.example", PATH).field("x-old"), Some("1"));
    let answer = kept(|| gateway.get("shop.example", PATH));
    let lines = |name: &str| {
        let named = answer.fields.iter().filter(|(known, _)| known == name);
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    assert_eq!((lines("x-old"), lines("x-new"), lines("x-stays")), (vec!["2", "3"], vec!["4"], vec!["1"]));
    assert_eq!(
        (lines("content-length"), answer.body.as_str()),
        (vec!["3"], "all"),
        "of the bytes, not of the 304"
    );
    assert_eq!(lines("cache-control"), ["max-age=600"]);
    assert_eq!((lines("x-hop"), lines("proxy-authenticate")), (vec![], vec![]));
}

/// Section 3.1.
#[test]
fn trailers_become_no_fields_of_the_head() {
    let origin = Origin::raw(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nTrailer: Content-Digest\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ =
            stream.write_all(format!("{head}3\r\nall\r\n0\r\nContent-Digest: x=:AA==:\r\n\r\n").as_bytes());
    });
    let backend = "backendRefs: [{kind: GatewayBackend, name: origin}]";
    let plain = "matches: [{path: {type: Exact, value: /plain}}]";
    let gateway = origin.rules(&format!(
        "[{{name: plain, {plain}, {backend}}}, {{name: kept, policy: {{cache: {{}}}}, {backend}}}]"
    ));
    let ask = |path: &str| {
        let mut stream = connect(gateway.http);
        let fields = "Host: shop.example\r\nTE: trailers\r\nConnection: close, TE";
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes()).expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        let answer = text(&answer).to_ascii_lowercase();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    };
    const TRAILER: &str = "content-digest: x=:aa==:";
    let (head, body) = ask("/plain");
    assert!(body.contains("all") && body.contains(TRAILER), "the control: {head} {body}");
    let first = ask(PATH);
    let second = until("it to be kept", || Some(ask(PATH)).filter(|(head, _)| head.contains("; hit")));
    for (head, body) in [first, second] {
        assert!(!head.contains(TRAILER) && !body.contains(TRAILER) && body.contains("all"), "{head} {body}");
    }
    assert_eq!(origin.count(), 2);
}

/// Section 4.4: also one whose safety nobody knows.
#[test]
fn every_method_that_is_not_safe_makes_what_is_kept_old() {
    let origin = Origin::new(fresh);
    let gateway = origin.behind("{}");
    for (method, changes) in
        [("POST", true), ("PUT", true), ("PATCH", true), ("DELETE", true), ("LINK", true), ("OPTIONS", false)]
    {
        let before = kept(|| gateway.get("shop.example", PATH)).body;
        assert_eq!(gateway.request(method, "shop.example", PATH, &[], "").status, 200, "{method}");
        assert_eq!(gateway.get("shop.example", PATH).body != before, changes, "{method}");
    }
}

/// Sections 5.2 and 5.2.3.
#[test]
fn directives_pass_whoever_they_are_for_and_unknown_ones_mean_nothing() {
    const SAID: &str = "max-age=600, Surprise=\"no-store, private\", x";
    const ASKED: &str = "no-cache, surprise=\"a, b\"";
    let origin = Origin::new(|asked| {
        (format!("Cache-Control: {SAID}\r\n{CLOSE}"), format!("answer {}", asked.number))
    });
    let gateway = origin.behind("{}");
    let field = format!("Cache-Control: {ASKED}");
    let first = gateway.request("GET", "shop.example", PATH, &[&field], "");
    assert_eq!(
        (first.field("cache-control"), origin.last().field("cache-control")),
        (Some(SAID), Some(ASKED))
    );
    assert_eq!(kept(|| gateway.get("shop.example", PATH)).field("cache-control"), Some(SAID));
    assert_eq!(origin.count(), 1);
}

/// Section 5.2.1.
#[test]
fn requests_say_how_old_and_how_fresh_it_may_be() {
    let origin = Origin::new(|asked| {
        let (age, more) = match asked.target() {
            "/young" => (100, ""),
            "/old" => (700, ""),
            _ => (700, ", must-revalidate"),
        };
        let fields = format!("ETag: \"a\"\r\nAge: {age}\r\nCache-Control: max-age=600{more}\r\n{CLOSE}");
        (fields, format!("answer {}", asked.number))
    });
    let gateway = origin.behind("{}");
    for (path, wish, is_used) in [
        ("/young", "max-age=300", true),
        ("/young", "max-age=50", false),
        ("/young", "min-fresh=10", true),
        ("/young", "min-fresh=550", false),
        ("/old", "max-stale", true),
        ("/old", "max-stale=1000", true),
        ("/old", "max-stale=10", false),
        ("/old", "max-age=10000", false),
        ("/strict", "max-stale", false),
    ] {
        // It is kept where the origin is asked about it, or not at all.
        until("it to be kept", || {
            let before = origin.count();
            gateway.get("shop.example", path);
            (origin.count() == before || origin.last().field("if-none-match").is_some()).then_some(())
        });
        let before = origin.count();
        let answer = gateway.request("GET", "shop.example", path, &[&format!("Cache-Control: {wish}")], "");
        assert_eq!(origin.count() == before, is_used, "{path} {wish}: {answer:?}");
        assert_eq!(status(&answer).contains("; hit"), is_used, "{path} {wish}: {answer:?}");
    }
}

//! The cache in the whole program, before an origin that says what a test wants. Each request has a connection of its
//! own, so that both workers are asked.

use std::io::{Read as _, Write as _};

use crate::cache_origin::{Door, Origin, fresh, kept, status};
use crate::harness::{connect, exchange, run, until};

const PATH: &str = "/x";

#[test]
fn what_is_fresh_is_answered_by_every_worker_without_the_origin() {
    let origin = Origin::new(fresh);
    let gateway = origin.behind("{}");
    let first = gateway.get("shop.example", PATH);
    assert_eq!((first.body.as_str(), status(&first)), ("answer 0", "portcullis; fwd=uri-miss; stored"));
    let second = until("it to be kept", || {
        Some(gateway.get("shop.example", PATH)).filter(|answer| status(answer).contains("; hit"))
    });
    assert_eq!(second.body, "answer 0");
    assert!(second.field("age").is_some() && status(&second).starts_with("portcullis; hit; ttl="));
    let before = origin.count();
    for _ in 0..20 {
        assert_eq!(gateway.get("shop.example", PATH).body, "answer 0");
    }
    assert_eq!(origin.count(), before);
    // HEAD and a part come from there, too.
    let head = gateway.request("HEAD", "shop.example", PATH, &[], "");
    assert_eq!((head.status, head.field("content-length"), head.body.as_str()), (200, Some("8"), ""));
    let part = gateway.request("GET", "shop.example", PATH, &["Range: bytes=2-4"], "");
    assert_eq!((part.status, part.body.as_str()), (206, "swe"));
    assert_eq!(part.field("content-range"), Some("bytes 2-4/8"));
    assert_eq!(origin.count(), before);
    let metrics = gateway.ask_admin("/metrics").body;
    assert!(metrics.contains(
        "portcullis_cache_requests_total{namespace=\"test\",route=\"shop\",rule=\"all\",outcome=\"hit\"}"
    ));
    assert!(metrics.contains("portcullis_cache_saved_bytes_total{"), "{metrics}");
}

#[test]
fn what_no_cache_may_keep_is_asked_for_each_time() {
    let origin = Origin::new(|asked| {
        let more = match asked.target() {
            "/cookie" => "Cache-Control: max-age=600\r\nSet-Cookie: a=b",
            "/private" => "Cache-Control: private, max-age=600",
            "/no-store" => "Cache-Control: no-store",
            "/part" => "Cache-Control: max-age=600\r\nContent-Range: bytes 0-1/2",
            "/vary" => "Cache-Control: max-age=600\r\nVary: *",
            "/silent" => "X-Nothing: said",
            _ => "Cache-Control: max-age=600",
        };
        (format!("{more}\r\nConnection: close"), format!("answer {}", asked.number))
    });
    let gateway = origin.behind("{}");
    for path in ["/cookie", "/private", "/no-store", "/part", "/vary", "/silent"] {
        let bodies: Vec<_> = (0..3).map(|_| gateway.get("shop.example", path).body).collect();
        assert!(bodies[0] != bodies[1] && bodies[1] != bodies[2], "{path}: {bodies:?}");
    }
    // The control: the same without what forbids it.
    kept(|| gateway.get("shop.example", "/fine"));
    // Somebody's answer is not kept, nor is it when the credential is in a cookie jar of the backend's.
    let credential = ["Authorization: Bearer x"];
    let bodies: Vec<_> =
        (0..2).map(|_| gateway.request("GET", "shop.example", "/mine", &credential, "").body).collect();
    assert_ne!(bodies[0], bodies[1]);
    let post: Vec<_> =
        (0..2).map(|_| gateway.request("POST", "shop.example", "/post", &[], "x").body).collect();
    assert_ne!(post[0], post[1]);
    // The control: the same without the credential, by GET.
    kept(|| gateway.get("shop.example", "/mine"));
    kept(|| gateway.get("shop.example", "/post"));
}

#[test]
fn a_policy_keeps_what_the_origin_says_nothing_about_but_not_for_those_with_cookies() {
    let origin = Origin::new(|asked| ("Connection: close".into(), format!("answer {}", asked.number)));
    let gateway = origin.behind("{defaultTtl: 60s}");
    let with_cookie = |_| gateway.request("GET", "shop.example", "/c", &["Cookie: session=1"], "").body;
    let bodies: Vec<_> = (0..2).map(with_cookie).collect();
    assert_ne!(bodies[0], bodies[1], "nobody said that cookies do not matter");
    gateway.get("shop.example", PATH);
    let anybody = kept(|| gateway.get("shop.example", PATH)).body;
    for own in ["Cookie: session=1", "Authorization: Basic x"] {
        let answer = gateway.request("GET", "shop.example", PATH, &[own], "");
        assert_ne!(answer.body, anybody, "what the policy keeps is for those whose answers it keeps: {own}");
    }
    assert_eq!(gateway.get("shop.example", PATH).body, anybody, "and stays");
    let gateway = origin.behind("{defaultTtl: 60s, key: {cookies: []}}");
    gateway.request("GET", "shop.example", "/c", &["Cookie: session=1"], "");
    until("it to be kept", || {
        let answer = gateway.request("GET", "shop.example", "/c", &["Cookie: session=2"], "");
        status(&answer).contains("; hit").then_some(())
    });
}

#[test]
fn what_is_past_its_time_is_confirmed_by_the_origin() {
    let origin = Origin::new(|asked| match asked.field("if-none-match") {
        Some("\"one\"") => (
            "HTTP/1.1 304 Not Modified\r\nETag: \"one\"\r\nX-New: yes\r\nConnection: close".into(),
            String::new(),
        ),
        _ => (
            "ETag: \"one\"\r\nCache-Control: max-age=0\r\nConnection: close".into(),
            format!("answer {}", asked.number),
        ),
    });
    let gateway = origin.behind("{}");
    assert_eq!(gateway.get("shop.example", PATH).body, "answer 0");
    let again = until("it to be kept", || {
        Some(gateway.get("shop.example", PATH)).filter(|answer| status(answer).contains("fwd-status=304"))
    });
    assert_eq!((again.status, again.body.as_str(), again.field("x-new")), (200, "answer 0", Some("yes")));
    // The control: what holds is not sent again.
    assert_eq!(origin.last().field("if-none-match"), Some("\"one\""));
    // The client's own condition is met by us.
    let known = gateway.request("GET", "shop.example", PATH, &["If-None-Match: \"one\""], "");
    assert_eq!((known.status, known.body.as_str()), (304, ""));
    assert_eq!(origin.last().field("if-none-match"), Some("\"one\""));
}

#[test]
fn what_is_past_its_time_helps_out_when_the_backend_fails() {
    let origin = Origin::new(|asked| match asked.number {
        0 => ("Cache-Control: max-age=0, stale-if-error=600\r\nConnection: close".into(), "good".into()),
        _ => ("HTTP/1.1 503 Service Unavailable\r\nConnection: close".into(), "bad".into()),
    });
    let gateway = origin.behind("{}");
    assert_eq!(gateway.get("shop.example", PATH).body, "good");
    let helped = until("it to be kept", || {
        Some(gateway.get("shop.example", PATH)).filter(|answer| answer.status == 200)
    });
    assert_eq!((helped.body.as_str(), status(&helped)), ("good", "portcullis; fwd=stale; fwd-status=503"));
    assert_eq!(gateway.get("shop.example", "/other").status, 503, "the control");
}

#[test]
fn what_is_past_its_time_is_used_while_it_is_asked_for_again() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::new(move |asked| {
        if asked.number > 0 {
            held.wait();
        }
        let age = if asked.number == 0 { 0 } else { 600 };
        (
            format!("Cache-Control: max-age={age}, stale-while-revalidate=600\r\nConnection: close"),
            format!("answer {}", asked.number),
        )
    });
    let gateway = origin.behind("{}");
    assert_eq!(gateway.get("shop.example", PATH).body, "answer 0");
    // Nobody waits for the origin, which answers nothing yet, and it is asked once.
    let stale = until("it to be kept", || {
        Some(gateway.get("shop.example", PATH)).filter(|answer| status(answer).contains("; hit"))
    });
    assert_eq!(stale.body, "answer 0");
    until("the origin to be asked", || (origin.count() == 2).then_some(()));
    for _ in 0..10 {
        assert_eq!(gateway.get("shop.example", PATH).body, "answer 0");
    }
    assert_eq!(origin.count(), 2);
    door.open();
    until("the new one", || (gateway.get("shop.example", PATH).body == "answer 1").then_some(()));
    assert_eq!(origin.count(), 2);
}

#[test]
fn what_breaks_is_not_kept() {
    let origin = Origin::raw(|asked, stream| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\nContent-Length: 10\r\n\r\n";
        let body = if asked.number == 0 { "half " } else { "whole-body" };
        let _ = stream.write_all(format!("{head}{body}").as_bytes());
    });
    let gateway = origin.behind("{}");
    let mut stream = connect(gateway.http);
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: shop.example\r\n\r\n").expect("written");
    // The connection ends where the answer breaks, with or without its beginning.
    let mut cut = Vec::new();
    let _ = stream.read_to_end(&mut cut);
    assert!(cut.len() < 500 && !cut.ends_with(b"whole-body"));
    let second = gateway.get("shop.example", PATH);
    assert_eq!((second.body.as_str(), origin.count()), ("whole-body", 2));
    // The control: what is whole is kept.
    kept(|| gateway.get("shop.example", PATH));
    assert_eq!(origin.count(), 2);
}

#[test]
fn a_write_makes_what_is_kept_old() {
    let origin = Origin::new(fresh);
    let gateway = origin.behind("{}");
    let kept = |path: &str| kept(|| gateway.get("shop.example", path)).body;
    let (one, other) = (kept("/one"), kept("/other"));
    assert_eq!(gateway.request("DELETE", "shop.example", "/one", &[], "").status, 200);
    assert_ne!(gateway.get("shop.example", "/one").body, one);
    assert_eq!(gateway.get("shop.example", "/other").body, other, "another address");
}

#[test]
fn who_wants_only_what_is_kept_is_told_when_nothing_is() {
    let origin = Origin::new(fresh);
    let gateway = origin.behind("{}");
    let only = ["Cache-Control: only-if-cached"];
    let refused = gateway.request("GET", "shop.example", PATH, &only, "");
    assert_eq!((refused.status, refused.json()["reason"].as_str()), (504, Some("NotCached")));
    assert_eq!(origin.count(), 0);
    gateway.get("shop.example", PATH);
    until("it to be kept", || {
        (gateway.request("GET", "shop.example", PATH, &only, "").status == 200).then_some(())
    });
    assert_eq!(origin.count(), 1);
    // Whoever wants it new gets it new.
    assert_eq!(
        gateway.request("GET", "shop.example", PATH, &["Cache-Control: no-cache"], "").body,
        "answer 1"
    );
}

#[test]
fn what_is_too_large_passes_and_is_not_kept() {
    let origin = Origin::raw(|asked, stream| {
        let body = "y".repeat(300_000);
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\n";
        let text = match asked.target() {
            "/known" => format!("{head}Content-Length: 300000\r\n\r\n{body}"),
            _ => format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
        };
        let _ = stream.write_all(text.as_bytes());
    });
    let gateway = origin.behind("{maxBodySize: 100Ki}");
    for (path, asked) in [("/known", 2), ("/unknown", 4)] {
        for _ in 0..2 {
            assert_eq!(gateway.get("shop.example", path).body.len(), 300_000, "{path}");
        }
        assert_eq!(origin.count(), asked, "{path}");
    }
    let gateway = origin.behind("{maxBodySize: 300Ki}");
    gateway.get("shop.example", "/unknown");
    until("it to be kept", || {
        status(&gateway.get("shop.example", "/unknown")).contains("; hit").then_some(())
    });
}

#[test]
fn what_is_purged_is_asked_for_again() {
    let origin = Origin::new(|asked| {
        let tag = if asked.target().contains("tagged") { "Surrogate-Key: shoes sale\r\n" } else { "" };
        (format!("{tag}Cache-Control: max-age=600\r\nConnection: close"), format!("answer {}", asked.number))
    });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    let gateway = origin.with("{cache: {}}", &["--admin-token-file", file]);
    let kept = |path: &str| kept(|| gateway.get("shop.example", path)).body;
    let admin = gateway.admin.to_string();
    let paths = ["/one?a=b", "/images/two", "/tagged", "/four"];
    for (method, path) in
        [("GET", "/tagged"), ("GET", "/tagged"), ("HEAD", "/tagged?a"), ("POST", "/tagged?b")]
    {
        let answer = gateway.request(method, "shop.example", path, &[], "");
        assert_eq!((answer.status, answer.field("surrogate-key")), (200, None), "{method} {path}");
    }
    for (argument, purged) in [
        (["--url", "http://shop.example/one?a=b"], &paths[..1]),
        (["--prefix", "http://shop.example/images/"], &paths[1..2]),
        (["--tag", "sale"], &paths[2..3]),
        (["--route", "test/shop"], &paths[..]),
        (["--route", "test/other"], &[]),
    ] {
        let before = paths.map(kept);
        let output = run(&[&["purge", "--admin", &admin, "--token-file", file][..], &argument[..]].concat());
        assert!(output.status.success(), "{argument:?}: {output:?}");
        for (path, before) in paths.iter().zip(before) {
            let after = gateway.get("shop.example", path).body;
            assert_eq!(after != before, purged.contains(path), "{argument:?} {path}");
        }
    }
    // Nobody else can.
    let purge = |fields: &[&str], body: &str| {
        exchange(connect(gateway.admin), "POST", "admin", "/purge", fields, body).status
    };
    let good = "Authorization: Bearer 0123456789abcdef0123456789abcdef";
    assert_eq!(purge(&[good], "{\"everything\": true}"), 200);
    assert_eq!(purge(&[], "{\"everything\": true}"), 401);
    assert_eq!(
        purge(&["Authorization: Bearer 0123456789abcdef0123456789abcdeF"], "{\"everything\": true}"),
        401
    );
    assert_eq!(purge(&[good], "{}"), 400);
    assert_eq!(purge(&[good], &format!("{{\"tags\": [\"{}\"]}}", "x".repeat(200_000))), 413);
    assert_eq!(gateway.ask_admin("/purge").status, 405);
    let without = origin.behind("{}");
    assert_eq!(exchange(connect(without.admin), "POST", "admin", "/purge", &[good], "{}").status, 403);
}

#[test]
fn what_requests_ask_of_the_cache_is_followed_unless_the_rule_says_no() {
    for (policy, is_followed) in [("{}", true), ("{clientDirectives: Ignore}", false)] {
        let origin = Origin::new(fresh);
        let gateway = origin.behind(policy);
        for field in [
            "Cache-Control: no-cache",
            "Cache-Control: max-age=0",
            "Cache-Control: no-store",
            "Pragma: no-cache",
        ] {
            let before = kept(|| gateway.get("shop.example", PATH)).body;
            let asked = origin.count();
            let answer = gateway.request("GET", "shop.example", PATH, &[field], "");
            // What is kept holds; who wants nothing kept may have it.
            let is_asked = is_followed && !field.contains("no-store");
            assert_eq!(origin.count() - asked, usize::from(is_asked), "{policy} {field}");
            assert_eq!(answer.body != before, is_asked, "{policy} {field}");
        }
        gateway.request("GET", "shop.example", "/new", &["Cache-Control: no-store"], "");
        let asked = origin.count();
        gateway.get("shop.example", "/new");
        assert_eq!(origin.count() - asked, usize::from(is_followed), "{policy}: what was not to be kept");
    }
}

#[test]
fn a_write_under_another_rule_makes_what_is_kept_old() {
    let origin = Origin::new(fresh);
    let backend = "backendRefs: [{kind: GatewayBackend, name: origin}]";
    let rules = format!(
        "[{{name: read, matches: [{{methods: [GET]}}], policy: {{cache: {{}}}}, {backend}}}, {{name: write, matches: [{{methods: [PUT, DELETE]}}], {backend}}}]"
    );
    let gateway = origin.rules(&rules);
    let before = kept(|| gateway.get("shop.example", PATH)).body;
    assert_eq!(gateway.request("DELETE", "shop.example", "/other", &[], "").status, 200);
    assert_eq!(gateway.get("shop.example", PATH).body, before, "another address");
    assert_eq!(gateway.request("DELETE", "shop.example", PATH, &[], "").status, 200);
    assert_ne!(gateway.get("shop.example", PATH).body, before);
}

#[test]
fn a_write_under_another_rule_counts_as_the_cache_counts_and_for_what_its_answer_names() {
    let origin = Origin::new(|asked| {
        let (fields, body) = fresh(asked);
        let named = if asked.target() == "/cart" { "Location: /x?utm=c&page=1\r\n" } else { "" };
        (format!("{named}{fields}"), body)
    });
    let backend = "backendRefs: [{kind: GatewayBackend, name: origin}]";
    let cache = "{key: {queryParams: {include: [page]}}}";
    let rules = format!(
        "[{{name: read, matches: [{{methods: [GET]}}], policy: {{cache: {cache}}}, {backend}}}, {{name: write, matches: [{{methods: [POST, DELETE]}}], {backend}}}]"
    );
    let gateway = origin.rules(&rules);
    let kept = || kept(|| gateway.get("shop.example", "/x?page=1&utm=a")).body;
    let write = |method: &str, path: &str| {
        assert_eq!(gateway.request(method, "shop.example", path, &[], "").status, 200);
    };
    let first = kept();
    write("DELETE", "/x?page=2&utm=a");
    assert_eq!(kept(), first, "another address");
    write("DELETE", "/x?page=1&utm=b");
    let second = kept();
    assert_ne!(second, first);
    write("POST", "/basket");
    assert_eq!(kept(), second, "it names nothing");
    write("POST", "/cart");
    assert_ne!(kept(), second);
}

#[test]
fn who_has_what_is_kept_is_told_so_without_the_origin() {
    let origin = Origin::new(|_| {
        ("ETag: \"a\"\r\nCache-Control: max-age=600\r\nConnection: close".into(), "all".into())
    });
    let gateway = origin.behind("{}");
    kept(|| gateway.get("shop.example", PATH));
    let ask = |fields: &[&str]| {
        let answer = gateway.request("GET", "shop.example", PATH, fields, "");
        (answer.status, answer.body)
    };
    assert_eq!(ask(&["If-None-Match: W/\"a\""]), (304, String::new()));
    assert_eq!(ask(&["If-None-Match: \"b\""]), (200, "all".into()));
    assert_eq!(ask(&["Range: bytes=1-", "If-Range: \"a\""]), (206, "ll".into()));
    assert_eq!(ask(&["Range: bytes=1-", "If-Range: \"b\""]), (200, "all".into()));
    assert_eq!(origin.count(), 1);
}

//! What RFC 9111 requires of a cache, from outside; the sections stand with the tests. Freshness, directives and ages are
//! tested beside their code, and against a published library.

use std::io::{Read as _, Write as _};

use crate::cache_origin::{Door, Origin, fresh, kept, status};
use crate::harness::{Answer, connect, until};

const PATH: &str = "/x";

/// Section 3.1; 5.1 for the age.
#[test]
fn what_belongs_to_one_hop_or_one_client_is_not_kept() {
    let origin = Origin::new(|_| {
        let of_one = "Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=9\r\nProxy-Authenticate: Basic\r\nX-RateLimit-Remaining: 3\r\nRetry-After: 9";
        (format!("Cache-Control: max-age=600\r\nAge: 100\r\nX-Kept: 1\r\n{of_one}"), "all".into())
    });
    let gateway = origin.behind("{}");
    let answer = kept(|| gateway.get("shop.example", PATH));
    assert_eq!((answer.body.as_str(), answer.field("x-kept")), ("all", Some("1")));
    for name in ["x-hop", "keep-alive", "proxy-authenticate", "x-ratelimit-remaining", "retry-after"] {
        assert_eq!(answer.field(name), None, "{name}");
    }
    let age: u64 = answer.field("age").expect("an age").parse().expect("a number");
    assert!((100..200).contains(&age), "{age}");
}

/// Section 4.3.5.
#[test]
fn a_head_that_tells_of_another_body_makes_what_is_kept_old() {
    let origin = Origin::new(|asked| {
        let tag = if asked.number == 1 { "same" } else { "other" };
        let tag = if asked.number == 0 { "same" } else { tag };
        (
            format!("ETag: \"{tag}\"\r\nCache-Control: max-age=600\r\nConnection: close"),
            format!("{:08}", asked.number),
        )
    });
    let gateway = origin.behind("{}");
    let first = kept(|| gateway.get("shop.example", PATH)).body;
    let head = || gateway.request("HEAD", "shop.example", PATH, &["Cache-Control: no-cache"], "").status;
    assert_eq!((head(), origin.count()), (200, 2));
    assert_eq!(gateway.get("shop.example", PATH).body, first, "it tells of the same");
    assert_eq!((head(), origin.count()), (200, 3));
    assert_ne!(gateway.get("shop.example", PATH).body, first);
}

/// Sections 4.2.4 and 5.2.2.2: a disconnected cache does not use what must be confirmed.
#[test]
fn what_must_be_confirmed_does_not_help_out() {
    let origin = Origin::new(|asked| {
        let said = if asked.target() == "/strict" { ", must-revalidate" } else { "" };
        if asked.field("if-none-match").is_some() {
            return ("HTTP/1.1 503 Service Unavailable\r\nConnection: close".into(), "no".into());
        }
        (format!("ETag: \"a\"\r\nCache-Control: max-age=0{said}\r\nConnection: close"), "all".into())
    });
    let gateway = origin.behind("{staleIfError: 600s, staleWhileRevalidate: 600s}");
    for (path, expected) in [("/strict", 503), ("/lenient", 200)] {
        assert_eq!(gateway.get("shop.example", path).status, 200);
        let asked_again = || origin.last().field("if-none-match").is_some();
        let then = until("it to be kept", || {
            let answer = gateway.get("shop.example", path);
            (asked_again() || status(&answer).contains("; hit")).then_some(answer)
        });
        assert_eq!(then.status, expected, "{path}: {then:?}");
    }
}

/// Section 4.4: a write that failed has changed nothing.
#[test]
fn a_write_that_fails_leaves_what_is_kept() {
    let origin = Origin::new(|asked| match asked.field("x-fail") {
        Some(_) => ("HTTP/1.1 409 Conflict\r\nConnection: close".into(), "no".into()),
        None => fresh(asked),
    });
    let gateway = origin.behind("{}");
    let first = kept(|| gateway.get("shop.example", PATH)).body;
    assert_eq!(gateway.request("DELETE", "shop.example", PATH, &["X-Fail: yes"], "").status, 409);
    assert_eq!(gateway.get("shop.example", PATH).body, first);
    assert_eq!(gateway.request("DELETE", "shop.example", PATH, &[], "").status, 200);
    assert_ne!(gateway.get("shop.example", PATH).body, first, "the control");
}

/// Section 3.4 and RFC 9110 section 14; and the client of a large answer does not wait for its end.
#[test]
fn what_is_large_is_told_while_it_is_kept_and_then_in_parts() {
    const LENGTH: usize = 300_000;
    let body: String = (0..LENGTH).map(|at| char::from(b'a' + (at / 7 % 26) as u8)).collect();
    let door = Door::default();
    let (held, said) = (door.clone(), body.clone());
    let origin = Origin::raw(move |_, stream| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\nContent-Length: {LENGTH}\r\n\r\n"
        );
        let (first, rest) = said.split_at(100_000);
        let _ = stream.write_all(format!("{head}{first}").as_bytes());
        held.wait();
        let _ = stream.write_all(rest.as_bytes());
    });
    let gateway = origin.behind("{}");
    let mut stream = connect(gateway.http);
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n").expect("written");
    let mut beginning = vec![0; 100_000];
    stream.read_exact(&mut beginning).expect("the beginning, while the rest is held back");
    assert!(!door.is_open());
    door.open();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the rest");
    assert!(rest.ends_with(&body.as_bytes()[LENGTH - 1_000..]));
    assert_eq!(kept(|| gateway.get("shop.example", PATH)).body, body);
    let part = |range: &str| -> Answer {
        gateway.request("GET", "shop.example", PATH, &[&format!("Range: bytes={range}")], "")
    };
    for (range, first, last) in [
        ("0-0", 0, 0),
        // Over the ends of what is held together.
        ("65530-65545", 65_530, 65_545),
        ("10-290000", 10, 290_000),
        ("-5", LENGTH - 5, LENGTH - 1),
        ("299990-", 299_990, LENGTH - 1),
    ] {
        let answer = part(range);
        let told = format!("bytes {first}-{last}/{LENGTH}");
        assert_eq!((answer.status, answer.field("content-range")), (206, Some(told.as_str())), "{range}");
        assert_eq!(answer.body, body[first..=last], "{range}");
    }
    assert_eq!(part("300000-").status, 416);
    assert_eq!(origin.count(), 1);
}

/// RFC 9110 section 14.2: a range may be ignored, and who asks for all of it costs the origin no more than a part.
#[test]
fn who_asks_for_all_by_a_range_has_it_kept_for_all() {
    let origin = Origin::new(|asked| match asked.target() {
        "/private" => {
            ("Cache-Control: no-store\r\nConnection: close".into(), format!("answer {}", asked.number))
        }
        _ => fresh(asked),
    });
    let gateway = origin.behind("{}");
    let part = |path: &str, range: &str| {
        let answer = gateway.request("GET", "shop.example", path, &[&format!("Range: bytes={range}")], "");
        let told = answer.field("content-range").map(str::to_owned);
        (answer.status, told, answer.body)
    };
    let answered = |part: &str, body: &str| (206, Some(format!("bytes {part}/8")), body.to_owned());
    assert_eq!(part(PATH, "0-"), answered("0-7", "answer 0"));
    assert_eq!(origin.last().field("range"), None);
    kept(|| gateway.get("shop.example", PATH));
    assert_eq!(part(PATH, "7-"), answered("7-7", "0"));
    assert_eq!(part(PATH, "0-"), answered("0-7", "answer 0"));
    assert_eq!(origin.count(), 1);
    // What is not kept is told as the part that it is, all the same.
    for number in [1, 2] {
        assert_eq!(part("/private", "0-"), answered("0-7", &format!("answer {number}")));
    }
    // The control: of what is not kept a part is asked for as it is, and keeps nothing.
    for _ in 0..2 {
        assert_eq!(part("/other", "1-").0, 200, "this origin knows no parts");
        assert_eq!(origin.last().field("range"), Some("bytes=1-"));
    }
    assert_eq!(origin.count(), 5);
}

/// Sections 3 and 4.2.2: what is not there is kept where the policy says so, or the origin.
#[test]
fn what_is_not_there_is_kept_as_long_as_somebody_says() {
    let origin = Origin::new(|asked| {
        let more = if asked.target() == "/said" { "Cache-Control: max-age=600\r\n" } else { "" };
        (format!("HTTP/1.1 404 Not Found\r\n{more}Connection: close"), format!("none {}", asked.number))
    });
    for (policy, path, is_kept) in [
        ("{negativeTtl: 60s}", "/silent", true),
        ("{defaultTtl: 60s}", "/silent", false),
        ("{}", "/said", true),
    ] {
        let gateway = origin.behind(policy);
        let ask = || gateway.get("shop.example", path);
        if is_kept {
            let answer = kept(ask);
            assert_eq!((answer.status, ask().body == answer.body), (404, true), "{policy} {path}");
        } else {
            let bodies: Vec<_> = (0..3).map(|_| ask().body).collect();
            assert!(bodies[0] != bodies[1] && bodies[1] != bodies[2], "{policy} {path}: {bodies:?}");
        }
    }
}

/// RFC 9213: what is said to caches like this one goes before what is said to all, which clients are told.
#[test]
fn what_is_said_to_caches_of_this_kind_goes_first() {
    let origin = Origin::new(|asked| {
        let (to_all, to_us) = match asked.target() {
            "/kept" => ("no-store", "max-age=600"),
            _ => ("max-age=600", "no-store"),
        };
        let fields = format!("Cache-Control: {to_all}\r\nCDN-Cache-Control: {to_us}\r\nConnection: close");
        (fields, format!("answer {}", asked.number))
    });
    let gateway = origin.behind("{}");
    assert_eq!(kept(|| gateway.get("shop.example", "/kept")).field("cache-control"), Some("no-store"));
    let bodies: Vec<_> = (0..3).map(|_| gateway.get("shop.example", "/other").body).collect();
    assert!(bodies[0] != bodies[1] && bodies[1] != bodies[2], "{bodies:?}");
}

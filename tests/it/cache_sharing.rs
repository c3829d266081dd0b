//! Equal requests at the same time: one asks the origin, and what the others get of it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::cache_origin::{Door, Origin, fresh, kept, status};
use crate::harness::{Gateway, connect, read_answer, until};

const PATH: &str = "/x";

/// A request that nobody has read the answer of.
fn ask(gateway: &Gateway, path: &str, fields: &str) -> TcpStream {
    let mut stream = connect(gateway.http);
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    stream
}

/// Until the gateway has so many requests.
fn under_way(gateway: &Gateway, count: usize) {
    let end = format!(" {count}");
    let is_it = |line: &str| {
        line.starts_with("portcullis_requests_in_flight{")
            && line.contains("rule=\"all\"")
            && line.ends_with(&end)
    };
    until("all to be under way", || gateway.ask_admin("/metrics").body.lines().any(is_it).then_some(()));
}

#[test]
fn a_thousand_misses_of_one_key_make_one_request() {
    let door = Door::default();
    let held = door.clone();
    let body = "x".repeat(100_000);
    let (half, rest) = (body[..50_000].to_owned(), body[50_000..].to_owned());
    let origin = Origin::raw(move |_, stream| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(half.as_bytes());
        held.wait();
        let _ = stream.write_all(rest.as_bytes());
    });
    let gateway = origin.behind("{}");
    let mut clients: Vec<_> = (0..1_000).map(|_| ask(&gateway, PATH, "")).collect();
    // It streams: all have a beginning before there is an end.
    for client in &mut clients {
        let mut first = [0; 12];
        client.read_exact(&mut first).expect("a head");
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    assert_eq!(origin.count(), 1);
    door.open();
    for mut client in clients {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("the rest");
        assert!(rest.ends_with(body.as_bytes()), "{} bytes", rest.len());
    }
    assert_eq!(origin.count(), 1);
    // The control: without sharing each asks, and none waits for another.
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::new(move |asked| {
        held.wait();
        fresh(asked)
    });
    let gateway = origin.behind("{collapse: Off}");
    let mut clients: Vec<_> = (0..8).map(|_| ask(&gateway, PATH, "")).collect();
    until("all to be asked for", || (origin.count() == 8).then_some(()));
    door.open();
    clients.iter_mut().for_each(|client| assert_eq!(read_answer(client).expect("an answer").status, 200));
}

/// What is kept is past its time. To find that out asks no origin.
fn past_its_time(gateway: &Gateway) {
    let lookup =
        || gateway.request("GET", "shop.example", PATH, &["Cache-Control: only-if-cached"], "").status;
    until("the end of its time", || (lookup() == 504).then_some(()));
}

#[test]
fn a_hundred_requests_for_what_is_past_its_time_make_one() {
    // With another answer, with a confirmation, and the control: each asks.
    for (policy, confirms, fetches) in [("{}", false, 1), ("{}", true, 1), ("{collapse: Off}", false, 100)] {
        let door = Door::default();
        let held = door.clone();
        let origin = Origin::new(move |asked| {
            let fields = "ETag: \"a\"\r\nConnection: close\r\nCache-Control: max-age";
            if asked.number == 0 {
                return (format!("{fields}=1"), "answer 0".into());
            }
            held.wait();
            match confirms {
                true => (format!("HTTP/1.1 304 Not Modified\r\n{fields}=600"), String::new()),
                false => (format!("{fields}=600"), "answer 1".into()),
            }
        });
        let gateway = origin.behind(policy);
        gateway.get("shop.example", PATH);
        past_its_time(&gateway);
        assert_eq!(origin.count(), 1);
        let mut clients: Vec<_> = (0..100).map(|_| ask(&gateway, PATH, "")).collect();
        under_way(&gateway, 100);
        until("the origin to be asked", || (origin.count() == 1 + fetches).then_some(()));
        door.open();
        for client in &mut clients {
            let answer = read_answer(client).expect("an answer");
            let expected = if confirms { "answer 0" } else { "answer 1" };
            assert_eq!((answer.status, answer.body.as_str()), (200, expected), "{policy} {confirms}");
        }
        assert_eq!(origin.count(), 1 + fetches, "{policy} {confirms}");
    }
}

#[test]
fn what_is_never_fresh_is_confirmed_for_each() {
    let origin = Origin::new(|asked| {
        let fields = "ETag: \"a\"\r\nConnection: close\r\nCache-Control: max-age=0";
        match asked.field("if-none-match") {
            Some(_) => (format!("HTTP/1.1 304 Not Modified\r\n{fields}"), String::new()),
            None => (fields.into(), "all".into()),
        }
    });
    let gateway = origin.behind("{}");
    gateway.get("shop.example", PATH);
    let mut clients: Vec<_> = (0..5).map(|_| ask(&gateway, PATH, "")).collect();
    clients.iter_mut().for_each(|client| assert_eq!(read_answer(client).expect("an answer").body, "all"));
    assert_eq!(origin.count(), 6);
}

#[test]
fn whoever_waits_gets_an_answer_when_the_one_who_fetched_goes_away() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::new(move |asked| {
        if asked.number == 0 {
            held.wait();
        }
        fresh(asked)
    });
    let gateway = origin.behind("{}");
    let first = ask(&gateway, PATH, "");
    until("the origin to be asked", || (origin.count() == 1).then_some(()));
    let mut waiting: Vec<_> = (0..10).map(|_| ask(&gateway, PATH, "")).collect();
    drop(first);
    for stream in &mut waiting {
        assert_eq!(read_answer(stream).expect("an answer").body, "answer 1");
    }
    assert_eq!(origin.count(), 2);
    door.open();
}

#[test]
fn equal_requests_share_a_fetch_without_a_cache() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::new(move |asked| {
        held.wait();
        fresh(asked)
    });
    let gateway = origin.behind("{collapse: Only}");
    let mut asking: Vec<_> = (0..10).map(|_| ask(&gateway, PATH, "")).collect();
    // All of them wait for the one: the gateway has them, and the origin is asked once.
    under_way(&gateway, 10);
    until("the origin to be asked", || (origin.count() > 0).then_some(()));
    assert_eq!(origin.count(), 1);
    door.open();
    let bodies: Vec<_> =
        asking.iter_mut().map(|stream| read_answer(stream).expect("an answer").body).collect();
    assert!(bodies.iter().all(|body| body == "answer 0"), "{bodies:?}");
    assert_eq!(gateway.get("shop.example", PATH).body, "answer 1", "nothing is kept");
}

#[test]
fn who_joins_an_open_answer_is_told_its_age() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::raw(move |_, stream| {
        let head =
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\nContent-Length: 8\r\n\r\n";
        let _ = stream.write_all(format!("{head}half").as_bytes());
        held.wait();
        let _ = stream.write_all(b"half");
    });
    let gateway = origin.behind("{}");
    let mut first = ask(&gateway, PATH, "");
    first.read_exact(&mut [0; 12]).expect("a head");
    let mut second = ask(&gateway, PATH, "");
    second.read_exact(&mut [0; 9]).expect("a head");
    // Who wants it new does not join.
    let mut third = ask(&gateway, PATH, "Cache-Control: no-cache\r\n");
    until("it to be asked for anew", || (origin.count() == 2).then_some(()));
    door.open();
    let mut rest = String::new();
    second.read_to_string(&mut rest).expect("the rest");
    assert!(rest.to_ascii_lowercase().contains("\r\nage: ") && rest.contains("; collapsed"), "{rest}");
    assert!(rest.ends_with("halfhalf"), "{rest}");
    let third = read_answer(&mut third).expect("an answer");
    assert!(!status(&third).contains("collapsed") && third.body == "halfhalf", "{third:?}");
}

#[test]
fn what_comes_as_it_happens_is_each_client_s_own() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::raw(move |asked, stream| {
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n";
        let _ = stream.write_all(format!("{head}data: {}\n\n", asked.number).as_bytes());
        held.wait();
    });
    for policy in ["{}", "{collapse: Only}"] {
        let gateway = origin.behind(policy);
        let before = origin.count();
        let mut clients: Vec<_> = (0..3).map(|_| ask(&gateway, PATH, "")).collect();
        until("each to be asked for", || (origin.count() == before + 3).then_some(()));
        for client in &mut clients {
            client.read_exact(&mut [0; 12]).expect("a head");
        }
    }
    door.open();
}

#[test]
fn whoever_waits_tries_when_another_s_fetch_fails() {
    let door = Door::default();
    let held = door.clone();
    let origin = Origin::raw(move |asked, stream| {
        if asked.number == 0 {
            held.wait();
            let _ = stream.write_all(b"this is no answer\r\n\r\n");
            return;
        }
        let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\n";
        let _ = stream.write_all(format!("{head}Content-Length: 4\r\n\r\ngood").as_bytes());
    });
    let gateway = origin.behind("{}");
    let mut first = ask(&gateway, PATH, "");
    until("the origin to be asked", || (origin.count() == 1).then_some(()));
    let mut waiting: Vec<_> = (0..5).map(|_| ask(&gateway, PATH, "")).collect();
    under_way(&gateway, 6);
    door.open();
    assert_eq!(read_answer(&mut first).expect("an answer").status, 502, "the control");
    for client in &mut waiting {
        let answer = read_answer(client).expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (200, "good"), "{answer:?}");
    }
    assert_eq!(origin.count(), 2, "one of them tried for all");
    kept(|| gateway.get("shop.example", PATH));
}

#[test]
fn a_fetch_that_all_have_left_ends_and_nothing_of_it_is_kept() {
    let left = Door::default();
    let told = left.clone();
    let origin = Origin::raw(move |asked, stream| {
        let head =
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nConnection: close\r\nContent-Length: 8\r\n\r\n";
        if asked.number > 0 {
            let _ = stream.write_all(format!("{head}all here").as_bytes());
            return;
        }
        let _ = stream.write_all(format!("{head}half").as_bytes());
        // The gateway closes what nobody wants.
        if matches!(stream.read(&mut [0; 64]), Ok(0)) {
            told.open();
        }
    });
    let gateway = origin.behind("{}");
    let mut clients = [ask(&gateway, PATH, ""), ask(&gateway, PATH, "")];
    clients.iter_mut().for_each(|client| client.read_exact(&mut [0; 12]).expect("a head"));
    drop(clients);
    until("the fetch to end", || left.is_open().then_some(()));
    let whole = gateway.get("shop.example", PATH);
    assert_eq!((whole.body.as_str(), origin.count()), ("all here", 2));
    kept(|| gateway.get("shop.example", PATH));
}

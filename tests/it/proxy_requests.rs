//! Requests as raw bytes: what is refused, what the backend sees of what is not, and what comes back.

use super::proxy_rig::*;

const GET: &str = "GET /a HTTP/1.1\r\nhost: gw.test\r\n\r\n";

#[tokio::test]
async fn a_request_reaches_its_backend_and_the_answer_its_client() {
    let backend =
        Backend::answering("HTTP/1.1 201 Created\r\nserver: x\r\ncontent-length: 2\r\n\r\nok").await;
    let gateway = Gateway::before(backend.address);
    let answer = exchange(
        gateway.http(),
        "POST /a/../b?q=1 HTTP/1.1\r\nhost: gw.test:80\r\ncontent-length: 3\r\nx-own: 1\r\n\r\nabc",
    )
    .await;
    assert_eq!(status(&answer), 201);
    assert_eq!((field(&answer, "server"), answer.ends_with("\r\n\r\nok")), (Some("x"), true));
    let heard = backend.last();
    assert!(heard.starts_with("POST /b?q=1 HTTP/1.1\r\n") && heard.ends_with("\r\n\r\nabc"), "{heard}");
    assert_eq!(field(&heard, "host"), Some("gw.test:80"));
    assert_eq!(field(&heard, "content-length"), Some("3"));
    assert_eq!(field(&heard, "x-own"), Some("1"));
    assert_eq!(field(&heard, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(field(&heard, "x-forwarded-proto"), Some("http"));
    assert_eq!(field(&heard, "x-forwarded-host"), Some("gw.test:80"));
    assert_eq!(field(&heard, "forwarded"), Some("for=127.0.0.1;host=\"gw.test:80\";proto=http"));
    assert_eq!(field(&heard, "x-request-id").map(str::len), Some(32));
    assert_eq!(field(&heard, "via"), None);
}

/// It names itself in no `Via`, and what others say there is theirs.
#[tokio::test]
async fn no_via_is_added_and_what_others_say_there_passes() {
    let lines = |message: &str| {
        let head = message.split("\r\n\r\n").next().unwrap_or_default().lines().skip(1);
        let via =
            head.filter_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("via")));
        via.map(|(_, value)| value.trim().to_owned()).collect::<Vec<_>>()
    };
    for (sent, said) in [
        (&[][..], &[][..]),
        (&["1.0 outer (a, b)", "HTTP/2 nearer:80"], &["1.1 inner", "1.0 innermost, 1.1 x"]),
    ] {
        let fields =
            |values: &[&str]| values.iter().map(|value| format!("Via: {value}\r\n")).collect::<String>();
        let backend =
            Backend::answering(&format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", fields(said)))
                .await;
        let gateway = Gateway::before(backend.address);
        let request = |method: &str| format!("{method} / HTTP/1.1\r\nhost: gw.test\r\n{}\r\n", fields(sent));
        let answer = exchange(gateway.http(), &request("GET")).await;
        assert_eq!((status(&answer), lines(&answer)), (200, said.iter().map(ToString::to_string).collect()));
        assert_eq!(lines(&backend.last()), sent, "what the backend heard");
        // Nor where it answers itself.
        let answer = exchange(gateway.http(), &request("TRACE")).await;
        assert_eq!((status(&answer), lines(&answer)), (405, Vec::new()));
    }
}

/// Each: what is sent after the connection is open, and the expected status. The backend must not hear of any.
const REFUSED: &[(&str, &str, u16)] = &[
    ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
    ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    ("two equal hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
    ("empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n", 400),
    ("port out of range", "GET / HTTP/1.1\r\nhost: gw.test:99999\r\n\r\n", 400),
    ("userinfo", "GET / HTTP/1.1\r\nhost: a@gw.test\r\n\r\n", 400),
    ("path in host", "GET / HTTP/1.1\r\nhost: gw.test/x\r\n\r\n", 400),
    ("HTTP/1.0 without host", "GET / HTTP/1.0\r\n\r\n", 400),
    ("scheme of an absolute target", "GET ftp://gw.test/ HTTP/1.1\r\nhost: gw.test\r\n\r\n", 400),
    ("comma chunked", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: ,chunked\r\n\r\n0\r\n\r\n", 400),
    ("identity", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "two lines of chunked",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("gzip, chunked", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("not chunked at the end", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n", 400),
    ("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("two lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
    ("signed length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc", 400),
    ("list of lengths", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 3\r\n\r\nabc", 400),
    ("space before colon", "GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400),
    ("folded line", "GET / HTTP/1.1\r\nhost: a\r\nx: b\r\n c\r\n\r\n", 400),
    ("control byte in a name", "GET / HTTP/1.1\r\nhost: a\r\nx\u{1}: b\r\n\r\n", 400),
    ("HTTP/2.0 in words", "GET / HTTP/2.0\r\nhost: a\r\n\r\n", 400),
    ("HTTP/0.9", "GET /\r\n\r\n", 400),
    ("CONNECT", "CONNECT gw.test:443 HTTP/1.1\r\nhost: gw.test:443\r\n\r\n", 405),
    ("TRACE", "TRACE / HTTP/1.1\r\nhost: a\r\n\r\n", 405),
    ("star for GET", "GET * HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("path above the root", "GET /../a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("encoded slash", "GET /a%2fb HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("encoded NUL", "GET /a%00 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
];

#[tokio::test]
async fn what_is_ambiguous_is_refused_before_any_backend_hears_of_it() {
    let backend = Backend::ok().await;
    let gateway = Gateway::before(backend.address);
    let mut wrong = Vec::new();
    for (name, request, expected) in REFUSED {
        let answer = exchange(gateway.http(), request).await;
        if status(&answer) != *expected || !backend.heard().is_empty() {
            wrong.push(format!(
                "{name}: {} heard {:?}",
                answer.lines().next().unwrap_or("nothing"),
                backend.heard()
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The control: the same gateway serves a proper request.
    assert_eq!(status(&exchange(gateway.http(), GET).await), 200);
}

#[tokio::test]
async fn sizes_are_bounded() {
    let backend = Backend::ok().await;
    let gateway = Gateway::before(backend.address);
    let long = "a".repeat(9_000);
    let answer = exchange(gateway.http(), &format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (414, "UriTooLong"));
    let large = "a".repeat(20_000);
    let answer = exchange(gateway.http(), &format!("GET / HTTP/1.1\r\nhost: a\r\nx: {large}\r\n\r\n")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (431, "HeadersTooLarge"));
    let larger = "a".repeat(40_000);
    let answer = exchange(gateway.http(), &format!("GET / HTTP/1.1\r\nhost: a\r\nx: {larger}\r\n\r\n")).await;
    assert_eq!(status(&answer), 431);
    let many = "x: y\r\n".repeat(120);
    let answer = exchange(gateway.http(), &format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n")).await;
    assert_eq!(status(&answer), 431);
    let method = "A".repeat(40);
    let answer = exchange(gateway.http(), &format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    assert_eq!(status(&answer), 501);
    assert!(backend.heard().is_empty());
}

#[tokio::test]
async fn what_concerns_one_connection_goes_no_further() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-inner\r\nkeep-alive: timeout=5\r\nx-inner: 1\r\n\
         proxy-connection: keep-alive\r\nx-outer: 1\r\ncontent-length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Gateway::before(backend.address);
    let answer = exchange(
        gateway.http(),
        "GET / HTTP/1.1\r\nhost: gw.test\r\nconnection: keep-alive, X-Secret, X-Forwarded-For, X-Forwarded-Proto\r\n\
         x-secret: 1\r\nkeep-alive: 5\r\nproxy-connection: keep-alive\r\nproxy-authorization: Basic eA==\r\n\
         te: gzip\r\nhttp2-settings: AAMAAABk\r\nx-forwarded-for: 10.9.8.7\r\nx_forwarded_for: 10.9.8.7\r\n\
         x-real-ip: 10.9.8.7\r\nforwarded: for=10.9.8.7\r\n\r\n",
    )
    .await;
    let heard = backend.last();
    for name in [
        "connection",
        "x-secret",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "te",
        "http2-settings",
        "x_forwarded_for",
    ] {
        assert_eq!(field(&heard, name), None, "{name} in {heard}");
    }
    assert!(!heard.contains("10.9.8.7"), "{heard}");
    assert_eq!(field(&heard, "x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(field(&heard, "x-forwarded-proto"), Some("http"));
    for name in ["keep-alive", "x-inner", "proxy-connection", "connection"] {
        assert_eq!(field(&answer, name), None, "{name} in {answer}");
    }
    assert_eq!(field(&answer, "x-outer"), Some("1"));
}

#[tokio::test]
async fn the_target_s_authority_decides_over_host() {
    let backend = Backend::ok().await;
    let gateway = Gateway::start();
    gateway.serve(&[("a.test", forward("b"))], &[("b", backend.address)]);
    let answer = exchange(gateway.http(), "GET http://a.test/x HTTP/1.1\r\nhost: b.test\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
    assert!(backend.last().starts_with("GET /x HTTP/1.1\r\n"));
    assert_eq!(field(&backend.last(), "host"), Some("a.test"));
}

#[tokio::test]
async fn before_the_first_map_clients_are_told_to_come_back() {
    let gateway = Gateway::start();
    let request = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
    let answer = exchange(gateway.http(), request).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (503, "Starting"));
    assert_eq!(field(&answer, "retry-after"), Some("1"));
    // The control: an empty map is a map.
    gateway.serve(&[], &[]);
    let answer = exchange(gateway.http(), request).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (404, "NoRouteMatch"));
}

#[tokio::test]
async fn hosts_and_rules_that_are_not_there_are_404_and_rules_that_cannot_be_served_say_why() {
    let gateway = Gateway::start();
    let request = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    use portcullis::message::ErrorKind::{BackendNotFound, PolicyInvalid};
    gateway.serve(
        &[
            ("a.test", respond("a")),
            ("p.test", unserved(PolicyInvalid)),
            ("n.test", unserved(BackendNotFound)),
        ],
        &[],
    );
    let answer = exchange(gateway.http(), &request("a.test")).await;
    assert!(
        answer.ends_with("\r\n\r\na") && field(&answer, "content-type") == Some("text/plain"),
        "{answer}"
    );
    let answer = exchange(gateway.http(), &request("b.test")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (404, "NoRouteMatch"));
    let answer = exchange(gateway.http(), &request("p.test")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (503, "PolicyInvalid"));
    let answer = exchange(gateway.http(), &request("n.test")).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (500, "BackendNotFound"));
}

#[tokio::test]
async fn a_kept_connection_serves_requests_one_after_the_other_and_pipelined() {
    use tokio::io::AsyncWriteExt;
    let backend = Backend::ok().await;
    let gateway = Gateway::before(backend.address);
    let mut socket = tokio::net::TcpStream::connect(gateway.http()).await.expect("connects");
    for _ in 0..3 {
        socket.write_all(GET.as_bytes()).await.expect("sent");
        assert_eq!(status(&answer(&mut socket).await), 200);
    }
    socket.write_all(GET.repeat(3).as_bytes()).await.expect("sent");
    let mut rest = Vec::new();
    for _ in 0..3 {
        assert_eq!(status(&read_message(&mut socket, &mut rest).await.expect("an answer")), 200);
    }
    assert_eq!(backend.heard().len(), 6);
}

#[tokio::test]
async fn head_no_content_and_not_modified_have_no_body() {
    let gateway = Gateway::start();
    gateway.serve(&[("a.test", respond("hello"))], &[]);
    let answer =
        exchange(gateway.http(), "HEAD / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n").await;
    assert!(answer.ends_with("\r\n\r\n") && field(&answer, "content-length") == Some("5"), "{answer}");
    let answer =
        exchange(gateway.http(), "HEAD / HTTP/1.1\r\nhost: b.test\r\nconnection: close\r\n\r\n").await;
    assert!(status(&answer) == 404 && answer.ends_with("\r\n\r\n"), "{answer}");
    let backend =
        Backend::answering("HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 9\r\n\r\n").await;
    gateway.serve(&[("", forward("b"))], &[("b", backend.address)]);
    let answer = exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n").await;
    assert!(
        status(&answer) == 304 && answer.ends_with("\r\n\r\n") && field(&answer, "etag").is_some(),
        "{answer}"
    );
}

#[tokio::test]
async fn failures_are_text_for_who_asks_for_text() {
    let gateway = Gateway::start();
    gateway.serve(&[], &[]);
    let answer = exchange(gateway.http(), "GET / HTTP/1.1\r\nhost: a\r\naccept: text/plain\r\n\r\n").await;
    assert_eq!(field(&answer, "content-type"), Some("text/plain; charset=utf-8"));
    assert!(answer.contains("reason: NoRouteMatch"), "{answer}");
}

#[tokio::test]
async fn backends_that_break_the_rules_are_502_and_a_cut_body_is_cut() {
    let gateway = Gateway::start();
    for (name, bytes) in [
        ("garbage", "what?\r\n\r\n"),
        ("nothing", ""),
        ("half a head", "HTTP/1.1 200 OK\r\ncontent-le"),
        (
            "an unasked 101",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        ),
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"),
    ] {
        let backend = Backend::answering(bytes).await;
        gateway.serve(&[("", forward("b"))], &[("b", backend.address)]);
        let answer =
            exchange(gateway.http(), "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
        assert_eq!(status(&answer), 502, "{name}: {answer}");
    }
    let short =
        Backend::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nabc").await;
    gateway.serve(&[("", forward("b"))], &[("b", short.address)]);
    let answer = exchange(gateway.http(), GET).await;
    assert!(status(&answer) == 200 && answer.ends_with("abc"), "closed before the end: {answer}");
    let chunked = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let chunked = Backend::answering(chunked).await;
    gateway.serve(&[("", forward("b"))], &[("b", chunked.address)]);
    let answer = exchange(gateway.http(), GET).await;
    assert!(status(&answer) == 200 && !answer.contains("\r\n0\r\n"), "never as whole: {answer}");
}

#[tokio::test]
async fn a_backend_s_head_without_measure_is_502() {
    let gateway = Gateway::start();
    let fields = |count: usize| "x: y\r\n".repeat(count);
    for (extra, expected) in
        [(fields(199), 200), (fields(200), 502), (format!("x: {}\r\n", "y".repeat(70_000)), 502)]
    {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{extra}\r\nok");
        let backend = Backend::answering(&answer).await;
        gateway.serve(&[("", forward("b"))], &[("b", backend.address)]);
        assert_eq!(status(&exchange(gateway.http(), GET).await), expected, "{} bytes", answer.len());
    }
}

#[tokio::test]
async fn a_length_beside_chunked_is_dropped_and_the_connection_ends() {
    let backend = Backend::ok().await;
    let gateway = Gateway::before(backend.address);
    for fields in
        ["content-length: 3\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 3"]
    {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{GET}");
        let answer = exchange(gateway.http(), &request).await;
        assert_eq!((status(&answer), field(&answer, "connection")), (200, Some("close")), "{fields}");
        let heard = backend.last();
        assert!(field(&heard, "content-length").is_none() && heard.contains("5\r\nhello\r\n"), "{heard}");
    }
    assert_eq!(backend.heard().len(), 2, "what came behind it was never a request");
}

#[tokio::test]
async fn words_of_clients_make_no_series() {
    let gateway = Gateway::start();
    gateway.serve(&[("a.test", respond("a"))], &[]);
    let series = || {
        gateway
            .telemetry
            .render()
            .lines()
            .filter(|line| line.starts_with("portcullis_requests_total{"))
            .count()
    };
    for n in 0..300 {
        exchange(
            gateway.http(),
            &format!("GET /{n} HTTP/1.1\r\nhost: h{n}.test\r\nuser-agent: u{n}\r\n\r\n"),
        )
        .await;
        exchange(gateway.http(), &format!("M{n} /{n} HTTP/1.1\r\nhost: a.test\r\n\r\n")).await;
    }
    until("the counts", || series() == 2).await;
    assert!(!gateway.telemetry.render().contains("h299"));
}

#[tokio::test]
async fn a_request_in_circles_is_stopped_at_the_fifth_pass() {
    let gateway = Gateway::start();
    gateway.serve(&[("", forward("self"))], &[("self", gateway.http())]);
    let answer = exchange(gateway.http(), GET).await;
    assert_eq!((status(&answer), reason(&answer).as_str()), (508, "LoopDetected"));
}

#[tokio::test]
async fn weights_share_requests_out_exactly() {
    use portcullis::filters::TimeoutsPlan;
    let (a, b) = (Backend::ok().await, Backend::ok().await);
    let gateway = Gateway::start();
    let action = shared_out(&[("a", 3), ("b", 1)], TimeoutsPlan::default());
    gateway.serve(&[("", action)], &[("a", a.address), ("b", b.address)]);
    for _ in 0..40 {
        assert_eq!(status(&exchange(gateway.http(), GET).await), 200);
    }
    assert_eq!((a.heard().len(), b.heard().len()), (30, 10));
}

#[tokio::test]
async fn options_for_the_whole_server_is_answered_here() {
    let gateway = Gateway::start();
    let answer = exchange(gateway.http(), "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(status(&answer), 204);
}

#[tokio::test]
async fn each_request_is_counted_once_under_its_rule_with_its_reason() {
    let gateway = Gateway::start();
    gateway.serve(&[("a.test", respond("hello"))], &[]);
    for host in ["a.test", "a.test", "b.test"] {
        exchange(gateway.http(), &format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    }
    let counted = |parts: &[&str], value: &str| {
        let metrics = gateway.telemetry.render();
        metrics.lines().any(|line| {
            line.starts_with("portcullis_requests_total{")
                && parts.iter().all(|part| line.contains(part))
                && line.ends_with(value)
        })
    };
    until("two answers of the rule", || counted(&["route=\"a.test\"", "\"200\""], " 2")).await;
    until("one without a rule", || counted(&["reason=\"NoRouteMatch\"", "\"404\""], " 1")).await;
}

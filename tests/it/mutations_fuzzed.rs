//! The targets of `make fuzz`, given seeds that are broken at random: without a nightly compiler and in each run, so that
//! none of them rots. `manifests` and `path` have their seeds in `mutations`.

#[path = "../../fuzz/fuzz_targets/answer.rs"]
mod answer;
#[path = "../../fuzz/fuzz_targets/cache.rs"]
mod cache;
#[path = "../../fuzz/fuzz_targets/expression.rs"]
mod expression;
#[path = "../../fuzz/fuzz_targets/head.rs"]
mod head;
#[path = "../../fuzz/heads.rs"]
mod heads;
#[path = "../../fuzz/fuzz_targets/manifests.rs"]
pub mod manifests;
#[path = "../../fuzz/fuzz_targets/merge.rs"]
mod merge;
#[path = "../../fuzz/fuzz_targets/path.rs"]
pub mod path;
#[path = "../../fuzz/fuzz_targets/proxy_header.rs"]
mod proxy_header;
#[path = "../../benches/measure/request.rs"]
mod request;
#[path = "../../fuzz/fuzz_targets/template.rs"]
mod template;
#[path = "../../fuzz/fuzz_targets/token.rs"]
mod token;

use std::collections::BTreeSet;
use std::path::Path;

use crate::mutations::{Chance, Shown, broken, files, rounds};

/// Gives a target its seeds and what is made of them. The controls: it takes every seed, and of what is broken some and
/// not all.
fn give(check: impl Fn(&[u8]) -> bool, salt: u64, seeds: &[Vec<u8>], words: &[&[u8]], usually: usize) {
    let given = |bytes: &[u8]| {
        let _shown = Shown(bytes);
        check(bytes)
    };
    assert!(!seeds.is_empty());
    for seed in seeds {
        assert!(given(seed), "a seed that is not taken: {}", seed.escape_ascii());
    }
    let chance = &mut Chance::new(salt);
    let all = rounds(usually);
    let taken = (0..all).filter(|_| given(&broken(chance, seeds, words))).count();
    assert!((all / 20..all - all / 20).contains(&taken), "the control: of {all} {taken} were taken");
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    files(&format!("fuzz/seeds/{target}"), "txt").into_iter().map(String::into_bytes).collect()
}

#[test]
fn a_broken_head_is_refused_or_has_one_form() {
    let words = [
        "\n",
        "\r\n",
        "\n\n",
        " ",
        "\t",
        ",",
        ":",
        "\u{80}",
        "/../",
        "//",
        "%2e",
        "%2f",
        "?",
        "#",
        "*",
        "GET ",
        "OPTIONS ",
        "CONNECT ",
        "http://a.test",
        "ftp://",
        "user@",
        ":443",
        "Host: evil.test\n",
        "Connection: host\n",
        "Connection: cookie\n",
        "Connection: te, upgrade\n",
        "Cookie: c=3\n",
        "Cookie:\n",
        "Expect: 100-continue\n",
        "Transfer-Encoding: chunked\n",
        "Transfer-Encoding: gzip\n",
        "Upgrade: h2c\n",
        "TE: trailers\n",
        "X-Forwarded-Host: a\n",
        "X_A: 1\n",
    ]
    .map(str::as_bytes);
    give(head::check, 64, &seeds("head"), &words, 20_000);
}

#[test]
fn a_broken_answer_has_one_end_however_it_is_torn() {
    let seeds = [
        "\x08HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: 1\r\n\r\nhello",
        "\x03HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\n",
        "\x02HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n\
         5;a=b\r\nhello\r\n00a\r\n, my world\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\nHTTP/1.1 ",
        "\x0cHTTP/1.0 200\r\nX: 1\r\n\r\nto the end",
        "\x10HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\nother bytes",
    ];
    let words = [
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        " ",
        "\t",
        ":",
        ";",
        ",",
        "\0",
        "0",
        "ffffffffffffffff",
        "0\r\n\r\n",
        "\r\n0\r\n\r\n",
        "HTTP/1.1 100 \r\n\r\n",
        "HTTP/1.0",
        " 204 ",
        " 304 ",
        "Content-Length: 5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 18446744073709551615\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: keep-alive\r\n",
    ];
    let seeds = seeds.map(|seed| seed.as_bytes().to_vec());
    give(answer::check, 71, &seeds, &words.map(str::as_bytes), 20_000);
}

#[test]
fn a_broken_exchange_is_kept_by_nobody_or_as_it_may_be() {
    let words = [
        "\n",
        "\n\n",
        " ",
        ",",
        "=",
        "\"",
        "\\",
        "0",
        "-1",
        "99999999999999999999",
        "\u{80}",
        "*",
        "206",
        "no-store",
        "no-cache",
        "private",
        "public",
        "must-revalidate",
        "must-understand",
        "max-age=0",
        "s-maxage=9",
        "stale-while-revalidate=2147483648",
        "Cache-Control: no-store\n",
        "CDN-Cache-Control: private\n",
        "Vary: *\n",
        "Vary: X-A, Cookie\n",
        "Age: 7\n",
        "Set-Cookie: a=1\n",
        "Content-Range: bytes 0-1/2\n",
        "Authorization: Basic x\n",
        "Cookie: s=1, s=2\n",
        "Range: bytes=-9\n",
        "Range: bytes=18446744073709551615-\n",
        "If-None-Match: \"v1\"\n",
        "Expires: Thu, 01 Jan 1970 00:00:00 GMT\n",
        "Expires: Fri, 31 Dec 9999 23:59:59 GMT\n",
    ]
    .map(str::as_bytes);
    give(cache::check, 65, &seeds("cache"), &words, 4_000);
}

#[test]
fn a_broken_expression_or_template_is_refused_or_has_bounded_values() {
    let rest = "\0{\"a\": {\"b\": [1, 2.5, null]}, \"c\": \"x\"}\0/orders/7?page=2&a=%20";
    let sources = [
        "request.method == 'GET'",
        "request.headers['x-tenant'] == 'acme' && request.path.startsWith('/orders')",
        "request.path.matches('^/orders/[0-9]+$') ? request.body.a.b[1] : -1 * 2",
        "cidr('192.0.2.0/24').containsIP(client.address)",
        "{'a': request.body.a, 'b': [request.query.page, 1 + 2]}",
    ];
    let words = [
        "(",
        ")",
        "[",
        "]",
        "'",
        "\\",
        "!",
        "&&",
        "||",
        "?",
        ".size()",
        "9223372036854775807",
        "in",
        "\0",
        "{}",
    ];
    let with_rest = |source: &&str| format!("{source}{rest}").into_bytes();
    let expressions: Vec<_> = sources.iter().map(with_rest).collect();
    give(expression::check, 66, &expressions, &words.map(str::as_bytes), 4_000);
    let templates =
        ["/v1/${request.query.page}/x", "${request.path}, ${client.address} $${a}", "/a/${request.method}/"];
    let words =
        ["${", "}", "/", "..", "/./", "$", "%2f", "\r\n", "?", "#", "'", "é", "request.path", "\0/../"];
    let templates: Vec<_> =
        templates.iter().map(|source| format!("{source}\0/a/b%20c?page=%2F..").into_bytes()).collect();
    give(template::check, 67, &templates, &words.map(str::as_bytes), 4_000);
}

#[test]
fn a_broken_token_answer_or_proxy_header_is_read_in_one_way() {
    let tokens = [
        "{\"alg\":\"RS256\",\"kid\":\"a\"}\0{\"iss\":\"https://login.example\",\"exp\":1700000000}\0signature",
        "{\"alg\":\"ES256\"}\0{\"iss\":\"a\",\"sub\":\"b\",\"aud\":[\"c\"],\"exp\":1}\0s",
    ];
    let words = ["\"", "\0", ".", "{", "}", ",", "\\u0000", "\"iss\":\"b\"", "null", "=", "é", "1e999"]
        .map(str::as_bytes);
    give(token::check, 68, &tokens.map(|token| token.as_bytes().to_vec()), &words, 4_000);
    let answers = ["{\"a\": [1, {\"b\": null}]}\0[true, \"x\\u00e9\"]\0 -1.5e3 \0", "\"only\"\0{"];
    give(merge::check, 69, &answers.map(|answer| answer.as_bytes().to_vec()), &words, 4_000);
    let binary =
        b"\x07\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\x1f\x90\0\x50GET /".to_vec();
    let headers = [
        b"\x01PROXY TCP4 192.0.2.7 10.0.0.1 8080 80\r\nGET / HTTP/1.1".to_vec(),
        b"\xffPROXY TCP6 2001:db8::7 ::1 8080 443\r\n".to_vec(),
        b"\x03PROXY UNKNOWN\r\n".to_vec(),
        binary,
    ];
    let words = [&b"\r\n"[..], b" ", b"0", b":", b"\xff\xff", b"\x20", b"\x21\x21", b"65536"];
    give(proxy_header::check, 70, &headers, &words, 20_000);
}

/// The targets that a text names, by what stands before and behind each.
fn named<'t>(text: &'t str, before: &str, behind: &str) -> BTreeSet<&'t str> {
    let lines = text.lines().map(str::trim);
    lines.filter_map(|line| line.strip_prefix(before)?.strip_suffix(behind)).collect()
}

#[test]
fn every_target_stands_wherever_targets_are_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    let folder = root.join("fuzz/fuzz_targets").read_dir().expect("the targets");
    let names: Vec<_> =
        folder.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    let targets: BTreeSet<&str> = names.iter().filter_map(|name| name.strip_suffix(".rs")).collect();
    assert_eq!((targets.len(), targets.contains("head")), (names.len(), true), "{names:?}");

    let makefile = read("Makefile");
    let fuzzed =
        makefile.lines().find_map(|line| line.strip_prefix("FUZZED = ")).expect("the Makefile's list");
    let lengths = fuzzed.split(' ').map(|one| one.split_once(':').expect("a target and its longest input"));
    let listed: BTreeSet<&str> = lengths
        .map(|(name, longest)| {
            assert!(longest.parse::<u32>().is_ok_and(|longest| longest > 0), "{name}: {longest}");
            name
        })
        .collect();
    assert_eq!(listed, targets, "the Makefile");

    let manifest = read("fuzz/Cargo.toml");
    assert_eq!(named(&manifest, "path = \"fuzz_targets/", ".rs\""), targets, "fuzz/Cargo.toml");
    let (_, binaries) = manifest.split_once("[[bin]]").expect("targets");
    assert_eq!(named(binaries, "name = \"", "\""), targets, "fuzz/Cargo.toml");
    let here = named(include_str!("mutations_fuzzed.rs"), "#[path = \"../../fuzz/fuzz_targets/", ".rs\"]");
    assert_eq!(here, targets, "this file");
    let folder = root.join("fuzz/seeds").read_dir().expect("the seeds");
    for seeds in folder.map(|entry| entry.expect("an entry").file_name()) {
        assert!(seeds.to_str().is_some_and(|name| targets.contains(name)), "seeds of nothing: {seeds:?}");
    }
}

//! What expressions give, what they cost, and that nothing makes them panic.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::message::{
    Captures, Client, Exchange, Identity, IdentityKind, KnownIdentity, Labels, LocalFuture, Outbound,
    Protocol, ProxyError, Request, RequestId, Response, Scheme,
};
use crate::values::BackendId;

struct Nowhere;

impl Outbound for Nowhere {
    fn call<'a>(&'a self, _: &'a BackendId, _: Request) -> LocalFuture<'a, Result<Response, ProxyError>> {
        unreachable!("no expression asks a backend")
    }

    fn detach(&self, work: LocalFuture<'static, ()>) -> Result<(), LocalFuture<'static, ()>> {
        Err(work)
    }
}

pub(super) fn exchange() -> Exchange {
    let mut request = Request::default();
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = "/orders/7?page=2&tag=a&tag=b+c&n%C3%A9=%C3%A9".parse().expect("a URI");
    for (name, value) in
        [("x-tenant", "acme"), ("accept", "a/b"), ("accept", "c/d"), ("cookie", "a=1"), ("cookie", "b=2")]
    {
        request.headers_mut().append(name, http::HeaderValue::from_static(value));
    }
    request.headers_mut().insert("x-latin", http::HeaderValue::from_bytes(b"caf\xe9").expect("bytes"));
    let claims =
        json!({"tier": "gold", "level": 7, "ratio": 0.5, "groups": ["dev", "ops"], "org": {"id": 12}});
    let identity = KnownIdentity {
        kind: IdentityKind::Jwt,
        entry: "users".into(),
        issuer: "https://login.example".into(),
        id: "alice".into(),
        scopes: Arc::new(["orders:read".into(), "orders:write".into()]),
        claims: Arc::new(claims.as_object().expect("an object").clone()),
    };
    Exchange {
        identity: Identity::new(Arc::new(identity)),
        captures: Captures(vec![("id".into(), "a%20b".into())]),
        ..Exchange::new(
            request,
            Client {
                peer: SocketAddr::from(([10, 0, 0, 1], 1)),
                ip: [192, 0, 2, 7].into(),
                scheme: Scheme::Https,
                protocol: Protocol::Http2,
                server_name: Some("shop.example".into()),
                certificate: None,
                vouched: None,
            },
            "shop.example".into(),
            Arc::new(Labels { namespace: "shop".into(), route: "web".into(), rule: "orders".into() }),
            RequestId([0; 16]),
            Instant::now(),
            Rc::new(Nowhere),
        )
    }
}

fn holds(source: &str) -> Result<bool, Why> {
    let expression =
        Expression::parse(source, &REQUEST, Kind::BOOL).unwrap_or_else(|e| panic!("{source}: {e}"));
    expression.holds(&Subject { exchange: &exchange() }).map_err(|fault| fault.why)
}

fn refused(source: &str) -> String {
    Expression::parse(source, &REQUEST, Kind::BOOL).expect_err(source).to_string()
}

#[test]
fn every_variable_is_read() {
    for source in [
        "request.method == 'POST' && request.scheme == 'https' && request.host == 'shop.example'",
        "request.path == '/orders/7'",
        "request.query.page == '2' && request.query['né'] == 'é' && !('x' in request.query) && size(request.query) == 3",
        "request.queryValues['tag'] == ['a', 'b c'] && request.queryValues['page'][0] == '2'",
        "request.headers['x-tenant'] == 'acme' && request.headers['cookie'] == 'a=1; b=2'",
        "'accept' in request.headers && has(request.headers.accept) && !('nosuch' in request.headers)",
        "request.headerValues['accept'].exists(value, value == 'c/d') && size(request.headers) == 4",
        "path.id == 'a b' && has(path.id) && !has(path.nosuch)",
        "identity.kind == 'Jwt' && identity.id == 'alice' && identity.entry == 'users'",
        "identity.issuer.startsWith('https://login') && 'orders:read' in identity.scopes && size(identity.scopes) == 2",
        "identity.claims.tier == 'gold' && identity.claims.level > 6 && identity.claims.org.id == 12.0",
        "identity.claims.groups.exists(group, group in ['ops', 'admin']) && has(identity.claims.org.id)",
        "identity.claims.level + 1 == 8 && identity.claims.ratio < 1 && !has(identity.claims.nosuch)",
        "identity.key == 'Jwt|https://login.example|alice'",
        "client.address == '192.0.2.7' && client.tls && client.serverName == 'shop.example'",
        "cidr('192.0.2.0/24').containsIP(client.address) && !cidr('10.0.0.0/8').containsIP('::ffff:11.0.0.1')",
        "route.namespace + '/' + route.name + '/' + route.rule == 'shop/web/orders'",
        "now > timestamp('2024-01-01T00:00:00Z') && now - now < duration('1m')",
        "has(identity.id) && has(request.query) && has(client.tls)",
    ] {
        assert_eq!(holds(source), Ok(true), "{source}");
    }
}

#[test]
fn the_anonymous_have_an_identity_too() {
    let mut exchange = exchange();
    exchange.identity = Identity::ANONYMOUS;
    for source in [
        "identity.kind == 'Anonymous' && identity.id == '' && !has(identity.id) && !has(identity.claims)",
        "identity.scopes == [] && identity.claims == {} && identity.key == 'Anonymous||192.0.2.7'",
    ] {
        let expression = Expression::parse(source, &REQUEST, Kind::BOOL).expect(source);
        assert_eq!(expression.holds(&Subject { exchange: &exchange }), Ok(true), "{source}");
    }
}

#[test]
fn a_field_that_was_sent_twice_has_no_single_value() {
    for source in
        ["request.headers.accept == 'a/b'", "request.headers['accept'] != 'x'", "request.query.tag == 'a'"]
    {
        assert_eq!(holds(source), Err(Why::SeveralValues), "{source}");
    }
    assert_eq!(holds("request.headers['x-latin'] == 'x'"), Err(Why::NotText));
}

#[test]
fn what_cannot_be_evaluated_is_a_fault_and_one_side_may_still_decide() {
    for (source, result) in [
        ("identity.claims.nosuch == 1", Err(Why::NoSuchKey)),
        ("identity.claims.nosuch == 1 || true", Ok(true)),
        ("true || identity.claims.nosuch == 1", Ok(true)),
        ("identity.claims.nosuch == 1 && false", Ok(false)),
        ("identity.claims.nosuch == 1 && true", Err(Why::NoSuchKey)),
        ("identity.claims.tier && false", Ok(false)),
        ("identity.claims.tier && true", Err(Why::NoOverload)),
        ("identity.claims.groups.exists(g, g.nosuch == 1 || g == 'ops')", Ok(true)),
        ("identity.claims.groups.all(g, g.nosuch == 1)", Err(Why::NoOverload)),
        ("!identity.claims.tier", Err(Why::NoOverload)),
        ("identity.claims.tier", Err(Why::NoOverload)),
        ("1 / (identity.claims.level - 7) == 0", Err(Why::DivisionByZero)),
        ("9223372036854775807 + identity.claims.level > 0", Err(Why::Overflow)),
        ("identity.claims.groups[2] == 'x'", Err(Why::NoSuchIndex)),
        ("{'a': 1, request.headers['x-tenant'].substring(0, 1): 2}.a == 1", Err(Why::DuplicateKey)),
        ("int(identity.claims.tier) == 1", Err(Why::BadValue)),
        ("cidr('10.0.0.0/8').containsIP(request.host)", Err(Why::BadValue)),
        ("identity.claims.tier < 1", Err(Why::NoOverload)),
        ("identity.claims.tier == 1", Ok(false)),
    ] {
        assert_eq!(holds(source), result, "{source}");
    }
}

#[test]
fn mistakes_are_told_with_place_and_remedy() {
    for (source, message) in [
        ("requst.method == 'GET'", "there is no \"requst\"; did you mean \"request\"? (line 1, column 1)"),
        (
            "request.methd == 'GET'",
            "request has no field \"methd\"; did you mean \"method\"? (line 1, column 9)",
        ),
        (
            "request.path.startWith('/a')",
            "there is no method \"startWith\"; did you mean \"startsWith\"? (line 1, column 13)",
        ),
        ("true &&\n  siez('a') == 1", "there is no function \"siez\" (line 2, column 3)"),
        (
            "request == 1",
            "request alone is no value; name one of its fields: method, scheme, host, path, query, queryValues, headers, headerValues (line 1, column 1)",
        ),
        ("request.method", "the expression gives string, expected bool (line 1, column 8)"),
        ("request.method == 1", "== does not take string and int (line 1, column 16)"),
        ("request.method > 1", "> does not take string and int (line 1, column 16)"),
        ("request.method && true", "&& takes bool, found string (line 1, column 8)"),
        ("request.host.id == 'a'", "string has no field \"id\" (line 1, column 13)"),
        ("1 in identity.scopes", "in does not take int and list(string) (line 1, column 3)"),
        ("request.path.startsWith(1)", "startsWith() does not take (string, int) (line 1, column 13)"),
        (
            "request.headers['X-Tenant'] == 'a'",
            "names of header fields are in lower case here: write 'x-tenant' (line 1, column 17)",
        ),
        (
            "'X-Tenant' in request.headers",
            "names of header fields are in lower case here: write 'x-tenant' (line 1, column 1)",
        ),
        (
            "has(request.headers.Accept)",
            "names of header fields are in lower case here: write 'accept' (line 1, column 20)",
        ),
        (
            "request.path.matches(request.host)",
            "the pattern of matches() is compiled before any request: write a literal (line 1, column 29)",
        ),
        (
            "request.path.matches('(')",
            "not a regular expression that is supported: unclosed group (line 1, column 22)",
        ),
        (
            "request.path.matches('(a{1000}){1000}')",
            "not a regular expression that is supported: Compiled regex exceeds size limit of 131072 bytes. (line 1, column 22)",
        ),
        (
            "[1].all(x, 'a'.matches('1') || 'a'.matches('2') || 'a'.matches('3') || 'a'.matches('4') || 'a'.matches('5') || 'a'.matches('6') || 'a'.matches('7') || 'a'.matches('8') || 'a'.matches('9'))",
            "the expression has more than 8 patterns; make it smaller (line 1, column 175)",
        ),
        ("cidr('10.0.0.0/33').containsIP('')", "cidr(): the value cannot be converted (line 1, column 1)"),
        ("now > timestamp('today')", "timestamp(): the value cannot be converted (line 1, column 7)"),
        (
            "has(request)",
            "has() takes one field, like has(identity.claims.tier); for other keys write 'key' in map (line 1, column 1)",
        ),
        (
            "identity.scopes.all(1, true)",
            "the first argument of all() is the name of its variable (line 1, column 21)",
        ),
        ("identity.id.all(x, true)", "all() walks along lists and maps, found string (line 1, column 12)"),
    ] {
        assert_eq!(refused(source), message, "{source}");
    }
}

#[test]
fn text_functions_count_characters() {
    for source in [
        "size('é€') == 2 && 'é€x'.substring(1) == '€x' && 'é€x'.substring(1, 2) == '€' && 'é€'.charAt(1) == '€'",
        "'é€é'.indexOf('é', 1) == 2 && 'é€é'.lastIndexOf('é') == 2 && 'é€é'.lastIndexOf('é', 1) == 0",
        "'a,b,,c'.split(',') == ['a', 'b', '', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'é€'.split('') == ['é', '€']",
        "''.split(',') == [''] && 'a'.split('', 0) == [] && ['a', 'b'].join('-') == 'a-b' && ['a', 'b'].join() == 'ab'",
        "'aaa'.replace('a', 'b', 2) == 'bba' && 'aé'.replace('', '-') == '-a-é-' && ' a\\t'.trim() == 'a'",
        "'aÉ'.upperAscii() == 'AÉ' && 'AÉ'.lowerAscii() == 'aÉ' && 'abc'.contains('b') && 'abc'.endsWith('bc')",
        "'abcd'.matches('b.') && matches('abcd', '^ab') && !'abcd'.matches('^b')",
        "string(1.5) == '1.5' && string(1e30) == '1e+30' && string(duration('90s')) == '90s' && string(b'a') == 'a'",
        "[1, 2, 3].filter(x, x > 1).map(x, x * 2) == [4, 6] && [1, 2].map(x, x > 1, x) == [2] && [1, 2].exists_one(x, x > 1)",
        "{'a': 1}.all(k, k == 'a') && {'a': 1} == {'a': 1.0} && 1 == 1.0 && 1u == 1 && type(1) == int && [1][0] == 1",
        "timestamp('2009-02-13T23:31:30Z').getHours('+02:00') == 1 && duration('1h1m').getMinutes() == 61",
    ] {
        assert_eq!(holds(source), Ok(true), "{source}");
    }
}

#[test]
fn what_costs_too_much_ends() {
    let list = format!("[{}]", vec!["1"; 40].join(","));
    let nested = format!("{list}.all(a, {list}.all(b, {list}.all(c, {list}.all(d, a + b + c + d == 4))))");
    let long = "x".repeat(1000);
    let times = |name: &str| [name; 9].join(" + ");
    let growing = format!(
        "[[['{long}'].map(a, {})[0]].map(b, {})[0]].map(c, {})[0] == ''",
        times("a"),
        times("b"),
        times("c")
    );
    let replacing = format!("'{long}'.replace('', '{}') == ''", "y".repeat(900));
    let pattern =
        format!("[{}].all(a, '{long}'.matches('{}'))", vec!["1"; 100].join(","), "x{1,9}".repeat(40));
    for source in [nested, growing, replacing, pattern] {
        let start = std::time::Instant::now();
        assert_eq!(holds(&source), Err(Why::TooExpensive), "{source}");
        // Far from what is meant, and far from what it would take without a bound.
        assert!(start.elapsed().as_secs() < 5, "{source} took {:?}", start.elapsed());
    }
    assert_eq!(holds(&format!("{list}.all(a, {list}.all(b, a == b))")), Ok(true));
    let or = format!("{list}.all(a, {list}.all(b, {list}.all(c, c == 1))) || true");
    assert_eq!(holds(&or), Err(Why::TooExpensive), "nothing decides when there is nothing left to spend");
}

#[test]
fn expressions_are_the_same_when_their_text_is() {
    let parse = |source| Expression::parse(source, &REQUEST, Kind::BOOL).expect(source);
    assert_eq!(parse("request.path == '/'"), parse("request.path == '/'"));
    assert_ne!(parse("request.path == '/'"), parse("request.path == '/a'"));
    assert_eq!(format!("{:?}", parse("request.path == '/'")), "\"request.path == '/'\"");
}

/// Source text of a kind.
fn of_kind(kind: Kind, depth: u32) -> BoxedStrategy<String> {
    let leaf = match kind {
        Kind::BOOL => {
            prop_oneof![Just("true"), Just("client.tls"), Just("has(identity.claims.tier)")].boxed()
        }
        Kind::INT => {
            prop_oneof![Just("0"), Just("-1"), Just("9223372036854775807"), Just("size(identity.scopes)")]
                .boxed()
        }
        Kind::TEXT => prop_oneof![
            Just("'é'"),
            Just("''"),
            Just("request.path"),
            Just("request.headers['accept']"),
            Just("path.id"),
            Just("identity.claims.tier"),
        ]
        .boxed(),
        _ => prop_oneof![
            Just("identity.scopes"),
            Just("[]"),
            Just("['a', request.host]"),
            Just("identity.claims.groups")
        ]
        .boxed(),
    }
    .prop_map(str::to_owned);
    if depth == 0 {
        return leaf.boxed();
    }
    let (bool, int, text, list) = (
        of_kind(Kind::BOOL, depth - 1),
        of_kind(Kind::INT, depth - 1),
        of_kind(Kind::TEXT, depth - 1),
        of_kind(Kind::LIST, depth - 1),
    );
    let same = of_kind(kind, depth - 1);
    let choice = (bool.clone(), same.clone(), same).prop_map(|(c, a, b)| format!("({c} ? {a} : {b})"));
    let own = match kind {
        Kind::BOOL => prop_oneof![
            (bool.clone(), bool, prop_oneof![Just("&&"), Just("||"), Just("==")])
                .prop_map(|(a, b, operator)| format!("({a} {operator} {b})")),
            (int.clone(), int, prop_oneof![Just("<"), Just(">="), Just("!=")])
                .prop_map(|(a, b, operator)| format!("({a} {operator} {b})")),
            (text.clone(), text.clone(), prop_oneof![Just("startsWith"), Just("contains"), Just("endsWith")])
                .prop_map(|(a, b, method)| format!("{a}.{method}({b})")),
            (text, list, prop_oneof![Just("all"), Just("exists"), Just("exists_one")])
                .prop_map(|(a, b, name)| format!("{b}.{name}(x, x == {a})")),
        ]
        .boxed(),
        Kind::INT => prop_oneof![
            (int.clone(), int, prop_oneof![Just("+"), Just("-"), Just("*"), Just("/"), Just("%")])
                .prop_map(|(a, b, operator)| format!("({a} {operator} {b})")),
            (text.clone(), text, prop_oneof![Just("indexOf"), Just("lastIndexOf")])
                .prop_map(|(a, b, method)| format!("{a}.{method}({b})")),
            list.prop_map(|a| format!("size({a})")),
        ]
        .boxed(),
        Kind::TEXT => prop_oneof![
            (text.clone(), text.clone()).prop_map(|(a, b)| format!("({a} + {b})")),
            (text.clone(), text.clone(), text.clone()).prop_map(|(a, b, c)| format!("{a}.replace({b}, {c})")),
            (text.clone(), int.clone(), int.clone()).prop_map(|(a, b, c)| format!("{a}.substring({b}, {c})")),
            (list.clone(), text).prop_map(|(a, b)| format!("{a}.join({b})")),
            (list, int).prop_map(|(a, b)| format!("string({a}[{b}])")),
        ]
        .boxed(),
        _ => prop_oneof![
            (list.clone(), list.clone()).prop_map(|(a, b)| format!("({a} + {b})")),
            (text.clone(), text.clone(), int).prop_map(|(a, b, c)| format!("{a}.split({b}, {c})")),
            (list, text).prop_map(|(a, b)| format!("{a}.filter(x, x != {b}).map(x, x + {b})")),
        ]
        .boxed(),
    };
    prop_oneof![1 => leaf, 1 => choice, 4 => own].boxed()
}

/// Text that often gets past the first token.
fn soup() -> impl Strategy<Value = String> {
    let words = [
        "request",
        ".",
        "method",
        "==",
        "'a'",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "x",
        ",",
        ":",
        "?",
        "&&",
        "||",
        "!",
        "-",
        "1",
        "2.5",
        "3u",
        "in",
        "all",
        "map",
        "has",
        "identity",
        "claims",
        "headers",
        "matches",
        "\"(a|b)*\"",
        "+",
        "size",
        "now",
        "b'\\xff'",
        " ",
        "\n",
        "é",
        "null",
        "timestamp",
        "'\\u00e9'",
        "%",
        "/",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..30)
        .prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![".{0,60}", soup()]) {
        if let Ok(expression) = Expression::parse(&text, &REQUEST, Kind::ANY) {
            let exchange = exchange();
            let first = expression.evaluate(&Subject { exchange: &exchange }).map(|value| value.type_name());
            let second = expression.evaluate(&Subject { exchange: &exchange }).map(|value| value.type_name());
            prop_assert_eq!(first, second);
        }
    }

    #[test]
    fn what_is_well_typed_parses_and_gives_its_type_or_a_fault(
        (kind, source) in prop_oneof![
            of_kind(Kind::BOOL, 3).prop_map(|source| ("bool", source)),
            of_kind(Kind::INT, 3).prop_map(|source| ("int", source)),
            of_kind(Kind::TEXT, 3).prop_map(|source| ("string", source)),
            of_kind(Kind::LIST, 3).prop_map(|source| ("list", source)),
        ],
    ) {
        match Expression::parse(&source, &REQUEST, Kind::ANY) {
            Err(refused) => prop_assert!(source.len() > MAX_SOURCE, "{}: {}", source, refused),
            Ok(expression) => {
                let exchange = exchange();
                if let Ok(value) = expression.evaluate(&Subject { exchange: &exchange }) {
                    prop_assert_eq!(value.type_name(), kind, "{}", source);
                }
            }
        }
    }
}

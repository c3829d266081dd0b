//! What an answer is kept under: exact bytes, so that no two requests share one by chance.
//!
//! Invariants: rule, scheme, host (with the port as the client wrote it), path and query are always in it; each part
//! ends with a sign that cannot stand in it, or has its length before it, so that no part can look like another.

use std::borrow::Cow;
use std::io::Write;

use aws_lc_rs::digest::{Context, SHA256};
use http::header::{self, HeaderName};
use http::{HeaderMap, Uri};

use super::{codings, cookies};
use crate::filters::CacheKey;
use crate::message::{Exchange, IdentityKind};
use crate::values::ReservedHeaders;

/// Cannot stand in a head that was let in.
pub(super) const END: u8 = 0;

/// Where the gateway writes what it knows of a client's certificate.
static CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// How the keys of one rule are made.
#[derive(Clone, Debug)]
pub struct Keying {
    prefix: Box<[u8]>,
    /// Fields that only the gateway writes: what it tells backends of a client.
    own: ReservedHeaders,
    forwarders: Forwarders,
}

impl Keying {
    pub fn new(rule: &str, own: ReservedHeaders, forwarders: Forwarders) -> Self {
        let mut prefix = rule.as_bytes().to_vec();
        prefix.push(END);
        Self { prefix: prefix.into(), own, forwarders }
    }
}

/// Who may write fields that backends read instead of `Host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarders {
    /// They are taken off.
    Nobody,
    Trusted,
}

/// Writes the key of a request into `bytes`, which it empties. `meaning`: numbers that change with what the rule does with
/// a request, and with those who may be asked; when one does, what was kept before is not used.
pub fn write(
    bytes: &mut Vec<u8>,
    keying: &Keying,
    meaning: impl Iterator<Item = u64>,
    key: &CacheKey,
    exchange: &Exchange,
) {
    bytes.clear();
    bytes.extend_from_slice(&keying.prefix);
    let before = bytes.len();
    meaning.for_each(|number| bytes.extend(number.to_be_bytes()));
    // Their length, so that nothing of the address can look like one more.
    bytes.extend(((bytes.len() - before) as u64).to_be_bytes());
    matched(bytes, exchange);
    let request = &exchange.request;
    address(bytes, exchange, request.uri());
    let headers = request.headers();
    if keying.forwarders == Forwarders::Trusted {
        for name in ["x-forwarded-host", "x-forwarded-port"] {
            values(bytes, headers, &HeaderName::from_static(name));
        }
    }
    for name in &key.headers {
        values(bytes, headers, name);
    }
    for name in key.cookies.iter().flatten() {
        cookies::write(bytes, headers, name);
    }
    if key.identity {
        bytes.extend(identity(exchange, &keying.own));
    }
}

/// What the match made of the path: the backend may be sent another one by it, and a route may change its matches only.
fn matched(bytes: &mut Vec<u8>, exchange: &Exchange) {
    bytes.extend((exchange.matched_prefix as u64).to_be_bytes());
    bytes.extend((exchange.captures.0.len() as u64).to_be_bytes());
    for (name, value) in &exchange.captures.0 {
        for part in [name.as_bytes(), value.as_bytes()] {
            bytes.extend((part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part);
        }
    }
}

/// Scheme, host, path and query: what purges and unsafe methods name.
pub fn address(bytes: &mut Vec<u8>, exchange: &Exchange, uri: &Uri) {
    let host = exchange.request.headers().get(header::HOST).map_or(&b""[..], |host| host.as_bytes());
    address_of(bytes, exchange.client.scheme.as_str(), host, uri.path(), uri.query());
}

/// The same of parts.
pub fn address_of(bytes: &mut Vec<u8>, scheme: &str, host: &[u8], path: &str, query: Option<&str>) {
    bytes.extend_from_slice(scheme.as_bytes());
    bytes.push(END);
    bytes.extend(host.iter().map(u8::to_ascii_lowercase));
    bytes.push(END);
    bytes.extend_from_slice(path.as_bytes());
    if let Some(query) = query {
        bytes.push(b'?');
        bytes.extend_from_slice(query.as_bytes());
    }
    bytes.push(END);
}

/// Scheme, host and target of an address as [`address_of`] writes it.
pub fn parts_of(address: &[u8]) -> Option<[&str; 3]> {
    let mut parts = std::str::from_utf8(address).ok()?.split(char::from(END));
    Some([parts.next()?, parts.next()?, parts.next()?])
}

/// The parameters of the query that count; `None`: all.
pub type Counted<'c> = Option<&'c [Box<str>]>;

/// The same, as a plan has it.
pub type CountedNames = Option<Box<[Box<str>]>>;

/// The query without the parameters that do not count. `None`: all do.
pub fn counted_query<'q>(counted: Counted<'_>, query: Option<&'q str>) -> Option<Cow<'q, str>> {
    let (counted, query) = (counted?, query?);
    let counts = |parameter: &&str| {
        let name = parameter.split('=').next().unwrap_or_default();
        counted.iter().any(|known| **known == *name)
    };
    if query.split('&').all(|parameter| counts(&parameter)) {
        return None;
    }
    Some(Cow::Owned(query.split('&').filter(counts).collect::<Vec<_>>().join("&")))
}

/// What an answer that varies is kept under beside its key: the values of these fields (RFC 9111 section 4.1).
pub fn vary(bytes: &mut Vec<u8>, headers: &HeaderMap, names: &[HeaderName]) {
    bytes.push(END);
    for name in names {
        if *name == header::ACCEPT_ENCODING && codings::write(bytes, headers) {
            bytes.push(END);
            continue;
        }
        values(bytes, headers, name);
    }
}

/// Whether a request has the values that chose an answer.
pub fn suits(request: &HeaderMap, names: &[HeaderName], chosen_by: &[u8]) -> bool {
    if names.is_empty() {
        return true;
    }
    let mut bytes = Vec::with_capacity(chosen_by.len());
    vary(&mut bytes, request, names);
    bytes == chosen_by
}

/// The values of a field as one list, without the spaces that mean nothing.
fn values(bytes: &mut Vec<u8>, headers: &HeaderMap, name: &HeaderName) {
    let mut any = false;
    for value in headers.get_all(name) {
        for member in value.as_bytes().split(|byte| *byte == b',') {
            bytes.push(if any { b',' } else { b':' });
            any = true;
            bytes.extend_from_slice(member.trim_ascii());
        }
    }
    // A field that is missing is another thing than an empty one.
    bytes.push(END);
}

/// Whether a field stands there that some backends take for one of these: where they make variables of names, all signs
/// but letters and digits are one.
pub fn has_look_alike<'n>(headers: &HeaderMap, names: impl Iterator<Item = &'n HeaderName> + Clone) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let is_alike = |one: &[u8], two: &[u8]| {
        one.len() == two.len()
            && one
                .iter()
                .zip(two)
                .all(|(one, two)| one == two || !(one.is_ascii_alphanumeric() || two.is_ascii_alphanumeric()))
    };
    headers.keys().map(|name| name.as_str().as_bytes()).any(|name| {
        !name.iter().all(is_plain) && names.clone().any(|known| is_alike(name, known.as_str().as_bytes()))
    })
}

/// Everything by which a backend or an expression can tell clients apart, as one digest: who vouches for whom by which
/// entry, scopes and claims (of the anonymous: their network), the certificate and the credential as they were shown, and
/// what the gateway tells backends of the client.
fn identity(exchange: &Exchange, own: &ReservedHeaders) -> [u8; 32] {
    let mut digest = Digest(Context::new(&SHA256));
    digest.part(exchange.identity_key().as_bytes());
    if let Some(known) = exchange.identity.known() {
        digest.part(known.entry.as_bytes());
        digest.number(known.scopes.len());
        known.scopes.iter().for_each(|scope| digest.part(scope.as_bytes()));
        // Into a digest nothing fails to be written.
        let _ = serde_json::to_writer(&mut digest, &*known.claims);
    }
    digest.part(b"");
    if let Some(certificate) = &exchange.client.certificate {
        digest.part(&certificate.fingerprint);
    }
    digest.part(b"");
    let headers = exchange.request.headers();
    for value in headers.get_all(header::AUTHORIZATION) {
        digest.part(value.as_bytes());
    }
    if !own.is_empty() {
        let mut told: Vec<_> = headers
            .iter()
            .filter(|(name, _)| own.hold(name.as_str()))
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        told.sort_by_key(|(name, _)| *name);
        for (name, value) in told {
            digest.part(name.as_bytes());
            digest.part(value.as_bytes());
        }
    }
    digest.finish()
}

/// Parts with their lengths before them, so that no part can look like another's end.
struct Digest(Context);

impl Digest {
    fn part(&mut self, part: &[u8]) {
        self.number(part.len());
        self.0.update(part);
    }

    fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_be_bytes());
    }

    fn finish(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.finish().as_ref());
        bytes
    }
}

impl Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether the request was let in by something that its key does not hold: a credential that somebody of ours accepted, a
/// client's certificate, another server's yes, or an `Authorization` of which only the backend knows what it is.
pub fn is_authorized(key: &CacheKey, exchange: &Exchange) -> bool {
    let headers = exchange.request.headers();
    let (has_field, kind) = (headers.contains_key(header::AUTHORIZATION), exchange.identity.kind());
    let was_consulted = exchange.consulted.is_some();
    if !key.identity {
        let has_certificate = exchange.client.certificate.is_some() || headers.contains_key(&CLIENT_CERT);
        return has_field || has_certificate || was_consulted || kind != IdentityKind::Anonymous;
    }
    // These come in that field, so the identity speaks for it; and the other server says of each request anew who it is.
    let is_strange = has_field
        && !matches!(
            kind,
            IdentityKind::Jwt | IdentityKind::Token | IdentityKind::Basic | IdentityKind::External
        );
    // What the other server went by may be anything of the request.
    is_strange || (was_consulted && kind == IdentityKind::Anonymous)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::tests::{certificate, exchange, known};
    use crate::message::{Captures, Identity, KnownIdentity};
    use crate::telemetry::Consulted;

    fn key(rule: &str, cache: &CacheKey, exchange: &Exchange) -> Vec<u8> {
        keyed(rule, &[7, 1, 2], cache, exchange)
    }

    fn keyed(rule: &str, meaning: &[u64], cache: &CacheKey, exchange: &Exchange) -> Vec<u8> {
        let mut bytes = Vec::new();
        let keying = Keying::new(rule, ["x-user"].into_iter().collect(), Forwarders::Nobody);
        write(&mut bytes, &keying, meaning.iter().copied(), cache, exchange);
        bytes
    }

    fn differ(cache: &CacheKey, one: &Exchange, two: &Exchange) -> bool {
        key("r", cache, one) != key("r", cache, two)
    }

    #[test]
    fn rule_scheme_host_path_and_query_are_always_in_it() {
        let cache = CacheKey::default();
        let one = exchange("http://a.example/x?y", &[]);
        assert!(!differ(&cache, &one, &exchange("http://A.example/x?y", &[("accept", "text/html")])));
        for other in [
            "https://a.example/x?y",
            "http://b.example/x?y",
            "http://a.example:81/x?y",
            "http://a.example/x",
            "http://a.example/x?y=",
            "http://a.example/x/?y",
            "http://a.example/X?y",
        ] {
            assert!(differ(&cache, &one, &exchange(other, &[])), "{other}");
        }
        assert_ne!(key("r", &cache, &one), key("s", &cache, &one));
        // Nothing of one part can be taken for the end of another.
        assert!(differ(
            &cache,
            &exchange("http://a.example/b?c", &[]),
            &exchange("http://a.example/b%3Fc", &[])
        ));
    }

    #[test]
    fn chosen_fields_and_cookies_are_in_it_and_others_are_not() {
        let cache = CacheKey {
            headers: [HeaderName::from_static("x-a")].into(),
            cookies: Some(["s".into()].into()),
            ..CacheKey::default()
        };
        let ask = |fields: &[(&'static str, &'static str)]| exchange("http://a.example/", fields);
        let one = ask(&[("x-a", "1"), ("cookie", "s=1; t=2")]);
        assert!(!differ(&cache, &one, &ask(&[("x-a", " 1"), ("x-b", "1"), ("cookie", "t=9;s=1")])));
        assert!(differ(&cache, &one, &ask(&[("x-a", "2"), ("cookie", "s=1")])));
        assert!(differ(&cache, &one, &ask(&[("x-a", "1"), ("cookie", "s=2")])));
        assert!(differ(&cache, &one, &ask(&[("x-a", "1"), ("cookie", "xs=1")])));
        assert!(differ(&cache, &ask(&[]), &ask(&[("x-a", "")])), "missing is not empty");
        assert!(differ(&cache, &ask(&[("cookie", "s=1")]), &ask(&[("cookie", "s=1; s=2")])));
    }

    #[test]
    fn spaces_around_a_cookie_s_name_are_no_part_of_it() {
        let cache = CacheKey { cookies: Some(["session".into()].into()), ..CacheKey::default() };
        let ask = |cookie: &'static str| exchange("http://a.example/", &[("cookie", cookie)]);
        for odd in ["session =evil", "a=1;  session\t =evil", "session =evil; a=1"] {
            assert!(!differ(&cache, &ask("session=evil"), &ask(odd)), "{odd}");
            assert!(differ(&cache, &exchange("http://a.example/", &[]), &ask(odd)), "{odd}");
        }
    }

    #[test]
    fn a_field_that_a_backend_may_take_for_one_of_the_key_is_seen() {
        let names = [HeaderName::from_static("x-tenant"), HeaderName::from_static("x-host")];
        let is_seen = |name: &'static str| {
            has_look_alike(exchange("http://a.example/", &[(name, "1")]).request.headers(), names.iter())
        };
        for alike in ["x.tenant", "x~host", "x'tenant"] {
            assert!(is_seen(alike), "{alike}");
        }
        for other in ["x-tenant", "x.tenants", "xtenant", "x.tenanu", "accept"] {
            assert!(!is_seen(other), "{other}");
        }
    }

    #[test]
    fn what_was_matched_tells_apart() {
        let cache = CacheKey::default();
        let of = |prefix: usize, captures: &[(&str, &str)]| {
            let mut exchange = exchange("http://a.example/a/b", &[]);
            exchange.matched_prefix = prefix;
            exchange.captures =
                Captures(captures.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect());
            exchange
        };
        let others = [
            of(0, &[]),
            of(2, &[]),
            of(0, &[("id", "b")]),
            of(0, &[("name", "b")]),
            of(0, &[("id", "a")]),
            of(0, &[("id", "a"), ("id", "b")]),
            of(0, &[("i", "da")]),
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(!differ(&cache, other, other));
            others[..at].iter().for_each(|before| assert!(differ(&cache, before, other), "{at}"));
        }
    }

    #[test]
    fn identities_are_told_apart_where_the_key_has_them() {
        let cache = CacheKey { identity: true, ..CacheKey::default() };
        let with = |id: &str, scopes: &[&str]| {
            let mut exchange = exchange("http://a.example/", &[]);
            exchange.identity = Identity::new(Arc::new(known(id, scopes)));
            exchange
        };
        let one = with("ann", &["a", "b"]);
        assert!(!differ(&cache, &one, &with("ann", &["a", "b"])));
        assert!(differ(&cache, &one, &with("bob", &["a", "b"])));
        assert!(differ(&cache, &one, &with("ann", &["a"])), "a scope that was lost");
        assert!(differ(&cache, &one, &exchange("http://a.example/", &[])));
        assert!(!differ(&CacheKey::default(), &one, &with("bob", &[])));
        let from = |ip: &str| {
            let mut exchange = exchange("http://a.example/", &[]);
            exchange.client.ip = ip.parse().expect("an address");
            exchange
        };
        assert!(differ(&cache, &from("192.0.2.1"), &from("192.0.2.2")), "the anonymous, by their network");
        assert!(!differ(&cache, &from("2001:db8::1"), &from("2001:db8::2")));
        assert!(!differ(&CacheKey::default(), &from("192.0.2.1"), &from("192.0.2.2")));
    }

    #[test]
    fn everything_that_a_backend_can_see_of_an_identity_tells_apart() {
        let cache = CacheKey { identity: true, ..CacheKey::default() };
        let of = |change: &dyn Fn(&mut KnownIdentity)| {
            let mut known = known("ann", &["a", "b"]);
            change(&mut known);
            let mut exchange = exchange("http://a.example/", &[("x-user", "ann"), ("x-other", "1")]);
            exchange.identity = Identity::new(Arc::new(known));
            exchange
        };
        let one = of(&|_| {});
        assert!(!differ(&cache, &one, &of(&|_| {})));
        let claims = |text: &str| Arc::new(serde_json::from_str(text).expect("claims"));
        let tier = of(&|known| known.claims = claims(r#"{"tier": "gold"}"#));
        let others = [
            tier,
            of(&|known| known.claims = claims(r#"{"tier": "free"}"#)),
            of(&|known| known.entry = "others".into()),
            of(&|known| known.issuer = "elsewhere".into()),
            of(&|known| known.scopes = Arc::new(["a b".into()])),
        ];
        for (at, other) in others.iter().enumerate() {
            assert!(differ(&cache, &one, other), "{at}");
            others[..at].iter().for_each(|before| assert!(differ(&cache, before, other), "{at}"));
        }
        let with = |change: &dyn Fn(&mut Exchange)| {
            let mut exchange = of(&|_| {});
            change(&mut exchange);
            exchange
        };
        let set = |name: &'static str| {
            with(&|exchange| drop(exchange.request.headers_mut().insert(name, "2".parse().expect("a value"))))
        };
        assert!(differ(&cache, &one, &set("x-user")), "what it is told of the client");
        assert!(differ(&cache, &one, &set("authorization")), "another token of the same client");
        assert!(differ(&cache, &one, &with(&|exchange| exchange.client.certificate = Some(certificate(1)))));
        assert!(!differ(&cache, &one, &set("x-other")), "the control");
        assert!(!differ(&CacheKey::default(), &one, &set("x-user")), "where the key has no identity");
    }

    #[test]
    fn another_meaning_of_the_rule_and_another_backend_are_another_key() {
        let (cache, exchange) = (CacheKey::default(), exchange("http://a.example/", &[]));
        let of = |meaning: &[u64]| keyed("r", meaning, &cache, &exchange);
        assert_eq!(of(&[7, 1, 2]), of(&[7, 1, 2]));
        assert_ne!(of(&[7, 1, 2]), of(&[8, 1, 2]));
        assert_ne!(of(&[7, 1, 2]), of(&[7, 1, 3]));
    }

    #[test]
    fn a_credential_is_one_whatever_it_came_in() {
        let plain = CacheKey::default();
        let own = CacheKey { identity: true, ..CacheKey::default() };
        let mut api_key = exchange("http://a.example/", &[]);
        api_key.identity = Identity::new(Arc::new(known("ann", &[])));
        assert!(is_authorized(&plain, &api_key) && !is_authorized(&own, &api_key));
        let field = exchange("http://a.example/", &[("authorization", "Basic x")]);
        assert!(
            is_authorized(&plain, &field) && is_authorized(&own, &field),
            "nobody of ours knows whose it is"
        );
        api_key.request.headers_mut().insert("authorization", "Basic x".parse().expect("a value"));
        assert!(is_authorized(&own, &api_key), "the identity came from elsewhere");
        assert!(!is_authorized(&plain, &exchange("http://a.example/", &[])));
    }

    #[test]
    fn who_another_server_let_in_is_authorized() {
        let plain = CacheKey::default();
        let own = CacheKey { identity: true, ..CacheKey::default() };
        let mut asked = exchange("http://a.example/", &[]);
        assert!(!is_authorized(&plain, &asked));
        for consulted in [Consulted::Allowed, Consulted::AllowedOnFailure] {
            asked.consulted = Some(consulted);
            assert!(is_authorized(&plain, &asked) && is_authorized(&own, &asked), "it told nobody who it is");
        }
        asked.identity = Identity::new(Arc::new(known("ann", &[])));
        assert!(is_authorized(&plain, &asked) && !is_authorized(&own, &asked), "the key has it");
        let bearer = || {
            let mut asked = exchange("http://a.example/", &[("authorization", "Bearer x")]);
            asked.consulted = Some(Consulted::Allowed);
            asked
        };
        let mut told = bearer();
        told.identity =
            Identity::new(Arc::new(KnownIdentity { kind: IdentityKind::External, ..known("ann", &[]) }));
        assert!(is_authorized(&plain, &told) && !is_authorized(&own, &told), "it says whose the token is");
        assert!(is_authorized(&own, &bearer()), "the control: it does not");
    }

    #[test]
    fn a_certificate_is_a_credential() {
        let plain = CacheKey::default();
        let own = CacheKey { identity: true, ..CacheKey::default() };
        let mut shown = exchange("https://a.example/", &[]);
        assert!(!is_authorized(&plain, &shown));
        shown.client.certificate = Some(certificate(1));
        assert!(is_authorized(&plain, &shown) && !is_authorized(&own, &shown));
        assert!(is_authorized(
            &plain,
            &exchange("https://a.example/", &[("x-forwarded-client-cert", "Hash=1")])
        ));
    }

    #[test]
    fn parameters_that_do_not_count_are_taken_off() {
        let key = CacheKey { query: Some(["page".into(), "q".into()].into()), ..CacheKey::default() };
        let counted = |query| counted_query(key.query.as_deref(), Some(query)).map(Cow::into_owned);
        assert_eq!(counted("q=1&page=2"), None);
        assert_eq!(counted("q=1&utm=x&page=2&q=3"), Some("q=1&page=2&q=3".into()));
        assert_eq!(counted("pages=1"), Some(String::new()));
        assert_eq!(counted_query(None, Some("utm=x")), None);
    }

    #[test]
    fn spaces_in_a_list_do_not_make_another_variant() {
        let names = [HeaderName::from_static("accept")];
        let of = |fields: &[(&'static str, &'static str)]| {
            let mut bytes = Vec::new();
            vary(&mut bytes, exchange("http://a.example/", fields).request.headers(), &names);
            bytes
        };
        assert_eq!(of(&[("accept", "a,b")]), of(&[("accept", " a ,  b ")]));
        assert_eq!(of(&[("accept", "a,b")]), of(&[("accept", "a"), ("accept", "b")]));
        assert_ne!(of(&[("accept", "a,b")]), of(&[("accept", "ab")]));
    }
}

//! What expressions may read: closed tables of variables. An environment is a parameter of parsing, so that a place
//! which knows more (an answer, the calls of an aggregation) has a larger one.

use super::fault::Why;
use super::kind::{Kind, Scalar};
use super::lookup::Lookup;
use super::value::{List, Map, Value};
use crate::message::{Answered, Asker, Exchange, Failed};

/// The variables that an expression may use.
#[derive(Debug)]
pub struct Environment {
    pub variables: &'static [Variable],
}

/// A name that stands alone.
#[derive(Debug)]
pub struct Variable {
    pub name: &'static str,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    /// A value itself.
    Value(Field),
    /// Nothing but its fields.
    Record(&'static [Field]),
}

/// What is read, and how. The page docs/expressions.md is made of this.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub keys: Keys,
    pub read: for<'v> fn(Subject<'v>) -> Result<Value<'v>, Why>,
}

/// How the keys of a map are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    AsTheyAre,
    /// A key with a capital letter can never be found.
    LowerCase,
}

/// The field that holds a body: whoever reads it, holds it.
pub const BODY: &str = "body";

/// What an expression is about.
#[derive(Clone, Copy)]
pub struct Subject<'v> {
    pub exchange: &'v Exchange,
}

/// Of a request before it is sent on.
pub static REQUEST: Environment = Environment { variables: &[ASKED, PATH, IDENTITY, CLIENT, ROUTE, NOW] };

/// Of a request whose body is read as well.
pub static WHOLE_REQUEST: Environment =
    Environment { variables: &[ASKED, PATH, IDENTITY, CLIENT, ROUTE, NOW, ASKED_BODY] };

/// Of an answer, and of the request that brought it.
pub static RESPONSE: Environment =
    Environment { variables: &[ASKED, PATH, IDENTITY, CLIENT, ROUTE, NOW, ANSWER] };

const ASKED: Variable = Variable { name: "request", content: Content::Record(OF_REQUEST) };
const PATH: Variable = Variable {
    name: "path",
    content: Content::Value(Field {
        name: "path",
        kind: Kind::Map(Scalar::Text),
        help: "What the `{name}` parts of the matched PathTemplate hold, decoded: `path.id`",
        keys: Keys::AsTheyAre,
        read: |subject| lookup(Lookup::Captures(&subject.exchange.captures)),
    }),
};
const IDENTITY: Variable = Variable { name: "identity", content: Content::Record(OF_IDENTITY) };
const CLIENT: Variable = Variable { name: "client", content: Content::Record(OF_CLIENT) };
const ROUTE: Variable = Variable { name: "route", content: Content::Record(OF_ROUTE) };
const NOW: Variable = Variable {
    name: "now",
    content: Content::Value(Field {
        name: "now",
        kind: Kind::TIMESTAMP,
        help: "The time of evaluation",
        keys: Keys::AsTheyAre,
        read: |_| {
            let now = jiff::Timestamp::try_from(std::time::SystemTime::now());
            now.map(Value::Timestamp).map_err(|_| Why::Overflow)
        },
    }),
};
/// More of `request`, where it is changed.
pub(super) const ASKED_BODY: Variable = Variable {
    name: "request",
    content: Content::Record(&[Field {
        name: BODY,
        kind: Kind::ANY,
        help: "Its JSON body; null where there is none",
        keys: Keys::AsTheyAre,
        read: |subject| {
            subject.exchange.request_body.as_ref().map(|body| Value::Raw(body.root())).ok_or(Why::NoSuchKey)
        },
    }]),
};
/// Of answers alone.
pub(super) const ANSWER: Variable = Variable { name: "response", content: Content::Record(OF_ANSWER) };

/// Of a failure: the request has gone, and a few things are known of it.
pub static FAILURE: Environment = Environment {
    variables: &[
        Variable { name: "error", content: Content::Record(OF_ERROR) },
        Variable { name: "request", content: Content::Record(OF_ASKER) },
        PATH,
        IDENTITY,
        CLIENT,
        ROUTE,
        NOW,
    ],
};

const OF_ERROR: &[Field] = &[
    Field {
        name: "status",
        kind: Kind::INT,
        help: "The status that the answer had",
        keys: Keys::AsTheyAre,
        read: |subject| failed(subject).map(|failed| Value::Int(failed.status.into())),
    },
    text("reason", "The gateway's reason, like `ConnectFailure`; empty for a backend's failure", |subject| {
        failed(subject).map(|failed| Value::borrowed(failed.reason))
    }),
    text("origin", "`Gateway` or `Backend`", |subject| {
        failed(subject).map(|failed| Value::borrowed(failed.origin))
    }),
];

const OF_ASKER: &[Field] = &[
    text("id", "The request's id, as in the access log", |subject| {
        Ok(Value::text(subject.exchange.request_id.to_string()))
    }),
    text("method", "`GET`, `POST` …, as the client sent it", |subject| {
        asker(subject).map(|asker| Value::borrowed(asker.method.as_str()))
    }),
    text("scheme", "`http` or `https`: what the client itself used", |subject| {
        Ok(Value::borrowed(subject.exchange.client.scheme.as_str()))
    }),
    text("host", "Host that the request is for, in lower case and without port", |subject| {
        Ok(Value::borrowed(&subject.exchange.host))
    }),
    text("path", "The path in its normal form, without query; percent-encoded", |subject| {
        asker(subject).map(|asker| Value::borrowed(asker.uri.path()))
    }),
];

const OF_REQUEST: &[Field] = &[
    text("method", "`GET`, `POST` …, as the client sent it", |subject| {
        Ok(Value::borrowed(subject.exchange.request.method().as_str()))
    }),
    text("scheme", "`http` or `https`: what the client itself used", |subject| {
        Ok(Value::borrowed(subject.exchange.client.scheme.as_str()))
    }),
    text("host", "Host that the request is for, in lower case and without port", |subject| {
        Ok(Value::borrowed(&subject.exchange.host))
    }),
    text(
        "path",
        "The path in its normal form, without query; percent-encoded, as rules match it",
        |subject| Ok(Value::borrowed(subject.exchange.request.uri().path())),
    ),
    map(
        "query",
        Kind::Map(Scalar::Text),
        "Parameters, decoded. One that was sent more than once has no single value: reading it is an error",
        |subject| lookup(Lookup::Query(query(subject))),
    ),
    map(
        "queryValues",
        Kind::MAP,
        "All values of each parameter: `'a' in request.queryValues['tag']`",
        |subject| lookup(Lookup::QueryValues(query(subject))),
    ),
    Field {
        keys: Keys::LowerCase,
        ..map(
            "headers",
            Kind::Map(Scalar::Text),
            "Header fields by their names in lower case. One that was sent more than once has no single value: \
             reading it is an error (`cookie` is joined)",
            |subject| lookup(Lookup::Headers(subject.exchange.request.headers())),
        )
    },
    Field {
        keys: Keys::LowerCase,
        ..map("headerValues", Kind::MAP, "All lines of each header field", |subject| {
            lookup(Lookup::HeaderValues(subject.exchange.request.headers()))
        })
    },
];

const OF_IDENTITY: &[Field] = &[
    text("kind", "`Anonymous`, `ApiKey`, `Jwt`, `Token`, `Basic`, `Certificate` or `External`", |subject| {
        Ok(Value::borrowed(subject.exchange.identity.kind().as_str()))
    }),
    text("id", "A token's `sub`, an API key's consumer, a user's name; empty for the anonymous", |subject| {
        Ok(Value::borrowed(subject.exchange.identity.id()))
    }),
    text("issuer", "Who vouches for the id: a token's `iss`; may be empty", |subject| {
        Ok(Value::borrowed(subject.exchange.identity.issuer()))
    }),
    text("entry", "Name of the entry of `authentication.anyOf` that decided", |subject| {
        Ok(Value::borrowed(subject.exchange.identity.entry()))
    }),
    Field {
        name: "scopes",
        kind: Kind::List(Scalar::Text),
        help: "What the client was granted: `'orders:read' in identity.scopes`",
        keys: Keys::AsTheyAre,
        read: |subject| Ok(Value::List(List::Names(subject.exchange.identity.scopes()))),
    },
    map(
        "claims",
        Kind::MAP,
        "A token's claims, or an API key's metadata: `identity.claims.tier`",
        |subject| {
            Ok(match subject.exchange.identity.claims() {
                Some(claims) => Value::Map(Map::Json(claims)),
                None => Value::Map(Map::Made(std::rc::Rc::new([]))),
            })
        },
    ),
    text(
        "key",
        "Different for any two clients, of whatever kind; the anonymous have their address, of IPv6 its first 64 bits",
        |subject| Ok(Value::text(subject.exchange.identity_key())),
    ),
];

const OF_CLIENT: &[Field] = &[
    text("address", "The client's IP address, behind the hops that are trusted", |subject| {
        Ok(Value::text(subject.exchange.client.ip.to_string()))
    }),
    Field {
        name: "tls",
        kind: Kind::BOOL,
        help: "Whether the client itself used TLS",
        keys: Keys::AsTheyAre,
        read: |subject| Ok(Value::Bool(subject.exchange.client.scheme == crate::message::Scheme::Https)),
    },
    text("serverName", "The name that the client asked for in the TLS handshake; may be empty", |subject| {
        Ok(Value::borrowed(subject.exchange.client.server_name.as_deref().unwrap_or_default()))
    }),
];

const OF_ROUTE: &[Field] = &[
    text("namespace", "Namespace of the route that matched", |subject| {
        Ok(Value::borrowed(&subject.exchange.labels.namespace))
    }),
    text("name", "Name of the route that matched", |subject| {
        Ok(Value::borrowed(&subject.exchange.labels.route))
    }),
    text("rule", "Name of the rule that matched", |subject| {
        Ok(Value::borrowed(&subject.exchange.labels.rule))
    }),
];

const OF_ANSWER: &[Field] = &[
    Field {
        name: "status",
        kind: Kind::INT,
        help: "Status of the backend's answer",
        keys: Keys::AsTheyAre,
        read: |subject| answered(subject).map(|answer| Value::Int(answer.status.as_u16().into())),
    },
    Field {
        keys: Keys::LowerCase,
        ..map("headers", Kind::Map(Scalar::Text), "Its header fields, as those of `request`", |subject| {
            lookup(Lookup::Headers(&answered(subject)?.headers))
        })
    },
    Field {
        keys: Keys::LowerCase,
        ..map("headerValues", Kind::MAP, "All lines of each of its header fields", |subject| {
            lookup(Lookup::HeaderValues(&answered(subject)?.headers))
        })
    },
    Field {
        name: BODY,
        kind: Kind::ANY,
        help: "Its JSON body",
        keys: Keys::AsTheyAre,
        read: |subject| {
            answered(subject)?.body.as_ref().map(|body| Value::Raw(body.root())).ok_or(Why::NoSuchKey)
        },
    },
];

const fn text(
    name: &'static str,
    help: &'static str,
    read: for<'v> fn(Subject<'v>) -> Result<Value<'v>, Why>,
) -> Field {
    Field { name, kind: Kind::TEXT, help, keys: Keys::AsTheyAre, read }
}

const fn map(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    read: for<'v> fn(Subject<'v>) -> Result<Value<'v>, Why>,
) -> Field {
    Field { name, kind, help, keys: Keys::AsTheyAre, read }
}

fn failed(subject: Subject<'_>) -> Result<Failed, Why> {
    subject.exchange.failed.ok_or(Why::NoSuchKey)
}

fn asker(subject: Subject<'_>) -> Result<&Asker, Why> {
    subject.exchange.asker.as_deref().ok_or(Why::NoSuchKey)
}

fn answered(subject: Subject<'_>) -> Result<&Answered, Why> {
    subject.exchange.answered.as_deref().ok_or(Why::NoSuchKey)
}

fn query(subject: Subject<'_>) -> &str {
    subject.exchange.request.uri().query().unwrap_or_default()
}

fn lookup(lookup: Lookup<'_>) -> Result<Value<'_>, Why> {
    Ok(Value::Map(Map::Lookup(lookup)))
}

//! Changes to header fields, as `request.headers` and `response.headers` write them, proven and done.

use http::{HeaderMap, HeaderName, HeaderValue};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::contract::Scope;
use crate::expression::{Environment, Fault, Subject, Template};
use crate::values::{FieldPath, Problem, Reason, plain_name};

/// Changes to header fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeadersSpec {
    /// Fields that get exactly this value, whatever there was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub set: Vec<HeaderSpec>,
    /// Fields that are added to what there is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub add: Vec<HeaderSpec>,
    /// Names of fields that are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256), regex(pattern = TOKEN)))]
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = (
            "self.all(name, !(name.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive']) && !name.lowerAscii().startsWith('proxy-') && !name.lowerAscii().startsWith('x-portcullis-'))",
            NOT_OURS
        )
    )]
    pub remove: Vec<String>,
    /// Fields that get another name, after remove and before set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rename: Vec<RenameHeaderSpec>,
}

/// Another name for a header field.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenameHeaderSpec {
    /// Name that it has, in any case.
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    #[x_kube(
        validation = (
            "!(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive']) && !self.lowerAscii().startsWith('proxy-') && !self.lowerAscii().startsWith('x-portcullis-')",
            NOT_OURS
        )
    )]
    pub from: String,
    /// Name that it gets; a field that has it goes.
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    #[x_kube(
        validation = (
            "!(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive']) && !self.lowerAscii().startsWith('proxy-') && !self.lowerAscii().startsWith('x-portcullis-')",
            NOT_OURS
        )
    )]
    pub to: String,
}

/// A header field.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderSpec {
    /// Name of the field, in any case.
    #[schemars(length(min = 1, max = 256), regex(pattern = TOKEN))]
    #[x_kube(
        validation = (
            "!(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'upgrade', 'te', 'trailer', 'keep-alive']) && !self.lowerAscii().startsWith('proxy-') && !self.lowerAscii().startsWith('x-portcullis-')",
            NOT_OURS
        )
    )]
    pub name: String,
    /// Value of the field.
    #[schemars(length(max = 1024), regex(pattern = VALUE))]
    pub value: String,
}

/// A token (RFC 9110 section 5.6.2).
const TOKEN: &str = "^[-A-Za-z0-9!#$%&'*+.^_`|~]+$";
/// Visible ASCII, with spaces and tabs between (RFC 9110 section 5.5).
const VALUE: &str = "^([!-~]([\t -~]*[!-~])?)?$";

const NOT_OURS: &str = "Host (use host), Content-Length, Transfer-Encoding, Connection, Upgrade, TE, Trailer, X-Portcullis-*, Keep-Alive and Proxy-* are not changed here";
/// Proven changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdits {
    remove: Box<[HeaderName]>,
    rename: Box<[(HeaderName, HeaderName)]>,
    set: Box<[(HeaderName, Value)]>,
    add: Box<[(HeaderName, Value)]>,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Fixed(HeaderValue),
    Filled(Template),
}

/// The values of fields whose templates are filled in, in the order of the fields.
///
/// None: there is no value for it, and no field.
#[derive(Debug, Default)]
pub struct Filled(Vec<Option<HeaderValue>>);

impl HeaderEdits {
    /// Fields that have another value after, by what is written here.
    pub fn written(&self) -> impl Iterator<Item = &HeaderName> {
        let renamed = self.rename.iter().map(|(_, to)| to);
        renamed.chain(self.set.iter().chain(&self.add).map(|(name, _)| name))
    }

    /// Proves what is written at `headers`; problems carry paths from there. What expressions may read is in
    /// `environment`.
    pub fn new(
        spec: &HeadersSpec,
        environment: &'static Environment,
        scope: &mut dyn Scope,
        problems: &mut Vec<Problem>,
    ) -> Self {
        Self::at(FieldPath::new("headers"), spec, environment, scope, problems)
    }

    /// The same for what is written elsewhere in the member.
    pub fn at(
        at: FieldPath,
        spec: &HeadersSpec,
        environment: &'static Environment,
        scope: &mut dyn Scope,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut edits = Edits { problems, environment, scope, seen: Vec::new() };
        let remove: Vec<_> = spec
            .remove
            .iter()
            .enumerate()
            .filter_map(|(index, text)| {
                let path = at.field("remove").index(index);
                let name = edits.name(text, &path)?;
                edits.once(&name, &path)?;
                Some(name)
            })
            .collect();
        let rename: Vec<_> = spec
            .rename
            .iter()
            .enumerate()
            .filter_map(|(index, rename)| {
                let path = at.field("rename").index(index);
                let names = [(&rename.from, path.field("from")), (&rename.to, path.field("to"))];
                let [from, to] = names.map(|(name, path)| {
                    let name = edits.name(name, &path)?;
                    edits.once(&name, &path).map(|()| name)
                });
                Some((from?, to?))
            })
            .collect();
        let set: Vec<_> = spec
            .set
            .iter()
            .enumerate()
            .filter_map(|(index, field)| {
                let path = at.field("set").index(index);
                let (name, value) = edits.field(field, &path)?;
                edits.once(&name, &path.field("name"))?;
                Some((name, value))
            })
            .collect();
        let seen = edits.seen.len();
        let mut add = Vec::new();
        for (index, field) in spec.add.iter().enumerate() {
            let path = at.field("add").index(index);
            let Some((name, value)) = edits.field(field, &path) else { continue };
            if edits.seen[..seen].contains(&name) {
                edits.twice(&name, &path.field("name"));
                continue;
            }
            add.push((name, value));
        }
        Self { remove: remove.into(), rename: rename.into(), set: set.into(), add: add.into() }
    }

    /// Whether a template reads a field of this name.
    pub fn reads(&self, field: &str) -> bool {
        let mut values = self.set.iter().chain(&self.add);
        values.any(|(_, value)| matches!(value, Value::Filled(template) if template.reads(field)))
    }

    /// What the templates are filled with: before anything is changed.
    ///
    /// # Errors
    /// An expression has no value, or none that a field can have.
    pub fn fill(&self, subject: &Subject<'_>) -> Result<Filled, Fault> {
        let mut filled = Filled::default();
        for (_, value) in self.set.iter().chain(&self.add) {
            if let Value::Filled(template) = value {
                filled.0.push(Some(template.header(subject)?));
            }
        }
        Ok(filled)
    }

    /// The same where a field without a value is better than no answer.
    pub fn fill_what_can_be(&self, subject: &Subject<'_>) -> Filled {
        let values = self.set.iter().chain(&self.add).filter_map(|(_, value)| match value {
            Value::Filled(template) => Some(template.header(subject).ok()),
            Value::Fixed(_) => None,
        });
        Filled(values.collect())
    }

    /// Whether what is done depends on the message.
    pub fn has_expressions(&self) -> bool {
        self.set.iter().chain(&self.add).any(|(_, value)| matches!(value, Value::Filled(_)))
    }

    pub fn apply(&self, headers: &mut HeaderMap, filled: Filled) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (from, to) in &self.rename {
            let values: Vec<_> = headers.get_all(from).iter().cloned().collect();
            if !values.is_empty() {
                headers.remove(from);
                headers.remove(to);
                for value in values {
                    headers.append(to, value);
                }
            }
        }
        let mut filled = filled.0.into_iter();
        let mut value = |value: &Value| match value {
            Value::Fixed(value) => Some(value.clone()),
            Value::Filled(_) => filled.next().flatten(),
        };
        for (name, written) in &self.set {
            match value(written) {
                Some(value) => drop(headers.insert(name, value)),
                None => drop(headers.remove(name)),
            }
        }
        for (name, written) in &self.add {
            if let Some(value) = value(written) {
                headers.append(name, value);
            }
        }
    }
}

/// Whether a transform may not touch the field: it belongs to the connection or to the framing of the message.
pub fn is_forbidden(name: &HeaderName) -> bool {
    const FORBIDDEN: [&str; 8] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "keep-alive",
    ];
    // Whoever could set the count of passes could send requests in circles.
    const FAMILIES: [&str; 2] = ["proxy-", "x-portcullis-"];
    FORBIDDEN.contains(&name.as_str()) || FAMILIES.iter().any(|family| name.as_str().starts_with(family))
}

/// Whether a field may be one that the gateway alone sets: such a one is taken from every request to the hostname,
/// whatever rule it meets. Not in any spelling may it be one that the connection is made of, or that clients use to say
/// something of the request or of themselves.
pub(super) fn may_be_reserved(name: &HeaderName) -> bool {
    const OF_REQUESTS: [&str; 30] = [
        "authorization",
        "baggage",
        "cache-control",
        "cookie",
        "date",
        "dpop",
        "expect",
        "forwarded",
        "from",
        "idempotency-key",
        "last-event-id",
        "max-forwards",
        "origin",
        "pragma",
        "prefer",
        "priority",
        "range",
        "referer",
        "traceparent",
        "tracestate",
        "user-agent",
        "via",
        "x-api-key",
        "x-csrf-token",
        "x-forwarded-client-cert",
        "x-real-ip",
        "x-request-id",
        "x-requested-with",
        "x-xsrf-token",
        "x-method-override",
    ];
    const FAMILIES: [&str; 6] = ["accept", "access-control-", "content-", "if-", "sec-", "x-http-method"];
    let plain = plain_name(name.as_str());
    let is_of_requests =
        OF_REQUESTS.contains(&plain.as_str()) || FAMILIES.iter().any(|family| plain.starts_with(family));
    !is_of_requests && HeaderName::try_from(plain).is_ok_and(|name| !is_forbidden(&name))
}

struct Edits<'a> {
    problems: &'a mut Vec<Problem>,
    environment: &'static Environment,
    scope: &'a mut dyn Scope,
    seen: Vec<HeaderName>,
}

impl Edits<'_> {
    fn refuse(&mut self, path: FieldPath, message: impl Into<String>) {
        self.problems.push(Problem::error(path, Reason::PolicyInvalid, message));
    }

    fn name(&mut self, text: &str, path: &FieldPath) -> Option<HeaderName> {
        match HeaderName::try_from(text) {
            Ok(name) if is_forbidden(&name) => {
                self.refuse(path.clone(), format!("found {text:?}; {NOT_OURS}"))
            }
            Ok(name) => return Some(name),
            Err(_) => {
                self.refuse(path.clone(), format!("found {text:?}, expected the name of a header field"))
            }
        }
        None
    }

    fn field(&mut self, field: &HeaderSpec, path: &FieldPath) -> Option<(HeaderName, Value)> {
        let name = self.name(&field.name, &path.field("name"));
        let path = path.field("value");
        let is_plain = |text: &str| {
            text.trim() == text && text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b))
        };
        let mut text = field.value.as_str();
        let template;
        if text.contains("${") {
            template = self.scope.template(path.clone(), text, self.environment)?;
            match template.as_text() {
                Some(plain) => text = plain,
                None if is_plain(&template.outline()) => return Some((name?, Value::Filled(template))),
                None => {}
            }
        }
        match HeaderValue::from_str(text) {
            Ok(value) if is_plain(text) => Some((name?, Value::Fixed(value))),
            _ => {
                self.refuse(path, "a value has visible ASCII characters, and spaces and tabs between them");
                None
            }
        }
    }

    /// A name may stand once among `remove` and `set`: which of two would win is nothing that one can see.
    fn once(&mut self, name: &HeaderName, path: &FieldPath) -> Option<()> {
        if self.seen.contains(name) {
            self.twice(name, path);
            return None;
        }
        self.seen.push(name.clone());
        Some(())
    }

    fn twice(&mut self, name: &HeaderName, path: &FieldPath) {
        let message = format!("{name} is set or removed here already; leave one out");
        self.refuse(path.clone(), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filters::contract_tests::NoScope;

    fn field(name: &str, value: &str) -> HeaderSpec {
        HeaderSpec { name: name.into(), value: value.into() }
    }

    fn edits(spec: &HeadersSpec) -> Result<HeaderEdits, Vec<String>> {
        let mut problems = Vec::new();
        let edits = HeaderEdits::new(spec, &crate::expression::REQUEST, &mut NoScope, &mut problems);
        if problems.is_empty() {
            Ok(edits)
        } else {
            Err(problems.iter().map(|p| p.path.to_string()).collect())
        }
    }

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let spec = HeadersSpec {
            remove: vec!["Cookie".into()],
            set: vec![field("X-A", "1")],
            add: vec![field("X-B", "1"), field("X-B", "2")],
            ..HeadersSpec::default()
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("cookie", "a"), ("cookie", "b"), ("x-a", "0"), ("x-a", "9"), ("x-b", "0")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        edits(&spec).expect("valid").apply(&mut headers, Filled::default());
        let all: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().expect("ASCII"))).collect();
        assert_eq!(all, [("x-b", "0"), ("x-b", "1"), ("x-b", "2"), ("x-a", "1")]);
    }

    #[test]
    fn framing_and_connection_are_out_of_reach() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "CONNECTION",
            "upgrade",
            "Te",
            "trailer",
            "Keep-Alive",
            "Proxy-Authorization",
            "proxy-connection",
        ] {
            let spec = HeadersSpec {
                set: vec![field(name, "x")],
                add: vec![field(name, "x")],
                remove: vec![name.into()],
                rename: vec![RenameHeaderSpec { from: name.into(), to: "x".into() }],
            };
            let expected =
                ["headers.remove[0]", "headers.rename[0].from", "headers.set[0].name", "headers.add[0].name"];
            assert_eq!(edits(&spec), Err(expected.map(str::to_owned).into()), "{name}");
        }
    }

    #[test]
    fn what_is_no_field_is_refused_by_parser_and_schema_alike() {
        let token = regex::Regex::new(TOKEN).expect("a pattern");
        let text = regex::Regex::new(VALUE).expect("a pattern");
        for (name, value) in [
            ("x y", "a"),
            ("x:", "a"),
            (":path", "a"),
            ("", "a"),
            ("x\r\ny", "a"),
            ("x", "a\r\nb"),
            ("x", "a\0"),
            ("x", "ä"),
            ("ä", "a"),
            ("x", " a"),
        ] {
            let spec = HeadersSpec { set: vec![field(name, value)], ..HeadersSpec::default() };
            assert!(edits(&spec).is_err(), "{name:?}: {value:?}");
            assert!(!token.is_match(name) || !text.is_match(value), "{name:?}: {value:?}");
        }
        // What stands around an expression, and what follows `$${`, is text like any other.
        for value in ["a\r\n${request.host}", " ${request.host}", "$${ä"] {
            let spec = HeadersSpec { set: vec![field("x", value)], ..HeadersSpec::default() };
            assert!(edits(&spec).is_err(), "{value:?}");
        }
    }

    #[test]
    fn a_name_stands_once() {
        let spec = HeadersSpec { set: vec![field("X-A", "1"), field("x-a", "2")], ..HeadersSpec::default() };
        assert_eq!(edits(&spec), Err(vec!["headers.set[1].name".into()]));
        let spec =
            HeadersSpec { remove: vec!["a".into()], add: vec![field("A", "1")], ..HeadersSpec::default() };
        assert_eq!(edits(&spec), Err(vec!["headers.add[0].name".into()]));
    }
}

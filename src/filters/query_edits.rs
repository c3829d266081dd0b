//! Changes to the parameters of a query, as `request.query` writes them, proven and done.

use std::borrow::Cow;

use kube::KubeSchema;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::contract::Scope;
use crate::expression::{Environment, Fault, Subject, Template, Why};
use crate::values::{FieldPath, Problem, Reason};

/// Changes to the parameters of the query.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuerySpec {
    /// Parameters that get exactly this value, whatever there was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub set: Vec<QueryParamSpec>,
    /// Parameters that are added to what there is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub add: Vec<QueryParamSpec>,
    /// Names of parameters that are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub remove: Vec<String>,
}

/// A parameter of the query.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryParamSpec {
    /// Name of the parameter, not percent-encoded.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// Value of the parameter, not percent-encoded.
    #[schemars(length(max = 1024))]
    pub value: String,
}

/// Everything but unreserved characters (RFC 3986 section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// With it and what a client may send, a target stays far below the 64 KiB that a URI can have.
const MAX_APPENDED: usize = 16 << 10;

/// Proven changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryEdits {
    /// Names whose parameters go away, those that are set included; decoded.
    gone: Box<[Box<str>]>,
    /// What is put behind the rest.
    appended: Box<[Appended]>,
}

#[derive(Clone, Debug, PartialEq)]
enum Appended {
    /// `a=1&b=2`, encoded.
    Fixed(Box<str>),
    /// `a=`, encoded, and its value.
    Filled(Box<str>, Template),
}

impl QueryEdits {
    /// Proves what is written at `query`; problems carry paths from there. What expressions may read is in
    /// `environment`.
    pub fn new(
        spec: &QuerySpec,
        environment: &'static Environment,
        scope: &mut dyn Scope,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let at = FieldPath::new("query");
        let mut gone: Vec<Box<str>> = Vec::new();
        let mut refuse = |path, message: String| {
            problems.push(Problem::error(path, Reason::PolicyInvalid, message));
        };
        let twice = |name: &str| format!("{name:?} is set or removed here already; leave one out");
        for (index, name) in spec.remove.iter().enumerate() {
            if gone.iter().any(|known| **known == **name) {
                refuse(at.field("remove").index(index), twice(name));
            }
            gone.push(name.as_str().into());
        }
        for (index, param) in spec.set.iter().enumerate() {
            if gone.iter().any(|known| **known == *param.name) {
                refuse(at.field("set").index(index).field("name"), twice(&param.name));
            }
            gone.push(param.name.as_str().into());
        }
        for (index, param) in spec.add.iter().enumerate() {
            if gone.iter().any(|known| **known == *param.name) {
                refuse(at.field("add").index(index).field("name"), twice(&param.name));
            }
        }
        let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
        let mut appended = Vec::new();
        let mut fixed = String::new();
        for (list, params) in [("set", &spec.set), ("add", &spec.add)] {
            for (index, param) in params.iter().enumerate() {
                let mut value = Cow::Borrowed(param.value.as_str());
                if value.contains("${") {
                    let path = at.field(list).index(index).field("value");
                    let Some(template) = scope.template(path, &value, environment) else { continue };
                    match template.as_text() {
                        Some(text) => value = Cow::Owned(text.to_owned()),
                        None => {
                            if !fixed.is_empty() {
                                appended.push(Appended::Fixed(std::mem::take(&mut fixed).into()));
                            }
                            let name = format!("{}=", encoded(&param.name));
                            appended.push(Appended::Filled(name.into(), template));
                            continue;
                        }
                    }
                }
                fixed += if fixed.is_empty() { "" } else { "&" };
                fixed += &format!("{}={}", encoded(&param.name), encoded(&value));
            }
        }
        if !fixed.is_empty() {
            appended.push(Appended::Fixed(fixed.into()));
        }
        let length: usize = appended.iter().map(Appended::written).sum();
        if length > MAX_APPENDED {
            let message =
                format!("set and add make {length} bytes of query, expected at most {MAX_APPENDED}");
            refuse(at, message);
        }
        Self { gone: gone.into(), appended: appended.into() }
    }

    /// Whether an expression reads a field of this name.
    pub fn reads(&self, field: &str) -> bool {
        let mut appended = self.appended.iter();
        appended.any(|appended| matches!(appended, Appended::Filled(_, template) if template.reads(field)))
    }

    /// The new query. What is not changed stays byte for byte, in its order.
    ///
    /// # Errors
    /// An expression has no value, or too long a one.
    pub fn apply(&self, query: Option<&str>, subject: &Subject<'_>) -> Result<String, Fault> {
        let query = query.unwrap_or_default();
        let written: usize = self.appended.iter().map(Appended::written).sum();
        let mut changed = String::with_capacity(query.len() + written + self.appended.len());
        let mut push = |parts: [&str; 2]| {
            if !changed.is_empty() {
                changed.push('&');
            }
            parts.iter().for_each(|part| changed.push_str(part));
        };
        query
            .split('&')
            .filter(|pair| !pair.is_empty() && !self.takes_away(pair))
            .for_each(|pair| push([pair, ""]));
        for appended in &self.appended {
            match appended {
                Appended::Fixed(pairs) => push([pairs, ""]),
                Appended::Filled(name, template) => push([name, &template.query(subject)?]),
            }
        }
        if changed.len() > query.len() + MAX_APPENDED {
            return Err(Fault { at: 0, why: Why::TooLong });
        }
        Ok(changed)
    }

    fn takes_away(&self, pair: &str) -> bool {
        let name = pair.split('=').next().unwrap_or_default();
        self.gone.iter().any(|gone| is_spelling_of(name, gone))
    }
}

impl Appended {
    /// How much of it is known before there is a request.
    fn written(&self) -> usize {
        match self {
            Self::Fixed(text) | Self::Filled(text, _) => text.len(),
        }
    }
}

/// Whether `encoded`, in any spelling, means `name`. A `+` is a space in forms and a plus elsewhere: both are taken, so
/// that nothing that a backend may read as `name` stays.
pub(super) fn is_spelling_of(encoded: &str, name: &str) -> bool {
    if encoded == name {
        return true;
    }
    if !encoded.contains(['%', '+']) {
        return false;
    }
    let decodes_to_name = |text: &str| percent_decode_str(text).eq(name.bytes());
    decodes_to_name(encoded) || (encoded.contains('+') && decodes_to_name(&encoded.replace('+', " ")))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::expression::REQUEST;
    use crate::filters::contract_tests::{FakeOutbound, NoScope, exchange};

    fn param(name: &str, value: &str) -> QueryParamSpec {
        QueryParamSpec { name: name.into(), value: value.into() }
    }

    fn edits(spec: &QuerySpec) -> QueryEdits {
        let mut problems = Vec::new();
        let edits = QueryEdits::new(spec, &REQUEST, &mut NoScope, &mut problems);
        assert_eq!(problems, []);
        edits
    }

    fn applied(edits: &QueryEdits, query: Option<&str>) -> String {
        let exchange = exchange("/", 0, Rc::new(FakeOutbound::default()));
        edits.apply(query, &Subject { exchange: &exchange }).expect("a query")
    }

    #[test]
    fn what_is_not_changed_stays_byte_for_byte() {
        let edits = edits(&QuerySpec {
            remove: vec!["gone".into()],
            set: vec![param("a", "1 &")],
            add: vec![param("b", "ä"), param("b", "$")],
        });
        for (query, expected) in [
            (None, "a=1%20%26&b=%C3%A4&b=%24"),
            (Some("x=%7e+1&gone&y"), "x=%7e+1&y&a=1%20%26&b=%C3%A4&b=%24"),
            (Some("a=0&b=0&a"), "b=0&a=1%20%26&b=%C3%A4&b=%24"),
        ] {
            assert_eq!(applied(&edits, query), expected);
        }
    }

    #[test]
    fn no_spelling_of_a_removed_name_stays() {
        let edits = edits(&QuerySpec { remove: vec!["a key".into()], ..QuerySpec::default() });
        assert_eq!(applied(&edits, Some("a%20key=1&a+key=2&%61%20key&b=a+key")), "b=a+key");
    }

    #[test]
    fn what_is_added_is_bounded() {
        let add = (0..16).map(|i| param(&i.to_string(), &"ä".repeat(500))).collect();
        let mut problems = Vec::new();
        QueryEdits::new(&QuerySpec { add, ..QuerySpec::default() }, &REQUEST, &mut NoScope, &mut problems);
        assert_eq!(problems[0].path.as_str(), "query");
    }

    #[test]
    fn a_name_stands_once() {
        let spec = QuerySpec {
            remove: vec!["a".into()],
            set: vec![param("a", ""), param("b", "")],
            add: vec![param("b", "")],
        };
        let mut problems = Vec::new();
        QueryEdits::new(&spec, &REQUEST, &mut NoScope, &mut problems);
        let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, ["query.set[0].name", "query.add[0].name"]);
    }
}

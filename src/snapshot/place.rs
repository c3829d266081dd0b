//! Where in a document a field stands: from the field's path to line, column and width.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Lines and columns count from 1, columns and widths in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    pub width: usize,
}

/// Finds `spec.rules[2].name` in a YAML or JSON document: the value when it is a scalar, else its key; when it is not
/// there, the nearest thing around it that is.
pub fn find(document: &str, path: &str) -> Option<Place> {
    let root: Spanned<Node> = serde_saphyr::from_str(document).ok()?;
    let mut node = root;
    let mut best = None;
    for step in steps(path) {
        let (place, next) = match (step, node.value) {
            (Step::Field(name), Node::Map(entries)) => {
                let Some((key, value)) = entries.into_iter().find(|(key, _)| key.value == name) else {
                    break;
                };
                let scalar = matches!(value.value, Node::Scalar) && value.referenced.line() > 0;
                let place =
                    if scalar { place(&value) } else { Place { width: name.chars().count(), ..place(&key) } };
                (place, value)
            }
            (Step::Index(index), Node::List(mut items)) if index < items.len() => {
                let item = items.swap_remove(index);
                (place(&item), item)
            }
            _ => break,
        };
        best = Some(place);
        node = next;
    }
    best
}

fn place<T>(value: &Spanned<T>) -> Place {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).max(1);
    Place {
        line: number(value.referenced.line()),
        column: number(value.referenced.column()),
        width: usize::try_from(value.referenced.span().len()).unwrap_or(1).max(1),
    }
}

enum Step {
    Field(String),
    Index(usize),
}

/// `spec.rules[2].name` → spec, rules, 2, name.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let mut pieces = part.split('[');
        let name = pieces.next().unwrap_or_default();
        if !name.is_empty() {
            steps.push(Step::Field(name.to_owned()));
        }
        for piece in pieces {
            match piece.trim_end_matches(']').parse() {
                Ok(index) => steps.push(Step::Index(index)),
                Err(_) => steps.push(Step::Field(piece.trim_end_matches(']').to_owned())),
            }
        }
    }
    steps
}

/// The shape of a document.
enum Node {
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Scalar,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "\
kind: GatewayRoute
spec:
  hostnames: [a.example, \"b\"]
  rules:
  - name: one
    backendRefs:
    - {name: web, port: 99}
  - name: two
";

    #[test]
    fn finds_scalars_keys_and_items() {
        for (path, line, column, width) in [
            ("kind", 1, 7, 12),
            ("spec.hostnames[0]", 3, 15, 9),
            ("spec.rules", 4, 3, 5),
            ("spec.rules[0].backendRefs[0].port", 7, 25, 2),
            ("spec.rules[1].name", 8, 11, 3),
        ] {
            assert_eq!(find(ROUTE, path), Some(Place { line, column, width }), "{path}");
        }
    }

    #[test]
    fn what_is_not_there_is_shown_at_what_is_around_it() {
        let around = find(ROUTE, "spec.rules[1].backendRefs[3].port").expect("a place");
        assert_eq!((around.line, around.column), (8, 5));
        assert_eq!(find(ROUTE, "status"), None);
        assert_eq!(find("{", "spec"), None);
    }

    #[test]
    fn json_is_found_too() {
        let place =
            find("{\"spec\": {\"rules\": [{\"name\": \"x\"}]}}", "spec.rules[0].name").expect("a place");
        assert_eq!((place.line, place.column), (1, 30));
    }
}

//! What an expression reads: for who must know that before there is a request.

use super::environment::{Content, Environment, Field};
use super::node::{Node, Work};
use super::parse::Operator;
use super::value::Constant;
use super::{Expression, Template};

/// One thing that is read, like `request.headers['x-tenant']`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// `request`; of a variable that is a value itself the same as the field.
    pub variable: &'static str,
    /// `headers`
    pub field: &'static str,
    /// `x-tenant`. `None`: any, or all.
    pub key: Option<Box<str>>,
}

impl Expression {
    pub fn what_it_reads(&self) -> Vec<Read> {
        let mut found = Vec::new();
        self.read_by(&self.root, &mut found);
        found
    }

    fn read_by(&self, node: &Node, found: &mut Vec<Read>) {
        let mut all =
            |nodes: &mut dyn Iterator<Item = &Node>| nodes.for_each(|node| self.read_by(node, found));
        match &node.work {
            // What a call answered is no part of the request.
            Work::Constant(_) | Work::Local(_) | Work::Call(..) | Work::HasCall(..) => {}
            Work::Read(field) | Work::HasRead(field) => found.push(read(self.environment, field, None)),
            Work::Select(of, key) | Work::Has(of, key) => match &of.work {
                Work::Read(field) => found.push(read(self.environment, field, Some(key))),
                _ => self.read_by(of, found),
            },
            Work::Index(both) => match (&both[0].work, &both[1].work) {
                (Work::Read(field), Work::Constant(Constant::Text(key))) => {
                    found.push(read(self.environment, field, Some(key)));
                }
                _ => all(&mut both.iter()),
            },
            Work::Binary(Operator::In, both) => match (&both[0].work, &both[1].work) {
                (Work::Constant(Constant::Text(key)), Work::Read(field)) => {
                    found.push(read(self.environment, field, Some(key)));
                }
                _ => all(&mut both.iter()),
            },
            Work::Not(one) | Work::Negate(one) | Work::Matches(one, _) => self.read_by(one, found),
            Work::And(nodes) | Work::Or(nodes) | Work::List(nodes) | Work::Apply(_, nodes) => {
                all(&mut nodes.iter())
            }
            Work::Choose(nodes) => all(&mut nodes.iter()),
            Work::Binary(_, nodes) => all(&mut nodes.iter()),
            Work::Map(pairs) => all(&mut pairs.iter().flatten()),
            Work::Loop(work) => {
                let parts = [Some(&work.over), work.condition.as_ref(), work.result.as_ref()];
                all(&mut parts.into_iter().flatten());
            }
        }
    }
}

impl Template {
    pub fn what_it_reads(&self) -> Vec<Read> {
        self.values().flat_map(Expression::what_it_reads).collect()
    }
}

fn read(environment: &Environment, field: &'static Field, key: Option<&str>) -> Read {
    let holds = |content: &Content| match content {
        Content::Value(known) => std::ptr::eq(known, field),
        Content::Record(fields) => fields.iter().any(|known| std::ptr::eq(known, field)),
    };
    // The checker took it from there.
    let variable = environment.variables.iter().find(|variable| holds(&variable.content));
    Read {
        variable: variable.map_or("", |variable| variable.name),
        field: field.name,
        key: key.map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::{Kind, REQUEST};

    fn reads(source: &str) -> Vec<String> {
        let expression = Expression::parse(source, &REQUEST, Kind::ANY).expect(source);
        let text = |read: Read| {
            format!(
                "{}.{}{}",
                read.variable,
                read.field,
                read.key.map(|key| format!("[{key}]")).unwrap_or_default()
            )
        };
        expression.what_it_reads().into_iter().map(text).collect()
    }

    #[test]
    fn everything_that_is_read_is_told_with_its_key() {
        for (source, expected) in [
            ("1 + 2", vec![]),
            ("request.headers['x-a'] + request.method", vec!["request.headers[x-a]", "request.method"]),
            ("request.query.page", vec!["request.query[page]"]),
            ("'x-a' in request.headers", vec!["request.headers[x-a]"]),
            ("has(request.query.page)", vec!["request.query[page]"]),
            ("request.headers[request.method]", vec!["request.headers", "request.method"]),
            ("size(request.headers)", vec!["request.headers"]),
            ("path.id", vec!["path.path[id]"]),
            (
                "identity.claims.tier == 'a' ? client.address : 'b'",
                vec!["identity.claims[tier]", "client.address"],
            ),
            ("['a'].exists(x, x == identity.id)", vec!["identity.id"]),
            ("{'a': [request.path]}", vec!["request.path"]),
        ] {
            assert_eq!(reads(source), expected, "{source}");
        }
    }
}

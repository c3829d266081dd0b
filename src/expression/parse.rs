//! Tokens → syntax tree, by the grammar of CEL. Size, depth and the number of nodes are bounded.

use super::refused::Refused;
use super::token::{Token, tokens};

/// Bytes of one expression.
pub const MAX_SOURCE: usize = 2048;
/// Nodes of one expression.
pub const MAX_NODES: usize = 500;
/// Nodes below each other. Evaluation goes as deep as this, and no deeper.
pub const MAX_DEPTH: usize = 48;

/// Words that are no names.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "package",
    "return",
    "var",
    "void",
    "while",
];

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Syntax {
    pub at: usize,
    pub form: Form,
    depth: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Name(String),
    Select(Box<Syntax>, String),
    Index(Box<[Syntax; 2]>),
    /// With the receiver of a method.
    Call(Option<Box<Syntax>>, String, Vec<Syntax>),
    Not(Box<Syntax>),
    Negate(Box<Syntax>),
    And(Vec<Syntax>),
    Or(Vec<Syntax>),
    Choose(Box<[Syntax; 3]>),
    Binary(Operator, Box<[Syntax; 2]>),
    List(Vec<Syntax>),
    Map(Vec<[Syntax; 2]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::In => "in",
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
        }
    }
}

const RELATIONS: &[Operator] = &[
    Operator::Equal,
    Operator::Unequal,
    Operator::Less,
    Operator::LessOrEqual,
    Operator::Greater,
    Operator::GreaterOrEqual,
    Operator::In,
];
const SUMS: &[Operator] = &[Operator::Add, Operator::Subtract];
const PRODUCTS: &[Operator] = &[Operator::Multiply, Operator::Divide, Operator::Remainder];
/// What binds loosest stands first.
const LEVELS: &[&[Operator]] = &[RELATIONS, SUMS, PRODUCTS];

pub(super) fn parse(source: &str) -> Result<Syntax, Refused> {
    if source.len() > MAX_SOURCE {
        let message = format!("the expression has {} bytes, at most {MAX_SOURCE} are allowed", source.len());
        return Err(Refused::at(0, message));
    }
    let mut parser = Parser { tokens: tokens(source)?, next: 0, nodes: 0, nesting: 0 };
    let syntax = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(syntax),
        _ => Err(parser.unexpected("an operator or the end")),
    }
}

struct Parser<'s> {
    tokens: Vec<(Token<'s>, usize)>,
    next: usize,
    nodes: usize,
    nesting: usize,
}

impl<'s> Parser<'s> {
    fn expression(&mut self) -> Result<Syntax, Refused> {
        self.nesting += 1;
        if self.nesting > MAX_DEPTH {
            return Err(too_deep(self.at()));
        }
        let condition = self.any_of()?;
        let at = self.at();
        let syntax = if self.take("?") {
            let then = self.any_of()?;
            self.expect(":")?;
            let otherwise = self.expression()?;
            self.node(at, Form::Choose(Box::new([condition, then, otherwise])))?
        } else {
            condition
        };
        self.nesting -= 1;
        Ok(syntax)
    }

    fn any_of(&mut self) -> Result<Syntax, Refused> {
        let (at, first) = (self.at(), self.all_of()?);
        let mut terms = vec![first];
        while self.take("||") {
            terms.push(self.all_of()?);
        }
        self.chain(at, terms, Form::Or)
    }

    fn all_of(&mut self) -> Result<Syntax, Refused> {
        let (at, first) = (self.at(), self.operators(LEVELS)?);
        let mut terms = vec![first];
        while self.take("&&") {
            terms.push(self.operators(LEVELS)?);
        }
        self.chain(at, terms, Form::And)
    }

    fn chain(
        &mut self,
        at: usize,
        mut terms: Vec<Syntax>,
        form: fn(Vec<Syntax>) -> Form,
    ) -> Result<Syntax, Refused> {
        if terms.len() == 1 {
            return Ok(terms.remove(0));
        }
        self.node(at, form(terms))
    }

    fn operators(&mut self, levels: &[&[Operator]]) -> Result<Syntax, Refused> {
        let Some((level, tighter)) = levels.split_first() else { return self.unary() };
        let mut left = self.operators(tighter)?;
        loop {
            let at = self.at();
            let found = match self.peek() {
                Token::Symbol(symbol) => level.iter().find(|operator| operator.as_str() == *symbol),
                Token::Name("in") => level.iter().find(|operator| **operator == Operator::In),
                _ => None,
            };
            let Some(operator) = found else { return Ok(left) };
            self.next += 1;
            let right = self.operators(tighter)?;
            left = self.node(at, Form::Binary(*operator, Box::new([left, right])))?;
        }
    }

    fn unary(&mut self) -> Result<Syntax, Refused> {
        let at = self.at();
        if !matches!(self.peek(), Token::Symbol("!" | "-")) {
            return self.member();
        }
        self.nesting += 1;
        if self.nesting > MAX_DEPTH {
            return Err(too_deep(at));
        }
        let syntax = if self.take("!") {
            let operand = self.unary()?;
            self.node(at, Form::Not(Box::new(operand)))
        } else {
            self.next += 1;
            self.negative(at)
        };
        self.nesting -= 1;
        syntax
    }

    /// After a minus. The least integer has no positive counterpart, so the sign of a literal belongs to it.
    fn negative(&mut self, at: usize) -> Result<Syntax, Refused> {
        match *self.peek() {
            Token::Int(value) => {
                self.next += 1;
                let value = 0i64.checked_sub_unsigned(value).ok_or_else(|| too_large(at))?;
                let literal = self.node(at, Form::Int(value))?;
                self.suffixes(literal)
            }
            Token::Double(value) => {
                self.next += 1;
                let literal = self.node(at, Form::Double(-value))?;
                self.suffixes(literal)
            }
            _ => {
                let operand = self.unary()?;
                self.node(at, Form::Negate(Box::new(operand)))
            }
        }
    }

    fn member(&mut self) -> Result<Syntax, Refused> {
        let primary = self.primary()?;
        self.suffixes(primary)
    }

    fn suffixes(&mut self, mut syntax: Syntax) -> Result<Syntax, Refused> {
        loop {
            let at = self.at();
            if self.take(".") {
                let (name, is_quoted) = match *self.peek() {
                    Token::Name(name) => (name, false),
                    Token::Field(name) => (name, true),
                    _ => return Err(self.unexpected("the name of a field or method")),
                };
                self.next += 1;
                let form = if is_quoted {
                    Form::Select(Box::new(syntax), name.to_owned())
                } else if self.take("(") {
                    Form::Call(Some(Box::new(syntax)), name.to_owned(), self.list(")")?)
                } else if name == "in" {
                    return Err(Refused::at(at + 1, "\"in\" is an operator; write ['in'] for a key"));
                } else {
                    Form::Select(Box::new(syntax), name.to_owned())
                };
                syntax = self.node(at, form)?;
            } else if self.take("[") {
                let index = self.expression()?;
                self.expect("]")?;
                syntax = self.node(at, Form::Index(Box::new([syntax, index])))?;
            } else {
                return Ok(syntax);
            }
        }
    }

    fn primary(&mut self) -> Result<Syntax, Refused> {
        let at = self.at();
        let token = self.peek().clone();
        let form = match token {
            Token::Int(value) => Form::Int(i64::try_from(value).map_err(|_| too_large(at))?),
            Token::Uint(value) => Form::Uint(value),
            Token::Double(value) => Form::Double(value),
            Token::Text(text) => Form::Text(text),
            Token::Bytes(bytes) => Form::Bytes(bytes),
            Token::Name("true") => Form::Bool(true),
            Token::Name("false") => Form::Bool(false),
            Token::Name("null") => Form::Null,
            Token::Name(name) if RESERVED.contains(&name) => {
                return Err(Refused::at(at, format!("{name:?} is a word that CEL reserves, no name")));
            }
            Token::Name(name) => {
                self.next += 1;
                let form = if self.take("(") {
                    Form::Call(None, name.to_owned(), self.list(")")?)
                } else {
                    Form::Name(name.to_owned())
                };
                return self.node(at, form);
            }
            Token::Symbol("(") => {
                self.next += 1;
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => {
                self.next += 1;
                let items = self.list("]")?;
                return self.node(at, Form::List(items));
            }
            Token::Symbol("{") => {
                self.next += 1;
                let entries = self.entries()?;
                return self.node(at, Form::Map(entries));
            }
            _ => return Err(self.unexpected("a value")),
        };
        self.next += 1;
        self.node(at, form)
    }

    /// Up to the closing symbol. One comma may stand behind the last of a list, none behind the last argument.
    fn list(&mut self, close: &'static str) -> Result<Vec<Syntax>, Refused> {
        let mut items = Vec::new();
        if self.take(close) {
            return Ok(items);
        }
        loop {
            items.push(self.expression()?);
            if !self.take(",") {
                break;
            }
            if close == "]" && matches!(self.peek(), Token::Symbol("]")) {
                break;
            }
        }
        self.expect(close)?;
        Ok(items)
    }

    fn entries(&mut self) -> Result<Vec<[Syntax; 2]>, Refused> {
        let mut entries = Vec::new();
        while !matches!(self.peek(), Token::Symbol("}")) {
            let key = self.expression()?;
            self.expect(":")?;
            entries.push([key, self.expression()?]);
            if !self.take(",") {
                break;
            }
        }
        self.expect("}")?;
        Ok(entries)
    }

    fn node(&mut self, at: usize, form: Form) -> Result<Syntax, Refused> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let message = format!("the expression has more than {MAX_NODES} parts; make it smaller");
            return Err(Refused::at(at, message));
        }
        let depth = 1 + form.children().map(|child| child.depth).max().unwrap_or_default();
        if depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        Ok(Syntax { at, form, depth })
    }

    fn peek(&self) -> &Token<'s> {
        &self.tokens[self.next.min(self.tokens.len() - 1)].0
    }

    fn at(&self) -> usize {
        self.tokens[self.next.min(self.tokens.len() - 1)].1
    }

    fn take(&mut self, symbol: &str) -> bool {
        let taken = matches!(self.peek(), Token::Symbol(found) if *found == symbol);
        self.next += usize::from(taken);
        taken
    }

    fn expect(&mut self, symbol: &'static str) -> Result<(), Refused> {
        if self.take(symbol) { Ok(()) } else { Err(self.unexpected(&format!("{symbol:?}"))) }
    }

    fn unexpected(&self, expected: &str) -> Refused {
        let found = match self.peek() {
            Token::End => "the end".to_owned(),
            Token::Symbol(symbol) => format!("{symbol:?}"),
            Token::Name(name) => format!("{:?}", name.chars().take(40).collect::<String>()),
            _ => "a literal".to_owned(),
        };
        Refused::at(self.at(), format!("found {found}, expected {expected}"))
    }
}

impl Form {
    fn children(&self) -> Box<dyn Iterator<Item = &Syntax> + '_> {
        match self {
            Self::Select(of, _) | Self::Not(of) | Self::Negate(of) => Box::new(std::iter::once(&**of)),
            Self::Index(both) | Self::Binary(_, both) => Box::new(both.iter()),
            Self::Call(of, _, arguments) => Box::new(of.iter().map(|of| &**of).chain(arguments)),
            Self::And(terms) | Self::Or(terms) | Self::List(terms) => Box::new(terms.iter()),
            Self::Choose(three) => Box::new(three.iter()),
            Self::Map(entries) => Box::new(entries.iter().flatten()),
            _ => Box::new(std::iter::empty()),
        }
    }
}

fn too_deep(at: usize) -> Refused {
    Refused::at(at, format!("the expression is nested more than {MAX_DEPTH} deep"))
}

fn too_large(at: usize) -> Refused {
    Refused::at(at, "this number has no value of 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(source: &str) -> String {
        parse(source).map_err(|refused| refused.seen_in(source)).expect_err(source).to_string()
    }

    #[test]
    fn operators_bind_as_in_cel() {
        let same = |a: &str, b: &str| {
            let bare = |source: &str| {
                let mut text = format!("{:?}", parse(source).expect(source).form);
                while let Some(start) = text.find("at: ") {
                    let end = text[start..].find(',').expect("more follows") + start;
                    text.replace_range(start..=end, "");
                }
                text
            };
            assert_eq!(bare(a), bare(b), "{a} is not {b}");
        };
        same("1 + 2 * 3 - 4 % 5", "(1 + (2 * 3)) - (4 % 5)");
        same("a || b && c == d", "a || (b && (c == d))");
        same("a ? b : c ? d : e", "a ? b : (c ? d : e)");
        same("!a.b[0].c('x') == -d", "(!(((a.b)[0]).c('x'))) == (-d)");
        same("1 < 2 == true", "(1 < 2) == true");
        same("a in [1, 2,] || {'b': c,} == d", "(a in [1, 2]) || ({'b': c} == d)");
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (source, message) in [
            ("", "found the end, expected a value (line 1, column 1)"),
            ("a ==\n  == b", "found \"==\", expected a value (line 2, column 3)"),
            ("(a", "found the end, expected \")\" (line 1, column 3)"),
            ("a b", "found \"b\", expected an operator or the end (line 1, column 3)"),
            ("f(a,)", "found \")\", expected a value (line 1, column 5)"),
            ("a.'b'", "found a literal, expected the name of a field or method (line 1, column 3)"),
            ("for", "\"for\" is a word that CEL reserves, no name (line 1, column 1)"),
            ("9223372036854775808", "this number has no value of 64 bits (line 1, column 1)"),
        ] {
            assert_eq!(refused(source), message, "{source}");
        }
        assert!(parse("-9223372036854775808").is_ok());
    }

    #[test]
    fn size_depth_and_number_of_nodes_are_bounded() {
        assert!(refused(&format!("'{}'", "x".repeat(MAX_SOURCE))).contains("has 2050 bytes, at most 2048"));
        let or = |terms: usize| vec!["a"; terms].join("||");
        assert!(parse(&or(MAX_NODES - 1)).is_ok() && refused(&or(MAX_NODES)).contains("more than 500 parts"));
        let deep = "is nested more than 48 deep";
        for (open, close) in
            [("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("f(", ")"), ("a?b:", ""), ("{1:", "}")]
        {
            let source = |depth: usize| format!("{}a{}", open.repeat(depth), close.repeat(depth));
            assert!(parse(&source(40)).is_ok() && refused(&source(300)).contains(deep), "{open}");
        }
        for suffix in [".b", "[0]", ".f()", "+a", "-a"] {
            assert!(refused(&format!("a{}", suffix.repeat(60))).contains(deep), "{suffix}");
        }
    }
}

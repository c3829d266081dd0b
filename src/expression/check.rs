//! Syntax → checked form: names against the environment, types as far as they are known, macros, patterns.

use super::calls::{self, CallField, KnownCalls};
use super::environment::{Content, Environment, Field, Keys, Variable};
use super::fault::Meter;
use super::functions::{FUNCTIONS, Function, MATCHES, Style};
use super::kind::{Kind, Scalar};
use super::node::{Loop, Macro, Node, Work};
use super::parse::{Form, Operator, Syntax};
use super::pattern::Pattern;
use super::refused::{Refused, hint};
use super::value::{Constant, Octets, Text, Value};

/// Patterns of one expression: each may take some memory.
pub const MAX_PATTERNS: usize = 8;

/// Names of types, which are values too.
const TYPES: &[&str] =
    &["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

pub(super) const MACROS: &[(&str, &str)] = &[
    ("has(map.key)", "Whether the map has the key; of a variable's field, whether it is not empty"),
    ("list.all(x, condition)", "Whether the condition holds for all elements, or keys of a map"),
    ("list.exists(x, condition)", "Whether it holds for one at least"),
    ("list.exists_one(x, condition)", "Whether it holds for exactly one"),
    ("list.filter(x, condition)", "The elements for which it holds"),
    ("list.map(x, expression)", "What the expression makes of each element"),
    ("list.map(x, condition, expression)", "The same of those for which the condition holds"),
];

pub(super) fn check(
    syntax: &Syntax,
    environment: &Environment,
    calls: Option<&KnownCalls>,
    wanted: Kind,
) -> Result<Node, Refused> {
    let mut checker = Checker { environment, calls, locals: Vec::new(), patterns: 0 };
    let (node, kind) = checker.node(syntax)?;
    if kind.fits(wanted) {
        return Ok(node);
    }
    Err(Refused::at(syntax.at, format!("the expression gives {kind}, expected {wanted}")))
}

struct Checker<'e> {
    environment: &'e Environment,
    calls: Option<&'e KnownCalls>,
    /// Variables of the macros around, by slot.
    locals: Vec<(&'e str, Kind)>,
    patterns: usize,
}

type Checked = Result<(Node, Kind), Refused>;

impl<'e> Checker<'e> {
    fn node(&mut self, syntax: &'e Syntax) -> Checked {
        let at = syntax.at;
        let constant = |constant, kind| Ok((Work::Constant(constant), kind));
        let checked: Result<(Work, Kind), Refused> = match &syntax.form {
            Form::Null => constant(Constant::Null, Kind::One(Scalar::Null)),
            Form::Bool(value) => constant(Constant::Bool(*value), Kind::BOOL),
            Form::Int(value) => constant(Constant::Int(*value), Kind::INT),
            Form::Uint(value) => constant(Constant::Uint(*value), Kind::UINT),
            Form::Double(value) => constant(Constant::Double(*value), Kind::DOUBLE),
            Form::Text(text) => constant(Constant::Text(text.as_str().into()), Kind::TEXT),
            Form::Bytes(bytes) => constant(Constant::Bytes(bytes.as_slice().into()), Kind::BYTES),
            Form::Name(name) => self.name(name, at),
            Form::Select(of, name) => self.select(of, name, at),
            Form::Index(both) => self.index(&both[0], &both[1], at),
            Form::Call(None, name, arguments) if name == "has" => self.has(arguments, at),
            Form::Call(receiver, name, arguments) => self.apply(receiver.as_deref(), name, arguments, at),
            Form::Not(operand) => {
                let operand = self.bool(operand, "!")?;
                Ok((Work::Not(Box::new(operand)), Kind::BOOL))
            }
            Form::Negate(operand) => {
                let (operand, kind) = self.node(operand)?;
                if ![Kind::INT, Kind::DOUBLE, Kind::DURATION].into_iter().any(|known| kind.fits(known)) {
                    return Err(Refused::at(at, format!("- takes a number, found {kind}")));
                }
                Ok((Work::Negate(Box::new(operand)), kind))
            }
            Form::And(terms) => Ok((Work::And(self.bools(terms, "&&")?), Kind::BOOL)),
            Form::Or(terms) => Ok((Work::Or(self.bools(terms, "||")?), Kind::BOOL)),
            Form::Choose(three) => {
                let condition = self.bool(&three[0], "?:")?;
                let (then, a) = self.node(&three[1])?;
                let (otherwise, b) = self.node(&three[2])?;
                Ok((Work::Choose(Box::new([condition, then, otherwise])), a.or(b)))
            }
            Form::Binary(operator, both) => {
                let (left, a) = self.node(&both[0])?;
                let (right, b) = self.node(&both[1])?;
                let kind = result(*operator, a, b).ok_or_else(|| {
                    Refused::at(at, format!("{} does not take {a} and {b}", operator.as_str()))
                })?;
                if *operator == Operator::In {
                    lower_case_key(&right, &left)?;
                }
                Ok((Work::Binary(*operator, Box::new([left, right])), kind))
            }
            Form::List(items) => self.list(items),
            Form::Map(entries) => self.map(entries),
        };
        checked.map(|(work, kind)| (Node { at, work }, kind))
    }

    fn name(&self, name: &str, at: usize) -> Result<(Work, Kind), Refused> {
        if let Some((slot, kind)) = self.local(name) {
            return Ok((Work::Local(slot), kind));
        }
        if let Some(variable) = self.variable(name) {
            return match &variable.content {
                Content::Value(field) => Ok((Work::Read(field), field.kind)),
                Content::Record(_) => {
                    let fields: Vec<_> = self.fields(name).map(|field| field.name).collect();
                    let message =
                        format!("{name} alone is no value; name one of its fields: {}", fields.join(", "));
                    Err(Refused::at(at, message))
                }
            };
        }
        if self.call(name, at)?.is_some() {
            let fields: Vec<_> = calls::FIELDS.iter().map(|field| field.0).collect();
            let message = format!("{name} alone is no value; name one of its fields: {}", fields.join(", "));
            return Err(Refused::at(at, message));
        }
        if let Some(name) = TYPES.iter().find(|known| **known == name) {
            return Ok((Work::Constant(Constant::Type(name)), Kind::One(Scalar::Type)));
        }
        let known = self.locals.iter().map(|(name, _)| *name);
        let variables = self.environment.variables;
        // A name may stand for more than one table.
        let is_first =
            |place: usize| variables[..place].iter().all(|known| known.name != variables[place].name);
        let known = known
            .chain((0..variables.len()).filter(|place| is_first(*place)).map(|place| variables[place].name));
        let known = known.chain(self.calls.into_iter().flat_map(KnownCalls::over));
        Err(Refused::at(at, format!("there is no {name:?}{}", hint(name, known))))
    }

    fn select(&mut self, of: &'e Syntax, name: &'e str, at: usize) -> Result<(Work, Kind), Refused> {
        if let Some(field) = self.field(of, name, at)? {
            return Ok((Work::Read(field), field.kind));
        }
        if let Some((place, field, kind)) = self.call_field(of, name, at)? {
            return Ok((Work::Call(place, field), kind));
        }
        let (of, kind) = self.node(of)?;
        lower_case(&of, name, at)?;
        match kind {
            Kind::Map(to) => Ok((Work::Select(Box::new(of), name.into()), Kind::One(to))),
            Kind::One(Scalar::Any) => Ok((Work::Select(Box::new(of), name.into()), Kind::ANY)),
            _ => Err(Refused::at(at, format!("{kind} has no field {name:?}"))),
        }
    }

    /// The field of a record, where `of` is the name of one.
    fn field(&self, of: &Syntax, name: &str, at: usize) -> Result<Option<&'static Field>, Refused> {
        let Form::Name(record) = &of.form else { return Ok(None) };
        if self.local(record).is_some() {
            return Ok(None);
        }
        if self.fields(record).next().is_none() {
            return Ok(None);
        }
        match self.fields(record).find(|field| field.name == name) {
            Some(field) => Ok(Some(field)),
            None => {
                let known = self.fields(record).map(|field| field.name);
                Err(Refused::at(at + 1, format!("{record} has no field {name:?}{}", hint(name, known))))
            }
        }
    }

    /// The place of a call that may be read here.
    fn call(&self, name: &str, at: usize) -> Result<Option<usize>, Refused> {
        let Some((calls, place)) = self.calls.and_then(|calls| Some((calls, calls.place(name)?))) else {
            return Ok(None);
        };
        if !calls.is_over(place) {
            let message = format!("the call {name:?} may not be over by then; add it to dependsOn");
            return Err(Refused::at(at, message));
        }
        Ok(Some(place))
    }

    fn call_field(
        &self,
        of: &Syntax,
        name: &str,
        at: usize,
    ) -> Result<Option<(usize, CallField, Kind)>, Refused> {
        let Form::Name(call) = &of.form else { return Ok(None) };
        if self.local(call).is_some() {
            return Ok(None);
        }
        let Some(place) = self.call(call, of.at)? else { return Ok(None) };
        match calls::FIELDS.iter().find(|field| field.0 == name) {
            Some((_, field, kind, _)) => Ok(Some((place, *field, *kind))),
            None => {
                let known = calls::FIELDS.iter().map(|field| field.0);
                let message = format!("the call {call} has no field {name:?}{}", hint(name, known));
                Err(Refused::at(at + 1, message))
            }
        }
    }

    fn has(&mut self, arguments: &'e [Syntax], at: usize) -> Result<(Work, Kind), Refused> {
        let [Syntax { form: Form::Select(of, name), at: place, .. }] = arguments else {
            let message =
                "has() takes one field, like has(identity.claims.tier); for other keys write 'key' in map";
            return Err(Refused::at(at, message));
        };
        if let Some(field) = self.field(of, name, *place)? {
            return Ok((Work::HasRead(field), Kind::BOOL));
        }
        if let Some((place, field, _)) = self.call_field(of, name, *place)? {
            return Ok((Work::HasCall(place, field), Kind::BOOL));
        }
        let (of, kind) = self.node(of)?;
        lower_case(&of, name, *place)?;
        if !kind.fits(Kind::MAP) {
            return Err(Refused::at(*place, format!("{kind} has no field {name:?}")));
        }
        Ok((Work::Has(Box::new(of), name.as_str().into()), Kind::BOOL))
    }

    fn index(&mut self, of: &'e Syntax, key: &'e Syntax, at: usize) -> Result<(Work, Kind), Refused> {
        let (of, of_kind) = self.node(of)?;
        let (key, key_kind) = self.node(key)?;
        let is_number =
            || [Kind::INT, Kind::UINT, Kind::DOUBLE].into_iter().any(|number| key_kind.fits(number));
        let kind = match of_kind {
            Kind::List(to) if is_number() => Kind::One(to),
            Kind::Map(to) if matches!(key_kind, Kind::One(_)) => Kind::One(to),
            Kind::One(Scalar::Any) => Kind::ANY,
            _ => return Err(Refused::at(at, format!("{of_kind} has no elements to find by {key_kind}"))),
        };
        lower_case_key(&of, &key)?;
        Ok((Work::Index(Box::new([of, key])), kind))
    }

    fn apply(
        &mut self,
        receiver: Option<&'e Syntax>,
        name: &'e str,
        arguments: &'e [Syntax],
        at: usize,
    ) -> Result<(Work, Kind), Refused> {
        if let Some(receiver) = receiver
            && let Some(kind) = macro_of(name, arguments.len())
        {
            return self.walk(receiver, kind, name, arguments, at);
        }
        let known = |function: &&Function| match receiver {
            Some(_) => function.is_method(),
            None => function.is_global(),
        };
        let Some(function) = FUNCTIONS.iter().filter(known).find(|function| function.name == name) else {
            let what = if receiver.is_some() { "method" } else { "function" };
            let known = FUNCTIONS.iter().filter(known).map(|function| function.name);
            return Err(Refused::at(at, format!("there is no {what} {name:?}{}", hint(name, known))));
        };
        let mut nodes = Vec::with_capacity(arguments.len() + 1);
        let mut kinds = Vec::with_capacity(arguments.len() + 1);
        for argument in receiver.into_iter().chain(arguments) {
            let (node, kind) = self.node(argument)?;
            nodes.push(node);
            kinds.push(kind);
        }
        let mut gives = None;
        for form in function.forms.iter().filter(|form| takes(form.0, &kinds)) {
            gives = Some(gives.map_or(form.1, |kind: Kind| kind.or(form.1)));
        }
        let Some(gives) = gives else {
            let found: Vec<_> = kinds.iter().map(ToString::to_string).collect();
            return Err(Refused::at(at, format!("{name}() does not take ({})", found.join(", "))));
        };
        if function.name == MATCHES {
            self.patterns += 1;
            if self.patterns > MAX_PATTERNS {
                let message =
                    format!("the expression has more than {MAX_PATTERNS} patterns; make it smaller");
                return Err(Refused::at(at, message));
            }
            return Ok((matches(nodes, at)?, gives));
        }
        if function.style == Style::Literal
            && let Some(constant) = literal(function, &nodes, at)?
        {
            return Ok((Work::Constant(constant), gives));
        }
        Ok((Work::Apply(function, nodes.into()), gives))
    }

    fn walk(
        &mut self,
        over: &'e Syntax,
        kind: Macro,
        name: &str,
        arguments: &'e [Syntax],
        at: usize,
    ) -> Result<(Work, Kind), Refused> {
        let (over, over_kind) = self.node(over)?;
        let element = match over_kind {
            Kind::List(of) => Kind::One(of),
            Kind::Map(_) => Kind::One(Scalar::Any),
            Kind::One(Scalar::Any) => Kind::ANY,
            _ => {
                return Err(Refused::at(
                    at,
                    format!("{name}() walks along lists and maps, found {over_kind}"),
                ));
            }
        };
        let Some(Syntax { form: Form::Name(variable), .. }) = arguments.first() else {
            let place = arguments.first().map_or(at, |argument| argument.at);
            return Err(Refused::at(
                place,
                format!("the first argument of {name}() is the name of its variable"),
            ));
        };
        self.locals.push((variable, element));
        let (condition, result) = match (kind, arguments) {
            (Macro::Map, [_, result]) => (None, Some(self.node(result)?)),
            (Macro::Map, [_, condition, result]) => {
                (Some(self.bool(condition, name)?), Some(self.node(result)?))
            }
            (_, [_, condition]) => (Some(self.bool(condition, name)?), None),
            _ => return Err(Refused::at(at, format!("{name}() takes a variable and a condition"))),
        };
        self.locals.pop();
        let gives = match (kind, &result) {
            (Macro::Filter, _) => Kind::List(element.scalar()),
            (Macro::Map, Some((_, kind))) => Kind::List(kind.scalar()),
            _ => Kind::BOOL,
        };
        let result = result.map(|(node, _)| node);
        Ok((Work::Loop(Box::new(Loop { kind, over, condition, result })), gives))
    }

    fn list(&mut self, items: &'e [Syntax]) -> Result<(Work, Kind), Refused> {
        let mut nodes = Vec::with_capacity(items.len());
        let mut element: Option<Scalar> = None;
        for item in items {
            let (node, kind) = self.node(item)?;
            element = Some(element.map_or(kind.scalar(), |known| known.or(kind.scalar())));
            nodes.push(node);
        }
        let kind = Kind::List(element.unwrap_or(Scalar::Any));
        if nodes.iter().all(|node| matches!(node.work, Work::Constant(_))) {
            let constants = nodes.into_iter().filter_map(|node| match node.work {
                Work::Constant(constant) => Some(constant),
                _ => None,
            });
            return Ok((Work::Constant(Constant::List(constants.collect())), kind));
        }
        Ok((Work::List(nodes.into()), kind))
    }

    fn map(&mut self, entries: &'e [[Syntax; 2]]) -> Result<(Work, Kind), Refused> {
        let mut nodes = Vec::with_capacity(entries.len());
        let mut element: Option<Scalar> = None;
        for [key, value] in entries {
            let (key_node, kind) = self.node(key)?;
            if ![Kind::TEXT, Kind::INT, Kind::UINT, Kind::BOOL].into_iter().any(|known| kind.fits(known)) {
                return Err(Refused::at(key.at, format!("{kind} cannot be the key of a map")));
            }
            let (value, kind) = self.node(value)?;
            element = Some(element.map_or(kind.scalar(), |known| known.or(kind.scalar())));
            nodes.push([key_node, value]);
        }
        Ok((Work::Map(nodes.into()), Kind::Map(element.unwrap_or(Scalar::Any))))
    }

    fn bool(&mut self, syntax: &'e Syntax, taker: &str) -> Result<Node, Refused> {
        let (node, kind) = self.node(syntax)?;
        if kind.fits(Kind::BOOL) {
            return Ok(node);
        }
        Err(Refused::at(syntax.at, format!("{taker} takes bool, found {kind}")))
    }

    fn bools(&mut self, terms: &'e [Syntax], taker: &str) -> Result<Box<[Node]>, Refused> {
        terms.iter().map(|term| self.bool(term, taker)).collect()
    }

    /// The innermost of a name.
    fn local(&self, name: &str) -> Option<(usize, Kind)> {
        let slot = self.locals.iter().rposition(|(known, _)| *known == name)?;
        Some((slot, self.locals[slot].1))
    }

    fn variable(&self, name: &str) -> Option<&'static Variable> {
        self.environment.variables.iter().find(|variable| variable.name == name)
    }

    /// The fields of a record: of all tables of its name, as an environment may know more of it than another does.
    fn fields(&self, record: &str) -> impl Iterator<Item = &'static Field> {
        let variables = self.environment.variables.iter().filter(move |variable| variable.name == record);
        let fields = variables.filter_map(|variable| match variable.content {
            Content::Record(fields) => Some(fields),
            Content::Value(_) => None,
        });
        fields.flatten()
    }
}

fn takes(form: &[Kind], kinds: &[Kind]) -> bool {
    form.len() == kinds.len() && kinds.iter().zip(form).all(|(kind, wanted)| kind.fits(*wanted))
}

fn macro_of(name: &str, arguments: usize) -> Option<Macro> {
    match (name, arguments) {
        ("all", 2) => Some(Macro::All),
        ("exists", 2) => Some(Macro::Exists),
        ("exists_one" | "existsOne", 2) => Some(Macro::ExistsOne),
        ("filter", 2) => Some(Macro::Filter),
        ("map", 2 | 3) => Some(Macro::Map),
        _ => None,
    }
}

fn matches(mut nodes: Vec<Node>, at: usize) -> Result<Work, Refused> {
    let pattern = nodes.pop().map(|node| (node.at, node.work));
    match (nodes.pop(), pattern) {
        (Some(text), Some((place, Work::Constant(Constant::Text(pattern))))) => {
            let pattern = Pattern::new(&pattern).map_err(|message| Refused::at(place, message))?;
            Ok(Work::Matches(Box::new(text), pattern))
        }
        (_, Some((place, _))) => Err(Refused::at(
            place,
            "the pattern of matches() is compiled before any request: write a literal",
        )),
        _ => Err(Refused::at(at, "matches() takes a text and a pattern")),
    }
}

/// The value of a function of literals.
fn literal(function: &Function, nodes: &[Node], at: usize) -> Result<Option<Constant>, Refused> {
    let constants = nodes.iter().map(|node| match &node.work {
        Work::Constant(constant) => Some(constant.value()),
        _ => None,
    });
    let Some(values) = constants.collect::<Option<Vec<_>>>() else { return Ok(None) };
    let value = (function.call)(&mut Meter::new(), &values)
        .map_err(|why| Refused::at(at, format!("{}(): {}", function.name, why.as_str())))?;
    Ok(match value {
        Value::Timestamp(at) => Some(Constant::Timestamp(at)),
        Value::Duration(duration) => Some(Constant::Duration(duration)),
        Value::Network(network) => Some(Constant::Network(network)),
        Value::Text(Text::Borrowed(text)) => Some(Constant::Text(text.into())),
        Value::Bytes(Octets::Borrowed(bytes)) => Some(Constant::Bytes(bytes.into())),
        _ => None,
    })
}

/// What an operator gives. `None`: it does not take these.
fn result(operator: Operator, a: Kind, b: Kind) -> Option<Kind> {
    const ORDERED: &[Kind] = &[Kind::BOOL, Kind::TEXT, Kind::BYTES, Kind::TIMESTAMP, Kind::DURATION];
    const NUMBERS: &[Kind] = &[Kind::INT, Kind::UINT, Kind::DOUBLE];
    let both = |kind: &Kind| a.fits(*kind) && b.fits(*kind);
    let is_number = |kind: Kind| NUMBERS.iter().any(|number| kind.fits(*number));
    let known = |kind: Kind| if a == Kind::ANY && b == Kind::ANY { Kind::ANY } else { kind };
    match operator {
        Operator::Equal | Operator::Unequal => a.compares_with(b).then_some(Kind::BOOL),
        Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
            (ORDERED.iter().any(both) || (is_number(a) && is_number(b))).then_some(Kind::BOOL)
        }
        Operator::In => match b {
            Kind::List(of) => a.compares_with(Kind::One(of)).then_some(Kind::BOOL),
            Kind::Map(_) => matches!(a, Kind::One(_)).then_some(Kind::BOOL),
            Kind::One(Scalar::Any) => Some(Kind::BOOL),
            Kind::One(_) => None,
        },
        Operator::Multiply | Operator::Divide => {
            NUMBERS.iter().find(|number| both(number)).map(|kind| known(*kind))
        }
        Operator::Remainder => {
            [Kind::INT, Kind::UINT].iter().find(|kind| both(kind)).map(|kind| known(*kind))
        }
        Operator::Add => {
            let of_time = match (a, b) {
                (Kind::TIMESTAMP, b) if b.fits(Kind::DURATION) => Some(Kind::TIMESTAMP),
                (a, Kind::TIMESTAMP) if a.fits(Kind::DURATION) => Some(Kind::TIMESTAMP),
                (Kind::DURATION, Kind::One(Scalar::Any)) | (Kind::One(Scalar::Any), Kind::DURATION) => {
                    Some(Kind::ANY)
                }
                (Kind::List(a), Kind::List(b)) => Some(Kind::List(a.or(b))),
                (Kind::List(_), Kind::One(Scalar::Any)) | (Kind::One(Scalar::Any), Kind::List(_)) => {
                    Some(Kind::LIST)
                }
                _ => None,
            };
            let plain = [Kind::INT, Kind::UINT, Kind::DOUBLE, Kind::TEXT, Kind::BYTES, Kind::DURATION];
            of_time.or_else(|| plain.iter().find(|kind| both(kind)).map(|kind| known(*kind)))
        }
        Operator::Subtract => {
            let of_time = match (a, b) {
                (Kind::TIMESTAMP, Kind::TIMESTAMP) => Some(Kind::DURATION),
                (Kind::TIMESTAMP, Kind::DURATION) => Some(Kind::TIMESTAMP),
                (Kind::TIMESTAMP, Kind::One(Scalar::Any))
                | (Kind::One(Scalar::Any), Kind::TIMESTAMP | Kind::DURATION) => Some(Kind::ANY),
                _ => None,
            };
            let plain = [Kind::INT, Kind::UINT, Kind::DOUBLE, Kind::DURATION];
            of_time.or_else(|| plain.iter().find(|kind| both(kind)).map(|kind| known(*kind)))
        }
    }
}

fn lower_case_key(map: &Node, key: &Node) -> Result<(), Refused> {
    match &key.work {
        Work::Constant(Constant::Text(text)) => lower_case(map, text, key.at),
        _ => Ok(()),
    }
}

/// A header is never found under a name with capital letters: better said here than by a rule that never matches.
fn lower_case(map: &Node, key: &str, at: usize) -> Result<(), Refused> {
    match map.work {
        Work::Read(Field { keys: Keys::LowerCase, .. }) | Work::Call(_, CallField::Headers)
            if key.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            let message = format!(
                "names of header fields are in lower case here: write '{}'",
                key.to_ascii_lowercase()
            );
            Err(Refused::at(at, message))
        }
        _ => Ok(()),
    }
}

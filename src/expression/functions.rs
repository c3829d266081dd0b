//! The closed table of functions. The page docs/expressions.md is made of it; macros stand in `check.rs`.

use super::convert;
use super::fault::{Meter, Why};
use super::kind::{Kind, Scalar};
use super::moments;
use super::texts;
use super::value::Value;

/// A function or method.
pub(super) struct Function {
    pub name: &'static str,
    pub style: Style,
    /// A method's receiver comes first.
    pub forms: &'static [Signature],
    pub help: &'static str,
    pub call: Call,
}

/// What it takes and gives.
pub(super) struct Signature(pub &'static [Kind], pub Kind);

/// Takes the values of its arguments. What it makes it pays for first.
pub(super) type Call = for<'v> fn(&mut Meter, &[Value<'v>]) -> Result<Value<'v>, Why>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Global,
    /// A function whose value of literals is known when it is parsed; a wrong literal is refused then.
    Literal,
    Method,
    Both,
}

impl Function {
    pub fn is_method(&self) -> bool {
        matches!(self.style, Style::Method | Style::Both)
    }

    pub fn is_global(&self) -> bool {
        !matches!(self.style, Style::Method)
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const ANY: Kind = Kind::ANY;
const BOOL: Kind = Kind::BOOL;
const INT: Kind = Kind::INT;
const UINT: Kind = Kind::UINT;
const DOUBLE: Kind = Kind::DOUBLE;
const TEXT: Kind = Kind::TEXT;
const BYTES: Kind = Kind::BYTES;
const TEXTS: Kind = Kind::List(Scalar::Text);
const TIMESTAMP: Kind = Kind::TIMESTAMP;
const DURATION: Kind = Kind::DURATION;
const NETWORK: Kind = Kind::NETWORK;

const PART_OF_TIME: &[Signature] = &[Signature(&[TIMESTAMP], INT), Signature(&[TIMESTAMP, TEXT], INT)];
const PART_OF_ANY_TIME: &[Signature] =
    &[Signature(&[TIMESTAMP], INT), Signature(&[TIMESTAMP, TEXT], INT), Signature(&[DURATION], INT)];
const TEST_OF_TEXT: &[Signature] = &[Signature(&[TEXT, TEXT], BOOL)];
const TEXT_TO_TEXT: &[Signature] = &[Signature(&[TEXT], TEXT)];
const PLACE_IN_TEXT: &[Signature] = &[Signature(&[TEXT, TEXT], INT), Signature(&[TEXT, TEXT, INT], INT)];

/// `matches` is not evaluated through this table: its pattern is a literal that is compiled when it is parsed.
pub(super) const MATCHES: &str = "matches";

pub(super) static FUNCTIONS: &[Function] = &[
    row(
        "size",
        Style::Both,
        &[
            Signature(&[TEXT], INT),
            Signature(&[BYTES], INT),
            Signature(&[Kind::LIST], INT),
            Signature(&[Kind::MAP], INT),
        ],
        "Characters of a text, bytes, elements of a list, entries of a map",
        convert::size,
    ),
    row("startsWith", Style::Method, TEST_OF_TEXT, "Whether the text begins so", texts::starts_with),
    row("endsWith", Style::Method, TEST_OF_TEXT, "Whether the text ends so", texts::ends_with),
    row("contains", Style::Method, TEST_OF_TEXT, "Whether the text holds the other", texts::contains),
    row(
        MATCHES,
        Style::Both,
        TEST_OF_TEXT,
        "Whether the regular expression, a literal, matches anywhere in the text; `^` and `$` anchor it",
        |_, _| Err(Why::NoOverload),
    ),
    row("lowerAscii", Style::Method, TEXT_TO_TEXT, "With a to z for A to Z", texts::lower),
    row("upperAscii", Style::Method, TEXT_TO_TEXT, "With A to Z for a to z", texts::upper),
    row("trim", Style::Method, TEXT_TO_TEXT, "Without blanks at both ends", texts::trim),
    row(
        "split",
        Style::Method,
        &[Signature(&[TEXT, TEXT], TEXTS), Signature(&[TEXT, TEXT, INT], TEXTS)],
        "The parts between separators, at most as many as the third argument says",
        texts::split,
    ),
    row(
        "join",
        Style::Method,
        &[Signature(&[TEXTS], TEXT), Signature(&[TEXTS, TEXT], TEXT)],
        "The texts of a list in one, with the argument between them",
        texts::join,
    ),
    row(
        "replace",
        Style::Method,
        &[Signature(&[TEXT, TEXT, TEXT], TEXT), Signature(&[TEXT, TEXT, TEXT, INT], TEXT)],
        "With the third for the second, at most as often as the fourth argument says",
        texts::replace,
    ),
    row(
        "substring",
        Style::Method,
        &[Signature(&[TEXT, INT], TEXT), Signature(&[TEXT, INT, INT], TEXT)],
        "The characters from one place (the first is 0) up to another",
        texts::substring,
    ),
    row(
        "charAt",
        Style::Method,
        &[Signature(&[TEXT, INT], TEXT)],
        "The character at a place",
        texts::char_at,
    ),
    row(
        "indexOf",
        Style::Method,
        PLACE_IN_TEXT,
        "Where the other text first stands in it, or -1",
        texts::index_of,
    ),
    row(
        "lastIndexOf",
        Style::Method,
        PLACE_IN_TEXT,
        "Where the other text last stands in it, or -1",
        texts::last_index_of,
    ),
    row(
        "int",
        Style::Global,
        &[
            Signature(&[INT], INT),
            Signature(&[UINT], INT),
            Signature(&[DOUBLE], INT),
            Signature(&[TEXT], INT),
            Signature(&[TIMESTAMP], INT),
        ],
        "As an int; of a timestamp, the seconds since 1970",
        convert::int,
    ),
    row(
        "uint",
        Style::Global,
        &[
            Signature(&[UINT], UINT),
            Signature(&[INT], UINT),
            Signature(&[DOUBLE], UINT),
            Signature(&[TEXT], UINT),
        ],
        "As a uint",
        convert::uint,
    ),
    row(
        "double",
        Style::Global,
        &[
            Signature(&[DOUBLE], DOUBLE),
            Signature(&[INT], DOUBLE),
            Signature(&[UINT], DOUBLE),
            Signature(&[TEXT], DOUBLE),
        ],
        "As a double",
        convert::double,
    ),
    row(
        "string",
        Style::Global,
        &[
            Signature(&[TEXT], TEXT),
            Signature(&[BOOL], TEXT),
            Signature(&[INT], TEXT),
            Signature(&[UINT], TEXT),
            Signature(&[DOUBLE], TEXT),
            Signature(&[BYTES], TEXT),
            Signature(&[TIMESTAMP], TEXT),
            Signature(&[DURATION], TEXT),
            Signature(&[NETWORK], TEXT),
        ],
        "As text",
        convert::string,
    ),
    row(
        "bytes",
        Style::Global,
        &[Signature(&[BYTES], BYTES), Signature(&[TEXT], BYTES)],
        "As bytes",
        convert::bytes,
    ),
    row(
        "bool",
        Style::Global,
        &[Signature(&[BOOL], BOOL), Signature(&[TEXT], BOOL)],
        "As a bool",
        convert::bool,
    ),
    row("dyn", Style::Global, &[Signature(&[ANY], ANY)], "The same, of no known type", |_, values| {
        match values {
            [value] => Ok(value.clone()),
            _ => Err(Why::NoOverload),
        }
    }),
    row("type", Style::Global, &[Signature(&[ANY], Kind::One(Scalar::Type))], "Its type", |_, values| {
        match values {
            [value] => Ok(Value::Type(value.type_name())),
            _ => Err(Why::NoOverload),
        }
    }),
    row(
        "timestamp",
        Style::Literal,
        &[Signature(&[TEXT], TIMESTAMP), Signature(&[INT], TIMESTAMP), Signature(&[TIMESTAMP], TIMESTAMP)],
        "Of RFC 3339 text, or of seconds since 1970",
        moments::timestamp,
    ),
    row(
        "duration",
        Style::Literal,
        &[Signature(&[TEXT], DURATION), Signature(&[DURATION], DURATION)],
        "Of text like `1h30m` or `250ms`",
        moments::duration,
    ),
    row(
        "getFullYear",
        Style::Method,
        PART_OF_TIME,
        "Year; a time zone is `UTC` or like `+02:00`",
        moments::year,
    ),
    row("getMonth", Style::Method, PART_OF_TIME, "Month, January is 0", moments::month),
    row("getDate", Style::Method, PART_OF_TIME, "Day of the month, the first is 1", moments::date),
    row(
        "getDayOfMonth",
        Style::Method,
        PART_OF_TIME,
        "Day of the month, the first is 0",
        moments::day_of_month,
    ),
    row("getDayOfWeek", Style::Method, PART_OF_TIME, "Day of the week, Sunday is 0", moments::day_of_week),
    row("getDayOfYear", Style::Method, PART_OF_TIME, "Day of the year, the first is 0", moments::day_of_year),
    row("getHours", Style::Method, PART_OF_ANY_TIME, "Hour; of a duration, all its hours", moments::hours),
    row(
        "getMinutes",
        Style::Method,
        PART_OF_ANY_TIME,
        "Minute; of a duration, all its minutes",
        moments::minutes,
    ),
    row(
        "getSeconds",
        Style::Method,
        PART_OF_ANY_TIME,
        "Second; of a duration, all its seconds",
        moments::seconds,
    ),
    row(
        "getMilliseconds",
        Style::Method,
        PART_OF_ANY_TIME,
        "Milliseconds within the second",
        moments::milliseconds,
    ),
    row(
        "cidr",
        Style::Literal,
        &[Signature(&[TEXT], NETWORK)],
        "A network: `cidr('10.0.0.0/8').containsIP(client.address)`",
        convert::network,
    ),
    row(
        "containsIP",
        Style::Method,
        &[Signature(&[NETWORK, TEXT], BOOL)],
        "Whether an address is in the network",
        convert::contains_ip,
    ),
];

const fn row(
    name: &'static str,
    style: Style,
    forms: &'static [Signature],
    help: &'static str,
    call: Call,
) -> Function {
    Function { name, style, forms, help, call }
}

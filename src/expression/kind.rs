//! What is known of a value before there is one.

use std::fmt;

/// The static type of an expression. Of lists and maps, what they hold is known one level deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    One(Scalar),
    List(Scalar),
    Map(Scalar),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// Known when it is evaluated only.
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Timestamp,
    Duration,
    Network,
    Type,
}

impl Kind {
    pub const ANY: Self = Self::One(Scalar::Any);
    pub const BOOL: Self = Self::One(Scalar::Bool);
    pub const INT: Self = Self::One(Scalar::Int);
    pub const UINT: Self = Self::One(Scalar::Uint);
    pub const DOUBLE: Self = Self::One(Scalar::Double);
    pub const TEXT: Self = Self::One(Scalar::Text);
    pub const BYTES: Self = Self::One(Scalar::Bytes);
    pub const TIMESTAMP: Self = Self::One(Scalar::Timestamp);
    pub const DURATION: Self = Self::One(Scalar::Duration);
    pub const NETWORK: Self = Self::One(Scalar::Network);
    pub const LIST: Self = Self::List(Scalar::Any);
    pub const MAP: Self = Self::Map(Scalar::Any);

    /// As an element of a list or map.
    pub const fn scalar(self) -> Scalar {
        match self {
            Self::One(scalar) => scalar,
            Self::List(_) | Self::Map(_) => Scalar::Any,
        }
    }

    /// Whether a value of this kind may stand where `wanted` is asked for.
    pub fn fits(self, wanted: Self) -> bool {
        match (self, wanted) {
            (Self::One(a), Self::One(b)) => a.fits(b),
            (Self::One(Scalar::Any), _) | (_, Self::One(Scalar::Any)) => true,
            (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) => a.fits(b),
            _ => false,
        }
    }

    /// Whether there can be equal values of both.
    pub fn compares_with(self, other: Self) -> bool {
        let is_number = |kind| matches!(kind, Self::One(Scalar::Int | Scalar::Uint | Scalar::Double));
        let is_null = |kind| kind == Self::One(Scalar::Null);
        if let (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) = (self, other) {
            return Self::One(a).compares_with(Self::One(b));
        }
        self.fits(other) || is_null(self) || is_null(other) || (is_number(self) && is_number(other))
    }

    /// What covers both.
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::List(a), Self::List(b)) => Self::List(a.or(b)),
            (Self::Map(a), Self::Map(b)) => Self::Map(a.or(b)),
            _ => Self::ANY,
        }
    }
}

impl Scalar {
    fn fits(self, wanted: Self) -> bool {
        self == wanted || self == Self::Any || wanted == Self::Any
    }

    pub fn or(self, other: Self) -> Self {
        if self == other { self } else { Self::Any }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "dyn",
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Timestamp => "timestamp",
            Self::Duration => "duration",
            Self::Network => "cidr",
            Self::Type => "type",
        }
    }
}

/// In CEL's words.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(scalar) => f.write_str(scalar.as_str()),
            Self::List(Scalar::Any) => f.write_str("list"),
            Self::List(of) => write!(f, "list({})", of.as_str()),
            Self::Map(Scalar::Any) => f.write_str("map"),
            Self::Map(to) => write!(f, "map(string, {})", to.as_str()),
        }
    }
}

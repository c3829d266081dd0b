//! The checked form of an expression: every name resolved, every pattern compiled.

use super::calls::CallField;
use super::environment::Field;
use super::functions::Function;
use super::parse::Operator;
use super::pattern::Pattern;
use super::value::Constant;

#[derive(Debug)]
pub(super) struct Node {
    /// In bytes of the source.
    pub at: usize,
    pub work: Work,
}

#[derive(Debug)]
pub(super) enum Work {
    Constant(Constant),
    Read(&'static Field),
    /// `has` of a field: whether it is not empty.
    HasRead(&'static Field),
    /// Of the call at this place.
    Call(usize, CallField),
    HasCall(usize, CallField),
    /// The variable of a macro around this, by slot.
    Local(usize),
    Select(Box<Node>, Box<str>),
    Has(Box<Node>, Box<str>),
    Index(Box<[Node; 2]>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<[Node]>),
    Or(Box<[Node]>),
    Choose(Box<[Node; 3]>),
    Binary(Operator, Box<[Node; 2]>),
    Apply(&'static Function, Box<[Node]>),
    Matches(Box<Node>, Pattern),
    List(Box<[Node]>),
    Map(Box<[[Node; 2]]>),
    Loop(Box<Loop>),
}

#[derive(Debug)]
pub(super) struct Loop {
    pub kind: Macro,
    pub over: Node,
    /// `None` for a `map` of all elements.
    pub condition: Option<Node>,
    /// What `map` makes of an element.
    pub result: Option<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

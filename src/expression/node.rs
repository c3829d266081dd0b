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

impl Node {
    /// Whether a field of this name is read of any variable.
    pub fn reads(&self, name: &str) -> bool {
        let any = |nodes: &[Self]| nodes.iter().any(|node| node.reads(name));
        match &self.work {
            Work::Read(field) | Work::HasRead(field) => field.name == name,
            Work::Constant(_) | Work::Call(..) | Work::HasCall(..) | Work::Local(_) => false,
            Work::Select(of, _)
            | Work::Has(of, _)
            | Work::Not(of)
            | Work::Negate(of)
            | Work::Matches(of, _) => of.reads(name),
            Work::Index(both) | Work::Binary(_, both) => any(&both[..]),
            Work::Choose(three) => any(&three[..]),
            Work::And(nodes) | Work::Or(nodes) | Work::List(nodes) | Work::Apply(_, nodes) => any(nodes),
            Work::Map(entries) => entries.iter().any(|entry| any(&entry[..])),
            Work::Loop(walk) => {
                let parts = walk.condition.iter().chain(&walk.result);
                walk.over.reads(name) || parts.into_iter().any(|node| node.reads(name))
            }
        }
    }
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

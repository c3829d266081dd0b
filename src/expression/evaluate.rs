//! Evaluation of a checked expression. Bounded by a meter, never deeper than the expression is; nothing here panics.

use std::cmp::Ordering;
use std::rc::Rc;

use super::environment::Subject;
use super::fault::{Fault, Meter, Why};
use super::node::{Loop, Macro, Node, Work};
use super::operators;
use super::parse::Operator;
use super::value::{List, Map, Value};

/// Arguments of a function, its receiver included.
const MAX_ARGUMENTS: usize = 4;

pub(super) fn evaluate<'v>(node: &'v Node, subject: &Subject<'v>) -> Result<Value<'v>, Fault> {
    Run { subject: *subject, meter: Meter::new(), locals: Vec::new() }.value(node)
}

struct Run<'v> {
    subject: Subject<'v>,
    meter: Meter,
    /// By slot.
    locals: Vec<Value<'v>>,
}

impl<'v> Run<'v> {
    fn value(&mut self, node: &'v Node) -> Result<Value<'v>, Fault> {
        let fault = |why| Fault { at: node.at, why };
        self.meter.spend(1).map_err(fault)?;
        match &node.work {
            Work::Constant(constant) => Ok(constant.value()),
            Work::Read(field) => (field.read)(self.subject).map_err(fault),
            Work::Local(slot) => self.locals.get(*slot).cloned().ok_or(fault(Why::NoSuchKey)),
            Work::Call(place, field) => field.read(*place, self.subject).map_err(fault),
            Work::HasCall(place, field) => Ok(Value::Bool(field.is_there(*place, self.subject))),
            Work::Select(of, name) => match self.known(of)? {
                Value::Map(map) => map
                    .member(name, &mut self.meter)
                    .and_then(|found| found.ok_or(Why::NoSuchKey))
                    .map_err(fault),
                _ => Err(fault(Why::NoOverload)),
            },
            Work::Has(of, name) => match self.known(of)? {
                Value::Map(map) => {
                    map.contains(&Value::borrowed(name), &mut self.meter).map(Value::Bool).map_err(fault)
                }
                _ => Err(fault(Why::NoOverload)),
            },
            Work::HasRead(field) => {
                let is_there = match (field.read)(self.subject).map_err(fault)? {
                    Value::Text(text) => !text.as_str().is_empty(),
                    Value::List(list) => list.len() > 0,
                    Value::Map(map) => map.len(&mut self.meter).map_err(fault)? > 0,
                    _ => true,
                };
                Ok(Value::Bool(is_there))
            }
            Work::Index(both) => {
                let (of, key) = (self.known(&both[0])?, self.known(&both[1])?);
                operators::index(&of, &key, &mut self.meter).map_err(fault)
            }
            Work::Not(operand) => match self.known(operand)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                _ => Err(fault(Why::NoOverload)),
            },
            Work::Negate(operand) => operators::negate(&self.known(operand)?).map_err(fault),
            Work::And(terms) => self.decide(node, terms, false),
            Work::Or(terms) => self.decide(node, terms, true),
            Work::Choose(three) => match self.known(&three[0])? {
                Value::Bool(true) => self.value(&three[1]),
                Value::Bool(false) => self.value(&three[2]),
                _ => Err(fault(Why::NoOverload)),
            },
            Work::Binary(operator, both) => {
                let (left, right) = (self.known(&both[0])?, self.known(&both[1])?);
                self.binary(*operator, &left, &right).map_err(fault)
            }
            Work::Apply(function, arguments) => {
                let mut values = [const { Value::Null }; MAX_ARGUMENTS];
                for (place, argument) in values.iter_mut().zip(arguments) {
                    *place = self.known(argument)?;
                }
                let values = values.get(..arguments.len()).ok_or(fault(Why::NoOverload))?;
                (function.call)(&mut self.meter, values).map_err(fault)
            }
            Work::Matches(text, pattern) => match self.known(text)? {
                Value::Text(text) => {
                    self.meter.spend(pattern.cost(text.as_str().len())).map_err(fault)?;
                    Ok(Value::Bool(pattern.is_match(text.as_str())))
                }
                _ => Err(fault(Why::NoOverload)),
            },
            Work::List(items) => {
                let items: Result<Vec<_>, _> = items.iter().map(|item| self.value(item)).collect();
                Ok(Value::List(List::Made(Rc::from(items?))))
            }
            Work::Map(entries) => self.map(node, entries),
            Work::Loop(walk) => self.walk(node, walk),
        }
    }

    /// For whatever looks at the value instead of moving it.
    fn known(&mut self, node: &'v Node) -> Result<Value<'v>, Fault> {
        self.value(node)?.opened(&mut self.meter).map_err(|why| Fault { at: node.at, why })
    }

    /// `&&` and `||`: one term decides, whatever the others are, and be it a fault.
    fn decide(&mut self, node: &Node, terms: &'v [Node], decisive: bool) -> Result<Value<'v>, Fault> {
        let mut failed = None;
        for term in terms {
            match self.known(term) {
                Ok(Value::Bool(value)) if value == decisive => return Ok(Value::Bool(decisive)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => {
                    failed.get_or_insert(Fault { at: node.at, why: Why::NoOverload });
                }
                Err(fault) => {
                    failed.get_or_insert(fault);
                }
            }
        }
        failed.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn binary(&mut self, operator: Operator, left: &Value<'v>, right: &Value<'v>) -> Result<Value<'v>, Why> {
        let meter = &mut self.meter;
        let is = match operator {
            Operator::Equal => left.equals(right, meter)?,
            Operator::Unequal => !left.equals(right, meter)?,
            Operator::Less => left.order(right, meter)? == Some(Ordering::Less),
            Operator::LessOrEqual => left.order(right, meter)?.is_some_and(Ordering::is_le),
            Operator::Greater => left.order(right, meter)? == Some(Ordering::Greater),
            Operator::GreaterOrEqual => left.order(right, meter)?.is_some_and(Ordering::is_ge),
            Operator::In => match right {
                Value::List(list) => list.contains(left, meter)?,
                Value::Map(map) => map.contains(left, meter)?,
                _ => return Err(Why::NoOverload),
            },
            _ => return operators::calculate(operator, left, right, meter),
        };
        Ok(Value::Bool(is))
    }

    fn map(&mut self, node: &Node, entries: &'v [[Node; 2]]) -> Result<Value<'v>, Fault> {
        let mut made: Vec<(Value<'v>, Value<'v>)> = Vec::with_capacity(entries.len());
        for [key, value] in entries {
            let at = key.at;
            let key = self.known(key)?;
            let fault = |why| Fault { at, why };
            if !matches!(key, Value::Text(_) | Value::Bool(_) | Value::Int(_) | Value::Uint(_)) {
                return Err(fault(Why::NoOverload));
            }
            for (known, _) in &made {
                self.meter.spend(1).map_err(fault)?;
                if known.equals(&key, &mut self.meter).map_err(fault)? {
                    return Err(fault(Why::DuplicateKey));
                }
            }
            made.push((key, self.value(value)?));
        }
        self.meter.spend(made.len()).map_err(|why| Fault { at: node.at, why })?;
        Ok(Value::Map(Map::Made(Rc::from(made))))
    }

    fn walk(&mut self, node: &Node, walk: &'v Loop) -> Result<Value<'v>, Fault> {
        let fault = |why| Fault { at: node.at, why };
        let items = match self.known(&walk.over)? {
            Value::List(list) => list,
            Value::Map(map) => List::Made(Rc::from(map.keys(&mut self.meter).map_err(fault)?)),
            _ => return Err(fault(Why::NoOverload)),
        };
        let slot = self.locals.len();
        self.locals.push(Value::Null);
        let result = self.turns(node, walk, &items, slot);
        self.locals.truncate(slot);
        result
    }

    fn turns(
        &mut self,
        node: &Node,
        walk: &'v Loop,
        items: &List<'v>,
        slot: usize,
    ) -> Result<Value<'v>, Fault> {
        let fault = |why| Fault { at: node.at, why };
        let (mut failed, mut count, mut made) = (None, 0usize, Vec::new());
        for index in 0..items.len() {
            self.meter.spend(1).map_err(fault)?;
            let item = items.at(index);
            self.locals[slot] = item.clone();
            let holds = match &walk.condition {
                None => Ok(true),
                Some(condition) => match self.known(condition) {
                    Ok(Value::Bool(holds)) => Ok(holds),
                    Ok(_) => Err(Fault { at: condition.at, why: Why::NoOverload }),
                    Err(fault) => Err(fault),
                },
            };
            match (walk.kind, holds) {
                (Macro::All, Ok(false)) => return Ok(Value::Bool(false)),
                (Macro::Exists, Ok(true)) => return Ok(Value::Bool(true)),
                (Macro::All | Macro::Exists, Ok(_)) | (_, Ok(false)) => {}
                // As with && and ||, a later element may decide.
                (Macro::All | Macro::Exists, Err(fault)) => {
                    failed.get_or_insert(fault);
                }
                (_, Err(fault)) => return Err(fault),
                (Macro::ExistsOne, Ok(true)) => count += 1,
                (Macro::Filter, Ok(true)) => made.push(item),
                (Macro::Map, Ok(true)) => {
                    if let Some(result) = &walk.result {
                        made.push(self.value(result)?);
                    }
                }
            }
        }
        if let Some(fault) = failed {
            return Err(fault);
        }
        Ok(match walk.kind {
            Macro::All => Value::Bool(true),
            Macro::Exists => Value::Bool(false),
            Macro::ExistsOne => Value::Bool(count == 1),
            Macro::Filter | Macro::Map => Value::List(List::Made(Rc::from(made))),
        })
    }
}

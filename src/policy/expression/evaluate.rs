//! Runs a compiled expression over one request.
//!
//! Every step is counted, and reading, comparing and copying long values counts by their length, so one
//! evaluation ends after a bounded time whatever the expression and the request. An evaluation either
//! ends with true or false or fails; nothing in it panics. Comparing values of two types fails, except
//! with the word `null`: a request must not choose its rule by the type of a field.

use std::cell::OnceCell;
use std::rc::Rc;

use super::node::{Conversion, Each, Node, Operation, Order, TextTest, Variable};
use super::number::Number;
use super::value::{Map, Text, Value};
use crate::domain::ids::{TaskId, TenantId, UserId};
use crate::domain::request::Origin;
use crate::policy::words::{Sentence, Subject};

/// Most steps of one expression over one request: about a millisecond.
pub const MAX_STEPS: usize = 100_000;
/// Bytes that count as one step when a long text is read, compared or copied.
const BYTES_OF_A_STEP: usize = 32;
/// Longest text that a regular expression is tried on. Its time grows with the text times the pattern.
const MAX_MATCHED_BYTES: usize = 8192;

/// Why an expression has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request has no field of this name.
    Missing(String),
    /// A value has another type than the operation needs.
    WrongType(&'static str),
    /// The evaluation takes too many steps, or a number has too many digits.
    TooLong,
    /// The context is not JSON, or too deep or too long.
    Unreadable,
}

impl Failure {
    /// What people read about it, to stand in brackets.
    #[must_use]
    pub fn sentence(&self) -> Sentence {
        match self {
            Self::Missing(name) => {
                Sentence::new(format!("the field {name} is missing"), format!("{name} 필드가 없음"))
            }
            Self::WrongType(operation) => Sentence::new(
                format!("a value has the wrong type for {operation}"),
                format!("{operation}에 맞지 않는 값의 형식"),
            ),
            Self::TooLong => {
                Sentence::new("the evaluation takes too long", "평가가 너무 오래 걸림")
            }
            Self::Unreadable => {
                Sentence::new("a value of the request cannot be read", "요청의 값을 읽을 수 없음")
            }
        }
    }
}

/// The variables of one request. The context is read when an expression first asks for it.
pub struct Variables<'a> {
    subject: &'a Subject<'a>,
    context: OnceCell<Value<'a>>,
}

impl<'a> Variables<'a> {
    /// The variables of a request.
    #[must_use]
    pub fn new(subject: &'a Subject<'a>) -> Self {
        Self { subject, context: OnceCell::new() }
    }

    fn get(&self, variable: Variable) -> Value<'a> {
        let subject = self.subject;
        let text = |text: Option<&'a str>| text.map_or(Value::Null, Value::text);
        match variable {
            Variable::ActionType => Value::text(subject.action_type),
            Variable::Message => text(subject.message),
            Variable::Context => self.context.get_or_init(|| context(subject.context)).clone(),
            Variable::UserId => text(subject.user.map(UserId::as_str)),
            Variable::TenantId => text(subject.tenant.map(TenantId::as_str)),
            Variable::SessionId => Value::text(subject.session.as_str()),
            Variable::TaskId => text(subject.task.map(TaskId::as_str)),
            Variable::Origin => Value::text(match subject.origin {
                Origin::Redis => "redis",
                Origin::Http => "http",
            }),
        }
    }
}

/// The context; an empty object when the request has none.
fn context(text: &str) -> Value<'_> {
    match Value::read(text) {
        Value::Null => Map::new(Vec::new()).map_or(Value::Unreadable, Value::Map),
        value => value,
    }
}

/// Whether the condition is true. `steps` is how many steps are left, and is counted down.
pub fn is_true<'a>(
    node: &'a Node,
    variables: &Variables<'a>,
    steps: &mut usize,
) -> Result<bool, Failure> {
    Evaluation { variables, locals: Vec::new(), steps }.condition(node)
}

struct Evaluation<'v, 'a> {
    variables: &'v Variables<'a>,
    /// The values of the macros' variables, the outermost first.
    locals: Vec<Value<'a>>,
    steps: &'v mut usize,
}

impl<'a> Evaluation<'_, 'a> {
    fn charge(&mut self, steps: usize) -> Result<(), Failure> {
        let left = self.steps.checked_sub(steps);
        *self.steps = left.unwrap_or_default();
        left.map(|_left| ()).ok_or(Failure::TooLong)
    }

    fn charge_bytes(&mut self, bytes: usize) -> Result<(), Failure> {
        self.charge(bytes / BYTES_OF_A_STEP)
    }

    /// Each level of the expression is one level of calls here; reading bounds the depth.
    fn value(&mut self, node: &'a Node) -> Result<Value<'a>, Failure> {
        self.charge(1)?;
        Ok(match node {
            Node::Null => Value::Null,
            Node::Bool(is) => Value::Bool(*is),
            Node::Number(number) => Value::Number(number.clone()),
            Node::Text(text) => Value::text(text),
            Node::Variable(variable) => self.variables.get(*variable),
            // Compiling has bound every local to a macro around it.
            Node::Local(at) => self.locals.get(*at).cloned().unwrap_or(Value::Unreadable),
            Node::Field { of, name } => {
                let of = self.map(of, "a field")?;
                of.get(name).cloned().ok_or_else(|| Failure::Missing(name.clone()))?
            }
            Node::Index { of, at } => self.index(of, at)?,
            Node::Negate(of) => Value::Number(self.number(of, "-")?.negated()),
            Node::If { condition, then, otherwise } => {
                let chosen = if self.condition(condition)? { then } else { otherwise };
                self.value(chosen)?
            }
            Node::Calculate(operation, one, other) => self.calculate(*operation, one, other)?,
            Node::Convert(conversion, of) => self.convert(*conversion, of)?,
            Node::List(items) => {
                let items = items.iter().map(|item| self.value(item));
                Value::List(items.collect::<Result<Vec<_>, _>>()?.into())
            }
            Node::Map(entries) => {
                let mut all = Vec::with_capacity(entries.len());
                for (name, value) in entries {
                    all.push((self.text(name, "a name in a map")?, self.value(value)?));
                }
                Map::new(all).map(Value::Map).ok_or(Failure::WrongType("a map"))?
            }
            Node::Each { kind: Each::Map, range, filter, body } => {
                Value::List(self.mapped(range, filter.as_deref(), body)?.into())
            }
            Node::Has { .. }
            | Node::Not(_)
            | Node::And(..)
            | Node::Or(..)
            | Node::IsNull(_)
            | Node::Equals(..)
            | Node::Compare(..)
            | Node::In { .. }
            | Node::TextTest(..)
            | Node::Matches { .. }
            | Node::Each { .. } => Value::Bool(self.test(node)?),
        })
    }

    /// A value that must be true or false.
    fn condition(&mut self, node: &'a Node) -> Result<bool, Failure> {
        match self.value(node)? {
            Value::Bool(is) => Ok(is),
            other => Err(wrong(&other, "a condition")),
        }
    }

    /// The operations whose result is true or false.
    fn test(&mut self, node: &'a Node) -> Result<bool, Failure> {
        match node {
            Node::Has { of, name } => Ok(self.map(of, "has")?.get(name).is_some()),
            Node::Not(of) => Ok(!self.condition(of)?),
            // In CEL the order of the sides does not matter: a side that fails counts only if the other
            // side does not decide.
            Node::And(one, other) => match self.condition(one) {
                Ok(false) => Ok(false),
                Ok(true) => self.condition(other),
                Err(failure) => match self.condition(other) {
                    Ok(false) => Ok(false),
                    _ => Err(failure),
                },
            },
            Node::Or(one, other) => match self.condition(one) {
                Ok(true) => Ok(true),
                Ok(false) => self.condition(other),
                Err(failure) => match self.condition(other) {
                    Ok(true) => Ok(true),
                    _ => Err(failure),
                },
            },
            Node::IsNull(of) => match self.value(of)? {
                Value::Unreadable => Err(Failure::Unreadable),
                value => Ok(matches!(value, Value::Null)),
            },
            Node::Equals(one, other) => {
                let (one, other) = (self.value(one)?, self.value(other)?);
                self.equals(&one, &other)
            }
            Node::Compare(order, one, other) => self.compare(*order, one, other),
            Node::In { item, of } => self.contains(item, of),
            Node::TextTest(kind, whole, part) => {
                let operation = match kind {
                    TextTest::StartsWith => "startsWith",
                    TextTest::EndsWith => "endsWith",
                    TextTest::Contains => "contains",
                };
                let (whole, part) = self.two_texts(whole, part, operation)?;
                Ok(match kind {
                    TextTest::StartsWith => whole.starts_with(&*part),
                    TextTest::EndsWith => whole.ends_with(&*part),
                    TextTest::Contains => whole.contains(&*part),
                })
            }
            Node::Matches { text, pattern } => {
                let text = self.text(text, "matches")?;
                if text.len() > MAX_MATCHED_BYTES {
                    return Err(Failure::TooLong);
                }
                self.charge(text.len())?;
                Ok(pattern.is_match(&text))
            }
            Node::Each { kind, range, body, .. } => self.each(*kind, range, body),
            _ => Err(Failure::WrongType("a condition")),
        }
    }

    fn map(&mut self, node: &'a Node, operation: &'static str) -> Result<Map<'a>, Failure> {
        match self.value(node)? {
            Value::Map(map) => Ok(map),
            other => Err(wrong(&other, operation)),
        }
    }

    fn text(&mut self, node: &'a Node, operation: &'static str) -> Result<Text<'a>, Failure> {
        match self.value(node)? {
            Value::Text(text) => {
                self.charge_bytes(text.len())?;
                Ok(text)
            }
            other => Err(wrong(&other, operation)),
        }
    }

    fn number(&mut self, node: &'a Node, operation: &'static str) -> Result<Number, Failure> {
        match self.value(node)? {
            Value::Number(number) => {
                self.charge_bytes(number.len())?;
                Ok(number)
            }
            other => Err(wrong(&other, operation)),
        }
    }

    fn two_texts(
        &mut self,
        one: &'a Node,
        other: &'a Node,
        operation: &'static str,
    ) -> Result<(Text<'a>, Text<'a>), Failure> {
        Ok((self.text(one, operation)?, self.text(other, operation)?))
    }

    fn index(&mut self, of: &'a Node, at: &'a Node) -> Result<Value<'a>, Failure> {
        let at_of = |at: &dyn std::fmt::Display| Failure::Missing(at.to_string());
        match (self.value(of)?, self.value(at)?) {
            (Value::Map(map), Value::Text(name)) => {
                map.get(&name).cloned().ok_or_else(|| at_of(&&*name))
            }
            (Value::List(items), Value::Number(at)) => {
                let item = at.as_position().and_then(|at| items.get(at).cloned());
                item.ok_or_else(|| at_of(&at))
            }
            (Value::Map(_) | Value::List(_), at) => Err(wrong(&at, "[]")),
            (of, _) => Err(wrong(&of, "[]")),
        }
    }

    fn calculate(
        &mut self,
        operation: Operation,
        one: &'a Node,
        other: &'a Node,
    ) -> Result<Value<'a>, Failure> {
        let sign = match operation {
            Operation::Plus => "+",
            Operation::Minus => "-",
            Operation::Times => "*",
        };
        match (self.value(one)?, self.value(other)?, operation) {
            (Value::Number(one), Value::Number(other), _) => {
                let result = match operation {
                    Operation::Plus => one.plus(&other),
                    Operation::Minus => one.minus(&other),
                    Operation::Times => one.times(&other),
                };
                result.map(Value::Number).ok_or(Failure::TooLong)
            }
            (Value::Text(one), Value::Text(other), Operation::Plus) => {
                self.charge_bytes(one.len() + other.len())?;
                Ok(Value::Text(Text::Shared([&*one, &*other].concat().into())))
            }
            (Value::List(one), Value::List(other), Operation::Plus) => {
                self.charge(one.len() + other.len())?;
                Ok(Value::List([&*one, &*other].concat().into()))
            }
            (Value::Number(_) | Value::Text(_) | Value::List(_), other, _) => {
                Err(wrong(&other, sign))
            }
            (one, ..) => Err(wrong(&one, sign)),
        }
    }

    fn convert(&mut self, conversion: Conversion, of: &'a Node) -> Result<Value<'a>, Failure> {
        let value = self.value(of)?;
        if let Value::Text(text) = &value {
            self.charge_bytes(text.len())?;
        }
        match (conversion, value) {
            (Conversion::Size, Value::Text(text)) => Ok(Value::Number(text.chars().count().into())),
            (Conversion::Size, Value::List(items)) => Ok(Value::Number(items.len().into())),
            (Conversion::Size, Value::Map(map)) => Ok(Value::Number(map.entries().len().into())),
            (Conversion::Double, Value::Number(number)) => Ok(Value::Number(number)),
            (Conversion::Int, Value::Number(number)) => {
                number.truncated().map(Value::Number).ok_or(Failure::TooLong)
            }
            (Conversion::Double, Value::Text(text)) => {
                Number::parse(&text).map(Value::Number).ok_or(Failure::WrongType("double"))
            }
            (Conversion::Int, Value::Text(text)) => {
                let number = Number::parse(&text).filter(|_| !text.contains(['.', 'e', 'E']));
                number.map(Value::Number).ok_or(Failure::WrongType("int"))
            }
            (Conversion::String, Value::Text(text)) => Ok(Value::Text(text)),
            (Conversion::String, Value::Number(number)) => {
                self.charge_bytes(number.len())?;
                Ok(Value::Text(Text::Shared(number.to_string().into())))
            }
            (Conversion::String, Value::Bool(is)) => {
                Ok(Value::text(if is { "true" } else { "false" }))
            }
            (Conversion::Size, other) => Err(wrong(&other, "size")),
            (Conversion::Int, other) => Err(wrong(&other, "int")),
            (Conversion::Double, other) => Err(wrong(&other, "double")),
            (Conversion::String, other) => Err(wrong(&other, "string")),
        }
    }

    fn compare(&mut self, order: Order, one: &'a Node, other: &'a Node) -> Result<bool, Failure> {
        let ordering = match (self.value(one)?, self.value(other)?) {
            (Value::Number(one), Value::Number(other)) => {
                self.charge_bytes(one.len() + other.len())?;
                one.cmp(&other)
            }
            (Value::Text(one), Value::Text(other)) => {
                self.charge_bytes(one.len().min(other.len()))?;
                one.cmp(&other)
            }
            (Value::Number(_) | Value::Text(_), other) => {
                return Err(wrong(&other, "a comparison"));
            }
            (one, _) => return Err(wrong(&one, "a comparison")),
        };
        Ok(match order {
            Order::Less => ordering.is_lt(),
            Order::LessOrEqual => ordering.is_le(),
            Order::Greater => ordering.is_gt(),
            Order::GreaterOrEqual => ordering.is_ge(),
        })
    }

    /// Whether two values of one type are equal. Lists and maps that differ somewhere are different, even
    /// if they also hold values of two types.
    fn equals(&mut self, one: &Value<'a>, other: &Value<'a>) -> Result<bool, Failure> {
        self.charge(1)?;
        match (one, other) {
            (Value::Null, Value::Null) => Ok(true),
            (Value::Bool(one), Value::Bool(other)) => Ok(one == other),
            (Value::Number(one), Value::Number(other)) => {
                self.charge_bytes(one.len().min(other.len()))?;
                Ok(one == other)
            }
            (Value::Text(one), Value::Text(other)) => {
                self.charge_bytes(one.len().min(other.len()))?;
                Ok(**one == **other)
            }
            (Value::List(one), Value::List(other)) => {
                if one.len() != other.len() {
                    return Ok(false);
                }
                self.all_equal(one.iter().zip(other.iter()))
            }
            (Value::Map(one), Value::Map(other)) => {
                let (one, other) = (one.entries(), other.entries());
                self.charge(one.len().min(other.len()))?;
                let pairs = one.iter().zip(other);
                if one.len() != other.len() || pairs.clone().any(|(a, b)| *a.0 != *b.0) {
                    return Ok(false);
                }
                self.all_equal(pairs.map(|(one, other)| (&one.1, &other.1)))
            }
            (Value::Unreadable, _) | (_, Value::Unreadable) => Err(Failure::Unreadable),
            _ => Err(Failure::WrongType("==")),
        }
    }

    fn all_equal<'b>(
        &mut self,
        pairs: impl Iterator<Item = (&'b Value<'a>, &'b Value<'a>)>,
    ) -> Result<bool, Failure>
    where
        'a: 'b,
    {
        let mut result = Ok(true);
        for (one, other) in pairs {
            match self.equals(one, other) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(Failure::TooLong) => return Err(Failure::TooLong),
                Err(failure) => result = Err(failure),
            }
        }
        result
    }

    fn contains(&mut self, item: &'a Node, of: &'a Node) -> Result<bool, Failure> {
        let item = self.value(item)?;
        match self.value(of)? {
            Value::List(items) => {
                let mut result = Ok(false);
                for one in items.iter() {
                    match self.equals(&item, one) {
                        Ok(true) => return Ok(true),
                        Ok(false) => {}
                        Err(failure) => result = Err(failure),
                    }
                }
                result
            }
            Value::Map(map) => match item {
                Value::Text(name) => Ok(map.get(&name).is_some()),
                other => Err(wrong(&other, "in")),
            },
            other => Err(wrong(&other, "in")),
        }
    }

    /// What a macro goes through: the elements of a list, the names of a map.
    fn range(&mut self, node: &'a Node) -> Result<Rc<[Value<'a>]>, Failure> {
        match self.value(node)? {
            Value::List(items) => Ok(items),
            Value::Map(map) => {
                self.charge(map.entries().len())?;
                let names = map.entries().iter().map(|(name, _)| Value::Text(name.clone()));
                Ok(names.collect())
            }
            other => Err(wrong(&other, "a macro")),
        }
    }

    /// Evaluates something with an element as the innermost macro's variable.
    fn with<T>(
        &mut self,
        element: &Value<'a>,
        evaluate: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.locals.push(element.clone());
        let result = evaluate(self);
        self.locals.pop();
        result
    }

    /// `exists`, `exists_one`, `all`. As with `||` and `&&`, an element that fails counts only if no other
    /// decides; `exists_one` looks at all of them.
    fn each(&mut self, kind: Each, range: &'a Node, body: &'a Node) -> Result<bool, Failure> {
        let range = self.range(range)?;
        let mut result = Ok(kind == Each::All);
        let mut count = 0_usize;
        for element in range.iter() {
            match (kind, self.with(element, |this| this.condition(body))) {
                (Each::All, Ok(false)) => return Ok(false),
                (Each::Exists, Ok(true)) => return Ok(true),
                (_, Ok(is)) => count += usize::from(is),
                (_, Err(Failure::TooLong)) => return Err(Failure::TooLong),
                (_, Err(failure)) => result = Err(failure),
            }
        }
        if kind == Each::ExistsOne { result.map(|_all| count == 1) } else { result }
    }

    /// `map` and `filter`.
    fn mapped(
        &mut self,
        range: &'a Node,
        filter: Option<&'a Node>,
        body: &'a Node,
    ) -> Result<Vec<Value<'a>>, Failure> {
        let range = self.range(range)?;
        let mut all = Vec::new();
        for element in range.iter() {
            let kept = self.with(element, |this| match filter {
                Some(filter) if !this.condition(filter)? => Ok(None),
                _ => this.value(body).map(Some),
            })?;
            all.extend(kept);
        }
        Ok(all)
    }
}

/// The failure of an operation that cannot take this value.
fn wrong(value: &Value<'_>, operation: &'static str) -> Failure {
    match value {
        Value::Unreadable => Failure::Unreadable,
        _ => Failure::WrongType(operation),
    }
}

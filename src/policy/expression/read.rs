//! Reads the text of an expression: parses CEL, refuses what this service does not know, and bounds the
//! size and the depth.
//!
//! The crate `cel` parses and expands the macros. Its interpreter is not used: it has no limit on steps,
//! compares large integers with doubles by rounding, and takes `1 == "1"` for false. Parsing runs on a
//! thread of its own with a large stack, so that neither a deep text nor a panic of the parser reaches
//! the service.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo, operators,
};
use cel::parser::{ParseErrors, Parser};
use regex::RegexBuilder;

use super::node::{Conversion, Each, Node, Operation, Order, TextTest, Variable};
use super::number::Number;
use crate::policy::words::Sentence;

/// Longest expression, in bytes.
pub const MAX_BYTES: usize = 2000;
/// Deepest nesting of brackets in the text, and of operations in the parsed expression.
pub const MAX_DEPTH: usize = 32;
/// Most operations, names and literals of an expression. Macros count with what they expand to.
pub const MAX_NODES: usize = 500;
/// Most macros inside each other.
pub const MAX_MACRO_DEPTH: usize = 3;
/// Largest compiled regular expression, in bytes.
const MAX_PATTERN_BYTES: usize = 256 * 1024;
/// Stack of the thread that parses: far more than the largest allowed text needs.
const STACK_BYTES: usize = 64 * 1024 * 1024;
/// What the crate calls the result of a macro.
const ACCUMULATOR: &str = "@result";

/// Reads and compiles an expression.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn read(text: &str) -> Result<Node, Sentence> {
    if text.trim().is_empty() {
        return Err(Sentence::new("the expression is empty", "식이 비어 있습니다"));
    }
    if text.len() > MAX_BYTES {
        return Err(Sentence::new(
            format!("the expression is longer than {MAX_BYTES} bytes"),
            format!("식이 {MAX_BYTES}바이트보다 깁니다"),
        ));
    }
    if depth_of_brackets(text) > MAX_DEPTH {
        return Err(too_deep());
    }
    let parsed = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, || parse_and_compile(text));
        thread.ok().and_then(|thread| thread.join().ok())
    });
    let node = parsed.unwrap_or_else(|| Err(no_syntax("the parser gave up")))?;
    if node.may_be_condition() {
        return Ok(node);
    }
    Err(Sentence::new(
        "the expression is never true or false; write a comparison",
        "식의 결과가 참이나 거짓이 될 수 없습니다. 비교식을 쓰세요",
    ))
}

/// The deepest nesting of brackets. Brackets inside of texts count too.
fn depth_of_brackets(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for letter in text.chars() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn parse_and_compile(text: &str) -> Result<Node, Sentence> {
    let parsed = Parser::default().parse_with_source_info(text);
    let (expression, source) = parsed.map_err(|errors| {
        let is_deep = errors.errors.iter().any(|error| error.msg.contains("Recursion limit"));
        if is_deep { too_deep() } else { no_syntax(&first(&errors)) }
    })?;
    let mut compiler = Compiler { source: &source, text, locals: Vec::new(), nodes: 0, depth: 0 };
    compiler.node(&expression)
}

/// The first mistake, on one line.
fn first(errors: &ParseErrors) -> String {
    let Some(error) = errors.errors.first() else { return "cannot be parsed".to_owned() };
    let (line, column) = error.pos;
    let message = error.msg.lines().next().unwrap_or_default();
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    format!("{message} (line {line}, column {column})")
}

fn no_syntax(reason: &str) -> Sentence {
    Sentence::new(
        format!("the expression is not CEL: {reason}"),
        format!("식이 CEL 문법에 맞지 않습니다: {reason}"),
    )
}

fn too_deep() -> Sentence {
    Sentence::new(
        format!("the expression is nested deeper than {MAX_DEPTH} levels"),
        format!("식이 {MAX_DEPTH}단계보다 깊습니다"),
    )
}

fn unknown(what: &str, name: &str, known: &str) -> Sentence {
    Sentence::new(
        format!("there is no {what} {name:?}; there are {known}"),
        format!("{name:?}은(는) 쓸 수 없습니다. 쓸 수 있는 것: {known}"),
    )
}

struct Compiler<'s> {
    source: &'s SourceInfo,
    text: &'s str,
    /// The names of the macros' variables, the outermost first.
    locals: Vec<String>,
    nodes: usize,
    depth: usize,
}

impl Compiler<'_> {
    fn boxed(&mut self, expression: &IdedExpr) -> Result<Box<Node>, Sentence> {
        self.node(expression).map(Box::new)
    }

    fn node(&mut self, expression: &IdedExpr) -> Result<Node, Sentence> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Sentence::new(
                format!("the expression has more than {MAX_NODES} parts"),
                format!("식의 요소가 {MAX_NODES}개를 넘습니다"),
            ));
        }
        if self.depth == MAX_DEPTH {
            return Err(too_deep());
        }
        self.depth += 1;
        let node = match &expression.expr {
            Expr::Literal(literal) => self.literal(expression.id, literal),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => {
                let (of, name) = (self.boxed(&select.operand)?, select.field.clone());
                Ok(if select.test { Node::Has { of, name } } else { Node::Field { of, name } })
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => self.each(comprehension),
            Expr::List(list) => {
                let items = list.elements.iter().map(|item| self.node(item));
                items.collect::<Result<_, _>>().map(Node::List)
            }
            Expr::Map(map) => {
                let mut entries = Vec::new();
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        entries.push((self.node(&entry.key)?, self.node(&entry.value)?));
                    }
                }
                Ok(Node::Map(entries))
            }
            Expr::Struct(message) => Err(unknown("type", &message.type_name, "no types")),
            Expr::Unspecified => Err(no_syntax("a part is missing")),
        };
        self.depth -= 1;
        node
    }

    fn literal(&self, id: u64, literal: &LiteralValue) -> Result<Node, Sentence> {
        let number = |text: &str| Number::parse(text).map(Node::Number);
        let node = match literal {
            LiteralValue::Null => Some(Node::Null),
            LiteralValue::Boolean(is) => Some(Node::Bool(*is.inner())),
            LiteralValue::String(text) => Some(Node::Text(text.inner().to_owned())),
            LiteralValue::Int(value) => number(&value.inner().to_string()),
            LiteralValue::UInt(value) => number(&value.inner().to_string()),
            LiteralValue::Double(value) => number(&self.double(id, *value.inner())),
            LiteralValue::Bytes(_) => None,
        };
        node.ok_or_else(|| unknown("type", "bytes", "texts, numbers, lists and maps"))
    }

    /// The digits of a double as they were written; the parser has rounded them to 53 bits.
    fn double(&self, id: u64, value: f64) -> String {
        let written = self.source.offset_for(id).and_then(|(start, stop)| {
            let written = self.text.get(start as usize..=stop as usize)?;
            let is_it = written.parse::<f64>().ok()?.to_bits() == value.abs().to_bits();
            // CEL also takes `.5`.
            is_it.then(|| format!("{}0{written}", if value.is_sign_negative() { "-" } else { "" }))
        });
        written.unwrap_or_else(|| format!("{value}"))
    }

    fn name(&self, name: &str) -> Result<Node, Sentence> {
        if let Some(at) = self.locals.iter().rposition(|local| local == name) {
            return Ok(Node::Local(at));
        }
        let variable = Variable::ALL.into_iter().find(|variable| variable.as_str() == name);
        let known = || Variable::ALL.map(Variable::as_str).join(", ");
        variable.map(Node::Variable).ok_or_else(|| unknown("variable", name, &known()))
    }

    fn call(&mut self, call: &CallExpr) -> Result<Node, Sentence> {
        let arguments = call.target.as_deref().into_iter().chain(&call.args).collect::<Vec<_>>();
        let name = call.func_name.as_str();
        match (name, arguments.as_slice()) {
            (operators::LOGICAL_NOT, [of]) => Ok(Node::Not(self.boxed(of)?)),
            (operators::NEGATE, [of]) => Ok(Node::Negate(self.boxed(of)?)),
            (operators::LOGICAL_AND, [one, other]) => {
                Ok(Node::And(self.boxed(one)?, self.boxed(other)?))
            }
            (operators::LOGICAL_OR, [one, other]) => {
                Ok(Node::Or(self.boxed(one)?, self.boxed(other)?))
            }
            (operators::CONDITIONAL, [condition, then, otherwise]) => Ok(Node::If {
                condition: self.boxed(condition)?,
                then: self.boxed(then)?,
                otherwise: self.boxed(otherwise)?,
            }),
            (operators::EQUALS, [one, other]) => self.equals(one, other),
            (operators::NOT_EQUALS, [one, other]) => {
                Ok(Node::Not(Box::new(self.equals(one, other)?)))
            }
            (operators::INDEX, [of, at]) => {
                Ok(Node::Index { of: self.boxed(of)?, at: self.boxed(at)? })
            }
            (operators::IN, [item, of]) => {
                Ok(Node::In { item: self.boxed(item)?, of: self.boxed(of)? })
            }
            ("matches", [text, pattern]) => self.matches(text, pattern),
            (name, [one, other]) => {
                let (one, other) = (self.boxed(one)?, self.boxed(other)?);
                if let Some(order) = order(name) {
                    Ok(Node::Compare(order, one, other))
                } else if let Some(operation) = operation(name) {
                    Ok(Node::Calculate(operation, one, other))
                } else if let Some(test) = text_test(name).filter(|_| call.target.is_some()) {
                    Ok(Node::TextTest(test, one, other))
                } else {
                    Err(no_function(name))
                }
            }
            (name, [of]) => match conversion(name) {
                Some(conversion) if call.target.is_none() || name == "size" => {
                    Ok(Node::Convert(conversion, self.boxed(of)?))
                }
                _ => Err(no_function(name)),
            },
            (name, _) => Err(no_function(name)),
        }
    }

    /// `== null` asks for the type, so it is an operation of its own.
    fn equals(&mut self, one: &IdedExpr, other: &IdedExpr) -> Result<Node, Sentence> {
        match (self.node(one)?, self.node(other)?) {
            (Node::Null, of) | (of, Node::Null) => Ok(Node::IsNull(Box::new(of))),
            (one, other) => Ok(Node::Equals(Box::new(one), Box::new(other))),
        }
    }

    fn matches(&mut self, text: &IdedExpr, pattern: &IdedExpr) -> Result<Node, Sentence> {
        let Expr::Literal(LiteralValue::String(pattern)) = &pattern.expr else {
            return Err(Sentence::new(
                "the pattern of matches must be written out as a text",
                "matches의 패턴은 문자열로 직접 써야 합니다",
            ));
        };
        let mut builder = RegexBuilder::new(pattern.inner());
        builder.size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES);
        let pattern = builder.build().map_err(|error| {
            // The last line says what is wrong; the lines before show where.
            let error = error.to_string();
            let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Sentence::new(
                format!("the pattern of matches cannot be used: {reason}"),
                format!("matches의 패턴을 쓸 수 없습니다: {reason}"),
            )
        })?;
        Ok(Node::Matches { text: self.boxed(text)?, pattern })
    }

    /// A macro. The parser has expanded it into a loop, whose step tells which macro it was.
    fn each(&mut self, expanded: &ComprehensionExpr) -> Result<Node, Sentence> {
        if self.locals.len() == MAX_MACRO_DEPTH {
            return Err(Sentence::new(
                format!("more than {MAX_MACRO_DEPTH} macros are inside each other"),
                format!("매크로가 {MAX_MACRO_DEPTH}단계보다 깊이 겹쳐 있습니다"),
            ));
        }
        let name = &expanded.iter_var;
        let is_taken = self.locals.contains(name)
            || Variable::ALL.iter().any(|variable| variable.as_str() == name);
        if is_taken {
            return Err(Sentence::new(
                format!("the name {name:?} of a macro's variable is taken"),
                format!("매크로 변수의 이름 {name:?}은(는) 이미 쓰이고 있습니다"),
            ));
        }
        let (kind, filter, body) =
            parts_of_macro(expanded).ok_or_else(|| no_syntax("a macro is unknown"))?;
        let range = self.boxed(&expanded.iter_range)?;
        self.locals.push(name.clone());
        let filter = filter.map(|filter| self.boxed(filter)).transpose();
        let body = self.boxed(body);
        self.locals.pop();
        Ok(Node::Each { kind, range, filter: filter?, body: body? })
    }
}

/// Which macro a loop was, its filter and its body.
fn parts_of_macro(expanded: &ComprehensionExpr) -> Option<(Each, Option<&IdedExpr>, &IdedExpr)> {
    let Expr::Call(step) = &expanded.loop_step.expr else { return None };
    let is_accumulator =
        |of: &IdedExpr| matches!(&of.expr, Expr::Ident(name) if name == ACCUMULATOR);
    match (step.func_name.as_str(), step.args.as_slice()) {
        (operators::LOGICAL_OR, [before, body]) if is_accumulator(before) => {
            Some((Each::Exists, None, body))
        }
        (operators::LOGICAL_AND, [before, body]) if is_accumulator(before) => {
            Some((Each::All, None, body))
        }
        (operators::ADD, _) => Some((Each::Map, None, appended(step)?)),
        (operators::CONDITIONAL, [filter, then, before]) if is_accumulator(before) => {
            let Expr::Call(then) = &then.expr else { return None };
            match appended(then) {
                Some(body) => Some((Each::Map, Some(filter), body)),
                None => Some((Each::ExistsOne, None, filter)),
            }
        }
        _ => None,
    }
}

/// What a step of `map` or `filter` appends to its list; `None` for the step of `exists_one`, which
/// counts.
fn appended(step: &CallExpr) -> Option<&IdedExpr> {
    let [_, items] = step.args.as_slice() else { return None };
    let Expr::List(items) = &items.expr else { return None };
    items.elements.first()
}

fn order(name: &str) -> Option<Order> {
    match name {
        operators::LESS => Some(Order::Less),
        operators::LESS_EQUALS => Some(Order::LessOrEqual),
        operators::GREATER => Some(Order::Greater),
        operators::GREATER_EQUALS => Some(Order::GreaterOrEqual),
        _ => None,
    }
}

fn operation(name: &str) -> Option<Operation> {
    match name {
        operators::ADD => Some(Operation::Plus),
        operators::SUBSTRACT => Some(Operation::Minus),
        operators::MULTIPLY => Some(Operation::Times),
        _ => None,
    }
}

fn text_test(name: &str) -> Option<TextTest> {
    match name {
        "startsWith" => Some(TextTest::StartsWith),
        "endsWith" => Some(TextTest::EndsWith),
        "contains" => Some(TextTest::Contains),
        _ => None,
    }
}

fn conversion(name: &str) -> Option<Conversion> {
    match name {
        "size" => Some(Conversion::Size),
        "int" => Some(Conversion::Int),
        "double" => Some(Conversion::Double),
        "string" => Some(Conversion::String),
        _ => None,
    }
}

fn no_function(name: &str) -> Sentence {
    if matches!(name, operators::DIVIDE | operators::MODULO) {
        return Sentence::new(
            "division is not supported, since its result would depend on the spelling of a number; \
             multiply the other side",
            "나눗셈은 결과가 숫자 표기에 따라 달라지므로 쓸 수 없습니다. 다른 쪽을 곱하세요",
        );
    }
    let known = "size, startsWith, endsWith, contains, matches, int, double, string, has, all, \
                 exists, exists_one, map, filter (each with its arguments)";
    unknown("function", name.trim_matches('_'), known)
}

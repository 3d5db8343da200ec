//! A compiled expression: what [`read`](super::read) makes of the text, and what
//! [`evaluate`](super::evaluate) runs.

use regex::Regex;

use super::number::Number;

/// A variable of expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    ActionType,
    Message,
    Context,
    UserId,
    TenantId,
    SessionId,
    TaskId,
    Origin,
}

impl Variable {
    /// Every variable.
    pub const ALL: [Self; 8] = [
        Self::ActionType,
        Self::Message,
        Self::Context,
        Self::UserId,
        Self::TenantId,
        Self::SessionId,
        Self::TaskId,
        Self::Origin,
    ];

    /// The name in expressions.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ActionType => "actionType",
            Self::Message => "message",
            Self::Context => "context",
            Self::UserId => "userId",
            Self::TenantId => "tenantId",
            Self::SessionId => "sessionId",
            Self::TaskId => "taskId",
            Self::Origin => "origin",
        }
    }
}

/// A part of a compiled expression.
#[derive(Debug)]
pub enum Node {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    Variable(Variable),
    /// The variable of the macro at this position, counted from the outermost.
    Local(usize),
    Field {
        of: Box<Node>,
        name: String,
    },
    Has {
        of: Box<Node>,
        name: String,
    },
    Index {
        of: Box<Node>,
        at: Box<Node>,
    },
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If {
        condition: Box<Node>,
        then: Box<Node>,
        otherwise: Box<Node>,
    },
    IsNull(Box<Node>),
    Equals(Box<Node>, Box<Node>),
    Compare(Order, Box<Node>, Box<Node>),
    In {
        item: Box<Node>,
        of: Box<Node>,
    },
    Calculate(Operation, Box<Node>, Box<Node>),
    TextTest(TextTest, Box<Node>, Box<Node>),
    Matches {
        text: Box<Node>,
        pattern: Regex,
    },
    Convert(Conversion, Box<Node>),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// A macro: goes through the elements of a list or the names of a map.
    Each {
        kind: Each,
        range: Box<Node>,
        filter: Option<Box<Node>>,
        body: Box<Node>,
    },
}

impl Node {
    /// Whether the value may be true or false, as far as the form tells.
    pub fn may_be_condition(&self) -> bool {
        match self {
            Self::Bool(_)
            | Self::Local(_)
            | Self::Field { .. }
            | Self::Has { .. }
            | Self::Index { .. }
            | Self::Not(_)
            | Self::And(..)
            | Self::Or(..)
            | Self::IsNull(_)
            | Self::Equals(..)
            | Self::Compare(..)
            | Self::In { .. }
            | Self::TextTest(..)
            | Self::Matches { .. } => true,
            Self::If { then, otherwise, .. } => {
                then.may_be_condition() && otherwise.may_be_condition()
            }
            Self::Each { kind, .. } => !matches!(kind, Each::Map),
            Self::Null
            | Self::Number(_)
            | Self::Text(_)
            | Self::Variable(_)
            | Self::Negate(_)
            | Self::Calculate(..)
            | Self::Convert(..)
            | Self::List(_)
            | Self::Map(_) => false,
        }
    }
}

/// `<`, `<=`, `>`, `>=`
#[derive(Clone, Copy, Debug)]
pub enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// `+`, `-`, `*`
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    Plus,
    Minus,
    Times,
}

/// What is asked of two texts.
#[derive(Clone, Copy, Debug)]
pub enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

/// Functions of one value.
#[derive(Clone, Copy, Debug)]
pub enum Conversion {
    Size,
    Int,
    Double,
    String,
}

/// The macros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Each {
    Exists,
    ExistsOne,
    All,
    /// `map` and `filter`: a list.
    Map,
}

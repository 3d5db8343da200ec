//! In which ways a request can be decided, and what its agent says of that when it registers: which ways it
//! can handle, and what arguments and answers it takes.

use super::json;
use super::python_json::Fields;

/// A way to answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// The agent may act as it asked.
    Approve,
    /// The agent must not act.
    Reject,
    /// The agent may act, with other arguments than it asked for.
    Edit,
    /// No action; the agent gets an answer.
    Respond,
}

impl Way {
    /// Every way.
    pub const ALL: [Self; 4] = [Self::Approve, Self::Reject, Self::Edit, Self::Respond];

    /// The word of the policy file and of the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Reject => "reject",
            Self::Edit => "edit",
            Self::Respond => "respond",
        }
    }

    /// The way of this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.as_str() == word)
    }
}

/// How much harm the action can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// `low`
    Low,
    /// `medium`, the default.
    #[default]
    Medium,
    /// `high`
    High,
    /// `critical`
    Critical,
}

impl Risk {
    /// Every risk, the lowest first.
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Critical];

    /// The word of the policy file and of the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// The risk of this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|risk| risk.as_str() == word)
    }
}

/// How far an approval may stand for later requests (a grant).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remember {
    /// Every request is asked anew.
    #[default]
    Never,
    /// For requests that say the same.
    Exact,
    /// For requests of the same action, with any arguments.
    Any,
}

impl Remember {
    /// Every choice, the strictest first.
    pub const ALL: [Self; 3] = [Self::Never, Self::Exact, Self::Any];

    /// The word of the policy file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Exact => "exact",
            Self::Any => "any",
        }
    }

    /// The choice of this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|remember| remember.as_str() == word)
    }
}

/// The ways of an agent that says nothing, and of every agent on Redis, which takes whatever is not a
/// rejection for an approval of what it asked.
pub const PLAIN_WAYS: [Way; 2] = [Way::Approve, Way::Reject];

/// What an agent says of the decision when it registers a request. It is a part of the request's document,
/// and so of its entity tag: a person sees what their answer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `decisions`: the ways that the agent can handle, in the order of [`Way::ALL`].
    pub ways: Vec<Way>,
    /// `argumentsSchema`: what edited arguments must look like.
    pub arguments_schema: Option<String>,
    /// `responseSchema`: what an answer must look like.
    pub response_schema: Option<String>,
    /// `risk`: the least risk that the request has.
    pub risk: Option<Risk>,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            ways: PLAIN_WAYS.to_vec(),
            arguments_schema: None,
            response_schema: None,
            risk: None,
        }
    }
}

impl Offer {
    /// Reads the offer of a registered request's document. What is not valid was not registered here, and
    /// is as good as absent.
    #[must_use]
    pub fn read(object: &Fields<'_>) -> Self {
        let value = |name: &str| object.get(name).copied().filter(|value| *value != "null");
        let ways = value("decisions").and_then(|words| {
            let words = serde_json::from_str::<Vec<String>>(words).ok()?;
            Way::list(words.iter().map(String::as_str))
        });
        let risk = value("risk").and_then(|risk| serde_json::from_str::<String>(risk).ok());
        Self {
            ways: ways.unwrap_or_else(|| PLAIN_WAYS.to_vec()),
            arguments_schema: value("argumentsSchema").map(ToOwned::to_owned),
            response_schema: value("responseSchema").map(ToOwned::to_owned),
            risk: risk.and_then(|risk| Risk::parse(&risk)),
        }
    }

    /// The ways for the column `offered`; `None` for [`PLAIN_WAYS`].
    #[must_use]
    pub fn column(&self) -> Option<String> {
        let words = || self.ways.iter().map(|way| way.as_str()).collect::<Vec<_>>().join(",");
        (self.ways != PLAIN_WAYS).then(words)
    }

    /// The ways of the column `offered`.
    #[must_use]
    pub fn ways_of_column(column: Option<&str>) -> Vec<Way> {
        let ways = column.and_then(|words| Way::list(words.split(',')));
        ways.unwrap_or_else(|| PLAIN_WAYS.to_vec())
    }
}

impl Way {
    /// The ways of these words, in the order of [`Way::ALL`]. `None` if a word is none of them, or there
    /// are none.
    #[must_use]
    pub fn list<'a>(words: impl IntoIterator<Item = &'a str>) -> Option<Vec<Self>> {
        let mut ways = words.into_iter().map(Self::parse).collect::<Option<Vec<_>>>()?;
        ways.sort_unstable();
        ways.dedup();
        (!ways.is_empty()).then_some(ways)
    }

    /// The ways on the wire, as JSON.
    #[must_use]
    pub fn json(ways: &[Self]) -> Box<serde_json::value::RawValue> {
        json::raw(&ways.iter().map(|way| way.as_str()).collect::<Vec<_>>())
    }
}

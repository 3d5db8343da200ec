//! Comments on a pending request: questions and answers, before somebody decides.

use chrono::{DateTime, Utc};

use super::ids::{RequestId, UserId};

/// The longest text of a comment, in characters.
pub const MAX_COMMENT_CHARS: usize = 2000;
/// The most comments of one request.
pub const MAX_COMMENTS: i64 = 100;

/// Who wrote a comment, with the user's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The person.
    Person,
    /// An agent that acts for the person.
    Agent,
}

impl Author {
    /// `person` or `agent`: on the wire and in the ledger.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Agent => "agent",
        }
    }
}

/// A comment on a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    /// The request.
    pub request: RequestId,
    /// Its number among the comments of the request, from 1.
    pub number: i64,
    /// The user of the token with which it was written.
    pub user: UserId,
    /// Who wrote it.
    pub author: Author,
    /// What it says, at most [`MAX_COMMENT_CHARS`].
    pub text: String,
    /// When it was written, UTC.
    pub at: DateTime<Utc>,
}

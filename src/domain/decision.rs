//! What people decide, and where a request stands.

use chrono::{DateTime, Utc};

use super::ids::UserId;

/// The reason recorded and signalled when a person rejects without giving one (wire contract).
pub const DEFAULT_REASON: &str = "User rejected";

/// What a person says about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The agent may go on.
    Approve,
    /// The agent may not.
    Reject {
        /// Why, in the person's words; [`DEFAULT_REASON`] when they gave none.
        reason: String,
    },
}

impl Verdict {
    /// `approved` or `rejected`: the status on the wire and in the ledger.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self {
            Self::Approve => "approved",
            Self::Reject { .. } => "rejected",
        }
    }

    /// `approval` or `rejection`: the `type` of the signal.
    #[must_use]
    pub fn signal_type(&self) -> &'static str {
        match self {
            Self::Approve => "approval",
            Self::Reject { .. } => "rejection",
        }
    }

    /// The reason of a rejection.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Approve => None,
            Self::Reject { reason } => Some(reason),
        }
    }
}

/// A verdict, by whom and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What was decided.
    pub verdict: Verdict,
    /// By whom.
    pub by: UserId,
    /// When, UTC.
    pub at: DateTime<Utc>,
}

/// Where a request stands in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody has decided.
    Pending,
    /// Somebody has.
    Decided(Decision),
    /// Its time ran out first.
    Expired,
    /// Its agent withdrew it first.
    Cancelled,
}

impl State {
    /// `pending`, `approved`, `rejected`, `expired` or `cancelled`: on the wire and in the ledger.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Decided(decision) => decision.verdict.status(),
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// What somebody decided, if anybody did.
    #[must_use]
    pub fn decision(&self) -> Option<&Decision> {
        match self {
            Self::Decided(decision) => Some(decision),
            Self::Pending | Self::Expired | Self::Cancelled => None,
        }
    }
}

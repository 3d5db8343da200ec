//! [`RequestError`]: why a use case has no answer, by what the caller can conclude.

use crate::courier::Unavailable;
use crate::domain::rules::Refusal;
use crate::domain::schema::Mismatch;
use crate::ledger::LedgerError;
use crate::limits::TooMany;
use crate::limits::quotas::QuotaError;
use crate::state::WorkError;

/// Why a use case has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The rules say no.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The request in Redis cannot be read.
    #[error("the request {0}")]
    Unreadable(&'static str),
    /// The arguments or the answer do not match the agent's schema. The problems are those of the field
    /// of the body with this name.
    #[error("{0} does not match the agent's schema")]
    Mismatch(&'static str, Vec<Mismatch>),
    /// Redis says that the request is closed, but the ledger has no decision: Redis was forged.
    #[error("the request is closed in Redis, and the ledger has no decision")]
    UnrecordedDecision,
    /// Redis is out of reach, and the ledger alone cannot answer.
    #[error(transparent)]
    Courier(#[from] Unavailable),
    /// The ledger is out of reach, or its content is inconsistent.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The caller has reached a limit.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The work was not started, or panicked.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The connection to the ledger broke while it recorded the decision: nobody knows whether the
    /// decision is recorded.
    #[error("the ledger did not confirm: {0}")]
    OutcomeUnknown(LedgerError),
}

impl From<QuotaError> for RequestError {
    fn from(error: QuotaError) -> Self {
        match error {
            QuotaError::TooMany(too_many) => too_many.into(),
            QuotaError::Ledger(error) => error.into(),
        }
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The result of a use case.
pub type Result<T> = std::result::Result<T, RequestError>;

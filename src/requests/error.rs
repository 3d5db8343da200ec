//! Why a use case has no answer, by what the caller can conclude.

use crate::courier::Unavailable;
use crate::domain::rules::Refusal;
use crate::ledger::LedgerError;
use crate::limits::TooMany;
use crate::limits::quotas::QuotaError;
use crate::state::Undone;

/// Why a use case has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The rules say no.
    #[error("refused: {0:?}")]
    Refused(Refusal),
    /// The request in Redis cannot be read.
    #[error("the request {0}")]
    Unreadable(&'static str),
    /// Redis says that it is not pending, and the ledger knows nothing of it.
    #[error("nobody decided it")]
    DecidedByNobody,
    /// Redis is out of reach and the ledger alone cannot tell.
    #[error(transparent)]
    Courier(#[from] Unavailable),
    /// The ledger is out of reach or wrong.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The caller waits too often already.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// Nothing came of it.
    #[error(transparent)]
    Undone(#[from] Undone),
    /// The ledger went away while the decision was written: it may or may not be recorded.
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

/// What a use case answers.
pub type Result<T> = std::result::Result<T, RequestError>;

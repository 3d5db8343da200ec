//! Why a use case on tasks has no answer, by what the caller can conclude.

use crate::domain::task::TaskRefusal;
use crate::ledger::LedgerError;
use crate::limits::TooMany;
use crate::limits::quotas::QuotaError;

/// Why a use case on tasks has no answer. Except after [`LedgerError::OutcomeUnknown`], the task is as
/// it was.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The caller's tenant has no such task.
    #[error("no such task")]
    NotFound,
    /// It is another user's, and the caller is no admin.
    #[error("the task is another user's")]
    NotTheOwner,
    /// The task does not allow the step.
    #[error(transparent)]
    Refused(#[from] TaskRefusal),
    /// The tenant has written too much.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The ledger is out of reach or wrong.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<QuotaError> for TaskError {
    fn from(error: QuotaError) -> Self {
        match error {
            QuotaError::TooMany(too_many) => too_many.into(),
            QuotaError::Ledger(error) => error.into(),
        }
    }
}

/// What a use case on tasks answers.
pub type Result<T> = std::result::Result<T, TaskError>;

//! The errors of the task use cases: one variant for each case that callers tell apart.

use crate::domain::task::TaskRefusal;
use crate::ledger::LedgerError;
use crate::limits::TooMany;
use crate::limits::quotas::QuotaError;

/// Why a task use case failed. The task is unchanged, except perhaps after
/// [`LedgerError::OutcomeUnknown`].
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The caller's tenant has no such task.
    #[error("no such task")]
    NotFound,
    /// The task belongs to another user, and the caller is not an admin.
    #[error("the task is another user's")]
    NotTheOwner,
    /// The task does not allow the step.
    #[error(transparent)]
    Refused(#[from] TaskRefusal),
    /// The tenant has used up a quota.
    #[error(transparent)]
    TooMany(#[from] TooMany),
    /// The ledger did not answer, or refused the statement.
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

/// The result of a task use case.
pub type Result<T> = std::result::Result<T, TaskError>;

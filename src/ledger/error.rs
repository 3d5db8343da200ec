//! Why the ledger did not do what it was asked.

use sqlx::postgres::PgDatabaseError;

use super::connections::{NotSent, ends_session};

/// Why the ledger did not do what it was asked, by what the caller can conclude.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Nothing was executed: no connection was to be had, or the database refused.
    #[error("the ledger executed nothing: {0}")]
    NotExecuted(String),
    /// Nothing was executed: somebody else holds this row, for too long. Other rows may be free.
    #[error("the ledger executed nothing: {0}")]
    Locked(String),
    /// The connection was lost, or was silent for too long, after the statement had been sent. A
    /// write may or may not have happened.
    #[error("the ledger did not answer: {0}")]
    OutcomeUnknown(String),
    /// It answered something that cannot be: a bug of ours or a hand-edited row.
    #[error("the ledger is inconsistent: {0}")]
    Inconsistent(String),
}

/// What the ledger answers.
pub type Result<T> = std::result::Result<T, LedgerError>;

impl LedgerError {
    /// The same of a question: one that was not answered has changed nothing.
    #[must_use]
    pub(super) fn of_a_read(self) -> Self {
        match self {
            Self::OutcomeUnknown(cause) => Self::NotExecuted(cause),
            error => error,
        }
    }
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        let text = error.to_string();
        match &error {
            sqlx::Error::AnyDriverError(cause) if cause.is::<NotSent>() => {
                Self::NotExecuted(cause.to_string())
            }
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => Self::NotExecuted(text),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => Self::OutcomeUnknown(text),
            sqlx::Error::Database(said) => match said.try_downcast_ref::<PgDatabaseError>() {
                Some(said) => from_postgres(said, text),
                None => from_sqlite(said.code().and_then(|code| code.parse().ok()), text),
            },
            _ => Self::Inconsistent(text),
        }
    }
}

/// An ERROR undoes its statement; after a FATAL the statement may have been done. The codes:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn from_postgres(said: &PgDatabaseError, text: String) -> LedgerError {
    let code = said.code();
    if ends_session(said) {
        return LedgerError::OutcomeUnknown(text);
    }
    // Waiting for a lock (55P03), out of time (57014), conflicts (40001) and deadlocks (40P01).
    if ["55P03", "57014", "40001", "40P01"].contains(&code) {
        return LedgerError::Locked(text);
    }
    // Connection trouble (08), read-only (25006), rolled back (40), resources (53), objects in use
    // (55), operators (57), the system (58).
    let is_passing = code == "25006"
        || ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class));
    if is_passing { LedgerError::NotExecuted(text) } else { LedgerError::Inconsistent(text) }
}

/// By the primary code, the lower byte: <https://www.sqlite.org/rescode.html>.
fn from_sqlite(code: Option<u32>, text: String) -> LedgerError {
    match code.map(|code| code & 0xff) {
        // PERM, BUSY, LOCKED, NOMEM, READONLY, FULL, CANTOPEN.
        Some(3 | 5 | 6 | 7 | 8 | 13 | 14) => LedgerError::NotExecuted(text),
        // IOERR: perhaps what failed was only the last flush.
        Some(10) => LedgerError::OutcomeUnknown(text),
        _ => LedgerError::Inconsistent(text),
    }
}

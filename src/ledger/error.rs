//! The error of the ledger's methods.

use sqlx::postgres::PgDatabaseError;

use super::connections::{NotSent, ends_session};

/// Why a call to the ledger failed. Each variant says what the caller can conclude.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// Nothing was executed: no connection was available, or the database refused the statement.
    #[error("the ledger executed nothing: {0}")]
    NotExecuted(String),
    /// Nothing was executed: Postgres gave up the statement because of a lock, a conflict with
    /// another transaction, or the statement's time-out. The same statement may succeed for other
    /// rows.
    #[error("the ledger executed nothing: {0}")]
    Locked(String),
    /// The connection was lost, or the answer took too long, after the statement may have been
    /// sent. A write may or may not have happened.
    #[error("the ledger did not answer: {0}")]
    OutcomeUnknown(String),
    /// The database's answer is not valid: a bug of this service, or a row that was edited by hand.
    #[error("the ledger is inconsistent: {0}")]
    Inconsistent(String),
}

/// The result of a call to the ledger.
pub type Result<T> = std::result::Result<T, LedgerError>;

impl LedgerError {
    /// The error of a statement that only reads: without an answer, nothing was changed either.
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
            sqlx::Error::Database(cause) => match cause.try_downcast_ref::<PgDatabaseError>() {
                Some(cause) => from_postgres(cause, text),
                None => from_sqlite(cause.code().and_then(|code| code.parse().ok()), text),
            },
            _ => Self::Inconsistent(text),
        }
    }
}

/// After severity ERROR the statement was undone. After FATAL it may have been executed. The codes:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn from_postgres(cause: &PgDatabaseError, text: String) -> LedgerError {
    let code = cause.code();
    if ends_session(cause) {
        return LedgerError::OutcomeUnknown(text);
    }
    // Lock time-out (55P03), statement time-out (57014), conflict (40001), deadlock (40P01).
    if ["55P03", "57014", "40001", "40P01"].contains(&code) {
        return LedgerError::Locked(text);
    }
    // Connection error (08), read-only transaction (25006), transaction rolled back (40),
    // insufficient resources (53), object not in the required state (55), operator intervention
    // (57), system error (58).
    let is_passing = code == "25006"
        || ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class));
    if is_passing { LedgerError::NotExecuted(text) } else { LedgerError::Inconsistent(text) }
}

/// Uses SQLite's primary result code, which is the lower byte:
/// <https://www.sqlite.org/rescode.html>.
fn from_sqlite(code: Option<u32>, text: String) -> LedgerError {
    match code.map(|code| code & 0xff) {
        // PERM, BUSY, LOCKED, NOMEM, READONLY, FULL, CANTOPEN.
        Some(3 | 5 | 6 | 7 | 8 | 13 | 14) => LedgerError::NotExecuted(text),
        // IOERR: the transaction may be complete, and only its last flush have failed.
        Some(10) => LedgerError::OutcomeUnknown(text),
        _ => LedgerError::Inconsistent(text),
    }
}

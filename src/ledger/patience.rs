//! Asking a database again that may answer in a moment: for commands, and when the service starts.

use std::time::{Duration, Instant};

use super::{LedgerError, LoginError};

/// Longest that a command goes on asking a database that does not answer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two of its questions.
const COMMAND_RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Whether Postgres would not do something now, but may in a moment: somebody holds a lock, all
/// connections are taken, or it is starting or stopping.
fn is_passing(cause: &(dyn std::error::Error + 'static)) -> bool {
    let code = match cause.downcast_ref() {
        Some(sqlx::Error::Database(said)) => said.code(),
        Some(sqlx::Error::Io(_)) => return true,
        _ => return false,
    };
    matches!(code.as_deref(), Some("55P03" | "53300" | "57P01" | "57P03" | "40P01"))
}

/// Asks again, for up to `COMMAND_PATIENCE`, while the database does not answer: a command has
/// nobody else who would try again. Only for what may be asked twice.
///
/// # Errors
/// The last answer's.
pub async fn patiently<T>(mut ask: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let may_pass = |error: &anyhow::Error| match error.downcast_ref() {
        Some(LoginError { may_pass, .. }) => *may_pass,
        None if error.chain().any(is_passing) => true,
        None => error.downcast_ref().is_some_and(|error| match error {
            LedgerError::NotExecuted(_)
            | LedgerError::Locked(_)
            | LedgerError::OutcomeUnknown(_) => true,
            LedgerError::Inconsistent(_) => false,
        }),
    };
    let began = Instant::now();
    loop {
        match ask().await {
            Err(error) if may_pass(&error) && began.elapsed() < COMMAND_PATIENCE => {
                tokio::time::sleep(COMMAND_RETRY_INTERVAL).await;
            }
            answer => return answer,
        }
    }
}

//! Repeats a call to a database that does not answer: for commands, and when the service starts.

use std::time::{Duration, Instant};

use tracing::warn;

use super::error::LedgerError;
use super::login::LoginError;

/// How long a call is repeated.
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two calls.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How often the log says why the service waits.
const NOTICE_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the same call may soon succeed: the connection failed, a lock is held or led to a
/// deadlock, all connections are in use, or Postgres is starting or stopping.
fn is_passing(cause: &(dyn std::error::Error + 'static)) -> bool {
    let code = match cause.downcast_ref() {
        Some(sqlx::Error::Database(said)) => said.code(),
        Some(sqlx::Error::Io(_)) => return true,
        _ => return false,
    };
    matches!(code.as_deref(), Some("55P03" | "53300" | "57P01" | "57P03" | "40P01"))
}

/// Calls `ask`, and repeats it for up to `RETRY_TIMEOUT` while it fails with an error that may
/// pass. The log names the error. `ask` must be safe to repeat.
///
/// # Errors
/// The error of the last call.
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
    let mut next_notice = Duration::ZERO;
    loop {
        match ask().await {
            Err(error) if may_pass(&error) && began.elapsed() < RETRY_TIMEOUT => {
                let waited = began.elapsed();
                if waited >= next_notice {
                    next_notice = waited + NOTICE_INTERVAL;
                    let seconds_left = RETRY_TIMEOUT.saturating_sub(waited).as_secs();
                    let error = format!("{error:#}");
                    warn!(error, seconds_left, "waiting for the database");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            answer => return answer,
        }
    }
}

//! Asking a database again that may answer in a moment: for commands, and when the service starts.

use std::time::{Duration, Instant};

use tracing::warn;

use super::error::LedgerError;
use super::login::LoginError;

/// Longest to go on asking a database that does not answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two questions.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How often the log says what is waited for.
const NOTICE_INTERVAL: Duration = Duration::from_secs(5);

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

/// Asks again, for up to `PATIENCE`, while the database does not answer: nobody else would. The log
/// says so. Only for what may be asked twice.
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
    let mut next_notice = Duration::ZERO;
    loop {
        match ask().await {
            Err(error) if may_pass(&error) && began.elapsed() < PATIENCE => {
                let waited = began.elapsed();
                if waited >= next_notice {
                    next_notice = waited + NOTICE_INTERVAL;
                    let seconds_left = PATIENCE.saturating_sub(waited).as_secs();
                    let error = format!("{error:#}");
                    warn!(error, seconds_left, "waiting for the database");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            answer => return answer,
        }
    }
}

//! Reads one task or a page of tasks.

use super::error::{Result, TaskError};
use crate::domain::approver::Caller;
use crate::domain::ids::TaskId;
use crate::domain::task::{Task, TaskFilter};
use crate::state::AppState;

/// Returns a task of the caller's tenant.
///
/// # Errors
/// [`TaskError::NotFound`]; [`TaskError::Ledger`] when the ledger does not answer.
pub async fn read(app: &AppState, caller: &Caller, id: &TaskId) -> Result<Task> {
    app.ledger.find_task(&caller.tenant, id).await?.ok_or(TaskError::NotFound)
}

/// Returns a page of tasks, newest first, and the total number of tasks that match; see
/// [`Ledger::list_tasks`](crate::ledger::Ledger::list_tasks).
///
/// # Errors
/// [`TaskError::Ledger`] when the ledger does not answer.
pub async fn list(app: &AppState, filter: &TaskFilter) -> Result<(Vec<Task>, u64)> {
    Ok(app.ledger.list_tasks(filter).await?)
}

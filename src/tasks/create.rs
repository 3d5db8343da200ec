//! Creates a task.

use super::error::Result;
use crate::domain::task::Task;
use crate::state::AppState;

/// Creates a task that an agent asks for, within its tenant's quota of bytes.
///
/// # Errors
/// [`TaskError::TooMany`](super::TaskError::TooMany) when the tenant's quota is used up;
/// [`TaskError::Ledger`](super::TaskError::Ledger) when the ledger does not answer or rejects the
/// task. The task then does not exist, unless the error is `LedgerError::OutcomeUnknown`.
pub async fn create(app: &AppState, task: &Task) -> Result<()> {
    let (bytes, tenant) = (task.size(), &task.tenant);
    app.quotas.check_bytes(&app.ledger, tenant, bytes, task.created_at).await?;
    app.ledger.insert_task(task).await?;
    app.quotas.count_bytes(tenant, bytes).await;
    Ok(())
}

//! Asking for a task.

use super::error::Result;
use crate::domain::task::Task;
use crate::state::AppState;

/// Adds a task that an agent asks for.
///
/// # Errors
/// [`TaskError`](super::TaskError); there is no such task then, unless the ledger did not confirm.
pub async fn create(app: &AppState, task: &Task) -> Result<()> {
    let (bytes, tenant) = (task.size(), &task.tenant);
    app.quotas.check_bytes(&app.ledger, tenant, bytes, task.created_at).await?;
    app.ledger.insert_task(task).await?;
    app.quotas.count_bytes(tenant, bytes).await;
    Ok(())
}
